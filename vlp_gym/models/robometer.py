"""Robometer, SPUR's released successor on Qwen3-VL: per-frame progress and success, preference between two videos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError, import_extra
from vlp_gym.models.backbones.hub import check_counts
from vlp_gym.models.backbones.on_backbone import OnBackbone
from vlp_gym.models.backbones.qwen_base import NEEDS, Precision, qwen
from vlp_gym.models.backbones.qwen_vl import QwenVL, prediction_head
from vlp_gym.models.checkpoint import CheckpointMixin, load_state
from vlp_gym.models.config import Count, Pixels, Width
from vlp_gym.models.protocol import History, Scores

BASE = "Qwen/Qwen3-VL-4B-Instruct"
ADDED_TOKENS = ("<|split_token|>", "<|reward_token|>", "<|pref_token|>", "<|sim_token|>", "<|prog_token|>")
PROGRESS_PROMPT = (
    "<|im_start|>user\nThe task for the robot is '{}'. Given the trajectory video, predict the task progress at each "
    "frame, how far along the robot is towards completing the task, a float between 0 and 1, where 0 is the starting "
    "state and 1 is when the task is completed. If the robot is not performing the same task, predict 0 progress."
    "Picture 1: "
)
PREFERENCE_PROMPT = (
    "<|im_start|>user\nGiven these two trajectories for the task '{}', evaluate which one makes more progress towards "
    "the task. Return A for the first trajectory and B for the second trajectory.This is Trajectory A. Picture 1: "
)
BETWEEN = "<|split_token|>This is Trajectory B. Picture {}: "
AFTER = "Now predict the preference between the two trajectories.<|pref_token|>"
TABLE = "model.language_model.embed_tokens.weight"


class RobometerModel(OnBackbone, CheckpointMixin):
    """Robometer (arXiv 2603.02115), used with published weights; a `RewardModel` without relevance.

    The token sequence follows the authors' repository with ``use_multi_image`` and ``use_per_frame_progress_token``,
    the settings of the released weights: the prompt, then for each frame "Picture n: ", the image and
    ``<|prog_token|>``. At that token the progress head gives a distribution over bins, whose mean is the progress, and
    the success head the logit of `success`. For `prefer` the second video follows ``<|split_token|>``, with continued
    picture numbers, and the preference head reads ``<|pref_token|>`` at the end. The other two added tokens and
    ``frame_pool_attn`` are unused under these settings and exist only because the checkpoint has them.

    Assumptions: hidden states are taken after the last norm; the prompt for two videos does not also ask for progress
    (an option in the repository; the release does not document it). The repository keeps each frame's size, rounded to
    multiples of 32; here all frames have ``frame_size``. The preference *score* of a single video, which the authors do
    not define, is the logit of the last frame's progress.

    Args:
        base: hub id or folder of the tokenizer and, without ``architecture``, of the architecture; no weights.
        architecture: the backbone's config, as in the ``config.json`` of a `transformers.Qwen3VLConfig`.
        bins: bins of the progress head, evenly spaced over [0, 1].
        window: T, frames spread over the episode so far, first and last kept; the authors use 8.
        frame_size: side of the square that frames are resized to, in pixels, a multiple of 32; (frame_size / 32)^2
            tokens per frame, each of H (1 + DeepStack layers) numbers.
        dtype: "float32", or "bfloat16" for half the memory, where scores depend on batching by about 1e-2. The heads
            stay float32.
        truncate: truncate long sentences instead of raising.

    Raises:
        CheckpointError: tokenizer or architecture cannot be loaded, or are of another kind.
        MissingExtraError: transformers is not installed.
        ValueError: ``frame_size`` does not fit.
    """

    model_type = "robometer"
    history: History = "prefix"

    def __init__(
        self,
        base: str = BASE,
        *,
        architecture: dict[str, Any] | None = None,
        bins: Width = 10,
        window: Count = 8,
        frame_size: Pixels = 224,
        dtype: Precision = "float32",
        truncate: bool = False,
    ) -> None:
        super().__init__()
        tokenizer = qwen(base).tokenizer()
        import transformers

        tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
        if architecture is None:
            config = qwen(base).config("qwen3_vl")
            config.text_config.vocab_size = len(tokenizer)
        else:
            check_counts(architecture)
            config = transformers.Qwen3VLConfig.from_dict(architecture)
        rows = config.text_config.vocab_size
        if rows < len(tokenizer):
            raise CheckpointError(
                f"expected an embedding of {len(tokenizer)} rows for the tokenizer of {base}, got {rows}"
            )
        self.config["architecture"] = _as_dict(config)
        self.window = window
        model = transformers.AutoModel.from_config(config, dtype=getattr(torch, dtype))
        self.backbone = QwenVL(model, tokenizer, frame_size, truncate=truncate)
        width = self.backbone.width
        self.progress_head = prediction_head(width, bins)
        self.preference_head = prediction_head(width, 1)
        self.success_head = prediction_head(width, 1)
        self.frame_pool_attn = nn.Linear(width, 1, bias=False)
        self._prog_id = tokenizer.convert_tokens_to_ids("<|prog_token|>")

    @classmethod
    def from_published(
        cls,
        state: Mapping[str, Tensor],
        config: Any = None,
        *,
        base: str = BASE,
        dtype: Precision | None = None,
        **options: Any,
    ) -> RobometerModel:
        """Build the model from a published checkpoint, in eval mode.

        Args:
            state: tensors by name, for example from `read_shards`; keys as the authors have them
                (``model.visual.*``, ``model.language_model.*``) or LeRobot (one more ``model.``, and ``lm_head``).
            config: the backbone's `transformers.Qwen3VLConfig` or a dict; None takes that of ``base``. Embedding rows
                and bins follow from the tensors.
            base: hub id or folder of the tokenizer.
            dtype: None takes bfloat16 if the embedding is stored in it, else float32.
            options: ``window``, ``frame_size``, ``truncate``.

        Raises:
            CheckpointError: as `load_state` and the constructor, or tensors are not finite.
        """
        state = published_layout(state)
        telling = (TABLE, "progress_head.0.weight", "progress_head.4.weight")
        if missing := [key for key in telling if key not in state]:
            raise CheckpointError(f"not a Robometer checkpoint: missing {', '.join(missing)}")
        config = qwen(base).config("qwen3_vl") if config is None else config
        architecture = dict(config) if isinstance(config, Mapping) else _as_dict(config)
        rows, width = state[TABLE].shape[0], state["progress_head.0.weight"].shape[-1]
        text = {**architecture["text_config"], "vocab_size": rows}
        if text.get("hidden_size") != width:
            raise CheckpointError(
                f"the heads are {width} wide, the backbone of the config is {text.get('hidden_size')}: give the config "
                "that belongs to this checkpoint"
            )
        if dtype is None:
            dtype = "bfloat16" if state[TABLE].dtype == torch.bfloat16 else "float32"
        no_init_weights = import_extra("transformers.initialization", NEEDS, "vlm").no_init_weights
        with torch.random.fork_rng(devices=[]), no_init_weights():  # drawing four billion weights takes a minute
            model = cls(
                base, architecture={**architecture, "text_config": text},
                bins=state["progress_head.4.weight"].shape[0], dtype=dtype, **options,
            )  # fmt: skip
        if bad := sorted(key for key, value in state.items() if not value.isfinite().all()):
            raise CheckpointError(f"the Robometer checkpoint has NaN or infinite weights in {', '.join(bad[:8])}")
        load_state(model, state, "the Robometer checkpoint")
        return model.eval()

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Token ids + 1 of the prompts for one video and for two, float32 ``[B, L, 2]``; padding is zero."""
        sentences = self.backbone.sentences(instructions)
        prompts = [
            [prompt.format(sentence) for sentence in sentences] for prompt in (PROGRESS_PROMPT, PREFERENCE_PROMPT)
        ]
        return self.backbone.pack(*prompts)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows; arguments as in `RewardModel.score`.

        Returns:
            Scores with ``progress`` of each frame, float32 ``[B, T]`` in [0, 1], and ``preference``, float32 ``[B]``,
            the logit of the last frame's.
        """
        progress = expected_progress(self.progress_head(self._frame_states(frames, text, mask)))
        return Scores(preference=progress[:, -1].logit(eps=1e-6), progress=progress)

    def success(self, frames: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Probability that the task is done at each frame, float32 ``[B, T]``; arguments as in `score`."""
        logits = self.success_head(self._frame_states(frames, text, mask))
        return logits.squeeze(-1).sigmoid()

    def prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """P(a > b | text), float32 ``[B]``, from the pairwise head; arguments as in `PairwiseModel.prefer`."""
        first, batch = a.shape[1], len(text)
        parts = [
            self.backbone.prompt(text, 1),
            self._video(a, torch.ones(a.shape[:2], dtype=torch.bool, device=a.device)),
            self.backbone.words(self._ids(BETWEEN.format(first + 1), text.device).expand(batch, -1)),
            self._video(b, torch.ones(b.shape[:2], dtype=torch.bool, device=b.device), earlier=first),
            self.backbone.words(self._ids(AFTER, text.device).expand(batch, -1)),
        ]
        logits = self.preference_head(self.backbone(parts)[-1][:, -1])
        return logits.squeeze(-1).sigmoid()

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Every tensor, under its name in the authors' checkpoint."""
        return {key.removeprefix("backbone."): value.detach() for key, value in self.state_dict().items()}

    def load_checkpoint_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of `checkpoint_state`; missing, unexpected or misshaped ones raise RuntimeError."""
        own = {f"backbone.{key}" if key.startswith("model.") else key: value for key, value in state.items()}
        self.load_state_dict(own, strict=True)

    def _frame_states(self, frames: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Hidden states at the progress tokens, ``[B, T, H]``."""
        _, hidden = self.backbone([self.backbone.prompt(text), self._video(frames, mask)])
        return hidden.unflatten(1, (mask.shape[1], -1))[:, :, -1]

    def _video(self, frames: Tensor, mask: Tensor, earlier: int = 0) -> Any:
        """Captioned frames after `earlier` other pictures; the first caption belongs to the text before them."""
        pictures = range(2, mask.shape[1] + 1)
        captions = [self.backbone.ids(f"Picture {earlier + number}: ") for number in pictures]
        # Row n is the caption of the n-th real frame; rows 0 (no real frame) and 1 are empty.
        table = torch.full((mask.shape[1] + 1, max(map(len, captions), default=0)), -1)
        for number, ids in zip(pictures, captions, strict=True):
            table[number, : len(ids)] = torch.tensor(ids)
        before = table.to(mask.device)[mask.long().cumsum(1)]
        return self.backbone.video(frames, mask, before, [self._prog_id])

    def _ids(self, text: str, device: torch.device) -> Tensor:
        return torch.tensor(self.backbone.ids(text), device=device)


def expected_progress(logits: Tensor) -> Tensor:
    """Mean of a distribution over evenly spaced progress values: logits ``[..., bins]`` -> ``[...]`` in [0, 1].

    >>> expected_progress(torch.tensor([0.0, 0.0, 0.0])).item()
    0.5
    """
    values = torch.linspace(0, 1, logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * values).sum(-1).clamp(0, 1)


def _as_dict(config: Any) -> dict[str, Any]:
    return json.loads(config.to_json_string(use_diff=False))


def published_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of either layout to the authors' names; the unused language head is dropped."""
    nested = any(key.startswith("model.model.") for key in state)
    named = {key.removeprefix("model.") if nested else key: value for key, value in state.items()}
    return {key: value for key, value in named.items() if key != "lm_head.weight"}
