"""CLIP's cosine, against open_clip's own embeddings in double precision."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vlp_gym.errors import CheckpointError, InstructionError
from vlp_gym.models.protocol import value_range
from vlp_gym.models.registry import load_reward_model
from vlp_gym.testing import check_reward_model

open_clip = pytest.importorskip("open_clip")

from tiny_clip import MEAN, STD, add_mini_clips, random_frames, unit  # noqa: E402  # needs the line above

from vlp_gym.models.clip import CLIPModel, ClipTowers, parse_clip_name  # noqa: E402
from vlp_gym.models.cosine import cosine  # noqa: E402

SENTENCES = ["press the button", "open the drawer slowly"]


@pytest.fixture(scope="module", autouse=True)
def mini_clips(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_mini_clips(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def model(mini_clips: None) -> CLIPModel:
    torch.manual_seed(0)
    return CLIPModel("mini-vit", None).eval()


def embeddings(model: CLIPModel, frames: Tensor, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of frames of the tower's own size and of sentences, in double precision."""
    clip = copy.deepcopy(model.clip.model).double()
    pictures = (frames.numpy().astype(np.float64) / 255 - MEAN) / STD
    with torch.no_grad():
        seen = clip.encode_image(torch.from_numpy(pictures.transpose(0, 3, 1, 2)))
        said = clip.encode_text(open_clip.tokenize(sentences, context_length=12))
    return unit(seen.numpy()), unit(said.numpy())


def test_it_is_a_reward_model(model: CLIPModel) -> None:
    check_reward_model(model)
    assert (model.window, model.history, model.frame_size) == (8, "sliding", (32, 32))
    assert value_range(model) == (-1, 1)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_progress_is_the_cosine_and_preference_its_mean_over_real_frames(model: CLIPModel) -> None:
    frames = random_frames(6, 32, 32)
    seen, said = embeddings(model, frames, SENTENCES)
    mask = torch.tensor([[True, True, True], [False, True, True]])
    scores = model.score(model.encode_frames(frames).unflatten(0, (2, 3)), model.encode_text(SENTENCES), mask)
    expected = np.einsum("btd,bd->bt", seen.reshape(2, 3, -1), said)
    assert scores.progress is not None
    np.testing.assert_allclose(scores.progress.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(scores.preference.numpy(), [expected[0].mean(), expected[1, 1:].mean()], atol=1e-5)
    assert scores.relevance is None


def test_a_cosine_never_leaves_its_range() -> None:
    vectors = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(1000, 1, 7)))).float()
    assert (vectors * vectors).sum(-1).max() > 1  # rounding alone would leave it
    same = cosine(vectors, vectors)
    assert 1 - 1e-6 < same.min() <= same.max() <= 1
    assert -1 <= cosine(vectors, -vectors).min() < -1 + 1e-6


def test_the_whole_frame_is_resized_as_pillow_does(model: CLIPModel) -> None:
    seen: list[Tensor] = []
    handle = model.clip.model.visual.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    smooth = np.linspace(0, 255, 96 * 64 * 3).reshape(96, 64, 3).astype(np.uint8)
    model.encode_frames(torch.from_numpy(smooth)[None])
    handle.remove()
    resized = np.asarray(Image.fromarray(smooth).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    expected = ((resized - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(seen[0][0].numpy(), expected, atol=1.5 / 255 / 0.26)  # Pillow rounds, twice


def test_crop_keeps_the_shape_of_things() -> None:
    towers = ClipTowers("mini-vit", None, crop=True)
    seen: list[Tensor] = []
    handle = towers.model.visual.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    smooth = np.linspace(0, 255, 64 * 96 * 3).reshape(64, 96, 3).astype(np.uint8)
    towers.encode_frames(torch.from_numpy(smooth)[None])
    handle.remove()
    resized = Image.fromarray(smooth).resize((48, 32), Image.Resampling.BILINEAR).crop((8, 0, 40, 32))
    expected = ((np.asarray(resized) / 255 - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(seen[0][0].numpy(), expected, atol=1.5 / 255 / 0.26)


def test_by_name(model: CLIPModel, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(model.clip.model.state_dict(), path)
    before = torch.get_rng_state()
    loaded = load_reward_model(f"clip:mini-vit/{path}")
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(loaded, CLIPModel)
    assert torch.equal(loaded.encode_text(SENTENCES), model.encode_text(SENTENCES))
    assert isinstance(load_reward_model("clip:mini-vit/random"), CLIPModel)
    assert parse_clip_name("mini-vit/random") == parse_clip_name("mini-vit") == ("mini-vit", None)
    message = 'expected "NAME/TAG" of open_clip, such as "ViT-B-32/openai", got \'/openai\''
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        CLIPModel.from_spec("/openai")


def test_no_download_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    message = (
        "open_clip could not download what 'ViT-B-32' with the weights 'openai' needs: "
        "Failed to download weights for tag 'openai': no route to host\n"
        "It is downloaded once and then cached; connect this machine once, or give the path of a .safetensors "
        'file as `pretrained`. The model "vlp-compact" works offline.'
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_reward_model("clip:ViT-B-32/openai")


def test_instructions(model: CLIPModel) -> None:
    long = "press the big round red button on the left side of the table twice"  # 14 words, a start and an end
    message = "the instruction has 16 tokens, the model reads 12; shorten it, or pass truncate=True to drop the rest"
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        model.encode_text([long])
    with pytest.raises(InstructionError, match="the instruction is empty"):
        model.encode_text(["  "])
    cut = CLIPModel("mini-vit", None, truncate=True)
    assert cut.encode_text([long]).shape == (1, 1, 16)


def test_frames_must_be_bytes(model: CLIPModel) -> None:
    message = "expected uint8 frames [N, H, W, 3], got torch.float32 [2, 3, 32, 32]"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        model.encode_frames(torch.zeros(2, 3, 32, 32))
