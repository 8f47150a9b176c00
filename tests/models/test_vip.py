"""VIP's distance to the goal picture, against torchvision's own ResNet in double precision."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlp_gym import testing
from vlp_gym.errors import InstructionError, MissingExtraError
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.protocol import value_range
from vlp_gym.models.registry import load_reward_model

torchvision = pytest.importorskip("torchvision")

from tiny_clip import random_frames  # noqa: E402  # needs the line above

from vlp_gym.models.vip import VIPModel  # noqa: E402

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def model() -> VIPModel:
    torch.manual_seed(0)
    return VIPModel(resnet=18, dim=16).eval()


def goal_file(folder: Path, frame: Tensor, name: str = "goal.png") -> str:
    path = folder / name
    Image.fromarray(frame.numpy()).save(path)
    return str(path)


def embed(model: VIPModel, frames: Tensor) -> np.ndarray:
    """Embeddings of frames of 224 x 224, by a ResNet built here, in double precision."""
    net = torchvision.models.resnet18(weights=None, num_classes=16)
    net.load_state_dict(model.convnet.state_dict())
    pictures = (frames.numpy().astype(np.float64) / 255 - MEAN) / STD
    with torch.no_grad():
        return net.double().eval()(torch.from_numpy(pictures.transpose(0, 3, 1, 2))).numpy()


def test_it_is_a_reward_model(model: VIPModel, tmp_path: Path) -> None:
    one, other = (goal_file(tmp_path, random_frames(1, 30, 40, seed)[0], f"{seed}.png") for seed in (1, 2))
    testing.check_reward_model(model, instructions=(one, other))
    assert (model.window, model.history, model.frame_size) == (8, "sliding", (224, 224))
    assert value_range(model) == (-np.inf, 0)


@torch.no_grad()
def test_progress_is_minus_the_distance_to_the_goal(model: VIPModel, tmp_path: Path) -> None:
    frames, rows = random_frames(4, 224, 224), [[0, 1], [1, 0]]
    seen = embed(model, frames)
    expected = -np.linalg.norm(seen[rows] - seen[[[2], [3]]], axis=-1)
    text = model.encode_text([goal_file(tmp_path, frames[2]), goal_file(tmp_path, frames[3], "b.png")])
    mask = torch.tensor([[True, True], [False, True]])
    scores = model.score(model.encode_frames(frames[:2])[torch.tensor(rows)], text, mask)
    assert scores.progress is not None
    np.testing.assert_allclose(scores.progress.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(scores.preference.numpy(), [expected[0].mean(), expected[1, 1]], atol=1e-5)
    assert np.ptp(expected) > 1e-3  # else the comparison above would say nothing


@torch.no_grad()
def test_the_goal_itself_has_the_value_0(model: VIPModel, tmp_path: Path) -> None:
    frames = random_frames(1, 240, 320)
    text = model.encode_text([goal_file(tmp_path, frames[0])])
    progress = model.score(model.encode_frames(frames)[None], text, torch.ones(1, 1, dtype=torch.bool)).progress
    assert progress is not None
    assert progress.item() == 0


def test_frames_are_prepared_as_torchvision_does(model: VIPModel) -> None:
    seen: list[Tensor] = []
    handle = model.convnet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    smooth = np.linspace(0, 255, 301 * 480 * 3).reshape(301, 480, 3).astype(np.uint8)
    with torch.no_grad():
        model.encode_frames(torch.from_numpy(smooth)[None])
        model.encode_frames(torch.from_numpy(smooth)[None, :224, :224])
    handle.remove()
    transforms = torchvision.transforms
    published = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()])
    for picture, expected in zip(seen, (published(Image.fromarray(smooth)), smooth[:224, :224] / 255), strict=True):
        pixels = np.asarray(expected)
        pixels = pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels
        np.testing.assert_allclose(picture[0].permute(1, 2, 0).numpy(), (pixels - MEAN) / STD, atol=1.5 / 255 / 0.224)


def test_a_sentence_is_no_goal(model: VIPModel) -> None:
    message = "VIP knows no language: expected the path of a goal picture (.png, .jpg or .jpeg), got 'press the button'"
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        model.encode_text(["press the button"])


@torch.no_grad()
def test_saved_and_loaded(model: VIPModel, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path)
    loaded = load_reward_model(tmp_path)
    assert isinstance(loaded, VIPModel)
    assert loaded.config == {"resnet": 18, "dim": 16}
    frames = random_frames(2, 64, 64)
    assert torch.equal(loaded.encode_frames(frames), model.encode_frames(frames))


def test_what_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^resnet: expected 18, 34 or 50 layers, got 101$"):
        VIPModel(resnet=101)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtraError, match=r'^a ResNet needs torchvision: pip install "vlp_gym\[clip\]"$'):
        VIPModel(resnet=18)
