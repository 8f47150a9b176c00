"""`vlp-gym examples`: lists and copies the programs, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlp_gym.commands.main import main

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.*"))


def test_without_a_folder_it_lists(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["examples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*(path.name for path in EXAMPLES), "copy"]
    assert all(len(line.split()) > 5 for line in lines)
    assert not list(tmp_path.iterdir())


def test_copies_and_goes_on_where_they_are_the_same(tmp_path):
    for _ in range(2):
        assert main(["examples", "--out", str(tmp_path / "new")]) == 0
        assert [path.read_bytes() for path in sorted((tmp_path / "new").iterdir())] == [
            path.read_bytes() for path in EXAMPLES
        ]


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("mine"), lambda path: path.mkdir()])
def test_what_is_there_is_not_overwritten(spoil, tmp_path, capsys):
    mine = tmp_path / EXAMPLES[-1].name
    spoil(mine)
    assert main(["examples", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"vlp-gym: error: --out: expected no file of this name or the same one, got another {mine}\n"
    )
    assert list(tmp_path.iterdir()) == [mine]
