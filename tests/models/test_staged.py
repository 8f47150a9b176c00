"""The staged model: the protocol it keeps, what it can see, and what it cannot."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import SIZE, awake_model

from vlp_gym.engine.guard import GuardedModel
from vlp_gym.models.protocol import AnchoredModel, ContextualModel, RewardModel
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.staged import StagedRewardModel
from vlp_gym.testing import check_reward_model

TINY = {**SIZE, "buckets": 256}
SENTENCES = ["press the button", "open the door"]
ALL = torch.ones(2, 4, dtype=torch.bool)


@pytest.fixture(scope="module")
def model():
    return awake_model()


@pytest.fixture(scope="module")
def tokens(model):
    """Frame tokens of two clips of four frames, ``[2, 4, K, D]``."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    with torch.inference_mode():
        return model.encode_frames(torch.from_numpy(pixels)).unflatten(0, (2, 4))


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


class TestProtocol:
    def test_it_is_a_reward_model(self, model):
        for kind in (RewardModel, ContextualModel, AnchoredModel):
            assert isinstance(model, kind)
        check_reward_model(model)

    def test_its_defaults_too(self):
        made = StagedRewardModel()
        check_reward_model(made)
        assert sum(p.numel() for p in made.parameters()) * 2 < 6e6  # bytes in float16, of the 20 MB that two may take

    def test_the_config_builds_it_again(self, model):
        again = StagedRewardModel(**model.config)
        again.load_state_dict(model.state_dict(), strict=True)
        assert again.config == model.config
        assert all(model.config[name] == value for name, value in TINY.items())

    def test_save_and_load(self, model, tokens, tmp_path):
        model.save_pretrained(tmp_path)
        for loaded in (StagedRewardModel.from_pretrained(tmp_path), load_reward_model(tmp_path)):
            scores = [m.score(tokens, m.encode_text(SENTENCES), ALL).preference for m in (model, loaded)]
            assert torch.equal(*scores)

    @pytest.mark.parametrize("size", [30, 100])
    def test_frames_must_fit_the_grid(self, size):
        with pytest.raises(ValueError, match=rf"^frame_size: expected a multiple of \d+ pixels, got {size}$"):
            StagedRewardModel(**{**TINY, "image_size": size})


class TestWhatItSees:
    def test_padding_has_no_influence(self, model, tokens):
        """It repeats the first frame at the front."""
        text = model.encode_text(SENTENCES)
        plain = model.score(tokens, text, ALL)
        for count in (1, 3):
            padding = tokens[:, :1].expand(-1, count, -1, -1)
            mask = torch.cat([torch.zeros(2, count, dtype=torch.bool), ALL], 1)
            padded = model.score(torch.cat([padding, tokens], 1), text, mask)
            assert torch.allclose(padded.preference, plain.preference, atol=1e-5)
            assert torch.equal(padded.relevance, plain.relevance)
            assert torch.allclose(padded.progress[:, count:], plain.progress, atol=1e-6)

    def test_frames_that_are_masked_out_have_no_influence_but_for_the_first(self, model, tokens):
        text = model.encode_text(SENTENCES)
        plain = model.score(tokens, text, ALL)
        for count in (1, 3):
            junk = torch.randn(2, count, *tokens.shape[2:])
            mask = torch.cat([ALL[:, :1], torch.zeros(2, count, dtype=torch.bool), ALL[:, 1:]], 1)
            padded = model.score(torch.cat([tokens[:, :1], junk, tokens[:, 1:]], 1), text, mask)
            assert torch.allclose(padded.preference, plain.preference, atol=1e-5)
            assert torch.equal(padded.relevance, plain.relevance)
            assert torch.allclose(padded.progress[:, count + 1 :], plain.progress[:, 1:], atol=1e-6)

    def test_a_segment_is_seen_beside_the_first_frame_of_its_episode(self, model, tokens):
        text = model.encode_text(SENTENCES)
        whole = model.score(tokens, text, ALL)
        segment = model.score(tokens, text, torch.tensor([[False, False, True, True]] * 2))
        assert torch.equal(segment.progress, whole.progress)
        assert torch.equal(segment.relevance, whole.relevance)
        gate = model.sharpness * whole.relevance.sigmoid()
        assert torch.allclose(segment.preference, gate * (model.base + whole.progress[:, 2:].mean(1)), atol=1e-5)

    def test_progress_is_made_of_three_stages(self, model, tokens):
        text = model.encode_text(SENTENCES)
        stages = model.stages(model.state(tokens), text)
        assert stages.shape == (2, 4, 3)
        approach, moved, way = stages.sigmoid().unbind(-1)
        expected = 0.25 * approach + 0.75 * moved * way
        assert torch.allclose(model.score(tokens, text, ALL).progress, expected, atol=1e-6)
        assert stages.std() > 1e-3

    def test_what_has_not_moved_earns_the_share_of_the_approach(self, model):
        logits = torch.tensor([[[50.0, -50.0, 50.0], [50.0, 50.0, 50.0], [-50.0, -50.0, 50.0], [50.0, 50.0, -50.0]]])
        assert model.progress(logits)[0].tolist() == pytest.approx([0.25, 1.0, 0.0, 0.25])

    def test_a_sentence_changes_the_stages_by_its_direction_alone(self, model, tokens):
        state, text = model.state(tokens), model.encode_text(SENTENCES)
        told = torch.tanh(model.text_direction[0](text[:, 0, model.backbone.text_dim :]))
        turned = model.direction_head(torch.relu(state)).unflatten(2, (3, -1))
        expected = model.stage_head(state) + torch.einsum("btsd,bd->bts", turned, told)
        assert torch.allclose(model.stages(state, text), expected, atol=1e-5)
        assert (expected - model.stage_head(state)).abs().max() > 1e-3

    def test_relevance_is_its_formula(self, model, tokens):
        """A temperature times a cosine plus a bias; every first frame against every sentence."""
        text = model.encode_text([*SENTENCES, "close the window"])
        logits = model.relevance(tokens[:, 0], text)
        assert logits.shape == (2, 3)
        for i in range(2):
            seen = model.scene_head(torch.cat([tokens[i, 0].mean(0), tokens[i, 0].amax(0)])[None])[0]
            for j in range(3):
                said = model.text_scene(text[j, :, : model.backbone.text_dim])[0]
                cosine = torch.cosine_similarity(seen, said, 0)
                expected = model.temperature * cosine + model.relevance_bias
                assert logits[i, j].item() == pytest.approx(expected.item(), abs=1e-4)

    def test_relevance_shift_is_added(self, model, tokens):
        shifted = StagedRewardModel(**{**TINY, "relevance_shift": 1.5}).eval()
        shifted.load_state_dict(model.state_dict())
        text = model.encode_text(SENTENCES)
        other, plain = shifted.score(tokens, text, ALL), model.score(tokens, text, ALL)
        assert torch.allclose(other.relevance - plain.relevance, torch.full((2,), 1.5), atol=1e-5)
        assert torch.equal(other.progress, plain.progress)

    def test_under_a_wrong_sentence_every_video_is_worth_nothing(self, model, tokens):
        wrong = StagedRewardModel(**{**TINY, "relevance_shift": -100.0}).eval()
        wrong.load_state_dict(model.state_dict())
        assert wrong.score(tokens, wrong.encode_text(SENTENCES), ALL).preference.abs().max() < 1e-6

    def test_an_untrained_sentence_has_no_direction(self, tokens):
        fresh = StagedRewardModel(**TINY).eval()
        a, b = (fresh.score(tokens, fresh.encode_text(s), ALL) for s in (SENTENCES, SENTENCES[::-1]))
        assert torch.equal(a.progress, b.progress)
        assert not torch.allclose(a.relevance, b.relevance)

    def test_training_the_relevance_leaves_the_progress_alone(self, model, tokens):
        again = copy.deepcopy(model)
        for parameter in again.relevance_parameters():
            torch.nn.init.normal_(parameter)
        a, b = (m.score(tokens, m.encode_text(SENTENCES), ALL) for m in (model, again))
        assert torch.equal(a.progress, b.progress)
        assert not torch.allclose(a.preference, b.preference)

    def test_no_motion_changes_the_gate_of_the_reward(self, model, tokens):
        text = model.encode_text(SENTENCES)
        other = torch.cat([tokens[:, :1], torch.randn_like(tokens[:, 1:])], 1)
        assert torch.equal(model.score(tokens, text, ALL).relevance, model.score(other, text, ALL).relevance)

    def test_progress_of_a_frame_is_of_it_and_the_first_only(self, model, tokens):
        text = model.encode_text(SENTENCES)
        whole = model.score(tokens, text, ALL).progress
        for t in range(4):
            chosen = tokens[:, [0, t]]
            pair = model.score(chosen, text, ALL[:, :2]).progress
            assert torch.allclose(pair[:, 1], whole[:, t], atol=1e-6)

    def test_it_cannot_read_the_clock(self, model, tokens):
        """A video that stands still makes no progress, however long."""
        frozen = tokens[:, :1].expand(-1, 4, -1, -1)
        progress = model.score(frozen, model.encode_text(SENTENCES), ALL).progress
        assert torch.allclose(progress, progress[:, :1].expand_as(progress), atol=1e-6)

    def test_prefer_is_bradley_terry(self, model, tokens):
        text = model.encode_text(SENTENCES)
        f = model.score(tokens, text, ALL).preference
        g = model.score(tokens.flip(0), text, ALL).preference
        assert torch.allclose(
            GuardedModel(model).prefer(tokens, tokens.flip(0), text, where="test"), torch.sigmoid(f - g)
        )

    def test_a_reversed_clip_is_seen_from_its_other_end(self, model, tokens):
        """So it has another progress and another relevance; the order in the middle alone changes no preference."""
        text = model.encode_text(SENTENCES)
        there, back = model.score(tokens, text, ALL), model.score(tokens.flip(1), text, ALL)
        stages = [model.stages(model.state(clips), text) for clips in (tokens, tokens.flip(1))]
        assert (stages[0] - stages[1].flip(1)).abs().amax((1, 2)).min() > 0.01
        assert (there.relevance - back.relevance).abs().min() > 0.01
        same_ends = model.score(tokens[:, [0, 2, 1, 3]], text, ALL)
        assert torch.allclose(same_ends.progress, there.progress[:, [0, 2, 1, 3]], atol=1e-6)
        assert torch.allclose(same_ends.preference, there.preference, atol=1e-5)
