"""Files of the published layouts, built from other libraries' modules, become folders that reward as they should."""

from __future__ import annotations

import collections
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError
from vlp_gym.models.published import convert as conversion
from vlp_gym.models.published.convert import CONVERTERS, convert, read_published, without_prefix
from vlp_gym.models.registry import load_reward_model

open_clip = pytest.importorskip("open_clip")
torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

from tiny_clip import MEAN, STD, add_mini_clips, random_frames, unit  # noqa: E402  # needs the lines above

from vlp_gym.models import liv, r3m, vip  # noqa: E402

MASK = torch.ones(1, 2, dtype=torch.bool)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "press", "the", "button"]


@pytest.fixture(scope="module", autouse=True)
def mini_clips(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_mini_clips(tmp_path_factory.mktemp("configs"))


def prefixed(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in module.state_dict().items()}


def published_clip(architecture: str) -> nn.Module:
    """Random weights that are half precision, as LIV's are; their values survive the way to half and back."""
    torch.manual_seed(0)
    return open_clip.create_model(architecture, None).half().float().eval()


def published_vip(layers: int = 18, dim: int = 8) -> nn.Module:
    torch.manual_seed(0)
    net = getattr(torchvision.models, f"resnet{layers}")(weights=None)
    net.fc = nn.Linear(net.fc.in_features, dim)
    return net.eval()


def published_r3m(layers: int = 18) -> dict[str, Tensor]:
    """What DataParallel over R3M's modules stores."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, f"resnet{layers}")(weights=None)
    dim, net.fc = net.fc.in_features, nn.Identity()
    config = transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=1, hidden_dim=32, vocab_size=len(WORDS), max_position_embeddings=12
    )
    pred = [layer for width in (2 * dim + 16, 24, 24, 24) for layer in (nn.Linear(width, 24), nn.ReLU())]
    return {
        **prefixed(net, "module.convnet."),
        **prefixed(transformers.DistilBertModel(config), "module.lang_enc.model."),
        "module.lang_enc.model.embeddings.position_ids": torch.arange(12)[None],
        **prefixed(nn.Sequential(*pred, nn.Linear(24, 1)), "module.lang_rew.pred."),
    }


def save(folder: Path, system: str, state: dict[str, Any]) -> Path:
    """A training snapshot, as the authors' code writes it."""
    path = folder / "model.pt"
    torch.save({system: collections.OrderedDict(state), "global_step": 100_000}, path)
    return path


def pictures(frames: Tensor, mean: Any, std: Any) -> Tensor:
    return torch.from_numpy(((frames.numpy() / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2))


def rewards(folder: Path, frames: Tensor, instruction: str) -> np.ndarray:
    model = load_reward_model(folder)
    with torch.no_grad():
        progress = model.score(model.encode_frames(frames)[None], model.encode_text([instruction]), MASK).progress
    assert progress is not None
    return progress[0].numpy()


# --- each system -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.model.", "module.", "model.", ""])
def test_liv(prefix: str, tmp_path: Path) -> None:
    clip = published_clip("mini-resnet")
    half = {key: value.half() if value.is_floating_point() else value for key, value in prefixed(clip, prefix).items()}
    half[f"{prefix}input_resolution"] = torch.tensor(64)  # these three OpenAI's own files have
    half[f"{prefix}context_length"] = torch.tensor(12)
    half[f"{prefix}vocab_size"] = torch.tensor(49408)
    before = torch.get_rng_state()
    folder = convert("liv", save(tmp_path, "liv", half), tmp_path / "out", architecture="mini-resnet")
    assert torch.equal(torch.get_rng_state(), before)
    frames = random_frames(2, 64, 64)
    with torch.no_grad():
        seen = clip.double().encode_image(pictures(frames, MEAN, STD)).numpy()
        said = clip.encode_text(open_clip.tokenize(["press the button"], context_length=12)).numpy()
    np.testing.assert_allclose(rewards(folder, frames, "press the button"), unit(seen) @ unit(said)[0], atol=1e-5)


def test_liv_of_the_published_size() -> None:
    """OpenAI's RN50: its key names and shapes, and QuickGELU, which leaves no trace in a state dict."""
    state = prefixed(open_clip.create_model("RN50", None), "module.model.")
    shapes = {
        "visual.conv1.weight": (32, 3, 3, 3),
        "visual.layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "visual.attnpool.positional_embedding": (50, 2048),
        "visual.attnpool.c_proj.weight": (1024, 2048),
        "transformer.resblocks.11.attn.in_proj_weight": (1536, 512),
        "token_embedding.weight": (49408, 512),
        "text_projection": (512, 1024),
        "logit_scale": (),
    }
    assert {key: tuple(state[f"module.model.{key}"].shape) for key in shapes} == shapes
    model = liv.from_published(state)
    assert model.frame_size == (224, 224)
    weights = model.state_dict()
    assert len(weights) == len(state)
    assert all(torch.equal(weights[f"clip.{key.removeprefix('module.')}"], state[key]) for key in state)
    assert isinstance(model.clip.model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def test_vip(tmp_path: Path) -> None:
    net = published_vip()
    folder = convert("vip", save(tmp_path, "vip", prefixed(net, "module.convnet.")), tmp_path / "out")
    frames = random_frames(3, 224, 224)
    Image.fromarray(frames[2].numpy()).save(tmp_path / "goal.png")
    with torch.no_grad():
        seen = net.double()(pictures(frames, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).numpy()
    expected = -np.linalg.norm(seen[:2] - seen[2], axis=-1)
    np.testing.assert_allclose(rewards(folder, frames[:2], str(tmp_path / "goal.png")), expected, atol=1e-5)
    assert load_reward_model(folder).config == {"resnet": 18, "dim": 8}  # type: ignore[attr-defined]


def test_vip_of_the_published_size() -> None:
    state = prefixed(published_vip(50, 1024), "module.convnet.")
    assert state["module.convnet.fc.weight"].shape == (1024, 2048)
    model = vip.from_published(state)
    assert model.config == {"resnet": 50, "dim": 1024}
    weights = model.state_dict()
    assert len(weights) == len(state)
    assert all(torch.equal(weights[key.removeprefix("module.")], state[key]) for key in state)


def test_r3m(tmp_path: Path) -> None:
    state = published_r3m()
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = str(tmp_path / "tokenizer")
    transformers.DistilBertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tokenizer)
    folder = convert("r3m", save(tmp_path, "r3m", state), tmp_path / "out", tokenizer=tokenizer)

    frames = random_frames(2, 224, 224)
    net = torchvision.models.resnet18(weights=None)
    net.fc = nn.Identity()
    net.load_state_dict(without_prefix({k: v for k, v in state.items() if "convnet" in k}, "module.convnet."))
    config = transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=1, hidden_dim=32, vocab_size=len(WORDS), max_position_embeddings=12
    )
    bert = transformers.DistilBertModel(config).double().eval()
    position_ids = "embeddings.position_ids"
    words = without_prefix({k: v for k, v in state.items() if "lang_enc" in k}, "module.lang_enc.model.")
    bert.load_state_dict({key: value for key, value in words.items() if key != position_ids})
    with torch.no_grad():
        seen = net.double().eval()(pictures(frames, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).numpy()
        said = bert(input_ids=torch.tensor([[2, 5, 6, 7, 3]])).last_hidden_state[0].numpy().mean(0)
    expected = []
    for frame in seen:
        hidden = np.concatenate([seen[0], frame, said])
        for index in (0, 2, 4, 6, 8):
            weight, bias = (
                state[f"module.lang_rew.pred.{index}.{part}"].double().numpy() for part in ("weight", "bias")
            )
            hidden = weight @ hidden + bias
            hidden = np.maximum(hidden, 0) if index < 8 else hidden
        expected.append(hidden[0])
    np.testing.assert_allclose(rewards(folder, frames, "press the button"), expected, atol=1e-5)


@pytest.mark.parametrize("layers", [34, 50])
def test_the_size_of_a_resnet_is_read_from_its_tensors(layers: int) -> None:
    assert r3m.from_published(published_r3m(layers)).config["resnet"] == layers


# --- what is wrong ---------------------------------------------------------------------------------------------------


def refused(system: str, path: Path, out: Path, message: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        convert(system, path, out, **options)
    assert not out.exists()


@pytest.mark.parametrize("system", ["liv", "vip", "r3m"])
def test_each_missing_extra_and_misshaped_key_is_listed(system: str, tmp_path: Path) -> None:
    state, options = {
        "liv": (lambda: prefixed(published_clip("mini-resnet"), "module.model."), {"architecture": "mini-resnet"}),
        "vip": (lambda: prefixed(published_vip(), "module.convnet."), {}),
        "r3m": (published_r3m, {}),
    }[system]
    state = state()
    ours, name = {"liv": ("clip.model.", "LIV"), "vip": ("convnet.", "VIP"), "r3m": ("convnet.", "R3M")}[system]
    prefix = "module.model." if system == "liv" else "module.convnet."
    vision = "visual." if system == "liv" else ""
    conv, norm = f"{vision}layer2.0.conv1.weight", f"{vision}layer1.0.bn1.running_mean"
    shape = tuple(state[prefix + conv].shape)
    del state[prefix + norm]
    state[prefix + "extra.weight"] = torch.zeros(2)
    state[prefix + conv] = torch.zeros(3, 1)
    path = save(tmp_path, system, state)
    message = (
        f"{path}: {name}: made for another architecture than this {name}Model: missing {ours}{norm}; "
        f"unexpected {ours}extra.weight; {ours}{conv} is (3, 1) instead of {shape}"
    )
    refused(system, path, tmp_path / "out", message, **options)


def test_one_key_is_enough(tmp_path: Path) -> None:
    """Each kind of fault alone, and the tensors that tell a size among them."""
    net = prefixed(published_vip(), "module.convnet.")
    where = f"{tmp_path / 'model.pt'}: VIP: made for another architecture than this VIPModel: "
    missing = {key: value for key, value in net.items() if key != "module.convnet.bn1.bias"}
    refused("vip", save(tmp_path, "vip", missing), tmp_path / "out", f"{where}missing convnet.bn1.bias")
    path = save(tmp_path, "vip", {**net, "module.head.bias": torch.zeros(1)})
    refused("vip", path, tmp_path / "out", f"{where}unexpected head.bias")
    path = save(tmp_path, "vip", {**net, "module.convnet.fc.weight": torch.zeros(8, 3)})
    refused("vip", path, tmp_path / "out", f"{where}convnet.fc.weight is (8, 3) instead of (8, 512)")
    path = save(tmp_path, "vip", {**net, "module.convnet.fc.bias": torch.zeros(9)})
    refused("vip", path, tmp_path / "out", f"{where}convnet.fc.weight is (8, 512) instead of (9, 512)")


def test_a_language_head_is_needed(tmp_path: Path) -> None:
    """R3M's checkpoint without language is a representation, no reward."""
    state = {key: value for key, value in published_r3m().items() if "convnet" in key or "lang_enc" in key}
    path = save(tmp_path, "r3m", state)
    keys = [f"lang_rew.pred.{index}.{part}" for index in (0, 2, 4, 6) for part in ("bias", "weight")]
    message = f"{path}: R3M: made for another architecture than this R3MModel: missing {', '.join(keys)} and 2 more"
    refused("r3m", path, tmp_path / "out", message)


def test_position_ids_that_are_none(tmp_path: Path) -> None:
    key = "lang_enc.model.embeddings.position_ids"
    path = save(tmp_path, "r3m", {**published_r3m(), f"module.{key}": torch.zeros(1, 12, dtype=torch.int64)})
    message = f"{path}: R3M: made for another architecture than this R3MModel: unexpected {key}"
    refused("r3m", path, tmp_path / "out", message)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    net = prefixed(published_vip(), "module.convnet.")
    net["module.convnet.fc.bias"][0] = torch.nan
    message = "VIPModel was not saved: NaN or infinite weights in convnet.fc.bias"
    refused("vip", save(tmp_path, "vip", net), tmp_path / "out", message)


def test_keys_with_and_without_the_prefix(tmp_path: Path) -> None:
    path = save(tmp_path, "vip", {"module.a": torch.zeros(1), "a": torch.zeros(1)})
    refused("vip", path, tmp_path / "out", f"{path}: keys both with and without the prefix 'module.': module.a")


def test_systems_that_nobody_knows(tmp_path: Path) -> None:
    message = f"system: expected one of {sorted(CONVERTERS)}, got 'r4m'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        convert("r4m", tmp_path, tmp_path)
    assert set(CONVERTERS) == {"liv", "vip", "r3m", "roboclip", "robometer", "rewind"}


# --- files -----------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """Stands in for a system whose converter another file has."""

    model_type = "vip"

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.layer = nn.Linear(2, 1)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Converting "roboclip" takes any Tiny."""

    def from_published(state: dict[str, Tensor]) -> Tiny:
        model = Tiny()
        model.load_state_dict(state)
        return model

    module = ModuleType("tiny_published")
    module.from_published = from_published  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_published", module)
    monkeypatch.setitem(conversion.CONVERTERS, "roboclip", "tiny_published:from_published")
    return Tiny()


def test_where_the_tensors_lie(tiny: Tiny, tmp_path: Path) -> None:
    state = tiny.state_dict()
    path = tmp_path / "file.pth"
    for payload in (
        state,
        {"roboclip": state, "epoch": 1},
        {"state_dict": state},
        {"model_state_dict": state, "a": []},
    ):
        torch.save(payload, path)
        assert read_published(path, "roboclip").keys() == state.keys()
    save_file(state, tmp_path / "file.safetensors")
    folder = convert("roboclip", tmp_path / "file.safetensors", tmp_path / "out")
    files = [".lock", "README.md", "config.json", "model.safetensors"]
    assert sorted(entry.name for entry in folder.iterdir()) == files
    assert "`file.safetensors`" in (folder / "README.md").read_text()


def test_a_file_that_would_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "model.pt"
    torch.save({"vip": {"module.convnet.conv1.weight": torch.zeros(1)}, "args": Evil()}, path)
    message = (
        f"{path}: cannot be read as tensors alone: it is damaged, or holds objects whose loading would run code. "
        "Nothing of it was loaded; save its state_dict alone, or as .safetensors, and convert that"
    )
    refused("vip", path, tmp_path / "out", message)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    path, out = tmp_path / "model.pt", tmp_path / "out"
    refused("vip", path, out, f"{path}: expected a published checkpoint file, but it is missing")
    expected = "expected model.safetensors or model.safetensors.index.json; pickle files (.bin, .pt) are never loaded"
    refused("vip", tmp_path, out, f"{tmp_path}: {expected}")
    path.write_bytes(b"")
    refused("vip", path, out, f"{path}: not a checkpoint of torch.save, or damaged (EOFError)")
    torch.save([1, 2], path)
    refused("vip", path, out, f"{path}: expected a dict of tensors, got list")
    prefix = f"{path}: expected tensors by name, with or without 'vip' above them, got "
    torch.save({"vip": {"a": torch.zeros(1), "b": 1}}, path)
    refused("vip", path, out, f"{prefix}other things as well: b")
    torch.save({}, path)
    refused("vip", path, out, f"{prefix}nothing")
    whole = save(tmp_path, "vip", {"a": torch.zeros(100)}).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.pt: not a checkpoint of torch\.save, or damaged \("):
        convert("vip", path, out)
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"12345678901234567890")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a valid safetensors file \("):
        convert("vip", broken, out)
    assert not out.exists()
