"""`vlp-compact`: a reward model of 2.6 million weights that trains from scratch on two cores and loads with no network.

It is factorised, because a joint f(video, text) trained on few scenes memorises (scene, sentence) pairs:

- progress and quality say how far and how well the shown behaviour goes. The text is told to them in a few numbers
  only, which say in which direction (opening or closing); they are trained on the opposite sentence as well;
- relevance compares the video with the text: its scene (first frame) and its motion (what changed) each with a part of
  the sentence's embedding; both are trained on the opposite sentence as well, which is about the same scene;
- preference = scene relevance + motion_weight * motion relevance + quality_weight * sigmoid(quality): bounded, so that
  the best video of another task does not outweigh what the sentence says.

The reward is gated by the scene relevance alone. It is settled by the first frame, so an agent cannot raise it. Motion
generalises worst: on an unseen task it would take back the reward in the moment of success.

Progress of a frame is read from [F_t, F_t - F_first] alone: the model cannot read the clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.models.backbones.hashed_words import HashedWords
from vlp_gym.models.backbones.small import SmallBackbone
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.protocol import History, Scores


@dataclass(frozen=True)
class ClipFeatures:
    """What the model sees in a batch of clips, before any sentence.

    Attributes:
        progress: ``[B, T]``, a logit, what the pictures alone say.
        direction: ``[B, T, D]``, what a sentence adds to that, see `CompactRewardModel.progress_logits`.
        quality: ``[B]``, how well the behaviour goes, whatever it is; the mean progress comes on top.
        scene: ``[B, E]``, unit length, from the first frame alone.
        motion: ``[B, E]``, unit length, from what changed.
        positions: ``[B, T, 2, 3]``, of hand and object, in the units of `position_loss`. Nothing uses them but that
            loss: a reward for reaching needs to see how far away things are, and learns it much sooner this way.
    """

    progress: Tensor
    direction: Tensor
    quality: Tensor
    scene: Tensor
    motion: Tensor
    positions: Tensor

    def rows(self, rows: Tensor | slice) -> ClipFeatures:
        """These clips, in this order."""
        return ClipFeatures(*(value[rows] for value in vars(self).values()))


DIRECTIONS = 16  # numbers that tell the progress of a sentence
VERB_DROPOUT = 0.05  # of words; a sentence without its verb has no direction


class CompactRewardModel(nn.Module, CheckpointMixin):
    """A small factorised reward model; see the module's docstring, and `RewardModel` for its methods.

    Args:
        window: T, frames that one score looks at.
        history: which frames of the episode those are.
        image_size: side of the square the frames are resized to, pixels, divisible by 16.
        channels: of a frame token.
        hidden: width of the pair encoder and of the transformer.
        embedding: E, of the scene and motion embeddings.
        buckets: of the text encoder's hash table.
        quality_weight: lambda in preference = relevance + lambda * sigmoid(quality); choose it on validation tasks.
        motion_weight: of the motion in that relevance, beside the scene's of 1; likewise.
        relevance_shift: added to the scene relevance of a score, so that 0 lies between right and wrong sentences on
            tasks that were not trained on; likewise.
        truncate: cut sentences over 64 words instead of raising.
    """

    model_type = "compact"

    def __init__(
        self,
        *,
        window: int = 8,
        history: History = "prefix",
        image_size: int = 112,
        channels: int = 128,
        hidden: int = 160,
        embedding: int = 96,
        buckets: int = 4096,
        quality_weight: float = 12.0,
        motion_weight: float = 0.25,
        relevance_shift: float = 0.0,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        self.window, self.history = window, history
        self.quality_weight, self.motion_weight = quality_weight, motion_weight
        self.relevance_shift = relevance_shift
        self.frame_size = (image_size, image_size)
        self.backbone = SmallBackbone(image_size, channels, buckets, truncate=truncate)
        self.pair = nn.Linear(2 * channels, hidden)
        side = image_size // 16
        half = -(-side // 2)
        self.where = nn.Sequential(  # what is where in the picture: no pooling, a hand beside the button is not on it
            nn.ReLU(),
            nn.Unflatten(2, (side, side)),
            nn.Conv2d(hidden, hidden, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(hidden * half**2, hidden),
            nn.LayerNorm(hidden),
        )
        self.progress_head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        # Words of its own: those of the relevance are trained on when the progress must not change any more.
        self.verbs = HashedWords(buckets, word_dropout=VERB_DROPOUT, truncate=truncate)
        self.text_direction = nn.Sequential(nn.Linear(self.verbs.dim, DIRECTIONS), nn.Tanh())
        self.direction_head = nn.Linear(hidden, DIRECTIONS)
        nn.init.zeros_(self.direction_head.weight)
        nn.init.zeros_(self.direction_head.bias)
        self.position_head = nn.Linear(hidden, 6)
        self.order = nn.Linear(2, hidden)
        layer = nn.TransformerEncoderLayer(hidden, 4, 2 * hidden, dropout=0.1, batch_first=True, norm_first=True)
        self.sequence = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.quality_head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 1))
        self.scene_head = _embedding_head(2 * channels, hidden, embedding)
        self.motion_head = _embedding_head(2 * hidden, hidden, embedding)
        words = self.backbone.text_dim
        self.text_scene = _embedding_head(words, hidden, embedding)
        self.text_motion = _embedding_head(words, hidden, embedding)
        self.temperature = nn.Parameter(torch.tensor([10.0, 10.0]))  # of scene and motion
        self.relevance_bias = nn.Parameter(torch.tensor([-5.0, 0.0]))

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode sentences as one token each, float ``[B, 1, D]``: what it is about, and in which direction."""
        return torch.cat([self.backbone.encode_text(instructions), self.verbs(instructions)], 2)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode uint8 frames ``[N, H, W, 3]`` as ``[N, K, channels]``, K = (image_size / 16)^2."""
        return self.backbone.encode_frames(frames)

    def encode_in_context(self, frames: Tensor, first: Tensor) -> Tensor:
        """See `ContextualModel`: each frame beside the first one of its clip, ``[N, 1, hidden + 2 * channels]``."""
        state = self._state(frames[:, None], first)[:, 0]
        return torch.cat([state, _overview(first)], 1)[:, None]

    def score_in_context(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """See `ContextualModel`."""
        state, overview = frames.squeeze(2).split([self.order.out_features, 2 * self.backbone.frame_dim], -1)
        return self._scores(self._clip_features(state, overview[:, -1], mask), text, mask)

    def features(self, frames: Tensor, mask: Tensor) -> ClipFeatures:
        """Look at clips of frame tokens ``[B, T, K, channels]`` with mask ``[B, T]``, no sentence involved."""
        first = frames[torch.arange(len(frames), device=frames.device), mask.int().argmax(1)]
        return self._clip_features(self._state(frames, first), _overview(first), mask)

    def _state(self, frames: Tensor, first: Tensor) -> Tensor:
        """What each frame ``[B, T, K, channels]`` shows, and what has changed since ``[B, K, channels]``."""
        pair = self.pair(torch.cat([frames, frames - first[:, None]], -1)).flatten(0, 1)  # [B * T, K, hidden]
        state: Tensor = self.where(pair.transpose(1, 2)).unflatten(0, frames.shape[:2])
        return state  # [B, T, hidden]

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
        """Progress of each clip under its own sentence ``[B, 1, D]``, before the sigmoid, ``[B, T]``."""
        told = self.text_direction(self._text(text)[1])
        return clips.progress + (clips.direction * told[:, None]).sum(2)

    def quality(self, clips: ClipFeatures, progress_logits: Tensor, mask: Tensor) -> Tensor:
        """How well the behaviour goes, a logit ``[B]``: the model's own judgement and the mean progress ``[B, T]``."""
        return clips.quality + (progress_logits * mask).sum(1) / mask.sum(1)

    def scene_relevance(self, clips: ClipFeatures, text: Tensor) -> Tensor:
        """Logit that a sentence ``[M, 1, D]`` is about what a clip's first frame shows, as ``[B, M]``."""
        scene = clips.scene @ F.normalize(self.text_scene(self._text(text)[0]), dim=-1).T
        return self.temperature[0] * scene + self.relevance_bias[0]

    def motion_relevance(self, clips: ClipFeatures, text: Tensor) -> Tensor:
        """Logit that a clip's motion shows what a sentence ``[M, 1, D]`` says, as ``[B, M]``."""
        motion = clips.motion @ F.normalize(self.text_motion(self._text(text)[0]), dim=-1).T
        return self.temperature[1] * motion + self.relevance_bias[1]

    def relevance_parameters(self) -> list[nn.Parameter]:
        """What only the relevance depends on: when these are trained alone, no other weight changes."""
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

    def _text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """What sentences ``[M, 1, D]`` are about, and what they say of the direction."""
        about, direction = text[:, 0].split([self.backbone.text_dim, self.verbs.dim], 1)
        return about, direction


def _overview(first: Tensor) -> Tensor:
    """What a clip's first frame ``[B, K, channels]`` shows anywhere, ``[B, 2 * channels]``."""
    return torch.cat([first.mean(1), first.amax(1)], 1)


def _embedding_head(width: int, hidden: int, embedding: int) -> nn.Sequential:
    """The batch norm takes away what all inputs share; without it, all embeddings start and stay alike."""
    return nn.Sequential(
        nn.BatchNorm1d(width, affine=False), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, embedding)
    )
