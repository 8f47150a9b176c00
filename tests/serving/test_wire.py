"""Bodies: what was packed comes back, and what is no body is refused in words."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.hostile_requests import valid
from vlp_gym.serving.remote import _parcels
from vlp_gym.serving.wire import (
    Ask,
    Malformed,
    Sentence,
    as_tokens,
    digest_of,
    pack,
    pack_ask,
    places_of,
    read_answer,
    read_ask,
    unpack,
)

SENTENCE = Sentence(text="öffne die Tür 🚪", truncate=True)


def frames(count: int, *size: int) -> list[torch.Tensor]:
    return list(torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def test_a_question_comes_back():
    named = {digest_of(frame): frame for frame in [*frames(2, 4, 6), *frames(1, 6, 4)]}
    ask = Ask(
        "score", [*named], named, torch.tensor([[0, 1], [2, 2]], dtype=torch.int32),
        mask=torch.tensor([[False, True], [True, True]]), sentences=[SENTENCE], text=torch.zeros(2, dtype=torch.int32),
    )  # fmt: skip
    came = read_ask("score", pack_ask(ask), 100)
    assert (came.digests, came.sentences) == (ask.digests, ask.sentences)
    assert {name: frame.tolist() for name, frame in came.frames.items()} == {
        name: frame.tolist() for name, frame in named.items()
    }
    for name in ("windows", "mask", "text"):
        assert torch.equal(getattr(came, name), getattr(ask, name))


def test_a_digest_is_that_of_size_and_pixels():
    frame = frames(1, 4, 6)[0]
    other = frame.clone()
    other[3, 5, 2] ^= 1
    seen = {digest_of(frame), digest_of(other), digest_of(frame.reshape(6, 4, 3)), digest_of(frame.transpose(0, 1))}
    assert len(seen) == 4
    assert digest_of(frame) == digest_of(frame.clone())


def test_tokens_stand_for_digests_in_every_float_type():
    digests = [bytes(range(start, start + 16)) for start in (0, 240, 100)]
    tokens = as_tokens(digests)
    assert tokens.shape == (3, 2, 8)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        known, (places,) = places_of([tokens.to(dtype)[[2, 0, 2]][None]])
        assert (known, places.tolist()) == ([digests[2], digests[0]], [[0, 1, 0]])


def changed(name: str, tensor: torch.Tensor | None) -> bytes:
    """A body for "score" with another tensor, or without one."""
    tensors = unpack(valid()["score"])
    tensors.pop(name, None)
    return pack(tensors if tensor is None else {**tensors, name: tensor})


def said(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text, "utf8"), dtype=torch.uint8)


INT = torch.int32


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("mask", None, "score: missing tensors: mask"),
        ("weights", torch.ones(1), "score: unknown tensors: weights"),
        ("frames.8", torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "score: unknown tensors: frames.8"),
        ("frames.0", torch.zeros(1, 8, 8, 4, dtype=torch.uint8), "score: frames.0: expected the shape [N0, H0, W0, 3], "
         "got [1, 8, 8, 4]"),
        ("frames.0", torch.zeros(1, 8, 8, 3), "score: frames.0: expected uint8, got float32"),
        ("frames.0", torch.zeros(1, 9000, 1, 3, dtype=torch.uint8), "expected frames of at most 8192 pixels a side"),
        ("frames.0", torch.zeros(1025, 1, 1, 3, dtype=torch.uint8), "expected at most 1024 frames, got 1025"),
        ("frames.0", torch.zeros(0, 8, 8, 3, dtype=torch.uint8), "expected no empty tensors, got 'frames.0'"),
        ("windows", torch.zeros(2, 2, dtype=INT), "score: mask: expected the shape [2, 2], got [2, 3]"),
        ("windows", torch.full((2, 3), 4, dtype=INT), "windows: expected places below 4, got 4"),
        ("windows", torch.full((2, 3), -1, dtype=INT), "score: windows: expected numbers from 0 to inf, got -1"),
        ("windows", torch.zeros(2, 3, dtype=torch.int64), "score: windows: expected int32, got int64"),
        ("text", torch.full((2,), 1, dtype=INT), "text: expected places below 1, got 1"),
        ("mask", torch.tensor([[True] * 3, [False] * 3]), "mask: expected a real frame in each row"),
        ("digests", torch.zeros(101, 16, dtype=torch.uint8), "expected at most 100 places in windows, got 101"),
        ("sentences", said("["), "sentences: expected JSON"),
        ("sentences", said("[" * 5000), "sentences: expected JSON"),
        ("sentences", said('{"sentences": []}'), "question: sentences: List should have at least 1 item after "
         "validation, not 0, got []"),
    ],
)  # fmt: skip
def test_what_is_no_question_is_refused(name, tensor, message):
    with pytest.raises(Malformed) as caught:
        read_ask("score", changed(name, tensor), 100)
    assert str(caught.value) == message


def test_places_are_counted_before_they_are_used():
    with pytest.raises(Malformed, match=r"^expected at most 5 places in windows, got 6$"):
        read_ask("score", valid()["score"], 5)


@pytest.mark.parametrize("cut", [0, 7, 8, 100, -1])
def test_a_body_that_is_not_whole(cut):
    with pytest.raises(Malformed, match=r"^expected safetensors"):
        unpack(valid()["score"][:cut])


def test_a_long_table_is_not_read():
    table = json.dumps({"x" * 20_000: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
    with pytest.raises(Malformed, match=r"^expected safetensors with a table of at most 16384 bytes, got 20067 bytes "):
        unpack(len(table).to_bytes(8, "little") + table)


def test_an_answer_of_another_size_is_refused():
    body = pack({"preference": torch.zeros(2), "progress": torch.zeros(2, 3)})
    assert read_answer(body, 2, 3).keys() == {"preference", "progress"}
    with pytest.raises(Malformed, match=r"^answer: preference: expected the shape \[3\], got \[2\]$"):
        read_answer(body, 3, 3)


def test_frames_are_sent_in_parcels_of_so_many_bytes():
    made = {bytes([number]): torch.zeros(size, 1, 3, dtype=torch.uint8) for number, size in enumerate([2, 1, 9, 1, 1])}
    assert [[name[0] for name in parcel] for parcel in _parcels(made, 9)] == [[0, 1], [2], [3, 4]]
    small = {number.to_bytes(2, "big"): torch.zeros(1, 1, 3, dtype=torch.uint8) for number in range(1025)}
    assert [len(parcel) for parcel in _parcels(small, 1 << 20)] == [1024, 1]
