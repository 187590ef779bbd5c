"""A user's task and config in files outside the package, and commands that use them."""

import contextlib
import functools
import io
import tempfile
from pathlib import Path

import pytest
import session_cases
from absl.testing import flagsaver

from vagram_jax.analysis import figures
from vagram_jax.cli import flags
from vagram_jax.run import loop

TASK = '''
"""A mass on a spring, outside the package."""

import jax
import jax.numpy as jnp

from vagram_jax import envs


class Spring:
    observation_size, action_size, episode_length = 2, 1, 3

    def reset(self, key):
        return self._state(jax.random.uniform(key, (2,)), jnp.zeros(()))

    def step(self, state, action):
        position, speed = state.obs
        speed = speed - 0.1 * position + 0.1 * action[0]
        obs = jnp.stack([position + 0.1 * speed, speed])
        return self._state(obs, -jnp.sum(jnp.square(obs)))

    def termination(self, obs, action, next_obs):
        return ~jnp.all(jnp.isfinite(next_obs))

    def _state(self, obs, reward):
        done = jnp.zeros(())
        return envs.State(
            pipeline_state=(), obs=obs, reward=reward, done=done, metrics={}, info={}
        )
'''
# Networks without hidden layers compile in half the time.
CONFIG = """
def get_config():
    return {
        "env": "spring_of_a_user:Spring",
        "num_seeds": 2,
        "total_steps": 14,
        "warmup_steps": 8,
        "steps_per_epoch": 3,
        "eval_episodes": 1,
        "replay_capacity": 20,
        "batch_size": 4,
        "updates_per_step": 1,
        "real_fraction": 0.5,
        "dynamics": {"hidden": (), "num_members": 1, "num_elites": 1},
        "fit": {"batch_size": 4, "max_epochs": 1},
        "imagine": {"rollouts_per_step": 1},
        "sac": {"hidden": ()},
    }
"""


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="vagram_jax_user-")


def folder():
    """The folder with the user's task and config."""
    path = Path(_folder().name)
    (path / "spring_of_a_user.py").write_text(TASK)
    (path / "tiny.py").write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def call(programs_once):
    """Runs a command in this process; returns status, standard output and error.

    Its figures are one empty picture: to draw those of a report takes two seconds.
    """
    user, picture = folder(), figures.png(figures.new_figure(0.1))

    def run(command, *args):
        out, err = io.StringIO(), io.StringIO()
        argv = ["command", f"--config={user / 'tiny.py'}", *args]
        with (
            flagsaver.flagsaver(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as caught,
        ):
            flags.run(command.main, *loop.CONFIGS, argv=argv)
        return caught.value.code, out.getvalue(), err.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(user)
        patch.setattr(figures, "png", lambda _: picture)
        # With another number of devices the results differ through rounding.
        patch.setenv("JAX_NUM_CPU_DEVICES", str(session_cases.LAYOUT.mesh.size))
        yield run
