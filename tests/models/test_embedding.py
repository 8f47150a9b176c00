"""The small model of one embedding a frame and one a sentence."""

from __future__ import annotations

import numpy as np
import torch

from vlp_gym.models.cosine import CosineModel
from vlp_gym.models.embedding import EmbeddingModel
from vlp_gym.models.protocol import RewardModel
from vlp_gym.models.registry import load_reward_model
from vlp_gym.testing import check_reward_model

SENTENCES = ["press the button", "open the drawer"]


def tiny(**options) -> EmbeddingModel:
    torch.manual_seed(0)
    return EmbeddingModel(
        **{"image_size": 32, "channels": 8, "reduced": 4, "hidden": 16, "embedding": 6, "buckets": 64, **options}
    ).eval()


def frames(count, size=32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8))


def test_keeps_the_promises_of_a_reward_model():
    model = tiny()
    assert isinstance(model, RewardModel)
    check_reward_model(model)


def test_the_reward_is_the_cosine_and_the_preference_its_mean_over_real_frames():
    rng = np.random.default_rng(0)
    video, text = rng.normal(size=(2, 4, 5)), rng.normal(size=(2, 5))
    video /= np.linalg.norm(video, axis=-1, keepdims=True)
    text /= np.linalg.norm(text, axis=-1, keepdims=True)
    mask = np.array([[False, True, True, True], [True] * 4])
    expected = np.stack([[frame @ text[b] for frame in video[b]] for b in range(2)])
    scores = CosineModel().score(
        torch.tensor(video, dtype=torch.float32)[:, :, None],
        torch.tensor(text, dtype=torch.float32)[:, None],
        torch.tensor(mask),
    )
    np.testing.assert_allclose(scores.progress, expected, atol=1e-5)
    np.testing.assert_allclose(scores.preference, [expected[0, 1:].mean(), expected[1].mean()], atol=1e-5)
    assert scores.relevance is None


def test_embeddings_have_unit_length_and_differ():
    model = tiny()
    with torch.inference_mode():
        video, text = model.encode_frames(frames(3)), model.encode_text(SENTENCES)
    assert video.shape == (3, 1, 6)
    assert text.shape == (2, 1, 6)
    for embedded in (video, text):
        np.testing.assert_allclose(embedded.norm(dim=-1), 1, atol=1e-6)
        assert not torch.allclose(embedded[0], embedded[1], atol=1e-3)


def test_rounding_does_not_leave_the_range():
    long = torch.full((1, 1, 1, 3), 0.5774)  # of length 1.00008
    assert CosineModel().score(long, long[0], torch.ones(1, 1, dtype=torch.bool)).progress.item() == 1.0


def test_float_pixels_are_the_same_frames():
    model = tiny()
    pictures = frames(2)
    with torch.inference_mode():
        embedded = model.encode_pixels(pictures.permute(0, 3, 1, 2).float() / 255)
        assert torch.allclose(embedded, model.encode_frames(pictures), atol=1e-6)


def test_a_linear_probe_reads_where_the_hand_is():
    """Untrained weights, but nothing is pooled over the picture; the mean over the same grid says much less."""
    torch.manual_seed(0)
    model = EmbeddingModel(image_size=64, channels=16, reduced=8, hidden=128, embedding=64).eval()
    rng = np.random.default_rng(0)
    at = rng.integers(4, 52, (600, 2))
    pictures = np.full((600, 64, 64, 3), 60, np.uint8)
    for picture, (row, column) in zip(pictures, at, strict=True):
        picture[row : row + 8, column : column + 8] = 220
    with torch.inference_mode():
        pooled = model.backbone.encode_frames(torch.from_numpy(pictures)).mean(1)
        seen = model.encode_frames(torch.from_numpy(pictures))[:, 0]

    def error(features):
        design = np.column_stack([features.double().numpy(), np.ones(600)])
        known, ridge = design[:500], 1e-6 * np.eye(design.shape[1])
        fit = np.linalg.solve(known.T @ known + ridge, known.T @ at[:500])
        return np.abs(design[500:] @ fit - at[500:]).mean()

    assert error(seen) < 0.5 * np.abs(at[:500].mean(0) - at[500:]).mean()
    assert error(seen) < 0.7 * error(pooled)


def test_a_checkpoint_brings_it_back(tmp_path):
    model = tiny(truncate=True)
    model.save_pretrained(tmp_path)
    again = load_reward_model(tmp_path)
    assert isinstance(again, EmbeddingModel)
    assert again.config == model.config
    with torch.inference_mode():
        assert torch.equal(again.encode_frames(frames(2)), model.encode_frames(frames(2)))
        assert torch.equal(again.encode_text(SENTENCES), model.encode_text(SENTENCES))
