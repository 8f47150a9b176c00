"""The command line: collect rollouts, train and evaluate reward models, score a video, label segments, list the models.

Each sub-command is a function below; its signature is the options and its docstring is the help. Everything heavy is
imported inside them, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlp_gym.errors import DatasetError, MissingExtraError, VLPError

if TYPE_CHECKING:
    from torch import Tensor, nn

Architecture = Literal["compact", "vlp", "joint"]
SplitName = Literal["vlp", "ml45", "all"]
OPEN_CLIP = "open_clip:ViT-B-16/openai"
GIF_FRAMES = 120  # a longer GIF shows every second, third ... frame: it would weigh hundreds of megabytes


def collect(
    source: Literal["metaworld"],
    /,
    *,
    out: Path,
    tasks: tuple[str, ...] = (),
    per_tier: int = 32,
    near_miss: int = 0,
    explore: int = 0,
    agent: int = 0,
    agent_model: str = "vlp-compact",
    stride: int = 5,
    varied_share: float = 0.0,
    seed: int = 0,
    workers: int | None = None,
    push_to_hub: str | None = None,
) -> None:
    """Collect rollouts of three tiers of skill (MTVLP); the same command again goes on where it stopped.

    Args:
        source: where the rollouts come from.
        out: folder for the parquet shards, one a task and tier.
        tasks: such as button-press-v3 door-close-v3; all 50 by default.
        per_tier: rollouts of each task and tier (expert, medium, random); may be 0 beside others.
        near_miss: also so many rollouts a task that aim beside the object.
        explore: also so many rollouts a task that wander about the workspace and the object, as learning agents do.
        agent: also so many rollouts a task of an agent that learns from a reward model (minutes a task).
        agent_model: the reward model that it learns from.
        stride: environment steps between two stored frames.
        varied_share: share of the rollouts with another camera, light and colours, from 0 to 1.
        seed: of everything; two collections with the same seed are equal.
        workers: processes; one a core by default.
        push_to_hub: dataset on the Hugging Face hub, as org/name, that the shards are uploaded to.
    """
    from vlp_gym.data.collect import CollectConfig, collect_metaworld
    from vlp_gym.data.instructions import instructions_for

    counts = {"per-tier": per_tier, "near-miss": near_miss, "explore": explore, "agent": agent}
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"--{name}: expected at least 0, got {value}")
    if not any(counts.values()):
        raise ValueError(f"expected something to collect: one of --{', --'.join(counts)} over 0")
    if stride < 1:
        raise ValueError(f"--stride: expected at least 1, got {stride}")
    if not 0 <= varied_share <= 1:
        raise ValueError(f"--varied-share: expected 0 to 1, got {varied_share}")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers: expected at least 1, got {workers}")
    names = [task if task.endswith("-v3") else f"{task}-v3" for task in tasks]
    # An unknown task or model is refused before anything is written.
    for name in names:
        instructions_for(name)
    if agent:
        from vlp_gym.models.registry import load_reward_model

        load_reward_model(agent_model)
    config = CollectConfig(
        per_tier=per_tier, near_miss=near_miss, explore=explore, agent=agent, agent_model=agent_model,
        stride=stride, varied_share=varied_share, seed=seed,
    )  # fmt: skip
    collect_metaworld(out, config, tasks=names or None, workers=workers)
    print(f"rollouts: {out}")
    if push_to_hub is not None:
        print(f"uploaded: {_push_dataset(out, push_to_hub)}")


def train(
    architecture: Architecture = "compact",
    /,
    *,
    data: tuple[Path, ...],
    split: SplitName = "vlp",
    leave_out: tuple[str, ...] = (),
    init: str | None = None,
    out: Path | None = None,
    steps: int = 700,
    relevance_steps: int = 400,
    seed: int = 0,
    precision: Literal["no", "bf16", "fp16"] = "no",
    learning_rate: float = 1e-3,
    tasks_per_batch: int = 14,
    clips_per_task: int = 6,
    focus: tuple[str, ...] = (),
    save_every: int = 50,
    backbone: str = OPEN_CLIP,
    quality_weight: float = 12.0,
    motion_weight: float = 0.25,
    relevance_shift: float = 0.0,
    half: bool = False,
) -> None:
    """Train a reward model on the training tasks of a split; the same command again goes on where it stopped.

    Args:
        architecture: compact, the small factorised model that ships; vlp, the paper's over a frozen CLIP; joint, the
            paper's over the compact model's encoders.
        data: folders that `vlp-gym collect` filled, one or more.
        split: vlp and ml45 hold five tasks out each; all trains on the 50.
        leave_out: also keep these tasks out, to validate on (see `vlp-gym tune`).
        init: start from the weights of this model (a shipped name, a folder or a hub id) instead of random ones;
            not its quality weight, motion weight and relevance shift.
        out: folder for the checkpoint, the state to go on from and the training curve; runs/ARCHITECTURE-SPLIT by
            default.
        steps: optimizer steps on everything; 0 trains the relevance of a compact --init alone.
        relevance_steps: of compact, further steps on its relevance alone.
        seed: of initial weights, batches and augmentation.
        precision: of the arithmetic; no is fp32.
        learning_rate: the highest, after the warm-up.
        tasks_per_batch: tasks in a batch, each with its sentence.
        clips_per_task: clips of each of them, at least 3.
        focus: tasks in every batch, at most half of it; agents learn to fool a model sooner than it learns from a few
            clips of theirs.
        save_every: steps between two saved states.
        backbone: of vlp, as open_clip:NAME/PRETRAINED.
        quality_weight: of compact, the share of quality in its preference; `vlp-gym tune` finds it.
        motion_weight: of compact, the share of the motion in its relevance, likewise.
        relevance_shift: of compact, likewise.
        half: store the finished checkpoint in half precision, as the shipped ones are.
    """
    import torch

    from vlp_gym.data.dataset import load_trajectories
    from vlp_gym.data.instructions import train_tasks
    from vlp_gym.training.loop import TrainConfig
    from vlp_gym.training.loop import train as run_training

    if backbone != OPEN_CLIP and architecture != "vlp":
        raise ValueError(f"--backbone: only vlp takes one, got {backbone!r} for {architecture}")
    relevance_alone = architecture == "compact" and init is not None and relevance_steps > 0
    if steps < (0 if relevance_alone else 1):
        raise ValueError(f"--steps: expected at least 1, or 0 with a compact --init and --relevance-steps, got {steps}")
    if save_every < 1:
        raise ValueError(f"--save-every: expected at least 1, got {save_every}")
    if relevance_steps < 0:
        raise ValueError(f"--relevance-steps: expected at least 0, got {relevance_steps}")
    if clips_per_task < 3:
        raise ValueError(f"--clips-per-task: expected at least 3, got {clips_per_task}")
    out = Path("runs") / f"{architecture}-{split}" if out is None else out
    config = TrainConfig(
        steps=steps, relevance_steps=relevance_steps, seed=seed, precision=precision, learning_rate=learning_rate,
        save_every=save_every, tasks_per_batch=tasks_per_batch, clips_per_task=clips_per_task,
        focus=focus, half=half,
    )  # fmt: skip
    chosen = train_tasks(split)
    if unknown := set(leave_out) - set(chosen):
        raise ValueError(f"--leave-out: expected training tasks of split {split}, got {', '.join(sorted(unknown))}")
    kept = [task for task in chosen if task not in leave_out]
    if unknown := set(focus) - set(kept):
        raise ValueError(f"--focus: expected tasks that are trained on, got {', '.join(sorted(unknown))}")
    trajectories = load_trajectories(*data, tasks=kept)
    torch.manual_seed(seed)
    model: nn.Module
    if architecture == "compact":
        from vlp_gym.models.compact import CompactRewardModel

        model = CompactRewardModel(
            quality_weight=quality_weight, motion_weight=motion_weight, relevance_shift=relevance_shift
        )
    else:
        from vlp_gym.models.vlp import VLPModel

        model = VLPModel("small" if architecture == "joint" else backbone)
    if init is not None:
        _start_from(model, init)
    run_training(model, trajectories, out, config)
    print(f"checkpoint: {out}")
    print(f"evaluate it: vlp-gym eval --model {out} --data {data[0]} --split {split}")


def tune(*, model: Path, data: Path, tasks: tuple[str, ...]) -> None:
    """Choose both weights and the relevance shift of a compact model on tasks that its training left out.

    Args:
        model: folder of a compact model that `vlp-gym train compact --leave-out ...` made.
        data: folder that `vlp-gym collect` filled.
        tasks: the tasks that were left out, at least two.
    """
    from vlp_gym.data.dataset import load_trajectories
    from vlp_gym.models.checkpoint import load_checkpoint
    from vlp_gym.models.compact import CompactRewardModel
    from vlp_gym.training.tune import tune as choose

    chosen = choose(load_checkpoint(CompactRewardModel, model), load_trajectories(data, tasks=tasks), tasks)
    print("quality weight   motion weight   tier ITP   IVP")
    for quality_weight, motion_weight, itp, ivp in chosen.table:
        print(f"{quality_weight:14.2f}   {motion_weight:13.2f}   {itp:8.3f}   {ivp:.3f}")
    print(
        f"--quality-weight {chosen.quality_weight} --motion-weight {chosen.motion_weight} "
        f"--relevance-shift {chosen.relevance_shift}"
    )


def evaluate(
    *,
    model: str = "vlp-compact",
    data: Path,
    split: SplitName = "vlp",
    out: Path | None = None,
    seed: int = 0,
    pairs_per_task: int = 500,
) -> None:
    """Judge a reward model on the held-out tasks of a split: JSON, a Markdown table and a picture.

    Args:
        model: a shipped name (see `vlp-gym models`), a checkpoint folder, or a hub id org/name.
        data: folder that `vlp-gym collect` filled, best with another seed than the training's.
        split: vlp and ml45 judge the five tasks that each holds out; all judges the 50.
        out: folder for the report; runs/eval/MODEL-SPLIT by default.
        seed: of every draw.
        pairs_per_task: pairs for scripted ITP, IVP and ILP.
    """
    from vlp_gym.data.dataset import load_trajectories, shard_path
    from vlp_gym.data.instructions import ML45_TEST_TASKS, SIBLINGS, TEST_TASKS, train_tasks
    from vlp_gym.evaluation import evaluate as judge
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.report import markdown, write_report

    if pairs_per_task < 1:
        raise ValueError(f"--pairs-per-task: expected at least 1, got {pairs_per_task}")
    tasks = {"vlp": TEST_TASKS, "ml45": ML45_TEST_TASKS, "all": train_tasks("all")}[split]
    siblings = {SIBLINGS[task] for task in tasks if task in SIBLINGS} - set(tasks)
    collected = [task for task in sorted(siblings) if shard_path(data, task, "expert").exists()]
    device = _device()
    live = load_reward_model(model, device=device)
    trajectories = load_trajectories(data, tasks=[*tasks, *collected])
    result = judge(
        live, trajectories, tasks=tasks, split_name=split, seed=seed, device=device, pairs_per_task=pairs_per_task
    )
    result["settings"]["model"] = model
    out = Path("runs") / "eval" / f"{Path(model).name}-{split}" if out is None else out
    paths = write_report(result, out)
    print(markdown(result))
    print(f"report: {' '.join(str(path) for path in paths)}")


def score(video: Path, /, *, instruction: str, model: str = "vlp-compact", out: Path | None = None) -> None:
    """Score a video under a sentence: its reward curve as PNG, and drawn beside the video as MP4 and GIF.

    Args:
        video: mp4, mkv, webm, avi, gif ...; at most 2,000 frames.
        instruction: what is to be done, in one sentence.
        model: a shipped name (see `vlp-gym models`), a checkpoint folder, or a hub id org/name.
        out: folder for curve.png, overlay.mp4 and overlay.gif; runs/score/VIDEO by default.
    """
    from tqdm import tqdm

    from vlp_gym.answers import Ticket
    from vlp_gym.engine import QueryEngine
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.shaping import Reward, score_of
    from vlp_gym.text import normalize_instruction
    from vlp_gym.video import overlay_video, read_video
    from vlp_gym.viz import plot_reward_curves

    instruction = normalize_instruction(instruction)
    frames = read_video(video)
    engine = QueryEngine(load_reward_model(model, device=_device()))
    env, text = engine.add_env(), engine.encode_text(instruction)
    kind: Reward = "preference" if engine.probe(text).progress is None else "progress"
    engine.begin(env, 0, text)
    rewards: list[float] = []
    for step, frame in enumerate(tqdm(frames, desc="scoring", unit="frame")):
        answer = engine.query([Ticket(env, 0, step)], [frame])[0]
        rewards.append(score_of(kind, answer.preference, answer.progress, answer.relevance))
    label = "preference" if kind == "preference" else "reward"
    out = Path("runs") / "score" / video.stem if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("curve.png", "overlay.mp4", "overlay.gif")]
    plot_reward_curves(
        {label: rewards}, paths[0], title=instruction, xlabel="frame", ylabel=label, frames={label: frames}
    )
    every = -(-len(frames) // GIF_FRAMES)
    files = zip(paths[1:], (slice(None), slice(None, None, every)), strict=True)
    for path, shown in tqdm(files, desc="drawing", unit="file", total=2):
        overlay_video(frames[shown], rewards[shown], path, title=instruction, ylabel=label)
    print(f"{label}: {rewards[0]:.3f} at the first frame, {rewards[-1]:.3f} at the last, {max(rewards):.3f} at most")
    print(f"written: {' '.join(str(path) for path in paths)}")


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
        seed: of every draw; take another one to add other pairs.
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
        store, None, pairs, np.random.default_rng(seed), sampler=sampler, newest=newest, labelled=buffer
    )
    # An hour of labels must not be lost to a folder that does not take them.
    buffer.add(first, second, np.full(pairs, np.nan))
    out.mkdir(parents=True, exist_ok=True)
    given = ask(
        source, first, second,
        instruction=instruction, kind=kind, seed=seed, port=port, browser=browser, device=_device(),
    )  # fmt: skip
    buffer.add(first, second, given)
    buffer.save(out)
    print(summary(first, second, given))
    print(f"preferences: {out} ({len(buffer)} pairs)")


def models() -> None:
    """List the reward models that can be named: the shipped ones, and those of other packages."""
    from vlp_gym.models.registry import available_models

    rows = [("NAME", "DESCRIPTION", "WHERE")] + [(row.name, row.description, row.where) for row in available_models()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, description, where in rows:
        print(f"{name:{widths[0]}}  {description:{widths[1]}}  {where}")


COMMANDS: dict[str, Callable[..., None]] = {
    "collect": collect,
    "train": train,
    "tune": tune,
    "eval": evaluate,
    "score": score,
    "label": label,
    "models": models,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 after an error, 130 after Ctrl-C.

    Args:
        arguments: without the program's name; those of this process by default.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not sys.warnoptions:  # other packages' warnings are not for users; -W or PYTHONWARNINGS brings them back
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of the worker processes
    try:
        _run(arguments)
    except KeyboardInterrupt:
        print("vlp-gym: interrupted; what was saved is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except (VLPError, ValueError, FloatingPointError, OSError) as error:
        print(f"vlp-gym: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: Sequence[str]) -> None:
    try:
        import tqdm  # noqa: F401
        import tyro
    except ImportError as error:
        raise MissingExtraError(f'the command line needs {error.name}: pip install "vlp_gym[train]"') from error
    description = "Any Gymnasium environment that can render gets a reward from a sentence."
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="vlp-gym", description=description, args=arguments or ["--help"]
    )


def _start_from(model: nn.Module, init: str) -> None:
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.training.checkpoint import differing_weights

    weights: dict[str, Tensor] = load_reward_model(init).state_dict()  # type: ignore[attr-defined]
    if differing := differing_weights(model.state_dict(), weights):
        raise ValueError(f"--init: expected a model of this architecture and size; {init} differs in {differing[:3]}")
    model.load_state_dict(weights)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _push_dataset(folder: Path, repository: str) -> str:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", exist_ok=True)
        patterns = ["data/*.parquet", "collect.json"]
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type="dataset", allow_patterns=patterns)
    except Exception as error:  # httpx, the hub's own and OSError, depending on the version and the network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{repository}: the hub did not take the shards ({reason}); they are in {folder}") from error
    return f"https://huggingface.co/datasets/{repository}"


if __name__ == "__main__":
    sys.exit(main())
