"""Hopper with a small and a large model, as the paper has it.

The paper's claim: with two and three layers of 64 MLE deteriorates quickly and VaGraM
stays stable. The quick preset has small networks throughout and few steps.
"""

from __future__ import annotations

from experiments.studies import loop, tasks

STUDY = loop.Study(contrast="loss")
_HIDDEN = {
    "quick": {"small": "8,8", "large": "128,128"},
    "full": {
        "2x64": "64,64",
        "3x64": "64,64,64",
        "4x64": "64,64,64,64",
        "4x200": "200,200,200,200",
    },
}


def cells(preset: str) -> list[loop.Cell]:
    """The trainings.

    Args:
      preset: "quick" or "full".

    Returns:
      A cell for each model and loss; plain SAC once.
    """
    task = {"task": {"hopper": tasks.mujoco("hopper", preset)}}
    hidden = {name: {"dynamics.hidden": text} for name, text in _HIDDEN[preset].items()}
    rivals = loop.losses("vagram", "vagram_mixed", "mle", "mse_normalized")
    found = loop.product(task | {"hidden": hidden, "loss": rivals})
    none = {"hidden": {loop.ANY: {}}, "loss": loop.losses("sac")}
    return found + loop.product(task | none)


run = loop.command(STUDY, cells)
