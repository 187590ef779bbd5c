"""VaGraM against its parts, and against an oracle that knows the distractors.

Each variant differs from `vagram`, the paper's formula with nothing added, in what its
name says. The oracle is squared error on normalised targets that doesn't count the
distracting dimensions: what VaGraM would have to find out.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax import losses, weights

_DISTRACTORS = 10  # of both tasks in `tasks`
_VARIANTS = {
    "vagram": {"loss": "vagram"},
    "unbounded": {"loss": "vagram_unbounded"},
    "constant_weights": {"loss": "constant_weights"},
    "value_weighted": {"loss": "value_weighted"},
    "gradient_at_delta": {"loss": "vagram", "weights.gradient_at": "delta"},
    "target_critics": {"loss": "vagram", "sac.value_critics": "target"},
    "clipped": {"loss": "vagram", "weights.clip_quantile": "0.95"},
    "warm_start": {
        "loss": "vagram",
        "weights.mse_coef": "1.0",
        "weights.mse_steps": "1500",
    },
    "normalized": {"loss": "vagram", "weights.normalize": "true"},
    "gaussian_head": {"loss": "vagram_nll"},
    "half_mse": {
        "loss": "vagram",
        "weights.normalize": "true",
        "weights.mixed_with": "mse_normalized",
        "weights.gradient_share": "0.5",
    },
    "oracle": {"loss": "oracle"},
    "mse": {"loss": "mse"},
    "mse_normalized": {"loss": "mse_normalized"},
    "sac": {"loss": "sac"},
}
STUDY = loop.Study(contrast="variant")


def run(plan) -> int:
    """Trains and concludes.

    Args:
      plan: what was asked, a `study.Plan`.

    Returns:
      The exit status.
    """
    return loop.run(STUDY, cells(plan.preset), plan)


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each task and variant.
    """
    names = ("pendulum",) if preset == "quick" else tasks.SMALL
    return loop.product(
        {
            "task": {task: tasks.small(task, preset) for task in names},
            "variant": _VARIANTS,
        }
    )


def _real_dimensions(batch, value_fn=None, *, where=None, config=None):
    """The weights of squared error on normalised targets, none on a distractor."""
    found = weights.from_variances(batch, value_fn, where=where)
    obs_dim = batch.obs.shape[-1]
    return found.at[..., obs_dim - _DISTRACTORS : obs_dim].set(0.0)


@losses.register("oracle", prepare=_real_dimensions)
def oracle_loss(params, batch, value_fn=None, *, weights=None, **options):
    """Squared error on normalised targets without the distracting dimensions.

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
