"""Every recipe learns from rollouts of tasks that no simulator knows, by the sentences that they carry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rollouts import painted_tasks

from vlp_gym.errors import DatasetError
from vlp_gym.training.recipe import TrainConfig
from vlp_gym.training.recipes.clips import ClipSampler
from vlp_gym.training.recipes.embedding import EmbeddingRecipe
from vlp_gym.training.recipes.rewind import RewindRecipe
from vlp_gym.training.recipes.spur import SPURRecipe
from vlp_gym.training.recipes.stage_clips import StageSampler
from vlp_gym.training.recipes.staged import StagedRecipe
from vlp_gym.training.recipes.staged_tune import tune

SENTENCES = {
    "fold the towel": ("fold the towel", "make the towel small", "lay the towel together"),
    "stack the cups": ("stack the cups", "put the cups into each other"),
}
OPPOSITES = (("unfold the towel", "spread the towel"), (), ("lay the towel apart",))
ROLLOUTS = [
    replace(t, sentences=SENTENCES[t.task], opposite_sentences=OPPOSITES if t.task == "fold the towel" else ())
    for t in painted_tasks(SENTENCES, each=2, size=32)
]
RECIPES = {
    "clips": lambda rollouts: ClipSampler(rollouts, tasks_per_batch=2, clips_per_task=3, window=4, seed=0),
    "stages": lambda rollouts: StageSampler(rollouts, tasks_per_batch=2, clips_per_task=3, frames_per_clip=4, seed=0),
    "embedding": lambda rollouts: EmbeddingRecipe(rollouts, "triplet", batch_size=8, samples=64),
    "rewind": lambda rollouts: RewindRecipe(rollouts, clips=8),
    "spur": lambda rollouts: SPURRecipe(rollouts, batch_size=8, frames=4),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_speaks_in_the_rollouts_own_words(recipe):
    made = RECIPES[recipe](ROLLOUTS)
    asked = {sentence for number in range(12) for sentence in made.batch(number).instructions}
    assert asked == {sentence for sentences in SENTENCES.values() for sentence in sentences}


def test_opposites_are_those_of_the_sentence():
    pairs = set()
    for number in range(60):
        batch = RECIPES["stages"](ROLLOUTS).batch(number)
        pairs |= set(zip(batch.instructions, batch.opposites, strict=True))
    expected = {(sentence, None) for sentence in SENTENCES["stack the cups"]}
    for sentence, opposites in zip(SENTENCES["fold the towel"], OPPOSITES, strict=True):
        expected |= {(sentence, opposite) for opposite in opposites or (None,)}
    assert pairs == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_sentences(recipe):
    with pytest.raises(DatasetError) as caught:
        RECIPES[recipe]([replace(rollout, sentences=()) for rollout in ROLLOUTS])
    assert str(caught.value) == (
        "task fold the towel, expert, seed 0: expected sentences that say what the task is, found none; "
        "set `Trajectory.sentences`, the canonical one first"
    )


def test_a_model_is_trained_and_tuned(tmp_path):
    pytest.importorskip("accelerate")
    from tiny import tiny_model

    from vlp_gym.training.loop import train

    torch.manual_seed(0)
    model, recipe = tiny_model(), StagedRecipe(RECIPES["stages"](ROLLOUTS), relevance_steps=1)
    history = train(model, recipe, tmp_path, TrainConfig(steps=2), progress_bar=False)
    assert np.isfinite([row["loss"] for row in history]).all()
    chosen = tune(model, ROLLOUTS, list(SENTENCES))
    assert all(0 <= accuracy <= 1 for row in chosen.table for accuracy in row[-2:])
