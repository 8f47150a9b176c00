"""The networks of all seeds of a run, computed together: one matrix product a layer for every seed.

A seed's numbers depend on its own random stream only, so a seed in a batch learns what it learns alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from vlp_gym.preferences.stacked import stacked_mlp

Head = Literal["deterministic", "gaussian"]

LOG_STD = (-5.0, 2.0)  # as in the code of "Inverse preference learning"
MOST_ACTION = 1 - 1e-5  # actions are clipped to this, as in the code of "Contrastive preference learning"
LANES = 16
"""Outputs are padded to a multiple of this many numbers, which a CPU computes at once. Otherwise the last numbers of a
parameter are rounded in another way than the rest, and a seed alone would differ from the same one among others."""
_BYTE = 256


class StackedMLP(nn.Module):
    """E seeds times K networks of one shape, with ReLU between the layers and nothing after the last.

    Weights start orthogonal with gain 1, biases at 0, as in the code of "Contrastive preference learning" (Hejna et
    al., 2023).

    Args:
        inputs: I, numbers that go in.
        outputs: O, numbers that come out.
        hidden: widths of the hidden layers.
        generators: the random streams of the E seeds, on the CPU.
        each: K, networks of each seed, such as 2 for twin critics.

    Attributes:
        product: dtype of the products of all layers but the last, forward and backward; None for that of the weights,
            which stay as they are.
    """

    product: torch.dtype | None = None

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int], generators: Sequence[torch.Generator], each: int = 1
    ) -> None:
        super().__init__()
        self.seeds, self.each, self.outputs = len(generators), each, outputs
        sizes = list(pairwise([inputs, *hidden, padded(outputs)]))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inward, outward in sizes:
            self.weights.append(nn.Parameter(torch.empty(self.seeds * each, inward, outward)))
            self.biases.append(nn.Parameter(torch.zeros(self.seeds * each, 1, outward)))
        with torch.no_grad():
            for seed, generator in enumerate(generators):
                for number in range(seed * each, (seed + 1) * each):
                    for weight in self.weights[:-1]:
                        nn.init.orthogonal_(weight[number].T, generator=generator)
                    last = self.weights[-1][number].zero_()
                    nn.init.orthogonal_(last[:, :outputs].T, generator=generator)

    def forward(self, rows: Tensor, dropout: Sequence[Tensor] = ()) -> Tensor:
        """Outputs, float ``[E, K, B, O]``.

        Args:
            rows: float ``[E, B, I]``.
            dropout: a mask for each hidden layer, see `dropout_masks`; none without dropout.
        """
        if self.each > 1:
            rows = rows.repeat_interleave(self.each, 0)

        kind, last = rows.dtype, len(self.weights) - 1
        inner = self.product or kind

        def activate(number: int, hidden: Tensor) -> Tensor:
            hidden = torch.relu_(hidden.mul_(dropout[number]) if dropout else hidden)
            return hidden.to(kind) if number == last - 1 else hidden

        weights, biases = (
            [x if number == last else x.to(inner) for number, x in enumerate(parameters)]
            for parameters in (self.weights, self.biases)
        )
        rows = stacked_mlp(rows.to(inner), weights, biases, activate)[..., : self.outputs]
        return rows.unflatten(0, (self.seeds, self.each))

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weights ``[E * K, inward, outward]`` and biases ``[E * K, 1, outward]`` of each layer, not padded."""
        *hidden, last = zip(self.weights, self.biases, strict=True)
        return [*hidden, (last[0][..., : self.outputs], last[1][..., : self.outputs])]


def padded(size: int) -> int:
    """The next multiple of `LANES`."""
    return -(-size // LANES) * LANES


class Actor(nn.Module):
    """The policy a = tanh(net(s)), and the log-probability of actions.

    Args:
        state_dim: S.
        action_dim: A.
        hidden: widths of the hidden layers.
        generators: the random streams of the E seeds.
        head: "deterministic": ``log pi(a|s) := -|a - mu(s)|^2``, a Gaussian of fixed width without its constants;
            "gaussian": a diagonal Gaussian around mu(s) whose log-deviation is learned and the same in all states.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generators: Sequence[torch.Generator],
        head: Head = "deterministic",
    ) -> None:
        super().__init__()
        self.net = StackedMLP(state_dim, action_dim, hidden, generators)
        self.widths = tuple(hidden)
        blank = torch.zeros(len(generators), 1, padded(action_dim))
        self.log_stds = nn.Parameter(blank) if head == "gaussian" else None

    def forward(self, states: Tensor, dropout: Sequence[Tensor] = ()) -> Tensor:
        """The means mu(s), float ``[E, B, A]`` in (-1, 1), for states ``[E, B, S]``."""
        return torch.tanh(self.net(states, dropout)[:, 0])

    def log_prob(self, states: Tensor, actions: Tensor, dropout: Sequence[Tensor] = ()) -> Tensor:
        """``log pi(a|s)``, float ``[E, B]``, for states ``[E, B, S]`` and actions ``[E, B, A]``."""
        return log_prob(self(states, dropout), actions, self.log_std)

    @property
    def log_std(self) -> Tensor | None:
        """Logarithm of the deviations, float ``[E, 1, A]``; None for the deterministic head."""
        return None if self.log_stds is None else self.log_stds[..., : self.net.outputs]


def log_prob(means: Tensor, actions: Tensor, log_std: Tensor | None = None) -> Tensor:
    """``log pi(a|s)`` of actions, see `Actor`.

    Args:
        means: float ``[..., A]``.
        actions: float of the same shape.
        log_std: logarithm of the deviations, broadcast to it and held to `LOG_STD`; None for the deterministic head.

    Returns:
        float ``[...]``.
    """
    squares = (actions - means).square()
    if log_std is None:
        return -squares.sum(-1)
    log_std = log_std.clamp(*LOG_STD)
    return -(0.5 * squares * torch.exp(-2 * log_std) + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def dropout_masks(
    rate: float, rows: int, widths: Sequence[int], generators: Sequence[torch.Generator], device: torch.device
) -> list[Tensor]:
    """What the hidden layers are multiplied with: 0 with the probability `rate`, else 1 / (1 - rate).

    One random byte decides about each number, so the rate is rounded to a 256th (0.25 is exact).

    Args:
        rate: in [0, 1); 0 gives no masks.
        rows: B.
        widths: widths of the hidden layers.
        generators: the random streams of the E seeds, on the CPU.
        device: where the masks go.

    Returns:
        float32 ``[E, B, width]`` for each hidden layer.
    """
    dropped = round(rate * _BYTE)
    if not dropped:
        return []
    count = rows * sum(widths)
    words = torch.empty(len(generators), -(-count // 8), dtype=torch.int64)
    for row, generator in zip(words, generators, strict=True):
        row.random_(-(2**63), None, generator=generator)  # all 64 bits
    bytes_ = words.view(torch.uint8)[:, :count].to(device)
    kept = (bytes_ >= dropped).float().mul_(_BYTE / (_BYTE - dropped))
    return [part.unflatten(1, (rows, -1)) for part in kept.split([rows * width for width in widths], dim=1)]
