"""Plays a policy and shows its episodes as an MP4, a GIF or an HTML page.

The innermost environment selects what draws it:

- with `outline(state)`, points in m, and `reach`: matplotlib draws a line;
- with `model`, a `mujoco.MjModel`, and `qpos` in its state: MuJoCo, or Brax's HTML page
  without OpenGL;
- with `sys`, as in Brax's environments: Brax's HTML page.

matplotlib, Pillow, ffmpeg and Brax are imported where they are used.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import html
import io
import itertools
import math
import tempfile
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from vagram_jax import user_code
from vagram_jax.envs import base, episodes
from vagram_jax.render import offscreen
from vagram_jax.run.trained import Trained

FILMS = ("mp4", "gif")
KINDS = (*FILMS, "html")
"""The accepted kinds of a picture."""

_DPI = 100
_MAX_PIXELS = 8192


class PictureError(ValueError):
    """A picture that can't be made here. One line: of what, why, what to do."""

    status = 2


class Episode(NamedTuple):
    """An episode as `picture` draws it.

    Attributes:
      poses: what to draw of each state, the start state included.
      total: sum of the rewards.
    """

    poses: list[Any]
    total: float


class Picture(NamedTuple):
    """A film or a page. A notebook shows it when it is the last value of a cell.

    Attributes:
      kind: one of `KINDS`.
      data: contents of the file.
      note: the frame rate, or what the page needs.
    """

    kind: str
    data: bytes
    note: str

    def _repr_html_(self) -> str:
        """The picture as a notebook shows it."""
        if self.kind == "html":
            page = html.escape(self.data.decode())
            return f'<iframe srcdoc="{page}" width="640" height="480"></iframe>'
        data = base64.b64encode(self.data).decode()
        if self.kind == "gif":
            return f'<img src="data:image/gif;base64,{data}">'
        return f'<video controls loop src="data:video/mp4;base64,{data}"></video>'


class _Subject(NamedTuple):
    """The innermost environment, and what draws it."""

    env: Any
    renderer: str  # outline, mujoco or brax
    kinds: tuple[str, ...]


def check(
    env: base.Env, *, kind: str | None = None, size: tuple[int, int] = (480, 360)
) -> None:
    """Checks the arguments of `picture` before any episode is played.

    Raises:
      PictureError: nothing can draw `env`, or not as this kind; the size isn't
        accepted; or ffmpeg is missing for an MP4.
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


def play(key: jax.Array, policy: Trained, *, num_episodes: int) -> Iterator[Episode]:
    """Plays whole episodes, one after the other.

    Args:
      key: a typed key for the start states.
      policy: from `trained.load`.
      num_episodes: number of episodes.

    Yields:
      Each episode. A step that isn't finite ends it and is left out.

    Raises:
      PictureError: nothing can draw the environment.
    """
    env, length = policy.env, episodes.length(policy.env)
    renderer = _subject(env).renderer

    def with_outcome(state):
        over, _ = episodes.ends(state)
        is_finite = base.all_finite(state.obs, state.reward)
        return state, (_pose(renderer, env, state), state.reward, over, is_finite)

    start = jax.jit(lambda key: with_outcome(env.reset(key)))
    step = jax.jit(lambda state: with_outcome(env.step(state, policy.act(state.obs))))
    for start_key in jax.random.split(key, num_episodes):
        state, (pose, *_) = start(start_key)
        poses, total = [jax.device_get(pose)], 0.0
        for _ in range(length):
            state, outcome = step(state)
            pose, reward, over, is_finite = jax.device_get(outcome)
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
    """Shows episodes one after the other, in real time.

    Args:
      env: the environment of the episodes, with its wrappers.
      played: episodes from `play`.
      kind: one of `KINDS`; None selects MP4, else GIF, else HTML, by what can be made.
      size: width and height of a film in pixels; even numbers, which H.264 needs.
      fps: frames per second. If the environment has a step time `dt`, every n-th step
        is shown, at most `fps` per second.

    Raises:
      PictureError: as `check`, or a package is missing.
    """
    check(env, kind=kind, size=size)
    subject, dt = _subject(env), getattr(env, "dt", None) or 1 / fps
    # Rounded: Brax's 0.04 s, in single precision, would exceed one step at 25 fps.
    every = max(1, math.ceil(round(1 / (dt * fps), 6)))
    rate = 1 / (dt * every)
    poses = [pose for episode in played for pose in episode.poses[::every]]
    if kind == "html" or subject.renderer == "brax":
        return _page(subject, poses, 1 / rate, "")
    try:
        return _film(subject, poses, kind or _best_film(), size, rate)
    except offscreen.NoRendererError as error:
        if kind is not None:
            raise PictureError(f"{error}; or choose html") from error
        return _page(subject, poses, 1 / rate, f"{error}; ")


def _subject(env: base.Env) -> _Subject:
    """Finds the innermost environment and what draws it."""
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
        f"env {base.name_of(inner)}: can't be drawn; accepted: MuJoCo's and Brax's "
        "tasks, and environments with outline(state) and reach, as in "
        "vagram_jax.envs.classic"
    )


def _pose(renderer: str, env: base.Env, state: Any) -> Any:
    """The part of a state that is drawn."""
    inner, state = base.unwrapped(env, state)
    if renderer == "outline":
        return inner.outline(state)
    physics = state.pipeline_state
    return physics.qpos if renderer == "mujoco" else (physics.x.pos, physics.x.rot)


def _frames(
    subject: _Subject, poses: Sequence[Any], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yields frames, `[height, width, 3]` uint8."""
    if subject.renderer == "mujoco":
        return offscreen.frames(subject.env.model, np.stack(poses), size)
    return _drawings(poses, subject.env.reach, size)


def _drawings(
    outlines: Sequence[np.ndarray], reach: tuple[float, float], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Draws each outline as a line that starts at a box and ends in a circle."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), aspect="equal", frame_on=False)
    axes.set(xticks=[], yticks=[])
    margin = 0.3  # m
    axes.set_xlim(-reach[0] - margin, reach[0] + margin)
    axes.set_ylim(-reach[1] - margin, reach[1] + margin)
    axes.axhline(0, color="0.8", linewidth=2, zorder=0)
    (line,) = axes.plot([], [], color="#0072B2", linewidth=7, solid_capstyle="round")
    (box,) = axes.plot([], [], "s", color="0.2", markersize=18)
    (circle,) = axes.plot([], [], "o", color="#D55E00", markersize=14)
    for points in outlines:
        line.set_data(points[:, 0], points[:, 1])
        box.set_data(points[:1, 0], points[:1, 1])
        circle.set_data(points[-1:, 0], points[-1:, 1])
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
        # A GIF counts hundredths of a second; rounding the ends of frames, not their
        # durations, keeps a long film in real time.
        ends = 10 * np.round(np.arange(len(poses) + 1) * 100 / rate)  # ms
        data = _gif(frames, np.diff(ends).astype(int).tolist())
    else:
        data = _mp4(frames, size, rate)
    return Picture(kind, data, f"{rate:.4g} frames a second")


def _best_film() -> str:
    return "gif" if _ffmpeg() is None else "mp4"


def _ffmpeg() -> str | None:
    """The path of ffmpeg, or None if it is missing."""
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None


def _mp4(frames: Iterator[np.ndarray], size: tuple[int, int], rate: float) -> bytes:
    import imageio_ffmpeg

    first = next(frames)  # raises here if nothing can draw
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        writer = imageio_ffmpeg.write_frames(
            path,
            size,
            # The library declares no types; Pyright takes them from its defaults.
            fps=rate,  # pyright: ignore[reportArgumentType]
            codec="libx264",
            quality=None,  # pyright: ignore[reportArgumentType] - ffmpeg's default
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-movflags", "+faststart"],
        )
        try:
            with contextlib.closing(writer):
                writer.send(None)  # starts ffmpeg
                for frame in itertools.chain([first], frames):
                    writer.send(np.ascontiguousarray(frame))
            return path.read_bytes()
        except OSError as error:
            raise PictureError("mp4: ffmpeg failed; choose gif") from error


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
    """A page with Brax's viewer; its script is loaded from the web."""
    try:
        with _quiet():
            from brax import base as brax_base
            from brax.io import html as viewer
            from brax.io import mjcf
    except ImportError as error:
        raise PictureError(
            f'{reason}html: {user_code.one_line(error)}; pip install "vagram_jax[brax]"'
        ) from error
    with _quiet():
        if subject.renderer == "mujoco":
            system = cast(Any, mjcf.load_model(_for_brax(subject.env.model)))
            poses = [_body_poses(subject.env.model, qpos) for qpos in poses]
        else:
            system = subject.env.sys
        states = [
            types.SimpleNamespace(x=brax_base.Transform(pos=pos, rot=rot))
            for pos, rot in poses
        ]
        system = system.tree_replace({"opt.timestep": dt})
        # The viewer reads nothing but `x` of a state.
        text = viewer.render(system, cast(Any, states), height="100vh", colab=False)
    note = "when opened, the page loads its viewer from unpkg.com and jsdelivr.net"
    return Picture("html", text.encode(), reason + note)


def _for_brax(model: Any) -> Any:
    """The model with a solver that Brax accepts; nothing is simulated."""
    import mujoco

    model = copy.copy(model)
    model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return model


def _body_poses(model: Any, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position and rotation of each body except the world."""
    import mujoco

    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    return data.xpos[1:].copy(), data.xquat[1:].copy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what MJX prints if Warp is missing, and Brax's deprecation warnings."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
