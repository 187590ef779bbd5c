"""Writes what a run has trained as a model repository, and reads it back.

    FOLDER/README.md           the model card, whose head Hugging Face reads
           config.json         the record of the run, the seed and a SHA-256
           model.safetensors   policy, critics, dynamics model
           replay.mp4          a film, if there is one

The names are those that Hugging Face looks for. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vagram_jax.config import ConfigError
from vagram_jax.mbpo import MBPOState
from vagram_jax.run import states
from vagram_jax.storage import disk, files, records
from vagram_jax.storage.checkpoint import CheckpointError

FILM = "replay.mp4"
"""The name of an export's film."""

_WEIGHTS = "model.safetensors"
# The key of `config.json` that holds the seed and the digests.
_KEY = "export"


def check(folder: Path) -> None:
    """Refuses a folder to export to, before anything is computed.

    Raises:
      ConfigError: it isn't empty, or safetensors isn't installed.
      ResultsError: it can't be read or written.
    """
    _safetensors()
    with files.one_line(folder):
        is_used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_used:
        raise ConfigError(
            f"export: {folder} exists and isn't an empty folder; a new or empty folder "
            "is accepted"
        )


def write(
    folder: Path,
    state: MBPOState,
    *,
    seed: int,
    record: Mapping[str, Any],
    card: str,
    film: bytes | None = None,
) -> None:
    """Writes the files of an export; makes the folder.

    Args:
      folder: new or empty.
      state: the state of `trained.load`, without what isn't exported.
      seed: its seed.
      record: the `config.json` of the run.
      card: the text of the model card.
      film: an MP4, or None.

    Raises:
      ConfigError: as `check`.
      ResultsError: a file can't be written.
    """
    check(folder)
    arrays = {name: np.asarray(x) for name, x in _named(state).items()}
    data = _safetensors().save(arrays, metadata={"format": "np"})
    digests = {_WEIGHTS: hashlib.sha256(data).hexdigest()}
    with files.one_line(folder):
        disk.make_folder(folder)
    files.write_bytes(folder / _WEIGHTS, data)
    if film is not None:
        files.write_bytes(folder / FILM, film)
    files.write_text(folder / "README.md", card)
    exported = {_KEY: {"seed": seed, "files": digests}}
    files.write_json(folder / records.NAME, {**record, **exported})


def is_export(folder: Path) -> bool:
    """Whether a folder was exported, and isn't that of a run."""
    return disk.is_file(folder / _WEIGHTS)


def seed_of(folder: Path, record: Mapping[str, Any]) -> int:
    """The seed of an export.

    Raises:
      CheckpointError: the record doesn't name it.
    """
    export = record.get(_KEY)
    seed = export.get("seed") if isinstance(export, dict) else None
    if not isinstance(seed, int):
        raise CheckpointError(
            f"{folder / records.NAME}: names no exported seed; export the run again"
        )
    return seed


def read(folder: Path, record: Mapping[str, Any], shapes: Any) -> dict[str, np.ndarray]:
    """Reads the arrays of an export, after a check of their SHA-256.

    Args:
      folder: of the export.
      record: its `config.json`.
      shapes: a pytree of the leaves to read.

    Returns:
      Names, as from `states.named`, to `[1, ...]`. Missing ones are left out.

    Raises:
      CheckpointError: the file is damaged.
      ConfigError: safetensors isn't installed.
      ResultsError: the file can't be read.
    """
    path = folder / _WEIGHTS
    data = disk.read(path)
    expected = record[_KEY].get("files")
    digest = hashlib.sha256(data).hexdigest()
    if not isinstance(expected, dict) or expected.get(_WEIGHTS) != digest:
        raise CheckpointError(
            f"{path}: its SHA-256 isn't that of {records.NAME}; export the run again"
        )
    arrays = _safetensors().load(data)
    return {
        raw: arrays[name][None]
        for raw, name in zip(states.named(shapes), _named(shapes), strict=True)
        if name in arrays
    }


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by names with dots, in the order of `states.named`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in leaves
    }


def _safetensors() -> Any:
    try:
        from safetensors import numpy
    except ImportError as error:
        raise ConfigError(
            'export: safetensors isn\'t installed; pip install "vagram_jax[export]"'
        ) from error
    return numpy
