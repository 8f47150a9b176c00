"""The small text encoder: hashed words and pairs of neighbours."""

from __future__ import annotations

import zlib

import pytest
import torch

from vlp_gym.errors import InstructionError
from vlp_gym.models.backbones.hashed_words import HashedWords


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture
def words():
    """Trained, so to speak, on one sentence only."""
    torch.manual_seed(0)
    made = HashedWords(buckets=4096, dim=12).eval()
    for key in ("press", "the", "button", "press the", "the button"):
        made.table.weight[zlib.crc32(key.encode()) % 4096] = torch.randn(12)
    return made


def test_untrained_words_add_nothing(words):
    """Next to nothing: neither a word nor a pair that training never saw."""
    known = words(["press the button"])
    assert torch.allclose(words(["press the button zyxwv"]), known, atol=0.01)
    assert torch.allclose(words(["zyxwv vwxyz press the button"]), known, atol=0.01)
    assert not torch.allclose(words(["press the zyxwv button"]), known, atol=0.01)  # it parts a pair


def test_the_sum_is_as_stated(words):
    def row(key):
        return words.table.weight[zlib.crc32(key.encode()) % 4096]

    total = row("press") + row("the") + row("button") + 0.5 * row("press the") + 0.5 * row("the button")
    expected = words.project(total)
    scale = 12**0.5 / expected.norm()  # entries of size 1 or so
    assert torch.allclose(words(["press the button"])[0, 0], scale * expected, atol=1e-5)


def test_order_counts(words):
    assert not torch.allclose(words(["button the press"]), words(["press the button"]))


def test_case_and_punctuation_do_not(words):
    assert torch.equal(words(["Press the BUTTON!"]), words(["press the button"]))


def test_nfc_is_nfd(words):
    torch.nn.init.normal_(words.table.weight[zlib.crc32("café".encode()) % 4096])
    assert torch.equal(words(["press café"]), words(["press cafe\u0301"]))


@pytest.mark.parametrize("sentence", ["🤖 🤖", "اضغط على الزر", "!?"])
def test_any_script_gives_a_finite_vector(words, sentence):
    assert words([sentence]).isfinite().all()


def test_one_answer_a_sentence(words):
    many = words(["press the button", "zyxwv", "press"])
    assert many.shape == (3, 1, 12)
    for row, sentence in zip(many, ("press the button", "zyxwv", "press"), strict=True):
        assert torch.equal(row, words([sentence])[0])


def test_training_hides_words_but_never_all(words):
    hiding = HashedWords(buckets=4096, dim=12, word_dropout=0.9).train()
    hiding.load_state_dict(words.state_dict())
    torch.manual_seed(0)
    seen = hiding(["press the button"] * 40)[:, 0]
    assert len(torch.unique(seen, dim=0)) > 3
    kept = [words([part])[0, 0] for part in ("press", "the", "button", "press the", "the button", "press button")]
    alike = seen @ torch.stack([*kept, words(["press the button"])[0, 0]]).T / 12  # cosines
    assert (alike.max(1).values > 0.99).all()  # what is left is a part of the sentence, never nothing


def test_too_long(words):
    sentence = " ".join(["press"] * 65)
    with pytest.raises(InstructionError, match="65"):
        words([sentence])
    cutting = HashedWords(buckets=4096, dim=12, truncate=True).eval()
    cutting.load_state_dict(words.state_dict())
    assert torch.equal(cutting([sentence]), words([" ".join(["press"] * 64)]))


@pytest.mark.parametrize("sentence", ["", "  ", "a\0b", "\ud800"])
def test_no_text(words, sentence):
    with pytest.raises(InstructionError):
        words([sentence])
