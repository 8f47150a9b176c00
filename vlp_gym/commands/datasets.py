"""`vlp-gym data`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlp_gym.errors import DatasetError, check_packages

if TYPE_CHECKING:
    from vlp_gym.data.sources import Source
    from vlp_gym.data.trajectory import Trajectory

SETTINGS = "convert.json"
MOST_EXAMPLES = 12  # tasks in the picture


def data(
    action: Literal["inspect", "convert"],
    source: str,
    /,
    *,
    to: Literal["shards", "lerobot", "minari"] = "shards",
    out: Path | None = None,
    instruction: str | None = None,
    camera: str | None = None,
    size: int = 112,
    fps: float = 5.0,
    tasks: tuple[str, ...] = (),
    skip_broken: bool = False,
) -> None:
    """Show what a data set holds and lacks, or convert it to another format.

    For example: vlp-gym data inspect videos:clips

    And then: vlp-gym data convert videos:clips --out data/clips

    A source is videos:FOLDER (videos, and captions.csv with the columns file and sentence, and optionally success,
    tier, group, start_s, end_s), lerobot:FOLDER (version 3.0 or 2.1), minari:NAME-OR-FOLDER, libero:FOLDER-OR-FILE
    (HDF5 of LIBERO or robomimic), or a folder from this command or `collect`. Every command takes a source as --data,
    too; shards are read faster.

    Args:
        action: inspect or convert.
        source: the data set.
        to: the format to convert to. shards: ours; lerobot: version 3.0, with videos in H.264; minari: HDF5 with
            pictures. Each of them can be a source again.
        out: folder for what is written, a new one for lerobot and minari; for inspect, for examples.png, by default
            runs/data/NAME.
        instruction: one sentence for all videos of a folder without captions.csv, or for a Minari data set or HDF5
            files without sentences.
        camera: camera of a LeRobot or Minari data set or HDF5 files, such as observation.images.top; default: the
            first.
        size: side of the square frames, pixels; 224 suits CLIP and larger models.
        fps: at most this many frames per second are kept. Rollouts from `collect` are kept whole; in other formats they
            are played at this rate.
        tasks: only these tasks; default: all.
        skip_broken: leave out recordings that cannot be read, and count them, instead of stopping at the first.
    """
    needed = {"datasets": "train", **dict.fromkeys(("PIL", "matplotlib", "av"), "viz")}
    check_packages(needed, "reading a data set needs")
    if source.startswith("minari:") or to == "minari":
        done = "reading" if source.startswith("minari:") else "writing"
        check_packages(dict.fromkeys(("minari", "h5py"), "minari"), f"{done} Minari data sets needs")
    from vlp_gym.data.sources import SourceOptions, open_source

    options = SourceOptions(instruction=instruction, camera=camera, size=size, fps=fps)
    opened = open_source(source, options)
    broken: list[DatasetError] = []
    if action == "inspect":
        out = out or Path("runs") / "data" / Path(source.rpartition(":")[2]).name
        _inspect(opened, tasks, out, broken if skip_broken else None)
    elif out is None:
        raise ValueError("--out: expected a folder for what is converted")
    elif to != "shards":
        _export(opened, to, tasks, out, options.fps, broken if skip_broken else None)
    else:
        settings = {"source": source, **vars(options)}
        _convert(opened, settings, tasks, out, broken if skip_broken else None)
    if broken:
        print(f"left out: {len(broken)} recordings that cannot be read")
        for error in broken[:20]:
            print(f"  {error}")


def _stream(source: Source, tasks: tuple[str, ...], broken: list[DatasetError] | None) -> Iterator[Trajectory]:
    from tqdm import tqdm

    known = source.tasks()
    if unknown := [task for task in tasks if task not in known]:
        from vlp_gym.errors import did_you_mean

        raise DatasetError(f"--tasks: no task {unknown[0]!r} in the data set{did_you_mean(unknown[0], known)}")
    found = source.stream(tasks or None, None if broken is None else broken.append)
    yield from tqdm(found, desc="reading", unit=" recordings", leave=False)


def _inspect(source: Source, tasks: tuple[str, ...], out: Path, broken: list[DatasetError] | None) -> None:
    from vlp_gym.data.summary import lacking, summarize, table
    from vlp_gym.viz import plot_examples

    found = summarize(_stream(source, tasks, broken))
    if not found:
        raise DatasetError("expected at least one recording that can be read, found none")
    print(table(found))
    for line in lacking(found):
        print(f"lacking: {line}")
    examples = {name: task.example for name, task in list(found.items())[:MOST_EXAMPLES] if task.example is not None}
    plot_examples(examples, out / "examples.png")
    print(f"examples: {out / 'examples.png'}")


def _export(
    source: Source, to: str, tasks: tuple[str, ...], out: Path, fps: float, broken: list[DatasetError] | None
) -> None:
    """All at once, as the formats of others put many episodes into one file."""
    from vlp_gym.data.exports import export
    from vlp_gym.data.sources import Numbered
    from vlp_gym.metaworld.sentences import with_sentences

    rate = source.shown_rate() if isinstance(source, Numbered) else fps
    found = export(map(with_sentences, _stream(source, tasks, broken)), to, out, rate)
    print(f"{out}: {found.episodes} episodes of {len(found.tasks)} tasks, {found.frames} frames at {rate:g} a second")
    print(found.beside())


def _convert(
    source: Source, settings: dict[str, object], tasks: tuple[str, ...], out: Path, broken: list[DatasetError] | None
) -> None:
    """A task at a time, so that an interrupted conversion goes on at the next task."""
    from vlp_gym.data.shards import shard_path, write_shard
    from vlp_gym.storage import write_atomic

    done = _done(out, settings)
    for number, task in enumerate(names := list(tasks) or source.tasks(), 1):
        if task in done:
            continue
        tiers: dict[str, list[Trajectory]] = {}
        for trajectory in _stream(source, (task,), broken):
            tiers.setdefault(trajectory.tier, []).append(trajectory)
        for tier, trajectories in tiers.items():
            write_shard(trajectories, shard_path(out, task, tier))
        done.append(task)
        write_atomic(out / SETTINGS, json.dumps({**settings, "done": done}, indent=1).encode())
        counts = ", ".join(f"{len(trajectories)} {tier}" for tier, trajectories in tiers.items())
        print(f"{number}/{len(names)} {task}: {counts or 'nothing that can be read'}", flush=True)
    print(f"shards: {out}")


def _done(out: Path, settings: dict[str, object]) -> list[str]:
    """The tasks that the same conversion has already written."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / SETTINGS
    if not path.exists():
        if (out / "data").exists():
            raise DatasetError(f"{out}: there are other rollouts; choose another --out")
        return []
    try:
        before = json.loads(path.read_text())
        done = before.pop("done")
        if not isinstance(done, list) or not all(isinstance(name, str) for name in done):
            raise ValueError("done")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetError(f"{path}: damaged ({error}); delete {out} and convert again") from error
    if before != settings:
        differing = sorted(name for name in settings if before.get(name) != settings[name])
        raise DatasetError(f"{out}: it was converted with another {', '.join(differing)}; choose another --out")
    return done
