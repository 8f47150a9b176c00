"""`vlp-gym policy`."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlp_gym.commands.extras import help_line
from vlp_gym.commands.policy_data import load_rollouts, make_learner, source_of
from vlp_gym.commands.policy_options import METHODS, RunOptions, method_classes
from vlp_gym.commands.usage import check_names, check_values, later, listed, option_names, options_of, parse
from vlp_gym.errors import check_packages, did_you_mean

if TYPE_CHECKING:
    from vlp_gym.policies.learner import LearnerOptions
    from vlp_gym.policies.result import PolicyResult

TABLES = "tables"
_PROGRAM = "vlp-gym policy"
_DESCRIPTION = (
    "Learn a policy from rollouts and labels, without an environment; repeat the command to resume.\n\n"
    "For example: vlp-gym policy cpl --data data/train --task push --labels vlp-compact-45\n\n" + help_line("policy")
)


def policy(arguments: Sequence[str]) -> Callable[[], None]:
    """Learn a policy from rollouts and preference labels; repeat the command to resume.

    For example: vlp-gym policy cpl --data data/train --task push --labels vlp-compact-45

    Args:
        arguments: a method and its options from the command line; without any, the methods are listed.
    """
    import tyro

    method = arguments[0] if arguments else "--help"
    commands: dict[str, Callable[..., Any]] = {name: listed(line) for name, (_, _, line) in METHODS.items()}
    commands[TABLES] = later(tables)
    program = _PROGRAM
    if method == TABLES:
        program = f"{_PROGRAM} {TABLES}"
        check_names(arguments[1:], options_of(tables), program)
    elif not method.startswith("-"):  # only listed otherwise, without importing torch
        if method not in METHODS:
            raise ValueError(
                f"unknown method {method!r}: expected one of {', '.join(commands)}{did_you_mean(method, commands)}"
            )
        run_class, options_class = METHODS[method][1], method_classes(method)[1]
        commands[method] = _parsed(method, run_class, options_class)
        program = f"{_PROGRAM} {method}"
        names = option_names(field.name for part in (run_class, options_class) for field in fields(part))
        check_names(arguments[1:], names, program)
    parsed: Any = parse(
        lambda: tyro.extras.subcommand_cli_from_dict(
            commands, prog=_PROGRAM, description=_DESCRIPTION, args=arguments or ["--help"]
        ),
        program,
    )
    if method == TABLES:
        call: Callable[[], None] = parsed
        return call
    run, options = parsed
    check_values({field.name: getattr(part, field.name) for part in (run, options) for field in fields(part)})
    return lambda: _run(method, run, options)


def tables(*, runs: Path = Path("runs/policies"), out: Path | None = None) -> None:
    """Tables of all runs, as VLP's tables 2, 3 and 4, with what is missing.

    Args:
        runs: folder with runs of `vlp-gym policy`, at any depth.
        out: folder for tables.md; default: they are only printed.
    """
    from vlp_gym.policies.tables import read_results
    from vlp_gym.policies.tables import tables as of
    from vlp_gym.storage import write_atomic

    text = of(read_results(runs))
    print(text, end="")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "tables.md", text.encode())
        print(f"tables: {out / 'tables.md'}")


def _parsed(method: str, run_class: type[RunOptions], options_class: type[LearnerOptions]) -> Callable[..., Any]:
    """A sub-command that parses the options of a run and of a learner."""
    import tyro

    def parsed(run: Any, options: Any) -> Any:
        return run, options

    parsed.__doc__ = f"{METHODS[method][2][0].upper()}{METHODS[method][2][1:]}."
    parsed.__annotations__ = {
        "run": Annotated[run_class, tyro.conf.arg(name="")],
        "options": Annotated[options_class, tyro.conf.arg(name="")],
    }
    return parsed


def _run(method: str, run: RunOptions, options: LearnerOptions) -> None:
    packages = {**dict.fromkeys(("datasets", "PIL", "scipy", "matplotlib"), "train"), "metaworld": "metaworld"}
    check_packages({**packages, **({"av": "viz"} if run.video else {})}, "learning a policy needs")
    from vlp_gym.metaworld.env import make_metaworld
    from vlp_gym.metaworld.published import published_success
    from vlp_gym.metaworld.splits import known_task
    from vlp_gym.policies.evaluate import Evaluator
    from vlp_gym.policies.p_iql import PIQL
    from vlp_gym.policies.result import PolicyResult, markdown, summarize, write_result
    from vlp_gym.policies.training import train

    started, task, source = _cpu_seconds(), known_task(run.task), source_of(run, options)
    name = re.sub(r"[^\w.-]+", "-", source if re.search("[:,]", source) else Path(source).name)
    out = run.out or Path("runs") / "policies" / f"{task.removesuffix('-v3')}-{method}-{name}"
    trajectories = load_rollouts(run, task)
    learner, labelled = make_learner(method, run, options, trajectories, out)
    make = functools.partial(make_metaworld, task, size=64, max_episode_steps=run.horizon)  # never rendered
    with Evaluator(make, episodes=run.episodes, workers=run.workers) as evaluate:
        _, evaluations = train(
            learner, out, save_every=run.save_every, evaluate=evaluate, evaluate_every=run.evaluate_every
        )  # fmt: skip
    accuracy = learner.label_accuracy() if isinstance(learner, PIQL) else None
    result = PolicyResult(
        method=method, task=task, source=source, labels=None if labelled is None else labelled.report,
        options={name: list(x) if isinstance(x, tuple) else x for name, x in asdict(options).items()},
        seeds=list(learner.seeds), episodes=run.episodes, horizon=run.horizon, reward_accuracy=accuracy,
        data_success=sum(bool(t.success.any()) for t in trajectories) / len(trajectories),
        published=published_success(task, method, source),
        cpu_minutes=(_cpu_seconds() - started) / 60, **summarize(evaluations),
    )  # fmt: skip
    paths = write_result(result, out)
    if run.video:
        paths.append(_film(run, task, result, out))
    if accuracy is not None:
        print(f"the learned reward orders {' '.join(f'{share:.3f}' for share in accuracy)} of the pairs as labelled")
    print(markdown([result]), end="")
    print(f"result: {' '.join(map(str, paths))}")
    print(f'policy: vlp_gym.policies.load("{out}")')


def _film(run: RunOptions, task: str, result: PolicyResult, out: Path) -> Path:
    """A video of the seed whose last success is the median, the lower one of two."""
    from vlp_gym.metaworld.env import make_metaworld
    from vlp_gym.policies.evaluate import film
    from vlp_gym.policies.policy import load as load_policy
    from vlp_gym.video import overlay_video

    order = sorted(range(len(result.seeds)), key=lambda row: result.last[row])
    seed = result.seeds[order[(len(order) - 1) // 2]]
    make = functools.partial(make_metaworld, task, size=224, max_episode_steps=run.horizon)
    frames, rewards = film(make, load_policy(out, seed=seed))
    title = f"{result.method} on {task.removesuffix('-v3')}, seed {seed}"
    overlay_video(frames, rewards, out / "video.mp4", title=title, ylabel="environment's reward")
    return out / "video.mp4"


def _cpu_seconds() -> float:
    import resource

    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
