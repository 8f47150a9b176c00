"""Any open_clip model, and its token sequences: patches of frames, words of sentences."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError, import_extra, missing_extra
from vlp_gym.models.budget import OverBudgetError, within
from vlp_gym.models.pictures import per_channel, square_pictures
from vlp_gym.text import check_length, normalize_sentence

_ANY = 10**12  # numbers: the largest of open_clip's models, which it knows by name, has less


class OpenClip(nn.Module):
    """An open_clip model with its tokenizer and the statistics of its pictures.

    Args:
        name: an open_clip model, see ``open_clip.list_models()``. A tag made with QuickGELU (OpenAI's are) gets it.
        pretrained: a tag of ``open_clip.list_pretrained()``, downloaded once and cached by open_clip; or the path of a
            ``.safetensors`` file (for OpenAI's weights give a ``-quickgelu`` name then); or None for random weights.
        frame_size: side of the square that frames are resized to, in pixels; None takes the model's default (224 for
            ViT-B-16). Other sizes interpolate the position embedding, which only ViT towers have.
        truncate: truncate sentences over the text tower's limit instead of raising.

    Attributes:
        frame_size: (H, W) in pixels, the image tower's input.

    Raises:
        MissingExtraError: open_clip, or a package that this model's tokenizer needs, is not installed.
        ValueError: open_clip knows no such model or tag, or the model has no token output.
        CheckpointError: the weights cannot be downloaded or do not fit the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, pretrained: str | None, frame_size: int | None = None, *, truncate: bool) -> None:
        super().__init__()
        self.truncate = truncate
        self.model, self.tokenizer = load_open_clip(name, pretrained, frame_size)
        self.context_length: int = self.model.context_length
        size = self.model.visual.image_size
        self.frame_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.register_buffer("mean", per_channel(self.model.visual.image_mean), persistent=False)
        self.register_buffer("std", per_channel(self.model.visual.image_std), persistent=False)

    def tokenize(self, instructions: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Token ids of B sentences, int64 ``[B, context_length]``, and their numbers of tokens without padding.

        Raises:
            InstructionError: a sentence is blank, or over the text tower's limit and ``truncate`` is False.
        """
        sentences = [normalize_sentence(instruction) for instruction in instructions]
        counts = [_count_tokens(self.tokenizer, sentence) for sentence in sentences]
        lengths = [check_length(count, self.context_length, truncate=self.truncate) for count in counts]
        return self.tokenizer(sentences, context_length=self.context_length).to(self.mean.device), lengths


class OpenClipBackbone(OpenClip):
    """The token sequences of a CLIP model before its pooling, as VLP section 3.1 uses them.

    Patch tokens are those of the last layer after the tower's final LayerNorm, without the class token; a ResNet
    tower gives the cells of its last feature map. Text tokens are those of the last layer after its LayerNorm.

    Args:
        name, pretrained, frame_size, truncate: see `OpenClip`, also for errors.
        trainable: train the weights. Otherwise they are frozen and stay in eval mode.
    """

    def __init__(
        self,
        name: str = "ViT-B-16",
        pretrained: str | None = "openai",
        frame_size: int | None = None,
        *,
        trainable: bool = False,
        truncate: bool = False,
    ) -> None:
        super().__init__(name, pretrained, frame_size, truncate=truncate)
        self.trainable = trainable
        self.restorable = pretrained is not None and not trainable  # by name and pretrained
        self.model.requires_grad_(trainable)
        self.train(trainable)
        with torch.no_grad():  # towers store their widths under five different names; one tiny forward pass gives them
            self.frame_dim: int = self._patches(torch.zeros(1, 3, *self.frame_size)).shape[-1]
            self.text_dim: int = self._words(torch.zeros(1, self.context_length, dtype=torch.long)).shape[-1]

    def train(self, mode: bool = True) -> OpenClipBackbone:
        """Switch to training mode; frozen weights stay in eval mode, or batch norm would change."""
        return super().train(mode and self.trainable)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Patch tokens, float ``[N, M, frame_dim]``, of uint8 frames ``[N, H, W, 3]`` of any size, row by row.

        Frames are moved to the weights' device as bytes, resized there to a square (bicubic, antialiased; no crop,
        because the object may be at the edge) and normalised with the model's mean and std.

        Raises:
            TypeError: the frames are not uint8 ``[N, H, W, 3]``.
        """
        images = square_pictures(frames, self.frame_size, self.mean.device)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return self._patches((images - self.mean) / self.std)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Text tokens, float ``[B, context_length, text_dim]``, start and end tokens included; padding rows are zero.

        Errors as `tokenize`.
        """
        tokens, lengths = self.tokenize(instructions)
        # Not `tokens != 0`: in CLIP's vocabulary 0 is both the padding and "!".
        real = torch.arange(self.context_length) < torch.tensor(lengths)[:, None]
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return self._words(tokens) * real.to(self.mean.device).unsqueeze(-1)

    def word_tokens(self, instruction: str) -> list[list[int]]:
        """The text tokens of each word of a sentence, words being what blanks divide; those cut off are left out."""
        words = normalize_sentence(instruction).split()
        ends = [_count_tokens(self.tokenizer, " ".join(words[:k])) - 1 for k in range(len(words) + 1)]  # 1: the end
        return [list(range(start, min(end, self.context_length))) for start, end in itertools.pairwise(ends)]

    def _patches(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> ``[N, M, frame_dim]``."""
        output = self.model.forward_intermediates(
            image=images, image_indices=1, normalize_intermediates=True, intermediates_only=True
        )
        grid: Tensor = output["image_intermediates"][-1]  # [N, frame_dim, h, w]
        return grid.flatten(2).transpose(1, 2)

    def _words(self, tokens: Tensor) -> Tensor:
        """``[B, L]`` -> ``[B, L, text_dim]``."""
        output = self.model.forward_intermediates(
            text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True
        )
        return output["text_intermediates"][-1]


def _count_tokens(tokenizer: Any, sentence: str) -> int:
    """Number of tokens of one sentence, untruncated, with an open_clip tokenizer."""
    if hasattr(tokenizer, "encode"):  # open_clip's BPE: without start and end
        return len(tokenizer.encode(sentence)) + 2
    return len(tokenizer.tokenizer(tokenizer.clean_fn(sentence)).input_ids)


def load_open_clip(name: str, pretrained: str | None, frame_size: int | None) -> tuple[Any, Any]:
    """Load an open_clip model, float32 on the CPU, and its tokenizer; arguments and errors as `OpenClip`."""
    open_clip = import_extra("open_clip", "an open_clip backbone needs the package open_clip", "clip")
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise ValueError(f"open_clip knows no model {name!r}; open_clip.list_models() lists its names")
    if "hf_model_name" in config["text_cfg"] or "multimodal_cfg" in config:
        raise ValueError(f"the text tower of {name!r} gives no tokens; take a CLIP or SigLIP model instead")
    is_file = pretrained is not None and pretrained.endswith(".safetensors")  # any other format could be a pickle
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is not None and not is_file and pretrained not in tags:
        raise ValueError(
            f"open_clip has no weights {pretrained!r} for {name!r}: expected one of {tags}, "
            "the path of a .safetensors file, or None for random weights"
        )
    native = config["vision_cfg"]["image_size"]
    if frame_size not in (None, native) and isinstance(config["vision_cfg"].get("layers"), list):
        raise ValueError(f"the ResNet tower of {name!r} takes frame_size={native} only, got {frame_size}")

    tag_config = {} if pretrained is None else open_clip.get_pretrained_cfg(name, pretrained)
    if pretrained is None:
        budget: Any = contextlib.nullcontext()  # that of the model around it
    elif not is_file:
        budget = within(_ANY)
    elif Path(pretrained).is_file():  # a pipe or a device would never end
        budget = within(Path(pretrained).stat().st_size // 2)
    else:
        raise CheckpointError(f"the weights {pretrained!r} do not load into {name!r}: no such file")
    try:
        tokenizer = open_clip.get_tokenizer(name)  # first: it fails fast
        with budget:
            model = open_clip.create_model(
                name,
                pretrained,
                force_image_size=frame_size,
                # With OpenAI's weights and plain GELU open_clip only warns, and the features would be wrong.
                force_quick_gelu=bool(tag_config.get("quick_gelu")),
                require_pretrained=pretrained is not None,
            )
    except ImportError as error:
        raise missing_extra(error, f"{name!r} needs another package: {error}") from error
    except (RuntimeError, OSError, SafetensorError, OverBudgetError) as error:
        if is_file:
            raise CheckpointError(f"the weights {pretrained!r} do not load into {name!r}: {error}") from error
        raise CheckpointError(
            f"open_clip could not download what {name!r} with the weights {pretrained!r} needs: {error}\n"
            "It is downloaded once and then cached; connect this machine once, or give the path of a .safetensors "
            'file as `pretrained`. The model "vlp-compact" works offline.'
        ) from error
    return model, tokenizer
