"""Questions in, answers out: what different clients ask together goes through the model in common batches."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlp_gym.engine.guard import HEADS, GuardedModel
from vlp_gym.errors import InstructionError
from vlp_gym.serving.rows import Rows
from vlp_gym.serving.wire import Ask, Sentence
from vlp_gym.text import FILES, normalize_instruction

PIXEL_BYTES = 16 << 20  # of frames in one call of the encoder
TOKEN_BYTES = 64 << 20  # of windows in one call of the model
ROW_BYTES = 256 << 20  # of one window
WHERE = "a question of a client"

Answer = dict[str, Tensor]
Held = dict[Hashable, Tensor]


class Unknown(Exception):
    """Frames that this server does not have (any more): the client sends them again.

    Args:
        digests: their names.
    """

    def __init__(self, digests: list[bytes]) -> None:
        super().__init__(f"{len(digests)} frames are not known here")
        self.digests = digests


class TooLarge(ValueError):
    """A window that would take too much memory."""


class Answerer:
    """Answers questions with one model; not from two threads at a time.

    Args:
        model: a live model.
        cache_bytes: for tokens of frames and sentences.
    """

    def __init__(self, model: Any, cache_bytes: int) -> None:
        self.model, self._cutting = GuardedModel(model), GuardedModel(model, truncate=True)
        self.rows = Rows(cache_bytes)
        self.encoded = 0  # frames
        # With another history the first frame of a window changes at each step.
        self._in_context = self.model.contextual and model.history == "prefix"

    def answer(self, asks: Sequence[Ask]) -> list[Answer | Exception]:
        """One answer for each question, or the error that it meets; an error of one is not one of the others."""
        answers: dict[int, Answer | Exception] = {}
        for number, ask in enumerate(asks):
            if unknown := [name for name in ask.digests if name not in ask.frames and name not in self.rows]:
                answers[number] = Unknown(unknown)
        ready = [number for number in range(len(asks)) if number not in answers]
        together = [[number] for number in ready]
        if len(ready) > 1:
            try:
                answers |= zip(ready, self._answer([asks[number] for number in ready]), strict=True)
                together = []
            except Exception:  # whose it is, and what, is seen when each is asked alone
                pass
        for (number,) in together:
            try:
                answers[number] = self._answer([asks[number]])[0]
            except KeyError:  # what was asked before it has driven its frames out of the cache
                answers[number] = Unknown([name for name in asks[number].digests if name not in asks[number].frames])
            except Exception as error:
                answers[number] = error
        return [answers[number] for number in range(len(asks))]

    def _answer(self, asks: Sequence[Ask]) -> list[Answer]:
        held = self._encode_frames(asks)
        texts = self._encode_texts(asks)
        answers: list[Answer] = [{} for _ in asks]
        groups: dict[Any, list[int]] = {}
        for number, ask in enumerate(asks):
            if ask.windows is not None:
                shape = (ask.windows.shape[1], 0 if ask.others is None else ask.others.shape[1])
                groups.setdefault((ask.question, shape), []).append(number)
        for (question, _), numbers in groups.items():
            answer = {"score": self._score, "prefer": self._prefer, "novelty": self._novelty}[question]
            rows = answer([asks[number] for number in numbers], held, texts)
            counts = [len(asks[number].windows) for number in numbers]  # type: ignore[arg-type]
            for name, values in rows.items():
                for number, part in zip(numbers, values.cpu().split(counts), strict=True):
                    answers[number][name] = part
        return answers

    def _encode_frames(self, asks: Sequence[Ask]) -> Held:
        """The tokens ``[K, D]`` of all frames of these questions, by digest; each frame is encoded once."""
        came = {name: frame for ask in asks for name, frame in ask.frames.items()}
        wanted = dict.fromkeys([*(name for ask in asks for name in ask.digests), *came])
        held: Held = {}
        new: dict[torch.Size, list[bytes]] = {}
        for name in wanted:
            row = self.rows.get(name)
            if row is not None:
                held[name] = row
            else:
                new.setdefault(came[name].shape, []).append(name)
        for shape, names in new.items():
            for part in _parts(names, PIXEL_BYTES // shape.numel()):
                tokens = self.model.encode_frames(torch.stack([came[name] for name in part]), where=WHERE)
                self._keep(held, part, tokens)
                self.encoded += len(part)
        return held

    def _encode_texts(self, asks: Sequence[Ask]) -> Held:
        """The tokens ``[L, D]`` of all sentences of these questions."""
        held: Held = {}
        for sentence in {_key(sentence): sentence for ask in asks for sentence in ask.sentences}.values():
            row = self.rows.get(_key(sentence))
            if row is not None:
                held[_key(sentence)] = row
                continue
            text = normalize_instruction(sentence.text)
            if text.lower().endswith(FILES):  # some models read them: files of this machine
                raise InstructionError(f"{text!r} looks like the path of a file, and a served model takes a sentence")
            guard = self._cutting if sentence.truncate else self.model
            self._keep(held, [_key(sentence)], guard.encode_text([text], where=WHERE))
        return held

    def _score(self, asks: Sequence[Ask], held: Held, texts: Held) -> Answer:
        windows = [row for ask in asks for row in _names(ask, ask.windows)]
        text = [texts[name] for ask in asks for name in _texts(ask)]
        mask = torch.cat([ask.mask for ask in asks if ask.mask is not None]).to(self.model.device)
        in_context = self._in_context and len(windows[0]) > 1
        if in_context:
            windows, held = self._see_in_context(windows, held)
        parts = []
        for part in _parts(range(len(windows)), _rows_at_once(held[windows[0][0]], len(windows[0]))):
            scores = self.model.score(
                _stack(windows[part.start : part.stop], held), pad_sequence(text[part.start : part.stop], True),
                mask[part.start : part.stop], where=WHERE, in_context=in_context, finite=False,
            )  # fmt: skip
            parts.append(scores)
        present = [name for name in HEADS if getattr(parts[0], name) is not None]
        return {name: torch.cat([getattr(scores, name) for scores in parts]) for name in present}

    def _see_in_context(self, windows: list[list[bytes]], held: Held) -> tuple[list[list[bytes]], Held]:
        """The windows with each frame beside the first of its window, and the tokens of these."""
        pairs = [[name + row[0] for name in row] for row in windows]
        seen: Held = {}
        new = []
        for name in dict.fromkeys(name for row in pairs for name in row):
            kept = self.rows.get(name)
            if kept is None:
                new.append(name)
            else:
                seen[name] = kept
        half = len(windows[0][0])
        for part in _parts(new, _rows_at_once(held[windows[0][0]], 2)):
            frames = torch.stack([held[name[:half]] for name in part])
            first = torch.stack([held[name[half:]] for name in part])
            self._keep(seen, part, self.model.encode_in_context(frames, first, where=WHERE))
        return pairs, seen

    def _prefer(self, asks: Sequence[Ask], held: Held, texts: Held) -> Answer:
        a = [row for ask in asks for row in _names(ask, ask.windows)]
        b = [row for ask in asks for row in _names(ask, ask.others)]
        text = [texts[name] for ask in asks for name in _texts(ask)]
        parts = []
        for part in _parts(range(len(a)), _rows_at_once(held[a[0][0]], len(a[0]) + len(b[0]))):
            rows = slice(part.start, part.stop)
            chances = self.model.prefer(
                _stack(a[rows], held), _stack(b[rows], held), pad_sequence(text[rows], True), where=WHERE
            )
            parts.append(chances)
        return {"values": torch.cat(parts)}

    def _novelty(self, asks: Sequence[Ask], held: Held, texts: Held) -> Answer:
        names = [row[0] for ask in asks for row in _names(ask, ask.windows)]
        parts = _parts(names, _rows_at_once(held[names[0]], 1))
        tokens = (torch.stack([held[name] for name in part]) for part in parts)
        return {"values": torch.cat([self.model.novelty(rows, where=WHERE) for rows in tokens])}

    def _keep(self, held: Held, names: Iterable[Hashable], rows: Tensor) -> None:
        for name, row in zip(names, rows, strict=True):
            held[name] = row.clone()  # a view would keep the whole batch
            self.rows.put(name, held[name])


def _parts(items: Any, count: int) -> Iterable[Any]:
    """A sequence in parts of so many, at least one each."""
    count = max(count, 1)
    return (items[start : start + count] for start in range(0, len(items), count))


def _rows_at_once(tokens: Tensor, length: int) -> int:
    """How many windows of so many frames, whose tokens are ``[K, D]`` each, fit into one call.

    Raises:
        TooLarge: not even one does.
    """
    size = tokens.nbytes * length
    if size > ROW_BYTES:
        raise TooLarge(f"expected windows of at most {ROW_BYTES >> 20} MiB of tokens, got {length} frames a window")
    return TOKEN_BYTES // size


def _names(ask: Ask, places: Tensor | None) -> list[list[bytes]]:
    """The digests of each row."""
    assert places is not None
    return [[ask.digests[place] for place in row] for row in places.tolist()]


def _texts(ask: Ask) -> list[Hashable]:
    """The name of the sentence of each row."""
    assert ask.text is not None
    return [_key(ask.sentences[place]) for place in ask.text.tolist()]


def _key(sentence: Sentence) -> Hashable:
    return sentence.text, sentence.truncate


def _stack(rows: Sequence[Sequence[bytes]], held: Held) -> Tensor:
    """Tokens ``[B, T, K, D]``."""
    flat = torch.stack([held[name] for row in rows for name in row])
    return flat.unflatten(0, (len(rows), -1))
