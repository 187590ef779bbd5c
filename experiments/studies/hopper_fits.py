"""Hopper: return and time with fits until no member improves and with few steps.

The cost of a fit that passes over all data grows with the data. A network that
continues from the last fit needs only some steps for the data that is new.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
DESIGN = Design(contrast="fit", methods=("budget",), baselines=("patience",))
_FITS: Mapping[str, loop.Settings] = {
    "budget": {},
    "patience": {
        "fit.max_steps": "none",
        "fit.batch_size": "64",
        "fit.learning_rate": "1e-3",
        "fit.max_epochs": "50",
    },
}


def labeled(preset: str) -> list[loop.Labeled]:
    """Each kind of fits for two losses, for 25,000 steps without distractors."""
    length = {"total_steps": "25000", "replay_capacity": "25000"}
    hopper = tasks.mujoco("hopper", preset) | tasks.HALF_REAL | length
    return loop.product(
        {
            "task": {"hopper": hopper},
            "fit": _FITS,
            "loss": loop.losses("vagram", "mle"),
        }
    )


run = loop.command(DESIGN, labeled)
