"""SB3's vector environments: every reward belongs to the step that the painted frame names."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
from functools import partial

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from painted import (
    SENTENCE,
    Expected,
    Sleeper,
    belongings,
    check_a_death,
    noop,
    painted_fns,
    spans_episodes,
)
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from vlp_gym import VLPVecReward, capture_frames
from vlp_gym.errors import FrameError, MissingExtraError, VLPError
from vlp_gym.rewards.info import ticket_in
from vlp_gym.testing import FaultyEnv, PaintedEnv, PaintedModel, painted_value
from vlp_gym.wrappers.streaming import RESET_IN_SB3

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

VECTORS = {"one process": DummyVecEnv, "workers": partial(SubprocVecEnv, start_method="fork")}
UNEQUAL = ([3, 5, 1], [4], [1, 1, 7])


def wrap(lengths=UNEQUAL, model=None, *, kind="one process", truncate=False, **options):
    venv = VECTORS[kind](capture_frames(painted_fns(lengths, truncate=truncate)))
    return VLPVecReward(venv, SENTENCE, model or PaintedModel(), **options)


def take(deliveries, got):
    for delivery in deliveries:
        assert delivery.ticket not in got
        got[delivery.ticket] = delivery.reward


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("reward", ["progress", "potential"])
def test_every_reward_is_what_the_painted_frame_says(kind, mode, truncate, reward):  # faults 12, 15, 67
    before = belongings()
    model, late = PaintedModel(window=3), mode == "async"
    env = wrap(UNEQUAL, model, kind=kind, truncate=truncate, mode=mode, every=2, reward=reward)
    lanes = [Expected(i, each, truncate=truncate, every=2, reward=reward) for i, each in enumerate(UNEQUAL)]
    expected, got = {}, {}
    env.reset()
    keys = {"env_reward", "score", "progress", "success", *(["env", "episode", "step"] if late else [])}
    assert [set(info["vlp"]) for info in env.reset_infos] == [keys] * 3
    for _ in range(25):
        _, rewards, dones, infos = env.step(noop(env))
        assert rewards.dtype == np.float32
        for index, (lane, info) in enumerate(zip(lanes, infos, strict=True)):
            paid = lane.move()
            assert dones[index] == lane.over
            assert info["TimeLimit.truncated"] == lane.ends[1]
            assert info["vlp"]["env_reward"] == -1.0
            if late:
                assert ticket_in(info["vlp"]) == lane.ticket
                expected[lane.ticket] = paid
            else:
                assert (rewards[index], info["vlp"]["score"]) == (np.float32(paid), lane.score)
            if lane.over:
                lane.begin()
                begun = env.reset_infos[index]["vlp"]
                assert ticket_in(begun) == lane.ticket if late else begun["score"] == lane.score
        for deliveries in env.poll() if late else ():
            take(deliveries, got)
    for deliveries in env.flush():
        take(deliveries, got)
    assert got == expected
    assert not spans_episodes(model.windows)
    stats = env.stats()
    assert stats["submitted"] == stats["delivered"]
    env.close()
    del env
    assert belongings() == before


def test_infos_are_new_and_of_plain_numbers():
    env = wrap(model=PaintedModel(relevance=1.0), mode="async")
    env.reset()
    _, _, _, first = env.step(noop(env))
    kept = pickle.loads(pickle.dumps(first))  # noqa: S301 (what SubprocVecEnv does)
    env.flush()
    env.step(noop(env))
    assert kept == first
    env.close()


def test_sb3s_own_wrappers_around_it():
    env = VecNormalize(VecMonitor(wrap([[2], [3]])), norm_reward=False)
    env.reset()
    env.step(noop(env))
    infos = env.step(noop(env))[3]
    paid = painted_value(0, 0, 1) + painted_value(0, 0, 2)
    assert infos[0]["episode"]["r"] == pytest.approx(paid, abs=1e-6)
    assert len(env.poll()) == 2
    env.close()


def test_an_agent_learns_in_it():
    from stable_baselines3 import PPO

    env = wrap([[6], [4]])
    PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(32)
    env.close()


def test_instructions_and_environments_that_do_not_render_themselves():
    venv = DummyVecEnv(capture_frames(painted_fns([[2], [3]])))
    env = VLPVecReward(venv, ["press", "close it"], PaintedModel())
    env.reset()
    env.set_instruction("open", 0)
    env.reset()
    assert env.instructions == ["open", "close it"]
    message = "the sub-environments do not render themselves; make venv from capture_frames(env_fns)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VLPVecReward(DummyVecEnv([PaintedEnv]), SENTENCE, PaintedModel())


def test_a_wrong_frame_names_its_step_and_reset_goes_on():  # faults 3, 8, 9
    venv = DummyVecEnv(capture_frames([PaintedEnv, partial(FaultyEnv, "float")]))
    env = VLPVecReward(venv, SENTENCE, PaintedModel())
    message = "call reset before step: the episodes of the envs [0, 1] have ended or have not begun; " + RESET_IN_SB3
    with pytest.raises(ResetNeeded, match=f"^{re.escape(message)}$"):
        env.step(noop(env))
    env.reset()
    env.step(noop(env))
    with pytest.raises(FrameError, match=r" \(env 1, episode 0, step 2\)$"):
        env.step(noop(env))
    with pytest.raises(ResetNeeded):
        env.step(noop(env))
    env.reset()
    assert env.step(noop(env))[1].tolist() == [np.float32(painted_value(0, 1, 1))] * 2


@pytest.mark.parametrize("start_method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["step", "reset"])
def test_a_killed_worker_is_an_error_at_once(start_method, method):  # fault 17
    fns = [partial(Sleeper, env=index) for index in range(2)]
    venv = SubprocVecEnv(capture_frames(fns), start_method=start_method)
    before = belongings()[0]
    env = VLPVecReward(venv, SENTENCE, PaintedModel())
    env.reset()
    env.step(noop(env))
    check_a_death(env, venv.processes, env.reset if method == "reset" else partial(env.step, noop(env)))
    with pytest.raises(ClosedEnvironmentError, match=r"^reset was called after close$"):
        env.reset()
    env.close()
    venv.close()
    assert belongings()[0] == before


def test_a_worker_killed_between_two_calls():  # fault 17
    for call in ("step", "close"):
        env = wrap(kind="workers")
        env.reset()
        victim = env.venv.processes[2]
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        if call == "close":
            env.close()
        else:
            with pytest.raises(VLPError, match=r"^these env workers have died: 2 \(exit code -9\);"):
                env.step(noop(env))
        assert not any(process.is_alive() for process in env.venv.processes)
        env.close()


def test_close_twice_and_no_pickling():  # faults 37, 41
    env = wrap()
    message = (
        "a live VLPVecReward cannot be pickled: its model lives in this process; "
        "make the wrapper in the process that uses it"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        pickle.dumps(env)
    env.close()
    env.close()


def test_without_stable_baselines3(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    for module in [name for name in sys.modules if name.startswith("vlp_gym.integrations.sb3")]:
        monkeypatch.delitem(sys.modules, module)
    message = 'Stable-Baselines3 is not installed: pip install "vlp_gym[sb3]"'
    with pytest.raises(MissingExtraError, match=f"^{re.escape(message)}$"):
        import vlp_gym.integrations.sb3.vec  # noqa: F401
