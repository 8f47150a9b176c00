"""Options of `vlp-gym policy` that every method has, and the methods; nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlp_gym.commands.usage import MAX_SEED

if TYPE_CHECKING:
    from vlp_gym.policies.learner import Learner, LearnerOptions


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Data, evaluation and output of every method.

    Attributes:
        data: one or more folders from `vlp-gym collect`, of format version 2 (with observations and actions).
        task: the task to learn; the suffix -v3 of a Meta-World task may be omitted.
        tiers: learn from the trajectories of these tiers.
        seeds: number of seeds, trained together.
        first_seed: the first of them.
        instruction: the task in one sentence; default: the data's own.
        episodes: episodes of each seed in an evaluation.
        evaluate_every: updates between evaluations.
        horizon: most environment steps of an episode, up to 500.
        workers: processes that evaluate; default: one per core.
        save_every: updates between saved states; the same command goes on from the last one.
        video: film an episode of the median seed at the end, with the environment's reward beside it (video.mp4).
        out: folder for all results; default: runs/policies/TASK-METHOD-SOURCE.
    """

    data: tuple[Path, ...]
    task: str
    tiers: tuple[str, ...] = ("expert", "medium", "random")
    seeds: int = 5
    first_seed: int = 0
    instruction: str | None = None
    episodes: int = 25
    evaluate_every: int = 5_000
    horizon: int = 250
    workers: int | None = None
    save_every: int = 5_000
    video: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data: expected at least one folder, got none")
        for name in ("seeds", "episodes", "evaluate_every", "horizon", "workers", "save_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
        if self.horizon > 500:
            raise ValueError(f"--horizon: expected at most 500, Meta-World's own limit, got {self.horizon}")
        if not 0 <= self.first_seed <= MAX_SEED - self.seeds:
            raise ValueError(f"--first-seed: expected 0 to {MAX_SEED - self.seeds}, got {self.first_seed}")


@dataclass(frozen=True, kw_only=True)
class RewardedOptions(RunOptions):
    """Rewards.

    Attributes:
        reward: scripted (the environment's), or a reward model (name, folder or id), whose value of each frame is
            interpolated to the steps between frames.
    """

    reward: str = "scripted"


@dataclass(frozen=True, kw_only=True)
class LabelledOptions(RunOptions):
    """Labels.

    Attributes:
        labels: scripted (larger sum of environment rewards), mtvlp (better tier), random, human (web page), a reward
            model (name, folder or id), a folder with labels of the same data from an earlier run, or two of them, as
            "cascade:vlp-compact|human|budget=50": the second labels what the first is unsure of.
        kind: a reward model compares segments by frames spread over each (preference), or by the sum of its values over
            the steps (reward), which is for models that judge single frames.
        pairs: number of labelled pairs.
        length: environment steps in a segment.
        label_seed: seeds the choice of pairs, and labels of chance.
    """

    labels: str = "scripted"
    kind: Literal["preference", "reward"] = "preference"
    pairs: int = 100
    length: int = 50
    label_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("pairs", 1), ("length", 2), ("label_seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")


@dataclass(frozen=True, kw_only=True)
class FilteredOptions(LabelledOptions):
    """Choice of trajectories.

    Attributes:
        filter: a reward model (name, folder or id): only trajectories whose values it sees rise are kept, as in GVL.
        threshold: least value-order correlation (VOC) of a trajectory that is kept, in [-1, 1].
    """

    filter: str | None = None
    threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"--threshold: expected -1 to 1, got {self.threshold}")


# method -> module and class, whose options are CLASSOptions; options of the run; one line of help
METHODS: dict[str, tuple[str, type[RunOptions], str]] = {
    "bc": (
        "vlp_gym.policies.bc:BC",
        FilteredOptions,
        "imitation: of all, preferred or filtered rollouts",
    ),
    "awr": ("vlp_gym.policies.awr:AWR", RewardedOptions, "imitation weighted by what a step gains (GVL)"),
    "iql": ("vlp_gym.policies.iql:IQL", RewardedOptions, "implicit Q-learning on rewards"),
    "p-iql": ("vlp_gym.policies.p_iql:PIQL", LabelledOptions, "a reward from preferences, then implicit Q-learning"),
    "ipl": ("vlp_gym.policies.ipl:IPL", LabelledOptions, "inverse preference learning, without a reward network"),
    "cpl": ("vlp_gym.policies.cpl:CPL", LabelledOptions, "contrastive preference learning, a policy alone"),
}


def method_classes(method: str) -> tuple[type[Learner[Any]], type[LearnerOptions]]:
    """The learner of a method, and its options."""
    module, _, name = METHODS[method][0].partition(":")
    found = import_module(module)
    return getattr(found, name), getattr(found, f"{name}Options")
