"""A model that does not know what it sees says so, once."""

from __future__ import annotations

import re
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from painted import PaintedEnv, rollout, wrap
from tiny import awake_model

from vlp_gym import VLPRewardWrapper, VLPVectorRewardWrapper, capture_frames, make_metaworld
from vlp_gym.metaworld.instructions import instructions_for
from vlp_gym.models.protocol import NOVEL
from vlp_gym.models.staged import overview
from vlp_gym.testing import PaintedModel

OTHERS = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "HalfCheetah-v5", "Ant-v5", "Pusher-v5")


class Knowing(PaintedModel):
    """Says how far pictures are; `asked` are the frames that it was asked about."""

    def __init__(self, *distances):
        super().__init__()
        self.distances, self.asked = distances, []

    def novelty(self, frames):
        self.asked.append(len(frames))
        return torch.tensor([float(self.distances[number % len(self.distances)]) for number in range(len(frames))])


def far(distance, which="such pictures", most=""):
    return f"^the reward model does not know {which}: they are {most}{re.escape(f'{distance:.1f}')} away "


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_it_is_said_once_at_the_first_reset(mode):
    model = Knowing(8.95)
    with wrap(model=model, mode=mode) as env:
        with pytest.warns(UserWarning, match=far(8.95)):
            env.reset()
        rollout(env)  # warnings are errors here
    assert model.asked == [1]


@pytest.mark.parametrize("distance", [0.9, NOVEL, float("nan")])
def test_nothing_is_said_of_what_it_knows_or_before_training(distance):
    with wrap(model=Knowing(distance)) as env:
        rollout(env)


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ((4, 9, 3), far(9, most="up to ")),
        ((1, 9, 2), far(9, "1 of 3 pictures")),
        ((1, 9, 3), far(9, "2 of 3 pictures", "up to ")),
    ],
)
def test_one_warning_for_a_vector_of_environments(distances, said):
    model = Knowing(*distances)
    venv = gym.vector.SyncVectorEnv(capture_frames([partial(PaintedEnv, [3])] * 3))
    env = VLPVectorRewardWrapper(venv, "press the button", model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env.reset()
        for _ in range(6):
            env.step(np.zeros(3, int))
    assert len(caught) == 1
    assert re.match(said, str(caught[0].message))
    assert model.asked == [3]


def test_a_model_that_cannot_say_is_not_asked():
    with wrap(model=PaintedModel()) as env:
        rollout(env)


def test_the_distance_is_one_on_the_training_data_and_unknown_before():
    model = awake_model()
    tokens = torch.randn(256, *model.encode_frames(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape[1:])
    assert model.novelty(tokens).isnan().all()
    norm = model.scene_head[0]
    norm.train()
    norm.momentum = None  # the plain mean over all batches
    norm(overview(tokens))
    norm.eval()
    known = model.novelty(tokens)
    assert known.shape == (256,)
    assert known.mean().item() == pytest.approx(1, abs=0.02)
    assert (model.novelty(3 * tokens) > known.max()).all()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("model", ["vlp-compact", "vlp-compact-45"])
def test_the_shipped_models_do_not_know_other_domains(model, name):
    env = VLPRewardWrapper(gym.make(name, render_mode="rgb_array"), "balance the pole", model)
    with pytest.warns(UserWarning, match=r"^the reward model does not know such pictures: they are [\d.]+ away "):
        env.reset(seed=0)
    env.close()


@pytest.mark.parametrize("task", ["button-press-v3", "shelf-place-v3", "window-open-v3"])
@pytest.mark.parametrize("model", ["vlp-compact", "vlp-compact-45"])
def test_the_shipped_models_know_meta_world(model, task):
    env = VLPRewardWrapper(make_metaworld(task), instructions_for(task)[0], model)
    env.reset(seed=0)  # warnings are errors here
    env.close()
