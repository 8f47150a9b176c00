"""Peak memory of `vlp-gym score --dataset` on many frames, above that of the same command on one video.

python tests/benchmarks/score_memory.py --frames 50000

Draws a folder of videos, scores it as it is and converted to shards, and prints the peaks. The bar is 1 GiB: memory
must not grow with the data. Shards are read in a process of its own, held to 512 MiB, which is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import tyro
from tqdm import trange

BAR_MIB = 1024
RATE = 5  # frames a second: as many as are kept
COMMAND = """
import sys
from vlp_gym.commands.main import main
status = main(sys.argv[1:])
with open("/proc/self/status") as file:  # of this process alone, unlike getrusage
    peak = next(line.split()[1] for line in file if line.startswith("VmHWM"))
print(f"peak {int(peak) / 1024}")
sys.exit(status)
"""


@dataclass(frozen=True)
class Options:
    """Scores many frames, and measures peak memory."""

    frames: int = 50_000
    """In all videos."""
    length: int = 200
    """Frames of a video."""
    size: int = 96
    """Their side, pixels."""
    model: str = "vlp-compact"
    """The reward model."""
    out: Path | None = None
    """Folder for videos and results; default: one that is deleted."""


def main(options: Options) -> None:
    """Print a table, and the figures as JSON."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        one, many = folder / "one", folder / "many"
        draw(one, 1, options)
        draw(many, -(-options.frames // options.length), options)
        base, _ = score(f"videos:{one}", folder, options)
        run("data", "convert", f"videos:{many}", "--out", str(folder / "shards"))
        print("| source | frames | peak above one video's, MiB | s |\n|---|---|---|---|")
        above = {}
        for name, source in (("videos", f"videos:{many}"), ("shards", str(folder / "shards"))):
            peak, seconds = score(source, folder, options)
            above[name] = peak - base
            print(f"| {name} | {options.frames:,} | {above[name]:.0f} | {seconds:.0f} |")
        print(json.dumps({"base_mib": round(base), "above_mib": {name: round(peak) for name, peak in above.items()}}))
        if max(above.values()) > BAR_MIB:
            sys.exit(f"expected at most {BAR_MIB} MiB")


def draw(folder: Path, videos: int, options: Options) -> None:
    """Write videos of a square that moves over noise, and their captions."""
    folder.mkdir(parents=True)
    rows = ["file,sentence,tier"]
    rng = np.random.default_rng(0)
    side = options.size // 4
    for number in trange(videos, desc="drawing", leave=False):
        with av.open(str(folder / f"{number}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=RATE)
            stream.height = stream.width = options.size
            ground = rng.integers(0, 256, (options.size, options.size, 3), np.uint8)
            for at in np.linspace(0, options.size - side, options.length).astype(int):
                picture = ground.copy()
                picture[at : at + side, at : at + side] = (255, 0, 0)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            file.mux(stream.encode(None))
        rows.append(f"{number}.mp4,move the square to corner {number % 4},{('expert', 'medium', 'random')[number % 3]}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")


def score(source: str, folder: Path, options: Options) -> tuple[float, float]:
    """Peak memory of the command, MiB, and its seconds."""
    started = time.perf_counter()
    printed = run("score", "--dataset", source, "--model", options.model, "--out", str(folder / "scores"))
    return float(printed.rsplit("peak ", 1)[1]), time.perf_counter() - started


def run(*command: str) -> str:
    """What the command prints, with its peak memory."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *command], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
