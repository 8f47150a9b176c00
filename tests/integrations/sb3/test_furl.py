"""FuRL: losses against NumPy, heads that learn a ranking, pools of frames, and the callback of Stable-Baselines3."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from vlp_gym.engine.tickets import Answer, FrameScore, Ticket
from vlp_gym.errors import CheckpointError
from vlp_gym.models import registry
from vlp_gym.models.checkpoint import load_checkpoint
from vlp_gym.models.furl import FuRLModel, FuRLTrainer
from vlp_gym.models.protocol import Scores, value_range
from vlp_gym.objectives.furl import goal_ranking_loss, success_ranking_loss
from vlp_gym.testing import PaintedModel, check_reward_model, painted_value


class Base(nn.Module):
    """A frozen model of one token: a frame's mean colours, and the letters of a sentence."""

    window, history, frame_size = 8, "sliding", (8, 8)

    def __init__(self):
        super().__init__()
        self.image = nn.Linear(3, 6)
        self.words = nn.Linear(26, 5)

    def encode_text(self, instructions):
        counts = [[each.count(chr(97 + letter)) for letter in range(26)] for each in instructions]
        return self.words(torch.tensor(counts, dtype=torch.float32))[:, None]

    def encode_frames(self, frames):
        return self.image(frames.float().mean((1, 2)) / 255)[:, None]

    def score(self, frames, text, mask):
        return Scores(preference=frames[:, -1, 0, 0])


def tiny(base=None, **options):
    torch.manual_seed(0)
    return FuRLModel(base or Base(), **{"widths": (16, 8), **options})


def test_goal_ranking_is_the_formula():
    rng = np.random.default_rng(0)
    values, distances = rng.uniform(-1, 1, 12), rng.uniform(0, 1, 12)
    total = 0.0
    for i in range(12):
        for j in range(12):
            if distances[i] - distances[j] < -0.3:
                total += max(0.0, 0.2 - (values[i] - values[j]))
    loss = goal_ranking_loss(torch.tensor(values), torch.tensor(distances), margin=0.2, distance_margin=0.3)
    assert loss.item() == pytest.approx(total / 12, abs=1e-12)
    assert goal_ranking_loss(torch.ones(3), torch.tensor([0.1, 0.2, 0.3])).item() == 0.0


def test_success_ranking_is_the_formula_and_has_the_gradient_of_the_authors():
    rng = np.random.default_rng(1)
    arrays = rng.uniform(-0.2, 0.2, (3, 50))
    positive, negative, lagged = (torch.tensor(row, requires_grad=True) for row in arrays)
    loss = success_ranking_loss(positive, negative, lagged)
    gaps = [arrays[1] - arrays[0], arrays[2] - arrays[0]]
    expected = sum(np.maximum(0, 0.1 + gap).mean() for gap in gaps)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    loss.backward()
    active = [gap + 0.1 > 0 for gap in gaps]  # mean of [gap + margin > 0] * gap
    np.testing.assert_allclose(negative.grad, active[0] / 50)
    np.testing.assert_allclose(lagged.grad, active[1] / 50)
    np.testing.assert_allclose(positive.grad, -(active[0] * 1.0 + active[1]) / 50)
    alone = success_ranking_loss(positive, None, lagged, margin=0.05)
    assert alone.item() == pytest.approx(np.maximum(0, 0.05 + gaps[1]).mean(), abs=1e-12)


def test_it_is_a_reward_model_whose_values_are_cosines():
    model = tiny()
    check_reward_model(model)
    assert value_range(model) == (-1.0, 1.0)
    frames = torch.randint(0, 256, (4, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    tokens, text = model.encode_frames(frames), model.encode_text(["press the button"])
    assert not tokens.requires_grad
    mask = torch.tensor([[False, True, True, True]])
    scores = model.score(tokens[None], text, mask)

    def head(x, layers):
        first, _, last = layers
        hidden = np.maximum(x @ first.weight.detach().double().numpy().T + first.bias.detach().double().numpy(), 0)
        return hidden @ last.weight.detach().double().numpy().T + last.bias.detach().double().numpy()

    image = head(tokens[:, 0].double().numpy(), model.image_head)
    sentence = head(text[0, 0].double().numpy(), model.text_head)
    cosines = image @ sentence / np.linalg.norm(image, axis=1) / np.linalg.norm(sentence)
    np.testing.assert_allclose(scores.progress[0].detach(), cosines, atol=1e-5)
    np.testing.assert_allclose(scores.preference.detach(), [cosines[1:].mean()], atol=1e-5)


def test_the_base_stays_as_it_is():
    model = tiny().train()
    assert model.image_head.training
    assert not model.base.training
    assert {name.partition(".")[0] for name, weight in model.named_parameters() if weight.requires_grad} == {
        "image_head", "text_head"}  # fmt: skip
    shapes = [tuple(layer.weight.shape) for layer in FuRLModel(Base()).image_head if isinstance(layer, nn.Linear)]
    assert shapes == [(256, 6), (64, 256)]


def test_a_base_of_many_tokens_is_refused():
    from tiny import tiny_model

    message = "expected a base with one token a frame, got 4; take LIV or a clip: model"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FuRLModel(tiny_model())


def test_round_trip(tmp_path, monkeypatch):
    def build(device):
        torch.manual_seed(5)
        return Base().to(device)

    module = ModuleType("third_party")
    module.build = build
    monkeypatch.setitem(sys.modules, "third_party", module)
    point = EntryPoint("theirs", "third_party:build", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    before = torch.get_rng_state()
    model = FuRLModel.from_spec("theirs").eval()
    assert torch.equal(before, torch.get_rng_state())
    model.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = load_checkpoint(FuRLModel, tmp_path)
    assert again.config == {"base": "theirs", "widths": [256, 64]}
    assert sorted(again.checkpoint_state()) == sorted(
        f"{head}_head.{layer}.{part}" for head in ("image", "text") for layer in (0, 2) for part in ("weight", "bias")
    )
    frames = torch.randint(0, 256, (3, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    progress = [
        m.score(m.encode_frames(frames)[None], m.encode_text(["press the button"]), torch.ones(1, 3) > 0).progress
        for m in (model, again)
    ]
    assert torch.equal(*progress)
    message = "a FuRLModel with a live base cannot be saved: name the base by a string"
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        tiny().save_pretrained(tmp_path / "other")


def trainer(model=None, goal=None, **options):
    model = model or tiny(PaintedModel())
    settings = {"gap": 2, "batch_size": 32, "learning_rate": 3e-3, "capacity": 100, **options}
    return FuRLTrainer(model, model.encode_text(["press the button"])[0, 0], goal=goal, **settings)


def test_frames_go_into_the_pools_where_they_belong():
    learner = trainer(goal=torch.zeros(1))
    frames = torch.arange(8.0)[:, None]
    learner.add_episode(frames, torch.tensor([0, 0, 0, 1, 1, 0, 1, 0], dtype=torch.bool))
    assert len(learner.negative) == 0
    assert learner.positive.rows[:3, :, 0].tolist() == [[2, 0], [3, 1], [4, 2]]  # up to the success, and while it lasts
    learner.add_episode(frames, torch.zeros(8, dtype=torch.bool))
    assert learner.negative.rows[:8, 0].tolist() == list(range(8))
    learner.add_episode(frames, torch.arange(8) == 1)  # a success too soon to be lagged behind
    learner.add_episode(frames, torch.arange(8) >= 6)
    assert len(learner.positive) == 3 + 6
    assert learner.positive.rows[3:9, :, 0].tolist() == [[k + 2, k] for k in range(6)]
    assert len(learner.seen) == 32
    assert len(trainer().seen) == 0


def test_a_full_pool_keeps_the_newest():
    learner = trainer(capacity=5)
    for start in (0, 3, 6):
        learner.add_episode(torch.arange(start, start + 3.0)[:, None], torch.zeros(3, dtype=torch.bool))
    assert sorted(learner.negative.rows[:, 0].tolist()) == [4, 5, 6, 7, 8]
    learner.add_episode(torch.arange(20.0)[:, None], torch.zeros(20, dtype=torch.bool))
    assert sorted(learner.negative.rows[:, 0].tolist()) == [15, 16, 17, 18, 19]
    assert len(learner.negative) == 5


def test_heads_learn_the_way_to_success():
    torch.manual_seed(0)
    way, elsewhere = torch.randn(2, 6)
    learner = trainer(tiny(), batch_size=64)
    model, steps = learner.model, torch.linspace(0, 1, 10)[:, None]
    frozen = [weight.clone() for weight in model.base.parameters()]
    for _ in range(4):
        noise = 0.05 * torch.randn(2, 10, 6)
        learner.add_episode(way * steps + noise[0], torch.arange(10) == 9)
        learner.add_episode(elsewhere * steps + noise[1], torch.zeros(10, dtype=torch.bool))
    losses = [learner.update() for _ in range(150)]
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        good, bad = (model.values(each * steps, learner.text) for each in (way, elsewhere))
    assert (good[-1] > bad).all()
    assert good[9] > good[5] > good[1]
    assert all(map(torch.equal, frozen, model.base.parameters()))


def test_before_a_success_heads_learn_from_a_goal_image():
    torch.manual_seed(0)
    goal = torch.randn(6)
    learner = trainer(tiny(), goal=goal, batch_size=64)
    frames = goal + torch.linspace(2, 0, 40)[:, None] * torch.randn(6)
    learner.add_episode(frames, torch.zeros(40, dtype=torch.bool))
    losses = [learner.update() for _ in range(150)]
    assert losses[-1] < 0.3 * losses[0]
    with torch.no_grad():
        values = learner.model.values(frames, learner.text)
    assert values[39] > values[20] > values[0]


def test_nothing_to_learn_from_yet():
    learner = trainer()
    before = [weight.clone() for weight in learner.model.parameters()]
    learner.add_episode(torch.rand(5, 1), torch.zeros(5, dtype=torch.bool))
    assert learner.update() is None
    assert all(map(torch.equal, before, learner.model.parameters()))
    with pytest.raises(ValueError, match=r"^gap: expected a number of frames, at least 1, got 0$"):
        trainer(gap=0)


def test_updates_draw_from_no_global_generator():
    learner = trainer()
    learner.add_episode(torch.rand(5, 1), torch.arange(5) == 4)
    before = torch.get_rng_state()
    assert learner.update() is not None
    assert torch.equal(before, torch.get_rng_state())


sb3 = pytest.importorskip("stable_baselines3")

from late import SENTENCE, SeenEnv, SlowModel  # noqa: E402  # needs the line above
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

from vlp_gym.engine import QueryEngine  # noqa: E402
from vlp_gym.integrations.sb3 import VLPReplayBuffer, VLPRewardCallback  # noqa: E402
from vlp_gym.integrations.sb3.furl import FuRLCallback, _Episodes  # noqa: E402
from vlp_gym.integrations.sb3.vec import VLPVecReward  # noqa: E402
from vlp_gym.wrappers import VLPRewardWrapper  # noqa: E402
from vlp_gym.wrappers.capture import capture_frames  # noqa: E402

LENGTHS = (7, 5, 1, 6)


class Solved(SeenEnv):
    """Every second episode succeeds, at its step 5 and after."""

    def __init__(self, env=0):
        super().__init__(LENGTHS, env=env)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "success": self.solved(self.episode, self.elapsed)}

    @staticmethod
    def solved(episode, step):
        return float(episode % 2 == 0 and step >= 5)


def solved_venv(kind, model, n_envs=2, env=Solved, mode="async"):
    def bare(index):
        return lambda: env(env=index)

    if kind == "vector":
        return VLPVecReward(DummyVecEnv(capture_frames([bare(k) for k in range(n_envs)])), SENTENCE, model, mode=mode)
    engine = QueryEngine(model, mode=mode) if kind == "shared" else None
    options = {} if engine else {"mode": mode}
    return DummyVecEnv(
        [lambda k=k: VLPRewardWrapper(bare(k)(), SENTENCE, engine or model, **options) for k in range(n_envs)]
    )


def sac(venv):
    return sb3.SAC(
        "MlpPolicy", venv, replay_buffer_class=VLPReplayBuffer, policy_kwargs={"net_arch": [8]},
        learning_starts=20, batch_size=8, buffer_size=200, train_freq=4, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["separate", "shared", "vector"])
def test_the_callback_feeds_the_trainer_with_what_happened(kind, monkeypatch):
    model = tiny(SlowModel(0.001))
    venv, callback = solved_venv(kind, model), FuRLCallback(gap=2, batch_size=16)
    update, locked = FuRLTrainer.update, []

    def watched(self):
        locked.append(all(engine._calling.locked() for engine in callback._source.engines))
        return update(self)

    monkeypatch.setattr(FuRLTrainer, "update", watched)
    sac(venv).learn(120, [VLPRewardCallback(), callback])
    assert locked == [True] * 50  # two environments; from the step after learning_starts on
    learner = callback.trainer
    positive = {tuple(map(float, pair)) for pair in learner.positive.rows[: len(learner.positive), :, 0]}
    negative = set(learner.negative.rows[: len(learner.negative), 0].tolist())
    expected_positive, expected_negative = set(), set()
    for env in range(2):
        for episode in range(10):  # 7 + 5 + 1 + 7 * 6 = 55 of 60 steps each
            steps = range(1, LENGTHS[min(episode, 3)] + 1)
            values = [float(np.float32(painted_value(env, episode, step))) for step in steps]
            if any(Solved.solved(episode, step) for step in steps):
                expected_positive |= set(zip(values[2:], values, strict=False))
            else:
                expected_negative |= set(values)
    assert len(positive) == len(learner.positive)
    assert len(negative) == len(learner.negative)
    assert (positive, negative) == (expected_positive, expected_negative)
    wrapper = venv if kind == "vector" else venv.envs[0]
    assert wrapper.engine.on_answer is None
    venv.close()


def test_the_heads_learn_and_the_rewards_follow():
    model = tiny(PaintedModel())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    venv = solved_venv("shared", model, 1)
    goal = np.zeros((8, 8, 3), np.uint8)
    callback = FuRLCallback(goal, gap=2, batch_size=16, updates=2, seed=3)
    agent = sac(venv)
    agent.learn(60, [VLPRewardCallback(), callback])
    assert callback.trainer.goal.tolist() == [0.0]
    assert any(not torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    kept = len(callback.trainer.positive)
    agent.learn(30, [VLPRewardCallback(), callback], reset_num_timesteps=False)  # goes on with the same pools
    assert len(callback.trainer.positive) > kept > 0
    logged = agent.logger.name_to_value
    assert {"furl/loss", "furl/positive", "furl/negative"} <= set(logged)
    venv.close()


def test_an_on_policy_agent():
    venv = solved_venv("vector", tiny(PaintedModel()))
    agent = sb3.PPO("MlpPolicy", venv, n_steps=16, batch_size=8, n_epochs=1, policy_kwargs={"net_arch": [8]}, seed=0)
    callback = FuRLCallback(gap=2, batch_size=16)
    agent.learn(64, [VLPRewardCallback(), callback])
    assert len(callback.trainer.positive) > 0
    venv.close()


def test_what_the_callback_does_not_go_with():
    cases = [
        (
            solved_venv("separate", tiny(PaintedModel()), mode="sync"),
            'expected the wrapper in mode="async", whose steps have tickets',
        ),
        (
            solved_venv("shared", PaintedModel()),
            "expected environments that one FuRLModel pays for one sentence, got 1 of ['PaintedModel'] and the "
            "sentences ['press the button']",
        ),
    ]
    for venv, message in cases:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            sac(venv).learn(10, [VLPRewardCallback(), FuRLCallback()])
        venv.close()
    venv = solved_venv("shared", tiny(PaintedModel()), 1, env=SeenEnv)
    with pytest.raises(ValueError, match=r"^expected info\['success'\] of every step, got \["):
        sac(venv).learn(10, [VLPRewardCallback(), FuRLCallback()])
    venv.close()
    first, second = (solved_venv("shared", tiny(PaintedModel()), 1) for _ in range(2))
    callback = FuRLCallback()
    sac(first).learn(10, [VLPRewardCallback(), callback])
    message = "expected the model that this callback has trained before; make a new callback"
    with pytest.raises(ValueError, match=f"^{message}$"):
        sac(second).learn(10, [VLPRewardCallback(), callback])
    first.close()
    second.close()


def test_an_episode_is_taken_when_all_of_it_has_come():
    episodes = _Episodes()

    def hear(episode, step):
        answer = Answer(Ticket(0, episode, step), FrameScore(0.0, 0.0, None))
        episodes.on_answer(answer, np.zeros((1, 8, 8, 3), np.uint8), torch.full((1, 1, 1), float(step)))

    for step in (1, 2, 3):
        episodes.step(Ticket(0, 0, step), step == 3, over=step == 3)
    hear(0, 0)
    hear(0, 1)
    assert episodes.finished() == []
    hear(0, 3)  # step 2 was not looked at
    ((embeddings, success),) = episodes.finished()
    assert embeddings.tolist() == [[1.0], [3.0]]
    assert success.tolist() == [False, True]
    assert episodes.finished() == []
    for step in (1, 2):
        episodes.step(Ticket(0, 1, step), False, over=step == 2)
    hear(1, 1)
    assert episodes.finished() == []
    hear(2, 0)  # the end of the episode before is lost
    assert episodes.finished() == []
    assert (episodes._over, episodes._tokens, episodes._success) == ([], {}, {})
