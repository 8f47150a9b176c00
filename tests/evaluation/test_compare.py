"""Pairwise heads are judged by what they prefer, goal models by pictures of goals, anchored ones from the start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rollouts import painted_tasks

from vlp_gym.engine.video import VideoScorer
from vlp_gym.errors import InstructionError, QueryError
from vlp_gym.evaluation.compare import UNDECIDED, by_pairwise_head, by_pixels, by_sum
from vlp_gym.evaluation.evaluate import evaluate
from vlp_gym.evaluation.goals import expert_goals
from vlp_gym.models.protocol import Scores
from vlp_gym.models.vip import VIPModel

TASKS = ("push-v3", "reach-v3")
DATA = painted_tasks(TASKS, each=2)
LAST_BLUE = 50.0  # a tier is 50 brighter in blue than the one before, the expert darkest


class Both:
    """Its scores prefer the worse tier, its pairwise head the better one, whichever comes first a little more."""

    window, history, frame_size = 4, "prefix", (16, 16)

    def __init__(self):
        self.pairs = 0

    def encode_text(self, instructions):
        return torch.ones(len(instructions), 1, 1)

    def encode_frames(self, frames):
        return frames[:, 0, 0, None].float()

    def score(self, frames, text, mask):
        blue = frames[:, :, 0, 2]
        return Scores(blue[:, -1] / LAST_BLUE, frames[:, :, 0, 1] / 250)

    def prefer(self, a, b, text):
        self.pairs += len(text)
        return torch.sigmoid((b[:, -1, 0, 2] - a[:, -1, 0, 2]) / LAST_BLUE + 0.5)


def run(model, **options):
    settings = {"tasks": TASKS, "split_name": "painted", "pairs_per_task": 20, "progress_bar": False, **options}
    return evaluate(model, DATA, **settings)


def test_a_pairwise_head_is_judged_by_its_preferences():
    model = Both()
    result = run(model)
    assert result["settings"]["compared_by"] == "pairwise head, both orders"
    assert result["mean"]["itp_tier"] == 1.0
    assert result["mean"]["itp_tier_held_out"] == 1.0
    assert result["mean"]["voc_expert_spearman"] == pytest.approx(1.0)  # its progress is used as any other's
    # Each pair twice, no pair of a group beyond `pairs_per_task`: 9 groups of at most 20 pairs a task.
    assert 0 < model.pairs <= 2 * 2 * 9 * 20


def test_by_its_scores_the_same_model_would_fail():
    class Alone:
        def __init__(self):
            model = Both()
            self.window, self.history, self.frame_size = model.window, model.history, model.frame_size
            self.encode_text, self.encode_frames, self.score = model.encode_text, model.encode_frames, model.score

    result = run(Alone())
    assert result["settings"]["compared_by"] == "preference"
    assert result["mean"]["itp_tier"] == 0.0
    assert result["mean"]["itp_scripted_better_first"] is result["mean"]["itp_scripted_better_second"] is None


def test_logits_are_those_of_the_mean_of_both_orders():
    scorer = VideoScorer(Both(), ["push"])
    whole = [(i, "push", 0, len(DATA[i].frames)) for i in (0, 4)]  # an expert's video, a random one's
    forth, back = (whole[0], whole[1]), (whole[1], whole[0])
    same = (whole[0], whole[0])
    answers = by_pairwise_head(scorer, DATA, [back, same], progress_bar=False)  # in neither order more than once

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    chance = (sigmoid(2 + 0.5) + 1 - sigmoid(-2 + 0.5)) / 2
    assert answers.both[forth] == pytest.approx(np.log(chance / (1 - chance)), abs=1e-5)
    assert answers.both[back] == pytest.approx(-answers.both[forth], abs=1e-5)
    assert answers.both[same] == pytest.approx(0.0, abs=1e-6)
    assert (answers.first[forth], answers.second[forth]) == (pytest.approx(2.5, abs=1e-5), pytest.approx(1.5, abs=1e-5))
    assert (answers.first[back], answers.second[back]) == (pytest.approx(-1.5, abs=1e-5), pytest.approx(-2.5, abs=1e-5))


def test_a_head_that_likes_what_comes_first():
    """Its mean of both orders is right throughout, and one order alone throughout wrong."""

    class First(Both):
        def prefer(self, a, b, text):
            return super().prefer(a, b, text) * 0.1 + 0.9

    mean = run(First())["mean"]
    assert (mean["itp_tier"], mean["itp_scripted_better_first"], mean["itp_scripted_better_second"]) == (1, 1, 0)


def test_sums_are_over_the_steps_of_a_segment():
    """Values 0, 5, 10, ... at steps 0, 5, 10, ...: the value at each step is its number; after the last it is held."""
    values = {0: DATA[0].step.astype(float), 1: np.zeros(len(DATA[1].step))}
    difference = by_sum(DATA, values, 20)
    nothing, last = (1, "push", 0, 5), int(DATA[0].step[-1])
    assert difference(((0, "push", 2, 7), nothing)) == pytest.approx(sum(range(11, 31)))
    end = (0, "push", len(DATA[0].step) - 3, len(DATA[0].step))
    assert difference((end, nothing)) == pytest.approx(sum(range(last - 9, last + 1)) + 10 * last)
    assert difference((nothing, end)) == -difference((end, nothing))


def test_a_sure_answer_stays_finite():
    class Sure(Both):
        def prefer(self, a, b, text):
            return torch.ones(len(text)) * (a[:, -1, 0, 2] < b[:, -1, 0, 2])

    scorer = VideoScorer(Sure(), ["push"])
    pair = ((0, "push", 0, 5), (4, "push", 0, 5))
    most = np.log((1 - UNDECIDED) / UNDECIDED)
    assert by_pairwise_head(scorer, DATA, [pair], progress_bar=False).both[pair] == pytest.approx(most)


def test_nan_of_a_pairwise_head_is_an_error():
    class Nan(Both):
        def prefer(self, a, b, text):
            return torch.full((len(text),), torch.nan)

    with pytest.raises(QueryError, match=r"^the reward model gave the P\(a > b\) nan, which no reward may have"):
        run(Nan())


def test_the_picture_difference_is_that_of_first_and_last_frame():
    a, b = (0, "push", 0, 16), (0, "push", 2, 5)
    green = 8.0 / 3  # a step changes one of three colours by 8
    assert by_pixels(DATA, [a, b])((a, b)) == pytest.approx(15 * green - 2 * green)


def test_goal_models_see_how_an_expert_ends():
    torch.manual_seed(0)
    model = VIPModel(resnet=18, dim=8).eval()
    goals = expert_goals(DATA)
    first = next(t for t in DATA if t.task == "push-v3" and t.tier == "expert")
    assert all(np.array_equal(goals[sentence], first.frames[-1]) for sentence in (*first.sentences, *first.held_out))
    result = run(model, pairs_per_task=5)
    scorer = VideoScorer(model, [first.canonical], goals=goals)
    scorer.open(first.frames, "expert")
    values = scorer.values(first.canonical)
    assert values[-1] == pytest.approx(0.0, abs=1e-3)  # it stands at its own goal
    assert all(np.isfinite(value) for value in result["mean"].values() if value is not None)
    failures = [t for t in DATA if t.tier != "expert"]
    with pytest.raises(InstructionError, match=r"^VIP knows no language: expected the path of a goal picture"):
        evaluate(model, failures, tasks=TASKS, split_name="painted", progress_bar=False)


def test_a_group_without_pairs_gives_no_figure():
    assert run(Both(), tasks=TASKS[:1])["mean"]["ivp"] is None
