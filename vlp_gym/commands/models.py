"""`vlp-gym models`, `vlp-gym convert` and `vlp-gym calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vlp_gym.commands.extras import check_conversion


def models() -> None:
    """List the available reward models, shipped and from other packages."""
    from vlp_gym.models.registry import available_models

    rows = [("NAME", "DESCRIPTION", "WHERE")] + [(row.name, row.description, row.where) for row in available_models()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, description, where in rows:
        print(f"{name:{widths[0]}}  {description:{widths[1]}}  {where}")


def convert(
    system: Literal["liv", "vip", "r3m", "roboclip", "rewind", "robometer"],
    source: Path,
    /,
    *,
    out: Path,
    base: str | None = None,
    tokenizer: str | None = None,
    vocabulary: Path | None = None,
) -> None:
    """Convert a published checkpoint to a folder that every command accepts as --model.

    For example: vlp-gym convert liv downloads/liv.pt --out runs/liv

    Only tensors are read; files that would run code are refused. All keys and shapes must match.

    Args:
        system: model family of the checkpoint.
        source: the published .pt or .safetensors file; for robometer also a folder of shards.
        out: folder for config.json and model.safetensors.
        base: for robometer, folder or hub id of its vision-language model; default: the published one.
        tokenizer: for r3m, folder or hub id of DistilBERT's tokenizer; default: the published one.
        vocabulary: for roboclip, the released s3d_dict.npy.
    """
    check_conversion(system)
    from vlp_gym.models.published.convert import convert as turn

    given = {"base": base, "tokenizer": tokenizer, "vocabulary": vocabulary}
    takers = {"base": "robometer", "tokenizer": "r3m", "vocabulary": "roboclip"}
    if system == "roboclip" and vocabulary is None:
        raise ValueError("--vocabulary: roboclip needs the released s3d_dict.npy, or its words as .txt or .json")
    options = {name: value for name, value in given.items() if value is not None}
    if wrong := [name for name in options if takers[name] != system]:
        raise ValueError(f"--{wrong[0]}: only {takers[wrong[0]]} takes it, got it for {system}")
    print(f"checkpoint: {turn(system, source, out, **options)}")


def calibrate(model: str, /, *, data: tuple[Path, ...], out: Path, tasks: tuple[str, ...] = ()) -> None:
    """Calibrate an ensemble's members on collected rollouts, so that each is ranked on its own scale, and save it.

    For example: vlp-gym calibrate "ensemble:mean|vlp-compact|clip:ViT-B-32/openai" --data data/train --out runs/both

    Args:
        model: the ensemble, as ensemble:mean|MODEL|MODEL; or with min, or lower (mean less standard deviation).
        data: folders from `vlp-gym collect` with training tasks.
        out: folder for the ensemble.
        tasks: use only these tasks of the data; default: all.
    """
    from vlp_gym.errors import check_packages

    check_packages(dict.fromkeys(("datasets", "PIL", "scipy"), "train"), "a calibration needs")
    if not data:
        raise ValueError("--data: expected at least one folder, got none")
    from vlp_gym.commands.data import load
    from vlp_gym.evaluation.calibration import calibrate as rank
    from vlp_gym.models.ensemble import EnsembleModel
    from vlp_gym.models.registry import best_device, check_storable, load_reward_model

    ensemble = load_reward_model(model, device=best_device())
    if not isinstance(ensemble, EnsembleModel):
        raise ValueError(f"expected an ensemble such as 'ensemble:mean|vlp-compact|vlp-compact-45', got {model!r}")
    check_storable(ensemble.config["members"])
    rank(ensemble, load(*data, tasks=tasks))
    ensemble.save_pretrained(out)
    print(f"checkpoint: {out}")
