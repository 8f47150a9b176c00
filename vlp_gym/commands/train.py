"""`vlp-gym train` and `vlp-gym tune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlp_gym.commands.data import load, opened_instructions, training_tasks
from vlp_gym.commands.extras import help_line
from vlp_gym.commands.usage import check_names, check_values, listed, option_names, parse
from vlp_gym.errors import check_packages
from vlp_gym.training.recipes.registry import available_recipes, load_options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlp_gym.data.trajectory import Trajectory
    from vlp_gym.training.options import TrainOptions
    from vlp_gym.training.recipe import Recipe


def train(arguments: Sequence[str]) -> Callable[[], None]:
    """Train a reward model on the training tasks of a split; repeat the command to resume.

    For example: vlp-gym train staged --data data/train --split vlp --out runs/staged-vlp

    Args:
        arguments: a system and its options from the command line; without any, the systems are listed.
    """
    import tyro

    system = arguments[0] if arguments else "--help"
    systems: dict[str, Callable[..., Any]] = {name: listed(line) for name, line in available_recipes().items()}
    command = "vlp-gym train"
    if not system.startswith("-"):  # only listed otherwise, without importing the recipe
        options_class = load_options(system)
        systems[system] = _parsed(options_class)
        command = f"vlp-gym train {system}"
        check_names(arguments[1:], option_names(field.name for field in fields(options_class)), command)
    options = parse(
        lambda: tyro.extras.subcommand_cli_from_dict(
            systems,
            prog="vlp-gym train",
            description="Train a reward model; repeat the command to resume.\n\n"
            "For example: vlp-gym train staged --data data/train --split vlp --out runs/staged-vlp\n\n"
            + help_line("train"),
            args=arguments or ["--help"],
        ),
        command,
    )
    check_values({field.name: getattr(options, field.name) for field in fields(options)})
    return lambda: _train(system, options, arguments)


def _parsed(options_class: type[TrainOptions]) -> Callable[[Any], Any]:
    """A sub-command that parses a class of options; with the bare class, tyro would put its error messages in a box."""
    import tyro

    def parsed(options: Any) -> Any:
        return options

    parsed.__doc__ = options_class.__doc__
    parsed.__annotations__ = {"options": Annotated[options_class, tyro.conf.arg(name="")]}
    return parsed


def _train(system: str, options: TrainOptions, arguments: Sequence[str]) -> None:
    if not options.data:
        raise ValueError("--data: expected at least one folder, got none")
    options.check_packages()
    import torch

    from vlp_gym.evaluation.card import write_made
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.training.hold_out import hold_out
    from vlp_gym.training.loop import train as run_training

    tasks = options.training_tasks(training_tasks(options.split, options.data))
    out = Path("runs") / f"{system}-{options.split}" if options.out is None else options.out
    start = None if options.init is None else load_reward_model(options.init)
    book = opened_instructions(None if options.instructions is None else str(options.instructions))
    every = load(*options.data, tasks=tasks, instructions=book)
    trajectories, held = hold_out(every, options.hold_out, options.seed)
    torch.manual_seed(options.seed)
    model, recipe = options.build(trajectories)
    if start is not None:
        _start_from(model, start, f"{options.init}")
    run_training(model, recipe, out, options.config(), held_out=_held_out_recipe(model, held, options))
    if _leads():
        write_made(out, arguments, options.data, len(trajectories), [trajectory.task for trajectory in trajectories])
    if held:
        _judge(held, out, options)
    print(f"checkpoint: {out}")
    print(f"evaluate it: vlp-gym eval --model {out} --data {options.data[0]} --split {options.split}")


def _held_out_recipe(model: nn.Module, held: Sequence[Trajectory], options: TrainOptions) -> Recipe | None:
    """What the held-out loss is measured with, where early stopping is asked for."""
    if not options.patience:
        return None
    try:
        return options.recipe_of(model, held)
    except ValueError as error:
        raise ValueError(
            f"--patience: the {len(held)} held-out episodes do not suffice to measure the loss ({error}); hold out "
            "more, or train without it"
        ) from error


def _leads() -> bool:
    """Whether this is the process that writes, of those of one training."""
    import accelerate

    return bool(accelerate.PartialState().is_main_process)


def _judge(held: Sequence[Trajectory], out: Path, options: TrainOptions) -> None:
    """Write a report on the held-out episodes."""
    from vlp_gym.commands.evaluate import report
    from vlp_gym.models.registry import best_device, load_reward_model

    if not _leads():
        return
    device = best_device()
    live = load_reward_model(str(out), device=device)
    tasks = sorted({trajectory.task for trajectory in held})
    name = f"{len(held)} episodes held out of training"
    report(live, str(out), held, tasks, out / "held-out", split_name=name, seed=options.seed, device=device)


def tune(*, model: Path, data: Path, tasks: tuple[str, ...]) -> None:
    """Tune the constants of a staged model on tasks left out of its training.

    For example: vlp-gym tune --model runs/left --data data/train --tasks push-v3 reach-v3

    Args:
        model: folder of a model from `vlp-gym train staged --leave-out ...`.
        data: folder from `vlp-gym collect`, or another data set, see `vlp-gym data --help`.
        tasks: the left-out tasks, at least two.
    """
    check_packages(dict.fromkeys(("datasets", "PIL", "scipy"), "train"), "tuning needs")
    if len(tasks) < 2:
        raise ValueError(f"--tasks: expected at least two tasks, got {' '.join(tasks) or 'none'}")
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.models.staged import StagedRewardModel
    from vlp_gym.training.recipes import staged_tune

    live = load_reward_model(model)
    if not isinstance(live, StagedRewardModel):
        raise ValueError(f"--model: expected a staged model, got a {type(live).__name__} in {model}")
    found = staged_tune.tune(live, load(data, tasks=tasks), tasks)
    print("   ".join(f"{name:>8}" for name in found.columns))
    for row in found.table:
        print("   ".join(f"{value:{max(len(name), 8)}.3f}" for name, value in zip(found.columns, row, strict=True)))
    constants = [field.name for field in fields(found) if field.name != "table"]
    print(" ".join(f"--{name.replace('_', '-')} {getattr(found, name)}" for name in constants))


def _start_from(model: nn.Module, other: Any, name: str) -> None:
    from vlp_gym.models.backbones.small import SmallBackbone
    from vlp_gym.training.state import differing_weights

    start: nn.Module = model
    if type(other) is not type(model):  # another system: copy the small encoders if both have them
        encoders = [next((m for m in each.modules() if isinstance(m, SmallBackbone)), None) for each in (model, other)]
        if encoders[0] is not None and encoders[1] is not None:
            start, other = encoders[0], encoders[1]
    weights: dict[str, Tensor] = other.state_dict()
    if differing := differing_weights(start.state_dict(), weights):
        raise ValueError(f"--init: expected a model of this architecture and size; {name} differs in {differing[:3]}")
    start.load_state_dict(weights)
