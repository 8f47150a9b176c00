"""What the tests of libraries of agents share: wrapped painted environments, and a model that fails once.

The observation of a `SeenEnv` is the value that its frame shows: the reward of a transition is its next observation,
which is the observation before it and one `STEP`.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from late import SENTENCE, SeenEnv, SlowModel

from vlp_gym import VLPRewardWrapper, VLPVectorRewardWrapper, capture_frames
from vlp_gym.errors import QueryError

STEP = 2.0**-24
LENGTHS = ((7, 3, 1, 9), (4, 6))
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
}  # fmt: skip
"""The environment of Ray's tests, besides a HOME: it writes into it, would report to its makers, and waits for 5 s."""


class FlakyModel(SlowModel):
    """Takes its time, and fails once: at a later step than an episode's first, from the call on that is set."""

    fails_at: int | None = None
    failed: tuple[int, ...] = ()
    """What was painted on the newest frames of the call that failed, in `STEP`."""

    def score(self, frames, text, mask):
        painted = (frames[:, -1, 0, 0] / STEP).long()
        if self.fails_at is not None and self.calls >= self.fails_at and (painted & 1023).min() > 1:
            self.fails_at, self.failed = None, tuple(painted.tolist())
            raise ZeroDivisionError("division by zero")
        return super().score(frames, text, mask)


def single(mode="async", model=None, env=None, **options):
    return VLPRewardWrapper(env or SeenEnv(LENGTHS[0]), SENTENCE, model or SlowModel(), mode=mode, **options)


def vector(kind, mode="async", autoreset="Disabled", model=None, make=SeenEnv, **options):
    """A vector environment with reward wrappers in or around it."""
    fns = [partial(make, each, env=env) for env, each in enumerate(LENGTHS)]
    model = model or SlowModel()
    if kind == "captured":
        venv = SyncVectorEnv(capture_frames(fns), autoreset_mode=autoreset)
        return VLPVectorRewardWrapper(venv, SENTENCE, model, mode=mode, **options)
    wrapped = [partial(lambda fn: single(mode, model, fn(), **options), fn) for fn in fns]
    return SyncVectorEnv(wrapped, autoreset_mode=autoreset)


def equal(rewards, right) -> bool:
    """Whether there are rewards, and all are right, to the bit of float32."""
    rewards, right = np.asarray(rewards, np.float32), np.asarray(right, np.float32)
    return rewards.size > 0 and rewards.shape == right.shape and bool((rewards == right).all())


def until_it_fails(call, times=30):
    """What is returned until the model has failed: the error comes with a later step."""
    results = []
    try:
        for _ in range(times):
            results.append(call())
    except QueryError as error:
        assert "ZeroDivisionError: division by zero" in str(error)  # noqa: PT017
        return results
    raise AssertionError("the error of the model was lost")


@contextmanager
def ray_on_one_cpu(home):
    """Ray, whose processes find our modules; what it writes is temporary, and it reports nothing to anybody."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {**RAY, "HOME": str(home)}.items():
            patch.setenv(variable, value)
        ray = pytest.importorskip("ray")
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
        )
        try:
            yield ray
        finally:
            ray.shutdown()
