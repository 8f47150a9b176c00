"""The Fetch tasks: experts that succeed, pictures that show the goal, and what a collection holds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics")

from command_line import run

from vlp_gym.data.shards import load_trajectories
from vlp_gym.data.trajectory import NEAR_MISS
from vlp_gym.fetch.collect import BESIDE, LEAST_WAY, Actor, FetchConfig, rollout
from vlp_gym.fetch.env import EPISODE_STEPS, TASKS, make_fetch
from vlp_gym.fetch.experts import EXPERTS
from vlp_gym.fetch.instructions import HELD_OUT, TRAINING

CONFIG = FetchConfig(size=32)
OBJECTS = ("FetchPickAndPlace", "FetchPush", "FetchSlide")


@pytest.fixture(scope="module")
def envs():
    made = {task: make_fetch(task, size=96) for task in TASKS}
    yield made
    for env in made.values():
        env.close()


def success(env, expert, seeds):
    """Whether the expert succeeds at some step of each episode."""
    found = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        reached = truncated = False
        while not (reached or truncated):
            observation, reward, terminated, truncated, info = env.step(expert(observation).astype(np.float32))
            assert reward == pytest.approx(-np.linalg.norm(observation["desired_goal"] - observation["achieved_goal"]))
            assert not terminated
            reached = bool(info["is_success"])
        found.append(reached)
    return found


@pytest.mark.parametrize(
    ("task", "least"), [(task, 1.0) for task in TASKS if task != "FetchSlide"] + [("FetchSlide", 0.4)]
)
def test_experts_succeed(task, least, envs):
    """Seeds 0 to 4; of seeds 0 to 49 all but FetchSlide's, whose expert succeeds in about six of ten."""
    assert np.mean(success(envs[task], EXPERTS[task], range(5))) >= least


def test_none_succeeds_by_doing_nothing(envs):
    still = np.zeros(4)
    for task in OBJECTS:
        assert not any(success(envs[task], lambda _: still, range(3)))


def red(frame):
    """Pixels of the goal's ball, bool ``[H, W]``."""
    frame = frame.astype(int)
    return (frame[..., 0] > 150) & (frame[..., 1:].max(-1) < 80)


@pytest.mark.parametrize("task", TASKS)
def test_the_goal_is_seen_where_it_is(task, envs):
    """A ball that moves with the goal, in most episodes; the hand or the block may hide it."""
    env, places = envs[task], []
    for seed in range(6):
        env.reset(seed=seed)
        mark = red(env.render())
        if mark.sum() >= 3:
            places.append(np.argwhere(mark).mean(0))
    assert len(places) >= 4
    assert np.std(places, axis=0).min() > 2


@pytest.mark.parametrize("task", TASKS)
def test_demonstrations_end_in_success_and_near_misses_do_not(task, envs):
    shown = rollout(envs[task], task, "expert", CONFIG, 0)
    assert shown.success[-1]
    assert not shown.success[0]
    assert not rollout(envs[task], task, NEAR_MISS, CONFIG, 0).success.any()


@pytest.mark.parametrize("task", OBJECTS)
def test_a_block_that_is_not_there_changes_the_picture(task, envs):
    env = envs[task]
    env.reset(seed=2)
    before, inner = env.render().astype(int), env.unwrapped
    inner._utils.set_joint_qpos(inner.model, inner.data, "object0:joint", np.array([9.0, 9, 9, 1, 0, 0, 0]))
    inner._mujoco.mj_forward(inner.model, inner.data)
    assert (np.abs(env.render().astype(int) - before).max(-1) > 40).sum() >= 10


def test_tiers(envs):
    """An expert succeeds, and shows it; a medium rollout turns to noise; a near miss and noise do not succeed."""
    env, task = envs["FetchPush"], "FetchPush"
    made = {tier: rollout(env, task, tier, CONFIG, 0) for tier in ("expert", "medium", "random", NEAR_MISS)}
    for tier, shown in made.items():
        assert (shown.task, shown.tier, shown.camera) == (task, tier, "near")
        assert shown.success.any() == (tier == "expert")
        assert shown.frames.shape[1:] == (32, 32, 3)
        assert np.isnan(shown.positions).all()
        assert shown.observation.shape == (len(shown.action) + 1, 31)
        assert (shown.sentences, shown.held_out) == (TRAINING[task], HELD_OUT[task])
        left = np.linalg.norm(shown.observation[1:, :3] - shown.observation[1:, 3:6], axis=1)
        assert shown.episode_reward == pytest.approx(-left, abs=1e-5)
        assert np.linalg.norm(shown.observation[0, :3] - shown.observation[0, 3:6]) >= LEAST_WAY
        assert list(shown.step[:-1]) == list(range(0, 2 * len(shown.step) - 2, 2))
    expert = made["expert"]
    assert expert.success[-1]
    assert len(expert.action) < EPISODE_STEPS
    again = rollout(env, task, "expert", CONFIG, 0)
    assert np.array_equal(again.frames, expert.frames)
    assert not np.array_equal(rollout(env, task, "expert", CONFIG, 1).action[:4], expert.action[:4])
    assert not np.array_equal(rollout(env, task, "expert", replace(CONFIG, seed=1), 0).action[:4], expert.action[:4])


def test_a_near_miss_aims_beside_the_goal():
    """With the goal far to the right, it goes there, and arrives beside it."""
    goal = np.array([1.0, 5.0, 0.5])
    observation = {"observation": np.zeros(10), "achieved_goal": np.array([1.0, 1.0, 0.5]), "desired_goal": goal}
    actor = Actor("FetchReach", NEAR_MISS, observation, np.random.default_rng(0))
    assert actor.act(observation)[1] > 0.3
    there = {**observation, "achieved_goal": goal + actor.beside}
    assert np.abs(np.mean([actor.act(there)[:3] for _ in range(300)], 0)).max() < 0.06
    assert BESIDE[0] <= np.linalg.norm(actor.beside) <= BESIDE[1]


def test_the_command(tmp_path, capsys):
    command = (
        "collect",
        "fetch",
        "--tasks",
        "FetchReach",
        "--per-tier",
        1,
        "--near-miss",
        1,
        "--size",
        16,
        "--workers",
        1,
    )
    assert run(*command, "--out", tmp_path) == 0
    assert capsys.readouterr().out == f"rollouts: {tmp_path}\n"
    found = load_trajectories(tmp_path)
    assert sorted(t.tier for t in found) == ["expert", "medium", "near_miss", "random"]
    assert {t.task for t in found} == {"FetchReach"}
    settings = json.loads((tmp_path / "collect.json").read_text())
    assert settings == {
        **vars(FetchConfig()),
        "tiers": list(FetchConfig().tiers),
        "per_tier": 1,
        "near_miss": 1,
        "size": 16,
    }
    assert run(*command, "--out", tmp_path, "--seed", 1) == 2
    assert "was collected with other settings (then, now): {'seed': (0, 1)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--tasks", "FetchPsh"],
            "task: expected one of FetchPickAndPlace, FetchPush, FetchReach, FetchSlide; got 'FetchPsh'",
        ),
        (["--explore", 3, "--random-start"], "--explore, --random-start: fetch has no such option"),
        (["--camera", "topview"], "--camera: fetch has no such option"),
        (["--per-tier", 0], "expected something to collect: one of "),
    ],
)
def test_what_is_refused(options, message, tmp_path, capsys):
    assert run("collect", "fetch", "--out", tmp_path / "new", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
