"""Fixed data that a run starts from, or is trained on alone: reads, checks and writes.

    FILE.npz    arrays obs [N, obs_dim], action [N, action_dim], reward [N],
                next_obs [N, obs_dim], terminated [N] and, if known, truncated [N]
    minari:ID   a data set in Minari's folder on this machine

The arrays may have the names of D4RL. Rows are in the units of the environment, with
each action in [-1, 1], in order of time. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from vagram_jax import user_code
from vagram_jax.config import ConfigError
from vagram_jax.envs import base
from vagram_jax.mbpo import MBPOConfig
from vagram_jax.storage import files
from vagram_jax.types import Transition

KEY = "data"
"""The entry of a run's settings that describes its data."""

# The arrays by the names of their fields, and their names in D4RL and Minari.
_NAMES = {
    "obs": ("obs", "observations"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "next_obs": ("next_obs", "next_observations"),
    "terminated": ("terminated", "terminals", "terminations"),
    "truncated": ("truncated", "timeouts", "truncations"),
}
_FLAGS = ("terminated", "truncated")
_MINARI = "minari:"
# How far rounding may carry an action that is scaled to [-1, 1] beyond it.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Transitions that a run starts from, the same for all of its seeds.

    Attributes:
      source: where they are from, for messages.
      transitions: `[N, ...]` NumPy arrays, in order of time.
      offline: train on them alone; the environment is stepped for evaluations only.
    """

    source: str
    transitions: Transition
    offline: bool = False

    @property
    def num_rows(self) -> int:
        """Returns N."""
        return self.transitions.reward.shape[0]

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What a run records of its data, which a resumed run must share.

        The SHA-256 is that of the rows, so a renamed or compressed file keeps it.
        """
        digest = hashlib.sha256()
        for array in _arrays(self.transitions).values():
            digest.update(f"{array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return {
            "rows": self.num_rows,
            "sha256": digest.hexdigest(),
            "offline": self.offline,
        }


def load(source: str, *, offline: bool = False) -> Dataset:
    """Reads data.

    Args:
      source: `"FILE.npz"`, or `"minari:ID"`, whose actions are scaled from the bounds
        of the data set to [-1, 1].
      offline: as in `Dataset`.

    Returns:
      The data. A row that terminated isn't also truncated.

    Raises:
      ConfigError: the source can't be read, an array is missing or has the wrong shape
        or type, a number isn't finite, an action is outside of [-1, 1], there are fewer
        than two rows, or Minari isn't installed.
    """
    where = f"data={source}"
    if source.startswith(_MINARI):
        arrays = _read_minari(source.removeprefix(_MINARI), where)
    else:
        arrays = _read_npz(source, where)
    return Dataset(source, from_arrays(arrays, where), offline)


def from_arrays(arrays: Mapping[str, np.ndarray], where: str = "data") -> Transition:
    """Returns named arrays as transitions, after checks.

    Args:
      arrays: as in a file, see the docstring of this module; others are ignored.
      where: of the arrays, for messages.

    Raises:
      ConfigError: as `load`.
    """
    found = {
        field: np.asarray(arrays[name])
        for field, names in _NAMES.items()
        for name in reversed(names)
        if name in arrays
    }
    for field in _NAMES:
        if field not in found and field != "truncated":
            raise ConfigError(
                f"{where}: no array {field}; obs, action, reward, next_obs and "
                f"terminated are needed; it has: "
                + (files.printable(", ".join(arrays)) or "none")
            )
    found.setdefault("truncated", np.zeros(found["reward"].shape, bool))
    _check_shapes(found, where)
    checked: dict[str, Any] = {
        field: (_flags if field in _FLAGS else _numbers)(field, array, where)
        for field, array in found.items()
    }
    outside = np.abs(checked["action"]) > 1
    if outside.any():
        raise ConfigError(
            f"{where}: action has {checked['action'][outside][0]:.6g} in row "
            f"{outside.any(axis=1).argmax()}; -1 to 1 is accepted, which environments "
            "scale to their bounds; divide by these bounds"
        )
    checked["truncated"] &= ~checked["terminated"]
    return Transition(**checked)


def check(data: Dataset, env: base.Env, config: MBPOConfig) -> None:
    """Refuses data that a run can't start from.

    Args:
      data: the data.
      env: the environment of the run.
      config: the algorithm.

    Raises:
      ConfigError: observations or actions have another size than those of the
        environment, there are more rows than the buffer holds, or random steps are to
        be taken although the run is offline.
    """
    where, rows = f"data={data.source}", data.transitions
    for name, size in (("obs", env.observation_size), ("action", env.action_size)):
        given = getattr(rows, name).shape[1]
        if given != size:
            raise ConfigError(
                f"{where}: {name} has {given} dimensions; {size}, those of "
                f"{base.name_of(env)} with its distractors, are accepted"
            )
    if data.num_rows > config.replay_capacity:
        raise ConfigError(
            f"config: replay_capacity={config.replay_capacity}; at least "
            f"{data.num_rows}, the rows of {where}"
        )
    if data.offline and config.warmup_steps:
        raise ConfigError(
            f"config: warmup_steps={config.warmup_steps}; a run on {where} alone takes "
            "no random steps; 0 is accepted"
        )


def save(path: Path, transitions: Transition) -> None:
    """Writes transitions as a file that `load` reads, always the same bytes.

    Args:
      path: the file.
      transitions: `[N, ...]` NumPy arrays.

    Raises:
      ResultsError: the file can't be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **_arrays(transitions))
    files.write_bytes(path, buffer.getvalue())


def _arrays(transitions: Transition) -> dict[str, Any]:
    return {field: np.asarray(getattr(transitions, field)) for field in _NAMES}


def _read_npz(path: str, where: str) -> dict[str, np.ndarray]:
    """The arrays of a file that have a known name."""
    known = {name for names in _NAMES.values() for name in names}
    try:
        with open(path, "rb") as file:
            stored = np.load(file)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            # The others are only named.
            return {
                name: stored[name] if name in known else np.empty(0)
                for name in stored.files
            }
    # A damaged archive raises errors of the zip and zlib modules, too.
    except Exception as error:
        raise ConfigError(
            f"{where}: {_reason(error)}; a file of numpy.savez with obs, action, "
            "reward, next_obs and terminated is accepted, or minari:ID"
        ) from error


def _read_minari(name: str, where: str) -> dict[str, np.ndarray]:
    """The steps of all episodes of a data set, with actions in [-1, 1]."""
    try:
        import minari
    except ImportError as error:
        raise ConfigError(
            f'{where}: minari is missing; pip install "vagram_jax[minari]"'
        ) from error
    try:
        stored = cast(Any, minari.load_dataset(name))
        episodes, space = [*stored.iterate_episodes()], stored.action_space
    except ImportError as error:  # the library of the file's format
        raise ConfigError(
            f'{where}: {user_code.reason(error)}; pip install "vagram_jax[minari]"'
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{where}: {_reason(error)}; a data set on this machine is accepted; "
            "`minari download ID` fetches one and `minari list local` lists them"
        ) from error
    if not episodes or not all(
        isinstance(x, np.ndarray)
        for each in episodes
        for x in (each.observations, each.actions)
    ):
        raise ConfigError(
            f"{where}: its observations or actions are dicts, or it is empty; vectors "
            "are accepted; flatten them and save an .npz file"
        )
    columns = {
        "obs": [each.observations[:-1] for each in episodes],
        "action": [_scaled(each.actions, space) for each in episodes],
        "reward": [each.rewards for each in episodes],
        "next_obs": [each.observations[1:] for each in episodes],
        "terminated": [each.terminations for each in episodes],
        "truncated": [each.truncations for each in episodes],
    }
    return {field: np.concatenate(parts) for field, parts in columns.items()}


def _scaled(action: np.ndarray, space: Any) -> np.ndarray:
    """Actions scaled from their bounds to [-1, 1], the inverse of the adapter's."""
    low, high = (np.float64(getattr(space, name, np.inf)) for name in ("low", "high"))
    if not np.isfinite([low, high]).all():
        return action  # `from_arrays` checks them
    scaled = (np.float64(action) - (high + low) / 2) / ((high - low) / 2)
    within = np.clip(scaled, -1.0, 1.0)
    return np.where(np.abs(scaled - within) < _ROUNDING, within, scaled)


def _reason(error: Exception) -> str:
    """An exception in one line; the system's errors without number and path."""
    strerror = getattr(error, "strerror", None)
    return files.printable(strerror or user_code.reason(error))


def _check_shapes(arrays: Mapping[str, Any], where: str) -> None:
    obs, action = arrays["obs"].shape, arrays["action"].shape
    for name, shape in (("obs", obs), ("action", action)):
        if len(shape) != 2 or 0 in shape[1:]:
            raise ConfigError(
                f"{where}: {name} has shape {list(shape)}; [N, {name}_dim] is accepted"
            )
    if obs[0] < 2:
        raise ConfigError(
            f"{where}: obs has shape {list(obs)}; at least two rows are accepted, of "
            "which some are held out"
        )
    expected: dict[str, Any] = dict.fromkeys(arrays, obs[:1])
    expected |= {"obs": obs, "next_obs": obs}
    expected["action"] = (obs[0], action[1])
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise ConfigError(
                f"{where}: {name} has shape {list(arrays[name].shape)}; with obs "
                f"{list(obs)} it must be {list(shape)}"
            )


def _numbers(name: str, array: np.ndarray, where: str) -> np.ndarray:
    """Finite numbers in the precision of training."""
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"{where}: {name} is {array.dtype}; numbers are accepted")
    with np.errstate(over="ignore"):
        array = array.astype(np.dtype(jnp.result_type(float)))
    broken = ~np.isfinite(array.reshape(array.shape[0], -1)).all(axis=1)
    if broken.any():
        raise ConfigError(
            f"{where}: {name} isn't finite in {broken.sum()} rows, first in row "
            f"{broken.argmax()}; finite numbers are accepted; leave such rows out"
        )
    return array


def _flags(name: str, array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise ConfigError(
            f"{where}: {name} is {array.dtype} or has values other than 0 and 1; bool "
            "is accepted"
        )
    return array.astype(bool)
