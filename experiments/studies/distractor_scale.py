"""Return against the scale of the distracting dimensions: what units alone do.

The distractors of the paper's code have ten to a hundred times the scale of a task's
own dimensions, and its baselines raw targets. So its effect could be one of irrelevant
dimensions or one of badly scaled targets; here each has its own axis. A loss that
standardises its targets can't tell these scales apart.
"""

from __future__ import annotations

from experiments.studies import loop, tasks

STUDY = loop.Study(axis="scale")
# Squared error and likelihood with raw targets, and one loss that can't tell scales.
_RIVALS = ("vagram", "vagram_mixed", "mle_raw", "mse", "mse_normalized", "sac")


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each task, scale and loss.
    """
    names, sizes = tasks.SMALL, (1, 3, 10)
    if preset == "quick":
        names, sizes = ("pendulum",), (1, 10)
    scales = {str(s): {"distractor_scale": str(float(s))} for s in sizes}
    return loop.product(
        {
            "task": {task: tasks.small(task, preset) for task in names},
            "scale": scales,
            "loss": loop.losses(*_RIVALS),
        }
    )


run = loop.command(STUDY, cells)
