from __future__ import annotations

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from painted import frame

from vlp_gym.engine import QueryEngine, tickets
from vlp_gym.engine.tickets import FrameScore, Ticket
from vlp_gym.engine.token_cache import TokenCache
from vlp_gym.engine.windows import window_indices
from vlp_gym.errors import InstructionError, QueryError
from vlp_gym.models.staged import StagedRewardModel
from vlp_gym.testing import FaultyModel, PaintedModel, painted_value


def begun(model, envs: int = 1, **options) -> QueryEngine:
    """An engine whose environments are numbered from 0, as those of the engines before."""
    tickets._numbers = itertools.count()
    engine = QueryEngine(model, **options)
    for env in range(envs):
        assert engine.add_env() == env
        engine.begin(env, 0, engine.encode_text("press the button"))
    return engine


def query(engine: QueryEngine, *tickets: tuple[int, int, int]) -> list[FrameScore]:
    return engine.query([Ticket(*ticket) for ticket in tickets], [frame(*ticket) for ticket in tickets])


@pytest.mark.parametrize("history", ["sliding", "prefix"])
def test_each_frame_is_encoded_once_and_the_window_is_right(history):
    model = PaintedModel(window=4, history=history)
    engine = begun(model)
    for step in range(200):  # more than one block of the cache
        assert query(engine, (0, 0, step))[0].progress == painted_value(0, 0, step)
    assert model.encoded == 200
    steps = [196, 197, 198, 199] if history == "sliding" else [0, 66, 133, 199]
    assert model.windows[-1] == [painted_value(0, 0, step) for step in steps]
    assert model.windows[1] == [painted_value(0, 0, step) for step in (0, 1)]


@pytest.mark.parametrize("history", ["sliding", "prefix"])
@pytest.mark.parametrize("window", [1, 4])
def test_scores_are_those_of_the_whole_window(history, window):
    torch.manual_seed(0)
    model = StagedRewardModel(image_size=32, channels=16, hidden=16).eval()
    engine = begun(model, window=window, history=history)
    text = model.encode_text(["press the button"])
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8))
    for step in range(9):
        got = engine.query([Ticket(0, 0, step)], [pixels[step].numpy()])[0]
        indices, mask = window_indices(step + 1, window, history)
        with torch.inference_mode():
            scores = model.score(model.encode_frames(pixels[indices])[None], text, torch.from_numpy(mask)[None])
        expected = [scores.preference.item(), scores.progress[0, -1].item(), scores.relevance.item()]
        assert [got.preference, got.progress, got.relevance] == pytest.approx(expected, abs=1e-5)


def test_many_envs_in_one_batch_keep_apart():
    model = PaintedModel(history="prefix")
    engine = begun(model, envs=3)
    for step in range(6):
        tickets = [(env, 0, step) for env in range(3) if env != 1 or step < 3]
        scores = query(engine, *tickets)
        assert [score.progress for score in scores] == [painted_value(*ticket) for ticket in tickets]
    engine.begin(1, 1, engine.encode_text("close the door"))
    scores = query(engine, (2, 0, 6), (1, 1, 0))
    assert [score.progress for score in scores] == [painted_value(2, 0, 6), painted_value(1, 1, 0)]
    assert model.windows[-1] == [painted_value(1, 1, 0)]
    assert engine.stats() == {"submitted": 17, "delivered": 17, "stale": 0, "failed": 0, "cancelled": 0, "pending": 0}


def test_the_heads_that_a_model_lacks_are_none():
    assert query(begun(PaintedModel(progress=False)), (0, 0, 0)) == [FrameScore(0.0, None, None)]
    assert query(begun(PaintedModel(relevance=2.0)), (0, 0, 1)) == [FrameScore(2**-24, 2**-24, 2.0)]


def test_sentences_of_different_lengths_share_a_batch():
    class Words(PaintedModel):
        def encode_text(self, instructions):
            return torch.ones(len(instructions), max(len(text.split()) for text in instructions), 1)

        def score(self, frames, text, mask):
            self.text = text.clone()
            return super().score(frames, text, mask)

    model = Words()
    engine = QueryEngine(model)
    for instruction in ("press", "press the button"):
        engine.begin(engine.add_env(), 0, engine.encode_text(instruction))
    query(engine, (0, 0, 0), (1, 0, 0))
    assert model.text[..., 0].tolist() == [[1, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("ticket", [(0, 0, 1), (0, 0, 0), (0, 1, 2)])
def test_a_ticket_is_used_once(ticket):
    engine = begun(PaintedModel())
    query(engine, (0, 0, 0))
    query(engine, (0, 0, 1))
    where = f"env {ticket[0]}, episode {ticket[1]}, step {ticket[2]}"
    message = f"the ticket was already used or belongs to no running episode ({where})"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        query(engine, ticket)
    assert engine.stats()["submitted"] == 2


def test_no_ticket_after_the_episode_was_cancelled():
    engine = begun(PaintedModel())
    engine.cancel(0)
    with pytest.raises(RuntimeError, match=r"^the ticket was already used or .* \(env 0, episode 0, step 0\)$"):
        query(engine, (0, 0, 0))


def test_one_ticket_for_each_env():
    engine = begun(PaintedModel())
    with pytest.raises(ValueError, match=r"^expected one ticket and frame for each env, got 2 for \[Ticket.*\]$"):
        query(engine, (0, 0, 0), (0, 0, 1))


AT = "(env 0, episode 0, step 2)"
FAULTS = {
    "raises": (QueryError, f"the reward model raised ZeroDivisionError: division by zero {AT}"),
    "nan": (QueryError, f"the reward model gave the preference nan, which no reward may have {AT}"),
    "nan_progress": (QueryError, f"the reward model gave the progress nan, which no reward may have {AT}"),
    "inf": (QueryError, f"the reward model gave the preference inf, which no reward may have {AT}"),
    "no_scores": (TypeError, f"expected Scores from score, got Tensor {AT}"),
    "no_tensor": (TypeError, f"expected float [1] on cpu without gradient from preference, got float {AT}"),
    "wrong_shape": (
        TypeError,
        f"expected float [1] on cpu without gradient from preference, got torch.float32 [1, 1] on cpu {AT}",
    ),
    "wrong_device": (
        TypeError,
        f"expected float [1] on cpu without gradient from preference, got torch.float32 [1] on meta {AT}",
    ),
    "wrong_dtype": (
        TypeError,
        f"expected float [1] on cpu without gradient from preference, got torch.int64 [1] on cpu {AT}",
    ),
    "gradient": (
        TypeError,
        f"expected float [1] on cpu without gradient from preference, got torch.float32 [1] on cpu with gradient {AT}",
    ),
}


@pytest.mark.parametrize(("fault", "error", "message"), [(fault, *rest) for fault, rest in FAULTS.items()])
def test_a_faulty_model_is_named(fault, error, message):  # faults 19, 20, 21
    engine = begun(FaultyModel(fault, at=2))
    query(engine, (0, 0, 0))
    query(engine, (0, 0, 1))
    with pytest.raises(error, match=f"^{re.escape(message)}$") as caught:
        query(engine, (0, 0, 2))
    if fault == "raises":
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert engine.stats() == {"submitted": 3, "delivered": 2, "stale": 0, "failed": 1, "cancelled": 0, "pending": 0}
    engine.begin(0, 1, engine.encode_text("go on"))
    assert query(engine, (0, 1, 0))[0].progress == painted_value(0, 1, 0)


def test_the_row_with_nan_is_named_in_a_batch():
    class Nan(PaintedModel):
        def score(self, frames, text, mask):
            frames[1] = torch.nan
            return super().score(frames, text, mask)

    with pytest.raises(QueryError, match=r"preference nan, which no reward may have \(env 1, episode 0, step 0\)$"):
        query(begun(Nan(), envs=3), (0, 0, 0), (1, 0, 0), (2, 0, 0))


def test_wrong_tokens_are_named():  # fault 21
    model = PaintedModel()
    model.encode_frames = lambda frames: torch.zeros(2, 3)
    message = (
        "expected float [1, K, D] on cpu without gradient from encode_frames, got torch.float32 [2, 3] on cpu "
        "(env 0, episode 0, step 0)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        query(begun(model), (0, 0, 0))


def test_out_of_memory_halves_the_batch_for_good():  # fault 22
    model = FaultyModel("out_of_memory", limit=2)
    engine = begun(model, envs=8)
    for step in range(2):
        tickets = [(env, 0, step) for env in range(8)]
        assert [score.progress for score in query(engine, *tickets)] == [painted_value(*ticket) for ticket in tickets]
    halving, fitting = [8, 4, 2, 2, 2, 2], [2, 2, 2, 2]
    assert model.batches == halving + fitting * 3
    assert engine.model.max_batch == 2


def test_out_of_memory_at_batch_one(monkeypatch):  # fault 22
    monkeypatch.setattr("vlp_gym.engine.guard._memory", lambda device: "12 of 80 MiB free on cuda:0")
    message = "out of memory at batch 1, 12 of 80 MiB free on cuda:0 (env 0, episode 0, step 0)"
    with pytest.raises(QueryError, match=f"^{re.escape(message)}$"):
        query(begun(FaultyModel("out_of_memory", limit=0)), (0, 0, 0))


def test_a_model_that_writes_to_its_inputs_does_no_harm():  # fault 28
    engine = begun(FaultyModel("mutates"))
    pixels = [frame(0, 0, step) for step in range(6)]
    for step in range(6):
        assert engine.query([Ticket(0, 0, step)], [pixels[step]])[0].progress == painted_value(0, 0, step)
        assert np.array_equal(pixels[step], frame(0, 0, step))
    assert engine.model.model.painted.windows[-1] == [painted_value(0, 0, step) for step in range(2, 6)]


def test_a_model_in_train_mode_is_put_into_eval_mode():  # fault 28
    model = FaultyModel("train_mode")
    engine = begun(model)
    assert query(engine, (0, 0, 0))[0].preference == 0.0
    model.train()
    assert query(engine, (0, 0, 1))[0].preference == painted_value(0, 0, 1)
    assert not model.training


def test_an_interrupt_leaves_the_counts_consistent():
    model = PaintedModel()
    engine = begun(model)

    def interrupted(frames):
        raise KeyboardInterrupt

    model.encode_frames = interrupted
    with pytest.raises(KeyboardInterrupt):
        query(engine, (0, 0, 0))
    assert engine.stats() == {"submitted": 1, "delivered": 0, "stale": 0, "failed": 0, "cancelled": 1, "pending": 0}


def test_truncate_reaches_the_part_that_counts_tokens():  # fault 31
    class Short(PaintedModel):
        truncate = False

        def encode_text(self, instructions):
            if len(instructions[0]) > 5 and not self.truncate:
                raise InstructionError("too long")
            return super().encode_text(instructions)

    model = Short()
    with pytest.raises(InstructionError, match=r"^too long$"):
        QueryEngine(model).encode_text("press the button")
    assert QueryEngine(model, truncate=True).encode_text("press the button").shape == (1, 1)
    assert model.truncate is False


def test_a_deep_copy_has_its_own_episode_and_the_same_model():
    engine = begun(PaintedModel())
    query(engine, (0, 0, 0))
    twin = copy.deepcopy(engine)
    assert twin.model is engine.model
    query(engine, (0, 0, 1))
    query(twin, (0, 0, 5))
    query(engine, (0, 0, 2))
    assert engine.model.model.windows[-1] == [painted_value(0, 0, step) for step in (0, 1, 2)]
    assert engine.model.model.windows[-2] == [painted_value(0, 0, step) for step in (0, 5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "later"}, "mode must be one of ('sync', 'async'), got 'later'"),
        ({"policy": "drop"}, "policy must be one of ('block', 'widen_stride'), got 'drop'"),
        ({"slots": 0}, "slots must be a whole number, at least 1, got 0"),
        ({"max_wait_s": -1.0}, "max_wait_s and timeout_s must be seconds, got -1.0 and 60.0"),
        ({"window": 0}, "num_frames and window must be at least 1, got 1 and 0"),
        ({"history": "all"}, "history must be 'sliding', 'prefix' or 'prefix-floor', got 'all'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        QueryEngine(PaintedModel(), **options)


def test_nothing_to_take_from_an_empty_cache():
    with pytest.raises(IndexError, match=r"^no frame was encoded yet$"):
        TokenCache(None).take(np.array([0]))
