"""Rules that turn a sentence into its opposite, which describes the rollout played backwards.

"open the door" -> "close the door". The rules apply to words, not tasks. Some results are odd ("pull in the button"),
which does not matter to a text encoder of hashed words.
"""

from __future__ import annotations

import itertools
import re

_BOTH_WAYS = (
    ("assemble", "disassemble"),
    ("clockwise", "counterclockwise"),
    ("into", "out of"),
    ("lock", "unlock"),
    ("locked", "unlocked"),
    ("on", "off"),
    ("pull", "push"),
    ("toward", "away from"),
    ("turn on", "turn off"),
    ("under", "out from under"),
    ("up", "down"),
)
_ONE_WAY = {
    "all the way out": ("all the way in",),
    "back": ("forward",),
    "backward": ("forward",),
    "close": ("open",),
    "closed": ("open",),
    "drag": ("push",),
    "forward": ("back", "backward"),
    "insert": ("remove", "unplug"),
    "lift": ("lower",),
    "lower": ("lift", "raise"),
    "onto": ("off",),
    "out": ("in",),
    "press": ("release",),
    "raise": ("lower",),
    "remove": ("insert",),
    "seal": ("open",),
    "shove": ("pull",),
    "shut": ("open",),
    "undo the lock": ("lock up",),
    "unplug": ("insert", "plug in"),
    "upward": ("downward",),
}
_OPEN = {True: ("close", "shut"), False: ("closed", "shut")}  # at the start of a sentence, and later
_KEPT = ("the lock on", "lock on")  # here "lock" is a noun
_RULES = {**{a: (b,) for pair in _BOTH_WAYS for a, b in (pair, pair[::-1])}, **_ONE_WAY}
_PATTERN = re.compile(rf"\b({'|'.join(sorted([*_RULES, *_KEPT, 'open'], key=len, reverse=True))})\b")


def opposite_sentences(sentence: str) -> tuple[str, ...]:
    """All sentences with every word of direction replaced by an opposite; empty if there is no such word.

    A word with several opposites gives one sentence for each, all equally frequent.

    Args:
        sentence: sentence in lower case.

    Example:
        >>> opposite_sentences("open the door")
        ('close the door', 'shut the door')
        >>> opposite_sentences("turn the lock on the safe door clockwise")
        ('turn the lock on the safe door counterclockwise',)
        >>> opposite_sentences("reach the goal")
        ()
    """
    parts: list[tuple[str, ...]] = []
    end = 0
    for match in _PATTERN.finditer(sentence):
        word = match.group()
        options = _OPEN[match.start() == 0] if word == "open" else _RULES.get(word, (word,))
        parts += [(sentence[end : match.start()],), options]
        end = match.end()
    turned = ["".join(words) for words in itertools.product(*parts, (sentence[end:],))]
    return () if turned == [sentence] else tuple(turned)
