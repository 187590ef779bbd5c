"""Fitting: it learns, and from the right rows, for as long as it should."""

import dataclasses

import fit_cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_cases import CONFIG, HELD, MEMBERS, SIZE, THREE_EPOCHS

from vagram_jax import config, dynamics, fit, losses

# Sums of float32 in another order, over some dozen rows and steps.
CLOSE = 1e-5
ALL = sorted(losses.LOSSES)


def adam_steps(state):
    return int(optax.tree_utils.tree_get(state.opt_state, "count"))


def assert_scores(metrics, params, data, rtol=CLOSE):
    """The scores are the errors of these parameters on the held-out rows."""
    held, _ = fit_cases.split(data)
    for index in range(MEMBERS):
        network = fit_cases.member(params.network, index)
        errors = fit_cases.squared_errors(network, params, data, held)
        score = metrics["model/holdout_loss"][index]
        np.testing.assert_allclose(score, errors.mean(), rtol=rtol)


def test_fit_finds_a_linear_system():
    config = CONFIG.replace(learning_rate=0.03, max_epochs=150, min_improvement=0.0)
    _, metrics = fit_cases.run(config=config)
    # The targets' variances are of about one; Adam's last steps jitter by less than
    # a hundredth of a weight.
    assert np.all(metrics["model/holdout_loss"] < 1e-3)


@pytest.mark.parametrize("name", ALL)
def test_fit_lowers_each_registered_loss(name):
    model = fit_cases.MODEL
    if losses.get(name).gaussian:
        model = dataclasses.replace(model, head="gaussian")
    state = fit_cases.make_state(model=model)
    config = CONFIG.replace(learning_rate=0.03)
    fields = {}
    if losses.get(name).reads:  # what training doesn't record, but a user's buffer may
        fields = {"weight": np.linspace(0.5, 1.5, fit_cases.CAPACITY, dtype=np.float32)}
    data = fit_cases.make_data(**fields)
    _, start = fit_cases.run(state, data, config=THREE_EPOCHS, loss=name)
    new, end = fit_cases.run(state, data, config=config, loss=name)
    if not losses.get(name).gaussian:  # a likelihood may be below zero, and improve
        assert start["model/epochs"] == 3
    scores = end["model/holdout_loss"]
    assert np.all(np.isfinite(scores))
    assert np.all(scores < start["model/holdout_loss"])
    np.testing.assert_array_equal(new.elites, np.argsort(scores)[:2])
    # Attention is by curvature, and an absolute error has none.
    shares = 0.0 if name == "value_l1" else 1.0
    np.testing.assert_allclose(end["model/attention_dim"].sum(), shares, rtol=CLOSE)
    assert np.all(np.isfinite(end["model/error_dim"]))


def test_fit_scores_the_parameters_that_it_returns():
    # Steps so large that the last parameters are not the best.
    config = CONFIG.replace(learning_rate=0.5)
    data = fit_cases.make_data(spread=0.5)
    new, metrics = fit_cases.run(data=data, config=config)
    assert_scores(metrics, new.params, data)


def test_fit_keeps_the_parameters_that_no_epoch_improved():
    state = fit_cases.make_state()
    new, metrics = fit_cases.run(state, config=CONFIG.replace(learning_rate=1e3))
    fit_cases.assert_identical(new.params.network, state.params.network)
    assert metrics["model/epochs"] == CONFIG.patience
    assert metrics["model/improved"] == 0


def test_fit_stops_at_max_epochs():
    new, metrics = fit_cases.run(config=CONFIG.replace(learning_rate=0.01))
    assert metrics["model/improved"] == metrics["model/finite"] == MEMBERS
    assert new.was_finite
    assert metrics["model/epochs"] == CONFIG.max_epochs
    assert adam_steps(new) == 3 * CONFIG.max_epochs


@pytest.mark.parametrize("max_steps", [1, 7])
def test_fit_stops_at_max_steps_within_an_epoch(max_steps):
    config = CONFIG.replace(learning_rate=0.01, max_steps=max_steps)
    new, metrics = fit_cases.run(config=config)
    assert metrics["model/steps"] == adam_steps(new) == max_steps
    assert metrics["model/epochs"] == -(-max_steps // 3)


def test_fit_with_few_steps_scores_the_parameters_that_it_returns():
    config = CONFIG.replace(learning_rate=0.01, max_steps=4)
    state, data = fit_cases.make_state(), fit_cases.make_data()
    new, metrics = fit_cases.run(state, data, config)
    assert_scores(metrics, new.params, data, rtol=1e-4)


def test_fit_ignores_improvements_below_min_improvement():
    config = CONFIG.replace(learning_rate=0.01, min_improvement=0.9)
    _, metrics = fit_cases.run(config=config)
    assert metrics["model/epochs"] == CONFIG.patience


@pytest.mark.parametrize(("min_improvement", "learns"), [(0.0, True), (0.2, False)])
def test_successive_short_fits_learn_without_a_min_improvement(min_improvement, learns):
    state, data = fit_cases.make_state(), fit_cases.make_data()
    start = state.params.network
    config = CONFIG.replace(
        learning_rate=0.01, max_steps=2, min_improvement=min_improvement
    )
    scores = []
    for _ in range(30):
        state, metrics = fit_cases.run(state, data, config)
        scores.append(metrics["model/holdout_loss"])
    if learns:
        assert np.all(scores[-1] < 0.7 * scores[0])
    else:
        fit_cases.assert_identical(state.params.network, start)


@pytest.mark.parametrize("bootstrap", [True, False])
def test_fit_draws_the_rows_of_each_member_alike(bootstrap):
    # Steps too small to move: the mean over an epoch estimates that over the rows.
    config = CONFIG.replace(bootstrap=bootstrap, learning_rate=1e-30, batch_size=4096)
    state, data = fit_cases.make_state(), fit_cases.make_data()
    new, metrics = fit_cases.run(state, data, config)
    _, rows = fit_cases.split(data, bootstrap=bootstrap)
    for index in range(MEMBERS):
        network = fit_cases.member(state.params.network, index)
        errors = fit_cases.squared_errors(network, new.params, data, rows[index])
        deviation = errors.std() / np.sqrt(config.batch_size)
        mean = metrics["model/train_loss"][index]
        assert abs(mean - errors.mean()) < 4.0 * deviation


def test_fit_draws_other_rows_for_each_minibatch():
    state, data = fit_cases.make_state(), fit_cases.make_data()
    config = CONFIG.replace(learning_rate=1e-30)
    means = []
    for max_steps in (1, 2, 4):  # the last is the first of the second epoch
        _, metrics = fit_cases.run(state, data, config.replace(max_steps=max_steps))
        means.append(metrics["model/train_loss"][0])
    first, second = means[0], 2.0 * means[1] - means[0]
    assert len({round(float(x), 4) for x in (first, second, means[2])}) == 3


@pytest.mark.parametrize("size", [2, 30, 64])
def test_fit_takes_steps_for_as_many_rows_as_it_trains_on(size):
    data = fit_cases.make_data(size=size)
    held, rows = fit_cases.split(data)
    assert len(held) + rows.shape[1] == size
    new, metrics = fit_cases.run(data=data, config=THREE_EPOCHS)
    steps = -(-rows.shape[1] // THREE_EPOCHS.batch_size)
    assert adam_steps(new) == steps * metrics["model/epochs"]


@pytest.mark.parametrize("chunk", [1, 7])
def test_fit_scores_in_chunks_of_any_size(monkeypatch, chunk):
    monkeypatch.setattr(fit, "_SCORE_ROWS", chunk)
    state, data = fit_cases.make_state(), fit_cases.make_data()
    # A new function, because the program of another chunk may have been kept.
    program = jax.jit(lambda *args: fit_cases.run_fit(*args, losses.get("mse")))
    new, metrics = program(jax.random.key(0), state, data, THREE_EPOCHS)
    assert_scores(metrics, new.params, data)


@pytest.mark.parametrize("bootstrap", [True, False])
def test_split_trains_on_no_held_out_row(bootstrap):
    held, rows = fit_cases.split(fit_cases.make_data(), bootstrap=bootstrap)
    assert held.shape == (HELD,)
    assert rows.shape == (MEMBERS, SIZE - HELD)
    assert not set(held) & set(rows.ravel())
    assert set(held) | set(rows.ravel()) <= set(range(SIZE))


def test_split_shares_all_rows_without_bootstrap():
    held, rows = fit_cases.split(fit_cases.make_data(), bootstrap=False)
    for drawn in rows:
        np.testing.assert_array_equal(np.sort([*held, *drawn]), np.arange(SIZE))


def test_split_resamples_the_rows_of_each_member():
    _, rows = fit_cases.split(fit_cases.make_data())
    counts = [np.bincount(drawn, minlength=SIZE) for drawn in rows]
    assert len({tuple(count) for count in counts}) == MEMBERS
    # With replacement: 1/e of 48 rows, 18, are left out, with a deviation below 3.
    assert all(5 < np.sum(count[rows.min() :] == 0) - HELD < 31 for count in counts)


def test_split_holds_out_the_same_rows_for_every_key():
    data = fit_cases.make_data()
    first, second = (fit_cases.split(data, seed) for seed in (0, 1))
    np.testing.assert_array_equal(first[0], second[0])
    assert np.any(first[1] != second[1])


def test_split_holds_out_most_rows_again_when_the_buffer_has_grown():
    held, _ = fit_cases.split(fit_cases.make_data(size=64))
    _, rows = fit_cases.split(fit_cases.make_data(size=80))
    # The share that was held out changes with the rank of a row by a few at the border.
    assert len(set(held) & set(rows.ravel())) <= 3


def test_split_holds_out_no_more_than_max_holdout():
    held, rows = fit_cases.split(fit_cases.make_data(), max_holdout=5)
    assert held.shape == (5,)
    assert rows.shape == (MEMBERS, SIZE - 5)


def test_split_holds_out_one_row_of_two():
    held, rows = fit_cases.split(fit_cases.make_data(size=2))
    assert held.shape == (1,)
    np.testing.assert_array_equal(rows, np.full((MEMBERS, 1), 1 - held[0]))


def test_split_without_holdout_scores_on_training_rows():
    held, rows = fit_cases.split(fit_cases.make_data(), holdout=0.0, bootstrap=False)
    np.testing.assert_array_equal(np.sort(held), np.arange(SIZE))
    np.testing.assert_array_equal(np.sort(rows[0]), np.arange(SIZE))


def test_fit_learns_nothing_from_held_out_rows():
    data = fit_cases.make_data()
    held, _ = fit_cases.split(data)
    absurd = fit_cases.with_targets(data, held, 1e6)
    clean, clean_metrics = fit_cases.run(data=data, config=THREE_EPOCHS)
    actual, metrics = fit_cases.run(data=absurd, config=THREE_EPOCHS)
    # The optimiser has seen every gradient of the fit, also those after the best score.
    fit_cases.assert_identical(actual.opt_state, clean.opt_state)
    fit_cases.assert_identical(
        metrics["model/train_loss"], clean_metrics["model/train_loss"]
    )
    assert np.all(metrics["model/holdout_loss"] > 1e9)


def test_fit_draws_the_rows_of_a_member_once():
    data = fit_cases.make_data()
    held, rows = fit_cases.split(data)
    never_seen = sorted(set(range(SIZE)) - set(held) - set(rows[0]))
    absurd = fit_cases.with_targets(data, never_seen, 1e6)
    clean, _ = fit_cases.run(data=data, config=THREE_EPOCHS)
    actual, metrics = fit_cases.run(data=absurd, config=THREE_EPOCHS)
    fit_cases.assert_identical(
        *(fit_cases.member(s.opt_state, 0) for s in (actual, clean))
    )
    assert np.all(metrics["model/train_loss"][1:] > 1e6)


@pytest.mark.parametrize("name", ["mse", "vagram", "mse_normalized"])
def test_fit_never_reads_unwritten_rows(name):
    config = CONFIG.replace(learning_rate=0.01)
    actual = fit_cases.run(data=fit_cases.make_data(), config=config, loss=name)
    zeros = fit_cases.make_data(unwritten=0.0)
    fit_cases.assert_identical(
        actual, fit_cases.run(data=zeros, config=config, loss=name)
    )
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(actual))


@pytest.mark.parametrize("name", ["vagram", "vagram_unbounded"])
def test_fit_with_prepared_weights_equals_weights_computed_at_each_step(name):
    config = CONFIG.replace(learning_rate=0.01)
    afresh = losses.get(name)._replace(prepare=None, reads_config=())
    actual, metrics = fit_cases.run(config=config, loss=name)
    expected, wanted_metrics = fit_cases.run(config=config, loss=afresh)
    assert metrics["model/epochs"] == wanted_metrics["model/epochs"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=CLOSE),
        (actual.params.network, metrics["model/holdout_loss"]),
        (expected.params.network, wanted_metrics["model/holdout_loss"]),
    )


# With a buffer that isn't full there are fewer held-out rows than places for them.
@pytest.mark.parametrize("size", [fit_cases.SIZE, fit_cases.CAPACITY])
def test_fit_reports_the_error_in_deviations_of_the_change(size):
    data = fit_cases.make_data(size=size)
    state = fit_cases.make_state()
    zero = jax.tree.map(np.zeros_like, state.params.network)
    config = THREE_EPOCHS.replace(learning_rate=1e-30)
    state = state.replace(params=state.params.replace(network=zero))
    _, metrics = fit_cases.run(state, data, config)
    held, _ = fit_cases.split(data)
    change = (data.data.next_obs - data.data.obs)[held]
    # A model that predicts no change errs by the change itself.
    expected = np.sqrt(np.mean(change**2, axis=0) / np.var(change, axis=0))
    np.testing.assert_allclose(metrics["model/error_dim"], expected, rtol=CLOSE)


@pytest.mark.parametrize(("loss", "kept"), [("vagram", True), ("mse", False)])
def test_fit_reports_rows_without_any_weight(loss, kept):
    data = fit_cases.make_data()
    # Where the first coordinate is far out, tanh is flat; the second is zero there.
    rows = np.arange(0, fit_cases.SIZE, 4)
    next_obs = np.array(data.data.next_obs)
    next_obs[rows] = [50.0, 0.0]
    data = data.replace(data=data.data.replace(next_obs=next_obs))
    _, metrics = fit_cases.run(data=data, config=THREE_EPOCHS, loss=loss)
    assert ("model/weightless" in metrics) == kept
    if kept:
        np.testing.assert_allclose(metrics["model/weightless"], 0.25)


def test_fit_reports_the_attention_of_held_out_rows():
    data = fit_cases.make_data(size=fit_cases.CAPACITY)
    _, metrics = fit_cases.run(data=data, config=THREE_EPOCHS)
    held, _ = fit_cases.split(data)
    change = np.var((data.data.next_obs - data.data.obs)[held], axis=0)
    expected = change / change.sum()
    np.testing.assert_allclose(metrics["model/attention_dim"], expected, rtol=CLOSE)


def test_fit_uses_each_key_once(key_reuse):
    _, metrics = fit_cases.run()
    assert np.all(np.isfinite(metrics["model/holdout_loss"]))


def gaussian(bounds):
    return dataclasses.replace(fit_cases.MODEL, head="gaussian", log_var_bounds=bounds)


def test_fit_of_constant_targets_lowers_the_log_variance_to_its_bound():
    data = fit_cases.make_data()
    data = data.replace(
        data=data.data.replace(next_obs=data.data.obs, reward=np.zeros(80, np.float32))
    )
    state = fit_cases.make_state(model=gaussian("fixed"))
    config = CONFIG.replace(
        learning_rate=0.05, max_epochs=300, patience=300, min_improvement=0.0
    )
    new, metrics = fit_cases.run(state, data, config, loss="mle")
    assert np.all(np.isfinite(metrics["model/train_loss"]))
    obs, action = np.zeros((1, 2), np.float32), np.zeros((1, 1), np.float32)
    before = jax.jit(dynamics.predict)(state.params, obs, action).log_var
    after = jax.jit(dynamics.predict)(new.params, obs, action).log_var
    # Down from about -0.5 to where Adam's jitter is what is left of the error, e^-5.
    assert np.all(before > -1.5)
    assert np.all((after < -5.0) & (after >= -10.0))


@pytest.mark.parametrize(("bounds", "pull"), [("learned", 0.01), ("fixed", 0.0)])
def test_fit_penalizes_the_distance_of_learned_bounds(bounds, pull):
    state = fit_cases.make_state(model=gaussian(bounds))
    loss, objective = fit._objectives(state.params, None, losses.get("mle"))
    network = fit_cases.member(state.params.network, 0)
    batch = jax.tree.map(lambda x: x[:8], fit_cases.make_data().data), None
    with_pull = jax.jit(jax.grad(objective))(network, batch)["params"]
    without = jax.jit(jax.grad(loss))(network, batch)["params"]
    for name, sign in (("max_log_var", 1.0), ("min_log_var", -1.0)):
        # float32 beside gradients of about one.
        actual = with_pull[name] - without[name]
        np.testing.assert_allclose(actual, sign * pull, atol=1e-6)
        if bounds == "fixed":
            np.testing.assert_array_equal(with_pull[name], 0.0)
    np.testing.assert_array_equal(
        with_pull["mlp"]["Dense_0"]["kernel"], without["mlp"]["Dense_0"]["kernel"]
    )


def test_fit_decays_kernels_only():
    network = fit_cases.make_state(model=gaussian("learned")).params.network
    network = jax.tree.map(lambda x: x + 1.0, network)
    optimizer = fit._optimizer(fit.FitConfig(learning_rate=0.5, weight_decay=0.1))
    still = jax.tree.map(jnp.zeros_like, network)
    update = jax.jit(lambda x: optimizer.update(x, optimizer.init(network), network)[0])
    updates = update(still)
    kernel = network["params"]["mlp"]["Dense_0"]["kernel"]
    actual = updates["params"]["mlp"]["Dense_0"].pop("kernel")
    np.testing.assert_allclose(actual, -0.5 * 0.1 * kernel, rtol=1e-6)  # float32
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0.0), updates)


def test_fit_refuses_a_loss_that_is_not_a_scalar_by_name():
    def per_row(params, batch, value_fn, *, predict):
        return jnp.sum(predict(params, batch.obs, batch.action).next_obs, axis=-1)

    loss = losses.get("mse")._replace(name="per_row", fn=per_row)
    with pytest.raises(config.ConfigError, match=r"'per_row'.*a floating scalar is"):
        fit_cases.run(loss=loss)
