"""ManiSkill where it is installed and can draw: experts that succeed, what the tiers show, and a collection."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("mani_skill")
pytest.importorskip("mplib")

from command_line import run

from vlp_gym.data.shards import load_trajectories
from vlp_gym.data.trajectory import TIERS
from vlp_gym.errors import MissingExtraError
from vlp_gym.maniskill.apart import FRAMES, TOUCHED
from vlp_gym.maniskill.collect import ManiSkillConfig, rollout
from vlp_gym.maniskill.env import frame_of, make_maniskill, positions_of
from vlp_gym.maniskill.instructions import HELD_OUT, TRAINING
from vlp_gym.maniskill.tasks import TASKS
from vlp_gym.wrappers import VLPBatchRewardWrapper, VLPRewardWrapper

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]
CONFIG = ManiSkillConfig(size=32)


@pytest.fixture(scope="module")
def env():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = make_maniskill("PushCube", size=96)
    except MissingExtraError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.mark.parametrize("task", TASKS)
def test_experts_succeed_and_show_it(task, env):
    own = env if task == "PushCube" else make_maniskill(task, size=64)
    made = rollout(own, task, "expert", CONFIG, 0)
    own.close() if own is not env else None
    assert (made.success[0], made.success[-1]) == (False, True)
    assert made.positions.shape == (len(made.frames), 2, 3)
    assert (made.positions[..., 2] < 0).all()  # in front of the camera
    assert np.linalg.norm(made.positions[-1, 1] - made.positions[0, 1]) > 0.03
    apart = np.linalg.norm(made.positions[:, 0] - made.positions[:, 1], axis=-1)
    assert apart.min() < 0.8 * apart[0]  # of a tool or a long object the hand holds an end
    assert made.episode_reward[-1] >= made.episode_reward[0]


def test_tiers(env):
    made = {tier: rollout(env, "PushCube", tier, CONFIG, 0) for tier in TIERS}
    for tier, shown in made.items():
        assert (shown.task, shown.tier, shown.camera) == ("PushCube", tier, "render_camera")
        assert shown.success.any() == (tier == "expert")
        assert shown.frames.shape[1:] == (32, 32, 3)
        assert (shown.sentences, shown.held_out) == (TRAINING["PushCube"], HELD_OUT["PushCube"])
        assert len(shown.observation) == len(shown.action) + 1
        assert np.abs(shown.action).max() <= 1
        assert list(shown.step[:-1]) == list(range(0, 5 * len(shown.step) - 5, 5))
    assert len({shown.seed for shown in made.values()}) == 3
    again = rollout(env, "PushCube", "expert", CONFIG, 0)
    assert np.array_equal(again.frames[:5], made["expert"].frames[:5])
    assert again.action == pytest.approx(made["expert"].action, abs=0.02)  # from the first contact on, nearly
    assert again.positions == pytest.approx(made["expert"].positions, abs=0.01)
    assert rollout(env, "PushCube", "random", CONFIG, 1).seed != made["random"].seed
    assert rollout(env, "PushCube", "random", replace(CONFIG, seed=1), 0).seed != made["random"].seed


def test_arm_and_object_are_shown_apart(env):
    made = rollout(env, "PushCube", "apart", CONFIG, 0)
    hand, thing = made.positions.swapaxes(0, 1)
    assert (made.tier, len(made.frames), made.success[0], made.action) == ("apart", FRAMES, False, None)
    way = np.linalg.norm(thing - thing[0], axis=-1)
    still = way < TOUCHED
    assert 0.25 < still.mean() < 0.85  # one half, of 24 draws
    assert way[~still].min() > TOUCHED
    far = np.linalg.norm(hand - thing, axis=-1)
    assert far[~still].max() > 0.15  # the object has moved, and no hand is there
    assert far[still].min() < 0.08  # a hand is there, and it has not
    base = env.unwrapped
    env.reset(seed=made.seed)
    goal, cube = base.goal_region.pose.p[0], base.obj.pose.p[0]
    assert positions_of(env, "PushCube")[1] == pytest.approx(made.positions[0, 1], abs=1e-4)
    for placed, success in zip(thing, made.success, strict=True):  # the camera turns, lengths stay
        moved = float(np.linalg.norm(placed - thing[0]))
        assert not success or moved > float(np.linalg.norm((goal - cube)[:2])) - base.goal_radius - 0.01


def test_stored_actions_repeat_the_rollout(env):
    made = rollout(env, "PushCube", "random", CONFIG, 0)
    scaled = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
    observation, _ = scaled.reset(seed=made.seed)
    assert observation[0].numpy() == pytest.approx(made.observation[0])
    for action, expected in zip(made.action, made.observation[1:], strict=True):
        observation, *_ = scaled.step(action)
        assert observation[0].numpy() == pytest.approx(expected, abs=0.01)


def test_its_batches_of_tensors(env):
    """ManiSkill's vector environment pays what the same environment pays alone."""
    from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper
    from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

    alone = VLPRewardWrapper(CPUGymWrapper(env, ignore_terminations=True), "push the cube onto the target")
    batch = VLPBatchRewardWrapper(
        ManiSkillVectorEnv(env, auto_reset=False, ignore_terminations=True), "push the cube onto the target"
    )
    action = np.append(env.unwrapped.agent.robot.get_qpos()[0, :7].numpy() + 0.1, 1.0)
    paid = []
    for wrapped, actions in ((alone, action), (batch, action[None])):
        wrapped.reset(seed=3)
        paid.append([float(wrapped.step(actions)[1]) for _ in range(3)])
    assert paid[1] == pytest.approx(paid[0], abs=1e-4)
    assert max(paid[0]) > 0
    rewards, infos = batch.step(action[None])[1::3]
    assert rewards.shape == (1,)
    assert rewards.dtype.is_floating_point
    assert infos["vlp"]["score"].shape == (1,)
    with pytest.raises(ValueError, match="for ManiSkill say auto_reset=False"):
        VLPBatchRewardWrapper(ManiSkillVectorEnv(env), "push the cube onto the target")


def test_the_object_is_seen_where_it_is(env):
    """Without it, the picture changes there."""
    import sapien

    size, focus = 96, 96 / 2 / np.tan(0.8 / 2)
    for seed in range(3):
        env.reset(seed=seed)
        before, (_, thing) = frame_of(env).astype(int), positions_of(env, "PushCube")
        env.unwrapped.obj.set_pose(sapien.Pose([0, 0, -5]))
        changed = np.argwhere(np.abs(frame_of(env) - before).max(-1) > 40)
        expected = size / 2 + focus * np.array([-thing[1], thing[0]]) / -thing[2]
        assert len(changed) >= 20
        assert np.median(changed, 0) == pytest.approx(expected, abs=3)


def test_the_command(tmp_path, env, capsys):
    command = ("collect", "maniskill", "--tasks", "PushCube", "--per-tier", 1, "--size", 16, "--workers", 1)
    assert run(*command, "--out", tmp_path) == 0
    assert capsys.readouterr().out == f"rollouts: {tmp_path}\n"
    assert [(t.task, t.tier) for t in load_trajectories(tmp_path)] == [("PushCube", tier) for tier in TIERS]
    settings = json.loads((tmp_path / "collect.json").read_text())
    assert settings == {**vars(ManiSkillConfig()), "tiers": list(TIERS), "per_tier": 1, "size": 16}


def test_what_is_refused(tmp_path, capsys):
    assert run("collect", "maniskill", "--out", tmp_path / "new", "--near-miss", 3, "--camera", "topview") == 2
    assert "--near-miss, --camera: maniskill has no such option" in capsys.readouterr().err
