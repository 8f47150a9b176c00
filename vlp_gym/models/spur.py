"""SPUR: progress of one video and preference between two, from the hidden states of a vision-language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlp_gym.errors import import_extra
from vlp_gym.models.backbones.on_backbone import OnBackbone
from vlp_gym.models.backbones.qwen_base import Precision, load_base
from vlp_gym.models.backbones.qwen_vl import Part, QwenVL, prediction_head
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.config import Count, Pixels, Probability, Width
from vlp_gym.models.protocol import History, Scores

BASE = "Qwen/Qwen2.5-VL-3B-Instruct"
PROMPT = "<|im_start|>user\nThe task for the robot is '{}'.\n"
ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class SPURModel(OnBackbone, CheckpointMixin):
    """The SPUR reward model (SPUR, section 3); a `RewardModel` without relevance.

    The language model reads the task, video 1, ``<|split_token|>``, video 2, ``<|pref_token|>`` (eq. 1). The preference
    head uses the hidden state of the last token, ``P(1 > 2) = sigmoid(MLP(h))``; the progress head that of each frame's
    last vision token, ``sigmoid(MLP(h_t))``. For progress alone the sequence ends after video 1. Attention is causal,
    so the progress of video 1 does not depend on a second video.

    Choices where the paper is silent: the prompt around the task; both heads are those of its successor Robometer
    (`prediction_head`); the two added tokens are two vectors beside the embedding table; each frame is a separate image
    between vision start and end, as in the successor. (The paper's video tokens mix neighbouring frames, so none could
    be reused in the next window.) `prefer` compares two videos. The preference *score* of a single video, which the
    paper does not define, is the progress logit of the last frame: the paper compares videos by the last frame's
    progress when a model has no preference head (section 4).

    Both heads start from random weights; train them with `vlp_gym.training.recipes.spur`.

    Args:
        base: hub id or folder of a Qwen2.5-VL; only safetensors are read. A checkpoint stores only trained weights.
        window: T, frames per score; the paper uses at most 16.
        frame_size: side of the square that frames are resized to, in pixels, a multiple of 28; (frame_size / 28)^2
            tokens per frame. By default two videos fit the paper's 1,024 tokens.
        lora_rank: r of low-rank adapters (scale 2) on every linear layer of the language model; None trains the whole
            language model. The vision tower is always frozen.
        dropout: dropout probability of the heads, during training.
        compares: whether the preference head was trained. Without it, `prefer` compares the progress of last frames
            (SPUR, section 4).
        dtype: type of the base: "float32", or "bfloat16" for half the memory, where scores depend on batching by about
            1e-2. Trained weights beside it stay float32.
        truncate: truncate long sentences instead of raising.

    Raises:
        CheckpointError: the base cannot be loaded, or is of another kind.
        MissingExtraError: transformers or peft is not installed.
        ValueError: ``frame_size`` does not fit.
    """

    model_type = "spur"
    history: History = "prefix"

    def __init__(
        self,
        base: str = BASE,
        *,
        window: Count = 16,
        frame_size: Pixels = 140,
        lora_rank: Width | None = 16,
        dropout: Probability = 0.1,
        compares: bool = True,
        dtype: Precision = "float32",
        truncate: bool = False,
    ) -> None:
        super().__init__()
        self.window = window
        model, tokenizer = load_base(base, "qwen2_5_vl", dtype)
        self.backbone = QwenVL(model, tokenizer, frame_size, truncate=truncate)
        if lora_rank is None:
            model.language_model.requires_grad_(True)
        else:
            _adapt(model.language_model, lora_rank)
        width = self.backbone.width
        # Scaled like the word embeddings.
        self.added_tokens = nn.Parameter(torch.randn(2, width) * model.language_model.embed_tokens.weight.std().item())
        self.progress_head = prediction_head(width, 1, dropout)
        self.preference_head = prediction_head(width, 1, dropout)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass: slower, far less memory."""
        model = self.backbone.model
        newer = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.x deprecates the old name
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Token ids + 1 of the prompts, float32 ``[B, L, 1]``; padding is zero. `score` embeds them."""
        return self.backbone.pack([PROMPT.format(sentence) for sentence in self.backbone.sentences(instructions)])

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Score windows; arguments as in `RewardModel.score`.

        Returns:
            Scores with ``progress`` of each frame, float32 ``[B, T]`` in [0, 1], and ``preference``, float32 ``[B]``,
            the logit of the last frame's.
        """
        logits = self.progress_logits(frames, text, mask)
        return Scores(preference=logits[:, -1], progress=logits.sigmoid())

    def prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """P(a > b | text), float32 ``[B]``, from the pairwise head; arguments as in `PairwiseModel.prefer`."""
        whole_a, whole_b = (torch.ones(video.shape[:2], dtype=torch.bool, device=video.device) for video in (a, b))
        if not self.config["compares"]:
            ends = (self.progress_logits(*each)[:, -1] for each in ((a, text, whole_a), (b, text, whole_b)))
            return (next(ends) - next(ends)).sigmoid()
        return self.pair_logits(a, b, text, whole_a, whole_b)[1].sigmoid()

    def progress_logits(self, frames: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Progress before the sigmoid, float32 ``[B, T]``; arguments as in `score`."""
        _, hidden = self.backbone([self.backbone.prompt(text), self.backbone.video(frames, mask)])
        return self._progress(hidden, mask.shape[1])

    def pair_logits(self, a: Tensor, b: Tensor, text: Tensor, mask_a: Tensor, mask_b: Tensor) -> tuple[Tensor, Tensor]:
        """Progress logits of the first videos, float32 ``[B, T]``, and the logit of P(a > b), float32 ``[B]``."""
        parts = [
            self.backbone.prompt(text),
            self.backbone.video(a, mask_a),
            self._added(0, len(text)),
            self.backbone.video(b, mask_b),
            self._added(1, len(text)),
        ]
        hidden = self.backbone(parts)
        return self._progress(hidden[1], mask_a.shape[1]), self.preference_head(hidden[-1][:, 0]).squeeze(-1)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The stored tensors: heads, added tokens, and the adapters or the whole language model."""
        kept = ".language_model." if self.config["lora_rank"] is None else ".lora_"
        state = self.state_dict().items()
        return {key: value.detach() for key, value in state if not key.startswith("backbone.") or kept in key}

    def _added(self, number: int, batch: int) -> Part:
        """``<|split_token|>`` (0) or ``<|pref_token|>`` (1) as a sequence of length 1."""
        vector = self.added_tokens[number].to(self.backbone.model.dtype).expand(batch, 1, -1)
        return self.backbone.vectors(vector, torch.ones(batch, 1, dtype=torch.bool, device=vector.device))

    def _progress(self, hidden: Tensor, time: int) -> Tensor:
        """Logits ``[B, T]`` at the last vision token of each frame, which a vision end follows."""
        return self.progress_head(hidden.unflatten(1, (time, -1))[:, :, -2]).squeeze(-1)


def _adapt(language_model: nn.Module, rank: int) -> None:
    """Add adapters to the linear layers, in place; only they are trained, in float32."""
    peft = import_extra("peft", "SPUR with lora_rank needs peft", "vlm")
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED), language_model)
    for name, weight in language_model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()
