"""A chat model run locally with `transformers`."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlp_gym.errors import CheckpointError, QueryError, import_extra, missing_extra
from vlp_gym.prompting.asking import AskedChat
from vlp_gym.prompting.cache import DEFAULT
from vlp_gym.prompting.content import Content, Schema, to_pil
from vlp_gym.prompting.workers import leave_if_abandoned


class LocalChat(AskedChat):
    """A vision-language model with a chat template, such as Qwen2.5-VL; greedy decoding, one question at a time.

    Code of the repository is never run (``trust_remote_code`` is off), and only safetensors weights are read.

    Args:
        model: hub id or folder.
        device: "auto" means CUDA if available.
        dtype: "auto" means that of the weights, else a name such as "bfloat16".
        cache: see `vlp_gym.prompting.ChatClient`.
        attempts: how often a question is asked until its answer can be parsed.
        max_tokens: largest number of tokens per answer.

    Raises:
        MissingExtraError: `transformers` or `Pillow` is not installed.
        CheckpointError: the model cannot be found, downloaded or built.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        cache: str | os.PathLike[str] | None = DEFAULT,
        attempts: int = 3,
        max_tokens: int | None = 1024,
    ) -> None:
        if max_tokens is None or max_tokens < 1:
            raise ValueError(f"max_tokens of a local model must be at least 1, got {max_tokens}")
        self.max_tokens = max_tokens
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._processor, self._model = _load(model, device, dtype)
        self._device = device
        # The model in a folder may be replaced; cached answers must belong to these weights.
        parameters = {"dtype": dtype, "max_tokens": max_tokens, "weights": _fingerprint(model, self._model)}
        super().__init__(f"local/{model}", parameters, cache=cache, attempts=attempts)
        self._lock = threading.Lock()  # the threads of a batch take turns

    def close(self) -> None:
        """Release the weights; the model cannot be used afterwards."""
        self._model = None

    @torch.inference_mode()
    def _complete(self, content: Content, schema: Schema | None) -> str:
        """In text: `generate` cannot be held to a schema."""
        from transformers import StoppingCriteriaList

        inputs = self._inputs(content)
        length = inputs["input_ids"].shape[1]
        with self._lock:
            leave_if_abandoned()
            # No sampling: it would draw from the global generators, which the agent uses.
            output = self._model.generate(
                **inputs,
                max_new_tokens=self.max_tokens,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([_go_on_if_awaited]),
            )
        self._count(requests=1, prompt_tokens=length, completion_tokens=output.shape[1] - length)
        return str(self._processor.batch_decode(output[:, length:], skip_special_tokens=True)[0])

    @torch.inference_mode()
    def _first_token(self, content: Content, candidates: Sequence[str]) -> list[float]:
        """A candidate's tokens with and without a leading space both count."""
        inputs = self._inputs(content)
        ids = [self._token_ids(candidate) for candidate in candidates]
        with self._lock:
            leave_if_abandoned()
            logits: Tensor = self._model(**inputs).logits[0, -1]
        self._count(requests=1, prompt_tokens=inputs["input_ids"].shape[1])
        logprobs = logits.double().log_softmax(-1)
        return [min(float(logprobs[row].logsumexp(0)), 0.0) for row in ids]

    def _inputs(self, content: Content) -> Any:
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": to_pil(part)}
            for part in content
        ]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return inputs.to(self._device)

    def _token_ids(self, candidate: str) -> list[int]:
        tokenizer = self._processor.tokenizer
        both = [tokenizer.encode(text, add_special_tokens=False) for text in (candidate, f" {candidate}")]
        ids = sorted({tokens[0] for tokens in both if len(tokens) == 1})
        if not ids:
            raise QueryError(f"{self.name}: {candidate!r} is {len(both[0])} tokens, expected 1; take another model")
        return ids


def _go_on_if_awaited(ids: Tensor, scores: Any, **_: Any) -> Tensor:
    """Stopping criterion that never stops, but leaves `generate` if the caller is gone."""
    leave_if_abandoned()
    return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def _load(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    transformers = import_extra("transformers", "a local chat model needs the package transformers", "vlm")
    try:
        # False, not omitted: transformers would ask on the terminal whether to run the repository's code.
        processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=False)
        model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except ImportError as error:  # a model may need more, such as torchvision
        raise missing_extra(error, f"{name!r} needs another package: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"transformers could not load the vision-language model {name!r}: {error}\n"
            "Give a folder, or connect this machine once; the files are then cached"
        ) from error
    return processor, model.to(device).eval()


def _fingerprint(name: str, model: Any) -> list[Any]:
    """Identify weights by the hub's commit, or by sizes and times of a folder's weight files."""
    files = [path.stat() for path in sorted(Path(name).glob("*.safetensors"))] if Path(name).is_dir() else []
    return [getattr(model.config, "_commit_hash", None), *([file.st_size, file.st_mtime_ns] for file in files)]
