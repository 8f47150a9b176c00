"""The command line `vlp-gym`; its sub-commands are the functions of `vlp_gym.commands`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from vlp_gym.commands.collect import collect
from vlp_gym.commands.datasets import data
from vlp_gym.commands.evaluate import evaluate
from vlp_gym.commands.examples import examples
from vlp_gym.commands.extras import help_line
from vlp_gym.commands.instructions import instructions
from vlp_gym.commands.label import label
from vlp_gym.commands.models import calibrate, convert, models
from vlp_gym.commands.policy import policy
from vlp_gym.commands.push import push
from vlp_gym.commands.score import score
from vlp_gym.commands.serve import serve
from vlp_gym.commands.study import study
from vlp_gym.commands.train import train, tune
from vlp_gym.commands.usage import check_names, later, options_of, parse, with_line
from vlp_gym.errors import VLPError, did_you_mean, missing_extra

COMMANDS: dict[str, Callable[..., Any]] = {
    "collect": collect,
    "data": data,
    "train": train,
    "tune": tune,
    "eval": evaluate,
    "score": score,
    "label": label,
    "policy": policy,
    "study": study,
    "convert": convert,
    "calibrate": calibrate,
    "models": models,
    "serve": serve,
    "instructions": instructions,
    "push": push,
    "examples": examples,
}
KEPT = {
    "collect": "finished shards are kept, and the same command goes on from there",
    "data": "finished tasks are kept, and the same command goes on from there; with --to it begins again",
    "train": "the last saved state is kept, and the same command goes on from there",
    "label": "saved labels are kept, and the same command adds further pairs to them",
    "policy": "the last saved state is kept, and the same command goes on from there",
    "study": "finished runs and the last saved state are kept, and the same command goes on from there",
    "score": "finished files are kept; the same command begins anew",
    "instructions": "finished tasks are kept, and the same command goes on from there",
    "serve": "clients wait for the same command",
}
NOTHING = "nothing was written; the same command begins anew"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 2 after an error, 130 after Ctrl-C.

    Args:
        arguments: command-line arguments without the program's name; default: those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not sys.warnoptions:  # hide other packages' warnings; -W or PYTHONWARNINGS shows them
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for worker processes
    try:
        _read(arguments)()
    except KeyboardInterrupt:
        command = arguments[0] if arguments else ""
        print(f"vlp-gym: interrupted; {KEPT.get(command, NOTHING)}", file=sys.stderr)
        return 130
    except (VLPError, ValueError, FloatingPointError, OSError) as error:
        print(f"vlp-gym: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def _read(arguments: Sequence[str]) -> Callable[[], None]:
    """What the command line asks for, to be called; ends the process after `--help`."""
    try:
        import tqdm  # noqa: F401
        import tyro
    except ImportError as error:
        raise missing_extra(error, f'the command line needs {error.name}: pip install "vlp_gym[train]"') from error
    command, *options = arguments or ["--help"]
    if command in ("train", "policy"):
        own: Callable[[], None] = COMMANDS[command](options)  # has sub-commands
        return own
    if command in COMMANDS:
        check_names(options, options_of(COMMANDS[command]), f"vlp-gym {command}")
    elif not command.startswith("-"):
        raise ValueError(
            f"unknown command {command!r}: expected one of {', '.join(COMMANDS)}{did_you_mean(command, COMMANDS)}"
        )
    call: Callable[[], None] = parse(
        lambda: tyro.extras.subcommand_cli_from_dict(
            {name: with_line(later(function), help_line(name)) for name, function in COMMANDS.items()},
            prog="vlp-gym",
            description="Any Gymnasium environment that can render gets a reward from a sentence.",
            args=[command, *options],
        ),
        f"vlp-gym {command}" if command in COMMANDS else "vlp-gym",
    )
    return call


if __name__ == "__main__":
    sys.exit(main())
