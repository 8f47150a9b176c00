"""Other projects' tests over the wrappers: the script finds what is ours, and an agent learns the same under both."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch

from tests.late import SENTENCE, SeenEnv
from tests.peer_suites import verdict
from tests.peer_suites.adaptations import Adaptation
from tests.peer_suites.suite import find_suite, run_suite
from tests.peer_suites.verdict import judge
from vlp_gym.testing import PaintedModel, painted_value
from vlp_gym.wrappers import VLPRewardWrapper

SUITE = """
import numpy as np
import pytest
from gymnasium import Env, spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv


class Walk(Env):
    observation_space = spaces.Box(-9.0, 9.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = np.float32(self.np_random.normal())
        return np.array([self.place]), {}

    def step(self, action):
        self.place += np.float32(action - 0.5)
        over = abs(self.place) > 3
        return np.array([self.place]), float(self.place), bool(over), False, {}


def test_rollouts():
    model = PPO("MlpPolicy", Walk(), n_steps=32, batch_size=32, n_epochs=1).learn(64)
    assert np.isfinite(model.rollout_buffer.rewards).all()


def test_replay():
    DQN("MlpPolicy", Walk(), learning_starts=8, train_freq=1, batch_size=4).learn(40)


def test_info():
    venv = DummyVecEnv([Walk])
    venv.reset()
    assert "vlp" not in venv.step([0])[3][0]


def test_spoils_a_reward():
    model = DQN("MlpPolicy", Walk(), learning_starts=8, train_freq=1, batch_size=4)
    named = type(model.env.envs[0]).__name__
    model.learn(20, callback=lambda *_: model.replay_buffer.rewards.__iadd__(named == "Checked") is not None)


def test_fails_anyway():
    assert False


@pytest.mark.skip
def test_skipped():
    pass
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """The sources of a project with six tests."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "stable_baselines3").mkdir()
    (folder / "stable_baselines3" / "version.txt").write_text(version("stable_baselines3") + "\n")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_walk.py").write_text(SUITE)
    return find_suite(folder)


@pytest.fixture(scope="module")
def plain(suite, tmp_path_factory):
    """The results with a plain wrapper."""
    return run_suite(suite, "plain", tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.timeout(300)  # each run imports torch
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_what_fails_with_our_wrapper_only_is_found(suite, plain, tmp_path, mode):
    found = judge(suite.name, mode, plain, run_suite(suite, mode, tmp_path / mode))
    names = {test.partition("::")[2] for test in found.ours}
    assert names == {"test_info", "test_spoils_a_reward"}
    assert {test.partition("::")[2] for test in found.plain} == {"test_fails_anyway", "test_skipped"}
    assert found.passed == 2
    assert found.wrong > 0  # those that were spoiled
    assert found.checked > 64 + 32 * 4
    assert found.same["PPO"] == 1
    assert not found.other["PPO"]
    assert (found.same["DQN"], found.other["DQN"]) in [(1, 0), (0, 1)][: 2 if mode == "async" else 1]


def test_a_finished_run_is_read_and_not_run_again(suite, tmp_path):
    (tmp_path / "done").touch()
    (tmp_path / "results.jsonl").write_text(json.dumps({"test": "a", "outcome": "passed"}) + "\n")
    assert run_suite(suite, "sync", tmp_path) == {"a": {"outcome": "passed"}}


@pytest.mark.parametrize("test", ["import os\n\n\ndef test_ends():\n    os._exit(3)\n", ""])
def test_a_run_that_was_broken_off_is_not_done(test, suite, tmp_path):
    """Killed in mid-run, or without tests."""
    folder = tmp_path / "sources"
    shutil.copytree(suite.folder, folder)
    for path in (folder / "tests").rglob("test_*.py"):
        path.write_text(test)
    with pytest.raises(RuntimeError, match="plain: the run was broken off"):
        run_suite(replace(suite, folder=folder), "plain", tmp_path / "run")
    assert not (tmp_path / "run" / "done").exists()


def result(outcome="passed", wrong=0):
    """What one test has given."""
    return {"outcome": outcome, "message": f"it {outcome}", "checked": 3, "wrong": wrong, "trained": []}


def test_an_adaptation_covers_its_tests_in_its_modes_but_no_wrong_reward(monkeypatch):
    adaptation = Adaptation(("gymnasium",), ("tests/test_a.py::*",), "looks at the pickle", modes=("sync",))
    monkeypatch.setattr(verdict, "ADAPTATIONS", (adaptation,))
    plain = {f"tests/test_a.py::{name}": result() for name in "abcd"}
    wrapped = {
        "tests/test_a.py::a": result("failed"),
        "tests/test_a.py::b": result("failed", wrong=1),
        "tests/test_a.py::c": result(),
    }
    found = judge("gymnasium", "sync", plain, wrapped)
    assert found.adapted == {
        "tests/test_a.py::a": "looks at the pickle",
        "tests/test_a.py::d": "looks at the pickle",  # it has not finished
    }
    assert found.ours == {"tests/test_a.py::b": "it failed"}
    assert (found.passed, found.checked, found.wrong) == (1, 9, 1)
    found = judge("gymnasium", "inner", plain, wrapped)
    assert found.ours == {
        "tests/test_a.py::a": "it failed",
        "tests/test_a.py::b": "it failed",
        "tests/test_a.py::d": "did not finish",
    }
    monkeypatch.setattr(verdict, "ADAPTATIONS", (replace(adaptation, error="^it f"),))
    found = judge("gymnasium", "sync", plain, wrapped)
    assert list(found.adapted) == ["tests/test_a.py::a"]
    assert found.ours == {"tests/test_a.py::b": "it failed", "tests/test_a.py::d": "did not finish"}


def test_a_folder_that_is_no_suite_is_refused(tmp_path):
    with pytest.raises(ValueError) as caught:
        find_suite(tmp_path)
    assert str(caught.value) == (
        f"expected a folder with tests/ and one of gymnasium, stable_baselines3, sb3_contrib, got {tmp_path}"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "gymnasium").mkdir()
    (tmp_path / "gymnasium" / "__init__.py").write_text('__version__ = "0.1.2"\n')
    with pytest.raises(ValueError) as caught:
        find_suite(tmp_path)
    assert str(caught.value) == (
        f"expected the sources of gymnasium {version('gymnasium')}, which is installed, got 0.1.2"
    )


class PaidEnv(SeenEnv):
    """Its own reward is what the model says, and its observation depends on the action."""

    def step(self, action):
        _, _, terminated, truncated, info = super().step(action)
        observation = np.asarray(action, np.float32).reshape(1) / 2 + self.observe()
        return observation, painted_value(self.env, self.episode, self.elapsed), terminated, truncated, info

    def action_masks(self):
        return np.ones(2, np.bool_)


ON_POLICY = {"n_steps": 32, "batch_size": 32}
OFF_POLICY = {"learning_starts": 16, "batch_size": 8, "train_freq": 1}
ALGORITHMS = [
    (stable_baselines3.DQN, True, OFF_POLICY),
    (stable_baselines3.SAC, False, OFF_POLICY),
    (stable_baselines3.TD3, False, OFF_POLICY),
    (stable_baselines3.DDPG, False, OFF_POLICY),
    (stable_baselines3.PPO, True, ON_POLICY),
    (stable_baselines3.A2C, True, {}),
    (sb3_contrib.TRPO, True, ON_POLICY),
    (sb3_contrib.RecurrentPPO, True, ON_POLICY),
    (sb3_contrib.MaskablePPO, True, ON_POLICY),
    (sb3_contrib.QRDQN, True, OFF_POLICY),
    (sb3_contrib.TQC, False, OFF_POLICY),
    (sb3_contrib.CrossQ, False, OFF_POLICY),
    (sb3_contrib.ARS, True, {"n_delta": 2, "n_eval_episodes": 1}),
]


@pytest.mark.parametrize(("algorithm", "discrete", "options"), ALGORITHMS)
def test_an_agent_learns_what_it_learns_from_the_same_rewards_without_the_wrapper(algorithm, discrete, options):
    policy = {"RecurrentPPO": "MlpLstmPolicy", "ARS": "LinearPolicy"}.get(algorithm.__name__, "MlpPolicy")
    trained = []
    for wrapped in (False, True):
        env = PaidEnv(discrete=discrete)
        env = VLPRewardWrapper(env, SENTENCE, PaintedModel()) if wrapped else env
        model = algorithm(policy, env, seed=1, device="cpu", **options)
        before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
        model.learn(48)
        trained.append(model.policy.state_dict())
        assert any(not torch.equal(tensor, before[name]) for name, tensor in trained[-1].items())
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())
