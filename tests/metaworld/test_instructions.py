"""The book of instructions: what the text encoder relies on, and what a damaged book says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlp_gym.assets_path import asset_path
from vlp_gym.errors import DatasetError
from vlp_gym.metaworld.instructions import (
    NOT_OPPOSITE,
    SIBLINGS,
    VARIANT_KINDS,
    VARIANT_TASKS,
    held_out_phrasings,
    instructions_for,
    load_book,
    training_phrasings,
    variants,
)
from vlp_gym.metaworld.splits import ML45_TEST_TASKS, TEST_TASKS, judged_tasks, known_task, train_tasks

ALL = train_tasks("all")
COLOURS = {"red", "green", "blue", "yellow", "orange", "purple", "white", "black", "brown", "grey", "gray", "pink"}


def words(sentences: list[str]) -> set[str]:
    return {word for sentence in sentences for word in re.findall(r"[a-z]+", sentence)}


def whole(message: str) -> str:
    return f"^{re.escape(message)}$"


def test_the_tasks_are_those_of_metaworld() -> None:
    env_dict = pytest.importorskip("metaworld.env_dict")
    assert set(ALL) == set(env_dict.ALL_V3_ENVIRONMENTS)


def test_40_distinct_plain_sentences_a_task_and_none_shared() -> None:
    everything = [sentence for task in ALL for sentence in instructions_for(task)]
    assert len(everything) == len(set(everything)) == 50 * 40
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)+", sentence) for sentence in everything)
    assert not words(everything) & COLOURS


def test_canonical_sentences() -> None:
    assert [instructions_for(task)[0] for task in TEST_TASKS] == [
        "press the button",
        "close the door",
        "close the drawer",
        "close the faucet",
        "open the window",
    ]
    assert instructions_for("button-press-topdown-v3")[0] == "press the button from the top"
    assert instructions_for("door-open-v3")[0] == "open the door"


@pytest.mark.parametrize("task", TEST_TASKS)
def test_every_word_of_an_unseen_task_is_learned_on_the_others(task: str) -> None:
    trained = words([sentence for other in train_tasks("vlp") for sentence in training_phrasings(other)])
    assert words(instructions_for(task)) - trained == set()
    assert words(variants(task)["phrase"]) - trained == set()


@pytest.mark.parametrize("task", ALL)
def test_training_and_held_out_phrasings_share_words_but_no_sentence(task: str) -> None:
    training, held_out = training_phrasings(task), held_out_phrasings(task)
    assert (len(training), len(held_out)) == (32, 8)
    assert training + held_out == instructions_for(task)
    assert words(held_out) <= words(training)
    starts = {" ".join(sentence.split()[:2]) for sentence in held_out}
    assert len(starts) >= 3  # the held-out sentences mix verbs


def test_the_button_family_can_be_told_apart() -> None:
    for task in ALL:
        if "button-press" not in task:
            continue
        for sentence in instructions_for(task):
            found = words([sentence])
            assert ("wall" in found) == ("wall" in task), sentence
            assert bool(found & {"top", "above", "down"}) == ("topdown" in task), sentence


def test_a_sentence_never_names_the_opposite_verb() -> None:
    opposite = {"open": {"open"}, "close": {"close", "closed", "shut", "seal"}}
    for task in ALL:
        for verb, other in (("open", "close"), ("close", "open")):
            if f"-{verb}-" in task:
                assert not words(instructions_for(task)) & opposite[other], task


def test_variants() -> None:
    book = {sentence for task in ALL for sentence in instructions_for(task)}
    for task in TEST_TASKS:
        found = variants(task)
        assert tuple(found) == VARIANT_KINDS
        for kind, sentences in found.items():
            assert len(set(sentences)) == 4
            assert not set(sentences) & book
            if kind.endswith("colour"):
                assert all(words([sentence]) & COLOURS for sentence in sentences)
            else:
                assert not words(sentences) & COLOURS
        assert not words(found["right_colour"]) & words(found["wrong_colour"]) & COLOURS
        assert max(len(s.split()) for s in found["phrase"]) < min(len(s.split()) for s in found["description"])


def test_splits() -> None:
    assert len(ALL) == 50
    assert set(train_tasks("vlp")) == set(ALL) - set(TEST_TASKS)
    assert set(train_tasks("ml45")) == set(ALL) - set(ML45_TEST_TASKS)
    assert len(train_tasks("vlp")) == len(train_tasks("ml45")) == 45
    for split in ("vlp", "ml45"):
        assert {*train_tasks(split), *judged_tasks(split)} == set(ALL)
        assert len(judged_tasks(split)) == 5
    assert judged_tasks("vlp") == TEST_TASKS == VARIANT_TASKS
    assert judged_tasks("ml45") == ML45_TEST_TASKS
    assert judged_tasks("all") == ALL
    trained, judged = train_tasks("rewind"), judged_tasks("rewind")
    assert (len(set(trained)), len(set(judged))) == (20, 17)
    assert not set(trained) & set(judged)
    assert {*trained, *judged} < set(ALL)
    assert sorted(trained) == list(trained)
    assert sorted(judged) == list(judged)
    for function in (train_tasks, judged_tasks):
        with pytest.raises(ValueError, match=whole("unknown split 'ML45'; expected one of vlp, ml45, rewind, all")):
            function("ML45")  # type: ignore[arg-type]


def test_names_with_and_without_their_version() -> None:
    assert known_task("soccer") == known_task("soccer-v3") == "soccer-v3"
    with pytest.raises(ValueError, match=r"^unknown Meta-World task 'soccr-v3'; did you mean soccer-v3"):
        known_task("soccr")


def test_siblings_go_both_ways() -> None:
    assert set(SIBLINGS) <= set(ALL)
    assert set(TEST_TASKS) <= set(SIBLINGS)
    assert all(SIBLINGS[other] == task != other for task, other in SIBLINGS.items())
    assert SIBLINGS["door-close-v3"] == "door-open-v3"
    assert SIBLINGS["window-open-v3"] == "window-close-v3"
    assert {"button-press-v3", "button-press-topdown-v3"} == NOT_OPPOSITE


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("window-opens-v3", "did you mean window-open-v3 or window-close-v3"),
        ("faucet-close", "did you mean faucet-close-v3"),
        ("", "train_tasks('all') lists the tasks"),
    ],
)
def test_an_unknown_task_names_its_neighbours(task: str, hint: str) -> None:
    pattern = f"^{re.escape(f'unknown Meta-World task {task!r}; {hint}')}" + (r"(, [a-z-]+v3)*\?$" if task else "$")
    for function in (instructions_for, training_phrasings, held_out_phrasings, variants):
        with pytest.raises(ValueError, match=pattern):
            function(task)  # type: ignore[operator]


def test_a_task_without_variants_says_which_have_some() -> None:
    message = f"door-open-v3 has no variants; the tasks that have: {', '.join(TEST_TASKS)}"
    with pytest.raises(ValueError, match=whole(message)):
        variants("door-open-v3")


def test_the_callers_list_is_his_own() -> None:
    instructions_for("door-open-v3").clear()
    variants("door-close-v3")["phrase"].clear()
    assert len(instructions_for("door-open-v3")) == 40
    assert len(variants("door-close-v3")["phrase"]) == 4


def _duplicate(content: dict[str, Any]) -> None:
    content["instructions"]["reach-v3"][7] = "open the door"


DAMAGE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c.pop("variants"), "expected an object with format_version, instructions, variants"),
    (lambda c: c.update(format_version=2), "format version 2, expected 1"),
    (lambda c: c["instructions"].pop("soccer-v3"), "expected 50 tasks, got 49"),
    (
        lambda c: c["instructions"].update({"door-v3": c["instructions"].pop("door-close-v3")}),
        "expected 50 tasks, got 50, without door-close-v3",
    ),
    (lambda c: c["instructions"]["reach-v3"].pop(), "reach-v3: expected a list of 40 sentences, got 39"),
    (lambda c: c["instructions"].update({"reach-v3": "go"}), "reach-v3: expected a list of 40 sentences, got str"),
    (_duplicate, "reach-v3: 'open the door' also stands at {path}: door-open-v3"),
    (
        lambda c: c["instructions"]["reach-v3"].__setitem__(7, " go"),
        "reach-v3: ' go' is not normalised; write 'go'",
    ),
    (
        lambda c: c["instructions"]["reach-v3"].__setitem__(7, 7),
        "reach-v3: expected the instruction as a str, got int",
    ),
    (
        lambda c: c["variants"].pop("door-close-v3"),
        "variants of door-close-v3: expected an object with phrase, description, right_colour, wrong_colour",
    ),
    (
        lambda c: c["variants"]["door-close-v3"]["phrase"].append("door"),
        "variants of door-close-v3, phrase: expected a list of 4 sentences, got 5",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_book_says_what_is_wrong(
    tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    content = json.loads(asset_path("instructions.json").read_text(encoding="utf-8"))
    damage(content)
    path = tmp_path / "instructions.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match=whole(f"{path}: " + message.format(path=path))):
        load_book(path)


@pytest.mark.parametrize("content", [b"", b'{"instructions": ', b"\xff\xfe", b"\x80\x04N."])
def test_a_truncated_or_foreign_book_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "instructions.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"^{re.escape(str(path))}: not a JSON file: "):
        load_book(path)


def test_a_missing_asset_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"^asset 'no-such' is not part of this installation \(looked at .*\)"):
        asset_path("no-such")


def test_assets_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "vlp_gym"
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "a").touch()
    package.mkdir()
    monkeypatch.setattr("vlp_gym.assets_path.resources.files", lambda name: package)
    with pytest.raises(FileNotFoundError, match=r"^asset 'a' is not part"):  # somebody else's assets folder
        asset_path("a")
    (tmp_path / "pyproject.toml").touch()
    assert asset_path("a") == tmp_path / "assets" / "a"
    (package / "assets").mkdir()
    (package / "assets" / "a").touch()
    assert asset_path("a") == package / "assets" / "a"
