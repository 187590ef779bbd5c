"""Pendulum swing-up with distracting dimensions and a small model: the main job.

Only what differs from the defaults is stated.
"""

from vagram_jax.cli import flags
from vagram_jax.run.loop import CONFIGS


def get_config(variant: str = ""):
    """The config of the task.

    Args:
      variant: none is known.

    Returns:
      A `ConfigDict`.

    Raises:
      ValueError: an unknown variant.
    """
    if variant:
        raise ValueError(f"pendulum.py: variant={variant!r}; it has none")
    config = flags.defaults(*CONFIGS)
    config.env = "pendulum"
    config.distractors = 10
    config.num_seeds = 4
    config.total_steps = 4_000
    config.warmup_steps = 500
    config.replay_capacity = 4_000
    # Small enough that the model can't learn thirteen dimensions well.
    config.dynamics.hidden = (16, 16)
    config.dynamics.num_members = 5
    config.dynamics.num_elites = 3
    config.dynamics.normalize_targets = True
    # A few hundred transitions need more steps than large batches would give them.
    config.fit.batch_size = 64
    config.fit.learning_rate = 3e-3
    config.imagine.rollouts_per_step = 20
    config.updates_per_step = 5
    config.sac.hidden = (64, 64)
    config.sac.actor_learning_rate = 1e-3
    config.sac.critic_learning_rate = 1e-3
    config.sac.temperature_learning_rate = 1e-3
    return config
