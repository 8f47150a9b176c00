from __future__ import annotations

import pickle
import re
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("stable_baselines3")

from late import sums_up
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer, RolloutBuffer

from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import QueryError, QueryTimeout
from vlp_gym.integrations.sb3.buffers import (
    VLPDictReplayBuffer,
    VLPNStepReplayBuffer,
    VLPReplayBuffer,
    VLPRolloutBuffer,
    late_rollout_buffer,
)
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.normalizer import RewardNormalizer
from vlp_gym.testing import painted_value

SPACES = gym.spaces.Box(0.0, 1.0, (1,), np.float32), gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
KEYS = gym.spaces.Dict({"seen": SPACES[0]}), SPACES[1]
PLACEHOLDER = 7.0  # no painted value


class Wrappers:
    """Stands for the environments and for their `RewardSource`: rewards come when the test says so.

    Each environment calls itself 0, as separate wrappers do, and paints its index.
    """

    late = True
    local = True

    def __init__(self, n_envs=1, lengths=(5, 2)):
        self.venv, self.lengths = self, lengths
        self.at = [Ticket(0, 0, 0)] * n_envs
        self.asked = [deque() for _ in self.at]
        self.ready = [[] for _ in self.at]
        self.heard = []

    def listener(self, index, delivery):
        self.heard.append(delivery)

    def paint(self, index, ticket):
        return painted_value(index, ticket.episode, ticket.step)

    def answer(self, index, number=1):
        """Let the next rewards come; a number below 0: of those that are asked, all but so many."""
        number = min(number, len(self.asked[index])) if number >= 0 else max(0, len(self.asked[index]) + number)
        self.ready[index] += [self.asked[index].popleft() for _ in range(number)]

    def lose(self, index):
        if self.asked[index]:
            self.asked[index].popleft()

    def poll(self, indices, timeout_s):
        busy = next((index for index, asked in enumerate(self.asked) if asked), None)
        if timeout_s and busy is not None:  # time goes by
            self.answer(busy)
        for index in indices:
            came, self.ready[index] = self.ready[index], []
            yield index, came

    def idle(self):
        return not any(self.asked)

    def step(self, tickets=True):
        """What `add` gets."""
        before, after, dones, infos = [], [], [], []
        for index, ticket in enumerate(self.at):
            now = ticket._replace(step=ticket.step + 1)
            done = now.step == self.lengths[min(now.episode, len(self.lengths) - 1)]
            before.append([self.paint(index, ticket)])
            after.append([self.paint(index, now)])
            dones.append(done)
            value = self.paint(index, now)
            self.asked[index].append(Delivery(now, value, value, value, None, False))
            infos.append({"TimeLimit.truncated": False, "vlp": now._asdict()} if tickets else {})
            self.at[index] = Ticket(0, now.episode + 1, 0) if done else now
        actions = np.array(before) * 2 - 1
        rewards = [PLACEHOLDER if tickets else value for (value,) in after]
        return np.array(before), np.array(after), actions, np.array(rewards), np.array(dones), infos


def fill(buffer, wrappers, steps):
    for _ in range(steps):
        buffer.add(*wrappers.step())


def attached(kind=VLPReplayBuffer, size=10, n_envs=1, timeout_s=60.0, **options):
    buffer = kind(size * n_envs, *SPACES, n_envs=n_envs, **options)
    wrappers = Wrappers(n_envs)
    buffer.attach(wrappers, timeout_s)
    buffer.run_ahead, buffer._sampled = 1.0, True  # nothing comes by itself, and nothing is waited for at first
    return buffer, wrappers


def drawn(buffer, number=5):
    """Some batches as bytes, from seed 3, and the next number of the generator."""
    np.random.seed(3)  # noqa: NPY002
    fields = [field for _ in range(number) for field in buffer.sample(8) if field is not None]
    fields = [tensor for field in fields for tensor in (field.values() if isinstance(field, dict) else [field])]
    return [tensor.numpy().tobytes() for tensor in fields], np.random.random()  # noqa: NPY002


def fits(samples):
    return bool((samples.rewards == samples.next_observations).all())


@pytest.mark.parametrize(
    ("ours", "theirs", "spaces", "options"),
    [
        (VLPReplayBuffer, ReplayBuffer, SPACES, {}),
        (VLPDictReplayBuffer, DictReplayBuffer, KEYS, {}),
        (VLPNStepReplayBuffer, NStepReplayBuffer, SPACES, {"n_steps": 3, "gamma": 0.9}),
    ],
)
@pytest.mark.parametrize("steps", [4, 30])
def test_without_tickets_it_is_sb3s_own_buffer_to_the_bit(ours, theirs, spaces, options, steps):
    buffers = [kind(20, *spaces, n_envs=2, **options) for kind in (ours, theirs)]
    wrappers = Wrappers(2)
    for _ in range(steps):
        observations, after, *rest = wrappers.step(tickets=False)
        if spaces is KEYS:
            observations, after = {"seen": observations}, {"seen": after}
        for buffer in buffers:
            buffer.add(observations, after, *rest)
    assert drawn(buffers[0]) == drawn(buffers[1])
    assert buffers[0].stats()["submitted"] == 0


def test_with_nothing_pending_the_draws_are_sb3s_own():
    buffer, wrappers = attached(n_envs=2)
    theirs = ReplayBuffer(20, *SPACES, n_envs=2)
    for _ in range(25):
        step = wrappers.step()
        buffer.add(*step)
        theirs.add(*step[:3], step[1][:, 0], *step[4:])
    buffer.settle()
    assert drawn(buffer) == drawn(theirs)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 6),
    n_envs=st.integers(1, 3),
    span=st.integers(1, 3),
    acts=st.lists(
        st.tuples(st.sampled_from(["step", "step", "answer", "poll", "sample", "lose"]), st.integers(0, 2)), max_size=60
    ),
)
def test_whatever_comes_when_only_right_rewards_are_sampled(size, n_envs, span, acts):  # faults 26, 45-47, 49, 67
    kind, options = (VLPNStepReplayBuffer, {"n_steps": span, "gamma": 0.5}) if span > 1 else (VLPReplayBuffer, {})
    buffer, wrappers = attached(kind, size, n_envs, **options)
    theirs = NStepReplayBuffer(size * n_envs, *SPACES, n_envs=n_envs, n_steps=span, gamma=0.5)
    lost = False
    for act, number in [*acts, ("sample", 0)]:
        index = number % n_envs
        if act == "step":
            step = wrappers.step()
            buffer.add(*step)
            theirs.add(*step[:3], step[1][:, 0], *step[4:])  # the right reward, at once
        elif act == "answer":
            wrappers.answer(index, number)
        elif act == "poll":
            buffer._take(range(n_envs))
        elif act == "lose":
            wrappers.lose(index)
            lost = True
        elif buffer.size():
            try:
                taken = buffer.sample(16)
            except QueryTimeout:
                raise
            except QueryError:
                assert lost
                continue
            buffer._get_samples = lambda rows, env=None: rows
            for rows in [buffer.sample(16)]:
                for row in rows:  # the whole window, up to the newest row, as NStepReplayBuffer reads it
                    newest = (buffer.pos - 1) % buffer.buffer_size
                    ahead = (newest - row) % buffer.buffer_size
                    window = [(row + k) % buffer.buffer_size for k in range(min(span, ahead + 1))]
                    assert (buffer.rewards[window] == theirs.rewards[window]).all()
                    assert not set(window) & set(buffer._ledger.missing)
            del buffer._get_samples
            assert span > 1 or fits(taken)
        assert sums_up(buffer.stats())
    buffer.settle()
    stats = buffer.stats()
    assert sums_up(stats)
    assert stats["pending"] == 0
    right = (buffer.rewards == theirs.rewards)[: buffer.size()]
    missing = np.zeros_like(right)
    for row, indices in buffer._ledger.missing.items():
        missing[row, list(indices)] = True
    assert (right | missing).all()
    assert lost or not missing.any()


@settings(deadline=None, max_examples=100)
@given(data=st.data(), size=st.integers(1, 7), added=st.integers(1, 20), span=st.integers(1, 4))
def test_a_window_is_open_only_if_all_its_rows_are(data, size, added, span):  # fault 47
    buffer, wrappers = attached(VLPNStepReplayBuffer, size, n_steps=span)
    fill(buffer, wrappers, added)
    closed = data.draw(st.sets(st.integers(0, buffer.size() - 1)))
    buffer._ledger.missing = {row: {0: None} for row in closed}
    expected = []
    for start in range(buffer.size()):
        row, window = start, [start]
        while row != (buffer.pos - 1) % size and len(window) < span:
            row = (row + 1) % size
            window.append(row)
        if closed & set(window):
            expected.append(start)
    assert buffer._closed_starts().tolist() == expected


def test_no_pending_slot_in_50000_samples():  # fault 46
    buffer, wrappers = attached(size=64, n_envs=2)
    for round_ in range(500):
        fill(buffer, wrappers, 1)
        wrappers.answer(round_ % 2, -5)
        assert fits(buffer.sample(100))
    assert buffer.stats()["pending"] > 5
    assert 0 < buffer.stats()["stale"] + buffer.stats()["delivered"] < 1000


def test_open_rows_are_drawn_alike():
    buffer, wrappers = attached(size=10)
    fill(buffer, wrappers, 10)
    for keep in (8, 3):  # few closed rows: drawn again; many: drawn from a list
        buffer._ledger.missing = {row: {0: None} for row in range(keep, 10)}
        buffer._get_samples = lambda rows, env=None: rows
        counts = np.bincount(buffer.sample(24_000), minlength=10)
        assert (counts[keep:] == 0).all()
        assert (abs(counts[:keep] - 24_000 / keep) < 6 * np.sqrt(24_000 / keep)).all()


def test_the_ring_wraps_before_the_reward_lands():  # fault 45
    buffer, wrappers = attached(size=3)
    fill(buffer, wrappers, 5)  # the first two are gone
    assert buffer.stats() == {"submitted": 5, "delivered": 0, "stale": 2, "failed": 0, "cancelled": 0, "pending": 3}
    before = [array.tobytes() for array in (buffer.rewards, buffer.observations, buffer.next_observations)]
    wrappers.answer(0, 2)
    buffer._take([0])
    assert before == [array.tobytes() for array in (buffer.rewards, buffer.observations, buffer.next_observations)]
    assert sorted(buffer._ledger.missing) == [0, 1, 2]
    buffer.settle()
    assert buffer.stats() == {"submitted": 5, "delivered": 3, "stale": 2, "failed": 0, "cancelled": 0, "pending": 0}
    assert (buffer.rewards == buffer.next_observations[..., 0]).all()


def test_a_reward_that_comes_twice_or_for_an_unknown_ticket():  # fault 27
    buffer, wrappers = attached(n_envs=2)
    fill(buffer, wrappers, 3)
    twice = wrappers.asked[1][0]
    buffer.settle()
    for strange in (twice, twice._replace(ticket=Ticket(0, -1, 4))):
        message = f"a reward came twice, or for a ticket that is unknown ({strange.ticket})"
        with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
            buffer._receive(1, [strange])


def test_a_step_that_never_came_back():
    """KeyboardInterrupt has cut it off, or another environment of its row has raised."""
    buffer, wrappers = attached()
    fill(buffer, wrappers, 1)
    late = wrappers.asked[0][0]._replace(ticket=Ticket(0, 5, 1))
    buffer._receive(0, [late])
    with pytest.raises(RuntimeError, match=r"\(env 0, episode 5, step 1\)$"):
        buffer._receive(0, [late])
    assert buffer.stats() == {"submitted": 2, "delivered": 0, "stale": 1, "failed": 0, "cancelled": 0, "pending": 1}


def test_sampling_waits_and_then_times_out():  # fault 46
    buffer, wrappers = attached(timeout_s=0.05)
    fill(buffer, wrappers, 3)
    assert fits(buffer.sample(4))  # one comes, and that is enough
    assert buffer.stats()["delivered"] == 1
    wrappers.answer = lambda index: None
    buffer._ledger.missing[0] = {0: None}
    message = "no reward came for 0.05 s; 2 are pending, the oldest: env 0, episode 0, step 2"
    with pytest.raises(QueryTimeout, match=f"^{re.escape(message)}$"):
        buffer.sample(4)


def test_sampling_when_nothing_will_come():
    buffer, wrappers = attached(size=2)
    fill(buffer, wrappers, 2)
    wrappers.asked[0].clear()
    message = (
        "none of the 2 rows of the replay buffer has all its rewards, and none is on its way; "
        "give learn() a VLPRewardCallback, which fetches them"
    )
    with pytest.raises(QueryError, match=f"^{re.escape(message)}$"):
        buffer.sample(4)
    assert buffer.stats()["failed"] == 2
    fill(buffer, wrappers, 1)  # it goes on
    assert fits(buffer.sample(4))


def test_a_reward_that_was_passed_over_never_comes():
    buffer, wrappers = attached(size=4)
    fill(buffer, wrappers, 3)
    wrappers.lose(0)
    buffer.settle()
    assert buffer.stats() == {"submitted": 3, "delivered": 2, "stale": 0, "failed": 1, "cancelled": 0, "pending": 0}
    assert fits(buffer.sample(1000))
    fill(buffer, wrappers, 2)  # the row is overwritten
    buffer.settle()
    assert not buffer._ledger.missing


def test_an_interrupt_in_mid_add_leaves_no_half_row(monkeypatch):  # fault 39
    buffer, wrappers = attached(size=3)
    fill(buffer, wrappers, 3)
    buffer.settle()

    def half(self, obs, *rest):
        self.observations[self.pos] = obs
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ReplayBuffer, "add", half)
        with pytest.raises(KeyboardInterrupt):
            buffer.add(*wrappers.step())
    buffer._get_samples = lambda rows, env=None: rows
    assert set(buffer.sample(1000)) == {1, 2}
    buffer.settle()
    fill(buffer, wrappers, 1)
    buffer.settle()
    assert set(buffer.sample(1000)) == {0, 1, 2}
    assert buffer.stats()["stale"] == 1


@pytest.mark.parametrize("kind", [VLPReplayBuffer, VLPNStepReplayBuffer])
def test_a_saved_buffer_is_whole_and_has_no_source(kind):
    buffer, wrappers = attached(kind, size=4)
    buffer.normalizer = RewardNormalizer(1)
    fill(buffer, wrappers, 6)
    loaded = pickle.loads(pickle.dumps(buffer))  # noqa: S301 (our own bytes)
    assert (loaded.rewards == loaded.next_observations[..., 0]).all()
    assert loaded._source is None
    assert loaded.stats() == buffer.stats()
    assert loaded.stats()["pending"] == 0
    others = Wrappers()  # whose tickets are the same again
    loaded.attach(others)
    fill(loaded, others, 2)
    loaded.settle()
    assert (loaded.rewards == loaded.next_observations[..., 0]).all()
    assert loaded.normalizer.count == buffer.normalizer.count + 2
    assert sums_up(loaded.stats())


def test_saving_leaves_stale_tickets_known():
    buffer, wrappers = attached(size=2)
    fill(buffer, wrappers, 2)
    buffer.reset()
    pickle.dumps(buffer)
    buffer.settle()
    assert buffer.stats() == {"submitted": 2, "delivered": 0, "stale": 2, "failed": 0, "cancelled": 0, "pending": 0}


def test_a_saved_buffer_without_a_source_keeps_its_rows_closed():
    buffer = VLPReplayBuffer(4, *SPACES)
    fill(buffer, Wrappers(), 2)
    loaded = pickle.loads(pickle.dumps(buffer))  # noqa: S301 (our own bytes)
    assert loaded.stats() == {"submitted": 2, "delivered": 0, "stale": 0, "failed": 0, "cancelled": 2, "pending": 0}
    with pytest.raises(QueryError):
        loaded.sample(1)


def test_another_source_cancels_what_is_open():
    buffer, wrappers = attached(size=4)
    fill(buffer, wrappers, 2)
    buffer.attach(Wrappers())
    assert buffer.stats()["cancelled"] == 2
    assert sorted(buffer._ledger.missing) == [0, 1]


def test_an_emptied_buffer_drops_what_comes():
    buffer, wrappers = attached(size=4)
    fill(buffer, wrappers, 2)
    buffer.reset()
    fill(buffer, wrappers, 1)
    buffer.settle()
    assert buffer.stats() == {"submitted": 3, "delivered": 1, "stale": 2, "failed": 0, "cancelled": 0, "pending": 0}
    assert fits(buffer.sample(100))


def test_rewards_are_scaled_when_they_are_sampled():
    buffer, wrappers = attached(size=8)
    buffer.normalizer = RewardNormalizer(1)
    fill(buffer, wrappers, 8)
    buffer.settle()
    samples = buffer.sample(100)
    expected = buffer.normalizer.scale(samples.next_observations.numpy())
    assert (samples.rewards.numpy() == expected).all()
    assert (buffer.rewards == buffer.next_observations[..., 0]).all()


@pytest.mark.parametrize("kind", [VLPReplayBuffer, VLPDictReplayBuffer])
def test_optimize_memory_usage_is_refused(kind):  # fault 48
    message = (
        "optimize_memory_usage=True is not supported with late rewards: neighbouring rows share an observation, and "
        "rows are drawn in another way; set optimize_memory_usage=False"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kind(10, *(KEYS if kind is VLPDictReplayBuffer else SPACES), optimize_memory_usage=True)


def rollout(buffer, wrappers, bootstrap=0.0, tickets=True):
    """Fill a rollout buffer as OnPolicyAlgorithm does; the steps that end an episode are bootstrapped."""
    torch = pytest.importorskip("torch")
    starts = np.ones(buffer.n_envs)
    buffer.reset()
    for _ in range(buffer.buffer_size):
        obs, after, actions, rewards, dones, infos = wrappers.step()
        if tickets:
            buffer.announce(infos, rewards)
        else:
            rewards = after[:, 0].astype(np.float32)
        rewards = rewards.astype(np.float32)
        rewards[dones] += np.float32(bootstrap)
        values = torch.linspace(0, 1, buffer.n_envs)
        buffer.add(obs, actions, rewards, starts, values, values)
        starts = dones
    buffer.compute_returns_and_advantage(values, dones)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_rollout_is_that_of_punctual_rewards_to_the_bit(n_envs):  # fault 13
    theirs = RolloutBuffer(12, *SPACES, n_envs=n_envs, gamma=0.9, gae_lambda=0.8)
    buffer = late_rollout_buffer(RolloutBuffer(12, *SPACES, n_envs=n_envs, gamma=0.9, gae_lambda=0.8))
    wrappers, punctual = Wrappers(n_envs), Wrappers(n_envs)
    buffer.attach(wrappers)
    for _ in range(3):
        rollout(buffer, wrappers, bootstrap=1 / 3)
        rollout(theirs, punctual, bootstrap=1 / 3, tickets=False)
        for name in ("rewards", "returns", "advantages", "observations"):
            assert getattr(buffer, name).tobytes() == getattr(theirs, name).tobytes()
    assert buffer.stats()["delivered"] == 36 * n_envs


def test_a_rollout_is_scaled_when_it_is_complete():
    buffer = VLPRolloutBuffer(10, *SPACES)
    wrappers = Wrappers()
    buffer.attach(wrappers)
    buffer.normalizer, same = RewardNormalizer(1), RewardNormalizer(1)
    rollout(buffer, wrappers, bootstrap=0.5)
    rewards, bootstrap = [], []
    for episode, length in ((0, 5), (1, 2), (2, 2), (3, 1)):
        for step in range(1, length + 1):
            rewards.append(painted_value(0, episode, step))
            bootstrap.append(0.5 * (step == (5 if episode == 0 else 2)))
            same.update(0, episode, rewards[-1])
    expected = np.float32(bootstrap) + same.scale(np.float32(rewards))
    assert (buffer.rewards[:, 0] == expected).all()


def test_a_rollout_whose_reward_never_comes():
    buffer, wrappers = VLPRolloutBuffer(4, *SPACES), Wrappers()
    buffer.attach(wrappers)
    wrappers.answer = lambda index: wrappers.asked[index].clear()
    message = "no reward came for env 0, episode 0, step 1, and none is on its way"
    with pytest.raises(QueryError, match=f"^{re.escape(message)}$"):
        rollout(buffer, wrappers)


def test_a_rollout_that_was_broken_off_leaves_nothing_behind():
    buffer, wrappers = VLPRolloutBuffer(4, *SPACES), Wrappers()
    buffer.attach(wrappers)
    buffer.announce(wrappers.step()[-1], np.zeros(1))
    rollout(buffer, wrappers)
    assert buffer.stats() == {"submitted": 5, "delivered": 4, "stale": 1, "failed": 0, "cancelled": 0, "pending": 0}
    assert buffer.rewards[:, 0].tolist() == [painted_value(0, *at) for at in ((0, 2), (0, 3), (0, 4), (0, 5))]


def test_a_rollout_without_the_callback():
    buffer, wrappers = VLPRolloutBuffer(4, *SPACES), Wrappers()
    message = "^" + re.escape("VLPRolloutBuffer needs learn(..., callback=VLPRewardCallback())") + "$"
    with pytest.raises(RuntimeError, match=message):
        rollout(buffer, wrappers, tickets=False)
    buffer.attach(wrappers)
    with pytest.raises(RuntimeError, match=message):
        rollout(buffer, wrappers, tickets=False)


def test_every_class_of_rollout_buffer_has_a_twin():
    recurrent = pytest.importorskip("sb3_contrib.common.recurrent.buffers")
    maskable = pytest.importorskip("sb3_contrib.common.maskable.buffers")
    from vlp_gym.integrations.sb3 import buffers as sb3_buffers

    buffers = [
        recurrent.RecurrentRolloutBuffer(4, *SPACES, (4, 1, 2, 8), gamma=0.7, n_envs=2),
        maskable.MaskableRolloutBuffer(4, SPACES[0], gym.spaces.Discrete(2), gae_lambda=0.6, n_envs=2),
    ]
    for buffer in buffers:
        twin = late_rollout_buffer(buffer)
        assert isinstance(twin, VLPRolloutBuffer)
        assert isinstance(twin, type(buffer))
        assert (twin.gamma, twin.gae_lambda, twin.n_envs) == (buffer.gamma, buffer.gae_lambda, 2)
        assert late_rollout_buffer(twin).__class__ is twin.__class__
    assert sb3_buffers.VLPRecurrentRolloutBuffer is type(late_rollout_buffer(buffers[0]))
    with pytest.raises(AttributeError, match=r"^module 'vlp_gym.integrations.sb3.buffers' has no attribute 'VLP'$"):
        _ = sb3_buffers.VLP


def test_dictionary_observations_name_the_right_buffer():
    space = gym.spaces.Dict({"a": SPACES[0]})
    with pytest.raises(TypeError, match=r"^VLPReplayBuffer takes no dictionary observations; use VLPDictReplayBuffer$"):
        VLPReplayBuffer(8, space, SPACES[1])
