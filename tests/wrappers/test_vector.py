"""Vector environments of Gymnasium: every reward belongs to the step that the painted frame names."""

from __future__ import annotations

import os
import pickle
import random
import re
import signal
import time
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from painted import (
    SENTENCE,
    Expected,
    Sleeper,
    belongings,
    check_a_death,
    noop,
    painted_fns,
    spans_episodes,
)

from vlp_gym.engine import QueryEngine
from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import FrameError, InstructionError, QueryError, VLPError
from vlp_gym.rewards.info import ours_in, ticket_in
from vlp_gym.testing import FaultyEnv, FaultyModel, PaintedEnv, PaintedModel, painted_value
from vlp_gym.wrappers import VLPVectorRewardWrapper, capture_frames
from vlp_gym.wrappers.capture import FrameCapture
from vlp_gym.wrappers.streaming import RESET_IN_SB3

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
VECTORS = {"one process": SyncVectorEnv, "workers": partial(AsyncVectorEnv, context="fork")}
UNEQUAL = ([3, 5, 1], [4], [1, 1, 7])


@pytest.fixture(scope="module", autouse=True)
def arenas():
    """The first `AsyncVectorEnv` of a process takes memory for multiprocessing, which stays open."""
    AsyncVectorEnv([PaintedEnv], context="fork").close()


def vector(env_fns, kind="one process", autoreset=NEXT_STEP, render_fn=None):
    return VECTORS[kind](capture_frames(env_fns, render_fn), autoreset_mode=autoreset)


def wrap(lengths=UNEQUAL, model=None, *, kind="one process", autoreset=NEXT_STEP, **options):
    venv = vector(painted_fns(lengths), kind, autoreset)
    return VLPVectorRewardWrapper(venv, SENTENCE, model or PaintedModel(), **options)


def drive(env, lanes, steps, *, late=False):
    """Step through all that can happen, and compare every number with the oracle's."""
    autoreset = env.metadata["autoreset_mode"]
    expected, got = {}, {}
    _, infos = env.reset(seed=0)
    assert infos["vlp"]["_score"].all()
    assert not infos["vlp"]["env_reward"].any()
    for _ in range(steps):
        over = np.array([lane.over for lane in lanes])
        if autoreset == DISABLED and over.any():
            _, infos = env.reset(options={"reset_mask": over})
            assert (infos["_vlp"] == over).all()
            for lane in np.array(lanes, object)[over]:
                lane.begin()
        _, rewards, terminated, truncated, infos = env.step(noop(env))
        assert rewards.dtype == np.float64
        vlp = infos["vlp"]
        for index, lane in enumerate(lanes):
            if lane.over and autoreset == NEXT_STEP:  # this step was a reset
                lane.begin()
                assert (rewards[index], vlp["env_reward"][index]) == (0.0, 0.0)
                assert not (late and vlp["step"][index])
            else:
                reward = lane.move()
                assert (terminated[index], truncated[index]) == lane.ends
                assert (vlp["env_reward"][index], vlp["_env_reward"][index]) == (-1.0, True)
                if late:
                    assert (vlp["episode"][index], vlp["step"][index]) == lane.ticket[1:]
                    expected[(vlp["env"][index], *lane.ticket[1:])] = reward
                else:
                    assert rewards[index] == reward
            if not late:
                assert vlp["score"][index] == lane.said
            if lane.over and autoreset == SAME_STEP:
                lane.begin()
        if late:
            take(env.poll(), got)
    take(env.flush(), got)
    assert got == expected
    stats = env.stats()
    assert stats["submitted"] == stats["delivered"]


def take(delivered, got):
    """Collect late rewards; none may come twice."""
    for deliveries in delivered:
        for delivery in deliveries:
            assert delivery.ticket not in got
            got[delivery.ticket] = delivery.reward


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("autoreset", AutoresetMode)
def test_every_reward_is_what_the_painted_frame_says(autoreset, kind, mode):  # faults 14, 15, 67
    before = belongings()
    model = PaintedModel(window=3)
    env = wrap(UNEQUAL, model, kind=kind, autoreset=autoreset, mode=mode, every=2)
    drive(env, [Expected(i, each, every=2) for i, each in enumerate(UNEQUAL)], 25, late=mode == "async")
    assert not spans_episodes(model.windows)
    env.close()
    del env
    assert belongings() == before


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=4),
    autoreset=st.sampled_from(AutoresetMode),
    options=st.fixed_dictionaries(
        {
            "every": st.integers(1, 4),
            "reward": st.sampled_from(["progress", "delta", "potential", "preference", "final"]),
            "gamma": st.sampled_from([0.5, 1.0]),
        }
    ),
    truncate=st.booleans(),
    mode=st.sampled_from(["sync", "async"]),
    history=st.sampled_from(["sliding", "prefix"]),
)
def test_whatever_the_lengths_the_cadence_and_the_reward(lengths, autoreset, options, truncate, mode, history):
    model = PaintedModel(window=3, history=history)
    venv = vector(painted_fns(lengths, truncate=truncate), autoreset=autoreset)
    env = VLPVectorRewardWrapper(venv, SENTENCE, model, mode=mode, **options)
    lanes = [Expected(i, each, truncate=truncate, **options) for i, each in enumerate(lengths)]
    drive(env, lanes, 20, late=mode == "async")
    assert not spans_episodes(model.windows)
    env.close()


def test_skipped_frames_of_a_crowded_engine_lose_no_ticket():
    engine = QueryEngine(PaintedModel(), mode="async", slots=1, policy="widen_stride")
    env = wrap([[4], [3], [5]], engine, mode="async")
    env.reset()
    tickets, got = [], {}
    for _ in range(30):
        vlp = env.step(noop(env))[4]["vlp"]
        each = zip(vlp["env"].tolist(), vlp["episode"].tolist(), vlp["step"].tolist(), strict=True)
        tickets += [ticket for ticket in each if ticket[2]]
        take(env.poll(), got)
    take(env.flush(), got)
    assert sorted(got) == sorted(tickets)
    for (index, episode, step), reward in got.items():  # held from an earlier step of the episode, or exact
        shown = [painted_value(index, episode, number) for number in range(step + 1)]
        assert reward == shown[-1] if step == [4, 3, 5][index] else reward in shown
    env.close()
    engine.close()


def test_several_cameras_are_averaged():
    def shifted(env):
        frame = env.unwrapped.render()
        frame[0, 0, 0] ^= 128  # half the range of the painted values
        return frame

    buffer = np.zeros((8, 8, 3), np.uint8)

    def reusing(camera, env):
        buffer[:] = camera(env)
        return buffer

    cameras = [partial(reusing, lambda env: env.unwrapped.render()), partial(reusing, shifted)]
    env = VLPVectorRewardWrapper(vector(painted_fns([[3], [3]]), render_fn=cameras), SENTENCE, PaintedModel())
    env.reset()
    paid = env.step(noop(env))[1]
    assert paid.tolist() == [painted_value(index, 0, 1) + 0.25 for index in (0, 1)]
    env.close()


class Length(PaintedModel):
    """Pays the length of the sentence."""

    def encode_text(self, instructions):
        return torch.full((1, 1, 1), float(len(instructions[0])))

    def score(self, frames, text, mask):
        return super().score(text[:, None].expand_as(frames), text, mask)


def test_one_instruction_for_each_environment():  # fault 35
    venv = vector(painted_fns([[2], [3]]))
    env = VLPVectorRewardWrapper(venv, ["press", "close it"], Length(progress=False), reward="preference")
    env.reset()
    assert env.instructions == ["press", "close it"]
    env.set_instruction("open", 0)
    paid = [env.step(noop(env))[1].tolist() for _ in range(4)]
    assert paid == [[5, 8], [5, 8], [0, 8], [4, 0]]  # the new one from the next episode on
    env.set_instruction("x")
    env.reset()
    assert env.step(noop(env))[1].tolist() == [1, 1]
    with pytest.raises(InstructionError):
        env.set_instruction(" ")
    env.close()


@pytest.mark.parametrize("instruction", [["press"], ["a", "b", "c"], []])
def test_a_wrong_number_of_instructions(instruction):
    message = f"expected one instruction, or one for each of 2 envs, got {len(instruction)}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VLPVectorRewardWrapper(vector(painted_fns([[2], [3]])), instruction, PaintedModel())
    with pytest.raises(TypeError, match=r"^expected the instruction as a str, got int$"):
        VLPVectorRewardWrapper(vector(painted_fns([[2], [3]])), 7, PaintedModel())


def test_environments_that_do_not_render_themselves():
    message = (
        "the sub-environments do not render themselves; make env from capture_frames(env_fns), or take "
        "VLPBatchRewardWrapper where env.render() shows all of them"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VLPVectorRewardWrapper(SyncVectorEnv([PaintedEnv]), SENTENCE, PaintedModel())


def test_environments_of_two_calls_of_capture_frames():
    venv = SyncVectorEnv([*capture_frames([PaintedEnv]), *capture_frames([PaintedEnv])])
    message = "expected sub-environments from one call of capture_frames, in its order, got the places [0, 0]"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VLPVectorRewardWrapper(venv, SENTENCE, PaintedModel())


class Hurried(gym.Wrapper):
    """Makes two steps at once."""

    def step(self, action):
        self.env.step(action)
        return self.env.step(action)


class Hasty(gym.Wrapper):
    """Ends the episode after a step of which the inside knows nothing."""

    def step(self, action):
        observation, reward, terminated, _, info = self.env.step(action)
        return observation, reward, terminated, True, info


class Eager(gym.Wrapper):
    """Begins an episode with a step."""

    def reset(self, **options):
        answer = self.env.reset(**options)
        self.env.step(0)
        return answer


@pytest.mark.parametrize(
    ("outer", "got"),
    [
        (Hurried, "its step 2 (env 0, episode 0, step 1)"),
        (Hasty, "no frame of the end of the episode (env 0, episode 0, step 1)"),
        (Eager, "a step in the reset (env 0, episode 0, step 0)"),
    ],
)
def test_a_wrapper_around_the_capture_is_found_out(outer, got):
    venv = SyncVectorEnv([lambda fn=fn: outer(fn()) for fn in capture_frames([PaintedEnv])])
    env = VLPVectorRewardWrapper(venv, SENTENCE, PaintedModel(), every=3)
    message = (
        f"expected one step or reset of the environment for one of the vector environment, got {got}; "
        "call capture_frames last, around all other wrappers of the sub-environments"
    )
    with pytest.raises(VLPError, match=f"^{re.escape(message)}$"):  # noqa: PT012 (at the reset or at the step)
        env.reset()
        env.step(noop(env))


def test_both_ends_at_once_are_a_termination():  # fault 12
    env = VLPVectorRewardWrapper(
        vector([partial(FaultyEnv, "both_ends", 1), PaintedEnv]), SENTENCE, PaintedModel(), reward="potential"
    )
    env.reset()
    _, rewards, terminated, truncated, _ = env.step(noop(env))
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, False])
    assert rewards[0] == -painted_value(0, 0, 0)


def test_a_partial_reset_leaves_the_others_alone():  # fault 16
    model = PaintedModel(window=8)
    env = wrap([[9], [9]], model, autoreset=DISABLED)
    env.reset()
    for _ in range(2):
        env.step(noop(env))
    _, infos = env.reset(options={"reset_mask": np.array([False, True])})
    assert infos["vlp"]["_score"].tolist() == [False, True]
    env.step(noop(env))
    assert model.windows[-2:] == [
        [painted_value(0, 0, step) for step in range(4)],
        [painted_value(1, 1, step) for step in range(2)],
    ]


@pytest.mark.parametrize("kind", VECTORS)
def test_step_needs_a_reset_where_nobody_resets(kind):  # fault 9
    env = wrap([[1], [2]], kind=kind, autoreset=DISABLED)
    message = "call reset before step: the episodes of the envs {} have ended or have not begun; " + RESET_IN_SB3
    with pytest.raises(ResetNeeded, match=f"^{re.escape(message.format([0, 1]))}$"):
        env.step(noop(env))
    env.reset()
    env.step(noop(env))
    with pytest.raises(ResetNeeded, match=f"^{re.escape(message.format([0]))}$"):
        env.step(noop(env))
    env.reset(options={"reset_mask": np.array([True, False])})
    assert env.step(noop(env))[1].tolist() == [painted_value(0, 1, 1), painted_value(1, 0, 2)]
    env.close()


@pytest.mark.parametrize("fault", ["float", "chw", "none"])
def test_a_wrong_frame_names_its_step_and_reset_goes_on(fault):  # faults 2, 3, 4, 8
    env = VLPVectorRewardWrapper(vector([PaintedEnv, partial(FaultyEnv, fault)]), SENTENCE, PaintedModel())
    env.reset()
    env.step(noop(env))
    with pytest.raises(FrameError, match=r" \(env 1, episode 0, step 2\)$"):
        env.step(noop(env))
    with pytest.raises(ResetNeeded):
        env.step(noop(env))
    env.reset()
    assert env.step(noop(env))[1].tolist() == [painted_value(0, 1, 1)] * 2


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_error_of_the_model_is_raised_and_reset_goes_on(mode):  # fault 19
    env = wrap([[9], [9]], FaultyModel("raises", at=3), mode=mode)
    env.reset()
    with pytest.raises(QueryError):  # noqa: PT012 (when it comes is a matter of the worker thread)
        for _ in range(500):
            env.step(noop(env))
            time.sleep(0.01)
    with pytest.raises(ResetNeeded):
        env.step(noop(env))
    env.reset()
    env.step(noop(env))
    got = {}
    take(env.flush(), got)
    assert env.stats()["pending"] == 0
    env.close()


@pytest.mark.parametrize("sleeping", [(0, 1), (1,)])
def test_a_killed_worker_is_an_error_at_once(sleeping):  # fault 17
    before = belongings()
    fns = [partial(Sleeper if index in sleeping else PaintedEnv, env=index) for index in range(3)]
    env = VLPVectorRewardWrapper(vector(fns, "workers"), SENTENCE, PaintedModel())
    env.reset()
    env.step(noop(env))
    check_a_death(env, env.env.processes, partial(env.step, noop(env)))
    env.close()
    env.env.close()
    del env
    assert belongings() == before


@pytest.mark.parametrize("call", ["frame_shape", "attach_frames", "detach_frames"])
def test_a_worker_killed_while_memory_is_shared(call, monkeypatch):  # fault 17
    """With "fork" another worker holds the dead one's end of the pipe, so that nothing ends a read."""
    before = belongings()
    method = getattr(FrameCapture, call)

    def die(self, *arguments):
        if self._index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *arguments)

    monkeypatch.setattr(FrameCapture, call, die)
    venv = vector([partial(PaintedEnv, env=index) for index in range(3)], "workers")
    with pytest.raises(VLPError, match=r"^these env workers have died: 1 \(exit code -9\); the others were stopped, "):  # noqa: PT012 (where depends on the call)
        env = VLPVectorRewardWrapper(venv, SENTENCE, PaintedModel())
        env.reset()
    assert not any(process.is_alive() for process in venv.processes)
    env = None
    venv.close()
    del venv
    assert belongings() == before


def test_a_worker_killed_between_two_calls():  # fault 17
    for call in ("step", "reset", "close"):
        env = wrap(kind="workers")
        env.reset()
        victim = env.env.processes[2]
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        if call == "close":
            env.close()
        else:
            with pytest.raises(VLPError, match=r"^these env workers have died: 2 \(exit code -9\);"):
                env.step(noop(env)) if call == "step" else env.reset()
        assert not any(process.is_alive() for process in env.env.processes)
        env.close()


@pytest.mark.filterwarnings("ignore:.*ERROR:UserWarning")  # Gymnasium's way to tell the traceback
def test_an_error_inside_a_worker_and_the_hole_it_leaves():  # fault 8
    before = belongings()
    fns = [PaintedEnv, partial(FaultyEnv, "step_raises", 1)]
    env = VLPVectorRewardWrapper(vector(fns, "workers"), SENTENCE, PaintedModel())
    env.reset()
    with pytest.raises(OSError, match=r"the simulator is gone"):
        env.step(noop(env))
    message = "the env workers [1] have ended after an error; make a new vector environment"
    with pytest.raises(VLPError, match=f"^{re.escape(message)}$"):
        env.reset()
    env.close()
    del env
    assert belongings() == before


def test_close_twice_and_calls_after_close():  # fault 37
    env = wrap()
    env.reset()
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError, match=r"^step was called after close$"):
        env.step(noop(env))
    with pytest.raises(ClosedEnvironmentError, match=r"^reset was called after close$"):
        env.reset()


def test_two_wrappers_share_an_engine_and_wrap_one_after_the_other():  # fault 44
    engine = QueryEngine(PaintedModel())
    first = wrap([[5], [5]], engine)
    second = wrap([[5]], engine)
    for env in (first, second):
        env.reset()
    assert first.step(noop(first))[1].tolist() == [painted_value(index, 0, 1) for index in (0, 1)]
    first.close()
    assert second.step(noop(second))[1].tolist() == [painted_value(0, 0, 1)]
    third = VLPVectorRewardWrapper(second.env, SENTENCE, engine, every=2)
    third.reset()
    assert [third.step(noop(third))[1].tolist() for _ in range(2)] == [
        [painted_value(0, 1, 0)], [painted_value(0, 1, 2)],
    ]  # fmt: skip


def test_what_is_kept_of_the_arguments_and_no_pickling():  # faults 41, 42
    env = wrap(scale=2.0)
    kept = env._saved_kwargs
    assert (kept["model"], kept["scale"], kept["instruction"]) == ("<live PaintedModel>", 2.0, SENTENCE)
    message = (
        "a live VLPVectorRewardWrapper cannot be pickled: its model lives in this process; "
        "make the wrapper in the process that uses it"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        pickle.dumps(env)


def test_global_random_generators_are_untouched():  # fault 68
    states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    env = wrap(every=2)
    env.reset()
    for _ in range(9):
        env.step(noop(env))
    after = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    assert states[:2] == after[:2]
    assert torch.equal(states[2], after[2])


def test_gymnasiums_own_wrappers_around_it():
    env = gym.wrappers.vector.DictInfoToList(
        gym.wrappers.vector.RecordEpisodeStatistics(wrap([[2], [3]], mode="async"))
    )
    env.reset()
    for _ in range(2):
        infos = env.step(noop(env))[4]
    assert list(map(ticket_in, map(ours_in, infos))) == [Ticket(0, 0, 2), Ticket(1, 0, 2)]
    assert infos[0]["episode"]["l"] == 2
    env.close()


@pytest.mark.slow
def test_meta_world_in_two_processes():
    pytest.importorskip("metaworld")
    from vlp_gym.metaworld.env import make_metaworld

    class Brightness(PaintedModel):
        def encode_frames(self, frames):
            return frames.float().mean((1, 2, 3)).view(-1, 1, 1) / 255

    fns = [partial(make_metaworld, "button-press-v3", seed=seed, size=64, max_episode_steps=3) for seed in (0, 1)]
    seen = []
    for venv in (SyncVectorEnv(capture_frames(fns)), AsyncVectorEnv(capture_frames(fns), context="spawn")):
        env = VLPVectorRewardWrapper(venv, SENTENCE, Brightness(), every=2)
        env.reset(seed=[5, 6])
        actions = np.random.default_rng(0).uniform(-1, 1, (5, 2, 4)).astype(np.float32)
        seen.append([env.step(action)[1].tolist() for action in actions])
        env.close()
    assert seen[0] == seen[1]
    assert seen[0][3] == [0.0, 0.0]  # the reset
    assert 0.0 < min(min(paid) for paid in seen[0][:3]) < 1.0
