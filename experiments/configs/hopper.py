"""Hopper, and what the paper varies on it: a small model and distracting dimensions.

Only what differs from the shared settings is stated.
"""

from experiments import variants


def get_config(variant: str = ""):
    """The config of the task.

    Args:
      variant: `quick` if it is empty; `paper`; `paper_small` with a model of two layers
        of 64; `paper_distracted` with 15 distracting dimensions of the paper's kind;
        `quick_small` and `quick_distracted` like them.

    Returns:
      A `ConfigDict`.

    Raises:
      ValueError: an unknown variant.
    """
    makers = {
        "quick": quick,
        "quick_small": lambda: _small(quick(), (8, 8)),
        "quick_distracted": lambda: _distracted(quick()),
        "paper": paper,
        "paper_small": lambda: _small(paper(), (64, 64)),
        "paper_distracted": lambda: _distracted(paper()),
    }
    return variants.choose("hopper.py", variant, makers, default="quick")


def paper():
    """The settings of the paper's code.

    Returns:
      A `ConfigDict`.
    """
    config = variants.paper("hopper")
    config.total_steps = 250_000
    config.replay_capacity = 250_000
    config.fit.weight_decay = 5e-5
    config.fit.batch_size = 1024
    config.imagine.horizon = (1, 5, 20_000, 150_000)
    config.real_fraction = (1.0, 0.05, 0.0, 20_000.0)
    config.sac.actor_learning_rate = 3e-5
    config.sac.target_entropy = (-1.0,)
    return config


def quick():
    """An hour on two cores at most.

    Returns:
      A `ConfigDict`.
    """
    config = variants.quick("hopper")
    config.sac.target_entropy = (-1.0,)
    return config


def _small(config, hidden):
    config.model.hidden = hidden
    return config


def _distracted(config):
    config.distractors = 15
    config.distractor_kind = "switching"
    # The code anneals over fifty of its epochs here, and imagines single steps.
    if config.warmup_steps == 10_000:
        config.total_steps = config.replay_capacity = 500_000
        config.imagine.horizon = (1,)
        config.real_fraction = (1.0, 0.05, 0.0, 50_000.0)
    return config
