from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.rollouts import painted, with_steps
from vlp_gym.errors import DatasetError
from vlp_gym.models.staged import StagedRewardModel
from vlp_gym.policies import InstructedData, joined
from vlp_gym.policies.rewards import frame_values

SENTENCES = ("push the puck", "pull the puck back")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = StagedRewardModel(image_size=32, channels=16, hidden=16).eval()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # a new one does not listen
    return made


@pytest.fixture
def rollout():
    """The last of five strides is cut short."""
    made = with_steps(painted("push-v3", "expert", 1, frames=6))
    step = np.array([0, 5, 10, 15, 20, 22])
    return replace(
        made, step=step, observation=made.observation[:23], action=made.action[:22],
        episode_reward=made.episode_reward[:22],
    )  # fmt: skip


def test_a_rollout_from_frame_to_frame_under_two_sentences(model, rollout):
    data = InstructedData(model, SENTENCES)
    blocks = data.transitions(rollout, SENTENCES)
    for sentence, block in zip(SENTENCES, blocks, strict=True):
        token = model.encode_text([sentence])[0, 0].detach().numpy()
        vector = token / np.linalg.norm(token)
        values = frame_values([rollout], model, sentence, progress_bar=False)[0]
        assert len(block) == 5
        for row, (start, stop) in enumerate(zip(rollout.step[:-1], rollout.step[1:], strict=True)):
            before, after = (np.append(rollout.observation[step], vector) for step in (start, stop))
            assert block.states[row].tolist() == pytest.approx(before.tolist(), abs=1e-6)
            assert block.next_states[row].tolist() == pytest.approx(after.tolist(), abs=1e-6)
            assert block.actions[row].tolist() == pytest.approx(rollout.action[start:stop].mean(0).tolist(), abs=1e-6)
            assert block.rewards[row].item() == pytest.approx(values[row + 1], abs=1e-6)
    assert not torch.equal(blocks[0].rewards, blocks[1].rewards)
    both = joined(blocks)
    assert torch.equal(both.next_states, torch.cat([block.next_states for block in blocks]))
    assert both.weights.tolist() == [1.0] * 10


def test_data_without_actions(model, rollout):
    with pytest.raises(DatasetError, match="expected the action of every step, found none"):
        InstructedData(model, SENTENCES).transitions(replace(rollout, action=None), SENTENCES)
