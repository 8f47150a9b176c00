"""`vlp-gym models`, `vlp-gym convert` and `vlp-gym calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def models() -> None:
    """List the reward models that can be named: the shipped ones, and those of other packages."""
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
    """Turn a published checkpoint into a folder that every command takes as --model.

    The file is read as tensors alone: one that would run code is refused. Every key must be there with its shape.

    Args:
        system: whose checkpoint it is.
        source: the published .pt or .safetensors file; of robometer also a folder of shards.
        out: folder for config.json and model.safetensors.
        base: of robometer, the folder or hub id of its vision-language model, if not the published one.
        tokenizer: of r3m, the folder or hub id of DistilBERT's tokenizer, if not the published one.
        vocabulary: of roboclip, the released s3d_dict.npy.
    """
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
    """Rank the members of an ensemble by what they say of collected rollouts, and keep that as a checkpoint.

    For example: vlp-gym calibrate "ensemble:mean|vlp-compact|clip:ViT-B-32/openai" --data data/train --out runs/both

    Args:
        model: as ensemble:mean|MODEL|MODEL or ensemble:min|MODEL|MODEL.
        data: folders that `vlp-gym collect` filled, of training tasks.
        out: folder for the ensemble.
        tasks: of the data; all by default.
    """
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
