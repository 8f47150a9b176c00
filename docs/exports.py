"""mkdocs hook: `<!-- exports of PACKAGE -->` becomes the reference of every name that the package's folder exports.

The names are read from the folder's ``__init__.pyi`` or ``__init__.py`` (``import X as X``), so no page repeats them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"<!-- exports of ([\w.]+) -->")
EXPORT = re.compile(r"^from \S+ import (\w+) as \1$", re.MULTILINE)


def exports(package: str) -> list[str]:
    """The public names of a package, in the order in which its stub or ``__init__.py`` lists them; the errors last."""
    folder = ROOT.joinpath(*package.split("."))
    stub = folder / "__init__.pyi"
    names = EXPORT.findall((stub if stub.exists() else folder / "__init__.py").read_text())
    return sorted(names, key=lambda name: name.endswith(("Error", "Timeout")))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put one mkdocstrings directive for each exported name in the place of the mark."""
    return MARK.sub(lambda mark: "\n\n".join(f"::: {mark[1]}.{name}" for name in exports(mark[1])), markdown)
