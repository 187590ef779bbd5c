"""What the tests of runs on disk share: a small task, few programs, a whole run.

Compiling is nearly all of their time, so a program that was compiled once is kept.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax import envs, sac, training
from vagram_jax.run import devices, runner, session
from vagram_jax.storage import checkpoint, files, lock

FIRST, EPOCH, LAST = 8, 3, 20
STEPS = list(range(FIRST, LAST + 1, EPOCH))
SEEDS = 4
RUN = runner.RunConfig(num_seeds=SEEDS, total_steps=LAST, eval_episodes=1)
# Plain SAC without hidden layers compiles fastest; what is tested is around it.
CONFIG = training.MBPOConfig(
    loss=training.NO_MODEL,
    sac=sac.SACConfig(hidden=()),
    batch_size=4,
    updates_per_step=1,
    steps_per_epoch=EPOCH,
    warmup_steps=FIRST,
    real_fraction=(1.0,),
    replay_capacity=20,
)


class Simulator:
    """Something outside JAX that every step asks, and that may fail."""

    broken = False

    def __call__(self, position):
        """Zeros."""
        if self.broken:
            raise ValueError("the simulator has no licence")
        return np.zeros_like(position)


SIMULATOR = Simulator()


class Line:
    """A point that is pushed along a line."""

    observation_size, action_size, episode_length = 1, 1, 3

    def reset(self, key):
        """Anywhere near the middle."""
        return self._state(jax.random.uniform(key, (1,)))

    def step(self, state, action):
        """A push, and nothing from the simulator."""
        noise = jax.pure_callback(
            SIMULATOR, jax.typeof(state.obs), state.obs, vmap_method="broadcast_all"
        )
        return self._state(state.obs + 0.1 * action + noise)

    def _state(self, obs):
        return envs.State(
            pipeline_state=(),
            obs=obs,
            reward=-jnp.sum(jnp.square(obs)),
            done=jnp.zeros(()),
            metrics={},
            info={},
        )


ENV = Line()


KNOWN, COMPILED = {}, runner.compiled


def compiled_once(run, env, layout):
    """In place of `runner.compiled`: compiles each program once for all tests."""
    key = (run.eval_episodes, type(env), layout.mode)
    if key not in KNOWN:
        KNOWN[key] = COMPILED(run, env, layout)
    return KNOWN[key]


class Killed(BaseException):
    """Ends a run like a kill does, but for the lock."""


def job(folder, config=CONFIG):
    """One run in a folder of its own."""
    return session.Job(folder, "Line", config)


def train(*jobs, run=RUN, killed_at=None, mode="vmap", **keeping):
    """Trains; gives what was told. `killed_at`: dies after so many evaluations."""
    told = []

    def tell(line):
        told.append(line)
        if sum(": step " in line for line in told) == killed_at:
            raise Killed

    keeping = session.Keeping(layout=devices.Layout(mode), **keeping)
    jobs = [x if isinstance(x, session.Job) else job(x) for x in jobs]
    try:
        with session.owning([job.folder for job in jobs], tell=tell):
            session.train_to_files(run, jobs, ENV, keeping=keeping, tell=tell)
        assert killed_at is None
    except Killed:
        pass
    for one in jobs if devices.is_first() else ():  # another one may still be at work
        assert not (one.folder / lock.NAME).exists()
        assert not list(one.folder.rglob("*.tmp"))
    return told


def table(folder):
    """The rows of metrics.csv, in the order of seeds and steps."""
    rows = files.read_rows(folder / "metrics.csv")
    return sorted(rows, key=lambda row: (row["seed"], row["env_steps"]))


def last_states(folder, seeds=range(SEEDS), step=LAST):
    return checkpoint.load(folder, step, seeds)


def assert_same(found, wanted):
    """Table and last states of all seeds, to the bit."""
    names = [(folder / "metrics.csv").read_bytes() for folder in (found, wanted)]
    assert names[0] == names[1]
    assert_same_states(last_states(found), last_states(wanted))


def assert_same_states(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_close(found, wanted, rel=1e-3, abs=1e-4):
    """Rows that other programs made of the same seeds."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, float):
                value = pytest.approx(value, rel=rel, abs=abs)
            assert one[name] == value


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("session") / "whole"
    told = train(folder)
    assert [line.split(",")[0] for line in told] == [
        f"whole: step {step} of {LAST}" for step in STEPS
    ]
    return folder
