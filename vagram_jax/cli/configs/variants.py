"""What the configs of the MuJoCo tasks share: the paper's settings and quick ones.

Comes in: a task. Goes out: a config, to which the task's file adds what is its own.
`paper` is what the paper's code runs, as far as its configs tell: there is no table of
the paper's own to go by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vagram_jax.cli import flags
from vagram_jax.run.loop import CONFIGS


def named(**makers: Callable[[], Any]) -> Callable[..., Any]:
    """The `get_config` of a file with several variants.

    Args:
      **makers: the variants by name, the default first, each a function that makes a
        config.

    Returns:
      A function of what stands behind `--config=FILE:`, empty for the default.

    Raises:
      ValueError: at its call, an unknown variant.
    """

    def get_config(variant: str = ""):
        name = variant or next(iter(makers))
        if name not in makers:
            raise ValueError(f"variant={variant!r}; accepted: {', '.join(makers)}")
        return makers[name]()

    return get_config


def paper(env: str) -> Any:
    """What the paper's code sets for all its tasks.

    Three things differ: each transition is drawn apart and not each batch as a whole
    from the real or the imagined ones; the first steps are uniformly random; and actor
    and targets move at each update, where the code has them wait for some.

    Args:
      env: the task.

    Returns:
      A `ConfigDict`.
    """
    config = flags.defaults(*CONFIGS)
    config.env = env
    config.num_seeds = 8
    config.warmup_steps = 10_000
    config.eval_every = 4
    config.weights.clip_quantile = 0.95
    config.weights.mse_coef = 1.0
    config.weights.mse_steps = 11_000.0  # The first 1,000 steps after the random ones.
    config.dynamics.log_var_bounds = "fixed"
    config.fit.patience = 10
    config.imagine.rollouts_per_step = 400
    config.imagine.keep_epochs = 4  # Each of 250 steps, where the code has 1,000.
    config.sac.hidden = (1024, 1024)
    config.sac.unit_features = True
    config.sac.value_through_policy = False
    return config


def quick(env: str) -> Any:
    """Small enough for a few cores: the course of a curve, not its end.

    Args:
      env: the task.

    Returns:
      A `ConfigDict`.
    """
    config = flags.defaults(*CONFIGS)
    config.env = env
    config.num_seeds = 2
    config.total_steps = 30_000
    config.warmup_steps = 1_000
    config.eval_every = 4
    config.eval_episodes = 5
    config.replay_capacity = 30_000
    config.dynamics.hidden = (128, 128)
    config.dynamics.num_members = 5
    config.dynamics.num_elites = 3
    config.dynamics.normalize_targets = True
    # A few thousand transitions need more steps than large batches would give them.
    config.fit.batch_size = 64
    config.fit.patience = 5
    config.fit.max_epochs = 50
    config.imagine.rollouts_per_step = 100
    config.imagine.keep_epochs = 4
    config.sac.hidden = (128, 128)
    config.updates_per_step = 10
    return config
