"""`vlp-gym collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vlp_gym.errors import DatasetError


def collect(
    source: Literal["metaworld"],
    /,
    *,
    out: Path,
    tasks: tuple[str, ...] = (),
    per_tier: int = 32,
    tiers: tuple[Literal["expert", "medium", "random"], ...] = ("expert", "medium", "random"),
    near_miss: int = 0,
    explore: int = 0,
    agent: int = 0,
    agent_model: str = "vlp-compact",
    stride: int = 5,
    size: int = 112,
    camera: str = "corner2",
    varied_share: float = 0.0,
    random_start: bool = False,
    seed: int = 0,
    workers: int | None = None,
    push_to_hub: str | None = None,
) -> None:
    """Collect rollouts of three tiers of skill (MTVLP); the same command again goes on where it stopped.

    Args:
        source: where the rollouts come from.
        out: folder for the parquet shards, one a task and tier.
        tasks: such as button-press-v3 door-close-v3; all 50 by default.
        per_tier: rollouts of each task and tier; may be 0 beside others.
        tiers: which of the three these are.
        near_miss: also so many rollouts a task that aim beside the object.
        explore: also so many rollouts a task that wander about the workspace and the object, as learning agents do.
        agent: also so many rollouts a task of an agent that learns from a reward model (minutes a task).
        agent_model: the reward model that it learns from.
        stride: environment steps between two stored frames.
        size: side of the stored square frames in pixels; 224 for models as large as CLIP.
        camera: corner, corner2, corner3, corner4, topview, behindGripper or gripperPOV. The same seed with
            another camera shows the same rollouts from there.
        varied_share: share of the rollouts with another camera, light and colours, from 0 to 1.
        random_start: let the hand start at a random place of the workspace, not always at the task's own.
        seed: of everything; two collections with the same seed are equal.
        workers: processes; one a core by default.
        push_to_hub: dataset on the Hugging Face hub, as org/name, that the shards are uploaded to.
    """
    from vlp_gym.metaworld.collect import collect_metaworld
    from vlp_gym.metaworld.config import CollectConfig
    from vlp_gym.metaworld.splits import known_task

    counts = {"per-tier": per_tier, "near-miss": near_miss, "explore": explore, "agent": agent}
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"--{name}: expected at least 0, got {value}")
    if not any(counts.values()):
        raise ValueError(f"expected something to collect: one of --{', --'.join(counts)} over 0")
    if stride < 1:
        raise ValueError(f"--stride: expected at least 1, got {stride}")
    if not 16 <= size <= 1024:
        raise ValueError(f"--size: expected 16 to 1024 pixels, got {size}")
    if not 0 <= varied_share <= 1:
        raise ValueError(f"--varied-share: expected 0 to 1, got {varied_share}")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers: expected at least 1, got {workers}")
    # An unknown task or model is refused before anything is written.
    names = [known_task(task) for task in tasks]
    if agent:
        from vlp_gym.models.registry import load_reward_model

        load_reward_model(agent_model)
    config = CollectConfig(
        per_tier=per_tier, tiers=tiers, near_miss=near_miss, explore=explore, agent=agent, agent_model=agent_model,
        stride=stride, size=size, camera=camera, varied_share=varied_share, random_start=random_start, seed=seed,
    )  # fmt: skip
    collect_metaworld(out, config, tasks=names or None, workers=workers)
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
