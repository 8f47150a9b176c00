"""`vlp-gym collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vlp_gym.errors import DatasetError, check_packages


def collect(
    source: Literal["metaworld", "fetch"],
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
    push_to_hub: str | None = None,
) -> None:
    """Collect rollouts of three tiers of skill (MTVLP); repeat the command to resume.

    For example: vlp-gym collect metaworld --out data/train --tasks button-press-v3 door-close-v3 --per-tier 8

    Args:
        source: simulator to collect from: Meta-World, or the Fetch robot of Gymnasium-Robotics, which has no --explore,
            --retreat, --apart, --either-way, --agent, --camera, --varied-share and --random-start.
        out: folder for the parquet shards, one per task and tier.
        tasks: tasks to collect, such as button-press-v3 door-close-v3, or FetchPush; default: all.
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
        push_to_hub: upload the shards to this dataset (org/name) on the Hugging Face hub.
    """
    simulator = {"metaworld": "metaworld", "fetch": "gymnasium_robotics"}[source]
    needed = {simulator: source, "mujoco": source, "datasets": "train", "PIL": "train"}
    check_packages({**needed, "stable_baselines3": "sb3"} if agent else needed, "collecting rollouts needs")
    from vlp_gym.data.check import MAX_PIXELS, check_side
    from vlp_gym.fetch.collect import FetchConfig, collect_fetch
    from vlp_gym.fetch.env import EPISODE_STEPS, fetch_task
    from vlp_gym.metaworld.collect import MAX_STEPS, collect_metaworld
    from vlp_gym.metaworld.config import CollectConfig
    from vlp_gym.metaworld.splits import known_task
    from vlp_gym.models.checkpoint import is_hub_id

    own = {"explore": explore, "retreat": retreat, "apart": apart, "either-way": either_way, "agent": agent}
    of_metaworld = {**own, "camera": camera != "corner2", "varied-share": varied_share, "random-start": random_start}
    if source != "metaworld" and (given := [f"--{name}" for name, value in of_metaworld.items() if value]):
        raise ValueError(f"{', '.join(given)}: expected with metaworld only, got {source}")
    if stride is None:
        stride = 5 if source == "metaworld" else 2
    counts = {"per-tier": per_tier, "near-miss": near_miss, **own}
    positive = {"stride": stride, "workers": 1 if workers is None else workers}
    for least, values in ((0, counts), (1, positive)):
        for name, value in values.items():
            if value < least:
                raise ValueError(f"--{name}: expected at least {least}, got {value}")
    if not any(counts.values()):
        raise ValueError(f"expected something to collect: one of --{', --'.join(counts)} over 0")
    check_side(size)
    steps = MAX_STEPS if source == "metaworld" else EPISODE_STEPS
    if (most := (steps // stride + 2) * size**2) > MAX_PIXELS:
        raise ValueError(
            f"--size {size} with --stride {stride}: expected at most {MAX_PIXELS // 10**6} megapixels in the frames of "
            f"a rollout, got up to {most // 10**6}; lower --size or raise --stride"
        )
    if not 0 <= varied_share <= 1:
        raise ValueError(f"--varied-share: expected 0 to 1, got {varied_share}")
    names = [known_task(task) if source == "metaworld" else fetch_task(task) for task in tasks]
    if push_to_hub is not None and not is_hub_id(push_to_hub):
        raise ValueError(f"--push-to-hub: expected org/name, got {push_to_hub!r}")
    if agent:  # an unknown model is an error before anything is written
        from vlp_gym.models.registry import load_reward_model

        load_reward_model(agent_model)
    shared: dict[str, Any] = {
        "per_tier": per_tier, "tiers": tiers, "near_miss": near_miss, "stride": stride, "size": size, "seed": seed,
    }  # fmt: skip
    if source == "metaworld":
        config = CollectConfig(
            **shared, explore=explore, retreat=retreat, apart=apart, either_way=either_way, agent=agent,
            agent_model=agent_model, camera=camera, varied_share=varied_share, random_start=random_start,
        )  # fmt: skip
        collect_metaworld(out, config, tasks=names or None, workers=workers)
    else:
        collect_fetch(out, FetchConfig(**shared), tasks=names or None, workers=workers)
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
