from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.chat_server import ChatServer, brightness
from vlp_gym import VLPRewardWrapper
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.errors import QueryError
from vlp_gym.evaluation.curation import detect_success
from vlp_gym.models.prompted.gvl import GVLModel, shuffled
from vlp_gym.models.registry import load_reward_model
from vlp_gym.prompting import ChatClient
from vlp_gym.prompting.client import IN_JSON
from vlp_gym.testing import PaintedEnv, check_reward_model

SENTENCE = "open the {drawer} 100%"


@pytest.fixture
def model(chat: ChatClient) -> GVLModel:
    return GVLModel(chat, frame_size=8)


def video(*levels: int) -> np.ndarray:
    """Flat grey frames of these levels."""
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])


def windows(model: GVLModel, *videos: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Videos, padded at the front with their first frame to one length."""
    length = max(map(len, videos))
    rows, mask = [], torch.ones(len(videos), length, dtype=torch.bool)
    for row, frames in enumerate(videos):
        padding = length - len(frames)
        mask[row, :padding] = False
        rows.append(np.concatenate([frames[:1].repeat(padding, 0), frames]))
    tokens = model.encode_frames(torch.from_numpy(np.concatenate(rows))).unflatten(0, mask.shape)
    return tokens, model.encode_text([SENTENCE] * len(videos)), mask


def test_it_keeps_the_promises_of_a_reward_model(model: GVLModel) -> None:
    check_reward_model(model)


def test_the_wrapper_pays_the_newest_frames_progress(model: GVLModel) -> None:
    env = VLPRewardWrapper(PaintedEnv([4]), SENTENCE, model, reward="progress")
    env.reset(seed=0)
    for _ in range(4):
        reward = env.step(env.action_space.sample())[1]
        frame = model.encode_frames(torch.from_numpy(env.render()[None])).float()
        assert reward == pytest.approx(frame.mean().item() / 255, abs=1e-5)
    env.close()


def test_answers_return_to_the_order_of_time(model: GVLModel, server: ChatServer) -> None:
    levels = [51, 204, 102, 255, 0, 153]
    scores = model.score(*windows(model, video(*levels)))
    expected = [0.0, *(level / 255 for level in levels[1:])]  # the first frame is 0 by definition
    assert scores.progress is not None
    np.testing.assert_allclose(scores.progress[0].numpy(), expected, atol=1e-5)
    assert scores.preference.item() == scores.progress[0, -1].item()
    assert scores.relevance is None
    # They were shown in another order than that of time, each one once.
    shown = [part for part in server.requests[0]["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(shown) == len(levels)


def test_the_prompt_is_the_papers(model: GVLModel, server: ChatServer) -> None:
    model.values(video(0, 50, 100, 150), SENTENCE)
    content = server.requests[0]["messages"][0]["content"]
    texts = [part.get("text", "<image>") for part in content]
    assert texts == [
        "You are an expert roboticist tasked to predict task completion percentages for frames of a robot for the task "
        f"of {SENTENCE}. The task completion percentages are between 0 and 100, where 100 corresponds to full task "
        "completion. Note that these frames are in random order, so please pay attention to the individual frames when "
        "reasoning about task completion percentage.",
        "Initial robot scene:",
        "<image>",
        "In the initial robot scene, the task completion percentage is 0.",
        f"Now, for the task of {SENTENCE}, output the task completion percentage for the following frames that are "
        "presented in random order. For each frame, format your response as follow: "
        "Frame {i}: Frame Description: {}, Task Completion Percentages: {}%",
        "Frame 1:",
        "<image>",
        "Frame 2:",
        "<image>",
        "Frame 3:",
        "<image>",
        IN_JSON,  # the endpoint takes a schema
    ]


def test_the_order_shown_depends_on_frames_and_sentence_alone() -> None:
    frames = video(*range(12))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    order = shuffled(frames, SENTENCE)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert sorted(order) == list(range(12))
    assert not np.array_equal(order, np.arange(12))
    assert np.array_equal(order, shuffled(frames.copy(), SENTENCE))
    assert not np.array_equal(order, shuffled(frames, "close the drawer"))
    assert not np.array_equal(order, shuffled(frames[::-1], SENTENCE))
    # Each place gets each frame about equally often: 240 orders of 12 frames put every frame first some 20 times.
    firsts = np.bincount([shuffled(frames, str(number))[0] for number in range(240)], minlength=12)
    assert 5 <= firsts.min() <= firsts.max() <= 40


def test_a_window_is_asked_about_once(model: GVLModel, server: ChatServer) -> None:
    frames = video(0, 50, 100), video(0, 50, 100), video(0, 50, 101)
    model.score(*windows(model, *frames))
    assert len(server.requests) == 2  # equal rows share an answer
    again = model.score(*windows(model, *frames[::-1]))
    assert len(server.requests) == 2
    assert again.progress is not None
    assert model.chat.stats()["cached"] == 4


def test_padding_is_not_shown_and_a_single_frame_is_not_asked_about(model: GVLModel, server: ChatServer) -> None:
    scores = model.score(*windows(model, video(0, 50, 100), video(90)))
    assert scores.progress is not None
    np.testing.assert_allclose(scores.progress.numpy(), [[0, 50 / 255, 100 / 255], [0, 0, 0]], atol=1e-5)
    (body,) = server.requests
    assert sum(part["type"] == "image_url" for part in body["messages"][0]["content"]) == 3


def test_rows_are_asked_about_at_the_same_time(chat: ChatClient, server: ChatServer) -> None:
    server.delay_s = 0.03
    rows = [video(0, level) for level in range(10, 16)]
    model = GVLModel(chat, frame_size=8, max_concurrency=3)
    model.score(*windows(model, *rows))
    assert server.most_at_once == 3
    server.most_at_once = 0
    model = GVLModel(chat, frame_size=8, max_concurrency=1)
    model.score(*windows(model, *(rows + 20 for rows in rows[:2])))
    assert server.most_at_once == 1


def line(number: int, percentage: Any = 5) -> str:
    return f"Frame {number}: Frame Description: x, Task Completion Percentages: {percentage}%\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot help with that.", "frames [1, 2] of 2 are missing"),
        (line(1), "frames [2] of 2 are missing"),
        (line(1) + line(1) + line(2), "frame 1 appears twice"),
        (line(1) + line(2, 120), "frame 2 has the percentage 120, expected 0 to 100"),
    ],
)
def test_an_answer_that_does_not_fit_is_asked_again(
    model: GVLModel, server: ChatServer, answer: str, reason: str
) -> None:
    server.faults.append(f"say:{answer}")
    values = model.values(video(0, 51, 102), SENTENCE)
    np.testing.assert_allclose(values, [0, 0.2, 0.4], atol=1e-5)
    assert model.chat.stats()["unparsed"] == 1
    said = server.requests[1]["messages"][0]["content"][-1]["text"]
    assert said == (f"Attempt 2: the answer could not be read, because {reason}. Keep exactly to the format asked for.")
    server.faults.extend([f"say:{answer}"] * 3)
    with pytest.raises(QueryError) as caught:
        model.values(video(0, 51, 103), SENTENCE)
    assert str(caught.value) == (
        f"tiny was asked 3 times, and the answer could not be read, because {reason}; it began with {answer[:80]!r}. "
        "Take a model that follows formats better, or give more attempts"
    )


def test_one_row_that_fails_fails_the_batch(model: GVLModel, server: ChatServer) -> None:
    server.faults.append(401)
    with pytest.raises(QueryError, match="answered 401"):
        model.score(*windows(model, video(0, 1), video(0, 2)))


def test_examples_come_first_shuffled_and_resized(chat: ChatClient, server: ChatServer) -> None:
    demonstration = np.repeat(np.repeat(video(*range(0, 200, 20)), 2, axis=1), 2, axis=2)
    percentages = [level / 1.8 for level in range(0, 200, 20)]
    model = GVLModel(chat, examples=[(demonstration, percentages)], frame_size=8)
    model.values(video(0, 50), SENTENCE)
    content = server.requests[0]["messages"][0]["content"]
    assert "We provide several examples of the robot performing the task at various stages" in content[0]["text"]
    pairs = content[1:31]
    assert [part.get("text") for part in pairs[::3]] == ["Example frame:"] * 10
    assert content[31]["text"] == "Initial robot scene:"
    said = [float(re.fullmatch(r"Task Completion Percentages: (.+)%", part["text"])[1]) for part in pairs[2::3]]
    shown = [brightness(part) * 255 for part in pairs[1::3]]
    np.testing.assert_allclose(said, np.array(shown) / 1.8, rtol=1e-3)  # each frame kept its percentage
    assert sorted(shown) == [float(level) for level in range(0, 200, 20)]
    assert shown != sorted(shown)
    # The pairs are the same in every question, so endpoints can keep what they made of them.
    model.values(video(0, 60, 70), "another task")
    assert server.requests[1]["messages"][0]["content"][1:31] == pairs


def test_values_of_a_video_show_success(model: GVLModel) -> None:
    values = model.values(video(*range(0, 240, 10)), SENTENCE)  # longer than a window
    assert (values.dtype, values.shape) == (np.float64, (24,))
    assert detect_success(values)
    assert not detect_success(model.values(video(*range(230, -10, -10)), SENTENCE))


def test_a_preference_compares_the_newest_frames(model: GVLModel) -> None:
    tokens, text, _ = windows(model, video(0, 200, 60), video(0, 10, 120))
    chance = GuardedModel(model).prefer(tokens[:1], tokens[1:], text[:1], where="test")
    assert chance.item() == pytest.approx(1 / (1 + np.exp((120 - 60) / 255)), abs=1e-5)


def test_it_is_made_by_name(server: ChatServer, tmp_path: Path) -> None:
    for percentage in (0, 100):
        Image.fromarray(video(percentage)[0]).save(tmp_path / f"demo-{percentage}.png")
    spec = f"gvl:tiny?base_url={server.url}&cache={tmp_path}/cache&examples={tmp_path}&window=4&frame_size=12"
    model = load_reward_model(spec)
    assert isinstance(model, GVLModel)
    assert (model.window, model.frame_size, model.history) == (4, (12, 12), "prefix")
    model.values(video(0, 51), SENTENCE)
    shown = [part for part in server.requests[0]["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(shown) == 4
    model.chat.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "expected window >= 2 and max_concurrency >= 1, got 1 and 8"),
        ({"examples": [(video(1, 2), [5.0])]}, "expected one percentage a frame, got 1 of 2 frames"),
        ({"examples": [(video(1), [500.0])]}, "expected percentages in [0, 100], got [500.0]"),
        ({"examples": [(video(1)[0], [5.0])]}, "expected uint8 frames [T, H, W, 3], got uint8 [8, 8, 3]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(chat: ChatClient, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        GVLModel(chat, **options)
    assert str(caught.value) == message


def texts_of(server: ChatServer) -> list[list[str]]:
    """The texts of each request; pictures as their grey level."""
    return [
        [part.get("text") or f"<{round(255 * brightness(part))}>" for part in request["messages"][0]["content"]]
        for request in server.requests
    ]


def test_without_shuffling_frames_are_in_the_order_of_time(chat: ChatClient, server: ChatServer) -> None:
    model = GVLModel(chat, frame_size=8, shuffle=False)
    levels = [0, 200, 10, 180, 20, 160, 30]
    np.testing.assert_allclose(model.values(video(*levels), SENTENCE), [level / 255 for level in levels], atol=1e-5)
    (texts,) = texts_of(server)
    assert [text for text in texts if text.startswith("<")] == [f"<{level}>" for level in levels]
    assert not any("random order" in text for text in texts)
    assert "Please pay attention to the individual frames" in texts[0]


def test_single_frames_are_asked_about_alone(chat: ChatClient, server: ChatServer) -> None:
    model = GVLModel(chat, frame_size=8, single_frame=True)
    levels = [90, 200, 10]
    np.testing.assert_allclose(model.values(video(*levels), SENTENCE), [level / 255 for level in levels], atol=1e-5)
    shown = [[text for text in texts if text.startswith("<")] for texts in texts_of(server)]
    assert shown == [["<90>"], ["<200>"], ["<10>"]]
    assert not any(
        "Initial robot scene" in text or "random order" in text for texts in texts_of(server) for text in texts
    )
    assert model.values(video(60), SENTENCE) == pytest.approx([60 / 255], abs=1e-5)


def test_the_last_frame_may_be_the_goal(chat: ChatClient, server: ChatServer) -> None:
    model = GVLModel(chat, frame_size=8, goal_image=True)
    model.values(video(0, 100, 200), SENTENCE)
    (texts,) = texts_of(server)
    assert texts[1:3] == ["Goal picture:", "<200>"]
    assert not any(SENTENCE in text for text in texts)
    assert "for the task of reaching the scene of the goal picture" in texts[0]


def test_examples_of_one_instruction(model: GVLModel, server: ChatServer) -> None:
    model.show_examples({f" {SENTENCE}": [(video(70), [30.0])]})
    model.values(video(0, 10), SENTENCE)
    model.values(video(0, 10), "another task")
    first, second = texts_of(server)
    assert first[1:4] == ["Example frame:", "<70>", "Task Completion Percentages: 30%"]
    assert "We provide several examples" in first[0]
    assert second[1] == "Initial robot scene:"
    assert "We provide several examples" not in second[0]


def test_switches_of_a_name(server: ChatServer) -> None:
    at = f"base_url={server.url}&cache=none"
    model = GVLModel.from_spec(f"tiny?{at}&shuffle=0&single_frame=1&goal_image=true")
    assert (model.shuffle, model.single_frame, model.goal_image) == (False, True, True)
    with pytest.raises(ValueError, match=r"shuffle cannot be 'maybe' \(expected 1 or 0\)$"):
        GVLModel.from_spec(f"tiny?{at}&shuffle=maybe")
