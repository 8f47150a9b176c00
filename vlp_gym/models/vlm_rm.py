"""VLM-RM: CLIP similarity, projected towards the direction from a baseline sentence to the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_gym.errors import InstructionError
from vlp_gym.models.clip import ClipReward, ClipTowers, parse_clip_name
from vlp_gym.models.protocol import Scores, frame_scores

BASELINE = "a robot arm at a table"
SAME = 1e-4  # distance of two unit vectors that rounding can cause


class VLMRMModel(ClipReward):
    """Goal-baseline regularised similarity (VLM-RM, Rocamonde et al. 2024, definition 1); see `goal_baseline_reward`.

    The instruction is the goal: a sentence that describes the picture when the task is done. It has two tokens: the
    unit vectors of the goal and of the baseline.

    Args:
        name: an open_clip model.
        pretrained: its weights; see `OpenClip`, also for errors.
        baseline: a sentence that describes the scene without the task.
        alpha: strength of the regularisation, in [0, 1]; 0 gives CLIP's cosine.
        truncate: truncate sentences over the text tower's limit instead of raising.

    Attributes:
        baselines: sentence -> its own baseline in the place of that one, to be set (VLP's table 12 has one for each
            task).

    Raises:
        ValueError: alpha is not in [0, 1].
        InstructionError: the baseline is blank or too long.
    """

    def __init__(
        self,
        name: str = "ViT-B-32",
        pretrained: str | None = "openai",
        *,
        baseline: str = BASELINE,
        alpha: float = 0.5,
        truncate: bool = False,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected a number in [0, 1], got {alpha}")
        super().__init__(ClipTowers(name, pretrained, truncate=truncate).requires_grad_(False))
        self.baseline, self.alpha = baseline, alpha
        self.baselines: Mapping[str, str] = {}
        self.clip.encode_text([baseline])  # raise now, not with the first instruction

    @classmethod
    def from_spec(cls, spec: str) -> VLMRMModel:
        """Build "NAME/TAG?baseline=SENTENCE&alpha=NUMBER", encoded as in a URL ("%26" for an "&")."""
        clip, _, query = spec.partition("?")
        given = parse_qsl(query, keep_blank_values=True)
        options = dict(given)
        if len(options) < len(given) or options.keys() - {"baseline", "alpha"}:
            raise ValueError(f'expected "baseline" and "alpha" after the "?", each once at most, got {query!r}')
        try:
            alpha = float(options.get("alpha", 0.5))
        except ValueError as error:
            raise ValueError(f"alpha: expected a number in [0, 1], got {options['alpha']!r}") from error
        with torch.random.fork_rng(devices=[]):
            return cls(*parse_clip_name(clip), baseline=options.get("baseline", BASELINE), alpha=alpha)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B goals as two unit vectors each, goal and baseline, float ``[B, 2, D]``.

        Raises:
            InstructionError: a sentence is blank or too long, or CLIP cannot tell it from the baseline.
        """
        goals = self.clip.encode_text(instructions)
        baselines = [self.baselines.get(instruction, self.baseline) for instruction in instructions]
        baseline = self.clip.encode_text(baselines)
        same = (goals - baseline).norm(dim=-1).squeeze(1) < SAME
        if self.alpha > 0 and bool(same.any()):
            twin = int(same.int().argmax())
            raise InstructionError(
                f"the goal {instructions[twin]!r} and the baseline {baselines[twin]!r} are the same to this CLIP, "
                "so there is no direction from one to the other; describe the goal otherwise, or the baseline"
            )
        return torch.cat([goals, baseline], dim=1)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The regularised similarity of each frame, float ``[B, T]``; shapes as in `RewardModel`.

        It is in [-1, 1], as the projection lengthens no vector, and two unit vectors are at most 2 apart.
        """
        return frame_scores(goal_baseline_reward(frames[:, :, 0], text[:, :1], text[:, 1:2], self.alpha), mask)


def goal_baseline_reward(frames: Tensor, goal: Tensor, baseline: Tensor, alpha: float) -> Tensor:
    """``r = 1 - 1/2 |(x - g) P|^2`` with ``P = alpha d d^T / |d|^2 + (1 - alpha) I`` and ``d = g - b``.

    Args:
        frames: x, unit vectors, float ``[B, T, D]``.
        goal: g, unit vectors, float ``[B, 1, D]``.
        baseline: b, unit vectors, float ``[B, 1, D]``; different from the goal unless alpha is 0.
        alpha: strength of the regularisation, in [0, 1].

    Returns:
        float ``[B, T]`` in [-1, 1].
    """
    direction = F.normalize(goal - baseline, dim=-1)
    gap = frames - goal
    along = (gap * direction).sum(-1, keepdim=True) * direction
    projected = alpha * along + (1 - alpha) * gap
    return (1 - projected.square().sum(-1) / 2).clamp(-1, 1)  # rounding may exceed the range
