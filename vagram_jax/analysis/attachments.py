"""Figures and films as base64 text, which the report contains.

A file that is a link, too large or not what its name says is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from vagram_jax.storage import results
from vagram_jax.storage.results import Run

_MAX_FIGURE_BYTES = 20_000_000  # browsers fail to open much larger pages
_MAX_FILM_BYTES = 8_000_000  # of all films together; mail servers refuse large files
# The figures of the page in their order: heading and note.
_FIGURES = {
    "learning_curves.png": ("Learning curves", ""),
    "effects.png": (
        "Effect of each setting",
        "Each thin line has the same other settings, so its points differ in this "
        "setting only; black: mean over these lines.",
    ),
    "profiles.png": ("Performance profile", "The share of seeds above each return."),
    "attention.png": ("Attention", ""),
    "model.png": (
        "The model during training",
        "Errors on the transitions of each epoch, before the model has seen them, in "
        "standard deviations: 1 is as bad as predicting the mean. Line: median of the "
        "seeds; band: lowest to highest seed.",
    ),
    "agent.png": (
        "The agent during training",
        "Means over an epoch (q max: maximum). Line: median of the seeds; band: lowest "
        "to highest seed.",
    ),
    "cost.png": ("Wall time and memory", ""),
}


def figures(folder: Path) -> list[dict[str, str]]:
    """Returns heading, note and data of each PNG of a study, in the order of the page.

    Figures that the report doesn't draw itself follow the others.

    Args:
      folder: of the study.
    """
    names = [*_FIGURES, *sorted({p.name for p in folder.glob("*.png")} - {*_FIGURES})]
    shown = []
    for path in (folder / name for name in names):
        data = _read(path, _MAX_FIGURE_BYTES)
        if data.startswith(b"\x89PNG\r\n"):
            heading, note = _FIGURES.get(path.name, (path.stem.replace("_", " "), ""))
            encoded = base64.b64encode(data).decode()
            shown.append({"heading": heading, "note": note, "data": encoded})
    return shown


def films(
    folder: Path, runs: Sequence[Run], names: Mapping[str, str]
) -> list[dict[str, str]]:
    """Returns kind, path, text and data of the films that `vagram render` wrote.

    The films are in the page until together they are too large; `data` of the others,
    and of HTML pages, is empty.

    Args:
      folder: of the study.
      runs: the runs, whose folders have the films.
      names: of the runs, by the names of their folders.
    """
    shown, left = [], _MAX_FILM_BYTES
    for run in runs:
        for seed, file in results.pictures(folder / run.name):
            kind, path = file.split(".")[-1], f"{run.name}/{file}"
            data = _read(folder / path, left)
            if data[4:8] != b"ftyp" and not data.startswith(b"GIF8"):
                data = b""
            left -= len(data)
            film = {
                "kind": kind,
                "path": path,
                "text": f"{names[run.name]}, seed {seed}",
            }
            shown.append(film | {"data": base64.b64encode(data).decode()})
    return shown


def _read(path: Path, limit: int) -> bytes:
    """The contents of a file; none if it is a link, missing or too large."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > limit:
        return b""
    return path.read_bytes()
