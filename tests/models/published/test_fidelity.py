"""Converted weights score as their authors' code does, computed here by other means."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

open_clip = pytest.importorskip("open_clip")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

from tests.models.test_rewind import TINY, published, reference  # noqa: E402  # needs the lines above
from tests.mutations.resign import resign  # noqa: E402
from tests.tiny_bases import write_encoders  # noqa: E402
from tests.tiny_clip import MEAN, STD, add_mini_clips, random_frames  # noqa: E402
from vlp_gym.engine.windows import window_indices  # noqa: E402
from vlp_gym.models import liv, rewind  # noqa: E402
from vlp_gym.models.checkpoint import save_checkpoint  # noqa: E402
from vlp_gym.models.clip import CLIPModel  # noqa: E402
from vlp_gym.models.registry import load_reward_model  # noqa: E402
from vlp_gym.models.rewind import ReWiNDModel  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def mini_clips(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_mini_clips(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def converted(encoders: dict[str, Any]) -> ReWiNDModel:
    torch.manual_seed(0)
    options = {**encoders, **TINY}
    state = published(ReWiNDModel(**options))
    state = {name: tensor + 0.3 * torch.randn_like(tensor) for name, tensor in state.items()}
    return rewind.from_published(state, **options)


def test_rewind_places_are_those_of_numpy() -> None:
    same = 0
    for count in range(17, 501):
        chosen, mask = window_indices(count, 16, "prefix-floor")
        assert mask.all()
        assert chosen.tolist() == np.linspace(0, count - 1, 16).astype(int).tolist()
        same += np.array_equal(chosen, window_indices(count, 16, "prefix")[0])
    assert same == 32  # for the other lengths, the nearest frames are others


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 9, 15, 16, 17, 40])
def test_rewind_fills_short_episodes_and_rounds_down(converted: ReWiNDModel, count: int) -> None:
    """Theirs: up to 16 frames, filled with the last one, else ``linspace(...).astype(int)``; the last place is read."""
    frames = random_frames(count, 28, 28)
    tokens = converted.encode_frames(frames)[:, 0]
    text = converted.encode_text(["press the button"])
    index = [*range(count), *[count - 1] * (16 - count)] if count < 16 else np.linspace(0, count - 1, 16).astype(int)
    seen, said = tokens[index].double().numpy(), text[0, 0].double().numpy()
    expected = reference(converted.checkpoint_state(), seen, said, TINY["heads"], TINY["layers"])
    chosen, mask = window_indices(count, converted.window, converted.history)
    progress = converted.score(tokens[chosen][None, :, None], text, torch.from_numpy(mask)[None]).progress
    assert progress is not None
    np.testing.assert_allclose(progress[0, -1], expected[-1], atol=1e-5)
    before = min(count, 16) - 1  # frames before the newest: each at its own place
    np.testing.assert_allclose(progress[0, mask][:-1], expected[:before], atol=1e-5)
    if count < 9:  # the masked way is another one
        masked = ReWiNDModel._logits(converted, tokens[chosen][None], text, torch.from_numpy(mask)[None]).sigmoid()
        assert abs(masked[0, -1] - expected[-1]) > 1e-3


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, which PyTorch uses."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_dinov2_positions_are_resized_with_its_offset(encoders: dict[str, Any], converted: ReWiNDModel) -> None:
    """A grid of 3 x 3 for 2 x 2 patches; DINOv2 says 2.1 to its interpolation."""
    stored = transformers.Dinov2Model.from_pretrained(encoders["frame_encoder"]).embeddings.position_embeddings[0]
    grid = stored[1:].detach().double().numpy().reshape(3, 3, -1)
    step = 3 / 2.1
    resize = np.zeros((2, 3))
    for row in range(2):
        centre = (row + 0.5) * step - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            resize[row, min(max(tap, 0), 2)] += cubic(centre - tap)
    expected = np.einsum("ia,jb,abd->ijd", resize, resize, grid).reshape(4, -1)
    backbone: Any = converted.backbone
    ours = backbone.vision.embeddings.position_embeddings[0].detach().numpy()
    np.testing.assert_allclose(ours[1:], expected, atol=1e-6)
    np.testing.assert_array_equal(ours[0], stored[0].detach().numpy())
    plain: Any = ReWiNDModel(**encoders, **TINY).backbone
    frames = random_frames(1, 28, 28)
    assert (plain.encode_frames(frames) - backbone.encode_frames(frames)).abs().max() > 1e-4


def test_what_is_published_stays_so(converted: ReWiNDModel, encoders: dict[str, Any], tmp_path: Path) -> None:
    """A folder keeps it; one of our own, or from before there was a choice, is scored as it was."""
    save_checkpoint(converted, tmp_path / "theirs")
    loaded: Any = load_reward_model(tmp_path / "theirs")
    assert (loaded.published, loaded.history) == (True, "prefix-floor")
    save_checkpoint(ReWiNDModel(**encoders, **TINY), tmp_path / "ours")
    document = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert document["config"].pop("published") is False
    resign(tmp_path / "ours", document)
    loaded = load_reward_model(tmp_path / "ours")
    assert (loaded.published, loaded.history, loaded.config["published"]) == (False, "prefix", False)


def resized(frames: Tensor, size: Any, **options: Any) -> np.ndarray:
    """What torchvision makes of frames, normalised."""
    pictures = frames.permute(0, 3, 1, 2).double() / 255
    pictures = torchvision.transforms.functional.resize(pictures, size, **options)
    return (pictures.numpy().transpose(0, 2, 3, 1) - MEAN) / STD


@torch.no_grad()
@pytest.mark.parametrize("published", [True, False])
def test_liv_resizes_tensors_without_antialiasing(published: bool) -> None:
    torch.manual_seed(0)
    clip = open_clip.create_model("mini-resnet", None).eval()
    model = liv.from_published(clip.state_dict(), architecture="mini-resnet")
    if not published:
        model = liv.LIVModel(architecture="mini-resnet")
    assert model.config["antialias"] is not published
    model.clip.model.load_state_dict(clip.state_dict())
    frames = random_frames(2, 150, 200)
    pixels = resized(frames, 64, antialias=not published)[:, :, 10:74]  # 64 x 85; the middle of it
    seen = clip.double().encode_image(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    expected = torch.nn.functional.normalize(seen, dim=-1)
    torch.testing.assert_close(model.eval().encode_frames(frames)[:, 0].double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_clip_resizes_as_its_weights_were_made(monkeypatch: pytest.MonkeyPatch, interpolation: str) -> None:
    assert open_clip.get_pretrained_cfg("ViT-L-14-CLIPA", "datacomp1b")["interpolation"] == "bilinear"
    assert open_clip.get_pretrained_cfg("ViT-B-32", "openai").get("interpolation", "bicubic") == "bicubic"
    own = functools.partial(open_clip.create_model, force_preprocess_cfg={"interpolation": interpolation})
    monkeypatch.setattr(open_clip, "create_model", own)  # as a tag's own preprocessing gets in
    torch.manual_seed(0)
    model = CLIPModel("mini-vit", None).eval()
    frames = random_frames(2, 90, 70)
    mode = torchvision.transforms.InterpolationMode(interpolation)
    pixels = torch.from_numpy(resized(frames, [32, 32], interpolation=mode, antialias=True).transpose(0, 3, 1, 2))
    pixels = pixels.clamp(torch.tensor(-MEAN / STD).view(3, 1, 1), torch.tensor((1 - MEAN) / STD).view(3, 1, 1))
    seen = copy.deepcopy(model.clip.model).double().encode_image(pixels)
    expected = torch.nn.functional.normalize(seen, dim=-1)
    torch.testing.assert_close(model.encode_frames(frames)[:, 0].double(), expected, atol=1e-5, rtol=0)
