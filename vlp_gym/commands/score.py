"""`vlp-gym score`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vlp_gym.engine.engine import QueryEngine

GIF_FRAMES = 120  # longer GIFs skip frames, to stay below hundreds of megabytes


def score(
    videos: tuple[Path, ...] = (),
    /,
    *,
    instruction: str | None = None,
    model: str = "vlp-compact",
    dataset: tuple[Path, ...] = (),
    tasks: tuple[str, ...] = (),
    threshold: float = 0.5,
    temperature: float = 1.0,
    frames: int = 16,
    per_set: int = 0,
    ask_success: Literal["no", "plain", "reasoning"] = "no",
    examples_from: Path | None = None,
    example_task: Literal["same", "other", "any"] = "same",
    shots: int = 1,
    cross: bool = False,
    attention: bool = False,
    ray: bool = False,
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
        dataset: folder from `vlp-gym collect`, or another data set (see `vlp-gym data --help`), instead of videos;
            several are ranked by their mean VOC. For lerobot:... progress.parquet is written, too; for minari:... a
            copy of it with the model's rewards.
        tasks: score only these tasks of the dataset; default: all.
        threshold: value-order correlation from which a rollout counts as a success, in [-1, 1].
        temperature: tau of the step weights exp(tau * change of value), in [0, 100].
        frames: frames of a rollout that are shown, with --dataset; GVL's figures have 30.
        per_set: score only so many rollouts of each dataset, drawn at random; 0: all.
        ask_success: also ask the chat model of gvl:... whether a rollout succeeds, plainly or after reasoning
            (GVL's SuccessVQA).
        examples_from: another dataset, whose successes are shown to gvl:... as examples of progress.
        example_task: examples of the same task, of another one, or of any, as of another robot's data.
        shots: number of examples for each task.
        cross: ask about all rollouts under the sentence of every task, for the matrix of VOC (cross.md, cross.png).
        attention: also draw where each part of the sentence looks in a video (attention.png), for models with
            cross-attention, that is those of `vlp-gym train vlp`.
        ray: let Ray share the videos of a --dataset out: a copy of the model on each GPU, or on each core, of the
            cluster of RAY_ADDRESS, or of this machine.
        out: folder for the results, with a folder for each of several videos; default: runs/score/NAME.
    """
    if bool(videos) == bool(dataset):
        raise ValueError("expected videos or --dataset, and not both")
    if tasks and not dataset:
        raise ValueError("--tasks: only --dataset has tasks, got videos")
    if attention and dataset:
        raise ValueError("--attention: expected with videos, got --dataset")
    if ray and not dataset:
        raise ValueError("--ray: expected with --dataset, got videos")
    if ray and examples_from is not None:
        raise ValueError("--examples-from: expected without --ray, whose processes have no examples")
    if not -1 <= threshold <= 1:
        raise ValueError(f"--threshold: expected -1 to 1, got {threshold}")
    if not 0 <= temperature <= 100:
        raise ValueError(f"--temperature: expected 0 to 100, got {temperature}")
    for option, value, least in (("frames", frames, 3), ("per-set", per_set, 0), ("shots", shots, 1)):
        if value < least:
            raise ValueError(f"--{option}: expected at least {least}, got {value}")
    if cross and instruction is not None:
        raise ValueError("--cross: expected without --instruction, as it takes the sentence of every task")
    from vlp_gym.errors import check_packages
    from vlp_gym.text import normalize_instruction

    instruction = None if instruction is None else normalize_instruction(instruction)
    if dataset:
        needed = dict.fromkeys(("datasets", "PIL", "scipy", "matplotlib"), "train") | ({"ray": "ray"} if ray else {})
        check_packages(needed, "scoring rollouts needs")
        from vlp_gym.commands.score_dataset import DatasetOptions, score_datasets

        options = DatasetOptions(
            model, tasks, instruction, threshold, temperature, frames, per_set, ask_success,
            examples_from, example_task, shots, cross, ray,
        )  # fmt: skip
        score_datasets(dataset, out, options)
        return
    if instruction is None:
        raise ValueError("--instruction: expected what is to be done in the video, in one sentence")
    check_packages(dict.fromkeys(("av", "matplotlib", "PIL"), "viz"), "scoring a video needs")
    files = _files(videos)
    _score_videos(files, instruction, model, _folders(files, videos, out), attention=attention)


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


def _score_videos(
    files: Sequence[Path], instruction: str, model: str, folders: Sequence[Path], *, attention: bool
) -> None:
    from vlp_gym.engine.engine import QueryEngine
    from vlp_gym.errors import DatasetError
    from vlp_gym.models.registry import best_device, load_reward_model

    device = best_device()
    live = load_reward_model(model, device=device)
    draw = _attention_drawer(live, model, instruction, device) if attention else None
    score_one = _scorer(QueryEngine(live), instruction)
    failed: list[DatasetError] = []
    for episode, (file, folder) in enumerate(zip(files, folders, strict=True)):
        try:
            print(score_one(episode, file, folder), flush=True)
            if draw is not None:
                draw(file, folder)
        except DatasetError as error:  # a damaged one of a hundred
            failed.append(error)
    if failed:
        more = f"; {len(failed)} of {len(files)} videos cannot be scored" if len(files) > 1 else ""
        raise DatasetError(f"{failed[0]}{more}")


def _attention_drawer(live: Any, name: str, instruction: str, device: str) -> Callable[[Path, Path], None]:
    """A function that draws into a folder where the sentence, and each part of it, looks in a video.

    Raises:
        ValueError: the model has no cross-attention.
    """
    from vlp_gym.engine.video import VideoScorer
    from vlp_gym.models.protocol import AttendingModel
    from vlp_gym.text import word_groups
    from vlp_gym.video import read_video
    from vlp_gym.viz import plot_attention

    if not isinstance(live, AttendingModel):
        raise ValueError(
            f"--attention: expected a model with cross-attention, such as one from `vlp-gym train vlp`, got {name}, a "
            f"{type(live).__name__}"
        )
    scorer = VideoScorer(live, [instruction], device)
    tokens = live.word_tokens(instruction)
    parts = {instruction: None} | {
        said: [token for word in words for token in tokens[word]] for said, words in word_groups(instruction) if tokens
    }

    def draw(file: Path, folder: Path) -> None:
        frames = read_video(file)
        scorer.open(frames, str(file))
        shown = {said: scorer.attention(instruction, words) for said, words in parts.items() if words != []}
        chosen = shown[instruction][0]
        maps = {said: each for said, (_, each) in shown.items()}
        plot_attention(frames[chosen], maps, folder / "attention.png", title=f"where {Path(name).name} looks")

    return draw


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
