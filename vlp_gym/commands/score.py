"""`vlp-gym score`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp_gym.data.sources import Numbered, Source
    from vlp_gym.engine.engine import QueryEngine

GIF_FRAMES = 120  # longer GIFs skip frames, to stay below hundreds of megabytes


def score(
    videos: tuple[Path, ...] = (),
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
    """Score videos for an instruction; writes the reward curve (PNG, JSON), and the video with the curve (MP4, GIF).

    For example: vlp-gym score video.mp4 --instruction "close the door"

    With --dataset, score collected rollouts as in GVL: detect successes, filter demonstrations, and weight steps for
    advantage-weighted regression. What the model says of each is written at once (scores.jsonl); the same command goes
    on where it was broken off.

    Args:
        videos: video files (mp4, mkv, webm, avi, gif ...) of at most 2,000 frames, or folders of them.
        instruction: the task in one sentence; with --dataset the default is each rollout's own, where it has one.
        model: a shipped name (see `vlp-gym models`), a checkpoint folder, or a hub id org/name.
        dataset: folder from `vlp-gym collect`, or another data set (see `vlp-gym data --help`), instead of videos. For
            lerobot:... progress.parquet is written, too; for minari:... a copy of it with the model's rewards.
        tasks: score only these tasks of the dataset; default: all.
        threshold: value-order correlation from which a rollout counts as a success, in [-1, 1].
        temperature: tau of the step weights exp(tau * change of value), in [0, 100].
        out: folder for the results, with a folder for each of several videos; default: runs/score/NAME.
    """
    if bool(videos) == (dataset is not None):
        raise ValueError("expected videos or --dataset, and not both")
    if tasks and dataset is None:
        raise ValueError("--tasks: only --dataset has tasks, got videos")
    if not -1 <= threshold <= 1:
        raise ValueError(f"--threshold: expected -1 to 1, got {threshold}")
    if not 0 <= temperature <= 100:
        raise ValueError(f"--temperature: expected 0 to 100, got {temperature}")
    from vlp_gym.errors import check_packages
    from vlp_gym.text import normalize_instruction

    instruction = None if instruction is None else normalize_instruction(instruction)
    if dataset is not None:
        check_packages(dict.fromkeys(("datasets", "PIL", "scipy", "matplotlib"), "train"), "scoring rollouts needs")
        out = out or Path("runs") / "score" / dataset.name
        _score_dataset(dataset, tasks, instruction, model, out, threshold, temperature)
        return
    if instruction is None:
        raise ValueError("--instruction: expected what is to be done in the video, in one sentence")
    files = _files(videos)
    check_packages(dict.fromkeys(("av", "matplotlib", "PIL"), "viz"), "scoring a video needs")
    _score_videos(files, instruction, model, _folders(files, videos, out))


def _files(videos: Sequence[Path]) -> list[Path]:
    """The files, and the videos of the folders, sorted."""
    from vlp_gym.errors import DatasetError
    from vlp_gym.text import VIDEOS

    files: list[Path] = []
    for path in videos:
        if not path.exists():
            raise DatasetError(f"{path}: expected a video file, found none")
        found = sorted(each for each in path.iterdir() if each.suffix.lower() in VIDEOS) if path.is_dir() else [path]
        if not found:
            raise DatasetError(f"{path}: expected videos in the folder ({' '.join(VIDEOS)}), found none")
        files += found
    return list(dict.fromkeys(files))


def _folders(files: Sequence[Path], videos: Sequence[Path], out: Path | None) -> list[Path]:
    """Where the results of each file go: by its stem, or by more of its path where two are equal."""
    if len(files) == 1 and not videos[0].is_dir():
        return [out or Path("runs") / "score" / files[0].stem]
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        names = ["-".join(file.parts).strip("/-") for file in files]
    return [(out or Path("runs") / "score") / name for name in names]


def _score_videos(files: Sequence[Path], instruction: str, model: str, folders: Sequence[Path]) -> None:
    from vlp_gym.engine.engine import QueryEngine
    from vlp_gym.errors import DatasetError
    from vlp_gym.models.registry import best_device, load_reward_model

    score_one = _scorer(QueryEngine(load_reward_model(model, device=best_device())), instruction)
    failed: list[DatasetError] = []
    for episode, (file, folder) in enumerate(zip(files, folders, strict=True)):
        try:
            print(score_one(episode, file, folder), flush=True)
        except DatasetError as error:  # a damaged one of a hundred
            failed.append(error)
    if failed:
        more = f"; {len(failed)} of {len(files)} videos cannot be scored" if len(files) > 1 else ""
        raise DatasetError(f"{failed[0]}{more}")


def _scorer(engine: QueryEngine, instruction: str) -> Callable[[int, Path, Path], str]:
    """A function that scores a video as one episode, writes the results to a folder, and says them in a line."""
    from tqdm import tqdm

    from vlp_gym.engine.tickets import Ticket
    from vlp_gym.engine.unknown import unknown
    from vlp_gym.models.protocol import value_range
    from vlp_gym.rewards.shaping import Reward, score_of
    from vlp_gym.storage import write_atomic
    from vlp_gym.video import overlay_video, read_video
    from vlp_gym.viz import plot_reward_curves

    env, text = engine.add_env(), engine.encode_text(instruction)
    kind: Reward = "preference" if engine.probe(text).progress is None else "progress"
    label = "preference" if kind == "preference" else "reward"
    shown_range = None if kind == "preference" else value_range(engine.model.model)

    def score_one(episode: int, file: Path, folder: Path) -> str:
        frames = read_video(file)
        if (said := unknown(engine, frames[:1], where=file)) is not None:
            print(f"{file}: {said}", file=sys.stderr)
        engine.begin(env, episode, text)
        rewards: list[float] = []
        for step, frame in enumerate(tqdm(frames, desc=f"scoring {file.name}", unit="frame", leave=False)):
            answer = engine.query([Ticket(env, episode, step)], [frame])[0]
            rewards.append(score_of(kind, answer.preference, answer.progress, answer.relevance))
        folder.mkdir(parents=True, exist_ok=True)
        document = {"video": str(file), "instruction": instruction, label: rewards}
        write_atomic(folder / "rewards.json", (json.dumps(document, indent=1) + "\n").encode())
        plot_reward_curves(
            {label: rewards}, folder / "curve.png", title=instruction, xlabel="frame", ylabel=label,
            frames={label: frames}, reward_range=shown_range,
        )  # fmt: skip
        every = -(-len(frames) // GIF_FRAMES)
        parts = {"overlay.mp4": slice(None), "overlay.gif": slice(None, None, every)}
        for name, part in tqdm(parts.items(), desc="drawing", unit="file", leave=False):
            overlay_video(
                frames[part], rewards[part], folder / name, title=instruction, ylabel=label, reward_range=shown_range
            )
        return (
            f"{file}: {label} {rewards[0]:.3f} at the first frame, {rewards[-1]:.3f} at the last, "
            f"{max(rewards):.3f} at most; written to {folder}"
        )

    return score_one


def _score_dataset(
    folder: Path, tasks: tuple[str, ...], instruction: str | None, model: str, out: Path, threshold: float, tau: float
) -> None:
    import torch

    from vlp_gym.commands.data import load_numbered
    from vlp_gym.data.sources import Numbered
    from vlp_gym.engine.unknown import far_away
    from vlp_gym.evaluation.demonstrations import plot_scores, score_dataset, summarize
    from vlp_gym.evaluation.score_log import ScoreLog
    from vlp_gym.models.registry import best_device, load_reward_model
    from vlp_gym.storage import write_atomic

    source = _opened(folder, instruction)
    annotate = _annotator(source, tasks, model, out) if isinstance(source, Numbered) else None
    device = best_device()
    live = load_reward_model(model, device=device)
    numbered = load_numbered([source], str(folder), tasks)
    trajectories = [trajectory for _, trajectory in numbered]
    out.mkdir(parents=True, exist_ok=True)
    log = ScoreLog(out / "scores.jsonl", model)
    rows = score_dataset(
        live, trajectories, instruction=instruction, threshold=threshold, temperature=tau, device=device, log=log
    )
    settings = {"model": model, "dataset": str(folder), "threshold": threshold, "temperature": tau}
    table = summarize(rows, threshold)
    write_atomic(out / "scores.json", json.dumps({"settings": settings, "videos": rows}, indent=1).encode())
    write_atomic(out / "scores.md", f"# {model} on {folder}\n\n{table}\n".encode())
    plot_scores(rows, out / "scores.png", threshold=threshold, title=model)
    written = [out / f"scores.{kind}" for kind in ("json", "md", "png")]
    if annotate is not None:
        written.append(annotate(numbered, rows))
    log.path.unlink(missing_ok=True)
    print(table)
    novelty = [row["novelty"] for row in rows if row["novelty"] is not None]
    if (said := far_away(torch.tensor(novelty))) is not None:
        print(f"{folder}: {said}", file=sys.stderr)
    print(f"written: {' '.join(map(str, written))}")


def _opened(folder: Path, instruction: str | None) -> Source:
    """The data set; one without sentences takes the instruction as its own."""
    from vlp_gym.data.sources import SentencesMissingError, SourceOptions, open_source

    try:
        return open_source(folder)
    except SentencesMissingError:
        if instruction is None:
            raise
        return open_source(folder, SourceOptions(instruction=instruction))


def _annotator(source: Numbered, tasks: tuple[str, ...], model: str, out: Path) -> Callable[[Any, Any], Path]:
    """A function that writes a model's scores in the way of the data set's own library, and returns where."""
    from vlp_gym.data.sources import annotate
    from vlp_gym.data.sources.minari import Minari
    from vlp_gym.errors import DatasetError
    from vlp_gym.storage import check_new, write_atomic

    def write_progress(numbered: Any, rows: Any) -> Path:
        path = out / "progress.parquet"
        curves = annotate.curves(source, numbered, rows)
        write_atomic(path, annotate.progress_parquet(source.lengths(), curves, model))
        return path

    if not isinstance(source, Minari):
        return write_progress
    annotate.check_rewards_fit(source)
    if tasks and set(source.tasks()) - set(tasks):
        raise DatasetError("--tasks: every episode of a Minari data set gets new rewards; score all of its tasks")
    copy = out / annotate.rewarded_id(source, model)
    check_new(copy)  # before the scores are computed

    def write_rewards(numbered: Any, rows: Any) -> Path:
        annotate.write_rewards(source, annotate.curves(source, numbered, rows), model, copy)
        return copy

    return write_rewards
