"""Finds seeds that have diverged and freezes them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vagram_jax.envs import episodes
from vagram_jax.types import Metrics

CAUSES = ("", "environment", "parameter", "critic", "model")
"""Why a seed is frozen, by the number in `MBPOState.diverged_by`.

No transition so far was finite, a parameter isn't finite, a critic exceeds its bound,
or no fit of the model was finite.
"""


def freeze_if_diverged(
    old: Any, new: Any, metrics: Metrics, *, config: Any, has_model: bool
) -> Any:
    """Returns the new state of a healthy seed, or the old one of a diverged seed.

    A seed has diverged when

    - no transition so far was finite: it would train on rows that were never written;
    - a parameter isn't finite;
    - the value of a critic exceeds `divergence_slack (max |r| + alpha_0 action_dim) /
      (1 - discount)`. The bound has the initial temperature alpha_0: a temperature that
      runs away takes the values along and is detected;
    - no fit of the model so far was finite.

    Selecting keeps NaN out of all other seeds.

    Args:
      old: the training state before the epoch, an `MBPOState`.
      new: the state after it.
      metrics: metrics of the epoch.
      config: the algorithm, an `MBPOConfig`.
      has_model: whether a model is fitted.
    """
    learned = (new.agent, new.dynamics.params.network, new.termination)
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(learned)]
    fitted = new.dynamics.was_finite | (not has_model)
    reward = jnp.max(jnp.abs(new.replay.data.reward))
    bonus = config.sac.initial_temperature * new.replay.data.action.shape[-1]
    bound = config.divergence_slack * (reward + bonus)
    within = metrics["sac/q_max"] * (1.0 - config.sac.discount) <= bound
    has_data = new.replay.size > 0
    failed = ~jnp.stack([has_data, jnp.all(jnp.stack(finite)), within, fitted])
    healthy = ~jnp.any(failed)
    alive = old.alive & healthy
    has_failed_now = old.alive & ~healthy
    state = jax.tree.map(partial(episodes.choose, alive), new, old)
    return state.replace(
        alive=alive,
        diverged_at=jnp.where(has_failed_now, new.env_steps, old.diverged_at).astype(
            jnp.int32
        ),
        diverged_by=jnp.where(
            has_failed_now, 1 + jnp.argmax(failed), old.diverged_by
        ).astype(jnp.int32),
    )
