"""Offline learners written out for one seed, in float64, with a plain network and an Adam for each part."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vlp_gym.policies.data import Pairs, Transitions
from vlp_gym.policies.networks import dropout_masks
from vlp_gym.policies.training import _update, fused_adam

STATES, ACTIONS = 3, 2
SEEDS = (4, 1)
TINY = {"hidden": (8, 6), "batch": 5}


def transitions(count=30, seed=0, dtype=torch.float64) -> Transitions:
    g = torch.Generator().manual_seed(seed)
    states, following = (torch.randn(count, STATES, generator=g, dtype=dtype) for _ in range(2))
    actions = 2 * torch.rand(count, ACTIONS, generator=g, dtype=dtype) - 1
    rewards, weights = torch.randn(count, generator=g, dtype=dtype), torch.rand(count, generator=g, dtype=dtype)
    return Transitions(states, actions, following, rewards, weights)


def pairs(count=7, length=6, seed=0, dtype=torch.float64, *, padded=True) -> Pairs:
    """Segments of 2 to L steps with the labels 1, 0 and 0.5."""
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(count, 2, length, STATES, generator=g, dtype=dtype)
    actions = 2 * torch.rand(count, 2, length, ACTIONS, generator=g, dtype=dtype) - 1
    steps = torch.randint(2, length + 1, (count, 2, 1), generator=g) if padded else length
    mask = (torch.arange(length).expand(count, 2, length) < steps).to(dtype)
    labels = torch.tensor([1.0, 0.0, 0.5] * count, dtype=dtype)[:count]
    return Pairs(states * mask[..., None], actions * mask[..., None], mask, labels)


def clones(learner) -> list[torch.Generator]:
    """Random streams in the state of the learner's."""
    return [torch.Generator().set_state(generator.get_state()) for generator in learner.generators]


def plain(stacked, number, *, end=nn.Identity) -> nn.Sequential:
    """One network of a `StackedMLP` in float64."""
    layers: list[nn.Module] = []
    for weight, bias in stacked.layers():
        linear = nn.Linear(*weight.shape[1:], dtype=torch.float64)
        linear.weight.data = weight.data[number].double().T.clone()
        linear.bias.data = bias.data[number, 0].double().clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1], end())


def act(network, states, masks) -> torch.Tensor:
    """The mean of an actor with dropout between linear layers and ReLU."""
    hidden, drop = states, iter(masks)
    for layer in network:
        hidden = layer(hidden)
        if isinstance(layer, nn.Linear) and layer is not network[-2]:
            hidden = hidden * next(drop, 1.0)
    return hidden


def drawn_masks(learner, rows, generator) -> list[torch.Tensor]:
    rate = learner.options.dropout
    return [m[0].double() for m in dropout_masks(rate, rows, learner.actor.widths, [generator], torch.device("cpu"))]


def check_same(stacked, number, network) -> None:
    """Whether a network learned what the one by hand learned, to 1e-6."""
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    for (weight, bias), linear in zip(stacked.layers(), linears, strict=True):
        torch.testing.assert_close(weight.data[number], linear.weight.data.T, atol=1e-6, rtol=0)
        torch.testing.assert_close(bias.data[number, 0], linear.bias.data, atol=1e-6, rtol=0)


def descend(optimizer, loss) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def adam(network, learner) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=learner.options.learning_rate)


def run(learner, updates, start=0) -> list[dict[str, torch.Tensor]]:
    """Updates as the training loop makes them, with a new optimizer."""
    optimizer = fused_adam(learner)
    groups = dict(zip(learner.parts(), optimizer.param_groups, strict=True))
    return [_update(learner, optimizer, groups, step) for step in range(start, start + updates)]


def improve_by_hand(parts, learner, rows, critics, masks) -> dict[str, float]:
    """One update of V, actor and critics in the order of the paper's section 2.4; returns the losses.

    Args:
        parts: networks and optimizers, see `by_hand`.
        learner: for its options.
        rows: states, actions, next states and mask.
        critics: (Q of both, V(s') of after V's step) -> the critics' loss.
        masks: of dropout.
    """
    options, (states, actions, following, mask) = learner.options, rows
    inputs = torch.cat([states, actions], dim=1)

    def mean(values):
        return (values * mask).sum() / mask.sum()

    with torch.no_grad():
        q = torch.minimum(*(target(inputs)[:, 0] for target in parts["targets"]))
    v = parts["value"](states)[:, 0]
    u = q - v
    value_loss = mean(torch.abs(options.expectile - (u < 0).double()) * u**2)
    descend(parts["value_adam"], value_loss)
    weight = torch.clamp(torch.exp((q - v.detach()) / options.temperature), max=options.most_weight)
    actor_loss = mean(weight * ((actions - act(parts["actor"], states, masks)) ** 2).sum(1))
    descend(parts["actor_adam"], actor_loss)
    with torch.no_grad():
        next_v = parts["value"](following)[:, 0]
    critic = critics([network(inputs)[:, 0] for network in parts["critics"]], next_v)
    descend(parts["critic_adam"], critic)
    for target, network in zip(parts["targets"], parts["critics"], strict=True):
        for slow, fast in zip(target.parameters(), network.parameters(), strict=True):
            slow.data = options.tau * fast.data + (1 - options.tau) * slow.data
    return {"value": value_loss.item(), "actor": actor_loss.item(), "critic": critic.item()}


def parts_by_hand(learner, e) -> dict[str, object]:
    """The networks of one seed, with an Adam for each part."""
    critics = nn.ModuleList(plain(learner.critic, 2 * e + k) for k in range(2))
    actor, value = plain(learner.actor.net, e, end=nn.Tanh), plain(learner.value, e)
    return {
        "critics": critics, "targets": copy.deepcopy(critics), "actor": actor, "value": value,
        "critic_adam": adam(critics, learner), "actor_adam": adam(actor, learner), "value_adam": adam(value, learner),
    }  # fmt: skip


def check_parts(learner, e, parts) -> None:
    check_same(learner.actor.net, e, parts["actor"])
    check_same(learner.value, e, parts["value"])
    for k in range(2):
        check_same(learner.critic, 2 * e + k, parts["critics"][k])
        check_same(learner.target, 2 * e + k, parts["targets"][k])


def check_updates(learner, found, expected, parts) -> None:
    """The losses of an actor-critic's updates, seed after seed, and all its networks after them."""
    for name in ("value", "actor", "critic"):
        ours = [row[name][e].item() for e in range(2) for row in found]
        assert ours == pytest.approx([row[name] for row in expected], abs=1e-6)
    for e in range(2):
        check_parts(learner, e, parts[e])
