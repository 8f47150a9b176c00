"""The tables of VLP's ablations: figures that agree with the published orders, and figures that do not."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vlp_gym.evaluation.ablations import FIGURES, FULL, TABLES, VARIANTS, Judged, markdown, published_order, summarize
from vlp_gym.training.recipes.vlp import VLPOptions


def runs(change=lambda name, column, published: published, seeds=(0, 1)):
    return [
        Judged(
            variant=name, seed=seed, settings={},
            figures={
                column: change(name, column, published) + seed / 1000
                for column, published in zip(FIGURES, variant.published, strict=True)
            },
        )
        for name, variant in VARIANTS.items()
        for seed in seeds
    ]  # fmt: skip


def test_variants_differ_from_the_published_recipe_in_one_option():
    default = VLPOptions(data=())
    assert VARIANTS[FULL].options == {}
    for name, variant in VARIANTS.items():
        if name != FULL:
            ((option, value),) = variant.options.items()
            assert getattr(default, option) != value


def test_published_figures_hold_all_their_orders():
    study = summarize(runs(), {"steps": 3})
    for table, names in TABLES.items():
        for column, count in study.pairs_of_figures[table].items():
            assert len(study.held[table][column]) == count == len(study.held_in_every_seed[table][column])
            order = sorted(names, key=lambda name: VARIANTS[name].published[list(FIGURES).index(column)])
            assert set(pairwise(order)) <= {*published_order(names, column)} | {("most-data", FULL)}
    # No two of the five weights have one figure; of the three shares, two have one average loss.
    assert study.pairs_of_figures["table 13, weights of the losses"]["itp"] == 10
    assert study.pairs_of_figures["table 14, share of the data"]["average"] == 2


def test_the_opposite_of_the_published_figures_holds_no_order():
    study = summarize(runs(lambda name, column, published: -published), {})
    assert {len(held) for columns in study.held.values() for held in columns.values()} == {0}
    said = "- IVP, %: 0 of 10 pairs of variants in the published order, 0 of them in every seed; not so: "
    (line,) = [line for line in markdown(study).splitlines() if line.startswith(said)]
    assert line.endswith(", full < strong-ivp.")
    assert line.count(" < ") == 10


def test_an_order_may_hold_on_average_only():
    def figures(seed):
        return dict.fromkeys(FIGURES, 50.0) | {"itp": 50.0 + seed}

    by_seed = {"half-data": (0, 5), FULL: (9, 4)}  # means 2.5 and 6.5; in the second seed the other way
    judged = [
        Judged(variant=name, seed=seed, settings={}, figures=figures(values[seed]))
        for name, values in by_seed.items()
        for seed in (0, 1)
    ]
    study = summarize(judged, {})
    table = "table 14, share of the data"
    assert study.held[table]["itp"] == [("half-data", FULL)]
    assert study.held_in_every_seed[table]["itp"] == []
    assert study.held[table]["ivp"] == []  # equal figures are in no order
    assert "table 13, weights of the losses" not in study.pairs_of_figures


def test_the_table_has_ours_beside_the_published():
    text = markdown(summarize(runs(lambda name, column, published: published - 0.1, seeds=(0, 200)), {"steps": 3}))
    assert "Seeds 0, 200; steps 3." in text
    full = "| 97.4 ± 0.1 (97.4) | 91.7 ± 0.1 (91.7) | 0.705 ± 0.141 (0.705) | 0.555 ± 0.141 (0.555) |"
    assert f"| full: lambda 0.1, 0.5; 100% of the data {full}" in text
    assert "| no-ivp: lambda 0.1, 0; 100% of the data | 96.2 ± 0.1 (96.2) |" in text


def test_figures_that_the_data_cannot_give():
    judged = [Judged(variant=name, seed=0, settings={}, figures=dict.fromkeys(FIGURES)) for name in VARIANTS]
    study = summarize(judged, {})
    assert study.held == {}
    assert "| - (97.4) |" in markdown(study)


@pytest.mark.parametrize("column", FIGURES)
def test_orders_are_of_published_figures(column):
    place = list(FIGURES).index(column)
    for a, b in published_order(list(VARIANTS), column):
        assert VARIANTS[a].published[place] < VARIANTS[b].published[place]
