"""Strict conversion between plain mappings and the config dataclasses.

A mapping comes from a file, a command line or a notebook. Each config dataclass stands
at the top of the module that reads it; there, `static` and `leaf` state the default of
a field and the values that it accepts. This module knows no field by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax
from flax import struct

from vagram_jax import schedules, user_code
from vagram_jax.schedules import Schedule
from vagram_jax.user_code import UserCodeError


class ConfigError(ValueError):
    """A setting that can't be used. The message has key, value and what is accepted."""

    status = 2  # the exit status of a command


def static(default: Any, **accepts: Any) -> Any:
    """Returns a field that decides a shape, a branch or a loop length.

    A change of its value compiles anew.

    Args:
      default: the default value.
      **accepts: `low`, `high` (both inclusive) and `above` (exclusive) for a number,
        for each number of a tuple and for the values of a schedule; `choices` for a
        string; `whole=True` for a schedule of whole numbers. `known` has the usual
        texts, for `--help`; others are accepted too.
    """
    return _field(default, pytree_node=False, accepts=accepts)


def leaf(default: float | Schedule | None, **accepts: Any) -> Any:
    """Returns a field with a number that a sweep may vary without compiling again.

    Args:
      default: a number, a schedule, or None for an optional number.
      **accepts: as for `static`.
    """
    return _field(default, pytree_node=True, accepts=accepts)


def nested(config_type: type) -> Any:
    """Returns a field that holds another config, by default `config_type()`."""
    return struct.field(pytree_node=True, default_factory=config_type)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config as a nested plain dict, ready for JSON."""
    return {
        field.name: _to_plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
    }


def from_mapping(config_type: type, mapping: Mapping[str, Any]) -> Any:
    """Builds a config from a mapping; fields that it doesn't name keep their defaults.

    Raises:
      ConfigError: an unknown key, a wrong type or a value out of range.
    """
    return split(mapping, config_type)[0]


def check_fields(config: Any, prefix: str = "") -> None:
    """Refuses a config that `from_mapping` wouldn't return, such as one made directly.

    Of a number that a transformation of JAX traces, only the shape is checked.

    Args:
      config: a config dataclass.
      prefix: text before each name in a message.

    Raises:
      ConfigError: a wrong type or a value out of range.
    """
    hints = typing.get_type_hints(type(config))
    for field in _fields(type(config)):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        inner = _nested_type(field)
        if inner is None:
            _check_value(key, value, field, hints)
        elif isinstance(value, inner):
            check_fields(value, prefix=f"{key}.")
        else:
            raise ConfigError(
                f"config: {key} has type {type(value).__name__}; {inner.__name__} is "
                "accepted"
            )


def split(mapping: Mapping[str, Any], *config_types: type) -> tuple[Any, ...]:
    """Builds several configs from one mapping; each takes the keys that are its fields.

    Args:
      mapping: names to values, nested where a config holds another.
      *config_types: config dataclasses without a field name in common.

    Returns:
      One instance per type, in the same order.

    Raises:
      ConfigError: an unknown key, a wrong type or a value out of range.
      ValueError: two of the configs have a field of the same name.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(
            f"config: {mapping!r}; a mapping of names to values is accepted"
        )
    _refuse_shared(config_types)
    known = [name for config_type in config_types for name in key_names(config_type)]
    _refuse_unknown(mapping, _tree(config_types), known, prefix="")
    return tuple(_build(config_type, mapping, "") for config_type in config_types)


def key_names(config_type: type, prefix: str = "") -> list[str]:
    """Returns every key of a config, such as `"sac.discount"`, in field order.

    Args:
      config_type: a config dataclass.
      prefix: text before each name.
    """
    names = []
    for field in _fields(config_type):
        inner = _nested_type(field)
        names += (
            key_names(inner, f"{prefix}{field.name}.")
            if inner
            else [prefix + field.name]
        )
    return names


def descriptions(config_type: type, prefix: str = "") -> dict[str, str]:
    """Returns what each key of a config means, and which values it accepts.

    Args:
      config_type: a config dataclass, whose docstring has a section `Attributes:`.
      prefix: text before each name.

    Returns:
      Keys, such as `"sac.discount"`, to text in field order; also that of a nested
      config, such as `"sac"`. A field that the docstring lacks gets only its values.
    """
    attributes = (inspect.getdoc(config_type) or "").partition("Attributes:\n")[2]
    texts = dict(re.findall(r"^  (\w+): (.+(?:\n    .+)*)", attributes, re.MULTILINE))
    described = {}
    for field in _fields(config_type):
        key, words = prefix + field.name, texts.get(field.name, "").split()
        accepts = field.metadata.get("accepts", {})
        if rule := _accepted(accepts):
            words.append(f"Accepted: {rule}.")
        if "known" in accepts:
            words.append(f"Known: {', '.join(accepts['known'])}.")
        described[key] = " ".join(words)
        if inner := _nested_type(field):
            described |= descriptions(inner, prefix=f"{key}.")
    return described


def imported(setting: str, module: str) -> types.ModuleType:
    """Imports the module of a setting that names an object of the user's own.

    Args:
      setting: key and value for messages, such as `"env='my_task:Glider'"`.
      module: import path.

    Raises:
      ConfigError: there is no such module.
      UserCodeError: its code raised an exception.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"config: {setting}; {user_code.one_line(error)}; an importable module is "
            "accepted; check the spelling and PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        raise UserCodeError(
            f"config: {setting}; importing {module} raised "
            f"{user_code.one_line(error)}; repair it"
        ) from error


def attribute(setting: str, module: types.ModuleType, name: str) -> Any:
    """Returns an object of a module that a setting names.

    Args:
      setting: as for `imported`.
      module: from `imported`.
      name: of the object.

    Raises:
      ConfigError: the module has no such object.
    """
    if hasattr(module, name):
        return getattr(module, name)
    near = difflib.get_close_matches(name, dir(module), n=1)
    hint = f"did you mean {near[0]}?" if near else "check the spelling"
    raise ConfigError(f"config: {setting}; {module.__name__} has no {name}; {hint}")


def _to_plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return schedules.to_plain(value)
    return to_dict(value) if dataclasses.is_dataclass(value) else value


def _field(default: Any, *, pytree_node: bool, accepts: dict[str, Any]) -> Any:
    return struct.field(
        pytree_node=pytree_node, default=default, metadata={"accepts": accepts}
    )


def _fields(config_type: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(config_type)


def _nested_type(field: dataclasses.Field) -> type | None:
    factory = field.default_factory
    return factory if dataclasses.is_dataclass(factory) else None


def _tree(config_types: tuple[type, ...]) -> dict[str, Any]:
    """Field names to None, or to the same tree of a nested config."""
    return {
        field.name: _tree((inner,)) if (inner := _nested_type(field)) else None
        for config_type in config_types
        for field in _fields(config_type)
    }


def _refuse_shared(config_types: tuple[type, ...]) -> None:
    owners: dict[str, type] = {}
    for config_type in config_types:
        for field in _fields(config_type):
            owner = owners.setdefault(field.name, config_type)
            if owner is not config_type:
                raise ValueError(
                    f"config: {field.name} is a field of {owner.__name__} and of "
                    f"{config_type.__name__}; a flat mapping can hold only one of them"
                )


def _refuse_unknown(mapping, tree, known, prefix) -> None:
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if name not in tree:
            hint = _hint(str(name), [f"{prefix}{inner}" for inner in tree], known)
            raise ConfigError(f"config: unknown key {key}={value!r}; {hint}")
        if tree[name] is not None:
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"config: {key}={value!r}; it holds other keys: "
                    f"{', '.join(f'{key}.{inner}' for inner in tree[name])}"
                )
            _refuse_unknown(value, tree[name], known, prefix=f"{key}.")


def _hint(name: str, siblings: list[str], known: list[str]) -> str:
    """Names the key that was probably meant, or lists all keys."""
    if "." in name:
        return "a dot in a name means nothing here; nest the mapping"
    same = [key for key in known if key.split(".")[-1] == name]
    # Compares last names only: a shared prefix would make unlike names look alike.
    spelt = {key.split(".")[-1]: key for key in [*known, *siblings]}
    near = difflib.get_close_matches(name.split(".")[-1], spelt, n=1, cutoff=0.5)
    meant = same or [spelt[word] for word in near]
    return f"did you mean {meant[0]}?" if meant else f"known: {', '.join(known)}"


def _build(config_type: type, mapping: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(config_type)
    values = {}
    for field in _fields(config_type):
        if field.name not in mapping:
            continue
        key, value = f"{prefix}{field.name}", mapping[field.name]
        inner = _nested_type(field)
        if inner:
            values[field.name] = _build(inner, value, prefix=f"{key}.")
        else:
            values[field.name] = _read(key, value, field, hints)
    return config_type(**values)


def _read(key: str, value: Any, field: dataclasses.Field, hints) -> Any:
    """Converts the value of one field, or refuses it."""
    accepts = field.metadata.get("accepts", {})
    value = _convert(key, value, hints[field.name])
    if accepts.get("whole"):
        value = _to_whole(key, value)
    _check_accepts(key, value, accepts)
    return value


def _check_value(key: str, value: Any, field: dataclasses.Field, hints) -> None:
    """Refuses the value of one field unless a mapping could have given it."""
    arrays = [x for x in jax.tree.leaves(value) if hasattr(x, "shape")]
    for array in arrays:
        if array.shape:
            raise ConfigError(
                f"config: {key} has shape {list(array.shape)}; one number is accepted; "
                "make a config for each"
            )
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return
    value = jax.tree.map(lambda x: x.item() if hasattr(x, "shape") else x, value)
    converted = _read(key, value, field, hints)
    if not _is_converted(value, converted):
        raise ConfigError(f"config: {key}={value!r}; {converted!r} is accepted")


def _is_converted(value: Any, converted: Any) -> bool:
    """Whether a value has the type of its field; any number may stand for a float."""
    if isinstance(converted, tuple):
        same_length = isinstance(value, tuple) and len(value) == len(converted)
        return same_length and all(map(_is_converted, value, converted))
    return isinstance(converted, float | Schedule) or type(value) is type(converted)


def _convert(key: str, value: Any, hint: Any) -> Any:
    """Converts `value` to the type that the field declares, or refuses it."""
    if hint is Schedule:
        return _schedule(key, value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None or value == "none":
            return None
        (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        return _convert(key, value, inner)
    if typing.get_origin(hint) is tuple:
        items = value if isinstance(value, list | tuple) else (value,)
        return tuple(_convert(key, item, typing.get_args(hint)[0]) for item in items)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    # Step counts are often written as 1e6, which is a float and a whole number.
    if hint is int and _is_finite(value) and value == int(value):
        return int(value)
    if hint is float and _is_finite(value):
        return float(value)
    raise ConfigError(f"config: {key}={value!r}; {_kind(hint)} is accepted")


def _schedule(key: str, value: Any) -> Schedule:
    """Converts one number, or four in any sequence or text, to a schedule."""
    items = value
    if isinstance(value, Schedule):
        items = [value.start, value.end, value.first_step, value.last_step]
    if isinstance(value, str):
        items = [_number(item) for item in value.strip("()[] ").split(",")]
    items = list(items) if isinstance(items, list | tuple) else [items]
    in_order = len(items) == 1 or (
        len(items) == 4 and all(map(_is_finite, items)) and items[2] <= items[3]
    )
    if not in_order:
        raise ConfigError(
            f"config: {key}={value!r}; one number, or four: start value, end value, "
            "first and last environment step of the change, in rising order"
        )
    numbers = [_convert(key, item, float) for item in items]
    return schedules.constant(*numbers) if len(numbers) == 1 else Schedule(*numbers)


def _to_whole(key: str, schedule: Schedule) -> Schedule:
    """Converts the values of a schedule to whole numbers."""
    start, end = (_convert(key, x, int) for x in (schedule.start, schedule.end))
    return schedule.replace(start=start, end=end)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text.strip()


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the range of float
        return False


def _kind(hint: Any) -> str:
    kinds = {bool: "true or false", str: "text", int: "a whole number"}
    return kinds.get(hint, "a finite number")


def _check_accepts(key: str, value: Any, accepts: Mapping[str, Any]) -> None:
    if value is None:
        return
    if isinstance(value, Schedule):
        value = schedules.bounds(value)
    for item in value if isinstance(value, tuple) else (value,):
        if "choices" in accepts and item not in accepts["choices"]:
            near = difflib.get_close_matches(str(item), accepts["choices"], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            accepted = _accepted(accepts)
            raise ConfigError(f"config: {key}={item!r}; accepted: {accepted}{hint}")
        if (
            ("low" in accepts and item < accepts["low"])
            or ("high" in accepts and item > accepts["high"])
            or ("above" in accepts and item <= accepts["above"])
        ):
            raise ConfigError(f"config: {key}={item!r}; accepted: {_accepted(accepts)}")


def _accepted(accepts: Mapping[str, Any]) -> str:
    """The accepted values in words; empty if every value of the type is."""
    if "choices" in accepts:
        return ", ".join(accepts["choices"])
    parts = [
        f"{words} {accepts[name]}"
        for name, words in [
            ("low", "at least"),
            ("above", "above"),
            ("high", "at most"),
        ]
        if name in accepts
    ]
    return " and ".join(parts)
