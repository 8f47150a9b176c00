"""Who is answered together."""

from __future__ import annotations

import queue
import threading
import time

import pytest

pytest.importorskip("starlette")

from tests.serving.test_answer import ask, painted
from vlp_gym.serving.answer import Answerer
from vlp_gym.serving.worker import Worker
from vlp_gym.testing import PaintedModel

ROUNDS = 4


class Slow(PaintedModel):
    """Takes a second for a batch."""

    def score(self, frames, text, mask):
        time.sleep(1.0)
        return super().score(frames, text, mask)


def test_who_was_answered_together_is_waited_for():
    """Four environments, the first of which is always a little faster."""
    worker = Worker(Answerer(Slow(), 1 << 20), max_batch=64, max_waiting=64)
    answered: queue.Queue[float] = queue.Queue()

    def play(green: int) -> None:
        came: queue.Queue[object] = queue.Queue()
        for _ in range(ROUNDS):
            time.sleep(0.002 * green)
            worker.submit(ask(painted(green)), came.put)
            answer = came.get(timeout=60)
            assert isinstance(answer, dict)
            answered.put(answer["preference"].item() * 65536 - green)

    threads = [threading.Thread(target=play, args=(green,)) for green in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.stop()
    assert [answered.get_nowait() for _ in range(4 * ROUNDS)] == [0.0] * 4 * ROUNDS
    # The first question goes alone. From then on all come together, until the first has no more: nobody waits for ever.
    # Without waiting there would be two batches a round; one more is for a machine that is slow for a moment.
    assert worker.batches <= ROUNDS + 2
