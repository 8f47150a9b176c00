from __future__ import annotations

import numpy as np
import pytest

from tests.rollouts import painted, with_steps
from vlp_gym.policies.rewards import frame_values, order_correlation, scripted_values, step_values
from vlp_gym.testing import PaintedModel


def test_values_are_interpolated_between_frames():
    rollout = with_steps(painted("reach-v3", "expert", 1))
    model = PaintedModel(window=4)
    frames = frame_values([rollout], model, "reach the goal", progress_bar=False)
    (values,) = step_values([rollout], frames)
    seen = rollout.frames[:, 0, 0].astype(np.float64) @ [65536, 256, 1] / (1 << 24)
    assert len(values) == len(rollout.action) + 1
    np.testing.assert_allclose(frames[0], seen, atol=1e-6)
    np.testing.assert_allclose(values[rollout.step], seen, atol=1e-6)
    np.testing.assert_allclose(values[1], 0.8 * seen[0] + 0.2 * seen[1], atol=1e-6)  # a frame every fifth step
    assert model.encoded == len(rollout.frames)


def test_scripted_values_are_the_rewards_as_shares_of_the_largest():
    made = [with_steps(painted("reach-v3", tier, n)) for n, tier in enumerate(("expert", "random"))]
    values = scripted_values(made)
    most = max(t.episode_reward.max() for t in made)
    for t, found in zip(made, values, strict=True):
        np.testing.assert_allclose(found[1:], t.episode_reward / most)
        assert found[0] == found[1]


def test_the_order_of_values():
    """Ranks 1 to 4 against 1, 3, 2, 4: 1 - 6 * 2 / (4 * 15); the first value does not count."""
    assert order_correlation(np.array([9.0, 0.1, 0.5, 0.3, 0.7])) == pytest.approx(0.8)
    assert order_correlation(np.array([0.0, 0.3, 0.2])) == pytest.approx(-1.0)
    assert order_correlation(np.array([0.0, 0.3])) == 0.0
