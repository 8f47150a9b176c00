"""OpenGL beside others in one process: two LLVMs, and the context that was current; with OSMesa and with EGL."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("mujoco")

DRAW = """
import sys
import mujoco
try:
    gl = mujoco.GLContext(16, 16)
except Exception as error:
    print("skip", type(error).__name__)
    sys.exit()
gl.make_current()
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1"/></worldbody></mujoco>')
context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
mujoco.mjr_render(mujoco.MjrRect(0, 0, 16, 16), mujoco.MjvScene(model, 10), context)
"""
OPTIMIZE = "import torch; torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])\n"


def run_with(backend: str, code: str) -> str:
    """Standard output of a fresh interpreter that draws with this backend; skips where there is none."""
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100)
    if done.stdout.startswith("skip"):
        pytest.skip(f"this machine cannot draw with {backend}")
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.parametrize("backend", ["osmesa", "egl"])
@pytest.mark.parametrize("before", ["import vlp_gym", "import torch", ""])
def test_an_optimizer_can_be_made_after_drawing(backend, before):
    """Mesa and Triton, which torch.optim imports, each bring an LLVM: one must not take the other's for its own."""
    code = f"{before}\n{DRAW}\nimport vlp_gym\n{OPTIMIZE}print('alive', flush=True)\nimport os; os._exit(0)"
    assert run_with(backend, code) == "alive\n"


@pytest.mark.parametrize("backend", ["osmesa", "egl"])
def test_gymnasiums_viewer_beside_ours(backend):
    """Its environments draw into whatever context is current, so ours may not stay there."""
    code = f"""
{DRAW}
del context, gl
import gc, gymnasium as gym
from vlp_gym.frames.rendering import FastRender
def make(name):
    env = gym.make(name, render_mode="rgb_array", width=48, height=40)
    env.reset(seed=0)
    return env
own = make("InvertedPendulum-v5")
before = own.render()
assert before.std() > 10
first, second = FastRender(make("Hopper-v5"), 32, 32), FastRender(make("HalfCheetah-v5"), 24, 24)
ours = first.render(), second.render()
assert (own.render() == before).all()
first.close()
assert (own.render() == before).all()
assert (second.render() == ours[1]).all()
del second
gc.collect()
assert (own.render() == before).all()
late = make("Hopper-v5")
picture = late.render()
assert (FastRender(make("HalfCheetah-v5"), 24, 24).render() == ours[1]).all()
assert (late.render() == picture).all()
for env in (own, late):
    env.close()
print("kept")
"""
    assert run_with(backend, code) == "kept\n"


@pytest.mark.parametrize("backend", ["osmesa", "egl"])
def test_no_context_stays_current_where_there_was_none(backend):
    code = f"""
{DRAW}
context.free()
gl.free()
from vlp_gym.frames.gl import kept_context
if mujoco.GLContext.__module__ == "mujoco.egl":
    from mujoco.egl import EGL
    current = EGL.eglGetCurrentContext
else:
    from OpenGL.osmesa import OSMesaGetCurrentContext as current
assert not current()
with kept_context():
    gl = mujoco.GLContext(16, 16)
    gl.make_current()
    assert current()
assert not current()
gl.free()
print("none")
"""
    assert run_with(backend, code) == "none\n"
