"""Training logs for TensorBoard, Weights & Biases or Trackio, through accelerate's trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from vlp_gym.errors import reason

LogName = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "vlp_gym"
EXTRAS = {"tensorboard": "train", "wandb": "wandb", "trackio": "trackio"}
"""Package, which is also the name of the log -> the extra of vlp_gym that installs it."""


@contextmanager
def open_log(
    accelerator: Any, name: LogName | None, folder: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Context of a function that logs rows with a "step"; the run is ended with the context, however that ends.

    TensorBoard's files go into the folder, those of `wandb` too. Nothing is logged if no name is given.

    Args:
        accelerator: made with ``log_with=name``.
        name: the log.
        folder: folder of the training; its name is that of the run, in the project "vlp_gym".
        settings: settings of the run, to be shown beside it.

    Raises:
        ValueError: the log cannot be started, for example without a login.
    """
    if name is None:
        yield lambda row: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    own: dict[str, Any] = {"wandb": {"dir": str(folder), "name": folder.name}, "trackio": {"name": folder.name}}
    plain = {key: value if isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)
             for key, value in settings.items()}  # fmt: skip
    try:
        accelerator.init_trackers(PROJECT, config=plain, init_kwargs={name: own.get(name, {})})
    except Exception as error:  # each library has its own ones
        hint = {"wandb": "; log in, or set WANDB_MODE=offline"}.get(name, "")
        raise ValueError(f"--log {name}: it could not be started ({reason(error)}){hint}") from error

    def log(row: Mapping[str, float]) -> None:
        values = {key: value for key, value in row.items() if key != "step" and math.isfinite(value)}
        accelerator.log(values, step=int(row["step"]))

    try:
        yield log
    finally:
        accelerator.end_training()
