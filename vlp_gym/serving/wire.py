"""What travels between a `RemoteModel` and its server: safetensors, whose sizes are checked before they are read.

A frame travels once. After that its digest stands for it, which is a hash of its size and pixels.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from vlp_gym.errors import CheckpointError
from vlp_gym.models.protocol import History
from vlp_gym.schema import FLOATS, Document, Positive, Spec, check_tensors

PROTOCOL = 1
CONTENT_TYPE = "application/x-safetensors"
TOKEN_VARIABLE = "VLP_GYM_SERVER_TOKEN"
MODEL_HEADER, REQUEST_HEADER = "X-VLP-Model", "X-VLP-Request"
SESSION_HEADER = "X-Session-Id"  # the name that Ray Serve and other balancers look for

DIGEST_BYTES = 16
MAX_HEADER = 16 << 10  # bytes of a body's table of tensors
MAX_GROUPS = 8  # sizes of frames in one request
MAX_FRAMES = 1024  # in one request
MAX_SIDE = 8192  # pixels
MAX_SENTENCES = 4096
MAX_SENTENCE_BYTES = 1 << 20

Question = Literal["text", "frames", "score", "prefer", "novelty"]
QUESTIONS = get_args(Question)


class Malformed(ValueError):
    """A body that is not what it should be; the message says what is wrong."""


class Sentence(Document):
    """One instruction, and whether it may be cut at the model's limit."""

    text: Annotated[str, Field(max_length=MAX_SENTENCE_BYTES)]
    truncate: bool


class Sentences(Document):
    """The different instructions of a request."""

    sentences: Annotated[list[Sentence], Field(min_length=1, max_length=MAX_SENTENCES)]


class Served(Document):
    """What a server says of its model; see `RewardModel` and its optional parts for the fields not explained.

    Attributes:
        protocol: version of these bodies.
        version: of the server's vlp_gym.
        name: of the model.
        fingerprint: hash of the model's weights and settings; another one means other rewards.
        truncates: whether it can cut instructions.
        max_body: largest body of a request, in bytes.
        max_places: largest B * T of a request.
    """

    protocol: Positive
    version: str
    name: str
    fingerprint: str
    window: Positive
    history: History
    frame_size: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    value_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    anchored: bool | None
    pairwise: bool
    knowing: bool
    truncates: bool
    max_body: Positive
    max_places: Positive


class Refusal(Document):
    """A server's answer when it has no other: what is wrong, and the digests that it does not know."""

    kind: Literal["request", "instruction", "model", "unknown", "other", "busy"]
    message: str
    unknown: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Ask:
    """One question to a model.

    Attributes:
        question: which.
        digests: U names of frames.
        frames: those that came with the question, digest -> uint8 ``[H, W, 3]``.
        windows: int32 ``[B, T]``, places in `digests`; for "novelty" T is 1.
        others: the second videos of "prefer", int32 ``[B, T']``.
        mask: bool ``[B, T]``, of "score".
        sentences: instructions.
        text: which of them belongs to each row, int32 ``[B]``.
    """

    question: Question
    digests: list[bytes] = field(default_factory=list)
    frames: dict[bytes, Tensor] = field(default_factory=dict)
    windows: Tensor | None = None
    others: Tensor | None = None
    mask: Tensor | None = None
    sentences: list[Sentence] = field(default_factory=list)
    text: Tensor | None = None


def digest_of(frame: Tensor) -> bytes:
    """The name of a frame, uint8 ``[H, W, 3]``: the same wherever it is, and of no other frame."""
    size = f"{frame.shape[0]}x{frame.shape[1]}:".encode()
    return hashlib.blake2b(frame.contiguous().numpy().data, digest_size=DIGEST_BYTES, key=size).digest()


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as a body."""
    # Copies: safetensors refuses tensors that share memory, as two heads of a model may.
    return safetensors.torch.save(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    )


def pack_ask(ask: Ask) -> bytes:
    """A question as a body; frames of one size travel together."""
    tensors = {name: getattr(ask, name) for name in ("windows", "others", "mask", "text")}
    if ask.digests:
        tensors["digests"] = _bytes(b"".join(ask.digests)).view(-1, DIGEST_BYTES)
    if ask.sentences:
        tensors["sentences"] = _bytes(json_body(Sentences(sentences=ask.sentences)))
    groups: dict[torch.Size, list[Tensor]] = {}
    for frame in ask.frames.values():
        groups.setdefault(frame.shape, []).append(frame)
    tensors |= {f"frames.{number}": torch.stack(group) for number, group in enumerate(groups.values())}
    return pack({name: tensor for name, tensor in tensors.items() if tensor is not None})


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def unpack(body: bytes, limit: int = MAX_HEADER) -> dict[str, Tensor]:
    """The tensors of a body.

    Raises:
        Malformed: it is no safetensors file, is not whole, or its table is over the limit.
    """
    length = int.from_bytes(body[:8], "little") if len(body) >= 8 else -1
    if not 2 <= length <= min(limit, len(body) - 8):
        raise Malformed(f"expected safetensors with a table of at most {limit} bytes, got {len(body)} bytes of others")
    try:
        return safetensors.torch.load(body)
    except Exception as error:  # its own, and KeyError, ValueError, RuntimeError of unknown kinds of numbers
        raise Malformed(f"expected safetensors, got what cannot be read ({str(error)[:200]})") from None


def read_ask(question: Question, body: bytes, max_places: int) -> Ask:
    """A question from a body.

    Args:
        question: which.
        body: see `pack_ask`.
        max_places: largest B * T.

    Raises:
        Malformed: something is missing, too much, or out of its range.
    """
    tensors = unpack(body)
    table = {
        "text": ("sentences",),
        "frames": (),
        "score": ("digests", "windows", "mask", "text", "sentences"),
        "prefer": ("digests", "windows", "others", "text", "sentences"),
        "novelty": ("digests", "windows"),
    }[question]
    groups = [name for name in tensors if re.fullmatch(f"frames\\.[0-{MAX_GROUPS - 1}]", name)]
    if question == "text":
        groups = []
    if empty := [name for name, tensor in tensors.items() if not tensor.numel()]:
        raise Malformed(f"expected no empty tensors, got {empty[0][:40]!r}")
    if question == "frames" and not groups:
        raise Malformed("expected frames")
    specs = {name: _SPECS[name] for name in table}
    specs |= {name: Spec(torch.uint8, (f"N{name[-1]}", f"H{name[-1]}", f"W{name[-1]}", 3)) for name in groups}
    try:
        sizes = check_tensors(tensors, specs, question)
    except CheckpointError as error:
        raise Malformed(str(error)) from None
    given = _sentences(tensors["sentences"]) if "sentences" in tensors else []
    _check_places(tensors, sizes, len(given), max_places)
    if (count := sum(len(tensors[name]) for name in groups)) > MAX_FRAMES:
        raise Malformed(f"expected at most {MAX_FRAMES} frames, got {count}")
    frames = [frame for name in groups for frame in tensors[name]]
    if any(max(frame.shape) > MAX_SIDE for frame in frames):
        raise Malformed(f"expected frames of at most {MAX_SIDE} pixels a side")
    rows = tensors.get("digests", torch.empty(0, DIGEST_BYTES, dtype=torch.uint8)).numpy()
    return Ask(
        question,
        digests=[row.tobytes() for row in rows],
        frames={digest_of(frame): frame for frame in frames},
        sentences=given,
        **{name: tensors[name] for name in ("windows", "others", "mask", "text") if name in tensors},
    )


_SPECS = {
    "sentences": Spec(torch.uint8, ("bytes",)),
    "digests": Spec(torch.uint8, ("U", DIGEST_BYTES)),
    "windows": Spec(torch.int32, ("B", "T"), low=0),
    "others": Spec(torch.int32, ("B", "S"), low=0),
    "mask": Spec(torch.bool, ("B", "T")),
    "text": Spec(torch.int32, ("B",), low=0),
}


def _check_places(tensors: Mapping[str, Tensor], sizes: Mapping[str, int], sentences: int, limit: int) -> None:
    """Raise Malformed for places that lead nowhere, rows without a frame, and more of them than the limit."""
    places = sizes.get("B", 0) * (sizes.get("T", 0) + sizes.get("S", 0))
    if max(places, sizes.get("U", 0)) > limit:
        raise Malformed(f"expected at most {limit} places in windows, got {max(places, sizes.get('U', 0))}")
    for name, count in (("windows", sizes.get("U", 0)), ("others", sizes.get("U", 0)), ("text", sentences)):
        if name in tensors and int(tensors[name].max()) >= count:
            raise Malformed(f"{name}: expected places below {count}, got {int(tensors[name].max())}")
    if "mask" in tensors and not tensors["mask"].any(1).all():
        raise Malformed("mask: expected a real frame in each row")


def _sentences(encoded: Tensor) -> list[Sentence]:
    if encoded.numel() > MAX_SENTENCE_BYTES:
        raise Malformed(f"sentences: expected at most {MAX_SENTENCE_BYTES} bytes, got {encoded.numel()}")
    try:
        return Sentences.parse(json.loads(encoded.numpy().tobytes()), "question").sentences
    except (ValueError, RecursionError):
        raise Malformed("sentences: expected JSON") from None
    except CheckpointError as error:
        raise Malformed(str(error)[:500]) from None


def read_answer(body: bytes, rows: int, length: int) -> dict[str, Tensor]:
    """The numbers of an answer: for "score" as in `Scores`, else "values" ``[B]``.

    Args:
        body: see `pack`.
        rows: B.
        length: T.

    Raises:
        Malformed: it is no such answer.
    """
    tensors = unpack(body)
    names = {"values": Spec(FLOATS, ("B",), nan=True)} if "values" in tensors else {
        "preference": Spec(FLOATS, ("B",), nan=True),
        "progress": Spec(FLOATS, ("B", "T"), nan=True, optional=True),
        "relevance": Spec(FLOATS, ("B",), nan=True, optional=True),
    }  # fmt: skip
    try:
        check_tensors(tensors, names, "answer", {"B": rows, "T": length})
    except CheckpointError as error:
        raise Malformed(str(error)) from None
    return tensors


def places_of(tokens: Sequence[Tensor]) -> tuple[list[bytes], list[Tensor]]:
    """Digests behind blocks of frame tokens, each once, and the blocks' places in them; see `as_tokens`.

    Args:
        tokens: float ``[..., 2, 8]`` each.

    Returns:
        U digests, and int32 ``[...]`` for each block.
    """
    known: dict[bytes, int] = {}
    places = []
    for block in tokens:
        rows = block.to(torch.uint8).flatten(-2).reshape(-1, DIGEST_BYTES).cpu().numpy()
        found = [known.setdefault(row.tobytes(), len(known)) for row in rows]
        places.append(torch.tensor(found, dtype=torch.int32).view(block.shape[:-2]))
    return list(known), places


def as_tokens(digests: Sequence[bytes]) -> Tensor:
    """N digests as frame tokens, float32 ``[N, 2, 8]``: two tokens, so that nobody takes one for an embedding."""
    rows = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), 2, DIGEST_BYTES // 2)
    return torch.from_numpy(rows.astype(np.float32))


def json_body(document: Document) -> bytes:
    """A document as a body."""
    return document.model_dump_json().encode()


def check_count(value: Any, name: str, least: int = 1) -> int:
    """A whole number, at least `least`, or ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number, at least {least}, got {value!r}")
    return value
