from __future__ import annotations

import json
import re

import pytest
import torch

from tests.learners_by_hand import pairs, transitions
from vlp_gym.errors import CheckpointError
from vlp_gym.policies import BC, CPL, IPL, IQL, PIQL, load, train
from vlp_gym.policies.bc import BCOptions
from vlp_gym.policies.cpl import CPLOptions
from vlp_gym.policies.ipl import IPLOptions
from vlp_gym.policies.iql import IQLOptions
from vlp_gym.policies.networks import StackedMLP
from vlp_gym.policies.p_iql import PIQLOptions

SMALL = {"hidden": (16, 16), "batch": 4}


def make(name, seeds=(3, 5), **options):
    """A learner of float32 numbers; CPL and P-IQL change what they do in the middle of 40 updates."""
    steps, labelled = transitions(200, dtype=torch.float32), pairs(12, 8, dtype=torch.float32)
    options = {**SMALL, "steps": 40, **options}
    if name == "bc":
        return BC(BCOptions(**options), seeds, transitions=steps)
    if name == "iql":
        return IQL(IQLOptions(**{"head": "gaussian", **options}), seeds, transitions=steps)
    if name == "p-iql":
        return PIQL(PIQLOptions(**{"reward_steps": 25, "rows": 16, **options}), seeds, pairs=labelled)
    if name == "ipl":
        return IPL(IPLOptions(**{"sub_steps": 4, **options}), seeds, pairs=labelled)
    return CPL(CPLOptions(**{"bc_steps": 20, "warmup": 10, **options}), seeds, pairs=labelled)


NAMES = ("bc", "iql", "p-iql", "ipl", "cpl")


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_in_a_batch_learns_what_it_learns_alone(name, tmp_path):
    """To 1e-5 after 1,000 updates."""
    options = {"steps": 1_000, "bc_steps": 300} if name == "cpl" else {"steps": 1_000}
    together, alone = make(name, (3, 5, 8), **options), make(name, (5,), **options)
    for learner, folder in ((together, "together"), (alone, "alone")):
        train(learner, tmp_path / folder, progress_bar=False)
    own = dict(alone.named_parameters())
    for key, values in together.named_parameters():
        each = len(values) // 3
        torch.testing.assert_close(values[each : 2 * each], own[key], atol=1e-5, rtol=0)
    assert not torch.equal(together.actor.net.weights[0][0], together.actor.net.weights[0][1])
    observation = torch.linspace(-1, 1, 3).numpy()
    acts = [load(tmp_path / folder, seed=5).predict(observation)[0] for folder in ("together", "alone")]
    assert acts[0] == pytest.approx(acts[1], abs=1e-5)


def test_precision_is_that_of_all_networks(tmp_path, monkeypatch):
    """Also of the targets; and a run that began before there was a choice goes on."""
    learner = make("iql", precision="bf16")
    kinds = {name: part.product for name, part in learner.named_modules() if isinstance(part, StackedMLP)}
    assert kinds == dict.fromkeys(("actor.net", "critic", "target", "value"), torch.bfloat16)
    rounded, _ = train(learner, tmp_path / "rounded", progress_bar=False)
    whole = BC.settings.fget
    with monkeypatch.context() as patch:
        patch.setattr(IQL, "settings", property(lambda own: {k: v for k, v in whole(own).items() if k != "precision"}))
        exact, _ = train(make("iql"), tmp_path / "exact", progress_bar=False)
    assert rounded != exact
    assert train(make("iql"), tmp_path / "exact", progress_bar=False)[0] == exact


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [13, 20, 30])
def test_going_on_is_the_same_bit_for_bit(name, stop, tmp_path):
    whole = make(name)
    losses, _ = train(whole, tmp_path / "whole", progress_bar=False)
    with pytest.raises(KeyboardInterrupt):
        train(
            make(name),
            tmp_path / "parts",
            save_every=stop,
            evaluate=interrupt,
            evaluate_every=stop + 3,
            progress_bar=False,
        )
    state = json.loads((tmp_path / "parts" / "training.json").read_text())
    assert state["step"] == stop
    resumed = make(name)
    again, _ = train(resumed, tmp_path / "parts", progress_bar=False)
    assert again == losses
    for (key, ours), (_, theirs) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), key
    names = ("policy.json", "policy.safetensors")
    assert [(tmp_path / "parts" / n).read_bytes() for n in names] == [
        (tmp_path / "whole" / n).read_bytes() for n in names
    ]


def interrupt(policy):
    raise KeyboardInterrupt


def test_evaluations_and_losses(tmp_path):
    seen = []

    def evaluate(policy):
        seen.append((policy.document["step"], policy.seeds))
        return {"success": [0.25, 0.5]}

    learner = make("iql", steps=250)
    losses, rows = train(learner, tmp_path, evaluate=evaluate, evaluate_every=100, progress_bar=False)
    assert seen == [(100, (3, 5)), (200, (3, 5)), (250, (3, 5))]
    assert rows == [{"step": step, "success": [0.25, 0.5]} for step in (100, 200, 250)]
    assert [row["step"] for row in losses] == [0, 100, 200, 249]
    assert {name: len(values) for name, values in losses[0].items() if name != "step"} == {
        "value": 2, "actor": 2, "critic": 2,
    }  # fmt: skip
    # Called again, it has nothing to do and says the same.
    assert train(make("iql", steps=250), tmp_path, evaluate=interrupt, progress_bar=False) == (losses, rows)


def test_other_settings_or_data_are_refused(tmp_path):
    train(make("bc"), tmp_path, progress_bar=False)
    message = (
        f"{tmp_path} holds a run with other settings (then, now): {{'dropout': (0.25, 0.5)}}; choose another --out"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        train(make("bc", dropout=0.5), tmp_path, progress_bar=False)
    other = BC(BCOptions(**SMALL, steps=40), (3, 5), transitions=transitions(200, seed=1, dtype=torch.float32))
    message = f"{tmp_path} holds a run on other data or labels; choose another --out"
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        train(other, tmp_path, progress_bar=False)
    with pytest.raises(ValueError, match=r"^save_every and evaluate_every must be at least 1, got 0 and 5000$"):
        train(make("bc"), tmp_path, save_every=0)


def test_a_loss_that_is_not_finite(tmp_path):
    learner = make("bc")
    with torch.no_grad():
        learner.actor.net.weights[0][1].fill_(float("nan"))
    message = r"^update 0: the loss actor of the seeds is \[0\.\d+, nan\]; lower --learning-rate\. .* last saved state$"
    with pytest.raises(FloatingPointError, match=message):
        train(learner, tmp_path, progress_bar=False)


def test_a_damaged_state_is_refused(tmp_path):
    train(make("bc"), tmp_path, progress_bar=False)
    (tmp_path / "training.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        train(make("bc"), tmp_path, progress_bar=False)
