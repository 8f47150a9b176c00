"""`vlp-gym instructions`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlp_gym.errors import check_packages

if TYPE_CHECKING:
    from vlp_gym.data.instruction_file import InstructionFile
    from vlp_gym.prompting.content import Image


def instructions(
    *,
    model: str,
    out: Path,
    tasks: tuple[str, ...] = (),
    data: Path | None = None,
    count: int = 40,
    most_words: int = 20,
) -> None:
    """Have a chat model write sentences for tasks, as VLP does; repeat the command to go on.

    The file is for --instructions of `vlp-gym train` and `vlp-gym eval`. Sentences that are empty, too long, there
    already, or of another task are dropped, and others asked for, at most three times a task.

    For example: vlp-gym instructions --model gpt-4o --tasks button-press door-close --out sentences.json

    Args:
        model: a chat model, MODEL at an OpenAI-compatible endpoint or local/ORG/NAME, with options such as
            "gpt-4o?base_url=http://127.0.0.1:8000/v1".
        out: the JSON file; tasks that it has already are kept.
        tasks: tasks to write for; default: all 50 of Meta-World, or all of the data set.
        data: data set whose tasks and sentences are taken, and whose first frame of each task is shown; default:
            Meta-World's tasks, without a picture.
        count: new sentences for each task; the one there is comes first.
        most_words: in a sentence.
    """
    check_packages(dict.fromkeys(("openai", "PIL"), "prompt"), "asking a chat model needs")
    for option, least in (("count", count), ("most-words", most_words)):
        if least < 1:
            raise ValueError(f"--{option}: expected at least 1, got {least}")
    if out.suffix != ".json":
        raise ValueError(f"--out: expected a file that ends in .json, got {out}")
    from tqdm import tqdm

    from vlp_gym.data.instruction_file import InstructionFile, TaskInstructions
    from vlp_gym.prompting import open_chat
    from vlp_gym.prompting.sentences import write_sentences
    from vlp_gym.storage import write_atomic

    chat, _ = open_chat(model)
    known = _of_metaworld() if data is None else _of_data(data)
    asked = {task: known[task] for task in _chosen(known, tasks)}
    book = _begun(out, chat.name)
    done = dict(book.tasks) if book else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    said, short = [], []
    for task in tqdm([task for task in asked if task not in done], desc="writing sentences", unit="task"):
        others = [each for other, own in known.items() if other != task for each in own.sentences]
        others += [each for other, own in done.items() if other != task for each in own.sentences]
        first = asked[task].sentences[0]
        found = write_sentences(
            chat, task, first, count=count, taken=others, most_words=most_words, picture=asked[task].picture
        )
        done[task] = TaskInstructions(sentences=[first, *found.sentences])
        write_atomic(out, InstructionFile(source=chat.name, tasks=done).model_dump_json(indent=1).encode())
        said += [f"{task}: dropped {sentence!r}: {why}" for sentence, why in found.dropped]
        short += [f"{task} has {len(found.sentences)}"] if len(found.sentences) < count else []
    chat.close()
    for line in said:
        print(line)
    if short:
        print(f"fewer new sentences than {count}: {', '.join(short)}")
    print(f"written: {out}, {sum(len(own.sentences) for own in done.values())} sentences for {len(done)} tasks")


class _Known(NamedTuple):
    """What there is of a task: its sentences, the canonical one first, and a picture."""

    sentences: Sequence[str]
    picture: Image | None


def _of_metaworld() -> dict[str, _Known]:
    from vlp_gym.metaworld.instructions import all_tasks, instructions_for

    return {task: _Known(instructions_for(task), None) for task in all_tasks()}


def _of_data(data: Path) -> dict[str, _Known]:
    """The tasks of a data set, by the first rollout of each; no other is read."""
    from vlp_gym.data.sources import open_source
    from vlp_gym.metaworld.sentences import with_sentences

    source = open_source(data)
    found: dict[str, _Known] = {}
    for task in source.tasks():
        first = with_sentences(next(iter(source.stream([task]))))
        found[task] = _Known([first.canonical, *first.sentences[1:]], first.frames[0])
    return found


def _chosen(known: dict[str, _Known], tasks: Sequence[str]) -> list[str]:
    from vlp_gym.errors import did_you_mean
    from vlp_gym.metaworld.splits import full_name

    names = [full_name(task) if full_name(task) in known else task for task in tasks]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--tasks: unknown task {unknown[0]!r}{did_you_mean(full_name(unknown[0]), known)}")
    return list(dict.fromkeys(names)) or list(known)


def _begun(out: Path, source: str) -> InstructionFile | None:
    """What an earlier call wrote.

    Raises:
        ValueError: another model wrote it.
    """
    from vlp_gym.data.instruction_file import read_instructions

    if not out.exists():
        return None
    book = read_instructions(out)
    if book.source != source:
        raise ValueError(f"--out: {out} was written by {book.source}, not {source}; choose another file")
    return book
