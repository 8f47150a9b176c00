"""The reward model of a server, `vlp-gym serve`, as a `RewardModel`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import vlp_gym
from vlp_gym.errors import CheckpointError, InstructionError, QueryError
from vlp_gym.models.protocol import History, Scores
from vlp_gym.models.raw_tokens import code_points, tokens_to_sentences
from vlp_gym.serving.connection import Connection, Reply
from vlp_gym.serving.frames import Frames
from vlp_gym.serving.wire import (
    CONTENT_TYPE,
    MAX_FRAMES,
    MODEL_HEADER,
    PROTOCOL,
    TOKEN_VARIABLE,
    Ask,
    Malformed,
    Question,
    Refusal,
    Sentence,
    Served,
    as_tokens,
    digest_of,
    pack_ask,
    places_of,
    read_answer,
)
from vlp_gym.text import normalize_instruction

CONNECT_S = 5.0
ROUNDS = 5
MAX_SENT = 200_000


class RemoteModel:
    """A reward model that runs on a server: ``vlp-gym serve MODEL``; equal to the model itself but for rounding.

    Every frame travels once: frame tokens are digests of frames, and the server keeps the tokens behind them. What it
    has forgotten, because it was restarted or its cache is full, is sent again. Requests are repeated while there is no
    server; they change nothing there, so no reward can be doubled. Several processes may ask one server.

    Frame tokens mean something only as long as this client or the server holds the frames, and cannot be computed with.

    Args:
        address: "http://HOST:PORT", as the server prints it, or "https://..." behind a proxy.
        token: of the server; None takes the environment variable VLP_GYM_SERVER_TOKEN. It is never shown.
        patience_s: how long requests are repeated while the server is away or busy.
        timeout_s: how long one answer may take.
        memory: bytes of the newest frames that are kept here, to be sent again; 2 GiB are 14,000 frames of 224 x 224.

    Raises:
        ValueError: the address is none.
        QueryError: nobody answers there, the token is wrong, or the server has another protocol. In use, also: it now
            has another model, or another version of vlp_gym, than at first.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        patience_s: float = 120.0,
        timeout_s: float = 320.0,
        memory: int = 2 << 30,
    ) -> None:
        token = os.environ.get(TOKEN_VARIABLE) or None if token is None else token
        self._connection = Connection(address, token, CONNECT_S, timeout_s)
        self.served = _read_served(self._connection.ask("/v1/model"), self._connection.address)
        self._connection.patience_s = patience_s
        self.window, self.history = self.served.window, self.served.history
        self.frame_size = (self.served.frame_size[0], self.served.frame_size[1])
        self._frames = Frames(memory)
        self._sent: dict[bytes, None] = {}
        # The optional parts of a model, see `vlp_gym.models.protocol`: only those that the server's has.
        if self.served.value_range is not None:
            self.value_range = (self.served.value_range[0], self.served.value_range[1])
        if self.served.anchored is not None:
            self.anchored = self.served.anchored
        if self.served.truncates:
            self.truncate = False
        if self.served.pairwise:
            self.prefer = self._prefer
        if self.served.knowing:
            self.novelty = self._novelty

    @classmethod
    def from_spec(cls, spec: str) -> RemoteModel:
        """The model at an address."""
        return cls(spec)

    window: int
    history: History

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._connection.address

    @property
    def retries(self) -> int:
        """Requests that had to be repeated."""
        return self._connection.retries

    def close(self) -> None:
        """Close this thread's connection."""
        self._connection.close()

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Code points of B sentences, float ``[B, L, 1]``, negative if they may be cut; padding is zero.

        Raises:
            InstructionError: the server's model does not take one.
        """
        sentences = [normalize_instruction(instruction) for instruction in instructions]
        truncate: bool = getattr(self, "truncate", False)
        asked = [Sentence(text=sentence, truncate=truncate) for sentence in dict.fromkeys(sentences)]
        self._post(Ask("text", sentences=asked))
        points = code_points(sentences)
        return 0.0 - points if truncate else points

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Digests of uint8 frames ``[N, H, W, 3]`` of any size, float ``[N, 2, 8]``; they are sent when needed."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise TypeError(f"expected uint8 frames [N, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        digests = []
        for frame in frames.cpu().contiguous():
            digests.append(digest_of(frame))
            self._frames.put(digests[-1], frame)
        return as_tokens(digests)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows; shapes as in `RewardModel`."""
        parts = []
        for rows in self._parts(len(frames), frames.shape[1]):
            digests, (windows,) = places_of([frames[rows]])
            sentences, chosen = _sentences(text[rows])
            ask = Ask("score", digests, {}, windows=windows, mask=mask[rows].cpu(), sentences=sentences, text=chosen)
            parts.append(self._answer(ask))
        heads = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Scores(heads["preference"], heads.get("progress"), heads.get("relevance"))

    def _prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """See `PairwiseModel`."""
        parts = []
        for rows in self._parts(len(a), a.shape[1] + b.shape[1]):
            digests, (windows, others) = places_of([a[rows], b[rows]])
            sentences, chosen = _sentences(text[rows])
            ask = Ask("prefer", digests, {}, windows=windows, others=others, sentences=sentences, text=chosen)
            parts.append(self._answer(ask)["values"])
        return torch.cat(parts)

    def _novelty(self, frames: Tensor) -> Tensor:
        """See `KnowingModel`."""
        parts = []
        for rows in self._parts(len(frames), 1):
            digests, (places,) = places_of([frames[rows]])
            parts.append(self._answer(Ask("novelty", digests, {}, windows=places[:, None]))["values"])
        return torch.cat(parts)

    def _parts(self, count: int, length: int) -> list[slice]:
        step = max(self.served.max_places // max(length, 1), 1)
        return [slice(start, start + step) for start in range(0, count, step)]

    def _answer(self, ask: Ask) -> dict[str, Tensor]:
        assert ask.windows is not None
        try:
            return read_answer(self._post(ask), *ask.windows.shape)
        except Malformed as error:
            raise QueryError(f"{self.address} answers as no server of vlp_gym does: {error}") from None

    def _post(self, ask: Ask) -> bytes:
        """The server's answer to a question; frames that it does not have go with it."""
        missing = [digest for digest in ask.digests if digest not in self._sent]
        for _ in range(ROUNDS):
            frames = {digest: frame for digest in missing if (frame := self._frames.get(digest)) is not None}
            frames = self._send_most(frames)
            reply = self._send(ask.question, replace(ask, frames=frames))
            if isinstance(reply, bytes):
                self._note(ask.digests)
                return reply
            for digest in reply:
                self._sent.pop(digest, None)
            missing = [*frames, *reply]  # with an answer of this kind, it keeps nothing of what came
            if gone := [digest for digest in reply if self._frames.get(digest) is None]:
                raise QueryError(
                    f"{len(gone)} frames are gone: the server at {self.address} was restarted or its cache is full, "
                    "and they are too old to be kept here. Give it more --cache-mb, this client more memory "
                    "(RemoteModel(..., memory=...)), and a labeler the frames themselves (keep_frames=...)"
                )
        raise QueryError(
            f"the server at {self.address} forgets frames before it can score them; give it more --cache-mb"
        )

    def _send_most(self, frames: dict[bytes, Tensor]) -> dict[bytes, Tensor]:
        """Send frames ahead if they are too many for one body; returns the rest."""
        for part in _parcels(frames, self.served.max_body // 2)[:-1]:
            self._send("frames", Ask("frames", frames={digest: frames.pop(digest) for digest in part}))
            self._note(part)
        return frames

    def _note(self, digests: Sequence[bytes]) -> None:
        if len(self._sent) > MAX_SENT:
            self._sent.clear()  # they would be sent again, for which there are 16 bytes and a question
        self._sent |= dict.fromkeys(digests)

    def _send(self, question: Question, ask: Ask) -> bytes | list[bytes]:
        """The answer, or the digests of the frames that the server does not know."""
        headers = {"Content-Type": CONTENT_TYPE, MODEL_HEADER: self.served.fingerprint}
        reply = self._connection.ask(f"/v1/{question}", pack_ask(ask), headers)
        if reply.status == 200:
            return reply.body
        refusal = _read_refusal(reply, self.address)
        if refusal.kind == "unknown":
            return [bytes.fromhex(digest) for digest in refusal.unknown]
        if refusal.kind == "instruction":
            raise InstructionError(refusal.message)
        if refusal.kind == "other":
            raise QueryError(
                f"the server at {self.address} has another model or version than before, whose rewards would mix with "
                f"those paid so far: {refusal.message}; here it was {self.served.name} of vlp_gym "
                f"{self.served.version}. Serve that one again, or begin anew"
            )
        raise QueryError(f"the reward server at {self.address} answers {reply.status}: {refusal.message}")

    def __repr__(self) -> str:
        return f"RemoteModel({self.address!r})"


def _parcels(frames: Mapping[bytes, Tensor], limit: int) -> list[list[bytes]]:
    """Digests of frames in lists of at most `MAX_FRAMES`, and of at most so many bytes unless one frame has more."""
    parcels: list[list[bytes]] = [[]]
    size = 0
    for digest, frame in frames.items():
        if parcels[-1] and (size + frame.nbytes > limit or len(parcels[-1]) == MAX_FRAMES):
            parcels.append([])
            size = 0
        parcels[-1].append(digest)
        size += frame.nbytes
    return parcels


def _sentences(text: Tensor) -> tuple[list[Sentence], Tensor]:
    """The different sentences behind text tokens ``[B, L, 1]``, and which belongs to each row, int32 ``[B]``."""
    rows = [
        Sentence(text=sentence, truncate=cut)
        for sentence, cut in zip(tokens_to_sentences(text.abs()), (text < 0).flatten(1).any(1).tolist(), strict=True)
    ]
    known = {(row.text, row.truncate): row for row in rows}
    places = {key: place for place, key in enumerate(known)}
    return list(known.values()), torch.tensor([places[row.text, row.truncate] for row in rows], dtype=torch.int32)


def _read_served(reply: Reply, address: str) -> Served:
    if reply.status != 200:
        refusal = _read_refusal(reply, address)
        raise QueryError(f"the reward server at {address} answers {reply.status}: {refusal.message}")
    said = _json(reply.body)
    protocol = said.get("protocol") if isinstance(said, dict) else None
    if protocol != PROTOCOL and isinstance(protocol, int):
        raise QueryError(
            f"{address} speaks protocol {protocol} of vlp_gym {said.get('version')!r}, and this is protocol {PROTOCOL} "
            f"of {vlp_gym.__version__}; install the same version on both sides"
        )
    try:
        return Served.parse(said, address)
    except CheckpointError as error:
        raise QueryError(f"expected a server of vlp_gym: {error}") from None


def _read_refusal(reply: Reply, address: str) -> Refusal:
    try:
        return Refusal.parse(_json(reply.body), address)
    except CheckpointError:
        raise QueryError(f"{address} answers {reply.status} as no server of vlp_gym does; check the address") from None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
