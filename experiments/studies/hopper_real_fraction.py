"""Hopper: the share of real transitions in the agent's batches.

MBPO's batches are 5% real. If the agent learns mostly from imagined transitions, the
errors of the model decide what it learns. If it learns from real ones alone, the model
is of no use. The share that this study chose is the default of MuJoCo's tasks.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
_SHARES = ("0.05", "0.5", "0.9")
_SEEDS = {"first_seed": "0", "num_seeds": "8"}
DESIGN = Design(contrast="real", methods=("0.9",), baselines=("0.05", "0.5", "all"))


def labeled(preset: str) -> list[loop.Labeled]:
    """Each share for two losses, for 25,000 steps without distractors."""
    length = {"total_steps": "25000", "replay_capacity": "25000"}
    hopper = tasks.mujoco("hopper", preset) | length | _SEEDS
    task = {"task": {"hopper": hopper}}
    shares = {share: {"real_fraction": share} for share in _SHARES}
    no_model = {"all": loop.losses("sac")["sac"]}  # compared with both losses
    return [
        *loop.product(task | {"real": shares, "loss": loop.losses("vagram", "mle")}),
        *loop.product(task | {"real": no_model}),
    ]


run = loop.command(DESIGN, labeled, against=loop.PUBLISHED)
