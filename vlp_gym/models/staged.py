"""`vlp-compact`: a reward model of 2.1 million weights that trains from scratch on two CPU cores and loads offline.

It is factorised, because a joint f(video, text) trained on few scenes memorises (scene, sentence) pairs:

- progress = approach_share * approach + (1 - approach_share) * moved * way. Each factor is a probability of its own:
  how near the hand is to what it must move, whether that has moved, and how far it has gone the right way. So a hand
  beside the object earns the approach's share and no more. They see only a few numbers of the text, which give the
  direction (opening or closing), and are also trained on the opposite sentence;
- relevance compares the episode's first frame with the sentence. It gates the reward, and no agent can raise it;
- preference = sharpness * sigmoid(relevance) * (base + mean progress of the frames): under a wrong sentence all videos
  are worth nothing, and under the right one progress decides.

The progress of a frame depends only on [F_t, F_t - F_0], where F_0 is the first frame of its episode: the model cannot
count frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.models.backbones.hashed_words import HashedWords
from vlp_gym.models.backbones.on_backbone import OnBackbone
from vlp_gym.models.backbones.small import TOKEN_PIXELS, SmallBackbone
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.config import Count, Factor, Pixels, Probability, Width
from vlp_gym.models.protocol import History, Scores

STAGES = ("approach", "moved", "way")
DIRECTIONS = 16  # numbers of the sentence that the progress sees
VERB_DROPOUT = 0.05  # word dropout; low, as a sentence without its verb has no direction


class StagedRewardModel(OnBackbone, CheckpointMixin):
    """A small factorised reward model; see the module's docstring, and `RewardModel` for its methods.

    Args:
        window: T, frames per score.
        history: which frames of the episode those are.
        image_size: side of the square that frames are resized to, in pixels, divisible by 16.
        channels: width of a frame token.
        hidden: width of a state.
        embedding: width of the scene embedding.
        buckets: size of the text encoder's hash table.
        approach_share: progress that the approach alone is worth, in [0, 1].
        base: what the relevance alone is worth in the preference, beside the progress.
        sharpness: factor on the preference, which calibrates P(a > b).
        relevance_shift: added to the relevance, so that 0 separates right from wrong sentences on unseen tasks.
            Tune these three on validation tasks.
        truncate: truncate sentences over 64 words instead of raising.
    """

    model_type = "staged"
    anchored = True

    def __init__(
        self,
        *,
        window: Count = 8,
        history: History = "prefix",
        image_size: Pixels = 112,
        channels: Width = 128,
        hidden: Width = 160,
        embedding: Width = 96,
        buckets: Width = 4096,
        approach_share: Probability = 0.25,
        base: Factor = 0.3,
        sharpness: Factor = 10.0,
        relevance_shift: Factor = 0.0,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        self.window, self.history = window, history
        self.approach_share, self.base, self.sharpness = approach_share, base, sharpness
        self.relevance_shift = relevance_shift
        self.backbone = SmallBackbone(image_size, channels, buckets, truncate=truncate)
        self.pair = nn.Linear(2 * channels, hidden)
        side = image_size // TOKEN_PIXELS
        half = -(-side // 2)
        self.where = nn.Sequential(  # no pooling: positions matter, a hand beside the button is not on it
            nn.ReLU(),
            nn.Unflatten(2, (side, side)),
            nn.Conv2d(hidden, hidden, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(hidden * half**2, hidden),
            nn.LayerNorm(hidden),
        )
        self.stage_head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, len(STAGES)))
        # A second word table: the relevance's words are still trained when the progress is frozen.
        self.verbs = HashedWords(buckets, word_dropout=VERB_DROPOUT, truncate=truncate)
        self.text_direction = nn.Sequential(nn.Linear(self.verbs.dim, DIRECTIONS), nn.Tanh())
        self.direction_head = nn.Linear(hidden, len(STAGES) * DIRECTIONS)
        nn.init.zeros_(self.direction_head.weight)
        nn.init.zeros_(self.direction_head.bias)
        self.position_head = nn.Linear(hidden, 6)  # an auxiliary loss alone uses it; it teaches distances
        self.scene_head = _embedding_head(2 * channels, hidden, embedding)
        self.text_scene = _embedding_head(self.backbone.text_dim, hidden, embedding)
        self.temperature = nn.Parameter(torch.tensor(10.0))
        self.relevance_bias = nn.Parameter(torch.tensor(-5.0))

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as one token each, float ``[B, 1, D]``: the topic and the direction, concatenated."""
        return torch.cat([self.backbone.encode_text(instructions), self.verbs(instructions)], 2)

    def encode_in_context(self, frames: Tensor, first: Tensor) -> Tensor:
        """See `ContextualModel`; returns float ``[N, 1, hidden + 2 * channels]``: the state and the first frame."""
        return torch.cat([self._state_since(frames[:, None], first)[:, 0], overview(first)], 1)[:, None]

    def score_in_context(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """See `ContextualModel`."""
        states, firsts = frames.squeeze(2).split([self.pair.out_features, 2 * self.backbone.frame_dim], -1)
        return self._scores(states, firsts[:, -1], text, mask)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows; shapes as in `RewardModel`. The first frame is the episode's, whatever the mask says."""
        return self._scores(self.state(frames), overview(frames[:, 0]), text, mask)

    def state(self, frames: Tensor) -> Tensor:
        """State ``[B, T, hidden]`` of clips of frame tokens ``[B, T, K, channels]``; frame 0 is the episode's first."""
        return self._state_since(frames, frames[:, 0])

    def stages(self, state: Tensor, text: Tensor) -> Tensor:
        """Logits ``[B, T, 3]`` of approach, moved and way, each clip under its own sentence ``[B, 1, D]``."""
        direction = self.text_direction(self._topic_and_direction(text)[1])
        turned = self.direction_head(F.relu(state)).unflatten(2, (len(STAGES), DIRECTIONS))
        return self.stage_head(state) + (turned * direction[:, None, None]).sum(-1)

    def progress(self, stages: Tensor) -> Tensor:
        """Progress ``[B, T]`` in [0, 1] from the logits of the stages ``[B, T, 3]``."""
        approach, moved, way = stages.sigmoid().unbind(-1)
        return self.approach_share * approach + (1 - self.approach_share) * moved * way

    def relevance(self, first: Tensor, text: Tensor) -> Tensor:
        """Logits ``[B, M]`` that sentences ``[M, 1, D]`` fit first frames ``[B, K, channels]``, without the shift."""
        return self._relevance(overview(first), text)

    def novelty(self, frames: Tensor) -> Tensor:
        """See `KnowingModel`: the mean squared z-score of first frames, in the statistics of the scene's head."""
        norm = self.scene_head[0]
        assert isinstance(norm, nn.BatchNorm1d)
        if not norm.num_batches_tracked:
            return frames.new_full((len(frames),), torch.nan)
        score = F.batch_norm(overview(frames), norm.running_mean, norm.running_var, eps=norm.eps)
        return score.square().mean(1)

    def relevance_parameters(self) -> list[nn.Parameter]:
        """Parameters that only the relevance depends on; training them leaves the progress unchanged."""
        heads = (self.backbone.words, self.scene_head, self.text_scene)
        own = [parameter for head in heads for parameter in head.parameters()]
        return [*own, self.temperature, self.relevance_bias]

    def _state_since(self, frames: Tensor, first: Tensor) -> Tensor:
        """State ``[B, T, hidden]`` of frames ``[B, T, K, channels]``: their tokens and the change since `first`."""
        pair = self.pair(torch.cat([frames, frames - first[:, None]], -1)).flatten(0, 1)  # [B * T, K, hidden]
        state: Tensor = self.where(pair.transpose(1, 2)).unflatten(0, frames.shape[:2])
        return state

    def _topic_and_direction(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Split sentence tokens ``[M, 1, D]`` into topic ``[M, text_dim]`` and direction ``[M, verbs.dim]``."""
        about, direction = text[:, 0].split([self.backbone.text_dim, self.verbs.dim], 1)
        return about, direction

    def _scores(self, state: Tensor, first: Tensor, text: Tensor, mask: Tensor) -> Scores:
        progress = self.progress(self.stages(state, text))
        relevance = self._relevance(first, text).diagonal() + self.relevance_shift
        mean = (progress * mask).sum(1) / mask.sum(1)
        return Scores(self.sharpness * relevance.sigmoid() * (self.base + mean), progress, relevance)

    def _relevance(self, first: Tensor, text: Tensor) -> Tensor:
        scene = F.normalize(self.scene_head(first), dim=-1)
        cosine = scene @ F.normalize(self.text_scene(self._topic_and_direction(text)[0]), dim=-1).T
        return self.temperature * cosine + self.relevance_bias


def overview(first: Tensor) -> Tensor:
    """Mean and maximum over the tokens of first frames ``[B, K, channels]``, as ``[B, 2 * channels]``."""
    return torch.cat([first.mean(1), first.amax(1)], 1)


def _embedding_head(width: int, hidden: int, embedding: int) -> nn.Sequential:
    """An MLP; its batch norm removes what all inputs share, else all embeddings start and stay alike."""
    return nn.Sequential(
        nn.BatchNorm1d(width, affine=False), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, embedding)
    )
