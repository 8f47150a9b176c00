"""Every wrong value is one line, said before any work begins."""

from __future__ import annotations

import importlib.abc
import sys

import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")

from vlp_gym.commands import main as cli
from vlp_gym.commands.main import main
from vlp_gym.commands.usage import MAX_SEED

COLLECT = ["collect", "metaworld", "--out", "new"]
SIMULATORS = ("metaworld", "fetch", "maniskill")
SPLITS = ("vlp", "ml45", "rewind", "all", "maniskill", "data")
TRAIN = ["train", "staged", "--data", "data"]
EVAL = ["eval", "--data", "data"]
DATA = ["data", "convert", "videos:clips", "--out", "new"]
SCORE = ["score", "video.mp4", "--instruction", "push"]
LABEL = ["label", "segments", "--out", "new", "--labels", "scripted"]
TUNE = ["tune", "--model", "model", "--data", "data", "--tasks", "a", "b"]
POLICY = ["policy", "cpl", "--data", "data", "--task", "push"]
CONVERT = ["convert", "liv", "file.pt", "--out", "new"]
CALIBRATE = ["calibrate", "vlp-compact", "--data", "data", "--out", "new"]
SEED = f"--seed: expected 0 to {MAX_SEED}, got "
METHODS = "bc, awr, iql, p-iql, ipl, cpl, tables"
SYSTEMS = "staged, vlp, joint, rewind, embedding, siglip2-lora, spur"
EMPTY = 'the instruction is empty; say what is to be done, such as "press the button"'


def unknown(option, command, meant=None):
    return f"unknown option {option};{f' did you mean {meant}?' if meant else ''} see `vlp-gym {command} --help`"


def choice(value, option, choices, command):
    return (
        f"invalid choice {value!r} for argument {option!r}. Expected one of {choices}; see `vlp-gym {command} --help`"
    )


def help_of(message, command):
    return f"{message}; see `vlp-gym {command} --help`"


WRONG = [
    # names
    (["scor"], f"unknown command 'scor': expected one of {', '.join(cli.COMMANDS)}; did you mean score?"),
    (["x"], f"unknown command 'x': expected one of {', '.join(cli.COMMANDS)}"),
    (["train", "stagd"], f"unknown system 'stagd': expected one of {SYSTEMS}; did you mean staged?"),
    (["examples", "--ut", "x"], unknown("--ut", "examples", "--out")),
    (["push", "runs/x", "me/x", "--licence", "mit"], unknown("--licence", "push", "--license")),
    (["serve", "vlp-compact", "--prt", "1"], unknown("--prt", "serve", "--port")),
    ([*COLLECT, "--taks", "x"], unknown("--taks", "collect", "--tasks")),
    ([*COLLECT, "--per_teir=3"], unknown("--per-teir", "collect", "--per-tier")),
    ([*COLLECT, "--qqqq"], unknown("--qqqq", "collect")),
    ([*TRAIN, "--step", "3"], unknown("--step", "train staged", "--steps")),
    ([*EVAL, "--modl", "x"], unknown("--modl", "eval", "--model")),
    ([*SCORE, "--instrction", "x"], unknown("--instrction", "score", "--instruction")),
    ([*LABEL, "--smapler", "x"], unknown("--smapler", "label", "--sampler")),
    ([*TUNE, "--dta", "x"], unknown("--dta", "tune", "--data")),
    (["policy", "cplx"], f"unknown method 'cplx': expected one of {METHODS}; did you mean cpl?"),
    (["policy", "tables", "--run", "x"], unknown("--run", "policy tables", "--runs")),
    ([*POLICY, "--lables", "x"], unknown("--lables", "policy cpl", "--labels or --label-seed")),
    ([*CONVERT, "--vocab", "x"], unknown("--vocab", "convert", "--vocabulary")),
    ([*CALIBRATE, "--task", "x"], unknown("--task", "calibrate", "--tasks")),
    (["study", "vlp-ablations", "--dta", "x"], unknown("--dta", "study", "--data")),
    (["instructions", "--modl", "x"], unknown("--modl", "instructions", "--model")),
    (["models", "--all"], unknown("--all", "models")),
    (["models", "x"], "Unrecognized options: x; see `vlp-gym models --help`"),
    # choices
    (["collect", "metawrld", "--out", "new"], choice("metawrld", "source", SIMULATORS, "collect")),
    ([*COLLECT, "--tiers", "exprt"], choice("exprt", "--tiers", ("expert", "medium", "random"), "collect")),
    (
        [*COLLECT, "--camera", "cornr2"],
        choice(
            "cornr2",
            "--camera",
            ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV"),
            "collect",
        ),
    ),
    ([*TRAIN, "--split", "ml10"], choice("ml10", "--split", SPLITS, "train staged")),
    ([*TRAIN, "--precision", "fp8"], choice("fp8", "--precision", ("no", "bf16", "fp16"), "train staged")),
    ([*EVAL, "--split", "mt50"], choice("mt50", "--split", SPLITS, "eval")),
    ([*LABEL, "--sampler", "unform"], choice("unform", "--sampler", ("uniform", "k-center", "k-means"), "label")),
    ([*LABEL, "--kind", "rewards"], choice("rewards", "--kind", ("reward", "preference"), "label")),
    (
        ["convert", "livv", "x", "--out", "new"],
        choice("livv", "system", ("liv", "vip", "r3m", "roboclip", "rewind", "robometer"), "convert"),
    ),
    # what is missing
    (
        ["collect", "metaworld"],
        help_of(
            "Missing from vlp-gym collect: --out PATH folder for the parquet shards, one per task and tier. (required)",
            "collect",
        ),
    ),
    (["train", "staged", "--data"], "--data: expected at least one folder, got none"),
    (
        ["label", "segments", "--out", "new"],
        "expected who labels: --human, --labels scripted, or --labels with the name of a reward model",
    ),
    (["score", "video.mp4"], "--instruction: expected what is to be done in the video, in one sentence"),
    (["tune", "--model", "m", "--data", "d", "--tasks", "a"], "--tasks: expected at least two tasks, got a"),
    (["calibrate", "x", "--out", "new", "--data"], "--data: expected at least one folder, got none"),
    ([*COLLECT, "--out", ""], "--out: expected a value, got an empty one"),
    ([*EVAL, "--model", ""], "--model: expected a value, got an empty one"),
    # numbers
    (
        [*COLLECT, "--per-tier", "many"],
        help_of("Error parsing --per-tier: invalid literal for int() with base 10: 'many'", "collect"),
    ),
    ([*COLLECT, "--varied-share", "nan"], "--varied-share: expected a finite number, got nan"),
    ([*COLLECT, "--seed", "-1"], f"{SEED}-1"),
    ([*TRAIN, "--seed", str(2**64)], f"{SEED}{2**64}"),
    ([*TRAIN, "--learning-rate", "-1"], "--learning-rate: expected more than 0, got -1.0"),
    ([*TRAIN, "--learning-rate", "inf"], "--learning-rate: expected a finite number, got inf"),
    ([*TRAIN, "--weight-decay", "nan"], "--weight-decay: expected at least 0, got nan"),
    ([*TRAIN, "--base", "nan"], "--base: expected a finite number, got nan"),
    ([*EVAL, "--seed", "-1"], f"{SEED}-1"),
    ([*EVAL, "--pairs-per-task", "0"], "--pairs-per-task: expected at least 1, got 0"),
    (["score", "--dataset", "data", "--threshold", "nan"], "--threshold: expected a finite number, got nan"),
    (["score", "--dataset", "data", "--temperature", "101"], "--temperature: expected 0 to 100, got 101.0"),
    ([*LABEL, "--seed", "-1"], f"{SEED}-1"),
    ([*LABEL, "--pairs", "0"], "--pairs: expected at least 1, got 0"),
    ([*LABEL, "--newest", "0"], "--newest: expected at least 1, got 0"),
    (
        ["label", "segments", "--out", "new", "--human", "--instruction", "x", "--port", "65536"],
        "--port: expected 0 to 65535, got 65536",
    ),
    # sentences, tasks, repositories
    (["score", "video.mp4", "--instruction", "\u3164"], EMPTY),
    (["label", "segments", "--out", "new", "--human"], EMPTY),
    (
        [*COLLECT, "--tasks", "buton-press-v3"],
        "unknown Meta-World task 'buton-press-v3'; did you mean button-press-v3 or button-press-wall-v3?",
    ),
    (
        [*TRAIN, "--tasks", "buton-press-topdown-v3"],
        "--tasks: expected training tasks of split vlp, got buton-press-topdown-v3; "
        "did you mean button-press-topdown-v3 or button-press-topdown-wall-v3?",
    ),
    ([*COLLECT, "--push-to-hub", "rollouts"], "--push-to-hub: expected org/name, got 'rollouts'"),
    # folders
    *(
        ([*command, "--out", "file/results"], "--out: expected a folder, got file/results, and file is a file")
        for command in (
            COLLECT,
            DATA,
            TRAIN,
            EVAL,
            SCORE,
            LABEL,
            POLICY,
            ["policy", "tables"],
            CONVERT,
            CALIBRATE,
        )
    ),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_it_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err == f"vlp-gym: error: {message}\n"
    assert shown.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_table_has_every_command():
    assert {arguments[0] for arguments, _ in WRONG} - {"scor", "x"} == set(cli.COMMANDS)


class Blocked(importlib.abc.MetaPathFinder):
    """As if a package were not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, *_):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


NEEDED = [
    (
        COLLECT,
        "collecting rollouts needs",
        {"metaworld": "metaworld", "mujoco": "metaworld", "datasets": "train", "PIL": "train"},
    ),
    ([*COLLECT, "--agent", "1"], "collecting rollouts needs", {"stable_baselines3": "sb3"}),
    (["collect", "fetch", "--out", "new"], "collecting rollouts needs", {"gymnasium_robotics": "fetch"}),
    (DATA, "reading a data set needs", {"datasets": "train", "PIL": "viz", "matplotlib": "viz", "av": "viz"}),
    (["data", "inspect", "minari:a/b", "--instruction", "x"], "reading Minari data sets needs", {"minari": "minari"}),
    (TRAIN, "training needs", dict.fromkeys(("accelerate", "datasets", "PIL", "matplotlib", "scipy"), "train")),
    (EVAL, "an evaluation needs", dict.fromkeys(("datasets", "PIL", "scipy", "matplotlib"), "train")),
    (
        ["score", "file", "--instruction", "push"],
        "scoring a video needs",
        dict.fromkeys(("av", "matplotlib", "PIL"), "viz"),
    ),
    (
        ["score", "--dataset", "data"],
        "scoring rollouts needs",
        dict.fromkeys(("datasets", "PIL", "matplotlib"), "train"),
    ),
    (["label", "segments", "--out", "new", "--human", "--instruction", "x"], "labels by a person need", {"PIL": "viz"}),
    (
        POLICY,
        "learning a policy needs",
        {**dict.fromkeys(("datasets", "PIL", "scipy", "matplotlib"), "train"), "metaworld": "metaworld"},
    ),
    ([*POLICY, "--video"], "learning a policy needs", {"av": "viz"}),
    (TUNE, "tuning needs", dict.fromkeys(("datasets", "PIL", "scipy"), "train")),
    (CALIBRATE, "a calibration needs", dict.fromkeys(("datasets", "PIL", "scipy"), "train")),
]


@pytest.mark.parametrize("how", ["hook", "none"])
@pytest.mark.parametrize(
    ("arguments", "what", "package", "extra"),
    [(arguments, what, *each) for arguments, what, needed in NEEDED for each in needed.items()],
)
def test_a_missing_extra_is_named_before_any_work(arguments, what, package, extra, how, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    if how == "none":
        monkeypatch.setitem(sys.modules, package, None)
    else:
        monkeypatch.setattr(sys, "meta_path", [Blocked(package), *sys.meta_path])
    assert main(arguments) == 2
    assert capsys.readouterr().err == f'vlp-gym: error: {what} {package}: pip install "vlp_gym[{extra}]"\n'
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
