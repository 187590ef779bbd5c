"""An environment, a loss and a distractor of the user's own, by their import paths."""

import json
import re

import command_cases
import jax
import numpy as np
import pytest
from command_cases import call
from session_cases import programs_once

from vagram_jax import envs, losses
from vagram_jax.cli import train
from vagram_jax.config import ConfigError
from vagram_jax.envs.distractors import Distractors
from vagram_jax.run import grid
from vagram_jax.storage import results
from vagram_jax.user_code import UserCodeError

__all__ = ["call", "programs_once"]

OBJECTS = '''
import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax import envs, predict, register
from vagram_jax.envs.distractors import Kind
from vagram_jax.losses import mse_loss


class Cart:
    """Is pushed, and reports its place; it has no function `termination`."""

    observation_size, action_size, episode_length = 1, 1, 3

    def reset(self, key):
        return self._state(jax.random.uniform(key, (1,)))

    def step(self, state, action):
        return self._state(state.obs + 0.1 * action)

    def _state(self, obs):
        return envs.State(
            pipeline_state=(),
            obs=obs,
            reward=-jnp.sum(jnp.square(obs)),
            done=jnp.zeros(()),
            metrics={"place": obs[0], "ends": jnp.stack([obs[0] - 1, obs[0] + 1])},
            info={},
        )


class Matrix(Cart):
    def _state(self, obs):
        return super()._state(obs).replace(metrics={"x": jnp.ones((2, 2))})


class Misspelt(Cart):
    recorded_metrics = ("plac",)


def absolute(params, batch, value_fn, *, predict=predict):
    next_obs, reward, _ = predict(params, batch.obs, batch.action)
    return jnp.mean(jnp.abs(next_obs - batch.next_obs)) + jnp.mean(jnp.abs(reward))


def flat(batch, value_fn, *, where=None):
    return jnp.ones_like(batch.reward)


@register("of_a_user", prepare=flat, gaussian=True)
def registered(params, batch, value_fn, *, predict=predict, prepared=None):
    return mse_loss(params, batch, predict=predict)


def too_short(params, batch):
    return 0.0


def _start(key, num_dims, dtype):
    return jnp.zeros(num_dims, dtype)


# Counts up by one a step.
COUNTS = Kind(
    lambda key, num_dims: {"step": np.ones(num_dims, np.float32)},
    _start,
    lambda parameters, values, key: values + parameters["step"],
)
SHRINKS = COUNTS._replace(advance=lambda parameters, values, key: values[:-1])
FAILS = COUNTS._replace(parameters=lambda key, num_dims: {}["missing"])
'''


@pytest.fixture(scope="module", autouse=True)
def module():
    """The user's module, `objects_of_a_user`, and one that fails."""
    folder = command_cases.folder()
    (folder / "objects_of_a_user.py").write_text(OBJECTS)
    (folder / "fails_of_a_user.py").write_text("raise KeyError('mass')")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


OWN = "objects_of_a_user"


def test_a_run_trains_with_everything_by_import_path(call, tmp_path):
    keys = {
        "env": f"{OWN}:Cart",
        "loss": f"{OWN}:absolute",
        "distractors": "2",
        "distractor_kind": f"{OWN}:COUNTS",
        "eval_every": "2",
    }
    overrides = [f"--config.{key}={value}" for key, value in keys.items()]
    status, _, err = call(train, f"--results={tmp_path}", *overrides)
    assert (status, err) == (0, "")
    folder = tmp_path / "Cart-2" / f"{OWN}.absolute"
    config = json.loads((folder / "config.json").read_text())["config"]
    assert {key: config[key] for key in ("env", "loss")} == {
        key: keys[key] for key in ("env", "loss")
    }
    # The task has no function, so the classifier is trained.
    assert config["imagine"]["termination"] == "learned"
    run = results.read_run(folder)
    assert [name for name in run.metrics[0] if name.startswith("env/")] == [
        "env/ends_0",
        "env/ends_1",
        "env/place",
    ]
    assert {row["loss"] for row in run.metrics} == {keys["loss"]}
    assert "termination_loss" in run.model[0]
    # The first rows are before any epoch, and are measured, too. An episode has three
    # steps, so that the sums of the ends are those of the place, three apart.
    assert {row["env_steps"] for row in run.metrics} == {8, 14}
    for row in run.metrics:
        assert np.isfinite(row["env/place"])
        ends = (row["env/ends_0"], row["env/ends_1"])
        expected = (row["env/place"] - 3, row["env/place"] + 3)
        assert ends == pytest.approx(expected, abs=1e-5)  # sums in float32
    page = (tmp_path / "Cart-2" / "report.html").read_text()
    assert "env/place" in page


def test_a_distractor_of_the_users_own_is_appended():
    env = envs.make(f"{OWN}:Cart", distractors=2, distractor_kind=f"{OWN}:COUNTS")
    state = env.reset(jax.random.key(0))
    assert state.obs.tolist()[1:] == [0.0, 0.0]
    assert env.step(state, np.ones(1)).obs.tolist()[1:] == [1.0, 1.0]


def test_a_loss_is_found_by_its_function_or_by_its_registered_name():
    by_name = losses.get(f"{OWN}:of_a_user")
    assert by_name is losses.get(f"{OWN}:registered") is losses.get("of_a_user")
    assert by_name.gaussian
    plain = losses.get(f"{OWN}:absolute")
    assert (plain.name, plain.prepare) == (f"{OWN}:absolute", None)
    assert losses.get("vagram_jax.losses:mse_loss") is losses.get("mse")
    assert f"{OWN}:absolute" not in losses.LOSSES


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absolute", r"known: .*, or path\.module:NAME"),
        (f"{OWN}:", r"path\.module:NAME is accepted"),
        (f"{OWN}:absolut", f"{OWN} has no absolut; did you mean absolute"),
        ("nowhere_of_a_user:loss", "No module named 'nowhere_of_a_user'"),
        (f"{OWN}:OWN_NUMBER", "has no OWN_NUMBER"),
        (f"{OWN}:too_short", r"objects_of_a_user.py:\d+: .*must take \(params, batch"),
        (f"{OWN}:COUNTS", r"of type Kind; a function \(params, batch, value_fn, \*"),
        ("fails_of_a_user:loss", r"raised KeyError: 'mass' \(fails_of_a_user.py:1\)"),
    ],
)
def test_a_wrong_loss_is_refused_in_one_line(name, message):
    with pytest.raises((ConfigError, UserCodeError), match=message) as caught:
        losses.get(name)
    assert str(caught.value).startswith(f"config: loss={name!r}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("counts", r"known: chaotic, .*, or path\.module:NAME of a Kind"),
        (f"{OWN}:COUNT", "did you mean COUNTS"),
        (f"{OWN}:Cart", "it is of type type; a vagram_jax.envs.distractors.Kind"),
        (f"{OWN}:FAILS", r"its parameters raised KeyError: 'missing'"),
        (f"{OWN}:SHRINKS", "step returned obs"),
        ("fails_of_a_user:KIND", "raised KeyError: 'mass'"),
    ],
)
def test_a_wrong_distractor_is_refused_in_one_line(kind, message):
    with pytest.raises(ValueError, match=message) as caught:
        envs.make("pendulum", distractors=2, distractor_kind=kind)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.status, int)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("Matrix", r"metrics\['x'\] float32\[2,2\]; a scalar or a vector is accepted"),
        (
            "Misspelt",
            r"recorded_metrics has 'plac'; the state's metrics are: ends, place",
        ),
    ],
)
def test_metrics_that_are_no_columns_are_refused(task, message):
    with pytest.raises(envs.EnvError, match=message) as caught:
        envs.make(f"{OWN}:{task}")
    assert "\n" not in str(caught.value)


def test_wrappers_record_what_the_environment_names():
    env = envs.make("pendulum")
    env.recorded_metrics = ()
    for wrapper in (envs.EpisodeWrapper(env, 2), Distractors(env, 2)):
        assert wrapper.recorded_metrics == ()


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ("hopper", "hopper"),
        ("brax:hopper", "brax-hopper"),
        ("gymnasium:Hopper-v5", "gymnasium-Hopper-v5"),
        ("gymnasium:my_tasks:Mine-v0", "gymnasium-Mine-v0"),
        ("gymnasium:ALE/Pong-v5", "gymnasium-ALE.Pong-v5"),
        ("playground:CartpoleBalance", "playground-CartpoleBalance"),
        ("my_tasks:Glider", "Glider"),
    ],
)
def test_the_name_of_a_study_names_the_library_of_the_task(env, name):
    assert grid.study_name(envs.EnvConfig(env=env)) == name
    assert grid.study_name(envs.EnvConfig(env=env, distractors=3)) == f"{name}-3"
    assert results.check_name(name, what="study") == name
    assert re.fullmatch(r"[\w.-]+", name)
