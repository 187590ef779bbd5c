"""Hopper with 15 distracting dimensions: what each option of the agent is worth.

Every variant differs from the plain agent in what its name says, and has the model of
the default and half-real batches. MLE trains with the two that are best for VaGraM,
which are the default and "all", and with "both", which is best for plain SAC.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments.studies import loop, tasks
from vagram_jax.analysis.study import Design

PRESETS = ("quick",)
_TASK = tasks.HALF_REAL | {
    "config": "hopper:quick_distracted",
    "total_steps": "15000",
    "replay_capacity": "15000",
}
_PLAIN = {"sac.normalize_obs": "false", "imagine.clip": "false"}
_LAYER_NORM = {"sac.critic_layer_norm": "true"}
_NORMALIZED = {"sac.normalize_obs": "true"}
_DIRECT = {"dynamics.target": "next_obs"}
_CLIPPED = {"imagine.clip": "true"}
_AGENTS: Mapping[str, loop.Settings] = {
    "plain": {},
    "layer_norm": _LAYER_NORM,
    "normalized": _NORMALIZED,
    "both": _LAYER_NORM | _NORMALIZED,
}
_MODELS: Mapping[str, loop.Settings] = {
    "normalized_clipped": _NORMALIZED | _CLIPPED,
    "both_direct": _AGENTS["both"] | _DIRECT,
    "both_clipped": _AGENTS["both"] | _CLIPPED,
    "all": _AGENTS["both"] | _DIRECT | _CLIPPED,
}
_BEST = ("normalized_clipped", "both", "all")
DESIGN = Design(
    contrast="agent",
    methods=("layer_norm", "normalized", "both", *_MODELS),
    baselines=("plain",),
)


def labeled(preset: str) -> list[loop.Labeled]:
    """VaGraM with every agent and model, plain SAC with every agent, MLE with three."""
    task = {"task": {"hopper": _TASK | _PLAIN}}
    best = {name: (_AGENTS | _MODELS)[name] for name in _BEST}
    return [
        *loop.product(
            task | {"loss": loop.losses("vagram"), "agent": _AGENTS | _MODELS}
        ),
        *loop.product(task | {"loss": loop.losses("sac"), "agent": _AGENTS}),
        *loop.product(task | {"loss": loop.losses("mle"), "agent": best}),
    ]


run = loop.command(DESIGN, labeled)
