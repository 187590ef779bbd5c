"""MuJoCo's renderer without a window, in a process of its own.

Comes in: a MuJoCo model and positions. Goes out: frames, one after the other. MuJoCo
chooses OpenGL's backend when it is imported, by MUJOCO_GL, and a driver that doesn't
work may end the process: so another one draws, which imports nothing of this package.
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
    """Nothing here can draw. One line: what was tried, and why it failed."""


def frames(model: Any, qpos: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Pictures of a simulation, seen by the model's camera `track` if it has one.

    Args:
      model: a `mujoco.MjModel`.
      qpos: `[T, nq]`, T at least 1.
      size: width and height in pixels.

    Yields:
      `[height, width, 3]` uint8, T of them.

    Raises:
      NoRendererError: no backend works, or one stopped midway.
    """
    failed = []
    for backend in _backends():
        drawn = 0
        with tempfile.TemporaryFile() as errors, _started(backend, size, errors) as it:
            _send(it, model, qpos)
            while drawn < len(qpos) and (frame := _frame(it, size)) is not None:
                yield frame
                drawn += 1
            if drawn == len(qpos):
                return
            failed.append(f"{backend or 'default'}: {_last_line(it, errors)}")
        if drawn:
            raise NoRendererError(
                f"MuJoCo's renderer stopped at frame {drawn}: {failed[-1]}"
            )
    raise NoRendererError(
        f"MuJoCo finds no OpenGL ({'; '.join(failed)}); install EGL or OSMesa, such as "
        "Debian's libegl1 or libosmesa6, or set MUJOCO_GL"
    )


def _backends() -> tuple[str, ...]:
    """What to try: what the user says, else what needs no window; empty is MuJoCo's."""
    if chosen := os.environ.get("MUJOCO_GL"):
        return (chosen,)
    return ("egl", "osmesa") if sys.platform == "linux" else ("",)


@contextlib.contextmanager
def _started(backend: str, size: tuple[int, int], errors: Any) -> Iterator[Any]:
    """This file as a program; it doesn't outlive the block."""
    # -P: this file's folder has a `types`, which must not stand for Python's.
    command = [sys.executable, "-P", __file__, *map(str, size)]
    variables = {"MUJOCO_GL": backend} if backend else {}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=os.environ | variables,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _send(process: Any, model: Any, qpos: np.ndarray) -> None:
    import mujoco

    binary = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, binary)
    # One that died already says why on its standard error.
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        np.savez(data := io.BytesIO(), model=binary, qpos=np.float64(qpos))
        pipe.write(data.getvalue())


def _frame(process: Any, size: tuple[int, int]) -> np.ndarray | None:
    width, height = size
    data = process.stdout.read(width * height * 3)
    if len(data) < width * height * 3:
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _last_line(process: Any, errors: Any) -> str:
    status = process.wait()
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {status}"


def _camera(model: Any, data: Any) -> Any:
    """The one that follows the robot; for a model without it, one that stands still."""
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
    """Reads a model and positions, and writes frames."""
    import mujoco

    # Frames alone go out: what drivers print would come between them.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    width, height = map(int, sys.argv[1:])
    given = np.load(io.BytesIO(sys.stdin.buffer.read()))
    binary = {"it.mjb": given["model"].tobytes()}
    model = mujoco.MjModel.from_binary_path("it.mjb", binary)
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    data = mujoco.MjData(model)
    camera = _camera(model, data)
    with mujoco.Renderer(model, height, width) as renderer:
        for qpos in given["qpos"]:
            data.qpos[:] = qpos
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            out.write(renderer.render().tobytes())


if __name__ == "__main__":
    _draw()
