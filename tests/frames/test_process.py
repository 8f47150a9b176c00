"""Processes that fork or end while other libraries have threads and signal handlers of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SCENE = """
import multiprocessing, sys, time
import torch
torch.set_num_threads(2)  # a pool of threads, also on a machine with one core
torch.isfinite(torch.zeros(1 << 20)).all()
import gymnasium as gym
import vlp_gym
from vlp_gym.testing import PaintedEnv
from tests.tiny import tiny_model

def make(model="vlp-compact", mode="sync"):
    import vlp_gym
    return vlp_gym.VLPRewardWrapper(PaintedEnv(), "press the button", model, mode=mode, device="cpu")

def work(env):
    env.reset(seed=0)
    paid = env.step(0)[1]
    paid = next((delivery.reward for delivery in env.flush()), paid)
    env.close()
    return round(paid, 6)

def child(queue, *arguments):
    queue.put(work(make(*arguments)))

def work_of(_):
    return work(make())

def forked(*arguments):
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    process = fork.Process(target=child, args=(queue, *arguments), daemon=True)
    process.start()
    answer = queue.get(timeout=60)
    process.join(10)
    return answer
"""


def run_script(code: str, timeout_s: float = 100.0) -> subprocess.CompletedProcess:
    """A fresh interpreter that may use all cores."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=timeout_s)


FORKS = {
    "a vector environment": """
        venv = gym.vector.AsyncVectorEnv([make, make], context="fork")
        venv.reset(seed=0)
        print(len(set(venv.step([0, 0])[1].tolist())))
        venv.close()
    """,
    "one that learns late": """
        work(make(mode="async"))
        print(forked("vlp-compact", "async") == forked())
    """,
    "a live model": """
        model = tiny_model()
        print(work(make(model)) == forked(model))
    """,
    "an engine at work": """
        busy = make(mode="async")
        busy.reset()
        busy.step(0)
        print(forked() == work(make()))
    """,
    "a pool": """
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(len(set(pool.map_async(work_of, range(2)).get(60))))
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("fork", FORKS)
def test_a_forked_child_does_not_wait_for_threads_that_it_does_not_have(fork):
    done = run_script(SCENE + textwrap.dedent(FORKS[fork]))
    assert (done.returncode, done.stdout.strip()) in ((0, "1"), (0, "True")), (done.stdout, done.stderr)


ENDS = {
    "fork": "gym.vector.AsyncVectorEnv(fns, context='fork')",
    "fork, the parent draws too": "gym.vector.AsyncVectorEnv((draw(), fns)[1], context='fork')",
    "spawn": "gym.vector.AsyncVectorEnv(fns, context='spawn')",
    "SB3": "SubprocVecEnv(fns, start_method='fork')",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDS)
def test_an_exception_ends_a_script_whose_workers_draw_with_pygame(kind):  # fault 38
    """SDL catches SIGTERM, by which the main process ends its workers."""
    pytest.importorskip("pygame")
    if kind == "SB3":
        pytest.importorskip("stable_baselines3")
    code = f"""
    from functools import partial
    import gymnasium as gym
    import vlp_gym
    make = partial(gym.make, "CartPole-v1", render_mode="rgb_array")

    def draw():
        env = make()
        env.reset()
        env.render()

    if {kind == "SB3"}:
        from stable_baselines3.common.vec_env import SubprocVecEnv
    fns = vlp_gym.capture_frames([make, make])
    venv = {ENDS[kind]}
    venv.reset()
    print("begun", flush=True)
    raise ValueError("the end")
    """
    done = run_script(code)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "begun"), done.stderr
    assert done.stderr.strip().endswith("ValueError: the end")
