"""Fast off-screen rendering for any MuJoCo Gymnasium environment, and camera helpers.

Software rendering dominates the cost of a vision reward on a CPU. Meta-World's default scene spends its time on a
4096-pixel shadow map, 4-sample anti-aliasing and reflections; Gymnasium's viewer also reads the depth buffer and
allocates arrays on every call. `FastRenderer` does none of this, keeps one GL context, and reads straight into the
caller's array. The context that was current before is current again afterwards.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError

from vlp_gym.errors import import_extra
from vlp_gym.frames.gl import choose_gl_backend, kept_context

if TYPE_CHECKING:
    import mujoco

Quality = Literal["fast", "default"]
MAX_GEOMS = 2000


class FastRenderer:
    """Render one camera of a MuJoCo model into uint8 arrays, with one GL context.

    Args:
        model: the compiled model.
        height: image height in pixels.
        width: image width in pixels.
        camera: name or index of a camera of the model; -1 is the free camera.
        quality: "fast" renders without shadows, reflections, haze and anti-aliasing; "default" uses the model's
            settings.
        view: fields of the free camera, such as "distance" and "lookat"; None shows the whole model.

    Raises:
        ValueError: the model has no such camera, or the quality is unknown.
        MissingExtraError: mujoco is not installed.
    """

    _gl: Any = None  # until the context is complete

    def __init__(
        self,
        model: Any,
        height: int = 224,
        width: int = 224,
        camera: str | int = -1,
        quality: Quality = "fast",
        view: Mapping[str, Any] | None = None,
    ) -> None:
        mujoco = _import_mujoco()
        _check_quality(quality)
        self.height, self.width = height, width
        self._model = model
        self._camera = mujoco.MjvCamera()
        self._camera_id = _camera_id(model, camera)
        if self._camera_id >= 0:
            self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._camera.fixedcamid = self._camera_id
        else:
            mujoco.mjv_defaultFreeCamera(model, self._camera)
            for name, value in (view or {}).items():
                if isinstance(value, np.ndarray):
                    getattr(self._camera, name)[:] = value
                else:
                    setattr(self._camera, name, value)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        with kept_context(), _fast_quality(model) if quality == "fast" else contextlib.nullcontext():
            gl = mujoco.GLContext(width, height)
            gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            self._gl = gl
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        # At exit, `__del__` is too late: MuJoCo's contexts complain, and EGL's must be freed before EGL.
        atexit.register(_close_if_alive, weakref.ref(self))
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        self._option = mujoco.MjvOption()
        self._perturb = mujoco.MjvPerturb()
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._bottom_up = np.empty((height, width, 3), np.uint8)
        if quality == "fast":
            for flag in (
                mujoco.mjtRndFlag.mjRND_SHADOW,
                mujoco.mjtRndFlag.mjRND_REFLECTION,
                mujoco.mjtRndFlag.mjRND_HAZE,
            ):
                self._scene.flags[flag] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = 0

    def render_into(self, data: mujoco.MjData, out: np.ndarray) -> None:
        """Render the state ``data`` into ``out``, uint8 ``[height, width, 3]``, top row first."""
        import mujoco

        mujoco.mjv_updateScene(
            self._model, data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        with kept_context():
            self._gl.make_current()
            mujoco.mjr_render(self._viewport, self._scene, self._context)
            mujoco.mjr_readPixels(self._bottom_up, None, self._viewport, self._context)
        np.copyto(out, self._bottom_up[::-1])

    def render(self, data: mujoco.MjData) -> np.ndarray:
        """Render the state ``data`` into a new array, uint8 ``[height, width, 3]``."""
        out = np.empty((self.height, self.width, 3), np.uint8)
        self.render_into(data, out)
        return out

    def close(self) -> None:
        """Free the GL context; a second call does nothing."""
        if self._gl is not None:
            with kept_context():
                self._gl.make_current()  # else another context's buffers and textures would be freed
                self._context.free()
                self._gl.free()
            self._gl = None

    def __del__(self) -> None:
        """Free the GL context; MuJoCo would free it while another context is current."""
        self.close()


def reset_env(env: gym.Env[Any, Any], seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """Reset an environment as Gymnasium's wrappers do, or without the options that its `reset` does not take."""
    named = inspect.signature(env.reset).parameters.get("options")
    given = options is not None or (named is not None and named.kind is not named.VAR_KEYWORD)
    return env.reset(seed=seed, **({"options": options} if given else {}))


class FastRender(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Render a MuJoCo environment with `FastRenderer`.

    Args:
        env: an environment with ``unwrapped.model`` and ``unwrapped.data`` (Gymnasium MuJoCo, Fetch, Meta-World),
            made with ``render_mode="rgb_array"``.
        height: image height in pixels.
        width: image width in pixels.
        camera: name or index; None takes the environment's camera.
        quality: "fast" or "default", see `FastRenderer`.

    Raises:
        ValueError: the environment has no MuJoCo model, or the camera or quality is unknown.
    """

    def __init__(
        self,
        env: gym.Env,
        height: int = 224,
        width: int = 224,
        camera: str | int | None = None,
        quality: Quality = "fast",
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, height=height, width=width, camera=camera, quality=quality)
        super().__init__(env)
        unwrapped: Any = env.unwrapped
        if not (hasattr(unwrapped, "model") and hasattr(unwrapped, "data")):
            raise ValueError(f"FastRender: expected a MuJoCo environment with .model and .data, got {env}")
        own = getattr(unwrapped, "mujoco_renderer", None)
        if camera is None:
            camera = getattr(own, "camera_id", -1)
        _camera_id(unwrapped.model, camera)
        _check_quality(quality)
        self._settings = (height, width, camera, quality)
        self._view = getattr(own, "default_cam_config", None) or {}
        self._renderer: FastRenderer | None = None
        self._rendered_model: Any = None
        self._closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; after `close`, it renders again if the environment allows that."""
        self._closed = False
        return reset_env(self.env, seed, options)

    def render(self) -> np.ndarray:  # type: ignore[override]
        """Render the current state as a new array, uint8 ``[height, width, 3]``."""
        if self._closed:
            raise ClosedEnvironmentError("render was called after close")
        unwrapped: Any = self.env.unwrapped
        if self._rendered_model is not unwrapped.model:  # some environments compile a new model on reset
            self._close_renderer()
            # Place the free camera as Gymnasium's viewer does.
            middle = np.median(unwrapped.data.geom_xpos, axis=0)
            view = {"lookat": middle, "distance": unwrapped.model.stat.extent, **self._view}
            self._renderer = FastRenderer(unwrapped.model, *self._settings, view)
            self._rendered_model = unwrapped.model
        assert self._renderer is not None
        getattr(unwrapped, "_render_callback", _nothing)()  # Gymnasium-Robotics puts the goal's mark in its place there
        return self._renderer.render(unwrapped.data)

    def close(self) -> None:
        """Free the GL context and close the environment."""
        self._closed = True
        self._close_renderer()
        super().close()

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = self._rendered_model = None


def _nothing() -> None: ...


def _close_if_alive(reference: weakref.ref[FastRenderer]) -> None:
    renderer = reference()
    if renderer is not None:
        renderer.close()


def roll_camera(model: Any, camera: str, degrees: float) -> None:
    """Rotate a fixed camera about its viewing axis, in place (Meta-World's corner cameras are upside down)."""
    mujoco = _import_mujoco()
    half = np.deg2rad(degrees) / 2
    turned = np.empty(4)
    camera_id = _camera_id(model, camera)
    mujoco.mju_mulQuat(turned, model.cam_quat[camera_id], np.array([np.cos(half), 0.0, 0.0, np.sin(half)]))
    model.cam_quat[camera_id] = turned


def warn_if_upside_down(env: gym.Env[Any, Any]) -> None:
    """Warn if a MuJoCo environment renders with a camera that stands still and upside down."""
    inner: Any = env
    while isinstance(inner, gym.Wrapper) and not isinstance(inner, FastRender):
        inner = inner.env
    own = getattr(env.unwrapped, "mujoco_renderer", None)
    model: Any = getattr(env.unwrapped, "model", None)
    camera = inner._settings[2] if isinstance(inner, FastRender) else getattr(own, "camera_id", None)
    if camera is None or not hasattr(model, "cam_quat") or (camera := _camera_id(model, camera)) < 0:
        return
    w, x, y, z = model.cam_quat[camera]
    up = 2 * (y * z + w * x)  # the third coordinate of its upward direction
    if model.cam_bodyid[camera] == 0 and up < -0.25:
        warnings.warn(
            f"the camera {model.camera(camera).name!r} is upside down, and so is what the reward model sees; "
            "Meta-World is upright by vlp_gym.make_metaworld, others by render_fn=lambda env: env.render()[::-1, ::-1]",
            stacklevel=2,
        )


def _check_quality(quality: str) -> None:
    if quality not in ("fast", "default"):
        raise ValueError(f'quality: expected "fast" or "default", got {quality!r}')


def _camera_id(model: Any, camera: str | int) -> int:
    mujoco = _import_mujoco()
    if isinstance(camera, str):
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if index < 0:
            names = [model.camera(i).name for i in range(model.ncam)]
            raise ValueError(f"camera: expected one of {names}, got {camera!r}")
        return index
    if not -1 <= camera < model.ncam:
        raise ValueError(f"camera: expected an index from -1 to {model.ncam - 1}, got {camera}")
    return camera


@contextlib.contextmanager
def _fast_quality(model: Any) -> Iterator[None]:
    """Disable anti-aliasing and shrink the shadow map while the GL context is created, then restore the settings."""
    samples, shadow = model.vis.quality.offsamples, model.vis.quality.shadowsize
    model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, min(shadow, 1024)
    try:
        yield
    finally:
        model.vis.quality.offsamples, model.vis.quality.shadowsize = samples, shadow


def _import_mujoco() -> Any:
    choose_gl_backend()
    return import_extra("mujoco", "rendering a MuJoCo environment needs mujoco", "metaworld")
