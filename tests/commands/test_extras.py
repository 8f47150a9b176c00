"""Each command says which extras it needs: in its help, in the docs, and before it does anything."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("tyro")

from command_line import run

from vlp_gym.commands.extras import ALWAYS, EXTRAS, help_line
from vlp_gym.commands.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "installation.md").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()
NOWHERE = "none"  # every folder and file of these commands: what is there is looked at later
METHOD = ["--data", NOWHERE, "--task", "push"]
ASKED = [
    (["collect", "metaworld", "--out", "out"], "metaworld", "metaworld"),
    (["collect", "fetch", "--out", "out"], "gymnasium_robotics", "fetch"),
    (["collect", "maniskill", "--out", "out"], "mani_skill", "maniskill"),
    (["collect", "metaworld", "--out", "out", "--agent", "1"], "stable_baselines3", "sb3"),
    (["collect", "metaworld", "--out", "out"], "datasets", "train"),
    (["collect", "metaworld", "--out", "out", "--ray"], "ray", "ray"),
    (["data", "inspect", f"videos:{NOWHERE}"], "av", "viz"),
    (["data", "convert", f"minari:{NOWHERE}", "--out", "out"], "minari", "minari"),
    (["data", "convert", f"videos:{NOWHERE}", "--to", "minari", "--out", "out"], "h5py", "minari"),
    (["train", "staged", "--data", NOWHERE], "accelerate", "train"),
    (["train", "vlp", "--data", NOWHERE], "open_clip", "clip"),
    (["train", "spur", "--data", NOWHERE], "peft", "vlm"),
    (["train", "staged", "--data", NOWHERE, "--log", "wandb"], "wandb", "wandb"),
    (["train", "staged", "--data", NOWHERE, "--log", "trackio"], "trackio", "trackio"),
    (["tune", "--model", NOWHERE, "--data", NOWHERE, "--tasks", "a", "b"], "scipy", "train"),
    (["eval", "--data", NOWHERE], "matplotlib", "train"),
    (["study", "vlp-ablations", "--data", NOWHERE], "accelerate", "train"),
    (["study", "vlp-ablations", "--data", NOWHERE, "--backbone", "open_clip:ViT-B-16/openai"], "open_clip", "clip"),
    (["score", "none.mp4", "--instruction", "press"], "av", "viz"),
    (["score", "--dataset", NOWHERE], "datasets", "train"),
    (["score", "--dataset", NOWHERE, "--ray"], "ray", "ray"),
    (["label", NOWHERE, "--out", "out", "--human", "--instruction", "press"], "PIL", "viz"),
    (["label", NOWHERE, "--out", "out", "--labels", "cascade:a|human", "--instruction", "press"], "PIL", "viz"),
    (["policy", "bc", *METHOD], "metaworld", "metaworld"),
    (["policy", "bc", *METHOD, "--video"], "av", "viz"),
    (["convert", "vip", NOWHERE, "--out", "out"], "torchvision", "clip"),
    (["convert", "robometer", NOWHERE, "--out", "out"], "transformers", "vlm"),
    (["calibrate", "ensemble:mean|a|b", "--data", NOWHERE, "--out", "out"], "datasets", "train"),
    (["serve"], "starlette", "serve"),
    (["instructions", "--model", "gpt-4o", "--out", "out.json"], "openai", "prompt"),
]


@pytest.mark.parametrize(("command", "package", "extra"), ASKED, ids=lambda value: " ".join(value))
def test_a_missing_package_is_said_before_anything_is_done(command, package, extra, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert run(*command) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(
        rf'vlp-gym: error: .* needs? [\w, ]*{package}[\w, ]*: pip install "vlp_gym\[[\w,]+\]"\n', captured.err
    )
    assert extra in captured.err.rpartition("[")[2].rstrip(']"\n').split(",")
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("package", ["tyro", "tqdm"])
def test_without_the_command_line(command, package, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert run(command, "--help") == 2
    assert capsys.readouterr().err == (
        f'vlp-gym: error: the command line needs {package}: pip install "vlp_gym[{ALWAYS}]"\n'
    )


def test_every_extra_of_every_command_is_asked_for():
    assert list(EXTRAS) == list(COMMANDS)
    tested = {(command[0], extra) for command, _, extra in ASKED}
    assert {(command, extra) for command, extras in EXTRAS.items() for extra in extras} <= tested


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_names_them(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert help_line(command) in shown


def test_the_table_of_the_docs_is_theirs():
    rows = dict(re.findall(r"^\| `vlp-gym (\w+)` \| (.+) \|$", PAGE, re.MULTILINE))
    assert rows == {
        command: help_line(command).removeprefix("Needs vlp_gym[").removesuffix(".").replace("]", "", 1)
        for command in COMMANDS
    }


def test_every_extra_of_the_project_is_in_the_docs():
    table = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[project.scripts]")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", table, re.MULTILINE))
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \|$", PAGE.partition("| command |")[0], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row)} == extras
    assert {extra for needed in EXTRAS.values() for extra in needed} <= extras
