"""From a command line to the config dataclasses: the one place that knows absl.

Comes in: `--config=FILE[:VARIANT]`, `--config.KEY=VALUE` and a command's own flags.
Goes out: checked configs, handed to the command's `main`. Whatever a user gets wrong
is one line on standard error; `--debug` shows the traceback. Exit status: 0 done,
1 a fault of the program, 2 the command line or a setting, 3 the environment's code,
4 every seed diverged, 5 a file, 6 memory, 128 plus its number a signal.

A command, whose own flags are made by `DEFINE_string` and the like as in absl:

    OVERWRITE = flags.DEFINE_bool("overwrite", False, "Start anew.")

    def main(mbpo_config, run_config):
        ...OVERWRITE.value...

    if __name__ == "__main__":
        flags.run(main, training.MBPOConfig, runner.RunConfig)

A config file, which states only the differences:

    def get_config(variant=""):
        config = flags.defaults(training.MBPOConfig, runner.RunConfig)
        config.sac.discount = 0.98
        return config
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
import runpy
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags as absl_flags

from vagram_jax import config
from vagram_jax.run import devices, session

DEFINE_bool = absl_flags.DEFINE_bool
DEFINE_enum = absl_flags.DEFINE_enum
DEFINE_float = absl_flags.DEFINE_float
DEFINE_integer = absl_flags.DEFINE_integer
DEFINE_list = absl_flags.DEFINE_list
DEFINE_string = absl_flags.DEFINE_string

DEFAULT_CONFIG = "vagram_jax/cli/configs/pendulum.py"
STATUS_USAGE, STATUS_DIVERGED, STATUS_FILES, STATUS_MEMORY = 2, 4, 5, 6
STATUS_INTERRUPTED = 130

_CONFIG = DEFINE_string("config", None, "FILE or FILE:VARIANT, a Python config file.")
DEFINE_bool("debug", False, "Show the traceback of an error.")
_HELP = DEFINE_bool("help", False, "Show the flags and the config keys, and stop.")
# A name, or `no` and a name, with or without a value: absl's forms of a flag.
_OVERRIDE = re.compile(
    r"--?(?P<no>no)?config\.(?P<key>[^=]*)(=(?P<text>.*))?", re.DOTALL
)


class UsageError(ValueError):
    """A command line that can't be followed. The message says what to write instead."""


def run(
    main: Callable[..., int | None],
    *config_types: type,
    default_config: str = DEFAULT_CONFIG,
    argv: list[str] | None = None,
    takes_names: bool = False,
) -> None:
    """Parses the command line, calls `main` with the configs, and exits.

    Args:
      main: takes one config per type; what it returns is the exit status, None is 0.
      *config_types: config dataclasses without a field name in common.
      default_config: the config file when the command line names none.
      argv: the command line with the program's name first; None is `sys.argv`.
      takes_names: `main` takes, before the configs, a list of what is no flag.

    Raises:
      SystemExit: always, with the exit status.
    """
    argv = sys.argv if argv is None else argv
    names: list[str] | None = [] if takes_names else None
    try:
        configs = parse(argv, *config_types, default_config=default_config, names=names)
        if _HELP.value:
            print(_help_text(main, configs, default_config))
            raise SystemExit(0)
    except (absl_flags.Error, ValueError, OSError) as error:
        _fail(error, STATUS_USAGE)
    try:
        arguments = configs if names is None else (names, *configs)
        raise SystemExit(main(*arguments) or 0)
    except ValueError as error:
        _fail(error, STATUS_USAGE)
    except OSError as error:
        _fail(error, STATUS_FILES)
    except devices.DeviceError as error:
        _fail(error, STATUS_MEMORY)
    except session.RunError as error:
        _fail(error, error.status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(STATUS_INTERRUPTED) from None


def parse(
    argv: list[str],
    *config_types: type,
    default_config: str = DEFAULT_CONFIG,
    names: list[str] | None = None,
) -> tuple[Any, ...]:
    """The configs that a command line asks for; absl's flags are set on the way.

    Args:
      argv: the command line with the program's name first.
      *config_types: config dataclasses without a field name in common.
      default_config: the config file when the command line names none.
      names: gets the arguments that are no flags; None refuses them.

    Returns:
      One config per type.

    Raises:
      UsageError: an unknown flag, an argument that is no flag, or a config file that
        is missing or fails.
      ConfigError: a key or a value that the configs refuse.
    """
    argv = absl_flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    overrides = [found for arg in argv[1:] if (found := _OVERRIDE.fullmatch(arg))]
    rest = [arg for arg in argv if not _OVERRIDE.fullmatch(arg)]
    try:
        positional = absl_flags.FLAGS(rest)[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown_flag(error.flagvalue, config_types)) from None
    if positional and names is not None:
        names += positional
    elif positional:
        raise UsageError(f"{positional[0]}: no flag; flags are written --name=value")
    if not config_types:
        if overrides or _CONFIG.value:
            raise UsageError("--config: this command takes no config; leave it out")
        return ()
    standard = defaults(*config_types).to_dict()
    mapping = _load(_CONFIG.value or default_config)
    for found in overrides:
        _assign(mapping, found["key"], _value(found, _at(standard, found["key"])))
    return config.split(mapping, *config_types)


def load(name: str, *config_types: type) -> tuple[Any, ...]:
    """The configs of a file, as `--config=NAME` would give them.

    Args:
      name: FILE or FILE:VARIANT.
      *config_types: config dataclasses without a field name in common.

    Returns:
      One config per type.

    Raises:
      UsageError: the file is missing or fails.
      ConfigError: a key or a value that the configs refuse.
    """
    return config.split(_load(name), *config_types)


def override(configs: Sequence[Any], values: Mapping[str, str]) -> tuple[Any, ...]:
    """The configs with some keys set, as `--config.KEY=VALUE` would set them.

    Args:
      configs: config dataclasses without a field name in common.
      values: dotted keys to text.

    Returns:
      The configs, in the same order.

    Raises:
      ConfigError: a key or a value that the configs refuse.
    """
    mapping: dict[str, Any] = {}
    for one in configs:
        mapping |= config.to_dict(one)
    for key, text in values.items():
        _assign(mapping, key, _read(text, _at(mapping, key)))
    return config.split(mapping, *(type(one) for one in configs))


def defaults(*config_types: type) -> ml_collections.ConfigDict:
    """The defaults of several configs in one `ConfigDict`, for a config file to change.

    Types and names are not checked here but where the command reads the result, which
    knows what each field accepts.

    Args:
      *config_types: config dataclasses without a field name in common.

    Returns:
      Every key of every config.
    """
    merged = ml_collections.ConfigDict(type_safe=False)
    for config_type in config_types:
        merged.update(config.to_dict(config_type()))
    return merged


def _load(name: str) -> dict[str, Any]:
    """What `get_config` of a config file returns, as a plain dict."""
    file, _, variant = name.partition(":")
    path = _find(file)
    try:
        loaded = runpy.run_path(str(path))["get_config"](
            *([variant] if variant else [])
        )
        return loaded.to_dict() if hasattr(loaded, "to_dict") else dict(loaded)
    # The file is the user's own code and may fail in any way; its name is what helps.
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(f"--config={name}: the file fails with {what}") from error


def _find(file: str) -> Path:
    """The file seen from the working folder, else from where `experiments` lies."""
    root = Path(__file__).parents[2]
    for path in (Path(file), root / file):
        if path.is_file():
            return path
    shipped = sorted(
        path.relative_to(root) for path in root.glob("vagram_jax/cli/configs/*.py")
    )
    names = [path.as_posix() for path in shipped if not path.name.startswith("_")]
    near = difflib.get_close_matches(file, names, n=1)
    known = ", ".join(names) or "none"
    hint = f"did you mean {near[0]}?" if near else f"there are {known}"
    raise UsageError(f"--config={file}: no such file; {hint}")


def _at(mapping: Any, key: str) -> Any:
    """What a dotted key holds, or None."""
    for name in key.split("."):
        mapping = mapping.get(name) if isinstance(mapping, Mapping) else None
    return mapping


def _assign(mapping: dict[str, Any], key: str, value: Any) -> None:
    *outer, last = key.split(".")
    for name in outer:
        if not isinstance(mapping.get(name), dict):
            mapping[name] = {}
        mapping = mapping[name]
    mapping[last] = value


def _value(found: re.Match[str], default: Any) -> Any:
    """What an override says: `--config.key` is true, `--noconfig.key` is false."""
    if found["no"] and found["text"] is not None:
        raise UsageError(
            f"{found[0]}: takes no value; write --config.{found['key']}=..."
        )
    return not found["no"] if found["text"] is None else _read(found["text"], default)


def _read(text: str, default: Any) -> Any:
    """The value that a text stands for; `config` says whether it is accepted."""
    if isinstance(default, tuple):
        inner = default[0] if default else None
        items = [item.strip(" '\"") for item in text.strip("()[] ").split(",")]
        return tuple(_read(item, inner) for item in items if item)
    if isinstance(default, str):
        return text
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _unknown_flag(arg: str, config_types: tuple[type, ...]) -> str:
    keys = [
        key for config_type in config_types for key in config.key_names(config_type)
    ]
    known = {f"--{name}": f"--{name}" for name in absl_flags.FLAGS}
    # A key without its `config.` is the likeliest slip, so keys answer to both names.
    known |= {f"--{key}": f"--config.{key}" for key in keys}
    known |= {f"--config.{key}": f"--config.{key}" for key in keys}
    near = difflib.get_close_matches(arg.split("=")[0], known, n=1)
    hint = f"did you mean {known[near[0]]}?" if near else "--help lists all flags"
    return f"{arg}: unknown flag; {hint}"


def _fail(error: Exception, status: int) -> None:
    """Says what is wrong in one line, under `--debug` with the traceback, and exits."""
    # Asked of the flag itself: after a failed parse a flag's holder refuses to answer.
    if absl_flags.FLAGS["debug"].value:
        traceback.print_exception(error)
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    more = " ... (--debug shows all)"
    print(
        textwrap.shorten(message, 1000, placeholder=more), file=sys.stderr, flush=True
    )
    devices.leave(status)
    raise SystemExit(status) from None


def _help_text(main: Callable, configs: tuple[Any, ...], default_config: str) -> str:
    """What the command does, its flags, and every config key with its value."""
    about = inspect.getdoc(sys.modules[main.__module__]) or inspect.getdoc(main) or ""
    lines = [about, "", "Flags:"]
    for module in dict.fromkeys([main.__module__, sys.argv[0], __name__]):
        for flag in absl_flags.FLAGS.get_flags_for_module(module):
            default = "" if flag.default is None else f" (default: {flag.default})"
            lines.append(f"  --{flag.name}: {flag.help}{default}")
    lines += ["", f"Config keys, with the values of {_CONFIG.value or default_config}:"]
    for one in configs:
        values = config.to_dict(one)
        for key in config.key_names(type(one)):
            lines.append(f"  --config.{key}={_as_text(_at(values, key))}")
    return "\n".join(lines)


def _as_text(value: Any) -> str:
    """A value as a command line would say it."""
    if isinstance(value, tuple):
        return ",".join(_as_text(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)
