"""Imports modules that belong to the repository and not to the installed package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from vagram_jax.cli import flags


def load(module: str) -> ModuleType:
    """Imports a module of `experiments` from the working folder.

    Args:
      module: dotted name, such as `experiments.benchmark`.

    Raises:
      UsageError: the working folder isn't a checkout with this module.
    """
    path = Path(*module.split("."))
    if not (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()):
        raise flags.UsageError(
            f"{module}: not in this folder; run the command in a checkout of the "
            "repository, which has what the installed package leaves out"
        )
    add_to_path(Path.cwd())
    return importlib.import_module(module)


def add_to_path(folder: Path) -> None:
    """Makes Python search a folder for modules first."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
