"""Two models as one: the small one answers, and pairs that it is unsure of go to the large one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlp_gym.models.gate import Gate, read_cascade
from vlp_gym.models.protocol import AnchoredModel, History, KnowingModel, PairwiseModel, RewardModel, Scores
from vlp_gym.models.raw_tokens import pixel_tokens, tokens_to_images, tokens_to_sentences
from vlp_gym.models.several import Texts


class CascadeModel(nn.Module):
    """A small model whose uncertain preferences a large one decides (ROVED); a `RewardModel` with a pairwise head.

    `prefer` asks the small model about all pairs, and the large one about those that the `gate` chooses. `score` is the
    small model's: a reward is paid for each step, and no step is compared with another one.

    For the large model, frames are kept as pixels of its own frame size; it encodes those of the pairs that it gets,
    and no others. That takes H * W * 12 bytes a frame, so let labelers keep frames (``keep_frames=112``), not tokens.

    A pair is counted each time that it is asked about; `ModelLabeler` asks in both orders. If one of the models is
    anchored, the cascade is: the first frame of each video of a pair is then what it is measured from, and not judged.

    Args:
        small: asked about everything.
        large: asked about what the gate chooses.
        gate: None takes the defaults.

    Example:
        >>> model = CascadeModel.from_spec("vlp-compact|vlp-compact-45|band=0.1|budget=100")
        >>> model.window, model.gate.budget
        (8, 100)
    """

    def __init__(self, small: RewardModel, large: RewardModel, gate: Gate | None = None) -> None:
        super().__init__()
        self.small, self.large, self.gate = small, large, gate or Gate()
        self.window, self.history = small.window, small.history
        self.anchored = _is_anchored(small) or _is_anchored(large)
        self.frame_size = (
            max(small.frame_size[0], large.frame_size[0]),
            max(small.frame_size[1], large.frame_size[1]),
        )
        self.register_buffer("_place", torch.zeros(0), persistent=False)  # tells the device
        self._texts = Texts((small, large))
        with torch.inference_mode():
            black = torch.zeros(1, *small.frame_size, 3, dtype=torch.uint8)
            self._shape = tuple(small.encode_frames(black).shape[1:])

    window: int
    history: History
    _place: Tensor

    @classmethod
    def from_spec(cls, spec: str) -> CascadeModel:
        """Build "SMALL|LARGE" of two names, with the options of `read_cascade`."""
        from vlp_gym.models.registry import load_reward_model

        small, large, gate = read_cascade(spec)
        return cls(load_reward_model(small), load_reward_model(large), gate)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Code points of B sentences, float ``[B, L, 1]``; each model encodes a sentence once."""
        return self._texts.encode(instructions).to(self._device)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """The small model's tokens and the large one's pixels, flattened, float ``[N, 1, K * D + H * W * 3]``."""
        tokens = self.small.encode_frames(frames).flatten(1).to(self._device)
        pixels = pixel_tokens(frames, self.large.frame_size).flatten(1).to(self._device)
        return torch.cat([tokens, pixels], 1).unsqueeze(1)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows by the small model; shapes as in `RewardModel`."""
        return self.small.score(self._small_tokens(frames), self._text(text, 0), mask)

    def novelty(self, frames: Tensor) -> Tensor:
        """See `KnowingModel`: the small model's, whose rewards are paid."""
        if isinstance(self.small, KnowingModel):
            return self.small.novelty(self._small_tokens(frames))
        return frames.new_full((len(frames),), torch.nan)

    def prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """P(a > b | text), float ``[B]``; see `PairwiseModel.prefer`."""
        below = self._small_tokens(a), self._small_tokens(b)
        chance = self._prefer(self.small, *below, self._text(text, 0)).detach().clone()
        rows = torch.from_numpy(self.gate.choose(chance.double().cpu().numpy())).to(chance.device)
        if len(rows):
            above = self._large_tokens(a[rows]), self._large_tokens(b[rows])
            chance[rows] = self._prefer(self.large, *above, self._text(text[rows], 1)).to(chance)
        return chance

    def _prefer(self, model: RewardModel, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """P(a > b), float ``[B]``: the head of a pairwise model, else Bradley-Terry on the preferences (VLP eq. 3)."""
        if self.anchored and not _is_anchored(model):
            a, b = (side[:, 1:] if side.shape[1] > 1 else side for side in (a, b))
        if isinstance(model, PairwiseModel):
            return model.prefer(a, b, text)
        scores = []
        for side in (a, b):
            mask = torch.ones(side.shape[:2], dtype=torch.bool, device=side.device)
            mask[:, 0] = side.shape[1] == 1 or not _is_anchored(model)
            scores.append(model.score(side, text, mask).preference)
        return torch.sigmoid(scores[0] - scores[1])

    @property
    def _device(self) -> torch.device:
        return self._place.device

    def _small_tokens(self, frames: Tensor) -> Tensor:
        return frames.squeeze(-2)[..., : math.prod(self._shape)].unflatten(-1, self._shape)

    def _large_tokens(self, frames: Tensor) -> Tensor:
        """What the large model makes of the pixels, ``[B, T, K, D]``."""
        pixels = frames.squeeze(-2)[..., math.prod(self._shape) :].unflatten(-1, (-1, 3)).flatten(0, 1)
        pictures = torch.from_numpy(tokens_to_images(pixels, self.large.frame_size)).to(frames.device)
        return self.large.encode_frames(pictures).unflatten(0, frames.shape[:2])

    def _text(self, text: Tensor, number: int) -> Tensor:
        """Text tokens for the small model (0) or the large one (1), ``[B, L, D]``."""
        return self._texts.padded(tokens_to_sentences(text), number, text.device)


def _is_anchored(model: RewardModel) -> bool:
    return isinstance(model, AnchoredModel) and model.anchored
