"""The staged model: what it can see, and what it cannot."""

from __future__ import annotations

import pytest
import torch
from tiny import SIZE, awake, two_clips

from vlp_gym.models.staged import StagedRewardModel

TINY = {**SIZE, "buckets": 256}
SENTENCES = ["press the button", "open the door"]


@pytest.fixture(scope="module")
def model():
    return awake(StagedRewardModel)


@pytest.fixture(scope="module")
def tokens(model):
    return two_clips(model)


ALL = torch.ones(2, 4, dtype=torch.bool)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


class TestWhatItSees:
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
