from __future__ import annotations

import copy
import logging
import math
import pickle
import random
import re
import threading
import unicodedata
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from painted import SENTENCE, rollout, wrap

from vlp_gym.errors import InstructionError
from vlp_gym.frames.rendering import FastRender
from vlp_gym.testing import FaultyModel, PaintedEnv, PaintedModel, check_wrapper, painted_value
from vlp_gym.wrappers import VLPRewardWrapper


def draw(env: gym.Env) -> np.ndarray:
    """The state as a picture, without pygame."""
    colours = np.float32(env.unwrapped.state).view(np.uint8)
    return np.resize(colours, (8, 8, 3))


@pytest.mark.filterwarnings("ignore:reset before the end of an episode")
@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    stops=st.lists(st.integers(0, 14), min_size=4, max_size=4),
    every=st.integers(1, 5),
    reward=st.sampled_from(["progress", "delta", "potential", "preference", "final"]),
    history=st.sampled_from(["sliding", "prefix"]),
    truncate=st.booleans(),
)
def test_every_reward_is_what_the_painted_frame_says(lengths, stops, every, reward, history, truncate):
    model = PaintedModel(window=3, history=history)
    env = wrap(PaintedEnv(lengths, truncate=truncate), model, reward=reward, every=every, scale=2.0, gamma=0.9)
    for episode, stop in enumerate(stops):  # stops in mid-episode, at the end, or never
        length = lengths[min(episode, len(lengths) - 1)]
        _, info = env.reset()
        before = painted_value(0, episode, 0)
        assert info["vlp"]["score"] == (before if reward != "final" else 0.0)
        shown = [before]
        for step in range(1, min(stop, length) + 1):
            _, paid, terminated, truncated, info = env.step(0)
            over = step == length
            assert (terminated, truncated) == (over and not truncate, over and truncate)
            scored = step % every == 0 or over
            now = painted_value(0, episode, step) if scored else before
            shown += [now] if scored else []
            phi = 0.0 if terminated else 0.9 * now
            kinds = {"progress": now, "preference": now, "delta": now - before, "potential": phi - before}
            kinds["final"] = now if over else 0.0
            assert paid == 2.0 * kinds[reward]
            assert type(paid) is float
            said = now if reward != "final" or over else 0.0
            assert (info["vlp"]["score"], info["vlp"]["env_reward"]) == (said, -1.0)
            if reward != "final" or over:
                assert set(model.windows[-1]) <= set(shown), "a window spans two episodes"
            before = now
    stats = env.stats()
    assert stats["submitted"] == stats["delivered"] == model.encoded - 1  # one frame was the black one


@pytest.mark.parametrize("threshold", [None, 2.0])
def test_the_final_reward_asks_for_one_score_an_episode(threshold):
    """It is of a window of the whole episode; a threshold of success needs a score at each step."""
    model = PaintedModel(window=3, history="prefix")
    env = wrap(PaintedEnv([6, 4]), model, reward="final", success_threshold=threshold)
    for length in (6, 4):
        before = len(model.windows)
        env.reset()
        paid = [env.step(0)[1] for _ in range(length)]
        episode = env.ticket.episode
        assert paid == [0.0] * (length - 1) + [painted_value(0, episode, length)]
        assert model.windows[-1] == [painted_value(0, episode, step) for step in (0, length // 2, length)]
        assert len(model.windows) - before == (1 if threshold is None else length + 1)


def test_a_wrong_sentence_pays_little():
    value = painted_value(0, 0, 1)
    for logit in (-8.0, 0.0, 8.0):
        (paid, info), *_ = rollout(wrap(model=PaintedModel(relevance=logit)))
        assert paid == info["score"] == pytest.approx(value / (1 + math.exp(-logit)))
        assert (info["progress"], info["relevance"]) == (value, logit)


def test_preference_pays_f_of_a_model_without_progress():
    (paid, info), *_ = rollout(wrap(model=PaintedModel(progress=False), reward="preference"))
    assert paid == info["score"] == painted_value(0, 0, 1)
    assert not {"progress", "relevance"} & set(info)
    assert np.isnan([info["progress"], info["relevance"]]).all()


def test_a_model_without_progress_is_told_to_use_preference():
    message = "the model has no progress, which reward='progress' needs; use reward=\"preference\""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        wrap(model=PaintedModel(progress=False))


def test_success_pays_a_bonus_and_can_terminate():
    threshold = painted_value(0, 0, 3)
    env = wrap(success_threshold=threshold, success_bonus=5.0, terminate_on_success=True)
    transitions = rollout(env)
    assert [info["success"] for _, info in transitions] == [False, False, True]
    assert [paid for paid, _ in transitions] == [painted_value(0, 0, 1), painted_value(0, 0, 2), threshold + 5.0]
    with pytest.raises(ResetNeeded):
        env.step(0)
    assert len(rollout(wrap(success_threshold=threshold))) == 10


def test_the_own_reward_can_be_added():
    (paid, info), *_ = rollout(wrap(env_reward_weight=0.5))
    assert paid == painted_value(0, 0, 1) - 0.5
    assert info["env_reward"] == -1.0


def test_window_and_history_take_the_place_of_the_models():
    model = PaintedModel(window=4, history="sliding")
    rollout(wrap(model=model, window=3, history="prefix"))
    assert model.windows[-1] == [painted_value(0, 0, step) for step in (0, 5, 10)]


def test_a_one_step_episode_has_a_padded_window():  # fault 11
    model = PaintedModel()
    assert [paid for paid, _ in rollout(wrap(PaintedEnv([1]), model))] == [painted_value(0, 0, 1)]
    assert model.windows[-1] == [painted_value(0, 0, step) for step in (0, 1)]


def test_an_own_camera():
    env = PaintedEnv()
    env.render_mode = None
    painter = wrap(env, render_fn=lambda inner: inner.unwrapped.render())
    assert rollout(painter)[0][0] == painted_value(0, 0, 1)


@pytest.mark.parametrize("instruction", ["", "  \t", "a\0b", "\ud800"])
def test_an_instruction_that_says_nothing(instruction):  # faults 29, 33
    with pytest.raises(InstructionError):
        VLPRewardWrapper(PaintedEnv(), instruction, PaintedModel())
    env = wrap()
    with pytest.raises(InstructionError):
        env.set_instruction(instruction)


def test_an_instruction_that_is_no_text():  # fault 30
    with pytest.raises(TypeError, match=r"^expected the instruction as a str, got int$"):
        VLPRewardWrapper(PaintedEnv(), 7, PaintedModel())


class ShortText(PaintedModel):
    """Takes 20 characters."""

    truncate = False

    def encode_text(self, instructions):
        if len(instructions[0]) > 20 and not self.truncate:
            raise InstructionError("the instruction is too long")
        return super().encode_text(instructions)


def test_an_instruction_over_the_limit():  # fault 31
    env = wrap(model=ShortText())
    with pytest.raises(InstructionError, match=r"^the instruction is too long$"):
        env.set_instruction("press " * 9)
    with pytest.raises(InstructionError, match=r"^the instruction is too long$"):
        VLPRewardWrapper(PaintedEnv(), "press " * 9, ShortText())
    wrap(model=ShortText(), truncate=True).set_instruction("press " * 9)


def test_any_script_and_one_normal_form():  # fault 32
    for text in ("öffne die Tür", "اضغط على الزر", "press 🔴"):
        forms = {unicodedata.normalize(form, text) for form in ("NFC", "NFD")}
        envs = [VLPRewardWrapper(PaintedEnv(), form, PaintedModel()) for form in forms]
        assert {env.instruction for env in envs} == {unicodedata.normalize("NFC", text)}


def test_percent_and_braces_are_logged_as_they_are(caplog):  # fault 34
    caplog.set_level(logging.DEBUG, "vlp_gym")
    text = "fill the glass to 100 %s {and} %d"
    VLPRewardWrapper(PaintedEnv(), text, PaintedModel()).reset()
    assert caplog.messages == [f"env 0, episode 0, step 0: instruction {text}"]


def test_a_new_instruction_applies_at_the_next_reset():  # fault 35
    class Length(PaintedModel):
        def encode_text(self, instructions):
            return torch.full((1, 1, 1), float(len(instructions[0])))

        def score(self, frames, text, mask):
            return super().score(text[:, None].expand_as(frames), text, mask)

    env = wrap(model=Length(progress=False), reward="preference")
    env.reset()
    env.set_instruction("close")
    assert env.step(0)[1] == len(SENTENCE)
    assert env.instruction == SENTENCE
    env.reset()
    assert env.step(0)[1] == len("close")
    assert env.instruction == "close"


def test_close_twice_and_step_after_close():  # fault 37
    env = wrap()
    env.reset()
    env.close()
    env.close()
    with pytest.raises(ClosedEnvironmentError, match=r"^step was called after close$"):
        env.step(0)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_reset_after_close_goes_on(mode):
    """As in a bare environment; Stable-Baselines3's check_env does that."""
    before = set(threading.enumerate())
    env = wrap(mode=mode, untaken="wait")
    rollout(env)
    for episode in (1, 2):
        env.close()
        env.reset()
        paid = env.step(0)[1]
        late = [delivery.reward for delivery in env.flush()]
        assert (late[-1] if late else paid) == painted_value(0, episode, 1)
    env.close()
    assert "vlp_gym-engine" not in {thread.name for thread in set(threading.enumerate()) - before}
    with pytest.raises(ClosedEnvironmentError, match=r"^step was called after close$"):
        env.step(0)


def test_pickling_says_what_to_do():  # fault 41
    message = (
        "a live VLPRewardWrapper cannot be pickled: its model lives in this process; "
        "make the wrapper in the process that uses it, for example in the function given to SubprocVecEnv"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        pickle.dumps(wrap())


def test_a_deep_copy_goes_its_own_way_with_the_same_model():  # fault 42
    model = PaintedModel()
    env = wrap(model=model)
    env.reset()
    env.step(0)
    twin = copy.deepcopy(env)
    assert twin._stream.engine.model is env._stream.engine.model
    for wrapped in (env, twin, env):
        wrapped.step(0)
    assert model.windows[-1] == [painted_value(0, 0, step) for step in range(4)]
    assert model.windows[-2] == [painted_value(0, 0, step) for step in range(3)]
    assert rollout(twin)[0][0] == painted_value(0, 1, 1)


def test_the_spec_holds_names_and_no_model():  # fault 42
    model = FaultyModel("none")
    env = VLPRewardWrapper(gym.make("CartPole-v1", render_mode="rgb_array"), SENTENCE, model, render_fn=wrap)
    outer = gym.wrappers.TimeLimit(env, 5)
    for spec in (env.spec, outer.spec, copy.deepcopy(outer.spec)):
        kwargs = spec.additional_wrappers[0].kwargs
        assert (kwargs["instruction"], kwargs["model"], kwargs["render_fn"]) == (SENTENCE, "<live FaultyModel>", wrap)
    env.close()


def test_a_spec_with_a_model_name_makes_the_same_again(monkeypatch):
    loaded = []

    def load(name, *, device):
        loaded.append((name, str(device)))
        torch.rand(1)  # building a model draws random weights
        return PaintedModel()

    monkeypatch.setattr("vlp_gym.models.registry.load_reward_model", load)
    env = gym.make("CartPole-v1", render_mode="rgb_array")
    state = torch.get_rng_state()
    env = VLPRewardWrapper(env, SENTENCE, Path("some/folder"), scale=3.0, device="cpu")
    assert torch.equal(state, torch.get_rng_state())  # fault 68
    again = env.spec.make()
    assert loaded == [(Path("some/folder"), "cpu"), (str(Path("some/folder")), "cpu")]
    assert again.spec == env.spec
    env.close()
    again.close()


def test_global_random_generators_are_untouched():  # fault 68
    states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    rollout(wrap(every=2))
    after = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    assert states[:2] == after[:2]
    assert torch.equal(states[2], after[2])


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_gymnasiums_check_env_passes(name, monkeypatch):  # fault 69
    monkeypatch.setattr("vlp_gym.models.registry.load_reward_model", lambda name, device: PaintedModel())
    env = VLPRewardWrapper(gym.make(name, render_mode="rgb_array"), SENTENCE, render_fn=draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the spaces, and that it is wrapped
        check_env(env, skip_render_check=True)  # the render check makes it again with render_mode="human"
    env.close()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_sb3s_check_env_passes(name):  # fault 69
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = VLPRewardWrapper(gym.make(name, render_mode="rgb_array"), SENTENCE, PaintedModel(), render_fn=draw)
    checker.check_env(env, warn=False, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", ["CartPole-v1", "InvertedPendulum-v5"])
def test_sb3s_check_of_rendering_passes(name, mode):  # fault 69
    """It closes the environment, and goes on."""
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    pytest.importorskip("pygame" if name == "CartPole-v1" else "mujoco")
    env = gym.make(name, render_mode="rgb_array")
    env = VLPRewardWrapper(
        FastRender(env, 32, 32) if name != "CartPole-v1" else env, SENTENCE, PaintedModel(), mode=mode, untaken="wait"
    )
    checker.check_env(env, warn=False, skip_render_check=False)
    env.close()


def test_a_real_environment_that_draws_with_pygame():
    pytest.importorskip("pygame")
    env = VLPRewardWrapper(gym.make("CartPole-v1", render_mode="rgb_array"), SENTENCE, PaintedModel(history="prefix"))
    check_wrapper(env)
    env.close()


def test_an_own_reward_that_is_an_array_is_no_obstacle():
    class Arrays(PaintedEnv):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, np.array([0.25]) if self.elapsed == 1 else np.zeros(3), *rest

    env = VLPRewardWrapper(Arrays(), "press the button", PaintedModel())
    env.reset()
    _, reward, _, _, info = env.step(0)
    assert (reward, info["vlp"]["env_reward"]) == (painted_value(0, 0, 1), 0.25)
    _, reward, _, _, info = env.step(0)
    assert reward == painted_value(0, 0, 2)
    assert np.isnan(info["vlp"]["env_reward"])
    mixed = VLPRewardWrapper(Arrays(), "press the button", PaintedModel(), env_reward_weight=1.0)
    mixed.reset()
    assert mixed.step(0)[1] == painted_value(0, 0, 1) + 0.25
    message = (
        "the environment's own reward is None and cannot be mixed in; repair it or set env_reward_weight=0 "
        "(env 1, episode 0, step 2)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mixed.step(0)
