"""Distractors never rest, stay bounded, share their constants and affect nothing."""

from __future__ import annotations

import functools

import emitters
import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

from vagram_jax import envs
from vagram_jax.config import ConfigError
from vagram_jax.envs import base, distractors

KINDS = list(distractors.KINDS)
PENDULUM = envs.make("pendulum")
ACTIONS = jax.random.uniform(jax.random.key(9), (40, 1), minval=-1.0)


@functools.cache
def pendulum(num_dims, kind, scale=1.0):
    return distractors.Distractors(PENDULUM, num_dims, kind, scale=scale)


@functools.partial(emitters.jit, static_argnames="env")
def rollout(key, actions, *, env):
    """Observations, rewards and done of `[T, action_dim]` actions."""

    def one_step(state, action):
        state = env.step(state, action)
        return state, (state.obs, state.reward, state.done)

    return jax.lax.scan(one_step, env.reset(key), actions)[1]


def iterate(kind, num_dims, seed, num_steps):
    """The values of distractors alone, `[num_steps, num_dims]` float32."""
    kind = distractors.KINDS[kind]
    parameters = kind.parameters(jax.random.key(seed), num_dims)

    def one_step(values, _):
        values = kind.advance(parameters, values, None)
        return values, values

    start = kind.start(jax.random.key(seed + 1), num_dims, jnp.float32)
    return np.asarray(jax.lax.scan(one_step, start, length=num_steps)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_distractors_and_environment_do_not_affect_each_other(kind):
    key = jax.random.key(3)
    expected = rollout(key, ACTIONS, env=PENDULUM)
    obs, reward, done = rollout(key, ACTIONS, env=pendulum(5, kind))
    assert obs.shape == (40, 8)
    # The environment's part is bit for bit that of the environment alone.
    for actual, wanted in zip((obs[:, :3], reward, done), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
    other_obs, _, _ = rollout(key, -ACTIONS, env=pendulum(5, kind))
    np.testing.assert_array_equal(other_obs[:, 3:], obs[:, 3:])
    assert (other_obs[:, :3] != obs[:, :3]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_constants_depend_on_the_seed_alone(kind):
    make = functools.partial(distractors.Distractors, PENDULUM, 4, kind)
    train, evaluation, other = make(seed=5), make(seed=5), make(seed=6)
    with jax.enable_x64(True):
        double = make(seed=5)
    # Inside a trace the constants are numbers, too.
    traced = []
    jax.eval_shape(lambda x: traced.append(make(seed=5)) or x, 0.0)
    for name, constants in train.parameters.items():
        for same in (evaluation, double, traced[0]):
            np.testing.assert_array_equal(constants, same.parameters[name])
        assert (constants != other.parameters[name]).any()


def test_starts_depend_on_the_key():
    env = pendulum(5, "chaotic")
    first, second = (
        env.reset(key).obs[3:] for key in jax.random.split(jax.random.key(0))
    )
    assert (first != second).all()


@pytest.mark.parametrize(
    ("num_dims", "seed"), [(1, 0), (1, 1), (2, 0), (2, 1), (5, 0), (10, 1), (30, 0)]
)
def test_chaotic_distractors_never_rest(num_dims, seed):
    # One dimension enters a cycle in the end, because float32 is finite.
    late = iterate("chaotic", num_dims, seed, 1000 if num_dims == 1 else 3000)[-500:]
    assert np.abs(late).max() <= 1
    assert (late.std(0) > 0.05).all()
    # On a cycle all states would recur within 500 steps.
    distances = np.abs(late[:, None] - late[None]).max(-1)
    np.fill_diagonal(distances, 1)
    recurrent = (distances < 1e-6).any(1).mean()
    assert recurrent < (0.05 if num_dims == 1 else 0.005)


@pytest.mark.parametrize("kind", ["chaotic", "linear"])
@pytest.mark.parametrize("num_dims", [1, 10])
def test_deterministic_kinds_stay_bounded_for_long(kind, num_dims):
    values = iterate(kind, num_dims, 4, 100_000)
    assert np.abs(values).max() < (1 + 1e-6 if kind == "chaotic" else 10)
    # They don't decay: the second half is as wide as the first few steps.
    np.testing.assert_allclose(values[50_000:].std(), values[:1000].std(), rtol=0.2)


@pytest.mark.parametrize("num_dims", [1, 2, 5, 8])
def test_linear_is_a_rotation_without_a_constant_direction(num_dims):
    kind = distractors.KINDS["linear"]
    for seed in range(3):
        matrix = kind.parameters(jax.random.key(seed), num_dims)["matrix"]
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(num_dims), atol=1e-6)
        assert np.abs(np.linalg.eigvals(matrix) - 1).min() > 1e-3


def switching_by_hand(parameters, values):
    """The authors' rule with explicit loops in float64."""
    matrix, frequencies, constants = (
        np.float64(parameters[name]) for name in ("matrix", "frequencies", "constants")
    )
    dims, result = range(len(values)), []
    moved = [sum(matrix[i, j] * values[j] for j in dims) for i in dims]
    for i in dims:
        angle = sum(frequencies[i, j] * moved[j] for j in dims)
        new = moved[i] + 0.1 * np.sin(angle)
        result.append(constants[i] if abs(new) > 20 else new)
    return result


def test_switching_follows_the_authors_rule(x64):
    kind = distractors.KINDS["switching"]
    parameters = kind.parameters(jax.random.key(2), 6)
    values = kind.start(jax.random.key(3), 6, jnp.float64)
    assert values.dtype == jnp.float64
    advance = jax.jit(functools.partial(kind.advance, parameters, key=None))
    num_jumps = 0
    for _ in range(60):
        expected = switching_by_hand(parameters, np.asarray(values))
        values = advance(values)
        # Angles reach 1e4, so that rounding of 1e-16 becomes 1e-12.
        np.testing.assert_allclose(values, expected, atol=1e-9)
        num_jumps += int((np.asarray(values) == parameters["constants"]).sum())
    assert num_jumps > 20  # 0.3 to 0.5 of the components jump.


def test_switching_constants_have_the_authors_sizes():
    kind = distractors.KINDS["switching"]
    parameters = kind.parameters(jax.random.key(0), 60)
    np.testing.assert_allclose(parameters["matrix"].std(), 1, rtol=0.05)
    assert (parameters["frequencies"] >= 0).all()
    np.testing.assert_allclose(parameters["frequencies"].mean(), 100, rtol=0.1)
    starts = kind.start(jax.random.key(1), 2000, jnp.float32)
    np.testing.assert_allclose(starts.std(), 0.1, rtol=0.1)


def test_noise_is_standard_normal_and_independent():
    actions = jnp.zeros((400, 1))
    obs, _, _ = rollout(jax.random.key(0), actions, env=pendulum(20, "noise"))
    noise = np.asarray(obs[:, 3:])
    # 8000 draws: five standard errors of mean, deviation and correlation.
    assert abs(noise.mean()) < 5 / np.sqrt(8000)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * 8000)
    assert abs((noise[1:] * noise[:-1]).mean()) < 5 / np.sqrt(8000)


def test_scale_multiplies_only_the_observation():
    key = jax.random.key(3)
    one, _, _ = rollout(key, ACTIONS, env=pendulum(5, "chaotic"))
    scaled, _, _ = rollout(key, ACTIONS, env=pendulum(5, "chaotic", 4.0))
    np.testing.assert_array_equal(
        scaled[:, 3:], 4 * one[:, 3:]
    )  # 4 is exact in binary.


def test_termination_reads_the_dimensions_of_the_environment():
    env = distractors.Distractors(probe_envs.Counter(ends_after=2), 3, "linear")
    obs, action = jnp.full(6, 9.0), jnp.zeros(1)
    assert not env.termination(obs, action, obs.at[5].set(2.0))
    assert env.termination(obs, action, obs.at[0].set(2.0))
    broken = jnp.where(jnp.eye(6, dtype=bool), jnp.nan, obs)
    assert jax.vmap(env.termination, (None, None, 0))(obs, action, broken).all()
    without = distractors.Distractors(probe_envs.Foreign(), 3, "linear")
    assert without.termination is None


def test_attributes_and_state_of_the_environment_are_kept():
    assert pendulum(5, "linear").dt == 0.05
    env = distractors.Distractors(probe_envs.Foreign(), 2, "linear")
    assert env.episode_length is None
    assert env.dt is None
    state = env.step(env.reset(jax.random.key(0)), jnp.ones(1))
    assert isinstance(state.pipeline_state.inner, probe_envs.ForeignState)
    assert state.metrics == {"height": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_dims": 0}, "num_dims=0; .*at least 1"),
        ({"num_dims": 2.0}, "num_dims=2.0"),
        (
            {"num_dims": 2, "kind": "random"},
            r"known: chaotic, switching, noise, linear, or path\.module:NAME",
        ),
        ({"num_dims": 2, "scale": 0.0}, "scale=0.0"),
        ({"num_dims": 2, "scale": float("nan")}, "scale=nan"),
    ],
)
def test_distractors_refuse_unknown_kinds_and_numbers_out_of_range(options, message):
    with pytest.raises((base.EnvError, ConfigError), match=message):
        distractors.Distractors(probe_envs.Counter(), **options)
