"""Films show the episode that was played, in real time."""

import base64
import functools
import io
import json
import re
import sys
import zlib
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import probe_envs
import pytest
from PIL import Image, ImageSequence

from vagram_jax import envs, mbpo, sac
from vagram_jax.envs import base, classic, distractors, episodes
from vagram_jax.render import film
from vagram_jax.render.film import PictureError
from vagram_jax.run import trained

CONFIG = sac.SACConfig(hidden=())
BLUE, ORANGE, WHITE = (0, 114, 178), (213, 94, 0), (255, 255, 255)


class Counter(probe_envs.Counter):
    """Gives reward 1 per step, and is drawn as a line as long as its count."""

    episode_length, reach, dt = 6, (6.0, 1.0), 0.05

    def __init__(self, dt=0.05, **options):
        super().__init__(**options)
        self.dt = dt

    def outline(self, state):
        """A line along the floor."""
        return jnp.zeros((2, 2)).at[1, 0].set(state.obs[0])


def agent(obs_dim, action_dim):
    """An agent with random parameters, made without compiling anything."""
    init = functools.partial(sac.init, obs_dim=obs_dim, action_dim=action_dim)
    shapes = jax.eval_shape(functools.partial(init, config=CONFIG), jax.random.key(0))
    draw = np.random.default_rng(0)
    actor = jax.tree.map(
        lambda x: draw.normal(0, 0.3, x.shape).astype(x.dtype), shapes.actor
    )
    return shapes.replace(actor=actor)


def policy_of(env, params=None):
    """A policy without training."""
    config = mbpo.MBPOConfig(loss=mbpo.NO_MODEL, sac=CONFIG)
    params = params or agent(env.observation_size, env.action_size)
    return trained.Trained(
        env=env,
        seed=0,
        state=trained.shapes_of(env, config).replace(agent=params),
        config=config,
        matmul_precision="highest",
    )


def play(env, num_episodes=1):
    """Plays whole episodes from the same start states each time, without compiling."""
    with jax.disable_jit():
        key = jax.random.key(0)
        return [*film.play(key, policy_of(env), num_episodes=num_episodes)]


def counted(length, start=0):
    """An episode of `Counter`, without playing it."""
    poses = [np.array([[0, 0], [start + i, 0]]) for i in range(length + 1)]
    return film.Episode(poses, length)


def picture(env, *played, **options):
    """A GIF of a few pixels by default."""
    return film.picture(env, played, **({"kind": "gif", "size": (64, 48)} | options))


def frames_of(gif):
    """The frames of a GIF and their durations in ms."""
    image = Image.open(io.BytesIO(gif.data))
    shown = [
        (np.asarray(frame.convert("RGB"), int), frame.info["duration"])
        for frame in ImageSequence.Iterator(image)
    ]
    return [frame for frame, _ in shown], [duration for _, duration in shown]


def page_of(html):
    """The data in Brax's page."""
    assert html.kind == "html"
    (packed,) = re.findall(r'var system = "([^"]*)"', html.data.decode())
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def assert_color(frame, x, y, color):
    """Compares roughly: a GIF has 256 colors, and an MP4 half the color resolution."""
    np.testing.assert_allclose(frame[round(y), round(x)], color, atol=30)


def test_play_equals_the_rollout_of_gymnasium_under_the_same_policy():
    env = distractors.Distractors(
        episodes.EpisodeWrapper(classic.Pendulum(), 1, 15), 2, "noise"
    )
    # Without weights on the noise, the policy depends on Gymnasium's observation only.
    params = agent(5, 1)
    params.actor["params"]["mlp"]["Dense_0"]["kernel"][3:] = 0.0
    policy, key = policy_of(env, params), jax.random.key(5)
    episode, other = film.play(key, policy, num_episodes=2)
    assert np.linalg.norm(episode.poses[0] - other.poses[0]) > 0.01
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    (x, y) = episode.poses[0][1]
    start = env.reset(jax.random.split(key, 2)[0])
    velocity = base.unwrapped(env, start)[1].pipeline_state[1]
    theirs.state = np.array([np.arctan2(-x, y), velocity], np.float64)
    total, tips = 0.0, [(x, y)]
    for _ in range(15):
        obs = np.array([*theirs._get_obs(), 0.0, 0.0], np.float32)
        _, reward, *_ = theirs.step(2 * np.asarray(policy.act(obs), np.float64))
        total += reward
        tips.append((-np.sin(theirs.state[0]), np.cos(theirs.state[0])))
    # Single precision; 15 steps amplify rounding little.
    assert episode.total == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose([pose[1] for pose in episode.poses], tips, atol=1e-4)
    np.testing.assert_array_equal([pose[0] for pose in episode.poses], 0.0)


@pytest.mark.parametrize(
    ("env", "steps"),
    [
        (Counter(), 6),
        (Counter(ends_after=4), 4),
        (Counter(nan_at=3, nan_in="obs"), 2),
        (Counter(nan_at=3, nan_in="reward"), 2),
    ],
)
def test_play_ends_an_episode_where_training_would(env, steps):
    (episode,) = play(env)
    assert episode.total == steps
    ends = [pose[1, 0] for pose in episode.poses]
    np.testing.assert_array_equal(ends, range(steps + 1))


@pytest.mark.parametrize(
    ("fps", "every", "duration"),
    # A step takes 50 ms.
    [(30.0, 1, 50), (20.0, 1, 50), (10.0, 2, 100), (7.0, 3, 150), (0.5, 40, 2000)],
)
def test_a_film_is_in_real_time_with_at_most_fps_frames(fps, every, duration):
    # Skipping starts anew with each episode.
    gif = picture(Counter(), counted(6), counted(2, 1), fps=fps)
    frames, durations = frames_of(gif)
    assert gif.kind == "gif"
    assert gif.note == f"{1000 / duration:.4g} frames a second"
    counts = [*range(0, 7, every), *range(1, 4, every)]
    assert durations == [duration] * len(counts)
    assert frames[0].shape == (48, 64, 3)
    expected, _ = frames_of(picture(Counter(), counted(6)))
    for frame, count in zip(frames, counts, strict=True):
        np.testing.assert_array_equal(frame, expected[count])


@pytest.mark.parametrize(
    ("env", "fps", "durations"),
    [
        # A step time in single precision costs no frame.
        (Counter(dt=float(np.float32(0.04))), 25.0, [40] * 7),
        # Durations that GIF rounds to 10 ms don't drift.
        (Counter(dt=None), 30.0, [30, 40, 30, 30, 40, 30, 30]),
        # The step time of a wrapper counts.
        (
            distractors.Distractors(episodes.EpisodeWrapper(Counter(), 3), 2),
            30.0,
            [150] * 7,
        ),
    ],
)
def test_a_film_shows_each_step_for_its_time(env, fps, durations):
    assert frames_of(picture(env, counted(6), fps=fps))[1] == durations


ANGLES = [0.0, 0.5 * np.pi, np.pi, -0.25 * np.pi]
# The shorter side, 360 pixels, shows 2.6 m.
SCALE, MIDDLE = 360 / 2.6, np.array([240, 180])


def pendulum_at(angles):
    """An episode of a pendulum at these angles."""
    tips = [(-np.sin(angle), np.cos(angle)) for angle in angles]
    return film.Episode([np.array([(0, 0), tip]) for tip in tips], 0.0)


def assert_pendulums(frames):
    """Checks the rods of `ANGLES`, in pixels; y points down."""
    assert len(frames) == len(ANGLES)
    for frame, angle in zip(frames, ANGLES, strict=True):
        tip = SCALE * np.array([-np.sin(angle), -np.cos(angle)])
        assert_color(frame, *(MIDDLE + tip), ORANGE)
        assert_color(frame, *(MIDDLE + 0.6 * tip), BLUE)
        across = 0.6 * np.array([tip[1], -tip[0]])
        for place in (-tip, -0.6 * tip, across, -across, 1.2 * tip):
            x, y = MIDDLE + place
            if abs(y - 180) > 5:  # beside the line of the floor
                assert_color(frame, x, y, WHITE)


def test_a_gif_draws_the_rod_at_its_angle():
    gif = picture(classic.Pendulum(), pendulum_at(ANGLES), size=(480, 360))
    assert_pendulums(frames_of(gif)[0])
    assert gif._repr_html_().startswith('<img src="data:image/gif;base64,R0lGOD')


@pytest.mark.filterwarnings("ignore:os.fork")  # imageio-ffmpeg forks
def test_an_mp4_shows_the_same_at_the_same_rate(tmp_path):
    reader = pytest.importorskip("imageio_ffmpeg", reason="no ffmpeg")
    # At half the step rate, every second pose is shown.
    poses = pendulum_at(np.repeat(ANGLES, 2))
    mp4 = picture(classic.Pendulum(), poses, kind=None, size=(480, 360), fps=10.0)
    assert (mp4.kind, mp4.note) == ("mp4", "10 frames a second")
    assert 'src="data:video/mp4;base64,' in mp4._repr_html_()
    (tmp_path / "film.mp4").write_bytes(mp4.data)
    about, *frames = reader.read_frames(str(tmp_path / "film.mp4"))
    assert (about["size"], about["fps"], about["codec"]) == ((480, 360), 10.0, "h264")
    frames = [np.frombuffer(data, np.uint8).reshape(360, 480, 3) for data in frames]
    assert_pendulums([frame.astype(int) for frame in frames])


def test_without_ffmpeg_the_film_is_a_gif_and_an_mp4_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    gif = picture(Counter(), counted(2), kind=None)
    assert (gif.kind, len(frames_of(gif)[0])) == ("gif", 3)
    with pytest.raises(PictureError, match=r'mp4: .*pip install "vagram_jax\[video\]"'):
        film.check(Counter(), kind="mp4")


@pytest.mark.filterwarnings("ignore:os.fork")
def test_an_ffmpeg_that_fails_is_one_line(monkeypatch):
    pytest.importorskip("imageio_ffmpeg", reason="no ffmpeg")
    # A program that reads nothing and ends with an error.
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    for length in (1, 40):
        with pytest.raises(PictureError, match="mp4: ffmpeg failed; choose gif"):
            picture(Counter(), counted(length), kind="mp4", size=(480, 360))


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (Counter(), {"kind": "html"}, "env Counter: .*'html'; accepted: mp4, gif"),
        (Counter(), {"kind": "avi"}, "env Counter: .*'avi'; accepted: mp4, gif"),
        (probe_envs.Counter(), {}, "env Counter: can't be drawn; accepted: "),
        (probe_envs.Foreign(), {}, "env Foreign: can't be drawn; accepted: "),
        (Counter(), {"size": (480, 361)}, r"size=\(480, 361\); even numbers from 16"),
        (Counter(), {"size": (14, 360)}, r"size=\(14, 360\)"),
        (Counter(), {"size": (480, 8194)}, "to 8192 are accepted"),
    ],
)
def test_check_and_picture_refuse_what_cannot_be_drawn(env, options, message):
    with pytest.raises(PictureError, match=message) as caught:
        film.check(env, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 2
    with pytest.raises(PictureError, match=message):
        picture(env, counted(1), **options)


@pytest.fixture(scope="module")
def humanoid():
    """The only task whose model has a solver that Brax refuses."""
    return envs.make("humanoid", observation="truncated")


def bent(model, num):
    """Random positions of all joints of a model, `[num, nq]`."""
    moves = np.random.default_rng(0).uniform(-0.3, 0.3, (num, model.nq))
    qpos = model.qpos0 + moves
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    return qpos


def test_a_page_shows_every_body_at_its_mujoco_position(humanoid):
    pytest.importorskip("brax", reason="no Brax")
    model, qpos = humanoid.model, bent(humanoid.model, 5)
    html = picture(humanoid, film.Episode([*qpos], 0.0), kind="html", fps=30.0)
    page = page_of(html)
    # A step takes 15 ms, and every third is shown.
    assert page["opt"]["timestep"] == pytest.approx(0.045)
    states = page["states"]["x"]
    assert len(states) == 2
    data = mujoco.MjData(model)
    for state, pose in zip(states, qpos[::3], strict=True):
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(state["pos"], data.xpos[1:], atol=1e-5)
        np.testing.assert_allclose(state["rot"], data.xquat[1:], atol=1e-5)
    names = [model.body(i).name for i in range(1, model.nbody)]
    assert page["link_names"] == names
    assert set(page["geoms"]) == {"world", *names}
    assert "unpkg.com" in html.note
    assert html._repr_html_().startswith("<iframe srcdoc=")
    assert model.opt.solver == mujoco.mjtSolver.mjSOL_PGS  # the task is unchanged


def test_without_opengl_a_mujoco_task_becomes_a_page_that_says_why(
    humanoid, monkeypatch
):
    pytest.importorskip("brax", reason="no Brax")
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    episode = film.Episode([humanoid.model.qpos0], 0.0)
    html = picture(humanoid, episode, kind=None)
    assert len(page_of(html)["states"]["x"]) == 1
    assert html.note.startswith("MuJoCo finds no OpenGL (disabled: ")
    for kind in ("gif", "mp4") if film._ffmpeg() else ("gif",):
        with pytest.raises(
            PictureError, match=r"no OpenGL .*; or choose html$"
        ) as error:
            picture(humanoid, episode, kind=kind)
        assert "\n" not in str(error.value)


def test_without_opengl_and_brax_the_error_names_both(humanoid, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    monkeypatch.setitem(sys.modules, "brax", None)
    wanted = r'no OpenGL .*; html: .*brax.*pip install "vagram_jax\[brax\]"$'
    with pytest.raises(PictureError, match=wanted) as caught:
        picture(humanoid, film.Episode([humanoid.model.qpos0], 0.0), kind=None)
    assert "\n" not in str(caught.value)


def test_a_mujoco_film_shows_the_positions():
    env = envs.make("inverted_pendulum", episode_length=3, distractors=2)
    carts = [0.0, -0.8, 0.8]
    episode = film.Episode([np.array([cart, 0.0]) for cart in carts], 0.0)
    try:
        frames, durations = frames_of(picture(env, episode, size=(120, 90)))
    except PictureError as error:
        pytest.skip(str(error))
    assert durations == [40] * 3
    # The cart is brighter than the floor; in the middle frame it is to the left.
    middles = [np.average(np.arange(120), weights=f[..., 1].sum(0)) for f in frames]
    assert middles[1] < middles[0] - 2
    assert middles[2] > middles[0] + 2


BALL = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody><body name="ball"><freejoint/><geom size="1"/></body></worldbody>
</mujoco>
"""


class Physics(NamedTuple):
    """The part of Brax's state that is drawn."""

    x: Any


class Ball(probe_envs.Counter):
    """A ball with the attributes of a Brax task; its position is the count."""

    episode_length, dt = 4, 0.02

    def __init__(self):
        from brax import base as brax_base
        from brax.io import mjcf

        super().__init__()
        self.sys, self._transform = mjcf.loads(BALL), brax_base.Transform

    def reset(self, key):
        """Starts at the origin."""
        return self._put(super().reset(key))

    def step(self, state, action):
        """Moves by one meter."""
        return self._put(super().step(state, action))

    def _put(self, state):
        x = self._transform.create(pos=jnp.array([[state.obs[0], 0.0, 1.0]]))
        return state.replace(pipeline_state=Physics(x))


def test_play_and_page_show_an_environment_like_brax():
    pytest.importorskip("brax", reason="no Brax")
    env = distractors.Distractors(Ball(), 2)
    (episode,) = play(env)
    assert episode.total == 4
    page = page_of(film.picture(env, [episode], fps=25.0))
    assert page["opt"]["timestep"] == pytest.approx(0.04)  # every second step
    positions = [state["pos"] for state in page["states"]["x"]]
    np.testing.assert_allclose(positions, [[[x, 0, 1]] for x in (0, 2, 4)])
    rotations = [state["rot"] for state in page["states"]["x"]]
    np.testing.assert_allclose(rotations, [[[1, 0, 0, 0]]] * 3)
    assert page["link_names"] == ["ball"]


def test_brax_tasks_are_shown_as_pages_only():
    pytest.importorskip("brax", reason="no Brax")
    env = envs.make("brax:inverted_pendulum", distractors=2, action_repeat=2)
    assert env.dt == pytest.approx(0.08)
    film.check(env, kind="html")
    with pytest.raises(PictureError, match="'gif'; accepted: html"):
        film.check(env, kind="gif")
