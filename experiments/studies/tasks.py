"""The settings that studies share: of the two small tasks and of MuJoCo's.

Comes in: a task and a preset. Goes out: settings, as `loop.Axes` takes them.
"""

from __future__ import annotations

SMALL = ("pendulum", "cartpole")
"""The tasks that are small enough for a CPU."""

# Found by search on other seeds: few steps, many updates and rollouts of five steps,
# where a model is worth having, for plain SAC needs longer.
_SHARED = {
    "batch_size": "128",
    "updates_per_step": "20",
    "imagine.horizon": "5",
    "real_fraction": "0.4",
    "dynamics.hidden": "16,16",
    "distractors": "15",
    "weights.normalize": "true",
    "weights.mixed_with": "mse_normalized",
    "first_seed": "100",
}
_SMALL = {
    "pendulum": {
        "config": "vagram_jax/cli/configs/pendulum.py",
        "steps_per_epoch": "125",
        "total_steps": "2000",
        "eval_every": "2",
    },
    # An action lasts 0.08 s: shorter ones, drawn at random, hardly move the pole. With
    # fifteen distractors no loss has learned it after 3,000 steps, nor has plain SAC.
    # Batches of 64 take two thirds of the time of 128; four seeds tell no return apart.
    "cartpole": {
        "config": "vagram_jax/cli/configs/cartpole.py",
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
# A few thousand steps with small networks: the course of a curve, not its end.
_QUICK_MUJOCO = {
    "num_seeds": "4",
    "total_steps": "11000",
    "replay_capacity": "11000",
    "sac.hidden": "64,64",
    "batch_size": "64",
    "fit.batch_size": "128",
    "fit.max_epochs": "10",
}
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
    """The settings of a small task, with distractors of its own scale.

    Seeds start at 100: the settings were chosen on lower ones.

    Args:
      task: one of `SMALL`.
      preset: "quick" or "full".

    Returns:
      Settings.
    """
    return _SHARED | _SMALL[task] | _PRESETS[preset][task]


def rivals(task: str, preset: str) -> tuple[str, ...]:
    """The losses that are compared on a small task, beside plain SAC.

    Args:
      task: one of `SMALL`.
      preset: "quick" or "full".

    Returns:
      Names for `loop.losses`; `quick` has no time for all.
    """
    if (task, preset) == ("cartpole", "quick"):
        return "vagram", "mle_raw", "mse_normalized"
    raw = () if preset == "quick" else ("mse_raw",)
    return "vagram", "vagram_mixed", "mle", "mle_raw", *raw, "mse_normalized"


def mujoco(name: str, preset: str, variant: str = "") -> dict[str, str]:
    """The settings of a MuJoCo task: the paper's, or what an hour on a CPU allows.

    Args:
      name: one of Gymnasium's tasks, with a config file.
      preset: "quick" or "full".
      variant: "small" or "distracted" for Hopper's, else empty.

    Returns:
      Settings.
    """
    kind = "paper" if preset == "full" else "quick"
    variant = f"{kind}_{variant}" if variant else kind
    settings = {"config": f"vagram_jax/cli/configs/{name}.py:{variant}"}
    return settings if preset == "full" else settings | _QUICK_MUJOCO
