"""Labels of stored segments by whoever is named: what `vlp-gym label` does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vlp_gym.models.registry import load_reward_model
from vlp_gym.preferences.labelers import Kind, ModelLabeler, ScriptedLabeler, agreement
from vlp_gym.preferences.segments import Segments

UNDECIDED = 0.01  # a pairwise model's P(first > second) so near to 0.5 is skipped
_BLOCK = 10  # pairs that a model is asked about at a time


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
        yield slice(None), ScriptedLabeler(seed=seed)(first, second)
        return
    model = load_reward_model(source, device=device)
    # What a pairwise model cannot decide is no "equal" (RL-VLM-F drops it).
    margin = UNDECIDED if kind == "preference" and hasattr(model, "prefer") else 0.0
    labeler = ModelLabeler(model, instruction, kind=kind, margin=margin)
    with tqdm(desc="labelling", unit="pair", total=len(first)) as bar:
        for start in range(0, len(first), _BLOCK):
            block = slice(start, start + _BLOCK)
            given = labeler(first[block], second[block])
            yield block, given
            bar.update(len(given))


def summary(first: Segments, second: Segments, labels: NDArray[np.float64]) -> str:
    """How many labels went where, and how many the environment's own return agrees with."""
    right, judged = agreement(labels, first.returns - second.returns)
    lines = [
        f"{len(labels)} pairs: {(labels > 0.5).sum()} first, {(labels < 0.5).sum()} second, "
        f"{(labels == 0.5).sum()} equal, {np.isnan(labels).sum()} skipped"
    ]
    if judged:
        lines.append(f"agreement with the environment's own return: {right:.3f} of the {judged} that take a side")
    return "\n".join(lines)
