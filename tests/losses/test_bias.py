"""The state that a deterministic model learns in a stochastic environment, per loss.

One state has a few equally probable outcomes. The model predicts a single state, the
minimum of the loss.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import table

from vagram_jax import losses
from vagram_jax.types import Transition

pytestmark = pytest.mark.usefixtures("x64")

# The grid on which losses are minimized, and its resolution.
GRID = np.linspace(-1.5, 1.5, 3001)
STEP = 1e-3
E = np.e


def outcomes(*next_obs):
    count = len(next_obs)
    states = np.array(next_obs)[:, None]
    return Transition(
        obs=np.zeros((count, 1)),
        action=np.zeros((count, 1)),
        reward=np.zeros(count),
        next_obs=states,
        terminated=np.zeros(count, bool),
        truncated=np.zeros(count, bool),
        weight=np.ones(count),
        next_value=np.exp(states[:, 0]),
    )


def exponential(state):
    return jnp.exp(state[0])


@functools.partial(jax.jit, static_argnames=("name", "value_fn"))
def losses_on_grid(batch, name, value_fn):
    def loss(state):
        count = batch.reward.shape[0]
        prediction = {
            "next_obs": jnp.full((count, 1), state),
            "reward": jnp.zeros(count),
            "log_var": jnp.zeros((count, 2)),
        }
        return losses.get(name).fn(prediction, batch, value_fn, predict=table)

    return jax.vmap(loss)(GRID)


def minimizer(name, batch, value_fn=exponential):
    return GRID[np.argmin(losses_on_grid(batch, name, value_fn))]


@pytest.mark.parametrize(
    "name", ["mse", "mse_normalized", "mle", "sample_weighted", "constant_weights"]
)
def test_losses_whose_weights_do_not_depend_on_the_outcome_learn_the_mean(name):
    assert abs(minimizer(name, outcomes(-1.0, 1.0))) <= STEP


@pytest.mark.parametrize(
    "name", ["vagram", "vagram_unbounded", "vagram_nll", "quadratic", "vaml"]
)
def test_value_losses_learn_the_mean_for_linear_values(name):
    actual = minimizer(name, outcomes(-1.0, 1.0), lambda s: 2.0 * s[0])
    assert abs(actual) <= STEP


@pytest.mark.parametrize("name", ["vagram", "vagram_unbounded", "vagram_nll"])
def test_vagram_learns_the_mean_weighted_by_the_squared_slopes(name):
    # The slope of exp is exp, so that the outcomes weigh e^-2 and e^2.
    actual = minimizer(name, outcomes(-1.0, 1.0))
    expected = (E**2 - E**-2) / (E**2 + E**-2)
    assert abs(actual - expected) <= STEP


def test_value_weighted_learns_the_mean_weighted_by_the_values():
    actual = minimizer("value_weighted", outcomes(-1.0, 1.0))
    assert abs(actual - (E - 1.0 / E) / (E + 1.0 / E)) <= STEP


@pytest.mark.parametrize("name", ["vaml", "value_equivalence", "muzero"])
def test_losses_of_values_learn_a_state_of_the_mean_value(name):
    # The mean of e^-1 and e is cosh(1): no outcome has that value, nor has the mean.
    actual = minimizer(name, outcomes(-1.0, 1.0))
    assert abs(actual - np.log(np.cosh(1.0))) <= STEP


def test_vaml_learns_an_outcome_and_not_the_mean_if_all_outcomes_have_one_value():
    assert (
        abs(abs(minimizer("vaml", outcomes(-1.0, 1.0), lambda s: s[0] ** 2)) - 1) < STEP
    )


def test_value_l1_learns_the_state_of_the_median_value():
    batch = outcomes(-1.0, -0.4, 1.0)
    assert abs(minimizer("value_l1", batch) + 0.4) <= STEP
    mean_value = np.log(np.mean(np.exp([-1.0, -0.4, 1.0])))
    assert abs(minimizer("vaml", batch) - mean_value) <= STEP


@pytest.mark.parametrize("name", ["quadratic", "quadratic_eigen"])
def test_second_order_losses_learn_the_minimum_of_their_expansion(name):
    # Slope and curvature of exp are exp: e (exp(s') + exp(s') e / 2) for the error e.
    states = np.array([-1.0, 1.0])
    error = GRID[:, None] - states
    expected = GRID[
        np.argmin(np.mean((np.exp(states) * (error + error**2 / 2)) ** 2, 1))
    ]
    assert abs(minimizer(name, outcomes(*states)) - expected) <= STEP
    assert abs(expected) > 0.5
