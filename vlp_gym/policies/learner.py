"""What all offline learners share: options, networks of all seeds, batches, and one step of training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from vlp_gym.errors import DatasetError
from vlp_gym.policies.data import Pairs, Transitions
from vlp_gym.policies.networks import Actor, Head, StackedMLP, dropout_masks
from vlp_gym.training.options import check_at_least

Losses = dict[str, Tensor]
"""Name -> the loss of each seed, ``[E]``."""


@dataclass(frozen=True, kw_only=True)
class LearnerOptions:
    """Settings of every learner; the defaults are VLP's (table 9).

    Attributes:
        steps: updates.
        batch: rows of an update: pairs for learners from preferences, else steps of rollouts.
        learning_rate: of Adam.
        hidden: widths of the hidden layers of every network.
        dropout: share of the actor's hidden units left out in training; rounded to a 256th.
        head: deterministic (squared distance to the mean) or gaussian (with a learned deviation).
        precision: how the matrix products of hidden layers are computed; weights and losses stay float32. bf16 takes
            less time on a processor that multiplies it faster (see docs/policies.md), and learns other numbers.

    Raises:
        ValueError: if an option is out of range; the message names the command-line option.
    """

    steps: int = 100_000
    batch: int = 64
    learning_rate: float = 3e-4
    hidden: tuple[int, ...] = (256, 256)
    dropout: float = 0.25
    head: Head = "deterministic"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps, batch=self.batch, hidden=min(self.hidden, default=0))
        check_above_0(learning_rate=self.learning_rate)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout: expected a share from 0 to below 1, got {self.dropout}")


Options = TypeVar("Options", bound=LearnerOptions)


class Learner(nn.Module, ABC, Generic[Options]):
    """One method for E seeds at once; a subclass adds networks and says what an update is.

    Args:
        options: settings of the method.
        seeds: E different seeds; each has a random stream of its own for weights, batches and dropout.
        transitions: steps of rollouts.
        pairs: labelled pairs of segments.
        device: where everything is computed.

    Raises:
        DatasetError: the data that this method needs are missing or empty.
        ValueError: there is no seed, or one twice.
    """

    name: ClassVar[str]

    def __init__(
        self,
        options: Options,
        seeds: Sequence[int],
        *,
        transitions: Transitions | None = None,
        pairs: Pairs | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"expected at least one seed, and none twice, got {list(seeds)}")
        self.options, self.seeds, self.device = options, tuple(seeds), torch.device(device)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._transitions = None if transitions is None else transitions.to(self.device)
        self._pairs = None if pairs is None else pairs.to(self.device)
        given = {"transitions": transitions, "pairs": pairs}
        for what in self.needs():
            if not given[what]:
                raise DatasetError(f"{self.name}: expected {what} to learn from, got none")
        sizes = [(data.states.shape[-1], data.actions.shape[-1]) for data in (transitions, pairs) if data is not None]
        if len(set(sizes)) > 1:
            raise DatasetError(f"expected transitions and pairs of one size of state and action, got {sizes}")
        (self.state_dim, self.action_dim), *_ = sizes
        self.actor = Actor(self.state_dim, self.action_dim, options.hidden, self.generators, options.head)
        self.add_networks()
        if options.precision == "bf16":
            for network in self.modules():
                if isinstance(network, StackedMLP):
                    network.product = torch.bfloat16
        self.to(self.device)

    @property
    def transitions(self) -> Transitions:
        """The steps to learn from."""
        assert self._transitions is not None
        return self._transitions

    @property
    def pairs(self) -> Pairs:
        """The labelled pairs to learn from."""
        assert self._pairs is not None
        return self._pairs

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values that tell this run from others: options, seeds and hashes of the data."""
        options = {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self.options).items()}
        data = {"transitions": self._transitions, "pairs": self._pairs}
        hashes = {name: block.fingerprint() for name, block in data.items() if block is not None}
        return {"learner": self.name, **options, "seeds": list(self.seeds), "data": hashes}

    def needs(self) -> tuple[str, ...]:
        """The kinds of data that it learns from: "transitions", "pairs" or both."""
        return ("transitions",)

    def add_networks(self) -> None:
        """Make the networks beside the actor."""

    @abstractmethod
    def update(self, step: int) -> Iterator[Losses]:
        """One update, in parts: after each part its summed losses are minimised by one optimizer step.

        Args:
            step: number of the update, from 0.
        """

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters by network, in a fixed order."""
        return {name: [p for p in part.parameters() if p.requires_grad] for name, part in self.trained().items()}

    def trained(self) -> dict[str, nn.Module]:
        """The networks that learn."""
        return {"actor": self.actor}

    def rates(self, step: int) -> Mapping[str, float]:
        """Factors on the learning rates of networks at an update; those that are left out have 1."""
        return {}

    def renews_optimizer(self, step: int) -> bool:
        """Whether the optimizer begins anew before this update."""
        return False

    def draw_rows(self, count: int) -> Tensor:
        """Random numbers of `transitions` for each seed, int64 ``[E, count]``, with replacement."""
        high = len(self.transitions)
        rows = [torch.randint(high, (count,), generator=generator) for generator in self.generators]
        return torch.stack(rows).to(self.device)

    def draw_pairs(self, count: int) -> Tensor:
        """Random numbers of `pairs` for each seed, int64 ``[E, min(count, N)]``, without replacement."""
        rows = [torch.randperm(len(self.pairs), generator=generator)[:count] for generator in self.generators]
        return torch.stack(rows).to(self.device)

    def draw_segments(self, length: int = 0) -> Pairs:
        """A batch of pairs for each seed, float32 ``[E, B, ...]``.

        Args:
            length: cut each segment to so many of its steps, at a random place; 0 takes all L.
        """
        rows = self.draw_pairs(self.options.batch)
        pairs, (count, most) = self.pairs, (rows.shape[1], self.pairs.mask.shape[2])
        if not 0 < length < most:
            return Pairs(*(getattr(pairs, field.name)[rows] for field in fields(Pairs)))
        chance = torch.stack([torch.rand(count, 2, generator=generator) for generator in self.generators])
        sides = (2 * rows)[..., None] + torch.arange(2, device=self.device)  # of the 2 N segments
        last = (pairs.mask.flatten(0, 1).sum(1)[sides] - length).clamp_min(0)
        start = (chance.to(self.device) * (last + 1)).long()
        steps = (sides * most + start)[..., None] + torch.arange(length, device=self.device)
        states, actions, mask = (block.flatten(0, 2)[steps] for block in (pairs.states, pairs.actions, pairs.mask))
        return Pairs(states, actions, mask, pairs.labels[rows])

    def draw_dropout(self, rows: int) -> list[Tensor]:
        """Masks of the actor's hidden layers for B rows of each seed."""
        return dropout_masks(self.options.dropout, rows, self.actor.widths, self.generators, self.device)


def mean_over(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of each seed, ``[E]``.

    Args:
        values: float ``[E, ...]``.
        weights: which of them count, 0 or 1, of the same shape; None counts all.
    """
    if weights is None:
        return values.flatten(1).mean(1)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp_min(1)


def double_sum(values: Tensor) -> Tensor:
    """The sum over the last axis, float64.

    A CPU computes several numbers at once and the last few one by one, which rounds in another way. Which are the last
    depends on the number of seeds. Where the numbers are few, float64 hides that: a seed alone and the same one among
    others stay alike, and training would make the difference grow.
    """
    return values.sum(-1, dtype=torch.float64)


def check_above_0(**values: float) -> None:
    """Raise ValueError if an option, given under its field name, is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"--{name.replace('_', '-')}: expected more than 0, got {value}")
