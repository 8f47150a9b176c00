"""The contract of a trajectory holds when it is written, and when it is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets")

from rollouts import painted

from vlp_gym.data import check
from vlp_gym.data.shards import decode_trajectory, encode_trajectory, shard_path, write_shard
from vlp_gym.errors import DatasetError

GOOD = replace(
    painted("fold", "expert", 7, frames=3),
    sentences=("fold the towel", "make it small"),
    held_out=("a folded towel",),
    opposite_sentences=(("unfold it",), ()),
    variants={"phrase": ("towel",)},
    observation=np.zeros((11, 2), np.float32),
    action=np.zeros((10, 2), np.float32),
)  # 3 frames, of the steps 0, 5 and 10


def at(values: np.ndarray, place: Any, value: Any) -> np.ndarray:
    changed = np.array(values)
    changed[place] = value
    return changed


STEPS = "step: expected rising numbers from 0 to 10, the number of environment steps, got"
TIERS = "expert, medium, random, near_miss, explore, agent, retreat, apart, either_way"
NAN, INF = float("nan"), float("inf")
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"step": np.array([0, 5, 5])}, f"{STEPS} [0 5 5]"),
    ({"step": np.array([5, 0, 10])}, f"{STEPS} [ 5  0 10]"),
    ({"step": np.array([-1, 0, 10])}, f"{STEPS} [-1  0 10]"),
    ({"step": np.array([0, 5, 11])}, f"{STEPS} [ 0  5 11]"),
    ({"reward": at(GOOD.reward, 1, NAN)}, "reward: expected finite numbers, got nan at [1]"),
    ({"episode_reward": at(GOOD.episode_reward, 9, -INF)}, "episode_reward: expected finite numbers, got -inf at [9]"),
    ({"positions": at(GOOD.positions, (2, 1, 0), INF)}, "positions: expected finite numbers, got inf at {place}"),
    ({"observation": at(GOOD.observation, (10, 1), NAN)}, "observation: expected finite numbers, got nan at [10, 1]"),
    ({"action": at(GOOD.action, (0, 0), INF)}, "action: expected finite numbers, got inf at [0, 0]"),
    ({"tier": "novice"}, f"tier: expected {TIERS}, got 'novice'"),
    ({"task": " "}, "task: expected a name in printable characters, got ' '"),
    ({"task": "a\0b"}, r"task: expected a name in printable characters, got 'a\x00b'"),
    ({"task": "../fold"}, "task: expected a name without \"/\", got '../fold'"),
    ({"sibling": "a/b"}, "sibling: expected a name without \"/\", got 'a/b'"),
    ({"camera": "x" * 1001}, f"camera: expected a name in printable characters, got '{'x' * 100}'"),
    ({"sibling": ""}, "sibling: expected a name in printable characters, got ''"),
    ({"stride": 0}, "stride: expected at least 1, got 0"),
    (
        {"sentences": ("fold", "")},
        'sentences, 1: the instruction is empty; say what is to be done, such as "press the button"',
    ),
    (
        {"held_out": ("a\0",)},
        "held_out, 0: the instruction holds a NUL character at position 1; remove it",
    ),
    (
        {"opposite_sentences": (("unfold",), ("x" * 10_001,))},
        "opposite_sentences 1, 0: expected at most 10000 characters, got 10001",
    ),
    (
        {"sentences": ("fold",) * 10_001, "opposite_sentences": ()},
        "sentences: expected at most 10000 sentences, got 10001",
    ),
    (
        {"opposite_sentences": (("unfold",) * 10_000, ("unfold",))},
        "opposite_sentences: expected at most 10000, got 10001",
    ),
    (
        {"variants": {"phrase": ("\u200b",)}},
        'variants phrase, 0: the instruction is empty; say what is to be done, such as "press the button"',
    ),
]


@pytest.mark.parametrize(("changed", "message"), WRONG)
def test_what_breaks_the_contract_is_neither_written_nor_read(tmp_path, changed, message):
    wrong = replace(GOOD, **changed)
    name = f"{wrong.task[:100]}/{wrong.tier}/7: "
    path = shard_path(tmp_path, "fold", "expert")
    with pytest.raises(DatasetError) as caught:
        write_shard([wrong], path)
    assert str(caught.value) == name + message.format(place=[2, 1, 0])
    assert not path.parent.exists()
    with pytest.raises(DatasetError) as caught:
        decode_trajectory(encode_trajectory(wrong))
    assert str(caught.value) == name + message.format(place=[2, 3])  # a row of six numbers a frame


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": "7"}, "fold/expert/7: seed: expected a whole number, got '7'"),
        ({"seed": True}, "fold/expert/True: seed: expected a whole number, got True"),
        ({"stride": 5.0}, "fold/expert/7: stride: expected a whole number, got 5.0"),
        ({"varied": 1}, "fold/expert/7: varied: expected true or false, got 1"),
        ({"camera": None}, "fold/expert/7: camera: expected a name in printable characters, got 'None'"),
        ({"held_out": "fold"}, "fold/expert/7: held_out: expected a tuple of sentences, got 'fold'"),
        ({"held_out": (7,)}, "fold/expert/7: held_out, 0: expected a string, got 7"),
        (
            {"frames": GOOD.frames.astype(np.float32)},
            "fold/expert/7: expected uint8 frames [F, H, W, 3], got float32 [3, 16, 16, 3]",
        ),
        ({"frames": GOOD.frames[..., 0]}, "fold/expert/7: expected uint8 frames [F, H, W, 3], got uint8 [3, 16, 16]"),
        (
            {"task": "unfold"},
            "task unfold, expert, seed 7: expected it in a shard unfold-expert.parquet, got fold-expert.parquet",
        ),
    ],
)
def test_values_of_other_kinds_are_not_written(tmp_path, changed, message):
    with pytest.raises(DatasetError) as caught:
        write_shard([replace(GOOD, **changed)], shard_path(tmp_path, "fold", "expert"))
    assert str(caught.value) == message


def test_what_is_at_the_limits_is_read():
    edge = replace(
        GOOD,
        step=np.array([0, 1, 10]),
        positions=np.full((3, 2, 3), np.nan, np.float32),  # not recorded
        seed=-(2**63),
        sentences=("x" * 10_000, "🧺 ‏طيّ المنشفة"),
        held_out=("fold",) * 10_000,
        task="x" * 1_000,
        opposite=None,
        observation=None,
    )
    back = decode_trajectory(encode_trajectory(edge))
    assert back.sentences == edge.sentences
    assert (back.task, back.seed, back.held_out) == (edge.task, edge.seed, edge.held_out)
    assert (back.step.tolist(), back.observation) == ([0, 1, 10], None)
    assert np.isnan(back.positions).all()


def test_a_rollout_of_one_frame_and_no_steps():
    one = replace(painted("fold", "expert", frames=2), **{name: getattr(GOOD, name)[:1] for name in (
        "frames", "step", "reward", "success", "positions")}, episode_reward=GOOD.episode_reward[:0],
        observation=GOOD.observation[:1], action=GOOD.action[:0])  # fmt: skip
    back = decode_trajectory(encode_trajectory(one))
    assert (back.frames.shape, back.observation.shape, len(back.action)) == ((1, 16, 16, 3), (1, 2), 0)


def test_frames_of_more_than_128_megapixels_are_neither_written_nor_read(tmp_path, monkeypatch):
    row = encode_trajectory(GOOD)
    monkeypatch.setattr(check, "MAX_PIXELS", 3 * 16 * 16)
    assert decode_trajectory(row).frames.shape == (3, 16, 16, 3)
    monkeypatch.setattr(check, "MAX_PIXELS", 3 * 16 * 16 - 1)
    message = (
        "fold/expert/7: expected at most 0 megapixels in all frames, got 3 of 16 x 16, 0; store smaller or fewer frames"
    )
    for run in (lambda: decode_trajectory(row), lambda: write_shard([GOOD], shard_path(tmp_path, "fold", "expert"))):
        with pytest.raises(DatasetError) as caught:
            run()
        assert str(caught.value) == message


@pytest.mark.parametrize("column", ["task", "seed", "varied", "frames", "step", "reward", "success", "positions"])
def test_a_null_in_place_of_a_value(column):
    with pytest.raises(DatasetError, match=r"^(fold|None)/expert/(7|None): .*expected .*, got (null|None|'None')$"):
        decode_trajectory({**encode_trajectory(GOOD), column: None})


@pytest.mark.parametrize(
    "column", ["step", "reward", "success", "episode_reward", "positions", "observation", "action"]
)
def test_a_null_among_numbers(column):
    row = encode_trajectory(GOOD)
    values = row[column][1] if isinstance(row[column][1], list) else row[column]
    values[1] = None
    with pytest.raises(DatasetError) as caught:
        decode_trajectory(row)
    assert str(caught.value) == f"fold/expert/7: {column}: expected numbers, got null"


def test_a_null_among_sentences():
    for column in ("sentences", "held_out"):
        with pytest.raises(DatasetError) as caught:
            decode_trajectory({**encode_trajectory(GOOD), column: [None, "fold"]})
        assert str(caught.value) == f"fold/expert/7: {column}, 0: expected a string, got None"
    for groups, message in (
        ([[None], []], "opposite_sentences 0, 0: expected a string, got None"),
        ([[], None], "opposite_sentences 1: expected a tuple of sentences, got 'None'"),
    ):
        with pytest.raises(DatasetError) as caught:
            decode_trajectory({**encode_trajectory(GOOD), "opposite_sentences": groups})
        assert str(caught.value) == f"fold/expert/7: {message}"
    none = {**encode_trajectory(GOOD), "variants": {"phrase": None, "description": ["a towel"]}}
    assert decode_trajectory(none).variants == {"description": ("a towel",)}
