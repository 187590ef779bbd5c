"""Saves and restores the state of training.

A piece is what one process saves of one run at one step:

    <run>/checkpoints/000004000/seeds-0-3/arrays.npz      NumPy's format, no pickles
                                          manifest.json   shapes, sizes and SHA-256

A piece appears in one rename, so it is complete or missing; damage is noticed by its
SHA-256. Which seeds share a piece depends on devices and chunks; any seeds can be read
back together. `run.states` converts states to the arrays saved here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
import zipfile
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vagram_jax.storage import files

FORMAT = 1
"""Version of the file format; other versions are refused."""
KEPT = 2
"""Number of finished checkpoints that stay while the next one is written."""
_FOLDER = "checkpoints"
_STEP = re.compile(r"\d{9,}")
_PIECE = re.compile(r"seeds-(\d+)-(\d+)")
_MAX_MANIFEST = 16 * 2**20

Arrays = Mapping[str, np.ndarray]
"""Names to arrays `[lanes, ...]`; a lane is one seed."""


class CheckpointError(files.ResultsError):
    """A checkpoint that can't be used. One line: which, why, what to do."""


class Piece(NamedTuple):
    """The arrays that are saved together.

    Attributes:
      run: folder of the run.
      seeds: consecutive seeds, one per row of the arrays.
      arrays: names to `[len(seeds), ...]`.
    """

    run: Path
    seeds: range
    arrays: Arrays


def save(piece: Piece, step: int) -> None:
    """Writes a piece to the disk in one rename, replacing an existing one.

    Args:
      piece: what to save.
      step: environment steps of its seeds.

    Raises:
      ResultsError: it can't be written; the pieces of other steps are unchanged.
    """
    folder = _piece_folder(piece.run, step, piece.seeds)
    temporary = _temporary(folder)
    with files.one_line(folder):
        temporary.mkdir(parents=True)
        try:
            _write_arrays(temporary / "arrays.npz", piece.arrays)
            body = {
                "format": FORMAT,
                "step": step,
                "seeds": list(piece.seeds),
                "arrays": {
                    name: [str(array.dtype), *array.shape]
                    for name, array in piece.arrays.items()
                },
                "files": _digests(temporary),
            }
            manifest = body | {"sha256": _digest(body)}
            files.write_json(temporary / "manifest.json", manifest)
            # A folder can only be renamed onto an empty one.
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(temporary, folder)
            files.sync(folder.parent)
            files.sync(folder.parent.parent)
            files.sync(piece.run)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def load(
    run: Path, step: int, seeds: Sequence[int], *, names: Container[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads the arrays of some seeds at one step.

    Args:
      run: folder of the run.
      step: a step that `newest` returned.
      seeds: the seeds, in the order of the returned rows.
      names: names of the arrays to read; None means all. Missing ones are left out.

    Returns:
      Names to `[len(seeds), ...]`.

    Raises:
      CheckpointError: a seed has no piece, or its pieces hold different arrays.
    """
    pieces = _pieces(run).get(step, {})
    if missing := [seed for seed in seeds if seed not in pieces]:
        raise CheckpointError(f"{run / _FOLDER}: step {step} lacks seed {missing[0]}")
    read = {folder: _read(folder, names) for folder in {pieces[s] for s in seeds}}
    array_names = [set(arrays) for _, arrays in read.values()]
    if any(each != array_names[0] for each in array_names):
        raise CheckpointError(
            f"{run / _FOLDER}: the pieces of step {step} hold different arrays"
        )
    rows = [(read[pieces[s]][1], read[pieces[s]][0].index(s)) for s in seeds]
    return {
        name: np.stack([arrays[name][row] for arrays, row in rows])
        for name in sorted(array_names[0])
    }


def newest(
    runs: Iterable[tuple[Path, Sequence[int]]],
    *,
    at_most: int | None = None,
    strict: bool = False,
    report: Callable[[str], None] = print,
) -> int | None:
    """Returns the last step at which all seeds of all runs have undamaged pieces.

    Args:
      runs: folders of runs, each with its seeds.
      at_most: ignore later steps.
      strict: refuse a damaged piece instead of using an earlier step.
      report: receives one line per damaged piece.

    Returns:
      The step, or None.

    Raises:
      CheckpointError: a damaged piece while `strict`, or one in another format.
    """
    pieces_of_runs = [(_pieces(run), seeds) for run, seeds in runs]
    steps = set.intersection(*(set(pieces) for pieces, _ in pieces_of_runs))
    for step in sorted(steps, reverse=True):
        complete = all(
            set(seeds) <= set(pieces[step]) for pieces, seeds in pieces_of_runs
        )
        if not complete or (at_most is not None and step > at_most):
            continue
        folders = {
            pieces[step][seed] for pieces, seeds in pieces_of_runs for seed in seeds
        }
        damages = [text for folder in sorted(folders) if (text := _damage(folder))]
        if not damages:
            return step
        if strict:
            raise CheckpointError(
                f"{damages[0]}; leave out --strict to use an earlier checkpoint"
            )
        report(f"{damages[0]}; trying an earlier checkpoint")
    return None


def prune(run: Path, seeds: range, *, later_than: int | None = None) -> None:
    """Removes the old checkpoints of some seeds, or those after a step.

    Args:
      run: folder of the run.
      seeds: pieces without any of these seeds stay.
      later_than: remove the pieces after this step. None removes a piece if each of its
        seeds has `KEPT` later ones: other seeds may resume from a piece they share.

    Raises:
      ResultsError: a piece can't be removed.
    """
    pieces = _pieces(run)
    for unfinished in (run / _FOLDER).glob("*/.seeds-*.tmp"):  # of a killed process
        if int(unfinished.name.split("-")[1]) in seeds:
            shutil.rmtree(unfinished, ignore_errors=True)
    for step, by_seed in pieces.items():
        for folder in {by_seed[seed] for seed in seeds if seed in by_seed}:
            sharing = [seed for seed in by_seed if by_seed[seed] == folder]
            later = [sum(s > step and k in pieces[s] for s in pieces) for k in sharing]
            if min(later) >= KEPT if later_than is None else step > later_than:
                _remove(folder)


def steps(run: Path) -> list[int]:
    """Lists the steps that a run has pieces of, damaged ones included, in order."""
    return sorted(_pieces(run))


def join(parts: Sequence[Arrays], lanes: int) -> dict[str, np.ndarray]:
    """Concatenates the arrays of several runs and repeats the last row as padding.

    Args:
      parts: arrays with the same names, one mapping per run.
      lanes: number of rows of the result.

    Returns:
      Names to `[lanes, ...]`.

    Raises:
      CheckpointError: the parts have different names.
    """
    if any(set(part) != set(parts[0]) for part in parts):
        raise CheckpointError("checkpoint: the runs have different arrays")
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return {
        name: x[np.minimum(np.arange(lanes), len(x) - 1)] for name, x in joined.items()
    }


class Writer:
    """Saves checkpoints in a background thread, and removes the old ones.

    If a save fails, the earlier checkpoints stay, one line reports it, and training
    continues.

    Attributes:
      saved: the last step that is on the disk, or None.
    """

    def __init__(
        self, report: Callable[[str], None] = print, *, saved: int | None = None
    ):
        """Creates a writer.

        Args:
          report: receives one line per save that fails.
          saved: the step that is on the disk already.
        """
        self.saved = saved
        self._report = report
        self._thread: threading.Thread | None = None
        self._error: files.ResultsError | None = None
        self._pruned_at_end: set[tuple[Path, range]] = set()

    def save(self, pieces: Sequence[Piece], step: int) -> None:
        """Waits for the previous save and starts saving pieces.

        Args:
          pieces: what to save; the arrays must not change afterwards.
          step: environment steps of their seeds.
        """
        self.wait()
        self._thread = threading.Thread(target=self._save, args=(pieces, step))
        self._thread.start()

    def wait(self) -> None:
        """Waits for the current save."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Waits for the current save and removes old checkpoints.

        Raises:
          ResultsError: the last save failed.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        for run, seeds in self._pruned_at_end:
            prune(run, seeds)

    def _save(self, pieces: Sequence[Piece], step: int) -> None:
        try:
            for piece in pieces:
                # Before saving, since another process may be one step behind.
                prune(piece.run, piece.seeds)
                save(piece, step)
                self._pruned_at_end.add((piece.run, piece.seeds))
            self.saved, self._error = step, None
        except Exception as error:  # any other error would be lost with the thread
            if not isinstance(error, files.ResultsError):
                error = files.ResultsError(f"{type(error).__name__}: {error}")
            self._error = error
            self._report(f"no checkpoint at step {step}: {error}; training continues")


def _pieces(run: Path) -> dict[int, dict[int, Path]]:
    """The folder of the piece of each seed, for each step."""
    pieces: dict[int, dict[int, Path]] = {}
    for folder in (run / _FOLDER).glob("*/seeds-*"):
        name = _PIECE.fullmatch(folder.name)
        if name and _STEP.fullmatch(folder.parent.name) and not folder.is_symlink():
            seeds = range(int(name[1]), int(name[2]) + 1)
            by_seed = pieces.setdefault(int(folder.parent.name), {})
            by_seed |= dict.fromkeys(seeds, folder)
    return pieces


def _piece_folder(run: Path, step: int, seeds: range) -> Path:
    return run / _FOLDER / f"{step:09d}" / f"seeds-{seeds[0]}-{seeds[-1]}"


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")


def _remove(folder: Path) -> None:
    """Renames a piece before removing it, so that no reader sees half of it."""
    with files.one_line(folder):
        temporary = _temporary(folder)
        # Another process with seeds of the same piece may have removed it already.
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, temporary)
            shutil.rmtree(temporary)
    with contextlib.suppress(OSError):  # another process still has pieces there
        folder.parent.rmdir()


def _damage(folder: Path) -> str | None:
    """One line on what is damaged in a piece, or None; raises for another format."""
    try:
        manifest = _manifest(folder)
        for name, (size, digest) in manifest["files"].items():
            path = folder / name
            with files.one_line(path):
                if path.stat().st_size != size or _file_digest(path) != digest:
                    return f"{path}: damaged, its SHA-256 differs from the manifest's"
    except CheckpointError:
        raise
    except files.ResultsError as error:
        return str(error)
    return None


def _manifest(folder: Path) -> dict[str, Any]:
    """Reads and verifies the manifest of a piece."""
    path = folder / "manifest.json"
    with files.one_line(path):
        if path.stat().st_size > _MAX_MANIFEST:
            raise files.ResultsError(f"{path}: damaged, too long")
        manifest = files.read_json(path)
        if not isinstance(manifest, dict):
            raise files.ResultsError(f"{path}: damaged, not a JSON object")
        if manifest.pop("sha256", None) != _digest(manifest):
            raise files.ResultsError(f"{path}: damaged, its SHA-256 differs")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {manifest['format']}; this version reads format {FORMAT}; "
            "resume with the version that wrote it, or start again with --overwrite"
        )
    seeds = range(manifest["seeds"][0], manifest["seeds"][-1] + 1)
    if folder != _piece_folder(folder.parents[2], manifest["step"], seeds):
        raise files.ResultsError(f"{path}: damaged, it belongs to another folder")
    return manifest


def _read(
    folder: Path, names: Container[str] | None
) -> tuple[list[int], dict[str, np.ndarray]]:
    """The seeds of a piece, and its arrays of these names; None means all."""
    manifest, path = _manifest(folder), folder / "arrays.npz"
    try:
        with files.one_line(path), np.load(path) as arrays:
            wanted = [x for x in manifest["arrays"] if names is None or x in names]
            return manifest["seeds"], {name: arrays[name] for name in wanted}
    except (KeyError, zipfile.BadZipFile) as error:
        raise files.ResultsError(f"{path}: damaged: {error}") from None


def _write_arrays(path: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":  # NumPy would store text or a pickle
            raise CheckpointError(f"{path}: {name}: {array.dtype} can't be saved")
    # NumPy's option `allow_pickle` could have the name of an array, but none has.
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


def _digests(folder: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file in a folder, after all are on the disk."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        files.sync(path)
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            digests[name] = [path.stat().st_size, _file_digest(path)]
    return digests


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own `sha256`."""
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
