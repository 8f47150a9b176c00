from __future__ import annotations

import re

import pytest
from gymnasium.error import ResetNeeded
from painted import rollout, wrap

from vlp_gym.errors import FrameError, QueryError
from vlp_gym.testing import FRAME_FAULTS, FaultyEnv, FaultyModel, PaintedEnv, PaintedModel, painted_value
from vlp_gym.wrappers.streaming import RESET_IN_SB3


@pytest.mark.parametrize("mode", [None, "human", "rgb_array_list"])
def test_an_environment_that_does_not_render_arrays(mode):  # fault 1
    env = PaintedEnv()
    env.render_mode = mode
    message = f'expected an environment made with render_mode="rgb_array", got render_mode={mode!r}'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        wrap(env)


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
    assert str(kept) == shown
    message = (
        f"the environment's own reward is {shown} and cannot be mixed in; repair it or set env_reward_weight=0 "
        "(env 0, episode 0, step 2)"
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
