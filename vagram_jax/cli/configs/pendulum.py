"""Pendulum swing-up with distracting dimensions and a small model."""

from vagram_jax.cli import configs


def get_config():
    """Returns what differs from the defaults."""
    config = configs.defaults()
    config.env = "pendulum"
    config.distractors = 15
    config.num_seeds = 4
    # Too few steps for plain SAC to learn the task: a model is worth having.
    config.total_steps = 2_000
    config.warmup_steps = 500
    config.steps_per_epoch = 125
    config.eval_every = 2
    config.replay_capacity = 2_000
    # Too small to predict all eighteen dimensions well.
    config.dynamics.hidden = (16, 16)
    config.dynamics.num_members = 5
    config.dynamics.num_elites = 3
    config.dynamics.normalize_state = config.dynamics.normalize_reward = True
    # With few transitions, large batches would give too few gradient steps per epoch.
    config.fit.batch_size = 64
    config.fit.learning_rate = 3e-3
    # The weights of VaGraM grow with the values; the error of the reward keeps its
    # share of the loss if their mean is one.
    config.weights.normalize = True
    config.imagine.rollouts_per_step = 20
    config.imagine.horizon = 5
    config.real_fraction = 0.4
    config.batch_size = 128
    config.updates_per_step = 10
    config.sac.normalize_obs = True
    config.sac.critic_layer_norm = True
    config.sac.hidden = (64, 64)
    config.sac.actor_learning_rate = 1e-3
    config.sac.critic_learning_rate = 1e-3
    config.sac.temperature_learning_rate = 1e-3
    return config
