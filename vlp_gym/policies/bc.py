"""Behaviour cloning: on all steps, on those of preferred segments, or weighted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlp_gym.policies.data import Pairs, Transitions
from vlp_gym.policies.learner import Learner, LearnerOptions, Losses


def bc_loss(log_probs: Tensor, weights: Tensor | None = None) -> Tensor:
    """``-mean w log pi(a|s)`` (GVL, eq. 6; without weights plain imitation).

    Args:
        log_probs: float ``[E, B]``.
        weights: float ``[E, B]``, at least 0; None is 1 for all.

    Returns:
        float ``[E]``.
    """
    return -(log_probs if weights is None else weights * log_probs).mean(1)


def preferred_steps(pairs: Pairs) -> Transitions:
    """The steps of the preferred segment of each pair, and of both where they are equal.

    Their rewards are 0, and a last step is followed by itself: imitation reads neither.
    """
    wins = torch.stack([pairs.labels >= 0.5, pairs.labels <= 0.5], dim=1)
    real = wins[..., None] & (pairs.mask > 0)
    following = torch.cat([pairs.states[:, :, 1:], pairs.states[:, :, -1:]], dim=2)
    count = int(real.sum())
    like = pairs.labels.new_zeros(count)
    return Transitions(pairs.states[real], pairs.actions[real], following[real], like, torch.ones_like(like))


@dataclass(frozen=True, kw_only=True)
class BCOptions(LearnerOptions):
    """Behaviour cloning.

    Attributes:
        on: all (every step of the data) or preferred (the steps of the preferred segments of labelled pairs).
    """

    on: Literal["all", "preferred"] = "all"


class BC(Learner[LearnerOptions]):
    """Imitates the actions of `transitions`, each as much as its weight says."""

    name = "bc"

    def update(self, step: int) -> Iterator[Losses]:
        """One step of the actor."""
        rows, data = self.draw_rows(self.options.batch), self.transitions
        log_probs = self.actor.log_prob(data.states[rows], data.actions[rows], self.draw_dropout(rows.shape[1]))
        yield {"actor": bc_loss(log_probs, data.weights[rows])}
