"""A tiny checkpoint of every family, saved when it is first needed, and how it is asked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")  # before they are imported

import numpy as np
import torch
from PIL import Image

from tests.tiny import tiny_model
from tests.tiny_clip import add_mini_clips, random_frames
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.errors import CheckpointError, InstructionError, QueryError
from vlp_gym.models import registry
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.protocol import Scores

REFUSALS = (CheckpointError, QueryError, InstructionError)
LARGE = ("vip", "r3m")  # a ResNet-18 is 45 MB: drawn less often
_NET = {"hidden": 16, "layers": 2, "heads": 2, "feed_forward": 24}
_HEAD = {"self_attention_layers": 1, "heads": 2, "head": (8,), "window": 4}
_SMALL = {"image_size": 32, "channels": 8, "reduced": 4, "hidden": 16, "embedding": 8, "buckets": 64}
_CLIPS = {"window": 4, "frame_size": 32, "width": 1 / 16, "embedding": 16, "word_dim": 6, "text_hidden": 12}
_TEXT = {"text_dim": 64, "text_layers": 1, "text_heads": 1, "text_hidden": 32, "text_length": 14, "vocabulary": 16}


def _dino(folder: Path) -> Any:
    from tests.tiny_bases import write_encoders

    return _made("rewind", **write_encoders(folder), **_NET)


def _siglip(folder: Path) -> Any:
    from tests.tiny_bases import write_siglip

    return _made("siglip2-lora", base=write_siglip(folder / "siglip"), rank=2)


def _r3m(folder: Path) -> Any:
    from tests.tiny_bases import write_tokenizer

    return _made("r3m", resnet=18, hidden=8, tokenizer=write_tokenizer(folder / "words"), **_TEXT)


def _robometer(folder: Path) -> Any:
    from tests.tiny_qwen import tiny_qwen3

    return _made("robometer", tiny_qwen3(folder / "qwen3"), frame_size=32, window=4)


def _spur(folder: Path) -> Any:
    from tests.tiny_qwen import tiny_qwen2_5

    return _made("spur", tiny_qwen2_5(folder / "qwen2"), frame_size=56, window=4, lora_rank=2)


def _furl(folder: Path) -> Any:
    return _made("furl", str(family(folder, "embedding")), widths=(8, 4))


def _ensemble(folder: Path) -> Any:
    return _made("ensemble", [str(family(folder, name)) for name in ("staged", "embedding")])


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "staged": lambda folder: tiny_model(),
    "embedding": lambda folder: _made("embedding", **_SMALL),
    "vlp": lambda folder: _made("vlp", "small", frame_size=32, temporal_embedding=True, **_HEAD),
    "vlp-clip": lambda folder: _made("vlp", "open_clip:mini-vit", **_HEAD),
    "rewind": lambda folder: _made("rewind", "small", frame_size=32, channels=8, **_NET),
    "rewind-dino": _dino,
    "roboclip": lambda folder: _made("roboclip", ["press", "the", "button", "close"], **_CLIPS),
    "liv": lambda folder: _made("liv", architecture="mini-resnet"),
    "furl": _furl,
    "ensemble": _ensemble,
    "robometer": _robometer,
    "spur": _spur,
    "siglip2-lora": _siglip,
    "vip": lambda folder: _made("vip", resnet=18, dim=16),
    "r3m": _r3m,
}


def prepare(folder: Path) -> None:
    """What all families need: open_clip's tiny architectures, a goal picture, and silence."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # several of these processes may share the cores
    folder.mkdir()
    add_mini_clips(folder)
    Image.fromarray(random_frames(1, 40, 48)[0].numpy()).save(folder / "goal.png")


def family(folder: Path, name: str) -> Path:
    """The checkpoint of a family in a subfolder, saved when it is first asked for."""
    path = folder / name
    if not path.exists():
        torch.manual_seed(0)
        save_checkpoint(FAMILIES[name](folder).eval(), path)
    return path


def draw_family(rng: np.random.Generator) -> str:
    """A name of `FAMILIES`."""
    names = list(FAMILIES)
    name = names[rng.integers(len(names))]
    return names[rng.integers(len(names))] if name in LARGE and rng.integers(4) else name


def ask(name: str | Path, goal: Path) -> Scores:
    """A model's scores of two clips of three frames, asked as the wrapper asks."""
    model = GuardedModel(name, device="cpu")
    instruction = str(goal) if getattr(model.model, "needs_goal", False) else "press the button"
    tokens = model.encode_frames(random_frames(6, 40, 48), where="test").unflatten(0, (2, 3))
    text = model.encode_text([instruction] * 2, where="test")
    return model.score(tokens, text, torch.ones(2, 3, dtype=torch.bool), where="test")


def wrong(scores: Scores) -> str:
    """What of the scores is not as `RewardModel` says."""
    for name, shape in {"preference": (2,), "progress": (2, 3), "relevance": (2,)}.items():
        values = getattr(scores, name)
        if values is not None and (tuple(values.shape) != shape or not torch.isfinite(values).all()):
            return f"{name}: {values}"
    return ""


def _made(name: str, *args: Any, **options: Any) -> Any:
    return resolve_name(registry._CLASSES[name])(*args, **options)
