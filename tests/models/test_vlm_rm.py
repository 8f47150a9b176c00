"""VLM-RM, against its definition with the matrix P written out in double precision."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from vlp_gym.errors import InstructionError
from vlp_gym.models.registry import load_reward_model
from vlp_gym.testing import check_reward_model

pytest.importorskip("open_clip")

from tiny_clip import add_mini_clips, random_frames, unit  # needs the line above

from vlp_gym.models.clip import CLIPModel
from vlp_gym.models.vlm_rm import BASELINE, VLMRMModel, goal_baseline_reward


@pytest.fixture(scope="module", autouse=True)
def mini_clips(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_mini_clips(tmp_path_factory.mktemp("configs"))


def make_model(**options) -> VLMRMModel:
    torch.manual_seed(0)
    return VLMRMModel("mini-vit", None, **options).eval()


def reward(x: np.ndarray, g: np.ndarray, b: np.ndarray, alpha: float) -> float:
    d = g - b
    projection = alpha * np.outer(d, d) / (d @ d) + (1 - alpha) * np.eye(len(d))
    gap = (x - g) @ projection
    return 1 - 0.5 * gap @ gap


def vectors(count: int, dim: int = 5, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dim)))


def as_tensor(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows).float()[None]


def test_it_is_a_reward_model() -> None:
    check_reward_model(make_model())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_reward_is_that_of_the_paper(alpha: float) -> None:
    model = make_model(alpha=alpha, baseline="a table")
    frames = random_frames(6, 40, 48)
    tokens, mask = model.encode_frames(frames).unflatten(0, (2, 3)), torch.ones(2, 3, dtype=torch.bool)
    goals = ["the button is pressed", "the drawer is open"]
    text = model.encode_text(goals)
    clip = make_model().clip
    assert text.shape == (2, 2, 16)
    torch.testing.assert_close(text[:, :1], clip.encode_text(goals))
    torch.testing.assert_close(text[:, 1:], clip.encode_text(["a table", "a table"]))
    mask[1, 0] = False
    scores = model.score(tokens, text, mask)
    g_and_b = text.double().numpy()
    seen = tokens.double().numpy()[:, :, 0]
    expected = np.array([[reward(x, *g_and_b[row], alpha) for x in seen[row]] for row in range(2)])
    assert scores.progress is not None
    np.testing.assert_allclose(scores.progress.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(scores.preference.numpy(), [expected[0].mean(), expected[1, 1:].mean()], atol=1e-5)


def test_without_regularisation_it_is_clip() -> None:
    model = make_model(alpha=0.0)
    torch.manual_seed(0)
    clip = CLIPModel("mini-vit", None).eval()
    frames, mask = random_frames(4, 32, 32), torch.ones(1, 4, dtype=torch.bool)
    ours = model.score(model.encode_frames(frames)[None], model.encode_text(["press"]), mask).progress
    theirs = clip.score(clip.encode_frames(frames)[None], clip.encode_text(["press"]), mask).progress
    assert ours is not None
    assert theirs is not None
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    goal_is_baseline = model.encode_text([BASELINE])  # no direction is needed
    assert model.score(model.encode_frames(frames)[None], goal_is_baseline, mask).preference.isfinite().all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_range_of_values(alpha: float) -> None:
    """Random and worst cases: frames at the goal, opposite to it, and a baseline opposite to the goal."""
    g = vectors(50)
    for row in range(50):
        frames = np.concatenate([vectors(20, seed=row + 1), g[row : row + 1], -g[row : row + 1]])
        for b in (vectors(1, seed=row + 100)[0], -g[row]):
            expected = [reward(x, g[row], b, alpha) for x in frames]
            got = goal_baseline_reward(as_tensor(frames), as_tensor(g[[row]]), as_tensor(b[None]), alpha)
            np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-5)
            low, high = VLMRMModel.value_range
            assert low <= got.min() <= got.max() <= high
    worst = goal_baseline_reward(as_tensor(-g[[0]]), as_tensor(g[[0]]), as_tensor(-g[[0]]), alpha)
    np.testing.assert_allclose(worst.item(), -1, atol=1e-5)  # the range is no wider than it must be


def test_by_name() -> None:
    model = load_reward_model("vlm-rm:mini-vit/random?baseline=a robot's arm, 50% red&alpha=0.25")
    assert isinstance(model, VLMRMModel)
    assert (model.baseline, model.alpha) == ("a robot's arm, 50% red", 0.25)
    plain = VLMRMModel.from_spec("mini-vit")
    assert (plain.baseline, plain.alpha) == (BASELINE, 0.5)
    for query in ("alpah=1", "alpha=0&alpha=1"):
        message = f'expected "baseline" and "alpha" after the "?", each once at most, got {query!r}'
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            VLMRMModel.from_spec(f"mini-vit?{query}")
    with pytest.raises(ValueError, match=r"^alpha: expected a number in \[0, 1\], got 'half'$"):
        VLMRMModel.from_spec("mini-vit?alpha=half")


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"^alpha: expected a number in \[0, 1\], got {alpha}$"):
        VLMRMModel("mini-vit", None, alpha=alpha)


def test_a_sentence_may_have_its_own_baseline() -> None:
    model = make_model(baseline="a table")
    model.baselines = {"close drawer": "drawer"}
    text = model.encode_text(["press button", "close drawer"])
    wanted = model.clip.encode_text(["a table", "drawer"])
    torch.testing.assert_close(text[:, 1:], wanted)
    assert not torch.equal(wanted[0], wanted[1])


def test_goal_and_baseline_must_differ() -> None:
    model = make_model(baseline="Press the button")
    message = (
        "the goal 'press the  button' and the baseline 'Press the button' are the same to this CLIP, so there is no "
        "direction from one to the other; describe the goal otherwise, or the baseline"
    )
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        model.encode_text(["open the door", "press the  button"])
    with pytest.raises(InstructionError, match="the instruction is empty"):
        make_model(baseline=" ")
