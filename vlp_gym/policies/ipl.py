"""Inverse preference learning on implicit Q-learning (Hejna & Sadigh, 2023): the critics hold the reward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from vlp_gym.policies.iql import ActorCritic, IQLOptions
from vlp_gym.policies.learner import Losses, check_above_0, double_sum
from vlp_gym.policies.p_iql import check_sub_steps, pair_loss, segment_rows
from vlp_gym.training.options import check_at_least


def implied_reward(q: Tensor, next_v: Tensor, discount: float) -> Tensor:
    """``Q_k(s, a) - discount V(s')``, float ``[E, K, B]``, of Q of that shape and V(s') ``[E, B]`` (IPL, eq. 3)."""
    return q - discount * next_v[:, None]


def size_loss(rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """IPL's regulariser: the mean of the squared implied rewards, over critics and steps.

    Args:
        rewards: float ``[E, K, B]``.
        mask: which steps count, float ``[E, B]`` of 0 and 1; None counts all.

    Returns:
        float ``[E]``.
    """
    squares = rewards.square().mean(1)
    if mask is None:
        return squares.mean(1)
    return (squares * mask).sum(1) / mask.sum(1).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class IPLOptions(IQLOptions):
    """Preferences learned by the critics themselves, without a reward network.

    Attributes:
        regularization: weight of the squared implied rewards (VLP's table 11).
        sub_steps: steps of each segment in an update, at a random place; 0: all, as in VLP. The authors' own code has
            16, at a third of the cost.
        clip_targets: hold V(s') to +-1 / (regularization (1 - discount)), as an option of the authors' code does.
    """

    regularization: float = 0.5
    sub_steps: int = 0
    clip_targets: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, regularization=self.regularization)
        check_sub_steps(self.sub_steps)
        if self.clip_targets:
            check_above_0(regularization=self.regularization)


class IPL(ActorCritic[IPLOptions]):
    """Learns from `pairs` alone."""

    name = "ipl"

    def needs(self) -> tuple[str, ...]:
        """Pairs."""
        return ("pairs",)

    def update(self, step: int) -> Iterator[Losses]:
        """V, then actor and critics."""
        options, segments = self.options, self.draw_segments(self.options.sub_steps)
        rows = segment_rows(segments)
        assert rows.mask is not None
        mask = rows.mask

        def loss(q: Tensor, next_v: Tensor) -> Losses:
            if options.clip_targets:
                most = 1 / (options.regularization * (1 - options.discount))
                next_v = next_v.clamp(-most, most)
            rewards = implied_reward(q, next_v, options.discount)
            steps = (rewards * mask[:, None]).unflatten(2, (*segments.mask.shape[1:3], -1))  # [E, K, B, 2, L - 1]
            first, second = double_sum(steps).unbind(3)
            return {
                "critic": pair_loss(first, second, segments.labels),
                "size": options.regularization * size_loss(rewards, mask),
            }

        yield from self.improve(rows, loss)
