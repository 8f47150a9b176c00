"""Puts the wrapper around the environments that other people's tests make, and the buffers into their algorithms."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs import registration
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from peer_painting import ORACLE, PAINTED, Checked, CheckedVec, CheckedVector, Painter

from vlp_gym.wrappers import VLPRewardWrapper, VLPVectorRewardWrapper, capture_frames
from vlp_gym.wrappers.capture import CAPTURED, FrameCapture

OURS = (Painter, VLPRewardWrapper, FrameCapture)


def patch(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function or method by what `make` makes of it."""
    original = inspect.getattr_static(owner, name)
    static = isinstance(original, staticmethod)
    function = original.__func__ if static else original
    changed = functools.wraps(function)(make(function))
    setattr(owner, name, staticmethod(changed) if static else changed)


def chain(env: Any) -> list[Any]:
    """An environment and all that it wraps, the innermost last."""
    found = [env]
    while isinstance(found[-1], gym.Wrapper):
        found.append(found[-1].env)
    return found


def around(env: Any, mode: str, index: int = 0) -> Any:
    """The environment with our wrapper, or a plain one: outermost, or innermost where the mode is "inner"."""
    layers = chain(env)
    for painter in (layer for layer in layers if isinstance(layer, Painter)):
        painter.serial += 3 * index  # made before its place was known
    if not isinstance(layers[-1], gym.Env) or any(isinstance(layer, OURS) for layer in layers):
        return env
    if mode == "plain":
        return Painter(env, index, pays=True)
    if mode != "inner" or len(layers) == 1:
        return Checked(env, "async" if mode == "async" else "sync", index)
    layers[-2].env = Checked(layers[-1], "sync", index)
    return env


def make_around(make: Callable[[], Any], mode: str, index: int) -> Any:
    """For a function that makes an environment, also in another process."""
    return around(make(), mode, index)


def make_painted(make: Callable[[], Any], index: int) -> Any:
    """The same for `capture_frames`."""
    return Painter(make(), index)


def prepare(env_fns: Any, mode: str) -> list[Callable[[], Any]]:
    """The functions given to a vector environment."""
    if mode.startswith("vector"):
        painted = [partial(make_painted, make, index) for index, make in enumerate(env_fns)]
        return capture_frames(painted, render_fn=Painter.camera)
    return [partial(make_around, make, mode, index) for index, make in enumerate(env_fns)]


def install(mode: str, *, gymnasium_itself: bool) -> None:
    """Change the libraries in this process.

    Args:
        mode: "plain", "sync", "async", "vector", "vector-async" or "inner".
        gymnasium_itself: the tests are Gymnasium's own: what `gym.make` and `gym.make_vec` return is wrapped too.
    """
    if mode == "inner":
        patch(gym.Wrapper, "__init__", _innermost)
    if gymnasium_itself:
        _install_gymnasium(mode)
    elif importlib.util.find_spec("stable_baselines3"):
        _install_sb3(mode)


def _innermost(original: Callable[..., Any]) -> Callable[..., Any]:
    def init(self: Any, env: Any, *args: Any, **options: Any) -> None:
        bare = isinstance(env, gym.Env) and not isinstance(env, gym.Wrapper)
        original(self, around(env, "inner") if bare and not isinstance(self, OURS) else env, *args, **options)

    return init


def _install_gymnasium(mode: str) -> None:
    def init(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, env_fns, *args, **options: original(self, prepare(env_fns, mode), *args, **options)

    for kind in (SyncVectorEnv, AsyncVectorEnv):
        patch(kind, "__init__", init)

    def set_attr(original: Callable[..., Any]) -> Callable[..., Any]:
        def set_wrapper_attr(self: Any, name: str, value: Any, *, force: bool = True) -> bool:
            known = original(self, name, value, force=False)
            return known or (force and self.unwrapped.set_wrapper_attr(name, value))

        return set_wrapper_attr

    patch(gym.Wrapper, "set_wrapper_attr", set_attr)  # where no layer has it: the test means its own environment

    def rewarding(env: Any) -> Any:
        captured = isinstance(env, (SyncVectorEnv, AsyncVectorEnv)) and env.metadata.get(CAPTURED)
        return CheckedVector(env) if captured else env

    def wrapper_init(original: Callable[..., Any]) -> Callable[..., Any]:
        def init(self: Any, env: Any, *args: Any, **options: Any) -> None:
            original(self, env if isinstance(self, VLPVectorRewardWrapper) else rewarding(env), *args, **options)

        return init

    def make_vec(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: rewarding(original(*args, **options))

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: around(original(*args, **options), mode)

    if mode.startswith("vector"):
        patch(gym.vector.VectorWrapper, "__init__", wrapper_init)
        patch(registration, "make_vec", make_vec)
        gym.make_vec = registration.make_vec
    else:
        patch(registration, "make", make)
        gym.make = registration.make


def _install_sb3(mode: str) -> None:
    from stable_baselines3.common import base_class, buffers, callbacks, off_policy_algorithm, vec_env

    late = mode.endswith("async")
    _install_oracle(off_policy_algorithm.OffPolicyAlgorithm, buffers, callbacks.BaseCallback)

    def vec_init(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, env_fns, *args, **options: original(self, prepare(env_fns, mode), *args, **options)

    patch(vec_env.DummyVecEnv, "__init__", vec_init)
    patch(vec_env.SubprocVecEnv, "__init__", vec_init)

    def wrap_env(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: _insert(original(*args, **options), "async" if late else "sync")

    if mode.startswith("vector"):
        patch(base_class.BaseAlgorithm, "_wrap_env", wrap_env)
    if late:
        _install_late(base_class.BaseAlgorithm, off_policy_algorithm.OffPolicyAlgorithm)


def _insert(env: Any, mode: str) -> Any:
    """Put `VLPVecReward` under all wrappers of a `VecEnv` whose environments paint."""
    from stable_baselines3.common.vec_env import VecEnvWrapper

    if not isinstance(env, VecEnvWrapper):
        return CheckedVec(env, mode) if env.has_attr("attach_frames") else env
    layer = env
    while isinstance(layer.venv, VecEnvWrapper):
        layer = layer.venv
    if not isinstance(layer, CheckedVec) and layer.venv.has_attr("attach_frames"):
        layer.venv = CheckedVec(layer.venv, mode)
    return env


def _install_late(algorithm: Any, off_policy: Any) -> None:
    from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

    from vlp_gym.integrations import sb3 as ours

    def setup(original: Callable[..., Any]) -> Callable[..., Any]:
        def setup_model(self: Any) -> None:
            named = isinstance(self.observation_space, gym.spaces.Dict)
            if self.replay_buffer_class is None and not (named and self.n_steps > 1):  # which SB3 refuses
                if named:
                    self.replay_buffer_class = ours.VLPDictReplayBuffer
                elif self.n_steps > 1:
                    self.replay_buffer_class = ours.VLPNStepReplayBuffer
                    self.replay_buffer_kwargs.update(n_steps=self.n_steps, gamma=self.gamma)
                    self.n_steps = 1
                else:
                    self.replay_buffer_class = ours.VLPReplayBuffer
            if not issubclass(self.replay_buffer_class or object, HerReplayBuffer):
                self.optimize_memory_usage = False
            original(self)

        return setup_model

    def init_callback(original: Callable[..., Any]) -> Callable[..., Any]:
        def init(self: Any, callback: Any, *args: Any, **options: Any) -> Any:
            from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback

            if not isinstance(callback, (list, BaseCallback)):
                callback = [] if callback is None else [ConvertCallback(callback)]
            given = callback if isinstance(callback, list) else [callback]
            return original(self, [ours.VLPRewardCallback(), *given], *args, **options)

        return init

    patch(off_policy, "_setup_model", setup)
    patch(algorithm, "_init_callback", init_callback)


def _install_oracle(off_policy: Any, buffers: Any, callback: Any) -> None:
    """Compare what the buffers store: replay rows when they are sampled, rollouts when their returns are computed."""

    def store(original: Callable[..., Any]) -> Callable[..., Any]:
        def store_transition(self: Any, replay_buffer: Any, *args: Any, **options: Any) -> None:
            row, infos = replay_buffer.pos, inspect.signature(original).bind(self, replay_buffer, *args, **options)
            original(self, replay_buffer, *args, **options)
            painted = vars(replay_buffer).setdefault("_painted", np.full_like(replay_buffer.rewards, np.nan))
            painted[row] = [info.get(PAINTED, np.nan) for info in infos.arguments["infos"]]

        return store_transition

    def samples(original: Callable[..., Any]) -> Callable[..., Any]:
        def get_samples(self: Any, batch_inds: Any, *args: Any, **options: Any) -> Any:
            for row in np.unique(batch_inds) if "_painted" in vars(self) else ():
                for reward, painted in zip(self.rewards[row], self._painted[row], strict=True):
                    ORACLE.compare(float(reward), float(painted), f"row {row} of {type(self).__name__}")
            return original(self, batch_inds, *args, **options)

        return get_samples

    def on_step(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(self: Any) -> bool:
            rollout, infos = getattr(self.model, "rollout_buffer", None), self.locals.get("infos")
            # Every callback of a list is asked about the same step.
            if rollout is not None and infos is not None and vars(rollout).get("_painted_step") is not infos:
                rollout._painted_step = infos
                normalizer = self.model.get_vec_normalize_env()
                raw = normalizer is None or not normalizer.norm_reward
                # A reward at a time-out has the value of the last observation added to it.
                vars(rollout).setdefault("_painted", []).append(
                    [info.get(PAINTED) if raw and not info.get("TimeLimit.truncated") else np.nan for info in infos]
                )
            return original(self)

        return step

    def returns(original: Callable[..., Any]) -> Callable[..., Any]:
        def compute(self: Any, *args: Any, **options: Any) -> None:
            painted = vars(self).pop("_painted", [])[-self.buffer_size :]
            for row, each in enumerate(painted):
                if not each:  # a VecEnv of SB3's tests has steps without infos
                    continue
                for reward, value in zip(self.rewards[row], each, strict=True):
                    value = np.nan if value is None else value
                    ORACLE.compare(float(reward), float(value), f"row {row} of {type(self).__name__}")
            original(self, *args, **options)

        return compute

    def training_end(original: Callable[..., Any]) -> Callable[..., Any]:
        def on_training_end(self: Any) -> None:
            original(self)
            digest = hashlib.sha256()
            for tensor in self.model.policy.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            trained = f"{type(self.model).__name__} {digest.hexdigest()[:16]}"
            if ORACLE.trained[-1:] != [trained]:  # every callback of a list is told of the same end
                ORACLE.trained.append(trained)

        return on_training_end

    patch(callback, "on_training_end", training_end)
    patch(off_policy, "_store_transition", store)
    for kind in (buffers.ReplayBuffer, buffers.DictReplayBuffer, buffers.NStepReplayBuffer):
        patch(kind, "_get_samples", samples)
    patch(callback, "on_step", on_step)
    patch(buffers.RolloutBuffer, "compute_returns_and_advantage", returns)
