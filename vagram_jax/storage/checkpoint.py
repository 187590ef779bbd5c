"""Saves and restores the state of training.

A piece is what one process saves of one run at one step:

    <run>/checkpoints/000004000/seeds-0-3/arrays.npz      NumPy's format, no pickles
                                          manifest.json   shapes, sizes, SHA-256, notes

A piece appears in one rename, so it is complete or missing; damage is noticed by its
SHA-256. Its notes say which settings and rows it belongs to. Which seeds share a piece
depends on devices and chunks; any seeds can be read back together. `run.states`
converts states to the arrays saved here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import threading
import types
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vagram_jax.storage import disk, files

FORMAT = 2
"""Version of the file format; other versions are refused."""
KEPT = 2
"""Number of finished checkpoints that stay while the next one is written."""
_MAX_SEEDS = 1_000_000  # of a piece; the name of a folder could claim any number
SETTINGS = "settings"
"""The key of a piece's notes that holds the settings of its run."""
_FOLDER = "checkpoints"
_ARRAYS, _MANIFEST = "arrays.npz", "manifest.json"
_STEP = re.compile(r"\d{9,18}")
_PIECE = re.compile(r"seeds-(\d{1,10})-(\d{1,10})")
_UNFINISHED = re.compile(r"\.seeds-(\d{1,10})-\d{1,10}\.[0-9a-f]+\.tmp")

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
      notes: what the manifest says besides, for JSON.
    """

    run: Path
    seeds: range
    arrays: Arrays
    notes: Mapping[str, Any] = types.MappingProxyType({})


def save(piece: Piece, step: int) -> None:
    """Writes a piece to the disk in one rename, replacing an existing one.

    Args:
      piece: what to save.
      step: environment steps of its seeds.

    Raises:
      ResultsError: it can't be written; the pieces of other steps are unchanged.
    """
    folder = _piece_folder(piece.run, step, piece.seeds)
    temporary = files.unfinished(folder)
    with files.one_line(folder):
        try:
            disk.make_folder(temporary)
            _write_arrays(temporary / _ARRAYS, piece.arrays)
            body = {
                "format": FORMAT,
                "step": step,
                "seeds": list(piece.seeds),
                "arrays": {
                    name: [str(array.dtype), *array.shape]
                    for name, array in piece.arrays.items()
                },
                "files": {_ARRAYS: _size_and_digest(temporary / _ARRAYS)},
                "notes": files.as_json(piece.notes),
            }
            manifest = body | {"sha256": _digest(body)}
            files.write_json(temporary / _MANIFEST, manifest)
            _remove(folder)  # a folder can only be renamed onto an empty one
            disk.make_folder(folder.parent)
            disk.rename(temporary, folder.name)
            for parent in (folder.parent.parent, piece.run):
                disk.sync(parent)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.remove(temporary)
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
    check: Callable[[int], str | None] = lambda _: None,
) -> int | None:
    """Returns the last step at which all seeds of all runs have usable pieces.

    Args:
      runs: folders of runs, each with its seeds.
      at_most: ignore later steps.
      strict: refuse a damaged piece instead of using an earlier step.
      report: receives one line per piece that can't be used.
      check: takes a step with undamaged pieces, and returns in one line what else
        makes them unusable.

    Returns:
      The step, or None if all pieces are damaged.

    Raises:
      CheckpointError: a piece that can't be used while `strict`, one in another format,
        or `check` objects to every step with undamaged pieces.
    """
    pieces_of_runs = [(_pieces(run), seeds) for run, seeds in runs]
    steps = set.intersection(*(set(pieces) for pieces, _ in pieces_of_runs))
    objections = []
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
        problem = damages[0] if damages else check(step)
        if problem is None:
            return step
        objections += [] if damages else [problem]
        if strict:
            raise CheckpointError(
                f"{problem}; leave out --strict to use an earlier checkpoint"
            )
        report(f"{problem}; trying an earlier checkpoint")
    if objections:
        raise CheckpointError(
            f"{objections[0]}; no earlier checkpoint fits; restore the file, or train "
            "again with --overwrite"
        )
    return None


def notes(run: Path, step: int) -> list[dict[str, Any]]:
    """Returns the notes of all pieces of a run at one step that have some.

    Raises:
      CheckpointError: a piece in another format.
    """
    manifests = []
    for folder in sorted(set(_pieces(run).get(step, {}).values())):
        try:
            manifests.append(_manifest(folder))
        except CheckpointError:
            raise
        except files.ResultsError:
            continue  # damaged; `newest` reports it
    return [manifest["notes"] for manifest in manifests if manifest["notes"]]


def settings(run: Path) -> Mapping[str, Any] | None:
    """The settings in the notes of the latest undamaged piece of a run, or None."""
    for step in reversed(steps(run)):
        for each in notes(run, step):
            if isinstance(found := each.get(SETTINGS), dict):
                return found
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
    for step, name in _entries(run):
        unfinished = _UNFINISHED.fullmatch(name)  # of a killed process
        if unfinished and int(unfinished[1]) in seeds:
            with files.one_line(run / _FOLDER / step / name):
                disk.remove(run / _FOLDER / step / name)
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
        self,
        report: Callable[[str], None] = print,
        *,
        saved: int | None = None,
        check: Callable[[], None] = lambda: None,
    ):
        """Creates a writer.

        Args:
          report: receives one line per save that fails.
          saved: the step that is on the disk already.
          check: called before each save; an error that it raises prevents the save.
        """
        self.saved = saved
        self._report, self._check = report, check
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
            self._check()
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


def _entries(run: Path) -> list[tuple[str, str]]:
    """The names of steps, each with the names in its folder."""
    with files.one_line(run / _FOLDER):
        steps_ = [name for name in disk.names(run / _FOLDER) if _STEP.fullmatch(name)]
        return [(s, name) for s in steps_ for name in disk.names(run / _FOLDER / s)]


def _pieces(run: Path) -> dict[int, dict[int, Path]]:
    """The folder of the piece of each seed, for each step."""
    pieces: dict[int, dict[int, Path]] = {}
    for step, name in _entries(run):
        folder, match = run / _FOLDER / step / name, _PIECE.fullmatch(name)
        if match and disk.is_folder(folder):
            first, last = int(match[1]), int(match[2])
            if first <= last < first + _MAX_SEEDS:
                by_seed = pieces.setdefault(int(step), {})
                by_seed |= dict.fromkeys(range(first, last + 1), folder)
    return pieces


def _piece_folder(run: Path, step: int, seeds: Sequence[int]) -> Path:
    return run / _FOLDER / f"{step:09d}" / f"seeds-{seeds[0]}-{seeds[-1]}"


def _remove(folder: Path) -> None:
    """Renames a piece before removing it, so that no reader sees half of it."""
    temporary = files.unfinished(folder)
    with files.one_line(folder):
        # Another process with seeds of the same piece may have removed it already.
        with contextlib.suppress(FileNotFoundError):
            disk.rename(folder, temporary.name)
            disk.remove(temporary)
        disk.remove_empty(folder.parent)  # another process may have pieces there


def _damage(folder: Path) -> str | None:
    """One line on what is damaged in a piece, or None; raises for another format."""
    try:
        manifest, path = _manifest(folder), folder / _ARRAYS
        with files.one_line(path):
            if _size_and_digest(path) != manifest["files"][_ARRAYS]:
                return f"{path}: damaged, its SHA-256 differs from the manifest's"
    except CheckpointError:
        raise
    except files.ResultsError as error:
        return str(error)
    return None


def _manifest(folder: Path) -> dict[str, Any]:
    """Reads and verifies the manifest of a piece."""
    path = folder / _MANIFEST
    manifest = files.read_json(path)
    if not isinstance(manifest, dict):
        raise files.ResultsError(f"{path}: damaged, not a JSON object")
    with files.one_line(path):
        if manifest.pop("sha256", None) != _digest(manifest):
            raise files.ResultsError(f"{path}: damaged, its SHA-256 differs")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {manifest.get('format')}; this version reads format "
            f"{FORMAT}; resume with the version that wrote it, or start again with "
            "--overwrite"
        )
    if not _is_valid(manifest):
        raise files.ResultsError(f"{path}: damaged, a field is missing or has no sense")
    seeds = manifest["seeds"]
    if folder != _piece_folder(folder.parents[2], manifest["step"], seeds):
        raise files.ResultsError(f"{path}: damaged, it belongs to another folder")
    return manifest


def _is_valid(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has the fields that `save` writes, with values of their types.

    Its SHA-256 is no secret, so a valid one doesn't exclude this.
    """
    try:
        step, seeds = manifest["step"], manifest["seeds"]
        size, digest = manifest["files"][_ARRAYS]
        shapes = manifest["arrays"].values()
        numbers = [step, size, *seeds, *(n for _, *shape in shapes for n in shape)]
        return (
            all(type(number) is int and number >= 0 for number in numbers)
            and seeds == list(range(seeds[0], seeds[0] + len(seeds)))
            and all(shape[1] == len(seeds) for shape in shapes)
            and all(math.prod(shape) <= size for _, *shape in shapes)
            and isinstance(digest, str)
            and isinstance(manifest["notes"], dict)
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return False


def _read(
    folder: Path, names: Container[str] | None
) -> tuple[list[int], dict[str, np.ndarray]]:
    """The seeds of a piece, and its arrays of these names; None means all."""
    manifest, path = _manifest(folder), folder / _ARRAYS
    wanted = {
        x: y for x, y in manifest["arrays"].items() if names is None or x in names
    }
    with files.one_line(path), disk.open_file(path, "rb") as file:
        try:
            with np.load(file) as stored:
                # Compressed arrays could be much larger than the file.
                if any(x.compress_type for x in stored.zip.infolist()):
                    raise ValueError("an array is compressed")
                arrays = {name: stored[name] for name in wanted}
        except Exception as error:  # zipfile and NumPy raise many types for bad bytes
            reason = files.printable(str(error))
            raise files.ResultsError(f"{path}: damaged: {reason}") from None
    if any([str(x.dtype), *x.shape] != wanted[name] for name, x in arrays.items()):
        raise files.ResultsError(f"{path}: damaged, its arrays have other shapes")
    return manifest["seeds"], arrays


def _write_arrays(path: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":  # NumPy would store text or a pickle
            raise CheckpointError(f"{path}: {name}: {array.dtype} can't be saved")
    with disk.open_file(path, "xb") as file:
        # NumPy's option `allow_pickle` could have the name of an array, but none has.
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    disk.sync(path)


def _size_and_digest(path: Path) -> list[Any]:
    with disk.open_file(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")  # pyright: ignore[reportArgumentType]
        return [os.fstat(file.fileno()).st_size, digest.hexdigest()]


def _digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own `sha256`."""
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
