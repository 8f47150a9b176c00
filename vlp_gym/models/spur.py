"""SPUR: progress of one video and preference between two, read off a vision-language model's hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlp_gym.errors import MissingExtraError
from vlp_gym.models.backbones.qwen_base import Precision, load_base
from vlp_gym.models.backbones.qwen_vl import Part, QwenVL, prediction_head
from vlp_gym.models.checkpoint import CheckpointMixin
from vlp_gym.models.protocol import History, Scores

BASE = "Qwen/Qwen2.5-VL-3B-Instruct"
PROMPT = "<|im_start|>user\nThe task for the robot is '{}'.\n"
ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class SPURModel(nn.Module, CheckpointMixin):
    """The SPUR reward model (SPUR, section 3); a `RewardModel` without relevance.

    The language model reads the task, video 1, ``<|split_token|>``, video 2, ``<|pref_token|>`` (eq. 1). The preference
    head reads the hidden state of the last token, ``P(1 > 2) = sigmoid(MLP(h))``; the progress head that of each
    frame's last vision token, ``sigmoid(MLP(h_t))``. For progress alone the sequence ends after video 1, and as
    attention looks back only, the progress of video 1 is the same number with and without a second video.

    What the paper leaves open and is decided here: the prompt around the task; both heads are those of its successor
    Robometer (`prediction_head`); each frame is an image of its own between vision start and end, as the successor has
    it, where the paper's video tokens mix neighbouring frames and none could be kept from window to window; the two
    added tokens are two vectors beside the embedding table. Two videos are compared by `prefer`. The preference *score*
    of a single video, which the paper has not, is the progress head's logit at the last frame: by the last frame's
    progress the paper compares videos where a model has no preference head (section 4).

    Untrained it knows nothing: both heads start from random weights. See `vlp_gym.training.recipes.spur`.

    Args:
        base: hub id or folder of a Qwen2.5-VL; only safetensors are read. A checkpoint holds what was trained, not the
            rest of the base.
        window: T, the paper's 16 frames at most.
        frame_size: side of the square that frames are resized to, in pixels, a multiple of 28; (frame_size / 28)^2
            tokens a frame. The default lets two videos fit the paper's 1,024 tokens.
        lora_rank: r of low-rank adapters (scale 2) on every linear layer of the language model; None trains the whole
            language model instead. The vision tower is frozen either way.
        dropout: of the heads, during training.
        dtype: of the base: "float32", or "bfloat16" for half the memory, where answers depend on batching by some
            1e-2. Whatever is trained beside it stays float32.
        truncate: cut long sentences instead of raising.

    Raises:
        CheckpointError: the base is neither there nor delivered, or of another kind.
        MissingExtraError: without transformers or peft.
        ValueError: ``frame_size`` does not fit.
    """

    model_type = "spur"
    history: History = "prefix"

    def __init__(
        self,
        base: str = BASE,
        *,
        window: int = 16,
        frame_size: int = 140,
        lora_rank: int | None = 16,
        dropout: float = 0.1,
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
        # As large as a word of the table, so that neither drowns in the other.
        self.added_tokens = nn.Parameter(torch.randn(2, width) * model.language_model.embed_tokens.weight.std().item())
        self.progress_head = prediction_head(width, 1, dropout)
        self.preference_head = prediction_head(width, 1, dropout)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) in pixels that the vision tower sees."""
        return self.backbone.frame_size

    def gradient_checkpointing_enable(self) -> None:
        """In training keep no layer's activations but compute them again on the way back: slower, far less memory."""
        model = self.backbone.model
        newer = getattr(model, "activation_checkpointing_enable", None)  # transformers 5.x deprecates the old name
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """The prompt's token numbers + 1, float32 ``[B, L, 1]``; padding is zero. They are embedded in `score`."""
        return self.backbone.pack([PROMPT.format(sentence) for sentence in self.backbone.sentences(instructions)])

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Vision tokens, float ``[N, K, H]``, of uint8 frames ``[N, H, W, 3]`` of any size, one by one."""
        return self.backbone.encode_frames(frames)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """Progress of each frame, and the logit of the last one's as the preference score.

        Args:
            frames: frame tokens, float ``[B, T, K, H]``.
            text: as `encode_text` gave it, ``[B, L, 1]``.
            mask: bool ``[B, T]``, True where the frame is real.

        Returns:
            Scores with ``progress`` ``[B, T]`` in [0, 1] and ``preference`` ``[B]``, float32.
        """
        logits = self.progress_logits(frames, text, mask)
        return Scores(preference=logits[:, -1], progress=logits.sigmoid())

    def prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """P(a > b | text), float ``[B]``, by the pairwise head; P(a > b) + P(b > a) is 1 only as far as it learned so.

        Args:
            a: frame tokens of the first videos, ``[B, T, K, H]``.
            b: frame tokens of the second videos, ``[B, T', K, H]``.
            text: as `encode_text` gave it, ``[B, L, 1]``.
        """
        whole_a, whole_b = (torch.ones(video.shape[:2], dtype=torch.bool, device=video.device) for video in (a, b))
        return self.pair_logits(a, b, text, whole_a, whole_b)[1].sigmoid()

    def progress_logits(self, frames: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """What `score` takes the sigmoid of, float32 ``[B, T]``; arguments as there."""
        _, hidden = self.backbone([self.backbone.prompt(text), self.backbone.video(frames, mask)])
        return self._progress(hidden, mask.shape[1])

    def pair_logits(self, a: Tensor, b: Tensor, text: Tensor, mask_a: Tensor, mask_b: Tensor) -> tuple[Tensor, Tensor]:
        """Progress logits of the first video, ``[B, T]``, and the logit of P(a > b), ``[B]``; both float32."""
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
        """The tensors that a checkpoint holds: heads, added tokens, and the adapters or the whole language model."""
        return {key: value.detach() for key, value in self.state_dict().items() if self._is_stored(key)}

    def _is_stored(self, key: str) -> bool:
        if not key.startswith("backbone."):
            return True
        return ".lora_" in key if self.config["lora_rank"] is not None else ".language_model." in key

    def _added(self, number: int, batch: int) -> Part:
        """``<|split_token|>`` or ``<|pref_token|>`` as a sequence of one."""
        vector = self.added_tokens[number].to(self.backbone.model.dtype).expand(batch, 1, -1)
        return self.backbone.vectors(vector, torch.ones(batch, 1, dtype=torch.bool, device=vector.device))

    def _progress(self, hidden: Tensor, time: int) -> Tensor:
        """Logits ``[B, T]`` from the last vision token of each frame; a vision end follows it."""
        return self.progress_head(hidden.unflatten(1, (time, -1))[:, :, -2]).squeeze(-1)


def _adapt(language_model: nn.Module, rank: int) -> None:
    """Put adapters around the linear layers, in place; only they are trained, in float32."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError('SPUR with lora_rank needs peft: pip install "vlp_gym[vlm]"') from error
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED), language_model)
    for name, weight in language_model.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()
