"""A vision-language model that `transformers` runs here: the smallest that its own constructors make."""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlp_gym.errors import CheckpointError, MissingExtraError, QueryError
from vlp_gym.models.prompted.gvl import GVLModel
from vlp_gym.models.prompted.topreward import TOPRewardModel
from vlp_gym.models.registry import load_reward_model
from vlp_gym.prompting import LocalChat
from vlp_gym.prompting.content import Chat
from vlp_gym.prompting.workers import concurrently
from vlp_gym.testing import check_reward_model

pytest.importorskip("transformers")

SPECIAL = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> Any:
    """Bytes, "True" with and without a space before it, and the special tokens of Qwen2-VL."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("T", "r"), ("Tr", "u"), ("Tru", "e"), ("Ġ", "True")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [f"<|{name}|>" for name in SPECIAL]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        model_max_length=4096,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2-VL with its processor, as the hub would give it."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = tiny_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in SPECIAL}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "bos_token_id": None,
        "eos_token_id": ids["im_end"],
        "pad_token_id": ids["endoftext"],
    }
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 14, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    path = tmp_path_factory.mktemp("qwen")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2VLForConditionalGeneration(config).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def chat(folder: Path) -> LocalChat:
    return LocalChat(str(folder), device="cpu", cache=None, max_tokens=6, attempts=1)


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8)


def test_it_answers_in_words_the_same_twice(chat: LocalChat) -> None:
    assert isinstance(chat, Chat)
    before, state = chat.stats(), torch.get_rng_state()
    first = chat.ask(["look", noise(), "what is it?"], str)
    assert first == chat.ask(["look", noise(), "what is it?"], str)
    assert torch.equal(torch.get_rng_state(), state)
    after = chat.stats()
    assert after["requests"] - before["requests"] == 2
    assert 0 < after["completion_tokens"] - before["completion_tokens"] <= 12
    assert after["prompt_tokens"] - before["prompt_tokens"] > 2 * len("lookwhat is it?")  # bytes, and the picture


def test_log_probabilities_are_those_of_the_next_token(chat: LocalChat) -> None:
    """Against the logits of the model, asked by hand with the prompt as a string."""
    from PIL import Image

    processor, model = chat._processor, chat._model
    prompt = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>done?<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[prompt], images=[Image.fromarray(noise())], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1].double().numpy()
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    ids = [processor.tokenizer.convert_tokens_to_ids(token) for token in ("True", "ĠTrue")]
    expected = np.log(probabilities[ids].sum())
    value, other = chat.logprobs([noise(), "done?"], ["True", "N"])
    assert value == pytest.approx(expected, abs=1e-5)
    letter = processor.tokenizer.convert_tokens_to_ids("N")
    assert other == pytest.approx(np.log(probabilities[letter]), abs=1e-5)
    assert chat.logprobs([noise(1), "done?"], ["True"])[0] != value  # the picture is seen
    with pytest.raises(QueryError) as caught:
        chat.logprobs([noise(), "done?"], ["False"])
    assert str(caught.value) == f"{chat.name}: 'False' is 5 tokens, expected 1; take another model"


def test_a_reward_model_of_it_keeps_its_promises(chat: LocalChat) -> None:
    check_reward_model(TOPRewardModel(chat, frame_size=28))


def test_a_model_that_talks_nonsense_is_an_error(chat: LocalChat) -> None:
    with pytest.raises(
        QueryError, match=r" was asked once, and the answer could not be read, because frames \[1\] of 1"
    ):
        GVLModel(chat, frame_size=28).values(np.stack([noise(), noise(1)]), "open the drawer")


def test_it_is_made_by_name_and_keeps_answers_of_these_weights_only(folder: Path, tmp_path: Path) -> None:
    spec = f"topreward:local/{folder}?device=cpu&dtype=float32&cache={tmp_path}&max_tokens=5&frame_size=28"
    model = load_reward_model(spec)
    assert isinstance(model, TOPRewardModel)
    video = np.stack([noise()])
    values = model.values(video, "open the drawer")
    assert (values <= 0).all()
    again = load_reward_model(spec)
    assert isinstance(again, TOPRewardModel)
    assert again.values(video, "open the drawer").tolist() == values.tolist()
    assert again.chat.stats()["cached"] == 1
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # as if it had been trained on
    trained = load_reward_model(spec)
    assert isinstance(trained, TOPRewardModel)
    trained.values(video, "open the drawer")
    assert trained.chat.stats()["cached"] == 0
    trained.chat.close()


def test_code_of_the_repository_is_not_run_whatever_the_terminal_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    code = {"AutoConfig": "own.C", "AutoModelForImageTextToText": "own.M", "AutoProcessor": "own.P"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": code}))
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "P", "auto_map": code}))
    (tmp_path / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass P: pass\nC = M = P\n")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    with pytest.raises(CheckpointError):
        LocalChat(str(tmp_path), device="cpu")
    assert (asked, mark.exists()) == ([], False)


def test_what_nobody_waits_for_is_not_generated(chat: LocalChat, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves after the token in work: a thread inside torch at the end of the process would abort it."""
    tokens, ends = threading.Semaphore(0), threading.Semaphore(0)
    forward = type(chat._model).forward

    @functools.wraps(forward)  # generate looks at the names of its arguments
    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        tokens.release()
        time.sleep(0.05)
        return forward(self, *args, **kwargs)

    def work(item: int) -> str:
        if item:
            assert tokens.acquire(timeout=20.0)
            raise QueryError("the other row")
        try:
            return chat.ask([noise(), "what is it?"], str)
        finally:
            ends.release()

    monkeypatch.setattr(chat, "max_tokens", 500)
    monkeypatch.setattr(type(chat._model), "forward", slow)
    with pytest.raises(QueryError, match=r"^the other row$"):
        concurrently(work, [0, 1], 2)
    assert ends.acquire(timeout=5.0)  # 500 tokens take 25 s
    assert not chat._lock.locked()


def test_what_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError) as caught:
        LocalChat(str(tmp_path))
    assert str(caught.value).startswith(f"transformers could not load the vision-language model {str(tmp_path)!r}: ")
    assert str(caught.value).endswith("\nGive a folder, or connect this machine once; the files are then cached")
    with pytest.raises(ValueError, match=r"^max_tokens of a local model must be at least 1, got None$"):
        LocalChat(str(tmp_path), max_tokens=None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError) as missing:
        LocalChat(str(tmp_path))
    assert str(missing.value) == ('a local chat model needs the package transformers: pip install "vlp_gym[vlm]"')
