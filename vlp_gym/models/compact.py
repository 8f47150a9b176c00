"""`vlp-compact`: a reward model of 2.6 million weights that trains from scratch on two CPU cores and loads offline.

It is factorised, because a joint f(video, text) trained on few scenes memorises (scene, sentence) pairs:

- progress and quality: how far and how well the behaviour goes. They see only a few numbers of the text, which give
  the direction (opening or closing), and are also trained on the opposite sentence;
- relevance compares the scene (first frame) and the motion (what changed) each with its own projection of the sentence
  embedding. Both are also trained on the opposite sentence, which describes the same scene;
- preference = scene relevance + motion_weight * motion relevance + quality_weight * sigmoid(quality). The quality term
  is bounded, so that the best video of another task does not outweigh the sentence.

Only the scene relevance gates the reward: it depends on the first frame alone, so an agent cannot raise it. Motion
relevance generalises worst; on an unseen task it would lower the reward at the moment of success.

The progress of a frame depends only on [F_t, F_t - F_first]: the model cannot count frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.models.backbones.on_pairs import DIRECTIONS, OnPairs, direction_words, embedding_head, overview
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.config import Count, Factor, Pixels, Width
from vlp_gym.models.protocol import History, Scores


@dataclass(frozen=True)
class ClipFeatures:
    """Features of B clips that do not depend on a sentence.

    Attributes:
        progress: float ``[B, T]``, logit from the pictures alone.
        direction: float ``[B, T, D]``, weights of the sentence's direction; see `CompactRewardModel.progress_logits`.
        quality: float ``[B]``, how well the behaviour goes, for any task; the mean progress is added later.
        scene: float ``[B, E]``, unit length, from the first frame alone.
        motion: float ``[B, E]``, unit length, from what changed.
        positions: float ``[B, T, 2, 3]``, predicted positions of hand and object in the units of `position_loss`. Only
            that auxiliary loss uses them: with it the model learns distances, which reaching needs, much sooner.
    """

    progress: Tensor
    direction: Tensor
    quality: Tensor
    scene: Tensor
    motion: Tensor
    positions: Tensor

    def rows(self, rows: Tensor | slice) -> ClipFeatures:
        """Select clips."""
        return ClipFeatures(*(value[rows] for value in vars(self).values()))


class CompactRewardModel(OnPairs, CheckpointMixin):
    """A small factorised reward model; see the module's docstring, and `RewardModel` for its methods.

    Args:
        window: T, frames per score.
        history: which frames of the episode those are.
        image_size: side of the square that frames are resized to, in pixels, divisible by 16.
        channels: width of a frame token.
        hidden: width of the pair encoder and of the transformer.
        embedding: E, width of the scene and motion embeddings.
        buckets: size of the text encoder's hash table.
        quality_weight: weight of sigmoid(quality) in the preference.
        motion_weight: weight of the motion relevance in the preference; the scene's is 1.
        relevance_shift: added to the scene relevance, so that 0 separates right from wrong sentences on unseen tasks.
            Tune these three on validation tasks.
        truncate: truncate sentences over 64 words instead of raising.
    """

    model_type = "compact"

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
        quality_weight: Factor = 12.0,
        motion_weight: Factor = 0.25,
        relevance_shift: Factor = 0.0,
        truncate: bool = False,
    ) -> None:
        super().__init__(image_size, channels, hidden, buckets, truncate)
        self.window, self.history = window, history
        self.quality_weight, self.motion_weight = quality_weight, motion_weight
        self.relevance_shift = relevance_shift
        self.progress_head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.verbs = direction_words(buckets, truncate)
        self.text_direction = nn.Sequential(nn.Linear(self.verbs.dim, DIRECTIONS), nn.Tanh())
        self.direction_head = nn.Linear(hidden, DIRECTIONS)
        nn.init.zeros_(self.direction_head.weight)
        nn.init.zeros_(self.direction_head.bias)
        self.position_head = nn.Linear(hidden, 6)
        self.order = nn.Linear(2, hidden)
        layer = nn.TransformerEncoderLayer(hidden, 4, 2 * hidden, dropout=0.1, batch_first=True, norm_first=True)
        self.sequence = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.quality_head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 1))
        self.scene_head = embedding_head(2 * channels, hidden, embedding)
        self.motion_head = embedding_head(2 * hidden, hidden, embedding)
        words = self.backbone.text_dim
        self.text_scene = embedding_head(words, hidden, embedding)
        self.text_motion = embedding_head(words, hidden, embedding)
        self.temperature = nn.Parameter(torch.tensor([10.0, 10.0]))  # of scene and motion
        self.relevance_bias = nn.Parameter(torch.tensor([-5.0, 0.0]))

    def score_in_context(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """See `ContextualModel`."""
        states, first = self.split_context(frames)
        return self._scores(self._clip_features(states, first, mask), text, mask)

    def features(self, frames: Tensor, mask: Tensor) -> ClipFeatures:
        """Features of clips of frame tokens ``[B, T, K, channels]`` with mask ``[B, T]``, without a sentence."""
        first = frames[torch.arange(len(frames), device=frames.device), mask.int().argmax(1)]
        return self._clip_features(self.state_since(frames, first), overview(first), mask)

    def _clip_features(self, state: Tensor, overview: Tensor, mask: Tensor) -> ClipFeatures:
        batch, time = mask.shape
        rows = torch.arange(batch, device=state.device)
        first_index = mask.int().argmax(1)
        position = torch.arange(time, device=mask.device) - first_index[:, None]
        position = position / (time - 1 - first_index).clamp(min=1)[:, None]  # order only, not time: 0 first, 1 last
        order = self.order(torch.stack([position, position**2], -1).to(state.dtype))
        context = self.sequence(state + order, src_key_padding_mask=~mask)
        real = mask[..., None].to(context.dtype)
        mean = (context * real).sum(1) / real.sum(1)
        motion = self.motion_head(torch.cat([state[:, -1] - state[rows, first_index], mean], 1))
        scene = self.scene_head(overview)
        return ClipFeatures(
            progress=self.progress_head(state).squeeze(-1),
            direction=self.direction_head(F.relu(state)),
            quality=self.quality_head(mean).squeeze(-1),
            scene=F.normalize(scene, dim=-1),
            motion=F.normalize(motion, dim=-1),
            positions=self.position_head(state).unflatten(2, (2, 3)),
        )

    def progress_logits(self, clips: ClipFeatures, text: Tensor) -> Tensor:
        """Progress logits ``[B, T]`` of each clip under its own sentence ``[B, 1, D]``."""
        direction = self.text_direction(self.topic_and_direction(text)[1])
        return clips.progress + (clips.direction * direction[:, None]).sum(2)

    def quality(self, clips: ClipFeatures, progress_logits: Tensor, mask: Tensor) -> Tensor:
        """Quality logit ``[B]``: the quality head plus the mean of the progress logits ``[B, T]``."""
        return clips.quality + (progress_logits * mask).sum(1) / mask.sum(1)

    def scene_relevance(self, clips: ClipFeatures, text: Tensor) -> Tensor:
        """Logits ``[B, M]`` that each sentence ``[M, 1, D]`` fits the first frame of each clip."""
        scene = clips.scene @ F.normalize(self.text_scene(self.topic_and_direction(text)[0]), dim=-1).T
        return self.temperature[0] * scene + self.relevance_bias[0]

    def motion_relevance(self, clips: ClipFeatures, text: Tensor) -> Tensor:
        """Logits ``[B, M]`` that the motion of each clip fits each sentence ``[M, 1, D]``."""
        motion = clips.motion @ F.normalize(self.text_motion(self.topic_and_direction(text)[0]), dim=-1).T
        return self.temperature[1] * motion + self.relevance_bias[1]

    def relevance_parameters(self) -> list[nn.Parameter]:
        """Parameters that only the relevance depends on; training them leaves progress and quality unchanged."""
        heads = (self.backbone.words, self.scene_head, self.motion_head, self.text_scene, self.text_motion)
        own = [parameter for head in heads for parameter in head.parameters()]
        return [*own, self.temperature, self.relevance_bias]

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows; shapes as in `RewardModel`."""
        return self._scores(self.features(frames, mask), text, mask)

    def _scores(self, clips: ClipFeatures, text: Tensor, mask: Tensor) -> Scores:
        progress = self.progress_logits(clips, text)
        quality = torch.sigmoid(self.quality(clips, progress, mask))
        scene = self.scene_relevance(clips, text).diagonal()
        motion = self.motion_relevance(clips, text).diagonal()
        return Scores(
            preference=scene + self.motion_weight * motion + self.quality_weight * quality,
            progress=torch.sigmoid(progress),
            relevance=scene + self.relevance_shift,
        )
