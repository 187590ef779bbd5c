"""As `distraction`, on cartpole swing-up: a longer task, with fewer distractors."""

from __future__ import annotations

from experiments.studies import distraction, loop


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      As `distraction.cells`.
    """
    return distraction.cells(preset, "cartpole")


run = loop.command(distraction.STUDY, cells)
