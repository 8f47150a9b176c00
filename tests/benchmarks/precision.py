"""How much faster `--precision bf16` is than fp32, for each offline learner, on random data of Meta-World's sizes.

python tests/benchmarks/precision.py
python tests/benchmarks/precision.py --learners cpl ipl --blocks 15
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import tyro

from vlp_gym.policies import BC, CPL, IPL, IQL, PIQL, Pairs, Transitions
from vlp_gym.policies.bc import BCOptions
from vlp_gym.policies.cpl import CPLOptions
from vlp_gym.policies.ipl import IPLOptions
from vlp_gym.policies.iql import IQLOptions
from vlp_gym.policies.p_iql import PIQLOptions
from vlp_gym.policies.training import _update, fused_adam

# learner, its options, the cheap settings, updates of a block
LEARNERS: dict[str, tuple[Any, Any, dict[str, int], int]] = {
    "bc": (BC, BCOptions, {}, 20),
    "iql": (IQL, IQLOptions, {}, 6),
    "p-iql": (PIQL, PIQLOptions, {"rows": 64, "batch": 8, "reward_steps": 1}, 6),
    "ipl": (IPL, IPLOptions, {"batch": 4}, 2),
    "cpl": (CPL, CPLOptions, {"batch": 8, "bc_steps": 0}, 3),
}


def main(learners: tuple[str, ...] = tuple(LEARNERS), blocks: int = 7, seeds: int = 5) -> None:
    """Time updates of both precisions in turn.

    Args:
        learners: which.
        blocks: ratios to measure.
        seeds: networks trained together.
    """
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(*shape, generator=g) - 1

    data = {"transitions": Transitions(draw(9000, 39), draw(9000, 4), draw(9000, 39), draw(9000), torch.ones(9000))}
    labels = (draw(100) > 0).float()
    pairs = {"pairs": Pairs(draw(100, 2, 50, 39), draw(100, 2, 50, 4), torch.ones(100, 2, 50), labels)}
    print("CPU milliseconds an update of all seeds, median; ratio: median (range) of blocks side by side")
    for name in learners:
        learner, options, cheap, updates = LEARNERS[name]
        given = data if name in ("bc", "iql") else pairs
        both = [learner(options(precision=kind, **cheap), range(seeds), **given) for kind in ("fp32", "bf16")]
        runs = [(one, fused_adam(one)) for one in both]
        times: list[list[float]] = [[], []]
        for block in range(blocks + 1):  # the first is to warm up
            for (one, optimizer), taken in zip(runs, times, strict=True):
                groups = dict(zip(one.parts(), optimizer.param_groups, strict=True))
                start = time.process_time()
                for step in range(updates):
                    _update(one, optimizer, groups, 1 + block * updates + step)
                taken.append((time.process_time() - start) / updates)
        ratios = sorted(a / b for a, b in zip(*(taken[1:] for taken in times), strict=True))
        fp32, bf16 = (1e3 * statistics.median(taken[1:]) for taken in times)
        print(
            f"{name}: fp32 {fp32:.1f}, bf16 {bf16:.1f}, ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}), n = {blocks}",
            flush=True,
        )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
