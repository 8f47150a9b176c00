"""The evaluation's protocol: a seeded choice of videos and segments, and of the sentences to score them under.

It uses states, actions, rewards, successes and lengths only, no frames and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlp_gym.data.trajectory import NEAR_MISS, TIERS, Trajectory
from vlp_gym.errors import DatasetError
from vlp_gym.evaluation import metrics

Key = tuple[int, str, int, int]  # a query: trajectory, sentence, first frame, one past the last frame
Pair = tuple[Key, Key]  # better, worse (of equal rank in ILP)

PairsBy = Literal["rewards", "states"]

SENTENCES_PER_VARIANT = 3
WRONG_SENTENCES = 4


@dataclass
class TaskPlan:
    """The queries about one task: indices of `trajectories`, sentences and sampled pairs."""

    task: str
    trajectories: Sequence[Trajectory]
    sentence: str
    held_out: Sequence[str]
    variants: Mapping[str, Sequence[str]]
    wrong: list[str]  # canonical sentences of other tasks
    sibling_sentence: str | None
    videos: dict[str, list[int]]  # tier -> trajectories of the task
    near_misses: list[int]
    sibling_experts: list[int]
    scripted: list[Pair] = field(default_factory=list)
    first_set_better: list[bool] = field(default_factory=list)  # of each scripted pair
    ivp: list[Pair] = field(default_factory=list)
    ivp_held_out: list[Pair] = field(default_factory=list)
    ilp: list[Pair] = field(default_factory=list)
    ilp_by_kind: dict[str, list[Pair]] = field(default_factory=dict)

    @property
    def watched(self) -> list[int]:
        """Videos whose values over time are measured; near misses where nothing else may have failed."""
        own = [index for tier in TIERS for index in self.videos[tier]]
        return own if len(own) > len(self.videos["expert"]) else own + self.near_misses

    def groups(self) -> dict[str, list[Pair]]:
        """Figure -> its pairs, the better one first."""
        ivp = [(pair, tuple(self.trajectories[key[0]].tier for key in pair)) for pair in self.ivp]
        experts = self.videos["expert"]
        return {
            "itp_scripted": self.scripted,
            "itp_segments_tier": self._in_order_of_tiers(self.scripted),
            "itp_tier": self.tier_pairs([self.sentence]),
            "itp_tier_held_out": self.tier_pairs(self.held_out),
            "itp_near_miss": [self.pair(a, b, self.sentence) for a in experts for b in self.near_misses],
            "ivp": self.ivp,
            "ivp_held_out": self.ivp_held_out,
            "ivp_same_tier": [pair for pair, (better, worse) in ivp if better == worse],
            "ivp_random_over_expert": [pair for pair, tiers in ivp if tiers == ("random", "expert")],
            "ivp_sibling": [self.pair(a, b, self.sentence) for a in experts for b in self.sibling_experts],
            "itp_success": [self.pair(a, b, self.sentence) for a in self._own(True) for b in self._own(False)],
            **{f"itp_{kind}": self.tier_pairs(group) for kind, group in self.variants.items()},
            **{f"itp_scripted_{kind}": said_in_turn(self.scripted, group) for kind, group in self.variants.items()},
            **{f"ivp_{kind}": said_in_turn(self.ivp, group) for kind, group in self.variants.items()},
        }

    def _own(self, success: bool) -> list[int]:
        """The task's videos that succeed, or that fail."""
        own = [*(index for tier in TIERS for index in self.videos[tier]), *self.near_misses]
        return [index for index in own if bool(self.trajectories[index].success.any()) is success]

    def tier_pairs(self, sentences: Sequence[str]) -> list[Pair]:
        """All pairs of videos of two tiers, under each of the sentences."""
        return [
            self.pair(a, b, sentence)
            for sentence in sentences
            for high, low in combinations(TIERS, 2)
            for a in self.videos[high]
            for b in self.videos[low]
        ]

    def _in_order_of_tiers(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs of two tiers, the better one first."""
        ranked = [(pair, [TIERS.index(self.trajectories[key[0]].tier) for key in pair]) for pair in pairs]
        return [pair if first < second else (pair[1], pair[0]) for pair, (first, second) in ranked if first != second]

    def pair(self, a: int, b: int, sentence: str) -> Pair:
        """Queries about two whole videos under one sentence."""
        first, second = ((int(i), sentence, 0, len(self.trajectories[i].frames)) for i in (a, b))
        return first, second


def plan_task(
    task: str,
    tasks: Sequence[str],
    trajectories: Sequence[Trajectory],
    rng: np.random.Generator,
    pairs: int,
    segment_steps: int,
    pairs_by: PairsBy = "rewards",
) -> TaskPlan:
    """Draw all queries about one task.

    Args:
        task: the task.
        tasks: all evaluated tasks, the source of other tasks' videos and sentences.
        trajectories: all rollouts.
        rng: source of all random draws.
        pairs: pairs to draw for scripted ITP, each IVP and ILP.
        segment_steps: environment steps of a scripted-label segment.
        pairs_by: what k-means looks at, which splits the rollouts into two sets, for pairs with a segment of each:
            "rewards", that is reward curves and success, or "states", mean states and actions, which a pipeline
            without rewards knows too (VLP, appendix A.2).

    Raises:
        ValueError: if an evaluated task has no expert, medium or random trajectory.
        DatasetError: if the first of these carries no sentences, or one has no states and k-means is to see them.
    """
    firsts = {each: _first(each, trajectories) for each in tasks}
    sentence_of = {each: shown.canonical for each, shown in firsts.items()}
    first = firsts[task]
    own = [i for i, t in enumerate(trajectories) if t.task == task and t.tier in TIERS]
    strangers = [other for other in tasks if other != task]
    plan = TaskPlan(
        task=task,
        trajectories=trajectories,
        sentence=first.canonical,
        held_out=first.held_out,
        variants={kind: group[:SENTENCES_PER_VARIANT] for kind, group in first.variants.items()},
        wrong=[sentence_of[strangers[k]] for k in rng.permutation(len(strangers))[:WRONG_SENTENCES]],
        sibling_sentence=_opposite_sentence(first, trajectories),
        videos={tier: [i for i in own if trajectories[i].tier == tier] for tier in TIERS},
        near_misses=[i for i, t in enumerate(trajectories) if t.task == task and t.tier == NEAR_MISS],
        sibling_experts=[i for i, t in enumerate(trajectories) if t.task == first.opposite and t.tier == "expert"],
    )
    for pair, first_better in _scripted_pairs(plan, own, rng, pairs, segment_steps, pairs_by):
        plan.scripted.append(pair)
        plan.first_set_better.append(first_better)
    others = np.array([i for i, t in enumerate(trajectories) if t.task in strangers and t.tier in TIERS])
    if len(others):
        for _ in range(pairs):
            right, wrong_video = rng.choice(own), rng.choice(others)
            plan.ivp.append(plan.pair(right, wrong_video, plan.sentence))
            if len(plan.held_out):
                plan.ivp_held_out.append(plan.pair(right, wrong_video, str(rng.choice(plan.held_out))))
    if strangers and len(own) > 1:
        for _ in range(pairs):
            a, b = rng.choice(own, size=2, replace=False)
            other = str(rng.choice(strangers))
            plan.ilp.append(plan.pair(a, b, sentence_of[other]))
            for kind, group in firsts[other].variants.items():
                said = group[len(plan.ilp) % min(len(group), SENTENCES_PER_VARIANT)]
                plan.ilp_by_kind.setdefault(kind, []).append(plan.pair(a, b, said))
    return plan


def said_in_turn(pairs: Sequence[Pair], sentences: Sequence[str]) -> list[Pair]:
    """The same pairs under other sentences, which take turns."""
    turns = [sentences[k % len(sentences)] for k in range(len(pairs))]
    return [((a[0], said, *a[2:]), (b[0], said, *b[2:])) for (a, b), said in zip(pairs, turns, strict=True)]


def state_features(trajectories: Sequence[Trajectory]) -> list[NDArray[np.float64]]:
    """Mean state and action of each trajectory that recorded them, float ``[O + A]``, for k-means (VLP, appendix A.2).

    The paper does not name the features; no reward, success or tier is read.
    """
    return [
        np.concatenate([np.asarray(rows, np.float64).mean(0) for rows in (t.observation, t.action)])
        for t in trajectories
    ]


def _reward_features(trajectory: Trajectory) -> list[float]:
    reward = trajectory.episode_reward
    curve = np.interp(np.linspace(0, len(reward) - 1, 16), np.arange(len(reward)), reward)
    return [*curve, reward.mean(), reward[-1], float(trajectory.success.any())]


def _scripted_pairs(
    plan: TaskPlan, own: list[int], rng: np.random.Generator, pairs: int, steps: int, pairs_by: PairsBy
) -> list[tuple[Pair, bool]]:
    """Pairs, the better segment first, and whether it is the one of the first set."""
    trajectories = plan.trajectories
    if len(own) < 2:
        return []
    shown = [trajectories[i] for i in own]
    if pairs_by == "states":
        for t in shown:
            if t.observation is None or t.action is None:
                raise DatasetError(
                    f"{t.name}: expected states and actions, which k-means is to see, found none; collect the data "
                    "again, or take --pairs-by rewards"
                )
    features = state_features(shown) if pairs_by == "states" else [_reward_features(t) for t in shown]
    labels = metrics.kmeans_two_sets(features, seed=int(rng.integers(2**31)))
    sets = [[i for i, label in zip(own, labels, strict=True) if label == which] for which in (0, 1)]
    result: list[tuple[Pair, bool]] = []
    for _ in range(20 * pairs):
        if len(result) == pairs or not all(sets):
            break
        drawn = []
        for members in sets:
            i = int(rng.choice(members))
            start, stop, total = _segment(trajectories[i], rng, steps)
            drawn.append((total, (i, plan.sentence, start, stop)))
        (total_a, a), (total_b, b) = drawn
        if abs(total_a - total_b) > 1e-6:
            result.append(((a, b), True) if total_a > total_b else ((b, a), False))
    return result


def _segment(trajectory: Trajectory, rng: np.random.Generator, steps: int) -> tuple[int, int, float]:
    """Draw a segment; returns its first frame, one past its last, and the summed reward of its environment steps."""
    step = trajectory.step
    starts = np.flatnonzero(step + steps <= step[-1])
    start = int(rng.choice(starts)) if len(starts) else 0
    stop = int(np.searchsorted(step, step[start] + steps, side="right"))
    within = np.arange(step[start], step[start] + steps)  # episode_reward[k] is the reward of step k + 1
    reward = trajectory.episode_reward
    return start, stop, float(reward[np.minimum(within, len(reward) - 1)].sum(dtype=np.float64))


def reward_sentences(plan: TaskPlan) -> list[str]:
    """The sentences for comparing the wrapper's reward: the right one, then the wrong ones."""
    sentences = [plan.sentence, *plan.wrong, *([plan.sibling_sentence] if plan.sibling_sentence else [])]
    return list(dict.fromkeys(sentences))


def _first(task: str, trajectories: Sequence[Trajectory]) -> Trajectory:
    """The trajectory whose sentences, variants and opposite define the task."""
    for trajectory in trajectories:
        if trajectory.task == task and trajectory.tier in TIERS:
            return trajectory
    raise ValueError(f"no trajectory of task {task!r} among the {len(trajectories)} that were given")


def _opposite_sentence(first: Trajectory, trajectories: Sequence[Trajectory]) -> str | None:
    """The canonical sentence of the opposite task; without its rollouts, the first opposite sentence."""
    if first.opposite is None:
        return None
    named = next((t.sentences[0] for t in trajectories if t.task == first.opposite and t.sentences), None)
    return named or next((group[0] for group in first.opposite_sentences[:1] if group), None)
