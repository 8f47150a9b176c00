"""R3M: a ResNet trained on human videos, and its language reward: how far the video went towards the sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError, MissingExtraError
from vlp_gym.models.backbones.resnet import make_resnet, resnet_layers
from vlp_gym.models.checkpoint import CheckpointMixin, load_state
from vlp_gym.models.pictures import IMAGENET_MEAN, IMAGENET_STD, cropped_pictures, per_channel
from vlp_gym.models.protocol import History, Scores, frame_scores
from vlp_gym.models.published.convert import without_prefix
from vlp_gym.text import check_length, normalize_instruction

TOKENIZER = "distilbert-base-uncased"
HEAD_DIM = 64  # of DistilBERT's attention, whatever its width
_POSITION_IDS = "lang_enc.model.embeddings.position_ids"  # 0, 1, 2, ...: some versions of transformers stored them


class R3MModel(nn.Module, CheckpointMixin):
    """R3M's language reward ``G(e_0, e_t, l)``, a raw number (Nair et al. 2022, its video-language alignment).

    An MLP looks at the first frame of the episode, at the frame itself and at the sentence, whose embedding is the mean
    over DistilBERT's tokens, padding left out. The shorter side of a frame is resized to 256 pixels and the middle
    224 x 224 cut out; frames of 224 x 224 stay as they are.

    Args:
        resnet: layers of the ResNet, 18, 34 or 50.
        hidden: width of the MLP's four hidden layers.
        text_dim: width of DistilBERT.
        text_layers: its layers.
        text_heads: its attention heads.
        text_hidden: width of its feed-forward parts.
        vocabulary: number of words it knows.
        text_length: tokens it reads at most.
        tokenizer: a hub id, downloaded once and then cached, or a local folder that holds a tokenizer of
            `transformers`; loaded with the first sentence.
        truncate: cut a sentence that is longer than that, instead of raising.
    """

    model_type = "r3m"
    window = 8
    history: History = "prefix"
    frame_size = (224, 224)
    value_range = (-float("inf"), float("inf"))
    anchored = True

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        resnet: int = 50,
        hidden: int = 1024,
        text_dim: int = 768,
        text_layers: int = 6,
        text_heads: int = 12,
        text_hidden: int = 3072,
        vocabulary: int = 30522,
        text_length: int = 512,
        tokenizer: str = TOKENIZER,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        self.truncate = truncate
        transformers = _transformers()
        self.convnet = make_resnet(resnet)
        dim = self.convnet.fc.in_features
        self.convnet.fc = nn.Identity()
        distilbert = transformers.DistilBertConfig(
            dim=text_dim,
            n_layers=text_layers,
            n_heads=text_heads,
            hidden_dim=text_hidden,
            vocab_size=vocabulary,
            max_position_embeddings=text_length,
        )
        self.lang_enc = nn.ModuleDict({"model": transformers.DistilBertModel(distilbert)})
        layers: list[nn.Module] = [nn.Linear(2 * dim + text_dim, hidden), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Linear(hidden, hidden), nn.ReLU()]
        self.lang_rew = nn.ModuleDict({"pred": nn.Sequential(*layers, nn.Linear(hidden, 1))})
        self.register_buffer("mean", per_channel(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std", per_channel(IMAGENET_STD), persistent=False)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; a `CheckpointError` if it is neither here nor to be had."""
        name, words = self.config["tokenizer"], self.config["vocabulary"]
        try:
            tokenizer = _transformers().AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"R3M's tokenizer {name!r} could not be loaded, neither from a local folder nor from the hub: {error}\n"
                "It is downloaded once and then cached; connect this machine once, or convert the checkpoint anew with "
                'the path of a folder that holds it as `tokenizer`. The model "vlp-compact" works offline.'
            ) from error
        if len(tokenizer) > words:
            raise CheckpointError(
                f"R3M's tokenizer {name!r} has {len(tokenizer)} words, the checkpoint's DistilBERT knows {words}"
            )
        return tokenizer

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as one token each, the mean over their words, float ``[B, 1, text_dim]``.

        Raises:
            InstructionError: a sentence is blank, or too long and ``truncate`` is False.
            CheckpointError: the tokenizer cannot be loaded.
        """
        sentences = [normalize_instruction(instruction) for instruction in instructions]
        limit = self.config["text_length"]
        for ids in self.tokenizer(sentences, verbose=False)["input_ids"]:
            check_length(len(ids), limit, truncate=self.truncate)
        tokens = self.tokenizer(sentences, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        words, real = (tokens[key].to(self.mean.device) for key in ("input_ids", "attention_mask"))
        embeddings: Tensor = self.lang_enc["model"](input_ids=words, attention_mask=real).last_hidden_state
        weights = real.to(embeddings.dtype).unsqueeze(-1)
        return (embeddings * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encode N frames, uint8 ``[N, H, W, 3]`` of any size, float ``[N, 1, D]``, D 512, or 2048 of ResNet-50."""
        pictures = cropped_pictures(frames, 256, self.frame_size[0], self.mean.device)
        features: Tensor = self.convnet((pictures - self.mean) / self.std)
        return features[:, None]

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The language reward of each frame, ``[B, T]``, any number; shapes as in `RewardModel`.

        ``e_0`` is the first frame of the window, masked out or not, which under the history "prefix" is the episode's.
        """
        seen = frames[:, :, 0]
        inputs = torch.cat([seen[:, :1].expand_as(seen), seen, text.expand(-1, seen.shape[1], -1)], dim=-1)
        values: Tensor = self.lang_rew["pred"](inputs).squeeze(-1)
        return frame_scores(values, mask)


def from_published(state: Mapping[str, Tensor], *, tokenizer: str = TOKENIZER, truncate: bool = False) -> R3MModel:
    """The model of a published state, keys under ``module.``; its tensors say how large it is.

    Args:
        state: tensors by name, ``convnet.*``, ``lang_enc.model.*`` and ``lang_rew.pred.*``.
        tokenizer: of the model.
        truncate: of the model.

    Raises:
        CheckpointError: keys are missing, unexpected or misshaped; it lists them.
    """
    weights = without_prefix(state, "module.")
    positions = weights.get(_POSITION_IDS)
    if positions is not None and torch.equal(positions.flatten(), torch.arange(positions.numel())):
        del weights[_POSITION_IDS]
    model = R3MModel(resnet=resnet_layers(weights), **_text_sizes(weights), tokenizer=tokenizer, truncate=truncate)
    load_state(model, weights, "R3M")
    return model


def _text_sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes that the tensors tell; where one is missing the published size, and loading lists what is wrong."""

    def rows(key: str, otherwise: int) -> int:
        tensor = weights.get(key)
        return tensor.shape[0] if tensor is not None and tensor.ndim else otherwise

    bert = "lang_enc.model."
    dim = rows(f"{bert}embeddings.LayerNorm.weight", 768)
    layer = f"{bert}transformer.layer."
    return {
        "hidden": rows("lang_rew.pred.0.bias", 1024),
        "text_dim": dim,
        "text_layers": len({key[len(layer) :].split(".")[0] for key in weights if key.startswith(layer)}) or 6,
        "text_heads": max(1, dim // HEAD_DIM),
        "text_hidden": rows(f"{layer}0.ffn.lin1.bias", 3072),
        "vocabulary": rows(f"{bert}embeddings.word_embeddings.weight", 30522),
        "text_length": rows(f"{bert}embeddings.position_embeddings.weight", 512),
    }


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError('R3M needs transformers: pip install "vlp_gym[vlm]"') from error
    return transformers
