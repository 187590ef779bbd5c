"""The registry of model losses: their names in configs and what a fit must know."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from vagram_jax import config as configs
from vagram_jax import user_code
from vagram_jax.config import ConfigError
from vagram_jax.losses import batches
from vagram_jax.losses.value_gradients import GradientConfig, WeightConfig
from vagram_jax.types import Batch, LossFn, ValueFn

_CONFIGS = ("gradients", "weights", "discount")
_ARGUMENTS = ("params", "batch", "value_fn")
# In commands these names mean training without a model.
_RESERVED = ("none", "sac")


class LossError(ConfigError):
    """A loss, or its `prepare`, returned what training can't use."""

    status = user_code.STATUS


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

    def __call__(
        self,
        params,
        batch: Batch,
        value_fn: ValueFn,
        *,
        prepared: jax.Array | None = None,
        **options,
    ) -> jax.Array:
        """Calls the loss: `LOSSES["mse"](params, batch, value_fn)`.

        Args:
          params: parameters of the model.
          batch: `[B, ...]` or `[E, B, ...]` transitions, see `types.Batch`; a loss of
            a user's own gets them as a `Transition`.
          value_fn: maps one state `[obs_dim]` to a scalar or to `[K]`; a loss that
            doesn't use it accepts None.
          prepared: what `prepare` returned for this batch; None lets the loss compute
            it.
          **options: `predict` and other keywords of the loss.

        Returns:
          A scalar.

        Raises:
          LossError: the loss doesn't return a floating scalar.
          ValueError: the batch can't be used, and as the loss documents.
        """
        if prepared is not None:
            options["prepared"] = prepared
        batch = batches.to_transition(f"loss {self.name!r}", batch)
        value = self.fn(params, batch, value_fn, **options)
        if not _is_floating_scalar(value):
            raise LossError(
                f"loss {self.name!r} ({user_code.defined_at(self.fn)}): returned "
                f"{_form(value)}; a floating scalar is accepted, such as "
                "jnp.mean(errors)"
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
      ValueError: the name isn't a text of letters, digits and _, is reserved, or
        belongs to another function; `reads_config` has an unknown name; or the loss or
        `prepare` can't be called as training calls it.
    """
    _check_name(name)
    if unknown := sorted({*reads_config} - {*_CONFIGS}):
        raise ValueError(
            f"register: reads_config={unknown[0]!r}; accepted: {', '.join(_CONFIGS)}"
        )

    def decorator(fn: LossFn) -> LossFn:
        taken = LOSSES.get(name)
        # The same definition may run again: a notebook cell, a reloaded module.
        if taken and _origin(taken.fn) != _origin(fn):
            raise ValueError(f"register: name={name!r} is taken; choose another name")
        keywords = ("predict", "prepared") if prepare else ("predict",)
        _check_takes(f"register: loss {name!r}", fn, _ARGUMENTS, keywords)
        checked = None
        if prepare is not None:
            what = f"register: prepare of loss {name!r}"
            keywords = ("where", *reads_config)
            _check_takes(what, prepare, ("batch", "value_fn"), keywords)
            checked = _checked(name, prepare)
        LOSSES[name] = ModelLoss(
            name, fn, checked, gaussian, reads, reads_config, prepares_weights
        )
        return fn

    return decorator


def get(name: str, *, also: tuple[str, ...] = ()) -> ModelLoss:
    """Returns the loss with that name.

    Args:
      name: a registered name; or `"path.module:name"`, which imports the module, where
        `name` is that of a loss which the module registers, or of a function.
      also: other names that the caller accepts, for the message.

    Raises:
      ConfigError: the name is unknown, and the message lists the known ones; or there
        is no such module or function, or training can't call it.
      UserCodeError: importing the module raised an exception.
    """
    if ":" in name:
        return _imported(name)
    if name not in LOSSES:
        known = [*sorted(LOSSES), *also]
        near = difflib.get_close_matches(str(name).lower(), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"config: loss={name!r}; known: {', '.join(known)}, or "
            f"path.module:NAME{hint}"
        )
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


def _imported(name: str) -> ModelLoss:
    """Returns a loss by its import path."""
    setting, (path, _, attribute) = f"loss={name!r}", name.partition(":")
    if not (path and attribute):
        raise ConfigError(f"config: {setting}; path.module:NAME is accepted")
    module = configs.imported(setting, path)
    registered = LOSSES.get(attribute)
    if registered and registered.fn.__module__ == module.__name__:
        return registered
    found = configs.attribute(setting, module, attribute)
    for loss in LOSSES.values():
        if found is loss.fn:
            return loss
    if not callable(found):
        raise ConfigError(
            f"config: {setting}; it is of type {type(found).__name__}; a function "
            f"({', '.join(_ARGUMENTS)}, *, predict) is accepted"
        )
    try:
        _check_takes(f"config: {setting}", found, _ARGUMENTS, ("predict",))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return ModelLoss(name, cast(LossFn, found))


def _origin(fn: LossFn) -> tuple[str, str]:
    return fn.__module__, fn.__qualname__


def _check_name(name: str) -> None:
    """Refuses a name that a config or a command couldn't use."""
    if callable(name):
        raise ValueError(
            f"register: {user_code.defined_at(name)}: @register needs a name; write "
            f'@register("{getattr(name, "__name__", "name")}")'
        )
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name):
        raise ValueError(
            f"register: name={name!r}; a text of letters, digits and _ is accepted, "
            'such as "l1"'
        )
    if name in _RESERVED:
        raise ValueError(
            f"register: name={name!r} means training without a model; choose another "
            "name"
        )


def _check_takes(what: str, fn: Callable, positional, keywords) -> None:
    """Refuses a function that can't be called as training calls it."""
    try:
        inspect.signature(fn).bind(*positional, **dict.fromkeys(keywords))
    except TypeError as error:
        raise ValueError(
            f"{what}, {user_code.defined_at(fn)}: {error}; it must take "
            f"({', '.join(positional)}, *, {', '.join(keywords)})"
        ) from None


def _checked(name: str, prepare: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns `prepare` for a batch of any form, with a check of what it returns."""
    caller = f"prepare of loss {name!r}, {user_code.defined_at(prepare)}"

    @functools.wraps(prepare)
    def checked(batch, value_fn=None, *, where: jax.Array | None = None, **settings):
        batch = batches.to_transition(caller, batch, where)
        prepared = prepare(batch, value_fn, where=where, **settings)
        rows = batch.reward.shape
        if getattr(prepared, "shape", ())[: len(rows)] != rows:
            raise LossError(
                f"{caller}: returned {_form(prepared)}; an array with one entry for "
                f"each row of the batch is accepted, [{', '.join(map(str, rows))}, ...]"
            )
        return prepared

    return checked


def _is_floating_scalar(value) -> bool:
    is_number = isinstance(value, float) or hasattr(value, "dtype")
    return (
        is_number
        and jnp.shape(value) == ()
        and jnp.issubdtype(jnp.result_type(value), jnp.floating)
    )


def _form(value) -> str:
    """What was returned instead of the right thing."""
    if not hasattr(value, "dtype"):
        return "None" if value is None else f"a value of type {type(value).__name__}"
    return f"an array of shape {list(value.shape)} and dtype {value.dtype}"
