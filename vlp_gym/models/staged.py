"""A small reward model whose progress is made of stages; it trains from scratch and loads offline.

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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlp_gym.models.backbones.on_pairs import DIRECTIONS, OnPairs, direction_words, embedding_head, overview
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.config import Count, Factor, Pixels, Probability, Width
from vlp_gym.models.protocol import History, Scores

STAGES = ("approach", "moved", "way")


class StagedRewardModel(OnPairs, CheckpointMixin):
    """A small factorised reward model; see the module's docstring, and `RewardModel` for its methods.

    Args:
        window: T, frames per score.
        history: which frames of the episode those are.
        image_size: side of the square that frames are resized to, in pixels, divisible by 16.
        channels: width of a frame token.
        hidden: width of the pair encoder.
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
        super().__init__(image_size, channels, hidden, buckets, truncate)
        self.window, self.history = window, history
        self.approach_share, self.base, self.sharpness = approach_share, base, sharpness
        self.relevance_shift = relevance_shift
        self.stage_head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, len(STAGES)))
        self.verbs = direction_words(buckets, truncate)
        self.text_direction = nn.Sequential(nn.Linear(self.verbs.dim, DIRECTIONS), nn.Tanh())
        self.direction_head = nn.Linear(hidden, len(STAGES) * DIRECTIONS)
        nn.init.zeros_(self.direction_head.weight)
        nn.init.zeros_(self.direction_head.bias)
        self.position_head = nn.Linear(hidden, 6)  # an auxiliary loss alone uses it; it teaches distances
        self.scene_head = embedding_head(2 * channels, hidden, embedding)
        self.text_scene = embedding_head(self.backbone.text_dim, hidden, embedding)
        self.temperature = nn.Parameter(torch.tensor(10.0))
        self.relevance_bias = nn.Parameter(torch.tensor(-5.0))

    def score_in_context(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """See `ContextualModel`."""
        states, first = self.split_context(frames)
        return self._scores(states, first, text, mask)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows; shapes as in `RewardModel`. The first frame is the episode's, whatever the mask says."""
        return self._scores(self.state(frames), overview(frames[:, 0]), text, mask)

    def state(self, frames: Tensor) -> Tensor:
        """State ``[B, T, hidden]`` of clips of frame tokens ``[B, T, K, channels]``; frame 0 is the episode's first."""
        return self.state_since(frames, frames[:, 0])

    def stages(self, state: Tensor, text: Tensor) -> Tensor:
        """Logits ``[B, T, 3]`` of approach, moved and way, each clip under its own sentence ``[B, 1, D]``."""
        direction = self.text_direction(self.topic_and_direction(text)[1])
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

    def _scores(self, state: Tensor, first: Tensor, text: Tensor, mask: Tensor) -> Scores:
        progress = self.progress(self.stages(state, text))
        relevance = self._relevance(first, text).diagonal() + self.relevance_shift
        mean = (progress * mask).sum(1) / mask.sum(1)
        return Scores(self.sharpness * relevance.sigmoid() * (self.base + mean), progress, relevance)

    def _relevance(self, first: Tensor, text: Tensor) -> Tensor:
        scene = F.normalize(self.scene_head(first), dim=-1)
        cosine = scene @ F.normalize(self.text_scene(self.topic_and_direction(text)[0]), dim=-1).T
        return self.temperature * cosine + self.relevance_bias
