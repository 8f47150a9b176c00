"""Models for `transformers` from the hub or a folder: configs, tokenizers and safetensors weights, but never code."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlp_gym.errors import CheckpointError, import_extra, missing_extra, reason
from vlp_gym.models.budget import within
from vlp_gym.text import check_length, normalize_sentence

_MAX_COUNT = 10_000


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, downloaded once and then cached.

    Args:
        name: hub id or folder.
        needs: the beginning of the message if transformers is not installed.
        absent: message if a part cannot be loaded; "{}" stands for "config.json", "tokenizer" or "weights".
        advice: what to do then.

    Raises (in use):
        MissingExtraError: transformers, or a package that this model needs, is not installed.
        CheckpointError: a part cannot be loaded.
    """

    name: str
    needs: str
    absent: str
    advice: str

    def config(self, kind: str | None = None) -> Any:
        """The `transformers.PretrainedConfig`; raises `CheckpointError` if its model_type is not the required kind."""
        config = self._load("config.json", "AutoConfig")
        if kind is not None and config.model_type != kind:
            raise CheckpointError(f"{self.name}: expected a model of type {kind!r}, got {config.model_type!r}")
        return config

    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._load("tokenizer", "AutoTokenizer")

    def weights(self, model_class: str, **options: Any) -> tuple[Any, list[str]]:
        """The model, and the names of missing or misshaped weights, which transformers leaves random with a warning."""
        model, report = self._load("weights", model_class, use_safetensors=True, output_loading_info=True, **options)
        return model, sorted({str(key) for entry in ("missing_keys", "mismatched_keys") for key in report[entry]})

    def _load(self, part: str, loader: str, **options: Any) -> Any:
        transformers = import_extra("transformers", self.needs, "vlm")
        try:
            _check_files(Path(self.name))
            with contextlib.suppress(OSError):  # a tokenizer's folder may have none
                check_counts(transformers.PretrainedConfig.get_config_dict(self.name)[0])
            # A weight that its file lacks would be made at the size that the config says.
            numbers = self._stored_bytes() // 2 if part == "weights" else 0
            with within(numbers):
                # False, not omitted: transformers would ask on the terminal whether to run the repository's code.
                return getattr(transformers, loader).from_pretrained(self.name, trust_remote_code=False, **options)
        except ImportError as error:
            raise missing_extra(error, f'{self.name}: {error}; pip install "vlp_gym[vlm]"') from error
        except Exception as error:  # the hub's, the parsers' and OSError, depending on the version and the network
            raise CheckpointError(
                f"{self.name}: {self.absent.format(part)} ({reason(error)}). {self.advice}"
            ) from error

    def _stored_bytes(self) -> int:
        """Size of its safetensors files, which are downloaded if need be."""
        from transformers.utils.hub import cached_file

        def found(name: str) -> Path:
            return Path(str(cached_file(self.name, name)))

        try:
            return found("model.safetensors").stat().st_size
        except OSError:
            index = json.loads(found("model.safetensors.index.json").read_bytes())
            return sum(found(name).stat().st_size for name in set(index["weight_map"].values()))


def check_counts(config: Any) -> None:
    """Raise ValueError if the config of a `transformers` model counts anything, such as layers, beyond reason.

    `transformers` makes lists of that length before any tensor.
    """
    parts = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in parts:
        if isinstance(value, int) and value > _MAX_COUNT and re.search("layer|depth|num_|block", str(key)):
            raise ValueError(f"{key}: expected at most {_MAX_COUNT}, got {value}")
        check_counts(value)


def _check_files(folder: Path) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if not path.is_file() and not path.is_dir():  # reading a pipe or a device may never end
                raise ValueError(f"{path.name} is no regular file")


def mean_word(model: Any, tokenizer: Any, instructions: Sequence[str], limit: int, *, truncate: bool) -> Tensor:
    """Encode B sentences as the mean over a BERT's tokens without padding, float ``[B, 1, D]``.

    Raises:
        InstructionError: a sentence is blank, or over the limit of tokens and ``truncate`` is False.
    """
    sentences = [normalize_sentence(instruction) for instruction in instructions]
    for ids in tokenizer(sentences, verbose=False)["input_ids"]:
        check_length(len(ids), limit, truncate=truncate)
    inputs = tokenizer(sentences, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    words, real = (inputs[key].to(model.device) for key in ("input_ids", "attention_mask"))
    states: Tensor = model(input_ids=words, attention_mask=real).last_hidden_state
    weights = real.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
