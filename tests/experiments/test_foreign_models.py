"""Models of other libraries: `vagram_loss` is the loss by hand, and costs no more."""

import jax
import numpy as np
import pytest

from experiments import foreign_models
from vagram_jax import vagram_loss


def value_fn(state):
    return state[:2] ** 2


@pytest.mark.parametrize("name", foreign_models.MODELS)
def test_vagram_loss_of_a_foreign_model_is_the_loss_by_hand(name):
    params, predict = foreign_models.MODELS[name](width=8)
    batch = foreign_models._batch()

    def run(loss):
        program = jax.value_and_grad(
            lambda p: loss(p, batch, value_fn, predict=predict)
        )
        return jax.tree.leaves(jax.jit(program)(params))

    for actual, expected in zip(
        run(vagram_loss), run(foreign_models.by_hand), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", foreign_models.MODELS)
def test_vagram_loss_of_a_foreign_model_compiles_to_no_more_operations(name):
    """Counts what is compiled, since times on a busy machine vary."""
    params, predict = foreign_models.MODELS[name](width=8)
    batch = foreign_models._batch()

    def flops(loss):
        step = jax.value_and_grad(lambda p: loss(p, batch, value_fn, predict=predict))
        return jax.jit(step).lower(params).compile().cost_analysis()["flops"]

    assert flops(vagram_loss) <= 1.02 * flops(foreign_models.by_hand)
