"""Rollouts as an agent would have lived them that is told a sentence and paid by a reward model."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.models.protocol import RewardModel
from vlp_gym.policies.data import Transitions, check_recorded
from vlp_gym.policies.networks import MOST_ACTION


class InstructedData:
    """Turns rollouts into transitions from frame to frame, told and rewarded under any sentence.

    A state is the observation and the sentence's vector. An action is the mean of those between two frames, as of an
    agent that holds each action for a stride. The reward is the model's value of the later frame.

    Args:
        model: a live reward model, or its name.
        sentences: every sentence that will be used.
        device: where the model runs, see `GuardedModel`.

    Attributes:
        vectors: sentence -> the mean of its tokens at length 1, float32 ``[D]``.

    Raises:
        InstructionError: for a sentence over the model's limit.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | RewardModel,
        sentences: Sequence[str],
        device: str | torch.device = "auto",
    ) -> None:
        self._scorer = VideoScorer(model, sentences, device)
        tokens = self._scorer.guard.encode_text(sentences, where="instructions").float().mean(1)
        vectors = torch.nn.functional.normalize(tokens, dim=1).cpu().numpy()
        self.vectors: dict[str, NDArray[np.float32]] = dict(zip(sentences, vectors, strict=True))

    def transitions(self, trajectory: Trajectory, sentences: Sequence[str]) -> list[Transitions]:
        """The F - 1 transitions of a rollout under each sentence; its frames are encoded once.

        Args:
            trajectory: with observations and actions, and at least two frames.
            sentences: some of `vectors`.

        Raises:
            DatasetError: the trajectory lacks observations, actions or steps.
            QueryError: the model raises, or answers NaN or inf.
        """
        check_recorded([trajectory])
        observation, action, step = trajectory.observation, trajectory.action, trajectory.step
        assert observation is not None
        assert action is not None
        states = observation[step]
        sums = np.add.reduceat(action[step[0] : step[-1]], step[:-1] - step[0])
        held = _tensor(sums / np.diff(step)[:, None]).clamp(-MOST_ACTION, MOST_ACTION)
        self._scorer.open(trajectory.frames, trajectory.name)
        found = []
        for sentence in sentences:
            vector = self.vectors[sentence]
            told = _tensor(np.hstack([states, np.broadcast_to(vector, (len(states), len(vector)))]))
            paid = _tensor(self._scorer.values(sentence)[1:])
            found.append(Transitions(told[:-1], held, told[1:], paid, torch.ones_like(paid)))
        return found


def _tensor(values: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
