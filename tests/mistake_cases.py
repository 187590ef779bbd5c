"""Mistakes of a researcher at the command line.

A case is a line of text that ends with a command in backquotes. The file `mistakes.py`
runs it, and `docs/mistakes.md` shows it with the message that it gets.
"""

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import policy_cases

from vagram_jax.cli import configs
from vagram_jax.run import grid, session
from vagram_jax.storage import files, results

ROOT = Path(__file__).parents[1]

TASKS = """\
import random

import jax
import jax.numpy as jnp

from vagram_jax import envs


class Glider:
    observation_size, action_size, episode_length = 1, 1, 9

    def reset(self, key):
        return self.state(jax.random.normal(key, (1,)))

    def step(self, state, action):
        return self.state(state.obs + action)

    def termination(self, obs, action, next_obs):
        return next_obs[0] > 9.0

    def state(self, obs):
        zero = jnp.zeros(())
        return envs.State(
            pipeline_state=(), obs=obs, reward=zero, done=zero, metrics={}, info={}
        )


class Endless(Glider):
    episode_length = None


class Immortal(Glider):
    termination = None


class Heavy(Glider):
    def __init__(self, mass):
        self.mass = mass


class Branching(Glider):
    def step(self, state, action):
        return state if state.obs[0] > 9.0 else self.state(state.obs + action)


class Noisy(Glider):
    def reset(self, key):
        return self.state(jnp.full(1, random.random()))


class Gym(Glider):
    def reset(self, *, seed=None, options=None):
        return jnp.zeros(1), {}
"""

# Files of a user, some with mistakes.
USER_FILES = {
    "my_tasks.py": TASKS,
    "cut_off.py": "def get_config(:\n",
    "empty.py": "",
    "returns_nothing.py": "def get_config():\n    config = {'num_seeds': 4}\n",
    "misspelt.py": "def get_config():\n    return {'num_sedes': 4}\n",
    "not_installed.py": "import no_such_package\n",
    "my_study.py": "def main():\n    pass\n",
    "flags.txt": "--num_seds=4\n",
    "published.csv": "step,score\n1000,5.0\n",
}


def nothing(monkeypatch):
    """Prepares nothing but the files of the user."""


class Group(NamedTuple):
    """Mistakes that are made in the same folder.

    Attributes:
      heading: heading of the table.
      cases: the cases.
      prepare: makes files in the working folder; takes pytest's `monkeypatch`.
    """

    heading: str
    cases: tuple[str, ...]
    prepare: Callable[..., None] = nothing


def _run(loss, *, finished):
    """Makes a run of the config `pendulum` with one row per seed."""
    env_config, algorithm, run_config = configs.load("pendulum")
    algorithm = grid.with_loss(algorithm, loss)
    spec = grid.make_spec((env_config, algorithm, run_config), {"loss": loss})
    ((spec,), _) = session.check_runs([spec])
    folder = results.create_run("results", "pendulum-15", loss, spec.settings)
    rows = [{"seed": seed, "env_steps": 625} for seed in range(run_config.num_seeds)]
    files.append_rows(folder / "timing.csv", rows)
    if finished:
        files.write_json(folder / "summary.json", {})
    return folder


def trained_runs(monkeypatch):
    """A finished run, an unfinished one, and a file where a folder should be."""
    _run("vagram", finished=True)
    _run("mle", finished=False)
    Path("empty").mkdir()
    Path("notes.txt").write_text("mine")


def files_of_data(monkeypatch):
    """Files of transitions of the pendulum without distractors."""
    rows = {
        "obs": np.zeros((30, 3)),
        "action": np.zeros((30, 1)),
        "reward": np.zeros(30),
        "next_obs": np.zeros((30, 3)),
        "terminated": np.zeros(30, bool),
    }
    np.savez("plain.npz", **rows)
    np.savez("nan.npz", **rows | {"reward": np.full(30, np.nan)})
    np.savez("torques.npz", **rows | {"action": np.full((30, 1), 2.0)})
    np.savez("objects.npz", **rows | {"obs": np.full((30, 3), None)})
    del rows["next_obs"]
    np.savez("no_next_obs.npz", **rows)


def damaged_run(monkeypatch):
    """A run whose record was cut off."""
    record = _run("mle", finished=False) / "config.json"
    record.write_text(record.read_text()[:100])


def owned_run(monkeypatch):
    """A run that another machine trains."""
    owner = {"host": "node7", "pid": 4711, "started": "2026-01-01T12:00:00+00:00"}
    files.write_json(_run("vagram", finished=False) / "lock.json", owner)


def saved_policy(monkeypatch):
    """A run with a checkpoint, and one without."""
    folder = policy_cases.create("results")
    policy_cases.save(folder, policy_cases.drawn(11), 11)
    policy_cases.create("stopped")


def checkout(monkeypatch):
    """The working folder is the repository."""
    monkeypatch.chdir(ROOT)


def poor_machine(monkeypatch):
    """The disk is full, and optional packages are missing."""
    Path("results").mkdir()

    def refuse(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "minari", None)


COMMANDS = (
    Group(
        "Names",
        (
            "no command: `vagram`",
            "a misspelt command: `vagram trian`",
            "a task instead of a command: `vagram pendulum`",
            "flags without a command: `vagram --config=hopper`",
            "a task without its flag: `vagram train hopper`",
            "a flag of another command: `vagram train --losses=vagram,mle`",
            "a misspelt flag: `vagram train --resul=out`",
            "a flag that doesn't exist: `vagram train --gpu`",
            "a key without `config.`: `vagram train --num_seeds=8`",
            "a misspelt key: `vagram train --config.num_sedes=8`",
            "a misspelt key of a part: `vagram train --config.sac.discont=0.9`",
            "a key without its part: `vagram train --config.discount=0.9`",
            "a value for a whole part: `vagram train --config.dynamics=64,64`",
            "a flag without its value: `vagram train --study`",
            "a misspelt flag in a file: `vagram train --flagfile=flags.txt`",
            "a file of flags that doesn't exist: `vagram train --flagfile=flag.txt`",
            "a misspelt config: `vagram train --config=hoper`",
            "a misspelt variant: `vagram train --config=hopper:papr`",
            "a variant of a task without any: `vagram train --config=pendulum:paper`",
            "a config for a command without one: `vagram status --config=hopper`",
            "no run to inspect: `vagram inspect`",
            "no folder to export to: `vagram export results/pendulum-15/vagram`",
            "a misspelt loss: `vagram train --config.loss=vagrm`",
            "a loss in capitals: `vagram train --config.loss=VaGraM`",
            "a misspelt module of a loss: `vagram train --config.loss=my_loses:huber`",
            "a misspelt task: `vagram train --config.env=pendulm`",
            "a task with Gymnasium's name: `vagram train --config.env=Hopper-v5`",
            "an unknown activation: `vagram train --config.sac.activation=gelu`",
            "an unknown distractor: `vagram train --config.distractor_kind=gaussian`",
            "an unknown physics: "
            "`vagram train --config=hopper --config.physics=mujoco`",
            "physics for a task without any: `vagram train --config.physics=mjx`",
            "an unknown observation: `vagram train --config.observation=pixels`",
            "an unknown seed mode: `vagram train --seed_mode=pmap`",
        ),
    ),
    Group(
        "Values",
        (
            "no seeds: `vagram train --config.num_seeds=0`",
            "half a seed: `vagram train --config.num_seeds=2.5`",
            "a list of seeds: `vagram train --config.num_seeds=0,1,2`",
            "too many seeds: `vagram train --config.num_seeds=1e7`",
            "steps with a unit: `vagram train --config.total_steps=1M`",
            "a discount above one: `vagram train --config.sac.discount=1.1`",
            "a discount of two numbers: `vagram train --config.sac.discount=0.9,0.99`",
            "no target rate: `vagram train --config.sac.target_rate=0`",
            "a rate that isn't a number: `vagram train --config.fit.learning_rate=nan`",
            "everything held out: `vagram train --config.fit.holdout=1`",
            "a share in percent: `vagram train --config.real_fraction=5`",
            "half a schedule: `vagram train --config.imagine.horizon=1,5`",
            "a schedule in the wrong order: "
            "`vagram train --config.imagine.horizon=1,5,150000,20000`",
            "layers with an x: `vagram train --config.dynamics.hidden=64x64`",
            "a layer of zero units: `vagram train --config.dynamics.hidden=64,0`",
            "a word for true: `vagram train --config.weights.normalize=yes`",
            "negative distractors: `vagram train --config.distractors=-5`",
            "too many distractors: `vagram train --config.distractors=1e8`",
            "a buffer larger than memory: `vagram train --config.replay_capacity=1e12`",
            "a word for a number: `vagram train --checkpoint_every=often`",
            "a negative group of seeds: `vagram train --seed_chunk=-1`",
            "no devices: `vagram train --cpu_devices=0`",
            "a study with a path: `vagram train --study=hopper/first`",
            "results without a name: `vagram train --results=`",
            "no losses: `vagram compare --losses=`",
            "a loss twice: `vagram compare --losses=vagram,mle,mle`",
            "a loss by two names: `vagram compare --losses=none,sac`",
            "a loss beside the list: "
            "`vagram compare --config.loss=mle --losses=vagram,mle`",
            "a key that the grid sets: "
            "`vagram sweep --config.sac.discount=0.9 --grid=sac.discount=0.9,0.99`",
            "a sweep without a grid: `vagram sweep`",
            "a grid without values: `vagram sweep --grid=loss`",
            "a grid of an unknown key: `vagram sweep --grid=los=vagram,mle`",
            "a value twice: `vagram sweep --grid=sac.discount=0.9,0.90`",
            "shards from one: `vagram sweep --grid=loss=vagram,mle --shard=2/2`",
            "a search without a space: `vagram tune`",
            "a range without its end: `vagram tune --space=sac.discount=0.99`",
        ),
    ),
    Group(
        "Contradictions",
        (
            "more elites than members: `vagram train --config.dynamics.num_elites=9`",
            "more critics in the minimum than there are: "
            "`vagram train --config.sac.min_critics=3`",
            "a buffer smaller than the warm-up: "
            "`vagram train --config.replay_capacity=100`",
            "half an epoch: `vagram train --config.total_steps=2010`",
            "only a warm-up: `vagram train --config.total_steps=500`",
            "a likelihood without a variance: "
            "`vagram train --config.loss=mle --config.dynamics.head=deterministic`",
            "an option that the loss doesn't read: "
            "`vagram train --config.loss=mle --config.weights.normalize=true`",
            "weights of zero: `vagram train --config.weights.gradient_coef=0`",
            "resume and overwrite: `vagram train --resume --overwrite`",
            "a process of no cluster: `vagram train --process_id=0`",
            "jobs that overwrite: "
            "`vagram sweep --grid=loss=vagram,mle --launcher=local --overwrite`",
            "a search that overwrites: "
            "`vagram tune --space=loss=vagram,mle --overwrite`",
        ),
    ),
    Group(
        "Tasks of the user",
        (
            "a misspelt module: `vagram train --config.env=my_taks:Glider`",
            "a misspelt class: `vagram train --config.env=my_tasks:Glyder`",
            "a class with arguments: `vagram train --config.env=my_tasks:Heavy`",
            "no termination: `vagram train --config.env=my_tasks:Immortal "
            "--config.imagine.termination=env`",
            "no episode length: `vagram train --config.env=my_tasks:Endless`",
            "Gymnasium's interface: `vagram train --config.env=my_tasks:Gym`",
            "a Python `if`: `vagram train --config.env=my_tasks:Branching`",
            "numbers of Python's `random`: `vagram train --config.env=my_tasks:Noisy`",
        ),
    ),
    Group(
        "Files of the user",
        (
            "a config that isn't there: `vagram train --config=my_config.py`",
            "a config that isn't Python: `vagram train --config=cut_off.py`",
            "a config without its function: `vagram train --config=empty.py`",
            "a config that returns nothing: `vagram train --config=returns_nothing.py`",
            "a config with a misspelt key: `vagram train --config=misspelt.py`",
            "a package that isn't installed: `vagram train --config=not_installed.py`",
            "a study that isn't there: `vagram study my_stduy.py`",
            "a study without its function: `vagram study my_study.py`",
            "published curves that aren't there: `vagram train --against=curves.csv`",
            "published curves with other columns: "
            "`vagram train --against=published.csv`",
        ),
    ),
    Group(
        "Data to start from",
        (
            "offline without data: `vagram train --offline`",
            "a file that isn't there: `vagram train --data=transitons.npz`",
            "a file without successors: `vagram train --data=no_next_obs.npz`",
            "NaN: `vagram train --data=nan.npz`",
            "actions in the units of a motor: `vagram train --data=torques.npz`",
            "objects in place of numbers: `vagram train --data=objects.npz`",
            "data without the distractors: `vagram train --data=plain.npz`",
            "more rows than the buffer holds: "
            "`vagram train --config.distractors=0 --data=plain.npz "
            "--config.replay_capacity=20`",
            "random steps as well: "
            "`vagram train --data=plain.npz --config.warmup_steps=100`",
            "a file to export to that isn't .npz: "
            "`vagram export results/pendulum-15/vagram --replay=buffer.csv`",
        ),
        files_of_data,
    ),
    Group(
        "Folders of results",
        (
            "the same command again: `vagram train`",
            "a run that was stopped: `vagram compare --losses=mle,sac`",
            "a resume with another discount: "
            "`vagram train --resume --config.sac.discount=0.98`",
            "a resume with fewer steps: "
            "`vagram train --resume --config.total_steps=1000`",
            "results in a file: `vagram train --results=notes.txt`",
            "a misspelt folder: `vagram status result`",
            "a folder without a run: `vagram report empty`",
            "no folder: `vagram report`",
            "a run that isn't there: `vagram render --run=results/pendulum-15/vagrm`",
            "a study instead of a run: `vagram render --run=results/pendulum-15`",
        ),
        trained_runs,
    ),
    Group(
        "A run that another machine trains",
        (
            "a resume: `vagram train --resume`",
            "an overwrite: `vagram train --overwrite`",
        ),
        owned_run,
    ),
    Group(
        "A record that is cut off",
        (
            "a resume: `vagram train --config.loss=mle --resume`",
            "a film: `vagram render --run=results/pendulum-15/mle`",
        ),
        damaged_run,
    ),
    Group(
        "Studies",
        (
            "an unknown study: `vagram study capasity`",
            "two studies: `vagram study capacity distraction`",
            "a preset that the study lacks: `vagram study capacity --preset=long`",
            "too few seeds for an interval: `vagram study capacity --study_seeds=1`",
            "an unknown suite: `vagram benchmark --suite=speed`",
            "no seeds to measure: `vagram benchmark --seeds=0`",
        ),
        checkout,
    ),
    Group(
        "What the machine lacks",
        (
            "space on the disk: `vagram train`",
            "the package of a launcher: "
            "`vagram sweep --grid=loss=vagram,mle --launcher=slurm`",
            "the package of a search: `vagram tune --space=loss=vagram,mle`",
            "the package of a data set: `vagram train --data=minari:toy/walk-v0`",
        ),
        poor_machine,
    ),
    Group(
        "Films",
        (
            "no run: `vagram render`",
            "a seed that wasn't trained: "
            "`vagram render --run=results/study/sac --seed=9`",
            "another format: `vagram render --run=results/study/sac --output=film.avi`",
            "a folder that isn't there: "
            "`vagram render --run=results/study/sac --output=films/a.gif`",
            "an odd width: `vagram render --run=results/study/sac --width=101`",
            "a run without a checkpoint: `vagram render --run=stopped/study/sac`",
        ),
        saved_policy,
    ),
)
