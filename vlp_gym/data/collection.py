"""Collects shards, one per task and tier, in parallel processes; what is there already is kept."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from vlp_gym.data.on_ray import run_tasks
from vlp_gym.data.shards import shard_path, write_shard
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import CheckpointError, DatasetError
from vlp_gym.frames.process import end_with_parent, end_workers, submit_all
from vlp_gym.storage import locked, read_file, write_atomic

Job = tuple[Path, Any, str, Sequence[str]]
"""Folder, settings, task and tiers: the shards of this task that are missing are to be written."""


def collect_shards(
    folder: str | Path,
    config: Any,
    tasks: Sequence[str],
    tiers: Sequence[str],
    collect_task: Callable[[Job], str],
    *,
    workers: int | None = None,
    ray: bool = False,
    progress_bar: bool = True,
) -> None:
    """Collect every missing shard, in parallel processes (two OpenGL contexts in one process draw garbage).

    Args:
        folder: output folder for the shards.
        config: settings of the collection, a dataclass; stored as ``collect.json``.
        tasks: names.
        tiers: all tiers of the collection.
        collect_task: a function of a module, which writes one task's missing shards and returns its name.
        workers: worker processes; default: one per core.
        ray: let Ray start them, on all machines of its cluster; they must all see `folder`.
        progress_bar: show a progress bar.

    Raises:
        DatasetError: if the folder holds a collection with other settings, another process collects into it, or a
            worker process is killed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except CheckpointError as error:
            raise DatasetError(str(error)) from None
        _check_same_config(folder, config)
        missing = [task for task in tasks if any(not shard_path(folder, task, tier).exists() for tier in tiers)]
        if missing:
            bar = tqdm(
                total=len(tasks),
                initial=len(tasks) - len(missing),
                desc="collecting",
                unit="task",
                disable=not progress_bar,
            )
            with bar:
                jobs: list[Job] = [(folder.resolve(), config, task, tiers) for task in missing]
                if ray:
                    _show(run_tasks(_prepared, ((collect_task, job) for job in jobs)), bar)
                else:
                    _collect(collect_task, jobs, workers, bar)


def write_missing(folder: Path, task: str, tiers: Sequence[str], make: Callable[[str], Sequence[Trajectory]]) -> None:
    """Write those shards of a task that are not there, each of the rollouts that `make` returns for its tier."""
    for tier in tiers:
        if not (path := shard_path(folder, task, tier)).exists():
            write_shard(make(tier), path)


def _collect(collect_task: Callable[[Job], str], jobs: Sequence[Job], workers: int | None, bar: Any) -> None:
    processes = min(workers or os.cpu_count() or 1, len(jobs))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _prepare_worker) as pool:
        try:
            futures = submit_all(pool, collect_task, ((job,) for job in jobs))
            _show((done.result() for done in as_completed(futures)), bar)
        except BrokenProcessPool as error:
            raise DatasetError(
                "a collecting process was killed (out of memory?); the same command goes on where it stopped, "
                "with --workers 1 in less memory"
            ) from error
        except BaseException:
            end_workers(pool)
            raise


def _show(tasks: Iterable[str], bar: Any) -> None:
    for task in tasks:
        bar.set_postfix_str(task)
        bar.update()


def _prepared(collect_task: Callable[[Job], str], job: Job) -> str:
    """A task of Ray's, which may be the first of its process."""
    _prepare_worker()
    return collect_task(job)


def _prepare_worker() -> None:
    end_with_parent()
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's threads cost 25% more time and gain nothing here
    import torch

    torch.set_num_threads(1)


def _check_same_config(folder: Path, config: Any) -> None:
    path = folder / "collect.json"
    now = asdict(config)
    if not path.exists():
        write_atomic(path, json.dumps(now, indent=2).encode())
        return
    try:
        before = asdict(TypeAdapter(type(config)).validate_json(read_file(path, 2**20), strict=True))
    except CheckpointError as error:
        raise DatasetError(str(error)) from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "all"
        raise DatasetError(
            f"{path}: expected the settings of a collection ({where}: {fault['msg']}); choose another --out"
        ) from error
    if before != now:
        changed = {key: (before[key], value) for key, value in now.items() if before[key] != value}
        raise DatasetError(f"{folder} was collected with other settings (then, now): {changed}; choose another --out")
