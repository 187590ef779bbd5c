"""Gymnasium's MuJoCo tasks without distractors and with a large model.

The paper's claim: VaGraM is on par with MLE on all of them, and better on Ant.
"""

from __future__ import annotations

from experiments.studies import loop, tasks

STUDY = loop.Study()
_TASKS = {
    "quick": ("hopper", "walker2d", "halfcheetah", "ant"),
    "full": ("hopper", "walker2d", "halfcheetah", "ant", "humanoid"),
}


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each task and loss.
    """
    rivals = (
        ("vagram", "mle", "mse_normalized") if preset == "full" else ("vagram", "mle")
    )
    return loop.product(
        {
            "task": {name: tasks.mujoco(name, preset) for name in _TASKS[preset]},
            "loss": loop.losses(*rivals),
        }
    )


run = loop.command(STUDY, cells)
