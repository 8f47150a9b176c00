"""Instructions for the 50 Meta-World tasks, divided into training and held-out phrasings.

Each task has 40 sentences, 8 verb structures x 5 nouns. Tasks with the same motion share verbs, tasks with the same
object share nouns, so the training tasks contain every word of VLP's five test tasks. Only `variants` name colours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlp_gym.assets_path import asset_path
from vlp_gym.data.trajectory import VARIANT_KINDS
from vlp_gym.errors import DatasetError, InstructionError, did_you_mean
from vlp_gym.text import normalize_instruction

NUM_TASKS = 50
NUM_SENTENCES = 40
NUM_TRAINING = 32  # the first 32 are for training, the last 8 are held out
NUM_VARIANTS = 4
FORMAT_VERSION = 1

VARIANT_TASKS = ("button-press-v3", "door-close-v3", "drawer-close-v3", "faucet-close-v3", "window-open-v3")
"""The tasks with `variants`: VLP's five test tasks."""

_OPPOSITES = (
    ("assembly-v3", "disassemble-v3"),
    ("coffee-pull-v3", "coffee-push-v3"),
    ("door-close-v3", "door-open-v3"),
    ("door-lock-v3", "door-unlock-v3"),
    ("drawer-close-v3", "drawer-open-v3"),
    ("faucet-close-v3", "faucet-open-v3"),
    ("handle-press-v3", "handle-pull-v3"),
    ("handle-press-side-v3", "handle-pull-side-v3"),
    ("peg-insert-side-v3", "peg-unplug-side-v3"),
    ("plate-slide-v3", "plate-slide-back-v3"),
    ("plate-slide-side-v3", "plate-slide-back-side-v3"),
    ("push-v3", "push-back-v3"),
    ("stick-pull-v3", "stick-push-v3"),
    ("window-close-v3", "window-open-v3"),
)
# Pressing a button has no opposite; its sibling is the same press from another direction.
_VARIATIONS = (("button-press-v3", "button-press-topdown-v3"),)

SIBLINGS: dict[str, str] = {a: b for pair in _OPPOSITES + _VARIATIONS for a, b in (pair, pair[::-1])}
"""Task -> its opposite with the same object, or a variation of it, see `NOT_OPPOSITE`."""

NOT_OPPOSITE: frozenset[str] = frozenset(task for pair in _VARIATIONS for task in pair)
"""Tasks of `SIBLINGS` whose sibling is a variation instead of an opposite."""


@dataclass(frozen=True)
class InstructionBook:
    """The contents of ``instructions.json``.

    Attributes:
        sentences: task -> its 40 sentences, the canonical one first.
        variants: task of `VARIANT_TASKS` -> kind (see `VARIANT_KINDS`) -> 4 sentences.
    """

    sentences: dict[str, tuple[str, ...]]
    variants: dict[str, dict[str, tuple[str, ...]]]


def load_book(path: Path) -> InstructionBook:
    """Read and check a book of instructions.

    Args:
        path: a JSON file with the layout of ``assets/instructions.json``.

    Raises:
        DatasetError: if it is not JSON, does not have 50 tasks x 40 distinct sentences, or repeats a sentence.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # covers bad UTF-8 and bad JSON
        raise DatasetError(f"{path}: not a JSON file: {error}") from error
    layout = {"format_version": int, "instructions": dict, "variants": dict}
    if not isinstance(content, dict) or any(not isinstance(content.get(key), kind) for key, kind in layout.items()):
        raise DatasetError(f"{path}: expected an object with {', '.join(layout)}")
    if content["format_version"] != FORMAT_VERSION:
        raise DatasetError(f"{path}: format version {content['format_version']}, expected {FORMAT_VERSION}")

    instructions = content["instructions"]
    absent = {*VARIANT_TASKS, *SIBLINGS} - instructions.keys()
    if len(instructions) != NUM_TASKS or absent:
        which = f", without {', '.join(sorted(absent))}" if absent else ""
        raise DatasetError(f"{path}: expected {NUM_TASKS} tasks, got {len(instructions)}{which}")

    seen: dict[str, str] = {}
    book = InstructionBook(sentences={}, variants={})
    for task in sorted(instructions):
        book.sentences[task] = _checked(instructions[task], NUM_SENTENCES, f"{path}: {task}", seen)
    for task in VARIANT_TASKS:
        kinds = content["variants"].get(task)
        if not isinstance(kinds, dict) or set(kinds) != set(VARIANT_KINDS):
            raise DatasetError(f"{path}: variants of {task}: expected an object with {', '.join(VARIANT_KINDS)}")
        book.variants[task] = {
            kind: _checked(kinds[kind], NUM_VARIANTS, f"{path}: variants of {task}, {kind}", seen)
            for kind in VARIANT_KINDS
        }
    return book


def instructions_for(task: str) -> list[str]:
    """The 40 sentences of a task; ``[0]`` is the canonical one.

    >>> instructions_for("button-press-v3")[0]
    'press the button'

    Args:
        task: a Meta-World task name with ``-v3``.

    Raises:
        ValueError: for an unknown task; the message names similar ones.
    """
    sentences = _book().sentences
    if task not in sentences:
        hint = did_you_mean(str(task), sentences) or "; train_tasks('all') lists the tasks"
        raise ValueError(f"unknown Meta-World task {task!r}{hint}")
    return list(sentences[task])


def training_phrasings(task: str) -> list[str]:
    """The 32 training sentences of a task, the canonical one first."""
    return instructions_for(task)[:NUM_TRAINING]


def held_out_phrasings(task: str) -> list[str]:
    """The 8 held-out sentences of a task: unseen combinations of its verbs and nouns."""
    return instructions_for(task)[NUM_TRAINING:]


def variants(task: str) -> dict[str, list[str]]:
    """Four sentences of each kind for the language-shift test of VLP's section 5.4.

    Args:
        task: one of `VARIANT_TASKS`.

    Returns:
        ``phrase`` (short), ``description`` (long), ``right_colour`` and ``wrong_colour`` of the object -> sentences.

    Raises:
        ValueError: for an unknown task or one without variants.
    """
    instructions_for(task)  # raises for an unknown task
    book = _book().variants
    if task not in book:
        raise ValueError(f"{task} has no variants; the tasks that have: {', '.join(VARIANT_TASKS)}")
    return {kind: list(sentences) for kind, sentences in book[task].items()}


def all_tasks() -> tuple[str, ...]:
    """The 50 task names, sorted; works without Meta-World."""
    return tuple(_book().sentences)


@cache
def _book() -> InstructionBook:
    return load_book(asset_path("instructions.json"))


def _checked(sentences: object, count: int, where: str, seen: dict[str, str]) -> tuple[str, ...]:
    """`sentences` as a tuple after checking their number, form and uniqueness; adds each to `seen` with its place."""
    if not isinstance(sentences, list) or len(sentences) != count:
        got = len(sentences) if isinstance(sentences, list) else type(sentences).__name__
        raise DatasetError(f"{where}: expected a list of {count} sentences, got {got}")
    for sentence in sentences:
        try:
            clean = normalize_instruction(sentence)
        except (TypeError, InstructionError) as error:
            raise DatasetError(f"{where}: {error}") from error
        if clean != sentence:
            raise DatasetError(f"{where}: {sentence!r} is not normalised; write {clean!r}")
        if sentence in seen:
            raise DatasetError(f"{where}: {sentence!r} also stands at {seen[sentence]}")
        seen[sentence] = where
    return tuple(sentences)
