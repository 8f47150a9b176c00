"""New sentences for a task from a chat model (VLP, appendix B and table 17)."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from dataclasses import dataclass

from vlp_gym.errors import InstructionError
from vlp_gym.prompting.content import Chat, Image
from vlp_gym.prompting.parse import Unparsed
from vlp_gym.text import normalize_instruction

ROUNDS = 3  # questions about a task, until there are enough sentences
_LINE = re.compile(r"^\s*(?:[-*]|\d{1,4}[.)])\s+(.+)$", re.MULTILINE)
# The paper shows lists of another one (LAMP) here; these are ours, of the same kind.
_EXAMPLE = (
    '["Pick up the [NOUN]", "Grab the [NOUN]", "Lift the [NOUN]", "Take the [NOUN]", "Get hold of the [NOUN] and raise '
    'it", "Raise the [NOUN]", "Fetch the [NOUN]", "Collect the [NOUN]"]'
)
_SYNONYMS = '["bag", "sack", "pouch", "tote", "satchel"]'


@dataclass(frozen=True)
class Written:
    """What a chat model wrote for one task.

    Attributes:
        sentences: those that can be used, in the order of writing.
        dropped: the others, each with the reason.
    """

    sentences: list[str]
    dropped: list[tuple[str, str]]


def write_sentences(
    chat: Chat,
    task: str,
    instruction: str,
    *,
    count: int = 40,
    taken: Collection[str] = (),
    most_words: int = 20,
    picture: Image | None = None,
) -> Written:
    """Ask for other sentences of the same meaning, again where too few can be used, at most three times.

    The prompt is the paper's, with examples of our own in the place of LAMP's lists. A sentence is dropped if it is
    empty, has more than `most_words` words, is there already, or is one of another task's. Case and a full stop at
    the end make no difference.

    Args:
        chat: the chat model.
        task: its name, such as "button-press-v3".
        instruction: a sentence for it.
        count: how many are wanted.
        taken: sentences of other tasks.
        most_words: per sentence.
        picture: how the task looks; None: it is not shown.

    Raises:
        QueryError: see `Chat.ask`.
    """
    sentences: list[str] = []
    dropped: list[tuple[str, str]] = []
    own, foreign = {_key(instruction)}, {_key(said) for said in taken}
    for _ in range(ROUNDS):
        wanted = count - len(sentences)
        if wanted <= 0:
            break
        prompt = _prompt(task, instruction, wanted, sentences)
        for said in chat.ask([prompt] if picture is None else [prompt, picture], parse_sentences):
            fault = _fault(said, most_words, own, foreign) if len(sentences) < count else "more than were asked for"
            if fault:
                dropped.append((said, fault))
            else:
                sentences.append(normalize_instruction(said))
                own.add(_key(said))
    return Written(sentences, dropped)


def parse_sentences(answer: str) -> list[str]:
    """Read a Python or JSON list of strings, or a list with a number or dash before each line.

    >>> parse_sentences("Sure: ['push it', \\"push the robot's cup\\"]"), parse_sentences("1. push it\\n2) shove it")
    (['push it', "push the robot's cup"], ['push it', 'shove it'])

    Raises:
        Unparsed: there is no such list.
    """
    start, end = answer.find("["), answer.rfind("]")
    found: object = None
    if 0 <= start < end:
        text = answer[start : end + 1]
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            break
    if found is None:
        found = [line.strip().strip("\"'") for line in _LINE.findall(answer)]
    if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
        raise Unparsed("expected a Python list of sentences")
    return found


def _fault(said: str, most_words: int, own: Collection[str], foreign: Collection[str]) -> str:
    try:
        clean = normalize_instruction(said)
    except InstructionError as error:
        return str(error)
    if (words := len(clean.split())) > most_words:
        return f"{words} words, at most {most_words} are taken"
    if _key(said) in own:
        return "it is there already"
    return "it is a sentence of another task" if _key(said) in foreign else ""


def _key(sentence: str) -> str:
    """Equal for sentences that say the same in the same words."""
    return " ".join(sentence.lower().split()).strip(" .!")


def _prompt(task: str, instruction: str, count: int, before: Collection[str]) -> str:
    known = f" These are known already, so write others: {json.dumps(list(before))}." if before else ""
    return (
        "Suppose you are an advanced visual assistant. Your task is to generate more instructions with the same "
        "meaning but different expressions based on the task instruction I provide, generating "
        f"{count} new instructions for each task. The instructions you generate need to be as simple and clear as "
        "possible. Below is an example of an answer for picking up an object. The answer should be formatted as a "
        "Python list.\n"
        "- Begin of instruction example -\n"
        f'Task instruction: "Pick up the [NOUN]"\nAnswer: {_EXAMPLE}\n'
        "- End of instruction example -\n"
        "Moreover, you need to be mindful to replace the nouns in the instructions with synonyms, such as replacing "
        '"bag" with the following words in the Python list:\n'
        f"- Begin of synonym example -\n{_SYNONYMS}\n- End of synonym example -\n"
        "The tasks are from Meta-World benchmark and the image of the task is rendered in a 3D simulation environment. "
        "In the environment, there is a wooden table and a robotic arm. The robotic arm is placed above the table. The "
        f"robotic arm needs to manipulate the object(s) on the table to complete tasks.{known}\n"
        f'My instruction for {task.removesuffix("-v3").replace("-", " ")} task: "{instruction}"\nAnswer:'
    )
