"""Return against the number of distracting dimensions, of the task's own scale.

The paper's claim: MLE fails as they grow, VaGraM does so later. Without any there
should be no difference.
"""

from __future__ import annotations

from experiments.studies import Plan, loop, tasks

STUDY = loop.Study(axis="distractors")
_COUNTS = {
    "quick": {"pendulum": (0, 10, 15, 20)},
    "full": dict.fromkeys(tasks.SMALL, (0, 5, 10, 15, 20, 30)),
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
      A cell for each task, number of dimensions and loss.
    """
    found = []
    for task, counts in _COUNTS[preset].items():
        found += loop.product(
            {
                "task": {task: tasks.small(task, preset)},
                "distractors": {str(n): {"distractors": str(n)} for n in counts},
                "loss": loop.losses(
                    "vagram", "vagram_mixed", "mle", "mle_raw", "mse_normalized", "sac"
                ),
            }
        )
    return found
