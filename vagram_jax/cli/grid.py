"""Many runs of one study: which ones there are, and training those that are left.

Comes in: configs and the settings in which runs differ. Goes out: finished runs in the
study's folder. Runs that differ only in numbers that are traced share one program; what
has finished is skipped, and what was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from vagram_jax import config, envs
from vagram_jax.cli import flags, launch
from vagram_jax.run import devices, runner, session
from vagram_jax.run.runner import RunConfig
from vagram_jax.storage import checkpoint, results
from vagram_jax.training import MBPOConfig


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
      name: of its folder.
      values: what tells it from the others, by the names of a table's columns.
      env_config: its task.
      algorithm: its algorithm, checked.
      run: how long, how many, how often.
    """

    name: str
    values: Mapping[str, str]
    env_config: envs.EnvConfig
    algorithm: MBPOConfig
    run: runner.RunConfig


class Maker:
    """Makes entries; runs on the same task share its environment.

    Attributes:
      made: the environments, by the text of their configs.
    """

    def __init__(self):
        self.made: dict[str, Any] = {}

    def entry(
        self,
        configs: Sequence[Any],
        settings: Mapping[str, str],
        values: Mapping[str, str],
    ) -> Entry:
        """One run, checked before anything is compiled.

        Args:
          configs: of the task, the algorithm and the run.
          settings: dotted keys of the configs to text; `loss` may be "sac".
          values: what tells it from others; its name is made of them.

        Returns:
          The entry.

        Raises:
          ConfigError: a key or a value that is refused.
          EnvError: the environment can't be made or trained on.
        """
        others = {key: text for key, text in settings.items() if key != "loss"}
        env_config, algorithm, run = flags.override(configs, others)
        if (task := _text(env_config)) not in self.made:
            self.made[task] = envs.from_config(env_config)
        name = settings.get("loss", algorithm.loss)
        algorithm = launch.with_loss(algorithm, name)
        run, algorithm = runner.check(run, algorithm, self.made[task])
        return Entry(run_name(values), values, env_config, algorithm, run)


def run_name(values: Mapping[str, str]) -> str:
    """The name of a run, from what tells it from others; the loss stands alone.

    Args:
      values: names to text.

    Returns:
      A name for `results.check_name`.
    """
    parts = [
        text if key == "loss" else f"{key.rpartition('.')[2]}-{text}"
        for key, text in values.items()
    ]
    name = re.sub(r"[^A-Za-z0-9_.-]+", ".", "_".join(parts)).replace("-.", "-")
    name = name.strip(".-")
    if len(name) <= 64:
        return name
    # A digest keeps long names apart.
    digest = hashlib.sha256(json.dumps(dict(values)).encode()).hexdigest()[:8]
    return f"{name[:55]}-{digest}"


def cell(text: str) -> str | float:
    """A value as a cell of a table: a number where it is one.

    Args:
      text: of a grid.

    Returns:
      The number, or the text.
    """
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


def by_program(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, those that share a program one after the other.

    Args:
      entries: in any order.

    Returns:
      The same ones.
    """
    kinds = list(dict.fromkeys(map(_kind, entries)))
    return sorted(entries, key=lambda entry: kinds.index(_kind(entry)))


def train(
    entries: Sequence[Entry],
    made: Mapping[str, Any],
    *,
    place: tuple[str, str],
    kept: session.Keeping,
) -> list[int]:
    """Trains what isn't finished; a group that fails doesn't hold up the next.

    Args:
      entries: which runs.
      made: their environments, from `Maker.made`.
      place: the results folder and the name of the study.
      kept: where they train and how they are kept.

    Returns:
      The exit statuses of those that failed.

    Raises:
      RunError: a signal said to stop.
      ResultsError: a folder that can't be written.
    """
    kept = dataclasses.replace(kept, resume=not launch.OVERWRITE.value)
    failures = []
    for group in unfinished(entries, Path(*place)):
        first = group[0]
        algorithms = {entry.name: entry.algorithm for entry in group}
        try:
            launch.train_together(
                algorithms,
                first.run,
                made[_text(first.env_config)],
                env_config=first.env_config,
                place=place,
                kept=chunked(kept, first.run),
            )
        except (session.RunError, devices.DeviceError) as fault:
            status = getattr(fault, "status", flags.STATUS_MEMORY)
            if status > 128:
                raise
            print(f"{', '.join(algorithms)}: {fault}", file=sys.stderr)
            failures.append(status)
    return failures


def chunked(kept: session.Keeping, run: RunConfig) -> session.Keeping:
    """Keeping with no more lanes at once than a CPU is busy with.

    There more gain little (`results/benchmark`: eight seeds on one device take 0.92 of
    the time of a row of them). Runs that train alone all have the same programs, and
    bits that don't depend on what else is in the grid.

    Args:
      kept: how runs are kept; a chunk that was asked for stays.
      run: how many seeds a run has.

    Returns:
      The same on an accelerator, which is the faster the more lanes it has.
    """
    if kept.seed_chunk or jax.default_backend() != "cpu":
        return kept
    lanes = math.lcm(run.num_seeds, jax.device_count())
    return dataclasses.replace(kept, seed_chunk=lanes)


def unfinished(entries: Sequence[Entry], study: Path) -> list[list[Entry]]:
    """The entries that aren't finished, each group in one program.

    Args:
      entries: which runs.
      study: the folder of their runs.

    Returns:
      Entries that differ in traced numbers only and have come equally far.
    """
    together: dict[tuple, list[Entry]] = {}
    for entry in entries:
        folder = study / entry.name
        settings = launch.settings_of(entry.env_config, entry.algorithm, entry.run)
        if not launch.OVERWRITE.value and results.is_finished(folder, settings):
            continue
        step = max(checkpoint.steps(folder), default=-1)
        together.setdefault((_kind(entry), step), []).append(entry)
    return list(together.values())


def _kind(entry: Entry) -> tuple:
    """What entries of one program have in common: all but traced numbers."""
    shapes = jax.tree.structure(entry.algorithm)
    return _text(entry.env_config), _text(entry.run), shapes


def _text(one) -> str:
    """A config as text, to tell equal ones."""
    return json.dumps(config.to_dict(one), sort_keys=True)
