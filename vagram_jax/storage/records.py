"""The record of a run, `config.json`: settings, versions, command and revision."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vagram_jax.storage import files
from vagram_jax.storage.files import ResultsError

NAME = "config.json"
# A resumed run may become longer; no other setting may change.
_MAY_GROW = "total_steps"
_PACKAGES = ("vagram_jax", "jax", "jaxlib", "flax", "optax", "numpy")
# Gymnasium and dm_control have model files.
_PACKAGES += ("mujoco", "mujoco-mjx", "gymnasium", "brax", "dm_control")
# An absolute path without its last part, anywhere in an argument.
_ABSOLUTE = re.compile(r"(?<![\w.~/\\-])(?:[A-Za-z]:)?[/\\](?:[^=,:]*[/\\])?(?=[^/\\])")


def new(
    config: Mapping[str, Any], *, on: Mapping[str, Any], labels: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of a run that starts now. It contains no absolute path.

    Args:
      config: the settings, nested; every key a string.
      on: where the run computes, such as `device`.
      labels: what distinguishes the run from the others of its study.

    Returns:
      A mapping for a JSON file.

    Raises:
      TypeError: as `files.as_json`.
    """
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    now = datetime.datetime.now(datetime.UTC)
    return {
        "config": files.as_json(config),
        "labels": files.as_json(labels),
        "versions": versions,
        **on,
        "command": _command(sys.argv),
        "started": now.isoformat(timespec="seconds"),
        "revision": _revision(),
    }


def resume(folder: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that is resumed. Changes no file.

    Args:
      folder: folder of the run.
      now: the record that a new run would get.

    Returns:
      The old record. Its list `resumed` gets an entry with the versions, device and
      revision that changed: results are only reproducible bit by bit without a change.

    Raises:
      ResultsError: the old record is missing or can't be read.
      ValueError: settings differ; names them.
    """
    record = read(folder)
    check_settings(folder, record["config"], now["config"])
    record["config"][_MAY_GROW] = now["config"].get(_MAY_GROW)
    kinds = ("versions", "device", "layout", "numerics", "revision")
    others = {k: now[k] for k in kinds if k in now and now[k] != record.get(k)}
    entry = {"started": now["started"], "command": now["command"], "changed": others}
    earlier = record.get("resumed")
    earlier = earlier if isinstance(earlier, list) else []
    return record | {"resumed": [*earlier, entry]}


def check_settings(
    folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Checks that a run may be resumed with these settings.

    Args:
      folder: folder of the run, for the message.
      then: the settings that it was trained with.
      now: the settings to go on with.

    Raises:
      ValueError: settings differ, other than by more steps; names them.
    """
    changed = differences({"then": then, "now": now})
    steps = changed.pop(_MAY_GROW, None)
    before, after = (x.get(_MAY_GROW) for x in (then, now))
    may_grow = isinstance(before, int) and isinstance(after, int) and after > before
    if steps and not may_grow:
        changed[_MAY_GROW] = steps
    if changed:
        lines = [
            f"{key} was {values.get('then')}, is {values.get('now')}"
            for key, values in changed.items()
        ]
        listed = "; ".join(lines[:6])
        if len(lines) > 6:
            listed += f"; and {len(lines) - 6} more"
        raise ValueError(
            f"results: {folder} can't be resumed with other settings: {listed}; only "
            f"{_MAY_GROW} may grow"
        )


def read(folder: Path) -> dict[str, Any]:
    """Reads the record of a run.

    Returns:
      The record, with a mapping under `config`, and scalars by name under `labels`.

    Raises:
      ResultsError: it can't be read, or has no config.
    """
    record = files.read_json(folder / NAME)
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ResultsError(f"{folder / NAME}: holds no config")
    labels = record.setdefault("labels", {})
    if not isinstance(labels, dict) or any(
        isinstance(value, dict | list) for value in labels.values()
    ):
        raise ResultsError(f"{folder / NAME}: labels={labels!r}; names to scalars")
    return record


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested config to dotted keys, such as `sac.discount`.

    Args:
      config: names to values or to mappings.
      prefix: text in front of each name.

    Returns:
      Dotted keys to values, as JSON returns them.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = files.as_json(value)
    return flat


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings in which configs differ.

    Args:
      configs: a name for each config, nested or flat.

    Returns:
      Dotted keys to the value of each config, by its name; a config without the key is
      left out.
    """
    flat = {name: flatten(config) for name, config in configs.items()}
    keys = dict.fromkeys(key for config in flat.values() for key in config)
    values = {k: {n: c[k] for n, c in flat.items() if k in c} for k in keys}
    return {
        key: by_config
        for key, by_config in values.items()
        if len(by_config) < len(flat)
        or len({json.dumps(value) for value in by_config.values()}) > 1
    }


def without_paths(text: str) -> str:
    """A text without the folders of absolute paths."""
    return _ABSOLUTE.sub("", text)


def _command(argv: Sequence[str]) -> str:
    """The command line without absolute paths, so that it holds on any machine."""
    program = Path(argv[0])
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if program.name == "vagram" or program.parts[-2:] == ("vagram_jax", "__main__.py"):
        start = ["vagram"]
    elif spec:
        start = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        start = ["python", os.path.basename(argv[0])]
    return shlex.join([*start, *map(without_paths, argv[1:])])


@functools.cache
def _revision() -> str | None:
    """The commit of the repository that tracks this file, if there is one."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    commands = (
        [*git, "ls-files", "--error-unmatch", here.name],
        [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    try:
        outputs = [
            subprocess.run(command, capture_output=True, check=True, timeout=10).stdout
            for command in commands
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return outputs[-1].decode(errors="replace").strip()
