"""The model losses, one signature, and their registry.

Comes in: a model's parameters, a batch, a value function. Goes out: a scalar. A loss is
in the file of its kind:

    registry    what a config calls a loss; `register` one of your own
    errors      the model's answer to a batch, checked
    weighted    weighted squared errors: vagram, mse, mse_normalized, constant_weights,
                value_weighted, sample_weighted
    likelihood  mle, vagram_nll
    taylor      vagram_unbounded, quadratic, quadratic_eigen
    values      vaml, value_equivalence, value_l1, muzero, calibrated_vaml
"""

from vagram_jax.losses.errors import check_batch
from vagram_jax.losses.likelihood import mle_loss, vagram_nll_loss
from vagram_jax.losses.registry import LOSSES, ModelLoss, get, register
from vagram_jax.losses.taylor import (
    quadratic_eigen_loss,
    quadratic_loss,
    vagram_unbounded_loss,
)
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
    "ModelLoss",
    "calibrated_vaml_loss",
    "check_batch",
    "constant_weights_loss",
    "get",
    "mle_loss",
    "mse_loss",
    "mse_normalized_loss",
    "muzero_loss",
    "quadratic_eigen_loss",
    "quadratic_loss",
    "register",
    "sample_weighted_loss",
    "vagram_loss",
    "vagram_nll_loss",
    "vagram_unbounded_loss",
    "value_equivalence_loss",
    "value_l1_loss",
    "value_weighted_loss",
    "vaml_loss",
]
