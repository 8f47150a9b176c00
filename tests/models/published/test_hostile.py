"""Originals for conversion that are made to harm: they are refused, and cost nothing."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from vlp_gym.errors import CheckpointError
from vlp_gym.models.published.convert import convert

pytest.importorskip("torchvision")
pytest.importorskip("transformers")


def save(folder: Path, system: str, state: dict[str, Any]) -> Path:
    path = folder / "model.pt"
    torch.save({system: state}, path)
    return path


def refused(system: str, path: Path, out: Path, message: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        convert(system, path, out, **options)
    assert not out.exists()


def test_files_that_unpack_to_more_than_they_hold(tmp_path: Path) -> None:
    path, out = tmp_path / "model.pt", tmp_path / "out"
    torch.save({"vip": {"convnet.fc.bias": torch.zeros(1).expand(10**12)}}, path)
    refused("vip", path, out, f"{path}: convnet.fc.bias is no plain tensor with all its numbers in the file")
    whole = save(tmp_path, "vip", {"a": torch.zeros(10**6)})
    with zipfile.ZipFile(whole) as stored, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    reason = "its unpacked size is larger than the file, and torch.save packs nothing"
    path = tmp_path / "bomb.pt"
    refused("vip", path, out, f"{path}: not a checkpoint of torch.save, or damaged ({reason})")


def test_tensors_of_huge_and_strange_sizes(tmp_path: Path) -> None:
    """Sizes are read from tensors that need not fit together."""
    bert = "lang_enc.model."
    state = {
        f"module.{bert}embeddings.LayerNorm.weight": torch.zeros(64_000),
        f"module.{bert}embeddings.word_embeddings.weight": torch.zeros(10**6, 1),
    }
    path = save(tmp_path, "r3m", state)
    reason = "its tensors do not fit together (it asks for a larger model than the 1,064,000 numbers of its file fill)"
    refused("r3m", path, tmp_path / "out", f"{path}: {reason}")
    path = save(tmp_path, "roboclip", {"text_module.word_embd.weight": torch.tensor(1.0)})
    reason = "its tensors do not fit together (len() of a 0-d tensor)"
    refused("roboclip", path, tmp_path / "out", f"{path}: {reason}", vocabulary=["press"])


MAPS = ['{"a": 3}', '{"a": "../b.safetensors"}', '{"a": "/dev/zero"}', '{"a": "b.bin"}', "[]"]


@pytest.mark.parametrize("index", ["[" * 10**5, "{}", *(f'{{"weight_map": {each}}}' for each in MAPS)])
def test_an_index_of_shards_that_is_none(tmp_path: Path, index: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: not an index of shards \("):
        convert("robometer", tmp_path, tmp_path / "out")


def test_pipes_in_place_of_shards(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "pipe.safetensors"}}')
    message = f"{tmp_path}/pipe.safetensors: missing, damaged or incomplete (no such file); fetch it again"
    refused("robometer", tmp_path, tmp_path / "out", message)
    os.mkfifo(tmp_path / "pipe.pt")
    message = f"{tmp_path}/pipe.pt: expected a published checkpoint file, but it is missing"
    refused("vip", tmp_path / "pipe.pt", tmp_path / "out", message)
