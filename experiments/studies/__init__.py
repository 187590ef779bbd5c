"""The studies of the paper's claims, one file each.

Every file here but `loop` and `tasks`, which they share, is a study: the first line of
its docstring describes it, and its function `run` trains what it needs and writes the
study's folder. To add a study, add a file.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

_SHARED = ("__init__", "loop", "tasks")


def descriptions() -> dict[str, str]:
    """Lists the studies without importing them.

    Returns:
      Names of the studies, in alphabetical order, to one line each.
    """
    paths = sorted(Path(__file__).parent.glob("*.py"))
    return {path.stem: _first_line(path) for path in paths if path.stem not in _SHARED}


def load(name: str) -> ModuleType:
    """Imports a study.

    Args:
      name: one of `descriptions`.

    Returns:
      Its module. `module.run(preset, folder, options=..., num_seeds=None,
      first_seed=None)` runs the study and returns an exit status.
    """
    return importlib.import_module(f"experiments.studies.{name}")


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0].rstrip(".")
