"""Tasks of dm_control compute what dm_control computes; a fake suite shows the ends."""

# ruff: noqa: D102  (the methods are dm_env's, described there)

from __future__ import annotations

import collections
import functools
import sys
import types
from typing import NamedTuple

import adapter_cases as cases
import jax
import numpy as np
import pytest

from vagram_jax import envs
from vagram_jax.cli import configs
from vagram_jax.envs import base
from vagram_jax.run import loop

LENGTH = 7


class TimeStep(NamedTuple):
    """One of dm_env."""

    observation: dict
    reward: float | None = None
    discount: float | None = None
    is_last: bool = False

    def last(self):
        return self.is_last


class Walk:
    """A noisy walk with two actions in [0, 4] and [-1, 1].

    It ends after `LENGTH` steps, with the discount `last_discount`.
    """

    def __init__(self, last_discount, random):
        self._random, self._last_discount = random, last_discount

    def observation_spec(self):
        shapes = {"position": (), "moves": (2, 1)}
        return {k: types.SimpleNamespace(shape=v) for k, v in shapes.items()}

    def action_spec(self):
        return types.SimpleNamespace(
            shape=(2,),
            dtype=np.dtype(np.float64),
            minimum=np.array([0.0, -1.0]),
            maximum=np.array([4.0, 1.0]),
        )

    def reset(self):
        self._position, self._steps = self._random.normal(), 0
        return TimeStep(self._observe(np.zeros(2)))

    def step(self, action):
        self._steps += 1
        self._position += action[0] - 2 + self._random.uniform()
        is_last = self._steps == LENGTH
        discount = self._last_discount if is_last else 1.0
        return TimeStep(self._observe(action), action[1], discount, is_last)

    def _observe(self, moves):
        return collections.OrderedDict(
            position=self._position, moves=np.reshape(moves, (2, 1))
        )


@pytest.fixture
def fake(monkeypatch):
    """A module like `dm_control.suite` with two tasks."""
    discounts = {("walk", "to_death"): 0.0, ("walk", "in_time"): 1.0}

    def load(domain, task, task_kwargs):
        return Walk(discounts[domain, task], **task_kwargs)

    suite = types.ModuleType("dm_control.suite")
    suite.ALL_TASKS, suite.load = tuple(discounts), load
    monkeypatch.setitem(sys.modules, "dm_control.suite", suite)
    return suite


@pytest.mark.parametrize("name", ["to_death", "in_time"])
def test_a_discount_of_zero_at_the_end_is_a_termination(fake, name):
    terminates = name == "to_death"
    env = envs.make(f"dmc:walk-{name}")
    assert (env.observation_size, env.action_size, env.episode_length) == (3, 2, 1000)
    first = cases.start(env, 2)
    key = jax.random.key(1)
    _, run = cases.rollout(key, first, env=env, length=1000, num_steps=2 * LENGTH)
    data, valid, _ = jax.tree.map(np.asarray, run)
    assert valid.all()
    ends = np.arange(2 * LENGTH) % LENGTH == LENGTH - 1
    for lane in range(2):
        np.testing.assert_array_equal(data.terminated[:, lane], ends & terminates)
        np.testing.assert_array_equal(data.truncated[:, lane], ends & (not terminates))


def test_observations_are_flat_and_actions_scaled(fake):
    env = envs.make("dmc:walk-in_time")
    state = env.reset(jax.random.key(0))
    seed = int(state.pipeline_state.seed)
    plain = Walk(1.0, np.random.RandomState(seed))
    expected = plain.reset()
    after = env.step(state, np.array([0.5, -0.5], np.float32))
    assert float(state.obs[0]) == pytest.approx(expected.observation["position"])
    # From [-1, 1] to [0, 4] and to [-1, 1].
    expected = plain.step(np.array([3.0, -0.5]))
    position = expected.observation["position"]
    np.testing.assert_allclose(after.obs, [position, 3.0, -0.5], rtol=1e-6)
    assert float(after.reward) == -0.5


def test_a_config_trains_on_any_task(fake):
    env_config, algorithm, run_config = configs.load("dmc:walk-in_time")
    assert env_config.env == "dmc:walk-in_time"
    others = configs.load("gymnasium:Pendulum-v1")[1:]
    assert (algorithm, run_config) == others
    loop.check(run_config, algorithm, envs.from_config(env_config))


def test_bad_names_and_options_are_refused(fake):
    known = "no such environment; near: walk-in_time"
    cases.assert_refused("dmc:walk-on_time", known)
    cases.assert_refused("dmc:walk", "no such environment; (near|known): ")
    cases.assert_refused("dmc:walk-in_time", "physics='mjx'; neither", physics="mjx")


def test_without_dm_control_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control.suite", None)
    cases.assert_refused("dmc:cartpole-swingup", r'pip install "vagram_jax\[dmc\]"')


def test_a_mujoco_that_is_too_new_is_named(fake, monkeypatch):
    def load(domain, task, task_kwargs):
        raise AttributeError("'MjModel' object has no attribute 'flex_vertedge'")

    monkeypatch.setattr(fake, "load", load)
    monkeypatch.setattr(
        "importlib.metadata.version", {"dm_control": "1", "mujoco": "4"}.get
    )
    message = r"^env dmc:walk-in_time: AttributeError: .*'flex_vertedge'; dm_control 1 "
    message += "may be too old for mujoco 4; pip install "
    cases.assert_refused("dmc:walk-in_time", message + r'"vagram_jax\[dmc\]"')


@functools.cache
def suite():
    """dm_control's suite, if it works with this MuJoCo."""
    suite = pytest.importorskip("dm_control.suite")
    try:
        suite.load("cartpole", "swingup")
    except AttributeError as error:
        pytest.skip(f"dm_control and MuJoCo don't fit: {error}")
    return suite


@pytest.mark.parametrize(
    "name", ["cartpole-swingup", "finger-turn_hard", "ball_in_cup-catch", "lqr-lqr_2_1"]
)
def test_episodes_equal_those_of_dm_control(name):
    domain, _, task = name.partition("-")
    suite()
    env = envs.make(f"dmc:{name}")
    first = cases.start(env, 2)
    run = cases.rollout(jax.random.key(1), first, env=env, length=8, num_steps=12)
    data, valid, states = jax.tree.map(np.asarray, run[1])
    assert valid.all()
    history = states.pipeline_state
    for lane, t in np.ndindex(2, 12):
        if history.steps[t, lane] == 0:
            # The model of a task may be drawn, too; that of seed 0 is used throughout.
            random = np.random.RandomState(0)
            plain = suite().load(domain, task, task_kwargs={"random": random})
            random.seed(int(history.seed[t, lane]))
            observation = plain.reset().observation
        obs = np.concatenate([np.ravel(x) for x in observation.values()])
        np.testing.assert_array_equal(data.obs[t, lane], obs.astype(np.float32))
        spec = plain.action_spec()
        action = np.clip(np.float64(data.action[t, lane]), -1, 1)
        center, radius = (spec.maximum + spec.minimum), (spec.maximum - spec.minimum)
        after = plain.step(center / 2 + radius / 2 * action)
        observation = after.observation
        assert data.reward[t, lane] == np.float32(after.reward)


def test_the_real_library_refuses_unknown_names():
    suite()
    with pytest.raises(base.EnvError, match="near: cartpole-swingup"):
        envs.make("dmc:cartpole-swing_up")
