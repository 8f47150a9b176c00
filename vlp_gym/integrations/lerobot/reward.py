"""LeRobot's reward model over one of ours: its configuration, itself, its processors.

LeRobot finds the class and the processors by their names, in the module of the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlp_gym.engine.batch import split_rows
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.windows import window_indices
from vlp_gym.errors import FrameError, InstructionError, missing_extra
from vlp_gym.rewards.shaping import score_of
from vlp_gym.text import normalize_instruction

try:
    from lerobot.configs.rewards import RewardModelConfig
    from lerobot.processor import (
        AddBatchDimensionProcessorStep,
        PolicyProcessorPipeline,
        policy_action_to_transition,
        transition_to_policy_action,
    )
    from lerobot.rewards import PreTrainedRewardModel
    from lerobot.utils.constants import (
        OBS_IMAGE,
        POLICY_POSTPROCESSOR_DEFAULT_NAME,
        POLICY_PREPROCESSOR_DEFAULT_NAME,
    )
except ImportError as error:
    raise missing_extra(error, 'LeRobot is not installed: pip install "vlp_gym[lerobot]"') from error


@RewardModelConfig.register_subclass("vlp")
@dataclass
class VLPConfig(RewardModelConfig):
    """Which model, and where it finds pictures and sentences in a batch.

    Attributes:
        model: name for `vlp_gym.load_reward_model`: a shipped model, a folder, a hub id, the address of a server. None
            takes `pretrained_path`, which may be such a name too.
        image_key: the camera; None takes the only one of a batch.
        task_key: the sentences.
        default_task: the sentence of a batch without any.
        reward: "progress", times the probability that the sentence applies, or "preference", for models without
            progress.
    """

    model: str | None = None
    image_key: str | None = None
    task_key: str = "task"
    default_task: str | None = None
    reward: str = "progress"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward not in ("progress", "preference"):
            raise ValueError(f"reward must be 'progress' or 'preference', got {self.reward!r}")


class VLPRewardModel(PreTrainedRewardModel):
    """What `VLPRewardWrapper` would pay for the last frame of a clip.

    What it saves is its configuration, as LeRobot's TOPReward does: weights stay where `VLPConfig.model` says. It is
    trained by `vlp-gym train`, not by ``lerobot-train``.

    Args:
        config: where it says no `device`, LeRobot chooses one.

    Raises:
        ValueError: no model is named, or it does not exist.
    """

    name = "vlp"
    config_class = VLPConfig

    def __init__(self, config: VLPConfig, **_: Any) -> None:
        super().__init__(config)
        named = config.model or config.pretrained_path
        if not named:
            raise ValueError("expected the name of a reward model, got none; set model, such as model='vlp-compact'")
        config.model = named
        self.guard = GuardedModel(named, device=config.device)
        self._texts: dict[str, Tensor] = {}

    def compute_reward(self, batch: Mapping[str, Any]) -> Tensor:
        """Rewards float ``[B]``, in [0, 1] for "progress".

        Args:
            batch: under `VLPConfig.image_key` the frames of B episodes up to now, oldest first, uint8 or floats in
                [0, 1], ``[B, T, C, H, W]``, or one of each, ``[B, C, H, W]``; under `VLPConfig.task_key` one sentence,
                or B. Frames that are marked in ``"KEY_is_pad"``, bool ``[B, T]``, are left out.

        Raises:
            FrameError: there are no frames, or others than these.
            InstructionError: there is no sentence, or one that the model cannot take.
            QueryError: what the model raises, or if it answers NaN or inf.
        """
        key = self._camera(batch)
        clips = _pixels(batch[key], key)
        padded = batch.get(f"{key}_is_pad")
        sentences = self._sentences(batch, len(clips))
        model = self.guard.model
        tokens, masks = [], []
        for row, clip in enumerate(clips):
            frames = clip if padded is None else clip[~padded[row].to(clip.device)]
            if not len(frames):
                raise FrameError(f"expected at least one frame in each clip of {key}, got none in row {row}")
            indices, mask = window_indices(len(frames), model.window, model.history)
            chosen, places = np.unique(indices, return_inverse=True)
            encoded = self.guard.encode_frames(frames[torch.from_numpy(chosen)], where=f"row {row}")
            tokens.append(encoded[torch.from_numpy(places).to(encoded.device)])
            masks.append(mask)
        text = torch.nn.utils.rnn.pad_sequence([self._text(sentence) for sentence in sentences], batch_first=True)
        real = torch.from_numpy(np.stack(masks)).to(self.guard.device)
        scores = self.guard.score(torch.stack(tokens), text, real, where=f"{len(clips)} clips")
        rewards = [score_of(self.config.reward, *row) for row in split_rows(scores)]
        return torch.tensor(rewards, dtype=torch.float32, device=self.guard.device)

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: RewardModelConfig | None = None, **options: Any
    ) -> VLPRewardModel:
        """Load what `save_pretrained` wrote, from a folder or the hub; with a `config` it is `VLPRewardModel(config)`.

        Args:
            pretrained_name_or_path: the folder, or the hub id.
            config: the configuration, where LeRobot has read it already.
            options: of LeRobot's download.
        """
        if config is None:
            hub = {name: value for name, value in options.items() if name != "strict"}
            config = RewardModelConfig.from_pretrained(pretrained_name_or_path, **hub)
        if not isinstance(config, VLPConfig):
            raise TypeError(f"expected the configuration of a reward model of type vlp, got a {type(config).__name__}")
        return cls(config)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.config._save_pretrained(save_directory)

    def _camera(self, batch: Mapping[str, Any]) -> str:
        cameras = [key for key, value in batch.items() if _is_camera(key, value)]
        wanted = self.config.image_key
        if wanted in cameras or (wanted is None and len(cameras) == 1):
            return wanted or cameras[0]
        expected = "one camera" if wanted is None else wanted
        raise FrameError(f"expected frames of {expected} in the batch, got {cameras or 'none'}; see image_key")

    def _sentences(self, batch: Mapping[str, Any], count: int) -> list[str]:
        tasks: str | Sequence[str] | None = batch.get(self.config.task_key, self.config.default_task)
        if tasks is None:
            raise InstructionError(
                f"expected sentences under {self.config.task_key!r}, found none; see task_key, default_task"
            )
        sentences = [tasks] * count if isinstance(tasks, str) else list(tasks)
        if len(sentences) != count:
            raise InstructionError(f"expected {count} sentences under {self.config.task_key!r}, got {len(sentences)}")
        return [normalize_instruction(sentence) for sentence in sentences]

    def _text(self, sentence: str) -> Tensor:
        """Its tokens ``[L, D]``, encoded once."""
        if sentence not in self._texts:
            self._texts[sentence] = self.guard.encode_text([sentence], where=f"instruction {sentence!r}")[0]
        return self._texts[sentence]


def make_vlp_pre_post_processors(
    config: VLPConfig, dataset_stats: Mapping[str, Any] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """LeRobot's pipelines before and after the model: a sample becomes a batch of one; pictures are not normalized."""
    before = PolicyProcessorPipeline(steps=[AddBatchDimensionProcessorStep()], name=POLICY_PREPROCESSOR_DEFAULT_NAME)
    after = PolicyProcessorPipeline(
        steps=[],
        name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after


def _is_camera(key: str, value: Any) -> bool:
    return key.startswith(OBS_IMAGE) and isinstance(value, Tensor) and value.ndim >= 4


def _pixels(frames: Tensor, key: str) -> Tensor:
    """As uint8 ``[B, T, H, W, 3]``."""
    clips = frames.unsqueeze(1) if frames.ndim == 4 else frames
    if clips.ndim != 5 or clips.shape[2] != 3:
        raise FrameError(f"expected frames [B, T, 3, H, W] or [B, 3, H, W] under {key}, got {list(frames.shape)}")
    clips = clips.movedim(2, -1)
    if clips.dtype == torch.uint8:
        return clips
    if not (clips.is_floating_point() and bool(((clips >= 0) & (clips <= 1)).all())):
        raise FrameError(f"expected uint8, or floats in [0, 1] that are not normalized, under {key}, got {clips.dtype}")
    return (clips * 255).round().to(torch.uint8)
