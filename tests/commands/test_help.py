"""What `vlp-gym` says of itself."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")
pytest.importorskip("av")

from command_line import run

from vlp_gym.commands import main as cli
from vlp_gym.commands.main import main
from vlp_gym.evaluation.curation import THRESHOLD
from vlp_gym.evaluation.evaluate import evaluate
from vlp_gym.metaworld.config import CollectConfig

ROOT = Path(__file__).parents[2]


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

    @pytest.mark.parametrize("arguments", [[], ["train"], ["train", "--help"], ["policy"]])
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


def test_models(capsys):
    assert run("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "DESCRIPTION", "WHERE"]
    assert [line.split()[0] for line in lines[1:3]] == ["vlp-compact", "vlp-compact-45"]
    column = lines[0].index("DESCRIPTION")
    assert lines[1][column:].startswith("default; trained on all 50 Meta-World tasks")
