"""`vlp-gym label`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vlp_gym.commands.device import best_device


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

    from vlp_gym.preferences.buffer import PreferenceBuffer
    from vlp_gym.preferences.offline import ask, summary
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
