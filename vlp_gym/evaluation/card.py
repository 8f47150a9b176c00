"""The card of a model for the Hugging Face hub: how it was made, its figures with their controls, its limits."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlp_gym.errors import CheckpointError, DatasetError
from vlp_gym.evaluation.report import FIGURES, markdown
from vlp_gym.schema import Count, Document
from vlp_gym.storage import read_file, write_atomic

MADE = "made.json"
RESULTS = "results.json"
PIPELINE = "robotics"
TAGS = ["reward-model", "robotics", "reinforcement-learning", "vision-language"]
MAX_BYTES = 16 << 20
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")

LIMITS = """- Its rewards are the opinion of a learned model, and an agent finds what it pays for without success. Judge
  agents by the environment's own success.
- The figures hold for tasks, cameras and scenes like those of the evaluation. Look at the rewards of a good and of a
  bad episode first: `vlp-gym score VIDEO --instruction "..." --model {name}`.
- It judges pictures: what the camera does not show is not paid."""


class Made(Document):
    """How a checkpoint was trained, the file ``made.json`` beside it.

    Attributes:
        command: the command line; absolute paths are cut to their last part.
        data: names of the data sets.
        rollouts: number of rollouts trained on.
        tasks: their tasks.
    """

    command: str
    data: list[str]
    rollouts: Count
    tasks: list[str]


def write_made(
    folder: Path, arguments: Sequence[str], data: Sequence[Path], rollouts: int, tasks: Sequence[str]
) -> None:
    """Write ``made.json`` for a training.

    Args:
        folder: folder of the checkpoint.
        arguments: what `vlp-gym train` was called with.
        data: the data sets.
        rollouts: see `Made`.
        tasks: tasks of the rollouts.
    """
    words = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    made = Made(
        command=shlex.join(["vlp-gym", "train", *words]),
        data=[Path(folder).name for folder in data],
        rollouts=rollouts,
        tasks=sorted(set(tasks)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / MADE, made.model_dump_json(indent=2).encode())


def read_made(folder: Path) -> Made | None:
    """What `write_made` wrote; None if there is none."""
    path = folder / MADE
    return Made.parse(_json(path, CheckpointError), path) if path.exists() else None


def read_results(folder: Path, model: Path) -> dict[str, Any]:
    """The figures of an evaluation of a model, from a folder of `vlp-gym eval`.

    Raises:
        DatasetError: there are none, or they are of another model.
    """
    path = folder / RESULTS
    result = _json(path, DatasetError)
    try:
        judged, _ = str(result["settings"]["model"]), markdown(result)
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: expected the results of vlp-gym eval, got other JSON ({error!r})") from error
    if Path(judged).name != model.resolve().name:
        raise DatasetError(f"{path}: expected figures of {model.name}, got those of {judged}")
    return result


def model_card(
    name: str,
    *,
    license: str,
    model_type: str,
    made: Made | None,
    result: Mapping[str, Any] | None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
) -> str:
    """The text of ``README.md``, with the hub's fields, the figures among them (``model-index``).

    Args:
        name: "org/name".
        license: as the hub names it, such as "mit" or "apache-2.0".
        model_type: kind of model.
        made: how it was trained; None: not recorded.
        result: the evaluation, from `read_results`; None: none.
        datasets: ids of the training data on the hub.
        base_model: id of the model on the hub that it was trained from.

    Raises:
        ValueError: the licence is none that the hub could know.
    """
    from huggingface_hub import ModelCardData

    if not _LICENSE.fullmatch(license):
        raise ValueError(f'--license: expected a name as on the hub, such as "mit" or "other", got {license!r}')
    results = [] if result is None else _eval_results(result)
    data = ModelCardData(
        license=license, library_name="vlp_gym", pipeline_tag=PIPELINE, tags=[*TAGS, model_type],
        datasets=list(datasets) or None, base_model=base_model,
        model_name=name if results else None, eval_results=results or None,
    )  # fmt: skip
    trained = ["Not recorded."]
    if made is not None:
        tasks = ", ".join(task.removesuffix("-v3") for task in made.tasks)
        trained = [
            f"- Command: `{made.command}`",
            f"- Data: {', '.join(made.data)}: {made.rollouts:,} rollouts of {len(made.tasks)} tasks ({tasks})",
        ]
    figures = "None were given: nobody can say whether it is fit to pay rewards."
    if result is not None:  # without its heading
        command = f"`vlp-gym eval --model {name} --split {result['split']}`"
        figures = f"{command}\n{markdown(result).partition(chr(10))[2].rstrip()}"
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---\n# {name.partition('/')[2]}\n",
            f"A reward model of the kind `{model_type}` for vlp_gym: a Gymnasium "
            "environment that can render gets its reward from a sentence.\n",
            f'```python\nimport vlp_gym\n\nenv = vlp_gym.VLPRewardWrapper(env, "press the button", "{name}")\n```\n',
            "## Training\n",
            *trained,
            f"\n## Figures\n\n{figures}\n",
            f"## Limits\n\n{LIMITS.format(name=name)}\n",
        ]
    )


def _eval_results(result: Mapping[str, Any]) -> list[Any]:
    """Each figure, controls and baselines included, for the hub's ``model-index``."""
    from huggingface_hub import EvalResult

    split, mean = str(result["split"]), result["mean"]
    shared: dict[str, Any] = {
        "task_type": PIPELINE,
        "dataset_type": re.sub(r"[^\w.-]+", "-", split),
        "dataset_name": f"{split}, {len(result['tasks'])} tasks",
    }
    return [
        EvalResult(**shared, metric_type=metric, metric_name=title, metric_value=mean[metric])
        for titles in FIGURES.values()
        for metric, title in titles.items()
        if mean.get(metric) is not None
    ]


def _json(path: Path, error_type: type[Exception]) -> Any:
    try:
        return json.loads(read_file(path, MAX_BYTES))
    except (CheckpointError, ValueError, RecursionError) as error:
        raise error_type(f"{path}: it cannot be read as JSON ({error})") from error
