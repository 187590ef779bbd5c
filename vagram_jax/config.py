"""Strict conversion between plain mappings and the config dataclasses.

Comes in: a mapping from a file, a command line or a notebook. Goes out: the frozen
dataclasses that the stops consume. This file knows no field: each config stands at
the top of the file that consumes it, where `static` and `leaf` state a field's
default and what it accepts.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import typing
from collections.abc import Mapping
from typing import Any

from flax import struct


class ConfigError(ValueError):
    """A setting that can't be used. The message has key, value and what is accepted."""


def static(default: Any, **accepts: Any) -> Any:
    """A field that decides a shape, a branch or a loop length: changing it recompiles.

    Args:
      default: the value when nothing else is said.
      **accepts: `low`, `high` (both inclusive), `above` (exclusive) for a number or
        for each number of a tuple; `choices` for a string.

    Returns:
      A dataclass field that is no leaf of the pytree.
    """
    return _field(default, pytree_node=False, accepts=accepts)


def leaf(default: float, **accepts: Any) -> Any:
    """A field with a number that a sweep may vary without compiling again.

    Args:
      default: the value when nothing else is said.
      **accepts: as for `static`.

    Returns:
      A dataclass field that is a leaf of the pytree.
    """
    return _field(default, pytree_node=True, accepts=accepts)


def nested(config_type: type) -> Any:
    """A field that holds another config.

    Args:
      config_type: the config dataclass, all of whose fields have defaults.

    Returns:
      A dataclass field whose default is `config_type()`.
    """
    return struct.field(pytree_node=True, default_factory=config_type)


def to_dict(config: Any) -> dict[str, Any]:
    """The nested plain dict of a config, ready for JSON.

    Args:
      config: an instance of a config dataclass.

    Returns:
      Field names to numbers, strings, tuples and dicts of them.
    """
    return {
        field.name: to_dict(value) if dataclasses.is_dataclass(value) else value
        for field in dataclasses.fields(config)
        for value in [getattr(config, field.name)]
    }


def from_mapping(config_type: type, mapping: Mapping[str, Any]) -> Any:
    """One config from a mapping that states any part of it.

    Args:
      config_type: a config dataclass.
      mapping: names to values; what it doesn't name keeps its default.

    Returns:
      An instance of `config_type`.

    Raises:
      ConfigError: an unknown key, a wrong type or a value out of range.
    """
    return split(mapping, config_type)[0]


def split(mapping: Mapping[str, Any], *config_types: type) -> tuple[Any, ...]:
    """Several configs from one flat mapping: each takes the keys that are its fields.

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
    """Every key of a config, dotted where it is nested, in the order of the fields.

    Args:
      config_type: a config dataclass.
      prefix: what to put before each name.

    Returns:
      Names such as `"sac.discount"`.
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
                    f"{config_type.__name__}; a flat mapping can't tell them apart"
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
    """Which key was meant: one in another config, one spelt alike, or any of them."""
    if "." in name:
        return "a dot in a name means nothing here; nest the mapping"
    same = [key for key in known if key.split(".")[-1] == name]
    # Names alone are compared: a shared prefix would make unlike names look alike.
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
            values[field.name] = _convert(key, value, hints[field.name])
            _check_accepts(key, values[field.name], field.metadata.get("accepts", {}))
    return config_type(**values)


def _convert(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type that the field declares, or an error that names both."""
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
    for item in value if isinstance(value, tuple) else (value,):
        if "choices" in accepts and item not in accepts["choices"]:
            near = difflib.get_close_matches(str(item), accepts["choices"], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(accepts["choices"])
            raise ConfigError(f"config: {key}={item!r}; accepted: {known}{hint}")
        if (
            ("low" in accepts and item < accepts["low"])
            or ("high" in accepts and item > accepts["high"])
            or ("above" in accepts and item <= accepts["above"])
        ):
            raise ConfigError(f"config: {key}={item!r}; accepted: {_range(accepts)}")


def _range(accepts: Mapping[str, Any]) -> str:
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
