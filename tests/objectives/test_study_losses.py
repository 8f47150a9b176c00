"""The objectives of "Revisiting the learning objectives" against its equations, written a second time in NumPy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from vlp_gym.objectives.infonce import infonce_loss
from vlp_gym.objectives.liv import liv_loss
from vlp_gym.objectives.r3m import r3m_loss
from vlp_gym.objectives.tcn import tcn_loss
from vlp_gym.objectives.tcn_text import tcn_text_loss
from vlp_gym.objectives.triplet import triplet_loss
from vlp_gym.objectives.vip import vip_loss
from vlp_gym.objectives.vip_text import vip_text_loss

B, E = 6, 5
RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(5, B, E))
POINTS /= np.linalg.norm(POINTS, axis=-1, keepdims=True)
Z_I, Z_J, Z_NEXT, Z_K, TEXT = POINTS
OTHERS = np.stack([(b + 1 + RNG.permutation(B - 1)[:3]) % B for b in range(B)])
GAMMA = 0.98


def tensors(*arrays):
    """As a model gives them, in single precision; indices as they are."""
    return [torch.tensor(a, dtype=torch.float32 if a.dtype == np.float64 else torch.int64) for a in arrays]


def triplet(margin=0.3):
    return np.mean([max(0.0, TEXT[b] @ Z_I[b] - TEXT[b] @ Z_J[b] + margin) for b in range(B)])


def tcn():
    total = 0.0
    for b in range(B):
        near = np.exp(Z_I[b] @ Z_J[b])
        below = near + np.exp(Z_I[b] @ Z_K[b]) + sum(np.exp(Z_I[b] @ Z_I[other]) for other in OTHERS[b])
        total -= np.log(near / below)
    return total / B


def tcn_text():
    total = 0.0
    for b in range(B):
        late = np.exp(Z_J[b] @ TEXT[b])
        below = late + np.exp(Z_I[b] @ TEXT[b]) + sum(np.exp(Z_J[other] @ TEXT[b]) for other in OTHERS[b])
        total -= np.log(late / below)
    return total / B


def vip(goal, gamma=GAMMA):
    first = (1 - gamma) / B * sum(-(Z_I[b] @ goal[b]) for b in range(B))
    return first + np.log(sum(np.exp(Z_J[b] @ goal[b] + 1 - gamma * (Z_NEXT[b] @ goal[b])) for b in range(B)) / B)


def infonce(foreign=~np.eye(B, dtype=bool)):  # noqa: B008  # nothing changes it
    total = 0.0
    for b in range(B):
        below = sum(np.exp(Z_K[other] @ TEXT[b]) for other in range(B) if foreign[b, other]) / B
        total -= np.log(np.exp(Z_K[b] @ TEXT[b]) / below)
    return total / B


@pytest.mark.parametrize(
    ("loss", "inputs", "expected"),
    [
        (triplet_loss, (Z_I, Z_J, TEXT), triplet()),
        (tcn_loss, (Z_I, Z_J, Z_K, OTHERS), tcn()),
        (tcn_text_loss, (Z_I, Z_J, TEXT, OTHERS), tcn_text()),
        (r3m_loss, (Z_I, Z_J, Z_K, TEXT, OTHERS), tcn() + tcn_text()),
        (vip_loss, (Z_I, Z_J, Z_NEXT, Z_K), vip(Z_K)),
        (vip_text_loss, (Z_I, Z_J, Z_NEXT, TEXT), vip(TEXT)),
        (infonce_loss, (Z_K, TEXT), infonce()),
        (liv_loss, (Z_I, Z_J, Z_NEXT, Z_K, TEXT), vip(Z_K) + vip(TEXT) + infonce()),
    ],
)
def test_is_the_equation(loss, inputs, expected):
    value = loss(*tensors(*inputs))
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_videos_of_the_same_task_are_no_negatives_where_that_is_said():
    tasks = np.array([0, 1, 0, 2, 2, 0])
    foreign = tasks[:, None] != tasks
    mask = torch.tensor(foreign)
    assert infonce_loss(*tensors(Z_K, TEXT), mask).item() == pytest.approx(infonce(foreign), abs=1e-5)
    expected = vip(Z_K) + vip(TEXT) + infonce(foreign)
    assert liv_loss(*tensors(Z_I, Z_J, Z_NEXT, Z_K, TEXT), mask).item() == pytest.approx(expected, abs=1e-5)
    assert abs(infonce(foreign) - infonce()) > 0.01


def test_the_margin_and_the_discount_are_arguments():
    assert triplet_loss(*tensors(Z_I, Z_J, TEXT), margin=1.5).item() == pytest.approx(triplet(1.5), abs=1e-5)
    for gamma in (0.0, 0.5, 1.0):
        loss = vip_loss(*tensors(Z_I, Z_J, Z_NEXT, Z_K), gamma=gamma)
        assert loss.item() == pytest.approx(vip(Z_K, gamma), abs=1e-5)


def test_a_triplet_that_is_far_enough_apart_teaches_nothing():
    text, near, far = tensors(np.eye(1, E), np.eye(1, E), -np.eye(1, E))
    earlier = far.requires_grad_()
    loss = triplet_loss(earlier, near, text)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(earlier.grad, torch.zeros(1, E))


@pytest.mark.parametrize(
    ("loss", "frames"),
    [
        (lambda i, j, *_, v: triplet_loss(i, j, v), 2),
        (lambda i, j, *_, v: tcn_text_loss(i, j, v, torch.tensor([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])), 2),
        (lambda i, j, n, *_, v: vip_text_loss(i, j, n, v), 3),
    ],
)
def test_descent_brings_the_later_frame_nearer_to_the_sentence(loss, frames):
    """Four videos, free embeddings: what each text objective is for."""
    torch.manual_seed(0)
    free = torch.randn(frames + 1, 4, 8, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.05)

    def unit():
        return torch.nn.functional.normalize(free, dim=-1)

    for _ in range(150):
        *by_time, text = unit()
        optimizer.zero_grad()
        loss(*by_time, v=text).backward()
        optimizer.step()
    *by_time, text = unit().detach()
    last, before = by_time[-1], by_time[-2]
    assert ((last * text).sum(-1) > (before * text).sum(-1) + 0.2).all()


def test_infonce_needs_another_video():
    with pytest.raises(ValueError, match=f"^{re.escape('goal: expected at least 2 videos to tell apart, got 1')}$"):
        infonce_loss(torch.ones(1, 2), torch.ones(1, 2))
    foreign = torch.tensor([[False, True, True], [False, False, False], [True, True, False]])
    message = "foreign: expected another video for every row, got none for row 1"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        infonce_loss(torch.ones(3, 2), torch.ones(3, 2), foreign)
