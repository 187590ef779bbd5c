"""A small task, run specifications and a whole run on disk, shared by several tests.

Compiling takes most of the time of these tests, so all of them use the programs of
`SEEDS` lanes, which are compiled once per process.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax import envs, mbpo, sac, schedules
from vagram_jax.imagine import ImagineConfig
from vagram_jax.run import devices, grid, loop, session, vectorized
from vagram_jax.storage import checkpoint, files, lock

WARM_UP, EPOCH, LAST = 8, 3, 20
STEPS = list(range(WARM_UP, LAST + 1, EPOCH))
SEEDS = 2
# Of programs over several devices.
LANES = 4
RUN = loop.RunConfig(num_seeds=SEEDS, total_steps=LAST, eval_episodes=2)
# Plain SAC without hidden layers compiles fastest.
CONFIG = mbpo.MBPOConfig(
    loss=mbpo.NO_MODEL,
    # Resolved, so that the settings are those of the record.
    imagine=ImagineConfig(termination="env"),
    sac=sac.SACConfig(hidden=()),
    batch_size=4,
    updates_per_step=1,
    steps_per_epoch=EPOCH,
    warmup_steps=WARM_UP,
    real_fraction=schedules.constant(1.0),
    replay_capacity=20,
)
STUDY = "study"


class Line:
    """A point that is pushed along a line."""

    observation_size, action_size, episode_length = 1, 1, 3

    def reset(self, key):
        """A random position near the middle."""
        return self._state(jax.random.uniform(key, (1,)))

    def step(self, state, action):
        """Pushes the point."""
        return self._state(state.obs + 0.1 * action)

    def _state(self, obs):
        return envs.State(
            pipeline_state=(),
            obs=obs,
            reward=-jnp.sum(jnp.square(obs)),
            done=jnp.zeros(()),
            metrics={},
            info={},
        )


ENV_CONFIG = envs.EnvConfig(env="session_cases:Line")
LAYOUT = devices.Layout()

_MAKE_PROGRAMS, _PROGRAMS = vectorized.make_programs, {}


def make_programs_once(env, layout, *, data=None, **options):
    """Replaces `vectorized.make_programs`; compiles equal programs once."""
    settings = str(data and data.settings)
    key = (*sorted(options.items()), type(env), layout.mode, settings)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = _MAKE_PROGRAMS(env, layout, data=data, **options)
    return _PROGRAMS[key]


@pytest.fixture(scope="module")
def programs_once():
    """Compiles each program once and with few optimizations, in half the time."""
    option = "jax_disable_most_optimizations"
    previous = jax.config.read(option)
    jax.config.update(option, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectorized, "make_programs", make_programs_once)
        yield
    jax.config.update(option, previous)


def programs():
    """The programs of the task."""
    return make_programs_once(
        Line(),
        LAYOUT,
        eval_episodes=RUN.eval_episodes,
        matmul_precision=RUN.matmul_precision,
    )


def spec(name="run", config=CONFIG, run_config=RUN, env_config=ENV_CONFIG, data=None):
    """A run specification."""
    return grid.RunSpec(name, {"loss": "sac"}, env_config, config, run_config, data)


def folder_of(root, name="run"):
    """The folder of a run."""
    return root / STUDY / name


class Killed(BaseException):
    """Ends a run as a kill does, except that its lock is removed."""


def train(root, *specs, killed_at=None, mode="vmap", **options):
    """Trains runs and returns the lines of output.

    With `killed_at` training ends after so many evaluations.
    """
    lines = []

    def report(line):
        lines.append(line)
        if sum(": step " in line for line in lines) == killed_at:
            raise Killed

    specs = specs or [spec()]
    options = session.SessionOptions(layout=devices.Layout(mode), **options)
    try:
        session.train_runs(specs, root, STUDY, options=options, report=report)
        assert killed_at is None
    except Killed:
        pass
    for one in specs if devices.is_first() else ():  # another process may still write
        folder = folder_of(root, one.name)
        assert not (folder / lock.NAME).exists()
        assert not list(folder.rglob("*.tmp"))
    return lines


def unfinish(root, name="run"):
    """Removes the summary of a run, as if it had been killed before it was written."""
    (folder_of(root, name) / "summary.json").unlink()


def table(root, name="run"):
    """The rows of metrics.csv by seed and step."""
    rows = files.read_rows(folder_of(root, name) / "metrics.csv")
    return sorted(rows, key=lambda row: (row["seed"], row["env_steps"]))


def last_states(root, name="run", seeds=range(SEEDS), step=LAST):
    """The arrays of a checkpoint."""
    return checkpoint.load(folder_of(root, name), step, seeds)


def assert_same_run(root, expected, name="run"):
    """Tables and last states of all seeds have the same bits."""
    one, other = (folder_of(r, name) / "metrics.csv" for r in (root, expected))
    assert one.read_bytes() == other.read_bytes()
    assert_same_states(last_states(root, name), last_states(expected, name))


def assert_same_states(states, expected):
    assert states.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(states[name], array, err_msg=name)


def assert_close(rows, expected, rel=1e-3, abs=1e-4):
    """Rows of the same seeds from other programs."""
    assert len(rows) == len(expected)
    for row, expected_row in zip(rows, expected, strict=True):
        assert row.keys() == expected_row.keys()
        for name, value in expected_row.items():
            if isinstance(value, float):
                value = pytest.approx(value, rel=rel, abs=abs)
            assert row[name] == value


@pytest.fixture(scope="module")
def whole(tmp_path_factory, programs_once):
    """The results folder of a run that was not interrupted."""
    root = tmp_path_factory.mktemp("whole")
    lines = train(root)
    assert [line.split(",")[0] for line in lines] == [
        "run: compiling and warming up 2 seeds",
        *(f"run: step {step} of {LAST}" for step in STEPS),
    ]
    return root
