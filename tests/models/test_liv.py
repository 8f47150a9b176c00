"""LIV's cosine with a sentence and with a goal picture, against open_clip in double precision."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlp_gym.errors import InstructionError
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.goal_images import read_goal_image
from vlp_gym.models.protocol import value_range
from vlp_gym.models.registry import load_reward_model
from vlp_gym.testing import check_reward_model

open_clip = pytest.importorskip("open_clip")

from tiny_clip import MEAN, STD, add_mini_clips, random_frames, unit  # noqa: E402  # needs the line above

from vlp_gym.models.liv import LIVModel  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def mini_clips(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_mini_clips(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def model(mini_clips: None) -> LIVModel:
    torch.manual_seed(0)
    return LIVModel(architecture="mini-resnet").eval()


def picture_file(folder: Path, frame: Tensor, name: str = "goal.png") -> str:
    path = folder / name
    Image.fromarray(frame.numpy()).save(path)
    return str(path)


def embed(model: LIVModel, frames: Tensor) -> np.ndarray:
    """Unit vectors of frames of the tower's own size, in double precision."""
    clip = copy.deepcopy(model.clip.model).double()
    pictures = (frames.numpy().astype(np.float64) / 255 - MEAN) / STD
    with torch.no_grad():
        return unit(clip.encode_image(torch.from_numpy(pictures.transpose(0, 3, 1, 2))).numpy())


def test_it_is_a_reward_model(model: LIVModel) -> None:
    check_reward_model(model)
    assert (model.window, model.history, model.frame_size) == (8, "sliding", (64, 64))
    assert value_range(model) == (-1, 1)


@torch.no_grad()
def test_progress_is_the_cosine_with_a_sentence_or_a_picture(model: LIVModel, tmp_path: Path) -> None:
    frames, goal = random_frames(6, 64, 64), random_frames(1, 64, 64, seed=1)
    clip = copy.deepcopy(model.clip.model).double()
    said = unit(clip.encode_text(open_clip.tokenize(["open the door"], context_length=12)).numpy())
    expected = np.einsum(
        "btd,bd->bt", embed(model, frames).reshape(2, 3, -1), np.concatenate([said, embed(model, goal)])
    )
    text = model.encode_text(["open the door", picture_file(tmp_path, goal[0])])
    mask = torch.tensor([[True, True, True], [False, True, True]])
    scores = model.score(model.encode_frames(frames).unflatten(0, (2, 3)), text, mask)
    assert scores.progress is not None
    np.testing.assert_allclose(scores.progress.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(scores.preference.numpy(), [expected[0].mean(), expected[1, 1:].mean()], atol=1e-5)


@torch.no_grad()
def test_the_goal_itself_is_the_best_frame(model: LIVModel, tmp_path: Path) -> None:
    frames = random_frames(4, 80, 100)
    text = model.encode_text([picture_file(tmp_path, frames[2])])
    progress = model.score(model.encode_frames(frames)[None], text, torch.ones(1, 4, dtype=torch.bool)).progress
    assert progress is not None
    assert progress.argmax() == 2
    torch.testing.assert_close(progress[0, 2], torch.tensor(1.0))


@torch.no_grad()
def test_the_middle_square_is_what_it_sees(model: LIVModel) -> None:
    wide = random_frames(1, 64, 100)
    torch.testing.assert_close(model.encode_frames(wide), model.encode_frames(wide[:, :, 18:82]))


@torch.no_grad()
def test_saved_and_loaded(model: LIVModel, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path)
    loaded = load_reward_model(tmp_path)
    assert isinstance(loaded, LIVModel)
    assert loaded.config == {"architecture": "mini-resnet", "antialias": True, "truncate": False}
    frames = random_frames(2, 64, 64)
    assert torch.equal(loaded.encode_frames(frames), model.encode_frames(frames))
    assert torch.equal(loaded.encode_text(["close"]), model.encode_text(["close"]))


def test_goal_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = random_frames(1, 8, 6)[0]
    assert read_goal_image("open the door") is None
    for name in ("goal.png", "GOAL.PNG"):
        read = read_goal_image(picture_file(tmp_path, frame, name))
        assert read is not None
        assert torch.equal(read, frame)
    monkeypatch.setenv("HOME", str(tmp_path))
    read = read_goal_image(" ~/goal.png ")
    assert read is not None
    assert torch.equal(read, frame)

    grey = tmp_path / "grey.jpeg"
    lying = Image.new("L", (6, 4), 100)
    exif = lying.getexif()
    exif[0x0112] = 6  # the camera was turned
    lying.save(grey, exif=exif)
    read = read_goal_image(str(grey))
    assert read is not None
    assert read.shape == (6, 4, 3)
    assert torch.equal(read, torch.full((6, 4, 3), 100, dtype=torch.uint8))


def test_goal_pictures_that_are_none(tmp_path: Path) -> None:  # fault 60
    message = "the goal picture 'nowhere.jpg' does not exist; give the path of a file, or a sentence"
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        read_goal_image("nowhere.jpg")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(InstructionError, match=rf"^the goal picture '{re.escape(str(broken))}' cannot be read: "):
        read_goal_image(str(broken))
    whole = Path(picture_file(tmp_path, random_frames(1, 20, 20)[0])).read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InstructionError, match=rf"^the goal picture '{re.escape(str(broken))}' cannot be read: "):
        read_goal_image(str(broken))
