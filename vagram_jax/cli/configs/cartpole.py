"""Cartpole swing-up with a small model: a longer task than the pendulum."""

from vagram_jax.cli import configs


def get_config():
    """Returns what differs from the defaults."""
    config = configs.defaults()
    config.env = "cartpole_swingup"
    config.num_seeds = 4
    config.total_steps = 10_000
    config.warmup_steps = 1_000
    config.eval_every = 4
    config.replay_capacity = 10_000
    config.dynamics.hidden = (32, 32)
    config.dynamics.num_members = 5
    config.dynamics.num_elites = 3
    config.dynamics.normalize_state = config.dynamics.normalize_reward = True
    config.fit.batch_size = 256
    config.fit.learning_rate = 1e-3
    config.imagine.rollouts_per_step = 20
    config.updates_per_step = 5
    config.sac.hidden = (64, 64)
    config.sac.actor_learning_rate = 1e-3
    config.sac.critic_learning_rate = 1e-3
    config.sac.temperature_learning_rate = 1e-3
    return config
