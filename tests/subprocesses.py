"""Starts Python processes, which share the tests' cache of compiled programs."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(*args, path=(), num_devices=1, **settings):
    """Starts Python with so many CPU devices.

    `path` is put in front of Python's path. `settings` are environment variables; an
    empty text removes one.
    """
    folders = [*map(str, path), str(ROOT), str(ROOT / "tests")]
    settings = {
        "PYTHONPATH": os.pathsep.join(folders),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        # The service of this process keeps a killed one's runs of wandb in use.
        "WANDB_SERVICE": "",
    } | settings
    environment = os.environ | settings
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        env={name: value for name, value in environment.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process):
    """Status, standard output and standard error of a process, once it has ended."""
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error
