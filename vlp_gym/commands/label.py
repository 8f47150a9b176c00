"""`vlp-gym label`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vlp_gym.preferences.labelers import Kind
    from vlp_gym.preferences.segments import Segments

UNDECIDED = 0.01  # a pairwise model's P(first > second) so near to 0.5 is skipped
_BLOCK = 10  # pairs that a model is asked about at a time


def label(
    segments: Path,
    /,
    *,
    out: Path,
    labels: str | None = None,
    human: bool = False,
    instruction: str = "",
    kind: Literal["reward", "preference"] = "preference",
    pairs: int = 100,
    sampler: Literal["uniform", "k-center", "k-means"] = "uniform",
    length: int | None = None,
    newest: int | None = None,
    seed: int = 0,
    port: int = 0,
    browser: bool = True,
) -> None:
    """Label pairs of stored segments: you on a page in your browser, a reward model, or the environment's own rewards.

    For example: vlp-gym label runs/segments --out runs/preferences --human --instruction "press the button"

    Args:
        segments: folder that SegmentStore.save wrote; with SegmentStore(frame_size=224) for a person to look at.
        out: folder for the labelled pairs, read by PreferenceBuffer.load; those that are there are kept.
        labels: human, you; scripted, the larger sum of the environment's own rewards; else a reward model: a shipped
            name (see `vlp-gym models`), a checkpoint folder, or a hub id org/name.
        human: the same as --labels human.
        instruction: what is to be done, in one sentence; scripted needs none.
        kind: of a reward model: preference compares frames spread over each segment, reward the sums of its rewards.
        pairs: how many to label.
        sampler: uniform takes any; k-center those that differ most from each other and from those that are labelled;
            k-means those across two kinds of behaviour.
        length: steps of a segment; as many as they were recorded for by default.
        newest: only of so many newest episodes; of all by default.
        seed: of every draw; the same command again adds other pairs.
        port: of the page for a person, on this computer alone; a free one by default. From another computer:
            ssh -L PORT:127.0.0.1:PORT HOST.
        browser: open the page; its address is printed in any case.
    """
    import numpy as np

    from vlp_gym.models.registry import best_device
    from vlp_gym.preferences.buffer import PreferenceBuffer
    from vlp_gym.preferences.samplers import choose_pairs
    from vlp_gym.preferences.segments import SegmentStore
    from vlp_gym.text import normalize_instruction

    if human and labels not in (None, "human"):
        raise ValueError(f"--human: expected no other --labels beside it, got {labels}")
    source = "human" if human else labels
    if not source:
        raise ValueError("expected who labels: --human, --labels scripted, or --labels with the name of a reward model")
    for name, value in {"pairs": pairs, "length": length, "newest": newest}.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name}: expected at least 1, got {value}")
    if source != "scripted":
        instruction = normalize_instruction(instruction)
    store = SegmentStore.load(segments)
    store.length = length or store.length
    buffer = PreferenceBuffer.load(out) if (out / "preferences.json").exists() else PreferenceBuffer()
    buffer.capacity = max(buffer.capacity, len(buffer) + pairs)  # none that is there makes room
    first, second = choose_pairs(
        store, None, pairs, np.random.default_rng([seed, len(buffer)]), sampler=sampler, newest=newest, labelled=buffer
    )
    # An hour of labels must not be lost to a folder that does not take them.
    buffer.add(first, second, np.full(pairs, np.nan))
    out.mkdir(parents=True, exist_ok=True)
    given = np.full(pairs, np.nan)
    for block, labelled in ask(
        source, first, second,
        instruction=instruction, kind=kind, seed=seed, port=port, browser=browser, device=best_device(),
    ):  # fmt: skip
        given[block] = labelled
        buffer.add(first[block], second[block], labelled)
        buffer.save(out)
    print(summary(first, second, given))
    print(f"preferences: {out} ({len(buffer)} pairs)")


def ask(
    source: str,
    first: Segments,
    second: Segments,
    *,
    instruction: str,
    kind: Kind,
    seed: int,
    port: int,
    browser: bool,
    device: str,
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Labels of N pairs, in blocks as they come: which pairs, and float64 labels of these.

    Args:
        source: "human", "scripted", or the name of a reward model.
        first, second: N segments each.
        instruction: what is to be done, for a person or a model.
        kind: of a model's labels, see `ModelLabeler`.
        seed: of a scripted teacher.
        port, browser: of the page for a person, see `HumanLabeler`.
        device: of a model.
    """
    if source == "human":
        from vlp_gym.preferences.human import HumanLabeler

        with HumanLabeler(instruction, port=port, open_browser=browser) as person:
            yield slice(None), person(first, second)
        return
    if source == "scripted":
        from vlp_gym.preferences.labelers import ScriptedLabeler

        yield slice(None), ScriptedLabeler(seed=seed)(first, second)
        return
    from tqdm import tqdm

    from vlp_gym.models.protocol import PairwiseModel
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.preferences.labelers import ModelLabeler

    model = load_reward_model(source, device=device)
    # What a pairwise model cannot decide is no "equal" (RL-VLM-F drops it).
    margin = UNDECIDED if kind == "preference" and isinstance(model, PairwiseModel) else 0.0
    labeler = ModelLabeler(model, instruction, kind=kind, margin=margin)
    with tqdm(desc="labelling", unit="pair", total=len(first)) as bar:
        for start in range(0, len(first), _BLOCK):
            block = slice(start, start + _BLOCK)
            given = labeler(first[block], second[block])
            yield block, given
            bar.update(len(given))


def summary(first: Segments, second: Segments, labels: NDArray[np.float64]) -> str:
    """How many labels went where, and how many the environment's own return agrees with."""
    import numpy as np

    from vlp_gym.preferences.labelers import agreement

    right, judged = agreement(labels, first.returns - second.returns)
    lines = [
        f"{len(labels)} pairs: {(labels > 0.5).sum()} first, {(labels < 0.5).sum()} second, "
        f"{(labels == 0.5).sum()} equal, {np.isnan(labels).sum()} skipped"
    ]
    if judged:
        lines.append(f"agreement with the environment's own return: {right:.3f} of the {judged} that take a side")
    return "\n".join(lines)
