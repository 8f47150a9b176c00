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


EXACT = ("test_gae", "test_eval_callback_vec_env")
"""Parts of ids of tests that compare rewards to 1e-8 or exactly: there the paint has no bits of its own."""

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
        "compares the infos of two runs, by which it takes late rewards; how many have come by then depends on time",
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
    Adaptation(
        ("stable_baselines3",),
        ("tests/test_her.py::*", "tests/test_callbacks.py::test_eval_success_logging"),
        "HerReplayBuffer computes rewards that know nothing of the sentence, and is refused",
        LATE,
    ),
    Adaptation(
        ("stable_baselines3",),
        (
            "tests/test_callbacks.py::test_eval_friendly_error",
            "tests/test_callbacks.py::test_checkpoint_additional_info",
        ),
        "VecNormalize(norm_reward=True) would normalize placeholders, and is refused",
        LATE,
    ),
)
