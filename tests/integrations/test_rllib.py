"""RLlib: every reward that is learned from or stored is what the painted frame of its own transition says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from late import SENTENCE, GatedModel, SeenEnv, SlowModel
from libraries import LENGTHS, STEP, FlakyModel, equal, ray_on_one_cpu, until_it_fails, vector

from vlp_gym import VLPRewardWrapper

pytestmark = [
    pytest.mark.timeout(600),  # the first import takes long
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]

MODELS = {"flaky": FlakyModel(), "gated": GatedModel()}
"""RLlib copies what it is given, and not what it finds by name."""


def make(context, numbers=itertools.count()):  # noqa: B008  # each environment has another number
    """What is registered: a wrapped environment, or a vector of some."""
    options = dict(context)
    model = next((MODELS[name] for name in MODELS if options.pop(name, False)), None) or SlowModel()
    if options.pop("num_envs", None):
        return vector("captured", options["mode"], "NextStep", model)
    lengths, wrapped = options.pop("lengths", None), options.pop("wrapped", True)
    number = 0 if lengths else next(numbers) % 2
    env = SeenEnv(lengths or LENGTHS[number], env=number, discrete=options.pop("discrete", False))
    return VLPRewardWrapper(env, SENTENCE, model, **options) if wrapped else env


@pytest.fixture(scope="module")
def rllib(tmp_path_factory):
    library = pytest.importorskip("ray.rllib")
    from ray.tune.registry import register_env

    with ray_on_one_cpu(tmp_path_factory.mktemp("home")):
        register_env("seen", make)
        yield library


def config_of(name, num_envs=1, **env_config):
    """A small PPO, SAC or DQN, and what its learner has been given."""
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.algorithms.sac import SACConfig
    from ray.rllib.connectors.connector_v2 import ConnectorV2
    from ray.rllib.core.columns import Columns

    from vlp_gym.integrations.rllib import VLPRewardCallback

    class Seen(ConnectorV2):
        """Sees the episodes on their way to the learner."""

        parts: list[tuple[int, int]] = []  # noqa: RUF012  # RLlib makes it more than once

        def __call__(self, *, batch, episodes, **_):
            for episode in episodes:
                added = Columns.LOSS_MASK in batch  # a step without meaning
                rewards, seen = (list(each.data) for each in (episode.rewards, episode.observations))
                right = np.ravel(seen[1:])
                assert equal(rewards[:-1], right[:-1]) if added else equal(rewards, right)
                self.parts.append((len(episode) - added, episode.rewards.lookback))
            return batch

    kind = {"ppo": PPOConfig, "sac": SACConfig, "dqn": DQNConfig}[name]
    config = kind().environment("seen", env_config={"discrete": name == "dqn", **env_config})
    if name == "ppo":
        config.training(train_batch_size_per_learner=16 * num_envs, minibatch_size=8, num_epochs=1)
    else:
        config.training(train_batch_size_per_learner=8, num_steps_sampled_before_learning_starts=20)
    config.learners(learner_connector=lambda *_: [Seen()])
    config.rl_module(model_config={"fcnet_hiddens": [4], "head_fcnet_hiddens": [4]})
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs)
    config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)
    return config.callbacks(VLPRewardCallback), Seen


@pytest.fixture
def build(rllib):
    """Builds algorithms, which are stopped at the end."""
    built = []

    def build(config):
        built.append(config.build_algo())
        return built[-1]

    yield build
    for each in built:
        each.stop()


def stored_right(algorithm) -> bool:
    episodes = [episode for episode in algorithm.local_replay_buffer.episodes if len(episode)]
    return bool(episodes) and all(equal(each.get_rewards(), each.get_observations()[1:, 0]) for each in episodes)


def train(algorithm, times):
    return [algorithm.train() for _ in range(times)][-1]


KINDS = {
    "single": (1, "sync"),
    "one by one": (2, "sync"),
    "captured": (2, "vector_entry_point"),
    "processes": (2, "async"),
}


CASES = [
    *itertools.product(("ppo",), KINDS, ("async",)),
    *itertools.product(("ppo", "sac"), ("one by one",), ("sync",)),
    ("ppo", "captured", "sync"),
    ("sac", "single", "async"),
    ("sac", "captured", "async"),
    ("dqn", "one by one", "async"),
]


@pytest.mark.parametrize(("name", "kind", "mode"), CASES)
def test_learners_are_given_the_real_rewards(build, name, kind, mode):
    num_envs, vectorized = KINDS[kind]
    config, seen = config_of(name, num_envs, mode=mode)
    algorithm = build(config.env_runners(gym_env_vectorize_mode=vectorized))
    train(algorithm, 4 if name == "ppo" else 30)
    if name == "ppo":
        assert sum(length for length, _ in seen.parts) >= 4 * 16 * num_envs
        assert any(back for _, back in seen.parts)
    else:
        assert len(seen.parts) > 30
        assert stored_right(algorithm)


def test_an_env_runner_of_its_own(build):
    config, seen = config_of("ppo", mode="async")
    train(build(config.env_runners(num_env_runners=1)), 3)
    assert sum(length for length, _ in seen.parts) >= 3 * 16


def test_returns_are_those_of_the_real_rewards(build):
    config, _ = config_of("ppo", mode="async", lengths=(4,))
    algorithm = build(config)
    for _ in range(4):
        results = algorithm.train()["env_runners"]
    episodes = results["num_episodes_lifetime"]
    assert results["episode_return_max"] == pytest.approx(STEP * (4 * 1024 * (episodes - 1) + 1 + 2 + 3 + 4))


def test_off_policy_the_environments_run_ahead(build):
    """The model has stopped to answer: there are no new transitions, and the agent learns on from the old ones."""
    config, seen = config_of("sac", mode="async", gated=True, lengths=(1000,))
    algorithm = build(config)
    train(algorithm, 25)
    runner, buffer = algorithm.env_runner, algorithm.local_replay_buffer
    MODELS["gated"].open = False
    try:
        before, learned = buffer.get_num_timesteps(), len(seen.parts)
        train(algorithm, 10)
        stored = buffer.get_num_timesteps()
    finally:
        MODELS["gated"].open = True
    assert len(seen.parts) > learned
    assert stored < before + 10
    train(algorithm, 1)
    runner._callbacks[0]._samples.wait()
    train(algorithm, 1)
    assert buffer.get_num_timesteps() >= 35
    assert stored_right(algorithm)


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_a_model_that_fails(build, name):
    config, seen = config_of(name, 2, mode="async", flaky=True)
    algorithm = build(config)
    train(algorithm, 2 if name == "ppo" else 15)
    MODELS["flaky"].fails_at = MODELS["flaky"].calls + 6
    until_it_fails(algorithm.train, 60)
    seen.parts.clear()
    train(algorithm, 3 if name == "ppo" else 40)
    assert seen.parts
    if name == "sac":
        assert stored_right(algorithm)


def test_where_observations_have_rewards_each_step_waits(build, caplog):
    from ray.rllib.connectors.env_to_module import FlattenObservations, PrevActionsPrevRewards

    from vlp_gym.integrations.rllib import MEDDLING

    config, _ = config_of("ppo", mode="async", discrete=True)
    config.env_runners(env_to_module_connector=lambda *_, **__: [PrevActionsPrevRewards(), FlattenObservations()])
    algorithm = build(config)
    with caplog.at_level("WARNING", "vlp_gym"):
        episodes = algorithm.env_runner.sample(num_timesteps=12)
    for episode in episodes:
        seen = np.stack(episode.get_observations())
        assert equal(episode.get_rewards(), seen[1:, 0])
        assert equal(episode.get_rewards(), seen[1:, -1])
    assert [each.message for each in caplog.records if each.name == "vlp_gym"] == [MEDDLING]


def test_evaluations(build):
    """They see the real rewards, and may be of an environment without a reward wrapper."""
    for wrapped in (True, False):
        config, _ = config_of("ppo", mode="async")
        env = {"mode": "async", "lengths": (4,), "wrapped": wrapped}
        config.evaluation(evaluation_interval=1, evaluation_duration=2, evaluation_config={"env_config": env})
        results = build(config).evaluate()["env_runners"]
        right = [STEP * 10, STEP * (10 + 4 * 1024)] if wrapped else [-4.0, -4.0]
        assert [results["episode_return_min"], results["episode_return_max"]] == pytest.approx(right)


def test_bad_use(build):
    config, _ = config_of("ppo", mode="async", wrapped=False)
    with pytest.raises(ValueError, match=r"^expected an environment with VLPRewardWrapper around it"):
        build(config).train()
    config, _ = config_of("ppo", mode="async")
    config.api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
    with pytest.raises(ValueError, match=r"^VLPRewardCallback needs RLlib's new API stack: config.api_stack"):
        build(config)
