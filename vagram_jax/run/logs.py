"""Logs of runs for TensorBoard and Weights & Biases, which follow the tables.

    <run>/tensorboard/seed0/           event files
    <run>/wandb/seed0/wandb/...        the files of wandb
    <run>/wandb/seed0.json             the digest of the rows that a finished log has

The tables are the only source of a log. When training starts or resumes, the log of
each seed is written anew from the rows of the tables, which were cut to the checkpoint
before; afterwards each row is logged once it is in its table. So a log has each step
once, whenever the process was killed, and a log that is missing or incomplete is
written when its run is resumed. Nothing less works for both tools: TensorBoard's
`purge_step` leaves the steps that it hides in the files, and wandb loses the rows that
a killed process held in memory.

A logger that fails never stops training: it is reported in one line and left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vagram_jax import config, user_code
from vagram_jax.run import rows
from vagram_jax.storage import disk, files, records, results

Rows = Sequence[Mapping[str, Any]]
"""Rows of a table."""

_EVENTS = "events.out.tfevents."
_MAX_TAG = 64  # of wandb, in characters
# The tables that are logged, and what stands before the names of their columns.
_PREFIXES = {"metrics.csv": "", "model.csv": rows.MODEL}


class Identity(NamedTuple):
    """The seed that a log is of.

    Attributes:
      study: name of the study.
      run: name of the run.
      seed: the seed.
      record: of the run, as from `records.read`.
    """

    study: str
    run: str
    seed: int
    record: Mapping[str, Any]


class Logger(Protocol):
    """The log of one seed."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by name at a number of environment steps."""
        ...

    def flush(self) -> None:
        """Hands over what was logged, so that a viewer can see it."""
        ...

    def close(self) -> None:
        """Ends the log."""
        ...


class _TensorBoard:
    """Writes an event file.

    `tensorboardX.SummaryWriter` writes from another thread, and its `flush` doesn't
    wait for that thread, so the events are written here.
    """

    def __init__(self, folder: Path, identity: Identity):
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        disk.make_folder(folder)
        names = [name for name in disk.names(folder) if name.startswith(_EVENTS)]
        # A TensorBoard that is open continues at its position, so after a resume the
        # same file is written again. A row always takes the same number of bytes.
        path = folder / (names[0] if names else f"{_EVENTS}{time.time():.0f}")
        with disk.open_file(path, "ab"):
            pass  # raises for a link, which the writer would follow
        self._writer = record_writer.RecordWriter(str(path))
        self._write(0, file_version="brain.Event:2")
        settings = json.dumps(identity.record["config"], indent=2)
        text = summary.text("config", f"```json\n{settings}\n```")
        self._write(0, summary=text)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        value = self._summary.Value
        entries = [value(tag=name, simple_value=x) for name, x in values.items()]
        self._write(step, summary=self._summary(value=entries))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content) -> None:
        event = self._event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())


class _Wandb:
    """Writes a run of Weights & Biases; `WANDB_MODE=offline` needs no network.

    A run that was uploaded before keeps its identifier. wandb continues it after its
    last step, so the earlier rows aren't logged again.
    """

    def __init__(self, folder: Path, identity: Identity):
        import wandb

        disk.remove(folder)
        disk.make_folder(folder)
        record = identity.record
        started = [record.get("started"), record.get("command")]
        text = json.dumps([*identity[:3], *started])
        loss = record["labels"].get("loss") or record["config"].get("loss")
        self._run = wandb.init(
            dir=folder,
            # A run that replaces another one began at another time.
            id=hashlib.sha256(text.encode()).hexdigest()[:16],
            project=os.environ.get("WANDB_PROJECT", "vagram_jax"),
            group=identity.study,
            job_type=str(loss),
            name=f"{identity.run}-seed{identity.seed}",
            tags=[str(t)[:_MAX_TAG] for t in (record["config"].get("env"), loss)],
            config={**record["config"], "seed": identity.seed},
            resume="allow",
            reinit="create_new",  # the seeds of a run are open at the same time
            # Nothing about the machine, and no links: the folder may be passed on.
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                silent=True,
                symlink=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._run.starting_step:
            self._run.log(dict(values), step=step)

    def flush(self) -> None:
        pass  # wandb writes and uploads in a process of its own

    def close(self) -> None:
        self._run.finish()


class _Tool(NamedTuple):
    """A logger, and the package that it needs."""

    make: Callable[[Path, Identity], Logger]
    package: str


_TOOLS = {
    "tensorboard": _Tool(_TensorBoard, "tensorboardX"),
    "wandb": _Tool(_Wandb, "wandb"),
}


def check(names: Sequence[str]) -> None:
    """Checks that loggers exist and that their packages are installed.

    Raises:
      ConfigError: an unknown logger, one that is named twice, or a missing package.
    """
    for name in names:
        if name not in results.LOGS or names.count(name) > 1:
            accepted = ", ".join(results.LOGS)
            raise config.ConfigError(
                f"log={','.join(names)}; each of {accepted} is accepted once"
            )
        package = _TOOLS[name].package
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise config.ConfigError(
                f"log={name}: {user_code.one_line(error)}; pip install "
                f'"vagram_jax[{name}]"'
            ) from error


class Logs:
    """The logs of seeds that train together.

    Used in a `with` block; the logs that haven't failed are closed at its end, and
    marked as complete if it ends without an error.
    """

    def __init__(
        self,
        names: Sequence[str],
        runs: Mapping[Path, Sequence[int]],
        *,
        report: Callable[[str], None],
    ):
        """Writes the logs anew, from the rows that the tables have.

        Args:
          names: of the loggers.
          runs: folders of runs to their seeds.
          report: takes a line if a logger fails.
        """
        self._report = report
        self._open: dict[str, dict[Path, dict[int, Logger]]] = {}
        for name in names:
            self._open[name] = {}
            with self._dropped_if_it_fails(name):
                for folder, seeds in runs.items():
                    self._start(name, folder, seeds)

    def append(self, folder: Path, tables: Mapping[str, Rows]) -> None:
        """Logs rows that were appended to the tables of a run.

        Args:
          folder: of the run.
          tables: names of tables to their new rows.
        """
        for name, loggers in list(self._open.items()):
            with self._dropped_if_it_fails(name):
                _log(loggers[folder], tables)

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, kind, error, trace) -> None:
        for name, loggers in list(self._open.items()):
            with self._dropped_if_it_fails(name):
                for folder, by_seed in loggers.items():
                    for logger in by_seed.values():
                        logger.close()
                    if error is None:
                        for seed, digest in _digests(folder, [*by_seed]).items():
                            files.write_json(_marker(name, folder, seed), digest)

    def _start(self, name: str, folder: Path, seeds: Sequence[int]) -> None:
        """Writes the logs of a run anew, from the rows of the tables."""
        record, by_seed = records.read(folder), {}
        self._open[name][folder] = by_seed
        for seed in seeds:
            disk.remove(_marker(name, folder, seed))
            identity = Identity(folder.parent.name, folder.name, seed, record)
            own = folder / name / f"seed{seed}"
            by_seed[seed] = _TOOLS[name].make(own, identity)
        tables = {
            table: files.read_rows(folder / table)
            for table in _PREFIXES
            if disk.is_file(folder / table)
        }
        _log(by_seed, tables)

    @contextlib.contextmanager
    def _dropped_if_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._report(
                f"log={name}: {user_code.one_line(error)}; training goes on without "
                f"it; --resume --log={name} writes the whole log from the tables"
            )
            for by_seed in self._open.pop(name).values():
                for logger in by_seed.values():
                    with contextlib.suppress(Exception):
                        logger.close()


def complete(
    names: Sequence[str],
    folder: Path,
    seeds: Sequence[int],
    *,
    report: Callable[[str], None],
) -> None:
    """Writes the logs of trained seeds that lack rows of the tables.

    Args:
      names: of the loggers.
      folder: of the run.
      seeds: the seeds.
      report: as for `Logs`.
    """
    for name in names:
        digests = _digests(folder, seeds)
        lacking = [
            seed
            for seed, digest in digests.items()
            if _marked(_marker(name, folder, seed)) != digest
        ]
        if lacking:
            with Logs([name], {folder: lacking}, report=report):
                pass


def _log(loggers: Mapping[int, Logger], tables: Mapping[str, Rows]) -> None:
    """Logs rows by seed, with the rows of a step from all tables together."""
    by_seed: dict[int, dict[int, dict[str, float]]] = {seed: {} for seed in loggers}
    for table, prefix in _PREFIXES.items():
        for row in tables.get(table, ()):
            if row["seed"] in by_seed:
                values = by_seed[row["seed"]].setdefault(row["env_steps"], {})
                for column, value in row.items():
                    is_number = isinstance(value, int | float)
                    if is_number and column not in ("seed", "env_steps"):
                        values[prefix + column] = value
    for seed, steps in by_seed.items():
        for step, values in sorted(steps.items()):
            loggers[seed].log(step, values)
        loggers[seed].flush()


def _digests(folder: Path, seeds: Sequence[int]) -> dict[int, str]:
    """The SHA-256 of the rows of each seed in the tables."""
    digests = {seed: hashlib.sha256() for seed in seeds}
    for path in (folder / table for table in _PREFIXES):
        for seed, _, line in files.seed_lines(path) if disk.is_file(path) else ():
            if seed in digests:
                digests[seed].update(line)
    return {seed: digest.hexdigest() for seed, digest in digests.items()}


def _marker(name: str, folder: Path, seed: int) -> Path:
    """The file with the digest of the rows that a finished log has."""
    return folder / name / f"seed{seed}.json"


def _marked(path: Path) -> Any:
    try:
        return files.read_json(path)
    except files.ResultsError:
        return None
