"""A Minari data set in HDF5: an observation for each frame of a trajectory, a step from each to the next."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.check import name_of
from vlp_gym.data.exports import Survey, summed
from vlp_gym.data.fields import FIELDS, FieldsWriter, own_fields
from vlp_gym.data.sources.minari import MAIN, RATE, dataset_id
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError, import_extra

PICTURES, STATE = "pixels", "state"


def write(folder: Path, trajectories: Iterable[Trajectory], rate: float, name: str) -> Survey:
    """Write a data set into an empty folder; see `export`."""
    h5py = import_extra("h5py", "writing Minari data sets needs h5py", "minari")
    serialization = import_extra("minari.serialization", "writing Minari data sets needs minari", "minari")
    data, survey = folder / "data", Survey()
    data.mkdir()
    with h5py.File(data / MAIN, "w", track_order=True) as file:
        with FieldsWriter(data / FIELDS) as fields:
            for trajectory in trajectories:
                if len(frames := trajectory.frames) < 2:
                    raise DatasetError(f"{name_of(vars(trajectory))}: expected at least 2 frames, got {len(frames)}")
                trajectory.canonical  # noqa: B018  # raises if there is no sentence
                seen = file.create_group(f"episode_{survey.episodes}/observations")
                seen.create_dataset(PICTURES, data=frames, chunks=(1, *frames.shape[1:]), compression="gzip")
                survey.add(trajectory)
                fields.add(trajectory)
        states, actions = survey.width(survey.states), survey.width(survey.actions)
        steps = 0
        for number, own in enumerate(own_fields(data / FIELDS)):
            steps += _write_episode(file[f"episode_{number}"], number, own, states, actions)
    pixels = gym.spaces.Box(0, 255, (*survey.shape, 3), np.uint8)
    seen_space = {PICTURES: pixels, **({STATE: _box(states)} if states else {})}
    about = {
        "dataset_id": dataset_id(name), "minari_version": import_extra("minari", "", "minari").__version__,
        "data_format": "hdf5", "jpeg_encoding": False, RATE: rate,
        "total_episodes": survey.episodes, "total_steps": steps,
        "observation_space": serialization.serialize_space(gym.spaces.Dict(seen_space)),
        "action_space": serialization.serialize_space(_box(actions) if actions else gym.spaces.Discrete(1)),
        "dataset_size": round((data / MAIN).stat().st_size / 1e6, 1),
        "author": [], "author_email": [], "algorithm_name": "", "code_permalink": "",
        "description": f"{len(survey.tasks)} tasks, exported by vlp_gym",
    }  # fmt: skip
    (data / "metadata.json").write_text(json.dumps(about))
    return survey


def _write_episode(group: Any, number: int, fields: Mapping[str, Any], states: int, actions: int) -> int:
    """Write everything but the pictures; the number of steps is returned."""
    step = fields["step"]
    steps = len(step) - 1
    group.attrs.update(
        id=number, seed=fields["seed"], total_steps=steps, instruction=fields["sentences"][0], tier=fields["tier"]
    )
    if states:
        _put(group["observations"], STATE, fields["observation"][step])
    _put(group, "actions", fields["action"][step[:-1]] if actions else np.zeros(steps, np.int64))
    _put(group, "rewards", summed(fields["episode_reward"], step)[:-1])
    _put(group, "terminations", np.zeros(steps, bool))
    _put(group, "truncations", np.arange(steps) == steps - 1)
    _put(group.create_group("infos"), "success", fields["success"])
    return steps


def _put(group: Any, name: str, values: NDArray[Any]) -> None:
    group.create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))


def _box(size: int) -> gym.Space[Any]:
    return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
