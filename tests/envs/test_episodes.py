"""Time limit, fresh starts and repeated actions, on environments that count."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

from vagram_jax import envs
from vagram_jax.envs import base, distractors, episodes


@functools.partial(jax.jit, static_argnames=("env", "num_steps"))
def rollout(key, episode_length, *, env, num_steps):
    """Transitions, `valid` and the states before each step, `[num_steps, ...]`."""

    def one_step(carry, _):
        key, state = carry
        key, key_action, key_step = jax.random.split(key, 3)
        action = jax.random.uniform(key_action, (env.action_size,), minval=-1.0)
        after, transition, valid = episodes.step(
            key_step, state, action, env=env, episode_length=episode_length
        )
        return (key, after), (transition, valid, state)

    key, key_reset = jax.random.split(key)
    start = (key, episodes.reset(key_reset, env=env))
    return jax.lax.scan(one_step, start, length=num_steps)[1]


def keys(num):
    return jax.random.split(jax.random.key(0), num)


@functools.cache
def counter(ends_after):
    return probe_envs.Counter(ends_after=ends_after)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
    lengths=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    ends_after=st.sampled_from([0, 4]),
)
def test_step_stores_the_true_successor(lengths, ends_after):
    run = functools.partial(rollout, env=counter(ends_after), num_steps=25)
    data, valid, states = jax.vmap(run)(keys(4), jnp.array(lengths))
    np.testing.assert_array_equal(data.next_obs[..., 0], data.obs[..., 0] + 1)
    # The numbers drawn at reset tell the episode: a successor is of the same one.
    np.testing.assert_array_equal(data.next_obs[..., 1:], data.obs[..., 1:])
    assert valid.all()
    for seed, limit in enumerate(lengths):
        period = min(limit, ends_after or limit)
        np.testing.assert_array_equal(data.obs[seed, :, 0], np.arange(25) % period)
        np.testing.assert_array_equal(states.steps[seed], np.arange(25) % period)
        is_last = np.arange(25) % period == period - 1
        terminates = bool(ends_after) and ends_after <= limit
        np.testing.assert_array_equal(data.terminated[seed], is_last & terminates)
        np.testing.assert_array_equal(data.truncated[seed], is_last & (not terminates))


def test_step_starts_each_episode_afresh():
    data, _, states = rollout(jax.random.key(1), 4, env=counter(0), num_steps=200)
    starts = np.asarray(data.obs[::4, 1:])
    assert len(np.unique(starts, axis=0)) == 50
    # All of the state is reset: what counts in info as well as its keys and subtrees.
    np.testing.assert_array_equal(states.env_state.info["count"], np.arange(200) % 4)
    np.testing.assert_array_equal(
        states.env_state.info["seen"]["x"], np.arange(200) % 4
    )
    info_keys = np.asarray(jax.random.key_data(states.env_state.info["key"]))
    assert len(np.unique(info_keys, axis=0)) == 200


@pytest.mark.parametrize("env", [counter(0), probe_envs.Foreign()])
def test_step_after_an_end_equals_a_reset(env):
    key_first, key_next = keys(2)
    state = episodes.reset(key_first, env=env)
    action = jnp.zeros(env.action_size)
    state, _, _ = episodes.step(key_next, state, action, env=env, episode_length=1)
    fresh = episodes.reset(key_next, env=env)
    for leaf, wanted in zip(
        jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True
    ):
        assert leaf.dtype == wanted.dtype
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, wanted = jax.random.key_data(leaf), jax.random.key_data(wanted)
        assert not leaf.weak_type
        np.testing.assert_array_equal(leaf, wanted)


@pytest.mark.parametrize(
    "done, truncation, at_limit, terminated, truncated",
    [
        (0, 0, False, False, False),
        (0, 0, True, False, True),
        (1, 0, False, True, False),
        (1, 0, True, True, False),
        (1, 1, False, False, True),
        (1, 1, True, False, True),
        (0, 1, False, False, True),
    ],
)
def test_step_keeps_termination_and_truncation_apart(
    done, truncation, at_limit, terminated, truncated
):
    env = probe_envs.Flagged()
    state = episodes.reset(jax.random.key(0), env=env)
    action = jnp.array([done, truncation]) - 0.5
    limit = 1 if at_limit else 2
    after, data, valid = episodes.step(
        jax.random.key(1), state, action, env=env, episode_length=limit
    )
    assert (bool(data.terminated), bool(data.truncated)) == (terminated, truncated)
    assert valid
    assert after.steps == (0 if terminated or truncated else 1)


@pytest.mark.parametrize("nan_in", ["obs", "reward"])
def test_step_with_nan_is_not_valid_and_starts_afresh(nan_in):
    env = probe_envs.Counter(nan_at=3, nan_in=nan_in)
    data, valid, states = rollout(jax.random.key(0), 100, env=env, num_steps=9)
    np.testing.assert_array_equal(valid, [True, True, False] * 3)
    np.testing.assert_array_equal(states.env_state.obs[:, 0], [0, 1, 2] * 3)
    assert np.isfinite(np.asarray(data.next_obs)[valid]).all()


def test_rollout_uses_no_key_twice(key_reuse):
    rollout(jax.random.key(0), 3, env=counter(0), num_steps=7)
    noisy = envs.make("pendulum", distractors=2, distractor_kind="noise")
    run = functools.partial(rollout, env=noisy, num_steps=7)
    jax.vmap(run)(keys(2), jnp.array([3, 4]))


def test_length_prefers_the_override():
    pendulum = envs.make("pendulum")
    assert episodes.length(pendulum) == 200
    assert episodes.length(pendulum, 50) == 50
    for override in (0, -1, 2.5):
        with pytest.raises(base.EnvError, match="env Counter: episode_length="):
            episodes.length(counter(0), override)


def test_paced_sums_rewards_and_stops_at_the_end():
    env = episodes.Paced(probe_envs.Counter(ends_after=5), action_repeat=3)
    state = env.reset(jax.random.key(0))
    state = env.step(state, jnp.zeros(1))
    assert (state.obs[0], state.reward, state.done) == (3, 3, 0)
    state = env.step(state, jnp.zeros(1))
    assert (state.obs[0], state.reward, state.done) == (5, 2, 1)


def test_paced_does_not_hide_nan():
    env = episodes.Paced(probe_envs.Counter(nan_at=2), action_repeat=4)
    state = env.step(env.reset(jax.random.key(0)), jnp.zeros(1))
    assert not base.all_finite(state.obs)


def test_paced_once_is_the_environment_itself():
    env = probe_envs.Counter(ends_after=4)
    paced = episodes.Paced(env, episode_length=3)
    assert (paced.episode_length, episodes.Paced(env).episode_length) == (3, None)
    wanted, got = env.reset(jax.random.key(0)), paced.reset(jax.random.key(0))
    for _ in range(4):
        for name in ("obs", "reward", "done"):
            np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
        wanted, got = env.step(wanted, jnp.zeros(1)), paced.step(got, jnp.zeros(1))


def test_paced_unwraps_to_the_environment_and_its_state():
    env = counter(0)
    paced = episodes.Paced(env, action_repeat=3)
    state = paced.step(paced.reset(jax.random.key(0)), jnp.zeros(1))
    inner, inner_state = paced.unwrap(state)
    assert inner is env
    # `info` of the counter tells how many steps it has had itself.
    assert inner_state.info["count"] == 3
    assert not hasattr(inner_state.pipeline_state, "obs")


def test_paced_lasts_as_long_as_what_it_repeats():
    assert episodes.Paced(envs.make("pendulum"), 3).dt == pytest.approx(0.15)
    assert episodes.Paced(counter(0), 3).dt is None


def test_unwrapped_goes_through_all_wrappers_to_the_innermost_state():
    env = envs.make("pendulum")
    paced = episodes.Paced(distractors.Distractors(env, 2), action_repeat=2)
    twice = distractors.Distractors(episodes.Paced(paced, action_repeat=1), 3)
    action, key = jnp.ones(1), jax.random.key(0)
    inner, found = base.unwrapped(twice, twice.step(twice.reset(key), action))
    assert inner is env
    state = env.reset(key)
    for _ in range(2):
        state = env.step(state, action)
    assert found.obs.shape == (3,)
    np.testing.assert_allclose(found.pipeline_state, state.pipeline_state, atol=1e-6)
    assert base.unwrapped(env, state) == (env, state)


@pytest.mark.parametrize(
    ("done", "cut", "wanted"),
    [
        (0.0, 0.0, (False, False)),
        (1.0, 0.0, (True, False)),
        (0.0, 1.0, (True, True)),
        (1.0, 1.0, (True, True)),
    ],
)
def test_ends_holds_wherever_a_time_limit_does(done, cut, wanted):
    env = probe_envs.Flagged()
    action = jnp.where(jnp.array([done, cut]) > 0, 1.0, -1.0)
    state = env.step(env.reset(jax.random.key(0)), action)
    assert episodes.ends(state) == wanted
    # Most environments have no such flag.
    assert episodes.ends(state.replace(info={})) == (bool(done), False)


def test_paced_repeats_inside_distractors():
    env = distractors.Distractors(
        episodes.Paced(counter(0), action_repeat=4), 2, seed=3
    )
    state = env.reset(jax.random.key(0))
    first = state.pipeline_state.values
    state = env.step(state, jnp.zeros(1))
    assert state.obs[0] == 4
    wanted = np.sin(env.parameters["matrix"] @ np.asarray(first))
    # One rounding of float32 sums and a sine apart.
    np.testing.assert_allclose(state.obs[3:], wanted, rtol=1e-5)


@pytest.mark.parametrize("repeat", [0, 1.5, True])
def test_paced_refuses_a_repeat(repeat):
    with pytest.raises(base.EnvError, match="action_repeat="):
        episodes.Paced(counter(0), action_repeat=repeat)
