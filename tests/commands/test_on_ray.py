"""`--ray`: what comes out is what comes out without it."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("tyro")
pytest.importorskip("datasets")

from command_line import TRAIN_TASKS, run
from libraries import ray_on_one_cpu
from rollouts import killed

from vlp_gym.data.on_ray import run_tasks
from vlp_gym.errors import DatasetError, InstructionError
from vlp_gym.text import normalize_instruction

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory):
    with ray_on_one_cpu(tmp_path_factory.mktemp("home")):
        yield


def test_collect(tmp_path):
    pytest.importorskip("metaworld")
    options = ("--tasks", "push-v3", "reach-v3", "--per-tier", "1", "--tiers", "random", "--stride", "20")
    for name, more in (("here", ["--workers", "1"]), ("ray", ["--ray"])):
        assert run("collect", "metaworld", "--out", tmp_path / name, *options, *more) == 0
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / name / "data").iterdir()} for name in
                   ("here", "ray"))  # fmt: skip
    assert len(here) == 2
    assert here == there


@pytest.mark.parametrize("more", [(), ("--cross",)])
def test_score(data, model, tmp_path, more):
    options = ("--dataset", data, "--model", model, "--tasks", *TRAIN_TASKS, "--frames", "5", *more)
    for name, ray in (("here", []), ("ray", ["--ray"])):
        assert run("score", *options, "--out", tmp_path / name, *ray) == 0
    here, there = (json.loads((tmp_path / name / "scores.json").read_text())["videos"] for name in ("here", "ray"))
    assert len(here) == len(there) == (12 if more else 6)
    assert len({tuple(row["value"]) for row in here}) > 3
    for row, other in zip(here, there, strict=True):
        assert other.pop("value") == pytest.approx(row.pop("value"), abs=1e-6)
        assert other.pop("weight") == pytest.approx(row.pop("weight"), abs=1e-6)
        assert other.pop("novelty") == pytest.approx(row.pop("novelty"), abs=1e-6)
        assert other == row
    assert sorted(path.name for path in (tmp_path / "ray").iterdir()) == sorted(
        path.name for path in (tmp_path / "here").iterdir()
    )


def test_an_error_is_that_of_the_task():
    results = run_tasks(normalize_instruction, [(" press ",), ("",)])
    assert next(results) == "press"
    with pytest.raises(InstructionError, match=r"^the instruction is empty; "):
        next(results)


def test_a_process_that_was_killed():
    with pytest.raises(DatasetError, match=r"^Ray has lost a process \(.+\); the same command goes on where it"):
        list(run_tasks(killed, [(None,)]))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["score", "x.mp4", "--ray"], "--ray: expected with --dataset, got videos"),
        (
            ["score", "--dataset", "data", "--ray", "--examples-from", "other"],
            "--examples-from: expected without --ray, whose processes have no examples",
        ),
        (
            ["collect", "metaworld", "--out", "out", "--ray", "--workers", "2"],
            "--workers: expected without --ray, which starts as many as its cluster has cores",
        ),
    ],
)
def test_options_that_do_not_go_together(command, message, capsys):
    assert run(*command) == 2
    assert capsys.readouterr().err == f"vlp-gym: error: {message}\n"
