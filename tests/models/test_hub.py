"""Folders of `transformers` models that are made to harm: refused before they cost anything."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from vlp_gym.errors import CheckpointError

pytest.importorskip("transformers")

from tests.tiny_bases import write_encoders  # needs the line above
from vlp_gym.models.backbones.hub import Pretrained, check_counts


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_encoders(tmp_path_factory.mktemp("encoders"))["text_encoder"])


@pytest.fixture
def folder(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "bert"))


def changed(folder: Path, **entries: Any) -> Pretrained:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    return Pretrained(str(folder), "BERT needs", "no {}", "Advice.")


def refused(model: Pretrained, part: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(model.name)}: no {part} \\({reason}\\)\\. Advice\\.$"):
        model.weights("BertModel")


@pytest.mark.parametrize("entries", [{"hidden_size": 20_000}, {"num_hidden_layers": 3000}, {"vocab_size": 10**9}])
def test_a_model_larger_than_its_files(folder: Path, entries: dict[str, int]) -> None:
    reason = r"it asks for a larger model than the [\d,]+ numbers of its file fill"
    refused(changed(folder, **entries), "weights", reason)  # the largest of them would be 5 TB


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_labels", "depth"])
def test_endless_lists(folder: Path, name: str) -> None:
    reason = f"{name}: expected at most 10000, got {10**10}"
    model = changed(folder, **{name: 10**10})
    refused(model, "weights", reason)
    for load in (model.config, model.tokenizer):
        with pytest.raises(CheckpointError, match=reason):
            load()
    with pytest.raises(ValueError, match=reason):
        check_counts({"text_config": [{name: 10**10}]})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "anything"])
def test_pipes_and_devices(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(Pretrained(str(folder), "BERT needs", "no {}", "Advice."), "weights", f"{name} is no regular file")
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(Pretrained(str(folder), "BERT needs", "no {}", "Advice."), "weights", f"{name} is no regular file")


def test_links_to_files_are_followed(folder: Path) -> None:
    """The hub's cache is made of them."""
    for path in list(folder.iterdir()):
        blob = folder.parent / f"blob-{path.name}"
        path.rename(blob)
        path.symlink_to(blob)
    model, absent = changed(folder).weights("BertModel", add_pooling_layer=False)
    assert (model.config.hidden_size, absent) == (10, [])
