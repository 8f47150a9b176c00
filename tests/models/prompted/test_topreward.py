from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.chat_server import ChatServer
from vlp_gym import VLPRewardWrapper
from vlp_gym.data.trajectory import Trajectory
from vlp_gym.errors import QueryError
from vlp_gym.evaluation.demonstrations import score_dataset
from vlp_gym.models.prompted.topreward import TOPRewardModel
from vlp_gym.models.registry import load_reward_model
from vlp_gym.prompting import ChatClient
from vlp_gym.testing import PaintedEnv, check_reward_model

SENTENCE = "open the drawer"


@pytest.fixture
def model(chat: ChatClient) -> TOPRewardModel:
    return TOPRewardModel(chat, frame_size=8)


def video(*levels: int) -> np.ndarray:
    """Flat grey frames of these levels."""
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])


def test_it_keeps_the_promises_of_a_reward_model(model: TOPRewardModel) -> None:
    check_reward_model(model)


def test_the_value_is_the_log_probability_of_true(model: TOPRewardModel, server: ChatServer) -> None:
    frames = torch.from_numpy(video(10, 200, 51, 90, 90, 204))
    tokens = model.encode_frames(frames).unflatten(0, (2, 3))
    mask = torch.tensor([[True, True, True], [False, True, True]])
    scores = model.score(tokens, model.encode_text([SENTENCE] * 2), mask)
    expected = [math.log(51 / 255), math.log(204 / 255)]  # the server's P("True") is the last picture's brightness
    np.testing.assert_allclose(scores.preference.numpy(), expected, rtol=1e-5)
    assert (scores.progress, scores.relevance) == (None, None)
    contents = [body["messages"][0]["content"] for body in server.requests]
    assert sorted(len(content) for content in contents) == [3, 4]  # padding is not shown
    for content in contents:
        assert [part["type"] for part in content] == ["image_url"] * (len(content) - 1) + ["text"]
        assert content[-1]["text"] == (
            "The above video shows a robot manipulation trajectory that completes the following task: open the drawer. "
            "Decide whether the above statement is True or not. The answer is:"
        )


def test_a_video_has_a_curve(model: TOPRewardModel, server: ChatServer) -> None:
    values = model.values(video(51, 102, 153), SENTENCE)
    np.testing.assert_allclose(values, np.log([0.2, 0.4, 0.6]), rtol=1e-6)
    assert sorted(len(body["messages"][0]["content"]) for body in server.requests) == [2, 3, 4]


def test_a_demonstration_is_asked_about_frame_by_frame(model: TOPRewardModel) -> None:
    """One question about all the frames would give them one value, and no video a success."""
    levels = np.arange(10, 250, 24)
    count = len(levels)
    nothing = np.zeros((count, 0), np.float32)
    success = np.arange(count) == count - 1
    trajectory = Trajectory(
        "push-v3", "expert", 0, "a", 5, False, video(*levels), np.arange(count), nothing[:, 0:1].sum(1), success,
        np.zeros(3, np.float32), nothing, sentences=(SENTENCE,),
    )  # fmt: skip
    (row,) = score_dataset(model, [trajectory], progress_bar=False)
    np.testing.assert_allclose(row["value"], np.log(levels / 255), rtol=1e-5)
    np.testing.assert_allclose(row["value"], model.values(trajectory.frames, row["instruction"]), rtol=1e-5)
    assert row["voc"] == pytest.approx(1.0)
    assert row["detected"]
    assert len(set(row["weight"])) > 1


def test_the_wrapper_pays_it_as_a_preference(model: TOPRewardModel) -> None:
    env = VLPRewardWrapper(PaintedEnv([3]), SENTENCE, model, reward="preference")
    env.reset(seed=0)
    for _ in range(3):
        reward = env.step(env.action_space.sample())[1]
        brightness = model.encode_frames(torch.from_numpy(env.render()[None])).float().mean().item() / 255
        assert reward == pytest.approx(math.log(brightness), rel=1e-3)
    env.close()


def test_an_endpoint_without_log_probabilities(model: TOPRewardModel, server: ChatServer) -> None:
    server.faults.append("no-logprobs")
    with pytest.raises(QueryError) as caught:
        model.values(video(51), SENTENCE)
    assert str(caught.value) == (
        f"{server.url} gives no log-probabilities of 'tiny'; take an endpoint that has top_logprobs, such as vLLM"
    )


def test_it_is_made_by_name(server: ChatServer, tmp_path: Path) -> None:
    model = load_reward_model(f"topreward:tiny?base_url={server.url}&cache={tmp_path}&window=4&frame_size=12")
    assert isinstance(model, TOPRewardModel)
    assert (model.window, model.frame_size) == (4, (12, 12))
    model.chat.close()
    with pytest.raises(ValueError) as caught:
        TOPRewardModel(model.chat, window=0)
    assert str(caught.value) == "expected window >= 1 and max_concurrency >= 1, got 0 and 8"
