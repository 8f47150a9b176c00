"""Scores of finished videos: goals as pictures, pairs in both orders, anchors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from painted import frame

from vlp_gym.engine.video import VideoScorer
from vlp_gym.errors import InstructionError
from vlp_gym.models.protocol import GoalModel, Scores
from vlp_gym.models.vip import VIPModel
from vlp_gym.testing import PaintedModel, painted_value

SENTENCE = "press the button"
VIDEO = np.stack([frame(0, 0, step) for step in range(12)])


def painted(*steps):
    return [painted_value(0, 0, step) for step in steps]


class OneSided(PaintedModel):
    """A pairwise head that likes what comes first."""

    def prefer(self, a, b, text):
        return torch.sigmoid(1e4 * (a[:, -1, 0, 0] - b[:, -1, 0, 0]) + 0.7)


def test_pairs_are_asked_in_both_orders():
    scorer = VideoScorer(OneSided(), [SENTENCE])
    short, late, early = (scorer.clip(VIDEO, *span, "video") for span in ((0, 2), (4, 12), (0, 8)))
    assert [len(clip) for clip in (short, late, early)] == [2, 4, 4]  # only real frames
    chances = scorer.prefer_in_each_order([late, short, early], [early, early, late], [SENTENCE] * 3)

    def expected(a, b):
        gap = 1e4 * (painted_value(0, 0, a) - painted_value(0, 0, b))
        return 1 / (1 + np.exp(-gap - 0.7)), 1 - 1 / (1 + np.exp(gap - 0.7))

    np.testing.assert_allclose(chances, [expected(11, 7), expected(1, 7), expected(7, 11)], atol=1e-6)
    assert chances[0] == pytest.approx(1 - chances[2, ::-1])


class SinceTheStart(PaintedModel):
    anchored = True

    def score(self, frames, text, mask):
        return Scores(frames[:, -1, 0, 0] - frames[:, 0, 0, 0])


def test_a_segment_is_measured_from_the_videos_first_frame():
    scorer = VideoScorer(SinceTheStart(), [SENTENCE])
    scorer.open(VIDEO, "video")
    ((first, last),) = [painted(0, 8)]
    np.testing.assert_allclose(scorer.preferences([(5, 9)], [SENTENCE]), [last - first], atol=1e-9)


def test_a_goal_model_takes_pictures_in_the_place_of_sentences():
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = VIPModel(resnet=18, dim=8).eval()
    assert isinstance(model, GoalModel)
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    scorer = VideoScorer(model, [SENTENCE, "close the door"], goals={SENTENCE: frames[2], "close the door": frames[0]})
    scorer.open(frames, "video")
    with torch.inference_mode():
        tokens = model.encode_frames(torch.from_numpy(frames))[:, 0]
    for sentence, goal in ((SENTENCE, 2), ("close the door", 0)):
        expected = -(tokens - tokens[goal]).norm(dim=1)
        np.testing.assert_allclose(scorer.values(sentence), expected, atol=1e-4)
    message = "VIP knows no language: expected the path of a goal picture (.png, .jpg or .jpeg), got 'press the button'"
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        VideoScorer(model, [SENTENCE])
