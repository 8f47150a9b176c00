from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vlp_gym.engine.guard import GuardedModel
from vlp_gym.errors import CheckpointError, InstructionError, MissingExtraError
from vlp_gym.models.checkpoint import load_checkpoint, load_state, save_checkpoint, stored_config
from vlp_gym.models.vlp import VLPModel
from vlp_gym.testing import check_reward_model

open_clip = pytest.importorskip("open_clip")

from vlp_gym.models.backbones.open_clip import OpenClipBackbone  # noqa: E402  # needs the line above

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION: dict[str, dict[str, Any]] = {
    "tiny-vit": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2},
    "tiny-resnet": {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1]},
    "tiny-timm": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
}


@pytest.fixture(scope="module", autouse=True)
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Three small architectures that open_clip's own constructors build, by name."""
    folder = tmp_path_factory.mktemp("configs")
    for name, vision in VISION.items():
        config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": name == "tiny-timm"}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def backbone(tiny_models: None) -> OpenClipBackbone:
    torch.manual_seed(0)
    return OpenClipBackbone("tiny-vit", None)


@pytest.fixture
def weights(backbone: OpenClipBackbone, tmp_path: Path) -> str:
    """A file with the weights of ``backbone``, as a download would leave it."""
    path = tmp_path / "weights.safetensors"
    save_file(backbone.model.state_dict(), path)
    return str(path)


def make_model(backbone: Any, **kwargs: Any) -> VLPModel:
    torch.manual_seed(1)
    return VLPModel(backbone, **kwargs).eval()


def frames(count: int, height: int = 40, width: int = 48, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


def encode(model: VLPModel, batch: int = 2, length: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    tokens = model.encode_frames(frames(batch * length)).unflatten(0, (batch, length))
    text = model.encode_text(["press the button", "open the door slowly"][:batch])
    return tokens, text, torch.ones(batch, length, dtype=torch.bool)


# --- the backbone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "width"), [("tiny-vit", 16, 32), ("tiny-resnet", 4, 256), ("tiny-timm", 100, 64)]
)
def test_every_kind_of_tower_gives_its_tokens(name: str, count: int, width: int) -> None:
    # tiny-vit: (32/8)^2 patches; tiny-resnet: stride 32, so (64/32)^2 cells of 32 * 8; test_vit: (160/16)^2 patches.
    backbone = OpenClipBackbone(name, None)
    tokens = backbone.encode_frames(frames(3))
    assert tokens.shape == (3, count, width)
    assert backbone.frame_dim == width
    assert backbone.frame_size == (VISION[name]["image_size"],) * 2
    assert backbone.encode_text(["press the button"]).shape == (1, 12, backbone.text_dim)


def test_tokens_are_those_the_model_pools(backbone: OpenClipBackbone) -> None:
    """Pooling our tokens as open_clip does must give open_clip's own embedding."""
    model = backbone.model
    images = (frames(2, 32, 32).permute(0, 3, 1, 2).float() / 255 - backbone.mean) / backbone.std
    tokens_with_class: list[Tensor] = []
    handle = model.visual.ln_post.register_forward_hook(lambda *args: tokens_with_class.append(args[2]))
    with torch.no_grad():
        model.encode_image(images)
    handle.remove()
    torch.testing.assert_close(backbone.encode_frames(frames(2, 32, 32)), tokens_with_class[0][:, 1:])

    text = backbone.encode_text(["press the button"])  # start, three words, end: CLIP pools the end
    with torch.no_grad():
        expected = model.encode_text(backbone.tokenizer(["press the button"]))
    torch.testing.assert_close(text[:, 4] @ model.text_projection, expected)


def test_frames_are_resized_as_pillow_does_and_normalised_as_clip_wants(backbone: OpenClipBackbone) -> None:
    seen: list[Tensor] = []
    handle = backbone.model.visual.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    smooth = np.linspace(0, 255, 96 * 64 * 3).reshape(96, 64, 3).astype(np.uint8)
    backbone.encode_frames(torch.from_numpy(smooth)[None])
    handle.remove()
    resized = np.asarray(Image.fromarray(smooth).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    expected = ((resized - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(
        seen[0][0].numpy(), expected, atol=1.5 / 255 / 0.26
    )  # Pillow rounds to whole levels, twice


def test_padding_words_are_zero_and_exclamation_marks_are_not(backbone: OpenClipBackbone) -> None:
    text = backbone.encode_text(["press the button", "!^"])
    ids = backbone.tokenizer(["!^"])[0]
    assert ids[1] == 0  # CLIP's id of "!" is the id that pads
    real = (text != 0).any(-1)
    assert real.sum(1).tolist() == [5, 4]  # start and end included
    assert real[0, :5].all()
    assert real[1, :4].all()


def test_long_instructions(backbone: OpenClipBackbone) -> None:
    long = "press " * 20
    message = "the instruction has 22 tokens, the model reads 12; shorten it, or pass truncate=True to drop the rest"
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        backbone.encode_text([long])
    cutting = OpenClipBackbone("tiny-vit", None, truncate=True)
    assert (cutting.encode_text([long]) != 0).any(-1).all()
    with pytest.raises(TypeError, match=r"^expected the instruction as a str, got int$"):
        backbone.encode_text([3])  # type: ignore[list-item]


def test_a_hugging_face_tokenizer_counts_its_own_tokens(backbone: OpenClipBackbone) -> None:
    """SigLIP's tokenizers have no ``encode``, and pad with another number than 0."""

    class Tokenizer:
        clean_fn = staticmethod(str.lower)

        def tokenizer(self, text: str) -> Any:
            return SimpleNamespace(input_ids=[*range(len(text.split())), 2])

        def __call__(self, texts: list[str], context_length: int) -> Tensor:
            return torch.ones(len(texts), context_length, dtype=torch.long)

    other = OpenClipBackbone("tiny-vit", None)
    other.tokenizer = Tokenizer()
    assert (other.encode_text(["Press the button", "stop"]) != 0).any(-1).sum(1).tolist() == [4, 2]


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (torch.zeros(2, 8, 8, 3), "torch.float32 [2, 8, 8, 3]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8 [2, 3, 8, 8]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "torch.uint8 [8, 8, 3]"),
    ],
)
def test_frames_of_another_kind_are_refused(backbone: OpenClipBackbone, bad: Tensor, got: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(f'expected uint8 frames [N, H, W, 3], got {got}')}$"):
        backbone.encode_frames(bad)


def test_frozen_unless_asked(backbone: OpenClipBackbone) -> None:
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.encode_frames(frames(1)).requires_grad
    trainable = OpenClipBackbone("tiny-vit", None, trainable=True)
    assert trainable.encode_frames(frames(1)).requires_grad
    assert trainable.encode_text(["press"]).requires_grad


def test_weights_come_from_a_file_the_way_open_clip_loads_them(backbone: OpenClipBackbone, weights: str) -> None:
    torch.manual_seed(99)
    loaded = OpenClipBackbone("tiny-vit", weights)
    assert loaded.restorable
    assert not backbone.restorable
    assert torch.equal(loaded.encode_frames(frames(2)), backbone.encode_frames(frames(2)))
    assert torch.equal(loaded.encode_text(["press"]), backbone.encode_text(["press"]))
    larger = OpenClipBackbone("tiny-vit", weights, frame_size=48)
    assert larger.frame_size == (48, 48)
    assert larger.encode_frames(frames(1)).shape == (1, 36, 32)


def test_openai_weights_get_quick_gelu(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    """A tag that was trained with QuickGELU: open_clip itself would only warn and compute other features."""
    tag = {"file": weights, "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"openai": tag})
    backbone = OpenClipBackbone("tiny-vit", "openai")
    kinds = {type(module).__name__ for module in backbone.modules()}
    assert "QuickGELU" in kinds
    assert "GELU" not in kinds
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(backbone.std.flatten(), torch.tensor([0.4, 0.5, 0.6]))


def test_no_download_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    message = (
        "open_clip could not download what 'ViT-B-16' with the weights 'openai' needs: "
        "Failed to download weights for tag 'openai': no route to host\n"
        "It is downloaded once and then cached; connect this machine once, or give the path of a .safetensors "
        'file as `pretrained`. The model "vlp-compact" works offline.'
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        VLPModel()


def test_weights_that_do_not_fit(weights: str, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^the weights '.*weights\.safetensors' do not load into 'tiny-resnet': "
    ):
        OpenClipBackbone("tiny-resnet", weights)
    with open(weights, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"^the weights '.*weights\.safetensors' do not load into 'tiny-vit': "):
        OpenClipBackbone("tiny-vit", weights)
    with pytest.raises(CheckpointError, match=r"^the weights 'nowhere\.safetensors' do not load into 'tiny-vit': "):
        OpenClipBackbone("tiny-vit", "nowhere.safetensors")


def test_names_that_open_clip_does_not_know() -> None:
    with pytest.raises(
        ValueError, match=r"^open_clip knows no model 'ViT-Z'; open_clip\.list_models\(\) lists its names$"
    ):
        OpenClipBackbone("ViT-Z")
    message = (
        "open_clip has no weights 'weights.pt' for 'tiny-vit': expected one of [], "
        "the path of a .safetensors file, or None for random weights"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        OpenClipBackbone("tiny-vit", "weights.pt")
    with pytest.raises(
        ValueError, match=r"^the text tower of 'coca_ViT-B-32' gives no tokens; take a CLIP or SigLIP mod"
    ):
        OpenClipBackbone("coca_ViT-B-32", None)
    with pytest.raises(ValueError, match=r"^the ResNet tower of 'tiny-resnet' takes frame_size=64 only, got 32$"):
        OpenClipBackbone("tiny-resnet", None, frame_size=32)


def test_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    message = 'an open_clip backbone needs the package open_clip: pip install "vlp_gym[clip]"'
    with pytest.raises(MissingExtraError, match=f"^{re.escape(message)}$"):
        VLPModel("open_clip:ViT-B-16")


# --- the model -------------------------------------------------------------------------------------------------------


def test_it_is_a_reward_model(backbone: OpenClipBackbone) -> None:
    model = make_model(backbone)
    check_reward_model(model)
    assert (model.window, model.history, model.frame_size) == (8, "prefix", (32, 32))
    scores = model.score(*encode(model))
    assert scores.preference.shape == (2,)
    assert scores.progress is None
    assert scores.relevance is None
    tokens, text, mask = encode(model)
    swapped = tokens.flip(0)
    expected = torch.sigmoid(scores.preference - model.score(swapped, text, mask).preference)
    torch.testing.assert_close(GuardedModel(model).prefer(tokens, swapped, text, where="test"), expected)


def test_the_paper_s_sizes(backbone: OpenClipBackbone) -> None:
    model = make_model(backbone)
    assert len(model.self_video) == len(model.self_text) == 2
    attentions = [module for module in model.modules() if type(module).__name__ == "_Attention"]
    assert [module.heads for module in attentions] == [16] * 6
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.1] * 6
    assert [module.dropout for module in attentions] == [0.1] * 6
    linear = [(m.in_features, m.out_features) for m in model.head if isinstance(m, nn.Linear)]
    assert linear == [(32 + 16, 512), (512, 256), (256, 1)]  # D_w = D_v + D_l


def test_both_modalities_reach_the_score_and_the_gradients(backbone: OpenClipBackbone) -> None:
    model = make_model(backbone)
    tokens, text, mask = encode(model)
    score = model.score(tokens, text, mask).preference
    assert not torch.allclose(score, model.score(tokens, text.flip(0), mask).preference)
    assert not torch.allclose(score, model.score(tokens.flip(0), text, mask).preference)
    score.sum().backward()
    ours = {key: p.grad for key, p in model.named_parameters() if not key.startswith("backbone.")}
    assert all(grad is not None for grad in ours.values())
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("temporal_embedding", [False, True])
def test_front_padding_changes_nothing(backbone: OpenClipBackbone, temporal_embedding: bool) -> None:
    model = make_model(backbone, temporal_embedding=temporal_embedding)
    if model.temporal is not None:
        nn.init.normal_(model.temporal)
    tokens, text, mask = encode(model)
    padded = torch.cat([tokens[:, :1].expand(-1, 3, -1, -1), tokens], dim=1)
    padded_mask = torch.cat([torch.zeros(2, 3, dtype=torch.bool), mask], dim=1)
    expected = model.score(tokens, text, mask).preference
    torch.testing.assert_close(model.score(padded, text, padded_mask).preference, expected, atol=1e-6, rtol=1e-5)
    padded[:, :3] = 1e3  # whatever lies there
    torch.testing.assert_close(model.score(padded, text, padded_mask).preference, expected, atol=1e-6, rtol=1e-5)


def test_padding_words_and_batch_mates_change_nothing(backbone: OpenClipBackbone) -> None:
    model = make_model(backbone)
    tokens, text, mask = encode(model)
    expected = model.score(tokens, text, mask).preference
    torch.testing.assert_close(
        model.score(tokens, torch.cat([text, torch.zeros(2, 5, 16)], dim=1), mask).preference, expected
    )
    alone = torch.cat([model.score(tokens[i : i + 1], text[i : i + 1], mask[i : i + 1]).preference for i in (0, 1)])
    torch.testing.assert_close(alone, expected)
    assert torch.isfinite(model.score(tokens, torch.zeros_like(text), mask).preference).all()


def test_the_order_of_frames_counts_only_with_the_temporal_embedding(backbone: OpenClipBackbone) -> None:
    model = make_model(backbone)
    tokens, text, mask = encode(model)
    expected = model.score(tokens, text, mask).preference
    torch.testing.assert_close(model.score(tokens.flip(1), text, mask).preference, expected, atol=1e-6, rtol=1e-5)

    ordered = make_model(backbone, temporal_embedding=True)
    torch.testing.assert_close(ordered.score(tokens, text, mask).preference, expected)  # it starts as the paper's model
    assert ordered.temporal is not None
    nn.init.normal_(ordered.temporal)
    forward, backward = (ordered.score(t, text, mask).preference for t in (tokens, tokens.flip(1)))
    assert not torch.allclose(forward, backward)
    with pytest.raises(ValueError, match=r"^expected at most window=8 frames, got 9$"):
        ordered.score(torch.zeros(1, 9, 16, 32), text[:1], torch.ones(1, 9, dtype=torch.bool))


def test_dropout_in_training_only(backbone: OpenClipBackbone) -> None:
    model = make_model(backbone)
    inputs = encode(model)
    assert torch.equal(model.score(*inputs).preference, model.score(*inputs).preference)
    model.train()
    assert not torch.equal(model.score(*inputs).preference, model.score(*inputs).preference)


def test_attention_maps_are_the_weights_of_the_score(backbone: OpenClipBackbone) -> None:
    model = make_model(backbone)
    tokens, text, mask = encode(model)
    mask[0, 0] = False
    maps = model.attention_maps(tokens, text, mask)
    assert maps.shape == (2, 4, 4, 4)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum((-2, -1)), mask.float())  # 1 in each real frame, 0 in a masked one

    # The weights, mixed with the values by hand, must be what the layer's forward pass computes.
    attention = model.cross_text.attention
    queries, keys, key_mask = torch.randn(2, 12, 16), torch.randn(2, 64, 32), mask.repeat_interleave(16, dim=1)
    values = attention.value(keys).unflatten(-1, (16, 1)).transpose(1, 2)  # 16 heads of width 1
    weights = attention.weights(queries, keys, key_mask)
    mixed = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.out(mixed), attention(queries, keys, key_mask))
    with pytest.raises(ValueError, match=r"^expected a square number of tokens a frame, got 15$"):
        model.attention_maps(tokens[:, :, :15], text, mask)


def test_attention_maps_follow_the_patches(backbone: OpenClipBackbone) -> None:
    """Make the text look for one direction in token space, put it into one patch, find it there."""
    model = make_model(backbone, self_attention_layers=0)
    attention = model.cross_text.attention
    with torch.no_grad():
        attention.query.weight.zero_()
        attention.query.bias.fill_(1.0)
        attention.key.weight.zero_()
        attention.key.weight[:, 5] = 3.0
        attention.key.bias.zero_()
    tokens = torch.zeros(1, 2, 16, 32)
    tokens[0, 0, 6, 5] = tokens[0, 1, 15, 5] = 2.0  # row 1, column 2; row 3, column 3
    text = model.encode_text(["press the button"])
    maps = model.attention_maps(tokens, text, torch.ones(1, 2, dtype=torch.bool))
    assert divmod(int(maps[0, 0].argmax()), 4) == (1, 2)
    assert divmod(int(maps[0, 1].argmax()), 4) == (3, 3)
    # A logit of 6 against 15 zeros: 16 heads of width 1, so the scale is 1.
    assert maps[0, 0].max().item() == pytest.approx(np.exp(6) / (np.exp(6) + 15), rel=1e-5)


def test_the_attention_of_words_is_a_part_of_the_sentences(backbone: OpenClipBackbone) -> None:
    """The maps of single tokens, weighed by their attention to a frame, make up the map of all."""
    model = make_model(backbone)
    sentence = "press the button"
    tokens, text = torch.randn(1, 1, 16, 32), model.encode_text([sentence])
    mask = torch.ones(1, 1, dtype=torch.bool)
    places = model.word_tokens(sentence)
    assert [len(each) for each in places] == [1, 1, 1]
    assert [place for each in places for place in each] == [1, 2, 3]  # between the start and the end
    real = int((text != 0).any(-1).sum())
    assert real == 5

    def only(*numbers: int) -> Tensor:
        shown = torch.zeros(1, text.shape[1], dtype=torch.bool)
        shown[0, list(numbers)] = True
        return model.attention_maps(tokens, text, mask, shown)

    # In one frame, each token's attention is a map of sum 1.
    single = torch.stack([only(number) for number in range(real)])
    torch.testing.assert_close(single.mean(0), model.attention_maps(tokens, text, mask))
    torch.testing.assert_close(only(1, 3), (single[1] + single[3]) / 2)
    assert not torch.allclose(single[1], single[3])


def test_words_of_many_tokens(backbone: OpenClipBackbone) -> None:
    model = make_model(backbone)
    places = model.word_tokens("unscrewdriverize the nut-bolt")
    assert [place for each in places for place in each] == list(range(1, 1 + sum(map(len, places))))
    assert len(places) == 3
    assert len(places[0]) > 1
    cut = model.word_tokens(" ".join(["button"] * 20))
    assert (len(cut), cut[-1]) == (20, [])
    assert max(place for each in cut for place in each) == backbone.context_length - 1
    assert VLPModel("small", head=(4,)).word_tokens("press the button") == []


def test_a_checkpoint_leaves_restorable_weights_out(weights: str, tmp_path: Path) -> None:
    model = make_model(f"open_clip:tiny-vit/{weights}", dropout=0.2, head=(8, 4), temporal_embedding=True)
    assert not any(key.startswith("backbone.") for key in model.checkpoint_state())
    save_checkpoint(model, tmp_path / "model")
    loaded = load_checkpoint(VLPModel, tmp_path / "model")
    assert loaded.config == model.config == json.loads(json.dumps(model.config))
    inputs = encode(model)
    assert torch.equal(loaded.score(*encode(loaded)).preference, model.score(*inputs).preference)
    assert torch.equal(
        VLPModel.from_pretrained(tmp_path / "model").score(*inputs).preference, model.score(*inputs).preference
    )


@pytest.mark.parametrize("train_backbone", [False, True])
def test_a_checkpoint_holds_weights_that_nothing_else_brings_back(
    weights: str, tmp_path: Path, train_backbone: bool
) -> None:
    backbone = f"open_clip:tiny-vit/{weights}" if train_backbone else "open_clip:tiny-vit"
    model = make_model(backbone, train_backbone=train_backbone, head=(8,))
    with torch.no_grad():
        model.backbone.model.visual.conv1.weight.mul_(2)  # type: ignore[attr-defined]
    save_checkpoint(model, tmp_path / "model")
    loaded = load_checkpoint(VLPModel, tmp_path / "model")
    assert torch.equal(loaded.score(*encode(loaded)).preference, model.score(*encode(model)).preference)


def test_loading_a_state_is_strict(weights: str) -> None:
    model = make_model(f"open_clip:tiny-vit/{weights}")
    state = model.checkpoint_state()
    told = "here: made for another architecture than this VLPModel: "
    for changed, fault in (
        ({key: state[key] for key in list(state)[1:]}, f"missing {next(iter(state))}"),
        ({**state, "extra": torch.zeros(1)}, "unexpected extra"),
        # a restorable backbone's weights come from their own place
        ({**state, "backbone.model.logit_scale": torch.zeros(())}, "unexpected backbone.model.logit_scale"),
    ):
        with pytest.raises(CheckpointError, match=f"^{re.escape(told + fault)}$"):
            load_state(model, changed, "here")


def test_names_of_backbones(backbone: OpenClipBackbone) -> None:
    for name in ("staged", "open_clip:", "clip:ViT-B-16"):
        message = f'expected a backbone "open_clip:NAME/PRETRAINED", "open_clip:NAME" or "small", got {name!r}'
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            VLPModel(name)
    message = "a VLPModel with a live backbone cannot be saved: name the backbone by a string"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        stored_config(make_model(backbone))
    with pytest.raises(ValueError, match=r"^expected token widths that 3 heads divide, got 32$"):
        VLPModel(backbone, heads=3)


def test_any_object_with_the_members_is_a_backbone() -> None:
    class Words:
        frame_size, frame_dim, text_dim, restorable = (4, 4), 16, 32, False

        def encode_text(self, instructions: list[str]) -> Tensor:
            return torch.stack([torch.full((1, 32), float(len(instruction))) for instruction in instructions])

        def encode_frames(self, frames: Tensor) -> Tensor:
            return frames[:, :2, :2].float().mean(-1).flatten(1).unsqueeze(-1).expand(-1, -1, 16)

    model = make_model(Words())
    assert model.score(*encode(model)).preference.shape == (2,)
