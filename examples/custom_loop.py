"""A hand-written agent with late rewards: SAC in one file, in the style of CleanRL, with no library of agents.

    python examples/custom_loop.py
    python examples/custom_loop.py --task door-close-v3 --instruction "close the door" --model vlp-compact --seed 1

The environment does not wait for the reward model: a reward comes some steps later. All that a loop of your own has to
do about it are the three lines with `late` and `settled`: only transitions that have their reward are sampled. With
--mode sync the same lines do nothing. Everything lands in --out: TensorBoard logs, result.json, learning_curve.png,
policy.safetensors. Ctrl-C keeps what was learned.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from vlp_gym import LateRewards, VLPRewardWrapper, make_metaworld
from vlp_gym.viz import plot_learning_curve


@dataclass(frozen=True)
class Options:
    """Train a hand-written SAC from the reward of a sentence."""

    task: str = "drawer-close-v3"
    """Meta-World task."""
    instruction: str = "close the drawer"
    """What the agent is told."""
    model: str = "vlp-compact-45"
    """Reward model: a name, a folder or a hub id. vlp-compact-45 never saw this task."""
    mode: Literal["sync", "async"] = "async"
    """"async" steps on while the reward model works."""
    steps: int = 5_000
    """Steps of the agent."""
    learning_starts: int = 1_000
    """Random steps before the first update."""
    batch_size: int = 256
    """Transitions of an update."""
    learning_rate: float = 1e-3
    """Of actor, critics and temperature; falls to 0."""
    gamma: float = 0.98
    """Discount."""
    tau: float = 0.01
    """How fast the target critics follow."""
    eval_every: int = 2_500
    """Steps between two evaluations."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    seed: int = 0
    """Of the task's placements, the agent and the exploration."""
    out: Path | None = None
    """Where the results go; runs/custom-TASK-SEED by default."""


class ReplayBuffer:
    """Transitions, and whether their reward is there."""

    def __init__(self, capacity: int, observation_dim: int, action_dim: int) -> None:
        self.observations = np.zeros((capacity, observation_dim), np.float32)
        self.next_observations = np.zeros((capacity, observation_dim), np.float32)
        self.actions = np.zeros((capacity, action_dim), np.float32)
        self.rewards = np.zeros(capacity, np.float32)
        self.terminated = np.zeros(capacity, np.float32)
        self.settled = np.zeros(capacity, bool)
        self.size = 0

    def add(self, observation, action, reward, after, terminated) -> int:
        """Store a transition; returns its row."""
        row, self.size = self.size, self.size + 1
        self.observations[row], self.actions[row], self.next_observations[row] = observation, action, after
        self.rewards[row], self.terminated[row] = reward, terminated
        return row

    def sample(self, batch_size: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Transitions whose rewards are there, uniformly."""
        rows = rng.choice(np.flatnonzero(self.settled[: self.size]), batch_size)
        columns = (self.observations, self.actions, self.rewards, self.next_observations, self.terminated)
        return tuple(torch.from_numpy(column[rows]) for column in columns)


def net(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))


class Actor(nn.Module):
    """A squashed Gaussian policy over actions in [-1, 1]."""

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.body = net(observation_dim, 2 * action_dim)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An action ``[B, A]``, its log probability ``[B]``, and the most likely action ``[B, A]``."""
        mean, log_std = self.body(observation).chunk(2, dim=-1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
        raw = normal.rsample()
        squashing = 2 * (np.log(2) - raw - F.softplus(-2 * raw))  # log(1 - tanh^2), without its rounding
        return raw.tanh(), (normal.log_prob(raw) - squashing).sum(-1), mean.tanh()


class Agent:
    """Soft actor-critic (Haarnoja et al., 2018) with a learned temperature."""

    def __init__(self, options: Options, observation_dim: int, action_dim: int) -> None:
        self.options = options
        self.actor = Actor(observation_dim, action_dim)
        self.critics = nn.ModuleList([net(observation_dim + action_dim, 1) for _ in range(2)])
        self.targets = nn.ModuleList([net(observation_dim + action_dim, 1) for _ in range(2)]).requires_grad_(False)
        self.targets.load_state_dict(self.critics.state_dict())
        self.log_alpha = torch.tensor(np.log(0.05), dtype=torch.float32, requires_grad=True)
        self.target_entropy = -float(action_dim)
        self.optimizers = [
            torch.optim.Adam(parameters, options.learning_rate)
            for parameters in (self.critics.parameters(), self.actor.parameters(), [self.log_alpha])
        ]

    def update(self, batch: tuple[Tensor, ...], left: float) -> dict[str, float]:
        """One gradient step of everything; `left` is the share of the run that is left."""
        observation, action, reward, after, terminated = batch
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            next_action, log_prob, _ = self.actor(after)
            value = least(self.targets, after, next_action) - alpha * log_prob
            target = reward + self.options.gamma * (1 - terminated) * value
        pairs = torch.cat([observation, action], -1)
        critic_loss = sum(F.mse_loss(critic(pairs).squeeze(-1), target) for critic in self.critics)
        new_action, log_prob, _ = self.actor(observation)
        self._step(0, critic_loss, left)
        actor_loss = (alpha * log_prob - least(self.critics, observation, new_action)).mean()
        self._step(1, actor_loss, left)
        self._step(2, -(self.log_alpha * (log_prob.detach() + self.target_entropy)).mean(), left)
        with torch.no_grad():
            for slow, fast in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                slow.lerp_(fast, self.options.tau)
        return {"critic_loss": float(critic_loss), "actor_loss": float(actor_loss), "alpha": float(alpha)}

    def _step(self, which: int, loss: Tensor, left: float) -> None:
        optimizer = self.optimizers[which]
        optimizer.param_groups[0]["lr"] = self.options.learning_rate * left
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def act(self, observation: np.ndarray, *, explore: bool) -> np.ndarray:
        """An action for one observation."""
        sampled, _, best = self.actor(torch.from_numpy(observation.astype(np.float32))[None])
        return (sampled if explore else best)[0].numpy()


def least(critics: nn.ModuleList, observation: Tensor, action: Tensor) -> Tensor:
    """The smaller of two values, ``[B]``."""
    pairs = torch.cat([observation, action], -1)
    return torch.minimum(*(critic(pairs).squeeze(-1) for critic in critics))


def evaluate(options: Options, agent: Agent) -> float:
    """Share of episodes with success by the environment's own judgement, on other placements."""
    env = make_metaworld(options.task, seed=options.seed + 1_000, max_episode_steps=300, terminate_on_success=True)
    successes = 0
    for episode in range(options.eval_episodes):
        observation, _ = env.reset(seed=episode)
        terminated = truncated = False
        while not (terminated or truncated):
            observation, _, terminated, truncated, _ = env.step(agent.act(observation, explore=False))
        successes += terminated
    env.close()
    return successes / options.eval_episodes


def main(options: Options) -> None:
    """Train, evaluate, and write down what came of it."""
    torch.set_num_threads(1)  # more rarely helps nets of this size
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    out = options.out or Path("runs") / f"custom-{options.task}-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    env = make_metaworld(options.task, seed=options.seed, max_episode_steps=150)
    env = VLPRewardWrapper(env, options.instruction, options.model, mode=options.mode)
    late = LateRewards(env)
    observation_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    agent = Agent(options, observation_dim, action_dim)
    buffer = ReplayBuffer(options.steps, observation_dim, action_dim)
    started, history = time.monotonic(), []

    def look(step: int) -> None:
        row = {"step": step, "success": evaluate(options, agent), "minutes": (time.monotonic() - started) / 60}
        settled = buffer.rewards[: buffer.size][buffer.settled[: buffer.size]]
        row["reward"] = float(settled[-options.eval_every :].mean()) if len(settled) else 0.0
        history.append(row)
        writer.add_scalar("eval/success", row["success"], step)
        save_file(agent.actor.state_dict(), out / "policy.safetensors")
        tqdm.write(f"{step:>8,} steps  success {row['success']:.2f}  reward {row['reward']:.3f}")

    with SummaryWriter(str(out / "tensorboard")) as writer, tqdm(total=options.steps, unit="step") as bar:
        step = 0
        observation, _ = env.reset(seed=options.seed)
        try:
            while step < options.steps:
                random = step < options.learning_starts
                action = rng.uniform(-1, 1, action_dim) if random else agent.act(observation, explore=True)
                after, reward, terminated, truncated, info = env.step(action.astype(np.float32))
                row = buffer.add(observation, action, reward, after, terminated)
                buffer.settled[row] = not late.step(row, info)
                rows, rewards = late.ready()
                buffer.rewards[rows], buffer.settled[rows] = rewards, True
                observation = env.reset()[0] if terminated or truncated else after
                step += 1
                bar.update()
                if not random and buffer.settled.any():
                    losses = agent.update(buffer.sample(options.batch_size, rng), 1 - step / options.steps)
                    if step % 100 == 0:
                        for name, value in {**losses, **env.latencies(), **env.stats()}.items():
                            writer.add_scalar(f"train/{name}", value, step)
                if step % options.eval_every == 0:
                    look(step)
        except KeyboardInterrupt:
            print("\nstopped: keeping what was learned")
        rows, rewards = late.ready(wait=True)
        buffer.rewards[rows], buffer.settled[rows] = rewards, True
        if not history or history[-1]["step"] != step:
            look(step)
    env.close()
    plot_learning_curve({options.task: [history]}, out / "learning_curve.png", title=f"“{options.instruction}”")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    (out / "result.json").write_text(json.dumps({"options": settings, "history": history}, indent=2))
    print(f"success {history[-1]['success']:.2f} over {options.eval_episodes} episodes; see {out}/learning_curve.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
