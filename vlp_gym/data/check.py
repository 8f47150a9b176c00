"""The contract of a trajectory's fields, checked when it is written and before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from vlp_gym.data.trajectory import ALL_TIERS, VARIANT_KINDS
from vlp_gym.errors import DatasetError, InstructionError
from vlp_gym.text import normalize_instruction

MAX_FRAMES = 2_000
MAX_PIXELS = 128_000_000  # in all frames of a trajectory
MAX_SENTENCES = 10_000
MAX_LENGTH = 10_000  # characters of a sentence


def check_fields(fields: Mapping[str, Any], frames: int) -> None:
    """Check everything but the frames.

    Args:
        fields: the fields of a `Trajectory` by name, arrays of its dtypes; optional ones may be missing.
        frames: number of frames.

    Raises:
        DatasetError: a field breaks the contract of `Trajectory`; it names the trajectory and the field.
    """
    try:
        _check_plain(fields)
        _check_lengths(fields, frames)
        _check_numbers(fields)
        _check_sentences(fields)
    except ValueError as error:
        raise DatasetError(f"{name_of(fields)}: {error}") from error


def check_size(fields: Mapping[str, Any], frames: int, height: int, width: int) -> None:
    """Raise DatasetError if the frames would take more memory than `MAX_PIXELS` does."""
    if (pixels := frames * height * width) > MAX_PIXELS:
        raise DatasetError(
            f"{name_of(fields)}: expected at most {MAX_PIXELS // 10**6} megapixels in all frames, got {frames} of "
            f"{width} x {height}, {pixels / 10**6:.0f}; store smaller or fewer frames"
        )


def check_side(size: int) -> None:
    """Raise ValueError unless square frames of this side, in pixels, can be stored."""
    if not 16 <= size <= 1024:
        raise ValueError(f"--size: expected 16 to 1024 pixels, got {size}")


def name_of(fields: Mapping[str, Any]) -> str:
    """Task, tier and seed, for messages."""
    return "/".join(str(fields.get(key))[:100] for key in ("task", "tier", "seed"))


def _check_plain(fields: Mapping[str, Any]) -> None:
    for key in ("task", "tier", "camera", "opposite", "sibling"):
        value = fields.get(key)
        if value is None and key in ("opposite", "sibling"):
            continue
        if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 1_000:
            raise ValueError(f"{key}: expected a name in printable characters, got {str(value)[:100]!r}")
        if "/" in value:
            raise ValueError(f'{key}: expected a name without "/", got {value[:100]!r}')
    if fields["tier"] not in ALL_TIERS:
        raise ValueError(f"tier: expected {', '.join(ALL_TIERS)}, got {fields['tier']!r}")
    for key in ("seed", "stride"):
        if isinstance(fields.get(key), bool) or not isinstance(fields.get(key), (int, np.integer)):
            raise ValueError(f"{key}: expected a whole number, got {fields.get(key)!r}")
    if fields["stride"] < 1:
        raise ValueError(f"stride: expected at least 1, got {fields['stride']}")
    if not isinstance(fields.get("varied"), (bool, np.bool_)):
        raise ValueError(f"varied: expected true or false, got {fields.get('varied')!r}")


def _check_lengths(fields: Mapping[str, Any], frames: int) -> None:
    if not 0 < frames <= MAX_FRAMES:
        raise ValueError(f"expected 1 to {MAX_FRAMES} frames, got {frames}")
    lengths = {"frames": frames} | {name: len(fields[name]) for name in ("step", "reward", "success", "positions")}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"expected one step, reward, success and positions a frame, got {lengths}")
    steps = len(fields["episode_reward"])
    for name, expected in (("observation", steps + 1), ("action", steps)):
        rows = fields.get(name)
        if rows is not None and len(rows) != expected:
            raise ValueError(f"expected {expected} rows of {name} for {steps} environment steps, got {len(rows)}")


def _check_numbers(fields: Mapping[str, Any]) -> None:
    step = np.asarray(fields["step"])
    if step[0] < 0 or (np.diff(step) <= 0).any() or step[-1] > len(fields["episode_reward"]):
        raise ValueError(
            f"step: expected rising numbers from 0 to {len(fields['episode_reward'])}, the number of environment "
            f"steps, got {np.array2string(step, threshold=8)}"
        )
    for name in ("reward", "episode_reward", "positions", "observation", "action"):
        if (values := fields.get(name)) is None:
            continue
        wrong = np.isinf(values) if name == "positions" else ~np.isfinite(values)  # NaN: not recorded
        if wrong.any():
            place = tuple(map(int, np.argwhere(wrong)[0]))
            raise ValueError(f"{name}: expected finite numbers, got {np.asarray(values)[place]} at {list(place)}")


def _check_sentences(fields: Mapping[str, Any]) -> None:
    sentences, groups = fields.get("sentences") or (), fields.get("opposite_sentences") or ()
    if len(groups) not in (0, len(sentences)):
        raise ValueError(
            f"expected opposite_sentences for none or each of {len(sentences)} sentences, got {len(groups)}"
        )
    variants = fields.get("variants") or {}
    if unknown := sorted(variants.keys() - set(VARIANT_KINDS)):
        raise ValueError(f"expected variants of {', '.join(VARIANT_KINDS)}, got {unknown}")
    _check_each("sentences", sentences)
    _check_each("held_out", fields.get("held_out") or ())
    for number, group in enumerate(groups):
        _check_each(f"opposite_sentences {number}", group)
    if (total := sum(map(len, groups))) > MAX_SENTENCES:
        raise ValueError(f"opposite_sentences: expected at most {MAX_SENTENCES}, got {total}")
    for kind, group in variants.items():
        _check_each(f"variants {kind}", group or ())


def _check_each(name: str, sentences: Any) -> None:
    if not isinstance(sentences, (list, tuple)):
        raise ValueError(f"{name}: expected a tuple of sentences, got {str(sentences)[:100]!r}")
    if len(sentences) > MAX_SENTENCES:
        raise ValueError(f"{name}: expected at most {MAX_SENTENCES} sentences, got {len(sentences)}")
    for number, sentence in enumerate(sentences):
        fault = _fault(sentence) if isinstance(sentence, str) else f"expected a string, got {sentence!r}"
        if fault:
            raise ValueError(f"{name}, {number}: {fault}")


@lru_cache(4096)  # the trajectories of a task have the same sentences
def _fault(sentence: str) -> str:
    if len(sentence) > MAX_LENGTH:
        return f"expected at most {MAX_LENGTH} characters, got {len(sentence)}"
    try:
        normalize_instruction(sentence)
    except InstructionError as error:
        return str(error)
    return ""
