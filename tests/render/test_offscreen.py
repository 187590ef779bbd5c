"""The renderer's subprocess: what it shows, and how it fails."""

import subprocess
import sys

import mujoco
import numpy as np
import pytest

from vagram_jax.render import offscreen
from vagram_jax.render.offscreen import NoRendererError

BALL = """
<mujoco>
  <worldbody>
    <light pos="0 0 5"/>
    <camera name="{camera}" pos="0 -5 0" xyaxes="1 0 0 0 0 1"/>
    <body><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
      <geom size="0.3" rgba="1 0 0 1"/></body>
  </worldbody>
</mujoco>
"""
SIZE = (64, 48)
POSITIONS = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])


def ball(camera="track"):
    return mujoco.MjModel.from_xml_string(BALL.format(camera=camera))


@pytest.fixture(scope="module")
def frames():
    """The frames of a ball at `POSITIONS`, by the camera that looks along y."""
    try:
        return [*offscreen.frames(ball(), POSITIONS, SIZE)]
    except NoRendererError as error:
        pytest.skip(str(error))


def center(frame):
    """The red ball's offset from the center of the picture: to the right, up."""
    rows, columns = np.nonzero(frame[..., 0] > 2 * frame[..., 2].astype(int) + 20)
    assert len(rows) > 10
    width, height = SIZE
    return columns.mean() - (width - 1) / 2, (height - 1) / 2 - rows.mean()


def test_frames_show_each_position_upright_and_not_mirrored(frames):
    assert {(f.shape, f.dtype.name) for f in frames} == {((48, 64, 3), "uint8")}
    # The camera sees 45 degrees on 48 pixels, from 5 m.
    pixels = 24 / (5 * np.tan(np.pi / 8))
    for frame, position in zip(frames, POSITIONS, strict=True):
        np.testing.assert_allclose(center(frame), pixels * position, atol=1.5)


def test_a_model_without_the_camera_is_seen_from_a_fixed_view(frames):
    model = ball(camera="another")
    shown = [*offscreen.frames(model, POSITIONS[[4, 0, 1]], SIZE)]
    changed = [(frame != shown[0]).any(-1) for frame in shown[1:]]
    assert all(each.sum() > 10 for each in changed)
    assert (abs(np.array(center(shown[0]))) < 3).all()


def test_a_backend_that_fails_is_named_with_the_reason(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(NoRendererError) as caught:
        next(offscreen.frames(ball(), POSITIONS, SIZE))
    text = str(caught.value)
    assert text.startswith("MuJoCo finds no OpenGL (disabled: AttributeError: ")
    assert text.endswith("or set MUJOCO_GL")
    assert "\n" not in text


def test_both_backends_without_a_window_are_tried_on_linux(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(sys, "platform", "linux")
    message = r"\(egl: exit status 1; osmesa: exit status 1\)"
    with pytest.raises(NoRendererError, match=message):
        next(offscreen.frames(ball(), POSITIONS, SIZE))


@pytest.fixture
def renderer(monkeypatch, tmp_path):
    """Replaces the renderer by a shell script; the function returns its processes."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    started, start = [], subprocess.Popen

    def popen(*args, **options):
        started.append(start(*args, **options))
        return started[-1]

    def use(script):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(subprocess, "Popen", popen)
        return started

    return use


FRAME = f"head -c {64 * 48 * 3} /dev/zero"


def test_a_renderer_that_dies_midway_is_reported_with_its_last_line(renderer):
    renderer(f"cat > /dev/null; {FRAME}; {FRAME}; echo the driver is lost >&2; exit 3")
    frames = offscreen.frames(ball(), POSITIONS, SIZE)
    assert [next(frames).sum() for _ in range(2)] == [0, 0]
    with pytest.raises(NoRendererError, match=r"at frame 2: egl: the driver is lost$"):
        next(frames)


def test_a_renderer_that_dies_before_it_reads_is_reported(renderer):
    renderer("exec < /dev/null; echo no such display >&2")
    many = np.zeros((20_000, 2))  # more than a pipe holds
    with pytest.raises(NoRendererError, match=r"\(egl: no such display\)"):
        next(offscreen.frames(ball(), many, SIZE))


def test_closing_the_iterator_ends_the_process(renderer):
    processes = renderer(f"cat > /dev/null; {FRAME}; exec sleep 600")
    frames = offscreen.frames(ball(), POSITIONS, SIZE)
    next(frames)
    assert [process.poll() for process in processes] == [None]
    frames.close()
    assert [process.poll() is None for process in processes] == [False]
