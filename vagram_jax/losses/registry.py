"""The registry of model losses: their names in configs and what a fit must know."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vagram_jax import config as configs
from vagram_jax.config import ConfigError
from vagram_jax.losses.value_gradients import GradientConfig, WeightConfig
from vagram_jax.types import LossFn, PredictFn, Transition, ValueFn

_CONFIGS = ("gradients", "weights", "discount")


class ModelLoss(NamedTuple):
    """A registered loss.

    Attributes:
      name: its name in configs.
      fn: the loss.
      prepare: `prepare(batch, value_fn, *, where, ...)` returns an array with leading
        axis `[B]`, which `fn` takes as `prepared`: the part that doesn't depend on the
        model, so that a fit computes it once. None if there is no such part.
      gaussian: whether it needs a model that predicts a variance.
      reads: fields of a batch that it needs and that training doesn't record.
      reads_config: the settings that `prepare` takes as keywords beside `where`, among
        "gradients", "weights" and "discount".
      prepares_weights: whether `prepare` returns weights, so that a row of zeros is a
        row without weight (a fit reports their fraction as `model/weightless`).
    """

    name: str
    fn: LossFn
    prepare: Callable[..., jax.Array] | None = None
    gaussian: bool = False
    reads: tuple[str, ...] = ()
    reads_config: tuple[str, ...] = ()
    prepares_weights: bool = True

    def call(
        self,
        params,
        batch: Transition,
        value_fn: ValueFn,
        prepared: jax.Array | None = None,
        *,
        predict: PredictFn,
    ) -> jax.Array:
        """Calls the loss, with what it prepared if there is any.

        Raises:
          ConfigError: the loss doesn't return a scalar.
        """
        keywords = {} if prepared is None else {"prepared": prepared}
        value = self.fn(params, batch, value_fn, predict=predict, **keywords)
        if jnp.shape(value) != ():
            raise ConfigError(
                f"loss {self.name!r}: returned the shape {jnp.shape(value)}; a scalar "
                "is accepted; take the mean over the batch"
            )
        return value


LOSSES: dict[str, ModelLoss] = {}


def register(
    name: str,
    *,
    prepare: Callable[..., jax.Array] | None = None,
    gaussian: bool = False,
    reads: tuple[str, ...] = (),
    reads_config: tuple[str, ...] = (),
    prepares_weights: bool = True,
) -> Callable[[LossFn], LossFn]:
    """Returns a decorator that registers a loss under a name that configs can use.

    Args:
      name: a name that is not taken.
      prepare: as in `ModelLoss`, like the other arguments.
      gaussian: whether the loss needs a model that predicts a variance.
      reads: fields of a batch that it needs and that training doesn't record.
      reads_config: the settings that `prepare` takes as keywords beside `where`.
      prepares_weights: whether `prepare` returns weights.

    Returns:
      The decorator; it returns the function unchanged.

    Raises:
      ValueError: another function has the name, `reads_config` has an unknown name, or
        the loss doesn't take what `prepare` returns.
    """
    if unknown := sorted({*reads_config} - {*_CONFIGS}):
        raise ValueError(
            f"register: reads_config={unknown[0]!r}; accepted: {', '.join(_CONFIGS)}"
        )

    def decorator(fn: LossFn) -> LossFn:
        taken = LOSSES.get(name)
        # The same definition may run again: a notebook cell, a reloaded module.
        if taken and _origin(taken.fn) != _origin(fn):
            raise ValueError(f"register: name={name!r} is taken; choose another name")
        if prepare is not None and not _takes_prepared(fn):
            raise ValueError(
                f"register: the loss {name!r} has a `prepare`; it must take what that "
                "returns as the keyword `prepared`"
            )
        LOSSES[name] = ModelLoss(
            name, fn, prepare, gaussian, reads, reads_config, prepares_weights
        )
        return fn

    return decorator


def get(name: str, *, also: tuple[str, ...] = ()) -> ModelLoss:
    """Returns the loss with that name.

    Args:
      name: a registered name.
      also: other names that the caller accepts, for the message.

    Raises:
      ConfigError: the name is unknown; the message lists the known ones.
    """
    if name not in LOSSES:
        known = [*sorted(LOSSES), *also]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"config: loss={name!r}; known: {', '.join(known)}{hint}")
    return LOSSES[name]


def bind(
    loss: ModelLoss,
    *,
    gradients: GradientConfig = GradientConfig(),
    weights: WeightConfig = WeightConfig(),
    discount: jax.Array | float | None = None,
) -> ModelLoss:
    """Returns the loss with the settings that its `prepare` reads filled in.

    Call `prepare(batch, value_fn, where=...)` of the result; it reads no more settings.
    Settings that the loss doesn't read are left out: see `unread`.

    Args:
      loss: from `get`.
      gradients: how value gradients are taken.
      weights: how they become weights, without schedules that change.
      discount: of the next step's value.

    Raises:
      ConfigError: the loss reads a discount, and there is none.
    """
    if "discount" in loss.reads_config and discount is None:
        raise ConfigError(f"losses.bind: loss {loss.name!r} needs discount=, a number")
    settings = {"gradients": gradients, "weights": weights, "discount": discount}
    read = {name: settings[name] for name in loss.reads_config}
    if loss.prepare is None or not read:
        return loss
    prepare = functools.partial(loss.prepare, **read)
    return loss._replace(prepare=prepare, reads_config=())


def unread(
    loss: ModelLoss, *, gradients: GradientConfig, weights: WeightConfig
) -> dict[str, object]:
    """Returns the settings that differ from their defaults and that the loss ignores.

    Args:
      loss: from `get`.
      gradients: how value gradients are taken.
      weights: how they become weights.

    Returns:
      Keys such as `"weights.normalize"` to their values.
    """
    ignored = {}
    for group, config in (("gradients", gradients), ("weights", weights)):
        if group not in loss.reads_config:
            defaults = configs.to_dict(type(config)())
            for name, value in configs.to_dict(config).items():
                if value != defaults[name]:
                    ignored[f"{group}.{name}"] = value
    return ignored


def _origin(fn: LossFn) -> tuple[str, str]:
    return fn.__module__, fn.__qualname__


def _takes_prepared(fn: LossFn) -> bool:
    parameters = inspect.signature(fn).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return open_ended or "prepared" in parameters
