"""Fills a folder with the wheels that a GPU machine without network lacks, and installs from it there.

python -m tests.gpu.wheels --folder gpu-wheels --python 3.12

A GPU machine has torch, torchvision, transformers, peft and accelerate with all that they need; scipy, which Meta-World
needs and which is large, is taken from it too.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "gymnasium", "farama-notifications", "cloudpickle", "lazy_loader", "mujoco", "absl-py", "etils", "zipp", "glfw",
    "PyOpenGL", "metaworld", "imageio", "open_clip_torch", "ftfy", "wcwidth", "timm", "stable_baselines3", "pydantic",
    "pydantic-core", "annotated-types", "typing-inspection",
)  # fmt: skip
LIMIT_MB = 60


def version(package: str) -> str | None:
    """The version that is installed here, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def download(folder: Path, python: str, machine: str, without: Sequence[str] = ()) -> float:
    """Replace the folder's wheels by those of the versions that are installed here; returns their total size in MB.

    Args:
        folder: made if missing; wheels in it are removed first.
        python: version of the Python that will install them, such as "3.12".
        machine: its processor, such as "x86_64".
        without: packages to leave out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):
        wheel.unlink()
    names = [f"{name}=={known}" if (known := version(name)) else name for name in PACKAGES if name not in without]
    tags = [f"manylinux_2_{number}_{machine}" for number in range(34, 4, -1)]
    tags += [f"manylinux{year}_{machine}" for year in (2014, 2010, 1)]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    asked = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    _pip([*asked, "--python-version", python, *platforms, "--dest", str(folder), *names])
    return sum(wheel.stat().st_size for wheel in folder.glob("*.whl")) / 1e6


def install(folder: Path, into: Path) -> list[str]:
    """Install what is missing here and lies in the folder, with no network; returns what stays missing.

    Args:
        folder: as `download` left it.
        into: a folder for ``PYTHONPATH``; what is installed here already is not put there.
    """
    missing = [name for name in PACKAGES if version(name) is None]
    there = {_normal(wheel.name.split("-")[0]): wheel for wheel in sorted(folder.glob("*.whl"))}
    wheels = [str(there[_normal(name)]) for name in missing if _normal(name) in there]
    if wheels:
        asked = ["install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(into)]
        _pip([*asked, *wheels])
    return [name for name in missing if _normal(name) not in there]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def _pip(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def main() -> None:
    """Download, and print the size of each wheel and of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("gpu-wheels"), help="where the wheels go")
    here = ".".join(platform.python_version_tuple()[:2])
    parser.add_argument("--python", default=here, help="version of the GPU machine's Python")
    parser.add_argument("--machine", default=platform.machine(), help="its processor")
    parser.add_argument("--without", nargs="*", default=[], help="packages to leave out, such as metaworld (37 MB)")
    options = parser.parse_args()
    size = download(options.folder, options.python, options.machine, options.without)
    for wheel in sorted(options.folder.glob("*.whl"), key=lambda wheel: -wheel.stat().st_size):
        print(f"{wheel.stat().st_size / 1e6:6.1f} MB  {wheel.name}")
    print(f"{size:6.1f} MB  in {options.folder}, for Python {options.python} on {options.machine}")
    if size > LIMIT_MB:
        raise SystemExit(f"expected at most {LIMIT_MB} MB, got {size:.1f} MB: leave something out by --without")


if __name__ == "__main__":
    main()
