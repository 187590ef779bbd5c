"""What a picture shows: the episode that was played, at its own pace."""

import base64
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
from vagram_jax.render.film.film import PictureError

from vagram_jax import envs, sac
from vagram_jax.envs import base, classic, distractors, episodes
from vagram_jax.render.film import film as render
from vagram_jax.run import policies

CONFIG = sac.SACConfig(hidden=())
BLUE, ORANGE, WHITE = (0, 114, 178), (213, 94, 0), (255, 255, 255)


class Counter(probe_envs.Counter):
    """Pays one a step; it is drawn as a line as long as its count."""

    episode_length, reach, dt = 6, (6.0, 1.0), 0.05

    def outline(self, state):
        """Along the floor."""
        return jnp.zeros((2, 2)).at[1, 0].set(state.obs[0])


class CutAtThree(Counter):
    """Says after three steps that a time limit of its own is over."""

    def reset(self, key):
        """With the flag in place."""
        return self._cut(super().reset(key))

    def step(self, state, action):
        """A step later."""
        return self._cut(super().step(state, action))

    def _cut(self, state):
        cut = (state.obs[0] == 3).astype(jnp.float32)
        return state.replace(info=state.info | {"truncation": cut})


def policy_of(env, seed=0):
    """A policy without training."""
    sizes = {"obs_dim": env.observation_size, "action_dim": env.action_size}
    return policies.Policy(
        env=env,
        seed=seed,
        env_steps=0,
        diverged_at=None,
        actor=sac.init(jax.random.key(seed), **sizes, config=CONFIG).actor,
        config=CONFIG,
        matmul_precision="highest",
    )


def play(env, num_episodes=1):
    """Whole episodes, from the same starts each time."""
    key = jax.random.key(0)
    return [*render.play(key, policy_of(env), num_episodes=num_episodes)]


def counted(length, start=0):
    """An episode of `Counter`, without playing it."""
    poses = [np.array([[0, 0], [start + i, 0]]) for i in range(length + 1)]
    return render.Episode(poses, length)


def picture(env, *played, **options):
    """A GIF of a few pixels, unless told otherwise."""
    return render.picture(env, played, **({"kind": "gif", "size": (64, 48)} | options))


def frames_of(made):
    """Frames of a GIF and how long each is shown, in ms."""
    image = Image.open(io.BytesIO(made.data))
    shown = [
        (np.asarray(frame.convert("RGB"), int), frame.info["duration"])
        for frame in ImageSequence.Iterator(image)
    ]
    return [frame for frame, _ in shown], [duration for _, duration in shown]


def page_of(made):
    """What Brax's page holds."""
    assert made.kind == "html"
    (packed,) = re.findall(r'var system = "([^"]*)"', made.data.decode())
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def assert_colour(frame, x, y, colour):
    """A GIF has 256 colours, an MP4 half the resolution of them: about that colour."""
    np.testing.assert_allclose(frame[round(y), round(x)], colour, atol=30)


def test_play_is_the_rollout_of_gymnasium_under_the_same_policy():
    env = distractors.Distractors(
        episodes.EpisodeWrapper(classic.Pendulum(), 1, 15), 2, "noise"
    )
    # Without weights on what is noise, the policy sees what Gymnasium shows.
    policy = policy_of(env)
    layer = policy.actor["params"]["mlp"]["Dense_0"]
    layer["kernel"] = layer["kernel"].at[3:].set(0.0)
    key = jax.random.key(5)
    (episode,) = render.play(key, policy, num_episodes=1)
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=0)
    (x, y) = episode.poses[0][1]
    start = env.reset(jax.random.split(key, 1)[0])
    velocity = base.unwrapped(env, start)[1].pipeline_state[1]
    theirs.state = np.array([np.arctan2(-x, y), velocity], np.float64)
    total, tips = 0.0, [(x, y)]
    for _ in range(15):
        obs = np.array([*theirs._get_obs(), 0.0, 0.0], np.float32)
        _, reward, *_ = theirs.step(2 * np.asarray(policy.act(obs), np.float64))
        total += reward
        tips.append((-np.sin(theirs.state[0]), np.cos(theirs.state[0])))
    # Float32 here; so few steps amplify its rounding little.
    assert episode.total == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose([pose[1] for pose in episode.poses], tips, atol=1e-4)
    np.testing.assert_array_equal([pose[0] for pose in episode.poses], 0.0)


@pytest.mark.parametrize(
    ("env", "steps"),
    [
        (Counter(), 6),
        (Counter(ends_after=4), 4),
        (CutAtThree(), 3),
        (Counter(nan_at=3, nan_in="obs"), 2),
        (Counter(nan_at=3, nan_in="reward"), 2),
        (episodes.EpisodeWrapper(Counter(), 1, 5), 5),
    ],
)
def test_an_episode_ends_where_it_would_in_training(env, steps):
    (episode,) = play(env)
    assert episode.total == steps
    ends = [pose[1, 0] for pose in episode.poses]
    np.testing.assert_array_equal(ends, range(steps + 1))


def test_each_episode_starts_from_a_state_of_its_own():
    env = episodes.EpisodeWrapper(classic.Pendulum(), 1, 2)
    first, again = ([e.poses[0][1] for e in play(env, 3)] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    apart = np.linalg.norm(np.subtract.outer(first, first), axis=(1, 3))
    assert (apart[~np.eye(3, dtype=bool)] > 0.01).all()


@pytest.mark.parametrize(
    ("fps", "every", "duration"),
    # A step lasts 50 ms.
    [(30.0, 1, 50), (20.0, 1, 50), (10.0, 2, 100), (7.0, 3, 150), (0.5, 40, 2000)],
)
def test_a_film_is_in_real_time_with_as_many_frames_as_asked(fps, every, duration):
    made = picture(Counter(), counted(6), fps=fps)
    frames, durations = frames_of(made)
    assert made.kind == "gif"
    assert made.note == f"{1000 / duration:.4g} frames a second"
    assert durations == [duration] * len(range(0, 7, every))
    assert frames[0].shape == (48, 64, 3)
    wanted, _ = frames_of(picture(Counter(), counted(6)))
    for frame, whole in zip(frames, wanted[::every], strict=True):
        np.testing.assert_array_equal(frame, whole)


def test_a_step_in_single_precision_costs_no_frame():
    env = Counter()
    env.dt = float(np.float32(0.04))
    _, durations = frames_of(picture(env, counted(6), fps=25.0))
    assert durations == [40] * 7


def test_a_film_has_no_drift_where_a_frame_is_no_whole_hundredths():
    env = Counter()
    env.dt = None
    _, durations = frames_of(picture(env, counted(6), fps=30.0))
    assert durations == [30, 40, 30, 30, 40, 30, 30]


def test_steps_that_are_skipped_start_anew_with_each_episode():
    frames, _ = frames_of(picture(Counter(), counted(3), counted(2, 1), fps=10.0))
    wanted, _ = frames_of(picture(Counter(), counted(6)))
    shown = [wanted[i] for i in (0, 2, 1, 3)]
    assert len(frames) == 4
    for frame, whole in zip(frames, shown, strict=True):
        np.testing.assert_array_equal(frame, whole)


def test_the_pace_of_a_wrapper_is_the_pace_of_the_film():
    env = distractors.Distractors(episodes.EpisodeWrapper(Counter(), 3), 2)
    _, durations = frames_of(picture(env, counted(4)))
    assert durations == [150] * 5


ANGLES = [0.0, 0.5 * np.pi, np.pi, -0.25 * np.pi]
# 2.6 m are seen on 360 pixels, the shorter side; the middle is in the middle.
SCALE, MIDDLE = 360 / 2.6, np.array([240, 180])


def pendulum_at(angles):
    """An episode at these angles."""
    tips = [(-np.sin(angle), np.cos(angle)) for angle in angles]
    return render.Episode([np.array([(0, 0), tip]) for tip in tips], 0.0)


def assert_pendulums(frames):
    """The rods of `ANGLES`, in pixels: y counts from above."""
    assert len(frames) == len(ANGLES)
    for frame, angle in zip(frames, ANGLES, strict=True):
        tip = SCALE * np.array([-np.sin(angle), -np.cos(angle)])
        assert_colour(frame, *(MIDDLE + tip), ORANGE)
        assert_colour(frame, *(MIDDLE + 0.6 * tip), BLUE)
        across = 0.6 * np.array([tip[1], -tip[0]])
        for place in (-tip, -0.6 * tip, across, -across, 1.2 * tip):
            x, y = MIDDLE + place
            if abs(y - 180) > 5:  # else it is on the line of the floor
                assert_colour(frame, x, y, WHITE)


def test_the_rod_is_drawn_where_it_is():
    made = picture(classic.Pendulum(), pendulum_at(ANGLES), size=(480, 360))
    assert_pendulums(frames_of(made)[0])


@pytest.mark.filterwarnings("ignore:os.fork")  # the reader forks
def test_an_mp4_shows_the_same_at_the_same_pace(tmp_path):
    reader = pytest.importorskip("imageio_ffmpeg", reason="no ffmpeg")
    film = {"kind": "mp4", "size": (480, 360), "fps": 10.0}
    # At half the frames every second pose is shown.
    made = picture(classic.Pendulum(), pendulum_at(np.repeat(ANGLES, 2)), **film)
    assert (made.kind, made.note) == ("mp4", "10 frames a second")
    (tmp_path / "film.mp4").write_bytes(made.data)
    about, *frames = reader.read_frames(str(tmp_path / "film.mp4"))
    assert (about["size"], about["fps"], about["codec"]) == ((480, 360), 10.0, "h264")
    frames = [np.frombuffer(data, np.uint8).reshape(360, 480, 3) for data in frames]
    assert_pendulums([frame.astype(int) for frame in frames])


def test_without_ffmpeg_the_film_is_a_gif_and_an_mp4_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    made = picture(Counter(), counted(2), kind=None)
    assert (made.kind, len(frames_of(made)[0])) == ("gif", 3)
    with pytest.raises(PictureError, match=r'mp4: .*pip install "vagram_jax\[video\]"'):
        render.check(Counter(), kind="mp4")


def test_with_ffmpeg_the_film_is_an_mp4():
    pytest.importorskip("imageio_ffmpeg", reason="no ffmpeg")
    assert picture(Counter(), counted(2), kind=None).kind == "mp4"


def test_an_ffmpeg_that_fails_is_one_line(monkeypatch):
    pytest.importorskip("imageio_ffmpeg", reason="no ffmpeg")
    # A program that takes nothing in and ends with an error.
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    with pytest.raises(PictureError, match="mp4: ffmpeg ends with 1; take gif"):
        picture(Counter(), counted(40), kind="mp4", size=(480, 360))


@pytest.mark.parametrize(
    ("env", "options", "said"),
    [
        (Counter(), {"kind": "html"}, "env Counter: .*'html'; accepted: mp4, gif"),
        (Counter(), {"kind": "avi"}, "env Counter: .*'avi'; accepted: mp4, gif"),
        (probe_envs.Counter(), {}, "env Counter: nobody knows how to draw it"),
        (probe_envs.Foreign(), {}, "env Foreign: nobody knows how to draw it"),
        (Counter(), {"size": (480, 361)}, r"size=\(480, 361\); even numbers from 16"),
        (Counter(), {"size": (14, 360)}, r"size=\(14, 360\)"),
        (Counter(), {"size": (480, 8194)}, "to 8192 are accepted"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_is_played(env, options, said):
    with pytest.raises(PictureError, match=said) as caught:
        render.check(env, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(PictureError, match=said):
        picture(env, counted(1), **options)


@pytest.fixture(scope="module")
def humanoid():
    """The one task whose model has a solver that Brax doesn't know."""
    return envs.make("humanoid", observation="truncated")


def bent(model, num):
    """Positions of a model in which every joint is somewhere else, `[num, nq]`."""
    moves = np.random.default_rng(0).uniform(-0.3, 0.3, (num, model.nq))
    qpos = model.qpos0 + moves
    qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
    return qpos


def test_a_page_has_every_body_where_mujoco_has_it(humanoid):
    pytest.importorskip("brax", reason="no Brax")
    model, qpos = humanoid.model, bent(humanoid.model, 5)
    made = picture(humanoid, render.Episode([*qpos], 0.0), kind="html", fps=30.0)
    page = page_of(made)
    # A step lasts 15 ms, and every third is shown.
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
    assert "unpkg.com" in made.note
    assert model.opt.solver == mujoco.mjtSolver.mjSOL_PGS  # the task is left alone


def test_without_opengl_mujoco_is_a_page_that_says_why(humanoid, monkeypatch):
    pytest.importorskip("brax", reason="no Brax")
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    episode = render.Episode([humanoid.model.qpos0], 0.0)
    made = picture(humanoid, episode, kind=None)
    assert len(page_of(made)["states"]["x"]) == 1
    assert made.note.startswith("MuJoCo finds no OpenGL (disabled: ")
    for kind in ("gif", "mp4") if render._ffmpeg() else ("gif",):
        with pytest.raises(PictureError, match=r"no OpenGL .*; or ask for html$") as no:
            picture(humanoid, episode, kind=kind)
        assert "\n" not in str(no.value)


def test_without_opengl_and_brax_both_are_named(humanoid, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    monkeypatch.setitem(sys.modules, "brax", None)
    wanted = r'no OpenGL .*; html: .*brax.*pip install "vagram_jax\[brax\]"$'
    with pytest.raises(PictureError, match=wanted) as caught:
        picture(humanoid, render.Episode([humanoid.model.qpos0], 0.0), kind=None)
    assert "\n" not in str(caught.value)


def test_mujoco_is_filmed_where_the_simulation_is():
    env = envs.make("inverted_pendulum", episode_length=3, distractors=2)
    carts = [0.0, -0.8, 0.8]
    episode = render.Episode([np.array([cart, 0.0]) for cart in carts], 0.0)
    try:
        frames, durations = frames_of(picture(env, episode, size=(120, 90)))
    except PictureError as error:
        pytest.skip(str(error))
    assert durations == [40] * 3
    # What moves is brighter in red than what stands; the middle frame is to the left.
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
    """As much of Brax's state as is drawn."""

    x: Any


class Ball(probe_envs.Counter):
    """In the form of Brax: a ball that is as far along as the count says."""

    episode_length, dt = 4, 0.02

    def __init__(self):
        from brax import base as brax_base
        from brax.io import mjcf

        super().__init__()
        self.sys, self._transform = mjcf.loads(BALL), brax_base.Transform

    def reset(self, key):
        """In the middle."""
        return self._put(super().reset(key))

    def step(self, state, action):
        """A metre further."""
        return self._put(super().step(state, action))

    def _put(self, state):
        x = self._transform.create(pos=jnp.array([[state.obs[0], 0.0, 1.0]]))
        return state.replace(pipeline_state=Physics(x))


def test_play_and_page_follow_what_has_the_form_of_brax():
    pytest.importorskip("brax", reason="no Brax")
    env = distractors.Distractors(Ball(), 2)
    (episode,) = play(env)
    assert episode.total == 4
    page = page_of(render.picture(env, [episode], fps=25.0))
    # Every second step.
    assert page["opt"]["timestep"] == pytest.approx(0.04)
    places = [state["pos"] for state in page["states"]["x"]]
    np.testing.assert_allclose(places, [[[x, 0, 1]] for x in (0, 2, 4)])
    rotations = [state["rot"] for state in page["states"]["x"]]
    np.testing.assert_allclose(rotations, [[[1, 0, 0, 0]]] * 3)
    assert page["link_names"] == ["ball"]


def test_tasks_of_brax_are_pages():
    pytest.importorskip("brax", reason="no Brax")
    env = envs.make("brax:inverted_pendulum", distractors=2, action_repeat=2)
    assert env.dt == pytest.approx(0.08)
    render.check(env, kind="html")
    with pytest.raises(PictureError, match="'gif'; accepted: html"):
        render.check(env, kind="gif")
