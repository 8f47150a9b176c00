"""`vlp-gym examples`: complete programs to begin with."""

from __future__ import annotations

import ast
from pathlib import Path


def examples(*, out: Path | None = None) -> None:
    """List the example programs, each one complete file, or copy them to a folder.

    For example: vlp-gym examples --out .

    Args:
        out: folder to copy them to; files that are there already and differ are an error. Default: list them only.
    """
    from vlp_gym.assets_path import examples_path
    from vlp_gym.storage import write_atomic

    programs = {path.name: path.read_bytes() for path in sorted(examples_path().glob("*.*"))}
    width = max(map(len, programs))
    for name, program in programs.items():
        print(f"{name:{width}}  {_first_line(name, program.decode())}")
    if out is None:
        print("copy them: vlp-gym examples --out .")
        return
    differ = [out / name for name, program in programs.items() if _has_other(out / name, program)]
    if differ:
        raise ValueError(f"--out: expected no file of this name or the same one, got another {differ[0]}")
    out.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        write_atomic(out / name, program)
    print(f"copied to {out}; each says at its top how it is run, and --help what it takes")


def _first_line(name: str, program: str) -> str:
    said = (ast.get_docstring(ast.parse(program)) or "") if name.endswith(".py") else program.removeprefix("# ")
    return said.splitlines()[0]


def _has_other(path: Path, content: bytes) -> bool:
    return path.exists() and (not path.is_file() or path.read_bytes() != content)
