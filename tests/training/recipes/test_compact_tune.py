"""The constants that validation tasks choose are those that `CompactRewardModel.score` uses."""

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
from vlp_gym.training.recipes.compact_tune import tune

TASKS = ("push-v3", "door-open-v3")
ROLLOUTS = [painted(task, tier, 6 * i + 2 * j + k) for i, task in enumerate(TASKS) for j, tier in enumerate(TIERS)
            for k in range(2)]  # fmt: skip


def model(**constants):
    torch.manual_seed(0)
    made = tiny_model(**constants)
    torch.nn.init.normal_(made.direction_head.weight)
    return made.eval()


def test_a_row_is_what_the_score_gives():
    """Tier ITP and IVP of the canonical sentences, from the preferences of a model that has these constants."""
    rollouts = [replace(rollout, held_out=()) for rollout in ROLLOUTS]
    rows = {row[:2]: row[2:] for row in tune(model(), rollouts, TASKS).table}
    for quality_weight, motion_weight in ((1.0, 1.0), (8.0, 0.25)):
        live = model(quality_weight=quality_weight, motion_weight=motion_weight)
        text = live.encode_text([instructions_for(task)[0] for task in TASKS])
        found = np.zeros((len(ROLLOUTS), 2))
        with torch.inference_mode():
            for row, rollout in enumerate(ROLLOUTS):
                index, mask = window_indices(len(rollout.frames), live.window, "prefix")
                tokens = live.encode_frames(torch.from_numpy(rollout.frames[index]))[None].expand(2, -1, -1, -1)
                found[row] = live.score(tokens, text, torch.from_numpy(mask)[None].expand(2, -1)).preference.numpy()
        itp, ivp = [], []
        for column, task in enumerate(TASKS):
            by_tier = [[f[column] for f, r in zip(found, ROLLOUTS, strict=True) if (r.task, r.tier) == (task, tier)]
                       for tier in TIERS]  # fmt: skip
            for better, worse in ((0, 1), (0, 2), (1, 2)):
                itp.append(np.mean([preference_accuracy([a], [b]) for a in by_tier[better] for b in by_tier[worse]]))
            own = [f[column] for f, r in zip(found, ROLLOUTS, strict=True) if r.task == task]
            others = [f[column] for f, r in zip(found, ROLLOUTS, strict=True) if r.task != task]
            ivp.append(np.mean([preference_accuracy([a], [b]) for a in own for b in others]))
        np.testing.assert_allclose(rows[quality_weight, motion_weight], (np.mean(itp), np.mean(ivp)))
    assert len(set(rows.values())) > 3


def test_the_models_own_constants_do_not_matter():
    other = model(quality_weight=3.0, motion_weight=0.7, relevance_shift=1.5)
    assert tune(other, ROLLOUTS, TASKS) == tune(model(), ROLLOUTS, TASKS)
