"""The books of the query engine: which tickets are open, where their requests are, and what became of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from vlp_gym.engine.tickets import Answer, Episode, Request, Ticket


class QueryBook:
    """Episodes, requests and answers, with every ticket counted once; neither threads nor a model in it.

    submitted = delivered + stale + failed + cancelled + pending, always.
    """

    def __init__(self) -> None:
        self.episodes: dict[int, Episode | None] = {}
        """The running one of each environment."""
        self.pending: dict[Ticket, Request] = {}
        """What has no answer yet, oldest first."""
        self.queue: deque[Request] = deque()
        """Those of them that the model does not work on."""
        self._outbox: dict[int, list[Answer]] = {}
        self._counts = {"submitted": 0, "delivered": 0, "stale": 0, "failed": 0, "cancelled": 0}
        self._latencies: deque[float] = deque(maxlen=1000)

    def stats(self) -> dict[str, int]:
        """Counts of tickets."""
        return {**self._counts, "pending": len(self.pending)}

    def latencies(self) -> dict[str, float]:
        """Seconds from `submit` to the answer: p50 and p99 of the newest 1,000 answers; empty before the first."""
        if not self._latencies:
            return {}
        p50, p99 = np.quantile(self._latencies, [0.5, 0.99])
        return {"latency_p50_s": float(p50), "latency_p99_s": float(p99)}

    def running(self, ticket: Ticket) -> Episode:
        """The episode that a new ticket belongs to.

        Raises:
            RuntimeError: if the ticket was already used, or its episode does not run.
        """
        episode = self.episodes.get(ticket.env)
        if episode is None or ticket.episode != episode.number or ticket.step <= episode.step:
            raise RuntimeError(f"the ticket was already used or belongs to no running episode ({ticket})")
        return episode

    def open(self, envs: Collection[int] | None) -> list[Ticket]:
        """The tickets of these environments (None: of all) that have no answer yet."""
        return [ticket for ticket in self.pending if envs is None or ticket.env in envs]

    def enqueue(self, requests: Sequence[Request]) -> None:
        """Take requests in; those of a broken episode are cancelled at once."""
        before = self._counts["submitted"]
        try:
            for request in requests:
                request.episode.step = request.ticket.step
                self.pending[request.ticket] = request
                self.queue.append(request)
            self._counts["submitted"] = before + len(requests)
        except BaseException:  # KeyboardInterrupt: nothing was submitted
            self._counts["submitted"] = before
            for request in requests:
                self.pending.pop(request.ticket, None)
                if request in self.queue:
                    self.queue.remove(request)
            raise
        self._drop_broken(requests)

    def next_batch(self, room: float) -> list[Request]:
        """Take the oldest requests out of the queue, all of one shape, at least one and at most `room` frames."""
        batch: list[Request] = []
        while self.queue and (not batch or len(batch[0].frames) * (len(batch) + 1) <= room):
            if batch and self.queue[0].frames.shape != batch[0].frames.shape:
                break
            batch.append(self.queue.popleft())
        return batch

    def book(self, batch: Sequence[Request], answers: Sequence[Answer], now_s: float) -> list[int]:
        """Put the answers to a batch into the outbox; an error breaks its episode. Returns which were delivered."""
        delivered, failed = [], False
        for number, (request, answer) in enumerate(zip(batch, answers, strict=True)):
            ticket = request.ticket
            if self.pending.get(ticket) is not request:  # it is stale, and counted
                continue
            del self.pending[ticket]
            if request.episode.broken:  # by an earlier row of this batch
                self._counts["cancelled"] += 1
                continue
            if answer.error is None:
                self._counts["delivered"] += 1
                delivered.append(number)
            else:
                self._counts["failed"] += 1
                request.episode.broken = failed = True
            self._outbox.setdefault(ticket.env, []).append(answer)
            self._latencies.append(now_s - request.since_s)
        if failed:
            self._drop_broken(self.queue)
        return delivered

    def answered(self, envs: Collection[int] | None) -> bool:
        """Whether one of these environments (None: any) has an answer in the outbox."""
        return bool(self._outbox) and (envs is None or not self._outbox.keys().isdisjoint(envs))

    def take(self, envs: Collection[int] | None) -> list[Answer]:
        """Take the answers of these environments (None: of all) out of the outbox."""
        answers: list[Answer] = []
        for env in list(self._outbox):
            if envs is None or env in envs:
                answers += self._outbox.pop(env)
        return answers

    def put_back(self, answers: Collection[Answer]) -> None:
        """Answers that were taken and that somebody else will ask for."""
        for answer in answers:
            self._outbox.setdefault(answer.ticket.env, []).append(answer)

    def cancel(self, env: int) -> None:
        """End the running episode of one environment and give up its open tickets."""
        self.episodes[env] = None
        self._outbox.pop(env, None)
        self.drop([request for request in self.queue if request.ticket.env == env])
        self.give_up([request for ticket, request in self.pending.items() if ticket.env == env], "stale")

    def drop(self, requests: Sequence[Request]) -> None:
        """Take requests out of the queue and give them up."""
        for request in requests:
            self.queue.remove(request)
        self.give_up(requests)

    def give_up(self, requests: Sequence[Request], outcome: str = "cancelled") -> None:
        """No frame may be missing from a window: the episodes of what is given up end here."""
        for request in requests:
            request.episode.broken = True
            if self.pending.get(request.ticket) is request:
                del self.pending[request.ticket]
                self._counts[outcome] += 1

    def _drop_broken(self, requests: Iterable[Request]) -> None:
        broken: list[Request] = []
        for request in requests:
            if request.episode.broken:
                broken.append(request)
        if broken:
            self.drop(broken)
