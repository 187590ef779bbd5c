"""As `capacity`, on cartpole swing-up: a longer task, with fewer distractors."""

from __future__ import annotations

from experiments.studies import capacity, loop


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      As `capacity.cells`.
    """
    return capacity.cells(preset, "cartpole")


run = loop.command(capacity.STUDY, cells)
