"""R3M: a ResNet trained on human videos, and its language reward: progress of the video towards the sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlp_gym.errors import CheckpointError, import_extra
from vlp_gym.models.backbones.hub import Pretrained, mean_word
from vlp_gym.models.backbones.resnet import OnResNet, resnet_layers
from vlp_gym.models.checkpoint import CheckpointMixin, load_state
from vlp_gym.models.config import Count, Width
from vlp_gym.models.protocol import History, Scores, frame_scores
from vlp_gym.models.published.convert import without_prefix

NEEDS = "R3M needs transformers"
TOKENIZER = "distilbert-base-uncased"
HEAD_DIM = 64  # width of DistilBERT's attention heads, at every model width
_POSITION_IDS = "lang_enc.model.embeddings.position_ids"  # 0, 1, 2, ...; stored by some versions of transformers


class R3MModel(OnResNet, CheckpointMixin):
    """R3M's language reward ``G(e_0, e_t, l)``, any real number (Nair et al. 2022, video-language alignment).

    An MLP takes the embeddings of the episode's first frame, of the current frame and of the sentence, the mean over
    DistilBERT's tokens without padding. For one sentence at a time, that is what the authors' code does. In a batch of
    sentences of unequal lengths theirs also averages the padding, so that a reward depends on the other sentences.
    Frames are resized and cropped as `OnResNet` says; D is 512, for ResNet-50 2048.

    Args:
        resnet: layers of the ResNet, 18, 34 or 50.
        hidden: width of the MLP's four hidden layers.
        text_dim: width of DistilBERT.
        text_layers: number of its layers.
        text_heads: number of its attention heads.
        text_hidden: width of its feed-forward layers.
        vocabulary: size of its vocabulary.
        text_length: its token limit.
        tokenizer: a hub id, downloaded once and then cached, or a local folder with a `transformers` tokenizer; loaded
            with the first sentence.
        truncate: truncate sentences over the token limit instead of raising.
    """

    model_type = "r3m"
    window = 8
    history: History = "prefix"
    value_range = (-float("inf"), float("inf"))
    anchored = True

    def __init__(
        self,
        *,
        resnet: Count = 50,
        hidden: Width = 1024,
        text_dim: Width = 768,
        text_layers: Count = 6,
        text_heads: Count = 12,
        text_hidden: Width = 3072,
        vocabulary: Width = 30522,
        text_length: Width = 512,
        tokenizer: str = TOKENIZER,
        truncate: bool = False,
    ) -> None:
        super().__init__(resnet)
        self.truncate = truncate
        transformers = import_extra("transformers", NEEDS, "vlm")
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

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; raises `CheckpointError` if it cannot be loaded."""
        name, words = self.config["tokenizer"], self.config["vocabulary"]
        tokenizer = Pretrained(
            name,
            NEEDS,
            "R3M's {} is neither in such a folder nor on the hub",
            "It is downloaded once and then cached: connect this machine once, or convert the checkpoint again with "
            'the path of a folder that holds it as `tokenizer`. The model "vlp-compact" works offline.',
        ).tokenizer()
        if len(tokenizer) > words:
            raise CheckpointError(
                f"R3M's tokenizer {name!r} has {len(tokenizer)} words, the checkpoint's DistilBERT knows {words}"
            )
        return tokenizer

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """Encode B sentences as one token each, the mean over their tokens, float ``[B, 1, text_dim]``.

        Raises:
            InstructionError: a sentence is blank, or too long and ``truncate`` is False.
            CheckpointError: the tokenizer cannot be loaded.
        """
        limit = self.config["text_length"]
        return mean_word(self.lang_enc["model"], self.tokenizer, instructions, limit, truncate=self.truncate)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """The language reward of each frame, float ``[B, T]``, unbounded; shapes as in `RewardModel`.

        ``e_0`` is the first frame of the window, masked out or not; with history "prefix" it is the episode's first.
        """
        seen = frames[:, :, 0]
        inputs = torch.cat([seen[:, :1].expand_as(seen), seen, text.expand(-1, seen.shape[1], -1)], dim=-1)
        return frame_scores(self.lang_rew["pred"](inputs).squeeze(-1), mask)


def from_published(state: Mapping[str, Tensor], **options: Any) -> R3MModel:
    """Build the model from a published state; sizes follow from the tensors.

    Keys are ``convnet.*``, ``lang_enc.model.*`` and ``lang_rew.pred.*``, under ``module.``. Options are the tokenizer
    and ``truncate`` of `R3MModel`; errors as `load_state`.
    """
    weights = without_prefix(state, "module.")
    positions = weights.get(_POSITION_IDS)
    if positions is not None and torch.equal(positions.flatten(), torch.arange(positions.numel())):
        del weights[_POSITION_IDS]
    model = R3MModel(resnet=resnet_layers(weights), **_text_sizes(weights), **options)
    load_state(model, weights, "R3M")
    return model


def _text_sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the text model from its tensors; the published size where one is missing, which loading reports."""

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
