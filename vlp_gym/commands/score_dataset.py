"""`vlp-gym score --dataset`: GVL's uses of a model on data sets of rollouts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlp_gym.commands.data import load, stream_numbered
from vlp_gym.data.sources import Numbered, Source
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.unknown import far_away
from vlp_gym.errors import DatasetError
from vlp_gym.evaluation import cross
from vlp_gym.evaluation.curation import dataset_ranking
from vlp_gym.evaluation.demonstrations import Ask, plot_scores, score_dataset, summarize
from vlp_gym.evaluation.examples import Which, choose_examples
from vlp_gym.evaluation.goals import goals_for
from vlp_gym.evaluation.on_ray import score_ahead
from vlp_gym.evaluation.score_log import ScoreLog
from vlp_gym.models.prompted.gvl import GVLModel
from vlp_gym.models.registry import best_device, load_reward_model
from vlp_gym.storage import write_atomic


@dataclass(frozen=True)
class DatasetOptions:
    """The options of the same names, see `vlp-gym score --help`."""

    model: str
    tasks: tuple[str, ...]
    instruction: str | None
    threshold: float
    temperature: float
    frames: int
    per_set: int
    ask: Ask
    examples_from: Path | None
    example_task: Which
    shots: int
    cross: bool
    ray: bool


def score_datasets(folders: Sequence[Path], out: Path | None, options: DatasetOptions) -> None:
    """Score data sets, each into a folder of its own, and rank them if there are several."""
    base = Path("runs") / "score"
    places = [out or base / folders[0].name]
    if len(folders) > 1:
        out = out or base / "ranking"
        places = [out / re.sub(r"[^\w.-]+", "-", str(folder)).strip("-.") for folder in folders]
    sources = [_opened(folder, options.instruction) for folder in folders]
    for folder, source in zip(folders, sources, strict=True):
        stream_numbered([source], str(folder), options.tasks)  # raises before a large model is loaded
    whole = not options.per_set and not options.cross
    annotators = [
        _annotator(source, options.tasks, options.model, place) if whole and isinstance(source, Numbered) else None
        for source, place in zip(sources, places, strict=True)
    ]
    device = best_device()
    live = load_reward_model(options.model, device=device)
    if options.examples_from is not None and not isinstance(live, GVLModel):
        raise ValueError(f"--examples-from: expected a model gvl:..., which is shown examples, got {options.model}")
    if options.ask != "no" and not hasattr(live, "chat"):
        raise ValueError(f"--ask-success: expected a model of a chat model, such as gvl:..., got {options.model}")
    means = {}
    for folder, source, place, annotate in zip(folders, sources, places, annotators, strict=True):
        rows = _score(live, device, folder, source, place, annotate, options)
        means[str(folder)] = [row["voc"] for row in rows]
    if len(folders) > 1:
        assert out is not None
        table = dataset_ranking(means)
        write_atomic(out / "ranking.md", f"# {options.model}\n\n{table}\n".encode())
        print(f"{table}\nwritten: {out / 'ranking.md'}")


def _score(
    live: Any,
    device: str,
    folder: Path,
    source: Source,
    out: Path,
    annotate: Callable[[Any, Any], Path] | None,
    options: DatasetOptions,
) -> list[dict[str, Any]]:
    """Score a data set, and write and print what comes out; returns a row for each rollout."""
    survey = _survey(live, folder, source, options)
    shown = ""
    if options.examples_from is not None:
        _show_examples(live, survey.sentences, options)
        shown = f" with {options.shots} of {options.examples_from}, {options.example_task}"
    out.mkdir(parents=True, exist_ok=True)
    log = ScoreLog(out / "scores.jsonl", options.model + shown)
    settings: dict[str, Any] = {
        "threshold": options.threshold, "temperature": options.temperature, "frames": options.frames,
    }  # fmt: skip
    steps: list[tuple[int, NDArray[np.int64]]] = []

    def chosen() -> Iterator[tuple[int, Trajectory]]:
        for place, numbered in enumerate(stream_numbered([source], str(folder), options.tasks)):
            if survey.drawn is None or place in survey.drawn:
                yield numbered

    def videos() -> Iterator[Trajectory]:
        for number, trajectory in chosen():
            steps.append((number, trajectory.step))
            yield trajectory

    def ask(instruction: str | None) -> list[dict[str, Any]]:
        return score_dataset(
            live, videos(), instruction=instruction, goals=survey.goals, device=device, log=log, ask=options.ask,
            **settings,
        )  # fmt: skip

    if options.ray:
        told = tuple(dict.fromkeys(survey.sentences.values())) if options.cross else (options.instruction,)
        ahead = (trajectory for _, trajectory in chosen())
        score_ahead(options.model, ahead, log, told, goals=survey.goals, frames=options.frames)
    rows = _crossed(ask, survey.sentences, out, options.model) if options.cross else ask(options.instruction)
    if not rows:
        raise DatasetError(f"{folder}: expected recordings, found none")
    about = {"model": options.model, "dataset": str(folder), **settings, "examples": shown.strip()}
    own = [row for row in rows if not options.cross or row["instruction"] == survey.sentences[row["task"]]]
    table = summarize(own, options.threshold)
    write_atomic(out / "scores.json", json.dumps({"settings": about, "videos": rows}, indent=1).encode())
    write_atomic(out / "scores.md", f"# {options.model} on {folder}\n\n{table}\n".encode())
    plot_scores(own, out / "scores.png", threshold=options.threshold, title=options.model)
    written = [out / f"scores.{kind}" for kind in ("json", "md", "png")]
    if annotate is not None:
        written.append(annotate(steps, rows))
    log.path.unlink(missing_ok=True)
    print(table)
    novelty = [row["novelty"] for row in rows if row["novelty"] is not None]
    if (said := far_away(torch.tensor(novelty))) is not None:
        print(f"{folder}: {said}", file=sys.stderr)
    print(f"written: {' '.join(map(str, written))}")
    return own


@dataclass
class _Survey:
    """What must be known of a data set before its first rollout is scored.

    Attributes:
        sentences: task -> its sentence, of the rollouts that are scored.
        goals: see `goals_for`.
        drawn: places of the rollouts that are scored; None: all.
    """

    sentences: dict[str, str]
    goals: dict[str, NDArray[np.uint8]]
    drawn: set[int] | None


def _survey(live: Any, folder: Path, source: Source, options: DatasetOptions) -> _Survey:
    """Go through the data set once before, where that is needed."""

    def rollouts() -> Iterator[Trajectory]:
        return (trajectory for _, trajectory in stream_numbered([source], str(folder), options.tasks))

    goals = goals_for(live, rollouts())
    if not (options.per_set or options.cross or options.examples_from):
        return _Survey({}, goals, None)
    told = [(trajectory.task, options.instruction or trajectory.canonical) for trajectory in rollouts()]
    drawn = None
    if 0 < options.per_set < len(told):
        drawn = set(np.random.default_rng(0).choice(len(told), options.per_set, replace=False).tolist())
    return _Survey(dict(told[k] for k in (range(len(told)) if drawn is None else sorted(drawn))), goals, drawn)


def _show_examples(live: GVLModel, sentences: dict[str, str], options: DatasetOptions) -> None:
    assert options.examples_from is not None
    tasks = tuple(sentences) if options.example_task == "same" else ()
    shown: list[Trajectory] = load(options.examples_from, tasks=tasks)
    live.show_examples(
        choose_examples(sentences, shown, options.example_task, shots=options.shots, frames=options.frames)
    )


def _crossed(
    ask: Callable[[str | None], list[dict[str, Any]]], sentences: dict[str, str], out: Path, model: str
) -> list[dict[str, Any]]:
    """Ask about all videos under every task's sentence, and write the matrix."""
    if len(sentences) < 2:
        raise ValueError(f"--cross: expected at least two tasks, got {', '.join(sentences)}")
    rows = [row for sentence in dict.fromkeys(sentences.values()) for row in ask(sentence)]
    matrix = cross.cross_matrix(rows, sentences)
    table = cross.markdown(matrix, list(sentences))
    write_atomic(out / "cross.md", f"# {model}\n\n{table}\n".encode())
    write_atomic(out / "cross.json", json.dumps({"tasks": list(sentences), "voc": matrix.tolist()}, indent=1).encode())
    cross.plot_cross(matrix, list(sentences), out / "cross.png", title=model)
    print(f"{table}\n")
    return rows


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

    def write_progress(steps: Any, rows: Any) -> Path:
        path = out / "progress.parquet"
        curves = annotate.curves(source, steps, rows)
        write_atomic(path, annotate.progress_parquet(source.lengths(), curves, model))
        return path

    if not isinstance(source, Minari):
        return write_progress
    annotate.check_rewards_fit(source)
    if tasks and set(source.tasks()) - set(tasks):
        raise DatasetError("--tasks: every episode of a Minari data set gets new rewards; score all of its tasks")
    copy = out / annotate.rewarded_id(source, model)
    check_new(copy)  # before the scores are computed

    def write_rewards(steps: Any, rows: Any) -> Path:
        annotate.write_rewards(source, annotate.curves(source, steps, rows), model, copy)
        return copy

    return write_rewards
