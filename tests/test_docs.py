"""README and docs say what is so: their code runs, their commands parse, their links lead somewhere.

Python blocks of a page run in order, in one fresh interpreter and an empty folder, as a reader would paste them. Only
the long runs are shortened, see `shorten`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

import vlp_gym
from vlp_gym.commands import main as cli
from vlp_gym.fetch import simulator as fetch_simulator
from vlp_gym.maniskill import simulator as maniskill_simulator
from vlp_gym.metaworld import simulator as metaworld_simulator
from vlp_gym.models.registry import _FAMILIES, _SHIPPED, load_reward_model
from vlp_gym.rewards.shaping import REWARDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CARDS = sorted((ROOT / "assets").glob("*/README.md"))
MODEL_PAGES = [ROOT / "README.md", ROOT / "docs" / "models.md"]
SYSTEMS = ("staged", "vlp", "joint", "rewind", "embedding", "siglip2-lora", "spur")
METHODS = ("bc", "awr", "iql", "p-iql", "ipl", "cpl")
SUB_COMMANDS = [["train", system] for system in SYSTEMS] + [["policy", method] for method in METHODS]
ELSEWHERE = {"mani_skill"}  # packages that the extra `all` cannot install: blocks that import them are compiled only

BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)
FAULT = re.compile(r"(?:[Ff]aults? |[Rr]ows )((?:\d+(?:-\d+)?(?:, )?)+)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that its title names ("" for none), its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text())]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks."""
    return BLOCK.sub("", page.read_text())


def commands(page: Path) -> list[list[str]]:
    """Command lines of the untagged blocks, as arguments; a backslash continues a line, `#` begins a comment."""
    lines = [
        line for block in blocks(page) if block.language == "" for line in block.text.replace("\\\n", " ").splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def inline_commands(page: Path, name: str) -> list[list[str]]:
    """Command lines within the text, such as those in a column of a table."""
    texts = (" ".join(text.split()) for text in INLINE.findall(prose(page)))
    return [shlex.split(text) for text in texts if text.startswith(f"{name} ")]


def shorten(code: str) -> str:
    """Numbers of steps in thousands, written with an underscore, are divided by 1,000: 60_000 steps become 60."""
    return re.sub(r"\b\d+_000\b", lambda number: str(max(int(number[0]) // 1_000, 1)), code)


# ---------------------------------------------------------------- README


def test_the_readme_can_be_read():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 120] == []


# ---------------------------------------------------------------- faults


def test_every_fault_that_must_be_survived_has_a_test_that_names_it():
    rows = set(map(int, re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE)))
    named = re.compile(r"# faults? (\d+(?:, \d+)*)")
    tests = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    covered = {int(row) for text in tests for found in named.findall(text) for row in found.split(", ")}
    assert (rows, rows - covered) == (set(range(1, 71)), set())


# ---------------------------------------------------------------- code


PYTHON_PAGES = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=name_of)
def test_python_blocks_run(page, tmp_path):
    lay_out(page, tmp_path)
    code = []
    for block in blocks(page):
        if block.language == "python" and not block.title:
            compile(block.text, name_of(page), "exec")
            if not imports(block.text) & ELSEWHERE:
                code.append(shorten(block.text))
    (tmp_path / "page.py").write_text("\n".join(code))
    run_python(["page.py"], tmp_path)


def run_python(arguments: list[str], folder: Path) -> str:
    """Standard output of a fresh interpreter that finds modules in `folder` too.

    With the threads of torch and Mesa that it would take by itself, tests side by side are 15 times slower.
    """
    few_threads = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
    environment = {**os.environ, **few_threads, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lay_out(page: Path, folder: Path) -> None:
    """Write the files that a page's titles name; of its pyproject.toml, what pip would install."""
    for block in blocks(page):
        if block.title == "pyproject.toml":
            install(block.text, folder)
        elif block.title:
            with (folder / block.title).open("a") as file:  # a second block of the same file goes on with it
                file.write(block.text + "\n")


def imports(code: str) -> set[str]:
    """Top-level names of the packages that some code imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def install(project: str, folder: Path) -> None:
    """What pip writes of the entry points of a pyproject.toml, so that they are found in `folder`."""
    lines = []
    for line in project.splitlines():
        group, point = re.fullmatch(r'\[project\.entry-points\."(.+)"\]', line), re.fullmatch(r'(\S+) = "(.+)"', line)
        lines += [f"[{group[1]}]"] if group else [f"{point[1]} = {point[2]}"] if point else []
    info = folder / "page-0.1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text("\n".join(lines))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: page\nVersion: 0.1\n")


# ---------------------------------------------------------------- commands


def unique(pages: list[Path]) -> list[tuple[Path, list[str]]]:
    """The complete `vlp-gym` command lines: those of the blocks, and of the tables that say how to get a model."""
    lines = [(page, words) for page in pages for words in commands(page)]
    lines += [(page, words) for page in MODEL_PAGES for words in inline_commands(page, "vlp-gym") if "--out" in words]
    found = {tuple(words): page for page, words in reversed(lines) if words[0] == "vlp-gym"}
    return [(page, list(words[1:])) for words, page in found.items()]


@pytest.mark.parametrize(
    ("page", "arguments"),
    unique([*PAGES, *CARDS]),
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_are_understood(page, arguments, tmp_path, monkeypatch, capsys):
    """In an empty folder: an unknown option or value would end the process; the one complaint may be a missing file."""
    if "--ray" in arguments:
        pytest.importorskip("ray")
    lay_out(page, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for simulator in (metaworld_simulator, fetch_simulator, maniskill_simulator):  # long, or not installed
        quick = replace(simulator.SIMULATOR, collect=lambda *_, **__: None, packages={})
        monkeypatch.setattr(simulator, "SIMULATOR", quick)
    monkeypatch.setattr("vlp_gym.serving.run.run_server", lambda *_, **__: None)  # it would not end
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status = cli.main(arguments)
    error = capsys.readouterr().err
    if status:
        paths = [word for word in arguments if "/" in word or ":" in word or Path(word).suffix or word == "segments"]
        assert any(path.rpartition(":")[2] in error for path in paths), error


@cache
def help_of(*command: str) -> str:
    """What `vlp-gym COMMAND --help` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit, match=r"^0$"):
        cli.main([*command, "--help"])
    return output.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_named_in_the_text_exist(page, tmp_path, monkeypatch):
    lay_out(page, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for _, command, *rest in inline_commands(page, "vlp-gym"):
        assert command in cli.COMMANDS, f"vlp-gym {command}"
        options = [word for word in rest if word.startswith("--")]
        system = rest[:1] if command in ("train", "policy") and rest and not rest[0].startswith("-") else []
        for option in options:
            assert re.search(rf"{option}\b", help_of(command, *system)), f"vlp-gym {command} {option}"


@cache
def known_options() -> set[str]:
    """Every option of every command, example and benchmark, with its dashes."""
    helps = [help_of(*command) for command in SUB_COMMANDS + [[name] for name in cli.COMMANDS]]
    paths = [
        *(ROOT / "examples").glob("*.py"),
        *(ROOT / "tests" / "benchmarks").rglob("*.py"),
        ROOT / "tests" / "soak.py",
    ]
    scripts = [path.read_text() for path in paths]
    fields = re.findall(r"^    (\w+): ", "\n".join(scripts), re.MULTILINE)
    return set(re.findall(r"--[\w-]+", "\n".join([*helps, *scripts]))) | {
        f"--{name.replace('_', '-')}" for name in fields
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_on_their_own_exist(page):
    """Such as `--seed 1`, said of a command that stands elsewhere."""
    for text in INLINE.findall(prose(page)):
        if text.startswith("--"):
            assert set(re.findall(r"--[\w-]+", text)) <= known_options(), text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets, " ".join(words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_exist_with_their_options(page):
    """`python PATH` and `python -m MODULE`; an option is a field of the script's dataclass, or written out in it."""
    for words in [*commands(page), *inline_commands(page, "python")]:
        if words[0] != "python":
            continue
        module = words[1] == "-m"
        target = words[2] if module else words[1]
        if module and importlib.util.find_spec(target.partition(".")[0]) and not target.startswith("tests."):
            continue  # a tool, such as pip or pytest
        path = ROOT / (target.replace(".", "/") if module else target)
        candidates = {path, path.with_suffix(".py"), path / "__main__.py"}
        (script,) = [candidate for candidate in candidates if candidate.is_file()]
        source = script.read_text()
        for option in re.findall(r"--([\w-]+)", " ".join(words)):
            field = option.replace("-", "_")
            assert re.search(rf"^    {field}: |\"--{option}\"", source, re.MULTILINE), f"{name_of(script)} --{option}"


def test_extras_exist():
    known = set(re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for page in PAGES:
        for extras in re.findall(r"(?:vlp_gym|\.)\[([\w,-]+)\]", page.read_text()):
            assert set(extras.split(",")) <= known, extras


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(target), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], link


def test_paths_named_in_the_text_exist():
    for page in PAGES:
        for path in INLINE.findall(prose(page)):
            if re.fullmatch(r"(vlp_gym|tests|examples|assets|docs)/[\w./-]*", path):
                assert (ROOT / path).exists(), f"{name_of(page)}: {path}"


def test_every_picture_is_shown():
    shown = {
        (page.parent / unquote(link)).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text())
        if link.endswith((".png", ".gif"))
    }
    assert set((ROOT / "docs" / "pictures").iterdir()) == shown


# ---------------------------------------------------------------- models


def model_rows(page: Path) -> list[list[str]]:
    """The cells of the table whose first column is `model=`."""
    table = page.read_text().partition("| `model=` |")[2].partition("\n\n")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()[2:]]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]


@pytest.mark.parametrize("page", MODEL_PAGES, ids=name_of)
def test_every_row_of_the_models_can_be_used_as_it_is_written(page):
    made_anywhere = page.read_text()
    rows = model_rows(page)
    assert len(rows) > 10
    for names, how, rewards, *_ in rows:
        for name in INLINE.findall(names.partition(" (")[0]):
            family, colon, spec = name.partition(":")
            if colon:
                assert family in _FAMILIES, name
            elif name not in _SHIPPED:
                assert f"--out {name}`" in how, name
            if spec.startswith("runs/"):
                assert f"--out {spec}`" in made_anywhere, name
        for reward in INLINE.findall(rewards):
            assert reward.strip('"') in REWARDS


@pytest.mark.parametrize("name", ["vlp-compact", "vlp-compact-45", "ensemble:mean|vlp-compact|vlp-compact-45"])
def test_what_comes_with_the_package_takes_any_reward(name):
    from vlp_gym.testing import PaintedEnv

    assert f"`{name}`" in (ROOT / "README.md").read_text().replace("\\|", "|")
    model = load_reward_model(name)
    for reward in REWARDS:
        env = vlp_gym.VLPRewardWrapper(PaintedEnv(), "press the button", model, reward=reward)
        with pytest.warns(UserWarning, match="^the reward model does not know such pictures: "):
            env.reset(seed=0)
        assert isinstance(env.step(env.action_space.sample())[1], float)
        env.close()


@pytest.mark.slow
def test_the_tutorials_count_their_files_and_lines(tmp_path):
    """One file and one line for a model that is used; a second file and line for one that is trained, which learns."""
    from rollouts import painted_tasks, write_tasks

    files, points = {}, {}
    for name in ("write-a-model", "train-a-model"):
        page = ROOT / "docs" / f"{name}.md"
        files[name] = {block.title for block in blocks(page) if block.title.endswith(".py")}
        (project,) = [block.text for block in blocks(page) if block.title == "pyproject.toml"]
        points[name] = [line for line in project.splitlines() if " = " in line]
    assert [(len(files[name]), len(points[name])) for name in files] == [(1, 1), (2, 2)]

    lay_out(page, tmp_path)
    write_tasks(tmp_path / "data" / "train", painted_tasks(["drawer-open-v3"]))
    (train,) = [words for words in commands(page) if words[:2] == ["vlp-gym", "train"]]
    run_python(["-m", "vlp_gym.commands.main", *train[1:]], tmp_path)
    check = (
        "import json, vlp_gym, vlp_gym.testing as t; t.check_reward_model(vlp_gym.load_reward_model('shade'));"
        "print(json.dumps([row['loss'] for row in json.load(open('runs/shade/history.json'))]))"
    )
    losses = json.loads(run_python(["-c", check], tmp_path))
    assert len(losses) == 300
    # The progress is one of the shades, so it can be learned: the mean alone leaves the variance of a ramp, 1/12.
    assert sum(losses[-20:]) / 20 < 1 / 24


# ---------------------------------------------------------------- faults


def test_every_row_that_a_test_names_is_in_the_list_of_faults():
    rows = [int(row) for row in ROW.findall((ROOT / "docs" / "faults.md").read_text())]
    assert rows == list(range(1, 71))
    named: set[int] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for line in re.findall(r"#.*|\"\"\".*", path.read_text()):
            for numbers in FAULT.findall(line):
                for first, last in re.findall(r"(\d+)(?:-(\d+))?", numbers):
                    named.update(range(int(first), int(last or first) + 1))
    assert len(named) > 50
    assert named <= set(rows)


# ---------------------------------------------------------------- the site


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api" / "vlp_gym" / "index.html").read_text()
    for name in vlp_gym.__all__:
        if name != "__version__":
            assert f'id="vlp_gym.{name}"' in page, name
    assert "Replaces the environment's reward by what a reward model says" in page  # a docstring, through the stub


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "index.html").is_file()
