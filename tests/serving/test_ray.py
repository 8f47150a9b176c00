"""Ray Serve: the same clients, with the same values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from libraries import ray_on_one_cpu

pytest.importorskip("starlette")

from tests.reward_server import free_port
from tests.tiny import awake_model
from vlp_gym import VLPRewardWrapper, load_reward_model
from vlp_gym.errors import QueryError
from vlp_gym.serving import RemoteModel
from vlp_gym.testing import PaintedEnv

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
]

NO_CPU = {"num_cpus": 0}
SECRET = "a-secret-of-32-characters-or-so-"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The folder of a model, and the address of two replicas of it."""
    serve = pytest.importorskip("ray.serve")
    pytest.importorskip("fastapi")
    from vlp_gym.serving.ray import deployment

    folder, port = str(tmp_path_factory.mktemp("model")), free_port()
    awake_model().save_pretrained(folder)
    with ray_on_one_cpu(tmp_path_factory.mktemp("home")):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            serve.run(deployment(folder, token=SECRET).options(num_replicas=2, ray_actor_options=NO_CPU).bind())
            yield folder, f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()


def rewards_of(model):
    env = VLPRewardWrapper(PaintedEnv((6, 3)), "press the button", model)
    rewards = []
    for _ in range(2):
        env.reset(seed=0)
        over = False
        while not over:
            _, reward, over, _, _ = env.step(0)
            rewards.append(reward)
    env.close()
    return np.array(rewards)


def test_a_wrapper_gets_the_rewards_of_the_model_itself(served):
    folder, address = served
    torch.manual_seed(0)
    own = rewards_of(folder)
    assert len(np.unique(own)) > 3
    np.testing.assert_allclose(rewards_of(RemoteModel(address, token=SECRET)), own, rtol=1e-5, atol=1e-6)
    assert RemoteModel(address, token=SECRET).served.name == folder


def test_a_client_stays_with_one_replica(served):
    """Another would not have its frames, and refuse."""
    for _ in range(4):
        model = RemoteModel(served[1], token=SECRET)
        send, answers = model._send, []
        model._send = lambda *asked, send=send, answers=answers: answers.append(send(*asked)) or answers[-1]
        rewards_of(model)
        assert len(answers) > 9
        assert {type(answer) for answer in answers} == {bytes}


def test_without_the_token_nobody_is_served(served):
    with pytest.raises(QueryError, match="expected the server's token"):
        load_reward_model(served[1])


def test_bad_arguments():
    pytest.importorskip("fastapi")
    pytest.importorskip("ray.serve")
    from vlp_gym.serving.ray import deployment

    with pytest.raises(ValueError, match=r"^max_batch: expected a whole number, at least 1, got 0$"):
        deployment("vlp-compact", max_batch=0)
    with pytest.raises(ValueError, match="expected at least 16 letters"):
        deployment("vlp-compact", token="short")
