"""Command lines: parses flags and `--config.KEY=VALUE`, and reports errors in one line.

No other module imports absl. This module doesn't load JAX unless a command takes
configs. A command is a module with flags and a function `main`:

    OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace runs that exist.")

    def main(env_config, algorithm, run_config):
        ...OVERWRITE.value...

If its flags set config keys, such as `--losses` the key `loss`, a function
`set_by_flags` of the module names them, and `--config.loss` is refused.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from absl import flags as absl_flags

from vagram_jax.cli import help as help_text

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
# absl reads the file; defined for `--help`.
DEFINE_string("flagfile", None, "A file with more flags, one a line.")
DEFINE_bool("debug", False, "Show the traceback of an error.")
_HELP = DEFINE_bool("help", False, "Show this text.", short_name="h")
# `--config.key=value`, `--config.key` for true and `--noconfig.key` for false.
_OVERRIDE = re.compile(
    r"--?(?P<no>no)?config\.(?P<key>[^=]*)(=(?P<text>.*))?", re.DOTALL
)


_overrides: dict[str, str | bool] = {}  # of the command line that was parsed last


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
        groups = _flags_of(main, takes_config=bool(config_types))
        accepted = [flag.name for group in groups.values() for flag in group]
        configs = parse(
            argv,
            *config_types,
            names=names,
            accepted=accepted,
            set_by_flags=getattr(sys.modules[main.__module__], "set_by_flags", dict),
        )
        if _HELP.value:
            print(_help_text(main, groups, configs))
            raise SystemExit(0)
        arguments = configs if names is None else (names, *configs)
        raise SystemExit(main(*arguments) or 0)


def parse(
    argv: list[str],
    *config_types: type,
    names: list[str] | None = None,
    accepted: Iterable[str] | None = None,
    set_by_flags: Callable[[], Mapping[str, str]] = dict,
) -> tuple[Any, ...]:
    """Sets absl's flags and returns the configs of a command line, one per type.

    Args:
      argv: the command line, the name of the program first.
      *config_types: config dataclasses without a common field name.
      names: receives the arguments that aren't flags; None refuses them.
      accepted: names of the flags that the command has; None means all that are
        defined. A module that is imported may define others, which have no effect.
      set_by_flags: returns the config keys that flags of the command set, with the
        names of the flags; it is called when the flags have their values.

    Raises:
      UsageError: an unknown flag, an argument that isn't accepted, or a key that a flag
        sets too.
      ConfigError: there is no such config, or a key or a value is refused.
    """
    matches, rest = _read_flagfiles(argv)
    positional = _set_flags(rest, accepted, config_types)
    if positional and names is None:
        raise UsageError(f"{positional[0]}: not a flag; flags are written --name=value")
    if names is not None:
        names += positional
    if not config_types:
        if matches or absl_flags.FLAGS["config"].present:
            raise UsageError("--config: this command takes no config; leave it out")
        return ()
    _overrides.clear()
    _overrides.update({match["key"]: _text(match) for match in matches})
    # `--help` works without the flags that a command needs.
    for key, name in () if _HELP.value else set_by_flags().items():
        if key in _overrides:
            raise UsageError(
                f"--config.{key}={_overrides[key]}: --{name} sets {key}; leave one out"
            )
    return _configs().load(_CONFIG.value, *config_types, overrides=_overrides)


def config_arguments(**values: Any) -> list[str]:
    """Returns the arguments of the last command line that set the config.

    Args:
      **values: dotted keys to other values.
    """
    set_values = {key: str(value) for key, value in (_overrides | values).items()}
    arguments = [f"--config.{key}={text}" for key, text in set_values.items()]
    return [f"--config={_CONFIG.value}", *arguments]


def _read_flagfiles(argv: list[str]) -> tuple[list[re.Match[str]], list[str]]:
    """The overrides of a command line, and the rest of it."""
    try:
        argv = absl_flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    except absl_flags.CantOpenFlagFileError as error:
        reason = str(error).rpartition("] ")[2]
        raise UsageError(f"--flagfile: {reason}; check the path") from None
    matches = [match for arg in argv[1:] if (match := _OVERRIDE.fullmatch(arg))]
    return matches, [arg for arg in argv if not _OVERRIDE.fullmatch(arg)]


def _set_flags(
    argv: list[str], accepted: Iterable[str] | None, config_types: tuple[type, ...]
) -> list[str]:
    """Sets absl's flags and returns the arguments that aren't flags."""
    known = [*absl_flags.FLAGS] if accepted is None else [*accepted, _CONFIG.name]
    try:
        positional = absl_flags.FLAGS(argv)[1:]
    except absl_flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown_flag(error.flagvalue, known, config_types)) from None
    except absl_flags.IllegalFlagValueError as error:
        raise UsageError(_illegal_value(str(error))) from None
    except absl_flags.Error as error:
        arg = str(error).split()[-1]  # "Missing value for flag --NAME"
        raise UsageError(f"{arg}: a value is missing; write {arg}=VALUE") from None
    for name in absl_flags.FLAGS:
        flag = absl_flags.FLAGS[name]
        if flag.present and flag.name not in known:
            # It is written as on the command line, as a flag that no module defines.
            names = (f"--{flag.name}", f"-{flag.name}", f"--no{flag.name}")
            written = [arg for arg in argv if arg.split("=")[0] in names]
            raise UsageError(_unknown_flag(written[0], known, config_types))
    return positional


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


def _flags_of(
    main: Callable, *, takes_config: bool
) -> dict[str, list[absl_flags.Flag]]:
    """The flags that a command reads: its own, and those of what it imports."""
    module = sys.modules[main.__module__]
    groups = {"Flags:": _defined_in(module)}
    for imported in vars(module).values():
        if inspect.ismodule(imported) and imported.__name__ != __name__:
            name = imported.__name__.rpartition(".")[2]
            heading = f"Flags shared with other commands ({name}):"
            groups[heading] = _defined_in(imported)
    general = _defined_in(sys.modules[__name__])
    if not takes_config:
        general = [flag for flag in general if flag.name != _CONFIG.name]
    groups["Flags of every command:"] = general
    return {heading: flags for heading, flags in groups.items() if flags}


def _defined_in(module: types.ModuleType) -> list[absl_flags.Flag]:
    return absl_flags.FLAGS.get_flags_for_module(module.__name__)


def _unknown_flag(
    arg: str, accepted: Iterable[str], config_types: tuple[type, ...]
) -> str:
    known = {name: f"--{name}" for name in accepted}
    # Users often forget `config.`, so the bare name of a key finds it too.
    for key in _configs().keys(*config_types) if config_types else ():
        known |= {key: f"--config.{key}", f"config.{key}": f"--config.{key}"}
    near = difflib.get_close_matches(arg.split("=")[0].lstrip("-"), known, n=1)
    hint = f"did you mean {known[near[0]]}?" if near else "--help lists all flags"
    return f"{arg}: unknown flag; {hint}"


def _illegal_value(message: str) -> str:
    """Absl's message `flag --NAME=VALUE: REASON` with what is accepted."""
    name, value = re.findall(r"--(\w+)=(.*?): ", message, re.DOTALL)[0]
    parser = absl_flags.FLAGS[name].parser
    if isinstance(parser, absl_flags.EnumParser):
        near = difflib.get_close_matches(value, parser.enum_values, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"--{name}={value}; accepted: {', '.join(parser.enum_values)}{hint}"
    kinds = {"int": "a whole number", "bool": "true or false", "float": "a number"}
    return f"--{name}={value}; {kinds[parser.flag_type()]} is accepted"


def _help_text(
    main: Callable,
    groups: dict[str, list[absl_flags.Flag]],
    configs: tuple[Any, ...],
) -> str:
    """The docstring of the command, its flags, and every config key with its value."""
    options = {heading: map(_option, flags) for heading, flags in groups.items()}
    if configs:
        options |= _configs().options(configs)
    return help_text.page(inspect.getdoc(sys.modules[main.__module__]) or "", options)


def _option(flag: absl_flags.Flag) -> help_text.Option:
    text = flag.help or ""
    if isinstance(flag.parser, absl_flags.EnumParser):
        choices = flag.parser.enum_values
        text = text.removeprefix(f"<{'|'.join(choices)}>: ")
        text += f" Accepted: {', '.join(choices)}."
    is_unset = flag.default is None or flag.default is False or flag.default == []
    return help_text.Option(flag.name, None if is_unset else flag.default, text)
