"""Writes what training leaves on the disk: tables, logs and checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from vagram_jax.mbpo import MBPOState
from vagram_jax.run import chunks, devices, failures, logs, rows
from vagram_jax.run.chunks import Chunk, RunLanes
from vagram_jax.run.rows import Progress
from vagram_jax.run.tables import Tables
from vagram_jax.storage import checkpoint
from vagram_jax.storage.lock import Lock


class Recorder:
    """Writes rows, logs and checkpoints of a chunk while this process owns its runs.

    Attributes:
      writer: of the checkpoints.
    """

    def __init__(
        self,
        chunk: Chunk,
        layout: devices.Layout,
        locks: Sequence[Lock],
        *,
        log: Sequence[str],
        report: Callable[[str], None],
    ):
        self.writer = checkpoint.Writer(report, check=self._check)
        self._chunk, self._layout, self._locks = chunk, layout, locks
        # The steps of all seeds, trained at the speed of this chunk.
        self._later_steps = chunk.later_steps / len(chunk.lanes.seeds)
        self._report, self._announced = report, -1
        self._runs = chunk.runs if devices.is_first() else []
        self._tables = [Tables(run.folder, run.seeds) for run in self._runs]
        seeds = {run.folder: run.seeds for run in self._runs}
        self._logs = logs.Logs(log, seeds, report=report)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Closes the logs and waits for the checkpoints at the end of a `with` block.

        Raises:
          ResultsError: as `failures.explained`.
          RunError: as `failures.explained`.
        """
        with failures.explained(self.writer), self._logs:
            yield

    def announce(self, state: MBPOState, progress: Progress) -> None:
        """Prints warnings and progress after the warm-up; `append` writes its rows."""
        self._announced = progress.env_steps
        for line in chunks.unbounded(state, self._chunk):
            self._report(line)
        for run in self._runs:
            self._print(run, rows.of_lanes(progress, run.lanes))

    def append(self, progress: Progress) -> None:
        """Appends the rows of an epoch to tables and logs, in the first process."""
        self._check()
        for run, tables in zip(self._runs, self._tables, strict=True):
            spec, own = run.spec, rows.of_lanes(progress, run.lanes)
            constant = {"env": spec.env_config.env, "loss": spec.algorithm.loss}
            new = tables.append(own, constant)
            self._logs.append(run.folder, new)
            if progress.env_steps != self._announced:
                self._print(run, own)

    def save(self, state: MBPOState, step: int) -> None:
        """Starts saving a checkpoint of this process's lanes."""
        pieces = chunks.pieces(state, self._chunk, self._layout, self._tables)
        self.writer.save(pieces, step)

    def _print(self, run: RunLanes, own: Progress) -> None:
        """Prints the line of a run, if it was evaluated."""
        if own.returns.size:
            last, name = run.spec.run_config.total_steps, run.spec.name
            later = self._later_steps
            self._report(rows.progress_line(name, own, last=last, later_steps=later))

    def _check(self) -> None:
        for held in self._locks:
            held.check()
