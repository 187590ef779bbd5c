"""The renderer in a process of its own: what it shows, and how it fails."""

import subprocess
import sys

import mujoco
import numpy as np
import pytest
from vagram_jax.render.film.offscreen import NoRendererError

from vagram_jax.render.film import offscreen

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
PLACES = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])


def ball(camera="track"):
    return mujoco.MjModel.from_xml_string(BALL.format(camera=camera))


@pytest.fixture(scope="module")
def seen():
    """The frames of a ball at `PLACES`, by the camera that looks along y."""
    try:
        return [*offscreen.frames(ball(), PLACES, SIZE)]
    except NoRendererError as error:
        pytest.skip(str(error))


def middle(frame):
    """Where the red ball is, from the middle of the picture: to the right, up."""
    rows, columns = np.nonzero(frame[..., 0] > 2 * frame[..., 2].astype(int) + 20)
    assert len(rows) > 10
    width, height = SIZE
    return columns.mean() - (width - 1) / 2, (height - 1) / 2 - rows.mean()


def test_frames_are_as_many_and_as_large_as_asked(seen):
    assert len(seen) == len(PLACES)
    assert {(f.shape, f.dtype.name) for f in seen} == {((48, 64, 3), "uint8")}


def test_frames_show_each_position_upright_and_unmirrored(seen):
    # 45 degrees are seen on 48 pixels, 5 m away.
    pixels = 24 / (5 * np.tan(np.pi / 8))
    for frame, place in zip(seen, PLACES, strict=True):
        np.testing.assert_allclose(middle(frame), pixels * place, atol=1.5)


def test_a_model_without_the_camera_is_seen_from_one_that_stands_still(seen):
    model = ball(camera="another")
    frames = [*offscreen.frames(model, PLACES[[4, 0, 1]], SIZE)]
    # Nothing moves but the ball: what it leaves is as if it had never been there.
    differ = [(frame != frames[0]).any(-1) for frame in frames[1:]]
    assert all(each.sum() > 10 for each in differ)
    start = abs(np.array(middle(frames[0])))
    assert (start < 3).all()


def test_an_unfit_backend_is_named_with_the_reason(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(NoRendererError) as caught:
        next(offscreen.frames(ball(), PLACES, SIZE))
    said = str(caught.value)
    assert said.startswith("MuJoCo finds no OpenGL (disabled: AttributeError: ")
    assert said.endswith("or set MUJOCO_GL")
    assert "\n" not in said


def test_both_backends_without_a_window_are_tried_on_linux(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(sys, "platform", "linux")
    wanted = r"\(egl: exit status 1; osmesa: exit status 1\)"
    with pytest.raises(NoRendererError, match=wanted):
        next(offscreen.frames(ball(), PLACES, SIZE))


@pytest.fixture
def renderer(monkeypatch, tmp_path):
    """Puts a program in the renderer's place, and notes the processes."""
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


def test_a_renderer_that_dies_midway_is_told_with_its_last_words(renderer):
    renderer(f"cat > /dev/null; {FRAME}; {FRAME}; echo the driver is lost >&2; exit 3")
    frames = offscreen.frames(ball(), PLACES, SIZE)
    assert [next(frames).sum() for _ in range(2)] == [0, 0]
    with pytest.raises(NoRendererError, match=r"at frame 2: egl: the driver is lost$"):
        next(frames)


def test_a_renderer_that_dies_before_it_listens_is_told(renderer):
    renderer("exec < /dev/null; echo no such display >&2")
    many = np.zeros((20_000, 2))  # more than a pipe holds
    with pytest.raises(NoRendererError, match=r"\(egl: no such display\)"):
        next(offscreen.frames(ball(), many, SIZE))


def test_no_process_outlives_who_looks_away(renderer):
    (processes := renderer(f"cat > /dev/null; {FRAME}; exec sleep 600"))
    frames = offscreen.frames(ball(), PLACES, SIZE)
    next(frames)
    assert [process.poll() for process in processes] == [None]
    frames.close()
    assert [process.poll() is None for process in processes] == [False]
