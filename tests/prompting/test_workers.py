"""Threads that nobody has to wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.chat_server import ChatServer
from vlp_gym.errors import QueryError
from vlp_gym.prompting import ChatClient
from vlp_gym.prompting.client import RateLimit
from vlp_gym.prompting.workers import Abandoned, concurrently, leave_if_abandoned, pause


def gone(name: str = "vlp-gym-prompt") -> bool:
    """Whether the threads end within 5 s."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(5.0)
    return all(thread.name != name for thread in threading.enumerate())


def test_results_come_in_the_order_of_the_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (5 - item))
        return item * item

    assert concurrently(work, range(6), 3) == [0, 1, 4, 9, 16, 25]
    assert concurrently(str, [1, 2, 3], 1) == ["1", "2", "3"]
    assert concurrently(str, [], 3) == []


def test_the_first_error_is_raised_at_once_and_the_rest_is_not_begun() -> None:
    begun: list[int] = []
    held = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise QueryError("first")
        held.wait(20.0)
        return item

    start = time.monotonic()
    with pytest.raises(QueryError, match=r"^first$"):
        concurrently(work, range(50), 2)
    assert time.monotonic() - start < 5.0  # item 0 is still held
    held.set()
    assert gone()
    assert len(begun) <= 2


def test_what_is_in_work_ends_at_its_next_pause() -> None:
    ends: list[str] = []

    def work(item: int) -> None:
        if item == 0:
            raise QueryError("first")
        try:
            pause(20.0)
        except Abandoned:
            ends.append("pause")
        try:
            leave_if_abandoned()
        except Abandoned:
            ends.append("check")
            raise

    with pytest.raises(QueryError, match=r"^first$"):
        concurrently(work, range(2), 2)
    assert gone()
    assert ends in (["pause", "check"], [])  # the latter if it had not been begun
    leave_if_abandoned()  # a thread of the caller's own never is
    before = time.monotonic()
    pause(0.02)
    RateLimit(3000.0).wait()
    assert time.monotonic() - before >= 0.02


def test_ctrl_c_waits_for_no_answer_and_nothing_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ChatServer() as server:
        server.faults.extend([503] * 4)
        server.delay_s = 1.5
        client = ChatClient("tiny", base_url=server.url, cache=None, backoff_s=8.0)
        interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        start = time.monotonic()
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            concurrently(lambda text: client.ask([text], str), ["a", "b"], 2)
        assert time.monotonic() - start < 1.4
        assert gone()  # though the pause before the second request takes 6 s at least
        assert len(server.requests) <= 2
        client.close()


def test_the_end_of_the_process_waits_for_no_answer() -> None:
    """As the engine does it in async mode: a daemon thread asks, and the main thread ends."""
    code = (
        "import threading, time\n"
        "from vlp_gym.prompting.workers import concurrently\n"
        "begun = threading.Semaphore(0)\n"
        "def work(item):\n"
        "    begun.release()\n"
        "    time.sleep(60)\n"
        "threading.Thread(target=concurrently, args=(work, [1, 2], 2), daemon=True).start()\n"
        "begun.acquire(), begun.acquire()\n"
        "print('begun', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        start = time.monotonic()
        try:
            assert process.wait(20.0) == 0
        finally:
            process.kill()
        assert time.monotonic() - start < 5.0
