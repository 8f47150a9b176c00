"""The command line: each sub-command from end to end on painted rollouts, and one line for each error."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
pytest.importorskip("av")

from rollouts import painted, painted_tasks, write_tasks
from tiny import tiny_staged

from vlp_gym.commands import main as cli
from vlp_gym.commands import score as score_command
from vlp_gym.commands.main import main
from vlp_gym.data.shards import shard_path
from vlp_gym.data.trajectory import TIERS
from vlp_gym.evaluation.curation import THRESHOLD
from vlp_gym.evaluation.evaluate import evaluate
from vlp_gym.metaworld import splits
from vlp_gym.metaworld.config import CollectConfig
from vlp_gym.metaworld.instructions import SIBLINGS
from vlp_gym.metaworld.splits import TEST_TASKS
from vlp_gym.models import registry
from vlp_gym.video import overlay_video, read_video

ROOT = Path(__file__).parents[2]
TRAIN_TASKS = ("push-v3", "reach-v3")
SIBLING = SIBLINGS["door-close-v3"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(splits, "train_tasks", lambda split: TRAIN_TASKS if split == "vlp" else None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rollouts of two training tasks, of the five test tasks and of one sibling."""
    folder = tmp_path_factory.mktemp("data")
    write_tasks(folder, painted_tasks(TRAIN_TASKS, each=1, size=112))
    write_tasks(folder, [painted(t, tier, k) for t in (*TEST_TASKS, SIBLING) for k, tier in enumerate(TIERS)])
    return folder


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    overlay_video(painted("push-v3", "expert", frames=9, size=32).frames, np.arange(9), path, height=64)
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


class TestHelp:
    def test_without_arguments(self, capsys):
        with pytest.raises(SystemExit) as caught:
            main([])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith("usage: vlp-gym ")
        assert all(f"• {name}" in shown for name in cli.COMMANDS)

    @pytest.mark.parametrize("command", cli.COMMANDS)
    def test_every_option_is_explained(self, command, capsys):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        described = inspect.getdoc(cli.COMMANDS[command])
        for name, parameter in inspect.signature(cli.COMMANDS[command]).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert f"--{name.replace('_', '-')}" in shown
            assert re.search(rf"^    {name}: \S", described, re.MULTILINE), name

    @pytest.mark.parametrize("arguments", [[], ["train"], ["train", "--help"]])
    def test_it_answers_at_once(self, arguments):
        """A process of its own, which must not import torch for it."""
        code = (
            "import sys, atexit; from vlp_gym.commands.main import main; "
            f"atexit.register(lambda: print(*sys.modules)); main({arguments})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ}
        )
        assert done.returncode == 0
        assert not {"torch", "gymnasium", "datasets", "matplotlib"} & set(done.stdout.splitlines()[-1].split())

    def test_the_console_script(self):
        assert 'vlp-gym = "vlp_gym.commands.main:main"' in (ROOT / "pyproject.toml").read_text()

    def test_defaults_are_the_librarys(self):
        def defaults(function):
            return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}

        own = defaults(cli.collect)
        shared = [field for field in fields(CollectConfig) if field.name in own]
        assert len(shared) >= 4
        for field in shared:
            assert own[field.name] in (field.default, None), field.name
        assert defaults(cli.score)["threshold"] == THRESHOLD
        judged = defaults(evaluate)
        assert defaults(cli.evaluate)["pairs_per_task"] == judged["pairs_per_task"]
        assert defaults(cli.evaluate)["seed"] == judged["seed"]


STEPS = "--steps: expected at least 1, or 0 with a compact --init and --relevance-steps, got 0"


class TestErrors:
    """One line, status 2."""

    def error(self, capsys, *arguments):
        assert run(*arguments) == 2
        shown = capsys.readouterr().err
        line = shown.splitlines()[-1]  # after progress bars
        assert line.startswith("vlp-gym: error: ")
        assert "Traceback" not in shown
        return line.removeprefix("vlp-gym: error: ")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--tasks", "buton-press"], "unknown Meta-World task 'buton-press-v3'; did you mean button-press-v3, "),
            (["--per-tier", "-1"], "--per-tier: expected at least 0, got -1"),
            (["--per-tier", "0"], "expected something to collect"),
            (["--near-miss", "-1"], "--near-miss: expected at least 0, got -1"),
            (["--stride", "0"], "--stride: expected at least 1, got 0"),
            (["--size", "8"], "--size: expected 16 to 1024 pixels, got 8"),
            (
                ["--size", "1024", "--stride", "1"],
                "--size 1024 with --stride 1: expected at most 128 megapixels in the frames of a rollout, got up to "
                "316; lower --size or raise --stride",
            ),
            (["--varied-share", "1.5"], "--varied-share: expected 0 to 1, got 1.5"),
            (["--workers", "0"], "--workers: expected at least 1, got 0"),
            (["--agent", "1", "--agent-model", "nobody"], "unknown reward model 'nobody'"),
        ],
    )
    def test_collect(self, capsys, tmp_path, options, message):
        assert self.error(capsys, "collect", "metaworld", "--out", tmp_path / "new", *options).startswith(message)
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--steps", "0"], STEPS),
            (["--save-every", "0"], "--save-every: expected at least 1, got 0"),
            (["--init", "vlp-compact", "--steps", "0", "--relevance-steps", "0"], STEPS),
            (["--relevance-steps", "-1"], "--relevance-steps: expected at least 0, got -1"),
            (["--clips-per-task", "2"], "--clips-per-task: expected at least 3, got 2"),
            (["--warmup", "1.5"], "--warmup: expected a share from 0 to 1, got 1.5"),
            (["--weight-decay", "-0.1"], "--weight-decay: expected at least 0, got -0.1"),
            (
                ["--tasks", "push-v3", "window-open-v3"],
                "--tasks: expected training tasks of split vlp, got window-open-v3",
            ),
            (
                ["--tasks", "push-v3", "--leave-out", "push-v3"],
                "--leave-out: nothing is left to train on, got push-v3",
            ),
            (
                ["--leave-out", "push"],
                "--leave-out: expected training tasks of split vlp, got push; did you mean push-v3?",
            ),
            (
                ["--tasks-per-batch", "2", "--focus", "window-open-v3"],
                "--focus: expected tasks that are trained on, got window-open-v3",
            ),
            (["--tasks-per-batch", "9"], "tasks_per_batch: expected 2 to 2 (the tasks there are), got 9"),
        ],
    )
    def test_train(self, capsys, data, tmp_path, options, message):
        assert self.error(capsys, "train", "compact", "--data", data, "--out", tmp_path / "run", *options) == message

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["clip.mp4"], "--instruction: expected what is to be done in the video, in one sentence"),
            (["clip.mp4", "--dataset", "data"], "expected videos or --dataset, and not both"),
            ([], "expected videos or --dataset, and not both"),
            (["--dataset", "data", "--threshold", "2"], "--threshold: expected -1 to 1, got 2.0"),
            (["--dataset", "data", "--temperature", "-1"], "--temperature: expected 0 to 100, got -1.0"),
            (["clip.mp4", "--tasks", "push-v3"], "--tasks: only --dataset has tasks, got videos"),
        ],
    )
    def test_score(self, capsys, data, model, tmp_path, options, message):
        options = [data if option == "data" else option for option in options]
        assert self.error(capsys, "score", *options, "--model", model, "--out", tmp_path) == message

    def test_convert_and_calibrate(self, capsys, data, tmp_path):
        line = self.error(capsys, "convert", "vip", tmp_path / "vip.pt", "--out", tmp_path, "--tokenizer", "here")
        assert line == "--tokenizer: only r3m takes it, got it for vip"
        line = self.error(capsys, "convert", "roboclip", tmp_path / "s3d.pt", "--out", tmp_path)
        assert line == "--vocabulary: roboclip needs the released s3d_dict.npy, or its words as .txt or .json"
        line = self.error(capsys, "calibrate", "vlp-compact", "--data", data, "--out", tmp_path)
        assert line == "expected an ensemble such as 'ensemble:mean|vlp-compact|vlp-compact-45', got 'vlp-compact'"

    def test_no_data(self, capsys, tmp_path):
        expected = (
            f"{tmp_path}: expected parquet shards in {tmp_path / 'data'}, found none; "
            f"run: vlp-gym collect metaworld --out {tmp_path}"
        )
        assert self.error(capsys, "train", "compact", "--data", tmp_path) == expected

    def test_no_such_model(self, capsys, data, tmp_path):
        line = self.error(capsys, "eval", "--model", "vlp-compct", "--data", data, "--out", tmp_path / "report")
        assert line.startswith("unknown reward model 'vlp-compct': expected one of ")
        assert line.endswith("Did you mean 'vlp-compact' or 'vlp-compact-45'?")

    def test_no_such_video(self, capsys, model, tmp_path):
        line = self.error(capsys, "score", tmp_path / "no.mp4", "--instruction", "push", "--model", model)
        assert line == f"{tmp_path / 'no.mp4'}: expected a video file, found none"

    def test_blank_instruction(self, capsys, model, video):
        assert self.error(capsys, "score", video, "--instruction", "  ", "--model", model)

    def test_no_pairs(self, capsys, data, model):
        line = self.error(capsys, "eval", "--model", model, "--data", data, "--pairs-per-task", "0")
        assert line == "--pairs-per-task: expected at least 1, got 0"

    def test_many_lines_become_one(self, capsys, monkeypatch):
        def fail():
            raise ValueError("first\n  second")

        monkeypatch.setattr(registry, "available_models", fail)
        assert self.error(capsys, "models") == "first second"

    def test_without_the_extra(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "tyro", None)
        assert self.error(capsys, "models") == 'the command line needs tyro: pip install "vlp_gym[train]"'

    def test_a_bug_keeps_its_traceback(self, monkeypatch):
        monkeypatch.setattr(registry, "available_models", lambda: [None])
        with pytest.raises(AttributeError):
            run("models")


class TestTrainAndEvaluate:
    TWO = ("--tasks-per-batch", "2")
    SETTINGS = ("--relevance-steps", "1", *TWO, "--clips-per-task", "3", "--save-every", "1")

    def test_train_resume_evaluate(self, data, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        train = ("train", "compact", "--data", data, "--split", "vlp", "--steps", "2", "--seed", "3", *self.SETTINGS)
        assert run(*train) == 0
        out = Path("runs/compact-vlp")
        lines = capsys.readouterr().out.splitlines()
        assert lines == [
            f"checkpoint: {out}",
            f"evaluate it: vlp-gym eval --model {out} --data {data} --split vlp",
        ]
        names = {path.name for path in out.iterdir()}
        assert names >= {"config.json", "model.safetensors", "training.json", "history.json", "training.png"}
        before = (out / "model.safetensors").read_bytes()
        assert run(*train) == 0
        assert (out / "model.safetensors").read_bytes() == before

        capsys.readouterr()
        assert run(*lines[1].removeprefix("evaluate it: vlp-gym ").split(), "--pairs-per-task", "5") == 0
        shown = capsys.readouterr().out
        report = Path("runs/eval/compact-vlp-vlp")
        assert shown.startswith(f"# Evaluation of {out} on vlp\n")
        assert "| ITP, scripted labels |" in shown
        result = json.loads((report / "results.json").read_text())
        assert result["tasks"] == list(TEST_TASKS)
        assert result["settings"]["pairs_per_task"] == 5
        assert result["per_task"]["door-close-v3"]["ivp_sibling"] is not None  # the sibling's rollouts were found
        assert result["per_task"]["drawer-close-v3"]["ivp_sibling"] is None  # and these are not there
        assert shown.splitlines()[-1] == "report: " + " ".join(
            str(report / name) for name in ("results.json", "results.md", "results.png")
        )

    @pytest.mark.parametrize(
        ("options", "read"),
        [
            ((), TRAIN_TASKS),
            (("--leave-out", TRAIN_TASKS[0]), TRAIN_TASKS[1:]),
            (("--tasks", *TRAIN_TASKS), TRAIN_TASKS),
            (("--tasks", TRAIN_TASKS[0]), TRAIN_TASKS[:1]),
        ],
    )
    def test_only_training_tasks_are_read(self, data, tmp_path, monkeypatch, options, read):
        from vlp_gym.training import loop

        seen = []
        monkeypatch.setattr(loop, "train", lambda model, recipe, out, config: seen.extend(recipe.settings["tasks"]))
        assert run("train", "embedding", "--data", data, "--out", tmp_path / "run", *options) == 0
        assert seen == sorted(read)

    def test_the_seed_decides_the_weights(self, data, tmp_path, monkeypatch):
        from vlp_gym.training import loop

        first = []
        monkeypatch.setattr(
            loop, "train", lambda model, *_: first.append(float(sum(p.sum() for p in model.parameters())))
        )
        for seed in (1, 2, 1):
            assert run("train", "joint", "--data", data, "--out", tmp_path, "--seed", seed, *self.TWO) == 0
        assert first[0] == first[2] != first[1]

    def test_init_starts_from_another_models_weights(self, data, model, tmp_path, monkeypatch, capsys):
        from vlp_gym.training import loop

        made = []
        monkeypatch.setattr(loop, "train", lambda model, *_: made.append(model))
        train = ("train", "compact", "--data", data, "--out", tmp_path, *self.TWO)
        assert run(*train, "--init", "vlp-compact-45") == 0
        shipped = registry.load_reward_model("vlp-compact-45").state_dict()
        assert all(torch.equal(value, shipped[name]) for name, value in made[0].state_dict().items())
        assert run(*train, "--init", model) == 2
        assert f"--init: expected a model of this architecture and size; {model} differs" in capsys.readouterr().err

    def test_init_of_another_system_gives_its_encoders(self, data, tmp_path, monkeypatch):
        from vlp_gym.training import loop

        made = []
        monkeypatch.setattr(loop, "train", lambda model, *_: made.append(model))
        options = ("--backbone", "small", "--init", "vlp-compact-45", "--out", tmp_path)
        assert run("train", "rewind", "--data", data, *options) == 0
        shipped = registry.load_reward_model("vlp-compact-45").backbone.state_dict()
        assert all(torch.equal(value, shipped[name]) for name, value in made[0].backbone.encoders.state_dict().items())
        assert not made[0].backbone.frozen
        assert run("train", "rewind", "--data", data, *options, "--freeze-encoders") == 0
        assert made[1].backbone.frozen

    def test_freezing_needs_encoders_that_know_something(self, data, tmp_path, capsys):
        for options in (("--backbone", "small"), ("--init", "vlp-compact-45")):
            assert run("train", "rewind", "--data", data, "--out", tmp_path, "--freeze-encoders", *options) == 2
            assert "--freeze-encoders: expected with rewind, --backbone small and --init" in capsys.readouterr().err

    def test_the_recipe_gets_the_uneven_share(self, data, tmp_path, monkeypatch):
        from vlp_gym.training import loop

        made = []
        monkeypatch.setattr(loop, "train", lambda model, recipe, *_: made.append(recipe))
        assert run("train", "rewind", "--data", data, "--backbone", "small", "--uneven", "0.25", "--out", tmp_path) == 0
        assert made[0].settings["p_uneven"] == 0.25

    def test_no_joint_steps_train_the_relevance_of_another_model_alone(self, data, tmp_path):
        alone = ("--init", "vlp-compact", "--steps", "0", *self.SETTINGS)
        assert run("train", "compact", "--data", data, "--out", tmp_path, *alone) == 0
        shipped, made = (registry.load_reward_model(name) for name in ("vlp-compact", str(tmp_path)))
        trained = {id(parameter) for parameter in made.relevance_parameters()}
        changed = {
            id(parameter) in trained
            for name, parameter in made.named_parameters()
            if not torch.equal(parameter, shipped.state_dict()[name])
        }
        assert changed == {True}

    def test_architectures(self, data, tmp_path, monkeypatch):
        from vlp_gym.training import loop

        made = []
        monkeypatch.setattr(loop, "train", lambda model, *_: made.append(model))
        assert run("train", "joint", "--data", data, "--out", tmp_path, *self.TWO) == 0
        name = "open_clip:convnext_no_such"
        assert run("train", "vlp", "--data", data, "--out", tmp_path, "--backbone", name) == 2
        assert made[0].config["backbone"] == "small"
        assert len(made) == 1


@pytest.mark.parametrize(("system", "size"), [("rewind", 2), ("embedding", 4)])
def test_other_systems_train_and_are_judged(data, tmp_path, capsys, system, size):
    out = tmp_path / "run"
    options = ["--backbone", "small"] if system == "rewind" else ["--objective", "r3m"]
    settings = ("--steps", "2", "--batch-size", size, "--out", out)
    assert run("train", system, "--data", data, *settings, *options) == 0
    assert run(*capsys.readouterr().out.splitlines()[-1].split()[3:], "--out", tmp_path, "--pairs-per-task", "5") == 0
    assert json.loads((tmp_path / "results.json").read_text())["mean"]["voc_expert_spearman"] is not None
    assert json.loads((out / "config.json").read_text())["model_type"] == system


def test_an_ensemble_is_calibrated_and_scores_a_dataset(data, model, tmp_path, capsys):
    name = f"ensemble:min|{model}|vlp-compact"
    assert run("calibrate", name, "--data", data, "--tasks", TRAIN_TASKS[0], "--out", tmp_path / "both") == 0
    tasks = [task.removesuffix("-v3") for task in TRAIN_TASKS]
    scores = ("--model", tmp_path / "both", "--out", tmp_path / "scores", "--tasks", *tasks)
    assert run("score", "--dataset", data, *scores) == 0
    assert (tmp_path / "scores" / "scores.md").read_text().split("\n\n", 1)[1].strip() in capsys.readouterr().out
    videos = json.loads((tmp_path / "scores" / "scores.json").read_text())["videos"]
    assert {row["task"] for row in videos} == set(TRAIN_TASKS)
    for row in videos:
        assert row["detected"] == (spearmanr(row["value"], range(len(row["value"])))[0] >= 0.5)
        np.testing.assert_allclose(row["weight"], np.exp(np.diff(row["value"])))
        assert row["success"] == (row["tier"] == "expert")
    assert (tmp_path / "scores" / "scores.png").stat().st_size > 10_000


def test_tune(data, model, capsys):
    """On two tasks that are not among the training's; what it chooses are options of `train`."""
    assert run("tune", "--model", model, "--data", data, "--tasks", *TEST_TASKS[:2]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = np.array([line.split() for line in lines[1:-1]], float)  # weights, ITP, IVP
    best = rows[np.argmax(rows[:, 2] + rows[:, 3]), :2]
    found = re.fullmatch(r"--quality-weight (\S+) --motion-weight (\S+) --relevance-shift (-?\d+\.\d+)", lines[-1])
    assert [float(found[1]), float(found[2])] == best.tolist()
    assert ((rows[:, 2:] >= 0) & (rows[:, 2:] <= 1)).all()


def test_tune_needs_every_tier(data, model, tmp_path, capsys):
    lacking = shutil.copytree(data, tmp_path / "lacking")
    shard_path(lacking, TEST_TASKS[1], "medium").unlink()
    assert run("tune", "--model", model, "--data", lacking, "--tasks", *TEST_TASKS[:2]) == 2
    expected = f"expected trajectories of every tier of every validation task, found none of ['{TEST_TASKS[1]} medium']"
    assert expected in capsys.readouterr().err


def test_tune_a_staged_model(data, tmp_path, capsys):
    tiny_staged().save_pretrained(tmp_path)
    assert run("tune", "--model", tmp_path, "--data", data, "--tasks", *TEST_TASKS[:2]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = np.array([line.split() for line in lines[1:-1]], float)  # base, ITP, IVP
    found = re.fullmatch(r"--base (\S+) --sharpness \S+ --relevance-shift (-?\d+\.\d+)", lines[-1])
    assert float(found[1]) in rows[:, 0]
    assert ((rows[:, 1:] >= 0) & (rows[:, 1:] <= 1)).all()


def test_tune_another_model(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "load_reward_model", lambda name: torch.nn.Linear(1, 1))
    assert run("tune", "--model", tmp_path, "--data", data, "--tasks", *TEST_TASKS[:2]) == 2
    assert f"--model: expected a compact or staged model, got a Linear in {tmp_path}" in capsys.readouterr().err


class TestScore:
    @pytest.mark.parametrize(("count", "limit", "in_gif"), [(9, 9, 9), (9, 8, 5), (3, 120, 3)])
    def test_curve_and_overlays(self, model, tmp_path, capsys, monkeypatch, count, limit, in_gif):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(score_command, "GIF_FRAMES", limit)
        frames = painted("push-v3", "expert", frames=count, size=24).frames
        overlay_video(frames, np.zeros(count), tmp_path / "clip.mp4", height=96)
        assert run("score", "clip.mp4", "--instruction", "press the button", "--model", model) == 0
        out = Path("runs/score/clip")
        (line,) = capsys.readouterr().out.splitlines()
        rewards = json.loads((out / "rewards.json").read_text())["reward"]
        assert line == (
            f"clip.mp4: reward {rewards[0]:.3f} at the first frame, {rewards[-1]:.3f} at the last, "
            f"{max(rewards):.3f} at most; written to {out}"
        )
        assert len(rewards) == count
        assert len(read_video(out / "overlay.mp4")) == count
        assert len(read_video(out / "overlay.gif")) == in_gif
        assert (out / "curve.png").stat().st_size > 1000

    def test_the_rewards_are_the_wrappers(self, model, video, tmp_path, monkeypatch):
        """The same frames, played by an environment under the wrapper."""
        import gymnasium as gym

        from vlp_gym import VLPRewardWrapper, viz

        frames = read_video(video)
        drawn = {}
        monkeypatch.setattr(viz, "plot_reward_curves", lambda curves, *_, **__: drawn.update(curves))
        assert (
            run("score", video, "--instruction", "press the button", "--model", model, "--out", tmp_path / "out") == 0
        )

        class Player(gym.Env):
            render_mode, observation_space, action_space = "rgb_array", gym.spaces.Discrete(1), gym.spaces.Discrete(1)

            def reset(self, **_):
                self.shown = 0
                return 0, {}

            def step(self, _):
                self.shown += 1
                return 0, 0.0, False, False, {}

            def render(self):
                return frames[self.shown]

        env = VLPRewardWrapper(Player(), "press the button", model=str(model), device="cpu")
        _, info = env.reset()
        rewards = [info["vlp"]["score"]] + [env.step(0)[1] for _ in frames[1:]]
        assert drawn["reward"] == pytest.approx(rewards, abs=1e-6)

    def test_a_model_without_progress_shows_its_preference(self, video, tmp_path, capsys, monkeypatch):
        from vlp_gym.models.protocol import Scores
        from vlp_gym.testing import PaintedModel

        class Blunt(PaintedModel):
            def score(self, frames, text, mask):
                return Scores(preference=super().score(frames, text, mask).preference)

        monkeypatch.setattr(registry, "load_reward_model", lambda name, device: Blunt())
        assert run("score", video, "--instruction", "press the button", "--out", tmp_path / "out") == 0
        assert capsys.readouterr().out.startswith(f"{video}: preference ")

    def test_several_videos_and_folders(self, model, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for place, name in enumerate(("one/a.mp4", "one/b.gif", "two/a.mp4", "c.mp4", "one/notes.txt")):
            frames = painted("push-v3", "expert", place, frames=3 + place, size=24).frames
            Path(name).parent.mkdir(exist_ok=True)
            if name.endswith("txt"):
                Path(name).write_text("no video")
            else:
                overlay_video(frames, np.zeros(len(frames)), name, height=96)
        options = ("--instruction", "press the button", "--model", model)
        assert run("score", "one", "two", "c.mp4", "--out", "all", *options) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["one/a.mp4", "one/b.gif", "two/a.mp4", "c.mp4"]
        names = ["one-a.mp4", "one-b.gif", "two-a.mp4", "c.mp4"]  # two stems are equal
        assert [line.rpartition(" ")[2] for line in lines] == [f"all/{name}" for name in names]
        together = [json.loads((Path("all") / name / "rewards.json").read_text()) for name in names]
        assert [len(each["reward"]) for each in together] == [3, 4, 5, 6]
        assert all((Path("all") / name / "curve.png").exists() for name in names)
        assert run("score", "c.mp4", *options) == 0
        alone = json.loads(Path("runs/score/c/rewards.json").read_text())
        assert alone == {**together[3], "reward": pytest.approx(together[3]["reward"], abs=1e-6)}

    def test_a_damaged_video_among_others(self, model, video, tmp_path, capsys):
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(video.read_bytes()[:500])
        assert run("score", broken, video, "--instruction", "push", "--model", model, "--out", tmp_path / "out") == 2
        shown = capsys.readouterr()
        assert shown.out.startswith(f"{video}: reward ")
        last = shown.err.splitlines()[-1]
        assert last.startswith(f"vlp-gym: error: {broken}: ")
        assert last.endswith("; 1 of 2 videos cannot be scored")
        empty = tmp_path / "empty"
        empty.mkdir()
        assert run("score", empty, "--instruction", "push", "--model", model) == 2
        assert capsys.readouterr().err.startswith(f"vlp-gym: error: {empty}: expected videos in the folder (.3gp ")


def test_models(capsys):
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "DESCRIPTION", "WHERE"]
    assert [line.split()[0] for line in lines[1:3]] == ["vlp-compact", "vlp-compact-45"]
    column = lines[0].index("DESCRIPTION")
    assert lines[1][column:].startswith("default; trained on all 50 Meta-World tasks")


class TestPushToHub:
    class Api:
        calls: ClassVar[list] = []

        def create_repo(self, *arguments, **options):
            self.calls.append(("create", arguments, options))

        def upload_folder(self, **options):
            self.calls.append(("upload", options))

    @pytest.fixture(autouse=True)
    def _no_collection(self, monkeypatch):
        import huggingface_hub

        from vlp_gym.metaworld import collect

        self.Api.calls = []
        monkeypatch.setattr(huggingface_hub, "HfApi", self.Api)
        monkeypatch.setattr(collect, "collect_metaworld", lambda *_, **__: None)

    def test_shards_and_settings_are_uploaded(self, tmp_path, capsys):
        assert run("collect", "metaworld", "--out", tmp_path, "--push-to-hub", "me/rollouts") == 0
        assert capsys.readouterr().out.splitlines() == [
            f"rollouts: {tmp_path}",
            "uploaded: https://huggingface.co/datasets/me/rollouts",
        ]
        patterns = ["data/*.parquet", "collect.json"]
        assert self.Api.calls == [
            ("create", ("me/rollouts",), {"repo_type": "dataset", "exist_ok": True}),
            (
                "upload",
                {"repo_id": "me/rollouts", "folder_path": tmp_path, "repo_type": "dataset", "allow_patterns": patterns},
            ),
        ]

    def test_a_hub_that_refuses(self, tmp_path, capsys, monkeypatch):
        def refuse(self, **_):
            raise RuntimeError("403 Forbidden\nno token")

        monkeypatch.setattr(self.Api, "upload_folder", refuse)
        assert run("collect", "metaworld", "--out", tmp_path, "--push-to-hub", "me/rollouts") == 2
        assert capsys.readouterr().err == (
            "vlp-gym: error: me/rollouts: the hub did not take the shards (403 Forbidden no token); "
            f"they are in {tmp_path}\n"
        )
