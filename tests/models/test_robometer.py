"""Robometer against transformers' own model, and the loading of published checkpoints."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from tiny_qwen import tiny_qwen3
from transformers import AutoConfig, AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

from vlp_gym.errors import CheckpointError
from vlp_gym.models.published.convert import convert
from vlp_gym.models.published.shards import read_shards
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.robometer import ADDED_TOKENS, TABLE, RobometerModel
from vlp_gym.testing import check_reward_model

SIZE = 64  # 2 x 2 tokens of 32 pixels
SENTENCE = "press the button"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_qwen3(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base):
    """Random weights, the backbone those of `base`, with five more rows for the added tokens as in the release."""
    torch.manual_seed(1)
    model = RobometerModel(base, frame_size=SIZE)
    full = Qwen3VLForConditionalGeneration.from_pretrained(base)
    full.resize_token_embeddings(model.config["architecture"]["text_config"]["vocab_size"], mean_resizing=False)
    model.backbone.model.load_state_dict(full.model.state_dict())
    with torch.no_grad():  # rows of a new embedding are small; the others of this one are not
        model.backbone.model.language_model.embed_tokens.weight[-5:] = torch.randn(5, 32)
        for head in (model.progress_head, model.preference_head, model.success_head):
            head[4].weight.mul_(5)
    return model.eval()


def pixels(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8))


def encoded(model, count, seed=0):
    with torch.inference_mode():
        return model.encode_frames(pixels(count, seed))[None], model.encode_text([SENTENCE])


def whole(count):
    return torch.ones(1, count, dtype=torch.bool)


def scored(model, count=3):
    tokens, text = encoded(model, count)
    with torch.inference_mode():
        return model.score(tokens, text, whole(count))


def head_in_numpy(head, hidden):
    """Linear, LayerNorm, GELU, Linear in float64, from the definitions; keys .0 .1 .4."""
    weights = {name: value.detach().double().numpy() for name, value in head.state_dict().items()}
    assert set(weights) == {f"{layer}.{part}" for layer in (0, 1, 4) for part in ("weight", "bias")}
    x = hidden @ weights["0.weight"].T + weights["0.bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * weights["1.weight"] + weights["1.bias"]
    x = x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
    return x @ weights["4.weight"].T + weights["4.bias"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def reference(base, model):
    """Hidden states at given tokens, as the authors get them: one text with pictures, through transformers' forward."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    inner = model.backbone.model

    def hidden(text, frames, token):
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        pictures = [Image.fromarray(frame.numpy()) for frame in frames]
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
        seen = Qwen2VLImageProcessor(**half)(pictures, return_tensors="pt", do_resize=False)
        kinds = (ids == inner.config.image_token_id).int()
        with torch.no_grad():
            states = inner(input_ids=ids, mm_token_type_ids=kinds, **seen).last_hidden_state[0]
        return states[ids[0] == tokenizer.convert_tokens_to_ids(token)].double().numpy()

    return hidden


def pictures(numbers):
    image = "<|vision_start|>" + 4 * "<|image_pad|>" + "<|vision_end|><|prog_token|>"
    return "".join(f"Picture {number}: {image}" for number in numbers)


class TestAgainstTransformers:
    def test_progress_and_success(self, model, reference):
        text = (
            f"<|im_start|>user\nThe task for the robot is '{SENTENCE}'. Given the trajectory video, predict the task "
            "progress at each frame, how far along the robot is towards completing the task, a float between 0 and 1, "
            "where 0 is the starting state and 1 is when the task is completed. If the robot is not performing the "
            "same task, predict 0 progress."
        )
        states = reference(text + pictures(range(1, 4)), pixels(3), "<|prog_token|>")
        logits = head_in_numpy(model.progress_head, states)
        assert logits.shape == (3, 10)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = (p * np.arange(10) / 9).sum(-1)
        assert np.ptp(expected) > 1e-3
        scores = scored(model)
        np.testing.assert_allclose(scores.progress[0], expected, atol=1e-5)
        np.testing.assert_allclose(scores.preference, np.log(expected[-1] / (1 - expected[-1])), atol=1e-4)
        tokens, words = encoded(model, 3)
        with torch.inference_mode():
            success = model.success(tokens, words, whole(3))
        np.testing.assert_allclose(success[0], sigmoid(head_in_numpy(model.success_head, states))[:, 0], atol=1e-5)

    def test_preference(self, model, reference):
        """Pictures are numbered on in the second video."""
        text = (
            f"<|im_start|>user\nGiven these two trajectories for the task '{SENTENCE}', evaluate which one makes more "
            "progress towards the task. Return A for the first trajectory and B for the second trajectory.This is "
            f"Trajectory A. {pictures((1, 2))}<|split_token|>This is Trajectory B. {pictures((3, 4, 5))}"
            "Now predict the preference between the two trajectories.<|pref_token|>"
        )
        frames = torch.cat([pixels(2, 1), pixels(3, 2)])
        expected = sigmoid(head_in_numpy(model.preference_head, reference(text, frames, "<|pref_token|>")))[:, 0]
        (a, words), (b, _) = encoded(model, 2, 1), encoded(model, 3, 2)
        with torch.inference_mode():
            np.testing.assert_allclose(model.prefer(a, b, words), expected, atol=1e-5)
            assert (model.prefer(b, a, words) - model.prefer(a, b, words)).abs() > 1e-3


class TestAsRewardModel:
    def test_keeps_the_promises(self, model):
        check_reward_model(model)

    def test_padding_among_two_digit_pictures(self, model):
        """ "Picture 10: " is longer than "Picture 9: ": the slots before a frame are not all filled."""
        tokens, text = encoded(model, 11)
        mask = torch.cat([torch.zeros(1, 2, dtype=torch.bool), whole(11)], dim=1)
        with torch.inference_mode():
            plain = model.score(tokens, text, whole(11)).progress
            padded = model.score(torch.cat([tokens[:, :1], tokens[:, :1], tokens], dim=1), text, mask).progress
        torch.testing.assert_close(padded[:, 2:], plain, atol=1e-5, rtol=0)

    def test_the_hub_is_not_there(self):
        with pytest.raises(CheckpointError) as caught:
            RobometerModel()
        told = str(caught.value)
        assert told.startswith("Qwen/Qwen3-VL-4B-Instruct: the tokenizer could not be loaded (")
        assert told.endswith('The model "vlp-compact" works offline.')

    def test_an_embedding_with_too_few_rows(self, base, model):
        architecture = model.config["architecture"]
        small = {**architecture, "text_config": {**architecture["text_config"], "vocab_size": 300}}
        with pytest.raises(CheckpointError) as caught:
            RobometerModel(base, architecture=small, frame_size=SIZE)
        assert str(caught.value) == f"expected an embedding of 405 rows for the tokenizer of {base}, got 300"


@pytest.fixture(scope="module")
def published(model):
    """The tensors under the authors' names, which are listed here by hand where they are not the backbone's."""
    state = {key: value.clone() for key, value in model.checkpoint_state().items()}
    heads = {f"{head}_head.{layer}" for head in ("progress", "preference", "success") for layer in (0, 1, 4)}
    assert {key.rpartition(".")[0] for key in state if not key.startswith("model.")} == heads | {"frame_pool_attn"}
    assert all(key.startswith(("model.visual.", "model.language_model.")) for key in state if key.startswith("model."))
    return state


class TestPublished:
    def load(self, state, base, **options):
        return RobometerModel.from_published(state, base=base, frame_size=SIZE, **options)

    def same(self, model, other):
        a, b = scored(model), scored(other)
        return torch.equal(a.progress, b.progress) and torch.equal(a.preference, b.preference)

    def test_the_authors_layout(self, model, published, base):
        loaded = self.load(published, base)
        assert not loaded.training
        assert self.same(loaded, model)

    def test_lerobots_layout(self, model, published, base):
        state = {f"model.{key}" if key.startswith("model.") else key: value for key, value in published.items()}
        state["model.lm_head.weight"] = published[TABLE]
        assert self.same(self.load(state, base), model)

    def test_a_config_object_or_dict(self, model, published, base):
        config = AutoConfig.from_pretrained(base)
        assert config.text_config.vocab_size != published[TABLE].shape[0]  # the rows follow from the tensors
        assert self.same(self.load(published, base, config=config), model)
        assert self.same(self.load(published, base, config=model.config["architecture"]), model)

    def test_the_bins_follow_from_the_head(self, published, base):
        state = {**published, "progress_head.4.weight": torch.randn(4, 16), "progress_head.4.bias": torch.zeros(4)}
        loaded = self.load(state, base)
        assert loaded.config["bins"] == 4

    def test_bfloat16_stays(self, model, published, base):
        loaded = self.load({key: value.bfloat16() for key, value in published.items()}, base)
        assert loaded.backbone.model.dtype == torch.bfloat16
        assert loaded.progress_head[0].weight.dtype == torch.float32
        torch.testing.assert_close(scored(loaded).progress, scored(model).progress, atol=0.1, rtol=0)

    def test_missing_extra_and_misshaped_tensors_are_listed(self, published, base):
        state = {**published, "similarity_head.0.weight": torch.zeros(1), "success_head.4.bias": torch.zeros(2)}
        del state["model.visual.merger.linear_fc1.bias"], state["frame_pool_attn.weight"]
        with pytest.raises(CheckpointError) as caught:
            self.load(state, base)
        assert str(caught.value) == (
            "the Robometer checkpoint: made for another architecture than this RobometerModel: missing "
            "frame_pool_attn.weight, model.visual.merger.linear_fc1.bias; unexpected similarity_head.0.weight; "
            "success_head.4.bias is (2,) instead of (1,)"
        )

    def test_not_a_robometer(self, published, base):
        state = {key: value for key, value in published.items() if "progress" not in key}
        with pytest.raises(CheckpointError) as caught:
            self.load(state, base)
        assert str(caught.value) == (
            "not a Robometer checkpoint: missing progress_head.0.weight, progress_head.4.weight"
        )

    def test_weights_that_are_not_finite(self, published, base):
        state = {**published, "success_head.4.bias": torch.tensor([torch.nan])}
        with pytest.raises(CheckpointError) as caught:
            self.load(state, base)
        assert str(caught.value) == "the Robometer checkpoint has NaN or infinite weights in success_head.4.bias"

    def test_the_config_of_another_size(self, model, published, base):
        architecture = model.config["architecture"]
        config = {**architecture, "text_config": {**architecture["text_config"], "hidden_size": 64}}
        with pytest.raises(CheckpointError) as caught:
            self.load(published, base, config=config)
        assert str(caught.value) == (
            "the heads are 32 wide, the backbone of the config is 64: give the config that belongs to this checkpoint"
        )

    def test_global_generators_are_left_alone(self, published, base):
        before = torch.get_rng_state()
        self.load(published, base)
        assert torch.equal(torch.get_rng_state(), before)

    def test_saved_again_it_keeps_the_authors_names(self, model, published, tmp_path):
        model.save_pretrained(tmp_path)
        assert load_file(tmp_path / "model.safetensors").keys() == published.keys()
        assert self.same(load_reward_model(tmp_path), model)


class TestShards:
    def write(self, folder, published):
        """Two files and an index, as the hub splits a model of this size."""
        names = sorted(published)
        files = {name: f"model-0000{1 + (name > names[len(names) // 2])}-of-00002.safetensors" for name in names}
        for file in set(files.values()):
            save_file({name: published[name] for name in names if files[name] == file}, folder / file)
        index = {"metadata": {"total_size": 1}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return files

    def test_all_shards(self, published, tmp_path):
        assert len(set(self.write(tmp_path, published).values())) == 2
        state = read_shards(tmp_path)
        assert state.keys() == published.keys()
        assert all(torch.equal(state[key], value) for key, value in published.items())

    def test_the_command_converts_them(self, model, published, base, tmp_path):
        self.write(tmp_path, published)
        convert("robometer", tmp_path, tmp_path / "ours", base=base, frame_size=SIZE)
        a, b = scored(model), scored(load_reward_model(tmp_path / "ours"))
        assert torch.equal(a.progress, b.progress)

    def test_one_file(self, published, tmp_path):
        save_file(published, tmp_path / "model.safetensors")
        assert read_shards(tmp_path).keys() == published.keys()

    def test_nothing_there(self, tmp_path):
        with pytest.raises(CheckpointError) as caught:
            read_shards(tmp_path)
        assert str(caught.value) == (
            f"{tmp_path}: expected model.safetensors or model.safetensors.index.json; "
            "pickle files (.bin, .pt) are never loaded"
        )

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (
                '{"weight_map": {"a": "../model.safetensors"}}',
                "'../model.safetensors' is not the name of a .safetensors file",
            ),
            ('{"weight_map": {"a": "model.bin"}}', "'model.bin' is not the name of a .safetensors file"),
            ('{"metadata": {}}', "'weight_map'"),
        ],
    )
    def test_an_index_that_is_none(self, tmp_path, text, reason):
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(text)
        with pytest.raises(CheckpointError) as caught:
            read_shards(tmp_path)
        assert str(caught.value) == f"{path}: not an index of shards ({reason})"

    @pytest.mark.parametrize("fault", ["gone", "cut", "other"])
    def test_a_shard_that_does_not_hold_what_it_should(self, published, tmp_path, fault):
        file = tmp_path / sorted(set(self.write(tmp_path, published).values()))[0]
        if fault == "gone":
            file.unlink()
        elif fault == "cut":
            file.write_bytes(file.read_bytes()[:-10])
        else:
            save_file({"something": torch.zeros(1)}, file)
        with pytest.raises(
            CheckpointError, match=r": missing, damaged or incomplete \(.+\); fetch it again$"
        ) as caught:
            read_shards(tmp_path)
        assert str(caught.value).startswith(f"{file}: ")
