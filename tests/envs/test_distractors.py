"""Distractors: lively, bounded, the same in training and evaluation, without effect."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import probe_envs
import pytest

from vagram_jax import envs
from vagram_jax.envs import base, distractors

KINDS = list(distractors.KINDS)


@functools.cache
def pendulum(num_dims, kind, seed=0, scale=1.0):
    return distractors.Distractors(
        envs.make("pendulum"), num_dims, kind, seed=seed, scale=scale
    )


@functools.partial(jax.jit, static_argnames="env")
def rollout(key, actions, *, env):
    """Observations, rewards and done of `[T, action_dim]` actions."""

    def one_step(state, action):
        state = env.step(state, action)
        return state, (state.obs, state.reward, state.done)

    return jax.lax.scan(one_step, env.reset(key), actions)[1]


def iterate(kind, num_dims, seed, num_steps):
    """The values of the distractors alone, `[num_steps, num_dims]`, float32."""
    key_parameters, key_start = jax.random.key(seed), jax.random.key(seed + 1)
    parameters = distractors.KINDS[kind].parameters(key_parameters, num_dims)
    start = distractors.KINDS[kind].start(key_start, num_dims, jnp.float32)
    advance = functools.partial(distractors.KINDS[kind].advance, parameters)

    def one_step(values, _):
        values = advance(values, None)
        return values, values

    return np.asarray(jax.lax.scan(one_step, start, length=num_steps)[1])


ACTIONS = jax.random.uniform(jax.random.key(9), (40, 1), minval=-1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_is_the_environment_alone_bit_for_bit(kind):
    key = jax.random.key(3)
    wanted = rollout(key, ACTIONS, env=envs.make("pendulum"))
    obs, reward, done = rollout(key, ACTIONS, env=pendulum(5, kind))
    assert obs.shape == (40, 8)
    np.testing.assert_array_equal(obs[:, :3], wanted[0])
    np.testing.assert_array_equal(reward, wanted[1])
    np.testing.assert_array_equal(done, wanted[2])
    # And no action reaches the distractors.
    moved, _, _ = rollout(key, -ACTIONS, env=pendulum(5, kind))
    np.testing.assert_array_equal(moved[:, 3:], obs[:, 3:])
    assert (moved[:, :3] != obs[:, :3]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_share_the_dynamics(kind):
    make = functools.partial(distractors.Distractors, envs.make("pendulum"), 4, kind)
    train, evaluation, other = make(seed=5), make(seed=5), make(seed=6)
    for name, constants in train.parameters.items():
        np.testing.assert_array_equal(constants, evaluation.parameters[name])
        assert (constants != other.parameters[name]).any()
        with jax.enable_x64(True):
            np.testing.assert_array_equal(constants, make(seed=5).parameters[name])
    # The constants are numbers even when made inside a trace.
    made = []
    jax.eval_shape(lambda x: made.append(make(seed=5)) or x, 0.0)
    np.testing.assert_array_equal(
        made[0].reset(jax.random.key(0)).obs, train.reset(jax.random.key(0)).obs
    )
    starts = [train.reset(key).obs[3:] for key in jax.random.split(jax.random.key(0))]
    assert (starts[0] != starts[1]).all()


@pytest.mark.parametrize("num_dims", [1, 2, 3, 5, 10, 30])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_chaotic_stays_lively(num_dims, seed):
    # An episode's length for one dimension, where float32 closes a cycle in the end.
    late = iterate("chaotic", num_dims, seed, 1000 if num_dims == 1 else 3000)[-500:]
    assert np.abs(late).max() <= 1
    assert (late.std(0) > 0.05).all()
    # Not one state comes back within 500 steps, as on a cycle all would.
    distances = np.abs(late[:, None] - late[None]).max(-1)
    np.fill_diagonal(distances, 1)
    recurrent = (distances < 1e-6).any(1).mean()
    assert recurrent < (0.05 if num_dims == 1 else 0.005)


@pytest.mark.parametrize("kind", ["chaotic", "linear"])
@pytest.mark.parametrize("num_dims", [1, 10])
def test_deterministic_kinds_stay_within_bounds_for_long(kind, num_dims):
    values = iterate(kind, num_dims, 4, 100_000)
    assert np.abs(values).max() < (1 + 1e-6 if kind == "chaotic" else 10)
    # Neither fades: the second half is as wide as the first few steps.
    np.testing.assert_allclose(values[50_000:].std(), values[:1000].std(), rtol=0.2)


@pytest.mark.parametrize("num_dims", range(1, 13))
def test_linear_is_a_rotation_without_a_resting_direction(num_dims):
    matrix = distractors.KINDS["linear"].parameters(jax.random.key(0), num_dims)[
        "matrix"
    ]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(num_dims), atol=1e-6)
    assert np.abs(np.linalg.eigvals(matrix) - 1).min() > 1e-3


def switching_by_hand(parameters, values):
    """The authors' rule by explicit loops in float64."""
    size = len(values)
    moved = [
        sum(float(parameters["matrix"][i, j]) * values[j] for j in range(size))
        for i in range(size)
    ]
    result = []
    for i in range(size):
        angle = sum(
            float(parameters["frequencies"][i, j]) * moved[j] for j in range(size)
        )
        new = moved[i] + 0.1 * np.sin(angle)
        result.append(float(parameters["constants"][i]) if abs(new) > 20 else new)
    return result


def test_switching_follows_the_authors_rule(x64):
    kind = distractors.KINDS["switching"]
    parameters = kind.parameters(jax.random.key(2), 6)
    values = kind.start(jax.random.key(3), 6, jnp.float64)
    assert values.dtype == jnp.float64
    jumps = 0
    for _ in range(60):
        wanted = switching_by_hand(parameters, np.asarray(values))
        values = kind.advance(parameters, values, None)
        # Angles reach 1e4, so that rounding of 1e-16 becomes 1e-12.
        np.testing.assert_allclose(values, wanted, atol=1e-9)
        jumps += int((np.asarray(values) == parameters["constants"]).sum())
    assert jumps > 20  # The limit was crossed, in about 0.3 to 0.5 of the cases.


def test_switching_constants_have_the_authors_sizes():
    parameters = distractors.KINDS["switching"].parameters(jax.random.key(0), 60)
    np.testing.assert_allclose(parameters["matrix"].std(), 1, rtol=0.05)
    assert (parameters["frequencies"] >= 0).all()
    np.testing.assert_allclose(parameters["frequencies"].mean(), 100, rtol=0.1)
    starts = distractors.KINDS["switching"].start(jax.random.key(1), 2000, jnp.float32)
    np.testing.assert_allclose(starts.std(), 0.1, rtol=0.1)


def test_noise_is_standard_normal_and_new_each_step():
    actions = jnp.zeros((400, 1))
    obs, _, _ = rollout(jax.random.key(0), actions, env=pendulum(20, "noise"))
    noise = np.asarray(obs[:, 3:])
    # 8000 draws: five standard errors of mean, deviation and correlation.
    assert abs(noise.mean()) < 5 / np.sqrt(8000)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * 8000)
    assert abs((noise[1:] * noise[:-1]).mean()) < 5 / np.sqrt(8000)


def test_scale_multiplies_the_observation_alone():
    actions = jnp.zeros((10, 1))
    one, _, _ = rollout(jax.random.key(0), actions, env=pendulum(3, "chaotic"))
    big, _, _ = rollout(jax.random.key(0), actions, env=pendulum(3, "chaotic", 0, 4.0))
    np.testing.assert_array_equal(big[:, 3:], 4 * one[:, 3:])  # 4 is exact in binary.


def test_termination_judges_the_dimensions_of_the_environment():
    env = distractors.Distractors(probe_envs.Counter(ends_after=2), 3)
    obs, action = jnp.full(6, 9.0), jnp.zeros(1)
    assert not env.termination(obs, action, obs.at[5].set(2.0))
    assert env.termination(obs, action, obs.at[0].set(2.0))
    for dim in range(6):
        assert env.termination(obs, action, obs.at[dim].set(jnp.nan))
    assert distractors.Distractors(probe_envs.Foreign(), 3).termination is None


def test_unwrap_gives_the_environment_and_its_state():
    inner = probe_envs.Counter()
    env = distractors.Distractors(inner, 2)
    state = env.step(env.reset(jax.random.key(0)), jnp.zeros(1))
    found, found_state = env.unwrap(state)
    assert found is inner
    np.testing.assert_array_equal(found_state.obs, state.obs[:3])
    assert found_state.info["count"] == 1


def test_a_step_lasts_as_long_as_without_distractors():
    assert distractors.Distractors(envs.make("pendulum"), 2).dt == 0.05
    assert distractors.Distractors(probe_envs.Counter(), 2).dt is None


def test_state_of_another_package_is_kept_whole():
    env = distractors.Distractors(probe_envs.Foreign(), 2)
    assert env.episode_length is None
    state = env.step(env.reset(jax.random.key(0)), jnp.ones(1))
    assert isinstance(state.pipeline_state.inner, probe_envs.ForeignState)
    assert state.metrics == {"height": 1.0}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_dims": 0}, "num_dims=0; .*at least 1"),
        ({"num_dims": 2.0}, "num_dims=2.0"),
        (
            {"num_dims": 2, "kind": "random"},
            "accepted: chaotic, switching, noise, linear",
        ),
        ({"num_dims": 2, "scale": 0.0}, "scale=0.0"),
        ({"num_dims": 2, "scale": float("nan")}, "scale=nan"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(base.EnvError, match=message):
        distractors.Distractors(probe_envs.Counter(), **options)
