"""The command line `vlp-gym`; its sub-commands are the functions of `vlp_gym.commands`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence

from vlp_gym.commands.collect import collect
from vlp_gym.commands.evaluate import evaluate
from vlp_gym.commands.label import label
from vlp_gym.commands.models import calibrate, convert, models
from vlp_gym.commands.score import score
from vlp_gym.commands.train import train, tune
from vlp_gym.errors import MissingExtraError, VLPError

COMMANDS: dict[str, Callable[..., None]] = {
    "collect": collect,
    "train": train,
    "tune": tune,
    "eval": evaluate,
    "score": score,
    "label": label,
    "convert": convert,
    "calibrate": calibrate,
    "models": models,
}
RESUMABLE = ("collect", "train")


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
        _run(arguments)
    except KeyboardInterrupt:
        again = ", and the same command goes on from there" if arguments[0] in RESUMABLE else ""
        print(f"vlp-gym: interrupted; what was saved is kept{again}", file=sys.stderr)
        return 130
    except (VLPError, ValueError, FloatingPointError, OSError) as error:
        print(f"vlp-gym: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: Sequence[str]) -> None:
    try:
        import tqdm  # noqa: F401
        import tyro
    except ImportError as error:
        raise MissingExtraError(f'the command line needs {error.name}: pip install "vlp_gym[train]"') from error
    if arguments[:1] == ["train"]:
        train(arguments[1:])  # has sub-commands
        return
    description = "Any Gymnasium environment that can render gets a reward from a sentence."
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="vlp-gym", description=description, args=arguments or ["--help"]
    )


if __name__ == "__main__":
    sys.exit(main())
