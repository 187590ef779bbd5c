"""A fit of plain arrays: it learns, it is the fit of training, and refuses nonsense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vagram_jax
from vagram_jax import fit_arrays

NOISE = np.random.default_rng(0)
OBS, ACTION = NOISE.normal(size=(256, 3)), NOISE.uniform(-1, 1, (256, 2))
MATRIX, INPUT = NOISE.normal(size=(3, 3)) / 3, NOISE.normal(size=(3, 2))
NEXT_OBS, REWARD = OBS @ MATRIX + ACTION @ INPUT.T, OBS[:, 0] - ACTION[:, 1]
DATA = (OBS, ACTION, REWARD, NEXT_OBS)
SMALL = {
    "dynamics": {"hidden": (), "num_members": 2, "num_elites": 1},
    "fit": {"max_epochs": 100, "batch_size": 32, "learning_rate": 0.02},
}


def value(state):
    return jnp.sum(state**2)


@pytest.mark.parametrize(
    "options",
    [
        {"value_fn": value, "weights": vagram_jax.WeightConfig(normalize=True)},
        {"loss": "mle"},
    ],
)
def test_a_model_learns_a_linear_task_and_predicts_rows_and_batches(options):
    model = fit_arrays(*DATA, **SMALL, **options)
    assert isinstance(model, vagram_jax.FittedModel)
    next_obs, reward = model.predict(OBS, ACTION)
    np.testing.assert_allclose(next_obs, NEXT_OBS, atol=0.05)
    np.testing.assert_allclose(reward, REWARD, atol=0.05)
    one, reward_of_one = model.predict(OBS[0], ACTION[0])
    np.testing.assert_allclose(one, next_obs[0], rtol=1e-5, atol=1e-6)
    assert reward_of_one.shape == ()
    assert 0 < model.metrics["model/epochs"] < 100  # it stopped by itself
    assert np.isfinite(model.metrics["model/holdout_loss"]).all()
    batch = dict(zip(("obs", "action", "reward", "next_obs"), DATA, strict=True))
    assert float(vagram_jax.mse_loss(model.params, batch)) < 0.01


def test_the_seed_decides_the_networks_in_the_precision_of_jax():
    short = SMALL | {"fit": {"max_epochs": 1}, "loss": "mse"}
    first, other = (fit_arrays(*DATA, **short, seed=seed) for seed in (3, 4))
    assert np.abs(first.predict(OBS, ACTION)[0] - other.predict(OBS, ACTION)[0]).max()
    dtypes = {x.dtype for x in jax.tree.leaves(first.params)}
    assert dtypes == {jnp.dtype("float32")}  # the arrays have 64 bits


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (DATA, {"loss": "vagrm"}, r"loss='vagrm'; known: .*did you mean vagram\?"),
        (DATA, {}, "value_fn: a NoneType was given; a function of one state"),
        (DATA, {"los": "mse"}, "unknown key los='mse'; did you mean loss"),
        (DATA, {"loss": "mse", "fit": {"epochs": 3}}, "unknown key fit.epochs=3"),
        (DATA, {"loss": "mse", "fit": 3}, "fit=3; it holds other keys"),
        (DATA, {"loss": "mse", "weights": {"normalize": True}}, "doesn't read it"),
        (DATA, {"loss": "muzero", "value_fn": value}, "needs discount="),
        (DATA, {"loss": "sample_weighted"}, "it reads batch.weight"),
        (
            DATA,
            {"loss": "mse", "dynamics": {"num_members": 1}},
            r"dynamics\.num_elites=5; at most",
        ),
        (DATA, {"loss": "mse", "seed": -1}, "seed=-1; accepted: at least 0"),
        (
            DATA,
            {"value_fn": value, "weights": {"mse_coef": (1, 0, 0, 9)}},
            "mse_coef",
        ),
        ((OBS[:1], ACTION[:1], REWARD[:1], NEXT_OBS[:1]), {}, "at least two rows"),
        ((OBS, ACTION, REWARD[:, None], NEXT_OBS), {}, r"use reward\[\.\.\., 0\]"),
        ((OBS, ACTION[:9], REWARD, NEXT_OBS), {}, "batch.action has shape"),
        ((OBS.tolist(), ACTION, REWARD, NEXT_OBS), {}, "batch.obs is a list"),
        ((OBS * np.nan, ACTION, REWARD, NEXT_OBS), {}, "holds NaN or infinity"),
        (DATA, {"terminated": OBS, "loss": "mse"}, "batch.terminated has shape"),
        (DATA, {"loss": "no_such_module:loss"}, "No module named 'no_such_module'"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(data, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit_arrays(*data, **options)
    assert "\n" not in str(caught.value)
