"""Pendulum: VaGraM against its parts, and against an oracle of the distractors.

Each variant differs from `vagram_mixed` in what its name says, except for `vagram`,
`not_normalized` and losses of another kind. The oracle is squared error on normalized
targets that gives a distracting dimension a twentieth of the weight: it knows what
VaGraM has to learn. The weight is not zero, because the model's error in dimensions of
no weight is unbounded.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax import losses
from vagram_jax.analysis.study import Design
from vagram_jax.losses import weighted

_DISTRACTORS = int(tasks.small("pendulum", "quick")["distractors"])
_DISTRACTOR_WEIGHT = 0.05
_MIXED = loop.losses("vagram_mixed")["vagram_mixed"]
_WARM_START = {
    "weights.gradient_coef": "0,0.8,500,1250",
    "weights.mse_coef": "1,0.2,500,1250",
}
_HALF = {"weights.gradient_coef": "0.5", "weights.mse_coef": "0.5"}
_VARIANTS = {
    "vagram_mixed": _MIXED,
    "vagram": {"loss": "vagram", "weights.normalize": "true"},
    "half_mixed": _MIXED | _HALF,
    "warm_start": _MIXED | _WARM_START,
    "constant_weights": _MIXED | {"loss": "constant_weights"},
    "gradient_at_delta": _MIXED | {"gradients.at": "delta"},
    "target_critics": _MIXED | {"sac.value_critics": "target"},
    "action_held": _MIXED | {"sac.value_through_policy": "false"},
    "clipped": _MIXED | {"gradients.clip_quantile": "0.95"},
    "not_normalized": {"loss": "vagram", "weights.normalize": "false"},
    "gaussian_head": _MIXED | {"loss": "vagram_nll"},
    "unbounded": {"loss": "vagram_unbounded"},
    "value_weighted": {"loss": "value_weighted"},
    "oracle": {"loss": "oracle"},
}
DESIGN = Design(contrast="variant")
# `quick` has no time for a variant between two others, for a detail of the gradient and
# for baselines other than plain SAC.
_ONLY_FULL = {"half_mixed", "action_held", *DESIGN.baselines} - {"sac"}


def labeled(preset: str) -> list[loop.Labeled]:
    """Every variant, on the task whose distracting dimensions the oracle knows."""
    variants = _VARIANTS | loop.losses(*DESIGN.baselines)
    if preset == "quick":
        variants = {k: v for k, v in variants.items() if k not in _ONLY_FULL}
    settings = tasks.small("pendulum", preset)
    return loop.product({"task": {"pendulum": settings}, "variant": variants})


def _oracle_weights(batch, value_fn=None, *, where=None):
    """Weights of squared error on normalized targets, small for distractors."""
    weights = weighted.variance_weights(batch, value_fn, where=where)
    obs_dim = batch.obs.shape[-1]
    distractors = slice(obs_dim - _DISTRACTORS, obs_dim)
    return weights.at[..., distractors].multiply(_DISTRACTOR_WEIGHT)


@losses.register("oracle", prepare=_oracle_weights)
def oracle_loss(params, batch, value_fn=None, *, prepared=None, **options):
    """Squared error on normalized targets with small weights of the distractors.

    Args:
      params: from `init_dynamics`, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      prepared: `[B, obs_dim + 1]` weights, from all of the data.
      **options: `predict`, as for any loss.

    Returns:
      A scalar.
    """
    prepared = _oracle_weights(batch) if prepared is None else prepared
    return losses.mse_normalized_loss(params, batch, prepared=prepared, **options)


run = loop.command(DESIGN, labeled)
