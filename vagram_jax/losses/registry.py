"""The registry of the model losses: what a config calls them, what a fit must know.

Comes in: functions of one signature. Goes out: `ModelLoss`es by name. A loss of your
own: decorate it with `register`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import NamedTuple

import jax

from vagram_jax.config import ConfigError
from vagram_jax.types import LossFn


class ModelLoss(NamedTuple):
    """A registered loss.

    Attributes:
      name: what a config calls it.
      fn: the loss.
      prepare: `(batch, value_fn, *, where, config)` to an array with leading axis
        `[B]`: the part that does not depend on the model. None if there is none.
      takes: the keyword by which `fn` takes what was prepared.
      gaussian: whether it needs a model that predicts a variance.
      reads: fields of a batch that it needs and that training doesn't record.
    """

    name: str
    fn: LossFn
    prepare: Callable[..., jax.Array] | None
    takes: str
    gaussian: bool
    reads: tuple[str, ...]


LOSSES: dict[str, ModelLoss] = {}


def register(
    name: str,
    *,
    prepare: Callable[..., jax.Array] | None = None,
    takes: str = "weights",
    gaussian: bool = False,
    reads: tuple[str, ...] = (),
) -> Callable[[LossFn], LossFn]:
    """A decorator that gives a loss a name that configs can use.

    Args:
      name: the name, not yet taken.
      prepare: computes once per fit what the loss takes as a keyword.
      takes: that keyword.
      gaussian: the loss needs a model that predicts a variance.
      reads: fields of a batch that it needs and that training doesn't record.

    Returns:
      The decorator; it leaves the function as it is.

    Raises:
      ValueError: the name is taken by another function.
    """

    def decorator(fn: LossFn) -> LossFn:
        taken = LOSSES.get(name)
        # The same definition may run again: a notebook cell, a reloaded module.
        if taken and _where_from(taken.fn) != _where_from(fn):
            raise ValueError(f"register: name={name!r} is taken; choose another name")
        LOSSES[name] = ModelLoss(name, fn, prepare, takes, gaussian, reads)
        return fn

    return decorator


def get(name: str, *, also: tuple[str, ...] = ()) -> ModelLoss:
    """The loss of that name.

    Args:
      name: a registered name.
      also: other names that the caller takes, for the message.

    Returns:
      The loss and what a fit must know of it.

    Raises:
      ConfigError: no such name; the message lists the known ones.
    """
    if name not in LOSSES:
        known = [*sorted(LOSSES), *also]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"config: loss={name!r}; known: {', '.join(known)}{hint}")
    return LOSSES[name]


def _where_from(fn: LossFn) -> tuple[str, str]:
    return fn.__module__, fn.__qualname__
