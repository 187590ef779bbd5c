"""Renders MuJoCo frames without a window, in a subprocess.

MuJoCo selects OpenGL's backend by MUJOCO_GL when it is imported, and a driver that
doesn't work may end the process. So this file runs as a program that draws; it imports
nothing of this package.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np


class NoRendererError(RuntimeError):
    """MuJoCo can't render here. One line: what was tried, and why it failed."""


def frames(model: Any, qpos: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Renders the positions of a model with its camera `track`, or from a fixed view.

    Args:
      model: a `mujoco.MjModel`.
      qpos: positions `[T, nq]`, T at least 1.
      size: width and height in pixels.

    Yields:
      T frames `[height, width, 3]` uint8.

    Raises:
      NoRendererError: no backend works, or one stopped midway.
    """
    errors = []
    for backend in _backends():
        drawn = 0
        with tempfile.TemporaryFile() as log, _started(backend, size, log) as process:
            _send(process, model, qpos)
            while drawn < len(qpos) and (frame := _frame(process, size)) is not None:
                yield frame
                drawn += 1
            if drawn == len(qpos):
                return
            errors.append(f"{backend or 'default'}: {_last_line(process, log)}")
        if drawn:
            raise NoRendererError(
                f"MuJoCo's renderer stopped at frame {drawn}: {errors[-1]}"
            )
    raise NoRendererError(
        f"MuJoCo finds no OpenGL ({'; '.join(errors)}); install EGL or OSMesa, such as "
        "Debian's libegl1 or libosmesa6, or set MUJOCO_GL"
    )


def _backends() -> tuple[str, ...]:
    """The backends to try: the user's, else those without a window, else MuJoCo's."""
    if chosen := os.environ.get("MUJOCO_GL"):
        return (chosen,)
    return ("egl", "osmesa") if sys.platform == "linux" else ("",)


@contextlib.contextmanager
def _started(backend: str, size: tuple[int, int], log: Any) -> Iterator[Any]:
    """Runs this file as a program until the block ends."""
    # -P: no file beside this one may replace a module of Python's.
    command = [sys.executable, "-P", __file__, *map(str, size)]
    variables = {"MUJOCO_GL": backend} if backend else {}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=os.environ | variables,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _send(process: Any, model: Any, qpos: np.ndarray) -> None:
    import mujoco

    binary = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, binary)
    # A process that died already has written the reason to its log.
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        np.savez(data := io.BytesIO(), model=binary, qpos=np.float64(qpos))
        pipe.write(data.getvalue())


def _frame(process: Any, size: tuple[int, int]) -> np.ndarray | None:
    width, height = size
    data = process.stdout.read(width * height * 3)
    if len(data) < width * height * 3:
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _last_line(process: Any, log: Any) -> str:
    status = process.wait()
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {status}"


def _camera(model: Any, data: Any) -> Any:
    """The camera that follows the robot, or a fixed one if the model has none."""
    import mujoco

    if mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track") >= 0:
        return "track"
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    mujoco.mj_forward(model, data)
    camera.lookat[:] = data.xpos[1:].mean(axis=0)
    camera.distance = 4.0  # m, as in Gymnasium's tasks
    return camera


def _draw() -> None:
    """Reads a model and positions from stdin and writes frames to stdout."""
    import mujoco

    # Drivers print to stdout, which would mix with the frames.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    width, height = map(int, sys.argv[1:])
    arrays = np.load(io.BytesIO(sys.stdin.buffer.read()))
    binary = {"model.mjb": arrays["model"].tobytes()}
    model = mujoco.MjModel.from_binary_path("model.mjb", binary)
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    data = mujoco.MjData(model)
    camera = _camera(model, data)
    with mujoco.Renderer(model, height, width) as renderer:
        for qpos in arrays["qpos"]:
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            out.write(renderer.render().tobytes())


if __name__ == "__main__":
    _draw()
