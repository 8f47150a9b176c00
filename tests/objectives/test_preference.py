from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from vlp_gym.objectives.preference import bradley_terry_loss, vlp_loss


def softmax_cross_entropy(a: np.ndarray, b: np.ndarray, label: np.ndarray | float) -> float:
    """VLP eqs. 2 and 3 as printed, in float64: a softmax over the two scores, label the probability of a."""
    p_a = np.exp(a) / (np.exp(a) + np.exp(b))
    p_b = np.exp(b) / (np.exp(a) + np.exp(b))
    return float(np.mean(-(label * np.log(p_a) + (1 - label) * np.log(p_b))))


def scores(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, shape)


@pytest.mark.parametrize("label", [0.0, 0.5, 1.0, 0.3])
def test_bradley_terry_is_cross_entropy_of_the_softmax(label: float) -> None:
    a, b = scores(0, 7), scores(1, 7)
    loss = bradley_terry_loss(torch.from_numpy(a), torch.from_numpy(b), label)
    assert loss.item() == pytest.approx(softmax_cross_entropy(a, b, label), rel=1e-12)


def test_one_label_a_pair() -> None:
    a, b, label = scores(0, 4, 3), scores(1, 4, 3), np.random.default_rng(2).uniform(0, 1, (4, 3))
    loss = bradley_terry_loss(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(label))
    assert loss.item() == pytest.approx(softmax_cross_entropy(a, b, label), rel=1e-12)


def test_integer_labels_and_exchange() -> None:
    a, b, label = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0]), torch.tensor([1, 0])
    torch.testing.assert_close(bradley_terry_loss(a, b, label), bradley_terry_loss(b, a, 1 - label))
    assert bradley_terry_loss(a, b, label) < bradley_terry_loss(a, b, 1 - label)


def test_far_apart_scores_stay_finite() -> None:
    a = torch.tensor([1e4], requires_grad=True)
    loss = bradley_terry_loss(a, torch.tensor([0.0]), 0.0)
    loss.backward()
    assert loss.item() == 1e4
    assert a.grad is not None
    assert a.grad.item() == 1.0


def test_pairs_that_are_left_out() -> None:
    """The mean is over the others, and over none it is 0; neither moves a score that is left out."""
    rng = np.random.default_rng(0)
    a, b, label = (torch.from_numpy(x) for x in (rng.normal(size=6), rng.normal(size=6), rng.uniform(size=6)))
    known = torch.tensor([True, False, True, True, False, False])
    a.requires_grad_()
    loss = bradley_terry_loss(a, b, label, known)
    assert loss.item() == pytest.approx(bradley_terry_loss(a[known], b[known], label[known]).item())
    loss.backward()
    assert a.grad is not None
    assert torch.equal(a.grad != 0, known)
    a.grad = None
    nothing = bradley_terry_loss(a, b, label, torch.zeros(6, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert (a.grad == 0).all()
    with pytest.raises(ValueError, match=r"^known: expected the shape \(6,\), got \(6, 1\)$"):
        bradley_terry_loss(a, b, label, known[:, None])


@pytest.mark.parametrize("label", [-0.1, 1.1, float("nan"), -1.0])
def test_labels_outside_zero_and_one_are_refused(label: float) -> None:
    with pytest.raises(ValueError, match=r"^expected labels in \[0, 1\], the probability that the first video is pref"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(2), torch.tensor([0.5, label]))


def test_nothing_broadcasts_by_accident() -> None:
    message = "expected two score tensors of one shape, got (3,) and (3, 1)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3, 1), 1.0)
    message = "expected one label or labels of shape (3,), got shape (3, 1)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3), torch.ones(3, 1))
    message = "expected two score tensors of one shape, got (3,) and (4, 2)"
    s, n = torch.zeros(3), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        vlp_loss((s, s, 1.0), (s, s), ((s, n), (s, n)))


@pytest.mark.parametrize("negatives", [None, 1, 4])
@pytest.mark.parametrize("weights", [(), (0.3, 0.7)])
def test_vlp_loss_is_equation_4(negatives: int | None, weights: tuple[float, ...]) -> None:
    shape = (5,) if negatives is None else (5, negatives)
    fa, fb, ga, gb, fneg = scores(0, 5), scores(1, 5), scores(2, *shape), scores(3, *shape), scores(4, *shape)
    y = np.array([1.0, 0.0, 0.5, 1.0, 0.2])

    # Eq. 4 pair by pair: one video and one negative at a time.
    itp = np.mean([softmax_cross_entropy(fa[i], fb[i], y[i]) for i in range(5)])
    ilp = np.mean([softmax_cross_entropy(a, b, 0.5) for a, b in zip(ga.flat, gb.flat, strict=True)])
    rows = fneg.reshape(5, -1)
    ivp_a = np.mean([softmax_cross_entropy(fa[i], n, 1.0) for i in range(5) for n in rows[i]])
    ivp_b = np.mean([softmax_cross_entropy(fb[i], n, 1.0) for i in range(5) for n in rows[i]])
    lambda_ilp, lambda_ivp = weights or (0.1, 0.5)

    ta, tb, ua, ub, tneg, ty = (torch.from_numpy(x) for x in (fa, fb, ga, gb, fneg, y))
    loss = vlp_loss((ta, tb, ty), (ua, ub), ((ta, tneg), (tb, tneg)), *weights)
    assert loss.itp.item() == pytest.approx(itp, rel=1e-12)
    assert loss.ilp.item() == pytest.approx(ilp, rel=1e-12)
    assert loss.ivp.item() == pytest.approx(ivp_a + ivp_b, rel=1e-12)
    assert loss.total.item() == pytest.approx(itp + lambda_ilp * ilp + lambda_ivp * (ivp_a + ivp_b), rel=1e-12)


def test_a_model_that_ignores_foreign_sentences_has_ilp_log_2() -> None:
    s, g = torch.tensor([1.0, 2.0]), torch.tensor([0.3, -4.0])
    loss = vlp_loss((s, s, 1.0), (g, g), ((s, g), (s, g)))
    assert loss.ilp.item() == pytest.approx(np.log(2))


def test_each_term_pulls_the_right_way() -> None:
    fa, fb, fneg = (torch.zeros(2, requires_grad=True) for _ in range(3))
    ga, gb = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    vlp_loss((fa, fb, 1.0), (ga, gb), ((fa, fneg), (fb, fneg)), 0.1, 0.25).total.backward()
    assert fa.grad is not None
    assert fneg.grad is not None
    assert ga.grad is not None
    assert gb.grad is not None
    assert (fa.grad < 0).all()  # preferred twice: to b and to the negative
    assert (fneg.grad > 0).all()  # a video of another task
    assert (ga.grad > 0).all()  # under a foreign sentence the higher score falls
    assert torch.equal(ga.grad, -gb.grad)
