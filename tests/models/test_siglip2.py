"""SigLIP2 with LoRA, over a tiny base with random weights that transformers' own constructors made and saved."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from tests.own_code import with_own_code  # noqa: E402  # needs the lines above
from tests.tiny_bases import SIGLIP_LENGTH as LENGTH  # noqa: E402
from tests.tiny_bases import write_siglip as write_base  # noqa: E402
from vlp_gym.errors import CheckpointError, InstructionError  # noqa: E402
from vlp_gym.models.checkpoint import load_state  # noqa: E402
from vlp_gym.models.registry import load_reward_model  # noqa: E402
from vlp_gym.models.siglip2 import SigLIP2Model  # noqa: E402
from vlp_gym.testing import check_reward_model  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base):
    torch.manual_seed(1)
    return SigLIP2Model(base=base).eval()


@pytest.fixture
def trained(model):
    """Adapters that do something."""
    torch.manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def frames(count, size=32):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8))


def encode(model):
    with torch.inference_mode():
        return model.encode_frames(frames(3)), model.encode_text(["Press the button", "open the drawer"])


def test_keeps_the_promises_of_a_reward_model(trained):
    check_reward_model(trained)
    assert trained.frame_size == (32, 32)


def test_untrained_it_is_the_base(base, model):
    plain = transformers.SiglipModel.from_pretrained(base).eval()
    pixels = (frames(3).numpy().astype(np.float64) / 255 - 0.5) / 0.5
    rows = [[2, 3, 4], [9, 3, 10]]  # the words by hand, in lower case
    rows = torch.tensor([row + [1] * (LENGTH - len(row)) for row in rows])
    with torch.inference_mode():
        said = plain(input_ids=rows, pixel_values=torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2))
    seen, read = encode(model)
    np.testing.assert_allclose(seen[:, 0], said.image_embeds, atol=1e-5)
    np.testing.assert_allclose(read[:, 0], said.text_embeds, atol=1e-5)


def test_the_adapters_of_both_towers_are_trained_and_nothing_else(trained, model):
    names = [name for name, weight in trained.named_parameters() if weight.requires_grad]
    assert len(names) == 2 * 2 * 4 * 2  # towers, layers, projections, A and B
    assert all(".self_attn." in name and ".lora_" in name for name in names)
    seen, read = trained.encode_frames(frames(3)), trained.encode_text(["press the button", "open the drawer"])
    (seen.sum() + read.sum()).backward()
    for name, weight in trained.named_parameters():
        moved = weight.grad is not None and bool((weight.grad != 0).any())
        assert moved == (name in names), name


def test_an_adapter_adds_what_lora_says(trained):
    """W x + b + alpha / r B A x, in float64."""
    layer = trained.model.vision_model.encoder.layers[0].self_attn.q_proj
    x = np.random.default_rng(3).normal(size=(5, 16))

    def array(tensor):
        return tensor.detach().double().numpy()

    low, high = array(layer.lora_A["default"].weight), array(layer.lora_B["default"].weight)
    assert low.shape == (16, 16)
    expected = x @ array(layer.base_layer.weight).T + array(layer.base_layer.bias) + 32 / 16 * (x @ low.T @ high.T)
    with torch.inference_mode():
        np.testing.assert_allclose(layer(torch.tensor(x, dtype=torch.float32)), expected, atol=1e-5)


def test_a_checkpoint_holds_the_adapters_alone(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    assert set(trained.checkpoint_state()) == {name for name, w in trained.named_parameters() if w.requires_grad}
    assert (tmp_path / "model.safetensors").stat().st_size < 100_000
    again = load_reward_model(tmp_path)
    assert isinstance(again, SigLIP2Model)
    for one, other in zip(encode(again), encode(trained), strict=True):
        assert torch.equal(one, other)


def test_a_training_does_not_go_on_over_another_base(base, tmp_path):
    """Its saved state holds the adapters alone, and they would fit."""
    pytest.importorskip("accelerate")
    from rollouts import painted_tasks

    from vlp_gym.training.loop import train
    from vlp_gym.training.recipe import TrainConfig
    from vlp_gym.training.recipes.embedding import EmbeddingRecipe

    def go_on(name):
        recipe = EmbeddingRecipe(painted_tasks(["push-v3"]), "triplet", batch_size=4, samples=4)
        return train(SigLIP2Model(base=name, truncate=True), recipe, tmp_path / "run", config, progress_bar=False)

    config = TrainConfig(steps=1)
    history = go_on(base)
    assert go_on(base) == history
    other = write_base(tmp_path / "other", seed=1)
    with pytest.raises(ValueError) as caught:
        go_on(other)
    assert str(caught.value) == (
        f"{tmp_path / 'run'} holds a run with other settings (then, now): {{'model.base': ({base!r}, {other!r})}}; "
        "choose another --out"
    )


def test_weights_of_the_base_in_a_checkpoint_are_refused(trained):
    state = {**trained.checkpoint_state(), "model.logit_scale": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unexpected model\.logit_scale$"):
        load_state(trained, state, "here")


def test_a_long_sentence_is_refused_or_cut(base, model):
    sentence = " ".join(["press"] * (LENGTH + 1))
    with pytest.raises(InstructionError, match="the instruction has 13 tokens, the model reads 12"):
        model.encode_text([sentence])
    cut = SigLIP2Model(base=base, truncate=True).eval()
    with torch.inference_mode():
        assert torch.equal(cut.encode_text([sentence]), cut.encode_text([" ".join(["press"] * LENGTH)]))


def test_a_base_that_is_not_there(tmp_path, trained):
    with pytest.raises(CheckpointError) as caught:
        SigLIP2Model(base="no-such/base")
    assert re.fullmatch(
        r"no-such/base: the pretrained base is not there \(.+\)\. Download it where there is a network "
        r"\(hf download no-such/base\), or pass base= the folder of a copy; the embedding model trains and loads "
        r"without any download",
        str(caught.value),
    )
    trained.config["base"] = "no-such/base"
    trained.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"^no-such/base: the pretrained base is not there"):
        load_reward_model(tmp_path)


def test_code_in_a_base_is_not_run(base, tmp_path, monkeypatch):
    """Not even for those who would answer "y" when asked."""
    folder = tmp_path / "base"
    ran = with_own_code(base, folder, monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        SigLIP2Model(base=str(folder))
    assert not ran.exists()
    assert str(caught.value).startswith(
        f"{folder}: the pretrained base is not there (The repository {folder} contains custom code which must be "
        "executed to correctly load the model."
    )


def test_a_base_of_another_kind(tmp_path):
    transformers.Siglip2Config().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        SigLIP2Model(base=str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: expected a SigLIP or SigLIP2 of one fixed resolution (model_type 'siglip'), got 'siglip2'; "
        "take google/siglip2-base-patch16-224 or another -patch16-NNN"
    )
