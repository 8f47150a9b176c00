"""`vlp-gym train`: each system's own options, and what is refused before any work is done."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields

import pytest

pytest.importorskip("tyro")
pytest.importorskip("accelerate")

from vlp_gym.commands.main import main
from vlp_gym.metaworld import splits
from vlp_gym.training.recipes.registry import available_recipes, load_options


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # `main` sets it; so it is put back
    monkeypatch.setattr(splits, "train_tasks", lambda split: ("push-v3", "reach-v3"))


class TestHelp:
    @pytest.mark.parametrize("arguments", [["train"], ["train", "--help"]])
    def test_the_systems_are_listed(self, arguments, capsys):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith("usage: vlp-gym train [-h] {staged,")
        for name, description in available_recipes().items():
            assert re.search(rf"• {name} +{re.escape(description)} ", shown)

    @pytest.mark.parametrize("system", available_recipes())
    def test_a_system_shows_its_own_options(self, system, capsys):
        with pytest.raises(SystemExit) as caught:
            main(["train", system, "--help"])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: vlp-gym train {system} ")
        documented = "\n".join(map(str, map(inspect.getdoc, load_options(system).__mro__)))
        for field in fields(load_options(system)):
            assert re.search(rf"^    {field.name}: \S", documented, re.MULTILINE), field.name
        options = {field.name.replace("_", "-") for field in fields(load_options(system))}
        assert {name.removeprefix("no-") for name in re.findall(r"--([a-z-]+)", shown)} >= options
        others = {f.name.replace("_", "-") for other in available_recipes() for f in fields(load_options(other))}
        for name in others - options:
            assert not re.search(rf"^│ --{name} ", shown, re.MULTILINE), name


class TestErrors:
    """One line, status 2; the folder of data is not there, and never read."""

    def error(self, capsys, *arguments):
        assert main(["train", *map(str, arguments)]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("vlp-gym: error: ")
        return line.removeprefix("vlp-gym: error: ")

    @pytest.mark.parametrize(
        ("system", "options", "message"),
        [
            ("vlp", ["--steps", "0"], "--steps: expected at least 1, got 0"),
            ("rewind", ["--init", "vlp-compact", "--steps", "0"], "--steps: expected at least 1, got 0"),
            ("rewind", ["--batch-size", "0"], "--batch-size: expected at least 1, got 0"),
            ("spur", ["--batch-size", "0"], "--batch-size: expected at least 1, got 0"),
            ("embedding", ["--batch-size", "3"], "--batch-size: expected at least 4, got 3"),
            ("rewind", ["--uneven", "1.5"], "--uneven: expected a share from 0 to 1, got 1.5"),
            (
                "rewind",
                ["--freeze-encoders", "--init", "vlp-compact"],
                "--freeze-encoders: expected with rewind, --backbone small and --init; "
                "got --backbone dinov2+minilm and --init vlp-compact",
            ),
            ("joint", ["--focus", "push"], "--focus: expected tasks that are trained on, got push"),
            ("vlp", ["--focus", "push-v3"], "--focus: expected with --recipe mixed only, got ('push-v3',)"),
            (
                "vlp",
                ["--recipe", "mixed", "--pairs", "8"],
                "--pairs: expected with --recipe published only, got 8",
            ),
            ("vlp", ["--negatives", "0"], "--negatives: expected at least 1, got 0"),
            ("vlp", ["--lambda-ivp", "-1"], "--lambda-ivp: expected at least 0, got -1.0"),
            ("vlp", ["--data-share", "0"], "--data-share: expected a share above 0, at most 1, got 0.0"),
            (
                "vlp",
                ["--backbone", "small", "--token-files", "tokens"],
                "--token-files: expected a frozen backbone, such as open_clip:..., got --backbone small",
            ),
        ],
    )
    def test_train_other_systems(self, capsys, tmp_path, system, options, message):
        assert self.error(capsys, system, "--data", tmp_path / "none", *options) == message

    @pytest.mark.parametrize(
        ("system", "options"),
        [
            ("staged", ["--backbone", "small"]),
            ("staged", ["--batch-size", "4"]),
            ("staged", ["--freeze-encoders"]),
            ("staged", ["--uneven", "0.5"]),
            ("rewind", ["--focus", "push-v3"]),
            ("staged", ["--focus", "push-v3"]),
            ("joint", ["--backbone", "small"]),
            ("vlp", ["--sharpness", "1"]),
            ("vlp", ["--relevance-steps", "0"]),
        ],
    )
    def test_options_of_other_systems_are_unknown(self, capsys, system, options):
        line = self.error(capsys, system, "--data", "none", *options)
        assert line.startswith(f"unknown option {options[0]};")
        assert line.endswith(f"see `vlp-gym train {system} --help`")

    def test_no_folder(self, capsys):
        assert self.error(capsys, "staged", "--data") == "--data: expected at least one folder, got none"

    def test_no_such_system(self, capsys):
        line = self.error(capsys, "rewnd", "--data", "none")
        assert line == (
            "unknown system 'rewnd': expected one of staged, vlp, joint, rewind, embedding, siglip2-lora, "
            "spur; did you mean rewind?"
        )

    @pytest.mark.parametrize(
        ("command", "missing", "message"),
        [
            (["staged"], ["accelerate"], 'accelerate: pip install "vlp_gym[train]"'),
            (["joint"], ["datasets", "matplotlib"], 'datasets, matplotlib: pip install "vlp_gym[train]"'),
            (["staged", "--log", "wandb"], ["wandb"], 'wandb: pip install "vlp_gym[wandb]"'),
            (["vlp", "--log", "trackio"], ["trackio"], 'trackio: pip install "vlp_gym[trackio]"'),
            (["vlp"], ["open_clip"], 'open_clip: pip install "vlp_gym[clip]"'),
            (["rewind"], ["transformers"], 'transformers: pip install "vlp_gym[vlm]"'),
            (["siglip2-lora"], ["peft", "PIL"], 'PIL, peft: pip install "vlp_gym[train,vlm]"'),
            (["spur"], ["transformers", "peft"], 'transformers, peft: pip install "vlp_gym[vlm]"'),
        ],
    )
    def test_a_missing_extra_is_named_first(self, capsys, tmp_path, monkeypatch, command, missing, message):
        for package in missing:
            monkeypatch.setitem(sys.modules, package, None)
        assert self.error(capsys, *command, "--data", tmp_path / "none") == f"training needs {message}"

    def test_the_small_encoders_need_no_extra_of_the_backbone(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        line = self.error(capsys, "rewind", "--backbone", "small", "--data", tmp_path)
        assert line.startswith(f"{tmp_path}: expected parquet shards in ")
