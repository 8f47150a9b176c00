"""Tiny random Qwen2.5-VL and Qwen3-VL with a tiny tokenizer, saved as a hub would deliver them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPARE = 9  # rows of the embedding beyond the tokenizer's words; the real models have some hundreds
CORPUS = [
    "The task for the robot is 'press the button'. Given the trajectory video, predict the task progress at each",
    "frame, how far along the robot is towards completing the task, a float between 0 and 1, where 0 is the start.",
    "Picture 1: This is Trajectory A. evaluate which one makes more progress. Now predict the preference. user",
]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
}
VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen's; every text has a spelling."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0])


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """What the model's config says of the tokenizer."""
    names = {"image": "<|image_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    return {**ids, "video_token_id": len(tokenizer) + SPARE - 1}


def tiny_qwen2_5(folder: Path, seed: int = 0, width: int = 32, layers: int = 2) -> str:
    """A Qwen2.5-VL; 28 pixels a token, windows of 2 x 2 tokens in its first vision layer. `width` of the language."""
    tokenizer = tiny_tokenizer()
    rope = {**TEXT["rope_parameters"], "mrope_section": [width // 16, width // 32, width // 32]}
    text = {"hidden_size": width, "intermediate_size": width * 3 // 2, "head_dim": width // 4, "rope_parameters": rope}
    seen = {"hidden_size": width // 2, "intermediate_size": width * 3 // 4, "out_hidden_size": width}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, **text, "num_hidden_layers": layers, "vocab_size": len(tokenizer) + SPARE},
        vision_config={**VISION, **seen, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    return saved(Qwen2_5_VLForConditionalGeneration, config, tokenizer, folder, seed)


def tiny_qwen3_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """A Qwen3-VL; 32 pixels a token, DeepStack from its first vision layer."""
    vision = {**VISION, "patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer) + SPARE},
        vision_config=vision,
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )


def tiny_qwen3(folder: Path, seed: int = 0) -> str:
    """A Qwen3-VL in a folder."""
    tokenizer = tiny_tokenizer()
    return saved(Qwen3VLForConditionalGeneration, tiny_qwen3_config(tokenizer), tokenizer, folder, seed)


def saved(model_class, config, tokenizer, folder: Path, seed: int) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():  # at the usual 0.02 the layers add next to nothing, and faults would stay invisible
            for name, weight in model.named_parameters():
                if weight.ndim > 1:
                    weight.mul_(5.0 if "embed_tokens" in name else 8.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
