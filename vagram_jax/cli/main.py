"""The command `vagram`: imports one subcommand and runs it.

A subcommand is a module with a function `main`. It defines its flags on import, and its
module docstring is the text of `vagram COMMAND --help`.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NamedTuple

from vagram_jax.cli import flags, repository

_HELP = ("--help", "-help", "-h", "help")


class Command(NamedTuple):
    """A subcommand.

    Attributes:
      about: one line for `vagram --help`.
      module: name of its module; one in `experiments` needs a checkout.
      takes_configs: `main` receives the configs of the task, the algorithm and the run.
      takes_names: `main` receives, as a list, the arguments that aren't flags.
    """

    about: str
    module: str
    takes_configs: bool = False
    takes_names: bool = False


COMMANDS = {
    "train": Command(
        "trains one model loss on several seeds",
        "vagram_jax.cli.train",
        takes_configs=True,
    ),
    "compare": Command(
        "trains several model losses on one task and compares them",
        "vagram_jax.cli.compare",
        takes_configs=True,
    ),
    "sweep": Command(
        "trains every combination of some settings",
        "vagram_jax.cli.sweep",
        takes_configs=True,
    ),
    "tune": Command(
        "searches for the best settings with Optuna",
        "vagram_jax.cli.tune",
        takes_configs=True,
    ),
    "status": Command(
        "shows which runs have finished, and the time left of the others",
        "vagram_jax.cli.status",
        takes_names=True,
    ),
    "watch": Command(
        "shows learning curves and time left of running studies, live",
        "vagram_jax.cli.watch",
        takes_names=True,
    ),
    "report": Command(
        "rewrites the report of a study from its files",
        "vagram_jax.cli.report",
        takes_names=True,
    ),
    "render": Command(
        "films a trained policy",
        "vagram_jax.cli.render",
    ),
    "inspect": Command(
        "measures the model of a run on new episodes",
        "vagram_jax.cli.inspect",
        takes_names=True,
    ),
    "export": Command(
        "writes what a run has trained as a model repository, or its replay buffer",
        "vagram_jax.cli.export",
        takes_names=True,
    ),
    "study": Command(
        "runs a study of the paper's claims (needs a checkout)",
        "vagram_jax.cli.study",
        takes_names=True,
    ),
    "benchmark": Command(
        "measures the speed of this machine (needs a checkout)",
        "experiments.benchmark",
        takes_configs=True,
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Runs a subcommand and exits with its status (`SystemExit`).

    Args:
      argv: the command line, the name of the program first; by default `sys.argv`.
    """
    argv = sys.argv if argv is None else argv
    name, arguments = "".join(argv[1:2]), argv[2:]
    with flags.one_line_errors():
        if name in _HELP:
            print(_help_text())
            raise SystemExit(0)
        if name not in COMMANDS:
            raise flags.UsageError(_unknown(name))
        command = COMMANDS[name]
        flags.run(
            _load(command.module).main,
            *_config_types(command),
            argv=[f"vagram {name}", *arguments],
            takes_names=command.takes_names,
        )


def _load(module: str):
    if module.startswith("experiments."):
        return repository.load(module)
    return importlib.import_module(module)


def _config_types(command: Command) -> tuple[type, ...]:
    if not command.takes_configs:
        return ()
    from vagram_jax.cli import configs  # loads JAX

    return configs.CONFIGS


def _unknown(name: str) -> str:
    known = ", ".join(COMMANDS)
    if not name or name.startswith("-"):
        return f"vagram {name}".strip() + f": the first argument is one of {known}"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"accepted: {known}"
    return f"vagram {name}: unknown command; {hint}"


def _help_text() -> str:
    lines = ["Value-gradient weighted model-based reinforcement learning.", ""]
    lines += ["    vagram COMMAND [ARGUMENTS]", "", "Commands:"]
    lines += [f"  {name:11}{command.about}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "`vagram COMMAND --help` describes a command, its flags and settings.",
    ]
    return "\n".join(lines)
