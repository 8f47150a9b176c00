"""ReWiND's net against an independent computation, its backbones, and the authors' checkpoints."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import transformers

from tests.own_code import with_own_code
from tests.tiny_bases import WORDS, write_encoders
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.errors import CheckpointError, InstructionError
from vlp_gym.models.backbones.dino_minilm import DinoMiniLMBackbone
from vlp_gym.models.checkpoint import load_checkpoint, load_state
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.rewind import ReWiNDModel, from_published
from vlp_gym.storage import read_pair
from vlp_gym.testing import check_reward_model

TINY = {"hidden": 16, "layers": 2, "heads": 2, "feed_forward": 24}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders with a tiny DINOv2 and a tiny BERT with its tokenizer, as a download would leave them."""
    return write_encoders(tmp_path_factory.mktemp("encoders"))


def small_model(seed=0, **options):
    torch.manual_seed(seed)
    return ReWiNDModel("small", **{"frame_size": 32, "channels": 8, **TINY, **options}).eval()


def clip(model, time, batch=2, seed=0, dtype=torch.float32):
    """Random frame tokens and text tokens, and a mask where all is real."""
    generator = torch.Generator().manual_seed(seed)
    dim_v, dim_l = model.backbone.frame_dim, model.backbone.text_dim
    frames = torch.randn(batch, time, 1, dim_v, generator=generator, dtype=dtype)
    text = torch.randn(batch, 1, dim_l, generator=generator, dtype=dtype)
    return frames, text, torch.ones(batch, time, dtype=torch.bool)


def pictures(count, height=40, width=48, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


# --- the published net, in float64 NumPy ------------------------------------------------------------------------------


def layer_norm(x, weight, bias):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def reference(state, frames, text, heads, layers):
    """Progress ``[T]`` of one clip: frames ``[T, D_v]``, text ``[D_l]``."""
    w = {name: tensor.double().numpy() for name, tensor in state.items()}
    video = frames @ w["video_proj.weight"].T + w["video_proj.bias"]
    video[0] += w["first_pos_embed"][0]
    x = np.concatenate([(text @ w["text_proj.weight"].T + w["text_proj.bias"])[None], video])
    length, hidden = x.shape
    for layer in range(layers):
        p = {name.removeprefix(f"transformer.layers.{layer}."): value for name, value in w.items()}
        q, k, v = np.split(x @ p["self_attn.in_proj_weight"].T + p["self_attn.in_proj_bias"], 3, axis=-1)
        attended = np.zeros_like(x)
        size = hidden // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(length):
                logits = k[: t + 1, part] @ q[t, part] / math.sqrt(size)
                weights = np.exp(logits - logits.max())
                attended[t, part] = weights / weights.sum() @ v[: t + 1, part]
        attended = attended @ p["self_attn.out_proj.weight"].T + p["self_attn.out_proj.bias"]
        x = layer_norm(x + attended, p["norm1.weight"], p["norm1.bias"])
        inner = np.maximum(x @ p["linear1.weight"].T + p["linear1.bias"], 0)
        x = layer_norm(x + inner @ p["linear2.weight"].T + p["linear2.bias"], p["norm2.weight"], p["norm2.bias"])
    y = x[1:] @ w["progress_head.0.weight"].T + w["progress_head.0.bias"]
    y = layer_norm(y, w["progress_head.1.weight"], w["progress_head.1.bias"])
    y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))  # GELU
    y = y @ w["progress_head.4.weight"].T + w["progress_head.4.bias"]
    return 1 / (1 + np.exp(-y[:, 0]))


@pytest.fixture
def scattered():
    """A net none of whose weights is 0 or 1, so that each of them matters."""
    model = small_model().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_the_published_formula(scattered):
    frames, text, mask = clip(scattered, 5, dtype=torch.float64)
    for grad in (True, False):  # PyTorch computes the two in different kernels
        with torch.set_grad_enabled(grad):
            scores = scattered.score(frames, text, mask)
        for row in range(2):
            expected = reference(scattered.state_dict(), frames[row, :, 0].numpy(), text[row, 0].numpy(), 2, 2)
            assert expected.std() > 1e-3  # the frames differ
            np.testing.assert_allclose(scores.progress[row].detach().numpy(), expected, atol=1e-6)
            logit = math.log(expected[-1] / (1 - expected[-1]))
            assert scores.preference[row].item() == pytest.approx(logit, abs=1e-5)
    assert scores.progress.dtype == scores.preference.dtype == torch.float32
    assert scores.relevance is None


def test_the_sizes_of_the_paper():
    """Counted by hand from systems.md; no encoder is involved."""
    model = ReWiNDModel("small")
    layer = (3 * 512 * 512 + 3 * 512) + (512 * 512 + 512) + (512 * 2048 + 2048) + (2048 * 512 + 512) + 4 * 512
    head = (512 * 256 + 256) + 2 * 256 + (256 + 1)
    text = model.backbone.text_dim * 512 + 512
    video = model.backbone.frame_dim * 512 + 512
    own = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("backbone."))
    assert own == 4 * layer + head + text + video + 512
    assert (model.window, model.history, model.frame_size) == (16, "prefix", (112, 112))
    assert [layer.norm_first for layer in model.transformer.layers] == [False] * 4
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


def test_later_frames_do_not_change_earlier_progress(scattered):
    frames, text, mask = clip(scattered, 6, dtype=torch.float64)
    changed = frames.clone()
    changed[:, 4:] += 1
    before, after = (scattered.score(f, text, mask).progress for f in (frames, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-7)
    assert ((before - after)[:, 4:].abs() > 1e-4).all()


@pytest.mark.parametrize("from_first", [False, True])
def test_frames_of_padding_have_no_influence(from_first):
    """Whatever they show, and whichever frame is the first of the clip then."""
    model = small_model(from_first=from_first)
    frames, text, mask = clip(model, 6)
    alone = model.score(frames[:, 2:], text, mask[:, 2:])
    mask[:, :2] = False
    padded = model.score(frames, text, mask)
    torch.testing.assert_close(padded.progress[:, 2:], alone.progress, rtol=0, atol=1e-6)
    torch.testing.assert_close(padded.preference, alone.preference, rtol=0, atol=1e-5)
    assert padded.progress.isfinite().all()


def test_the_first_frame_is_told_apart(scattered):
    """Only by its bias: the order of the frames in between says nothing to the newest one of a one-layer net."""
    model = small_model(layers=1).double()
    frames, text, mask = clip(model, 4, dtype=torch.float64)
    newest = [model.score(frames[:, order], text, mask).progress[:, -1] for order in ([0, 1, 2, 3], [0, 2, 1, 3])]
    torch.testing.assert_close(*newest, rtol=0, atol=1e-7)
    other = model.score(frames[:, [1, 0, 2, 3]], text, mask).progress[:, -1]
    assert ((newest[0] - other).abs() > 1e-5).all()


def test_from_first_adds_what_changed():
    """The wider projection of [F, F - F_0] is the narrow one of both: (A + B) F - B F_0."""
    wide, narrow = small_model(from_first=True).double(), small_model(seed=1).double()
    state = {name: tensor for name, tensor in wide.state_dict().items() if name != "video_proj.weight"}
    a, b = wide.video_proj.weight.detach().chunk(2, 1)
    frames, text, mask = clip(wide, 3, batch=1, dtype=torch.float64)
    bias = state["video_proj.bias"] - b @ frames[0, 0, 0]
    narrow.load_state_dict({**state, "video_proj.weight": a + b, "video_proj.bias": bias})
    both = [model.score(frames, text, mask).progress for model in (wide, narrow)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-6)


def test_preference_is_bradley_terry_on_who_did_it():
    model = small_model()
    (a, text, mask), (b, _, _) = clip(model, 4), clip(model, 4, seed=1)
    p, q = (model.score(frames, text, mask).progress[:, -1] for frames in (a, b))
    expected = p * (1 - q) / (p * (1 - q) + q * (1 - p))
    torch.testing.assert_close(GuardedModel(model).prefer(a, b, text, where="test"), expected, rtol=1e-5, atol=1e-6)


# --- backbones --------------------------------------------------------------------------------------------------------


def test_it_keeps_the_promises_of_a_reward_model(encoders):
    check_reward_model(small_model())
    check_reward_model(small_model(from_first=True))
    check_reward_model(ReWiNDModel(**encoders, **TINY))


def test_an_unknown_backbone():
    with pytest.raises(ValueError) as caught:
        ReWiNDModel("large")
    assert str(caught.value) == 'expected a backbone "dinov2+minilm" or "small", got \'large\''


def test_the_small_token_says_where_things_are():
    """A dot in another corner is another token, and each cell has its own numbers in it."""
    model = small_model(channels=16)
    dots = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    dots[0, :8, :8] = dots[1, -8:, -8:] = 255
    tokens = model.encode_frames(dots)
    assert tokens.shape == (2, 1, 4 * 32)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    grid = model.backbone.cell(model.backbone.encoders.encode_frames(dots))  # [N, 4, 32]
    assert torch.equal(tokens[:, 0, 32:64], grid[:, 1])


def test_frames_as_dino_wants_them(encoders):
    """Cropped to the centre of what has the right height, [-1, 1]; other sizes are resized to it first."""
    backbone = DinoMiniLMBackbone(**encoders)
    seen = []
    handle = backbone.vision.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    frames = pictures(2, 28, 38)
    tokens = backbone.encode_frames(frames)
    expected = (frames[:, :, 5:33].numpy() / 255 - 0.5) / 0.5
    np.testing.assert_allclose(seen[0].permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)
    smooth = np.linspace(0, 255, 70 * 56 * 3).reshape(70, 56, 3).astype(np.uint8)
    backbone.encode_frames(torch.from_numpy(smooth)[None])
    handle.remove()
    resized = np.asarray(Image.fromarray(smooth).resize((28, 35), Image.Resampling.BILINEAR))[4:32]  # 3.5 rounds to 4
    np.testing.assert_allclose(seen[1][0].permute(1, 2, 0).numpy(), resized / 127.5 - 1, atol=1.5 / 127.5)
    with torch.no_grad():
        pooled = backbone.vision(pixel_values=seen[0]).pooler_output  # DINOv2's own: the class token, normalised
    assert tokens.shape == (2, 1, 12)
    torch.testing.assert_close(tokens[:, 0], pooled)


def test_sentences_as_minilm_wants_them(encoders):
    """The mean over the sentence's own tokens, the start and the end among them, and of no unit length."""
    backbone = DinoMiniLMBackbone(**encoders)
    sentences = ["press the button", "close the door, and then open the drawer"]
    tokens = backbone.encode_text(sentences)
    assert tokens.shape == (2, 1, 10)
    for sentence, token in zip(sentences, tokens[:, 0], strict=True):
        ids = [WORDS.index(word) for word in ("[CLS]", *re.findall(r"\w+|,", sentence), "[SEP]")]
        with torch.no_grad():
            states = backbone.language(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
        np.testing.assert_allclose(token.numpy(), states.mean(0), atol=1e-5)
    assert abs(tokens[0].norm() - 1) > 0.1
    with pytest.raises(InstructionError, match=r"^the instruction is empty"):
        backbone.encode_text([" "])


def test_long_sentences(encoders):
    long = "press " * 20
    message = "the instruction has 22 tokens, the model reads 14; shorten it, or pass truncate=True to drop the rest"
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        DinoMiniLMBackbone(**encoders).encode_text([long])
    cutting = DinoMiniLMBackbone(**encoders, truncate=True)
    torch.testing.assert_close(cutting.encode_text([long]), cutting.encode_text(["press " * 12]))


def test_the_encoders_stay_frozen(encoders):
    model = ReWiNDModel(**encoders, **TINY).train()
    assert model.transformer.training
    assert not any(module.training for module in model.backbone.modules())
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert not model.encode_frames(pictures(1)).requires_grad
    assert not model.encode_text(["press the button"]).requires_grad


def test_what_is_wrong_with_encoders_is_said(encoders, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        DinoMiniLMBackbone("somebody/something", encoders["text_encoder"])
    said = str(caught.value)
    assert said.startswith("somebody/something: neither a folder with such a model nor one that the hub delivered (")
    assert said.endswith(
        "). It is downloaded once and then cached: connect this machine once, or give the path of a folder. "
        'backbone="small" and the model "vlp-compact" work offline.'
    )
    with pytest.raises(CheckpointError) as caught:
        DinoMiniLMBackbone(encoders["text_encoder"], encoders["text_encoder"])
    assert str(caught.value) == f"{encoders['text_encoder']}: expected a model of type 'dinov2', got 'bert'"
    with pytest.raises(ValueError) as size:
        DinoMiniLMBackbone(**{**encoders, "frame_size": 30})
    assert str(size.value) == "frame_size: expected a multiple of 14 pixels, got 30"


@pytest.mark.parametrize("encoder", ["frame_encoder", "text_encoder"])
def test_code_beside_encoders_is_not_run(encoders, tmp_path, monkeypatch, encoder):
    """Not even for those who would answer "y" when asked."""
    folder = tmp_path / "encoder"
    ran = with_own_code(encoders[encoder], folder, monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        DinoMiniLMBackbone(**{**encoders, encoder: str(folder)})
    assert not ran.exists()
    assert str(caught.value).startswith(
        f"{folder}: neither a folder with such a model nor one that the hub delivered (The repository {folder} "
        "contains custom code which must be executed to correctly load the model."
    )


@pytest.mark.filterwarnings("ignore")  # transformers says it in its own way, too
def test_encoders_with_weights_missing_are_refused(encoders, tmp_path):
    model = transformers.Dinov2Model.from_pretrained(encoders["frame_encoder"])
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "layernorm.bias"}
    model.save_pretrained(tmp_path / "dino", state_dict=state)
    with pytest.raises(CheckpointError) as caught:
        DinoMiniLMBackbone(**{**encoders, "frame_encoder": str(tmp_path / "dino")})
    assert str(caught.value) == (
        f"{tmp_path / 'dino'}: expected all weights of a Dinov2Model, these are not there: ['layernorm.bias']"
    )


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["small", "dinov2+minilm"])
def test_saved_and_loaded(backbone, encoders, tmp_path):
    model = small_model(window=5) if backbone == "small" else ReWiNDModel(**encoders, **TINY, window=5).eval()
    model.save_pretrained(tmp_path)
    loaded = load_reward_model(tmp_path)
    assert type(loaded) is ReWiNDModel
    assert loaded.config == model.config
    assert (loaded.window, loaded.training) == (5, False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    stored = [name for name in read_pair(tmp_path, stem="model")[1] if name.startswith("backbone.")]
    assert bool(stored) == (backbone == "small")  # frozen encoders come from their own place


def test_a_state_with_frozen_encoders_is_refused(encoders):
    model = ReWiNDModel(**encoders, **TINY)
    name = "backbone.vision.layernorm.bias"
    with pytest.raises(CheckpointError, match=f"unexpected {name}$"):
        load_state(model, {**model.checkpoint_state(), name: torch.zeros(12)}, "here")


def published(model, prefix=""):
    """The state of the authors' module, built from theirs layer by layer: not the names that we happen to use."""
    hidden = TINY["hidden"]
    theirs = torch.nn.Module()
    theirs.video_proj = torch.nn.Linear(model.backbone.frame_dim, hidden)
    theirs.text_proj = torch.nn.Linear(model.backbone.text_dim, hidden)
    theirs.first_pos_embed = torch.nn.Parameter(torch.randn(1, hidden))
    theirs.class_token = torch.nn.Parameter(torch.randn(1, 1, hidden))
    layer = torch.nn.TransformerEncoderLayer(hidden, TINY["heads"], TINY["feed_forward"], 0.1, batch_first=True)
    theirs.transformer = torch.nn.TransformerEncoder(layer, TINY["layers"], enable_nested_tensor=False)
    half = hidden // 2
    theirs.progress_head = torch.nn.Sequential(
        torch.nn.Linear(hidden, half), torch.nn.LayerNorm(half), torch.nn.GELU(), torch.nn.Dropout(0.1),
        torch.nn.Linear(half, 1), torch.nn.Sigmoid(),
    )  # fmt: skip
    return {prefix + name: tensor.detach() for name, tensor in theirs.state_dict().items()}


class TestPublished:
    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
    def test_round_trip(self, encoders, tmp_path, prefix):
        options = {**encoders, **TINY, "window": 3}  # a longer one would be filled up
        state = published(ReWiNDModel(**options), prefix)
        model = from_published(state, **options)
        assert not model.training
        for name, tensor in model.checkpoint_state().items():
            assert torch.equal(tensor, state[prefix + name]), name
        assert len(model.checkpoint_state()) == len(state) - 1  # the class token, which nothing reads
        frames, text, mask = clip(model, 3, batch=1)
        bare = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        expected = reference(bare, frames[0, :, 0].double().numpy(), text[0, 0].double().numpy(), 2, 2)
        progress = model.score(frames, text, mask).progress
        np.testing.assert_allclose(progress[0].detach().numpy(), expected, atol=1e-5)
        model.save_pretrained(tmp_path)
        again = load_checkpoint(ReWiNDModel, tmp_path)
        assert torch.equal(again.score(frames, text, mask).progress, progress)

    def test_what_does_not_fit_is_listed(self, encoders):
        options = {**encoders, **TINY}
        state = published(ReWiNDModel(**options))
        del state["progress_head.4.bias"]
        state["sigmoid"] = torch.zeros(1)
        state["first_pos_embed"] = torch.zeros(1, 17)
        with pytest.raises(CheckpointError) as caught:
            from_published(state, **options)
        assert str(caught.value) == (
            "the published weights: made for another architecture than this ReWiNDModel: missing progress_head.4.bias; "
            "unexpected sigmoid; first_pos_embed is (1, 17) instead of (1, 16)"
        )
