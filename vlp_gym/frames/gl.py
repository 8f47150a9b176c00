"""OpenGL in a process that others draw in too: which library draws, and which context is current."""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def choose_gl_backend() -> None:
    """Set ``MUJOCO_GL`` on a machine without a display, unless the user has; call before importing mujoco.

    EGL if there is an NVIDIA GPU or no OSMesa (newer systems do not ship it), else OSMesa.
    """
    if "MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ:
        egl = os.path.exists("/dev/nvidia0") or ctypes.util.find_library("OSMesa") is None
        os.environ["MUJOCO_GL"] = "egl" if egl else "osmesa"


@contextmanager
def kept_context() -> Iterator[None]:
    """Afterwards the GL context of this thread is current again, or none, as before; call with mujoco imported.

    Gymnasium's own viewer draws into whatever context is current.
    """
    put_back = _put_back()
    try:
        yield
    finally:
        put_back()


def _put_back() -> Callable[[], Any]:
    """A function that makes current what is current now."""
    import mujoco

    backend = mujoco.GLContext.__module__
    if backend == "mujoco.osmesa":
        from OpenGL import GL, osmesa

        context = osmesa.OSMesaGetCurrentContext()
        if not context:
            return lambda: osmesa.OSMesaMakeCurrent(None, None, GL.GL_FLOAT, 0, 0)
        kind = osmesa.OSMesaGetIntegerv(osmesa.OSMESA_TYPE)
        width, height, _, buffer = osmesa.OSMesaGetColorBuffer(context)
        return lambda: osmesa.OSMesaMakeCurrent(context, buffer, kind, width, height)
    if backend == "mujoco.egl":
        from mujoco import egl

        EGL = egl.EGL
        EGL.eglBindAPI(EGL.EGL_OPENGL_API)
        context = EGL.eglGetCurrentContext()
        if not context:
            return lambda: EGL.eglMakeCurrent(
                egl.EGL_DISPLAY, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, EGL.EGL_NO_CONTEXT
            )
        display = EGL.eglGetCurrentDisplay()
        surfaces = EGL.eglGetCurrentSurface(EGL.EGL_DRAW), EGL.eglGetCurrentSurface(EGL.EGL_READ)

        def put_back() -> None:
            EGL.eglBindAPI(EGL.EGL_OPENGL_API)
            EGL.eglMakeCurrent(display, *surfaces, context)

        return put_back
    if backend == "mujoco.glfw":
        import glfw

        window = glfw.get_current_context()
        return lambda: glfw.make_context_current(window)
    return lambda: None
