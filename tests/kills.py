"""Kills saves at any moment: `python -m tests.kills --kills 100 [--only segments]`, in a process without threads.

Every kind of save writes version after version. After each SIGKILL the folder holds the last version that was reported,
or the one after it, and the next save leaves nothing but its own files. The tests do it a few times.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process that forks must have no threads

import torch

from tests.mutations.targets.training_states import Training
from tests.painted_segments import painted_store
from tests.tiny import tiny_model
from vlp_gym.models.staged import StagedRewardModel
from vlp_gym.preferences import PreferenceBuffer, PreferenceLearner, Queries, RewardEnsemble, ScriptedLabeler
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.prompting.cache import PromptCache
from vlp_gym.training.state import load_training_state, save_training_state

Save, Load = Callable[[Path, int], None], Callable[[Path], int]
KEY = "ab" * 32


def kinds() -> dict[str, tuple[Save, Load]]:
    """For each kind of save: write a version, and read which one is there."""
    model, training, ensemble = tiny_model().eval(), Training(0), RewardEnsemble(3, 2, hidden=(8,))
    buffer, segments, ensemble = (
        PreferenceBuffer(),
        painted_store(episodes=2, size=8),
        RewardEnsemble(3, 2, hidden=(8,)),
    )
    learner = PreferenceLearner(ScriptedLabeler(), Queries(length=4), hidden=(8,))
    learner.start(3, 2)
    other = PreferenceLearner(ScriptedLabeler(), Queries(length=4), hidden=(8,))

    def save_checkpoint(folder: Path, version: int) -> None:
        torch.nn.init.constant_(next(model.parameters()), float(version))
        model.save_pretrained(folder)

    def save_preferences(folder: Path, version: int) -> None:
        buffer.capacity = version + 1
        buffer.save(folder)

    def save_segments(folder: Path, version: int) -> None:
        segments._count = version + 2
        segments.save(folder)

    def save_ensemble(folder: Path, version: int) -> None:
        ensemble.mean.fill_(version)
        ensemble.save(folder)

    def save_training(folder: Path, version: int) -> None:
        save_training_state(
            folder, model=training.model, optimizer=training.optimizer, step=version, generators=training.generators
        )

    def load_training(folder: Path) -> int:
        return load_training_state(
            folder, model=training.model, optimizer=training.optimizer, generators=training.generators
        )[0]

    def save_learner(folder: Path, version: int) -> None:
        learner.next_session = version
        learner.save(folder)

    def load_learner(folder: Path) -> int:
        other.restore(folder)
        return other.next_session or 0

    return {
        "checkpoint": (
            save_checkpoint,
            lambda folder: int(next(StagedRewardModel.from_pretrained(folder).parameters()).flatten()[0]),
        ),
        "preferences": (save_preferences, lambda folder: PreferenceBuffer.load(folder).capacity - 1),
        "segments": (save_segments, lambda folder: SegmentStore.load(folder)._count - 2),
        "ensemble": (save_ensemble, lambda folder: int(RewardEnsemble.load(folder).mean[0])),
        "training": (save_training, load_training),
        "learner": (save_learner, load_learner),
        "cache": (
            lambda folder, version: PromptCache(folder).put(KEY, str(version), "model"),
            lambda folder: int(PromptCache(folder).get(KEY) or -1),
        ),
    }


def kill_saves(save: Save, load: Load, kills: int, seed: int = 0) -> int:
    """Kill saves at random moments, and check what is there after each; returns how many versions were saved."""
    moments, version = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, version)
        files = _files(folder)
        started = time.perf_counter()
        save(folder, version)
        one = time.perf_counter() - started
        for _ in range(kills):
            reading, writing = os.pipe()
            if not (child := os.fork()):
                for following in range(version + 1, version + 1000):
                    save(folder, following)
                    os.write(writing, struct.pack("<q", following))
                os._exit(0)
            time.sleep(moments.uniform(0, 3 * one))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(writing)
            with open(reading, "rb") as pipe:
                reported = [version, *(number for (number,) in struct.iter_unpack("<q", pipe.read()))][-1]
            found = load(folder)
            assert found in (reported, reported + 1), f"version {found} after {reported} was reported"
            version = found + 1
            save(folder, version)
            assert load(folder) == version
            assert _files(folder) == files, f"left over: {_files(folder) - files}"
    return version


def main() -> None:
    """Print one line for each kind of save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=None)
    options = parser.parse_args()
    for name, (save, load) in kinds().items():
        if options.only is None or name in options.only:
            versions = kill_saves(save, load, options.kills)
            print(f"{name}: {options.kills} kills, {versions} versions", flush=True)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()
