"""Batches of any origin, foreign models, and losses of one's own."""

import collections
import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

import vagram_jax
from vagram_jax import dynamics, losses
from vagram_jax.losses import registry
from vagram_jax.types import Transition

REQUIRED = ("obs", "action", "reward", "next_obs")
FIELDS = oracles.random_batch(0, leading=(8,)) | oracles.random_extras(0, (8,))
SMALL = {name: np.float32(FIELDS[name]) for name in REQUIRED}
OBS = SMALL["obs"]

MODEL = dynamics.DynamicsConfig(hidden=(5,), num_members=2, num_elites=1)


@functools.cache
def model(head="deterministic"):
    return dynamics.init_dynamics(
        jax.random.key(0), obs_dim=3, action_dim=2, config=MODEL.replace(head=head)
    )


def value_fn(state):
    return -jnp.sum(jnp.square(state))


def linear(params, obs, action):
    """A foreign model of a batch."""
    return obs @ params["w"] + action @ params["v"], jnp.sum(obs, axis=-1)


LINEAR = {"w": jnp.eye(3), "v": jnp.ones((2, 3))}
linear_loss = functools.partial(losses.vagram_loss, LINEAR, SMALL, value_fn)

Named = collections.namedtuple("Named", REQUIRED)
Data = dataclasses.make_dataclass("Data", REQUIRED)
# The fields of `brax.training.types.Transition`.
Brax = collections.namedtuple(
    "Brax", "observation action reward discount next_observation extras"
)
BATCHES = {
    "dict": SMALL,
    "NamedTuple": Named(**SMALL),
    "dataclass": Data(**SMALL),
    "Transition": Transition(**SMALL),
    "JAX arrays": jax.tree.map(jnp.asarray, SMALL),
    "float64": {name: FIELDS[name] for name in REQUIRED},
    "Brax": Brax(OBS, SMALL["action"], SMALL["reward"], 1.0, SMALL["next_obs"], {}),
    "plurals": {
        "observations": OBS,
        "actions": SMALL["action"],
        "rewards": SMALL["reward"],
        "next_observations": SMALL["next_obs"],
        "terminals": "unread",
    },
}


@pytest.mark.parametrize("form", BATCHES)
def test_a_batch_of_any_origin_gives_the_loss_of_a_transition(form):
    actual = losses.vagram_loss(model(), BATCHES[form], value_fn)
    expected = losses.vagram_loss(model(), Transition(**SMALL), value_fn)
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == np.float32


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_every_loss_and_its_prepare_take_a_dict_of_what_they_read(name):
    loss, read = losses.get(name), {"sample_weighted": "weight", "muzero": "next_value"}
    params = model("gaussian" if loss.gaussian else "deterministic")
    batch = SMALL | ({read[name]: FIELDS[read[name]]} if name in read else {})
    expected = loss.fn(params, Transition(**batch), value_fn)
    np.testing.assert_array_equal(loss.fn(params, batch, value_fn), expected)
    np.testing.assert_array_equal(
        losses.LOSSES[name](params, batch, value_fn), expected
    )
    if loss.prepare and name != "muzero":  # reads whole episodes
        prepared = loss.prepare(batch, value_fn)
        actual = loss(params, batch, value_fn, prepared=prepared)
        np.testing.assert_array_equal(actual, expected)


def test_a_dict_may_be_traced():
    grad = jax.jit(jax.grad(losses.mse_loss))
    actual = grad(model(), SMALL).network
    expected = grad(model(), Transition(**SMALL)).network
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_whole_numbers_of_a_batch_become_floating_ones():
    whole = SMALL | {"next_obs": np.arange(24).reshape(8, 3), "reward": np.arange(8)}
    actual = losses.vagram_loss(model(), whole, value_fn)
    floats = {name: np.float32(value) for name, value in whole.items()}
    assert actual == losses.vagram_loss(model(), floats, value_fn)


def test_flags_may_be_numbers():
    masking = losses.GradientConfig(mask_terminated=True)
    flags = np.arange(8) % 3 == 0
    actual, expected = (
        losses.vagram_loss(
            model(), SMALL | {"terminated": each}, value_fn, gradients=masking
        )
        for each in (np.float32(flags), flags)
    )
    np.testing.assert_array_equal(actual, expected)
    assert actual != losses.vagram_loss(model(), SMALL, value_fn)


class Network(nnx.Module):
    """A model of Flax NNX."""

    def __init__(self, rngs):
        self.inner = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, obs, action):
        """Predicts a batch."""
        out = self.inner(jnp.concatenate([obs, action], axis=-1))
        return obs + out[..., :3], out[..., 3]


def test_a_model_of_flax_nnx_is_trained_as_it_is():
    network = Network(nnx.Rngs(0))

    def predict(network, obs, action):
        return network(obs, action)

    loss, grads = nnx.value_and_grad(
        lambda network: losses.vagram_loss(network, SMALL, value_fn, predict=predict)
    )(network)
    assert np.isfinite(loss)
    assert all(np.any(np.asarray(leaf) != 0.0) for leaf in jax.tree.leaves(grads))


def test_an_error_inside_a_model_stays_what_it_is():
    def broken(params, obs, action):
        raise KeyError("layer")

    with pytest.raises(KeyError, match="layer") as caught:
        linear_loss(predict=broken)
    assert "while predict was called" in caught.value.__notes__[0]


# --- a loss of one's own --------------------------------------------------------------

HERE = r"test_newcomers\.py:\d+"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", dict(losses.LOSSES))


def own(params, batch, value_fn, *, predict):
    return jnp.mean(predict(params, batch.obs, batch.action)[1])


def without_predict(params, batch, value_fn):
    return 0.0


def without_value(params, batch, *, predict):
    return 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (5, "name=5; a text of letters, digits and _ is accepted"),
        (None, "name=None; a text"),
        ("", "name=''; a text"),
        ("a,b", "name='a,b'; a text"),
        ("../x", "name='../x'; a text"),
        ("none", "name='none' means training without a model; choose another"),
        ("sac", "name='sac' means training without a model"),
        (own, rf"{HERE}: @register needs a name; write @register\(\"own\"\)"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_register_refuses_what_is_no_name(name, message):
    with pytest.raises(ValueError, match=f"^register: .*{message}"):
        vagram_jax.register(name)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            without_predict,
            rf"{HERE}: got an unexpected .* 'predict'; it must take \(par",
        ),
        (
            without_value,
            rf"{HERE}: too many positional arguments; it must take \(param",
        ),
        (3, "3 is not a callable object"),
    ],
)
def test_register_refuses_a_loss_that_training_could_not_call(fn, message):
    with pytest.raises(ValueError, match=f"^register: loss 'mine', .*{message}"):
        vagram_jax.register("mine")(fn)
    assert "mine" not in registry.LOSSES


def test_register_refuses_a_prepare_that_training_could_not_call():
    def prepare(batch, value_fn):
        return batch.reward

    with pytest.raises(
        ValueError, match=rf"^register: prepare of loss 'mine', .*{HERE}"
    ):
        vagram_jax.register("mine", prepare=prepare)(losses.sample_weighted_loss)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (0, "a value of type int"),
        ((jnp.ones(()), {}), "a value of type tuple"),
        (None, "returned None"),
        (jnp.ones(8), r"an array of shape \[8\] and dtype float32"),
        (jnp.ones((), int), r"an array of shape \[\] and dtype int32"),
    ],
    ids=["int", "tuple", "None", "vector", "whole number"],
)
def test_a_loss_that_returns_no_floating_scalar_is_refused(returned, message):
    @vagram_jax.register("mine")
    def mine(params, batch, value_fn, *, predict):
        return returned

    line = inspect.getsourcelines(mine)[1]
    where = rf"^loss 'mine' \(.*test_newcomers\.py:{line}\): "
    with pytest.raises(
        ValueError, match=f"{where}.*{message}.*; a floating scalar is a"
    ):
        losses.get("mine")(LINEAR, SMALL, value_fn, predict=linear)


@pytest.mark.parametrize("returned", [jnp.ones(3), jnp.ones(()), None, (1, 2)], ids=str)
def test_a_prepare_of_another_shape_is_refused(returned):
    def prepare(batch, value_fn, *, where):
        return returned

    vagram_jax.register("mine", prepare=prepare)(losses.sample_weighted_loss)
    message = rf"^prepare of loss 'mine', .*{HERE}: returned .* accepted, \[8, \.\.\.\]"
    with pytest.raises(ValueError, match=message):
        losses.get("mine").prepare(SMALL, value_fn)


def test_a_loss_of_ones_own_gets_a_transition_of_any_batch():
    vagram_jax.register("mine")(own)
    actual = losses.LOSSES["mse"](LINEAR, SMALL, value_fn, predict=linear)
    assert actual == losses.mse_loss(LINEAR, SMALL, predict=linear)
    mine = losses.get("mine")(LINEAR, SMALL, value_fn, predict=linear)
    np.testing.assert_allclose(mine, np.mean(np.sum(OBS, axis=-1)), rtol=1e-5)
