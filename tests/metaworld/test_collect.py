"""The collection, by the command line, of one real Meta-World task; everything else looks at what it left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import rollouts as rollouts_kit
import torch

pytest.importorskip("metaworld")
pytest.importorskip("datasets")

from vlp_gym.commands.main import main
from vlp_gym.data.shards import load_trajectories, shard_path
from vlp_gym.data.trajectory import (
    AGENT,
    ALL_TIERS,
    APART,
    EITHER_WAY,
    EXPLORE,
    NEAR_MISS,
    RETREAT,
    TIERS,
    VARIANT_KINDS,
)
from vlp_gym.errors import DatasetError
from vlp_gym.frames.resize import resize_frames
from vlp_gym.metaworld import agents, apart, collect, recorder
from vlp_gym.metaworld.collect import Stage, collect_metaworld
from vlp_gym.metaworld.config import CollectConfig
from vlp_gym.metaworld.env import make_metaworld
from vlp_gym.storage import locked

TASK = "button-press-v3"
FIELD_OF_VIEW = 60  # degrees, of the camera
CONFIG = CollectConfig(
    2,
    near_miss=1,
    explore=1,
    retreat=1,
    apart=1,
    either_way=1,
    agent=2,
    agent_model="vlp-compact",
    stride=10,
    varied_share=0.5,
    seed=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made by worker processes, as a user makes it."""
    made = tmp_path_factory.mktemp("collected")
    settings = [
        "--per-tier",
        "2",
        "--near-miss",
        "1",
        "--explore",
        "1",
        "--retreat",
        "1",
        "--apart",
        "1",
        "--either-way",
        "1",
        "--agent",
        "2",
        "--stride",
        "10",
        "--varied-share",
        "0.5",
        "--seed",
        "4",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        status = main(["collect", "metaworld", "--out", str(made), "--tasks", "button-press", *settings])
    assert status == 0
    return made


@pytest.fixture(scope="module")
def rollouts(folder):
    return load_trajectories(folder, progress_bar=False)


def test_one_shard_a_tier_and_the_settings(folder):
    assert sorted(path.name for path in (folder / "data").iterdir()) == sorted(
        f"{TASK}-{tier}.parquet" for tier in ALL_TIERS
    )
    assert json.loads((folder / "collect.json").read_text()) == {**vars(CONFIG), "tiers": list(TIERS)}


def test_the_same_rollouts_from_another_camera(folder, rollouts, tmp_path):
    """Another camera of the expert's, and no other tier: the study of objectives learns from three views of each."""
    options = ["--per-tier", "1", "--tiers", "expert", "--camera", "corner3", "--stride", "10", "--seed", "4"]
    assert main(["collect", "metaworld", "--out", str(tmp_path), "--tasks", "button-press", *options]) == 0
    (seen,) = load_trajectories(tmp_path, progress_bar=False)
    same = next(t for t in rollouts if t.seed == seen.seed)
    assert (seen.tier, seen.camera, same.camera, same.varied) == ("expert", "corner3", "corner2", False)
    np.testing.assert_array_equal(seen.episode_reward, same.episode_reward)
    assert (seen.frames != same.frames).mean() > 0.5


def test_rollouts(rollouts):
    assert sorted((t.tier, t.varied) for t in rollouts if t.tier != AGENT) == sorted(
        [(tier, varied) for tier in TIERS for varied in (False, True)]
        + [(tier, False) for tier in (NEAR_MISS, EXPLORE, RETREAT, APART, EITHER_WAY)]
    )
    assert len({t.seed for t in rollouts}) == len(rollouts)
    for t in rollouts:
        assert (t.task, t.camera, t.stride) == (TASK, "corner2", 1 if t.tier in (APART, EITHER_WAY) else 10)
        assert t.frames.shape[1:] == (112, 112, 3)
        assert len({len(t.frames), len(t.step), len(t.reward), len(t.success)}) == 1
        last = len(t.episode_reward)
        expected = list(range(0, last + 1, t.stride))
        assert t.step.tolist() == (expected if expected[-1] == last else [*expected, last])
        assert t.reward[0] == 0
        assert t.reward[1:] == pytest.approx(t.episode_reward[t.step[1:] - 1])
        assert (t.frames[0] != t.frames[-1]).any()


def test_sentences_come_with_every_rollout(rollouts):
    for t in rollouts:
        assert t.canonical == "press the button"
        assert (len(t.sentences), len(t.held_out), len(t.opposite_sentences)) == (32, 8, 32)
        assert (t.opposite, t.sibling) == (None, "button-press-topdown-v3")
        assert tuple(t.variants) == VARIANT_KINDS


def replayed(env, t):
    """Observations and rewards of a rollout's actions, from a reset with its seed."""
    observation, _ = env.reset(seed=t.seed)
    seen, rewards = [observation], []
    for action in t.action:
        observation, reward, *_ = env.step(action)
        seen.append(observation)
        rewards.append(reward)
    return np.float32(seen), np.float32(rewards)


def test_the_actions_replay_the_rollout(rollouts):
    env = make_metaworld(TASK, seed=CONFIG.seed)
    for t in rollouts:
        if t.tier in (APART, EITHER_WAY):
            assert t.observation is t.action is None
            continue
        assert (t.observation.shape, t.action.shape) == ((len(t.episode_reward) + 1, 39), (len(t.episode_reward), 4))
        observations, rewards = replayed(env, t)
        # A scene with another light was computed once more before the first step, which changes the last digits.
        np.testing.assert_allclose(observations, t.observation, atol=1e-4 if t.varied else 0, rtol=0)
        np.testing.assert_allclose(rewards, t.episode_reward, atol=1e-3 if t.varied else 0, rtol=0)
    env.close()


def test_a_hand_that_starts_elsewhere_and_larger_frames(tmp_path):
    config = CollectConfig(2, ("random",), size=224, stride=50, random_start=True, seed=4)
    collect._collect_task((tmp_path, config, TASK, ["random"]))
    made = load_trajectories(tmp_path, progress_bar=False)
    env = make_metaworld(TASK, seed=4, random_start=True)
    starts = {tuple(t.observation[0, :3]) for t in made}
    assert len(starts) == 2
    for t in made:
        assert t.frames.shape[1:] == (224, 224, 3)
        observations, rewards = replayed(env, t)
        np.testing.assert_array_equal(observations, t.observation)
        np.testing.assert_array_equal(rewards, t.episode_reward)
    env.close()


def test_positions_are_what_the_camera_sees(rollouts):
    """The gripper's cyan finger is where the recorded hand falls on the first picture; later others may hide it."""
    for t in rollouts:
        assert t.positions.shape == (len(t.frames), 2, 3)
        assert t.positions.dtype == np.float32
        assert (t.positions[..., 2] < -0.3).all()  # in front of the camera
        if t.varied:
            continue
        (x, y, z), focal = t.positions[0, 0], 56 / np.tan(np.deg2rad(FIELD_OF_VIEW) / 2)
        column, row = round(56 + focal * x / -z), round(56 - focal * y / -z)
        around = t.frames[0, row - 4 : row + 5, column - 6 : column + 7].astype(int)
        assert ((around[..., 2] > 120) & (around[..., 2] - around[..., 0] > 60)).any(), (t.tier, column, row)
    reached = [np.linalg.norm(np.diff(t.positions, axis=1)[:, 0], axis=1) for t in rollouts if t.tier == "expert"]
    assert all(distance[-1] < 0.15 < distance[0] for distance in reached)


def test_tiers_are_what_they_are_called(rollouts):
    by_tier = {tier: [t for t in rollouts if t.tier == tier] for tier in ALL_TIERS}
    for t in by_tier["expert"]:
        assert t.success[-1]
        assert not t.success[0]
    for t in by_tier["random"] + by_tier[NEAR_MISS]:
        assert not t.success[:-1].any()
        assert len(t.episode_reward) < 120
    (retreat,) = by_tier[RETREAT]
    hand, button = np.linalg.norm(retreat.positions - retreat.positions[0], axis=-1).T
    assert retreat.success.any()
    assert hand[-1] < hand.max() - 0.1  # on its way back
    assert button[-1] > 0.5 * button.max() > 0.03  # pressed still
    (apart,) = by_tier[APART]
    hand, button = np.linalg.norm(apart.positions - apart.positions[0], axis=-1).T
    assert 0.2 < np.mean(button > 0.02) < 0.8
    near, far = (np.linalg.norm(np.diff(apart.positions, axis=1)[:, 0], axis=1) < 0.12), hand > 0.2
    assert (button[near] < 0.01).any()  # a hand at a button that has not moved
    assert (button[far] > 0.02).any()
    assert 120 <= len(by_tier[EXPLORE][0].episode_reward) < 180
    assert [len(t.episode_reward) for t in by_tier[AGENT]] == [agents.EPISODE_STEPS] * 2
    best = {tier: np.mean([t.episode_reward.max() for t in group]) for tier, group in by_tier.items()}
    assert best["expert"] > max(best["medium"], best["random"], best[NEAR_MISS])
    assert best["medium"] > best["random"]


def test_an_object_goes_either_way(tmp_path):
    task = "faucet-open-v3"
    collect._collect_task((tmp_path, CollectConfig(0, either_way=8, seed=1), task, [EITHER_WAY]))
    made = list(load_trajectories(tmp_path, progress_bar=False))
    shift = [np.linalg.norm(t.positions - t.positions[0], axis=-1)[:, 1] for t in made]
    assert all(0.2 < np.mean(each > 0.01) < 0.8 and each.max() > 0.1 for each in shift)
    onwards = [t for t in made if t.success.any()]
    assert 2 <= len(onwards) <= 6
    assert all(t.success[-1] and not t.success[0] for t in onwards)
    ends = np.stack([t.positions[-1, 1] - t.positions[0, 1] for t in made])
    success = np.array([t.success.any() for t in made])
    along = ends @ ends[success].mean(0) / np.linalg.norm(ends[success].mean(0))
    assert along[success].min() > 0.15  # metres
    assert along[~success].max() < 0.1  # it turns: a part of its way goes to the side


@pytest.mark.parametrize(
    ("task", "joint", "place", "mirrored"),
    [
        ("faucet-open-v3", "knob_Joint_1", [1.0], [-1.0]),
        ("door-open-v3", "doorjoint", [-1.0], [0.0]),  # a closed door cannot be closed further
        ("push-v3", "objjoint", [0.1, 0.2, 0.3, 0.5, 0.5, 0.5, 0.5], [-0.1, -0.2, 0.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_the_other_side_of_an_objects_first_place(task, joint, place, mirrored):
    env = make_metaworld(task, seed=0)
    env.reset(seed=0)
    base = env.unwrapped
    first = base.data.qpos.copy()
    there, start = first.copy(), int(base.model.joint(joint).qposadr[0])
    places = slice(start, start + len(place))
    there[places] += place
    found = apart._mirrored(base.model, first, there, np.arange(len(first)) < 9) - first
    np.testing.assert_allclose(found[places], mirrored, atol=1e-6)
    env.close()


def test_the_same_seed_gives_the_same_frames_and_what_is_there_is_kept(folder, tmp_path):
    """A run that stopped between two shards goes on: the missing ones come out as if it had never stopped."""
    shutil.copytree(folder, tmp_path / "resumed")
    resumed = tmp_path / "resumed"
    for tier in ("medium", NEAR_MISS, AGENT):
        shard_path(resumed, TASK, tier).unlink()
    kept = {tier: shard_path(resumed, TASK, tier).stat().st_mtime_ns for tier in ("expert", "random")}
    collect._collect_task((resumed, CONFIG, TASK, ALL_TIERS))
    assert {tier: shard_path(resumed, TASK, tier).stat().st_mtime_ns for tier in kept} == kept
    for tier in ALL_TIERS:
        assert shard_path(resumed, TASK, tier).read_bytes() == shard_path(folder, TASK, tier).read_bytes(), tier


def test_nothing_is_left_to_do(folder, monkeypatch):
    monkeypatch.setattr(collect, "_collect_task", None)  # no worker could run it
    collect_metaworld(folder, CONFIG, tasks=[TASK], progress_bar=False)


def test_other_settings_are_refused(folder):
    with pytest.raises(DatasetError) as caught:
        collect_metaworld(folder, CollectConfig(**{**vars(CONFIG), "seed": 5, "stride": 5}), tasks=[TASK])
    assert str(caught.value) == (
        f"{folder} was collected with other settings (then, now): {{'stride': (10, 5), 'seed': (4, 5)}}; "
        "choose another --out"
    )


def test_a_folder_of_an_older_version_goes_on(folder, tmp_path, monkeypatch):
    """Its settings say nothing of what could not be set yet."""
    monkeypatch.setattr(collect, "_collect_task", None)  # no worker could run it
    old = shutil.copytree(folder, tmp_path / "old")
    settings = json.loads((old / "collect.json").read_text())
    del settings["random_start"], settings["size"]
    (old / "collect.json").write_text(json.dumps(settings))
    collect_metaworld(old, CONFIG, tasks=[TASK], progress_bar=False)
    with pytest.raises(DatasetError) as caught:
        collect_metaworld(old, replace(CONFIG, random_start=True, size=224), tasks=[TASK])
    assert str(caught.value) == (
        f"{old} was collected with other settings (then, now): {{'size': (112, 224), 'random_start': (False, True)}}; "
        "choose another --out"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", "all: Input should be an object"),
        ('{"stride": "5"}', "stride: Input should be a valid integer"),
        ('{"fps": 5}', "fps: Unexpected keyword argument"),
        ("{", "all: Invalid JSON: EOF while parsing an object at line 1 column 1"),
    ],
)
def test_settings_that_are_none(tmp_path, text, fault):
    (tmp_path / "collect.json").write_text(text)
    with pytest.raises(DatasetError) as caught:
        collect_metaworld(tmp_path, CONFIG, tasks=[TASK])
    assert str(caught.value) == (
        f"{tmp_path / 'collect.json'}: expected the settings of a collection ({fault}); choose another --out"
    )


def test_settings_in_a_pipe_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "collect.json")
    with pytest.raises(DatasetError) as caught:
        collect_metaworld(tmp_path, CONFIG, tasks=[TASK])
    assert str(caught.value) == (
        f"{tmp_path / 'collect.json'}: expected a file, but it is a folder, a pipe or a device"
    )


def test_two_collections_into_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(DatasetError) as caught:
        collect_metaworld(tmp_path, CONFIG, tasks=[TASK])
    assert str(caught.value) == (
        f"{tmp_path}: process {os.getpid()} is writing there; wait for its end, or choose another folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_write_that_died_leaves_nothing_when_the_collection_goes_on(folder, rollouts, tmp_path):
    resumed = shutil.copytree(folder, tmp_path / "resumed")
    path = shard_path(resumed, TASK, "random")
    path.unlink()
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = re.sub(r"\W", "_", os.uname().nodename)
    (path.parent / f".{path.name}.{host}-{ended.stdout.strip()}-1.tmp").write_bytes(b"half")
    assert len(load_trajectories(resumed, progress_bar=False)) == len(rollouts) - CONFIG.per_tier
    collect._collect_task((resumed, CONFIG, TASK, ["random"]))
    assert [entry.name for entry in path.parent.iterdir() if entry.suffix != ".parquet"] == []


def test_killed_worker_is_an_error_and_not_a_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "_collect_task", rollouts_kit.killed)
    with pytest.raises(DatasetError, match=r"^a collecting process was killed .* goes on where it stopped"):
        collect_metaworld(tmp_path, CONFIG, tasks=[TASK], workers=1, progress_bar=False)


@pytest.mark.parametrize(("share", "varied"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_share_of_varied_rollouts(share, varied, monkeypatch):
    class Env:
        def reset(self, seed):
            return np.zeros(39), {}

        def render(self):
            return np.zeros((8, 8, 3), np.uint8)

        def step(self, action):
            return np.zeros(39), 0.0, False, False, {"success": 1.0, "near_object": 0.0}

    restored = []
    monkeypatch.setattr(collect, "vary_scene", lambda env, rng: lambda: restored.append(1))
    monkeypatch.setattr(recorder, "camera_positions", lambda env, observation: np.zeros((2, 3), np.float32))
    config = CollectConfig(size=8, varied_share=share)
    made = [collect._rollout(Env(), config, TASK, "random", Stage(False, 5), index) for index in range(8)]
    assert sum(t.varied for t in made) == len(restored) == varied


class TestActor:
    class Policy:
        """Asks for the object's position, as the actions allow it."""

        def get_action(self, observation):
            return np.append(observation[4:7], 0.5)

    @pytest.fixture(autouse=True)
    def _policy(self, monkeypatch):
        monkeypatch.setattr(collect, "scripted_policy", lambda task: self.Policy())

    OBSERVATION = np.full(39, 0.1)
    ASKED = np.array([0.1, 0.1, 0.1, 0.5])

    def actions(self, actor, count=2000):
        return np.array([actor(self.OBSERVATION) for _ in range(count)])

    def actor(self, tier, stage=None):
        return collect._Actor(TASK, tier, stage or Stage(by_near_object=True, steps=20), np.random.default_rng(0))

    def test_expert_is_the_policy_with_a_little_noise(self):
        actions = self.actions(self.actor("expert"))
        assert actions.dtype == np.float32
        assert actions.mean(0) == pytest.approx(self.ASKED, abs=0.02)
        assert actions.std(0) == pytest.approx(0.1, abs=0.01)

    def test_random_is_uniform(self):
        actions = self.actions(self.actor("random"))
        assert actions.min() < -0.98
        assert actions.max() > 0.98
        assert actions.std() == pytest.approx(1 / 3**0.5, abs=0.02)

    def test_near_miss_aims_beside_and_leaves_the_observation_alone(self):
        before = self.OBSERVATION.copy()
        beside = self.actions(self.actor(NEAR_MISS)).mean(0) - self.ASKED
        assert 0.05 < np.linalg.norm(beside[:2]) < 0.22
        assert (before == self.OBSERVATION).all()

    def test_exploring_hand_reaches_what_it_aims_for(self):
        actor, hand, near = self.actor(EXPLORE), np.array([0.0, 0.6, 0.2]), []
        for _ in range(3000):
            observation = np.concatenate([hand, [1.0], self.OBSERVATION[4:]])
            action = actor(observation)
            hand = hand + 0.02 * action[:3]
            if actor.phase == 0 and actor.aim is not None:
                near.append(np.linalg.norm(hand - actor.aim))
        assert len(near) > 50
        assert np.median(near) < 0.05
        assert not actor.observe(5, {"near_object": 1.0}, succeeded=True)

    def test_medium_stops_trying_halfway(self):
        for stage, halfway in ((Stage(True, 20), {"near_object": 1.0}), (Stage(False, 6), {"near_object": 0.0})):
            actor = self.actor("medium", stage)
            assert not actor.observe(5, halfway, succeeded=False)
            assert self.actions(actor).mean(0) == pytest.approx(self.ASKED, abs=0.05)
            assert not actor.observe(6, halfway, succeeded=False)
            assert self.actions(actor).mean(0) == pytest.approx(0, abs=0.05)
            ends = [actor.observe(7 + k, halfway, succeeded=False) for k in range(collect.NOISE_AFTER_STAGE)]
            assert ends == [False] * (collect.NOISE_AFTER_STAGE - 1) + [True]

    def test_expert_goes_on_a_little_beyond_success(self):
        actor, nothing = self.actor("expert"), {"near_object": 0.0}
        assert not actor.observe(50, nothing, succeeded=False)
        assert not actor.observe(51, nothing, succeeded=True)
        low, high = collect.BEYOND_SUCCESS
        ends = [actor.observe(52 + k, nothing, succeeded=True) for k in range(high)]
        assert low <= ends.index(True) + 1 < high

    def test_a_retreating_hand_rises_and_goes_back(self):
        actor, nothing = self.actor(RETREAT), {"near_object": 0.0}
        hand = np.array([0.3, 0.8, 0.1])
        self.actions(actor, 1)  # where it was at first: the observation's place
        assert not actor.observe(51, nothing, succeeded=True)
        path, over = [], False
        while not over:
            action = actor(np.concatenate([hand, [1.0], self.OBSERVATION[4:]]))
            if actor.aim is not None:
                hand = hand + 0.02 * action[:3]
                path.append(hand)
            over = actor.observe(52, nothing, succeeded=True)
        low, high = collect.RETREAT_STEPS
        assert low <= len(path) <= high
        assert path[len(path) // 4][2] > 0.17
        assert np.linalg.norm(path[-1] - self.OBSERVATION[:3]) < 0.3 * np.linalg.norm(path[0] - self.OBSERVATION[:3])

    def test_random_stops_at_a_lucky_success(self):
        assert self.actor("random").observe(3, {"near_object": 0.0}, succeeded=True)


def test_frames_are_resized_as_models_resize_theirs(monkeypatch):
    frame = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    monkeypatch.setattr(recorder, "camera_positions", lambda env, observation: np.zeros((2, 3), np.float32))
    kept = recorder.Recorder(None, 8, np.zeros(39))
    for reward in (0.1, 0.2, 0.5):
        kept.step(np.full(4, 2 * reward), np.full(39, reward), reward)
    kept.add(frame, True)
    made = kept.trajectory(task=TASK, tier="expert", seed=0, camera="corner2", stride=3, varied=False)
    assert (made.frames[0] == resize_frames(torch.from_numpy(frame)[None], (8, 8))[0].numpy()).all()
    assert (made.step.tolist(), made.reward.tolist(), made.success.tolist()) == ([3], [0.5], [True])
    assert made.observation.dtype == made.action.dtype == np.float32
    np.testing.assert_array_equal(made.observation, np.float32([[value] * 39 for value in (0, 0.1, 0.2, 0.5)]))
    np.testing.assert_array_equal(made.action, np.float32([[value] * 4 for value in (0.2, 0.4, 1.0)]))


def test_what_a_policy_writes_into_an_observation_is_not_recorded():
    """As Meta-World's policies for doors do."""
    given = [np.zeros(39), np.ones(39)]
    kept = recorder.Recorder(None, 8, given[0])
    kept.step(np.zeros(4), given[1], 0.0)
    for observation in given:
        observation += 5
    assert [observation.max() for observation in kept.observations] == [0, 1]
