"""Meta-World made ready: its seeds, its camera, its limits, and the random scenes of the collection."""

from __future__ import annotations

import re
from functools import partial

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("metaworld")

from gymnasium.wrappers.common import TimeLimit

import vlp_gym
from vlp_gym.frames.rendering import FastRender, FastRenderer
from vlp_gym.metaworld.env import (
    CAMERA,
    CAMERA_POSITION,
    HAND_REACH,
    TOLERANCE,
    _robot_touches,
    make_metaworld,
    metaworld_tasks,
    scripted_policy,
)
from vlp_gym.metaworld.variety import vary_scene
from vlp_gym.testing import PaintedModel
from vlp_gym.wrappers import VLPRewardWrapper, capture_frames

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def env():
    made = make_metaworld("button-press-v3", seed=3, size=64, max_episode_steps=6)
    yield made
    made.close()


def rollout(env, seed):
    """Observations, rewards and the last picture of six steps."""
    observation, _ = env.reset(seed=seed)
    seen, rewards = [observation], []
    for action in ACTIONS:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(observation)
        rewards.append(reward)
        assert not terminated
        assert info["success"] in (0.0, 1.0)
    assert truncated
    return np.array(seen), np.array(rewards), env.render()


def test_reset_with_a_seed_decides_everything(env):
    first, other, again = (rollout(env, seed) for seed in (5, 6, 5))
    for a, b in zip(first, again, strict=True):
        assert (a == b).all()
    assert (first[0][0] != other[0][0]).any()
    assert (first[2] != other[2]).any()


def test_the_constructors_seed_decides_the_first_episode(env):
    fresh = make_metaworld("button-press", seed=3, size=64, max_episode_steps=6)
    try:
        assert (rollout(fresh, None)[0] == rollout(env, 3)[0]).all()
    finally:
        fresh.close()


@pytest.mark.parametrize("task", ["button-press-v3", "drawer-close-v3", "hammer-v3", "pick-place-v3"])
def test_a_random_start_moves_the_hand_and_nothing_else(task):
    usual, random = (make_metaworld(task, size=64, random_start=start) for start in (False, True))
    sawyer = usual.unwrapped
    low = np.maximum(sawyer.hand_init_pos - HAND_REACH, sawyer.mocap_low)
    high = np.minimum(sawyer.hand_init_pos + HAND_REACH, sawyer.mocap_high)
    hands = []
    for seed in range(6):
        before, after = usual.reset(seed=seed)[0], random.reset(seed=seed)[0]
        np.testing.assert_array_equal(random.reset(seed=seed)[0], after)
        np.testing.assert_allclose(after[4:18], before[4:18], atol=TOLERANCE)
        np.testing.assert_array_equal(after[:18], after[18:36])
        np.testing.assert_array_equal(after[36:], before[36:])  # the goal
        assert np.linalg.norm(after[:3] - before[:3]) > 0.03
        hands.append(random.unwrapped.hand_init_pos)
        assert np.linalg.norm(after[:3] - hands[-1]) < TOLERANCE
        assert ((low <= hands[-1]) & (hands[-1] <= high)).all()
        assert not _robot_touches(random.unwrapped)
    assert (np.ptp(hands, axis=0) > 0.4 * (high - low)).all()
    assert tuple(random.reset()[0][:3]) != tuple(random.reset()[0][:3])
    usual.close()
    random.close()


def test_a_reset_without_a_seed_goes_on(env):
    env.reset(seed=5)
    placements = {tuple(env.reset()[0]) for _ in range(4)}
    assert len(placements) > 1


def test_a_reset_shows_the_object_where_it_is():
    env = vlp_gym.make_metaworld("window-close-v3", size=64)
    observation, _ = env.reset(seed=0)
    picture = env.render().astype(int)
    stepped, *_ = env.step(np.zeros(4, np.float32))
    changed = np.abs(env.render().astype(int) - picture).max(-1) > 20
    env.close()
    np.testing.assert_allclose(observation[4:7], stepped[4:7], atol=0.01)  # metres; it was off by 0.2
    np.testing.assert_array_equal(observation[:18], observation[18:36])
    assert changed.mean() < 0.01


def test_truncation_at_the_limit(env):
    env.reset(seed=0)
    ends = [env.step(action)[3] for action in ACTIONS]
    assert ends == [False] * 5 + [True]


def test_what_it_is_made_of(env):
    assert env.render_mode == "rgb_array"
    assert env.render().shape == (64, 64, 3)
    assert env.get_wrapper_attr("spec") is not None
    wrappers, inner = [], env
    while hasattr(inner, "env"):
        wrappers.append(inner)
        inner = inner.env
    assert any(isinstance(wrapper, TimeLimit) for wrapper in wrappers)
    assert tuple(env.unwrapped.model.camera(CAMERA).pos) == CAMERA_POSITION
    assert vlp_gym.make_metaworld is make_metaworld


def test_the_corner_camera_is_upright(env):
    """The gripper hangs from above: MuJoCo's camera frame must have its y axis upwards."""
    env.reset(seed=0)
    up = env.unwrapped.data.camera(CAMERA).xmat.reshape(3, 3)[:, 1]
    assert up[2] > 0.5


def test_fast_and_default_quality_differ_in_shading_only(env):
    """Rank correlation of the brightness, the sky aside, which the fast quality leaves black."""
    env.reset(seed=0)
    model, data = env.unwrapped.model, env.unwrapped.data
    renderer = FastRenderer(model, 64, 64, CAMERA, "default")
    default, fast = renderer.render(data).mean(-1), env.render().mean(-1)
    renderer.close()
    shown = fast > 0
    assert shown.mean() > 0.7
    ranks = [np.argsort(np.argsort(x[shown], kind="stable")) for x in (fast, default)]
    assert np.corrcoef(*ranks)[0, 1] > 0.85


def test_fifty_tasks_each_with_an_expert(env):
    assert len(metaworld_tasks()) == 50
    assert list(metaworld_tasks()) == sorted(metaworld_tasks())
    # Meta-World's policies would warn that they ask for more than the actions allow.
    action = scripted_policy("button-press-v3").get_action(env.reset(seed=0)[0])
    assert np.shape(action) == (4,)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "button-pres",
            "task: expected a Meta-World v3 task such as button-press-v3, button-press-wall-v3, "
            "button-press-topdown-v3; got 'button-pres-v3'",
        ),
        (
            "zzz",
            "task: expected a Meta-World v3 task such as assembly-v3, basketball-v3, bin-picking-v3; got 'zzz-v3'",
        ),
    ],
)
def test_unknown_task(task, message):
    for make in (make_metaworld, scripted_policy):
        with pytest.raises(ValueError) as caught:
            make(task)
        assert str(caught.value) == message


@pytest.mark.parametrize("steps", [0, 501])
def test_episodes_that_meta_world_does_not_have(steps):
    with pytest.raises(ValueError) as caught:
        make_metaworld("reach", max_episode_steps=steps)
    assert str(caught.value) == f"max_episode_steps: expected 1 to 500 (Meta-World's own limit), got {steps}"


class TestVariedScene:
    FIELDS = ("cam_pos", "cam_quat", "cam_fovy", "light_diffuse", "light_pos", "geom_rgba", "mat_rgba")

    def state(self, env):
        model = env.unwrapped.model
        fields = [getattr(model, name).copy() for name in self.FIELDS]
        headlight = model.vis.headlight.ambient.copy(), model.vis.headlight.diffuse.copy()
        return [*fields, *headlight, env.render()]

    def test_changed_and_put_back_exactly(self, env):
        env.reset(seed=0)
        before = self.state(env)
        restore = vary_scene(env, np.random.default_rng(0))
        varied = self.state(env)
        restore()
        assert all((a != b).any() for a, b in zip(before, varied, strict=True))
        assert all((a == b).all() for a, b in zip(before, self.state(env), strict=True))

    def test_only_the_rendered_camera_moves(self, env):
        positions = env.unwrapped.model.cam_pos.copy()
        restore = vary_scene(env, np.random.default_rng(1))
        moved = (env.unwrapped.model.cam_pos != positions).any(1)
        restore()
        assert moved.nonzero()[0].tolist() == [env.unwrapped.model.camera(CAMERA).id]

    def test_the_generator_decides(self, env):
        pictures = []
        for seed in (2, 2, 3):
            restore = vary_scene(env, np.random.default_rng(seed))
            pictures.append(env.render())
            restore()
        assert (pictures[0] == pictures[1]).all()
        assert (pictures[0] != pictures[2]).any()

    def test_the_physics_stay(self, env):
        plain = rollout(env, 4)[0]
        env.reset(seed=4)
        restore = vary_scene(env, np.random.default_rng(0))
        varied = [env.step(action)[0] for action in ACTIONS]
        restore()
        assert np.abs(plain[1:] - varied).max() < 1e-12  # the solver starts warmer: rounding


def test_the_upside_down_camera_of_its_documentation_is_warned_of():
    def documented(camera):
        return gym.make(
            "Meta-World/MT1", env_name="button-press-v3", seed=0, render_mode="rgb_array", camera_name=camera, width=32,
            height=32, disable_env_checker=True,
        )  # fmt: skip

    message = (
        "the camera 'corner2' is upside down, and so is what the reward model sees; Meta-World is upright by "
        "vlp_gym.make_metaworld, others by render_fn=lambda env: env.render()[::-1, ::-1]"
    )
    wrap = partial(VLPRewardWrapper, instruction="press the button", model=PaintedModel())
    turned = documented("corner2")
    for wrong in (wrap, lambda env: wrap(FastRender(env, 32, 32)), lambda env: capture_frames([lambda: env])[0]()):
        with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
            wrong(turned)
    wrap(turned, render_fn=lambda env: env.render()[::-1, ::-1])  # warnings are errors here
    wrap(FastRender(turned, 32, 32, camera="topview"))
    for camera in ("topview", "behindGripper", "gripperPOV"):
        wrap(documented(camera)).close()
    for camera in ("corner", "corner2", "corner3", "corner4"):
        wrap(make_metaworld("button-press-v3", size=32, camera=camera)).close()
    turned.close()
