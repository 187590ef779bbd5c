"""Members and seeds are fitted side by side, and nothing passes from one to another."""

import functools

import fit_cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_cases import CONFIG, MEMBERS

from vagram_jax import losses

# Noisy, easy and small: what makes the seeds stop at epochs of their own.
CASES = [{"spread": 3.0}, {}, {"size": 24, "spread": 1.0}]
STOPS = CONFIG.replace(
    max_epochs=40, patience=3, learning_rate=0.02, min_improvement=0.05
)
# Products of matrices batched over seeds and not, in float32, over a hundred steps.
BATCHED = {"rtol": 1e-3, "atol": 1e-4}


def stack(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def at(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def run_seeds(states, data, config=STOPS):
    keys = jnp.stack([jax.random.key(seed) for seed in range(len(CASES))])
    return fit_cases.seeds(keys, states, data, config, losses.get("mse"))


def inputs():
    states = [fit_cases.make_state(seed) for seed in range(len(CASES))]
    data = [fit_cases.make_data(seed, **case) for seed, case in enumerate(CASES)]
    return states, data


@pytest.fixture(scope="module")
def together():
    """Three seeds in one program."""
    states, data = inputs()
    return run_seeds(stack(states), stack(data))


@pytest.fixture(scope="module")
def alone():
    """The same seeds, each in a program of its own."""
    return [
        fit_cases.run(state, data, STOPS, seed=seed)
        for seed, (state, data) in enumerate(zip(*inputs(), strict=True))
    ]


def poison(network, index):
    """The networks, with NaN in all parameters of one along the leading axis."""
    return jax.tree.map(lambda x: x.at[index].set(jnp.nan), network)


def poisoned(states, index):
    network = poison(states.params.network, index)
    return states.replace(params=states.params.replace(network=network))


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **BATCHED), actual, expected
    )


def test_fit_stops_each_seed_on_its_own(together, alone):
    epochs = together[1]["model/epochs"]
    assert len(set(np.asarray(epochs))) == len(CASES)
    np.testing.assert_array_equal(epochs, [m["model/epochs"] for _, m in alone])


def test_fit_of_a_seed_equals_that_seed_alone(together, alone):
    for seed, (state, metrics) in enumerate(alone):
        actual, actual_metrics = at(together, seed)
        assert_close(actual.params.network, state.params.network)
        np.testing.assert_array_equal(actual.elites, state.elites)
        for name in ("model/holdout_loss", "model/train_loss", "model/error_dim"):
            assert_close(actual_metrics[name], metrics[name])


def test_fit_takes_no_step_for_a_seed_that_has_stopped(together, alone):
    steps = optax.tree_utils.tree_get(together[0].opt_state, "count")
    num_train = [48, 48, 18]
    expected = together[1]["model/epochs"] * -(
        -np.array(num_train) // CONFIG.batch_size
    )
    np.testing.assert_array_equal(steps, expected)
    for seed, (state, _) in enumerate(alone):
        assert_close(at(together[0].opt_state, seed), state.opt_state)


def test_fit_keeps_nan_in_the_parameters_of_its_seed_and_stops_it(together):
    states, data = inputs()
    actual = run_seeds(poisoned(stack(states), 1), stack(data))
    assert np.isnan(actual[1]["model/holdout_loss"][1]).all()
    assert actual[1]["model/epochs"][1] == STOPS.patience
    for seed in (0, 2):
        fit_cases.assert_identical(at(actual, seed), at(together, seed))


def test_fit_keeps_nan_in_the_data_of_its_seed(together):
    states, data = inputs()
    data[1] = fit_cases.with_targets(data[1], slice(None), np.nan)
    actual = run_seeds(stack(states), stack(data))
    for seed in (0, 2):
        fit_cases.assert_identical(at(actual, seed), at(together, seed))


@functools.cache
def fit_with_bad_member(bad):
    """A fit of the whole way, with NaN in one member or, for None, in no member."""
    state = fit_cases.make_state()
    if bad is not None:
        state = poisoned(state, bad)
    return fit_cases.run(state, config=CONFIG.replace(learning_rate=0.01))


@pytest.mark.parametrize("bad", range(MEMBERS))
def test_fit_keeps_nan_in_its_member(bad):
    results = [fit_with_bad_member(index) for index in (bad, None)]
    # The members share the decision to stop: both must have gone the whole way.
    assert [metrics["model/epochs"] for _, metrics in results] == [6, 6]
    for index in set(range(MEMBERS)) - {bad}:
        actual, expected = (
            fit_cases.member(
                (new.params.network, new.opt_state, metrics["model/holdout_loss"]),
                index,
            )
            for new, metrics in results
        )
        fit_cases.assert_identical(actual, expected)


@pytest.mark.parametrize("bad", range(MEMBERS))
def test_fit_never_makes_a_member_with_nan_an_elite(bad):
    actual, metrics = fit_with_bad_member(bad)
    scores = np.asarray(metrics["model/holdout_loss"])
    assert np.isnan(scores[bad])
    np.testing.assert_array_equal(actual.elites, np.argsort(scores)[:2])  # NaN is last


def test_fit_returns_a_finite_optimizer_state_after_nan():
    actual, _ = fit_with_bad_member(1)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(actual.opt_state))
