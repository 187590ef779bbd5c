"""The settings that the configs of the MuJoCo tasks share.

`paper` has the settings of the paper's code; the paper itself has no table of them.
`quick` is small enough for a few cores, and shows how a curve begins, not its end.
"""

from __future__ import annotations

from typing import Any

from vagram_jax.cli import configs


def paper(env: str) -> Any:
    """Returns what the paper's code sets for all its tasks.

    Three things differ from that code: each transition of a batch is drawn from the
    real or the imagined data, where the code draws it from one of them for the whole
    batch; the first steps are uniformly random; and every update moves the actor and
    the targets, where the code skips some.

    Args:
      env: name of the task.
    """
    config = configs.defaults()
    config.env = env
    config.num_seeds = 8
    config.warmup_steps = 10_000
    config.eval_every = 4
    config.gradients.clip_quantile = 0.95
    # Plain squared error is added in the first 1,000 steps after the random ones.
    config.weights.mse_coef = (1.0, 0.0, 11_000.0, 11_000.0)
    config.dynamics.log_var_bounds = "fixed"
    config.fit.patience = 10
    config.imagine.rollouts_per_step = 400
    config.imagine.keep_epochs = 4  # Of 250 steps each; the code's epoch has 1,000.
    config.sac.hidden = (1024, 1024)
    config.sac.actor_unit_features = config.sac.critic_unit_features = True
    config.sac.value_through_policy = False
    return config


def quick(env: str) -> Any:
    """Returns settings that are small enough for a few cores.

    Args:
      env: name of the task.
    """
    config = configs.defaults()
    config.env = env
    config.num_seeds = 4  # with fewer, losses aren't compared
    config.total_steps = 30_000
    config.warmup_steps = 1_000
    config.eval_every = 4
    config.eval_episodes = 5
    config.replay_capacity = 30_000
    config.dynamics.hidden = (128, 128)
    config.dynamics.num_members = 5
    config.dynamics.num_elites = 3
    config.dynamics.normalize_state = config.dynamics.normalize_reward = True
    # A network that continues from the last fit needs few steps for the data that is
    # new, and the cost of a fit doesn't grow with the data.
    config.fit.batch_size = 128
    config.fit.learning_rate = 3e-3
    config.fit.max_steps = 250
    # Few such short fits improve a member by the 1% of MBPO, which undoes the others.
    config.fit.min_improvement = 0.0
    # The weights of VaGraM grow with the values; the error of the reward keeps its
    # share of the loss if their mean is one.
    config.weights.normalize = True
    config.imagine.rollouts_per_step = 100
    config.imagine.clip = True
    config.imagine.keep_epochs = 4
    # On Hopper better than 5% and 50%, but not significantly (study
    # hopper_real_fraction).
    config.real_fraction = 0.9
    # Layers of 128 and batches of 256 take four times as long, and were not clearly
    # better in 15,000 steps of Hopper.
    config.batch_size = 64
    config.sac.hidden = (64, 64)
    # Best for VaGraM, with clipped states. LayerNorm in the critics adds nothing
    # significant (study hopper_agent).
    config.sac.normalize_obs = True
    config.updates_per_step = 10
    return config
