"""Tests of other projects that cannot hold with our wrapper, each with the reason."""

from __future__ import annotations

from dataclasses import dataclass

LATE = ("async", "vector-async")
SB3 = ("stable_baselines3", "sb3_contrib")
OFF_POLICY = ("DQN", "DDPG", "SAC", "TD3", "QRDQN", "TQC", "CrossQ")


@dataclass(frozen=True)
class Adaptation:
    """Tests that may fail with the wrapper, and why."""

    suites: tuple[str, ...]
    tests: tuple[str, ...]
    """Patterns of `fnmatch` for the tests' ids; ``[`` is matched by ``?``."""
    reason: str
    modes: tuple[str, ...] = ()
    """Empty: all."""
    error: str = ""
    """A regular expression that is found in the message of the failure: another failure is ours."""


EXACT = (
    "test_gae",
    "test_eval_callback_vec_env",
    "test_evaluate_policy_monitors",
    "test_get_original",
    "test_clip_reward_wrapper",
)
"""Parts of ids of tests that compare rewards to 1e-8 or exactly: there the paint has no bits of its own."""

STATISTICS = "tests/wrappers/vector/test_record_episode_statistics.py::*"

ADAPTATIONS: tuple[Adaptation, ...] = (
    Adaptation(
        ("gymnasium",),
        ("*::test_vector_env_equal*", "*::test_vector_wrapper_equivalence*", "*::test_env_determinism_*", STATISTICS),
        "compares the infos of two runs, by which it takes late rewards; how many have come by then depends on time",
        ("async",),
        "^assert|^AssertionError",
    ),
    Adaptation(
        ("gymnasium",),
        ("*::test_vector_wrapper_equivalence?CartPole-v1-ClipReward-*",),
        "compares infos of a reward clipped outside ours with those of one clipped inside: the scores differ",
        ("vector",),
    ),
    Adaptation(
        ("gymnasium",),
        (
            "*::test_make_vec_vectorization_mode",
            "*::test_make_vec_wrappers",
            "*::test_vector_env_wrapper_attributes",
        ),
        "asks `make_vec` for a SyncVectorEnv itself, by its type or its `call`; it gives a wrapper of one",
        ("vector",),
        "CheckedVector",
    ),
    Adaptation(
        ("gymnasium",),
        ("tests/vector/test_async_vector_env.py::test_async_vector_subenv_error",),
        "matches the end of a traceback, to which ours adds a note with environment, episode and step",
        ("vector",),
        "^assert None",
    ),
    Adaptation(
        ("gymnasium",),
        ("*::test_autoreset_wrapper_autoreset",),
        "compares an info with that of the environment; ours adds `vlp`",
        ("inner",),
    ),
    Adaptation(
        ("gymnasium",),
        ("tests/wrappers/test_passive_env_checker.py::test_api_failures",),
        "expects a checker outside to name a step that returns no tuple; ours meets it first",
        ("inner",),
    ),
    Adaptation(
        ("gymnasium", "stable_baselines3"),
        (
            "tests/test_core.py::test_reward_observation_action_wrapper",
            "tests/vector/test_async_vector_env.py::test_async_vector_subenv_error",
            "tests/test_vec_check_nan.py::test_check_nan",
            "tests/test_vec_envs.py::test_framestack_vecenv",
        ),
        "steps without a reset, which ours refuses (fault 9)",
        error="^gymnasium.error.ResetNeeded: call reset before step",
    ),
    Adaptation(
        ("sb3_contrib",),
        ("*::test_ars*", "*test_deterministic*?ars_multi?", "*ARS?"),
        "ARS has no buffer for late rewards and is refused",
        LATE,
        "ARS keeps no buffer",
    ),
    Adaptation(
        SB3,
        (
            *(f"*::test_deterministic_training_common?{name}?" for name in OFF_POLICY),
            *(f"tests/test_dict_env.py::test_consistency?{name}?" for name in OFF_POLICY),
        ),
        "compares two trainings; which late rewards are there when a batch is drawn depends on time",
        LATE,
        "^assert|^AssertionError",
    ),
    Adaptation(
        ("stable_baselines3",),
        (
            "tests/test_her.py::*",
            "tests/test_callbacks.py::test_eval_success_logging",
            "tests/test_vec_normalize.py::test_her_normalization",
        ),
        "HerReplayBuffer computes rewards that know nothing of the sentence, and is refused",
        error="^ValueError: HerReplayBuffer makes up transitions|^EOFError",  # the latter from a worker process
    ),
    Adaptation(
        ("stable_baselines3",),
        ("tests/test_train_eval_mode.py::test_a2c_ppo_collect_rollouts_with_batch_norm*",),
        "collects rollouts with callbacks that were never started, of which VLPRewardCallback would miss the rewards",
        LATE,
        "^RuntimeError: VLPRewardCallback was not started",
    ),
    Adaptation(
        ("stable_baselines3",),
        ("tests/test_callbacks.py::test_eval_friendly_error",),
        "normalizes an evaluation whose environment is to be wrapped like the agent's; that alone gets VLPVecReward",
        ("vector",),
        "^AssertionError: Error while synchronizing normalization stats",
    ),
    Adaptation(
        ("stable_baselines3",),
        ("tests/test_vec_extract_dict_obs.py::test_vec_with_ppo",),
        "has a VecEnv of its own, in which nothing can be wrapped; VLPRewardCallback refuses it",
        LATE,
        "^ValueError: expected an environment with VLPVecReward",
    ),
    Adaptation(
        ("stable_baselines3",),
        ("tests/test_utils.py::test_make_atari_env?True-*",),
        "expects no reward of the first step; ClipRewardEnv, outside ours, makes 1 of any reward that is painted",
        ("inner",),
        r"^AssertionError: assert np\.float32\(1\.0\) < 1\.0",
    ),
    Adaptation(
        ("stable_baselines3",),
        ("tests/test_save_load.py::test_warn_buffer?True-*",),
        "optimize_memory_usage=True shares rows, in which a late reward may be missing; it is refused, and turned off",
        LATE,
    ),
    Adaptation(
        SB3,
        (
            "tests/test_callbacks.py::test_eval_friendly_error",
            "tests/test_callbacks.py::test_checkpoint_additional_info",
            "tests/test_cnn.py::test_image_like_input?False-*",
            "tests/test_dict_env.py::test_vec_normalize*",
            "tests/test_vec_normalize.py::test_offpolicy_normalization*",
        ),
        "VecNormalize(norm_reward=True) would normalize placeholders, and is refused",
        LATE,
        r"^ValueError: VecNormalize\(norm_reward=True\)",
    ),
)
