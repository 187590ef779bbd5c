"""The configs of the tasks, found by name, and changes of single keys.

Each module here is a config, such as `hopper`, that states only what differs from the
defaults. A config of your own is a Python file with the function `get_config`:

    from vagram_jax.cli import configs

    def get_config(variant=""):
        config = configs.defaults()
        config.env = "my_task:Glider"
        config.sac.discount = 0.98
        return config
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import pkgutil
import runpy
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from vagram_jax import config, user_code
from vagram_jax.cli.help import Option
from vagram_jax.config import ConfigError
from vagram_jax.mbpo import MBPOConfig
from vagram_jax.run import grid
from vagram_jax.run.loop import CONFIGS
from vagram_jax.user_code import UserCodeError


def defaults(*config_types: type) -> Any:
    """Returns the defaults of several configs, for a config file to change.

    Returned is a `ConfigDict`, whose keys no type checker knows. `load` checks the
    values, not the `ConfigDict`.

    Args:
      *config_types: config dataclasses without a common field name; by default those of
        the task, the algorithm and the run.
    """
    merged = ml_collections.ConfigDict(type_safe=False)
    for config_type in config_types or CONFIGS:
        merged.update(config.to_dict(config_type()))
    return merged


def load(
    name: str, *config_types: type, overrides: Mapping[str, str | bool] | None = None
) -> tuple[Any, ...]:
    """Returns the configs that `--config=NAME` gives, with the values of `override`.

    Args:
      name: NAME or NAME:VARIANT of a config here, or FILE.py or FILE.py:VARIANT.
      *config_types: as for `defaults`.
      overrides: values of single keys, as for `override`.

    Raises:
      ConfigError: there is no such config, or a key or a value is refused.
      UserCodeError: its code raised an exception.
    """
    mapping = _call(name, *_find(name))
    try:
        configs = config.split(mapping, *(config_types or CONFIGS))
    except ConfigError as error:
        raise ConfigError(f"--config={name}: {error}") from error
    return override(configs, overrides or {})


def override(
    configs: Sequence[Any], values: Mapping[str, str | bool]
) -> tuple[Any, ...]:
    """Returns the configs with the values that `--config.KEY=VALUE` sets.

    The value of `loss` is set first, see `grid.with_loss`: a config's settings of
    another loss don't count, and only the values here must be ones that it reads.

    Args:
      configs: config dataclasses without a common field name.
      values: dotted keys to text.

    Raises:
      ConfigError: a key or a value is refused.
    """
    values, mapping = dict(values), {}
    for each in configs:
        loss = values.get("loss")
        if isinstance(each, MBPOConfig) and isinstance(loss, str):
            each = grid.with_loss(each, loss)
            del values["loss"]
        mapping |= config.to_dict(each)
    return _split_with(mapping, tuple(map(type, configs)), values)


def variants(**functions: Callable[[], Any]) -> Callable[..., Any]:
    """Returns the `get_config` of a config with several variants.

    Args:
      **functions: a function per variant that returns its config; the first is the
        default.
    """

    def get_config(variant: str = ""):
        name = variant or next(iter(functions))
        if name not in functions:
            near = difflib.get_close_matches(name, functions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(functions)
            raise ConfigError(f"variant={name!r}; accepted: {known}{hint}")
        return functions[name]()

    return get_config


def names() -> list[str]:
    """Returns the names of the configs here."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in modules if hasattr(_module(name), "get_config")]


def keys(*config_types: type) -> list[str]:
    """Returns every dotted key of the configs."""
    return [key for each in config_types for key in config.key_names(each)]


def options(configs: Sequence[Any]) -> dict[str, list[Option]]:
    """Returns every key of the configs with its value, for `--help`.

    Args:
      configs: config dataclasses.

    Returns:
      Headings to options: for each config its own keys, then those that it nests.
    """
    groups: dict[str, list[Option]] = {}
    for each in configs:
        texts = config.descriptions(type(each))
        about = (inspect.getdoc(type(each)) or "").partition("\n")[0]
        for key in sorted(config.key_names(type(each)), key=lambda key: "." in key):
            group, _, name = key.rpartition(".")
            heading = f"Config of {group}: {texts[group]}" if group else about
            value = config.to_dict(getattr(each, group) if group else each)[name]
            shown = "none" if value is None else value
            option = Option(f"config.{key}", shown, texts[key])
            groups.setdefault(heading, []).append(option)
    return groups


def _module(name: str) -> types.ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _find(name: str) -> tuple[Path | None, str]:
    """The file that `name` starts with, or None for a config here, and the variant."""
    base, _, variant = name.partition(":")
    if base in names():
        return None, variant
    if base.endswith(".py") and Path(base).is_file():
        return Path(base), variant
    near = difflib.get_close_matches(base.removesuffix(".py"), names(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"--config={name}: no such config; {hint}accepted: {', '.join(names())}, or a "
        "Python file; each with :VARIANT, if it has variants"
    )


def _call(name: str, path: Path | None, variant: str) -> dict[str, Any]:
    """Calls the function `get_config` of a config."""
    try:
        if path is None:
            get_config = _module(name.partition(":")[0]).get_config
        else:
            get_config = runpy.run_path(str(path)).get("get_config")
        if not callable(get_config):
            raise ConfigError("no function get_config; define get_config()")
        if variant and not inspect.signature(get_config).parameters:
            raise ConfigError(f"variant={variant!r}; it has no variants")
        returned = get_config(variant) if variant else get_config()
    except ConfigError as error:
        raise ConfigError(f"--config={name}: {error}") from error
    # A user's file may fail in any way.
    except (Exception, SystemExit) as error:
        raise UserCodeError(
            f"--config={name}: it raised {user_code.one_line(error)}; repair it"
        ) from error
    if isinstance(returned, ml_collections.ConfigDict):
        return returned.to_dict()
    if not isinstance(returned, Mapping):
        raise ConfigError(
            f"--config={name}: get_config ({user_code.defined_at(get_config)}) "
            f"returned {returned!r:.40}; a dict or a ConfigDict is accepted; return one"
        )
    return dict(returned)


def _split_with(
    mapping: dict[str, Any],
    config_types: tuple[type, ...],
    values: Mapping[str, str | bool],
) -> tuple[Any, ...]:
    """Sets some keys, then converts and checks the mapping."""
    for key, value in values.items():
        if isinstance(value, str):
            declared = declared_type(key, config_types)
            if not value.strip() and typing.get_origin(declared) is tuple:
                raise ConfigError(
                    f"config: {key}=; a tuple such as 64,64 is accepted, or () without "
                    "entries"
                )
            value = _read(value, declared)
        _assign(mapping, key, value)
    return config.split(mapping, *config_types)


def _assign(mapping: dict[str, Any], key: str, value: Any) -> None:
    *outer, last = key.split(".")
    for name in outer:
        if not isinstance(mapping.get(name), dict):
            mapping[name] = {}
        mapping = mapping[name]
    mapping[last] = value


def declared_type(key: str, config_types: Sequence[type]) -> Any:
    """Returns the type that the config dataclasses declare for a key, or None."""
    declared: Any = None
    for name in key.split("."):
        hints: dict[str, Any] = {}
        for config_type in config_types:
            hints |= typing.get_type_hints(config_type)
        declared = hints.get(name)
        config_types = [declared] if isinstance(declared, type) else []
    return declared


def _read(text: str, declared: Any) -> Any:
    """The value of a text; `config.split` converts it and checks whether it fits."""
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        (declared,) = set(typing.get_args(declared)) - {type(None)}
    if declared is str:
        return text
    is_tuple = typing.get_origin(declared) is tuple
    if is_tuple or "," in text:
        inner = typing.get_args(declared)[0] if is_tuple else None
        items = (item.strip(" '\"") for item in text.strip("()[] ").split(","))
        return tuple(_read(item, inner) for item in items if item)
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return {"true": True, "false": False}.get(text.lower(), text)
