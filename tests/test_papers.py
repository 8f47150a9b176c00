"""docs/papers.md declares every table and figure of the four papers, and its settings are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "papers.md").read_text()
ITEMS = {"VLP": (18, 4), "GVL": (7, 17), "SPUR": (5, 1), "Learning objectives": (4, 4)}  # tables, figures
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def rows(section):
    """Name of each item -> published, made by, here, same order."""
    lines = [line for line in section.splitlines() if re.match(r"\| (table|figure) \d+: ", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(each) == 5 for each in cells)
    return {name.partition(":")[0]: rest for name, *rest in cells}


def test_every_table_and_figure_is_declared_once():
    assert SECTIONS.keys() == ITEMS.keys()
    for paper, (tables, figures) in ITEMS.items():
        names = re.findall(r"^\| ((?:table|figure) \d+): ", SECTIONS[paper], re.MULTILINE)
        assert names == [f"table {k + 1}" for k in range(tables)] + [f"figure {k + 1}" for k in range(figures)]


def test_each_is_made_by_commands_that_are_there_or_has_a_reason():
    """tests/test_docs.py parses the commands themselves."""
    used = set()
    for section in SECTIONS.values():
        for name, (published, made_by, here, order) in rows(section).items():
            assert published, name
            if reason := re.fullmatch(r"unavailable: (.+)", made_by):
                assert len(reason[1]) > 8
                assert (here, order) == ("", ""), name
            else:
                assert re.search(rf"^# {made_by}(:|$)", section, re.MULTILINE), f"{name}: {made_by}"
                assert here, name
                used.add(made_by)
    assert used == set(re.findall(r"^# ([A-Z])(?::|$)", PAGE, re.MULTILINE))


def test_figures_of_ours_are_in_the_results():
    """Each mean and deviation of the column "here", to the digit or in percent."""
    results = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
    shown = [pair for section in SECTIONS.values() for _, _, here, _ in rows(section).values()
             for pair in re.findall(r"(-?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)", here)]  # fmt: skip
    assert len(shown) > 15
    for mean, spread in shown:
        as_share = f"{float(mean) / 100:.2f} ± {float(spread) / 100:.2f}"
        assert f"{mean} ± {spread}" in results or as_share in results, mean


def test_settings_are_the_published_ones():
    from vlp_gym.models.vlp import VLPModel
    from vlp_gym.policies.cpl import CPLOptions
    from vlp_gym.policies.ipl import IPLOptions
    from vlp_gym.training.recipes.spur import SPUROptions
    from vlp_gym.training.recipes.vlp import VLPOptions

    vlp = VLPOptions(data=())
    assert (vlp.pairs, vlp.negatives, vlp.steps) == (16, 4, 15_000)
    assert (vlp.learning_rate, vlp.weight_decay, vlp.lambda_ilp, vlp.lambda_ivp) == (3e-5, 0.1, 0.1, 0.5)
    assert (vlp.recipe, vlp.backbone) == ("published", "open_clip:ViT-B-16/openai")
    model = VLPModel("small")
    assert (model.window, len(model.self_video), model.self_video[0].attention.heads) == (8, 2, 16)
    assert [model.head[k].out_features for k in (0, 2, 4)] == [512, 256, 1]
    spur = SPUROptions(data=())
    assert (spur.config().learning_rate, spur.steps, spur.batch_size, spur.warmup) == (2e-5, 5_000, 16, 0.1)
    ipl, cpl = IPLOptions(), CPLOptions()
    for policy in (ipl, cpl):
        assert (policy.hidden, policy.batch, policy.dropout, policy.steps) == ((256, 256), 64, 0.25, 100_000)
    assert (ipl.learning_rate, cpl.learning_rate) == (3e-4, 1e-4)
    assert (ipl.discount, ipl.temperature, ipl.expectile, ipl.tau, ipl.regularization) == (
        0.99,
        0.3333,
        0.7,
        0.005,
        0.5,
    )
    assert (cpl.alpha, cpl.bias, cpl.bc_steps) == (0.1, 0.5, 10_000)
