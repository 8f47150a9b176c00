"""Find files of ``assets/``, and the examples: inside an installed package, or beside it in the repository."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def asset_path(name: str) -> Path:
    """Path of a shipped file or folder.

    Args:
        name: name below ``assets/``, such as ``"instructions.json"`` or ``"vlp-compact"``.

    Raises:
        FileNotFoundError: no such asset.
    """
    return _find(f"assets/{name}", name)


def examples_path() -> Path:
    """The folder of the example programs; raises FileNotFoundError if it is not there."""
    return _find("examples", "examples")


def _find(place: str, name: str) -> Path:
    package = Path(str(resources.files("vlp_gym")))
    candidates = [package / place]
    # Only a checkout has pyproject.toml here; site-packages may hold another package's folder of this name.
    if (package.parent / "pyproject.toml").is_file():
        candidates.append(package.parent / place)
    for path in candidates:
        if path.exists():
            return path
    looked = " and ".join(str(path) for path in candidates)
    raise FileNotFoundError(f"asset {name!r} is not part of this installation (looked at {looked}); reinstall vlp_gym")
