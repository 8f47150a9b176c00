"""Contrastive preference learning (Hejna et al., 2023): the policy alone, from preferences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vlp_gym.policies.learner import Learner, LearnerOptions, Losses, double_sum, mean_over
from vlp_gym.training.options import check_at_least, check_share


def cpl_loss(first: Tensor, second: Tensor, labels: Tensor, bias: float) -> Tensor:
    """The biased logistic loss of segments' advantages ``A = alpha sum_t log pi(a_t|s_t)`` (CPL, eq. 5).

    ``y softplus(-(A1 - bias A2)) + (1 - y) softplus(-(A2 - bias A1))``, y = P(first > second). With bias 1 it is the
    logistic loss of A1 - A2; with bias 0 each preferred segment counts alone.

    Args:
        first: A1, float ``[E, B]``.
        second: A2, float ``[E, B]``.
        labels: P(first > second), float ``[E, B]``.
        bias: lambda, in [0, 1]; below 1 it also asks for likely actions of the preferred segment.

    Returns:
        float64 ``[E]``.
    """
    first, second = first.double(), second.double()  # see `double_sum`
    wins = labels * F.softplus(bias * second - first) + (1 - labels) * F.softplus(bias * first - second)
    return wins.mean(1)


@dataclass(frozen=True, kw_only=True)
class CPLOptions(LearnerOptions):
    """A policy from preferences alone, by contrast.

    Attributes:
        learning_rate: of Adam.
        alpha: factor on the log-probabilities.
        bias: lambda, the contrastive bias; 1 is the plain logistic loss.
        bc_steps: updates of plain imitation of all segments before; then the optimizer begins anew.
        warmup: updates in which the learning rate rises after that.
        sub_steps: steps of each segment in an update, at a random place; 0: all, as in VLP. 16 takes a third of
            the time.
    """

    learning_rate: float = 1e-4
    alpha: float = 0.1
    bias: float = 0.5
    bc_steps: int = 10_000
    warmup: int = 10_000
    sub_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, alpha=self.alpha, bc_steps=self.bc_steps, warmup=self.warmup, sub_steps=self.sub_steps)
        check_share(bias=self.bias)


class CPL(Learner[CPLOptions]):
    """Learns from `pairs` alone."""

    name = "cpl"

    def needs(self) -> tuple[str, ...]:
        """Pairs."""
        return ("pairs",)

    def rates(self, step: int) -> Mapping[str, float]:
        """After imitation the learning rate rises linearly."""
        after = step - self.options.bc_steps
        return {"actor": min(1.0, (after + 1) / self.options.warmup)} if 0 <= after < self.options.warmup else {}

    def renews_optimizer(self, step: int) -> bool:
        """After imitation."""
        return step == self.options.bc_steps

    def update(self, step: int) -> Iterator[Losses]:
        """One step of the actor: imitation first, then contrast."""
        options, segments = self.options, self.draw_segments(self.options.sub_steps)
        states, actions = segments.states.flatten(1, 3), segments.actions.flatten(1, 3)
        log_probs = self.actor.log_prob(states, actions, self.draw_dropout(states.shape[1]))
        log_probs = log_probs.view(segments.mask.shape)
        if step < options.bc_steps:
            yield {"imitation": mean_over(-log_probs, segments.mask)}
            return
        first, second = (options.alpha * double_sum(log_probs * segments.mask)).unbind(2)
        yield {"actor": cpl_loss(first, second, segments.labels, options.bias)}
