"""Time limits, automatic resets and repeated actions, on environments that count."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

from vagram_jax import envs
from vagram_jax.envs import base, distractors, episodes

NUM_STEPS = 60
LENGTHS = np.arange(1, 10)


@functools.partial(jax.jit, static_argnames=("env", "num_steps"))
def rollout(key, episode_length, *, env, num_steps=NUM_STEPS):
    """Transitions, `valid` and the states before each step, `[num_steps]`."""

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


@pytest.mark.parametrize("ends_after", [0, 4])
def test_step_stores_the_true_successor_and_resets_all_of_the_state(ends_after):
    run = functools.partial(rollout, env=counter(ends_after))
    data, valid, states = jax.vmap(run)(keys(len(LENGTHS)), LENGTHS)
    np.testing.assert_array_equal(data.next_obs[..., 0], data.obs[..., 0] + 1)
    # The numbers drawn at reset identify the episode: the successor has the same ones.
    np.testing.assert_array_equal(data.next_obs[..., 1:], data.obs[..., 1:])
    assert valid.all()
    periods = np.minimum(LENGTHS, ends_after or LENGTHS)[:, None]
    counts = np.arange(NUM_STEPS) % periods
    info = states.env_state.info
    for count in (data.obs[..., 0], states.steps, info["count"], info["seen"]["x"]):
        np.testing.assert_array_equal(count, counts)
    is_last = counts == periods - 1
    terminates = (ends_after <= LENGTHS)[:, None] & bool(ends_after)
    np.testing.assert_array_equal(data.terminated, is_last & terminates)
    np.testing.assert_array_equal(data.truncated, is_last & ~terminates)
    # Every episode has its own start, and no key appears twice.
    starts = np.asarray(data.obs[..., 1:])[counts == 0]
    assert len(np.unique(starts, axis=0)) == len(starts)
    info_keys = np.asarray(jax.random.key_data(info["key"])).reshape(-1, 2)
    assert len(np.unique(info_keys, axis=0)) == counts.size


@pytest.mark.parametrize("env", [counter(0), probe_envs.Foreign()])
def test_step_after_an_end_equals_a_reset(env):
    key_first, key_next = keys(2)
    reset = jax.jit(functools.partial(episodes.reset, env=env))
    step = functools.partial(episodes.step, env=env, episode_length=1)
    action = jnp.zeros(env.action_size)
    state, _, _ = jax.jit(step)(key_next, reset(key_first), action)
    fresh = reset(key_next)
    for leaf, expected in zip(
        jax.tree.leaves(state), jax.tree.leaves(fresh), strict=True
    ):
        assert leaf.dtype == expected.dtype
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, expected = jax.random.key_data(leaf), jax.random.key_data(expected)
        assert not leaf.weak_type
        np.testing.assert_array_equal(leaf, expected)


def test_step_distinguishes_termination_from_truncation():
    table = np.array(
        [
            # done, truncation, at limit, terminated, truncated
            [0, 0, 0, 0, 0],
            [0, 0, 1, 0, 1],
            [1, 0, 0, 1, 0],
            [1, 0, 1, 1, 0],
            [1, 1, 0, 0, 1],
            [1, 1, 1, 0, 1],
            [0, 1, 0, 0, 1],
        ]
    )
    env = probe_envs.Flagged()

    @jax.jit
    @jax.vmap
    def step(key, flags, at_limit):
        state = episodes.reset(key, env=env)
        return episodes.step(
            key, state, flags - 0.5, env=env, episode_length=2 - at_limit
        )

    after, data, valid = step(keys(len(table)), table[:, :2], table[:, 2])
    np.testing.assert_array_equal(data.terminated, table[:, 3])
    np.testing.assert_array_equal(data.truncated, table[:, 4])
    np.testing.assert_array_equal(after.steps, 1 - table[:, 3] - table[:, 4])
    assert valid.all()


def test_ends_reports_a_time_limit_only_if_the_episode_ends():
    state = counter(0).reset(jax.random.key(0))
    for done, truncation, expected in [
        (0.0, 0.0, (False, False)),
        (1.0, 0.0, (True, False)),
        (0.0, 1.0, (True, True)),
        (1.0, 1.0, (True, True)),
    ]:
        state = state.replace(
            done=jnp.float32(done), info={"truncation": jnp.float32(truncation)}
        )
        assert episodes.ends(state) == expected
        # Most environments have no such flag.
        assert episodes.ends(state.replace(info={})) == (bool(done), False)


@pytest.mark.parametrize("nan_in", ["obs", "reward"])
def test_a_step_with_nan_is_not_valid_and_resets(nan_in):
    env = probe_envs.Counter(nan_at=3, nan_in=nan_in)
    data, valid, states = rollout(jax.random.key(0), 100, env=env, num_steps=9)
    np.testing.assert_array_equal(valid, [True, True, False] * 3)
    np.testing.assert_array_equal(states.env_state.obs[:, 0], [0, 1, 2] * 3)
    assert np.isfinite(np.asarray(data.next_obs)[valid]).all()


def test_a_rollout_uses_no_key_twice(key_reuse):
    # The fixture raises if it does.
    key = jax.random.key(0)
    rollout(key, 3, env=counter(0), num_steps=7)
    noise = distractors.Distractors(envs.make("pendulum"), 2, "noise")
    run = functools.partial(rollout, env=noise, num_steps=7)
    jax.vmap(run)(keys(2), jnp.array([3, 4]))
    # The rollout has used the key, so the check covers what it draws.
    with pytest.raises(jax.errors.KeyReuseError):
        jax.random.uniform(key)


def test_length_prefers_the_override():
    pendulum = envs.make("pendulum")
    assert episodes.length(pendulum) == 200
    assert episodes.length(pendulum, 50) == 50
    for override in (0, -1, 2.5):
        with pytest.raises(base.EnvError, match="env Counter: episode_length="):
            episodes.length(counter(0), override)


def test_wrapper_sums_rewards_and_stops_at_the_end():
    env = episodes.EpisodeWrapper(probe_envs.Counter(ends_after=5), action_repeat=3)
    first = env.step(env.reset(jax.random.key(0)), jnp.zeros(1))
    assert (first.obs[0], first.reward, first.done) == (3, 3, 0)
    second = env.step(first, jnp.zeros(1))
    assert (second.obs[0], second.reward, second.done) == (5, 2, 1)


def test_wrapper_keeps_nan():
    env = episodes.EpisodeWrapper(probe_envs.Counter(nan_at=2), action_repeat=4)
    state = env.step(env.reset(jax.random.key(0)), jnp.zeros(1))
    assert not base.all_finite(state.obs)


def test_wrapper_without_repeats_equals_the_environment():
    env = probe_envs.Counter(ends_after=4)
    wrapped = episodes.EpisodeWrapper(env, episode_length=3)
    assert wrapped.episode_length == 3
    assert episodes.EpisodeWrapper(env).episode_length is None
    expected, state = env.reset(jax.random.key(0)), wrapped.reset(jax.random.key(0))
    step = jax.jit(wrapped.step)
    for _ in range(4):
        for name in ("obs", "reward", "done"):
            np.testing.assert_array_equal(getattr(state, name), getattr(expected, name))
        expected, state = env.step(expected, jnp.zeros(1)), step(state, jnp.zeros(1))


def test_wrapper_multiplies_dt_and_divides_the_episode_length():
    pendulum = episodes.EpisodeWrapper(envs.make("pendulum"), 3)
    assert pendulum.dt == pytest.approx(0.15)
    assert pendulum.episode_length == 67
    assert episodes.EpisodeWrapper(counter(0), 3).dt is None


def test_unwrapped_returns_the_innermost_environment_and_state():
    env = counter(0)
    inner = distractors.Distractors(episodes.EpisodeWrapper(env, 3), 2, "noise")
    outer = distractors.Distractors(episodes.EpisodeWrapper(inner, 2), 3, "noise")
    state = jax.jit(lambda key: outer.step(outer.reset(key), jnp.ones(1)))(keys(1)[0])
    actual, found_state = base.unwrapped(outer, state)
    assert actual is env
    assert found_state.info["count"] == 6  # counted by the counter itself
    assert found_state.obs.shape == (3,)
    assert base.unwrapped(env, found_state) == (env, found_state)


def test_distractors_move_once_per_repeated_action():
    env = distractors.Distractors(
        episodes.EpisodeWrapper(counter(0), action_repeat=4), 2, seed=3
    )
    state = env.reset(jax.random.key(0))
    first = state.pipeline_state.values
    state = env.step(state, jnp.zeros(1))
    assert state.obs[0] == 4
    expected = np.sin(env.parameters["matrix"] @ np.asarray(first))
    # They differ by the rounding of float32 sums and a sine.
    np.testing.assert_allclose(state.obs[3:], expected, rtol=1e-5)


@pytest.mark.parametrize("repeat", [0, 1.5, True])
def test_wrapper_refuses_a_repeat_that_is_no_count(repeat):
    with pytest.raises(base.EnvError, match="action_repeat="):
        episodes.EpisodeWrapper(counter(0), action_repeat=repeat)
