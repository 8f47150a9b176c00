"""R3M's language reward, against torchvision's and transformers' own modules in double precision."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vlp_gym.errors import CheckpointError, InstructionError, MissingExtraError
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.protocol import value_range
from vlp_gym.models.registry import load_reward_model
from vlp_gym.testing import check_reward_model

torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

from tests.tiny_bases import WORDS, write_tokenizer  # noqa: E402  # needs the lines above
from tests.tiny_clip import random_frames  # noqa: E402
from vlp_gym.models.r3m import R3MModel  # noqa: E402

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SIZES = {
    "resnet": 18,
    "hidden": 24,
    "text_dim": 16,
    "text_layers": 2,
    "text_heads": 1,
    "text_hidden": 32,
    "vocabulary": len(WORDS),
    "text_length": 14,
}
SENTENCES = ["press the button", "close the door and then open the drawer , please"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local folder with a tokenizer of 16 words."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer: str) -> R3MModel:
    torch.manual_seed(0)
    model = R3MModel(**SIZES, tokenizer=tokenizer).eval()
    for layer in model.lang_rew["pred"][::2]:
        torch.nn.init.normal_(layer.weight, std=layer.in_features**-0.5)  # else the rewards differ by next to nothing
    return model


def embed_frames(model: R3MModel, frames: Tensor) -> np.ndarray:
    net = torchvision.models.resnet18(weights=None)
    net.fc = torch.nn.Identity()
    net.load_state_dict(model.convnet.state_dict())
    pictures = (frames.numpy().astype(np.float64) / 255 - MEAN) / STD
    with torch.no_grad():
        return net.double().eval()(torch.from_numpy(pictures.transpose(0, 3, 1, 2))).numpy()


def embed_text(model: R3MModel, sentence: str) -> np.ndarray:
    """The mean over one sentence's own tokens, [CLS] and [SEP] among them; no padding, as the sentence is alone."""
    config = transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=1, hidden_dim=32, vocab_size=len(WORDS), max_position_embeddings=14
    )
    bert = transformers.DistilBertModel(config)
    bert.load_state_dict(model.lang_enc["model"].state_dict())
    ids = [WORDS.index(word) for word in ["[CLS]", *sentence.split(), "[SEP]"]]
    with torch.no_grad():
        return bert.double().eval()(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy().mean(0)


def mlp(model: R3MModel, inputs: np.ndarray) -> float:
    layers = model.lang_rew["pred"].double().state_dict()
    for index in (0, 2, 4, 6, 8):
        inputs = layers[f"{index}.weight"].numpy() @ inputs + layers[f"{index}.bias"].numpy()
        inputs = np.maximum(inputs, 0) if index < 8 else inputs
    model.lang_rew.float()
    return float(inputs[0])


def test_it_is_a_reward_model(model: R3MModel) -> None:
    check_reward_model(model)
    assert (model.window, model.history, model.frame_size) == (8, "prefix", (224, 224))
    assert value_range(model) == (-np.inf, np.inf)


@torch.no_grad()
def test_progress_is_the_language_reward(model: R3MModel) -> None:
    frames, rows = random_frames(3, 224, 224), [[0, 1, 2], [2, 2, 1]]
    mask = torch.tensor([[True, True, True], [False, True, True]])  # padding repeats the first real frame
    scores = model.score(model.encode_frames(frames)[torch.tensor(rows)], model.encode_text(SENTENCES), mask)
    seen = embed_frames(model, frames)[rows]
    said = [embed_text(model, sentence) for sentence in SENTENCES]
    expected = np.array(
        [[mlp(model, np.concatenate([seen[row, row], e, said[row]])) for e in seen[row]] for row in range(2)]
    )
    assert scores.progress is not None
    np.testing.assert_allclose(scores.progress.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(scores.preference.numpy(), [expected[0].mean(), expected[1, 1:].mean()], atol=1e-5)
    assert np.ptp(expected) > 1e-3  # else the comparison above would say nothing


@torch.no_grad()
def test_the_first_frame_of_the_window_counts_and_other_padding_does_not(model: R3MModel) -> None:
    tokens, text = model.encode_frames(random_frames(5, 224, 224))[None], model.encode_text(SENTENCES[:1])
    mask = torch.tensor([[False, False, True, True, True]])

    def progress(order: list[int]) -> Tensor:
        """Of the last three frames."""
        values = model.score(tokens[:, order], text, mask[:, -len(order) :]).progress
        assert values is not None
        return values[:, -3:]

    shown = progress([0, 0, 2, 3, 4])
    torch.testing.assert_close(progress([0, 1, 2, 3, 4]), shown)
    torch.testing.assert_close(progress([0, 2, 3, 4]), shown)  # the episode's first frame, and a segment
    assert (progress([2, 3, 4]) - shown).abs().max() > 1e-4  # the segment alone


@torch.no_grad()
def test_saved_and_loaded(model: R3MModel, tokenizer: str, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path)
    loaded = load_reward_model(tmp_path)
    assert isinstance(loaded, R3MModel)
    assert loaded.config == {**SIZES, "tokenizer": tokenizer, "truncate": False}
    frames = random_frames(2, 64, 64)
    assert torch.equal(loaded.encode_frames(frames), model.encode_frames(frames))
    assert torch.equal(loaded.encode_text(SENTENCES), model.encode_text(SENTENCES))


def test_instructions(tokenizer: str) -> None:
    model = R3MModel(**SIZES, tokenizer=tokenizer).eval()
    long = "press the button and then close the door and then open the drawer"
    message = "the instruction has 15 tokens, the model reads 14; shorten it, or pass truncate=True to drop the rest"
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        model.encode_text([long])
    with pytest.raises(InstructionError, match="the instruction is empty"):
        model.encode_text([" "])
    model.truncate = True
    shorter = long.removesuffix(" drawer")  # the end token stays
    torch.testing.assert_close(model.encode_text([long]), model.encode_text([shorter]))


def test_without_a_tokenizer(tokenizer: str) -> None:
    pattern = (
        r"nobody/nothing: R3M's tokenizer is neither in such a folder nor on the hub \(.+\)\. "
        "It is downloaded once and then cached: connect this machine once, or convert the checkpoint again with the "
        'path of a folder that holds it as `tokenizer`. The model "vlp-compact" works offline.'
    )
    model = R3MModel(**SIZES, tokenizer="nobody/nothing")  # frames need none, nor does converting
    with pytest.raises(CheckpointError, match=f"^{pattern}$"):
        model.encode_text(SENTENCES)
    message = f"R3M's tokenizer {tokenizer!r} has 16 words, the checkpoint's DistilBERT knows 15"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        R3MModel(**{**SIZES, "vocabulary": 15}, tokenizer=tokenizer).encode_text(SENTENCES)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r'^R3M needs transformers: pip install "vlp_gym\[vlm\]"$'):
        R3MModel()
