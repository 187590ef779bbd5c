"""Command lines: parses flags and `--config.KEY=VALUE`, and reports errors in one line.

No other module imports absl. This module doesn't load JAX unless a command takes
configs. A command is a module with flags and a function `main`:

    OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace runs that exist.")

    def main(env_config, algorithm, run_config):
        ...OVERWRITE.value...

Errors are one line on standard error; `--debug` adds the traceback. Exit status: 0
done, 1 a bug, 2 the command line or a setting, 3 a user's own code, 4 all seeds
diverged, 5 a file, 6 memory or a device, 128 plus its number a signal. An exception
class with the attribute `status` sets its own.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import re
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags as absl_flags

DEFINE_bool = absl_flags.DEFINE_bool
DEFINE_enum = absl_flags.DEFINE_enum
DEFINE_float = absl_flags.DEFINE_float
DEFINE_integer = absl_flags.DEFINE_integer
DEFINE_list = absl_flags.DEFINE_list
DEFINE_string = absl_flags.DEFINE_string

STATUS_USAGE, STATUS_DIVERGED, STATUS_FILES, STATUS_MEMORY = 2, 4, 5, 6
STATUS_INTERRUPTED = 130

_CONFIG = DEFINE_string(
    "config",
    "pendulum",
    "NAME or NAME:VARIANT of a config, or FILE.py or FILE.py:VARIANT.",
)
DEFINE_bool("debug", False, "Show the traceback of an error.")
_HELP = DEFINE_bool("help", False, "Show this text.")
# `--config.key=value`, `--config.key` for true and `--noconfig.key` for false.
_OVERRIDE = re.compile(
    r"--?(?P<no>no)?config\.(?P<key>[^=]*)(=(?P<text>.*))?", re.DOTALL
)


class UsageError(ValueError):
    """A command line that isn't accepted. The message says what to write instead."""

    status = STATUS_USAGE


def run(
    main: Callable[..., int | None],
    *config_types: type,
    argv: list[str] | None = None,
    takes_names: bool = False,
) -> None:
    """Parses the command line, calls `main` with the configs, and exits.

    Args:
      main: receives one config per type and returns the exit status; None means 0.
      *config_types: config dataclasses without a common field name.
      argv: the command line, the name of the program first; by default `sys.argv`.
      takes_names: before the configs, `main` receives the list of arguments that aren't
        flags; by default such arguments are errors.

    Raises:
      SystemExit: always, with the exit status.
    """
    with one_line_errors():
        argv = sys.argv if argv is None else argv
        names: list[str] | None = [] if takes_names else None
        configs = parse(argv, *config_types, names=names)
        if _HELP.value:
            print(_help_text(main, configs))
            raise SystemExit(0)
        arguments = configs if names is None else (names, *configs)
        raise SystemExit(main(*arguments) or 0)


def parse(
    argv: list[str], *config_types: type, names: list[str] | None = None
) -> tuple[Any, ...]:
    """Sets absl's flags and returns the configs of a command line, one per type.

    Args:
      argv: the command line, the name of the program first.
      *config_types: config dataclasses without a common field name.
      names: receives the arguments that aren't flags; None refuses them.

    Raises:
      UsageError: an unknown flag, or an argument that isn't accepted.
      ConfigError: there is no such config, or a key or a value is refused.
    """
    argv = absl_flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    matches = [match for arg in argv[1:] if (match := _OVERRIDE.fullmatch(arg))]
    rest = [arg for arg in argv if not _OVERRIDE.fullmatch(arg)]
    try:
        positional = absl_flags.FLAGS(rest)[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown_flag(error.flagvalue, config_types)) from None
    if positional and names is None:
        raise UsageError(f"{positional[0]}: not a flag; flags are written --name=value")
    if names is not None:
        names += positional
    if not config_types:
        if matches or absl_flags.FLAGS["config"].present:
            raise UsageError("--config: this command takes no config; leave it out")
        return ()
    overrides = {match["key"]: _text(match) for match in matches}
    return _configs().load(_CONFIG.value, *config_types, overrides=overrides)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Prints an error of the `with` block in one line and exits; a bug passes through.

    Raises:
      SystemExit: an error, with its exit status.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(STATUS_INTERRUPTED) from None
    except Exception as error:
        status = _status(error)
        if status is None:
            raise
        _print_error(error)
        _leave_cluster(status)
        raise SystemExit(status) from None


def _status(error: Exception) -> int | None:
    """The exit status for an error, None for a bug."""
    if isinstance(status := getattr(error, "status", None), int):
        return status
    if isinstance(error, OSError):
        return STATUS_FILES
    is_usage = isinstance(error, ValueError | absl_flags.Error)
    return STATUS_USAGE if is_usage else None


def _print_error(error: Exception) -> None:
    # After a failed parse, `_DEBUG.value` would raise; the flag itself has a value.
    if absl_flags.FLAGS["debug"].value:
        traceback.print_exception(error)
    message = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        message = f"{error.filename}: {error.strerror}"
    line = textwrap.shorten(message, 1000, placeholder=" ... (--debug shows all)")
    print(line, file=sys.stderr, flush=True)


def _leave_cluster(status: int) -> None:
    """Exits at once if this is one of several processes, which wait for each other."""
    # Without this module, the process has joined no cluster and needn't load JAX.
    devices = sys.modules.get("vagram_jax.run.devices")
    if devices is not None:
        devices.leave(status)


def _configs() -> types.ModuleType:
    """The module of the configs, which loads JAX."""
    return importlib.import_module("vagram_jax.cli.configs")


def _text(match: re.Match[str]) -> str | bool:
    """The value of an override: `--config.key` is true, `--noconfig.key` is false."""
    if match["no"] and match["text"] is not None:
        raise UsageError(
            f"{match[0]}: takes no value; write --config.{match['key']}=..."
        )
    return not match["no"] if match["text"] is None else match["text"]


def _unknown_flag(arg: str, config_types: tuple[type, ...]) -> str:
    known = {f"--{name}": f"--{name}" for name in absl_flags.FLAGS}
    # Users often forget `config.`, so the bare name of a key finds it too.
    for key in _configs().keys(*config_types) if config_types else ():
        known |= {f"--{key}": f"--config.{key}", f"--config.{key}": f"--config.{key}"}
    near = difflib.get_close_matches(arg.split("=")[0], known, n=1)
    hint = f"did you mean {known[near[0]]}?" if near else "--help lists all flags"
    return f"{arg}: unknown flag; {hint}"


def _help_text(main: Callable, configs: tuple[Any, ...]) -> str:
    """The docstring of the command, its flags, and every config key with its value."""
    module = sys.modules[main.__module__]
    lines = [inspect.getdoc(module) or "", "", "Flags:"]
    # A command also accepts the flags of the modules that it imports.
    imported = [
        each.__name__ for each in vars(module).values() if inspect.ismodule(each)
    ]
    owners = dict.fromkeys([module.__name__, *imported])
    owners.pop(__name__, None)
    for owner in [*owners, __name__]:
        for flag in absl_flags.FLAGS.get_flags_for_module(owner):
            if flag.name == "config" and not configs:
                continue
            default = "" if flag.default is None else f" (default: {flag.default})"
            lines.append(f"  --{flag.name}: {flag.help}{default}")
    if configs:
        lines += ["", f"Config keys, with the values of --config={_CONFIG.value}:"]
        for key, value in _configs().flatten(configs).items():
            lines.append(f"  --config.{key}={_as_text(value)}")
    return "\n".join(lines)


def _as_text(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, list | tuple):
        return ",".join(_as_text(item) for item in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)
