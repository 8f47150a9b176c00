"""SPUR against transformers' own model, and everything that `RewardModel` promises."""

from __future__ import annotations

import math
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
pytest.importorskip("peft")

from tiny_qwen import tiny_qwen2_5, tiny_qwen3
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from vlp_gym.errors import CheckpointError, InstructionError, MissingExtraError
from vlp_gym.models.backbones.qwen_vl import rotary_positions
from vlp_gym.models.checkpoint import load_state, load_weights
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.spur import SPURModel
from vlp_gym.testing import check_reward_model

SIZE = 56  # 2 x 2 tokens of 28 pixels
OFFLINE = 'machine once, or give a local folder as `base`. The model "vlp-compact" works offline.'


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_qwen2_5(tmp_path_factory.mktemp("base"))


def make(base, seed=1, **options):
    torch.manual_seed(seed)
    return SPURModel(base, **{"window": 4, "frame_size": SIZE, "lora_rank": 2, **options}).eval()


@pytest.fixture(scope="module")
def model(base):
    return make(base)


def pixels(count, height=SIZE, width=SIZE, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8))


def scored(model, frames, sentence="press the button"):
    with torch.inference_mode():
        tokens = model.encode_frames(frames)[None]
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        return model.score(tokens, model.encode_text([sentence]), mask)


def head_in_numpy(head, hidden):
    """Linear, LayerNorm, GELU, Linear in float64, from the definitions."""
    weights = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}
    x = hidden @ weights["0.weight"].T + weights["0.bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * weights["1.weight"] + weights["1.bias"]
    error_function = np.vectorize(math.erf)
    x = x * 0.5 * (1 + error_function(x / np.sqrt(2)))
    return x @ weights["4.weight"].T + weights["4.bias"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class TestAsRewardModel:
    @pytest.mark.parametrize("lora_rank", [2, None])
    def test_keeps_the_promises(self, base, lora_rank):
        check_reward_model(make(base, lora_rank=lora_rank))

    def test_preference_is_the_logit_of_the_last_progress(self, model):
        scores = scored(model, pixels(3))
        p = scores.progress[:, -1].double().numpy()
        np.testing.assert_allclose(scores.preference, np.log(p / (1 - p)), atol=1e-4)

    def test_the_order_of_frames_matters(self, model):
        frames = pixels(3)
        assert (scored(model, frames).preference - scored(model, frames.flip(0)).preference).abs() > 1e-3

    def test_the_sentence_matters(self, model):
        frames = pixels(3)
        gap = scored(model, frames).progress - scored(model, frames, "open the door").progress
        assert gap.abs().max() > 1e-3


@pytest.fixture(scope="module")
def reference(base, model):
    """Hidden states of the whole model as transformers runs it, with the added tokens in its own table."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<|split_token|>", "<|pref_token|>"], special_tokens=True)
    full = Qwen2_5_VLForConditionalGeneration.from_pretrained(base).eval()
    with torch.no_grad():
        first = tokenizer.convert_tokens_to_ids("<|split_token|>")
        full.get_input_embeddings().weight[first : first + 2] = model.added_tokens

    def hidden(sentence, *videos):
        image = "<|vision_start|>" + 4 * "<|image_pad|>" + "<|vision_end|>"
        text = f"<|im_start|>user\nThe task for the robot is '{sentence}'.\n" + image * len(videos[0])
        if len(videos) > 1:
            text += "<|split_token|>" + image * len(videos[1]) + "<|pref_token|>"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        pictures = [Image.fromarray(frame.numpy()) for video in videos for frame in video]
        seen = Qwen2VLImageProcessor()(pictures, return_tensors="pt")
        kinds = (ids == full.config.image_token_id).int()
        with torch.no_grad():
            states = full.model(input_ids=ids, mm_token_type_ids=kinds, **seen).last_hidden_state[0]
        ends = (ids[0] == full.config.vision_end_token_id).nonzero()[:, 0]
        return states[ends - 1].double().numpy(), states[-1].double().numpy()

    return hidden


class TestAgainstTransformers:
    """The whole model again, with transformers' own processor, positions and forward."""

    def test_progress(self, model, reference):
        frames = pixels(3)
        last_vision_tokens, _ = reference("press the button", frames)
        expected = sigmoid(head_in_numpy(model.progress_head, last_vision_tokens))[:, 0]
        np.testing.assert_allclose(scored(model, frames).progress[0], expected, atol=1e-5)
        assert np.ptp(expected) > 1e-3

    def test_preference(self, model, reference):
        a, b = pixels(2, seed=1), pixels(3, seed=2)
        states, last = reference("press the button", a, b)
        with torch.inference_mode():
            text = model.encode_text(["press the button"])
            tokens_a, tokens_b = model.encode_frames(a)[None], model.encode_frames(b)[None]
            chosen = model.prefer(tokens_a, tokens_b, text)
            whole = [torch.ones(1, n, dtype=torch.bool) for n in (2, 3)]
            progress, _ = model.pair_logits(tokens_a, tokens_b, text, *whole)
            alone = model.progress_logits(tokens_a, text, whole[0])
        np.testing.assert_allclose(chosen, sigmoid(head_in_numpy(model.preference_head, last)), atol=1e-5)
        np.testing.assert_allclose(progress[0], head_in_numpy(model.progress_head, states[:2])[:, 0], atol=1e-5)
        torch.testing.assert_close(progress, alone)  # attention looks back only


class TestPositions:
    def test_by_hand(self):
        """Two words, an image of 2 x 2 tokens, a word; the second row lacks its first word."""
        mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
        offset = torch.tensor([[0] * 7, [0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 1, 0]])
        advance = torch.tensor([1, 1, 0, 0, 0, 2, 1])
        temporal, height, width = rotary_positions(mask, offset, advance)
        assert temporal.tolist() == [[0, 1, 2, 2, 2, 2, 4], [0, 0, 1, 1, 1, 1, 3]]
        assert height.tolist() == [[0, 1, 2, 2, 3, 3, 4], [0, 0, 1, 1, 2, 2, 3]]
        assert width.tolist() == [[0, 1, 2, 3, 2, 3, 4], [0, 0, 1, 2, 1, 2, 3]]

    def test_padding_in_pairs(self, model):
        """Padding frames in front of either video change neither progress nor preference."""
        a, b = (model.encode_frames(pixels(2, seed=seed))[None] for seed in (3, 4))
        text = model.encode_text(["press the button"])
        whole = torch.ones(1, 2, dtype=torch.bool)
        padded = torch.tensor([[False, True, True]])
        with torch.inference_mode():
            progress, logit = model.pair_logits(a, b, text, whole, whole)
            longer = [torch.cat([video[:, :1], video], 1) for video in (a, b)]
            again, logit_again = model.pair_logits(*longer, text, padded, padded)
        torch.testing.assert_close(again[:, 1:], progress, atol=1e-5, rtol=0)
        torch.testing.assert_close(logit_again, logit, atol=1e-5, rtol=0)


class TestInputs:
    def test_frames_are_resized_as_pillow_does(self, model):
        seen = []
        handle = model.backbone.model.visual.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        smooth = np.linspace(0, 255, 96 * 70 * 3).reshape(96, 70, 3).astype(np.uint8)
        model.encode_frames(torch.from_numpy(smooth)[None])
        handle.remove()
        resized = Image.fromarray(smooth).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        expected = Qwen2VLImageProcessor()(resized, return_tensors="pt").pixel_values
        torch.testing.assert_close(seen[0], expected, atol=1.1 / 255 / 0.26, rtol=0)  # one level: Pillow rounds twice

    def test_frames_of_another_kind(self, model):
        with pytest.raises(TypeError) as caught:
            model.encode_frames(torch.zeros(1, 3, SIZE, SIZE))
        assert str(caught.value) == f"expected uint8 frames [N, H, W, 3], got torch.float32 [1, 3, {SIZE}, {SIZE}]"

    def test_padding_of_text_is_zero_and_words_are_not(self, model):
        text = model.encode_text(["open it", "press the button, then open the door"])
        words = (text[..., 0] > 0).sum(1)
        assert words[0] < words[1] == text.shape[1]
        assert (text[0, words[0] :] == 0).all()
        assert (text[0, : words[0]] > 0).all()

    def test_braces_and_percent_signs_are_text(self, model):
        ids = (model.encode_text(["turn {0} by 50%s"])[0, :, 0].long() - 1).tolist()
        assert model.backbone.tokenizer.decode(ids).endswith("is 'turn {0} by 50%s'.\n")

    def test_long_sentences(self, base, model):
        long = "press " * 200
        count = len(model.backbone.ids(long.strip()))
        assert count > 256
        with pytest.raises(InstructionError) as caught:
            model.encode_text([long])
        assert str(caught.value) == (
            f"the instruction has {count} tokens, the model reads 256; "
            "shorten it, or pass truncate=True to drop the rest"
        )
        cutting = make(base, truncate=True)
        prompt = len(model.backbone.ids("<|im_start|>user\nThe task for the robot is ''.\n"))
        assert 256 < cutting.encode_text([long]).shape[1] < 256 + prompt + 5

    def test_a_frame_size_that_does_not_fit(self, base):
        with pytest.raises(ValueError, match=r"^frame_size: expected a multiple of 28 pixels, got 40$"):
            make(base, frame_size=40)


class TestCheckpoints:
    @pytest.mark.parametrize("lora_rank", [2, None])
    def test_round_trip(self, base, tmp_path, lora_rank):
        model = make(base, lora_rank=lora_rank)
        with torch.no_grad():  # as after training: fresh adapters add nothing
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(0.05 * torch.randn_like(weight))
        model.save_pretrained(tmp_path)
        loaded = load_reward_model(tmp_path)
        frames = pixels(3)
        assert torch.equal(scored(loaded, frames).progress, scored(model, frames).progress)
        stored = load_file(tmp_path / "model.safetensors").keys()
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert stored == trained
        assert not any("visual" in name for name in stored)
        assert any("lora_" in name for name in stored) == (lora_rank is not None)

    def test_base_weights_in_a_checkpoint_are_refused(self, model):
        extra = {"backbone.model.visual.merger.ln_q.weight": torch.ones(16)}
        with pytest.raises(CheckpointError, match=rf"unexpected {next(iter(extra))}$"):
            load_state(model, {**model.checkpoint_state(), **extra}, "here")

    def test_the_hub_is_not_there(self):
        with pytest.raises(CheckpointError) as caught:
            SPURModel()
        told = str(caught.value)
        assert told.startswith("Qwen/Qwen2.5-VL-3B-Instruct: the tokenizer could not be loaded (")
        assert told.endswith("). It is downloaded once and then cached: connect this " + OFFLINE)

    def test_a_base_without_weights(self, base, tmp_path):
        folder = shutil.copytree(base, tmp_path / "base")
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=rf"^{re.escape(str(folder))}: the weights could not be loaded \("):
            make(str(folder))

    def test_a_base_that_lacks_weights(self, base, tmp_path):
        """transformers would fill them with random numbers, and only warn."""
        folder = shutil.copytree(base, tmp_path / "base")
        weights = load_file(folder / "model.safetensors")
        del weights["model.norm.weight" if "model.norm.weight" in weights else "model.language_model.norm.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError) as caught:
            make(str(folder))
        assert str(caught.value) == (
            f"{folder}: no full set of weights of qwen2_5_vl: model.language_model.norm.weight missing or misshaped"
        )

    def test_a_base_of_another_kind(self, tmp_path):
        base = tiny_qwen3(tmp_path)
        with pytest.raises(CheckpointError) as caught:
            make(base)
        assert str(caught.value) == f"{base}: expected a model of type 'qwen2_5_vl', got 'qwen3_vl'"

    def test_a_checkpoint_for_other_adapters(self, base, tmp_path):
        make(base).save_pretrained(tmp_path)
        other = make(base, lora_rank=3)
        with pytest.raises(CheckpointError, match=r"lora_A\.default\.weight is \(2, 32\) instead of \(3, 32\)"):
            load_weights(other, tmp_path)

    @pytest.mark.parametrize(
        ("package", "message"),
        [
            ("transformers", 'Qwen\'s models need transformers: pip install "vlp_gym[vlm]"'),
            ("peft", 'SPUR with lora_rank needs peft: pip install "vlp_gym[vlm]"'),
        ],
    )
    def test_a_missing_package(self, base, monkeypatch, package, message):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError) as caught:
            make(base)
        assert str(caught.value) == message


class TestWhatIsTrained:
    def test_adapters_heads_and_tokens_and_nothing_else(self, model):
        frames = model.encode_frames(pixels(4)).unflatten(0, (2, 2))
        mask = torch.ones(1, 2, dtype=torch.bool)
        progress, logit = model.pair_logits(frames[:1], frames[1:], model.encode_text(["press"]), mask, mask)
        (progress.sum() + logit.sum()).backward()
        got = {name for name, weight in model.named_parameters() if weight.grad is not None}
        wanted = set(model.checkpoint_state())
        model.zero_grad(set_to_none=True)
        assert got == wanted

    def test_the_vision_tower_stays_in_eval_mode(self, base):
        model = make(base).train()
        assert model.progress_head.training
        assert model.backbone.model.language_model.training
        assert not any(module.training for module in model.backbone.model.visual.modules())

    def test_bfloat16_keeps_what_is_trained_in_float32(self, base):
        model = make(base, dtype="bfloat16")
        kinds = {name: weight.dtype for name, weight in model.named_parameters()}
        assert {kinds[name] for name in model.checkpoint_state()} == {torch.float32}
        assert kinds["backbone.model.visual.patch_embed.proj.weight"] == torch.bfloat16
        scores = scored(model, pixels(2))
        assert scores.progress.dtype == torch.float32
        torch.testing.assert_close(scores.progress, scored(make(base), pixels(2)).progress, atol=0.05, rtol=0)
