"""Hopper with distracting dimensions of two kinds: the paper's code's, and smooth ones.

Those of the paper's code jump, and have a standard deviation of about 8. Chaotic ones
are smooth, of the scale of the state, and take capacity to learn: what is lost with the
former and not with the latter is not due to irrelevance.
"""

from __future__ import annotations

from experiments.studies import loop, tasks

STUDY = loop.Study()
_RIVALS = {
    "quick": ("vagram", "mle", "mse_normalized", "sac"),
    "full": ("vagram", "vagram_mixed", "mle", "mse_normalized", "sac"),
}


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each kind and loss, with 15 dimensions.
    """
    kinds = {kind: {"distractor_kind": kind} for kind in ("chaotic", "switching")}
    return loop.product(
        {
            "task": {"hopper": tasks.mujoco("hopper", preset, "distracted")},
            "kind": kinds,
            "loss": loop.losses(*_RIVALS[preset]),
        }
    )


run = loop.command(STUDY, cells)
