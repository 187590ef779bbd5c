"""What a policy looks like at work: a film, or a page that plays it.

Comes in: a policy. Goes out: the bytes of an MP4, a GIF or an HTML page, and the
return of each episode in it. Who draws depends on the innermost environment:

- with `outline(state)`, points in m, and `reach`: matplotlib, as one broken line;
- with `model`, a `mujoco.MjModel`, and `qpos` in its state: MuJoCo, or Brax's page
  where there is no OpenGL;
- with `sys`, as Brax's have it: Brax's page.

matplotlib, Pillow, ffmpeg and Brax are looked for where they are used.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import subprocess
import tempfile
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vagram_jax.envs import base, episodes
from vagram_jax.render import offscreen
from vagram_jax.run.policies import Policy

FILMS = ("mp4", "gif")
KINDS = (*FILMS, "html")
"""What a picture may be, best first."""

_DPI = 100
_MAX_PIXELS = 8192


class PictureError(ValueError):
    """A picture that can't be made here. One line: of what, why, what to do."""


class Episode(NamedTuple):
    """What is drawn of an episode.

    Attributes:
      poses: what the state of each step looks like, the first state included.
      total: the sum of the rewards.
    """

    poses: list[Any]
    total: float


class Picture(NamedTuple):
    """A file in the making.

    Attributes:
      kind: one of `KINDS`.
      data: its bytes.
      note: what to know of it, in words.
    """

    kind: str
    data: bytes
    note: str


class _Subject(NamedTuple):
    """What there is to draw: the innermost environment, and who draws it."""

    env: Any
    drawn_by: str  # outline, mujoco or brax
    kinds: tuple[str, ...]


def check(
    env: base.Env, *, kind: str | None = None, size: tuple[int, int] = (480, 360)
) -> None:
    """Raises where there can be no such picture, before anything is played.

    Args:
      env: with its wrappers.
      kind: as for `picture`.
      size: as for `picture`.

    Raises:
      PictureError: nobody knows how to draw `env`, or not as this kind; or another
        size, or nothing that makes an MP4.
    """
    subject = _subject(env)
    if kind is not None and kind not in subject.kinds:
        raise PictureError(
            f"env {base.name_of(subject.env)}: a picture of kind {kind!r}; accepted: "
            f"{', '.join(subject.kinds)}"
        )
    if any(pixels % 2 or not 16 <= pixels <= _MAX_PIXELS for pixels in size):
        raise PictureError(
            f"size={size}; even numbers from 16 to {_MAX_PIXELS} are accepted"
        )
    if kind == "mp4" and _ffmpeg() is None:
        raise PictureError('mp4: needs ffmpeg; pip install "vagram_jax[video]"')


def play(key: jax.Array, policy: Policy, *, num_episodes: int) -> Iterator[Episode]:
    """Plays whole episodes, one after the other.

    Args:
      key: a typed key for the start states.
      policy: from `policies.load_policy`.
      num_episodes: how many.

    Yields:
      Each episode; a step that is not finite ends it and is left out.

    Raises:
      PictureError: nobody knows how to draw the environment.
    """
    env, length = policy.env, episodes.length(policy.env)
    drawn_by = _subject(env).drawn_by

    def seen(state):
        over, _ = episodes.ends(state)
        is_finite = base.all_finite(state.obs, state.reward)
        return state, (_pose(drawn_by, env, state), state.reward, over, is_finite)

    start = jax.jit(lambda key: seen(env.reset(key)))
    step = jax.jit(lambda state: seen(env.step(state, policy.act(state.obs))))
    for each in jax.random.split(key, num_episodes):
        state, (pose, *_) = start(each)
        poses, total = [jax.device_get(pose)], 0.0
        for _ in range(length):
            state, told = step(state)
            pose, reward, over, is_finite = jax.device_get(told)
            if is_finite:
                poses.append(pose)
                total += float(reward)
            if over or not is_finite:
                break
        yield Episode(poses, total)


def picture(
    env: base.Env,
    played: Sequence[Episode],
    *,
    kind: str | None = None,
    size: tuple[int, int] = (480, 360),
    fps: float = 30.0,
) -> Picture:
    """The file that shows episodes, one after the other, in real time.

    Args:
      env: that they were played in.
      played: from `play`.
      kind: one of `KINDS`; None for the best that can be made here.
      size: width and height of a film in pixels, even as H.264 has it.
      fps: how many frames a second has; an environment that says how long a step lasts
        is shown at every n-th step, with as many frames at most.

    Returns:
      The picture.

    Raises:
      PictureError: as `check`, or something isn't installed.
    """
    check(env, kind=kind, size=size)
    subject, dt = _subject(env), getattr(env, "dt", None) or 1 / fps
    # Rounded: with the 0.04 s of Brax, in single precision, 25 a second is above 1.
    every = max(1, math.ceil(round(1 / (dt * fps), 6)))
    rate = 1 / (dt * every)
    poses = [pose for episode in played for pose in episode.poses[::every]]
    if kind == "html" or subject.drawn_by == "brax":
        return _page(subject, poses, 1 / rate, "")
    try:
        return _film(subject, poses, kind or _best_film(), size, rate)
    except offscreen.NoRendererError as error:
        if kind is not None:
            raise PictureError(f"{error}; or ask for html") from error
        return _page(subject, poses, 1 / rate, f"{error}; ")


def _subject(env: base.Env) -> _Subject:
    state = jax.eval_shape(lambda: env.reset(jax.random.key(0)))
    inner, state = base.unwrapped(env, state)
    physics = getattr(state, "pipeline_state", None)
    if hasattr(inner, "outline") and hasattr(inner, "reach"):
        return _Subject(inner, "outline", FILMS)
    if hasattr(inner, "model") and hasattr(physics, "qpos"):
        return _Subject(inner, "mujoco", KINDS)
    if hasattr(inner, "sys") and hasattr(physics, "x"):
        return _Subject(inner, "brax", ("html",))
    raise PictureError(
        f"env {base.name_of(inner)}: nobody knows how to draw it; MuJoCo's and Brax's "
        "tasks are drawn, and what has outline(state) and reach, as vagram_jax.envs."
        "classic"
    )


def _pose(drawn_by: str, env: base.Env, state: Any) -> Any:
    """What of a state is drawn."""
    inner, state = base.unwrapped(env, state)
    if drawn_by == "outline":
        return inner.outline(state)
    physics = state.pipeline_state
    return physics.qpos if drawn_by == "mujoco" else (physics.x.pos, physics.x.rot)


def _frames(
    subject: _Subject, poses: Sequence[Any], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """`[height, width, 3]` uint8 each."""
    if subject.drawn_by == "mujoco":
        return offscreen.frames(subject.env.model, np.stack(poses), size)
    return _drawings(poses, subject.env.reach, size)


def _drawings(
    outlines: Sequence[np.ndarray], reach: tuple[float, float], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """A broken line each, with a box where it begins and a knob where it ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=[pixels / _DPI for pixels in size], dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), aspect="equal", frame_on=False)
    axes.set(xticks=[], yticks=[])
    margin = 0.3  # m
    axes.set_xlim(-reach[0] - margin, reach[0] + margin)
    axes.set_ylim(-reach[1] - margin, reach[1] + margin)
    axes.axhline(0, color="0.8", linewidth=2, zorder=0)
    (line,) = axes.plot([], [], color="#0072B2", linewidth=7, solid_capstyle="round")
    (box,) = axes.plot([], [], "s", color="0.2", markersize=18)
    (knob,) = axes.plot([], [], "o", color="#D55E00", markersize=14)
    for points in outlines:
        line.set_data(points[:, 0], points[:, 1])
        box.set_data(points[:1, 0], points[:1, 1])
        knob.set_data(points[-1:, 0], points[-1:, 1])
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _film(
    subject: _Subject,
    poses: Sequence[Any],
    kind: str,
    size: tuple[int, int],
    rate: float,
) -> Picture:
    frames = _frames(subject, poses, size)
    if kind == "gif":
        # A GIF counts hundredths of a second: what is rounded away is made up for.
        ends = 10 * np.round(np.arange(len(poses) + 1) * 100 / rate)  # ms
        data = _gif(frames, np.diff(ends).astype(int).tolist())
    else:
        data = _mp4(frames, size, rate)
    return Picture(kind, data, f"{rate:.4g} frames a second")


def _best_film() -> str:
    return "gif" if _ffmpeg() is None else "mp4"


def _ffmpeg() -> str | None:
    """Where ffmpeg is, if it is."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None


def _mp4(frames: Iterator[np.ndarray], size: tuple[int, int], rate: float) -> bytes:
    width, height = size
    taken = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    # What every player knows: H.264, and colours at half the resolution.
    made = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    first = next(frames)  # There may be nothing that draws.
    # ffmpeg goes back in its file when it ends, so it can't write to a pipe.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        command = [_ffmpeg(), "-loglevel", "error", *taken, "-r", str(rate), "-i", "-"]
        with (
            contextlib.suppress(BrokenPipeError),
            subprocess.Popen(
                [*command, *made, str(path)], stdin=subprocess.PIPE
            ) as process,
        ):
            process.stdin.write(first.tobytes())
            for frame in frames:
                process.stdin.write(frame.tobytes())
        if process.returncode:
            raise PictureError(f"mp4: ffmpeg ends with {process.returncode}; take gif")
        return path.read_bytes()


def _gif(frames: Iterator[np.ndarray], durations: list[int]) -> bytes:
    from PIL import Image

    images = map(Image.fromarray, frames)
    next(images).save(
        data := io.BytesIO(),
        format="GIF",
        save_all=True,
        append_images=images,
        duration=durations,
        loop=0,
    )
    return data.getvalue()


def _page(subject: _Subject, poses: Sequence[Any], dt: float, reason: str) -> Picture:
    """Brax's viewer with what it shows; its script comes from elsewhere."""
    try:
        with _quiet():
            from brax import base as brax_base
            from brax.io import html, mjcf
    except ImportError as error:
        raise PictureError(
            f'{reason}html: {base.one_line(error)}; pip install "vagram_jax[brax]"'
        ) from error
    with _quiet():
        if subject.drawn_by == "mujoco":
            system = mjcf.load_model(_for_brax(subject.env.model))
            poses = [_body_poses(subject.env.model, qpos) for qpos in poses]
        else:
            system = subject.env.sys
        states = [
            types.SimpleNamespace(x=brax_base.Transform(pos=pos, rot=rot))
            for pos, rot in poses
        ]
        system = system.tree_replace({"opt.timestep": dt})
        text = html.render(system, states, height="100vh", colab=False)
    note = "when opened, the page loads its viewer from unpkg.com and jsdelivr.net"
    return Picture("html", text.encode(), reason + note)


def _for_brax(model: Any) -> Any:
    """A model without the one solver that Brax doesn't know; nothing is simulated."""
    import mujoco

    model = copy.copy(model)
    model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return model


def _body_poses(model: Any, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position and rotation of each body but the world."""
    import mujoco

    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    return data.xpos[1:].copy(), data.xquat[1:].copy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what MJX prints where Warp is missing, and Brax's warnings of its age."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
