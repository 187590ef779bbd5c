"""The text of `vagram COMMAND --help`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_WIDTH = 88
_COLUMN = 26  # where the descriptions begin


class Option(NamedTuple):
    """A flag or a key of a config.

    Attributes:
      name: as on the command line, without the dashes.
      value: its value if the command line doesn't set it; None shows no value.
      text: what it means, and which values it accepts.
    """

    name: str
    value: Any
    text: str


def page(about: str, groups: Mapping[str, Iterable[Option]]) -> str:
    """Returns the help text.

    Args:
      about: the description of the command.
      groups: headings to options.
    """
    parts = [about]
    for heading, options in groups.items():
        lines = [line for option in options for line in _lines(option)]
        parts.append("\n".join([heading, *lines]))
    return "\n\n".join(parts)


def _lines(option: Option) -> list[str]:
    """The option with its value in the first column, the description in the second."""
    start = f"  --{option.name}"
    if option.value is not None:
        start += f"={_as_text(option.value)}"
    text = textwrap.wrap(
        option.text,
        _WIDTH - _COLUMN,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if text and len(start) + 2 <= _COLUMN:
        start = start.ljust(_COLUMN) + text.pop(0)
    return [start, *(" " * _COLUMN + line for line in text)]


def _as_text(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, list | tuple):
        return ",".join(_as_text(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
