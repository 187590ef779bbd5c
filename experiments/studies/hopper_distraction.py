"""Hopper with distracting dimensions of the kind that the paper's code has.

The paper's claim: both losses drop as dimensions are added; with 15 VaGraM still moves
forward and MLE is at the level of a random policy.
"""

from __future__ import annotations

from experiments.studies import loop, tasks

STUDY = loop.Study(axis="distractors")
_COUNTS = {"quick": (0, 15), "full": (0, 5, 10, 15)}


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each number of dimensions and loss.
    """
    counts = {str(n): {"distractors": str(n)} for n in _COUNTS[preset]}
    rivals = ("vagram", "vagram_mixed", "mle", "mse_normalized", "sac")
    return loop.product(
        {
            "task": {"hopper": tasks.mujoco("hopper", preset, "distracted")},
            "distractors": counts,
            "loss": loop.losses(*rivals),
        }
    )


run = loop.command(STUDY, cells)
