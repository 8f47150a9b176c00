"""`vlp-gym train` and `vlp-gym tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlp_gym.commands.data import SplitName, load, training_tasks

if TYPE_CHECKING:
    from torch import Tensor, nn

System = Literal["compact", "vlp", "joint", "rewind", "embedding", "siglip2-lora", "spur"]
Objective = Literal["triplet", "tcn-text", "r3m", "vip-text", "vip-text+vip", "liv"]


def train(
    system: System = "compact",
    /,
    *,
    data: tuple[Path, ...],
    split: SplitName = "vlp",
    tasks: tuple[str, ...] = (),
    leave_out: tuple[str, ...] = (),
    init: str | None = None,
    out: Path | None = None,
    steps: int | None = None,
    relevance_steps: int = 400,
    seed: int = 0,
    precision: Literal["no", "bf16", "fp16"] = "no",
    learning_rate: float | None = None,
    tasks_per_batch: int = 14,
    clips_per_task: int = 6,
    focus: tuple[str, ...] = (),
    batch_size: int | None = None,
    save_every: int = 50,
    backbone: str | None = None,
    freeze_encoders: bool = False,
    uneven: float = 0.0,
    objective: Objective = "triplet",
    quality_weight: float = 12.0,
    motion_weight: float = 0.25,
    relevance_shift: float = 0.0,
    half: bool = False,
) -> None:
    """Train a reward model on the training tasks of a split; the same command again goes on where it stopped.

    Args:
        system: compact, the small factorised model that ships; vlp, the paper's over a frozen CLIP; joint, the paper's
            over the compact model's encoders; rewind; embedding, a cosine over the compact model's encoders;
            siglip2-lora, a cosine over SigLIP2 with adapters; spur, Qwen2.5-VL with heads for progress and preference.
        data: folders that `vlp-gym collect` filled, one or more; of embedding and siglip2-lora one a camera.
        split: vlp and ml45 hold five tasks of Meta-World out each; all trains on the 50; data trains on every task of
            the folders, whatever it is.
        tasks: train on these of the split alone; by default on all that it does not hold out.
        leave_out: also keep these tasks out, to validate on (see `vlp-gym tune`).
        init: start from the weights of this model (a shipped name, a folder or a hub id) instead of random ones;
            not its quality weight, motion weight and relevance shift. Of another system that has compact's encoders,
            rewind, embedding and joint take these alone; it must have been trained on no more tasks than they are.
        out: folder for the checkpoint, the state to go on from and the training curve; runs/SYSTEM-SPLIT by default.
        steps: optimizer steps on everything; 0 trains the relevance of a compact --init alone; by default the
            system's: 700 of compact and joint, 2,000 of embedding, 5,000 of rewind and spur, 7,810 of siglip2-lora,
            15,000 of vlp.
        relevance_steps: of compact, further steps on its relevance alone.
        seed: of initial weights, batches and augmentation.
        precision: of the arithmetic; no is fp32.
        learning_rate: the highest, after the warm-up; by default the system's.
        tasks_per_batch: of compact, vlp and joint, tasks in a batch, each with its sentence.
        clips_per_task: clips of each of them, at least 3.
        focus: tasks in every batch, at most half of it; agents learn to fool a model sooner than it learns from a few
            clips of theirs.
        batch_size: of the other systems, clips, samples or pairs in a batch; 32 by default, of spur 16.
        save_every: steps between two saved states.
        backbone: of vlp, as open_clip:NAME/PRETRAINED; of rewind, dinov2+minilm or small, which needs no download and
            comes with half the paper's width and the change since the first frame; of siglip2-lora and spur, a hub id
            or a folder.
        freeze_encoders: of rewind with --backbone small, leave the encoders that --init gave as they are; each frame
            is then encoded but once. Those of dinov2+minilm are always left so.
        uneven: of rewind, share of clips played at an uneven pace, so that the number of frames so far does not tell
            the progress; the paper's 0.
        objective: of embedding and siglip2-lora.
        quality_weight: of compact, the share of quality in its preference; `vlp-gym tune` finds it.
        motion_weight: of compact, the share of the motion in its relevance, likewise.
        relevance_shift: of compact, likewise.
        half: store the finished checkpoint in half precision, as the shipped ones are.
    """
    import torch

    from vlp_gym.training.loop import train as run_training
    from vlp_gym.training.recipe import TrainConfig
    from vlp_gym.training.recipes.registry import SYSTEMS, build
    from vlp_gym.training.recipes.registry import learning_rate as own_rate

    own = SYSTEMS[system]
    if backbone is not None and not own.backbone:
        takers = [name for name, other in SYSTEMS.items() if other.backbone]
        raise ValueError(f"--backbone: only {', '.join(takers)} take one, got {backbone!r} for {system}")
    if freeze_encoders and (system != "rewind" or backbone != "small" or init is None):
        raise ValueError(
            "--freeze-encoders: expected with rewind, --backbone small and --init; "
            f"got {system}, --backbone {backbone} and --init {init}"
        )
    if not 0 <= uneven <= 1 or (uneven and system != "rewind"):
        raise ValueError(f"--uneven: expected a share from 0 to 1, with rewind; got {uneven} for {system}")
    steps = own.steps if steps is None else steps
    relevance_alone = system == "compact" and init is not None and relevance_steps > 0
    if steps < (0 if relevance_alone else 1):
        raise ValueError(f"--steps: expected at least 1, or 0 with a compact --init and --relevance-steps, got {steps}")
    if save_every < 1:
        raise ValueError(f"--save-every: expected at least 1, got {save_every}")
    if relevance_steps < 0:
        raise ValueError(f"--relevance-steps: expected at least 0, got {relevance_steps}")
    if clips_per_task < 3:
        raise ValueError(f"--clips-per-task: expected at least 3, got {clips_per_task}")
    if batch_size is not None and (batch_size < 1 or not own.batch_size):
        takers = [name for name, other in SYSTEMS.items() if other.batch_size]
        raise ValueError(f"--batch-size: expected at least 1, with {', '.join(takers)}; got {batch_size} for {system}")
    if learning_rate is None:
        learning_rate = own_rate(system, objective)
    out = Path("runs") / f"{system}-{split}" if out is None else out
    config = TrainConfig(
        steps=steps, relevance_steps=relevance_steps, seed=seed, precision=precision, learning_rate=learning_rate,
        save_every=save_every, tasks_per_batch=tasks_per_batch, clips_per_task=clips_per_task,
        focus=focus, half=half,
    )  # fmt: skip
    chosen = training_tasks(split, data)
    for option, named in (("--tasks", tasks), ("--leave-out", leave_out)):
        if unknown := set(named) - set(chosen):
            raise ValueError(f"{option}: expected training tasks of split {split}, got {', '.join(sorted(unknown))}")
    kept = [task for task in tasks or chosen if task not in leave_out]
    if not kept:
        raise ValueError(f"--leave-out: nothing is left to train on, got {', '.join(leave_out)}")
    if unknown := set(focus) - set(kept):
        raise ValueError(f"--focus: expected tasks that are trained on, got {', '.join(sorted(unknown))}")
    trajectories = load(*data, tasks=kept)
    torch.manual_seed(seed)
    model, recipe = build(
        system, trajectories,
        backbone=backbone or own.backbone, freeze_encoders=freeze_encoders, uneven=uneven, objective=objective,
        batch_size=batch_size or own.batch_size, seed=seed,
        quality_weight=quality_weight, motion_weight=motion_weight, relevance_shift=relevance_shift,
    )  # fmt: skip
    if init is not None:
        _start_from(model, init)
    run_training(model, recipe, out, config)
    print(f"checkpoint: {out}")
    print(f"evaluate it: vlp-gym eval --model {out} --data {data[0]} --split {split}")


def tune(*, model: Path, data: Path, tasks: tuple[str, ...]) -> None:
    """Choose both weights and the relevance shift of a compact model on tasks that its training left out.

    Args:
        model: folder of a compact model that `vlp-gym train compact --leave-out ...` made.
        data: folder that `vlp-gym collect` filled.
        tasks: the tasks that were left out, at least two.
    """
    from vlp_gym.models.checkpoint import load_checkpoint
    from vlp_gym.models.compact import CompactRewardModel
    from vlp_gym.training.recipes.compact_tune import tune as choose

    chosen = choose(load_checkpoint(CompactRewardModel, model), load(data, tasks=tasks), tasks)
    print("quality weight   motion weight   tier ITP   IVP")
    for quality_weight, motion_weight, itp, ivp in chosen.table:
        print(f"{quality_weight:14.2f}   {motion_weight:13.2f}   {itp:8.3f}   {ivp:.3f}")
    print(
        f"--quality-weight {chosen.quality_weight} --motion-weight {chosen.motion_weight} "
        f"--relevance-shift {chosen.relevance_shift}"
    )


def _start_from(model: nn.Module, init: str) -> None:
    from vlp_gym.models.backbones.small import SmallBackbone
    from vlp_gym.models.registry import load_reward_model
    from vlp_gym.training.state import differing_weights

    other: Any = load_reward_model(init)
    start: nn.Module = model
    if type(other) is not type(model):  # of another system, the small encoders, where both have them
        encoders = [next((m for m in each.modules() if isinstance(m, SmallBackbone)), None) for each in (model, other)]
        if encoders[0] is not None and encoders[1] is not None:
            start, other = encoders[0], encoders[1]
    weights: dict[str, Tensor] = other.state_dict()
    if differing := differing_weights(start.state_dict(), weights):
        raise ValueError(f"--init: expected a model of this architecture and size; {init} differs in {differing[:3]}")
    start.load_state_dict(weights)
