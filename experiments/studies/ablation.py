"""VaGraM against its parts, and an oracle of the distractors.

Each variant differs from `vagram_mixed`, VaGraM with a fifth of squared error on
normalised targets, in what its name says. The oracle is squared error on normalised
targets that counts a distracting dimension a twentieth as much: what VaGraM would have
to find out. Without any weight on them imagined distractors drift, and critics diverge.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax import losses
from vagram_jax.losses import value_gradients as weights

_DISTRACTORS = int(tasks.small("pendulum", "quick")["distractors"])
_OF_A_DISTRACTOR = 0.05
_MIXED = loop.losses("vagram_mixed")["vagram_mixed"]
_VARIANTS = {
    "vagram_mixed": _MIXED,
    "vagram": {"loss": "vagram"},
    "half_mixed": _MIXED | {"weights.gradient_share": "0.5"},
    "warm_start": _MIXED | {"weights.gradient_share": "0,0.8,500,1250"},
    "constant_weights": _MIXED | {"loss": "constant_weights"},
    "gradient_at_delta": _MIXED | {"weights.gradient_at": "delta"},
    "target_critics": _MIXED | {"sac.value_critics": "target"},
    "action_held": _MIXED | {"sac.value_through_policy": "false"},
    "clipped": _MIXED | {"weights.clip_quantile": "0.95"},
    "not_normalized": {"loss": "vagram", "weights.normalize": "false"},
    "gaussian_head": _MIXED | {"loss": "vagram_nll"},
    "unbounded": {"loss": "vagram_unbounded"},
    "value_weighted": {"loss": "value_weighted"},
    "oracle": {"loss": "oracle"},
}
STUDY = loop.Study(contrast="variant")
# What `quick` has no time for: a variant between two others, a detail of the gradient,
# and other baselines than plain SAC.
_FULL_ALONE = {"half_mixed", "action_held", *loop.BASELINES} - {"sac"}


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each variant, on the task for which the oracle knows the distractors.
    """
    pendulum = {"pendulum": tasks.small("pendulum", preset)}
    variants = _VARIANTS | loop.losses(*loop.BASELINES)
    if preset == "quick":
        variants = {k: v for k, v in variants.items() if k not in _FULL_ALONE}
    return loop.product({"task": pendulum, "variant": variants})


def _real_dimensions(batch, value_fn=None, *, where=None, config=None):
    """The weights of squared error on normalised targets, little on a distractor."""
    found = weights.from_variances(batch, value_fn, where=where)
    obs_dim = batch.obs.shape[-1]
    distractors = slice(obs_dim - _DISTRACTORS, obs_dim)
    return found.at[..., distractors].multiply(_OF_A_DISTRACTOR)


@losses.register("oracle", prepare=_real_dimensions)
def oracle_loss(params, batch, value_fn=None, *, weights=None, **options):
    """Squared error on normalised targets that hardly counts the distractors.

    Args:
      params: what `init_dynamics` returned, or any pytree with `predict`.
      batch: `[B, ...]` transitions, or `[E, B, ...]`, one batch per member.
      value_fn: not used.
      weights: `[B, obs_dim + 1]`, prepared over all of the data.
      **options: `predict`, as of any loss.

    Returns:
      A scalar.
    """
    weights = _real_dimensions(batch) if weights is None else weights
    return losses.mse_normalized_loss(params, batch, weights=weights, **options)


run = loop.command(STUDY, cells)
