from __future__ import annotations

import sys
from typing import ClassVar

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vlp_gym import viz
from vlp_gym.errors import MissingExtraError
from vlp_gym.figures import DPI

CURVES = {"expert": [0.0, 0.5, 1.0], "random": [0.0, 0.1, 0.0], "expert, wrong sentence": [0.0, 0.1, 0.2]}


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def colours_near(image, hexadecimal):
    wanted = [int(hexadecimal[k : k + 2], 16) for k in (1, 3, 5)]
    return int((np.abs(image - wanted).max(axis=-1) < 12).sum())


@pytest.fixture(autouse=True)
def _globals_stay(monkeypatch):
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


class TestRewardCurves:
    def test_curves_and_strips(self, tmp_path):
        path = tmp_path / "new" / "curves.png"
        video = np.full((9, 20, 30, 3), (7, 199, 77), np.uint8)
        steps = {label: [0, 5, 10] for label in CURVES}
        viz.plot_reward_curves(
            CURVES, path, title="press", steps=steps, frames={"expert": video}, dashed=list(CURVES)[2:]
        )
        image = picture(path)
        assert colours_near(image, viz.COLOURS[0]) > 300
        assert colours_near(image, viz.COLOURS[1]) > 300
        assert colours_near(image, "#07C74D") > 10_000  # the frames
        assert [file.name for file in path.parent.iterdir()] == ["curves.png"]

    @pytest.mark.parametrize("shape", [(500, 2), (2000, 9)])
    def test_a_strip_of_tall_frames_is_no_taller_than_a_page(self, tmp_path, shape):
        video = np.full((3, *shape, 3), (7, 199, 77), np.uint8)
        viz.plot_reward_curves(CURVES, tmp_path / "curves.png", frames={"expert": video})
        viz.plot_examples({"expert": video}, tmp_path / "examples.png")
        for name in ("curves.png", "examples.png"):
            image = picture(tmp_path / name)
            assert image.shape[0] < 8 * DPI
            assert colours_near(image, "#07C74D") > 500  # the frames, smaller

    def test_dashed_curves_take_the_colours_again(self):
        assert viz._paired_colours(["a", "b", "a, wrong"], ["a, wrong"]) == {
            "a": viz.COLOURS[0],
            "b": viz.COLOURS[1],
            "a, wrong": viz.COLOURS[0],
        }

    def test_vector_formats(self, tmp_path):
        viz.plot_reward_curves({"one": [1.0, 2.0]}, tmp_path / "curve.svg")
        assert b"<svg" in (tmp_path / "curve.svg").read_bytes()

    def test_nothing_to_draw(self, tmp_path):
        with pytest.raises(ValueError, match=r"^curves: expected at least one, got none$"):
            viz.plot_reward_curves({}, tmp_path / "curves.png")

    def test_a_failure_leaves_the_old_picture(self, tmp_path):
        path = tmp_path / "curves.png"
        path.write_bytes(b"old")
        with pytest.raises(ValueError, match="shape"):
            viz.plot_reward_curves({"a": [1.0, 2.0]}, path, steps={"a": [1.0]})
        assert path.read_bytes() == b"old"
        assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


class TestTraining:
    def test_panels(self, tmp_path):
        history = [{"step": k, "loss/itp": 1 / (k + 1), "loss/ivp": 0.5, "lr": 1e-3} for k in range(50)]
        history.append({"step": 50, "accuracy/itp": 0.9, "loss/itp": float("nan")})
        viz.plot_training(history, tmp_path / "training.png", title="run")
        assert colours_near(picture(tmp_path / "training.png"), viz.COLOURS[1]) > 300

    def test_smoothing_keeps_a_line_and_the_mean(self):
        line = np.arange(200.0)
        assert viz._smooth(line)[50:-50] == pytest.approx(line[50:-50])
        assert viz._smooth(np.array([3.0, 4.0])).tolist() == [3.0, 4.0]
        noise = np.random.default_rng(0).normal(size=400)
        assert viz._smooth(noise).std() < noise.std() / 2

    def test_empty(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"^history: expected rows with a step and at least one quantity, got none$"
        ):
            viz.plot_training([{"step": 0}], tmp_path / "training.png")


class TestLearningCurve:
    def test_seeds_are_aligned_to_what_all_have_reached(self):
        fast = [{"step": s, "success": s / 40} for s in (0, 10, 20, 30, 40)]
        slow = [{"step": s, "success": 0.0} for s in (0, 15, 25)] + [{"step": 99, "reward": 1.0}]
        x, curves = viz._align([fast, slow], "success")
        assert x.tolist() == [0, 10, 20]
        assert curves.tolist() == [[0, 0.25, 0.5], [0, 0, 0]]

    def test_two_labels(self, tmp_path):
        runs = {
            "learned": [
                [{"step": s, "success": s / 5e4, "reward": 0.5} for s in (0, 25_000, 50_000)] for _ in range(3)
            ],
            "shuffled": [[{"step": s, "success": 0.0} for s in (0, 25_000, 50_000)]],
        }
        viz.plot_learning_curve(runs, tmp_path / "learning.png", title="SAC")
        image = picture(tmp_path / "learning.png")
        assert colours_near(image, viz.COLOURS[0]) > 300
        assert colours_near(image, viz.COLOURS[1]) > 300

    def test_no_known_quantity(self, tmp_path):
        with pytest.raises(ValueError, match=r"^runs: expected rows with one of success, reward, got none$"):
            viz.plot_learning_curve({"a": [[{"step": 1.0}]]}, tmp_path / "learning.png")


LONG = [f"{name}, a label that is so long that three of them are wider than the picture" for name in "abcdef"]
EVALUATIONS = {name: [[{"step": s, "success": s / 4, "reward": s / 9} for s in range(4)]] for name in LONG}
TASKS = [f"{name} " * 3 for name in LONG[:5]]
RESULT = {
    "tasks": TASKS, "mean": {"ivp": 0.5}, "per_task": {task: {"ivp": 0.5} for task in TASKS}, "split": "data",
    "settings": {"model": "a model whose name is long " * 4},
}  # fmt: skip


class TestEverythingFits:
    @pytest.mark.parametrize(
        "draw",
        [
            lambda path: viz.plot_reward_curves({label: [0, 1] for label in LONG}, path, title=LONG[0] * 2),
            lambda path: viz.plot_reward_curves({label: [0, 1] for label in LONG}, path, dashed=LONG[3:]),
            lambda path: viz.plot_learning_curve(EVALUATIONS, path, title=LONG[0] * 2),
            lambda path: viz.plot_learning_curve(EVALUATIONS, path, quantities={"success": "success"}),
            lambda path: viz.plot_evaluation(RESULT, {"Preferences": {"ivp": "IVP"}}, path),
        ],
    )
    def test_nothing_reaches_the_border(self, tmp_path, draw):
        draw(tmp_path / "wide.png")
        image = picture(tmp_path / "wide.png")
        for border in (image[:, :2], image[:, -2:], image[:1], image[-1:]):
            assert (border == 255).all()

    def test_short_labels_stand_beside_each_other(self, tmp_path):
        for name, labels in (("short", "abc"), ("long", LONG[:3])):
            viz.plot_reward_curves({label: [0, 1] for label in labels}, tmp_path / f"{name}.png")
        assert picture(tmp_path / "short.png").shape == (round(2.9 * DPI), round(7.2 * DPI), 3)
        assert len(picture(tmp_path / "long.png")) > 2.9 * DPI + 40


class TestOnePoint:
    @pytest.mark.parametrize(
        "draw",
        [
            lambda path: viz.plot_learning_curve({"a": [[{"step": 5, "success": 0.5}]]}, path),
            lambda path: viz.plot_reward_curves({"a": [0.5]}, path),
            lambda path: viz.plot_training([{"step": 5, "loss": 0.5}], path),
        ],
    )
    def test_it_is_seen(self, tmp_path, draw):
        draw(tmp_path / "one.png")
        assert colours_near(picture(tmp_path / "one.png"), viz.COLOURS[0]) > 50


class TestRewardRange:
    """A reward that never leaves 0 must not fill the picture."""

    HOPELESS: ClassVar = [{"step": k, "reward": 1e-4 * k} for k in range(9)]

    @pytest.mark.parametrize(
        ("draw", "flat"),
        [
            (lambda path, rows: viz.plot_learning_curve({"a": [rows]}, path), True),
            (lambda path, rows: viz.plot_learning_curve({"a": [rows]}, path, reward_range=(-1.0, 1.0)), True),
            (lambda path, rows: viz.plot_learning_curve({"a": [rows]}, path, reward_range=None), False),
            (lambda path, rows: viz.plot_reward_curves({"a": [row["reward"] for row in rows]}, path), False),
            (
                lambda path, rows: viz.plot_reward_curves(
                    {"a": [row["reward"] for row in rows]}, path, reward_range=(0, 1)
                ),
                True,
            ),
            (
                lambda path, rows: viz.plot_reward_curves(
                    {"a": [row["reward"] for row in rows]}, path, reward_range=(-np.inf, 0)
                ),
                False,
            ),
        ],
    )
    def test_the_axis(self, tmp_path, draw, flat):
        draw(tmp_path / "curve.png", self.HOPELESS)
        image = picture(tmp_path / "curve.png")
        wanted = [int(viz.COLOURS[0][k : k + 2], 16) for k in (1, 3, 5)]
        rows = np.flatnonzero((np.abs(image - wanted).max(axis=-1) < 12).any(axis=1))
        assert np.ptp(rows) < 8 if flat else np.ptp(rows) > len(image) / 2

    def test_what_is_beyond_it_is_shown(self, tmp_path):
        viz.plot_reward_curves({"a": [-3.0, 5.0]}, tmp_path / "curve.png")
        viz.plot_reward_curves({"a": [-3.0, 5.0]}, tmp_path / "same.png", reward_range=(0.0, 1.0))
        assert (picture(tmp_path / "curve.png") == picture(tmp_path / "same.png")).all()


class TestAttention:
    def test_colour_where_attended_and_grey_elsewhere(self):
        frame = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
        attention = np.zeros((7, 7))
        attention[1, 5] = 3.0  # row 8-16, columns 60-72
        image = viz.attention_overlay(frame, attention).astype(int)
        spread = image.max(axis=-1) - image.min(axis=-1)
        assert image.shape == frame.shape
        top = np.array(matplotlib.colormaps["inferno"](1.0)[:3]) * 255
        assert spread[12, 66] == pytest.approx(
            0.6 * (top.max() - top.min()), abs=2
        )  # the opacity's share of the colour
        assert spread[40:, :30].max() == 0

    def test_bilinear_against_constant_and_ramp(self):
        assert viz._bilinear(np.full((3, 5), 2.0), 8, 9) == pytest.approx(np.full((8, 9), 2.0))
        ramp = np.tile(np.arange(4.0), (2, 1))
        # Pixel centres: 4 columns over 8 pixels sit at -0.25, 0.25, ... 3.25, held at the ends.
        assert viz._bilinear(ramp, 2, 8)[0] == pytest.approx(np.clip(np.arange(8) / 2 - 0.25, 0, 3))
        assert viz._bilinear(np.array([[5.0]]), 3, 2) == pytest.approx(np.full((3, 2), 5.0))

    def test_uniform_zero_map(self):
        frame = np.full((4, 4, 3), 100, np.uint8)
        assert (viz.attention_overlay(frame, np.zeros((2, 2))) == 100).all()

    def test_wrong_map(self):
        with pytest.raises(ValueError, match=r"^attention: expected a finite \[h, w\] matrix, got shape \(3,\)$"):
            viz.attention_overlay(np.zeros((4, 4, 3), np.uint8), [1.0, 2.0, 3.0])


def test_attention_is_drawn_below_the_frames(tmp_path, monkeypatch):
    frames = np.full((3, 16, 16, 3), 90, np.uint8)
    maps = {"press": np.eye(4)[None].repeat(3, 0), "button": np.ones((3, 4, 4))}
    drawn = []
    strip = viz._strip
    monkeypatch.setattr(viz, "_strip", lambda axes, video, *rest: drawn.append(video) or strip(axes, video, *rest))
    viz.plot_attention(frames, maps, tmp_path / "attention.png", title="where it looks")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert [len(video) for video in drawn] == [3, 3, 3]
    assert (drawn[0] == frames).all()
    assert (drawn[1][2] == viz.attention_overlay(frames[2], np.eye(4))).all()


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'^drawing needs matplotlib: pip install "vlp_gym\[viz\]"$'):
        viz.plot_reward_curves(CURVES, tmp_path / "curves.png")


def test_dollars_in_a_sentence_are_no_mathematics(tmp_path):
    title = "take the $5 cup (50% off), not the $10 cup"
    viz.plot_reward_curves({"$a_{b$": [0.0, 1.0]}, tmp_path / "curve.png", title=title)
    assert (tmp_path / "curve.png").stat().st_size > 1_000


def test_a_point_between_gaps_is_visible(tmp_path):
    nan = float("nan")
    for curve in ([nan, nan, 0.5, nan], [0.5]):
        viz.plot_reward_curves({"x": curve}, tmp_path / "point.png", reward_range=(0, 1))
        viz.plot_reward_curves({"x": [nan] * len(curve)}, tmp_path / "nothing.png", reward_range=(0, 1))
        point, nothing = (
            np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("point.png", "nothing.png")
        )
        blue = np.array([0, 0x72, 0xB2])
        assert (point == blue).all(-1).sum() > 20
        assert not (nothing == blue).all(-1).any()
