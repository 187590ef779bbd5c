"""The losses that compare values: closed forms, and the targets of `muzero`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import (
    EXACT,
    grad_of,
    loss_of,
    make_case,
    make_value,
    table,
    without_reward,
)

from vagram_jax import losses
from vagram_jax.losses import values
from vagram_jax.types import Transition

pytestmark = pytest.mark.usefixtures("x64")

# Four linear value functions.
ROWS = np.random.default_rng(0).normal(size=(4, 3))


def linear(state):
    return ROWS @ state


def linear_errors(prediction, batch):
    """The errors of the linear values, `[E, B, K]`."""
    return (prediction["next_obs"] - batch["next_obs"]) @ ROWS.T


def test_value_equivalence_is_vaml_times_the_number_of_values():
    batch, prediction = make_case(1)
    value, _ = make_value(2, num_values=4)
    states = without_reward(prediction, batch)
    actual = loss_of("value_equivalence", states, batch, value)
    expected = 4 * loss_of("vaml", states, batch, value)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_value_equivalence_leaves_the_reward_term_as_it_is():
    batch, prediction = make_case(1)
    states = without_reward(prediction, batch)
    actual = loss_of("value_equivalence", prediction, batch, linear)
    actual -= loss_of("value_equivalence", states, batch, linear)
    expected = np.mean((prediction["reward"] - batch["reward"]) ** 2)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_value_equivalence_is_a_sum_of_squares_for_linear_values():
    batch, prediction = make_case(3)
    states = without_reward(prediction, batch)
    expected = np.mean(np.sum(linear_errors(states, batch) ** 2, axis=-1))
    actual = loss_of("value_equivalence", states, batch, linear)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_value_l1_is_the_mean_absolute_error_for_linear_values():
    batch, prediction = make_case(4)
    states = without_reward(prediction, batch)
    actual = loss_of("value_l1", states, batch, linear)
    expected = np.mean(np.abs(linear_errors(states, batch)))
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_value_l1_has_the_sign_of_the_error_as_its_slope():
    batch, prediction = make_case(5)
    actual = grad_of("value_l1", prediction, batch, linear)["next_obs"]
    signs = np.sign(linear_errors(prediction, batch))
    # A mean over two members, six rows and four values.
    np.testing.assert_allclose(actual, signs @ ROWS / 48, rtol=EXACT, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_value_l1_is_bounded_by_the_root_of_vaml(seed):
    batch, prediction = make_case(seed)
    value, _ = make_value(seed)
    states = without_reward(prediction, batch)
    bound = np.sqrt(loss_of("vaml", states, batch, value))
    actual = loss_of("value_l1", states, batch, value)
    assert 0.5 * bound < actual <= bound


def test_muzero_with_the_value_of_the_successor_as_target_is_vaml():
    batch, prediction = make_case(6)
    value, plain = make_value(7, num_values=1)
    batch["next_value"] = np.array([plain(state)[0] for state in batch["next_obs"]])
    np.testing.assert_allclose(
        loss_of("muzero", prediction, batch, value),
        loss_of("vaml", prediction, batch, value),
        rtol=EXACT,
    )


def test_muzero_takes_a_target_for_each_value_function():
    batch, prediction = make_case(8)
    actual = loss_of(
        "muzero", prediction, batch, linear, prepared=batch["next_obs"] @ ROWS.T
    )
    expected = loss_of("vaml", prediction, batch, linear)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


def test_muzero_is_a_squared_difference_to_the_target_for_linear_values():
    batch, prediction = make_case(9)
    values = prediction["next_obs"] @ ROWS.T
    square = (values - batch["next_value"][:, None]) ** 2
    expected = np.mean(square) + np.mean((prediction["reward"] - batch["reward"]) ** 2)
    actual = loss_of("muzero", prediction, batch, linear)
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


# The states before and after each row of a full ring, whose oldest row is the fourth.
# One episode is cut after the fifth row, at 3, and one ends after the seventh, at 5.
RING = np.array(
    [[6, 7], [7, 2.5], [2.5, 1.5], [1, 2], [2, 3], [9, 4], [4, 5], [8, 6]], float
)
REWARDS = np.array([6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0, 5.0])


def make_ring(**changed):
    fields = {
        "obs": RING[:, :1],
        "action": np.zeros((8, 1)),
        "reward": REWARDS,
        "next_obs": RING[:, 1:],
        "terminated": np.arange(8) == 6,
        "truncated": np.arange(8) == 4,
    }
    return Transition(**(fields | changed))


def tenfold(state):
    return jnp.stack([10.0 * state[0], -state[0]])


@jax.jit
def bootstrapped(batch, where=None):
    return values.next_values(batch, tenfold, where=where, discount=0.5)


def test_next_values_bootstrap_from_the_row_that_follows():
    expected = [
        [7 + 0.5 * 25, 7 - 0.5 * 2.5],
        [8 + 0.5 * 15, 8 - 0.5 * 1.5],
        [15, -1.5],  # the newest row: the oldest follows, from another state
        [2 + 0.5 * 30, 2 - 0.5 * 3],
        [30, -3],  # cut: its value goes on
        [4, 4],  # the next row terminates, and no value follows
        [50, -5],  # terminated
        [6 + 0.5 * 70, 6 - 0.5 * 7],  # around the end of the ring
    ]
    np.testing.assert_array_equal(bootstrapped(make_ring()), expected)


@pytest.mark.parametrize(("row", "value"), [(4, 30.0), (6, 50.0)])
def test_next_values_do_not_go_on_after_an_end_in_the_first_state_of_the_next(
    row, value
):
    obs = RING[:, :1].copy()
    obs[row + 1] = RING[row, 1]
    np.testing.assert_array_equal(bootstrapped(make_ring(obs=obs))[row, 0], value)


def test_next_values_do_not_go_on_in_rows_that_do_not_count():
    where = np.arange(8) < 4
    actual = bootstrapped(make_ring(), where)
    # From the fourth row the fifth would go on.
    np.testing.assert_array_equal(actual[:4, 0], [19.5, 15.5, 15.0, 20.0])


def test_next_values_never_read_garbage_in_rows_that_do_not_count():
    where = np.arange(8) < 4
    broken = [np.where(where[:, None], x, np.nan) for x in (RING[:, :1], RING[:, 1:])]
    batch = make_ring(
        obs=broken[0], next_obs=broken[1], reward=np.where(where, REWARDS, np.nan)
    )
    actual = bootstrapped(batch, where)
    np.testing.assert_array_equal(actual[:4], bootstrapped(make_ring(), where)[:4])


def test_next_values_bootstrap_along_the_last_axis_of_the_rows():
    ring = make_ring()
    both = jax.tree.map(lambda x: np.stack([x, x]), ring)
    expected = bootstrapped(ring)
    np.testing.assert_array_equal(bootstrapped(both), np.stack([expected, expected]))


def test_next_values_pass_no_gradient_to_the_value_function():
    batch = jax.tree.map(jnp.asarray, make_ring())
    gradient = jax.grad(
        lambda scale: jnp.sum(
            values.next_values(batch, lambda s: scale * tenfold(s), discount=0.5)
        )
    )
    assert float(gradient(1.0)) == 0.0


def test_next_values_need_to_know_where_episodes_end():
    with pytest.raises(ValueError, match=r"batch\.truncated is missing"):
        values.next_values(make_ring(truncated=None), tenfold, discount=0.5)


def test_muzero_with_a_discount_bootstraps_the_rows_of_the_batch():
    ring = make_ring()
    prediction = {"next_obs": RING[:, 1:] + 0.5, "reward": REWARDS, "log_var": None}
    options = {"predict": table}
    actual = losses.muzero_loss(prediction, ring, tenfold, discount=0.5, **options)
    given = losses.muzero_loss(
        prediction, ring, tenfold, prepared=bootstrapped(ring), **options
    )
    np.testing.assert_allclose(actual, given, rtol=EXACT)
