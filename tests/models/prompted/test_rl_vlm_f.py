from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.chat_server import ChatServer
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.tickets import Answer, FrameScore, Ticket
from vlp_gym.errors import QueryError
from vlp_gym.models.prompted.rl_vlm_f import RLVLMFModel
from vlp_gym.models.registry import load_reward_model
from vlp_gym.preferences.labelers import ModelLabeler
from vlp_gym.preferences.schedule import Queries
from vlp_gym.preferences.segment_store import SegmentStore
from vlp_gym.prompting import ChatClient
from vlp_gym.prompting.client import IN_JSON
from vlp_gym.testing import check_reward_model

SENTENCE = "open the drawer"


@pytest.fixture
def model(chat: ChatClient) -> RLVLMFModel:
    return RLVLMFModel(chat, frame_size=8)


def windows(model: RLVLMFModel, *rows: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens of flat grey frames of these levels, and the sentence for each row."""
    frames = torch.tensor(rows, dtype=torch.uint8)[..., None, None, None].repeat(1, 1, 8, 8, 3)
    tokens = model.encode_frames(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    return tokens, model.encode_text([SENTENCE] * len(rows))


def test_it_keeps_the_promises_of_a_reward_model(model: RLVLMFModel) -> None:
    check_reward_model(model)


def test_the_last_frames_are_compared(model: RLVLMFModel) -> None:
    a, text = windows(model, [0, 200], [0, 50], [9, 100], [3, 70])
    b, _ = windows(model, [250, 100], [0, 150], [0, 101], [8, 70])
    # 100 and 101 differ by less than the server can tell; 70 and 70 are one picture.
    assert GuardedModel(model).prefer(a, b, text, where="test").tolist() == [1.0, 0.0, 0.5, 0.5]
    assert GuardedModel(model).prefer(b, a, text, where="test").tolist() == [0.0, 1.0, 0.5, 0.5]


def test_two_stages(model: RLVLMFModel, server: ChatServer) -> None:
    a, text = windows(model, [51])
    b, _ = windows(model, [102])
    model.prefer(a, b, text)
    first, second = (body["messages"][0]["content"] for body in server.requests)
    questions = (
        "1. What does Image 1 show?\n2. What does Image 2 show?\n"
        "3. The goal is: open the drawer. With regard to this goal, how do Image 1 and Image 2 differ?"
    )
    assert [part.get("text", "<image>") for part in first] == [
        "Look at these two images.\nImage 1:",
        "<image>",
        "Image 2:",
        "<image>",
        questions,
    ]
    said = "Image 1 has 0.200000 and Image 2 has 0.400000 of the brightness."
    assert [part["text"] for part in second] == [
        f"These questions were asked about two images:\n{questions}\n\nThe answers were:\n{said}\n\n"
        "Going by these answers, in which image is the goal better achieved? Reply with one line that holds only a "
        "number: 0 for Image 1, 1 for Image 2, or -1 if there is no difference or the answers are not sure.",
        IN_JSON,  # the endpoint takes a schema
    ]


def test_one_picture_twice_is_not_asked_about(model: RLVLMFModel, server: ChatServer) -> None:
    a, text = windows(model, [7, 7])
    assert model.prefer(a, a, text).tolist() == [0.5]
    assert model.score(a, text, torch.ones(1, 2, dtype=torch.bool)).preference.tolist() == [0.0]
    assert server.requests == []


def test_a_video_is_compared_with_its_own_beginning(model: RLVLMFModel) -> None:
    tokens, text = windows(model, [50, 0, 200], [200, 255, 50], [90, 0, 90], [60, 60, 160])
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[3, 0] = False
    scores = model.score(tokens, text, mask)
    assert scores.preference.tolist() == [1.0, -1.0, 0.0, 1.0]
    assert scores.progress is None
    assert scores.relevance is None


def test_an_answer_that_does_not_fit_is_asked_again(model: RLVLMFModel, server: ChatServer) -> None:
    a, text = windows(model, [51])
    b, _ = windows(model, [102])
    server.faults.extend(["refuse", "say:The second has 0.9 of it", "say:both", "say:0"])
    assert model.prefer(a, b, text).tolist() == [1.0]
    assert model.chat.stats()["unparsed"] == 2
    assert model.prefer(a, b, text).tolist() == [1.0]
    assert model.chat.stats()["cached"] == 2
    server.faults.extend(["say:a description", "say:2", "say:2", "say:2"])
    with pytest.raises(QueryError) as caught:
        model.prefer(b, a, text)
    assert str(caught.value) == (
        "tiny was asked 3 times, and the answer could not be read, because the last line has 0 of the answers 0, 1 and "
        "-1, expected 1; it began with '2'. Take a model that follows formats better, or give more attempts"
    )


def test_the_papers_recipe_labels_segments(model: RLVLMFModel) -> None:
    queries = Queries(budget=20_000, session=40, every=4_000, length=1)
    assert queries.size(0, 100) == 40
    labeler = ModelLabeler(model, SENTENCE, margin=0.1)
    store = SegmentStore(1, frame_size=8, keep_tokens=False)
    for episode, level in enumerate((200, 100, 50, 50)):
        for step in range(2):
            ticket = Ticket(0, episode, step)
            frame = np.full((1, 8, 8, 3), (0, level)[step], np.uint8)
            store.on_answer(Answer(ticket, FrameScore(0.0, None, None)), frame, torch.zeros(1, 1, 1))
        store.add(0, np.zeros(2), np.zeros(1), 0.0, Ticket(0, episode, 1))
        store.end(0)
    spans = [(episode, 0, 1) for episode in range(4)]
    labels = labeler(store.cut([spans[0], spans[2], spans[2]]), store.cut([spans[1], spans[1], spans[3]]))
    assert labels[:2].tolist() == [1.0, 0.0]
    assert math.isnan(labels[2])  # no preference: dropped


def test_it_is_made_by_name(server: ChatServer, tmp_path: Path) -> None:
    model = load_reward_model(f"rl-vlm-f:tiny?base_url={server.url}&cache={tmp_path}&frame_size=12&max_concurrency=2")
    assert isinstance(model, RLVLMFModel)
    assert (model.window, model.frame_size, model.max_concurrency) == (2, (12, 12), 2)
    model.chat.close()
    with pytest.raises(ValueError) as caught:
        RLVLMFModel(model.chat, max_concurrency=0)
    assert str(caught.value) == "max_concurrency must be at least 1, got 0"
