"""The engine in the mode "async": batches, order, accounting, back-pressure, and everything that can go wrong."""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from painted import frame

from vlp_gym.engine import QueryEngine, tickets
from vlp_gym.engine.tickets import Answer, Ticket
from vlp_gym.errors import QueryError, QueryTimeout
from vlp_gym.models.protocol import Scores
from vlp_gym.testing import FaultyModel, PaintedModel, painted_value


class GatedModel(PaintedModel):
    """Waits in `encode_frames` until the gate is open, and remembers the size of each batch."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def encode_frames(self, frames):
        self.entered.set()
        assert self.gate.wait(20)
        self.batches.append(len(frames))
        return super().encode_frames(frames)


def begun(model, envs: int = 1, mode="async", **options) -> QueryEngine:
    """An engine whose environments are numbered from 0, as those of the engines before."""
    tickets._numbers = itertools.count()
    engine = QueryEngine(model, mode=mode, **options)
    for _ in range(envs):
        env = engine.add_env()
        engine.begin(env, 0, engine.encode_text("press the button"))
    return engine


def submit(engine: QueryEngine, *tickets: tuple[int, int, int]) -> None:
    engine.submit([Ticket(*ticket) for ticket in tickets], [frame(*ticket) for ticket in tickets])


def values(answers: list[Answer]) -> dict[tuple[int, int, int], float]:
    assert all(answer.error is None for answer in answers)
    return {tuple(answer.ticket): answer.score.progress for answer in answers}


def gated(**options) -> tuple[GatedModel, QueryEngine]:
    """An engine whose worker is inside the model with the ticket (0, 0, 0)."""
    model = GatedModel()
    engine = begun(model, **options)
    submit(engine, (0, 0, 0))
    assert model.entered.wait(5)
    return model, engine


@pytest.mark.parametrize("history", ["sliding", "prefix"])
def test_every_ticket_gets_its_own_answer_once_in_batches_over_envs_and_time(history):
    model, engine = gated(envs=3)
    model.history = engine.history = history
    tickets = [(0, 0, 0)]
    for step in range(20):
        row = [(env, 0, step) for env in range(3) if (env, step) != (0, 0)]
        submit(engine, *row)
        tickets += row
    model.gate.set()
    assert values(engine.flush()) == {ticket: painted_value(*ticket) for ticket in tickets}
    assert engine.poll() == []
    assert model.encoded == 60
    assert model.batches[0] == 1
    assert model.batches[1] == engine.max_batch
    steps = [16, 17, 18, 19] if history == "sliding" else [0, 6, 13, 19]
    assert model.windows[-1] == [painted_value(2, 0, step) for step in steps]
    assert engine.stats() == {"submitted": 60, "delivered": 60, "stale": 0, "failed": 0, "cancelled": 0, "pending": 0}
    engine.close()


def test_submit_does_not_wait_and_poll_takes_what_is_there():
    model, engine = gated()
    submit(engine, (0, 0, 1))
    assert engine.poll() == []
    assert engine.poll(timeout_s=0.01) == []
    assert engine.stats()["pending"] == 2
    model.gate.set()
    assert len(engine.poll(timeout_s=5)) >= 1
    engine.close()


def test_poll_for_some_envs_leaves_the_answers_of_the_others():  # fault 44: two wrappers on one engine
    model, engine = gated(envs=2)
    submit(engine, (1, 0, 0))
    model.gate.set()
    assert values(engine.flush([1])) == {(1, 0, 0): painted_value(1, 0, 0)}
    assert values(engine.flush([0])) == {(0, 0, 0): 0.0}
    engine.close()


def test_the_frames_are_copied():  # fault 7
    model, engine = gated()
    pixels = frame(0, 0, 1)
    engine.submit([Ticket(0, 0, 1)], [pixels])
    pixels[:] = 255
    model.gate.set()
    assert values(engine.flush())[0, 0, 1] == painted_value(0, 0, 1)
    engine.close()


def test_answers_of_an_episode_may_come_when_the_next_one_runs():  # fault 10
    model, engine = gated()
    submit(engine, (0, 0, 1))
    engine.begin(0, 1, engine._texts["press the button"])
    submit(engine, (0, 1, 0))
    model.gate.set()
    assert set(values(engine.flush())) == {(0, 0, 0), (0, 0, 1), (0, 1, 0)}
    assert model.windows[-1] == [painted_value(0, 1, 0)]
    engine.close()


def test_views_are_averaged_and_frames_of_other_shapes_share_no_batch():
    model, engine = gated(envs=2)
    engine.submit([Ticket(1, 0, 0)], [np.stack([frame(0, 0, 4), frame(0, 0, 8)])])
    submit(engine, (0, 0, 1))
    model.gate.set()
    assert values(engine.flush())[1, 0, 0] == painted_value(0, 0, 6)
    assert model.batches == [1, 2, 1]
    engine.close()


def test_a_batch_waits_to_be_filled_but_not_for_flush():
    model = GatedModel()
    model.gate.set()
    engine = begun(model, max_wait_s=30.0, max_batch=3)
    for step in range(3):
        submit(engine, (0, 0, step))
    assert len(engine.poll(timeout_s=5)) == 3  # full
    submit(engine, (0, 0, 3))
    assert engine.poll(timeout_s=0.05) == []
    assert len(engine.flush(timeout_s=5)) == 1
    assert model.batches == [3, 1]
    engine.close()


def test_async_equals_sync_with_the_shipped_architecture():  # fault 67
    from vlp_gym.models.staged import StagedRewardModel

    torch.manual_seed(0)
    model = StagedRewardModel().eval()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (24, 32, 32, 3), np.uint8)
    late, now = begun(model, envs=2), begun(model, envs=2, mode="sync")
    exact = {}
    for step in range(12):
        tickets = [Ticket(env, 0, step) for env in range(2)]
        pair = [frames[step], frames[12 + step]]
        late.submit(tickets, pair)
        exact |= {ticket: now.query([ticket], [view])[0] for ticket, view in zip(tickets, pair, strict=True)}
    answers = late.flush()
    assert len(answers) == 24
    for answer in answers:
        for name in ("preference", "progress", "relevance"):
            assert getattr(answer.score, name) == pytest.approx(getattr(exact[answer.ticket], name), abs=1e-5, rel=1e-5)
    late.close()


def test_the_worker_has_its_own_thread_count():
    before = torch.get_num_threads()
    seen = []

    class Counting(PaintedModel):
        def encode_frames(self, frames):
            seen.append(torch.get_num_threads())
            return super().encode_frames(frames)

    engine = begun(Counting(), threads=2)
    submit(engine, (0, 0, 0))
    engine.flush()
    engine.close()
    assert (seen, torch.get_num_threads()) == ([2], before)
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [2, before]


def test_full_slots_block_and_then_time_out():  # fault 25
    model, engine = gated(slots=2, timeout_s=0.2)
    submit(engine, (0, 0, 1))
    start = time.monotonic()
    message = "the reward model did not answer within 0.2 s; 2 queries are pending (env 0, episode 0, step 2)"
    with pytest.raises(QueryTimeout, match=f"^{re.escape(message)}$"):
        submit(engine, (0, 0, 2))
    assert 0.2 <= time.monotonic() - start < 2.0
    with pytest.raises(QueryTimeout, match=r"within 0\.1 s; 2 queries are pending \(env 0, episode 0, step 0\)$"):
        engine.flush(timeout_s=0.1)
    threading.Timer(0.05, model.gate.set).start()
    engine.timeout_s = 5.0
    submit(engine, (0, 0, 2))  # the ticket that found no room was not used up
    assert len(engine.flush()) == 3
    engine.close()


def test_widen_stride_tells_wrappers_to_skip():
    model, engine = gated(slots=3, policy="widen_stride")
    assert [engine.crowded(count) for count in (1, 2, 3)] == [False, False, True]
    model.gate.set()
    engine.flush()
    assert not engine.crowded(4)  # never for ever
    engine.close()


def test_a_paused_engine_works_only_for_those_who_wait():
    engine = begun(PaintedModel())
    engine.pause(True)
    submit(engine, (0, 0, 0))
    time.sleep(0.05)
    assert engine.poll() == []
    assert values(engine.poll(timeout_s=5)) == {(0, 0, 0): 0.0}
    submit(engine, (0, 0, 1))
    assert len(engine.flush(timeout_s=5)) == 1
    submit(engine, (0, 0, 2))
    time.sleep(0.05)
    assert engine.poll() == []
    engine.pause(False)
    deadline = time.monotonic() + 10
    while engine.stats()["pending"] and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(engine.poll()) == 1
    engine.pause(True)
    submit(engine, (0, 0, 3))
    assert engine.close() == 1


def test_full_slots_do_not_wait_for_a_batch_that_cannot_fill():
    engine = begun(PaintedModel(), slots=2, max_batch=8, max_wait_s=30.0, timeout_s=5.0)
    start = time.monotonic()
    for step in range(6):
        submit(engine, (0, 0, step))
    assert time.monotonic() - start < 5.0
    engine.close()


def test_threads_that_share_a_sync_engine_get_their_own_scores():
    engine = QueryEngine(PaintedModel())
    wrong = []

    def walk(env):
        engine.begin(env, 0, engine.encode_text("go"))
        for step in range(200):
            if engine.query([Ticket(env, 0, step)], [frame(env, 0, step)])[0].progress != painted_value(env, 0, step):
                wrong.append((env, step))

    threads = [threading.Thread(target=walk, args=(engine.add_env(),)) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert engine.stats()["delivered"] == 800


def test_an_error_spoils_its_episode_and_no_other():  # faults 19, 20
    model = FaultyModel("nan", at=1)
    engine = begun(model, envs=2, max_batch=1)
    for step in range(3):
        submit(engine, (0, 0, step))
        submit(engine, (1, 0, step))
    answers = engine.flush()
    failed = [answer for answer in answers if answer.error is not None]
    assert len(failed) == 1
    bad = failed[0].ticket
    assert isinstance(failed[0].error, QueryError)
    assert str(failed[0].error) == f"the reward model gave the preference nan, which no reward may have ({bad})"
    other = {answer.ticket for answer in answers if answer.ticket.env != bad.env}
    assert other == {Ticket(1 - bad.env, 0, step) for step in range(3)}
    later = {answer.ticket for answer in answers if answer.ticket.env == bad.env} - {bad}
    assert later == {Ticket(bad.env, 0, step) for step in range(bad.step)}, "answered from a window with a hole"
    submit(engine, (bad.env, 0, 3))
    stats = engine.stats()
    assert stats == {
        "submitted": 7, "delivered": 3 + bad.step, "stale": 0, "failed": 1, "cancelled": 3 - bad.step, "pending": 0,
    }  # fmt: skip
    engine.begin(bad.env, 1, engine._texts["press the button"])
    submit(engine, (bad.env, 1, 0))
    assert values(engine.flush()) == {(bad.env, 1, 0): painted_value(bad.env, 1, 0)}
    engine.close()


def test_query_waits_for_its_own_answer():
    engine = begun(PaintedModel())
    submit(engine, (0, 0, 0))
    assert engine.query([Ticket(0, 0, 1)], [frame(0, 0, 1)])[0].progress == painted_value(0, 0, 1)
    assert values(engine.flush()) == {(0, 0, 0): 0.0}
    engine.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_query_in_a_spoiled_episode(mode):
    engine = QueryEngine(FaultyModel("raises", at=0), mode=mode)
    engine.begin(engine.add_env(), 0, engine.encode_text("go"))
    with pytest.raises(QueryError, match=r"ZeroDivisionError: division by zero \(env 0, episode 0, step 0\)$"):
        engine.query([Ticket(0, 0, 0)], [frame(0, 0, 0)])
    message = "an earlier error has spoiled this episode; begin another (env 0, episode 0, step 1)"
    with pytest.raises(QueryError, match=f"^{re.escape(message)}$"):
        engine.query([Ticket(0, 0, 1)], [frame(0, 0, 1)])
    engine.close()


def test_a_dead_worker_is_reported_within_a_second():  # fault 24
    class Deadly(PaintedModel):
        def encode_frames(self, frames):
            raise SystemExit

    engine = begun(Deadly())
    submit(engine, (0, 0, 0))
    start = time.monotonic()
    message = "the worker thread of the query engine has died; make a new one"
    with pytest.raises(QueryError, match=f"^{message}$") as caught:
        engine.flush()
    assert time.monotonic() - start < 1.0
    assert isinstance(caught.value.__cause__, SystemExit)
    for call in (lambda: submit(engine, (0, 0, 1)), lambda: engine.encode_text("another")):
        with pytest.raises(QueryError, match=f"^{message}$"):
            call()
    assert engine.stats()["cancelled"] == 1
    engine.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_cuda_error_is_final(mode):  # fault 23
    class Broken(PaintedModel):
        calls = 0

        def encode_frames(self, frames):
            self.calls += 1
            raise RuntimeError("CUDA error: device-side assert triggered")

    model = Broken()
    engine = QueryEngine(model, mode=mode)
    text = engine.encode_text("go")
    engine.begin(engine.add_env(), 0, text)
    with pytest.raises(QueryError, match=r"CUDA error: device-side assert triggered \(env 0, episode 0, step 0\)$"):
        engine.query([Ticket(0, 0, 0)], [frame(0, 0, 0)])
    engine.begin(0, 1, text)
    for _ in range(2):
        with pytest.raises(QueryError, match=r"^CUDA has failed for good in this process; restart it$"):
            engine.query([Ticket(0, 1, 0)], [frame(0, 1, 0)])
    assert model.calls == 1
    engine.close()


def test_cancel_tells_queued_from_running():
    model, engine = gated(envs=2)
    submit(engine, (0, 0, 1), (1, 0, 0))
    engine.cancel(0)
    model.gate.set()
    assert set(values(engine.flush())) == {(1, 0, 0)}
    time.sleep(0.05)
    assert engine.stats() == {"submitted": 3, "delivered": 1, "stale": 1, "failed": 0, "cancelled": 1, "pending": 0}
    engine.close()


def test_close_with_queries_in_flight(caplog):  # fault 36
    model, engine = gated()
    submit(engine, (0, 0, 1))
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "vlp_gym"):
        assert engine.close(timeout_s=0.2) == 2
    assert time.monotonic() - start < 2.0
    assert caplog.messages == ["the query engine was closed with 2 queries in flight, which were given up"]
    assert engine.stats() == {"submitted": 2, "delivered": 0, "stale": 0, "failed": 0, "cancelled": 2, "pending": 0}
    with pytest.raises(QueryError, match=r"^the query engine is closed$"):
        submit(engine, (0, 0, 2))
    model.gate.set()
    assert engine.close() == 0  # fault 37
    assert engine.poll() == []


def test_a_ticket_is_used_once():  # fault 27
    engine = begun(PaintedModel())
    submit(engine, (0, 0, 1))
    for ticket in ((0, 0, 1), (0, 0, 0), (0, 1, 2)):
        where = f"env {ticket[0]}, episode {ticket[1]}, step {ticket[2]}"
        message = f"the ticket was already used or belongs to no running episode ({where})"
        with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
            submit(engine, ticket)
    engine.close()


def test_a_text_is_encoded_once_while_the_model_is_free():
    model, engine = gated(timeout_s=0.1)
    calls = []
    encode = model.encode_text
    model.encode_text = lambda texts: calls.append(texts) or encode(texts)
    with pytest.raises(QueryTimeout, match=r"^the reward model is busy for more than 0\.1 s$"):
        engine.encode_text("close the door")
    model.gate.set()
    engine.flush()
    engine.timeout_s = 5
    for _ in range(3):
        engine.encode_text("close the door")
    assert calls == [["close the door"]]
    engine.close()


def test_no_copy_of_a_worker():
    engine = begun(PaintedModel())
    with pytest.raises(
        TypeError, match=r"^an engine with mode='async' cannot be copied: its worker thread lives once$"
    ):
        copy.deepcopy(engine)
    engine.close()


def test_an_engine_that_nobody_holds_ends_its_thread():
    before = threading.active_count()
    engine = begun(PaintedModel())
    submit(engine, (0, 0, 0))
    engine.flush()
    assert threading.active_count() == before + 1
    del engine
    gc.collect()
    deadline = time.monotonic() + 3
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before


def test_many_engines_leave_nothing_behind():
    import psutil

    process = psutil.Process()
    begun(PaintedModel()).close()
    before = (threading.active_count(), process.num_fds())
    for _ in range(200):
        engine = begun(PaintedModel())
        submit(engine, (0, 0, 0))
        engine.close()
    assert (threading.active_count(), process.num_fds()) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_to_spawn():  # fault 40, the CPU side of it
    program = """
import os, sys
import numpy as np
from vlp_gym.engine.tickets import Ticket
from vlp_gym.engine import QueryEngine
from vlp_gym.testing import PaintedModel
engine = QueryEngine(PaintedModel(), mode="async")
engine.begin(engine.add_env(), 0, engine.encode_text("go"))
child = os.fork()
if child == 0:
    try:
        engine.submit([Ticket(0, 0, 0)], [np.zeros((8, 8, 3), np.uint8)])
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
engine.query([Ticket(0, 0, 0)], [np.zeros((8, 8, 3), np.uint8)])
engine.close()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (
        "this query engine was made in another process: neither its worker thread nor CUDA survives a fork; "
        "make the wrapper in the process that uses it, or start processes with the method 'spawn'"
    )


def test_exit_with_several_hung_models():  # fault 38
    program = """
import time
import numpy as np
from vlp_gym.engine.tickets import Ticket
from vlp_gym.engine import QueryEngine
from vlp_gym.testing import PaintedModel
class Hung(PaintedModel):
    def score(self, frames, text, mask):
        time.sleep(60)
engines = [QueryEngine(Hung(), mode="async") for _ in range(3)]
for engine in engines:
    env = engine.add_env()
    engine.begin(env, 0, engine.encode_text("go"))
    engine.submit([Ticket(env, 0, 0)], [np.zeros((8, 8, 3), np.uint8)])
print("ready", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        assert process.wait(20) == 0
    assert time.monotonic() - start < 5.5


@pytest.mark.parametrize("ending", ["", "raise KeyboardInterrupt", "sys.exit(3)"])
def test_exit_without_close(ending):  # fault 38
    program = f"""
import sys, time
import numpy as np, torch
from vlp_gym.engine.tickets import Ticket
from vlp_gym.engine import QueryEngine
from vlp_gym.testing import PaintedModel
class Slow(PaintedModel):
    def encode_frames(self, frames):
        torch.randn(300, 300) @ torch.randn(300, 300)
        time.sleep(0.01)
        return super().encode_frames(frames)
engine = QueryEngine(Slow(), mode="async", max_batch=1)
engine.begin(engine.add_env(), 0, engine.encode_text("go"))
for step in range(100):
    engine.submit([Ticket(0, 0, step)], [np.zeros((8, 8, 3), np.uint8)])
print("ready", flush=True)
{ending}
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        start = time.monotonic()
        process.wait(20)
        errors = process.stderr.read()
    assert time.monotonic() - start < 5.0
    expected = {"": 0, "sys.exit(3)": 3}
    assert process.returncode == expected.get(ending, process.returncode)
    assert process.returncode >= 0 or ending == "raise KeyboardInterrupt", "ended by a signal"
    assert "Fatal" not in errors
    assert "terminate called" not in errors
    assert errors.count("Traceback") == (1 if "raise" in ending else 0)


def test_the_wall_clock_may_jump(monkeypatch):  # fault 70
    monkeypatch.setattr(time, "time", lambda: 0.0)
    engine = begun(PaintedModel(), max_wait_s=0.01)
    submit(engine, (0, 0, 0))
    assert values(engine.flush()) == {(0, 0, 0): 0.0}
    assert 0.0 < engine.latencies()["latency_p50_s"] <= engine.latencies()["latency_p99_s"] < 5.0
    engine.close()


def test_out_of_memory_in_the_worker_halves_the_batch():  # fault 22
    model = FaultyModel("out_of_memory", limit=2)
    engine = begun(model, envs=8, max_wait_s=5.0, max_batch=8)
    submit(engine, *[(env, 0, 0) for env in range(8)])
    assert values(engine.flush()) == {(env, 0, 0): painted_value(env, 0, 0) for env in range(8)}
    assert engine.model.max_batch == 2
    engine.close()


def test_scores_of_a_wrong_kind():  # fault 21
    class Wrong(PaintedModel):
        def score(self, frames, text, mask):
            return Scores(torch.zeros(len(frames), 2))

    engine = begun(Wrong())
    submit(engine, (0, 0, 0))
    (answer,) = engine.flush()
    assert type(answer.error) is TypeError
    engine.close()
