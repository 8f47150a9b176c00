"""`vlp-gym eval` and `vlp-gym score`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from vlp_gym.commands.device import best_device

SplitName = Literal["vlp", "ml45", "all"]
GIF_FRAMES = 120  # a longer GIF shows every second, third ... frame: it would weigh hundreds of megabytes


def evaluate(
    *,
    model: str = "vlp-compact",
    data: Path,
    split: SplitName = "vlp",
    out: Path | None = None,
    seed: int = 0,
    pairs_per_task: int = 500,
) -> None:
    """Judge a reward model on the held-out tasks of a split: JSON, a Markdown table and a picture.

    Args:
        model: a shipped name (see `vlp-gym models`), a checkpoint folder, or a hub id org/name.
        data: folder that `vlp-gym collect` filled, best with another seed than the training's.
        split: vlp and ml45 judge the five tasks that each holds out; all judges the 50.
        out: folder for the report; runs/eval/MODEL-SPLIT by default.
        seed: of every draw.
        pairs_per_task: pairs for scripted ITP, IVP and ILP.
    """
    from vlp_gym.data.dataset import load_trajectories, shard_path
    from vlp_gym.data.instructions import ML45_TEST_TASKS, SIBLINGS, TEST_TASKS, train_tasks
    from vlp_gym.evaluation import evaluate as judge
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.report import markdown, write_report

    if pairs_per_task < 1:
        raise ValueError(f"--pairs-per-task: expected at least 1, got {pairs_per_task}")
    tasks = {"vlp": TEST_TASKS, "ml45": ML45_TEST_TASKS, "all": train_tasks("all")}[split]
    siblings = {SIBLINGS[task] for task in tasks if task in SIBLINGS} - set(tasks)
    collected = [task for task in sorted(siblings) if shard_path(data, task, "expert").exists()]
    device = best_device()
    live = load_reward_model(model, device=device)
    trajectories = load_trajectories(data, tasks=[*tasks, *collected])
    result = judge(
        live, trajectories, tasks=tasks, split_name=split, seed=seed, device=device, pairs_per_task=pairs_per_task
    )
    result["settings"]["model"] = model
    # The last part of a path or hub id; all of a name with a family, whose tag alone would not tell models apart.
    name = re.sub(r"[^\w.-]+", "-", model if ":" in model else Path(model).name)
    out = Path("runs") / "eval" / f"{name}-{split}" if out is None else out
    paths = write_report(result, out)
    print(markdown(result))
    print(f"report: {' '.join(str(path) for path in paths)}")


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
    """Score a video under a sentence: its reward curve as PNG, and drawn beside the video as MP4 and GIF.

    With --dataset, score collected rollouts instead, for the uses of GVL: which succeed, which to keep for imitation,
    and how much each of their steps counts in advantage-weighted regression.

    Args:
        video: mp4, mkv, webm, avi, gif ...; at most 2,000 frames.
        instruction: what is to be done, in one sentence; by default that of each rollout's task.
        model: a name (see `vlp-gym models`), a checkpoint folder, or a hub id org/name.
        dataset: folder that `vlp-gym collect` filled, in place of a video.
        tasks: of the dataset; all by default.
        threshold: of the value-order correlation over which a rollout is taken for a success.
        temperature: tau of the steps' weights, exp(tau * change of the value), at most 100.
        out: folder for curve.png, overlay.mp4 and overlay.gif, or scores.json, scores.md and scores.png;
            runs/score/NAME by default.
    """
    if (video is None) == (dataset is None):
        raise ValueError("expected a video or --dataset, and not both")
    if dataset is not None:
        _score_dataset(
            dataset, tasks, instruction, model, threshold, temperature, out or Path("runs") / "score" / dataset.name
        )
        return
    assert video is not None
    from tqdm import tqdm

    from vlp_gym.answers import Ticket
    from vlp_gym.engine import QueryEngine
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.shaping import Reward, score_of
    from vlp_gym.text import normalize_instruction
    from vlp_gym.video import overlay_video, read_video
    from vlp_gym.viz import plot_reward_curves

    if instruction is None:
        raise ValueError("--instruction: expected what is to be done in the video, in one sentence")
    instruction = normalize_instruction(instruction)
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
    out = Path("runs") / "score" / video.stem if out is None else out
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
    dataset: Path,
    tasks: tuple[str, ...],
    instruction: str | None,
    model: str,
    threshold: float,
    temperature: float,
    out: Path,
) -> None:
    import json

    from vlp_gym.data.dataset import load_trajectories
    from vlp_gym.data.instructions import full_name
    from vlp_gym.dataset_scores import plot_scores, score_dataset, summarize
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.storage import write_atomic
    from vlp_gym.text import normalize_instruction

    sentence = None if instruction is None else normalize_instruction(instruction)
    device = best_device()
    live = load_reward_model(model, device=device)
    names = [full_name(task) for task in tasks]
    rows = score_dataset(
        live, load_trajectories(dataset, tasks=names or None),
        instruction=sentence, threshold=threshold, temperature=temperature, device=device,
    )  # fmt: skip
    settings = {"model": model, "dataset": str(dataset), "threshold": threshold, "temperature": temperature}
    table = summarize(rows, threshold)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "scores.json", json.dumps({"settings": settings, "videos": rows}, indent=1).encode())
    write_atomic(out / "scores.md", f"# {model} on {dataset}\n\n{table}\n".encode())
    plot_scores(rows, out / "scores.png", threshold=threshold, title=model)
    print(table)
    print(f"written: {' '.join(str(out / f'scores.{kind}') for kind in ('json', 'md', 'png'))}")
