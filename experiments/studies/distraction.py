"""Return against the number of distracting dimensions, of the task's own scale.

The paper's claim: MLE fails as they grow, VaGraM does so later. Without any there
should be no difference.
"""

from __future__ import annotations

from experiments.studies import loop, tasks

STUDY = loop.Study(axis="distractors")
_COUNTS = {
    ("pendulum", "quick"): (0, 15),
    ("cartpole", "quick"): (0, 5),
    ("pendulum", "full"): (0, 5, 10, 15, 20, 30),
    ("cartpole", "full"): (0, 5, 10, 15, 20, 30),
}


def cells(preset: str, task: str = "pendulum") -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".
      task: one of `tasks.SMALL`.

    Returns:
      A cell for each number of dimensions and loss.
    """
    counts = {str(n): {"distractors": str(n)} for n in _COUNTS[task, preset]}
    return loop.product(
        {
            "task": {task: tasks.small(task, preset)},
            "distractors": counts,
            "loss": loop.losses(*tasks.rivals(task, preset), "sac"),
        }
    )


run = loop.command(STUDY, cells)
