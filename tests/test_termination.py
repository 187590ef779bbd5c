"""Learned termination: what the classifier learns, how sure it is, and what it reports.

JAX looks for keys that are used twice in all programs.
"""

import functools

import jax
import jax.numpy as jnp
import mbpo_cases as cases
import numpy as np
import oracles
import pytest
from scipy import special
from termination_cases import (
    CAPACITY,
    CONFIG,
    IN_DIM,
    OBS_DIM,
    SIZE,
    answering,
    answers,
    below,
    buffer_of,
    falling,
    falls,
    fit,
    fitted,
    init,
    log_odds,
    steps_of,
)

from vagram_jax import config, mbpo, termination

pytestmark = pytest.mark.usefixtures("key_reuse")


# --- What is learned ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_fit_learns_a_rule_to_two_percent_on_fresh_rows(seed):
    state, metrics = fitted(seed)
    fresh = steps_of(100 + seed)
    actual, expected = np.asarray(answers(state, fresh)), falls(fresh)
    # To say "never" is wrong in 11 %, and of the rare kind few may be missed.
    assert np.mean(expected) > 0.1
    assert np.mean(actual != expected) < 0.02
    assert np.mean(~actual[expected]) < 0.15
    # Untrained, it would be log(2).
    assert metrics["model/termination_loss"] < 0.15


def test_fit_goes_on_from_where_the_last_one_ended():
    state, metrics = fitted()
    _, again = fit(jax.random.key(1), state, falling(), config=CONFIG)
    assert again["model/termination_loss"] < 0.5 * metrics["model/termination_loss"]


def test_fit_counts_the_rows_of_each_kind():
    state, _ = fitted()
    num_terminated = falls(steps_of(0))[:SIZE].sum()
    np.testing.assert_array_equal(state.counts, [num_terminated, SIZE - num_terminated])


@pytest.mark.parametrize(
    ("terminated", "others"),
    [((40, 80, 30), (400, 800, 300)), ((30, 6, 40), (30, 300, 800))],
    ids=["no information", "information"],
)
def test_log_odds_are_those_of_the_counts_at_each_place(terminated, others):
    # Steps stand at one of three places, so the best answer is known: the share of the
    # terminated there. As the minibatches are balanced, it takes the correction.
    rows = np.repeat(np.tile(np.eye(3), (2, 1)), [*terminated, *others], axis=0)
    rows = np.concatenate([rows, np.zeros((CAPACITY - len(rows), 3))])
    size, flags = sum(terminated + others), np.arange(CAPACITY) < sum(terminated)
    data = buffer_of([rows, 0.0 * rows[:, :1], rows], flags, size)
    state = init()
    # The later fits take steps that are too small for noise.
    for rate in (3e-3, 3e-4, 3e-5):
        algorithm = CONFIG.replace(learning_rate=rate)
        state, _ = fit(jax.random.key(0), state, data, config=algorithm)
    places = np.eye(3, dtype=np.float32)
    actual = log_odds(state, places, np.zeros((3, 1)), places, config=CONFIG)
    share = np.divide(terminated, np.add(terminated, others))
    # A thousand minibatches of 128 rows leave a noise of about 0.02.
    np.testing.assert_allclose(actual, special.logit(share), atol=0.1)


def flattened(network):
    layers = network["params"]
    return [
        (layers[f"Dense_{i}"]["kernel"], layers[f"Dense_{i}"]["bias"]) for i in (0, 1)
    ]


def oracle(leaves, structure, state, batch):
    """The cross-entropy in NumPy float64, row by row."""
    layers = flattened(jax.tree.unflatten(structure, leaves))
    inputs = np.concatenate([batch.obs, batch.action, batch.next_obs], axis=1)
    scaled = (np.float64(inputs) - np.float64(state.mean)) / np.float64(state.std)
    (logits,) = np.transpose([oracles.mlp(layers, row, "relu") for row in scaled])
    return -np.mean(special.log_expit(np.where(batch.terminated, logits, -logits)))


def test_cross_entropy_and_its_gradient_equal_the_oracles(x64):
    small = CONFIG.replace(hidden=(4,))
    steps = [np.float64(x[:5]) for x in steps_of(3)]
    data = buffer_of([*steps_of(3)], np.arange(CAPACITY) % 3 == 0)
    batch = jax.tree.map(lambda x: np.asarray(x)[:5], data.data)
    parts = [(np.mean(x, axis=0), np.std(x, axis=0)) for x in steps]
    mean, std = (np.concatenate(x) for x in zip(*parts, strict=True))
    state = jax.tree.map(
        np.asarray, init(hidden=small.hidden).replace(mean=mean, std=std)
    )
    network = jax.tree.map(np.float64, state.network)
    value, gradient = jax.jit(jax.value_and_grad(termination.cross_entropy))(
        network, state, batch, config=small
    )
    leaves, structure = jax.tree.flatten(network)
    assert float(value) == pytest.approx(oracle(leaves, structure, state, batch), 1e-9)
    for i, (leaf, actual) in enumerate(
        zip(leaves, jax.tree.leaves(gradient), strict=True)
    ):
        for index in np.ndindex(leaf.shape):
            ends = []
            for sign in (-1.0, 1.0):
                moved = [x.copy() for x in leaves]
                moved[i][index] += sign * 1e-6
                ends.append(oracle(moved, structure, state, batch))
            # A central difference of numbers of about one: 1e-10.
            assert actual[index] == pytest.approx((ends[1] - ends[0]) / 2e-6, abs=1e-8)


def test_fit_normalises_by_the_rows_that_were_written():
    state, _ = fitted()
    inputs = np.concatenate(steps_of(0), axis=1)[:SIZE]
    mean, std = oracles.moments(inputs, np.ones(SIZE, bool))
    np.testing.assert_allclose(state.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.std, std, rtol=1e-5)


# --- Without examples, and for NaN ----------------------------------------------------


def test_nothing_has_terminated_without_an_example():
    # A network that is sure of the contrary.
    state = answering(np.zeros(IN_DIM), 1e9, counts=(0, 0))
    steps = steps_of(0)
    assert not answers(state, steps).any()
    data = buffer_of(steps, np.zeros(CAPACITY, bool))
    actual, metrics = fit(jax.random.key(0), state, data, config=CONFIG)
    assert not answers(actual, steps).any()
    np.testing.assert_array_equal(actual.counts, [0, SIZE])
    # And nothing was trained.
    cases.assert_identical(actual.network, state.network)
    cases.assert_identical(actual.opt_state, state.opt_state)
    assert np.isnan(metrics["model/termination_loss"])
    # A single example is enough.
    assert answers(actual.replace(counts=jnp.int32([1, SIZE])), steps).all()


def test_everything_has_terminated_while_all_rows_have():
    state = answering(np.zeros(IN_DIM), -1e9)
    data = buffer_of(steps_of(0), np.ones(CAPACITY, bool))
    actual, _ = fit(jax.random.key(0), state, data, config=CONFIG)
    assert answers(actual, steps_of(0)).all()


def test_nan_anywhere_in_a_step_has_terminated():
    never = init()
    step = [x[0] for x in steps_of(0)]
    ends = jax.jit(termination.termination_fn(never, config=CONFIG))
    assert not ends(*step)
    for part, values in enumerate(step):
        for dim in range(values.size):
            broken = list(step)
            broken[part] = values.copy()
            broken[part][dim] = np.nan
            assert ends(*broken)


# --- Metrics --------------------------------------------------------------------------


def test_fit_reports_its_errors_on_the_rows_since_the_last_fit():
    # Of ten new rows around the end of the ring, six terminated. The classifier flags
    # successors below zero: two of the six, and one of the others.
    new = np.arange(-4, 6) % CAPACITY
    flags, obs = np.zeros(CAPACITY, bool), np.ones((CAPACITY, OBS_DIM))
    flags[new[:6]] = True
    obs[new[[0, 3, 9]]] = -1.0
    # Answers for older rows are all wrong.
    flags[6:-4] = True
    data = buffer_of([obs, obs[:, :1], obs], flags, size=CAPACITY)
    data = data.replace(insert_at=jnp.int32(6))
    state = below(0.0, seen_to=jnp.int32(CAPACITY - 4))
    actual, metrics = fit(jax.random.key(0), state, data, config=CONFIG)
    assert float(metrics["model/termination_missed"]) == pytest.approx(4 / 6)
    assert float(metrics["model/termination_false_alarms"]) == pytest.approx(1 / 4)
    assert int(actual.seen_to) == 6


def test_fit_reports_that_all_are_missed_before_the_first_example():
    _, metrics = fitted()
    assert metrics["model/termination_missed"] == 1.0
    assert metrics["model/termination_false_alarms"] == 0.0


# --- Seeds and keys -------------------------------------------------------------------

SEEDS = range(3)
fit_seeds = jax.jit(jax.vmap(functools.partial(termination.fit, config=CONFIG)))


def stack(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def run_seeds(change=lambda states: states):
    """Three seeds whose buffers are filled to different degrees; one has no example."""
    keys = jnp.stack([jax.random.key(seed) for seed in SEEDS])
    data = [
        falling(seed, size) for seed, size in zip(SEEDS, (SIZE, 0, 200), strict=True)
    ]
    data[1] = buffer_of(steps_of(1), np.zeros(CAPACITY, bool), size=900)
    states = change(stack([init(seed) for seed in SEEDS]))
    return fit_seeds(keys, states, stack(data)), data


def test_fit_of_a_seed_equals_that_seed_alone():
    actual, data = run_seeds()
    for seed in SEEDS:
        alone = fit(jax.random.key(seed), init(seed), data[seed], config=CONFIG)
        np.testing.assert_array_equal(actual[0].counts[seed], alone[0].counts)
        # Products in another order, in float32, over a thousand steps.
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-2, atol=1e-2),
            cases.row(actual, seed),
            alone,
        )


def test_fit_keeps_nan_in_its_seed():
    (clean, _), _ = run_seeds()

    def poison(states):
        return states.replace(
            network=cases.with_row(states.network, 2, lambda x: x * jnp.nan)
        )

    (actual, _), _ = run_seeds(poison)
    assert all(np.isnan(x[2]).all() for x in jax.tree.leaves(actual.network))
    for seed in (0, 1):
        cases.assert_identical(cases.row(actual, seed), cases.row(clean, seed))


def test_fit_draws_by_its_key():
    state, data = init(), falling()
    first, second, again = (
        fit(jax.random.key(seed), state, data, config=CONFIG)[0] for seed in (0, 1, 0)
    )
    cases.assert_identical(first, again)
    kernels = [s.network["params"]["Dense_0"]["kernel"] for s in (first, second)]
    assert not np.array_equal(*kernels)


# --- What is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("hidden", (64, 0), "at least 1"),
        ("learning_rate", 0.0, "above 0"),
        ("batch_size", 0, "at least 1"),
        ("steps_per_fit", 0, "at least 1"),
    ],
)
def test_config_refuses_a_value_out_of_range(key, value, accepted):
    with pytest.raises(config.ConfigError, match=rf"termination\.{key}=.*{accepted}"):
        config.from_mapping(mbpo.MBPOConfig, {"termination": {key: value}})
