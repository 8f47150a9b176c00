from __future__ import annotations

import re
import warnings
from functools import partial
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from painted import rollout, wrap

from vlp_gym.errors import FrameError, QueryError
from vlp_gym.testing import FRAME_FAULTS, FaultyEnv, FaultyModel, PaintedEnv, PaintedModel, painted_value
from vlp_gym.wrappers import VLPVectorRewardWrapper, capture_frames
from vlp_gym.wrappers.streaming import RESET_IN_SB3


@pytest.mark.parametrize("mode", [None, "human", "rgb_array_list"])
def test_an_environment_that_does_not_render_arrays(mode):  # fault 1
    env = PaintedEnv()
    env.render_mode = mode
    message = (
        f'expected an environment made with render_mode="rgb_array", got render_mode={mode!r}; an environment that '
        "cannot do that needs a camera of yours, such as render_fn=lambda env: env.unwrapped.camera.read()"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        wrap(env)
    assert len(rollout(wrap(env, render_fn=lambda env: env.unwrapped.render()))) == 10


class Team:
    """What PettingZoo's environments have."""

    possible_agents = ("first", "second")
    render_mode = "rgb_array"
    metadata: ClassVar = {}


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            Team(),
            "expected a gymnasium.Env, got Team; it is PettingZoo's, for several agents: "
            "make a gymnasium.Env of what one agent does and sees",
        ),
        (
            gym.vector.SyncVectorEnv([PaintedEnv]),
            "expected a gymnasium.Env, got SyncVectorEnv; vector environments have wrappers of their own, "
            "VLPVectorRewardWrapper and VLPVecReward",
        ),
        ("CartPole-v1", "expected a gymnasium.Env, got str"),
    ],
)
def test_what_is_no_environment_of_gymnasium(env, message):
    for make in (lambda: wrap(env), capture_frames([lambda: env])[0]):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            make()


def test_what_is_no_vector_environment():
    message = "expected a gymnasium.vector.VectorEnv from capture_frames, got Team"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        VLPVectorRewardWrapper(Team(), "press the button", PaintedModel())


class Plain(PaintedEnv):
    """Its `reset` takes no options, which Stable-Baselines3 tolerates."""

    def reset(self, *, seed=None):
        return super().reset(seed=seed)


class Passing(gym.Wrapper):
    """Passes on what it is given."""

    def reset(self, **options):
        return self.env.reset(**options)


@pytest.mark.parametrize("make", [Plain, lambda: Passing(Plain())])
def test_a_reset_without_options(make):
    assert len(rollout(wrap(make()))) == 10
    venv = gym.vector.SyncVectorEnv(capture_frames([make]))
    VLPVectorRewardWrapper(venv, "press the button", PaintedModel()).reset()
    with pytest.raises(TypeError, match="unexpected keyword argument 'options'"):
        wrap(Plain()).reset(options={"mass": 2})


class Strict(PaintedEnv):
    """Its `reset` has no defaults: Gymnasium's own wrappers and vector environments always give both."""

    def reset(self, seed, options):
        return super().reset(seed=seed, options=options)


def test_a_reset_without_defaults():
    assert len(rollout(wrap(Strict()))) == 10
    venv = gym.vector.SyncVectorEnv(capture_frames([Strict]))
    VLPVectorRewardWrapper(venv, "press the button", PaintedModel()).reset()


class Still(PaintedEnv):
    """Frames that never change; `seen` is their colour, and the last frame of an episode may have another."""

    def __init__(self, lengths, seen, last=None):
        super().__init__(lengths)
        self.seen, self.last = seen, last

    def render(self):
        over = self.elapsed == self.lengths[0]
        return np.full((8, 8, 3), self.last if over and self.last is not None else self.seen, np.uint8)


NOTHING = "the environment may not draw off-screen; look at env.render(), or give a render_fn="


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(("length", "seen", "what"), [(1, 0, "black"), (4, 0, "black"), (4, 7, "the same")])
def test_frames_that_show_nothing_are_warned_of_once(length, seen, what, mode):
    env = wrap(Still([length], seen), mode=mode, untaken="wait")
    env.reset()
    for _ in range(length - 1):
        env.step(0)
    message = f"all {length + 1} frames of the first episode are {what}: {NOTHING}"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        env.step(0)
    rollout(env)  # warnings are errors here
    env.close()


@pytest.mark.parametrize(("length", "seen", "last"), [(3, 7, None), (9, 0, 1), (1, 0, 1), (9, 7, 8)])
def test_frames_that_show_something_are_not_warned_of(length, seen, last):
    env = wrap(Still([length], seen, last))
    rollout(env)
    env.env.last = None  # later episodes may show nothing
    rollout(env)


def test_a_reset_ends_the_first_episode_and_so_do_a_thousand_frames():
    env = wrap(Still([2000], 0))
    env.reset()
    env.step(0)
    with pytest.warns(UserWarning, match=rf"^all 2 frames of the first episode are black: {re.escape(NOTHING)}$"):
        env.reset()
    env = wrap(Still([2000], 7))
    env.reset()
    for _ in range(998):
        env.step(0)
    with pytest.warns(UserWarning, match=rf"^all 1000 frames of the first episode are the same: {re.escape(NOTHING)}$"):
        env.step(0)


def test_one_of_two_cameras_shows_nothing():
    env = wrap(render_fn=[lambda env: env.unwrapped.render(), lambda env: np.zeros((8, 8, 3), np.uint8)])
    message = rf"^all 11 frames of camera 1 of the first episode are black: {re.escape(NOTHING)}$"
    with pytest.warns(UserWarning, match=message):
        rollout(env)


def test_one_warning_for_a_vector_of_environments():
    fns = [partial(Still, [3], 0)] * 3
    env = VLPVectorRewardWrapper(gym.vector.SyncVectorEnv(capture_frames(fns)), "press the button", PaintedModel())
    env.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            env.step(np.zeros(3, int))
    assert [str(each.message) for each in caught] == [f"all 4 frames of the first episode are black: {NOTHING}"]


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("fault", [name for name in FRAME_FAULTS if name not in ("resized", "negative_strides")])
def test_a_wrong_frame_names_its_step_and_reset_goes_on(fault, at):  # faults 2, 3, 4, 6
    env = wrap(FaultyEnv(fault, at))
    with pytest.raises(FrameError, match=rf" \(env 0, episode 0, step {at}\)$"):
        rollout(env)
    with pytest.raises(ResetNeeded):
        env.step(0)
    assert [paid for paid, _ in rollout(env)] == [painted_value(0, 1, step) for step in range(1, 11)]
    assert env.stats()["submitted"] == env.stats()["delivered"]


def test_another_frame_size_in_mid_episode():  # fault 5
    env = wrap(FaultyEnv("resized"))
    message = "the frame size changed from (8, 8) to (16, 16); frames are resized to (8, 8) from now on"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        rollout(env)


@pytest.mark.parametrize("fault", ["reused_buffer", "negative_strides"])
def test_frames_are_copied(fault):  # fault 7
    model = PaintedModel()
    paid = [reward for reward, _ in rollout(wrap(FaultyEnv(fault), model))]
    assert paid == [painted_value(0, 0, step) for step in range(1, 11)]
    assert model.windows[-1] == [painted_value(0, 0, step) for step in range(7, 11)]


@pytest.mark.parametrize(
    ("fault", "at", "text"),
    [
        ("reset_raises", 0, "the simulator is gone"),
        ("step_raises", 2, "the simulator is gone"),
        ("render_raises", 2, "no GL context"),
    ],
)
def test_an_error_of_the_environment_is_kept_with_a_note(fault, at, text):  # fault 8
    env = wrap(FaultyEnv(fault, at))
    note = f"in the environment under VLPRewardWrapper (env 0, episode 0, step {at})"
    with pytest.raises(OSError, match=f"^{re.escape(text)}\n{re.escape(note)}$"):
        rollout(env)
    with pytest.raises(ResetNeeded):
        env.step(0)
    assert len(rollout(env)) == 10
    assert env.stats()["pending"] == 0


def test_step_before_reset_and_after_the_end():  # fault 9
    env = wrap(PaintedEnv([2]))
    message = (
        "call reset before step: the episode has ended or has not begun (env 0, episode -1, step 0); " + RESET_IN_SB3
    )
    with pytest.raises(ResetNeeded, match=f"^{re.escape(message)}$"):
        env.step(0)
    rollout(env)
    with pytest.raises(ResetNeeded, match=r"^call reset before step: .* \(env 0, episode 0, step 2\); where "):
        env.step(0)
    assert env.stats()["submitted"] == 3


def test_termination_wins_over_truncation():  # fault 12
    env = wrap(FaultyEnv("both_ends"), reward="potential", gamma=0.9)
    env.reset()
    env.step(0)
    _, paid, terminated, truncated, _ = env.step(0)
    assert (terminated, truncated) == (True, False)
    assert paid == -painted_value(0, 0, 1)


@pytest.mark.parametrize(("fault", "shown"), [("reward_nan", "nan"), ("reward_none", "None")])
def test_an_own_reward_that_is_no_number(fault, shown):  # fault 18
    kept = rollout(wrap(FaultyEnv(fault)))[1][1]["env_reward"]
    assert np.isnan(kept)
    message = (
        f"the environment's own reward is {shown} and cannot be mixed in; repair it or set env_reward_weight=0 "
        "(env 1, episode 0, step 2)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        rollout(wrap(FaultyEnv(fault), env_reward_weight=1.0))


@pytest.mark.parametrize(("fault", "error"), [("raises", QueryError), ("nan", QueryError), ("wrong_shape", TypeError)])
def test_a_faulty_model_ends_the_episode(fault, error):  # faults 19, 20, 21
    env = wrap(model=FaultyModel(fault, at=3))
    with pytest.raises(error, match=r" \(env 0, episode 0, step 2\)$"):
        rollout(env)
    with pytest.raises(ResetNeeded):
        env.step(0)
    assert [paid for paid, _ in rollout(env)] == [painted_value(0, 1, step) for step in range(1, 11)]
    assert env.stats()["failed"] == 1


def test_a_faulty_model_shows_when_the_wrapper_is_made():
    with pytest.raises(QueryError, match=r"ZeroDivisionError: division by zero \(first call, on a black frame\)$"):
        wrap(model=FaultyModel("raises", at=0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"mode": "async", "success_threshold": 0.5, "terminate_on_success": True},
            ValueError,
            "terminate_on_success needs the score at once; use mode='sync'",
        ),
        ({"every": 0}, ValueError, "every must be a number of steps, at least 1, got 0"),
        ({"every": 1.5}, ValueError, "every must be a number of steps, at least 1, got 1.5"),
        (
            {"render_fn": "corner2"},
            ValueError,
            "render_fn must be a function of the environment, or several, got 'corner2'",
        ),
        ({"gamma": 2.0}, ValueError, "gamma must be in [0, 1], got 2.0"),
        ({"model": 3}, TypeError, "expected the model as a name, a path, a RewardModel or a QueryEngine, got int"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        wrap(**options)
