"""As `confirmation`, on cartpole swing-up with five distractors, after 4,000 steps.

Action repeat, distractors, horizon and steps were chosen on seeds 0 to 3 and seen again
on 100 to 103 in `cartpole_distraction`; these are others.
"""

from __future__ import annotations

from experiments.studies import confirmation, loop, tasks

_SEEDS = {"quick": "10", "full": "30"}


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each loss.
    """
    seeds = {"num_seeds": _SEEDS[preset], "first_seed": "200"}
    cartpole = tasks.small("cartpole", preset) | seeds
    rivals = loop.losses(*tasks.rivals("cartpole", preset), "sac")
    return loop.product({"task": {"cartpole": cartpole}, "loss": rivals})


run = loop.command(confirmation.STUDY, cells)
