"""Tests of other projects that cannot hold with our wrapper, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass

LATE = ("async", "vector-async")
SB3 = ("stable_baselines3", "sb3_contrib")


@dataclass(frozen=True)
class Adaptation:
    """Tests that may fail with the wrapper, and why."""

    suites: tuple[str, ...]
    tests: tuple[str, ...]
    """Patterns of `fnmatch` for the tests' ids; ``[`` is matched by ``?``."""
    reason: str
    modes: tuple[str, ...] = ()
    """Empty: all."""


EXACT = ("test_gae",)
"""Parts of ids of tests that compare to 1e-8: there the paint is the environment's reward, with no bits of its own."""

ADAPTATIONS: tuple[Adaptation, ...] = (
    Adaptation(
        ("gymnasium",),
        ("*::test_vector_env_equal*", "*::test_vector_wrapper_equivalence*"),
        "compares infos by ==; env_reward is None at a reset, Gymnasium's vector makes it NaN, and NaN equals nothing",
        ("sync", "inner"),
    ),
    Adaptation(
        ("gymnasium",),
        ("*::test_vector_env_equal*", "*::test_vector_wrapper_equivalence*"),
        "compares the rewards of two runs step by step; those of late rewards are placeholders, which depend on time",
        ("async",),
    ),
    Adaptation(
        ("gymnasium",),
        ("*::test_vector_wrapper_equivalence?CartPole-v1-ClipReward-*",),
        "compares infos of a reward clipped outside ours with those of one clipped inside: the scores differ",
        ("vector",),
    ),
    Adaptation(
        ("gymnasium",),
        ("tests/test_core.py::test_reward_observation_action_wrapper",),
        "steps without a reset, which ours refuses (fault 9)",
        ("inner",),
    ),
    Adaptation(
        ("sb3_contrib",),
        ("*::test_ars*", "*test_deterministic*?ars_multi?", "*test_deterministic*?ARS?"),
        "ARS has no buffer for late rewards and is refused",
        LATE,
    ),
    Adaptation(
        SB3,
        tuple(f"*::test_deterministic_training_common?{name}?" for name in ("DQN", "SAC", "TD3", "QRDQN", "TQC")),
        "compares two trainings; which late rewards are there when a batch is drawn depends on time",
        LATE,
    ),
)
