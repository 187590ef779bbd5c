"""Return against the width of the model, with distracting dimensions beside the state.

The paper's claim: with a small model MLE deteriorates and VaGraM stays stable. Widths
of 64 need no choice of what to predict: there the losses should make no difference.
"""

from __future__ import annotations

from experiments.studies import Plan, loop, tasks

STUDY = loop.Study(axis="hidden")
_WIDTHS = {
    "quick": {"pendulum": (8, 16, 32, 64)},
    "full": dict.fromkeys(tasks.SMALL, (4, 8, 16, 32, 64)),
}


def run(plan: Plan) -> int:
    """Trains and concludes.

    Args:
      plan: what was asked.

    Returns:
      The exit status.
    """
    return loop.run(STUDY, cells(plan.preset), plan)


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each task, width and loss; plain SAC once for each task.
    """
    found = []
    for task, widths in _WIDTHS[preset].items():
        at = {"task": {task: tasks.small(task, preset)}}
        width = {str(w): {"model.hidden": f"{w},{w}"} for w in widths}
        rivals = loop.losses(
            "vagram", "vagram_mixed", "mle", "mle_raw", "mse_normalized"
        )
        found += loop.product(at | {"hidden": width, "loss": rivals})
        none = {"hidden": {loop.ANY: {}}, "loss": loop.losses("sac")}
        found += loop.product(at | none)
    return found
