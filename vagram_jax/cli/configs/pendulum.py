"""Pendulum swing-up with distracting dimensions and a small model."""

from vagram_jax.cli import configs


def get_config():
    """Returns what differs from the defaults."""
    config = configs.defaults()
    config.env = "pendulum"
    config.distractors = 10
    config.num_seeds = 4
    config.total_steps = 4_000
    config.warmup_steps = 500
    config.replay_capacity = 4_000
    # Too small to predict all thirteen dimensions well.
    config.dynamics.hidden = (16, 16)
    config.dynamics.num_members = 5
    config.dynamics.num_elites = 3
    config.dynamics.normalize_state = config.dynamics.normalize_reward = True
    # With few transitions, large batches would give too few gradient steps per epoch.
    config.fit.batch_size = 64
    config.fit.learning_rate = 3e-3
    config.imagine.rollouts_per_step = 20
    config.updates_per_step = 5
    config.sac.hidden = (64, 64)
    config.sac.actor_learning_rate = 1e-3
    config.sac.critic_learning_rate = 1e-3
    config.sac.temperature_learning_rate = 1e-3
    return config
