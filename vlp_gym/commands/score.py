"""`vlp-gym score`."""

from __future__ import annotations

from pathlib import Path

GIF_FRAMES = 120  # longer GIFs skip frames, to stay below hundreds of megabytes


def score(
    video: Path | None = None,
    /,
    *,
    instruction: str | None = None,
    model: str = "vlp-compact",
    dataset: Path | None = None,
    tasks: tuple[str, ...] = (),
    threshold: float = 0.5,
    temperature: float = 1.0,
    out: Path | None = None,
) -> None:
    """Score a video for an instruction; writes the reward curve (PNG), and the video with the curve (MP4, GIF).

    With --dataset, score collected rollouts as in GVL: detect successes, filter demonstrations, and weight steps for
    advantage-weighted regression.

    Args:
        video: video file (mp4, mkv, webm, avi, gif ...) of at most 2,000 frames.
        instruction: the task in one sentence; with --dataset the default is each rollout's own.
        model: a shipped name (see `vlp-gym models`), a checkpoint folder, or a hub id org/name.
        dataset: folder from `vlp-gym collect`, instead of a video.
        tasks: score only these tasks of the dataset; default: all.
        threshold: value-order correlation from which a rollout counts as a success, in [-1, 1].
        temperature: tau of the step weights exp(tau * change of value), in [0, 100].
        out: folder for the curve and videos, or for scores.json, scores.md and scores.png; default: runs/score/NAME.
    """
    if (video is None) == (dataset is None):
        raise ValueError("expected a video or --dataset, and not both")
    from vlp_gym.text import normalize_instruction

    instruction = None if instruction is None else normalize_instruction(instruction)
    if dataset is not None:
        out = out or Path("runs") / "score" / dataset.name
        _score_dataset(dataset, tasks, instruction, model, out, threshold, temperature)
        return
    assert video is not None
    from tqdm import tqdm

    from vlp_gym.engine.engine import QueryEngine
    from vlp_gym.engine.tickets import Ticket
    from vlp_gym.models.registry import best_device, load_reward_model
    from vlp_gym.rewards.shaping import Reward, score_of
    from vlp_gym.video import overlay_video, read_video
    from vlp_gym.viz import plot_reward_curves

    if instruction is None:
        raise ValueError("--instruction: expected what is to be done in the video, in one sentence")
    frames = read_video(video)
    engine = QueryEngine(load_reward_model(model, device=best_device()))
    env, text = engine.add_env(), engine.encode_text(instruction)
    kind: Reward = "preference" if engine.probe(text).progress is None else "progress"
    engine.begin(env, 0, text)
    rewards: list[float] = []
    for step, frame in enumerate(tqdm(frames, desc="scoring", unit="frame")):
        answer = engine.query([Ticket(env, 0, step)], [frame])[0]
        rewards.append(score_of(kind, answer.preference, answer.progress, answer.relevance))
    label = "preference" if kind == "preference" else "reward"
    out = out or Path("runs") / "score" / video.stem
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("curve.png", "overlay.mp4", "overlay.gif")]
    plot_reward_curves(
        {label: rewards}, paths[0], title=instruction, xlabel="frame", ylabel=label, frames={label: frames}
    )
    every = -(-len(frames) // GIF_FRAMES)
    files = zip(paths[1:], (slice(None), slice(None, None, every)), strict=True)
    for path, shown in tqdm(files, desc="drawing", unit="file", total=2):
        overlay_video(frames[shown], rewards[shown], path, title=instruction, ylabel=label)
    print(f"{label}: {rewards[0]:.3f} at the first frame, {rewards[-1]:.3f} at the last, {max(rewards):.3f} at most")
    print(f"written: {' '.join(str(path) for path in paths)}")


def _score_dataset(
    folder: Path, tasks: tuple[str, ...], instruction: str | None, model: str, out: Path, threshold: float, tau: float
) -> None:
    import json

    from vlp_gym.commands.data import load
    from vlp_gym.evaluation.demonstrations import plot_scores, score_dataset, summarize
    from vlp_gym.models.registry import best_device, load_reward_model
    from vlp_gym.storage import write_atomic

    device = best_device()
    live = load_reward_model(model, device=device)
    rows = score_dataset(
        live, load(folder, tasks=tasks), instruction=instruction, threshold=threshold, temperature=tau, device=device
    )
    settings = {"model": model, "dataset": str(folder), "threshold": threshold, "temperature": tau}
    table = summarize(rows, threshold)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "scores.json", json.dumps({"settings": settings, "videos": rows}, indent=1).encode())
    write_atomic(out / "scores.md", f"# {model} on {folder}\n\n{table}\n".encode())
    plot_scores(rows, out / "scores.png", threshold=threshold, title=model)
    print(table)
    print(f"written: {' '.join(str(out / f'scores.{kind}') for kind in ('json', 'md', 'png'))}")
