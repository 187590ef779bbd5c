"""Return against the width of the model, with distracting dimensions beside the state.

The paper's claim: with a small model MLE deteriorates and VaGraM stays stable. Widths
of 64 need no choice of what to predict: there the losses should make no difference.
"""

from __future__ import annotations

from experiments.studies import loop, tasks

STUDY = loop.Study(axis="hidden")
_WIDTHS = {
    ("pendulum", "quick"): (16, 64),
    ("cartpole", "quick"): (16, 64),
    ("pendulum", "full"): (4, 8, 16, 32, 64),
    ("cartpole", "full"): (4, 8, 16, 32, 64),
}


def cells(preset: str, task: str = "pendulum") -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".
      task: one of `tasks.SMALL`.

    Returns:
      A cell for each width and loss; plain SAC once.
    """
    at = {"task": {task: tasks.small(task, preset)}}
    widths = {str(w): {"dynamics.hidden": f"{w},{w}"} for w in _WIDTHS[task, preset]}
    none = {"hidden": {loop.ANY: {}}, "loss": loop.losses("sac")}
    rivals = {"hidden": widths, "loss": loop.losses(*tasks.rivals(task, preset))}
    return loop.product(at | rivals) + loop.product(at | none)


run = loop.command(STUDY, cells)
