"""Pendulum: return against the scale of the distracting dimensions.

The distracting dimensions of the paper's code have ten to a hundred times the scale of
the state, and its baselines don't normalize their targets. Its results could therefore
come from irrelevant dimensions or from badly scaled targets. This study varies the
scale alone. A loss on normalized targets does not depend on it, and neither does
VaGraM: a value gradient falls as the scale of its dimension grows.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

DESIGN = Design(axis="scale")
_LOSSES = ("vagram", "vagram_mixed", "mle", "mle_raw", "mse", "mse_normalized", "sac")


def labeled(preset: str) -> list[loop.Labeled]:
    """Every task, scale and loss."""
    names, sizes = tasks.SMALL, (1, 3, 10)
    if preset == "quick":
        names, sizes = ("pendulum",), (1, 10)
    scales = {str(s): {"distractor_scale": str(float(s))} for s in sizes}
    return loop.product(
        {
            "task": {task: tasks.small(task, preset) for task in names},
            "scale": scales,
            "loss": loop.losses(*_LOSSES, normalize=True),
        }
    )


run = loop.command(DESIGN, labeled)
