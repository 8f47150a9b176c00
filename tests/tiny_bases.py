"""Tiny pretrained models of `transformers` in folders, with random weights, as a download would leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PLAIN = ["press", "the", "button", "close", "door", "and", "then", "open", "drawer", "please"]
WORDS = [*SPECIAL, *PLAIN, ","]
SIGLIP_WORDS = [*PLAIN, "slowly"]
SIGLIP_LENGTH = 12
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_siglip(folder: Path, seed: int = 0) -> str:
    """A SigLIP with its tokenizer."""
    torch.manual_seed(seed)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**SIZES, **special, "vocab_size": 32, "max_position_embeddings": SIGLIP_LENGTH, "projection_size": 16}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    for weight in model.parameters():  # its own start leaves all frames nearly alike
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    vocabulary = {word: row for row, word in enumerate(["<unk>", "<pad>", *SIGLIP_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def write_encoders(folder: Path) -> dict[str, Any]:
    """A DINOv2 and a BERT with its tokenizer; returns the arguments of a ReWiND model that name them."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.Dinov2Config(hidden_size=12, image_size=42, patch_size=14, **small)
    transformers.Dinov2Model(vision).save_pretrained(folder / "dino")
    language = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=10, intermediate_size=20, max_position_embeddings=14, **small
    )
    transformers.BertModel(language).save_pretrained(folder / "bert")
    write_tokenizer(folder / "bert")
    return {"frame_encoder": str(folder / "dino"), "text_encoder": str(folder / "bert"), "frame_size": 28}


def write_tokenizer(folder: Path) -> str:
    """BERT's tokenizer of 16 words, which is DistilBERT's, too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)
