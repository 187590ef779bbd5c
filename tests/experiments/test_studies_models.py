"""The studies without training runs: changing values and loss surfaces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import changing_values, loss_surface
from vagram_jax import dynamics, losses, replay, sac
from vagram_jax.analysis.study import Study
from vagram_jax.analysis.verdicts import BETTER
from vagram_jax.types import Transition

SAC = sac.SACConfig(hidden=())


def random_transitions(key, count, obs_dim=2):
    key_obs, key_action = jax.random.split(key)
    obs = jax.random.normal(key_obs, (count, obs_dim))
    action = jax.random.uniform(key_action, (count, 1), minval=-1.0)
    return Transition(
        obs=obs,
        action=action,
        reward=jnp.sum(obs, axis=-1),
        next_obs=0.9 * obs + action,
        terminated=jnp.zeros(count, bool),
        truncated=jnp.zeros(count, bool),
    )


def agents_of(num_values):
    keys = jax.random.split(jax.random.key(5), num_values)
    return jax.vmap(lambda k: sac.init(k, obs_dim=2, action_dim=1, config=SAC))(keys)


def two_values(state):
    return jnp.stack([2.0 * state[0], state[0] - 3.0 * state[1]])


def test_value_error_is_the_squared_error_divided_by_the_variance():
    batch = random_transitions(jax.random.key(0), 50)
    config = dynamics.DynamicsConfig(hidden=(), num_members=2, num_elites=1)
    params = dynamics.init_dynamics(
        jax.random.key(1), obs_dim=2, action_dim=1, config=config
    )
    predict = jax.jit(dynamics.predict)
    predicted = np.asarray(predict(params, batch.obs, batch.action).next_obs)
    slopes = np.array([[2.0, 0.0], [1.0, -3.0]])
    real = np.asarray(batch.next_obs, np.float64) @ slopes.T
    difference = predicted.astype(np.float64) @ slopes.T - real
    expected = np.mean(difference**2) / np.mean(np.var(real, axis=0))
    value_error = jax.jit(
        functools.partial(changing_values.value_error, value_fn=two_values)
    )
    error = value_error(params, batch)
    assert float(error) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def full_buffer():
    data = random_transitions(jax.random.key(2), 100)
    size = jnp.int32(100)
    return replay.ReplayState(data=data, insert_at=jnp.int32(0), size=size)


@pytest.fixture(scope="module")
def tracked(full_buffer):
    """Errors of a model fitted to three value functions, and to one three times."""
    moving = agents_of(3)
    constant = jax.tree.map(lambda x: jnp.repeat(x[:1], 3, axis=0), moving)
    program = functools.partial(
        changing_values.value_errors,
        loss=losses.get("vagram"),
        hidden=(4,),
        sac_config=SAC,
        epochs=5,
    )
    # Without optimizations it compiles in half the time, and runs for milliseconds.
    options = {"xla_backend_optimization_level": 0}
    program = jax.jit(program, compiler_options=options)
    start = jnp.uint32(0), full_buffer
    return np.asarray(program(*start, moving)), np.asarray(program(*start, constant))


def test_value_errors_are_those_before_and_after_each_fit(tracked):
    moving, constant = tracked
    assert moving.shape == (3, 2)
    np.testing.assert_array_equal(moving[0], constant[0])  # the same value function
    # With a constant value function a fit starts from the error of the last one.
    np.testing.assert_allclose(constant[1:, 0], constant[:-1, 1], rtol=1e-6)
    assert not np.allclose(moving[1:, 0], moving[:-1, 1], rtol=1e-3)
    assert constant[0, 1] != constant[0, 0]


def test_split_holds_out_a_fifth_of_the_rows(full_buffer):
    train, held_out = changing_values._split(jax.random.key(3), full_buffer)
    assert train.capacity == int(train.size) == 80
    every, kept, others = (
        [tuple(row) for row in np.asarray(data.obs)]
        for data in (full_buffer.data, train.data, held_out)
    )
    assert sorted(kept + others) == sorted(every)
    order = [every.index(row) for row in kept]
    assert order == sorted(order)  # the order of time


@pytest.fixture
def errors():
    """Errors of eight seeds: VAML's are far higher where its value function moved."""
    level = {"vagram": 0.1, "vaml": 2.0, "mse_normalized": 0.5}
    spread = np.linspace(0.99, 1.01, 8)
    actual = {}
    for condition in changing_values._CONDITIONS:
        for loss in changing_values._LOSSES:
            actual[condition, "moving", loss] = level.get(loss, 3.0) * spread
            actual[condition, "frozen", loss] = actual[condition, "moving", loss]
        actual[condition, "frozen", "vaml"] = 0.05 * spread
    return actual


def study_of(errors):
    results = changing_values.as_results(errors, np.arange(7, 15))
    return Study(None, changing_values.DESIGN, results)


def test_conclude_compares_moving_with_frozen_values(errors):
    sentences = changing_values.conclude(study_of(errors))
    assert len(sentences) == 2 * len(changing_values._CONDITIONS)
    assert sentences[0] == (
        "full: the error of vaml with moving values (2.00 [1.99, 2.01]) is higher than "
        "its error with frozen values (0.050 [0.050, 0.050])."
    )
    assert "of vagram with moving values" in sentences[1]
    assert "is not significantly different from its error with" in sentences[1]


def test_errors_become_a_study_in_which_lower_is_better(errors):
    errors["small", "moving", "mle"][0] = 1e6
    study = study_of(errors)
    comparison = study.compare("vagram", condition="full", values="moving")
    assert (comparison.baseline, comparison.outcome) == ("mse_normalized", BETTER)
    assert study.at(condition="small", values="moving")["mle"].diverged.sum() == 1
    rows = [row for row in study.finals() if row["condition"] == "full"]
    rows = [row for row in rows if (row["values"], row["loss"]) == ("moving", "vagram")]
    assert [row["seed"] for row in rows] == list(range(7, 15))
    assert [row["error"] for row in rows] == list(errors["full", "moving", "vagram"])


def bowl(state):
    """A value function with elliptic level sets around the origin."""
    return -(4.0 * state[0] ** 2 + state[1] ** 2)


@pytest.fixture(scope="module")
def surface():
    one = random_transitions(jax.random.key(0), 1)
    batch = one.replace(next_obs=jnp.array([[0.5, 4.0]]))
    return loss_surface.surface(bowl, batch, 81)


def test_surfaces_are_the_losses_in_closed_form(surface):
    angle, velocity = np.meshgrid(surface.angles, surface.velocities, indexing="ij")
    error = angle - 0.5, velocity - 4.0
    slope = -8.0 * 0.5, -2.0 * 4.0
    value = -(4.0 * angle**2 + velocity**2)
    expected = {
        "mse": error[0] ** 2 + error[1] ** 2,
        "vagram": (slope[0] * error[0]) ** 2 + (slope[1] * error[1]) ** 2,
        "vagram_unbounded": (slope[0] * error[0] + slope[1] * error[1]) ** 2,
        "vaml": (value + 17.0) ** 2,
        "quadratic": (slope[0] * error[0] - 4.0 * error[0] ** 2) ** 2
        + (slope[1] * error[1] - error[1] ** 2) ** 2,
    }
    assert set(expected) == set(surface.losses)
    np.testing.assert_allclose(surface.value, value, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(surface.gradient_weights, np.square(slope), rtol=1e-5)
    for name, loss in expected.items():
        actual = surface.losses[name]
        np.testing.assert_allclose(actual, loss, rtol=1e-3, atol=1e-2, err_msg=name)


def test_table_counts_the_regions_in_which_a_loss_is_low(surface):
    rows = {row["loss"]: row for row in loss_surface.table(surface)}
    assert rows["vagram"]["pieces"] == rows["mse"]["pieces"] == 1
    # VAML doesn't see errors along the level set, which reaches across the plane.
    assert rows["vaml"]["furthest_velocity"] > 0.5
    assert rows["vagram"]["furthest_velocity"] < 0.3
    assert rows["vaml"]["value_error"] < rows["mse"]["value_error"]


def test_reference_lies_on_the_way_up(surface):
    data = random_transitions(jax.random.key(1), 200)
    actual = loss_surface.reference(data, bowl)
    assert actual.obs.shape == (1, 2)
    assert 0.3 < abs(float(actual.next_obs[0, 0])) < 1.5
    sentences = loss_surface.conclude(surface)
    assert len(sentences) == 1 + len(surface.losses)
    assert "counts an error of 1 rad as much as 0.5 rad/s" in sentences[0]
