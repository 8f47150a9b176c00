"""Runs the whole campaign: `python -m tests.mutations --cases 10000 [--only videos] [--seed 0]`.

Each target is a module of `tests/mutations/targets`; the tests run a thousandth of it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil

from tqdm import tqdm

from tests.mutations import targets
from tests.mutations.harness import BAD, Target, run, tally


def all_targets() -> dict[str, Target]:
    """The targets by name."""
    names = [module.name for module in pkgutil.iter_modules(targets.__path__)]
    return {name: importlib.import_module(f"tests.mutations.targets.{name}").TARGET for name in names}


def main() -> None:
    """Run the campaign and print one line a target, with every bad case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=None)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that read: their work is too small to share
    failed = False
    for name, target in all_targets().items():
        if options.only and name not in options.only:
            continue
        cases = range(options.start, options.start + options.cases)
        outcomes = []
        for outcome in tqdm(run(target, cases, seed=options.seed), total=len(cases), desc=name):
            outcomes.append(outcome)
            if outcome.kind in BAD:
                tqdm.write(f"{name} case {outcome.case}: {outcome.kind}: {outcome.mutation}\n{outcome.detail}")
        counts = tally(outcomes)
        failed |= any(counts[kind] for kind in BAD)
        print(f"{name}: {dict(counts)}", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
