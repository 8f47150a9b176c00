"""What Stable-Baselines3 logs, in Weights & Biases or Trackio; TensorBoard is its own.

```python
logger = configure("runs/logs", ["stdout", "tensorboard"])  # from stable_baselines3.common.logger
logger.output_formats.append(TrackerWriter("trackio", project="button-press"))
model.set_logger(logger)
```
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import Figure, Image, KVWriter

from vlp_gym.errors import import_extra

NOT_IN_TEXT = ("stdout", "log", "json", "csv")
"""The writers that know numbers and words only."""


@dataclass(frozen=True)
class VideoFile:
    """A video that was written to a file, as a value to log."""

    path: Path


class TrackerWriter(KVWriter):
    """A writer for Stable-Baselines3's logger: numbers, histograms (tensors), figures, images, `RewardVideo`.

    Args:
        library: "wandb" (with WANDB_MODE=offline without a network) or "trackio".
        project: the project of the run.
        options: other arguments of the library's ``init``, such as the run's name.

    Raises:
        MissingExtraError: the library is not installed.
    """

    def __init__(self, library: Literal["wandb", "trackio"], project: str = "vlp_gym", **options: Any) -> None:
        if library not in ("wandb", "trackio"):
            raise ValueError(f'library: expected "wandb" or "trackio", got {library!r}')
        self.name = library
        self._library = import_extra(library, f"logging to {library} needs it", library)
        self._run = self._library.init(project=project, **options)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Log what is not excluded from this writer; text is left out."""
        excluded = {key for key, names in key_excluded.items() if names and self.name in names}
        values = {key: self._converted(value) for key, value in key_values.items() if key not in excluded}
        self._run.log({key: value for key, value in values.items() if value is not None}, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()

    def _converted(self, value: Any) -> Any:
        """The value as the library takes it; None for what it does not take."""
        library = self._library
        if isinstance(value, (bool, int, float, np.number)):
            return float(value)
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return library.Histogram(np_histogram=np.histogram(np.asarray(value), bins=64))
        if isinstance(value, VideoFile):
            return library.Video(str(value.path), format="mp4")
        if isinstance(value, Figure):
            return library.Image(_drawn(value.figure))
        if isinstance(value, Image) and value.dataformats in ("HWC", "CHW"):
            pixels = np.asarray(value.image)
            return library.Image(pixels if value.dataformats == "HWC" else pixels.transpose(1, 2, 0))
        return None


def _drawn(figure: Any) -> NDArray[np.uint8]:
    """The pixels of a figure, uint8 ``[H, W, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
