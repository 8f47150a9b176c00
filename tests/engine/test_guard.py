"""The one guarded way to ask a model: its wrong answers, its memory, and its optional parts."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from vlp_gym.engine import QueryEngine
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.errors import QueryError
from vlp_gym.models.protocol import Scores
from vlp_gym.testing import PaintedModel

WHERE = "video 3"
TOKENS, TEXT, MASK = torch.rand(3, 4, 1, 1), torch.ones(3, 1, 1), torch.ones(3, 4, dtype=torch.bool)


class Answering(PaintedModel):
    """Gives the scores it was made with."""

    def __init__(self, **heads):
        super().__init__()
        self.heads = {"preference": torch.zeros(3), "progress": torch.zeros(3, 4), "relevance": torch.zeros(3), **heads}

    def score(self, frames, text, mask):
        return Scores(**self.heads)


class Pairwise(PaintedModel):
    """Prefers what is painted brighter; its memory takes `limit` rows."""

    limit = 100

    def __init__(self):
        super().__init__()
        self.rows = []

    def prefer(self, a, b, text):
        self.rows.append(len(text))
        if len(text) > self.limit:
            raise torch.cuda.OutOfMemoryError("too much")
        return torch.sigmoid(a[:, -1, 0, 0] - b[:, -1, 0, 0])


@pytest.mark.parametrize("head", ["preference", "progress", "relevance"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_head_may_be_nan_or_inf(head, value):  # fault 20
    shape = (3, 4) if head == "progress" else (3,)
    wrong = torch.zeros(shape)
    wrong[1] = value
    model = GuardedModel(Answering(**{head: wrong}))
    message = f"the reward model gave the {head} {value}, which no reward may have ({WHERE})"
    with pytest.raises(QueryError, match=f"^{re.escape(message)}$"):
        model.score(TOKENS, TEXT, MASK, where=WHERE)
    assert getattr(model.score(TOKENS, TEXT, MASK, where=WHERE, finite=False), head) is wrong


def test_padding_may_have_any_progress():
    mask = MASK.clone()
    mask[0, 0] = False
    progress = torch.zeros(3, 4)
    progress[0, 0] = torch.nan
    assert GuardedModel(Answering(progress=progress)).score(TOKENS, TEXT, mask, where=WHERE).progress is progress


def test_a_pairwise_head_is_guarded_as_a_score_is():
    model = Pairwise()
    model.limit = 2
    guard = GuardedModel(model)
    a, b, text = torch.rand(5, 4, 1, 1), torch.rand(5, 4, 1, 1), torch.ones(5, 1, 1)
    expected = torch.sigmoid(a[:, -1, 0, 0] - b[:, -1, 0, 0])
    torch.testing.assert_close(guard.prefer(a, b, text, where=WHERE), expected)
    assert model.rows == [5, 2, 2, 1]  # halved once, for good  # fault 22
    assert guard.max_batch == 2

    def broken(a, b, text):
        return 1 / 0

    model.prefer = broken
    with pytest.raises(QueryError, match=rf"^the reward model raised ZeroDivisionError: division by zero \({WHERE}\)$"):
        guard.prefer(a, b, text, where=WHERE)
    model.prefer = lambda a, b, text: torch.full((len(text),), torch.nan)
    with pytest.raises(QueryError, match=rf"^the reward model gave the P\(a > b\) nan, .* \({WHERE}\)$"):
        guard.prefer(a, b, text, where=WHERE)
    model.prefer = lambda a, b, text: torch.zeros(len(text), 2)
    with pytest.raises(
        TypeError, match=r"^expected float \[2\] on cpu without gradient from prefer, got torch.float32 "
    ):
        guard.prefer(a, b, text, where=WHERE)


def test_without_a_pairwise_head_preferences_are_compared():
    model = PaintedModel()
    f, g = (model.score(side, TEXT, MASK).preference for side in (TOKENS, TOKENS.flip(0)))
    chance = GuardedModel(model).prefer(TOKENS, TOKENS.flip(0), TEXT, where=WHERE)
    torch.testing.assert_close(chance, torch.sigmoid(f - g))


class Dropping(nn.Module, PaintedModel):
    """Random in train mode."""

    def __init__(self):
        nn.Module.__init__(self)
        PaintedModel.__init__(self)
        self.drop = nn.Dropout(0.9)

    def encode_frames(self, frames):
        return self.drop(PaintedModel.encode_frames(self, frames))


def test_a_part_in_train_mode_is_put_back():  # fault 28
    model = Dropping()
    guard = GuardedModel(model)
    assert not model.drop.training
    frames = torch.full((4, 8, 8, 3), 200, dtype=torch.uint8)
    before = guard.encode_frames(frames, where=WHERE)
    model.drop.train()
    torch.testing.assert_close(guard.encode_frames(frames, where=WHERE), before)
    assert not model.drop.training


def test_models_by_name_go_where_there_is_most(monkeypatch):
    asked = []

    def load(name, *, device):
        asked.append((name, device))
        return PaintedModel()

    monkeypatch.setattr("vlp_gym.models.registry.load_reward_model", load)
    monkeypatch.setattr("vlp_gym.models.registry.best_device", lambda: "cuda:7")
    QueryEngine("vlp-compact")
    GuardedModel("vlp-compact", device="cpu")
    assert asked == [("vlp-compact", "cuda:7"), ("vlp-compact", "cpu")]
    moved = Dropping()
    moved.weight = nn.Parameter(torch.zeros(1))
    assert GuardedModel(moved).device == torch.device("cpu")
    assert GuardedModel(moved, device="meta").device == torch.device("meta")
    message = "expected the model as a name, a path, a RewardModel or a QueryEngine, got int"
    with pytest.raises(TypeError, match=f"^{message}$"):
        QueryEngine(3)
