"""Checked content: documents, tables of tensors, states of generators."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field

from vlp_gym.errors import CheckpointError
from vlp_gym.schema import Document, Spec, check_generator, check_tensors, check_torch_generator, generator_state

LONG = f"1{17 * '0'}...{19 * '0'}"


class Part(Document):
    share: float = Field(ge=0, le=1)


class Whole(Document):
    count: int = Field(ge=1)
    parts: list[Part] = Field(default=[])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "count: missing"),
        ({"count": 0}, "count: expected greater than or equal to 1, got 0"),
        ({"count": 1.0}, "count: expected a valid integer, got 1.0"),
        ({"count": True}, "count: expected a valid integer, got True"),
        ({"count": "1"}, "count: expected a valid integer, got '1'"),
        ({"count": 1, "more": 2}, "more: an unknown entry"),
        ({"count": 1, "parts": [{"share": 0}, {"share": 2}]}, "parts.1.share: expected less than or equal to 1, got 2"),
        ({"count": 1, "parts": [{"share": float("nan")}]}, "parts.0.share: expected a finite number, got nan"),
        ({"count": 1, "parts": [{"share": 10**400}]}, f"parts.0.share: expected a valid number, got {LONG}"),
        ([], "the document: expected a valid dictionary or instance of Whole, got []"),
    ],
)  # fmt: skip
def test_a_wrong_document(values: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'a/b.json: {message}')}$"):
        Whole.parse(values, "a/b.json")


def test_a_right_document() -> None:
    whole = Whole.parse({"count": 3, "parts": [{"share": 1}]}, "here")
    assert (whole.count, whole.parts[0].share) == (3, 1.0)
    assert whole.model_dump() == {"count": 3, "parts": [{"share": 1.0}]}


TABLE = {
    "labels": Spec(torch.float32, ("N",), low=0, high=1),
    "mask": Spec(torch.bool, ("N", 2)),
    "rewards": Spec((torch.float32, torch.float64), ("N",), nan=True, optional=True),
}


def good() -> dict[str, torch.Tensor]:
    return {"labels": torch.tensor([0.0, 0.5, 1.0]), "mask": torch.ones(3, 2, dtype=torch.bool)}


def test_right_tensors() -> None:
    assert check_tensors(good(), TABLE, "here") == {"N": 3}
    rewards = torch.tensor([np.nan, np.inf, 1.0], dtype=torch.float64)
    assert check_tensors({**good(), "rewards": rewards}, TABLE, "here", {"N": 3}) == {"N": 3}
    assert check_tensors({"labels": torch.zeros(0), "mask": torch.zeros(0, 2) > 0}, TABLE, "here") == {"N": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None, "mask": None}, "missing tensors: labels, mask"),
        ({"b": torch.zeros(1), "a": torch.zeros(1)}, "unknown tensors: a, b"),
        ({"labels": torch.zeros(3, dtype=torch.float64)}, "labels: expected float32, got float64"),
        ({"labels": torch.zeros(3, 1)}, "labels: expected the shape [N], got [3, 1]"),
        ({"mask": torch.zeros(3, 3) > 0}, "mask: expected the shape [3, 2], got [3, 3]"),
        ({"mask": torch.zeros(4, 2) > 0}, "mask: expected the shape [3, 2], got [4, 2]"),
        ({"labels": torch.tensor([0.0, 1.5, 1.0])}, "labels: expected numbers from 0 to 1, got 1.5"),
        ({"labels": torch.tensor([0.0, 1.0, -1.0])}, "labels: expected numbers from 0 to 1, got -1"),
        ({"labels": torch.tensor([0.0, np.nan, 1.0])}, "labels: expected finite numbers, got NaN or inf"),
        ({"mask": torch.tensor([[0, 1], [2, 1], [1, 1]], dtype=torch.uint8).view(torch.bool)},
         "mask: expected bytes 0 and 1, got others"),
        ({"rewards": torch.zeros(3, dtype=torch.float16)}, "rewards: expected float32, got float16"),
    ],
)  # fmt: skip
def test_wrong_tensors(changes: dict[str, Any], message: str) -> None:
    tensors = {name: tensor for name, tensor in {**good(), **changes}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'here: {message}')}$"):
        check_tensors(tensors, TABLE, "here")


def test_sizes_of_one_tensor_that_must_be_equal() -> None:
    with pytest.raises(CheckpointError, match=r"^here: square: expected equal sizes N, got \[2, 3\]$"):
        check_tensors({"square": torch.zeros(2, 3)}, {"square": Spec(torch.float32, ("N", "N"))}, "here")


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_states_of_numpy_generators(kind: type) -> None:
    first, second = (np.random.Generator(kind(seed)) for seed in (1, 2))
    first.random(5)
    second.bit_generator.state = check_generator(generator_state(first), second, "here")
    assert first.random(5).tolist() == second.random(5).tolist()
    before = generator_state(second)
    other = np.random.default_rng() if kind is not np.random.PCG64 else np.random.Generator(np.random.SFC64())
    for wrong in ({}, [], None, {**before, "state": 1}, {**before, "has_uint32": 10**30}, generator_state(other)):
        with pytest.raises(CheckpointError, match=rf"^here: no state of {kind.__name__}( \(.*\))?$"):
            check_generator(wrong, second, "here")
    assert generator_state(second) == before


def test_an_even_increment_is_no_state_of_pcg64() -> None:
    # An even increment halves the period or worse (O'Neill, 2014).
    state = generator_state(np.random.default_rng(0))
    state["state"]["inc"] += 1
    with pytest.raises(CheckpointError, match=r"^here: no state of PCG64$"):
        check_generator(state, np.random.default_rng(1), "here")


def test_states_of_torch_generators() -> None:
    first, second = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    state = first.get_state()
    check_torch_generator(state, second, "here")
    with pytest.raises(CheckpointError, match=r"^here: state: expected the shape \[\d+\], got \[3\]$"):
        check_torch_generator(state[:3], second, "here")
    with pytest.raises(CheckpointError, match=r"^here: no state of a generator of torch"):
        check_torch_generator(torch.full_like(state, 255), second, "here")
    assert torch.equal(second.get_state(), torch.Generator().manual_seed(2).get_state())
