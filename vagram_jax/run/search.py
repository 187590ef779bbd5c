"""A search for the best settings with Optuna: its space, its trials and their results.

A trial is a run of the study, `trial-000` and so on. Optuna keeps every trial in its
storage from the moment it is asked for. A trial without a result there was interrupted;
it comes first in the next batch.

The pruner compares the returns of a trial with those of the trials of earlier batches.
A program can't drop lanes without compiling again, so it ends early only if the pruner
rejects all trials in it. Otherwise all of them are trained to the end and count.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vagram_jax import user_code
from vagram_jax.analysis import stats, summary
from vagram_jax.config import ConfigError
from vagram_jax.run import grid
from vagram_jax.run.chunks import Chunk
from vagram_jax.run.rows import Progress
from vagram_jax.storage import files, records, results

if TYPE_CHECKING:
    import optuna

# No trial is pruned in this share of its steps: early returns say little.
_UNPRUNED = 1 / 3
# The key of the settings that a study began with, among Optuna's attributes.
_BEGAN = "vagram_jax"
_RANGE = re.compile(r"([^:,()]+):([^:,()]+)(:log)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """The values of one setting that a search tries.

    Attributes:
      key: dotted key of the setting.
      choices: the values as text; empty for a range.
      low: the lowest value of a range.
      high: the highest value of a range.
      is_log: values are drawn on a logarithmic scale.
      is_whole: values are whole numbers.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    is_whole: bool = False

    def ends(self) -> tuple[str, ...]:
        """All choices, or both ends of the range, as text."""
        return self.choices or (self.text(self.low), self.text(self.high))

    def suggest(self, trial: optuna.Trial) -> str:
        """The value of a trial, as text."""
        key, log = self.key, self.is_log
        if self.choices:
            return self.text(trial.suggest_categorical(key, self.choices))
        if self.is_whole:
            low, high = int(self.low), int(self.high)
            return self.text(trial.suggest_int(key, low, high, log=log))
        return self.text(trial.suggest_float(key, self.low, self.high, log=log))

    def text(self, value: Any) -> str:
        """A value of Optuna's as the text that is trained; a number has six digits."""
        if self.choices or self.is_whole:
            return str(value) if self.choices else str(int(value))
        return f"{value:.6g}"


class Trial(NamedTuple):
    """A trial that is trained.

    Attributes:
      point: keys to values as text.
      handle: Optuna's trial.
    """

    point: Mapping[str, str]
    handle: optuna.Trial


def parse_space(text: str | None, is_whole: Callable[[str], bool]) -> list[Axis]:
    """Reads a search space such as `sac.discount=0.9:0.999:log;loss=vagram,mle`.

    Args:
      text: as `--space` takes it.
      is_whole: whether the setting of a key takes whole numbers only.

    Returns:
      An axis per key.

    Raises:
      ConfigError: the text can't be read.
    """
    axes: dict[str, Axis] = {}
    for part in (text or "").split(";"):
        key, equals, listed = (piece.strip() for piece in part.partition("="))
        axis = _axis(key, listed, is_whole) if key and equals else None
        if axis is None or key in axes:
            raise ConfigError(
                f"--space={text or ''}: {part!r}; KEY=LOW:HIGH, KEY=LOW:HIGH:log or "
                "KEY=VALUE,VALUE is accepted, each key once, with ; between keys"
            )
        axes[key] = axis
    return list(axes.values())


def open_study(
    name: str, storage: str | None, settings: Mapping[str, Any], *, total_steps: int
) -> optuna.Study:
    """Opens Optuna's study, or creates it.

    Args:
      name: of the study.
      storage: URL of Optuna's storage; None keeps the trials in memory.
      settings: what all trials have in common, nested; the study must have begun with
        the same.
      total_steps: environment steps of each trial.

    Returns:
      The study, which maximizes the final return.

    Raises:
      ConfigError: Optuna isn't installed, the storage can't be used, or the study has
        begun with other settings.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "tune: optuna is missing; pip install vagram_jax[tune]"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(
                n_warmup_steps=math.ceil(total_steps * _UNPRUNED)
            ),
            load_if_exists=True,
        )
    except Exception as error:  # each kind of storage has errors of its own
        raise ConfigError(
            f"--storage={storage}: {user_code.one_line(error)}; a URL of Optuna's "
            "storage is accepted, such as sqlite:///FILE"
        ) from error
    now = files.as_json(settings)
    began = study.user_attrs.get(_BEGAN)
    if began is None:
        study.set_user_attr(_BEGAN, now)
    elif changed := records.differences({"then": began, "now": now}):
        key, values = next(iter(changed.items()))
        raise ConfigError(
            f"tune: {key}={values.get('now')}; the study {name} began with "
            f"{values.get('then')}; set it again, or name another --study"
        )
    return study


def next_batch(
    study: optuna.Study, axes: Sequence[Axis], *, num_trials: int, at_once: int
) -> dict[str, Trial]:
    """The trials to train next: first the interrupted ones, then new ones.

    Args:
      study: from `open_study`.
      axes: the search space.
      num_trials: number of trials of the study.
      at_once: number of trials of a batch.

    Returns:
      Names of runs to trials; empty if all trials have a result.
    """
    import optuna

    known, batch = study.get_trials(deepcopy=False), {}
    left = [each for each in known if not each.state.is_finished()][:at_once]
    last = min(num_trials, len(known) + at_once - len(left))
    for number in [*(each.number for each in left), *range(len(known), last)]:
        # Seeded with the trial's number, a resumed search asks for the same trials.
        study.sampler = optuna.samplers.TPESampler(seed=number)
        if number < len(known):
            handle = optuna.Trial(study, known[number]._trial_id)
        else:
            handle = study.ask()
        point = {axis.key: axis.suggest(handle) for axis in axes}
        batch[f"trial-{handle.number:03d}"] = Trial(point, handle)
    return batch


class Pruning:
    """Reports the returns of trials to Optuna, and ends programs that it rejects."""

    def __init__(self, study: optuna.Study, batch: Mapping[str, Trial]):
        """Takes the study and the trials that are trained, by the names of runs."""
        self._study, self._batch = study, batch

    def __call__(self, chunk: Chunk, progress: Progress) -> bool:
        """Whether to end the runs of a program, for `session.train_runs`."""
        from optuna.trial import TrialState

        if not progress.returns.size:
            return False
        step, returns = progress.env_steps, progress.returns
        finite = returns[np.isfinite(returns)]
        # As in the final return, a diverged seed counts with the lowest one.
        lowest = finite.min() if finite.size else math.nan
        returns = np.where(np.isfinite(returns), returns, lowest)
        known = self._study.get_trials(deepcopy=False)
        handles = [self._batch[run.spec.name].handle for run in chunk.runs]
        for run, handle in zip(chunk.runs, handles, strict=True):
            if step not in known[handle.number].intermediate_values:
                handle.report(float(stats.iqm(returns[run.lanes])), step)
        if step >= chunk.run_config.total_steps:
            return False
        if not all(handle.should_prune() for handle in handles):
            return False
        for handle in handles:
            self._study.tell(handle, state=TrialState.PRUNED)
        return True


def record(study: optuna.Study, batch: Mapping[str, Trial], folder: Path) -> int:
    """Tells Optuna the results of a batch.

    Args:
      study: the study.
      batch: its trials, which have been trained.
      folder: of the study's runs.

    Returns:
      The number of trials that finished or were pruned. The others failed.
    """
    from optuna.trial import TrialState

    finals, count = final_returns(folder), 0
    for name, trial in batch.items():
        final = finals.get(name, math.nan)
        state = study.get_trials(deepcopy=False)[trial.handle.number].state
        if state == TrialState.RUNNING:
            if results.is_finished(folder / name) and math.isfinite(final):
                study.tell(trial.handle, final)
            else:
                study.tell(trial.handle, state=TrialState.FAIL)
                continue
        count += state != TrialState.FAIL
    return count


def final_returns(folder: Path) -> dict[str, float]:
    """The final return of each run of a study that was evaluated, by name.

    It is that of `vagram status` and the report: the interquartile mean over seeds.
    """
    if not results.run_folders(folder):
        return {}
    runs = [run for run in results.read_runs(folder, report=_ignore) if run.metrics]
    finals = summary.finals_per_run(runs)
    return {name: float(stats.iqm(final.values)) for name, final in finals.items()}


def table(
    study: optuna.Study, axes: Sequence[Axis], folder: Path
) -> list[dict[str, Any]]:
    """A row per trial: name, state, final return and values; the best come first."""
    finals, rows = final_returns(folder), []
    for trial in study.get_trials(deepcopy=False):
        name = f"trial-{trial.number:03d}"
        state = trial.state.name.lower()
        final = finals.get(name) if state in ("complete", "pruned") else None
        row = {"trial": name, "state": state, "return": final}
        for axis in axes:
            if axis.key in trial.params:
                row[axis.key] = axis.text(trial.params[axis.key])
        rows.append(row)
    return sorted(rows, key=_rank)


def _rank(row: Mapping[str, Any]) -> tuple[bool, float]:
    final = row["return"]
    if final is None or not math.isfinite(final):
        return row["state"] != "complete", math.inf
    return row["state"] != "complete", -final


def _axis(key: str, listed: str, is_whole: Callable[[str], bool]) -> Axis | None:
    """The axis of a key; None if the text is neither a range nor a list."""
    if match := _RANGE.fullmatch(listed):
        try:
            low, high = float(match[1]), float(match[2])
        except ValueError:
            return None
        whole, is_log = is_whole(key), match[3] is not None
        is_right = math.isfinite(low) and math.isfinite(high) and low < high
        if whole and not (low.is_integer() and high.is_integer()):
            is_right = False
        if not is_right or (is_log and low <= 0):
            return None
        return Axis(key=key, low=low, high=high, is_log=is_log, is_whole=whole)
    choices = tuple(grid.values(listed))
    if len(choices) < 2 or len(set(choices)) < len(choices):
        return None
    return Axis(key=key, choices=choices)


def _ignore(_: str) -> None:
    """Leaves out a run that can't be read: its trial has no result."""
