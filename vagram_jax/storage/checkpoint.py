"""Save and restore the state of training: whole pieces, or nothing.

Comes in: arrays with a lane axis, on the host. Goes out: the same arrays, bit for bit,
or a word on what is damaged. A piece is what one process has of one run at one step:

    <run>/checkpoints/000004000/seeds-0-3/arrays.npz      NumPy's format, no pickles
                                          manifest.json   shapes, size and SHA-256

A piece appears in one rename. Which seeds share a piece depends on devices and chunks;
reading doesn't care how they were shared out. What the arrays mean is not known here.
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

import jax
import numpy as np

from vagram_jax.run import devices
from vagram_jax.storage import files

FORMAT = 1
"""The version of what is written; another one is refused."""
KEPT = 2
"""Steps that are kept beside the one being written."""
_FOLDER = "checkpoints"
_STEP = re.compile(r"\d{9,}")
_PIECE = re.compile(r"seeds-(\d+)-(\d+)")
_MAX_MANIFEST = 16 * 2**20

Arrays = Mapping[str, np.ndarray]
"""Names to arrays, `[lanes, ...]` each."""


class CheckpointError(files.ResultsError):
    """A checkpoint that can't be used. One line: which, why, what to do."""


class Piece(NamedTuple):
    """What is saved together.

    Attributes:
      run: folder of the run.
      seeds: consecutive numbers, one for each row of the arrays.
      arrays: names to `[len(seeds), ...]`.
    """

    run: Path
    seeds: range
    arrays: Arrays


def save(piece: Piece, step: int) -> None:
    """Write a piece, durably, in one rename. A piece that is there is replaced.

    Args:
      piece: what to save.
      step: environment steps of its seeds.

    Raises:
      ResultsError: it can't be written; what other steps have is untouched.
    """
    place = _place(piece.run, step, piece.seeds)
    temporary = _temporary(place)
    with files.one_line(place):
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
            # Only an empty folder can be renamed onto: an old piece makes way first.
            shutil.rmtree(place, ignore_errors=True)
            os.rename(temporary, place)
            files.sync(place.parent)
            files.sync(place.parent.parent)
            files.sync(piece.run)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def load(
    run: Path, step: int, seeds: Sequence[int], *, names: Container[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of some seeds at one step.

    Args:
      run: folder of the run.
      step: one that `newest` named.
      seeds: whose rows to read, in this order.
      names: of the arrays to read; None reads all. What isn't there is left out.

    Returns:
      Names to `[len(seeds), ...]`.

    Raises:
      CheckpointError: a seed has no piece, or pieces don't fit each other.
    """
    pieces = _pieces(run).get(step, {})
    if missing := [seed for seed in seeds if seed not in pieces]:
        raise CheckpointError(f"{run / _FOLDER}: step {step} lacks seed {missing[0]}")
    read = {place: _read(place, names) for place in {pieces[seed] for seed in seeds}}
    found = [set(arrays) for _, arrays in read.values()]
    if any(each != found[0] for each in found):
        raise CheckpointError(f"{run / _FOLDER}: step {step} has pieces of two kinds")
    rows = [(read[pieces[s]][1], read[pieces[s]][0].index(s)) for s in seeds]
    return {
        name: np.stack([arrays[name][row] for arrays, row in rows])
        for name in sorted(found[0])
    }


def newest(
    wanted: Iterable[tuple[Path, Sequence[int]]],
    *,
    at_most: int | None = None,
    strict: bool = False,
    tell: Callable[[str], None] = print,
) -> int | None:
    """The latest step at which all seeds of all runs have undamaged pieces.

    Args:
      wanted: folders of runs, each with its seeds.
      at_most: no later step.
      strict: refuse a damaged piece instead of going back to an earlier step.
      tell: takes a line on each damaged piece.

    Returns:
      The step, or None.

    Raises:
      CheckpointError: a damaged piece while `strict`, or one in another format.
    """
    wanted = [(_pieces(run), seeds) for run, seeds in wanted]
    steps = set.intersection(*(set(pieces) for pieces, _ in wanted))
    for step in sorted(steps, reverse=True):
        complete = all(set(seeds) <= set(pieces[step]) for pieces, seeds in wanted)
        if not complete or (at_most is not None and step > at_most):
            continue
        places = {pieces[step][seed] for pieces, seeds in wanted for seed in seeds}
        damages = [damage for place in sorted(places) if (damage := damage_of(place))]
        if not damages:
            return step
        if strict:
            raise CheckpointError(f"{damages[0]}; leave out --strict to go back")
        tell(f"{damages[0]}; going back to the checkpoint before")
    return None


def damage_of(place: Path) -> str | None:
    """What is wrong with a piece.

    Args:
      place: its folder.

    Returns:
      A line that names the file, or None.

    Raises:
      CheckpointError: it is whole, but another version of this package made it.
    """
    try:
        manifest = _manifest(place)
        for name, (size, digest) in manifest["files"].items():
            path = place / name
            with files.one_line(path):
                if path.stat().st_size != size or _file_digest(path) != digest:
                    return f"{path}: damaged, its SHA-256 is another"
    except CheckpointError:
        raise
    except files.ResultsError as error:
        return str(error)
    return None


def prune(run: Path, seeds: range, *, later_than: int | None = None) -> None:
    """Remove old checkpoints of some seeds, or those after a step.

    Args:
      run: folder of the run.
      seeds: pieces without any of these stay.
      later_than: remove what is later. If None, remove a piece if each of its seeds has
        `KEPT` later ones: other seeds may still go on from a piece that they share.

    Raises:
      ResultsError: something can't be removed.
    """
    pieces = _pieces(run)
    for rest in (run / _FOLDER).glob("*/.seeds-*.tmp"):  # of a killed process
        if int(rest.name.split("-")[1]) in seeds:
            shutil.rmtree(rest, ignore_errors=True)
    for step, places in pieces.items():
        for place in {places[seed] for seed in seeds if seed in places}:
            sharing = [seed for seed in places if places[seed] == place]
            later = [sum(s > step and k in pieces[s] for s in pieces) for k in sharing]
            if min(later) >= KEPT if later_than is None else step > later_than:
                _remove(place)


def steps(run: Path) -> list[int]:
    """The steps of which a run has pieces, in order, damaged ones too.

    Args:
      run: folder of the run.

    Returns:
      Environment steps.
    """
    return sorted(_pieces(run))


def pack(states: Any) -> dict[str, np.ndarray]:
    """The states of this process's lanes as named arrays, copied to the host.

    Args:
      states: a pytree of arrays of all lanes; random keys may be among them.

    Returns:
      Names, as `named` gives them, to `[own lanes, ...]`.
    """
    return {name: devices.fetch_own(leaf) for name, leaf in named(states).items()}


def named(states: Any) -> dict[str, Any]:
    """The leaves of a pytree under the names that `pack` gives them.

    Args:
      states: any pytree; what is None in it has no name.

    Returns:
      Names such as `.agent.actor['params']` to leaves, in their order.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(states)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def unpack(arrays: Arrays, shapes: Any, layout: devices.Layout) -> Any:
    """The states that `pack` made arrays of, on their devices.

    Args:
      arrays: of this process's lanes.
      shapes: a pytree of `jax.ShapeDtypeStruct` of all lanes.
      layout: where lanes run.

    Returns:
      The states.

    Raises:
      CheckpointError: as `arrange`.
    """

    def place(array, leaf):
        array = devices.put(array, layout, leaf.shape[0])
        if devices.is_key(leaf):
            wrap = jax.jit(jax.random.wrap_key_data, out_shardings=layout.sharding)
            array = wrap(array)
        return array

    return jax.tree.map(place, arrange(arrays, shapes), shapes)


def arrange(arrays: Arrays, shapes: Any) -> Any:
    """Arrays as the pytree that they were packed from, on the host still.

    Args:
      arrays: names to `[lanes, ...]`.
      shapes: a pytree of `jax.ShapeDtypeStruct`, `[lanes, ...]`; how many lanes it says
        doesn't matter.

    Returns:
      A pytree like `shapes`, with the data of random keys in their place.

    Raises:
      CheckpointError: the arrays are of other states; says in what they differ.
    """
    raw = named(jax.tree.map(lambda x: jax.eval_shape(devices.without_keys, x), shapes))
    expected = {name: (str(x.dtype), *x.shape[1:]) for name, x in raw.items()}
    found = {name: (str(x.dtype), *x.shape[1:]) for name, x in arrays.items()}
    if odd := sorted(set(expected.items()) ^ set(found.items())):
        name = odd[0][0]
        raise CheckpointError(
            f"checkpoint: {name} is {found.get(name, 'missing')}, this run has "
            f"{expected.get(name, 'none')}; {len({n for n, _ in odd})} arrays differ; "
            "resume with the settings it was made with"
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), [arrays[x] for x in raw])


def join(parts: Sequence[Arrays], lanes: int) -> dict[str, np.ndarray]:
    """Arrays of some runs one after the other; the last row fills the rest.

    Args:
      parts: with the same names.
      lanes: rows that are wanted.

    Returns:
      Names to `[lanes, ...]`.

    Raises:
      CheckpointError: the parts have different arrays.
    """
    if any(set(part) != set(parts[0]) for part in parts):
        raise CheckpointError("checkpoint: the runs have different arrays")
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return {
        name: x[np.minimum(np.arange(lanes), len(x) - 1)] for name, x in joined.items()
    }


class Writer:
    """Saves in the background, one step at a time, and removes what is old.

    A save that fails leaves the earlier checkpoints and is told; training goes on.

    Attributes:
      saved: the last step that is on the disk, or None.
    """

    def __init__(
        self, tell: Callable[[str], None] = print, *, saved: int | None = None
    ):
        """Makes a writer.

        Args:
          tell: takes a line on each save that fails.
          saved: the step that is saved already.
        """
        self.saved = saved
        self._tell = tell
        self._thread: threading.Thread | None = None
        self._error: files.ResultsError | None = None
        self._saved_of: set[tuple[Path, range]] = set()

    def save(self, pieces: Sequence[Piece], step: int) -> None:
        """Start saving pieces; waits until the save before has ended.

        Args:
          pieces: what to save, in memory that nobody changes.
          step: environment steps of their seeds.
        """
        self.wait()
        self._thread = threading.Thread(target=self._save, args=(pieces, step))
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being saved."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait, and say whether the last save worked.

        Raises:
          ResultsError: it didn't.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        for run, seeds in self._saved_of:
            prune(run, seeds)

    def _save(self, pieces: Sequence[Piece], step: int) -> None:
        try:
            for piece in pieces:
                # Before and not after: another process may be one step behind.
                prune(piece.run, piece.seeds)
                save(piece, step)
                self._saved_of.add((piece.run, piece.seeds))
            self.saved, self._error = step, None
        except Exception as error:  # of any kind: nobody else hears of it
            if not isinstance(error, files.ResultsError):
                error = files.ResultsError(f"{type(error).__name__}: {error}")
            self._error = error
            self._tell(f"no checkpoint at step {step}: {error}; training goes on")


def _pieces(run: Path) -> dict[int, dict[int, Path]]:
    """Where the piece of each seed is, for each step."""
    found: dict[int, dict[int, Path]] = {}
    for place in (run / _FOLDER).glob("*/seeds-*"):
        name = _PIECE.fullmatch(place.name)
        if name and _STEP.fullmatch(place.parent.name) and not place.is_symlink():
            seeds = range(int(name[1]), int(name[2]) + 1)
            known = found.setdefault(int(place.parent.name), {})
            known |= dict.fromkeys(seeds, place)
    return found


def _place(run: Path, step: int, seeds: range) -> Path:
    return run / _FOLDER / _step_name(step) / f"seeds-{seeds[0]}-{seeds[-1]}"


def _remove(place: Path) -> None:
    """Removes a piece in one rename, so that nobody takes what is left for damaged."""
    with files.one_line(place):
        away = _temporary(place)
        # Another process with seeds of the same piece may have been faster.
        with contextlib.suppress(FileNotFoundError):
            os.rename(place, away)
            shutil.rmtree(away)
    with contextlib.suppress(OSError):  # another process still has pieces there
        place.parent.rmdir()


def _temporary(place: Path) -> Path:
    return place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")


def _step_name(step: int) -> str:
    return f"{step:09d}"


def _manifest(place: Path) -> dict[str, Any]:
    """The manifest of a piece, if it is what was written."""
    path = place / "manifest.json"
    with files.one_line(path):
        if path.stat().st_size > _MAX_MANIFEST:
            raise files.ResultsError(f"{path}: damaged, too long")
        manifest = files.read_json(path)
        if not isinstance(manifest, dict):
            raise files.ResultsError(f"{path}: damaged, it holds no object")
        if manifest.pop("sha256", None) != _digest(manifest):
            raise files.ResultsError(f"{path}: damaged, its SHA-256 is another")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: format {manifest['format']}; this version reads format {FORMAT}; "
            "go on with the version that made it, or start anew with --overwrite"
        )
    seeds = range(manifest["seeds"][0], manifest["seeds"][-1] + 1)
    if place != _place(place.parents[2], manifest["step"], seeds):
        raise files.ResultsError(f"{path}: damaged, it belongs to another folder")
    return manifest


def _read(
    place: Path, names: Container[str] | None
) -> tuple[list[int], dict[str, np.ndarray]]:
    """Seeds of a piece, and its arrays of these names; None stands for all."""
    manifest, path = _manifest(place), place / "arrays.npz"
    try:
        with files.one_line(path), np.load(path) as read:
            wanted = [x for x in manifest["arrays"] if names is None or x in names]
            return manifest["seeds"], {name: read[name] for name in wanted}
    except (KeyError, zipfile.BadZipFile) as error:
        raise files.ResultsError(f"{path}: damaged: {error}") from None


def _write_arrays(path: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":  # NumPy would store bytes, or a pickle
            raise CheckpointError(f"{path}: {name}: {array.dtype} can't be saved")
    np.savez(path, **arrays)


def _digests(folder: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file below a folder, all of them on the disk."""
    found = {}
    for path in sorted(folder.rglob("*")):
        files.sync(path)
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            found[name] = [path.stat().st_size, _file_digest(path)]
    return found


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of the one way to write a manifest's body."""
    text = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
