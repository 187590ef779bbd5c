"""The flags of fixed data, which the commands share that train."""

from __future__ import annotations

from collections.abc import Iterable

from vagram_jax.cli import flags
from vagram_jax.config import ConfigError
from vagram_jax.run import datasets
from vagram_jax.run.datasets import Dataset

DATA = flags.DEFINE_string(
    "data", None, "Transitions to start from: FILE.npz, or minari:ID of a data set."
)
OFFLINE = flags.DEFINE_bool(
    "offline", False, "Train on --data alone; step the environment only to evaluate."
)
# The random steps that data replaces.
_KEY = "warmup_steps"


def set_by_flags() -> dict[str, str]:
    """The config keys that these flags set, with the names of the flags."""
    return {} if DATA.value is None else {_KEY: DATA.name}


def load(varied: Iterable[str] = ()) -> Dataset | None:
    """The data that `--data` names, or None.

    Args:
      varied: config keys that the command varies.

    Raises:
      ConfigError: as `run.datasets.load`, `--offline` without data, or a key is varied
        that `--data` sets.
    """
    if DATA.value is None:
        if OFFLINE.value:
            raise ConfigError("--offline: only with --data; add it")
        return None
    if _KEY in varied:
        raise ConfigError(f"--{DATA.name}={DATA.value}: it sets {_KEY}; don't vary it")
    return datasets.load(DATA.value, offline=OFFLINE.value)
