"""`vlp-gym collect`."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlp_gym.commands.usage import option_names
from vlp_gym.errors import DatasetError, check_packages

if TYPE_CHECKING:
    from vlp_gym.data.simulator import Simulator


def collect(
    source: Literal["metaworld", "fetch", "maniskill"],  # each has a file vlp_gym/SOURCE/simulator.py
    /,
    *,
    out: Path,
    tasks: tuple[str, ...] = (),
    per_tier: int = 32,
    tiers: tuple[Literal["expert", "medium", "random"], ...] = ("expert", "medium", "random"),
    near_miss: int = 0,
    explore: int = 0,
    retreat: int = 0,
    apart: int = 0,
    either_way: int = 0,
    agent: int = 0,
    agent_model: str = "vlp-compact",
    stride: int | None = None,
    size: int = 112,
    camera: Literal["corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV"] = "corner2",
    varied_share: float = 0.0,
    random_start: bool = False,
    seed: int = 0,
    workers: int | None = None,
    ray: bool = False,
    push_to_hub: str | None = None,
) -> None:
    """Collect rollouts of three tiers of skill (MTVLP); repeat the command to resume.

    For example: vlp-gym collect metaworld --out data/train --tasks button-press-v3 door-close-v3 --per-tier 8

    Args:
        source: simulator to collect from: Meta-World, the Fetch robot of Gymnasium-Robotics, or ManiSkill 3. Fetch and
            ManiSkill have no --explore, --retreat, --either-way, --agent, --camera, --varied-share and --random-start,
            ManiSkill no --near-miss, Fetch no --apart.
        out: folder for the parquet shards, one per task and tier.
        tasks: tasks to collect, such as button-press-v3 door-close-v3, FetchPush, or PickCube; default: all.
        per_tier: rollouts per task and tier; may be 0 if other rollouts are collected.
        tiers: the tiers of skill that --per-tier counts.
        near_miss: additional rollouts per task that aim beside the object, or beside the goal (fetch).
        explore: additional rollouts per task that wander around the workspace and the object, as learning agents do.
        retreat: additional rollouts per task of an expert that takes its hand back at the end; played backwards, they
            show the opposite task.
        apart: additional "rollouts" per task that show the arm of one moment and the object of another, so that a model
            cannot take the hand for the object.
        either_way: the same, but the object begins anywhere on its way, or on the other side of its first place, and
            goes on to success or back, so that a model learns which way is meant.
        agent: additional rollouts per task of an agent trained on a reward model (takes minutes per task).
        agent_model: the reward model for --agent.
        stride: environment steps between stored frames; default: 5, and 2 for fetch, whose episodes are short.
        size: side length in pixels of the stored square frames; 224 suits CLIP and larger models.
        camera: camera of the simulator; only the view depends on it.
        varied_share: share of rollouts, in [0, 1], with random camera pose, light and colours.
        random_start: start the hand at a random position instead of the task's own.
        seed: seeds all random draws; equal seeds give equal collections.
        workers: worker processes; default: one per core.
        ray: let Ray start them, on the cluster of RAY_ADDRESS or on this machine; all its machines must see --out.
        push_to_hub: upload the shards to this dataset (org/name) on the Hugging Face hub.
    """
    simulator: Simulator = import_module(f"vlp_gym.{source}.simulator").SIMULATOR
    needed = {**simulator.packages, "datasets": "train", "PIL": "train"} | ({"ray": "ray"} if ray else {})
    check_packages({**needed, "stable_baselines3": "sb3"} if agent else needed, "collecting rollouts needs")
    from vlp_gym.data.check import MAX_PIXELS, check_side
    from vlp_gym.models.checkpoint import is_hub_id

    options: dict[str, Any] = {
        "per_tier": per_tier, "tiers": tiers, "near_miss": near_miss, "explore": explore, "retreat": retreat,
        "apart": apart, "either_way": either_way, "agent": agent, "agent_model": agent_model, "stride": stride,
        "size": size, "camera": camera, "varied_share": varied_share, "random_start": random_start, "seed": seed,
    }  # fmt: skip
    own, defaults = {field.name for field in fields(simulator.config)}, signature(collect).parameters
    if others := [name for name, value in options.items() if name not in own and value != defaults[name].default]:
        raise ValueError(f"{', '.join(option_names(others))}: {source} has no such option")
    config = simulator.config(**{name: value for name, value in options.items() if name in own and value is not None})
    kinds = [
        name for name in ("per_tier", "near_miss", "explore", "retreat", "apart", "either_way", "agent") if name in own
    ]
    positive = {"stride": config.stride, "workers": 1 if workers is None else workers}
    for least, values in ((0, {name: options[name] for name in kinds}), (1, positive)):
        for name, value in values.items():
            if value < least:
                raise ValueError(f"{option_names([name])[0]}: expected at least {least}, got {value}")
    if not any(options[name] for name in kinds):
        raise ValueError(f"expected something to collect: one of {', '.join(option_names(kinds))} over 0")
    check_side(size)
    if (most := (simulator.steps // config.stride + 2) * size**2) > MAX_PIXELS:
        raise ValueError(
            f"--size {size} with --stride {config.stride}: expected at most {MAX_PIXELS // 10**6} megapixels in the "
            f"frames of a rollout, got up to {most // 10**6}; lower --size or raise --stride"
        )
    if not 0 <= varied_share <= 1:
        raise ValueError(f"--varied-share: expected 0 to 1, got {varied_share}")
    if ray and workers is not None:
        raise ValueError("--workers: expected without --ray, which starts as many as its cluster has cores")
    names = [simulator.task(task) for task in tasks]
    if push_to_hub is not None and not is_hub_id(push_to_hub):
        raise ValueError(f"--push-to-hub: expected org/name, got {push_to_hub!r}")
    if agent:  # an unknown model is an error before anything is written
        from vlp_gym.models.registry import load_reward_model

        load_reward_model(agent_model)
    simulator.collect(out, config, tasks=names or None, workers=workers, ray=ray)
    print(f"rollouts: {out}")
    if push_to_hub is not None:
        print(f"uploaded: {_push_dataset(out, push_to_hub)}")


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
