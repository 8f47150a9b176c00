"""Demonstrations in HDF5 files of robomimic's layout, which LIBERO, robosuite and MimicGen write.

A file holds ``data/demo_K/obs/CAMERA``, pictures uint8 ``[T, H, W, 3]``, and ``rewards`` or ``dones`` ``[T]``. LIBERO's
say their sentence, in the attribute ``problem_info`` of ``data`` or in their names; others need ``--instruction``.
States and actions are not read: makers differ in whether an action stands beside the picture before or after it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlp_gym.data.sources import OnBroken, SentencesMissingError, SourceOptions, give_up
from vlp_gym.data.sources.recording import kept_steps, make_trajectory, task_name, tier_of
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import DatasetError, import_extra, reason
from vlp_gym.text import normalize_sentence

ENDINGS = (".hdf5", ".h5")
STEPS_PER_SECOND = 20.0  # robosuite's control frequency, where a file does not say its own
MAX_STEPS, MAX_SIDE = 100_000, 4_096
MAX_BLOCK = 256 * 2**20  # bytes that HDF5 unpacks at once
MAX_TEXT = 2**20  # characters of an attribute


@dataclass(frozen=True)
class Demonstrations:
    """One file, checked but for its demonstrations.

    Attributes:
        file: where it is.
        sentence: what is done in it.
        rate: steps in a second.
        upside_down: whether its pictures are stored from bottom to top, as OpenGL draws.
        names: its demonstrations, in the order of their numbers.
    """

    file: Path
    sentence: str
    rate: float
    upside_down: bool
    names: tuple[str, ...]


class Libero:
    """The demonstrations of some files; see `Source`. Files of one sentence are one task."""

    def __init__(self, files: Sequence[Demonstrations], options: SourceOptions) -> None:
        self.files, self.options = files, options

    def tasks(self) -> list[str]:
        """See `Source`."""
        return sorted({task_name(each.sentence) for each in self.files})

    def stream(self, tasks: Sequence[str] | None = None, on_broken: OnBroken | None = None) -> Iterator[Trajectory]:
        """See `Source`."""
        h5py, seed = _h5py(), -1
        for each in self.files:
            wanted = tasks is None or task_name(each.sentence) in tasks
            if not wanted:
                seed += len(each.names)  # the same numbers whatever is wanted
                continue
            with h5py.File(each.file, "r") as file:
                for name in each.names:
                    seed += 1
                    try:
                        yield self._read(file["data"], each, name, seed)
                    except (DatasetError, ValueError, KeyError, TypeError, OSError, RuntimeError) as error:  # h5py's
                        give_up(DatasetError(f"{each.file}, {name}: {reason(error)}"), on_broken, error)

    def _read(self, data: Any, each: Demonstrations, name: str, seed: int) -> Trajectory:
        demonstration = _group(data, name)
        camera, pictures = _pictures(_group(demonstration, "obs"), self.options.camera)
        steps = len(pictures)
        done = next((name for name in ("rewards", "dones") if name in demonstration), None)
        if done is None:
            raise DatasetError("expected rewards or dones, which say whether it succeeds, found neither")
        values = _rows(demonstration, done, steps)
        kept = kept_steps(steps - 1, each.rate, self.options.fps)
        frames = pictures[kept]
        success = values > 0
        reward = values[1:] if done == "rewards" else np.zeros(steps - 1, np.float32)
        return make_trajectory(
            frames[:, ::-1] if each.upside_down else frames,
            task=task_name(each.sentence), tier=tier_of(bool(success.any())), sentences=[each.sentence],
            success=success[kept], size=self.options.size, camera=camera, seed=seed, step=kept, reward=reward,
        )  # fmt: skip


def open_source(path: Path, options: SourceOptions) -> Libero:
    """The demonstrations of a file, or of all files in a folder and its subfolders.

    Raises:
        DatasetError: if there is no file, or one cannot be read; it names the file.
        MissingExtraError: without h5py.
    """
    _h5py()
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.suffix in ENDINGS)
    if not files:
        raise DatasetError(f"{path}: expected files of demonstrations ({' '.join(ENDINGS)}), found none")
    return Libero([_open(file, options.instruction) for file in files], options)


def sentence_in(name: str) -> str | None:
    """The sentence in the name of a file of LIBERO; None in another's.

    >>> sentence_in("KITCHEN_SCENE10_close_the_top_drawer_demo"), sentence_in("lift")
    ('close the top drawer', None)
    """
    if not name.endswith("_demo"):
        return None
    return re.sub(r"^[A-Z_]*SCENE\d+_", "", name.removesuffix("_demo")).replace("_", " ")


def _h5py() -> Any:
    return import_extra("h5py", "reading HDF5 files needs h5py", "minari")


def _open(path: Path, instruction: str | None) -> Demonstrations:
    try:
        with _h5py().File(path, "r") as file:
            data = _group(file, "data")
            names = [name for name in data if re.fullmatch(r"demo_\d+", name)]
            if not names:
                raise DatasetError("expected data/demo_0 and on, found none")
            about = _document(data, "problem_info")
            told = about.get("language_instruction", sentence_in(path.stem))
            if isinstance(told, list):
                told = "".join(told)  # as LIBERO reads it
            convention = _text(data, "macros_image_convention") or "opengl"
            rate = _document(data, "env_args").get("env_kwargs", {}).get("control_freq", STEPS_PER_SECOND)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise DatasetError(f"{path}: no HDF5 file of demonstrations that can be read ({reason(error)})") from error
    if told is not None and instruction is not None:
        raise DatasetError(f"--instruction: {path} has a sentence of its own")
    if told is None and instruction is None:
        raise SentencesMissingError(
            f"{path}: it does not say what is done in it; convert it with a sentence: "
            f'vlp-gym data convert libero:{path} --instruction "..." --out FOLDER'
        )
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 10_000:
        raise DatasetError(f"{path}: env_args: expected control_freq as steps in a second, got {rate!r}")
    try:
        sentence = normalize_sentence(told if told is not None else instruction)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: problem_info: {error}") from error
    order = sorted(names, key=lambda name: int(name.removeprefix("demo_")))
    return Demonstrations(path, sentence, float(rate), convention == "opengl", tuple(order))


def _own(group: Any, name: str) -> Any:
    """A member that lies in this file: a link might name any other."""
    link = group.get(name, getlink=True)
    if link is None:
        raise DatasetError(f"expected {name} in {group.name}, found {', '.join(list(group)[:10]) or 'nothing'}")
    if not isinstance(link, _h5py().HardLink):
        raise DatasetError(f"{name}: expected it in this file, found a link to another place")
    return group[name]


def _group(parent: Any, name: str) -> Any:
    """A member that has members."""
    found = _own(parent, name)
    if not isinstance(found, _h5py().Group):
        raise DatasetError(f"{name}: expected a group, found {type(found).__name__}")
    return found


def _rows(group: Any, name: str, steps: int) -> Any:
    """Numbers, float32 ``[steps]``."""
    rows = _stored(group, name)
    if rows.shape != (steps,) or rows.dtype.kind not in "biuf":
        raise DatasetError(
            f"{name}: expected {steps} numbers, as many as pictures, got {rows.dtype} {list(rows.shape)}"
        )
    values = np.asarray(rows[:], np.float32)
    if not np.isfinite(values).all():
        raise DatasetError(f"{name}: expected finite numbers")
    return values


def _pictures(observations: Any, camera: str | None) -> tuple[str, Any]:
    """The name of a camera, by default of the first, and its pictures, which are not read yet."""
    found = {name: kept for name in observations if _is_picture(kept := _stored(observations, name))}
    if not found:
        raise DatasetError("expected pictures uint8 [T, H, W, 3] in obs, found none")
    if camera is not None and camera not in found:
        raise DatasetError(f"--camera: expected one of {', '.join(found)}, got {camera!r}")
    name = camera or next(iter(found))
    steps, *sides = found[name].shape[:3]
    if not 2 <= steps <= MAX_STEPS or max(sides) > MAX_SIDE:
        raise DatasetError(
            f"{name}: expected 2 to {MAX_STEPS:,} pictures of at most {MAX_SIDE:,} pixels, got {steps} of {sides}"
        )
    return name, found[name]


def _is_picture(kept: Any) -> bool:
    return len(kept.shape) == 4 and kept.shape[3] == 3 and kept.dtype == np.uint8 and min(kept.shape) > 0


def _stored(group: Any, name: str) -> Any:
    """A dataset that lies in this file, in blocks of a sane size."""
    kept = _own(group, name)
    if not isinstance(kept, _h5py().Dataset):
        raise DatasetError(f"{name}: expected numbers, found {type(kept).__name__}")
    if kept.is_virtual or kept.external:
        raise DatasetError(f"{name}: expected it in this file, found a pointer to another one")
    block = math.prod(kept.chunks or (0,)) * kept.dtype.itemsize
    if block > MAX_BLOCK:
        raise DatasetError(f"{name}: its blocks would take {block:,} bytes each; expected at most {MAX_BLOCK:,}")
    return kept


def _text(group: Any, name: str) -> str | None:
    value = group.attrs.get(name)
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if text is not None and (not isinstance(text, str) or len(text) > MAX_TEXT):
        raise DatasetError(f"{name}: expected at most {MAX_TEXT:,} characters")
    return text


def _document(group: Any, name: str) -> dict[str, Any]:
    """An attribute that holds a JSON document; empty if it is not there."""
    found = json.loads(_text(group, name) or "{}")
    if not isinstance(found, dict):
        raise DatasetError(f"{name}: expected a JSON object, got {type(found).__name__}")
    return found
