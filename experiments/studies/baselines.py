"""Which baseline is the strongest: likelihood and squared error, raw and normalised.

MLE with fixed bounds of the variance and raw targets is what the paper's code compares
with. Normalised targets and learned bounds are what a careful user would take. VAML,
from which VaGraM descends, is trained beside them.
"""

from __future__ import annotations

from experiments.studies import loop, tasks

_RAW, _NORMALIZED = ({"dynamics.normalize_targets": text} for text in ("false", "true"))
_FIXED, _LEARNED = ({"dynamics.log_var_bounds": text} for text in ("fixed", "learned"))
_BASELINES = {
    "mse_raw": {"loss": "mse"} | _RAW,
    "mse_normalized": {"loss": "mse_normalized"} | _NORMALIZED,
    "mle_raw_fixed": {"loss": "mle"} | _RAW | _FIXED,
    "mle_raw_learned": {"loss": "mle"} | _RAW | _LEARNED,
    "mle_normalized_fixed": {"loss": "mle"} | _NORMALIZED | _FIXED,
    "mle_normalized_learned": {"loss": "mle"} | _NORMALIZED | _LEARNED,
    "sac": {"loss": "sac"},
}
_METHODS = loop.losses("vagram", "vagram_mixed", "vaml")
STUDY = loop.Study(contrast="model", baselines=tuple(_BASELINES))


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each task and baseline, and for the methods.
    """
    names = ("pendulum",) if preset == "quick" else tasks.SMALL
    return loop.product(
        {
            "task": {task: tasks.small(task, preset) for task in names},
            "model": _METHODS | _BASELINES,
        }
    )


run = loop.command(STUDY, cells)
