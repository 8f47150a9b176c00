"""Load a pretrained Qwen2.5-VL or Qwen3-VL from the hub or a folder: weights, architecture, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

import torch

from vlp_gym.errors import CheckpointError, MissingExtraError

Kind = Literal["qwen2_5_vl", "qwen3_vl"]
Precision = Literal["float32", "bfloat16"]

_CLASSES: dict[Kind, str] = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}


def load_base(name: str, kind: Kind, precision: Precision) -> tuple[Any, Any]:
    """Load the pretrained model without its language head, and its tokenizer.

    Args:
        name: hub id or local folder.
        kind: required architecture.
        precision: dtype of the weights.

    Raises:
        CheckpointError: it cannot be loaded, is of another kind, or lacks weights.
        MissingExtraError: transformers is not installed.
    """
    tokenizer, config = load_tokenizer(name), load_config(name, kind)
    model_class = getattr(import_transformers(), _CLASSES[kind])
    with _delivery(name, "weights"):
        model, report = model_class.from_pretrained(
            name, config=config, dtype=getattr(torch, precision), use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    lacking = sorted({*report["missing_keys"], *(str(entry) for entry in report["mismatched_keys"])})
    if lacking:  # transformers only warns and uses random numbers
        raise CheckpointError(
            f"{name}: no full set of weights of {kind}: {', '.join(lacking[:8])} missing or misshaped"
        )
    return model.model, tokenizer


def load_config(name: str, kind: Kind) -> Any:
    """Load the `transformers.PretrainedConfig` of a hub id or folder; errors as `load_base`."""
    transformers = import_transformers()
    with _delivery(name, "config.json"):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type != kind:
        raise CheckpointError(f"{name}: expected a model of type {kind!r}, got {config.model_type!r}")
    return config


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a hub id or folder; errors as `load_base`."""
    transformers = import_transformers()
    with _delivery(name, "tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def import_transformers() -> Any:
    """Import transformers; a `MissingExtraError` names the extra."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise MissingExtraError('Qwen\'s models need transformers: pip install "vlp_gym[vlm]"') from error


@contextmanager
def _delivery(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(f'{name}: {error}; pip install "vlp_gym[vlm]"') from error
    except Exception as error:  # the hub's, the parsers' and OSError, depending on the version and the network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: the {what} could not be loaded ({reason}). It is downloaded once and then cached: connect this "
            'machine once, or give a local folder as `base`. The model "vlp-compact" works offline.'
        ) from error
