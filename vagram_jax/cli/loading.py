"""The flags and checks that the commands share which load what a run has trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax

from vagram_jax.cli import flags
from vagram_jax.config import ConfigError
from vagram_jax.run import trained
from vagram_jax.run.trained import Trained

SEED = flags.DEFINE_integer("seed", None, "Seed of the run; default: the first.")
EPISODE_SEED = flags.DEFINE_integer("episode_seed", 0, "Seed of the start states.")
EPISODES = flags.DEFINE_integer(
    "episodes", None, "Number of episodes; default: 1 to render, 5 to inspect, 10 else."
)


def num_episodes(default: int) -> int:
    """The number of episodes that `--episodes` sets.

    Args:
      default: that of the command.
    """
    return default if EPISODES.value is None else EPISODES.value


def check_ranges(*others: tuple[Any, float, float]) -> None:
    """Refuses flags out of their ranges.

    Args:
      *others: beside those of this module, `(flag, lowest, highest)` each.

    Raises:
      ConfigError: a number is out of range.
    """
    for flag, low, high in ((EPISODES, 1, 1000), (EPISODE_SEED, 0, 2**31), *others):
        if flag.value is not None and not low <= flag.value <= high:
            raise ConfigError(f"--{flag.name}={flag.value}; {low} to {high}")


def one_run(command: str, names: list[str]) -> str:
    """The run that a command names.

    Raises:
      ConfigError: none or several are named.
    """
    if len(names) != 1:
        raise ConfigError(
            f"vagram {command} {' '.join(names)}".strip() + ": the folder of one run "
            "is accepted, such as results/pendulum-15/vagram"
        )
    return names[0]


def load(run: str) -> Trained:
    """Loads the seed that `--seed` names, on the CPU unless JAX_PLATFORMS is set.

    Raises:
      ConfigError: as `trained.load`, like other errors.
    """
    if not jax.config.jax_platforms:
        # JAX would reserve most of a GPU's memory for a few small steps.
        jax.config.update("jax_platforms", "cpu")
    return trained.load(run, SEED.value, report=warn)


def title(run: str) -> str:
    """Study and name of a run, such as `"pendulum-15/vagram"`."""
    folder = Path(run).resolve()
    return f"{folder.parent.name}/{folder.name}"


def describe(run: str, loaded: Trained) -> str:
    """The run, the seed and the training steps, in one line."""
    end = f", diverged at {loaded.diverged_at}" if loaded.diverged_at else ""
    return (
        f"{title(run)}, seed {loaded.seed}, trained for {loaded.env_steps} steps{end}"
    )


def warn(line: str) -> None:
    """Prints a line on standard error."""
    print(line, file=sys.stderr)
