"""`vlp-gym label`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vlp_gym.preferences.labelers import Kind
    from vlp_gym.preferences.segments import Segments

UNDECIDED = 0.01  # a pairwise model's label this close to 0.5 is skipped
CASCADE = "cascade:"
_BLOCK = 10  # pairs that a model labels between two saves


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
    """Label pairs of stored segments by hand on a web page, by a reward model, or by the environment's rewards.

    For example: vlp-gym label runs/segments --out runs/preferences --human --instruction "press the button"

    Args:
        segments: folder from SegmentStore.save; use SegmentStore(frame_size=224) for labels by hand.
        out: folder for the labelled pairs, for PreferenceBuffer.load; pairs already there are kept.
        labels: human (web page), scripted (larger sum of environment rewards), a reward model (name, folder or id), or
            two of them, as "cascade:vlp-compact|human|budget=50": the second labels what the first is unsure of.
        human: same as --labels human.
        instruction: the task in one sentence; not needed for scripted labels.
        kind: a reward model compares segments by frames spread over each (preference) or by summed rewards (reward).
        pairs: number of pairs to label.
        sampler: random pairs (uniform), most different ones (k-center), or pairs across two clusters (k-means).
        length: steps per segment; default: the length they were recorded for.
        newest: use only this many of the newest episodes; default: all.
        seed: seeds all random draws; repeating the command adds new pairs.
        port: local port of the web page; 0: any free one. Remote access: ssh -L PORT:127.0.0.1:PORT HOST.
        browser: open the web page; its address is always printed.
    """
    import numpy as np
    from tqdm import tqdm

    from vlp_gym.errors import check_packages
    from vlp_gym.models.gate import read_cascade
    from vlp_gym.preferences.buffer import PreferenceBuffer
    from vlp_gym.preferences.cascade import gate_of
    from vlp_gym.preferences.samplers import choose_pairs
    from vlp_gym.preferences.segment_store import SegmentStore
    from vlp_gym.storage import locked
    from vlp_gym.text import normalize_instruction

    if human and labels not in (None, "human"):
        raise ValueError(f"--human: expected no other --labels beside it, got {labels}")
    source = "human" if human else labels
    if not source:
        raise ValueError("expected who labels: --human, --labels scripted, or --labels with the name of a reward model")
    for name, value in {"pairs": pairs, "length": length, "newest": newest}.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name}: expected at least 1, got {value}")
    who = set(source.removeprefix(CASCADE).split("|"))
    if "human" in who:
        check_packages({"PIL": "viz"}, "labels by a person need")
        if not 0 <= port <= 65535:
            raise ValueError(f"--port: expected 0 to 65535, got {port}")
    if source.startswith(CASCADE):
        read_cascade(source.removeprefix(CASCADE))
    if source != "scripted":
        instruction = normalize_instruction(instruction)
    store = SegmentStore.load(segments)
    store.length = length or store.length
    given = np.full(pairs, np.nan)
    block = pairs if who & {"human", "scripted"} else _BLOCK
    with (
        open_labeler(source, instruction, kind=kind, seed=seed, port=port, browser=browser) as labeler,
        locked(out, ".label.lock"),  # a second command would write over this one's labels
        tqdm(desc="labelling", unit="pair", total=pairs, disable=block == pairs) as bar,
    ):
        buffer = PreferenceBuffer.load(out) if (out / "preferences.json").exists() else PreferenceBuffer()
        buffer.capacity = max(buffer.capacity, len(buffer) + pairs)  # new pairs must not replace old ones
        rng = np.random.default_rng([seed, len(buffer)])
        first, second = choose_pairs(store, None, pairs, rng, sampler=sampler, newest=newest, labelled=buffer)
        # Pairs of another length, or a folder that cannot be made, must fail before an hour of labelling.
        buffer.add(first, second, np.full(pairs, np.nan))
        for start in range(0, pairs, block):
            some = slice(start, start + block)
            given[some] = labeler(first[some], second[some])
            buffer.add(first[some], second[some], given[some])
            buffer.save(out)
            bar.update(len(given[some]))
    print(summary(first, second, given))
    if (gate := gate_of(labeler)) is not None:
        print(gate)
    print(f"preferences: {out} ({len(buffer)} pairs)")
    if getattr(labeler, "interrupted", False):
        raise KeyboardInterrupt  # a person's labels are kept first


@contextmanager
def open_labeler(
    source: str,
    instruction: str,
    *,
    kind: Kind,
    seed: int,
    port: int = 0,
    browser: bool = True,
    soft: bool = False,
) -> Iterator[Callable[[Segments, Segments], NDArray[np.float64]]]:
    """The labeler for a source of labels: "human", "scripted", the name of a reward model, or a cascade of two."""
    from vlp_gym.preferences.labelers import ModelLabeler, ScriptedLabeler

    if source.startswith(CASCADE):
        from vlp_gym.models.gate import read_cascade
        from vlp_gym.preferences.cascade import CascadeLabeler

        small, large, gate = read_cascade(source.removeprefix(CASCADE))
        options: dict[str, Any] = {"kind": kind, "seed": seed, "port": port, "browser": browser}
        with (
            open_labeler(small, instruction, soft=True, **options) as below,
            open_labeler(large, instruction, **options) as above,
        ):
            yield CascadeLabeler(below, above, gate)
    elif source == "human":
        from vlp_gym.preferences.human import HumanLabeler

        with HumanLabeler(instruction, port=port, open_browser=browser) as person:
            yield person
    elif source == "scripted":
        yield ScriptedLabeler(seed=seed)
    else:
        from vlp_gym.models.protocol import PairwiseModel
        from vlp_gym.models.registry import best_device, load_reward_model

        model = load_reward_model(source, device=best_device())
        # A pairwise model's undecided pairs are not "equal" (RL-VLM-F drops them).
        margin = UNDECIDED if kind == "preference" and isinstance(model, PairwiseModel) else 0.0
        yield ModelLabeler(model, instruction, kind=kind, margin=margin, soft=soft)


def summary(first: Segments, second: Segments, labels: NDArray[np.float64]) -> str:
    """Counts of the labels, and their agreement with the environment's return."""
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
