"""Pendulum: likelihood and squared error, each in several forms, and plain SAC.

The paper's code compares with likelihood on raw targets with fixed bounds of the
variance. Normalized targets and learned bounds are what a careful user would take.
VAML, the predecessor of VaGraM, is trained as well.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

_FIXED, _LEARNED = ({"dynamics.log_var_bounds": text} for text in ("fixed", "learned"))
_BASELINES = {
    "mse_raw": {"loss": "mse"} | loop.RAW,
    "mse_normalized": {"loss": "mse_normalized"} | loop.NORMALIZED,
    "mle_raw_fixed": {"loss": "mle"} | loop.RAW | _FIXED,
    "mle_raw_learned": {"loss": "mle"} | loop.RAW | _LEARNED,
    "mle_normalized_fixed": {"loss": "mle"} | loop.NORMALIZED | _FIXED,
    "mle_normalized_learned": {"loss": "mle"} | loop.NORMALIZED | _LEARNED,
    "sac": {"loss": "sac"},
}
_METHODS = loop.losses("vagram", "vagram_mixed", "vaml", normalize=True)
DESIGN = Design(contrast="model", baselines=tuple(_BASELINES))


def labeled(preset: str) -> list[loop.Labeled]:
    """Every task, baseline and method."""
    names = ("pendulum",) if preset == "quick" else tasks.SMALL
    return loop.product(
        {
            "task": {task: tasks.small(task, preset) for task in names},
            "model": _METHODS | _BASELINES,
        }
    )


run = loop.command(DESIGN, labeled)
