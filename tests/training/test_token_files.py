"""Tokens on disk: made once, of these weights and frames only, and never taken on trust."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlp_gym.errors import DatasetError
from vlp_gym.models.backbones.small import SmallBackbone
from vlp_gym.training.token_files import TokenFiles

VIDEOS = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32, 3), np.uint8)


def frozen(seed=0):
    torch.manual_seed(seed)
    return SmallBackbone(32, 16, 64).requires_grad_(False).eval()


def filled(folder, backbone, videos=VIDEOS):
    files = TokenFiles(folder)
    files.fill(backbone, videos, len(videos), progress_bar=False)
    return files


def test_what_is_read_is_what_the_backbone_says(tmp_path):
    files = filled(tmp_path, frozen())
    for video in VIDEOS:
        assert torch.equal(files.read(video), frozen().encode_frames(torch.from_numpy(video)).half())


def test_an_interrupted_encoding_goes_on(tmp_path, monkeypatch):
    filled(tmp_path, frozen(), VIDEOS[:2])
    backbone, encoded = frozen(), []
    encode = backbone.encode_frames
    monkeypatch.setattr(backbone, "encode_frames", lambda frames: encoded.append(frames) or encode(frames))
    filled(tmp_path, backbone)
    (frames,) = encoded
    assert torch.equal(frames, torch.from_numpy(VIDEOS[2]))


def test_other_weights_find_other_tokens(tmp_path):
    first, other = filled(tmp_path, frozen()), filled(tmp_path, frozen(1))
    assert len(list(tmp_path.iterdir())) == 6
    assert not torch.equal(first.read(VIDEOS[0]), other.read(VIDEOS[0]))


@pytest.mark.parametrize("damage", [b"", b"\x80\x04", None])
def test_damaged_or_missing(tmp_path, damage):
    files = filled(tmp_path, frozen(), VIDEOS[:1])
    (path,) = tmp_path.iterdir()
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(DatasetError) as caught:
        files.read(VIDEOS[0])
    assert str(caught.value).startswith(f"{path}: expected the tokens of a video (")
    assert str(caught.value).endswith("); remove it and train again")


def test_a_trained_backbone_is_refused(tmp_path):
    with pytest.raises(ValueError) as caught:
        filled(tmp_path, SmallBackbone(32, 16, 64))
    assert str(caught.value) == "token files: expected a frozen backbone, got one that is trained"
