"""Imagined rollouts: of an exact model they are real ones, and they end in time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax import dynamics, imagine, schedules

HORIZON = 5
CONFIG = dynamics.DynamicsConfig(hidden=(), num_members=3, num_elites=2)
ELITES = jnp.array([2, 0])


def linear_model(gains, shifts, obs_dim=1):
    """Members that add to a state `[obs, action] @ gain + shift`, each with its own.

    The reward is the first entry of the state before the step.
    """
    empty = dynamics.init_dynamics(
        jax.random.key(0), obs_dim=obs_dim, action_dim=1, config=CONFIG
    )
    kernel = np.zeros((3, obs_dim + 1, obs_dim + 1), np.float32)
    bias = np.zeros((3, obs_dim + 1), np.float32)
    kernel[:, 0, obs_dim] = 1.0
    for member in range(3):
        kernel[member, :, :obs_dim] = gains[member]
        bias[member, :obs_dim] = shifts[member]
    network = {"params": {"mlp": {"Dense_0": {"kernel": kernel, "bias": bias}}}}
    return empty.replace(network=network)


def counting_model(shifts=(1.0, 1.0, 1.0)):
    return linear_model([np.zeros((2, 1))] * 3, shifts)


def swing(key, obs):
    """A policy without noise."""
    del key
    return jnp.tanh(obs[..., :1])


def noise(key, obs):
    return jax.random.uniform(key, (*obs.shape[:-1], 1), minval=-1.0)


def never(obs, action, next_obs):
    return jnp.bool_(False)


def above_two(obs, action, next_obs):
    return next_obs[0] >= 2.0


@functools.partial(jax.jit, static_argnames=("act", "termination", "clip"))
def run(
    params,
    start,
    *,
    act=swing,
    termination=never,
    seed=0,
    horizon=5,
    clip=False,
    max_disagreement=None,
):
    return imagine.imagine(
        jax.random.key(seed),
        params,
        ELITES,
        jnp.asarray(start, jnp.float32),
        act=act,
        termination=termination,
        horizon=horizon,
        config=imagine.ImagineConfig(
            horizon=schedules.constant(HORIZON),
            clip=clip,
            max_disagreement=max_disagreement,
        ),
    )


def column(*numbers):
    return np.float32(numbers)[:, None]


def test_imagine_of_an_exact_model_equals_the_real_steps():
    gain = np.float32([[-0.1, 0.3], [-0.3, -0.1], [0.2, 0.5]])
    start = np.float32([[1.0, 0.0], [-0.5, 2.0], [0.0, 0.1]])
    params = linear_model([gain] * 3, [0.05] * 3, obs_dim=2)
    rollouts, valid = run(params, start)
    obs = np.float64(start)
    for t in range(HORIZON):
        action = np.tanh(obs[:, :1])
        next_obs = obs + np.concatenate([obs, action], 1) @ gain + 0.05
        # float32: a few roundings of numbers of about one.
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        close(rollouts.obs[t], obs)
        close(rollouts.action[t], action)
        close(rollouts.reward[t], obs[:, 0])
        close(rollouts.next_obs[t], next_obs)
        obs = next_obs
    assert valid.all()


def test_imagine_starts_each_step_at_the_last_successor():
    rollouts, _ = run(counting_model(), column(0.0, -7.0), act=noise)
    np.testing.assert_array_equal(rollouts.obs[1:], rollouts.next_obs[:-1])


def test_imagine_stops_after_a_termination():
    # Terminates at the second step, at once, never within the horizon.
    starts = column(0.0, 1.0, -10.0)
    rollouts, valid = run(counting_model(), starts, termination=above_two)
    np.testing.assert_array_equal(valid.sum(axis=0), [2, 1, 5])
    np.testing.assert_array_equal(valid[:, 0], [True, True, False, False, False])
    np.testing.assert_array_equal(rollouts.terminated[:2, 0], [False, True])


def test_imagine_passes_the_whole_step_to_the_termination_function():
    def asks(obs, action, next_obs):
        return (obs[0] == 1.0) & (action[0] == jnp.tanh(1.0)) & (next_obs[0] == 2.0)

    rollouts, valid = run(counting_model(), column(0.0), termination=asks)
    np.testing.assert_array_equal(valid[:, 0], [True, True, False, False, False])
    np.testing.assert_array_equal(rollouts.terminated[:2, 0], [False, True])


def test_imagine_marks_nothing_as_truncated():
    rollouts, _ = run(counting_model(), column(0.0, 1.0), termination=above_two)
    assert not rollouts.truncated.any()


@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_imagine_is_valid_within_the_horizon_only(horizon):
    _, valid = run(counting_model(), column(0.0, 1.0), act=noise, horizon=horizon)
    np.testing.assert_array_equal(
        valid, np.arange(HORIZON)[:, None] < np.full(2, horizon)
    )


def test_imagine_has_the_same_first_step_for_every_horizon():
    short, _ = run(counting_model(), column(0.0, 1.0), act=noise, horizon=1)
    long, _ = run(counting_model(), column(0.0, 1.0), act=noise, horizon=5)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), short, long)


def test_imagine_with_another_horizon_is_the_same_program():
    traces = []

    def act(key, obs):
        traces.append(None)
        return noise(key, obs)

    run(counting_model(), column(0.0), act=act, horizon=1)
    count = len(traces)
    run(counting_model(), column(0.0), act=act, horizon=4)
    assert len(traces) == count


def test_imagine_stops_where_a_number_is_not_finite():
    # Grows by 1e19 a step: 1 is infinite after the third step, 1e38 after the first.
    params = linear_model([np.float32([[1e19], [0.0]])] * 3, [0.0] * 3)
    rollouts, valid = run(params, column(1.0, 1e38, 0.0))
    np.testing.assert_array_equal(valid.sum(axis=0), [2, 0, 5])
    assert all(
        np.isfinite(x[valid]).all()
        for x in (rollouts.obs, rollouts.action, rollouts.reward, rollouts.next_obs)
    )


def test_imagine_stops_where_the_reward_alone_is_nan():
    params = counting_model()
    layer = params.network["params"]["mlp"]["Dense_0"]
    layer["kernel"][:, 0, 1] = 1e38
    # The reward is 1e38 times the state: infinite from the fourth state, 4, on.
    _, valid = run(params, column(1.0))
    np.testing.assert_array_equal(valid[:, 0], [True, True, True, False, False])


def test_imagine_draws_a_new_elite_for_each_step_and_row():
    shifts = (1.0, 100.0, 10.0)  # the second is no elite
    rollouts, _ = run(counting_model(shifts), np.zeros((50, 1)))
    steps = np.asarray(rollouts.next_obs - rollouts.obs)[..., 0]
    assert set(np.unique(steps)) == {1.0, 10.0}
    assert len(np.unique(steps, axis=0)) == HORIZON
    # 50 rows with 32 ways: more than half of these are seen.
    assert len(np.unique(steps, axis=1).T) > 16


def test_imagine_draws_different_actions_for_each_key_and_step():
    first, second = (
        run(counting_model(), np.zeros((4, 1)), act=noise, seed=seed)[0].action
        for seed in (0, 1)
    )
    assert len(np.unique([first, second])) == 2 * HORIZON * 4


def within(params, low, high):
    """The model with bounds of its data."""
    bounds = {"obs_low": jnp.array([low]), "obs_high": jnp.array([high])}
    return params.replace(normalizer=params.normalizer.replace(**bounds))


def test_imagine_clips_states_to_the_range_of_the_data():
    params = within(counting_model(), -1.0, 2.0)
    rollouts, valid = run(params, column(0.0, 5.0), clip=True)
    np.testing.assert_array_equal(rollouts.obs[:, 0, 0], [0, 1, 2, 2, 2])
    np.testing.assert_array_equal(rollouts.next_obs[:, 1, 0], [2] * 5)
    assert valid.all()


def test_imagine_asks_for_a_termination_at_the_clipped_state():
    params = within(counting_model(), -9.0, 1.5)
    _, valid = run(params, column(0.0), clip=True, termination=above_two)
    assert valid.all()


def test_imagine_clips_only_on_request():
    rollouts, _ = run(within(counting_model(), -1.0, 2.0), column(0.0))
    np.testing.assert_array_equal(rollouts.obs[:, 0, 0], [0, 1, 2, 3, 4])


def test_imagine_stops_where_the_members_disagree_too_much():
    # Elites keep a state or triple it, so that they differ by twice the state.
    gains = [np.zeros((2, 1)), np.zeros((2, 1)), np.float32([[2.0], [0.0]])]
    starts = np.concatenate([np.full((99, 1), 1.0), [[100.0]]])
    params = linear_model(gains, [0.0] * 3)
    rollouts, valid = run(params, starts, max_disagreement=2.0)
    # The limit is twice the disagreement at 1, so that a state of 3 is beyond it.
    np.testing.assert_array_equal(valid, np.abs(rollouts.obs[..., 0]) < 2.0)
    assert 0 < valid[1:, :99].sum() < valid[1:, :99].size


def test_imagine_uses_each_key_once(key_reuse):
    _, valid = run(counting_model(), column(0.0, 1.0), act=noise)
    assert valid.all()


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [(schedules.constant(3), 3), (schedules.Schedule(1, 15, 20, 100), 15)],
)
def test_max_horizon_is_the_longest_of_the_schedule(horizon, expected):
    assert imagine.max_horizon(imagine.ImagineConfig(horizon=horizon)) == expected
