"""RoboCLIP: S3D-G against plain convolutions in float64, clips, demonstrations, and the published layout."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from vlp_gym.errors import CheckpointError, InstructionError
from vlp_gym.models.backbones.s3dg import S3DG, Mixed, SelfGating, pool_same, space_to_depth
from vlp_gym.models.registry import load_reward_model
from vlp_gym.models.roboclip import RoboCLIPModel, from_published, read_vocabulary, spread
from vlp_gym.testing import PaintedEnv, check_reward_model
from vlp_gym.video import read_video
from vlp_gym.wrappers import VLPRewardWrapper

WORDS = ["press", "the", "button", "close", "door", "and", "then", "open", "drawer", "please", "it's"]
SIZES = {"width": 1 / 16, "embedding": 16, "word_dim": 6, "text_hidden": 12}


def random_norms(model, seed=0):
    """Batch norms as after training, and weights large enough that the video still shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    ranges = {"running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5), "weight": (1.0, 1.6), "bias": (-0.3, 0.3)}
    for part in model.modules():
        if isinstance(part, nn.BatchNorm3d):
            for name, (low, high) in ranges.items():
                getattr(part, name).data.uniform_(low, high, generator=generator)
        elif isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, generator=generator)
    return model.eval()


def tiny(**options):
    torch.manual_seed(0)
    return random_norms(RoboCLIPModel(WORDS, **{"window": 4, "frame_size": 32, **SIZES, **options}))


def normed(x, state, name):
    mean, var, weight, bias = (
        state[f"{name}.{each}"][:, None, None, None] for each in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def convolved(x, weight, padding=((0, 0), (0, 0), (0, 0))):
    """``[C, T, H, W]`` by ``[O, C, t, h, w]``: a sum over shifts, in NumPy."""
    x = np.pad(x, ((0, 0), *padding))
    kernel = weight.shape[2:]
    shape = [size - k + 1 for size, k in zip(x.shape[1:], kernel, strict=True)]
    out = np.zeros((len(weight), *shape))
    for t, h, w in np.ndindex(*kernel):
        part = x[:, t : t + shape[0], h : h + shape[1], w : w + shape[2]]
        out += np.einsum("oc,cthw->othw", weight[:, :, t, h, w], part)
    return out


def pooled(x, kernel, stride, before, after, fill):
    x = np.pad(x, ((0, 0), *zip(before, after, strict=True)), constant_values=fill)
    shape = [-(-(size - k) // s) + 1 for size, k, s in zip(x.shape[1:], kernel, stride, strict=True)]
    out = np.empty((len(x), *shape))
    for place in np.ndindex(*shape):
        corner = [p * s for p, s in zip(place, stride, strict=True)]
        block = x[(slice(None), *(slice(c, c + k) for c, k in zip(corner, kernel, strict=True)))]
        out[(slice(None), *place)] = block.max((1, 2, 3))
    return out


def gated(x, state, name):
    logits = state[f"{name}.fc.weight"] @ x.mean((1, 2, 3)) + state[f"{name}.fc.bias"]
    return x * (1 + np.tanh(logits / 2))[:, None, None, None] / 2


def separable(x, state, name):
    x = convolved(x, state[f"{name}.conv1.weight"], ((0, 0), (1, 1), (1, 1)))
    x = np.maximum(normed(x, state, f"{name}.bn1"), 0)
    x = convolved(x, state[f"{name}.conv2.weight"], ((1, 1), (0, 0), (0, 0)))
    return np.maximum(normed(x, state, f"{name}.bn2"), 0)


def plain(x, state, name):
    return np.maximum(normed(convolved(x, state[f"{name}.conv1.weight"]), state, f"{name}.bn1"), 0)


def inception(x, state, name):
    branches = [
        plain(x, state, f"{name}conv_b0"),
        separable(plain(x, state, f"{name}conv_b1_a"), state, f"{name}conv_b1_b"),
        separable(plain(x, state, f"{name}conv_b2_a"), state, f"{name}conv_b2_b"),
        plain(pooled(x, (3,) * 3, (1,) * 3, (1,) * 3, (1,) * 3, -np.inf), state, f"{name}conv_b3_b"),
    ]
    return np.concatenate([gated(branch, state, f"{name}gating_b{n}") for n, branch in enumerate(branches)])


def numbers(model):
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def test_the_whole_network_is_what_the_paper_says():
    """All of it once more in NumPy, with the release's own way of padding the stem: both sides, then cut."""
    model = tiny().s3d.double()
    video = torch.rand(2, 3, 6, 32, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state, expected = numbers(model), []
    for clip in video.numpy():
        _, time, height, width = clip.shape
        x = clip.reshape(3, time // 2, 2, height // 2, 2, width // 2, 2).transpose(2, 4, 6, 0, 1, 3, 5)
        x = x.reshape(24, time // 2, height // 2, width // 2)
        x = convolved(x, state["conv1.conv1.weight"], ((1, 1), (2, 2), (2, 2)))
        x = np.maximum(normed(x, state, "conv1.bn1"), 0)[:, 1:, 1:, 1:]
        x = pooled(x, (1, 3, 3), (1, 2, 2), (0, 0, 0), (0, 1, 1), 0.0)
        x = separable(plain(x, state, "conv_2b"), state, "conv_2c")
        x = pooled(gated(x, state, "gating"), (1, 3, 3), (1, 2, 2), (0, 0, 0), (0, 1, 1), 0.0)
        x = inception(inception(x, state, "mixed_3b."), state, "mixed_3c.")
        x = pooled(x, (3, 3, 3), (2, 2, 2), (0, 0, 0), (1, 1, 1), 0.0)
        for name in "bcdef":
            x = inception(x, state, f"mixed_4{name}.")
        x = pooled(x, (2, 2, 2), (2, 2, 2), (0, 0, 0), (0, 0, 0), -np.inf)
        x = inception(inception(x, state, "mixed_5b."), state, "mixed_5c.")
        expected.append(state["fc.weight"] @ x.mean((1, 2, 3)) + state["fc.bias"])
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(model(video).detach(), expected, atol=1e-10)


def test_stem_gating_and_inception_one_by_one():
    model = tiny().s3d.double()
    generator = torch.Generator().manual_seed(2)
    video = torch.rand(1, 3, 4, 16, 16, dtype=torch.float64, generator=generator)
    blocks = F.conv3d(F.pad(space_to_depth(video), (2, 2, 2, 2, 1, 1)), model.conv1.conv1.weight)[:, :, 1:, 1:, 1:]
    seen = []
    handle = model.conv1.conv1.register_forward_hook(lambda part, given, out: seen.append(out))
    model.features(video)
    handle.remove()
    torch.testing.assert_close(seen[0], blocks)
    # One pixel of the video, by hand: channel = ((t * 2 + h) * 2 + w) * 3 + colour.
    assert space_to_depth(video)[0, ((1 * 2 + 0) * 2 + 1) * 3 + 2, 1, 3, 5] == video[0, 2, 3, 6, 11]

    gating = SelfGating(5).double()
    x = torch.randn(1, 5, 2, 3, 4, dtype=torch.float64, generator=generator)
    np.testing.assert_allclose(
        gating(x)[0].detach(), gated(x[0].numpy(), {f"g.{k}": v for k, v in numbers(gating).items()}, "g")
    )

    block = random_norms(Mixed(5, 4, 3, 6, 2, 4, 3)).double()
    out = block(x)
    assert out.shape == (1, block.channels, 2, 3, 4) == (1, 17, 2, 3, 4)
    np.testing.assert_allclose(out[0].detach(), inception(x[0].numpy(), numbers(block), ""), atol=1e-12)


def test_pools_keep_the_ceiling():
    for size in (7, 8):
        x = torch.rand(1, 2, 3, size, size, generator=torch.Generator().manual_seed(size))
        out = pool_same(x, (1, 3, 3), (1, 2, 2))
        assert out.shape == (1, 2, 3, 4, 4)
        torch.testing.assert_close(out[0, 1, 2, 3, 3], x[0, 1, 2, 6:, 6:].max())


def published_shapes():
    """Names and shapes of the release at its full size, from the table of the paper (S3D-G on Inception v1)."""
    shapes = {}

    def conv(name, channels, out, kernel, separable=False):
        first = (1, *kernel[1:]) if separable else kernel
        shapes[f"{name}.conv1.weight"] = (out, channels, *first)
        norms = ["bn1"]
        if separable:
            shapes[f"{name}.conv2.weight"] = (out, out, kernel[0], 1, 1)
            norms.append("bn2")
        for norm in norms:
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.{norm}.{part}"] = (out,)
            shapes[f"{name}.{norm}.num_batches_tracked"] = ()

    def linear(name, channels, out):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, channels), (out,)

    conv("conv1", 24, 64, (2, 4, 4))
    conv("conv_2b", 64, 64, (1, 1, 1))
    conv("conv_2c", 64, 192, (3, 3, 3), separable=True)
    linear("gating.fc", 192, 192)
    channels = 192
    for name, (b0, b1a, b1b, b2a, b2b, b3) in {
        "3b": (64, 96, 128, 16, 32, 32), "3c": (128, 128, 192, 32, 96, 64), "4b": (192, 96, 208, 16, 48, 64),
        "4c": (160, 112, 224, 24, 64, 64), "4d": (128, 128, 256, 24, 64, 64), "4e": (112, 144, 288, 32, 64, 64),
        "4f": (256, 160, 320, 32, 128, 128), "5b": (256, 160, 320, 32, 128, 128), "5c": (384, 192, 384, 48, 128, 128),
    }.items():  # fmt: skip
        conv(f"mixed_{name}.conv_b0", channels, b0, (1, 1, 1))
        conv(f"mixed_{name}.conv_b1_a", channels, b1a, (1, 1, 1))
        conv(f"mixed_{name}.conv_b1_b", b1a, b1b, (3, 3, 3), separable=True)
        conv(f"mixed_{name}.conv_b2_a", channels, b2a, (1, 1, 1))
        conv(f"mixed_{name}.conv_b2_b", b2a, b2b, (3, 3, 3), separable=True)
        conv(f"mixed_{name}.conv_b3_b", channels, b3, (1, 1, 1))
        for branch, out in enumerate((b0, b1b, b2b, b3)):
            linear(f"mixed_{name}.gating_b{branch}.fc", out, out)
        channels = b0 + b1b + b2b + b3
    linear("fc", channels, 512)
    shapes["text_module.word_embd.weight"] = (66_250, 300)
    linear("text_module.fc1", 300, 2048)
    linear("text_module.fc2", 2048, 512)
    return shapes


def test_the_released_layout_at_full_size():
    state = S3DG().state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == published_shapes()


def test_what_is_published_becomes_a_model():
    source = tiny(words=20)
    state = {name: x for name, x in source.s3d.state_dict().items() if not name.endswith("num_batches_tracked")}
    model = from_published(state, vocabulary=WORDS, window=4, frame_size=32, **SIZES)
    assert model.config["words"] == 20
    read = model.state_dict()
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, read[name]), name
    damaged = {**state, "fc.weight": torch.zeros(3, 3), "extra": torch.zeros(1)}
    del damaged["conv_2c.conv2.weight"]
    message = (
        "S3D-G of HowTo100M: made for another architecture than this S3DG: missing conv_2c.conv2.weight; unexpected "
        "extra; fc.weight is (3, 3) instead of (16, 64)"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        from_published(damaged, vocabulary=WORDS, window=4, frame_size=32, **SIZES)
    message = "expected at most 19 words, one for each row but the first, got 20"
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        from_published(state, vocabulary=[*WORDS, *"abcdefghi"], **SIZES)


def test_it_is_a_reward_model():
    check_reward_model(tiny())


def test_round_trip(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    again = load_reward_model(tmp_path)
    assert again.config == model.config
    frames = torch.randint(0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for each in ("press the button", "open the drawer"):
        scores = [
            m.score(m.encode_frames(frames)[None], m.encode_text([each]), torch.ones(1, 4, dtype=torch.bool))
            for m in (model, again)
        ]
        assert torch.equal(scores[0].preference, scores[1].preference)
        assert scores[0].progress is None


def test_the_score_is_the_dot_product_of_clip_and_sentence():
    model = tiny().double()
    frames = torch.randint(0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    tokens = model.encode_frames(frames)
    assert tokens.dtype == torch.float16
    assert torch.equal(tokens.view(frames.shape).to(torch.uint8), frames)
    state = numbers(model.s3d.text_module)
    rows = [WORDS.index(word) + 1 for word in ("press", "the", "button")] + [0] * 13
    hidden = np.maximum(state["word_embd.weight"][rows] @ state["fc1.weight"].T + state["fc1.bias"], 0).max(0)
    sentence = state["fc2.weight"] @ hidden + state["fc2.bias"]
    text = model.encode_text(["Press the unheard-of button!"])
    np.testing.assert_allclose(text[0, 0].detach(), sentence, atol=1e-12)
    clip = model.s3d(frames.permute(3, 0, 1, 2)[None].double() / 255)[0].detach().numpy()
    score = model.score(tokens[None], text, torch.ones(1, 4, dtype=torch.bool)).preference
    assert score.dtype == torch.float32
    np.testing.assert_allclose(score.detach(), [clip @ sentence], rtol=1e-6)


@pytest.mark.parametrize("real", range(1, 12))
def test_frames_are_spread_over_the_real_ones(real):
    mask = torch.arange(12) >= 12 - real
    chosen = spread(mask[None], 6)[0]
    exact = 12 - real + np.linspace(0, real - 1, 6)
    assert (np.abs(chosen.numpy() - exact) <= 0.5 + 1e-9).all()
    assert (chosen[0], chosen[-1]) == (12 - real, 11)
    assert spread(torch.ones(1, 6, dtype=torch.bool), 6).tolist() == [list(range(6))]


def test_padding_in_a_batch_of_several_lengths():
    """More rows than go through the network at once, each with another number of real frames."""
    model = tiny()
    generator = torch.Generator().manual_seed(0)
    frames = model.encode_frames(torch.randint(0, 256, (6, 32, 32, 3), generator=generator).to(torch.uint8))
    windows = frames[None].repeat(6, 1, 1, 1)
    mask = torch.arange(6)[None] >= torch.arange(6)[:, None]
    noisy = torch.where(mask[..., None, None], windows, 77.0)
    both = [model.embed_clips(each, mask) for each in (windows, noisy)]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)
    for row in range(6):
        alone = model.embed_clips(frames[None, row:], torch.ones(1, 6 - row, dtype=torch.bool))
        torch.testing.assert_close(alone[0], both[0][row], atol=1e-5, rtol=1e-5)
    assert (both[0][0] - both[0][5]).abs().max() > 1e-3


def test_a_demonstration_is_embedded_as_the_episode_is(tmp_path):
    pytest.importorskip("av")
    model = tiny()
    frames = np.zeros((9, 48, 48, 3), np.uint8)
    frames[np.arange(9), :, np.arange(9) * 5] = 255
    first, *rest = map(Image.fromarray, frames)
    first.save(tmp_path / "Demo.gif", save_all=True, append_images=rest, duration=50)
    video = torch.from_numpy(read_video(tmp_path / "Demo.gif"))
    tokens = model.encode_frames(video)
    text = model.encode_text([str(tmp_path / "Demo.gif"), "press the button"])
    assert text.shape == (2, 1, 16)
    mask = torch.ones(1, len(video), dtype=torch.bool)
    torch.testing.assert_close(text[0], model.embed_clips(tokens[None], mask), atol=1e-6, rtol=1e-5)
    same = model.score(tokens[None], text[:1], mask).preference
    torch.testing.assert_close(same, (text[0, 0] ** 2).sum()[None], atol=1e-5, rtol=1e-5)
    for ending in (".mp4", ".FLV", ".ts"):
        missing = tmp_path / f"none{ending}"
        why = f"{missing}: expected a video file, found none"
        message = f"the instruction names a demonstration that cannot be read: {why}"
        with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
            model.encode_text([str(missing)])


def test_an_episode_is_paid_at_its_end():
    model, env = tiny(), PaintedEnv((5,))
    wrapper = VLPRewardWrapper(env, "press the button", model, reward="final")
    wrapper.reset()
    frames = [env.render()]
    rewards = []
    for _ in range(5):
        rewards.append(wrapper.step(0)[1])
        frames.append(env.render())
    tokens = model.encode_frames(torch.from_numpy(np.stack(frames))[[0, 2, 3, 5]])  # 6 frames: 0, 1.67, 3.33, 5
    text = model.encode_text(["press the button"])
    expected = model.score(tokens[None], text, torch.ones(1, 4, dtype=torch.bool)).preference
    assert rewards == [0.0] * 4 + [pytest.approx(expected.item(), abs=1e-5)]
    wrapper.close()


def test_sentences_that_say_nothing_or_too_much():
    message = (
        "the instruction 'bouton appuyer' has no word of the model's vocabulary of 11 words; say it in plain English "
        "words"
    )
    with pytest.raises(InstructionError, match=f"^{re.escape(message)}$"):
        tiny().encode_text(["bouton appuyer"])
    long = "press " * 15 + "the door"
    with pytest.raises(InstructionError, match=r"^the instruction has 17 tokens, the model reads 16; "):
        tiny().encode_text([long])
    model = tiny(truncate=True)
    assert torch.equal(model.encode_text([long]), model.encode_text(["press " * 15 + "the"]))


def test_arguments_that_make_no_sense():
    for options, message in [
        ({"window": 5}, "window: expected an even number, at least 2, got 5"),
        ({"frame_size": 31}, "frame_size: expected an even number, at least 2, got 31"),
        ({"window": 4096, "frame_size": 1024}, "expected at most 8388608 pixels a window, got 4096 x 1024 x 1024"),
        ({"words": 11}, "expected more rows than the vocabulary's 11 words, got words=11"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            tiny(**options)


def test_vocabularies(tmp_path):
    np.save(tmp_path / "words.npy", np.array(WORDS))
    (tmp_path / "words.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "words.json").write_text('["press", "the"]')
    assert read_vocabulary(tmp_path / "words.npy") == read_vocabulary(str(tmp_path / "words.txt")) == WORDS
    assert read_vocabulary(tmp_path / "words.json") == ["press", "the"]
    np.save(tmp_path / "pickled.npy", np.array(WORDS, object), allow_pickle=True)
    np.save(tmp_path / "numbers.npy", np.arange(3))
    (tmp_path / "object.json").write_text('{"a": 1}')
    expected = "expected an .npy file of strings that is no pickle, a text file with one word a line, or a .json list"
    fault = "Object arrays cannot be loaded when allow_pickle=False"
    message = f"{tmp_path}/pickled.npy: cannot be read as a list of words ({fault}); {expected}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        read_vocabulary(tmp_path / "pickled.npy")
    for name in ("numbers.npy", "object.json"):
        message = f"{tmp_path}/{name}: expected a list of words, got something else"
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            read_vocabulary(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"none\.txt: missing; .* may hold pickles, which are never loaded$"):
        read_vocabulary(tmp_path / "none.txt")
