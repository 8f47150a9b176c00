"""`vlp-gym policy`: from rollouts and labels to a policy, its success and its files."""

from __future__ import annotations

import http.client
import inspect
import io
import json
import re
import signal
import threading
import time
from dataclasses import fields, replace

import numpy as np
import pytest

pytest.importorskip("tyro")
pytest.importorskip("datasets")
pytest.importorskip("matplotlib")
pytest.importorskip("metaworld")  # the command asks for it before any work

from command_line import run
from rollouts import painted_tasks, with_steps, write_tasks

from tests.small_push import make_small
from vlp_gym import policies
from vlp_gym.commands.main import main
from vlp_gym.commands.policy_options import METHODS, method_classes
from vlp_gym.data.shards import load_trajectories
from vlp_gym.metaworld import env
from vlp_gym.metaworld.published import VLP_TABLE_2, published_success
from vlp_gym.models import registry
from vlp_gym.policies import labels
from vlp_gym.policies.result import PolicyResult, markdown
from vlp_gym.preferences.buffer import PreferenceBuffer
from vlp_gym.testing import PaintedModel

TASK = "reach-v3"
QUICK = (
    "--seeds", "2", "--steps", "40", "--batch", "4", "--hidden", "16", "--evaluate-every", "15", "--save-every", "15",
    "--episodes", "4", "--horizon", "5", "--workers", "1", "--task", "reach",
)  # fmt: skip
PAIRS = ("--pairs", "12", "--length", "20")


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    """Experts push: the first number of their actions is above 0, that of the others below. The states tell nothing."""
    folder, made, rng = tmp_path_factory.mktemp("rollouts"), [], np.random.default_rng(0)
    for rollout in painted_tasks([TASK], each=3):
        rollout = with_steps(rollout)
        actions = rollout.action.copy()
        actions[:, 0] = np.abs(actions[:, 0]) * (1 if rollout.tier == "expert" else -1)
        states = rng.normal(size=rollout.observation.shape).astype(np.float32)
        made.append(replace(rollout, action=actions, observation=states))
    write_tasks(folder, made)
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(env, "make_metaworld", make_small)
    monkeypatch.setattr(registry, "_entry_points", lambda: {"painted": Painted()})


class Painted:
    """An entry point of a model that sees the painted value."""

    value = "painted"

    def load(self):
        return lambda device: PaintedModel()


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


OWN = {
    "bc": ("all", ()),
    "bc preferred": ("scripted", ("--on", "preferred", *PAIRS)),
    "awr": ("scripted", ()),
    "iql": ("scripted", ()),
    "p-iql": ("mtvlp", ("--labels", "mtvlp", "--rows", "8", "--reward-steps", "20", *PAIRS)),
    "ipl": ("random", ("--labels", "random", "--sub-steps", "4", *PAIRS)),
    "cpl": ("scripted", ("--bc-steps", "20", "--warmup", "5", *PAIRS)),
}


@pytest.mark.parametrize("name", OWN)
def test_a_run(name, rollouts, tmp_path, capsys):
    method, (source, options) = name.split()[0], OWN[name]
    assert run("policy", method, "--data", rollouts, "--out", tmp_path / "run", *QUICK, *options) == 0
    result = result_of(tmp_path / "run")
    assert (result["method"], result["task"], result["source"], result["seeds"]) == (method, TASK, source, [0, 1])
    assert result["steps"] == [15, 30, 40]
    curve = np.array(result["curve"])
    assert curve.shape == (2, 3)
    assert ((curve * 4) % 1 == 0).all()  # of four episodes
    assert result["largest_mean"] == pytest.approx(curve.mean(1).tolist())
    assert result["last"] == curve[:, -1].tolist()
    assert result["data_success"] == pytest.approx(1 / 3)
    assert (result["options"]["steps"], result["options"]["hidden"]) == (40, [16])
    assert (result["reward_accuracy"] is None) == (method != "p-iql")
    assert result["published"] is None
    labelled = tmp_path / "run" / "labels"
    if PAIRS[0] in options:
        report = result["labels"]
        assert report == json.loads((labelled / "labels.json").read_text())
        assert report["first"] + report["second"] + report["equal"] == len(PreferenceBuffer.load(labelled)) == 12
        assert {"scripted": report["scripted_accuracy"], "mtvlp": report["mtvlp_accuracy"]}.get(source, 1.0) == 1.0
    else:
        assert result["labels"] is None
        assert not labelled.exists()
    shown = capsys.readouterr().out
    assert markdown([PolicyResult.model_validate_json(json.dumps(result))]) in shown
    assert (tmp_path / "run" / "result.md").read_text() in shown
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    trained = policies.load(tmp_path / "run", seed=1)
    assert (trained.document["learner"], trained.document["step"]) == (method, 40)
    assert np.abs(trained.predict(np.zeros(39))[0]).max() <= 1


def test_preferences_make_it_push(rollouts, tmp_path):
    """Labels by tier teach what the experts alone do; plain imitation does what most of the data do."""
    slow = (*QUICK, "--steps", "400", "--episodes", "40", "--learning-rate", "0.003", "--evaluate-every", "400")
    options = (*PAIRS, "--bc-steps", "100", "--warmup", "1", "--pairs", "30")
    assert run("policy", "cpl", "--data", rollouts, "--out", tmp_path / "cpl", *slow, *options) == 0
    assert run("policy", "bc", "--data", rollouts, "--out", tmp_path / "bc", *slow) == 0
    assert min(result_of(tmp_path / "cpl")["last"]) > 0.5
    assert min(result_of(tmp_path / "cpl")["last"]) > max(result_of(tmp_path / "bc")["last"])


class Person:
    """Opens the page whose address the command prints, looks at both clips of each pair, and presses a key.

    `capsys` cannot be read in a thread, so print is watched.
    """

    def __init__(self, monkeypatch, keys):
        """`keys` takes the blue of both clips, which says the tier, and the number of the pair; None is Ctrl-C."""
        self.keys, self.printed, self.pressed = keys, [], []
        monkeypatch.setattr("builtins.print", lambda *values, **_: self.printed.append(" ".join(map(str, values))))
        self.thread = threading.Thread(target=self._label, daemon=True)
        self.thread.start()

    def _label(self):
        while not (found := re.search("http://([^/]+)(/[^/]+/)", " ".join(self.printed))):
            time.sleep(0.01)
        host, self.base = found.groups()
        self.connection = http.client.HTTPConnection(host, timeout=10)
        pairs = json.loads(self._ask("GET", "state"))["pairs"]
        for pair in range(pairs):
            key = self.keys(*(self._blue(pair, side) for side in ("left", "right")), pair)
            if key is None:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                return
            self._ask("POST", "label", json.dumps({"round": 1, "pair": pair, "label": key}))
            self.pressed.append(key)

    def _blue(self, pair, side):
        from PIL import Image

        with Image.open(io.BytesIO(self._ask("GET", f"clip/1/{pair}/{side}"))) as clip:
            return np.asarray(clip.convert("RGB"))[..., 2].mean()

    def _ask(self, *request):
        method, path, *body = request
        self.connection.request(method, self.base + path, *body)
        answer = self.connection.getresponse()
        assert answer.status == 200
        return answer.read()


def better_tier(left, right, pair):
    """Blue grows from expert to random; of one tier both are equal. The third pair is skipped."""
    if pair == 2:
        return "skip"
    return "equal" if abs(left - right) < 20 else "left" if left < right else "right"


def test_a_person_labels_on_the_page(rollouts, tmp_path, monkeypatch):
    person = Person(monkeypatch, better_tier)
    labelled = ("policy", "cpl", "--data", rollouts, "--out", tmp_path, *QUICK, *PAIRS, "--bc-steps", "0")
    assert run(*labelled, "--labels", "human") == 0
    person.thread.join(10)
    result = result_of(tmp_path)
    report, pressed = result["labels"], person.pressed
    assert {"left", "right", "skip"} <= set(pressed)
    names = {"first": "left", "second": "right", "equal": "equal", "skipped": "skip"}
    assert {name: report[name] for name in names} == {name: pressed.count(key) for name, key in names.items()}
    assert (result["source"], report["mtvlp_accuracy"]) == ("human", 1.0)
    kept = PreferenceBuffer.load(tmp_path / "labels").labels.tolist()
    values = {"left": 1.0, "right": 0.0, "equal": 0.5}
    assert kept == [values[key] for key in pressed if key != "skip"]


def test_ctrl_c_keeps_what_a_person_has_labelled_and_the_same_command_asks_for_the_rest(
    rollouts, tmp_path, monkeypatch
):
    Person(monkeypatch, lambda left, right, pair: None if pair == 0 else "left")
    labelled = ("policy", "cpl", "--data", rollouts, "--out", tmp_path, *QUICK, *PAIRS, "--labels", "human")
    assert run(*labelled) == 130  # at once: nothing is there
    assert not (tmp_path / "labels").exists()
    Person(monkeypatch, lambda left, right, pair: None if pair == 3 else "skip" if pair == 1 else "left")
    assert run(*labelled) == 130
    assert PreferenceBuffer.load(tmp_path / "labels").labels.tolist() == [1.0, 1.0]
    assert not (tmp_path / "training.json").exists()
    those = ("--labels", tmp_path / "labels", "--out", tmp_path / "those")
    assert run("policy", "cpl", "--data", rollouts, *QUICK, *PAIRS, *those) == 0
    assert result_of(tmp_path / "those")["labels"]["first"] == 2
    person = Person(monkeypatch, lambda left, right, pair: "right")
    assert run(*labelled) == 0
    assert len(person.pressed) == 10  # of twelve, those without a label
    assert PreferenceBuffer.load(tmp_path / "labels").labels.tolist() == [1.0, 0.0, 1.0, *[0.0] * 9]
    assert run(*labelled) == 0  # nobody is asked again
    assert len([line for line in person.printed if "http" in line]) == 1


def test_a_model_labels_and_rewards(rollouts, model, tmp_path, capsys):
    """The tiny model is asked; its labels are saved before training and not asked for again."""
    labelled = ("policy", "cpl", "--data", rollouts, *QUICK, *PAIRS, "--bc-steps", "0")
    assert run(*labelled, "--labels", model, "--out", tmp_path / "one") == 0
    report = result_of(tmp_path / "one")["labels"]
    assert report["source"] == str(model)
    given = PreferenceBuffer.load(tmp_path / "one" / "labels")
    # Labels of an earlier run, for another method or the same.
    assert run(*labelled, "--labels", tmp_path / "one" / "labels", "--out", tmp_path / "two") == 0
    again = PreferenceBuffer.load(tmp_path / "two" / "labels")
    assert again.inputs.tolist() == given.inputs.tolist()
    assert again.labels.tolist() == given.labels.tolist()
    assert result_of(tmp_path / "two")["curve"] == result_of(tmp_path / "one")["curve"]
    for method in ("iql", "awr"):
        assert run("policy", method, "--data", rollouts, *QUICK, "--reward", model, "--out", tmp_path / method) == 0
        assert result_of(tmp_path / method)["source"] == str(model)
    capsys.readouterr()


def test_a_video_of_the_median_seed(rollouts, tmp_path, capsys, monkeypatch):
    pytest.importorskip("av")
    from vlp_gym.policies import evaluate
    from vlp_gym.video import read_video

    success = iter([{"success": [0.75, 0.25, 0.5]}] * 3)
    monkeypatch.setattr(evaluate.Evaluator, "__call__", lambda self, policy: next(success))
    real, filmed = evaluate.film, []

    def film(make, policy):
        filmed.append(policy.seed)
        return real(make, policy)

    monkeypatch.setattr(evaluate, "film", film)
    options = (*QUICK, "--seeds", "3", "--first-seed", "4", "--video", "--out", tmp_path / "run")
    assert run("policy", "bc", "--data", rollouts, *options) == 0
    assert filmed == [6]
    assert len(read_video(tmp_path / "run" / "video.mp4")) == 6  # five steps
    assert f"{tmp_path / 'run' / 'video.mp4'}" in capsys.readouterr().out


def test_filtered_imitation(rollouts, tmp_path, capsys):
    """The painted model sees light, which grows with the frames, but falls in those of the experts."""
    folder, made = tmp_path / "data", []
    for t in load_trajectories(rollouts, progress_bar=False):
        light = 120 + np.arange(len(t.frames)) * (-5 if t.tier == "expert" else 5)
        frames = np.broadcast_to(light[:, None, None, None], t.frames.shape).astype(np.uint8)
        made.append(replace(t, frames=frames))
    write_tasks(folder, made)
    bc = ("policy", "bc", "--data", folder, *QUICK, "--filter", "painted", "--out")
    assert run(*bc, tmp_path / "some", "--threshold", "0.5") == 0
    assert "6 of 9 trajectories have a VOC of 0.5 or more" in capsys.readouterr().out
    result = result_of(tmp_path / "some")
    assert (result["source"], result["data_success"]) == ("all, VOC 0.5 by painted", 0.0)
    assert run(*bc, tmp_path / "every", "--threshold", "-1") == 0
    assert result_of(tmp_path / "every")["data_success"] == pytest.approx(1 / 3)
    assert run(*bc, tmp_path / "tiers", "--tiers", "random", "expert", "--threshold", "-1") == 0
    assert result_of(tmp_path / "tiers")["source"] == "all, expert, random, VOC -1 by painted"
    capsys.readouterr()
    assert run(*bc, tmp_path / "none", "--tiers", "expert", "--threshold", "0.5") == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"vlp-gym: error: --threshold: no trajectory has a VOC of 0\.5 or more, the largest is -(0\.9\d+|1\.000)", shown
    )
    assert not (tmp_path / "none").exists()


def test_it_goes_on_where_it_was_broken_off(rollouts, tmp_path, capsys, monkeypatch):
    whole, parts = (
        ("policy", "p-iql", "--data", rollouts, "--out", tmp_path / n, *QUICK, *PAIRS, "--rows", "8") for n in "ab"
    )
    assert run(*whole) == 0
    save = policies.training.save_training_state

    def save_once(*arguments, **options):
        save(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(policies.training, "save_training_state", save_once)
        assert run(*parts) == 130
    kept = "the last saved state is kept, and the same command goes on from there"
    assert capsys.readouterr().err.splitlines()[-1] == f"vlp-gym: interrupted; {kept}"
    with monkeypatch.context() as patch:
        patch.setattr(labels, "label_pairs", None)  # those that are saved are taken
        assert run(*parts) == 0
    one, other = (result_of(tmp_path / name) for name in "ab")
    assert {**one, "cpu_minutes": 0} == {**other, "cpu_minutes": 0}
    assert (tmp_path / "a" / "policy.safetensors").read_bytes() == (tmp_path / "b" / "policy.safetensors").read_bytes()
    assert run(*parts, "--labels", "random") == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown == (
        f"vlp-gym: error: {tmp_path / 'b' / 'labels'} holds other labels: 12 pairs of 20 steps by scripted, not 12 of "
        "20 by random; choose another --out"
    )


def test_tables_of_runs(rollouts, tmp_path, capsys):
    for method, options in (("cpl", PAIRS), ("bc", ())):
        out = tmp_path / "runs" / method
        assert run("policy", method, "--data", rollouts, "--out", out, *QUICK, *options) == 0
    capsys.readouterr()
    assert run("policy", "tables", "--runs", tmp_path / "runs", "--out", tmp_path / "new") == 0
    shown = capsys.readouterr().out
    text = (tmp_path / "new" / "tables.md").read_text()
    assert shown == f"{text}tables: {tmp_path / 'new' / 'tables.md'}\n"
    assert "| task | cpl, scripted | data |" in text
    assert "| task | bc, all | data |" in text
    assert run("policy", "tables", "--runs", tmp_path / "none") == 2
    assert "expected runs of `vlp-gym policy` with a result.json, found none" in capsys.readouterr().err


def test_labels_of_another_data_set(rollouts, tmp_path, capsys):
    other = tmp_path / "other"
    write_tasks(other, [with_steps(t, action=4) for t in painted_tasks([TASK], each=2)])
    assert run("policy", "cpl", "--data", other, "--out", tmp_path / "one", *QUICK, *PAIRS) == 0
    given = tmp_path / "one" / "labels"
    assert run("policy", "cpl", "--data", rollouts, "--out", tmp_path / "two", "--labels", given, *QUICK, *PAIRS) == 2
    message = (
        rf"vlp-gym: error: {re.escape(str(given))}: labels of another data set: segment [01] of pair \d+ is not in "
    )
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "reech"], "reech"),
        (
            ["--tiers", "best"],
            "--tiers: expected some of expert, medium, random, near_miss, explore, agent, retreat, apart, either_way, "
            "got 'best'",
        ),
        (["--tiers", "explore"], "--tiers: no trajectory of reach-v3 is of explore; there are expert, medium, random"),
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["--workers", "0"], "--workers: expected at least 1, got 0"),
        (["--horizon", "501"], "--horizon: expected at most 500, Meta-World's own limit, got 501"),
        (["--first-seed", "-1"], "--first-seed: expected 0 to 2147483645, got -1"),
        (["--pairs", "0"], "--pairs: expected at least 1, got 0"),
        (["--length", "1"], "--length: expected at least 2, got 1"),
        (["--bias", "2"], "--bias: expected a share from 0 to 1, got 2.0"),
        (["--alpha", "nan"], "--alpha: expected at least 0, got nan"),
        (["--labels", "vlp-compakt"], "unknown reward model 'vlp-compakt': "),
    ],
)
def test_wrong_options(options, message, rollouts, tmp_path, capsys):
    assert run("policy", "cpl", "--data", rollouts, "--out", tmp_path / "run", *QUICK, *PAIRS, *options) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith("vlp-gym: error: ")
    assert message in shown
    assert not (tmp_path / "run").exists()


def test_data_without_actions(data, tmp_path, capsys):
    assert run("policy", "bc", "--data", data, "--out", tmp_path / "run", *QUICK) == 2
    assert "expected the observation of every step, found none; learning a policy needs data of format" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_method_shows_its_own_options(method, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["policy", method, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: vlp-gym policy {method} ")
    classes = METHODS[method][1], method_classes(method)[1]
    documented = "\n".join(str(inspect.getdoc(part)) for each in classes for part in each.__mro__)
    for field in (field for each in classes for field in fields(each)):
        assert re.search(rf"--(no-)?{field.name.replace('_', '-')}[ ,\n]", shown), field.name
        assert re.search(rf"^    {field.name}: \S", documented, re.MULTILINE), field.name


def test_published_figures():
    """Averages of table 2 as the paper prints them."""
    printed = {"p-iql": (62.9, 71.0), "ipl": (55.2, 57.5), "cpl": (78.0, 83.8)}
    for method, averages in printed.items():
        for column, average in enumerate(averages):
            means = [row[method][column][0] for row in VLP_TABLE_2.values()]
            assert round(np.mean(means), 1) == average
    assert published_success("button-press-v3", "ipl", "vlp-compact-45") == (56.0, 1.4)
    assert published_success("button-press-v3", "ipl", "random") is None
    assert published_success("push-v3", "ipl", "scripted") is None
