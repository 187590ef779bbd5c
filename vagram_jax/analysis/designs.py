"""The design of a study: how its runs are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vagram_jax.storage.files import ResultsError


@dataclasses.dataclass(frozen=True)
class Design:
    """How the runs of a study are compared.

    Attributes:
      contrast: the label whose values are compared with each other.
      methods: values of `contrast` that are judged.
      baselines: values of `contrast` that the methods are compared with.
      axis: the label on the horizontal axis of the figures; by default the figures show
        one row per value of `contrast`.
      metric: the column of `finals.csv` that holds the compared number.
      higher_is_better: False for errors.
    """

    contrast: str = "loss"
    methods: Sequence[str] = ("vagram", "vagram_mixed")
    baselines: Sequence[str] = (
        "mle",
        "mle_raw",
        "mse",
        "mse_raw",
        "mse_normalized",
        "sac",
    )
    axis: str = ""
    metric: str = "final_return"
    higher_is_better: bool = True


def from_record(path: Path, record: Any) -> Design:
    """The design in the content of a `study.json`; the default for an empty one.

    Args:
      path: of the file, for messages.
      record: its content.

    Raises:
      ResultsError: the design isn't one.
    """
    given = record.get("design", {}) if isinstance(record, dict) else None
    if record == {}:
        return Design()
    accepted = [field.name for field in dataclasses.fields(Design)]
    if not isinstance(given, dict) or not set(given) <= set(accepted):
        raise ResultsError(
            f"{path}: design={given!r}; a mapping with the keys {', '.join(accepted)} "
            "is accepted"
        )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
    }
    for name, default in dataclasses.asdict(Design()).items():
        value = values.setdefault(name, default)
        texts = value if isinstance(value, tuple) else ()
        if type(value) is not type(default) or {*map(type, texts)} - {str}:
            raise ResultsError(f"{path}: design.{name}={value!r}; as {default!r}")
    return Design(**values)
