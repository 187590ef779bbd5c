"""Settings that several studies share: the two small tasks and the MuJoCo tasks."""

from __future__ import annotations

SMALL = ("pendulum", "cartpole")
"""The tasks that are small enough for a CPU."""

# Found by search on seeds below 100. Few steps, many updates and rollouts of five steps
# make a model worth having: plain SAC needs more steps.
_SHARED = {
    "batch_size": "128",
    "updates_per_step": "20",
    "imagine.horizon": "5",
    "real_fraction": "0.4",
    "dynamics.hidden": "16,16",
    "distractors": "15",
    "first_seed": "100",
    "sac.normalize_obs": "true",
    "sac.critic_layer_norm": "true",
}
_SMALL = {
    "pendulum": {
        "config": "pendulum",
        "steps_per_epoch": "125",
        "total_steps": "2000",
        "eval_every": "2",
    },
    # An action lasts 0.08 s, because shorter random actions hardly move the pole. With
    # fifteen distractors no loss learns the task in 3,000 steps, nor does plain SAC.
    "cartpole": {
        "config": "cartpole",
        "action_repeat": "4",
        "batch_size": "64",
        "distractors": "5",
        "imagine.horizon": "3",
        "warmup_steps": "500",
        "eval_every": "2",
        "fit.batch_size": "64",
        "fit.learning_rate": "3e-3",
    },
}
# Seeds start at 100, because the settings were chosen on lower ones.
_LONG_MUJOCO = {"first_seed": "100", "eval_every": "8"}
_LONG_STEPS = {"hopper": "60000"}
FRESH = {"first_seed": "200", "num_seeds": "8"}
"""Seeds of Hopper that played no part in the choice of a setting."""
HALF_REAL = {"real_fraction": "0.5", "fit.min_improvement": "0.01"}
"""The batches and fits that were the default before `hopper_real_fraction`."""
_PRESETS = {
    "quick": {
        "pendulum": {"num_seeds": "4"},
        "cartpole": {"num_seeds": "4", "total_steps": "4000"},
    },
    "full": {
        "pendulum": {"num_seeds": "10"},
        "cartpole": {"num_seeds": "10", "total_steps": "10000"},
    },
}


def small(task: str, preset: str) -> dict[str, str]:
    """The settings of a small task, with distractors of the scale of the state.

    Seeds start at 100, because the settings were chosen on lower ones.

    Args:
      task: one of `SMALL`.
      preset: "quick" or "full".

    Returns:
      Dotted keys to text.
    """
    return _SHARED | _SMALL[task] | _PRESETS[preset][task]


def model_losses(task: str, preset: str) -> tuple[str, ...]:
    """The losses that are compared on a small task, without plain SAC.

    Args:
      task: one of `SMALL`.
      preset: "quick" or "full"; "quick" has no time for all losses.

    Returns:
      Names for `loop.losses`.
    """
    if (task, preset) == ("cartpole", "quick"):
        return "vagram", "mle_raw", "mse_normalized"
    raw = () if preset == "quick" else ("mse_raw",)
    return "vagram", "vagram_mixed", "mle", "mle_raw", *raw, "mse_normalized"


def mujoco(name: str, preset: str, variant: str = "") -> dict[str, str]:
    """The settings of a MuJoCo task: the paper's, or what a CPU can train.

    Args:
      name: a Gymnasium task with a config.
      preset: "long" for most of a learning curve, and "full" for the paper's settings.
      variant: "small" or "distracted" for Hopper, or empty.

    Returns:
      Dotted keys to text.
    """
    kind = "paper" if preset == "full" else "quick"
    config = {"config": f"{name}:{kind}_{variant}" if variant else f"{name}:{kind}"}
    if preset == "full":
        return config
    steps = _LONG_STEPS.get(name, "30000")
    return config | _LONG_MUJOCO | {"total_steps": steps, "replay_capacity": steps}
