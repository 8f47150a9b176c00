"""Two models as one, and the gate between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from painted_segments import painted_store
from tiny import awake_model

from tests.chat_server import ChatServer
from vlp_gym import VLPRewardWrapper, load_reward_model
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.errors import CheckpointError
from vlp_gym.models.cascade import CascadeModel
from vlp_gym.models.gate import Gate, read_cascade
from vlp_gym.models.protocol import PairwiseModel
from vlp_gym.models.registry import check_storable
from vlp_gym.preferences import ModelLabeler
from vlp_gym.testing import PaintedEnv, PaintedModel, check_reward_model

SENTENCE = "press the button"
CHANCES = st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), min_size=1, max_size=30)


@given(CHANCES, st.floats(0.01, 0.5), st.floats(0.01, 1), st.one_of(st.none(), st.integers(0, 20)))
def test_the_least_certain_are_sent_within_band_share_and_budget(
    chances: list[float], band: float, share: float, budget: int | None
) -> None:
    gate = Gate(band, share, budget)
    rows = gate.choose(np.array(chances))
    distance = np.nan_to_num(np.abs(np.array(chances) - 0.5))  # NaN is undecided: 0
    within = int((distance <= band).sum())
    most = round(share * len(chances))
    assert len(rows) == min(within, most, len(chances) if budget is None else budget)
    others = np.setdiff1d(np.arange(len(chances)), rows)
    assert distance[rows].max(initial=0.0) <= min(band, distance[others].min(initial=np.inf)) or not len(rows)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert (gate.asked, gate.sent) == (len(chances), len(rows))


def test_a_budget_holds_for_all_calls() -> None:
    gate = Gate(0.5, budget=7)
    assert [len(gate.choose(np.full(3, 0.6))) for _ in range(4)] == [3, 3, 1, 0]
    assert str(gate) == "7 of 12 pairs (58%) were sent on, of a budget of 7"
    assert str(Gate()) == "0 of 0 pairs (0%) were sent on"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"band": 0.0}, "band must be in (0, 0.5], got 0.0"),
        ({"band": float("nan")}, "band must be in (0, 0.5], got nan"),
        ({"share": 1.5}, "share must be in (0, 1], got 1.5"),
        ({"budget": -1}, "budget must be at least 0, or None, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Gate(**options)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize("spec", ["", "a", "a|", "|b", "a|b|", "a|b|c", "a|b|band", "a|b|band=x", "c:mean|a|b"])
def test_a_name_of_another_form_is_refused(spec: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_cascade(spec)
    assert str(caught.value) == (
        'expected "cascade:SMALL|LARGE", and behind it "|band=0.25", "|share=0.2" or "|budget=500", got '
        f"'cascade:{spec}'; a part whose own name has a | is named as a folder"
    )


def pairs(model: CascadeModel, count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames ``[2, N, T, H, W, 3]``, their tokens on each side, and text."""
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, count, 3, 32, 32, 3), np.uint8))
    a, b = (model.encode_frames(side.flatten(0, 1)).unflatten(0, (count, 3)) for side in frames)
    return frames, a, b, model.encode_text([SENTENCE] * count)


def alone(model, frames: torch.Tensor) -> torch.Tensor:
    """P(a > b) of one model."""
    guarded = GuardedModel(model)
    a, b = (guarded.encode_frames(side.flatten(0, 1), where="").unflatten(0, side.shape[:2]) for side in frames)
    text = guarded.encode_text([SENTENCE] * len(a), where="")
    mask = torch.ones(a.shape[:2], dtype=torch.bool)
    mask[:, 0] = False  # the first frame is what it is measured from
    f, g = (guarded.score(side, text, mask, where="").preference for side in (a, b))
    return torch.sigmoid(f - g)


def two_models():
    small, large = awake_model(), awake_model()
    with torch.no_grad():
        for weight in large.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return small, large.eval()


def test_uncertain_pairs_are_the_large_models_and_the_others_the_small_ones() -> None:
    small, large = two_models()
    model = CascadeModel(small, large, Gate(0.5, share=0.5))
    frames, a, b, text = pairs(model)
    low, high = alone(small, frames), alone(large, frames)
    assert not torch.allclose(low, high, atol=1e-3)
    sent = (low - 0.5).abs().argsort(stable=True)[:3]
    expected = low.clone()
    expected[sent] = high[sent]
    torch.testing.assert_close(model.prefer(a, b, text), expected, atol=1e-5, rtol=0)
    assert (model.gate.asked, model.gate.sent) == (6, 3)


def test_nothing_of_the_large_model_runs_for_other_pairs() -> None:
    large = PaintedModel(3)
    model = CascadeModel(awake_model(), large, Gate(0.5, budget=2))
    _, a, b, text = pairs(model)
    assert large.encoded == 0
    model.prefer(a, b, text)
    assert large.encoded == 2 * 2 * 3  # two pairs of two videos of three frames
    assert [len(window) for window in large.windows] == [2] * 4  # without those that the small one measures from
    model.prefer(a, b, text)  # the budget is spent
    assert large.encoded == 12
    mask = torch.ones(a.shape[:2], dtype=torch.bool)
    ours, theirs = model.score(a, text, mask), model.small.score(model._small_tokens(a), model._text(text, 0), mask)
    assert torch.equal(ours.preference, theirs.preference)
    assert len(large.windows) == 4  # those of the two pairs


def test_it_keeps_the_promises_of_a_reward_model() -> None:
    model = CascadeModel(*two_models())
    check_reward_model(model)
    assert isinstance(model, PairwiseModel)


def test_by_name_in_a_wrapper_it_pays_what_the_small_one_pays() -> None:
    paid = []
    for name in ("vlp-compact", "cascade:vlp-compact|vlp-compact-45|band=0.1"):
        env = VLPRewardWrapper(PaintedEnv([3]), SENTENCE, name)
        with pytest.warns(UserWarning, match=r"^the reward model does not know such pictures: they are 15.2 away"):
            env.reset(seed=0)
        paid.append([env.step(0)[1] for _ in range(3)])
        env.close()
    assert paid[0] == pytest.approx(paid[1], abs=1e-6)


def test_a_chat_model_is_asked_about_what_is_sent_alone(server: ChatServer, tmp_path: Path) -> None:
    large = f"rl-vlm-f:tiny?base_url={server.url}&cache={tmp_path}&frame_size=8"
    model = load_reward_model(f"cascade:vlp-compact|{large}|band=0.5|budget=2")
    assert isinstance(model, CascadeModel)
    _, a, b, text = pairs(model)
    chances = GuardedModel(model).prefer(a, b, text, where="")
    assert len(server.requests) == 2 * 2  # two stages
    decided = chances[(chances == 0) | (chances == 1) | (chances == 0.5)]
    assert len(decided) == 2
    model.large.chat.close()  # type: ignore[attr-defined]


def test_segments_have_the_labels_of_the_models_alone_whatever_they_measure_from() -> None:
    """A staged model measures from the episode's first frame, and a painted one scores the newest frame."""
    store = painted_store(size=32)
    sides = store.cut([(0, 2, 10), (1, 5, 13), (4, 1, 9)]), store.cut([(2, 0, 8), (3, 3, 11), (5, 9, 17)])
    small, large = two_models()
    for above in (large, PaintedModel(4)):
        below, high, both = (
            ModelLabeler(model, SENTENCE, soft=True)(*sides)
            for model in (small, above, CascadeModel(small, above, Gate(0.5, share=1 / 3)))
        )
        sent = np.abs(below - 0.5).argmin()
        expected = below.copy()
        expected[sent] = high[sent]
        assert abs(below[sent] - high[sent]) > 1e-4
        np.testing.assert_allclose(both, expected, atol=1e-5)


def test_a_checkpoint_may_not_name_one_with_an_endpoint() -> None:
    with pytest.raises(CheckpointError, match="may not name a model on an endpoint"):
        check_storable(["cascade:vlp-compact|gvl:gpt-4o"])
    check_storable(["cascade:vlp-compact|vlp-compact-45"])
