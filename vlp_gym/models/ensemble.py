"""Several reward models as one: the mean, the minimum or a pessimistic mean of their rank-normalised scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.protocol import History, KnowingModel, RewardModel, Scores, value_range
from vlp_gym.models.raw_tokens import tokens_to_sentences
from vlp_gym.models.several import Texts

Reduce = Literal["mean", "min", "lower"]
QUANTILES = 101
MAX_MEMBERS = 32


class EnsembleModel(nn.Module, CheckpointMixin):
    """Several models as one, rank-normalised; a `RewardModel` whose progress is in [0, 1].

    A cosine and a probability cannot be averaged directly. Each member's value of a frame (progress, times
    sigmoid(relevance) if it has one; preference if it has no progress) is replaced by its rank: the share of
    calibration values below it (`calibrate`). Without calibration a finite `value_range` is mapped linearly to [0, 1],
    and anything else by a sigmoid.

    Where the members disagree, one of them is wrong, and an agent looks for such states. "min" pays only where all
    agree; "lower" is pessimistic: the mean less one standard deviation over the members, at least 0.

    All members get the same frames, as many as the longest window.

    Args:
        members: at least two names, folders or hub ids for `load_reward_model`; a checkpoint may not name models on an
            endpoint, see `vlp_gym.models.registry.check_storable`.
        reduce: "mean", "min" or "lower".
        models: live members, for experiments; such an ensemble can be saved only if `members` names them.

    Raises:
        ValueError: fewer than two members, or another `reduce`.

    Example:
        >>> model = EnsembleModel(["vlp-compact", "vlp-compact-45"], "min")
        >>> model.window, model.history
        (8, 'prefix')
    """

    model_type = "ensemble"
    not_stored = ("models",)
    progress_ranks: Tensor
    preference_ranks: Tensor

    def __init__(
        self,
        members: Annotated[Sequence[str], Field(max_length=MAX_MEMBERS)],
        reduce: Reduce = "mean",
        *,
        models: Sequence[RewardModel] | None = None,
    ) -> None:
        super().__init__()
        if reduce not in get_args(Reduce):
            raise ValueError(f"reduce must be one of {get_args(Reduce)}, got {reduce!r}")
        if len(members) < 2:
            raise ValueError(f"an ensemble needs at least 2 members, got {list(members)}")
        if models is None:
            from vlp_gym.models.registry import load_reward_model

            models = [load_reward_model(name) for name in members]
        self.modules_of_members = nn.ModuleList(model for model in models if isinstance(model, nn.Module))
        self.members: list[RewardModel] = list(models)
        self.window = max(model.window for model in models)
        self.history: History = "prefix" if any(model.history == "prefix" for model in models) else "sliding"
        self.frame_size = (max(model.frame_size[0] for model in models), max(model.frame_size[1] for model in models))
        for name in ("progress_ranks", "preference_ranks"):
            self.register_buffer(name, torch.zeros(len(models), QUANTILES, dtype=torch.float64))
        self._texts = Texts(self.members)
        with torch.inference_mode():
            black = torch.zeros(1, *self.frame_size, 3, dtype=torch.uint8)
            self._shapes: list[tuple[int, ...]] = [tuple(model.encode_frames(black).shape[1:]) for model in models]

    @classmethod
    def from_spec(cls, spec: str) -> EnsembleModel:
        """Build "REDUCE|MODEL|MODEL...", such as "mean|vlp-compact|clip:ViT-B-32/openai"."""
        reduce, *members = spec.split("|")
        return cls(members, reduce)  # type: ignore[arg-type]  # the constructor checks it

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The ranks; members are named in the config."""
        return {"progress_ranks": self.progress_ranks, "preference_ranks": self.preference_ranks}

    def load_checkpoint_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the ranks, or raise CheckpointError if they are no quantiles."""
        for name, ranks in state.items():
            if (ranks.diff(dim=1) < 0).any():
                raise CheckpointError(f"{name}: expected quantiles in ascending order")
        self.load_state_dict(state, strict=False)  # without the members

    def calibrate(self, progress: NDArray[np.float64], preference: NDArray[np.float64]) -> None:
        """Set the quantiles for rank normalisation from the scores of many videos.

        Args:
            progress: values of N frames from `ask`, float64 ``[M, N]``, one row per member.
            preference: preferences of V videos, float64 ``[M, V]``.

        Raises:
            ValueError: values are not finite, all equal, or not for every member.
        """
        for name, values in (("progress", progress), ("preference", preference)):
            if values.ndim != 2 or len(values) != len(self.members):
                raise ValueError(f"{name}: expected [{len(self.members)}, N] values, got {list(values.shape)}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite values")
            quantiles = np.quantile(values, np.linspace(0, 1, QUANTILES), axis=1).T
            if not (quantiles[:, -1] > quantiles[:, 0]).all():
                alike = self.config["members"][int(np.argmin(quantiles[:, -1] - quantiles[:, 0]))]
                raise ValueError(f"{name}: all values of {alike} are alike; calibrate on more videos")
            getattr(self, f"{name}_ranks").copy_(torch.from_numpy(quantiles))

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Code points of B sentences, float ``[B, L, 1]``; each member encodes a sentence once."""
        return self._texts.encode(instructions).to(self.progress_ranks.device)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """The members' tokens, flattened and concatenated, float ``[N, 1, sum of K * D]``."""
        device = self.progress_ranks.device
        return torch.cat([model.encode_frames(frames).flatten(1).to(device) for model in self.members], 1).unsqueeze(1)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows; shapes as in `RewardModel`. Preference and progress are both in [0, 1]."""
        progress, preference = [], []
        for number, (scores, value) in enumerate(self.ask(frames, text, mask)):
            bounds = (-np.inf, np.inf) if scores.progress is None else value_range(self.members[number])
            progress.append(_rank(value, self.progress_ranks[number], bounds))
            preference.append(_rank(scores.preference, self.preference_ranks[number], (-np.inf, np.inf)))
        return Scores(preference=self._reduce(preference), progress=self._reduce(progress))

    def novelty(self, frames: Tensor) -> Tensor:
        """See `KnowingModel`: the farthest of the members that can say it."""
        found = [
            model.novelty(own)
            for model, own in zip(self.members, self._split(frames), strict=True)
            if isinstance(model, KnowingModel)
        ]
        return torch.stack(found).nan_to_num(0).amax(0) if found else frames.new_full((len(frames),), torch.nan)

    def ask(
        self,
        frames: Tensor,
        text: Tensor,
        mask: Tensor,
        scorers: Sequence[Callable[[Tensor, Tensor, Tensor], Scores]] | None = None,
    ) -> list[tuple[Scores, Tensor]]:
        """Each member's scores and its values of the frames, float32 ``[B, T]``, before rank normalisation.

        Args:
            frames: as `score` takes them.
            text: the same.
            mask: the same.
            scorers: called in the place of the members' own ``score``.
        """
        scorers = scorers or [model.score for model in self.members]
        sentences = tokens_to_sentences(text)
        answers = []
        for number, (score, own) in enumerate(zip(scorers, self._split(frames), strict=True)):
            padded = self._texts.padded(sentences, number, frames.device)
            scores = score(own, padded, mask)
            value = scores.preference[:, None].expand(mask.shape) if scores.progress is None else scores.progress
            if scores.progress is not None and scores.relevance is not None:
                value = value * torch.sigmoid(scores.relevance)[:, None]
            answers.append((scores, value.float()))
        return answers

    def _split(self, frames: Tensor) -> list[Tensor]:
        """Each member's tokens ``[..., K, D]``, from `encode_frames`, ``[..., 1, sum of K * D]``."""
        sizes = [math.prod(shape) for shape in self._shapes]
        parts = frames.squeeze(-2).split(sizes, -1)
        return [own.unflatten(-1, shape) for own, shape in zip(parts, self._shapes, strict=True)]

    def _reduce(self, ranks: list[Tensor]) -> Tensor:
        values = torch.stack(ranks)
        reduce: Reduce = self.config["reduce"]
        if reduce == "min":
            return values.amin(0)
        spread = values.std(0, correction=0) if reduce == "lower" else 0.0
        return (values.mean(0) - spread).clamp(min=0.0)


def _rank(values: Tensor, quantiles: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Share of calibration values below each value, float32 in [0, 1]; uncalibrated, the position between the bounds.

    The quantiles, float64 ``[Q]``, are at equal steps from 0 to 1; they are all equal before calibration.
    """
    if quantiles[-1] > quantiles[0]:
        # The first of equal quantiles: a frequent value ranks above smaller values only.
        above = torch.searchsorted(quantiles, values.double().contiguous()).clamp(1, len(quantiles) - 1)
        low, high = quantiles[above - 1], quantiles[above]
        within = ((values - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        return ((above - 1 + within) / (len(quantiles) - 1)).float()
    if np.isfinite(bounds).all():
        return ((values - bounds[0]) / (bounds[1] - bounds[0])).clamp(0, 1)
    return torch.sigmoid(values.float())
