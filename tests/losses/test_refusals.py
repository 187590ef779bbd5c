"""Bad input to the losses: errors, their time and their messages."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from vagram_jax import losses
from vagram_jax.types import Transition

ALL = sorted(losses.LOSSES)
WITHOUT_VALUE = {"mle", "mse", "mse_normalized", "sample_weighted"}
WITH_VALUE = sorted({*ALL} - WITHOUT_VALUE)
GAUSSIAN = [name for name in ALL if losses.get(name).gaussian]

every_loss = pytest.mark.parametrize("name", ALL)


def table(params, obs, action):
    """A model whose parameters are its predictions."""
    del obs, action
    return params


def make_batch(**changed):
    """Four rows of three dimensions; no two sizes are the same."""
    fields = oracles.random_batch(0, leading=(4,)) | oracles.random_extras(0, (4,))
    return jax.tree.map(jnp.asarray, Transition(**(fields | changed)))


def perfect(batch):
    """A prediction without error, and with unit variance."""
    return batch.next_obs, batch.reward, jnp.zeros((*batch.reward.shape, 4))


def loss_of(name, batch, prediction=None, value_fn=jnp.sum):
    params = perfect(batch) if prediction is None else prediction
    return losses.get(name).fn(params, batch, value_fn, predict=table)


def poisoned(field, value=np.nan):
    clean = make_batch()
    bad = getattr(clean, field)
    return clean.replace(**{field: bad.at[(1,) * bad.ndim].set(value)})


@pytest.mark.parametrize(
    ("value_fn", "named"),
    [
        (lambda s: s[:2, None], r"value_fn\(state \[3\]\) has shape \[2, 1\]"),
        (lambda s: (s[0], s[1]), "is a tuple"),
        (jnp.argmax, "has dtype int32"),
    ],
    ids=["column", "tuple", "integer"],
)
@pytest.mark.parametrize("name", WITH_VALUE)
def test_losses_refuse_a_value_function_of_another_form(name, value_fn, named):
    with pytest.raises(ValueError, match=named):
        loss_of(name, make_batch(), value_fn=value_fn)


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("next_obs", (4, 2)),
        ("action", (3, 2)),
        ("reward", (4, 1)),
    ],
)
def test_losses_refuse_a_field_whose_shape_disagrees(field, shape):
    batch = make_batch(**{field: np.zeros(shape)})
    with pytest.raises(ValueError, match=rf"vagram_loss: batch\.{field} has shape"):
        loss_of("vagram", batch, prediction=perfect(make_batch()))


# What reads a field that other losses ignore, and how its error begins.
READERS = {
    "weight": (lambda batch: loss_of("sample_weighted", batch), "sample_weighted_loss"),
    "next_value": (lambda batch: loss_of("muzero", batch), "muzero_loss"),
    "truncated": (
        lambda batch: losses.get("muzero").prepare(batch, jnp.sum, discount=0.9),
        "next_values",
    ),
    "terminated": (
        lambda batch: losses.vagram_loss(
            perfect(batch),
            batch,
            jnp.sum,
            predict=table,
            gradients=losses.GradientConfig(mask_terminated=True),
        ),
        "gradients: mask_terminated=True",
    ),
}


@pytest.mark.parametrize("field", READERS)
def test_fields_that_few_losses_read_are_checked_by_these_alone(field):
    read, where = READERS[field]
    bad = make_batch(**{field: np.zeros((4, 1))})
    with pytest.raises(ValueError, match=rf"^{where}: batch\.{field} has shape"):
        read(bad)
    with pytest.raises(ValueError, match=rf"^{where}: batch\.{field} is missing; "):
        read(make_batch(**{field: None}))
    assert read(make_batch()) is not None
    assert np.isfinite(loss_of("vagram", bad))


@every_loss
def test_every_loss_checks_its_batch_and_its_prediction(name):
    batch = make_batch()
    with pytest.raises(ValueError, match=rf"{name}_loss: batch\.reward has shape"):
        loss_of(name, batch.replace(reward=jnp.zeros((4, 1))), perfect(batch))
    next_obs, reward, log_var = perfect(batch)
    with pytest.raises(ValueError, match=f"{name}_loss: predict returned next_obs"):
        loss_of(name, batch, (next_obs, reward[:, None], log_var))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("vagram", field) for field in ("obs", "action", "reward", "next_obs")),
        ("sample_weighted", "weight"),
        ("muzero", "next_value"),
    ],
)
def test_losses_refuse_a_batch_that_is_not_finite(name, field, bad):
    with pytest.raises(ValueError, match=rf"{name}_loss: batch\.{field} holds NaN"):
        loss_of(name, poisoned(field, bad))


@pytest.mark.parametrize(
    "transform", [jax.grad, jax.jit, jax.checkpoint, lambda f: jax.jit(jax.grad(f))]
)
@every_loss
def test_losses_refuse_nan_in_a_batch_closed_over(name, transform):
    clean, bad = make_batch(), poisoned("reward")

    def loss(prediction):
        return loss_of(name, bad, prediction)

    with pytest.raises(ValueError, match=rf"{name}_loss: batch\.reward holds NaN"):
        transform(loss)(perfect(clean))


@every_loss
def test_losses_of_a_traced_batch_with_nan_are_nan(name):
    run = jax.jit(lambda batch: loss_of(name, batch, perfect(make_batch())))
    # `muzero` reads the next state only through the model.
    assert np.isnan(run(poisoned("next_value" if name == "muzero" else "next_obs")))
    assert np.isfinite(run(make_batch()))


@every_loss
def test_losses_need_only_the_fields_that_they_read(name):
    reads = {"sample_weighted": "weight", "muzero": "next_value"}.get(name)
    optional = {"terminated", "truncated", "weight", "next_value"} - {reads}
    batch = make_batch(**dict.fromkeys(optional))
    loss = jax.eval_shape(lambda params: loss_of(name, batch, params), perfect(batch))
    assert loss.shape == ()


@pytest.mark.parametrize("num_samples", [1, 0, -2])
def test_calibrated_vaml_refuses_fewer_than_two_samples(num_samples):
    batch = make_batch()
    with pytest.raises(ValueError, match=f"num_samples={num_samples}; at least 2"):
        losses.calibrated_vaml_loss(
            perfect(batch), batch, jnp.sum, predict=table, num_samples=num_samples
        )


# The shape that each loss accepts for what was prepared, and others.
PREPARED = {
    "vagram": ((4, 3), [(4,), (3,), (4, 1), (4, 2), (1, 3), (5, 4, 3), (4, 4, 3)]),
    "vagram_nll": ((4, 3), [(4,), (4, 4)]),
    "constant_weights": ((4, 3), [(3,), (1, 3)]),
    "value_weighted": ((4, 3), [(4,), (4, 1)]),
    "mse_normalized": ((4, 3), [(4,), (4, 1)]),
    "sample_weighted": ((4,), [(4, 1), (3,), (4, 3), ()]),
    "vagram_unbounded": ((4, 1, 3), [(4, 3), (4, 1, 2), (3,)]),
    "quadratic": ((4, 1, 2, 3), [(4, 1, 3, 3), (4, 2, 3), (3,)]),
    "quadratic_eigen": ((4, 1, 5, 3), [(4, 1, 3, 3), (4, 5, 3), (3,)]),
    "muzero": ((4, 1), [(4, 3), (3,), (4, 2), ()]),
}


@pytest.mark.parametrize("name", PREPARED)
def test_losses_refuse_a_prepared_array_of_another_shape(name):
    accepted, others = PREPARED[name]
    batch, fn = make_batch(), losses.get(name).fn
    for shape in others:
        with pytest.raises(ValueError, match=f"{name}_loss: prepared has shape .* be"):
            fn(perfect(batch), batch, jnp.sum, predict=table, prepared=jnp.ones(shape))
    options = {"predict": table, "prepared": jnp.ones(accepted)}
    assert np.isfinite(fn(perfect(batch), batch, jnp.sum, **options))


@pytest.mark.parametrize("name", GAUSSIAN)
def test_likelihoods_refuse_a_model_without_log_variance(name):
    batch = make_batch()
    with pytest.raises(ValueError, match=f"{name}_loss: .* gaussian head"):
        loss_of(name, batch, perfect(batch)[:2])


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3), (1, 4), (2, 4, 4)])
@pytest.mark.parametrize("name", GAUSSIAN)
def test_likelihoods_refuse_a_log_variance_of_another_shape(name, shape):
    batch = make_batch()
    prediction = (*perfect(batch)[:2], jnp.zeros(shape))
    with pytest.raises(ValueError, match=f"{name}_loss: predict returned log_var"):
        loss_of(name, batch, prediction)


@pytest.mark.parametrize(
    ("next_obs", "reward"),
    [
        ((4, 3), (4, 1)),
        ((4, 3), (1,)),
        ((4, 3), ()),
        ((4, 4), (4,)),
        ((4, 1), (4,)),
        ((1, 3), (1,)),
        ((3,), ()),
        ((2, 5, 3), (2, 5)),
        ((2, 4, 3), (4,)),
    ],
)
def test_losses_refuse_predictions_of_another_shape(next_obs, reward):
    prediction = (jnp.zeros(next_obs), jnp.zeros(reward))
    with pytest.raises(ValueError, match="vagram_loss: predict returned next_obs"):
        loss_of("vagram", make_batch(), prediction)


@pytest.mark.parametrize(
    ("size", "shape"), [((1, 3), (5, 3)), ((4, 1), (4, 3))], ids=["rows", "dims"]
)
def test_losses_never_broadcast_a_batch_to_a_prediction(size, shape):
    fields = oracles.random_batch(0, leading=size[:1], obs_dim=size[1])
    batch = jax.tree.map(jnp.asarray, Transition(**fields))
    prediction = (jnp.zeros(shape), jnp.zeros(shape[:1]))
    with pytest.raises(ValueError, match="vagram_loss: predict returned next_obs"):
        loss_of("vagram", batch, prediction)


def test_losses_refuse_one_prediction_for_a_batch_per_member():
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), make_batch())
    with pytest.raises(ValueError, match="vagram_loss: predict returned next_obs"):
        loss_of("vagram", batch, perfect(make_batch()))
