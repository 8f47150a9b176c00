"""The evaluation on painted videos: every pixel says which task it is and how far, so that each figure is known."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from vlp_gym.data.trajectory import NEAR_MISS, VARIANT_KINDS, Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.errors import DatasetError, QueryError
from vlp_gym.evaluation import plan as protocol
from vlp_gym.evaluation.evaluate import evaluate
from vlp_gym.evaluation.report import FIGURES
from vlp_gym.metaworld.instructions import NOT_OPPOSITE, SIBLINGS, instructions_for
from vlp_gym.metaworld.sentences import with_sentences
from vlp_gym.models.protocol import Scores

TASKS = ("door-close-v3", "drawer-close-v3")
ALL = (*TASKS, SIBLINGS[TASKS[0]])
STRIDE = 5
BY_KIND = ("itp", "itp_scripted", "ivp", "ilp_loss", "average_loss")


def trajectory(task, tier, seed, steps):
    """Red is the task, green is progress: up to 1 for an expert, 0.5 for medium; a random one wanders below 0.1."""
    rng = np.random.default_rng([ALL.index(task), len(tier), seed])
    if tier == "random":
        progress = rng.uniform(0, 0.1, steps + 1)
    else:
        progress = (
            np.minimum(np.arange(steps + 1) / (steps - 10), 1) * {"expert": 1.0, "medium": 0.5, "near_miss": 0.3}[tier]
        )
    step = np.arange(0, steps + 1, STRIDE)
    frames = np.zeros((len(step), 6, 8, 3), np.uint8)
    frames[..., 0] = ALL.index(task)
    frames[..., 1] = np.round(progress[step] * 250)[:, None, None]
    reward = (10 * progress).astype(np.float32)
    shown = np.where(step == 0, 0, reward[step]).astype(np.float32)
    success = (progress >= 1)[step]
    positions = np.zeros((len(step), 2, 3), np.float32)  # the hand is there at progress 0.3, and the object then moves
    positions[:, 0, 0] = progress[step]
    positions[:, 1, 0] = np.maximum(progress[step], 0.3)
    numbers = frames, step, shown, success, reward[1:], positions
    return with_sentences(Trajectory(task, tier, seed, "corner2", STRIDE, False, *numbers))


def rollouts():
    lengths = {"expert": 60, "medium": 80, "random": 40, "near_miss": 70}
    made = [trajectory(t, tier, s, n + 5 * s) for t in TASKS for tier, n in lengths.items() for s in range(3)]
    return made + [trajectory(ALL[2], "expert", s, 60) for s in range(2)]


class Oracle:
    """Reads the paint: progress is green, relevance +-4 by red and sentence, f = relevance + 0.1 mean progress."""

    window, history, frame_size = 4, "prefix", (6, 8)

    def __init__(self, bias=0.0, blind=False, heads=True):
        self.task_of = {s: k for k, task in enumerate(ALL) for s in instructions_for(task)}
        self.bias, self.blind, self.heads = bias, blind, heads
        self.frames_encoded = 0

    def encode_text(self, instructions):
        return torch.tensor([[[float(self.task_of.get(s, -1)), 0.0]] for s in instructions])

    def encode_frames(self, frames):
        self.frames_encoded += len(frames)
        return frames[:, 0, 0, None, :2].float()

    def score(self, frames, text, mask):
        assert frames.shape[:2] == mask.shape
        clock = mask.sum(-1, keepdim=True) * self.bias
        progress = frames[..., 0, 1] / 250 + clock
        relevance = torch.where(frames[:, -1, 0, 0] == text[:, 0, 0], 4.0, -4.0) * (not self.blind)
        preference = relevance + 0.1 * (progress * mask).sum(-1) / mask.sum(-1)
        return Scores(preference, progress, relevance) if self.heads else Scores(preference)


class Knowing(Oracle):
    """Knows the first task alone; brightness is how far a picture is."""

    def novelty(self, frames):
        return 1.0 + 3.0 * frames[:, 0, 0]


def run(model, data=None, **kwargs):
    settings = {"tasks": TASKS, "split_name": "painted", "pairs_per_task": 40, "progress_bar": False, **kwargs}
    return evaluate(model, rollouts() if data is None else data, **settings)


@pytest.fixture(scope="module")
def result():
    return run(Oracle())


class TestOracle:
    def test_labels(self, result):
        for name in ("itp_tier", "itp_tier_held_out", "itp_near_miss", "ivp", "ivp_held_out", "ivp_same_tier"):
            assert result["mean"][name] == 1.0, name
        assert result["mean"]["itp_scripted"] > 0.9  # 4 frames of 11 stand for the sum over 50 steps
        assert result["mean"]["itp_scripted_sum"] > 0.95  # a reward between two frames is interpolated
        assert result["per_task"][TASKS[0]]["ivp_sibling"] == 1.0
        assert result["per_task"][TASKS[1]]["ivp_sibling"] is None  # no rollouts of opening a drawer were given
        assert math.log(2) <= result["mean"]["ilp_loss"] < math.log(2) + 0.01

    def test_unknown_words_leave_the_order_of_tiers(self, result):
        assert result["mean"]["itp_wrong_colour"] == 1.0

    def test_progress(self, result):
        assert result["mean"]["voc_expert_spearman"] > 0.98  # it stands still after success
        assert abs(result["mean"]["voc_random_spearman"]) < 0.5
        gap = result["mean"]["voc_expert_spearman"] - result["mean"]["voc_random_spearman"]
        assert result["mean"]["voc_gap"] == pytest.approx(gap)
        assert result["mean"]["voc_expert_pixel"] == pytest.approx(result["mean"]["voc_expert_spearman"])
        assert result["mean"]["reward_consistency"] > 0.97  # paint rounds, the reward does not
        assert result["mean"]["fixed_time"] > 0.97
        assert result["mean"]["fixed_time_held"] > 0.97
        assert result["mean"]["success_auc"] == 1.0

    def test_success_against_near_misses_alone(self):
        """As in a folder of somebody's videos: successes and failures, no tiers."""
        data = [t for t in rollouts() if t.tier in ("expert", NEAR_MISS)]
        assert run(Oracle(), data)["mean"]["success_auc"] == 1.0
        experts = [t for t in data if t.tier == "expert"]
        assert run(Oracle(), experts)["mean"]["success_auc"] is None  # nothing failed

    def test_kinds_of_sentences(self, result):
        """The oracle does not know these words: it then compares by progress alone, and no task is nearer."""
        for kind in VARIANT_KINDS:
            assert result["mean"][f"itp_scripted_{kind}"] == result["mean"]["itp_scripted"]
            assert result["mean"][f"ivp_{kind}"] < 0.8 < result["mean"]["ivp"]
            assert result["mean"][f"ilp_loss_{kind}"] == pytest.approx(math.log(2), abs=0.01)
            losses = [result["mean"][name] for name in ("itp_scripted_loss", "ilp_loss", "average_loss")]
            assert losses == pytest.approx([math.log(2), math.log(2), (2 * math.log(2)) / 3], abs=0.02)
            assert result["mean"]["ivp_loss"] < 0.001 < 0.6 < result["mean"][f"average_loss_{kind}"]

    def test_correlations(self, result):
        assert result["mean"]["reward_correlation_pearson"] > 0.99  # the reward is ten times the progress
        assert result["mean"]["reward_correlation_spearman"] > 0.9
        assert result["mean"]["label_correlation"] > 0.75

    def test_progress_of_experts_until_success(self, result):
        """The paint rises in a straight line until success, at all three lengths."""
        assert result["mean"]["progress_error"] < 0.001
        assert result["mean"]["progress_order"] == pytest.approx(1.0)
        assert result["mean"]["itp_success"] == 1.0
        assert run(Oracle(heads=False))["mean"]["progress_error"] is None

        class Centimetres(Oracle):
            value_range = (0.0, 100.0)

        assert run(Centimetres())["mean"]["progress_error"] is None

    def test_near_and_done(self, result):
        assert result["mean"]["near_below_moved"] == 1.0
        assert 0.2 < result["mean"]["near_over_done"] <= 0.3  # the value of the last frame before the object moves

    def test_a_value_that_pays_a_hand_beside_the_object_most(self):
        class Near(Oracle):
            def score(self, frames, text, mask):
                scores = super().score(frames, text, mask)
                return Scores(scores.preference, 1 - (scores.progress - 0.3).abs(), scores.relevance)

        mean = run(Near())["mean"]
        assert mean["near_below_moved"] == 0.0
        assert mean["near_over_done"] > 3

    def test_controls(self, result):
        sigmoid = 1 / (1 + math.exp(-4))
        assert result["mean"]["control_frozen"] == 0.0
        assert result["mean"]["control_frozen_drift"] == 0.0
        assert abs(result["mean"]["control_shuffled_shown"]) < 0.5
        assert result["mean"]["control_shuffled_true"] > 0.98
        assert result["mean"]["control_reversed"] < -0.98
        assert result["mean"]["control_wrong_instruction"] == pytest.approx((1 - sigmoid) / sigmoid)
        assert result["mean"]["control_wrong_sibling"] == pytest.approx((1 - sigmoid) / sigmoid)
        assert result["mean"]["control_after_success"] == pytest.approx(0.0)

    def test_every_figure_is_named_and_json(self, result):
        names = {name for group in FIGURES.values() for name in group}
        assert set(result["mean"]) == set(result["spread"]) == set(result["per_task"][TASKS[0]]) == names
        assert json.loads(json.dumps(result, allow_nan=False)) == result

    def test_same_seed_same_result(self, result):
        assert run(Oracle()) == result

    def test_each_frame_is_encoded_once(self):
        model, data = Oracle(), rollouts()
        run(model, data)
        assert model.frames_encoded == sum(len(t.frames) for t in data)


class TestFaultyModels:
    def test_a_clock_is_caught_by_the_controls(self):
        figures = run(Oracle(bias=10.0), tasks=TASKS[:1])["mean"]
        assert figures["control_frozen"] > 0.5
        assert figures["control_frozen_drift"] > 0.5
        assert figures["control_reversed"] > -0.5
        assert figures["voc_expert_spearman"] > 0.9  # and by the VOC alone it is not

    def test_drift_either_way_counts(self):
        """Up or down over a frozen video: neither is right, and the one does not make up for the other."""
        for bias in (0.02, -0.02):
            assert run(Oracle(bias=bias), tasks=TASKS[:1])["mean"]["control_frozen_drift"] > 0

    def test_a_blind_model_has_no_ivp(self):
        figures = run(Oracle(blind=True))["mean"]
        assert figures["ivp_random_over_expert"] in (0.0, None)
        assert figures["control_wrong_instruction"] == pytest.approx(1.0)

    def test_without_progress_the_preference_is_the_value(self):
        figures = run(Oracle(heads=False))["mean"]
        assert figures["voc_expert_spearman"] > 0.98
        assert figures["control_wrong_instruction"] is None

    def test_nan_names_the_trajectory(self):
        model = Oracle(bias=math.nan)
        message = (
            "the reward model gave the preference nan, which no reward may have (task door-close-v3, expert, seed 0)"
        )
        with pytest.raises(QueryError, match=f"^{re.escape(message)}$"):
            run(model)


class TestArguments:
    def test_task_without_trajectories(self):
        with pytest.raises(ValueError, match=r"^no trajectory of task 'push-v3' among the 26 that were given$"):
            run(Oracle(), tasks=["push-v3"])

    def test_no_task(self):
        with pytest.raises(ValueError, match=r"^tasks: expected at least one, got none$"):
            run(Oracle(), tasks=[])

    def test_one_task_has_no_strangers(self):
        figures = run(Oracle(), tasks=TASKS[:1])["mean"]
        assert figures["ivp"] is figures["ilp_loss"] is figures["control_wrong_instruction"] is None
        assert figures["itp_tier"] == 1.0

    def test_episodes_of_one_frame(self):
        data = [trajectory(TASKS[0], tier, 0, n) for tier, n in (("expert", 60), ("random", 4), ("medium", 80))]
        assert len(data[1].frames) == 1
        figures = run(Oracle(), data, tasks=TASKS[:1])["mean"]
        assert figures["voc_random_spearman"] is None
        assert figures["itp_tier"] == 1.0


class TestProtocol:
    def test_segment_sums_every_step(self):
        video = trajectory(TASKS[0], "expert", 0, 90)
        for seed in range(20):
            start, stop, total = protocol._segment(video, np.random.default_rng(seed), 50)
            first, last = video.step[start], video.step[stop - 1]
            assert last - first == 50
            assert total == pytest.approx(sum(float(video.episode_reward[s - 1]) for s in range(first + 1, last + 1)))

    def test_short_episode_holds_its_last_reward(self):
        video = trajectory(TASKS[0], "expert", 0, 30)
        start, stop, total = protocol._segment(video, np.random.default_rng(0), 50)
        assert (start, stop) == (0, len(video.frames))
        assert total == pytest.approx(float(video.episode_reward.sum()) + 20 * float(video.episode_reward[-1]))

    def test_pairs_come_from_two_sets_and_are_ordered(self):
        data = rollouts()
        plan = protocol.plan_task(TASKS[0], TASKS, data, np.random.default_rng(0), 30, 50)
        assert len(plan.scripted) == len(plan.ivp) == len(plan.ivp_held_out) == len(plan.ilp) == 30
        for a, b in plan.ivp:
            assert data[a[0]].task == TASKS[0]
            assert data[b[0]].task == TASKS[1]
        for a, b in plan.ilp:
            assert data[a[0]].task == data[b[0]].task == TASKS[0]
            assert a[1] == b[1] == instructions_for(TASKS[1])[0]
        assert not {data[key[0]].tier for pair in plan.scripted + plan.ivp for key in pair} & {"near_miss"}

    def test_k_means_may_look_at_states_in_place_of_rewards(self):
        """States that tell even seeds from odd ones make two sets of every tier; rewards tell the tiers apart."""
        data = [
            replace(
                t, observation=np.full((len(t.episode_reward) + 1, 3), t.seed % 2, np.float32),
                action=np.zeros((len(t.episode_reward), 2), np.float32),
            )
            for t in rollouts()
        ]  # fmt: skip
        seeds, tiers = {}, {}
        for by in ("states", "rewards"):
            plan = protocol.plan_task(TASKS[0], TASKS, data, np.random.default_rng(0), 30, 50, by)
            pairs = [[data[key[0]] for key in pair] for pair in plan.scripted]
            seeds[by] = {frozenset(t.seed % 2 for t in pair) for pair in pairs}
            tiers[by] = {t.tier for pair in pairs for t in pair}
            sets = [{pair[first].seed % 2 for pair, better in zip(pairs, plan.first_set_better, strict=True)
                     if better is (first == 0)} for first in (0, 1)]  # fmt: skip
            assert by == "rewards" or len(set.union(*sets)) == 1  # the first set's seeds, wherever it stands
        assert seeds["states"] == {frozenset({0, 1})} != seeds["rewards"]
        assert tiers["states"] == {"expert", "medium", "random"}
        again = run(Oracle(), data, pairs_by="states")
        assert again["settings"]["pairs_by"] == "states"
        assert again["mean"]["itp_scripted"] > 0.9

    def test_states_that_were_not_recorded(self):
        message = (
            "task door-close-v3, expert, seed 0: expected states and actions, which k-means is to see, found none; "
            "collect the data again, or take --pairs-by rewards"
        )
        with pytest.raises(DatasetError, match=f"^{re.escape(message)}$"):
            run(Oracle(), pairs_by="states")

    def test_sentences_take_turns(self):
        pairs = [((k, "seen", 0, 3), (9, "seen", 1, 4)) for k in range(3)]
        said = protocol.said_in_turn(pairs, ["a", "b"])
        assert said[:2] == [((0, "a", 0, 3), (9, "a", 1, 4)), ((1, "b", 0, 3), (9, "b", 1, 4))]
        assert said[2][0][1] == "a"

    def test_the_same_segments_by_tier(self):
        """Those of two tiers, the better tier first, also where the rewards say otherwise."""
        data = rollouts()
        plan = protocol.plan_task(TASKS[0], TASKS, data, np.random.default_rng(0), 30, 50)
        rank = {"expert": 0, "medium": 1, "random": 2}
        wanted = []
        for pair in plan.scripted + [(b, a) for a, b in plan.scripted]:
            tiers = [rank[data[key[0]].tier] for key in pair]
            if tiers[0] < tiers[1]:
                wanted.append(pair)
        assert sorted(plan.groups()["itp_segments_tier"]) == sorted(wanted)
        assert 0 < len(wanted) <= 30

    def test_a_variation_is_no_opposite(self):
        task = next(iter(NOT_OPPOSITE))
        video = trajectory(TASKS[0], "expert", 0, 60)
        data = [with_sentences(replace(video, task=name, sentences=())) for name in (task, SIBLINGS[task])]
        plan = protocol.plan_task(task, [task], data, np.random.default_rng(0), 5, 50)
        assert plan.sibling_sentence is None

    def test_the_opposites_sentence_comes_from_its_rollouts_or_from_the_task(self):
        data = [replace(t, sentences=("pull the door",)) if t.task == ALL[2] else t for t in rollouts()]
        plans = [protocol.plan_task(task, TASKS, data, np.random.default_rng(0), 5, 50) for task in TASKS]
        assert plans[0].sibling_sentence == "pull the door"
        assert plans[1].sibling_sentence == data[12].opposite_sentences[0][0] == "open the drawer"


class TestOtherData:
    """Rollouts of no simulator's tasks, which say themselves what they are."""

    TASKS = ("fold the towel", "stack the cups")
    UNKNOWN = (
        "itp_tier_held_out",
        "ivp_held_out",
        "ivp_sibling",
        "control_wrong_sibling",
        "near_below_moved",
        "near_over_done",
        *(f"{name}_{kind}" for name in BY_KIND for kind in VARIANT_KINDS),
        "itp_scripted_better_first",  # of pairwise heads
        "itp_scripted_better_second",
    )

    def data(self, **facts):
        """The painted rollouts under other names, with the sentences that the oracle knows the tasks by."""
        bare = {"held_out": (), "opposite_sentences": (), "opposite": None, "sibling": None, "variants": {}}
        other = dict(zip(TASKS, self.TASKS, strict=True))
        return [
            replace(
                t, task=other[t.task], positions=t.positions * np.nan, **{"sentences": t.sentences[:1], **bare, **facts}
            )
            for t in rollouts()
            if t.task in TASKS
        ]

    def test_pictures_that_the_model_does_not_know(self, result):
        far = run(Knowing())["per_task"]
        assert [far[task]["novelty"] for task in TASKS] == [1.0, 4.0]
        assert result["mean"]["novelty"] is None

    def test_figures_that_the_data_cannot_give_are_none(self):
        figures = run(Knowing(), self.data(), tasks=self.TASKS)
        own = run(Oracle(), [t for t in rollouts() if t.task in TASKS])
        for one, other in zip(self.TASKS, TASKS, strict=True):
            assert {name for name, value in figures["per_task"][one].items() if value is None} == set(self.UNKNOWN)
            assert figures["per_task"][one]["itp_tier"] == own["per_task"][other]["itp_tier"] == 1.0
        assert figures["mean"]["ivp"] == 1.0
        assert figures["mean"]["voc_expert_spearman"] == own["mean"]["voc_expert_spearman"]

    def test_without_sentences(self):
        with pytest.raises(DatasetError) as caught:
            run(Oracle(), self.data(sentences=()), tasks=self.TASKS)
        assert str(caught.value) == (
            "task fold the towel, expert, seed 0: expected sentences that say what the task is, found none; "
            "set `Trajectory.sentences`, the canonical one first"
        )


class TestVideoScorer:
    def test_values_see_only_the_past(self):
        """Cutting the video after frame t leaves the values up to t."""
        video = trajectory(TASKS[0], "random", 0, 60).frames
        sentence = instructions_for(TASKS[0])[0]
        scorer = VideoScorer(Oracle(heads=False), [sentence])
        scorer.open(video, "whole")
        whole = scorer.values(sentence)
        scorer.open(video[:6], "cut")
        assert (scorer.values(sentence) == whole[:6]).all()

    def test_answers_do_not_depend_on_the_batch(self, monkeypatch):
        video = trajectory(TASKS[0], "expert", 0, 60).frames
        sentences = [instructions_for(task)[0] for task in TASKS]
        scorer = VideoScorer(Oracle(), sentences)
        scorer.open(video, "video")
        spans, asked = [(0, 13), (2, 5), (3, 4)] * 2, [s for s in sentences for _ in range(3)]
        together = scorer.preferences(spans, asked)
        monkeypatch.setattr("vlp_gym.engine.video.SCORE_BATCH", 1)
        assert (scorer.preferences(spans, asked) == together).all()
        assert together[0] > 0 > together[3]
