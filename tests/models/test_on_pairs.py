"""What holds of every small model that sees each frame beside the first one: the protocol it keeps, what it can see."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import SIZE, awake, two_clips

from vlp_gym.engine.guard import GuardedModel
from vlp_gym.models.compact import CompactRewardModel
from vlp_gym.models.protocol import RewardModel
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.staged import StagedRewardModel
from vlp_gym.testing import check_reward_model

TINY = {**SIZE, "buckets": 256}
SENTENCES = ["press the button", "open the door"]
ALL = torch.ones(2, 4, dtype=torch.bool)


@pytest.fixture(scope="module", params=[CompactRewardModel, StagedRewardModel])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return awake(kind)


@pytest.fixture(scope="module")
def tokens(model):
    return two_clips(model)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


class TestProtocol:
    def test_it_is_a_reward_model(self, model):
        assert isinstance(model, RewardModel)
        check_reward_model(model)

    def test_its_defaults_too(self, kind):
        made = kind()
        check_reward_model(made)
        assert sum(p.numel() for p in made.parameters()) * 2 < 6e6  # bytes in float16, of the 20 MB that two may take

    def test_the_config_builds_it_again(self, kind, model):
        again = kind(**model.config)
        again.load_state_dict(model.state_dict(), strict=True)
        assert again.config == model.config
        assert all(model.config[name] == value for name, value in TINY.items())

    def test_save_and_load(self, kind, model, tokens, tmp_path):
        model.save_pretrained(tmp_path)
        for loaded in (kind.from_pretrained(tmp_path), load_reward_model(tmp_path)):
            scores = [m.score(tokens, m.encode_text(SENTENCES), ALL).preference for m in (model, loaded)]
            assert torch.equal(*scores)

    @pytest.mark.parametrize("size", [30, 100])
    def test_frames_must_fit_the_grid(self, kind, size):
        with pytest.raises(ValueError, match=rf"^frame_size: expected a multiple of \d+ pixels, got {size}$"):
            kind(**{**TINY, "image_size": size})


class TestWhatItSees:
    def test_an_untrained_sentence_has_no_direction(self, kind, tokens):
        fresh = kind(**TINY).eval()
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
