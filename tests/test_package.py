"""The package as an installed thing: its import, its public names, its wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vlp_gym

ROOT = Path(__file__).parents[1]
HEAVY = [
    "accelerate", "av", "datasets", "matplotlib", "metaworld", "mujoco", "open_clip", "stable_baselines3",
    "tensorboard", "timm", "transformers",
]  # fmt: skip


def run_python(code: str, cwd: Path = ROOT, **environment: str) -> str:
    """Standard output of a fresh interpreter."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_fast_and_light() -> None:
    # Stricter than asked (0.5 s beyond torch's own import): not even torch is imported.
    code = (
        "import sys, time; start = time.perf_counter(); import vlp_gym; print(time.perf_counter() - start);"
        "print(*sys.modules)"
    )
    runs = [run_python(code).splitlines() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.5
    loaded = {name.partition(".")[0] for name in runs[0][1].split()}
    assert not loaded.intersection([*HEAVY, "torch", "gymnasium"])


def test_the_wrapper_and_the_registry_pull_in_no_extra() -> None:
    names = "vlp_gym.VLPRewardWrapper, vlp_gym.load_reward_model, vlp_gym.Scores"
    loaded = run_python(f"import sys, vlp_gym; {names}; print(*sys.modules)").split()
    assert not {name.partition(".")[0] for name in loaded}.intersection(HEAVY)


STUB = (ROOT / "vlp_gym" / "__init__.pyi").read_text()
SB3_NAMES = set(re.findall(r"^from \.integrations\.sb3\S* import (\w+)", STUB, re.MULTILINE))


def test_every_public_name_can_be_imported() -> None:
    for name in vlp_gym.__all__:
        extra = {"make_metaworld": "metaworld"}.get(name, "stable_baselines3" if name in SB3_NAMES else "numpy")
        if importlib.util.find_spec(extra) is None:
            continue
        assert getattr(vlp_gym, name) is not None
    assert set(vlp_gym.__all__) <= set(dir(vlp_gym))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"^No vlp_gym attribute VLPRewardWraper$"):
        _ = vlp_gym.VLPRewardWraper


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_everything(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"vlp_gym-{vlp_gym.__version__}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    sources = {
        str(path.relative_to(ROOT)) for path in (ROOT / "vlp_gym").rglob("*") if path.suffix in (".py", ".pyi", ".html")
    }
    assets = {
        f"vlp_gym/{path.relative_to(ROOT)}"
        for path in (*(ROOT / "assets").rglob("*"), *(ROOT / "examples").glob("*.*"))
        if path.is_file() and not path.name.startswith(".")
    }
    assert not (sources | assets) - names
    assert "vlp_gym/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names
    assert "vlp-gym = vlp_gym.commands.main:main" in entry_points
    assert {name.partition("/")[0] for name in names} == {"vlp_gym", info}


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    """The wheel's content in a folder of its own: to be imported from there, away from the repository."""
    folder = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_unpacked_wheel_copies_its_examples(unpacked: Path, tmp_path: Path) -> None:
    code = "from vlp_gym.commands.main import main; main(['examples', '--out', 'own'])"
    run_python(code, cwd=tmp_path, PYTHONPATH=str(unpacked))
    copied = {path.name: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in (ROOT / "examples").glob("*.*")}


def test_unpacked_wheel_finds_its_assets(unpacked: Path) -> None:
    code = "import vlp_gym.assets_path as a; print(a.__file__); print(a.asset_path('instructions.json'))"
    module, asset = run_python(code, cwd=unpacked, PYTHONPATH=str(unpacked)).splitlines()
    assert Path(module) == unpacked / "vlp_gym" / "assets_path.py"
    assert Path(asset) == unpacked / "vlp_gym" / "assets" / "instructions.json"


@pytest.mark.skipif(not (ROOT / "assets" / "vlp-compact").is_dir(), reason="this checkout has no trained model")
def test_unpacked_wheel_runs_the_five_lines(unpacked: Path) -> None:
    pytest.importorskip("metaworld")
    code = """
import vlp_gym
env = vlp_gym.make_metaworld("button-press-v3", seed=0)
env = vlp_gym.VLPRewardWrapper(env, instruction="press the button")
env.reset(seed=0)
print(type(env.step(env.action_space.sample())[1]).__name__, vlp_gym.__file__)
env.close()
"""
    kind, origin = run_python(code, cwd=unpacked, PYTHONPATH=str(unpacked)).split()
    assert kind == "float"
    assert Path(origin).is_relative_to(unpacked)
