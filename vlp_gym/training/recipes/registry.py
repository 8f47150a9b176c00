"""Registry of trainable systems: the built-in ones and entry points of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from vlp_gym.errors import did_you_mean

if TYPE_CHECKING:
    from vlp_gym.training.options import TrainOptions

ENTRY_POINT_GROUP = "vlp_gym.recipes"
"""Group of entry points that name a subclass of `vlp_gym.training.options.TrainOptions`."""

# name -> a subclass of `TrainOptions`, imported on use, and one line of help.
_RECIPES = {
    "staged": ("vlp_gym.training.recipes.staged:StagedOptions", "the small factorised model that ships"),
    "vlp": ("vlp_gym.training.recipes.vlp:VLPOptions", "VLP: cross-attention over a frozen CLIP"),
    "joint": ("vlp_gym.training.recipes.vlp:JointOptions", "VLP over the small encoders"),
    "rewind": ("vlp_gym.training.recipes.rewind:RewindOptions", "ReWiND: progress, trained on rewound videos"),
    "embedding": ("vlp_gym.training.recipes.embedding:EmbeddingOptions", "cosine over the small encoders"),
    "siglip2-lora": ("vlp_gym.training.recipes.embedding:SigLIP2Options", "cosine over SigLIP2 with adapters"),
    "spur": ("vlp_gym.training.recipes.spur:SPUROptions", "SPUR: progress and preference by Qwen2.5-VL"),
}


def available_recipes() -> dict[str, str]:
    """Name of each trainable system -> one line of help; imports none of them."""
    own = {name: description for name, (_, description) in _RECIPES.items()}
    return own | {name: f"entry point {point.value}" for name, point in _extensions().items()}


def load_options(system: str) -> type[TrainOptions]:
    """The options dataclass of a system.

    Args:
        system: a key of `available_recipes`.

    Raises:
        ValueError: for an unknown system; the message names similar ones.
    """
    points = {name: EntryPoint(name, path, ENTRY_POINT_GROUP) for name, (path, _) in _RECIPES.items()} | _extensions()
    if system not in points:
        raise ValueError(
            f"unknown system {system!r}: expected one of {', '.join(points)}{did_you_mean(system, points)}"
        )
    options: type[TrainOptions] = points[system].load()
    return options


def _extensions() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP)) if point.name not in _RECIPES}
