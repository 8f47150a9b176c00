"""Fast rendering: the same picture as the environment's own, in the caller's array, one GL context each."""

from __future__ import annotations

import gc

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("mujoco")

from vlp_gym.frames.rendering import FastRender, FastRenderer, roll_camera


def rank_correlation(a, b):
    """Spearman, of the brightness of the pixels."""
    ranks = [np.argsort(np.argsort(x.mean(-1).ravel(), kind="stable")) for x in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


@pytest.fixture(scope="module")
def own_picture():
    """By Gymnasium's viewer."""
    env = gym.make("InvertedPendulum-v5", render_mode="rgb_array", width=80, height=64)
    env.reset(seed=0)
    picture = env.render()
    env.close()
    return picture


@pytest.fixture
def pendulum(own_picture):
    env = gym.make("InvertedPendulum-v5", render_mode="rgb_array")
    env.reset(seed=0)
    yield env
    env.close()


class TestFastRender:
    def test_same_picture_as_the_environment_itself(self, pendulum, own_picture):
        """Its own free camera too, which is set in Python and not in the model."""
        fast = FastRender(pendulum, 64, 80).render()
        assert fast.shape == (64, 80, 3)
        assert fast.dtype == np.uint8
        assert rank_correlation(fast, own_picture) > 0.9

    def test_default_quality_is_the_environments_own(self, pendulum, own_picture):
        default = FastRender(pendulum, 64, 80, quality="default").render()
        assert np.abs(default - own_picture.astype(float)).mean() < 0.5

    def test_what_the_environment_puts_in_its_place_before_a_picture(self, pendulum):
        """Gymnasium-Robotics moves the goal's mark there."""
        fast = FastRender(pendulum, 64, 80)
        before, inner = fast.render(), pendulum.unwrapped
        inner._render_callback = lambda: inner.set_state(np.array([1.0, 0.5]), np.zeros(2))
        assert (fast.render() != before).any()

    def test_not_after_close(self):
        env = FastRender(gym.make("InvertedPendulum-v5", render_mode="rgb_array"), 16, 16)
        env.reset(seed=0)
        env.render()
        env.close()
        with pytest.raises(gym.error.ClosedEnvironmentError, match=r"^render was called after close$"):
            env.render()

    def test_a_reset_without_defaults_or_options(self, pendulum):
        class Strict(gym.Wrapper):
            def reset(self, seed, options):
                return self.env.reset(seed=seed, options=options)

        class Plain(gym.Wrapper):
            def reset(self, seed=None):
                return self.env.reset(seed=seed)

        states = [FastRender(env, 32, 32).reset(seed=3)[0] for env in (pendulum, Strict(pendulum), Plain(pendulum))]
        assert (states[0] == states[1]).all()
        assert (states[0] == states[2]).all()

    def test_a_new_array_for_every_frame(self, pendulum):
        env = FastRender(pendulum, 32, 32)
        first = env.render()
        before = first.copy()
        for _ in range(5):
            pendulum.step([3.0])
        second = env.render()
        assert (first == before).all()
        assert (second != first).any()

    def test_a_recompiled_model_gets_a_new_renderer(self, pendulum):
        env = FastRender(pendulum, 32, 32)
        before = env.render()
        old = env._renderer
        env._rendered_model = None  # as if reset had compiled another model
        assert (env.render() == before).all()
        assert env._renderer is not old
        assert old._gl is None

    def test_close_twice_and_draw_again(self, pendulum):
        renderer = FastRenderer(pendulum.unwrapped.model, 16, 16)
        before = renderer.render(pendulum.unwrapped.data)
        renderer.close()
        renderer.close()
        assert (FastRenderer(pendulum.unwrapped.model, 16, 16).render(pendulum.unwrapped.data) == before).all()

    def test_no_mujoco_environment(self):
        env = gym.make("CartPole-v1", render_mode="rgb_array")
        with pytest.raises(ValueError) as caught:
            FastRender(env)
        assert str(caught.value) == f"FastRender: expected a MuJoCo environment with .model and .data, got {env}"


class TestFastRenderer:
    def test_draws_into_the_callers_array(self, pendulum):
        renderer = FastRenderer(pendulum.unwrapped.model, 24, 32)
        ring = np.zeros((3, 24, 32, 3), np.uint8)
        renderer.render_into(pendulum.unwrapped.data, ring[1])
        assert (ring[1] == renderer.render(pendulum.unwrapped.data)).all()
        assert ring[1].any()
        assert not ring[[0, 2]].any()

    def test_what_one_context_frees_is_not_anothers(self, pendulum):
        model, data = pendulum.unwrapped.model, pendulum.unwrapped.data
        small, large, third = FastRenderer(model, 16, 16), FastRenderer(model, 48, 40), FastRenderer(model, 20, 20)
        pictures = small.render(data), large.render(data)
        third.render(data)
        small.render(data)
        third.close()  # while another context is current
        FastRenderer(model, 12, 12).render(data)  # never closed: garbage at once
        small.render(data)
        gc.collect()
        assert (small.render(data) == pictures[0]).all()
        assert (large.render(data) == pictures[1]).all()
        for _ in range(5):
            pendulum.step([3.0])
        assert (small.render(data) != pictures[0]).any()  # nor does it show for ever what it showed last

    def test_the_models_own_settings_stay(self, pendulum):
        model = pendulum.unwrapped.model
        before = model.vis.quality.offsamples, model.vis.quality.shadowsize
        FastRenderer(model, 16, 16)
        assert (model.vis.quality.offsamples, model.vis.quality.shadowsize) == before

    def test_larger_than_the_models_buffer(self, pendulum):
        width = pendulum.unwrapped.model.vis.global_.offwidth + 8
        picture = FastRenderer(pendulum.unwrapped.model, 16, width).render(pendulum.unwrapped.data)
        assert picture.shape == (16, width, 3)

    @pytest.mark.parametrize(
        ("camera", "message"),
        [
            ("corner9", "camera: expected one of [], got 'corner9'"),
            (7, "camera: expected an index from -1 to -1, got 7"),
        ],
    )
    def test_unknown_camera(self, pendulum, camera, message):
        for make in (
            lambda: FastRenderer(pendulum.unwrapped.model, 16, 16, camera),
            lambda: FastRender(pendulum, 16, 16, camera),
        ):
            with pytest.raises(ValueError) as caught:
                make()
            assert str(caught.value) == message

    def test_unknown_quality(self, pendulum):
        for make, environment in ((FastRenderer, pendulum.unwrapped.model), (FastRender, pendulum)):
            with pytest.raises(ValueError) as caught:
                make(environment, 16, 16, quality="best")
            assert str(caught.value) == 'quality: expected "fast" or "default", got \'best\''


def test_roll_camera_turns_the_picture():
    """A half turn about the viewing axis is the picture upside down and mirrored."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(
        '<mujoco><visual><headlight diffuse="0.6 0.6 0.6"/></visual><worldbody><camera name="eye" pos="0 0 3"/>'
        '<geom type="box" size="0.5 0.2 0.1" pos="0.4 0.5 0" rgba="1 0 0 1"/></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = FastRenderer(model, 40, 40, "eye")
    upright = renderer.render(data)
    roll_camera(model, "eye", 180)
    mujoco.mj_forward(model, data)
    turned = renderer.render(data)
    assert upright.any()
    assert (np.abs(turned[::-1, ::-1].astype(int) - upright).max(-1) > 8).mean() < 0.01  # but for edges
    assert (turned != upright).any()
