"""Environments of this package as those of Gymnasium."""

# ruff: noqa: D102  (the methods are the protocol's, described there)

import sys
import warnings

import jax
import numpy as np
import pytest
from gymnasium import error
from gymnasium.utils import env_checker

from vagram_jax import make, to_gymnasium
from vagram_jax.envs import base, episodes


class Cliff:
    """A position that grows by the action. It ends at 2; beyond 3 it is NaN."""

    observation_size, action_size, episode_length = 1, 1, 5
    recorded_metrics = ("height",)

    def reset(self, key):
        return self._state(jax.random.uniform(key, (1,)))

    def step(self, state, action):
        return self._state(state.obs + action)

    def _state(self, obs):
        position = obs[0]
        return base.State(
            pipeline_state=(),
            obs=jax.numpy.where(position > 3, jax.numpy.nan, obs),
            reward=position,
            done=(position >= 2).astype(float),
            metrics={"height": -position, "other": position},
            info={},
        )


class Limited(Cliff):
    """Cut by its own time limit at the third step."""

    def _state(self, obs):
        return super()._state(obs).replace(info={"truncation": obs[0] * 0})

    def step(self, state, action):
        after = super().step(state, action)
        at_limit = (state.obs[0] > 0.5).astype(float)
        return after.replace(done=at_limit, info={"truncation": at_limit})


def start(env, position):
    """Resets until the first position is in the lower or the upper half."""
    for seed in range(100):
        obs, _ = env.reset(seed=seed)
        if (obs[0] < 0.5) == (position == "low"):
            return obs
    raise AssertionError("no such start")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pendulum", {"distractors": 3}),
        ("cartpole_swingup", {"action_repeat": 2}),
        ("inverted_pendulum", {}),
    ],
)
def test_gymnasium_finds_nothing_wrong(name, options):
    env = to_gymnasium(make(name, **options))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env_checker.check_env(env)
    expected = ("A Box observation space m", "Not able to test alternative render")
    texts = [str(each.message) for each in caught]
    assert [text for text in texts if not any(x in text for x in expected)] == []


def test_the_numbers_are_those_of_the_environment():
    own = make("pendulum", distractors=2)
    env = to_gymnasium(own)
    assert env.observation_space.shape == (5,)
    assert env.action_space.shape == (1,)
    first, info = env.reset(seed=7)
    assert info == {}
    key = jax.random.key(int(np.random.default_rng(7).integers(2**32)))
    state = episodes.reset(key, env=own)
    np.testing.assert_allclose(first, state.env_state.obs, rtol=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, size=1)
        obs, reward, terminated, truncated, _ = env.step(action)
        inner = own.step(state.env_state, jax.numpy.asarray(action, np.float32))
        state = state.replace(env_state=inner)
        np.testing.assert_allclose(obs, inner.obs, rtol=1e-5, atol=1e-6)
        assert reward == pytest.approx(float(inner.reward), rel=1e-5)
        assert (terminated, truncated) == (False, False)


def test_a_seed_decides_its_episode_and_those_that_follow():
    env = to_gymnasium(Cliff())
    firsts = [[env.reset(seed=3)[0], env.reset()[0], env.reset()[0]] for _ in range(2)]
    np.testing.assert_array_equal(*firsts)
    assert len({float(obs[0]) for obs in firsts[0]}) == 3
    assert env.reset(seed=4)[0] != firsts[0][0]


@pytest.mark.parametrize(("max_steps", "expected"), [(0, 5), (3, 3)])
def test_an_episode_is_truncated_at_its_length(max_steps, expected):
    env = to_gymnasium(Cliff(), max_steps)
    env.reset(seed=0)
    steps = [env.step(np.zeros(1))[2:4] for _ in range(expected)]
    assert steps == [(False, False)] * (expected - 1) + [(False, True)]


def test_a_termination_isn_t_a_truncation_even_at_the_time_limit():
    env = to_gymnasium(Cliff(), 2)
    start(env, "high")
    assert env.step(np.ones(1))[2:4] == (False, False)
    obs, reward, terminated, truncated, info = env.step(np.ones(1))
    assert (terminated, truncated, info["finite"]) == (True, False, True)
    assert obs[0] > 2  # the true successor
    assert info == {"height": -obs[0], "finite": True}
    assert reward == obs[0]


def test_a_time_limit_of_the_environment_is_a_truncation():
    env = to_gymnasium(Limited())
    start(env, "high")
    assert env.step(np.zeros(1))[2:4] == (False, True)
    start(env, "low")
    assert env.step(np.zeros(1))[2:4] == (False, False)


def test_a_number_that_isn_t_finite_ends_the_episode():
    class Leap(Cliff):
        def step(self, state, action):
            return self._state(state.obs + 9 * action)

    env = to_gymnasium(Leap())
    env.reset(seed=0)
    obs, _, terminated, truncated, info = env.step(np.ones(1))
    assert np.isnan(obs)
    assert terminated or truncated
    assert not info["finite"]


def test_steps_outside_of_an_episode_are_refused():
    env = to_gymnasium(Cliff(), 1)
    with pytest.raises(error.ResetNeeded, match="call reset first"):
        env.step(np.zeros(1))
    env.reset(seed=0)
    env.step(np.zeros(1))
    with pytest.raises(error.ResetNeeded, match="the episode is over"):
        env.step(np.zeros(1))


@pytest.mark.parametrize("action", [np.zeros(2), np.array([1.1]), [np.nan], 0.5])
def test_bad_actions_are_refused_in_one_line(action):
    env = to_gymnasium(Cliff())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"step: action=.*; shape \(1,\), each in"):
        env.step(action)


def test_what_can_t_be_wrapped_is_refused(monkeypatch):
    class Endless(Cliff):
        episode_length = None

    with pytest.raises(base.EnvError, match="env Endless: episode_length=None; a wh"):
        to_gymnasium(Endless())
    assert to_gymnasium(Endless(), 4) is not None
    with pytest.raises(base.EnvError, match="it is a class; an instance is accepted"):
        to_gymnasium(Cliff)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(base.EnvError, match=r'pip install "vagram_jax\[gymnasium\]"'):
        to_gymnasium(Cliff())
