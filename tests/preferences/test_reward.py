from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from tests.stored import check_refused
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.preferences.reward import RewardEnsemble
from vlp_gym.preferences.segments import Segments, Span

STATES, ACTIONS, LENGTH = 3, 2, 6


def tiny(**settings) -> RewardEnsemble:
    return RewardEnsemble(STATES, ACTIONS, **{"hidden": (8, 7), **settings})


def segments(count: int, seed: int, *, padding: float = 0.0) -> Segments:
    """Segments of chance, of 1 to L steps; the true reward is the first state."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(count, LENGTH, STATES)).astype(np.float32)
    actions = rng.normal(size=(count, LENGTH, ACTIONS)).astype(np.float32)
    steps = rng.integers(1, LENGTH + 1, count)
    mask = np.arange(LENGTH) < steps[:, None]
    states[~mask], actions[~mask] = padding, padding
    spans = tuple(Span(0, 0, int(n)) for n in steps)
    return Segments(states, actions, mask, states[:, :, 0], spans, (None,) * count)


def filled_buffer(count: int, *, seed: int = 0, padding: float = 0.0) -> PreferenceBuffer:
    first, second = segments(count, seed, padding=padding), segments(count, seed + 1000, padding=padding)
    buffer = PreferenceBuffer()
    buffer.add(first, second, np.heaviside(first.returns - second.returns, 0.5))
    return buffer


def by_hand(ensemble: RewardEnsemble, member: int, inputs: np.ndarray) -> np.ndarray:
    """r(s, a) of ``[..., S + A]`` in float64."""
    rows = inputs.astype(np.float64)
    layers = list(zip(ensemble.weights, ensemble.biases, strict=True))
    for number, (weight, bias) in enumerate(layers):
        rows = rows @ weight[member].detach().numpy().astype(np.float64) + bias[member].detach().numpy()
        if number < len(layers) - 1:
            rows = np.where(rows > 0, rows, 0.01 * rows)
    return np.tanh(rows)[..., 0]


def chances_by_hand(ensemble: RewardEnsemble, buffer: PreferenceBuffer) -> np.ndarray:
    returns = [(by_hand(ensemble, member, buffer.inputs) * buffer.mask).sum(2) for member in range(3)]
    return np.array([1 / (1 + np.exp(second - first)) for first, second in (each.T for each in returns)])


def twins(ensemble: RewardEnsemble) -> list[nn.Sequential]:
    """The members as plain float64 networks."""
    networks = []
    for member in range(3):
        layers: list[nn.Module] = []
        for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
            linear = nn.Linear(*weight.shape[1:], dtype=torch.float64)
            linear.weight.data = weight.data[member].double().T.clone()
            linear.bias.data = bias.data[member, 0].double().clone()
            layers += [linear, nn.LeakyReLU()]
        networks.append(nn.Sequential(*layers[:-1], nn.Tanh()))
    return networks


def train_twins(networks, buffer, epochs, *, unlabelled=None, threshold=0.99, weight=1.0, learning_rate=3e-4) -> None:
    """B-Pref's loop, all pairs in one batch, written out with softmax; pseudo-labels of the members' mean."""
    optimizer = torch.optim.Adam([p for network in networks for p in network.parameters()], lr=learning_rate)

    def log_chances(network, inputs, mask):
        rewards = network(torch.from_numpy(inputs).double())[..., 0] * torch.from_numpy(mask)
        return torch.log_softmax(rewards.sum(2), dim=1)

    labels = torch.from_numpy(buffer.labels).double()
    targets = torch.stack([labels, 1 - labels], dim=1)
    for _ in range(epochs):
        loss = torch.zeros((), dtype=torch.float64)
        for network in networks:
            loss = loss - (targets * log_chances(network, buffer.inputs, buffer.mask)).sum() / len(buffer)
        if unlabelled is not None:
            logs = [log_chances(network, unlabelled.inputs, unlabelled.mask) for network in networks]
            with torch.no_grad():
                best = torch.stack(logs).exp().mean(0).max(1)
            for log in logs:
                picked = log.gather(1, best.indices[:, None])[:, 0] * (best.values > threshold)
                loss = loss - weight * picked.sum() / len(unlabelled)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def assert_same_weights(ensemble, networks) -> None:
    for member, network in enumerate(networks):
        for number, linear in enumerate(layer for layer in network if isinstance(layer, nn.Linear)):
            ours = ensemble.weights[number][member].detach().double(), ensemble.biases[number][member, 0].detach()
            torch.testing.assert_close(ours[0], linear.weight.detach().T, atol=2e-5, rtol=0)
            torch.testing.assert_close(ours[1].double(), linear.bias.detach(), atol=2e-5, rtol=0)


def test_rewards_of_the_members():
    ensemble, rng = tiny(), np.random.default_rng(0)
    states, actions = rng.normal(size=(11, STATES)), rng.normal(size=(11, ACTIONS))
    expected = np.array([by_hand(ensemble, member, np.concatenate([states, actions], 1)) for member in range(3)])
    batch = torch.from_numpy(states), torch.from_numpy(actions)
    members = ensemble.members(*batch)
    assert members.dtype == torch.float32
    assert not members.requires_grad
    np.testing.assert_allclose(members, expected, atol=1e-6)
    np.testing.assert_allclose(ensemble.predict(*batch), expected.mean(0), atol=1e-6)
    np.testing.assert_allclose(ensemble.bonus(*batch), expected.std(0), atol=1e-6)
    np.testing.assert_array_equal(tiny(members=1).bonus(*batch), np.zeros(11))


def test_many_rows_are_the_same_as_few(monkeypatch):
    ensemble, batch = tiny(), torch.from_numpy(filled_buffer(50).inputs[:, 0, 0]).split([STATES, ACTIONS], dim=1)
    whole = ensemble.members(*batch)
    monkeypatch.setattr("vlp_gym.preferences.reward.CHUNK", 7)
    torch.testing.assert_close(ensemble.members(*batch), whole)
    assert ensemble.members(torch.empty(0, STATES), torch.empty(0, ACTIONS)).shape == (3, 0)


def test_networks_start_as_those_of_pebble():
    ensemble = RewardEnsemble(39, 4)
    assert [tuple(weight.shape) for weight in ensemble.weights] == [
        (3, 43, 256), (3, 256, 256), (3, 256, 256), (3, 256, 1),
    ]  # fmt: skip
    for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
        bound = 1 / math.sqrt(weight.shape[1])  # of nn.Linear, for both; a uniform number has bound / sqrt(3)
        for values in (weight, bias):
            assert 0.8 * bound < values.abs().max() <= bound or values.numel() < 10
        assert weight.detach().std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        for one, other in itertools.combinations(weight, 2):
            assert not torch.equal(one, other)
    again, another = RewardEnsemble(39, 4), RewardEnsemble(39, 4, seed=1)
    assert torch.equal(again.weights[0], ensemble.weights[0])
    assert not torch.equal(another.weights[0], ensemble.weights[0])


@pytest.mark.parametrize("padding", [0.0, 9.0])
def test_preferences_are_bradley_terry_of_the_real_steps(padding):
    ensemble, buffer = tiny(), filled_buffer(9, padding=padding)
    ours = ensemble.preferences(segments(9, 0, padding=padding), segments(9, 1000, padding=padding))
    np.testing.assert_allclose(ours, chances_by_hand(ensemble, buffer), atol=1e-6)
    assert ours.dtype == np.float64


def test_the_report_is_of_the_weights_before_the_update():
    ensemble, first, second = tiny(), segments(40, 0), segments(40, 1000)
    labels = np.heaviside(first.returns - second.returns, 0.5)
    labels[:8] = 0.5
    buffer = PreferenceBuffer()
    buffer.add(first, second, labels)
    chances = chances_by_hand(ensemble, buffer)
    loss = -(labels * np.log(chances) + (1 - labels) * np.log(1 - chances)).mean()
    report = ensemble.fit(buffer, 1)
    assert report.epochs == 1
    assert report.loss == pytest.approx(loss, abs=1e-6)
    assert report.accuracy == pytest.approx(((chances > 0.5) == (labels > 0.5))[:, 8:].mean(1).tolist())
    assert report.pseudo_labelled == 0.0


def test_members_learn_as_if_they_were_alone():
    ensemble, first, second = tiny(learning_rate=1e-2), segments(30, 0), segments(30, 1000)
    buffer = PreferenceBuffer()
    buffer.add(first, second, np.random.default_rng(0).choice([0.0, 0.25, 0.5, 1.0], 30), soft=True)
    networks = twins(ensemble)
    train_twins(networks, buffer, 5, learning_rate=1e-2)
    ensemble.fit(buffer, 5, target_accuracy=2.0)
    assert_same_weights(ensemble, networks)


@pytest.mark.parametrize("threshold", [0.0, 0.55, 1.0])
def test_sure_pairs_count_as_if_labelled(threshold):
    # Larger weights than a network starts with: some chances are over 0.55 then, and some under.
    ensemble, buffer, further = tiny(learning_rate=1e-3), filled_buffer(30), filled_buffer(20, seed=7)
    for weight in ensemble.weights:
        weight.data *= 1.5
    chance = chances_by_hand(ensemble, further).mean(0)
    share = (np.maximum(chance, 1 - chance) > threshold).mean()
    assert share == {0.0: 1.0, 0.55: pytest.approx(0.5, abs=0.45), 1.0: 0.0}[threshold]
    networks = twins(ensemble)
    settings = {"threshold": threshold, "weight": 2.0}
    train_twins(networks, buffer, 1, unlabelled=further, learning_rate=1e-3, **settings)
    report = ensemble.fit(buffer, 1, unlabelled=(segments(20, 7), segments(20, 1007)), **settings)
    assert report.pseudo_labelled == pytest.approx(share)
    assert_same_weights(ensemble, networks)


def test_a_batch_of_unlabelled_pairs_is_at_most_as_large():
    drawn = (segments(50, 7), segments(50, 1007))
    report = tiny().fit(filled_buffer(30), 1, batch=8, unlabelled=drawn, threshold=0.0)
    assert report.pseudo_labelled == 1.0
    assert tiny().fit(filled_buffer(30), 1, unlabelled=(drawn[0][:0], drawn[1][:0])).pseudo_labelled == 0.0


def test_it_learns_the_true_reward_and_stops():
    ensemble, buffer, heard = tiny(hidden=(32, 32), learning_rate=3e-3), filled_buffer(300), []
    report = ensemble.fit(buffer, 200, batch=32, progress=lambda epoch, accuracy: heard.append((epoch, accuracy)))
    assert report.epochs < 200
    assert [epoch for epoch, _ in heard] == list(range(1, report.epochs + 1))
    means = [mean for _, mean in heard]
    assert means[-1] == pytest.approx(sum(report.accuracy) / 3)
    assert means[-1] > 0.97 >= max(means[:-1])
    unseen = filled_buffer(200, seed=50)
    states, actions = torch.from_numpy(unseen.inputs[:, 0, 0]).split([STATES, ACTIONS], dim=1)
    assert np.corrcoef(ensemble.predict(states, actions), states[:, 0])[0, 1] > 0.8
    right = (chances_by_hand(ensemble, unseen).mean(0) > 0.5) == (unseen.labels > 0.5)
    assert right.mean() > 0.75  # 300 pairs of noise are learned by heart, but not only so


def test_equal_pairs_have_no_accuracy_and_never_stop_a_fit():
    buffer = PreferenceBuffer()
    buffer.add(segments(20, 0), segments(20, 1), [0.5] * 20)
    report = tiny(learning_rate=1e-2).fit(buffer, 30)
    assert report.epochs == 30
    assert np.isnan(report.accuracy).all()
    assert math.log(2) <= report.loss + 1e-6 < math.log(2) + 0.01


def test_members_see_the_pairs_in_different_orders():
    ensemble = tiny()
    for values in ensemble.parameters():
        values.data[:] = values.data[:1].clone()
    ensemble.fit(filled_buffer(40), 1, batch=4)
    for one, other in itertools.combinations(ensemble.weights[0], 2):
        assert not torch.equal(one, other)


def test_global_generators_stay_as_they_are(tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    ensemble = tiny()
    ensemble.fit(filled_buffer(10), 2, unlabelled=(segments(4, 0), segments(4, 1)))
    ensemble.save(tmp_path)
    RewardEnsemble.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


@pytest.mark.parametrize("before", [0, 2])
def test_a_loaded_ensemble_learns_on_bit_for_bit(tmp_path, before):
    ensemble, buffer = tiny(seed=4, learning_rate=1e-2), filled_buffer(50)
    if before:
        ensemble.fit(buffer, before, batch=16, target_accuracy=2.0)
    ensemble.save(tmp_path)
    back = RewardEnsemble.load(tmp_path)
    assert back.settings == ensemble.settings
    for copy in (ensemble, back):
        copy.fit(buffer, 2, batch=16, target_accuracy=2.0, unlabelled=(segments(30, 5), segments(30, 6)))
    for ours, theirs in zip(ensemble.parameters(), back.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: t.pop("weights.1"), "missing tensors: weights.1"),
        (lambda d, t: t.pop("adam.0.step"), "missing tensors: adam.0.step"),
        (lambda d, t: t.update(more=torch.ones(1)), "unknown tensors: more"),
        (
            lambda d, t: t.update({"biases.0": torch.ones(3, 1, 9)}),
            "biases.0: expected the shape [3, 1, 8], got [3, 1, 9]",
        ),
        (lambda d, t: t.update({"biases.0": t["biases.0"].double()}), "biases.0: expected float32, got float64"),
        (lambda d, t: t["weights.0"].fill_(math.nan), "weights.0: expected finite numbers, got NaN or inf"),
        (lambda d, t: t["adam.1.exp_avg_sq"].fill_(-1), "adam.1.exp_avg_sq: expected numbers from 0 to inf, got -1"),
        (lambda d, t: t["deviation"].fill_(0), "deviation: expected numbers from 0.001 to inf, got 0"),
        (lambda d, t: t["rng"].fill_(255), "no state of a generator of torch (Invalid mt19937 state)"),
        (lambda d, t: d.update(format=2), "format: expected 1, got 2"),
        (lambda d, t: d.pop("settings"), "settings: missing"),
        (
            lambda d, t: d["settings"].update(learning_rate=0.0),
            "settings.learning_rate: expected greater than 0, got 0.0",
        ),
        (
            lambda d, t: d["settings"]["hidden"].__setitem__(0, 10**12),  # never made: 12 TB a layer
            "weights.0: expected the shape [3, 5, 1000000000000], got [3, 5, 8]",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, change, message):
    ensemble = tiny()
    ensemble.fit(filled_buffer(5), 1)
    check_refused(ensemble, tmp_path, change, message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tiny(members=0),
            "state_dim, action_dim, members and hidden must be at least 1, got 3, 2, 0 and (8, 7)",
        ),
        (
            lambda: tiny(hidden=(8, 0)),
            "state_dim, action_dim, members and hidden must be at least 1, got 3, 2, 3 and (8, 0)",
        ),
        (lambda: tiny(learning_rate=math.nan), "learning_rate must be above 0 and finite, got nan"),
        (
            lambda: tiny().predict(torch.zeros(4, 3), torch.zeros(4, 1)),
            "expected states [B, 3] and actions [B, 2], got [4, 3] and [4, 1]",
        ),
        (
            lambda: tiny().members(torch.zeros(4, 3), torch.zeros(5, 2)),
            "expected states [B, 3] and actions [B, 2], got [4, 3] and [5, 2]",
        ),
        (lambda: tiny().fit(PreferenceBuffer(), 1), "expected at least one labelled pair to learn from, got none"),
        (lambda: tiny().fit(filled_buffer(2), 0), "epochs and batch must be at least 1, got 0 and 128"),
        (lambda: tiny().fit(filled_buffer(2), 1, 0), "epochs and batch must be at least 1, got 1 and 0"),
    ],
)
def test_calls_that_make_no_sense(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_inputs_are_standardized_by_those_of_the_first_fit(tmp_path):
    ensemble = tiny(standardize=True)
    buffer = PreferenceBuffer()
    first, second = segments(30, 3), segments(30, 1003)
    first.states[..., 0] = 7.0  # an input that never moves
    second.states[..., 0] = 7.0
    buffer.add(first, second, np.arange(30) % 2)
    ensemble.fit(buffer, 1)
    rows = np.concatenate([
        np.concatenate([side.states, side.actions], axis=2)[side.mask] for side in (first, second)
    ]).astype(np.float64)  # fmt: skip
    mean, deviation = rows.mean(0), rows.std(0, ddof=1)
    deviation[0] = 1.0
    np.testing.assert_allclose(ensemble.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ensemble.deviation, deviation, rtol=1e-5)
    plain = tiny()
    plain.load_state_dict({**ensemble.state_dict(), "mean": torch.zeros(len(mean)), "deviation": torch.ones(len(mean))})
    scaled = torch.from_numpy(((rows - mean) / deviation).astype(np.float32))
    raw = torch.from_numpy(rows.astype(np.float32))
    torch.testing.assert_close(
        ensemble.members(raw[:, :STATES], raw[:, STATES:]), plain.members(scaled[:, :STATES], scaled[:, STATES:])
    )
    before = ensemble.mean.clone()
    buffer.add(segments(30, 5), segments(30, 1005), np.arange(30) % 2)
    ensemble.fit(buffer, 1)
    assert torch.equal(ensemble.mean, before)
    ensemble.save(tmp_path)
    assert torch.equal(RewardEnsemble.load(tmp_path).mean, before)
