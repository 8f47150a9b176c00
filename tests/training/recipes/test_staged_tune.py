"""The constants that validation tasks choose are those that `StagedRewardModel.score` uses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from rollouts import painted
from tiny import tiny_model

from vlp_gym.data.trajectory import TIERS
from vlp_gym.engine.windows import window_indices
from vlp_gym.evaluation.metrics import preference_accuracy
from vlp_gym.metaworld.instructions import instructions_for
from vlp_gym.training.recipes.staged_tune import SHARPNESSES, tune

TASKS = ("push-v3", "door-open-v3")
ROLLOUTS = [painted(task, tier, 6 * i + 2 * j + k) for i, task in enumerate(TASKS) for j, tier in enumerate(TIERS)
            for k in range(2)]  # fmt: skip


def model(**constants):
    torch.manual_seed(0)
    made = tiny_model(**constants)
    torch.nn.init.normal_(made.direction_head.weight)
    return made.eval()


def scored(live, rollouts):
    """Preferences ``[videos, tasks]`` of a model under the canonical sentence of each task."""
    text = live.encode_text([instructions_for(task)[0] for task in TASKS])
    found = np.zeros((len(rollouts), len(TASKS)))
    with torch.inference_mode():
        for row, rollout in enumerate(rollouts):
            index, mask = window_indices(len(rollout.frames), live.window, "prefix")
            tokens = live.encode_frames(torch.from_numpy(rollout.frames[index]))[None].expand(2, -1, -1, -1)
            found[row] = live.score(tokens, text, torch.from_numpy(mask)[None].expand(2, -1)).preference.numpy()
    return found


def test_a_row_is_what_the_score_gives():
    """Tier ITP and IVP of the canonical sentences, from the preferences of a model that has these constants."""
    rollouts = [replace(rollout, held_out=()) for rollout in ROLLOUTS]
    tuned = tune(model(), rollouts, TASKS)
    rows = {row[0]: row[1:] for row in tuned.table}
    for base in (0.02, 0.3):
        found = scored(model(base=base, relevance_shift=tuned.relevance_shift), rollouts)
        itp, ivp = [], []
        for column, task in enumerate(TASKS):
            by_tier = [[f[column] for f, r in zip(found, ROLLOUTS, strict=True) if (r.task, r.tier) == (task, tier)]
                       for tier in TIERS]  # fmt: skip
            for better, worse in ((0, 1), (0, 2), (1, 2)):
                itp.append(np.mean([preference_accuracy([a], [b]) for a in by_tier[better] for b in by_tier[worse]]))
            own = [f[column] for f, r in zip(found, ROLLOUTS, strict=True) if r.task == task]
            others = [f[column] for f, r in zip(found, ROLLOUTS, strict=True) if r.task != task]
            ivp.append(np.mean([preference_accuracy([a], [b]) for a in own for b in others]))
        np.testing.assert_allclose(rows[base], (np.mean(itp), np.mean(ivp)))
    best = max(tuned.table, key=lambda row: row[1] + row[2])
    assert tuned.base == best[0]


def test_the_sharpness_calibrates_the_preferences():
    """No other sharpness on the list predicts tiers, tasks and foreign sentences better."""
    rollouts = [replace(rollout, held_out=()) for rollout in ROLLOUTS]
    tuned = tune(model(), rollouts, TASKS)

    def loss(sharpness):
        found = scored(model(base=tuned.base, relevance_shift=tuned.relevance_shift, sharpness=sharpness), rollouts)
        by = {(r.task, r.tier): [] for r in rollouts}
        for row, rollout in zip(found, rollouts, strict=True):
            by[rollout.task, rollout.tier].append(row)
        itp, ivp, ilp = [], [], []
        for column, (task, other) in enumerate((TASKS, TASKS[::-1])):
            for better, worse in ((0, 1), (0, 2), (1, 2)):
                pairs = [a[column] - b[column] for a in by[task, TIERS[better]] for b in by[task, TIERS[worse]]]
                itp.append(np.mean(np.logaddexp(0, -np.array(pairs))))
            own, others = ([row[column] for tier in TIERS for row in by[name, tier]] for name in (task, other))
            ivp.append(np.mean([np.logaddexp(0, b - a) for a in own for b in others]))
            ilp.append(
                np.mean([0.5 * (np.logaddexp(0, a - b) + np.logaddexp(0, b - a)) for a in others for b in others])
            )
        return np.mean(itp) + np.mean(ivp) + np.mean(ilp)

    losses = [loss(sharpness) for sharpness in SHARPNESSES]
    assert tuned.sharpness == SHARPNESSES[int(np.argmin(losses))]


def test_the_models_own_constants_do_not_matter():
    other = model(base=3.0, sharpness=0.7, relevance_shift=1.5)
    assert tune(other, ROLLOUTS, TASKS) == tune(model(), ROLLOUTS, TASKS)
