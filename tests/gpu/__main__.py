"""Measure on a GPU what no CPU can show: is the engine right on a CUDA stream, and how fast is all of it?

python -m tests.gpu --size full --out runs/gpu
python -m tests.gpu --size small --device cpu

The first is `make gpu`. It takes at most 8 minutes, and needs a GPU with 40 GB or more. It also runs where nothing can
be downloaded: torch, torchvision, transformers, peft, accelerate and scipy must be there; what else is missing comes
from the folder of wheels that `make gpu-wheels` has filled elsewhere. On such a machine, in a copy of the working tree
with that folder, this is the whole command, the installation into a temporary folder included:

    python3 -m tests.gpu --size full --wheels gpu-wheels --out runs/gpu --budget-s 440

It writes ``gpu.json`` and ``gpu.md`` after each part, so that a run that is cut off leaves what it has measured. The
exit status is 1 if a part failed. MuJoCo draws through EGL, whose driver is the machine's; without it another
environment is measured, and the table names it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.gpu.run import PARTS, child, in_subprocess, run
from tests.gpu.sizes import SIZES
from tests.gpu.wheels import install


def main() -> int:
    """Run the parts that were asked for; returns the exit status."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--size", choices=SIZES, default="full", help="small takes a minute on a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where the models run")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--budget-s", type=float, default=440.0, help="seconds; what does not fit is skipped")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="parts to run; all by default")
    parser.add_argument("--wheels", type=Path, default=Path("gpu-wheels"), help="folder to install from")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--events", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        return child(options.part, options.size, options.device, options.events)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.device == "cuda":
        os.environ.setdefault("MUJOCO_GL", "egl")
    with tempfile.TemporaryDirectory() as site:
        if missing := install(options.wheels, Path(site)):
            print(f"neither installed nor in {options.wheels}: {', '.join(missing)}", flush=True)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [site, os.getcwd(), os.environ.get("PYTHONPATH")]))
        parts = [part for part in PARTS if part.name in options.only]
        outcomes = run(parts, options.size, options.device, options.out, options.budget_s, in_subprocess, started)
    print((options.out / "gpu.md").read_text())
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
