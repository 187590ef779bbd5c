"""Hopper without distractors: the agent of `quick` against a plain one.

The agent was chosen in `hopper_agent`, where the task has distracting dimensions and
batches are half real.
"""

from __future__ import annotations

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("long",)
DESIGN = Design(contrast="agent", methods=("chosen",), baselines=("plain",))
_AGENTS: dict[str, loop.Settings] = {
    "plain": {"sac.normalize_obs": "false", "imagine.clip": "false"},
    "chosen": {},
}


def labeled(preset: str) -> list[loop.Labeled]:
    """Both agents with two model losses and without a model."""
    length = {"total_steps": "15000", "replay_capacity": "15000"}
    hopper = tasks.mujoco("hopper", preset) | length
    return loop.product(
        {
            "task": {"hopper": hopper},
            "loss": loop.losses("vagram", "mle", "sac"),
            "agent": _AGENTS,
        }
    )


run = loop.command(DESIGN, labeled)
