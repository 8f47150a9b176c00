from __future__ import annotations

import math

import pytest
import torch

from tests.learners_by_hand import plain
from vlp_gym.policies.networks import Actor, StackedMLP, dropout_masks, log_prob


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_each_network_is_a_plain_one():
    networks = StackedMLP(3, 2, (8, 6), generators(0, 1, 2), each=2).double()
    rows = torch.randn(3, 5, 3, dtype=torch.float64, generator=generators(7)[0])
    out = networks(rows)
    assert out.shape == (3, 2, 5, 2)
    for seed in range(3):
        for number in range(2):
            expected = plain(networks, 2 * seed + number)(rows[seed])
            torch.testing.assert_close(out[seed, number], expected, atol=1e-12, rtol=0)


def test_products_of_fewer_bits():
    """Rounded to 8 bits forward and backward, but weights, their gradients and what comes out stay float32."""
    networks = StackedMLP(3, 2, (64, 64), generators(0, 1))
    rows = torch.randn(2, 500, 3, generator=generators(7)[0])
    masks = dropout_masks(0.25, 500, (64, 64), generators(2, 3), torch.device("cpu"))
    found = []
    for product in (None, torch.bfloat16):
        networks.product = product
        out = networks(rows, masks)
        assert out.dtype == torch.float32
        found.append([out, *torch.autograd.grad(out.square().sum(), list(networks.parameters()))])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        error = (rounded - exact).norm() / exact.norm()
        assert 2**-12 < error < 2**-5  # one product is rounded by up to 2^-9


def test_weights_start_orthogonal_and_by_the_seed_alone():
    networks, alone = StackedMLP(39, 4, (256, 256), generators(0, 1)), StackedMLP(39, 4, (256, 256), generators(1))
    for (weight, bias), (own, _) in zip(networks.layers(), alone.layers(), strict=True):
        assert torch.equal(weight[1], own[0])
        assert not torch.equal(weight[0], weight[1])
        assert not bias.any()
        small = weight[0] if weight.shape[1] <= weight.shape[2] else weight[0].T
        torch.testing.assert_close(small @ small.T, torch.eye(len(small)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["deterministic", "gaussian"])
def test_log_probabilities(head):
    actor = Actor(3, 2, (8,), generators(0, 1), head).double()
    states = torch.randn(2, 5, 3, dtype=torch.float64, generator=generators(1)[0])
    actions = torch.rand(2, 5, 2, dtype=torch.float64, generator=generators(2)[0])
    means = actor(states)
    for seed in range(2):
        expected_means = plain(actor.net, seed, end=torch.nn.Tanh)(states[seed])
        torch.testing.assert_close(means[seed], expected_means, atol=1e-12, rtol=0)
    if head == "gaussian":
        actor.log_std.data[:] = torch.tensor(
            [[[0.3, -0.4]], [[9.0, -9.0]]], dtype=torch.float64
        )  # the second is held to [-5, 2]
        deviations = torch.exp(torch.tensor([[0.3, -0.4], [2.0, -5.0]], dtype=torch.float64))
        expected = torch.distributions.Normal(means, deviations[:, None]).log_prob(actions).sum(-1)
    else:
        expected = -((actions - means) ** 2).sum(-1)
        unit = torch.distributions.Normal(means, math.sqrt(0.5)).log_prob(actions) + 0.5 * math.log(math.pi)
        torch.testing.assert_close(unit.sum(-1), expected)  # a Gaussian of variance 1/2 without its constants
    torch.testing.assert_close(actor.log_prob(states, actions), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(log_prob(means, actions, actor.log_std), expected, atol=1e-9, rtol=0)


def test_dropout_leaves_out_a_quarter_and_keeps_the_mean():
    masks = dropout_masks(0.25, 200, (64, 32), generators(0, 1), torch.device("cpu"))
    assert [tuple(mask.shape) for mask in masks] == [(2, 200, 64), (2, 200, 32)]
    for mask in masks:
        assert mask.unique().tolist() == pytest.approx([0.0, 4 / 3])
        deviation = math.sqrt(0.25 * 0.75 / mask[0].numel())
        for seed in range(2):
            assert abs((mask[seed] == 0).float().mean().item() - 0.25) < 4 * deviation
    assert not torch.equal(masks[0][0], masks[0][1])
    alone = dropout_masks(0.25, 200, (64, 32), generators(1), torch.device("cpu"))
    assert all(torch.equal(mask[1], own[0]) for mask, own in zip(masks, alone, strict=True))
    assert dropout_masks(0.0, 5, (8,), generators(0), torch.device("cpu")) == []


def test_every_byte_of_a_random_word_is_random():
    """The highest bit too: eight neighbours each see the same share of zeros."""
    mask = dropout_masks(0.5, 1000, (64,), generators(3), torch.device("cpu"))[0][0]
    shares = (mask == 0).float().reshape(-1, 8).mean(0)
    assert (shares - 0.5).abs().max() < 4 * math.sqrt(0.25 / 8000)


def test_dropout_is_between_the_layer_and_its_relu():
    actor = Actor(3, 2, (8, 6), generators(0))
    masks = dropout_masks(0.5, 4, actor.widths, generators(1), torch.device("cpu"))
    states = torch.randn(1, 4, 3, generator=generators(2)[0])
    hidden = states[0]
    for number, (weight, bias) in enumerate(actor.net.layers()):
        hidden = hidden @ weight[0] + bias[0]
        if number < 2:
            hidden = torch.relu(hidden * masks[number][0])
    torch.testing.assert_close(actor(states, masks)[0], torch.tanh(hidden))
