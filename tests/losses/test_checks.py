"""Checks of the options of losses, and the warning of weights that are all zero."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from vagram_jax.config import ConfigError
from vagram_jax.losses import weighted
from vagram_jax.losses.value_gradients import GradientConfig, WeightConfig
from vagram_jax.types import Transition

BATCH = Transition(**oracles.random_batch(0, leading=(8,)))


def curved(state):
    return jnp.sum(jnp.square(state))


def flat(state):
    return jnp.sum(0.0 * state)


def predict(params, obs, action):
    return params * obs, obs[..., 0]


def vagram(value_fn, params=1.0, batch=BATCH, **options):
    return weighted.vagram_loss(params, batch, value_fn, predict=predict, **options)


def warned(run):
    """The warnings of a call, with the filter that Python has by default."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run()
    return [each for each in caught if "all weights are zero" in str(each.message)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: weighted.vagram_loss(1.0, BATCH, flat, predict=predict),
        lambda: weighted.constant_weights_loss(1.0, BATCH, flat, predict=predict),
        lambda: weighted.vagram_weights(BATCH, flat),
        lambda: jax.grad(weighted.vagram_loss)(1.0, BATCH, flat, predict=predict),
    ],
    ids=["loss", "constant", "weights", "gradient"],
)
def test_weights_that_are_all_zero_warn_once_for_each_line_of_the_user(call):
    (warning,) = warned(lambda: [call() for _ in range(3)])
    assert warning.category is UserWarning
    assert (warning.filename, warning.lineno) == (
        __file__,
        call.__code__.co_firstlineno,
    )
    assert "or add the squared error with weights=WeightConfig(mse_coef=1.0)" in str(
        warning.message
    )


def test_weights_that_are_not_zero_or_are_traced_do_not_warn():
    def run():
        vagram(curved)
        vagram(flat, weights=WeightConfig(mse_coef=1.0))
        vagram(flat, prepared=jnp.zeros((8, 3)))
        jax.jit(lambda batch: vagram(flat, batch=batch))(BATCH)
        jax.jit(lambda params: vagram(flat, params))(1.0)  # the batch is a constant
        rows = jax.tree.map(lambda x: x[None], BATCH)
        jax.vmap(lambda batch: weighted.vagram_weights(batch, flat))(rows)

    assert warned(run) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradients": GradientConfig(at="foo")}, "gradients.at='foo'; accepted: next"),
        (
            {"gradients": GradientConfig(mask_terminated=1)},
            "mask_terminated=1; true or",
        ),
        ({"weights": WeightConfig(gradient_coef=-1.0)}, "gradient_coef=-1.0; accepted"),
        ({"weights": WeightConfig(normalize="no")}, "weights.normalize='no'; true or "),
        ({"weights": WeightConfig(mse_coef=np.ones(3))}, r"mse_coef has shape \[3\]"),
    ],
)
def test_options_that_were_built_directly_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        vagram(curved, **options)
    with pytest.raises(ConfigError, match=message):
        weighted.vagram_weights(BATCH, curved, **options)
