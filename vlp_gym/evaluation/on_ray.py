"""Videos shared out over a Ray cluster, each process of which has a copy of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vlp_gym.data.on_ray import own_errors, start_ray
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.engine.video import VideoScorer
from vlp_gym.evaluation.demonstrations import ask_video, shown_frames
from vlp_gym.evaluation.score_log import Scored, ScoreLog
from vlp_gym.models.registry import best_device, load_reward_model


def score_ahead(
    model: str,
    trajectories: Iterable[Trajectory],
    log: ScoreLog,
    instructions: Sequence[str | None],
    *,
    goals: Mapping[str, NDArray[np.uint8]],
    frames: int,
) -> None:
    """Write into the log what the model says of each video, for `score_dataset`, whose other arguments these are.

    There is one process for each GPU of the cluster, or for each core if it has none. Videos are sent to those that are
    idle, so that no more are in memory than there are processes.

    Args:
        model: its name; each process loads it.
        trajectories: the videos.
        log: those that it knows are not asked about again.
        instructions: under which each video is asked about; None: its own.
        goals: see `score_dataset`.
        frames: see `score_dataset`.

    Raises:
        QueryError: see `score_dataset`.
        DatasetError: Ray has lost a process.
    """
    ray = start_ray()
    from ray.util import ActorPool

    held = ray.cluster_resources()
    kind = "GPU" if held.get("GPU", 0) >= 1 else "CPU"
    share = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
    maker, shared = ray.remote(_Worker).options(**share), ray.put(dict(goals))
    pool = ActorPool([maker.remote(model, shared) for _ in range(max(int(held.get(kind, 1)), 1))])
    with own_errors(ray), tqdm(desc="scoring on Ray", unit="video") as bar:
        for trajectory in trajectories:
            shown = trajectory.frames[shown_frames(trajectory, frames)]
            for instruction in instructions:
                sentence = instruction or trajectory.canonical
                key = log.key(shown, sentence)
                if key in log.known:
                    continue
                if not pool.has_free():
                    _take(pool, log, bar)
                pool.submit(lambda actor, video: actor.ask.remote(*video), (shown, sentence, trajectory.name, key))
        while pool.has_next():
            _take(pool, log, bar)


def _take(pool: Any, log: ScoreLog, bar: Any) -> None:
    log.add(pool.get_next_unordered())
    bar.update()


class _Worker:
    """One process of the cluster."""

    def __init__(self, model: str, goals: Mapping[str, NDArray[np.uint8]]) -> None:
        self.device = best_device()
        self.model, self.goals = load_reward_model(model, device=self.device), goals
        self.scorers: dict[str, VideoScorer] = {}  # by sentence

    def ask(self, frames: NDArray[np.uint8], sentence: str, name: str, key: str) -> Scored:
        """What the model says of one video."""
        if sentence not in self.scorers:
            self.scorers[sentence] = VideoScorer(self.model, [sentence], self.device, goals=self.goals)
        return ask_video(self.scorers[sentence], frames, sentence, name, key)
