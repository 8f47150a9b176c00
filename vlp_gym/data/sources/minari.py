"""A Minari data set: frames from its observations, or rendered again by replaying its actions in its environment.

The environment is made anew by its registered name alone, with its numbers and switches: a stored specification may
name any function as the entry point, and any wrapper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from vlp_gym.data.fields import FIELDS, FieldsReader, restored, stored_tasks
from vlp_gym.data.sources import Numbered, OnBroken, SentencesMissingError, SourceOptions, give_up
from vlp_gym.data.sources.recording import make_trajectory, task_name, tier_of
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError, import_extra, reason
from vlp_gym.storage import read_file
from vlp_gym.text import normalize_sentence

STEPS_PER_SECOND = 25.0  # only a data set that we exported says how long a step lasts
MAIN = "main_data.hdf5"
RATE = "fps"  # by this entry of its metadata
MAX_DOCUMENT = 64 * 2**20  # bytes of a JSON file
SAME = 1e-4  # by how much a replayed observation may differ


class Minari(Numbered):
    """The episodes of a data set, under one sentence unless we exported it; see `Source`."""

    def __init__(self, name: str, data: Any, sentence: str, options: SourceOptions) -> None:
        self.name, self.data, self.sentence, self.options = name, data, sentence, options
        self.folder = Path(data.storage.data_path)
        rate = data.storage.metadata.get(RATE)
        sane = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate <= 10_000
        self.rate = float(rate) if sane else STEPS_PER_SECOND
        self._tasks = stored_tasks(self.folder / FIELDS)

    def tasks(self) -> list[str]:
        """See `Source`."""
        return sorted(set(self._tasks.values())) or [task_name(self.sentence)]

    def lengths(self) -> dict[int, int]:
        """See `Numbered`; a row for each observation."""
        numbers = list(map(int, self.data.episode_indices))
        found = self.data.storage.get_episode_metadata(numbers)
        return {number: int(about["total_steps"]) + 1 for number, about in zip(numbers, found, strict=True)}

    def numbered(
        self, tasks: Sequence[str] | None = None, on_broken: OnBroken | None = None
    ) -> Iterator[tuple[int, Trajectory]]:
        """See `Numbered`."""
        environment: gym.Env[Any, Any] | None = None
        with ExitStack() as stack:
            fields = stack.enter_context(FieldsReader(self.folder / FIELDS)) if self._tasks else None
            for index in map(int, self.data.episode_indices):
                if tasks is not None and (self._tasks.get(index) or task_name(self.sentence)) not in tasks:
                    continue
                try:
                    episode = next(iter(self.data.iterate_episodes([index])))
                    frames = _pictures(episode.observations, self.options.camera)
                    kept = self.shown_rows(len(episode.rewards) + 1)
                    if frames is None:
                        if environment is None:
                            environment = remake(self.data.env_spec, self.name)
                            stack.callback(environment.close)
                        seed = next(iter(self.data.storage.get_episode_metadata([index]))).get("seed")
                        shown = _replayed(environment, episode, seed, kept)
                    else:
                        shown = frames[kept]
                    if fields is not None:
                        own = fields.of(index, len(episode.rewards) + 1)
                        yield index, restored(own, shown, kept, self.options.size)
                    else:
                        yield index, self._trajectory(index, episode, shown, kept)
                except (DatasetError, ValueError, KeyError, OSError) as error:  # h5py's are OSError and KeyError
                    give_up(DatasetError(f"{self.name}, episode {index}: {reason(error)}"), on_broken, error)

    def _trajectory(self, index: int, episode: Any, shown: np.ndarray, kept: np.ndarray) -> Trajectory:
        steps = len(episode.rewards)
        success = np.zeros(steps + 1, bool)
        told = (episode.infos or {}).get("success")
        if told is None:
            success[-1] = bool(episode.terminations[-1])
        else:
            rows = np.asarray(told, bool).ravel()
            success[-min(len(rows), steps + 1) :] = rows[-(steps + 1) :]
        state = _numbers(episode.observations, steps + 1)
        action = np.asarray(episode.actions, np.float32).reshape(steps, -1)
        more = {} if state is None else {"observation": state, "action": action}
        return make_trajectory(
            shown, task=task_name(self.sentence), tier=tier_of(bool(success.any())), sentences=[self.sentence],
            success=success[kept], size=self.options.size, camera=self.options.camera or "render", seed=index,
            step=kept, reward=np.asarray(episode.rewards, np.float32), **more,
        )  # fmt: skip


def open_source(path: Path, options: SourceOptions) -> Minari:
    """Open a data set in a folder, or one that `minari` has in its own; the hub is asked for others.

    Raises:
        DatasetError: if there is none, it is damaged, or its sentence is not given; or given beside its own ones.
        MissingExtraError: without minari.
    """
    minari = import_extra("minari", "reading Minari data sets needs minari", "minari")
    import_extra("h5py", "reading Minari data sets needs h5py", "minari")
    name = str(path)
    folder = path if (path / "data").is_dir() else Path(minari.storage.get_dataset_path(name))
    has_fields = (folder / "data" / FIELDS).is_file()
    if options.instruction is None and not has_fields:
        raise SentencesMissingError(
            f"{name}: a Minari data set has no sentences; say what its task is: "
            f'vlp-gym data convert minari:{name} --instruction "..." --out FOLDER'
        )
    if options.instruction is not None and has_fields:
        raise DatasetError(f"--instruction: the episodes of {name} have sentences of their own")
    sentence = "" if options.instruction is None else normalize_sentence(options.instruction)
    try:
        if not (folder / "data").is_dir():
            minari.download_dataset(name)
        _check_spaces(folder / "data" / "metadata.json")
        data = minari.MinariDataset(folder / "data")
    except Exception as error:  # of h5py, of its JSON, of the hub
        raise DatasetError(f"{name}: no Minari data set that can be read ({reason(error)})") from error
    if not len(data.episode_indices):
        raise DatasetError(f"{name}: expected episodes, found none")
    return Minari(name, data, sentence, options)


def _check_spaces(path: Path) -> None:
    """Without spaces in this file, `minari` would make the environment that it names, whatever that is."""
    about = json.loads(read_file(path, MAX_DOCUMENT))
    spaces = ("observation_space", "action_space")
    if not isinstance(about, dict) or not all(isinstance(about.get(space), str) for space in spaces):
        raise DatasetError(f"expected {' and '.join(spaces)} in {path}, found none")


def dataset_id(name: str) -> str:
    """A folder's name as Minari takes it, with a version.

    >>> dataset_id("my clips"), dataset_id("drawer-v2")
    ('my-clips-v0', 'drawer-v2')
    """
    plain = re.sub(r"[^-\w]+", "-", name).strip("-") or "data"
    return plain if re.search(r"[-\w]-v\d+$", plain) else f"{plain}-v0"


def remake(spec: Any, name: str) -> gym.Env[Any, Any]:
    """The environment of a stored specification, by its registered name, numbers and switches.

    Raises:
        DatasetError: it is not registered here, or needs more than those.
    """
    if spec is None:
        raise DatasetError(
            f"{name}: expected pictures among the observations, or the environment's name, found neither"
        )
    if spec.id not in gym.registry:  # "module:name" would import the module
        raise DatasetError(f"{name}: its environment {spec.id} is not registered here; import its package before")
    if spec.additional_wrappers:
        raise DatasetError(f"{name}: its environment had wrappers, and is not made again without them")
    settings = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    if strange := [key for key, value in settings.items() if not isinstance(value, (bool, int, float, type(None)))]:
        raise DatasetError(f"{name}: its environment takes {', '.join(strange)}, more than numbers and switches")
    try:
        return gym.make(spec.id, render_mode="rgb_array", max_episode_steps=spec.max_episode_steps, **settings)
    except Exception as error:  # whatever its constructor raises
        raise DatasetError(f"{name}: its environment {spec.id} cannot be made ({reason(error)})") from error


def _replayed(env: gym.Env[Any, Any], episode: Any, seed: int | None, kept: np.ndarray) -> np.ndarray:
    """The frames of an episode that is played once more; it must come out as it was recorded."""
    if seed is None:
        raise DatasetError("expected pictures among the observations, or the episode's seed, found neither")
    wanted, frames = _numbers(episode.observations, len(episode.rewards) + 1), []
    observation, _ = env.reset(seed=int(seed))
    for step in range(len(episode.rewards) + 1):
        if step:
            observation, *_ = env.step(np.asarray(episode.actions)[step - 1])
        own = _numbers(_batched(observation), 1)
        if (
            wanted is None
            or own is None
            or own.shape[1] != wanted.shape[1]
            or np.abs(own[0] - wanted[step]).max() > SAME
        ):
            raise DatasetError(f"step {step}: the replayed observation is another one; this environment has changed")
        if step in kept:
            frames.append(np.asarray(env.render()))
    return np.stack(frames)


def _batched(observation: Any) -> Any:
    if isinstance(observation, Mapping):
        return {key: _batched(value) for key, value in observation.items()}
    return np.asarray(observation)[None]


def _leaves(observations: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of nested observations, with their names."""
    if isinstance(observations, Mapping):
        for key in observations:
            yield from _leaves(observations[key], f"{name}.{key}" if name else str(key))
    else:
        yield name, np.asarray(observations)


def _is_picture(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3


def _pictures(observations: Any, camera: str | None) -> np.ndarray | None:
    """Frames uint8 ``[S + 1, H, W, 3]`` of a camera, by default of the first; None if there are none."""
    found = {name: array for name, array in _leaves(observations) if _is_picture(array)}
    if camera is not None and camera not in found:
        raise DatasetError(f"--camera: expected one of {', '.join(found) or 'none'}, got {camera!r}")
    return found[camera] if camera is not None else next(iter(found.values()), None)


def _numbers(observations: Any, rows: int) -> np.ndarray | None:
    """Everything but pictures and words as one row of numbers a step, float32 ``[rows, O]``."""
    parts = [
        np.asarray(array, np.float32).reshape(rows, -1)
        for _, array in _leaves(observations)
        if not _is_picture(array) and array.dtype.kind in "fiub"
    ]
    return np.concatenate(parts, axis=1) if parts else None
