"""The model losses, which share one signature, and their registry.

A loss maps parameters of a model, a batch and a value function to a scalar.

    value_gradients  derivatives of the value function, and weights derived from them
    registry         names of losses in configs; `register` adds a user's own
    batches          conversion of any user's batch to a `Transition`
    checks           checks of predictions, value functions and prepared arrays
    weighted         weighted squared errors: vagram, mse, mse_normalized,
                     constant_weights, value_weighted, sample_weighted
    likelihood       mle, vagram_nll
    taylor           vagram_unbounded, quadratic, quadratic_eigen
    values           vaml, value_equivalence, value_l1, muzero, calibrated_vaml
"""

from vagram_jax.losses.likelihood import mle_loss, vagram_nll_loss
from vagram_jax.losses.registry import LOSSES, ModelLoss, bind, get, register, unread
from vagram_jax.losses.taylor import (
    quadratic_eigen_loss,
    quadratic_loss,
    vagram_unbounded_loss,
)
from vagram_jax.losses.value_gradients import GradientConfig, WeightConfig, resolve
from vagram_jax.losses.values import (
    calibrated_vaml_loss,
    muzero_loss,
    value_equivalence_loss,
    value_l1_loss,
    vaml_loss,
)
from vagram_jax.losses.weighted import (
    constant_weights_loss,
    mse_loss,
    mse_normalized_loss,
    sample_weighted_loss,
    vagram_loss,
    value_weighted_loss,
)

__all__ = [
    "LOSSES",
    "GradientConfig",
    "ModelLoss",
    "WeightConfig",
    "bind",
    "calibrated_vaml_loss",
    "constant_weights_loss",
    "get",
    "mle_loss",
    "mse_loss",
    "mse_normalized_loss",
    "muzero_loss",
    "quadratic_eigen_loss",
    "quadratic_loss",
    "register",
    "resolve",
    "sample_weighted_loss",
    "unread",
    "vagram_loss",
    "vagram_nll_loss",
    "vagram_unbounded_loss",
    "value_equivalence_loss",
    "value_l1_loss",
    "value_weighted_loss",
    "vaml_loss",
]
