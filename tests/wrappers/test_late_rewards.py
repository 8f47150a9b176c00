"""Late rewards of `VLPRewardWrapper(mode="async")`: each transition gets its own, once, whatever happens meanwhile."""

from __future__ import annotations

import copy
import pickle
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vlp_gym.engine import QueryEngine
from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import FrameError, QueryError
from vlp_gym.models.protocol import Scores
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.info import ticket_in
from vlp_gym.testing import FaultyEnv, FaultyModel, PaintedEnv, PaintedModel, check_wrapper, painted_value
from vlp_gym.wrappers import VLPRewardWrapper

SENTENCE = "press the button"


class FlakyModel(PaintedModel):
    """Takes its time, and fails when it is told to."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.fault: str | None = None
        self.pause_s = 0.0

    def score(self, frames, text, mask):
        time.sleep(self.pause_s)
        fault, self.fault = self.fault, None
        if fault == "raises":
            raise ZeroDivisionError("division by zero")
        if fault == "nan":
            frames = frames.clone()
            frames[0] = float("nan")  # one row of a batch
        return super().score(frames, text, mask)


def wrap(env=None, model=None, **options) -> VLPRewardWrapper:
    return VLPRewardWrapper(env or PaintedEnv(), SENTENCE, model or PaintedModel(), **{"mode": "async", **options})


def episode(env: gym.Env, steps: int = 1000) -> tuple[list[Ticket], list[Delivery]]:
    """The tickets of one episode, and what was delivered meanwhile."""
    env.reset()
    tickets, deliveries, over = [], [], False
    while not over and len(tickets) < steps:
        _, _, terminated, truncated, info = env.step(0)
        tickets.append(ticket_in(info["vlp"]))
        deliveries += env.poll()
        over = terminated or truncated
    return tickets, deliveries


def wait_until(done) -> None:
    deadline = time.monotonic() + 10
    while not done() and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.filterwarnings("ignore:reset before the end of an episode")
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    stops=st.lists(st.integers(0, 14), min_size=4, max_size=4),
    every=st.integers(1, 5),
    reward=st.sampled_from(["progress", "delta", "potential", "preference", "final"]),
    history=st.sampled_from(["sliding", "prefix"]),
    truncate=st.booleans(),
    max_batch=st.sampled_from([1, 3, 32]),
    slots=st.sampled_from([1, 4, 256]),
    pause_s=st.sampled_from([0.0, 0.002]),
)
def test_late_rewards_equal_those_of_sync(  # faults 10, 11, 26, 67
    lengths, stops, every, reward, history, truncate, max_batch, slots, pause_s
):
    def paid(env: VLPRewardWrapper) -> tuple[dict[tuple, float], list[Delivery]]:
        now, late = {}, []
        for stop in stops:
            env.reset()
            for _ in range(min(stop, lengths[min(env.ticket.episode, len(lengths) - 1)])):
                value = env.step(0)[1]
                now[env.ticket[1:]] = value
                late += env.poll() if env.late else []
        late += env.flush()
        env.close()
        return now, late

    shaped = {"reward": reward, "every": every, "scale": 2.0, "gamma": 0.9}
    exact, _ = paid(wrap(PaintedEnv(lengths, truncate=truncate), mode="sync", history=history, window=3, **shaped))
    model = FlakyModel(window=3, history=history)
    model.pause_s = pause_s
    engine = QueryEngine(model, mode="async", max_batch=max_batch, slots=slots)
    _, late = paid(VLPRewardWrapper(PaintedEnv(lengths, truncate=truncate), SENTENCE, engine, **shaped))
    engine.close()
    assert [delivery.ticket[1:] for delivery in late] == sorted(exact)
    assert {delivery.ticket[1:]: delivery.reward for delivery in late} == exact


def test_a_step_returns_at_once_with_the_newest_reward_that_came():
    model = FlakyModel()
    env = wrap(model=model)
    env.reset()
    env.flush()
    model.pause_s = 1.0
    start = time.monotonic()
    _, paid, _, _, info = env.step(0)
    assert time.monotonic() - start < 0.8
    assert paid == 0.0
    assert ticket_in(info["vlp"]) == (0, 0, 1)
    (delivery,) = env.poll(timeout_s=5)
    assert delivery == (
        Ticket(0, 0, 1),
        painted_value(0, 0, 1),
        painted_value(0, 0, 1),
        painted_value(0, 0, 1),
        None,
        0,
    )
    _, paid, _, _, info = env.step(0)
    assert paid == info["vlp"]["score"] == painted_value(0, 0, 1)
    env.close()


def test_poll_returns_what_is_there_and_waits_for_what_is_not():
    model = FlakyModel()
    env = wrap(model=model)
    env.reset()
    env.take_late_rewards()
    env.step(0)
    time.sleep(0.1)
    start = time.monotonic()
    assert len(env.poll(timeout_s=5)) == 1
    assert env.poll(timeout_s=5) == []  # nothing is pending
    assert time.monotonic() - start < 1.0
    env.reset()  # its frame comes first, and is no reward
    env.take_late_rewards()
    model.pause_s = 0.1
    env.step(0)
    assert [delivery.ticket for delivery in env.poll(timeout_s=5)] == [Ticket(0, 1, 1)]
    env.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_model_that_leaves_out_its_progress_once(mode):
    class Forgetful(PaintedModel):
        def score(self, frames, text, mask):
            scores = super().score(frames, text, mask)
            forgotten = frames[0, -1, 0, 0].item() == painted_value(0, 0, 2)
            return Scores(scores.preference, None) if forgotten else scores

    env = wrap(model=Forgetful(), mode=mode)
    message = "the model has no progress, which reward='progress' needs"
    with pytest.raises(ValueError, match=rf"^{message}.* \(env 0, episode 0, step 2\)$"):  # noqa: PT012
        env.reset()
        for _ in range(4):
            env.flush()
            env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    rewards = [env.step(0)[1] for _ in range(3)]
    rewards = rewards if mode == "sync" else [delivery.reward for delivery in env.flush()]
    assert rewards[-1] == painted_value(0, 1, 3)
    env.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_rewards_are_right_after_an_interrupt_anywhere(mode):  # fault 39
    """Ctrl-C comes between any two lines of the wrapper, the stream and the engine."""
    import linecache
    import sys

    rooms = ("single.py", "stream.py", "engine.py", "query_book.py")

    def interrupt_at(count: int) -> bool:
        env = wrap(PaintedEnv([4]), mode=mode)
        env.reset()
        env.step(0)
        left = [count]

        def trace(frame, event, _):
            if frame.f_code.co_filename.endswith(rooms) and frame.f_code.co_name not in ("__exit__", "_work"):
                # A line of `with` comes again as the block is left, where no real signal can come before __exit__ runs.
                text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
                if event == "line" and not text.startswith("with "):
                    left[0] -= 1
                    if left[0] == 0:
                        raise KeyboardInterrupt
                return trace
            return None

        try:
            sys.settrace(trace)
            env.step(0)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        over = left[0] > 0
        env.reset()
        episode_now = env.ticket.episode
        deliveries, paid = [], []
        for _ in range(4):
            paid.append(env.step(0)[1])
            deliveries += env.poll() if env.late else []
        deliveries += env.flush()
        right = [painted_value(0, env.unwrapped.episode, step) for step in range(1, 5)]
        if mode == "async":
            paid = [delivery.reward for delivery in deliveries if delivery.ticket.episode == episode_now]
        assert paid == right, f"after an interrupt at line {count}"
        env.close()
        return over

    count = 1
    while not interrupt_at(count):
        count += 3


def test_deliveries_carry_numbers_only():
    env = wrap()
    env.reset()
    env.step(0)
    (delivery,) = env.flush()
    assert pickle.loads(pickle.dumps(delivery)) == delivery  # noqa: S301 (our own)
    flat = [*delivery.ticket, *delivery[1:]]
    assert all(value is None or type(value) in (int, float, bool) for value in flat)
    env.close()


def test_held_steps_wait_for_the_score_they_hold():
    env = wrap(every=3)
    _, deliveries = episode(env)
    deliveries += env.flush()
    scored = [0, 0, 3, 3, 3, 6, 6, 6, 9, 10]
    assert [delivery.reward for delivery in deliveries] == [painted_value(0, 0, step) for step in scored]
    env.close()


def test_widen_stride_holds_the_score_instead_of_waiting():
    model = FlakyModel()
    engine = QueryEngine(model, mode="async", slots=1, policy="widen_stride")
    env = VLPRewardWrapper(PaintedEnv([50]), SENTENCE, engine)
    model.pause_s = 0.02
    tickets, deliveries = episode(env)
    deliveries += env.flush()
    assert [delivery.ticket for delivery in deliveries] == tickets
    values = [delivery.score for delivery in deliveries]
    assert values[-1] == painted_value(0, 0, 50)
    assert len(set(values)) < 50
    assert set(values) <= {painted_value(0, 0, step) for step in range(51)}
    assert values == sorted(values)
    env.close()
    engine.close()


def test_two_wrappers_share_an_engine():  # fault 44
    engine = QueryEngine(PaintedModel(), mode="async")
    first, second = (VLPRewardWrapper(PaintedEnv(env=env), SENTENCE, engine) for env in range(2))
    _, got = episode(first)
    _, other = episode(second)
    got += first.flush()
    first.close()
    other += second.flush()
    tickets, more = episode(second)
    more += second.flush()
    assert [delivery.ticket for delivery in more] == tickets == [Ticket(1, 1, step) for step in range(1, 11)]
    for env, deliveries in ((0, got), (1, other)):
        assert [delivery.reward for delivery in deliveries] == [painted_value(env, 0, step) for step in range(1, 11)]
    engine.close()


@pytest.mark.parametrize("options", [{"window": 3}, {"truncate": True}, {"history": "prefix"}, {"mode": "async"}])
def test_an_engine_brings_its_own_settings(options):
    with pytest.raises(ValueError, match=r"^a QueryEngine brings its own history, window, device, truncate and mode$"):
        VLPRewardWrapper(PaintedEnv(), SENTENCE, QueryEngine(PaintedModel()), **options)


def test_close_says_how_many_queries_were_in_flight(caplog):  # fault 36
    model = FlakyModel()
    env = wrap(model=model)
    env.reset()
    env.take_late_rewards()
    env.flush()
    model.pause_s = 0.5
    env.step(0)
    wait_until(lambda: not env.engine._book.queue)  # the model works on it
    for _ in range(4):
        env.step(0)
    start = time.monotonic()
    with caplog.at_level("WARNING", "vlp_gym"):
        env.close()
    assert time.monotonic() - start < 5.0
    stats = env.stats()
    assert caplog.messages == ["the query engine was closed with 5 queries in flight, which were given up"]
    assert stats["cancelled"] == 5  # the model ends the one that it works on, and its episode is broken by then
    assert stats["submitted"] == stats["delivered"] + stats["cancelled"] == 6
    assert stats["pending"] == 0


@pytest.mark.parametrize(("fault", "error"), [("raises", QueryError), ("nan", QueryError), ("wrong_shape", TypeError)])
def test_an_error_of_the_model_comes_with_the_next_step(fault, error):  # faults 19, 20, 21
    env = wrap(model=FaultyModel(fault, at=3))
    deliveries = []
    with pytest.raises(error, match=r" \(env 0, episode 0, step 2\)$"):  # noqa: PT012
        env.reset()
        for _ in range(5):
            deliveries += env.flush()  # so that each query is a call of the model
            env.step(0)
            deliveries += env.flush()
    with pytest.raises(ResetNeeded):
        env.step(0)
    tickets, more = episode(env)
    deliveries += more + env.flush()
    rewards = {delivery.ticket: delivery.reward for delivery in deliveries}
    assert rewards == {ticket: painted_value(*ticket) for ticket in [Ticket(0, 0, 1), *tickets]}
    assert env.stats()["failed"] == 1
    env.close()


def test_an_error_is_raised_by_the_step_after_it_came():  # fault 19
    model = FlakyModel()
    env = wrap(model=model)
    env.reset()
    env.flush()
    model.fault = "raises"
    env.step(0)
    wait_until(lambda: env.stats()["failed"] == 1)
    with pytest.raises(QueryError, match=r"ZeroDivisionError: division by zero \(env 0, episode 0, step 1\)$"):
        env.step(0)
    assert env.unwrapped.elapsed == 1, "the environment moved though its step had no reward"
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.close()


@pytest.mark.parametrize("fault", ["step_raises", "render_raises", "float"])
def test_an_error_of_the_environment_loses_no_earlier_reward(fault):  # faults 3, 8
    model = FlakyModel()
    env = wrap(FaultyEnv(fault, at=4), model)
    model.pause_s = 0.01
    env.reset()
    env.take_late_rewards()
    with pytest.raises((OSError, FrameError)):  # noqa: PT012
        for _ in range(5):
            env.step(0)
    _, deliveries = episode(env)
    deliveries += env.flush()
    rewards = {delivery.ticket: delivery.reward for delivery in deliveries}
    missing = [Ticket(0, 0, step) for step in (1, 2, 3) if Ticket(0, 0, step) not in rewards]
    assert missing == [], "transitions that the agent has got before the error"
    assert rewards == {ticket: painted_value(*ticket) for ticket in rewards}
    assert env.stats()["pending"] == 0
    env.close()


def test_an_interrupt_in_step_is_one_traceback_and_no_wrong_reward():  # fault 39
    class Interrupted(PaintedEnv):
        def render(self):
            if (self.episode, self.elapsed) == (0, 3):
                raise KeyboardInterrupt
            return super().render()

    env = wrap(Interrupted())
    env.reset()
    with pytest.raises(KeyboardInterrupt) as caught:  # noqa: PT012
        for _ in range(5):
            env.step(0)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    tickets, deliveries = episode(env)
    deliveries += env.flush()
    assert [delivery.ticket for delivery in deliveries][-10:] == tickets
    assert all(delivery.reward == painted_value(*delivery.ticket) for delivery in deliveries)
    env.close()


def test_an_interrupt_while_it_waits_for_a_slot():  # fault 39
    import _thread
    import threading

    model = FlakyModel()
    engine = QueryEngine(model, mode="async", slots=1)
    env = VLPRewardWrapper(PaintedEnv(), SENTENCE, engine)
    env.reset()
    env.flush()
    model.pause_s = 1.0
    env.step(0)
    threading.Timer(0.1, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        env.step(0)
    model.pause_s = 0.0
    tickets, deliveries = episode(env)
    deliveries += env.flush()
    assert [delivery.ticket for delivery in deliveries] == [Ticket(0, 0, 1), *tickets]
    assert engine.stats()["submitted"] == engine.stats()["delivered"] == 13
    env.close()
    engine.close()


def test_our_own_check_passes():
    class SameAgain(PaintedEnv):
        def reset(self, **options):
            self.episode = -1
            return super().reset(**options)

    model = FlakyModel()
    model.pause_s = 0.003
    env = wrap(SameAgain([8]), model)
    check_wrapper(env)
    env.close()


def test_neither_pickled_nor_copied():  # faults 41, 42
    env = wrap()
    with pytest.raises(TypeError, match=r"^a live VLPRewardWrapper cannot be pickled"):
        pickle.dumps(env)
    with pytest.raises(TypeError, match=r"^an engine with mode='async' cannot be copied"):
        copy.deepcopy(env)
    env.close()
    env.close()  # fault 37


def test_several_cameras_are_averaged():
    def other(env: PaintedEnv) -> np.ndarray:
        painter = PaintedEnv()
        painter.episode, painter.elapsed = env.unwrapped.episode, 3 * env.unwrapped.elapsed
        return painter.render()

    buffer = np.zeros((8, 8, 3), np.uint8)

    def into_one_buffer(camera):
        def draw(env):
            buffer[:] = camera(env)
            return buffer

        return draw

    for mode in ("sync", "async"):
        model = PaintedModel(window=2)
        env = wrap(
            model=model, render_fn=[into_one_buffer(lambda env: env.render()), into_one_buffer(other)], mode=mode
        )
        env.reset()
        rewards = [env.step(0)[1] for _ in range(3)]
        if mode == "async":
            rewards = [delivery.reward for delivery in env.flush()]
            assert len(rewards) == 3
        assert rewards[-1] == painted_value(0, 0, 6)
        assert model.windows[-2:] == [[painted_value(0, 0, step) for step in steps] for steps in ((2, 3), (6, 9))]
        env.close()


class LateRewards(RuleBasedStateMachine):
    """Three wrappers on one engine, under everything that users, environments and models do."""

    @initialize(
        max_batch=st.sampled_from([1, 2, 32]),
        slots=st.sampled_from([1, 3, 64]),
        every=st.integers(1, 3),
        reward=st.sampled_from(["progress", "delta"]),
    )
    def begin(self, max_batch, slots, every, reward):
        self.model = FlakyModel(window=3)
        self.engine = QueryEngine(self.model, mode="async", max_batch=max_batch, slots=slots, timeout_s=20)
        self.options = {"every": every, "reward": reward}
        self.given: dict[Ticket, float] = {}
        """Transitions that the agent has got, with the reward that "sync" would have paid."""
        self.spoiled: set[tuple[int, int]] = set()
        """Episodes that a fault of the model may have spoiled."""
        self.taken: dict[Ticket, float] = {}
        self.envs = [self.open(number) for number in range(3)]

    def open(self, number: int) -> VLPRewardWrapper:
        env = VLPRewardWrapper(PaintedEnv((4, 1, 7, 2), env=number), SENTENCE, self.engine, **self.options)
        env.number, env.score, env.live = number, None, False
        return env

    def take(self, deliveries: list[Delivery]) -> None:
        for ticket, reward, *_ in deliveries:
            assert ticket not in self.taken, f"delivered twice: {ticket}"
            assert ticket in self.given, f"delivered though the agent never had it: {ticket}"
            assert reward == self.given[ticket], f"the reward of another transition: {ticket}"
            self.taken[ticket] = reward

    def failed(self) -> None:
        """A fault of the model can have met any of the episodes that have open queries or run."""
        for env in self.envs:
            self.spoiled |= {(ticket.env, ticket.episode) for ticket in self.given if ticket not in self.taken}
            self.spoiled.add((env.ticket.env, env.ticket.episode))

    @rule(number=st.integers(0, 2), fault=st.sampled_from([None] * 6 + ["env"]))
    def step(self, number, fault):
        env = self.envs[number]
        try:
            if not env.live:
                env.reset()
                env.live, env.score = True, painted_value(number, env.unwrapped.episode, 0)
                return
            if fault:
                env.env.render = lambda: 1 / 0
            _, _, terminated, truncated, info = env.step(0)
            painter = env.unwrapped
            over = terminated or truncated
            if env.ticket.step % self.options["every"] == 0 or over:
                now = painted_value(number, painter.episode, painter.elapsed)
            else:
                now = env.score
            ticket = ticket_in(info["vlp"])
            assert ticket == env.ticket
            self.given[ticket] = now - env.score if self.options["reward"] == "delta" else now
            env.score, env.live = now, not over
            self.take(env.poll())
        except ZeroDivisionError:
            env.live = False
        except QueryError:
            env.live = False
            self.failed()
        finally:
            env.env.__dict__.pop("render", None)

    @rule(number=st.integers(0, 2))
    def reset_in_mid_episode(self, number):
        self.envs[number].live = False

    @rule(fault=st.sampled_from(["raises", "nan"]))
    def break_the_model(self, fault):
        self.failed()
        self.model.fault = fault

    @rule(pause_s=st.sampled_from([0.0, 0.0, 0.002]))
    def slow_down(self, pause_s):
        self.model.pause_s = pause_s

    @rule(number=st.integers(0, 2), wait=st.booleans())
    def take_late_rewards(self, number, wait):
        env = self.envs[number]
        try:
            self.take(env.flush() if wait else env.poll())
        except QueryError:
            env.live = False
            self.failed()

    @precondition(lambda self: self.model.pause_s == 0.0)
    @rule(number=st.integers(0, 2))
    def close_and_open_another(self, number):
        old = self.envs[number]
        old.close()
        for ticket in [ticket for ticket in self.given if ticket.env == old.ticket.env and ticket not in self.taken]:
            del self.given[ticket]  # given up with the wrapper
        self.envs[number] = self.open_while_flaky(number)

    def open_while_flaky(self, number: int) -> VLPRewardWrapper:
        try:
            return self.open(number)
        except QueryError:  # the fault has met the first call
            return self.open(number)

    @invariant()
    def accounts_balance(self):
        stats = self.engine.stats()
        assert stats["submitted"] == sum(stats[name] for name in stats if name != "submitted"), stats

    def teardown(self):
        if not hasattr(self, "envs"):
            return
        self.model.pause_s = 0.0
        for env in self.envs:
            while True:
                try:
                    self.take(env.flush())
                    break
                except QueryError:
                    self.failed()
        lost = [
            ticket
            for ticket in self.given
            if ticket not in self.taken and (ticket.env, ticket.episode) not in self.spoiled
        ]
        assert lost == []
        assert self.engine.stats()["pending"] == 0
        self.engine.close()


TestLateRewards = LateRewards.TestCase
TestLateRewards.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
