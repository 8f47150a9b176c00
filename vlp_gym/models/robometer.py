"""Robometer: SPUR's released successor; per-frame progress and success, preference between two videos, on Qwen3-VL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError
from vlp_gym.models.backbones.qwen_base import Precision, import_transformers, load_config, load_tokenizer
from vlp_gym.models.backbones.qwen_vl import QwenVL, prediction_head
from vlp_gym.models.checkpoint import CheckpointMixin, load_state
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


class RobometerModel(nn.Module, CheckpointMixin):
    """Robometer (arXiv 2603.02115), to be loaded with published weights; a `RewardModel` without relevance.

    What the language model reads, from the authors' repository (their settings ``use_multi_image`` and
    ``use_per_frame_progress_token``, under which the weights were released): a user's turn with the prompt, then every
    frame as "Picture n: ", an image of its own, and ``<|prog_token|>``. At that token the progress head gives a
    distribution over bins, whose mean is the progress, and the success head the logit of `success`. For `prefer` the
    second video follows after ``<|split_token|>``, its pictures numbered on, and the preference head reads
    ``<|pref_token|>`` at the end. The other two added tokens and ``frame_pool_attn`` are not used under these settings;
    they are there because the checkpoint has them.

    Assumed: hidden states are those after the last norm; the prompt for two videos does not also ask for progress (an
    option in the repository; what the release was trained with is not said). The repository feeds frames in their own
    size, rounded to multiples of 32; here all are ``frame_size``. The preference *score* of a single video, which the
    authors have not, is the logit of the last frame's progress.

    Args:
        base: hub id or folder that gives the tokenizer and, without ``architecture``, the architecture; no weights.
        architecture: of the backbone, as in the ``config.json`` of a `transformers.Qwen3VLConfig`.
        bins: of the progress head; the last stands for 1.
        window: T, frames spread over the episode so far, first and last kept; the authors' 8.
        frame_size: side of the square that frames are resized to, in pixels, a multiple of 32; (frame_size / 32)^2
            tokens a frame, each of H (1 + DeepStack layers) numbers.
        dtype: "float32", or "bfloat16" for half the memory, where answers depend on batching by some 1e-2. The heads
            stay float32.
        truncate: cut long sentences instead of raising.

    Raises:
        CheckpointError: tokenizer or architecture are neither there nor delivered, or of another kind.
        MissingExtraError: without transformers.
        ValueError: ``frame_size`` does not fit.
    """

    model_type = "robometer"
    history: History = "prefix"

    def __init__(
        self,
        base: str = BASE,
        *,
        architecture: dict[str, Any] | None = None,
        bins: int = 10,
        window: int = 8,
        frame_size: int = 224,
        dtype: Precision = "float32",
        truncate: bool = False,
    ) -> None:
        super().__init__()
        transformers = import_transformers()
        tokenizer = load_tokenizer(base)
        tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
        if architecture is None:
            config = load_config(base, "qwen3_vl")
            config.text_config.vocab_size = len(tokenizer)
        else:
            config = transformers.Qwen3VLConfig.from_dict(architecture)
        rows = config.text_config.vocab_size
        if rows < len(tokenizer):
            raise CheckpointError(
                f"expected an embedding of {len(tokenizer)} rows for the tokenizer of {base}, got {rows}"
            )
        self.config["architecture"] = json.loads(config.to_json_string(use_diff=False))
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
        """Build the model of a published checkpoint, in eval mode.

        Args:
            state: its tensors, such as `read_shards` reads; in the authors' layout of keys
                (``model.visual.*``, ``model.language_model.*``) or LeRobot's (one more ``model.``, and ``lm_head``).
            config: of the backbone, a `transformers.Qwen3VLConfig` or a dict; None takes that of ``base``. The number
                of rows of the embedding and of bins follow from the tensors.
            base: hub id or folder with the tokenizer.
            dtype: None keeps bfloat16 where the embedding is stored in it, else float32.
            options: ``window``, ``frame_size``, ``truncate``.

        Raises:
            CheckpointError: missing, unexpected, misshaped or not finite tensors, by name; or as the constructor.
        """
        state = published_layout(state)
        telling = (TABLE, "progress_head.0.weight", "progress_head.4.weight")
        if missing := [key for key in telling if key not in state]:
            raise CheckpointError(f"not a Robometer checkpoint: missing {', '.join(missing)}")
        if config is None:
            config = load_config(base, "qwen3_vl")
        architecture = (
            dict(config) if isinstance(config, Mapping) else json.loads(config.to_json_string(use_diff=False))
        )
        rows, width = state[TABLE].shape[0], state["progress_head.0.weight"].shape[-1]
        text = {**architecture["text_config"], "vocab_size": rows}
        if text.get("hidden_size") != width:
            raise CheckpointError(
                f"the heads are {width} wide, the backbone of the config is {text.get('hidden_size')}: give the config "
                "that belongs to this checkpoint"
            )
        if dtype is None:
            dtype = "bfloat16" if state[TABLE].dtype == torch.bfloat16 else "float32"
        import_transformers()
        from transformers.initialization import no_init_weights

        with torch.random.fork_rng(devices=[]), no_init_weights():  # four billion random numbers would take a minute
            model = cls(
                base, architecture={**architecture, "text_config": text},
                bins=state["progress_head.4.weight"].shape[0], dtype=dtype, **options,
            )  # fmt: skip
        if bad := sorted(key for key, value in state.items() if not value.isfinite().all()):
            raise CheckpointError(f"the Robometer checkpoint has NaN or infinite weights in {', '.join(bad[:8])}")
        load_state(model, state, "the Robometer checkpoint")
        return model.eval()

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) in pixels that the vision tower sees."""
        return self.backbone.frame_size

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Token numbers + 1 of the prompts for one video and for two, float32 ``[B, L, 2]``; padding is zero."""
        sentences = self.backbone.sentences(instructions)
        prompts = [
            [prompt.format(sentence) for sentence in sentences] for prompt in (PROGRESS_PROMPT, PREFERENCE_PROMPT)
        ]
        return self.backbone.pack(*prompts)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Vision tokens and their DeepStack features, float ``[N, K, D]``, of uint8 frames ``[N, H, W, 3]``."""
        return self.backbone.encode_frames(frames)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Progress of each frame, and the logit of the last one's as the preference score.

        Args:
            frames: frame tokens, float ``[B, T, K, D]``.
            text: as `encode_text` gave it, ``[B, L, 2]``.
            mask: bool ``[B, T]``, True where the frame is real.

        Returns:
            Scores with ``progress`` ``[B, T]`` in [0, 1] and ``preference`` ``[B]``, float32.
        """
        progress = expected_progress(self.progress_head(self._frame_states(frames, text, mask)))
        return Scores(preference=progress[:, -1].logit(eps=1e-6), progress=progress)

    def success(self, frames: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Probability that the task is done at each frame, float32 ``[B, T]``; arguments as those of `score`."""
        logits = self.success_head(self._frame_states(frames, text, mask))
        return logits.squeeze(-1).sigmoid()

    def prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """P(a > b | text), float32 ``[B]``, by the pairwise head.

        Args:
            a: frame tokens of the first videos, ``[B, T, K, D]``.
            b: frame tokens of the second videos, ``[B, T', K, D]``.
            text: as `encode_text` gave it, ``[B, L, 2]``.
        """
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
        """Every tensor, under the name that the authors' checkpoint has for it."""
        return {key.removeprefix("backbone."): value.detach() for key, value in self.state_dict().items()}

    def load_checkpoint_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `checkpoint_state` gave; a missing, unexpected or misshaped tensor is a RuntimeError."""
        own = {f"backbone.{key}" if key.startswith("model.") else key: value for key, value in state.items()}
        self.load_state_dict(own, strict=True)

    def _frame_states(self, frames: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Hidden states at the progress tokens, ``[B, T, H]``."""
        _, hidden = self.backbone([self.backbone.prompt(text), self._video(frames, mask)])
        return hidden.unflatten(1, (mask.shape[1], -1))[:, :, -1]

    def _video(self, frames: Tensor, mask: Tensor, earlier: int = 0) -> Any:
        """The frames after `earlier` other pictures; the caption of the first one ends the text before it."""
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
    """The mean of a distribution over evenly spaced progress values: ``[..., bins]`` logits -> ``[...]`` in [0, 1].

    >>> expected_progress(torch.tensor([0.0, 0.0, 0.0])).item()
    0.5
    """
    values = torch.linspace(0, 1, logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * values).sum(-1).clamp(0, 1)


def published_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names for the tensors of either layout; a language head, which nothing here reads, is left out."""
    nested = any(key.startswith("model.model.") for key in state)
    named = {key.removeprefix("model.") if nested else key: value for key, value in state.items()}
    return {key: value for key, value in named.items() if key != "lm_head.weight"}


def from_published(state: Mapping[str, Tensor], **options: Any) -> RobometerModel:
    """See `RobometerModel.from_published`; for `vlp_gym.models.published.convert`."""
    return RobometerModel.from_published(state, **options)
