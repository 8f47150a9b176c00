"""Which extras of vlp_gym each command needs: shown by `--help`, and in the docs. The commands check them first."""

from __future__ import annotations

from vlp_gym.errors import check_packages

ALWAYS = "train"
"""The command line itself; `viz` and `serve` bring it, too."""
EXTRAS: dict[str, dict[str, str]] = {
    "collect": {"metaworld": "collect metaworld", "fetch": "collect fetch", "maniskill": "collect maniskill",
                "sb3": "--agent", "ray": "--ray"},
    "data": {"viz": "", "minari": "minari: as source or --to"},
    "train": {"clip": "vlp", "vlm": "rewind, siglip2-lora, spur", "wandb": "--log wandb",
              "trackio": "--log trackio"},
    "tune": {},
    "eval": {},
    "score": {"viz": "videos", "ray": "--ray"},
    "label": {"viz": "a person"},
    "policy": {"metaworld": "", "viz": "--video"},
    "study": {"clip": "--backbone open_clip:..."},
    "convert": {"clip": "liv, vip, r3m", "vlm": "r3m, rewind, robometer"},
    "calibrate": {},
    "models": {},
    "serve": {"serve": ""},
    "instructions": {"prompt": ""},
    "push": {},
    "examples": {},
}  # fmt: skip
"""Command -> extra beside `train` -> what needs it, or nothing if everything does."""
_CONVERTED = {
    "liv": {"open_clip": "clip"},
    "vip": {"torchvision": "clip"},
    "r3m": {"torchvision": "clip", "transformers": "vlm"},
    "rewind": {"transformers": "vlm"},
    "robometer": {"transformers": "vlm"},
}


def help_line(command: str) -> str:
    """The line of `--help`.

    >>> help_line("label")
    'Needs vlp_gym[train]; viz (a person).'
    """
    needs = [f"{extra} ({what})" if what else extra for extra, what in EXTRAS[command].items()]
    return "; ".join([f"Needs vlp_gym[{ALWAYS}]", *needs]) + "."


def check_conversion(system: str) -> None:
    """Raise MissingExtraError if a system of `vlp-gym convert` needs a package that is not installed."""
    check_packages(_CONVERTED.get(system, {}), f"converting {system} needs")
