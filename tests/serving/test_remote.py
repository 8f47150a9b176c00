"""The model of a server against the model itself, and what a client says when something is wrong."""

from __future__ import annotations

import os
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.painted_segments import painted_store
from tests.reward_server import EveryPart, RewardServer, ThreadServer
from tests.server_kills import kill_server
from tests.tiny import awake_model
from vlp_gym import VLPRewardWrapper, load_reward_model
from vlp_gym.engine.guard import GuardedModel
from vlp_gym.engine.video import VideoScorer
from vlp_gym.errors import CheckpointError, InstructionError, QueryError, QueryTimeout
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.furl import FuRLModel
from vlp_gym.models.registry import check_storable
from vlp_gym.preferences import ModelLabeler
from vlp_gym.serving import RemoteModel
from vlp_gym.serving.app import Limits
from vlp_gym.testing import PaintedEnv, PaintedModel, check_reward_model, painted_value

SENTENCES = ["press the button", "close the door and then open the drawer, please"]
SECRET = "a-secret-of-32-characters-or-so-"


@pytest.fixture(scope="module")
def tiny():
    with ThreadServer(awake_model()) as server:
        yield server


@pytest.fixture(scope="module")
def every():
    with ThreadServer(EveryPart(), name="every", token=SECRET) as server:
        yield server


def random_frames(count: int, *size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_it_fulfils_the_protocol_of_reward_models(tiny):
    check_reward_model(tiny.client())


@pytest.mark.parametrize("size", [(32, 32), (40, 50), (90, 61)])
def test_it_scores_as_the_model_itself(tiny, size):
    frames = random_frames(10, *size)
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    heads = []
    for model in (awake_model(), load_reward_model(tiny.address)):
        guard = GuardedModel(model)
        tokens = guard.encode_frames(frames, where="test").unflatten(0, (2, 5))
        heads.append(guard.score(tokens, guard.encode_text(SENTENCES, where="test"), mask, where="test"))
    for name in ("preference", "progress", "relevance"):
        torch.testing.assert_close(getattr(heads[1], name), getattr(heads[0], name), rtol=1e-5, atol=1e-6)


def test_a_frame_travels_once_and_is_encoded_once(tiny):
    model, before, sent = tiny.client(), tiny.answerer.encoded, []
    exchange = model._connection._exchange
    model._connection._exchange = lambda path, body, headers: sent.append(len(body)) or exchange(path, body, headers)
    tokens, text = model.encode_frames(random_frames(8, 64, 64, seed=1)), model.encode_text(SENTENCES[:1])
    sent.clear()
    for stop in range(1, 9):
        model.score(tokens[None, max(stop - 4, 0) : stop], text, torch.ones(1, min(stop, 4), dtype=torch.bool))
    assert tiny.answerer.encoded - before == 8
    assert sum(sent) < 8 * (64 * 64 * 3 + 1024)
    model.score(tokens[None], text, torch.ones(1, 8, dtype=torch.bool))
    assert sent[-1] < 1024
    other = tiny.client()  # another client of the same frames; the server knows them
    other.encode_frames(random_frames(8, 64, 64, seed=1))
    assert torch.equal(
        other.score(tokens[None], text, torch.ones(1, 8, dtype=torch.bool)).preference,
        model.score(tokens[None], text, torch.ones(1, 8, dtype=torch.bool)).preference,
    )
    assert tiny.answerer.encoded - before == 8


def test_optional_parts_are_those_of_the_served_model(tiny, every):
    model, local = every.client(), EveryPart()
    guards = [GuardedModel(model, truncate=True), GuardedModel(local, truncate=True)]
    assert [(guard.pairwise, guard.knowing, guard.anchored) for guard in guards] == [(True, True, False)] * 2
    assert model.value_range == local.value_range
    frames = random_frames(6, 8, 8) // 8
    answers = []
    for guard in guards:
        tokens, text = guard.encode_frames(frames, where="test"), guard.encode_text(SENTENCES, where="test")
        a, b = tokens[:4].unflatten(0, (2, 2)), tokens[[4, 5, 4, 5, 0, 1]].unflatten(0, (2, 3))
        answers.append((guard.prefer(a, b, text, where="test"), guard.novelty(tokens, where="test")))
    for remote, own in zip(*answers, strict=True):
        torch.testing.assert_close(remote, own)
    assert not hasattr(tiny.client(), "prefer")
    with pytest.raises(InstructionError, match=r"^at most 20 characters$"):
        every.client().encode_text(["press the button that is red"])


def test_an_error_of_the_model_is_that_of_the_client(every):
    guard = GuardedModel(every.client())
    text, mask = guard.encode_text(SENTENCES[:1], where="test"), torch.ones(1, 1, dtype=torch.bool)
    for value, message in (
        (150, "the reward model gave the preference nan, which no reward may have (step 7)"),
        (250, f"the reward model raised QueryError: the reward server at {every.address} answers 422: the reward model "
         "raised RuntimeError: too bright for me (a question of a client) (step 7)"),
    ):  # fmt: skip
        tokens = guard.encode_frames(torch.full((1, 8, 8, 3), value, dtype=torch.uint8), where="step 7")
        with pytest.raises(QueryError) as caught:
            guard.score(tokens[None], text, mask, where="step 7")
        assert str(caught.value) == message


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_wrapper_takes_an_address(mode):
    with ThreadServer(PaintedModel(), name="painted") as server:
        env = VLPRewardWrapper(PaintedEnv([7, 5]), "press the button", server.address, mode=mode)
        for episode in range(2):
            env.reset()
            env.take_late_rewards()
            rewards, over, step = {}, False, 0
            while not over:
                _, reward, over, _, info = env.step(0)
                step += 1
                came = info["vlp"]["delivered"] if mode == "async" else []
                rewards |= {delivery.ticket.step: delivery.reward for delivery in came}
                if mode == "sync":
                    rewards[step] = reward
            rewards |= {delivery.ticket.step: delivery.reward for delivery in env.flush()}
            assert rewards == {number: painted_value(0, episode, number) for number in range(1, step + 1)}
        env.close()


@pytest.mark.parametrize("kind", ["preference", "reward"])
def test_a_labeler_takes_an_address(tiny, kind):
    store = painted_store(size=32)
    first, second = store.cut([(0, 0, 8), (1, 4, 12)]), store.cut([(3, 2, 10), (5, 8, 16)])
    labels = [
        ModelLabeler(model, SENTENCES[0], kind=kind, soft=True)(first, second)
        for model in (tiny.address, awake_model())
    ]
    assert np.ptp(labels[1]) > 1e-3
    np.testing.assert_allclose(*labels, atol=1e-4)


def test_evaluation_takes_an_address(tiny):
    video = random_frames(20, 40, 40).numpy()
    found = []
    for model in (tiny.address, awake_model()):
        scorer = VideoScorer(model, SENTENCES)
        scorer.open(video, "video")
        found.append(np.concatenate([scorer.preferences([(0, 20), (5, 9)], SENTENCES), scorer.values(SENTENCES[1])]))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_many_frames_go_in_several_bodies():
    limits = Limits(max_body=40_000, max_places=20)
    with ThreadServer(PaintedModel(), limits=limits) as server:
        model = server.client()
        frames = random_frames(9, 64, 64)
        tokens, text = model.encode_frames(frames), model.encode_text(SENTENCES[:1])
        windows = tokens[torch.arange(9)[:, None].expand(9, 8)]
        scores = model.score(windows, text.expand(9, -1, -1), torch.ones(9, 8, dtype=torch.bool))
        assert torch.equal(scores.preference, PaintedModel().encode_frames(frames).flatten())
        big = model.encode_frames(random_frames(1, 200, 100))
        with pytest.raises(QueryError) as caught:
            model.score(big[None], text, torch.ones(1, 1, dtype=torch.bool))
        assert re.fullmatch(
            f"the reward server at {server.address} answers 413: expected at most 40000 bytes, got 60...",
            str(caught.value),
        )


def test_a_server_that_forgets_gets_the_frames_again():
    with ThreadServer(PaintedModel(), cache=16) as server:  # four frames or sentences
        model = server.client()
        frames = random_frames(12, 8, 8)
        tokens, text = model.encode_frames(frames), model.encode_text(SENTENCES[:1])
        for start in (0, 8, 4, 0):
            scores = model.score(tokens[None, start : start + 4], text, torch.ones(1, 4, dtype=torch.bool))
            assert torch.equal(scores.preference, PaintedModel().encode_frames(frames)[start + 3].flatten())
        assert server.answerer.encoded > 12
        short = server.client(memory=3 * frames[0].nbytes)
        tokens = short.encode_frames(random_frames(12, 8, 8, seed=1))
        with pytest.raises(
            QueryError, match=r"^9 frames are gone: the server at \S+ was restarted or its cache is full"
        ):
            short.score(tokens[None], text, torch.ones(1, 12, dtype=torch.bool))


def test_several_clients_at_once(tiny):
    """Each in a thread, with a model and random frames of its own, against the local model."""
    local, wrong = GuardedModel(awake_model()), []

    def play(seed: int) -> None:
        guard, generator = GuardedModel(tiny.client()), torch.Generator().manual_seed(seed)
        text = SENTENCES[seed % 2]
        heads = []
        for one in (guard, local):
            generator.manual_seed(seed)
            encoded, tokens, found = one.encode_text([text], where="test"), [], []
            for _ in range(10):
                frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8, generator=generator)
                tokens.append(one.encode_frames(frame, where="test")[0])
                window = torch.stack(tokens[-4:])[None]
                mask = torch.ones(1, window.shape[1], dtype=torch.bool)
                found.append(one.score(window, encoded, mask, where="test").preference)
            heads.append(torch.cat(found))
        if not torch.allclose(*heads, rtol=1e-4, atol=1e-5):
            wrong.append((seed, heads))

    threads = [threading.Thread(target=play, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)
    assert tiny.worker.batches < tiny.worker.answered  # some were answered together


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_connection_of_its_own(tiny):
    model = tiny.client()
    tokens, text = model.encode_frames(random_frames(2, 32, 32)), model.encode_text(SENTENCES[:1])
    mask = torch.ones(1, 1, dtype=torch.bool)
    kept = model._connection._kept.connection
    process = model._connection._kept.process
    model._connection._kept.process = -1  # as a child sees what its parent has opened
    model.score(tokens[None, :1], text, mask)
    assert model._connection._kept.connection is not kept
    assert model._connection._kept.process == process
    kept.close()


# ---------------------------------------------------------------- errors


def test_a_wrong_token_is_refused_and_none_is_shown(every, monkeypatch, caplog):
    for token in ("wrong", None):
        with pytest.raises(QueryError) as caught:
            RemoteModel(every.address, token=token)
        said = "expected the server's token; set VLP_GYM_SERVER_TOKEN to it"
        assert str(caught.value) == f"the reward server at {every.address} answers 401: {said}"
    monkeypatch.setenv("VLP_GYM_SERVER_TOKEN", SECRET)
    model = load_reward_model(every.address)
    assert SECRET not in f"{model!r} {model._connection!r} {caplog.text}"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://", "expected the model's address as http://HOST:PORT, got 'http://'"),
        (
            "http://127.0.0.1:port",
            "expected the model's address as http://HOST:PORT, got 'http://127.0.0.1:port' (Port ",
        ),
        (
            "http://user:word@127.0.0.1:1",
            "an address may be shown and must hold no secret; set VLP_GYM_SERVER_TOKEN to the token",
        ),
        (
            "http://127.0.0.1:1?token=x",
            "expected the model's address as http://HOST:PORT, got 'http://127.0.0.1:1?token=x'",
        ),
    ],
)
def test_an_address_that_is_none(address, message):
    with pytest.raises(ValueError) as caught:
        load_reward_model(address)
    assert str(caught.value).startswith(message)


def test_nobody_is_there(monkeypatch):
    monkeypatch.setattr("vlp_gym.serving.remote.CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(QueryError) as caught:
        load_reward_model(address)
    assert re.fullmatch(
        f"the reward server at {address} cannot be asked \\(ConnectionRefusedError: .*\\), \\d times in 0.\\d s; is it "
        "running \\(vlp-gym serve MODEL\\), and the address right\\?",
        str(caught.value),
    )


class Stranger(BaseHTTPRequestHandler):
    """A server of something else."""

    answer = (200, b"<html>hello</html>")

    def do_GET(self):
        status, body = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, b"<html>"), r"expected a server of vlp_gym: http://\S+: the document: .*"),
        ((404, b"nothing"), r"http://\S+ answers 404 as no server of vlp_gym does; check the address"),
        ((302, b""), r"http://\S+ answers 302 as no server of vlp_gym does; check the address"),
        ((200, b'{"protocol": 2, "version": "9.0"}'), r"http://\S+ speaks protocol 2 of vlp_gym '9.0', and this is "
         r"protocol 1 of \S+; install the same version on both sides"),
    ],
)  # fmt: skip
def test_a_server_of_something_else(answer, message):
    handler = type("Handler", (Stranger,), {"answer": answer})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        with pytest.raises(QueryError) as caught:
            RemoteModel(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert re.fullmatch(message, str(caught.value))


def test_a_server_that_hangs(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(QueryTimeout) as caught:
            RemoteModel(address, timeout_s=0.2)
    assert str(caught.value) == f"the reward server at {address} does not answer in time (timed out)"


def test_a_checkpoint_may_not_name_a_server():
    with pytest.raises(CheckpointError, match=r"^a checkpoint may not name a model on an endpoint"):
        check_storable(["https://evil.example"])


def test_digests_are_no_embeddings(tiny):
    with pytest.raises(ValueError, match=r"^expected a base with one token a frame, got 2; take LIV or a clip: model$"):
        FuRLModel(tiny.address)


# ---------------------------------------------------------------- kills


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_is_killed_loses_and_doubles_nothing(tmp_path):
    counts = kill_server(2, 4, tmp_path)
    assert (counts.failed, counts.lost, counts.doubled, counts.wrong) == ([], 0, 0, 0)
    assert counts.steps > 20
    assert counts.retries > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_another_model_at_the_same_address_is_refused(tmp_path):
    other = awake_model()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    folders = [save_checkpoint(model, tmp_path / name) for model, name in ((awake_model(), "first"), (other, "second"))]
    with RewardServer(folders[0], tmp_path / "points") as server:
        model = server.client(patience_s=300)
        tokens, text = model.encode_frames(random_frames(1, 32, 32)), model.encode_text(SENTENCES[:1])
        mask = torch.ones(1, 1, dtype=torch.bool)
        before = model.score(tokens[None], text, mask)
        server.restart()
        assert torch.equal(model.score(tokens[None], text, mask).preference, before.preference)
        server.restart(folders[1])
        with pytest.raises(QueryError) as caught:
            model.score(tokens[None], text, mask)
        assert re.fullmatch(
            f"the server at {server.address} has another model or version than before, whose rewards would mix with "
            f"those paid so far: this server has {folders[1]} of vlp_gym \\S+ \\([0-9a-f]+\\), and was asked for "
            f"'[0-9a-f]+'; here it was {folders[0]} of vlp_gym \\S+. Serve that one again, or begin anew",
            str(caught.value),
        )
        status, said = server.interrupt()
        assert (status, "vlp-gym: interrupted; clients wait for the same command" in said) == (130, True)
