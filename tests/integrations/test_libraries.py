"""TorchRL, Minari, Tianshou and skrl: every stored reward is what the painted frame of its own transition says."""

from __future__ import annotations

import gc
import os
import re
import sys
import warnings
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from late import SeenEnv, SlowModel
from libraries import LENGTHS, RAY, STEP, FlakyModel, equal, single, until_it_fails, vector
from test_docs import ROOT, blocks, run_python, shorten

from vlp_gym.engine import QueryEngine
from vlp_gym.errors import MissingExtraError, QueryError
from vlp_gym.testing import PaintedEnv

pytestmark = pytest.mark.timeout(600)  # the first import of such a library takes long, and numba compiles


# ---------------------------------------------------------------- TorchRL


def torchrl_env(envs, *others):
    from torchrl.envs import Compose, GymWrapper, TransformedEnv

    from vlp_gym.integrations.torchrl import VLPRewardTransform

    transform = VLPRewardTransform(timeout_s=5.0)
    return TransformedEnv(GymWrapper(envs), Compose(transform, *others) if others else transform), transform


TORCHRL_KINDS = {
    "single": single,
    "captured": partial(vector, "captured"),
    "captured, SAME_STEP": partial(vector, "captured", autoreset="SameStep", flat_info=True),
    "one by one": partial(vector, "one by one"),
    "one by one, SAME_STEP": partial(vector, "one by one", autoreset="SameStep", flat_info=True),
}


@pytest.mark.filterwarnings(
    "ignore:Nested TransformedEnvs:UserWarning", "ignore:Creating .* which inherits:DeprecationWarning"
)
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", TORCHRL_KINDS)
def test_torchrl_rollouts_and_buffers(torchrl, kind, mode):
    """A collector whose batches are whole, and one whose batches go into a buffer at once."""
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.envs import check_env_specs
    from torchrl.envs.utils import RandomPolicy

    for off_policy in (False, True):
        env, transform = torchrl_env(TORCHRL_KINDS[kind](mode))
        check_env_specs(env)
        policy = RandomPolicy(env.full_action_spec)
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(64), batch_size=16)
        buffer.append_transform(transform.clone())
        postproc = None if off_policy else transform.clone()
        late = 0
        for batch in Collector(env, policy, frames_per_batch=12, total_frames=96, postproc=postproc):
            if off_policy:
                late += int((batch["next", "vlp_row"] != 0).sum())
                buffer.extend(batch.reshape(-1))
                batch = buffer.sample()
            assert equal(batch["next", "reward"], batch["next", "observation"])
        if off_policy:
            assert (late > 0) is (mode == "async")
            buffer[:] = buffer[:]  # to be saved: whole without the transform
            stored = buffer.storage[:]
            assert not stored["next", "vlp_row"].any()
            assert equal(stored["next", "reward"], stored["next", "observation"])


def is_known(transform, step):
    try:
        transform(step)
    except QueryError as error:
        assert str(error) == "no reward came for 1 of 1 transitions, and none is on its way"  # noqa: PT017
        return False
    return True


def test_torchrl_a_model_that_fails(torchrl):
    model = FlakyModel()
    env, transform = torchrl_env(single(model=model))
    env.rollout(3)
    model.fails_at = model.calls + 6
    batches = until_it_fails(lambda: env.rollout(4, break_when_any_done=False))
    for step in (step for batch in batches for step in batch):
        painted = int(step["next", "observation"] / STEP)
        lost = any(failed >> 10 == painted >> 10 and failed <= painted for failed in model.failed)  # from there on
        assert is_known(transform, step) is not lost
        assert lost or equal(step["next", "reward"], step["next", "observation"])
    again = transform(env.rollout(5, break_when_any_done=False))
    assert equal(again["next", "reward"], again["next", "observation"])
    env.close()


def test_torchrl_where_another_transform_reads_rewards_each_step_waits(torchrl, caplog):
    from torchrl.envs import RewardSum

    from vlp_gym.integrations.torchrl.rewards import MEDDLING

    env, _ = torchrl_env(single(), RewardSum())
    with caplog.at_level("WARNING", "vlp_gym"):
        batch = env.rollout(6, break_when_any_done=False)
    assert caplog.messages == [MEDDLING % "RewardSum"]
    assert equal(batch["next", "reward"], batch["next", "observation"])
    assert equal(batch["next", "episode_reward"], batch["next", "observation"].double().cumsum(0))
    assert not batch["next", "vlp_row"].any()
    env.close()


def test_torchrl_bad_use(torchrl):
    from tensordict import TensorDict
    from torchrl.envs import SerialEnv

    from vlp_gym.integrations.torchrl import VLPRewardTransform
    from vlp_gym.integrations.torchrl.rewards import ANOTHER

    env, transform = torchrl_env(single())
    batch = env.rollout(6)
    with pytest.raises(ValueError, match=f"^{re.escape(ANOTHER)}$"):
        VLPRewardTransform()(batch)
    with pytest.raises(KeyError, match="give VLPRewardTransform to the TransformedEnv, too"):
        transform(TensorDict({"next": {"reward": torch.zeros(3, 1)}}, [3]))
    env.close()
    with pytest.raises(RuntimeError, match=r"^VLPRewardTransform cannot be in an environment of SerialEnv"):
        SerialEnv(2, lambda: torchrl_env(single())[0]).reset()
    with pytest.raises(ValueError, match=r"^expected an environment with VLPRewardWrapper around it"):
        torchrl_env(PaintedEnv())[0].reset()


# ---------------------------------------------------------------- Minari


@pytest.fixture
def minari(tmp_path, monkeypatch):
    library = pytest.importorskip("minari")
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None)  # Jax warns of every later fork of this process
    pytest.importorskip("jax.tree_util")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    yield library
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of a folder that minari leaves behind
        gc.collect()


def collector(minari, env, **options):
    from vlp_gym.integrations.minari import VLPEpisodeMetadataCallback, VLPStepDataCallback

    return minari.DataCollector(
        env,
        step_data_callback=VLPStepDataCallback,
        episode_metadata_callback=VLPEpisodeMetadataCallback,
        jpeg_encoding=False,
        **options,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # minari's own, of what a description could also say
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_minari_records_the_real_rewards(minari, mode, data_format, flat):
    env = collector(
        minari, single(mode, env=SeenEnv((7, 30, 1)), flat_info=flat), data_format=data_format, record_infos=True
    )
    lengths = []
    for limit in (99, 5, 99, 0, 99):  # the second one is broken off, in the fourth there is no step
        env.reset(seed=len(lengths))
        over, steps = False, 0
        while not over and steps < limit:
            over, steps = env.step(env.action_space.sample())[2], steps + 1
        lengths += [steps] if steps else []
    data = env.create_dataset("painted/seen-v0", eval_env="CartPole-v1", algorithm_name="x")
    env.close()
    assert [len(episode.rewards) for episode in data] == lengths == [7, 5, 1, 1]
    for episode, about in zip(data, data.storage.get_episode_metadata(range(4)), strict=True):
        assert equal(episode.rewards, episode.observations[1:, 0])
        assert about["rewards_missing"] == 0
        assert about["rewards_sum"] == pytest.approx(episode.rewards.sum())
        if data_format == "hdf5":
            ours = episode.infos["vlp"]
        elif flat:
            ours = {name[len("vlp/") :]: values for name, values in episode.infos.items()}
        else:  # a column of dictionaries
            ours = {name: np.array([row[name] for row in episode.infos["vlp"]]) for name in episode.infos["vlp"][0]}
        if mode == "sync":
            assert equal(ours["score"], episode.observations[:, 0])
        else:
            assert set(ours) == {"env_reward", "env", "episode", "step"}
            assert ours["step"].tolist() == list(range(len(episode.rewards) + 1))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_minari_a_model_that_fails_leaves_nan(minari):
    model = FlakyModel()
    env = collector(minari, single(model=model, env=SeenEnv((50,))), data_format="hdf5")
    env.reset(seed=0)
    model.fails_at = model.calls + 4
    until_it_fails(lambda: (env.step(env.action_space.sample()), env.env.engine.wait()))
    env.reset(seed=0)
    for _ in range(6):
        env.step(env.action_space.sample())
    data = env.create_dataset("painted/faulty-v0", eval_env="CartPole-v1", algorithm_name="x")
    env.close()
    first, second = data
    missing = np.isnan(first.rewards)
    assert (missing.sum(), missing[-1]) == (1, True)
    assert equal(first.rewards[~missing], first.observations[1:, 0][~missing])
    assert equal(second.rewards, second.observations[1:, 0])
    metadata = list(data.storage.get_episode_metadata(range(2)))
    assert [about["rewards_missing"] for about in metadata] == [1, 0]
    assert metadata[0]["rewards_sum"] == pytest.approx(first.rewards[~missing].sum())


# ---------------------------------------------------------------- Tianshou


@pytest.fixture
def tianshou():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # of the import: of its own dependencies
        return pytest.importorskip("tianshou.data")


def tianshou_envs(kind, mode, model=None, **options):
    from tianshou.env import DummyVectorEnv

    model = QueryEngine(model or SlowModel(), mode=mode) if kind == "one engine" else model
    lengths = LENGTHS[:1] if kind == "single" else LENGTHS
    return DummyVectorEnv(
        [partial(single, mode, model, SeenEnv(each, env=env), **options) for env, each in enumerate(lengths)]
    )


def tianshou_collector(envs, size=64):
    from tianshou.algorithm.algorithm_base import RandomActionPolicy
    from tianshou.data import Collector

    from vlp_gym.integrations.tianshou import VLPVectorReplayBuffer

    buffer = VLPVectorReplayBuffer(size, envs, timeout_s=5.0)
    return Collector(RandomActionPolicy(envs.action_space[0]), envs, buffer), buffer


def right_in(buffer, indices) -> bool:
    return equal(buffer.rew[indices], buffer.obs_next[indices, 0])


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", ["single", "one by one", "one engine"])
def test_tianshou_collects_steps_and_episodes(tianshou, kind, mode, flat):
    """A ring that is overwritten, whole episodes that some environments have no part in, and batches of both."""
    envs = tianshou_envs(kind, mode, flat_info=flat)
    collector, buffer = tianshou_collector(envs)
    collector.reset()
    late = 0
    for _ in range(8):
        collector.collect(n_step=12)
        late += len(buffer._missing)
        assert right_in(buffer, buffer.sample_indices(32))
    collector.collect(n_episode=3)
    batch, indices = buffer.sample(0)
    assert equal(batch.rew, batch.obs_next[:, 0])
    assert len(indices) == len(buffer) == 64
    assert (late > 0) is (mode == "async")
    buffer.reset()
    collector.collect(n_episode=2)
    assert right_in(buffer, buffer.sample_indices(0))
    envs.close()


def test_tianshou_a_model_that_fails(tianshou):
    model = FlakyModel()
    envs = tianshou_envs("one engine", "async", model)
    collector, buffer = tianshou_collector(envs, 400)
    collector.reset()
    collector.collect(n_step=12)
    assert right_in(buffer, buffer.sample_indices(0))
    engine = envs.workers[0].env.engine
    collector.set_on_step_hook(lambda *_: engine.wait())  # so that a transition is stored before its query has failed
    model.fails_at = model.calls + 6
    until_it_fails(lambda: collector.collect(n_step=4))
    collector.reset_env()
    collector.collect(n_step=12)
    message = "transitions of the buffer, and none is on its way; reset() empties the buffer"
    with pytest.raises(QueryError, match=rf"^no reward came for \d {re.escape(message)}$"):
        buffer.sample_indices(0)
    known = np.setdiff1d(np.arange(len(buffer)), list(buffer._missing))
    known = known[np.isin(known, [*range(len(buffer.buffers[0])), *(200 + np.arange(len(buffer.buffers[1])))])]
    assert right_in(buffer, known)
    collector.reset_buffer()
    collector.collect(n_step=12)
    assert right_in(buffer, buffer.sample_indices(0))
    envs.close()


def test_tianshou_other_buffers_wait_too(tianshou):
    from vlp_gym.integrations.tianshou import LateReplayBuffer

    class Prioritized(LateReplayBuffer, tianshou.PrioritizedVectorReplayBuffer):
        pass

    envs = tianshou_envs("one engine", "async")
    collector, _ = tianshou_collector(envs)
    collector.buffer = buffer = Prioritized(64, envs, alpha=0.6, beta=0.4)
    collector.reset_env()
    for _ in range(4):
        collector.collect(n_step=12)
        batch, indices = buffer.sample(16)
        assert equal(batch.rew, batch.obs_next[:, 0])
        buffer.update_weight(indices, np.ones(16))
    envs.close()


def test_tianshou_bad_use(tianshou):
    from tianshou.env import DummyVectorEnv

    from vlp_gym.integrations.tianshou import VLPVectorReplayBuffer

    with pytest.raises(TypeError, match=r"^expected a DummyVectorEnv, got list: with environments in other processes"):
        VLPVectorReplayBuffer(10, [])
    with pytest.raises(ValueError, match=r"^expected an environment with VLPRewardWrapper around it"):
        VLPVectorReplayBuffer(10, DummyVectorEnv([PaintedEnv]))


# ---------------------------------------------------------------- skrl


@pytest.fixture
def skrl():
    library = pytest.importorskip("skrl")
    library.logger.setLevel("ERROR")
    return library


SKRL_KINDS = {
    "single": single,
    "captured": partial(vector, "captured", autoreset="SameStep"),
    "one by one": partial(vector, "one by one", autoreset="SameStep"),
}


class Seen:
    """Checks what an agent of skrl is given to learn from: the observation before, and one step, is the reward."""

    def __init__(self, memory):
        self.memory, self.checked, self.late = memory, 0, 0
        self.sample, self.get = memory.sample, memory.get_tensor_by_name
        memory.sample, memory.get_tensor_by_name = self.on_sample, self.on_get

    def on_sample(self, names, **options):
        self.late += int(self.memory._missing.sum())
        batches = self.sample(names, **options)
        for batch in batches if "rewards" in names else []:
            assert equal(batch[names.index("rewards")], batch[names.index("observations")] + STEP)
            self.checked += 1
        return batches

    def on_get(self, name):
        if name == "rewards":
            self.late += int(self.memory._missing.sum())
            tensor = self.get(name)
            assert equal(tensor, self.memory.tensors["observations"] + STEP)
            self.checked += 1
        return self.get(name)


def skrl_agent(name, envs, **options):
    """An agent of skrl with small nets, its environment, and what it has seen."""
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model

    from vlp_gym.integrations.skrl import VLPEnv, VLPMemory

    class Policy(GaussianMixin, Model):
        def __init__(self, space, actions):
            Model.__init__(self, observation_space=space, action_space=actions)
            GaussianMixin.__init__(self, clip_actions=True)
            self.net, self.log_std = torch.nn.Linear(1, 1), torch.nn.Parameter(torch.zeros(1))

        def compute(self, inputs, role):
            return self.net(inputs["observations"]), {"log_std": self.log_std}

    class Value(DeterministicMixin, Model):
        def __init__(self, space, actions, inputs):
            Model.__init__(self, observation_space=space, action_space=actions)
            DeterministicMixin.__init__(self)
            self.net = torch.nn.Linear(inputs, 1)

        def compute(self, inputs, role):
            parts = [inputs["observations"], inputs.get("taken_actions")]
            return self.net(torch.cat(parts[: self.net.in_features], -1)), {}

    env = VLPEnv(envs)
    memory = VLPMemory(env, memory_size=8 if name == "ppo" else 40, timeout_s=5.0)
    space, actions = env.observation_space, env.action_space
    if name == "ppo":
        from skrl.agents.torch.ppo import PPO as Agent
        from skrl.agents.torch.ppo import PPO_CFG as Config

        models = {"policy": Policy(space, actions), "value": Value(space, actions, 1)}
        config = Config(rollouts=8, learning_epochs=1, mini_batches=2, **options)
    else:
        from skrl.agents.torch.sac import SAC as Agent
        from skrl.agents.torch.sac import SAC_CFG as Config

        critics = ("critic_1", "critic_2", "target_critic_1", "target_critic_2")
        models = {"policy": Policy(space, actions), **{each: Value(space, actions, 2) for each in critics}}
        config = Config(batch_size=8, learning_starts=10, random_timesteps=10, **options)
    config.rewards_shaper = memory.rewards_shaper
    config.experiment.write_interval = config.experiment.checkpoint_interval = 0
    agent = Agent(models=models, memory=memory, cfg=config, observation_space=space, action_space=actions)
    return agent, env, Seen(memory)


def skrl_train(agent, env, timesteps):
    from skrl.trainers.torch import SequentialTrainer

    options = {"timesteps": timesteps, "headless": False, "disable_progressbar": True}
    SequentialTrainer(env=env, agents=agent, cfg=options).train()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("agent", ["ppo", "sac"])
@pytest.mark.parametrize("kind", SKRL_KINDS)
def test_skrl_learns_from_the_real_rewards(skrl, kind, agent, mode):
    """PPO's memory is filled and used again five times, SAC's ring is overwritten."""
    agent, env, seen = skrl_agent(agent, SKRL_KINDS[kind](mode))
    skrl_train(agent, env, 48)
    assert seen.checked >= 6
    assert (seen.late > 0) is (mode == "async")
    env.close()


def test_skrl_what_a_time_limit_adds_stays(skrl):
    """gamma * V(last observation) is added to the reward of a truncation, to one that comes late, too."""
    env = single(env=SeenEnv((3,), truncate=True))
    agent, env, seen = skrl_agent("ppo", env, time_limit_bootstrap=True, discount_factor=0.5)
    with torch.no_grad():
        agent.value.net.weight.zero_()
        agent.value.net.bias.fill_(1.0)
    seen.memory.sample = lambda *_, **__: []  # nothing is learned
    seen.memory.get_tensor_by_name = seen.get
    skrl_train(agent, env, 8)
    extra = 0.5 * seen.memory.tensors["truncated"].float()
    assert extra.sum() == 1.0
    assert equal(seen.memory.get_tensor_by_name("rewards"), seen.memory.tensors["observations"] + STEP + extra)
    env.close()


def test_skrl_a_model_that_fails(skrl):
    model = FlakyModel()
    agent, env, seen = skrl_agent("sac", single(model=model, env=SeenEnv((50,))))
    skrl_train(agent, env, 14)
    model.fails_at = model.calls + 4
    with pytest.raises(QueryError, match="division by zero"):
        skrl_train(agent, env, 100)
    before = seen.checked
    skrl_train(agent, env, 14)
    assert seen.checked > before  # what failed is not drawn
    with pytest.raises(QueryError, match=r"transitions of the memory, and none is on its way$"):
        seen.get("rewards")
    seen.memory.reset()
    skrl_train(agent, env, 14)
    env.close()


def test_skrl_bad_use(skrl):
    from vlp_gym.integrations.skrl import VLPEnv, VLPMemory

    with pytest.raises(TypeError, match=r"^expected a VLPEnv in the place of wrap_env\(env\), got VLPRewardWrapper$"):
        VLPMemory(single(), memory_size=8)
    with pytest.raises(ValueError, match=r"^expected an environment with VLPRewardWrapper around it"):
        VLPMemory(VLPEnv(PaintedEnv()), memory_size=8)
    agent, env, _ = skrl_agent("sac", single())
    agent.cfg.rewards_shaper = None
    with pytest.raises(RuntimeError, match=r"^VLPMemory needs cfg.rewards_shaper = memory.rewards_shaper$"):
        skrl_train(agent, env, 3)
    env.close()


# ---------------------------------------------------------------- all


SCRIPTS = {block.title: block.text for block in blocks(ROOT / "docs" / "integrations.md") if block.title}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_of_the_page_run(name, tmp_path, monkeypatch):
    library = name.partition("_")[0]
    for needed in {"rllib": ["ray"], "minari": ["minari", "jax"]}.get(library, [library]):
        if find_spec(needed) is None:
            pytest.skip(f"{library} needs {needed}")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    for variable, value in {**RAY, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(variable, value)
    (tmp_path / name).write_text(shorten(SCRIPTS[name]))
    assert re.search(r"\d", run_python([name], tmp_path))


@pytest.mark.parametrize("name", SCRIPTS)
def test_ten_lines_are_enough(name):
    """Those that a script without late rewards would not have: what they name is ours."""
    ours = r"vlp_gym|VLP|QueryEngine|rewards\.clone|rewards_shaper|rewards\)$"
    assert 0 < len([line for line in SCRIPTS[name].splitlines() if re.search(ours, line)]) <= 10


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [("torchrl", "torchrl", "TorchRL"), ("minari", "minari", "Minari"), ("tianshou", "tianshou", "Tianshou"),
     ("skrl", "skrl", "skrl"), ("rllib", "ray", "RLlib"), ("lerobot", "lerobot", "LeRobot")],
)  # fmt: skip
def test_without_the_library(module, library, extra, monkeypatch):
    monkeypatch.delitem(sys.modules, f"vlp_gym.integrations.{module}", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf'^{extra} is not installed: pip install "vlp_gym\[[a-z-]+\]"$'):
        import_module(f"vlp_gym.integrations.{module}")
