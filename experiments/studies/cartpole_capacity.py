"""As `capacity`, on cartpole swing-up: a longer task, with fewer distractors."""

from __future__ import annotations

from experiments.studies import Plan, capacity, loop


def run(plan: Plan) -> int:
    """Trains and concludes.

    Args:
      plan: what was asked.

    Returns:
      The exit status.
    """
    return loop.run(capacity.STUDY, cells(plan.preset), plan)


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      As `capacity.cells`.
    """
    return capacity.cells(preset, "cartpole")
