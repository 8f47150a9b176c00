"""The compact model: what it can see, and what it cannot."""

from __future__ import annotations

import zlib

import pytest
import torch
from tiny import SIZE, awake, two_clips

from vlp_gym.errors import InstructionError
from vlp_gym.models.backbones.hashed_words import HashedWords
from vlp_gym.models.compact import CompactRewardModel

TINY = {**SIZE, "buckets": 256}
SENTENCES = ["press the button", "open the door"]


@pytest.fixture(scope="module")
def model():
    return awake(CompactRewardModel)


@pytest.fixture(scope="module")
def tokens(model):
    return two_clips(model)


ALL = torch.ones(2, 4, dtype=torch.bool)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


class TestWhatItSees:
    def test_padding_has_no_influence(self, model, tokens):
        text = model.encode_text(SENTENCES)
        plain = model.score(tokens, text, ALL)
        for count in (1, 3):
            junk = torch.randn(2, count, *tokens.shape[2:])
            for padding in (junk, tokens[:, :1].expand_as(junk)):
                mask = torch.cat([torch.zeros(2, count, dtype=torch.bool), ALL], 1)
                padded = model.score(torch.cat([padding, tokens], 1), text, mask)
                assert torch.allclose(padded.preference, plain.preference, atol=1e-5)
                assert torch.allclose(padded.relevance, plain.relevance, atol=1e-5)
                assert torch.allclose(padded.progress[:, count:], plain.progress, atol=1e-6)

    def test_preference_is_relevance_and_quality(self, model, tokens):
        clips, text = model.features(tokens, ALL), model.encode_text(SENTENCES)
        progress = model.progress_logits(clips, text)
        expected = clips.quality + progress.mean(1)
        rest = model.score(tokens, text, ALL).preference - model.scene_relevance(clips, text).diagonal()
        rest = rest - model.config["motion_weight"] * model.motion_relevance(clips, text).diagonal()
        assert torch.allclose(rest, model.config["quality_weight"] * expected.sigmoid(), atol=1e-5)
        assert clips.quality.abs().max() > 1e-3

    def test_a_sentence_changes_the_progress_by_its_direction_alone(self, model, tokens):
        clips, text = model.features(tokens, ALL), model.encode_text(SENTENCES)
        told = torch.tanh(model.text_direction[0](text[:, 0, model.backbone.text_dim :]))
        expected = clips.progress + torch.einsum("btd,bd->bt", clips.direction, told)
        assert torch.allclose(model.progress_logits(clips, text), expected, atol=1e-5)
        assert (expected - clips.progress).abs().max() > 1e-3

    def test_relevance_is_its_formula(self, model, tokens):
        """A temperature times a cosine plus a bias, of scene and motion; every clip against every sentence."""
        clips, text = model.features(tokens, ALL), model.encode_text([*SENTENCES, "close the window"])
        seen = {"scene": model.scene_relevance(clips, text), "motion": model.motion_relevance(clips, text)}
        for part, (name, logits) in enumerate(seen.items()):
            assert logits.shape == (2, 3)
            for i in range(2):
                for j in range(3):
                    said = getattr(model, f"text_{name}")(text[j, :, : model.backbone.text_dim])[0]
                    cosine = torch.cosine_similarity(getattr(clips, name)[i], said, 0)
                    expected = model.temperature[part] * cosine + model.relevance_bias[part]
                    assert logits[i, j].item() == pytest.approx(expected.item(), abs=1e-4)

    def test_relevance_shift_is_added(self, model, tokens):
        shifted = CompactRewardModel(**{**TINY, "relevance_shift": 1.5}).eval()
        shifted.load_state_dict(model.state_dict())
        text = model.encode_text(SENTENCES)
        other, plain = shifted.score(tokens, text, ALL), model.score(tokens, text, ALL)
        assert torch.allclose(other.relevance - plain.relevance, torch.full((2,), 1.5), atol=1e-5)
        assert torch.equal(other.preference, plain.preference)

    def test_the_scene_is_the_first_frame_alone(self, model, tokens):
        other = torch.cat([tokens[:, :1], torch.randn_like(tokens[:, 1:])], 1)
        a, b = model.features(tokens, ALL), model.features(other, ALL)
        assert torch.equal(a.scene, b.scene)
        assert not torch.allclose(a.motion, b.motion)

    def test_a_reversed_clip_moves_otherwise(self, model, tokens):
        there, back = model.features(tokens, ALL), model.features(tokens.flip(1), ALL)
        assert (there.motion - back.motion).norm(dim=-1).min() > 0.01
        same_ends = tokens[:, [0, 2, 1, 3]]  # only the order in the middle
        assert (there.motion - model.features(same_ends, ALL).motion).abs().max() > 1e-4


@pytest.fixture
def words():
    """Trained, so to speak, on one sentence only."""
    torch.manual_seed(0)
    made = HashedWords(buckets=4096, dim=12).eval()
    for key in ("press", "the", "button", "press the", "the button"):
        made.table.weight[zlib.crc32(key.encode()) % 4096] = torch.randn(12)
    return made


class TestWords:
    """The text encoder: hashed words and pairs of neighbours."""

    def test_untrained_words_add_nothing(self, words):
        """Next to nothing: neither a word nor a pair that training never saw."""
        known = words(["press the button"])
        assert torch.allclose(words(["press the button zyxwv"]), known, atol=0.01)
        assert torch.allclose(words(["zyxwv vwxyz press the button"]), known, atol=0.01)
        assert not torch.allclose(words(["press the zyxwv button"]), known, atol=0.01)  # it parts a pair

    def test_the_sum_is_as_stated(self, words):
        def row(key):
            return words.table.weight[zlib.crc32(key.encode()) % 4096]

        total = row("press") + row("the") + row("button") + 0.5 * row("press the") + 0.5 * row("the button")
        expected = words.project(total)
        scale = 12**0.5 / expected.norm()  # entries of size 1 or so
        assert torch.allclose(words(["press the button"])[0, 0], scale * expected, atol=1e-5)

    def test_order_counts(self, words):
        assert not torch.allclose(words(["button the press"]), words(["press the button"]))

    def test_case_and_punctuation_do_not(self, words):
        assert torch.equal(words(["Press the BUTTON!"]), words(["press the button"]))

    def test_nfc_is_nfd(self, words):
        torch.nn.init.normal_(words.table.weight[zlib.crc32("café".encode()) % 4096])
        assert torch.equal(words(["press café"]), words(["press cafe\u0301"]))

    @pytest.mark.parametrize("sentence", ["🤖 🤖", "اضغط على الزر", "!?"])
    def test_any_script_gives_a_finite_vector(self, words, sentence):
        assert words([sentence]).isfinite().all()

    def test_one_answer_a_sentence(self, words):
        many = words(["press the button", "zyxwv", "press"])
        assert many.shape == (3, 1, 12)
        for row, sentence in zip(many, ("press the button", "zyxwv", "press"), strict=True):
            assert torch.equal(row, words([sentence])[0])

    def test_training_hides_words_but_never_all(self, words):
        hiding = HashedWords(buckets=4096, dim=12, word_dropout=0.9).train()
        hiding.load_state_dict(words.state_dict())
        torch.manual_seed(0)
        seen = hiding(["press the button"] * 40)[:, 0]
        assert len(torch.unique(seen, dim=0)) > 3
        kept = [words([part])[0, 0] for part in ("press", "the", "button", "press the", "the button", "press button")]
        alike = seen @ torch.stack([*kept, words(["press the button"])[0, 0]]).T / 12  # cosines
        assert (alike.max(1).values > 0.99).all()  # what is left is a part of the sentence, never nothing

    def test_too_long(self, words):
        sentence = " ".join(["press"] * 65)
        with pytest.raises(InstructionError, match="65"):
            words([sentence])
        cutting = HashedWords(buckets=4096, dim=12, truncate=True).eval()
        cutting.load_state_dict(words.state_dict())
        assert torch.equal(cutting([sentence]), words([" ".join(["press"] * 64)]))

    @pytest.mark.parametrize("sentence", ["", "  ", "a\0b", "\ud800"])
    def test_no_text(self, words, sentence):
        with pytest.raises(InstructionError):
            words([sentence])
