"""What every registered loss promises, whatever its formula, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

import vagram_jax
from vagram_jax import config, dynamics, losses
from vagram_jax.losses import registry
from vagram_jax.types import Transition

ALL = sorted(losses.LOSSES)
# The targets of `muzero` are no function of a batch, but of the order of all data.
PREPARED = [name for name in ALL if losses.get(name).prepare and name != "muzero"]
# Where a batch's own mean or variance scales the loss, members share that scale.
POOLED = ["constant_weights", "mse_normalized", "value_weighted"]
FORMS = ["single", "ensemble", "per_member"]
MEMBERS, ROWS = 3, 8

every_loss = pytest.mark.parametrize("name", ALL)
every_form = pytest.mark.parametrize("form", FORMS)

# The rounding of float32 in sums of some dozen terms.
FLOAT32 = {"rtol": 1e-5, "atol": 2e-6}


@functools.cache
def make_params(name, form="per_member", seed=0):
    head = "gaussian" if losses.get(name).gaussian else "deterministic"
    params = dynamics.init_dynamics(
        jax.random.key(seed),
        obs_dim=3,
        action_dim=2,
        config=dynamics.DynamicsConfig(
            hidden=(5,), num_members=MEMBERS, num_elites=2, head=head
        ),
    )
    return member(params, 0) if form == "single" else params


def without_spread(name, form="per_member"):
    """Parameters with which a loss that samples has samples that are all the same.

    It draws noise for a place in the batch, with a key made of all of the batch: only
    without spread is the loss that of the rows, wherever they stand, and beside which.
    """
    params = make_params(name, form)
    if name != "calibrated_vaml":
        return params
    bounds = {
        bound: params.network["params"][bound].at[..., :-1].set(-80.0)
        for bound in ("min_log_var", "max_log_var")
    }
    return params.replace(network={"params": params.network["params"] | bounds})


def member(params, index):
    return params.replace(network=jax.tree.map(lambda x: x[index], params.network))


def make_batch(form="per_member", seed=0):
    leading = (MEMBERS, ROWS) if form == "per_member" else (ROWS,)
    fields = oracles.random_batch(seed, leading=leading)
    fields |= oracles.random_extras(seed, leading)
    return jax.tree.map(jnp.asarray, Transition(**fields))


def values(params, state):
    """Two value functions, given by their parameters."""
    return jnp.tanh(params["w"] @ state) + params["b"]


def make_value(scale=1.0):
    w = jnp.array([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0]])
    params = {"w": scale * w, "b": scale * jnp.array([1.0, -2.0])}
    return jax.tree_util.Partial(values, params)


@functools.cache
def program(name):
    """The loss with its gradients in the model and in the value, compiled."""
    return jax.jit(jax.value_and_grad(losses.get(name).fn, argnums=(0, 2)))


def run(name, params, batch, scale=1.0):
    """The loss and the gradient in the members' parameters."""
    loss, (gradient, _) = program(name)(params, batch, make_value(scale))
    return loss, gradient.network


def take(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def linear_predict(params, obs, action):
    """A foreign model: a plain dict of parameters to a plain tuple."""
    step = jnp.concatenate([obs, action], axis=-1) @ params["w"]
    return obs + step[..., :3], step[..., 3], jnp.broadcast_to(params["v"], step.shape)


def linear_params(dtype):
    rng = np.random.default_rng(1)
    return {
        "w": jnp.asarray(rng.normal(size=(5, 4)), dtype),
        "v": jnp.asarray(rng.normal(size=4), dtype),
    }


def assert_trees_close(found, wanted, **tolerance):
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def assert_all_zero(tree):
    assert_trees_close(tree, jax.tree.map(jnp.zeros_like, tree), rtol=0)


@every_form
@every_loss
def test_loss_is_a_finite_scalar_with_finite_gradients(name, form):
    found = run(name, make_params(name, form), make_batch(form))
    assert found[0].shape == ()
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


@every_loss
def test_loss_is_the_same_without_jit(name):
    params, batch = make_params(name), make_batch()
    found = jax.value_and_grad(losses.get(name).fn)(params, batch, make_value())
    wanted = run(name, params, batch)
    assert_trees_close((found[0], found[1].network), wanted, **FLOAT32)


@every_loss
def test_loss_is_the_same_under_checkpoint(name):
    params, batch = make_params(name), make_batch()
    saving = jax.checkpoint(losses.get(name).fn)
    found = jax.jit(jax.value_and_grad(saving))(params, batch, make_value())
    wanted = run(name, params, batch)
    assert_trees_close((found[0], found[1].network), wanted, **FLOAT32)


@every_loss
def test_loss_vmapped_over_seeds_equals_a_loop(name):
    models = [make_params(name, seed=seed) for seed in range(2)]
    batches = [make_batch(seed=seed) for seed in range(2)]
    wanted = [run(name, *case)[0] for case in zip(models, batches, strict=True)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *zip(models, batches, strict=True))
    over_seeds = jax.vmap(losses.get(name).fn, in_axes=(0, 0, None))
    found = jax.jit(over_seeds)(*stacked, make_value())
    np.testing.assert_allclose(found, wanted, **FLOAT32)


@pytest.mark.usefixtures("x64")
@every_loss
def test_loss_keeps_the_dtype_of_what_it_is_given(name):
    # float64 is on, so that a constant of that type would show.
    narrow = jax.tree.map(
        lambda x: x if x.dtype == bool else x.astype(jnp.float32), make_batch()
    )
    loss = functools.partial(losses.get(name).fn, predict=linear_predict)
    found = jax.eval_shape(
        lambda params: jax.value_and_grad(loss)(params, narrow, lambda s: s[:2] ** 2),
        linear_params(jnp.float32),
    )
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}


@pytest.mark.usefixtures("x64")
@every_loss
def test_loss_of_a_foreign_model_has_the_gradient_of_finite_differences(name):
    batch, value = make_batch(), make_value()

    @jax.jit
    def loss(params):
        return losses.get(name).fn(params, batch, value, predict=linear_predict)

    # Steps of 1e-6 on losses of order ten keep eight digits of the difference.
    check_grads(
        loss,
        (linear_params(jnp.float64),),
        order=1,
        modes=["rev"],
        atol=1e-5,
        rtol=1e-6,
        eps=1e-6,
    )


@pytest.mark.parametrize("form", ["ensemble", "per_member"])
@every_loss
def test_loss_and_gradient_of_an_ensemble_are_means_over_members(name, form):
    params, batch = without_spread(name), make_batch(form)
    if form == "per_member" and name in POOLED:
        # Rows of equal statistics, in another order: the shared scale is each one's.
        rows = take(make_batch("ensemble"), jnp.arange(ROWS))
        orders = jnp.stack([jnp.roll(jnp.arange(ROWS), i) for i in range(MEMBERS)])
        batch = take(rows, orders)
    found = run(name, params, batch)
    for index in range(MEMBERS):
        rows = take(batch, index) if form == "per_member" else batch
        wanted = run(name, member(params, index), rows)[1]
        scaled = jax.tree.map(lambda x: x / MEMBERS, wanted)
        assert_trees_close(take(found[1], index), scaled, **FLOAT32)
    rows = [take(batch, i) if form == "per_member" else batch for i in range(MEMBERS)]
    members = [run(name, member(params, i), rows[i])[0] for i in range(MEMBERS)]
    np.testing.assert_allclose(found[0], np.mean(members), **FLOAT32)


@pytest.mark.parametrize("name", sorted({*ALL} - {*POOLED}))
def test_loss_of_one_member_ignores_the_batches_of_others(name):
    params, batch = without_spread(name), make_batch()
    changed = batch.replace(
        next_obs=batch.next_obs.at[1].multiply(-2.0), reward=batch.reward.at[1].add(1.0)
    )
    wanted, found = run(name, params, batch)[1], run(name, params, changed)[1]
    for index in (0, 2):
        # Without spread there is still a gradient in it, of the order of its size.
        noise = 1e-15 if name == "calibrated_vaml" else 0.0
        assert_trees_close(take(found, index), take(wanted, index), rtol=0, atol=noise)
    moved = jax.tree.map(lambda x, y: np.any(x[1] != y[1]), found, wanted)
    assert any(jax.tree.leaves(moved))


@every_loss
def test_loss_permutes_its_gradients_with_the_members(name):
    params, batch = without_spread(name), make_batch()
    order = jnp.array([2, 0, 1])
    loss, gradient = run(name, params, batch)
    turned = params.replace(network=take(params.network, order))
    found = run(name, turned, take(batch, order))
    assert_trees_close(found, (loss, take(gradient, order)), **FLOAT32)


@every_loss
def test_loss_is_the_same_for_rows_in_another_order(name):
    params, batch = without_spread(name), make_batch()
    order = np.random.default_rng(0).permutation(ROWS)
    turned = jax.tree.map(lambda x: x[:, order], batch)
    assert_trees_close(run(name, params, turned), run(name, params, batch), **FLOAT32)


@pytest.mark.parametrize("name", PREPARED)
def test_loss_with_prepared_weights_is_bit_identical(name):
    params, batch, loss = make_params(name), make_batch(), losses.get(name)
    prepared = {loss.takes: loss.prepare(batch, make_value())}
    found = loss.fn(params, batch, None, **prepared)
    np.testing.assert_array_equal(found, loss.fn(params, batch, make_value()))


def test_muzero_with_the_targets_of_the_batch_is_bit_identical():
    params, batch = make_params("muzero"), make_batch()
    targets = jnp.stack([batch.next_value] * 2, axis=-1)  # for each value function
    found = losses.muzero_loss(params, batch, make_value(), targets=targets)
    wanted = losses.muzero_loss(params, batch, make_value())
    np.testing.assert_array_equal(found, wanted)


@every_loss
def test_loss_passes_no_gradient_to_a_value_given_as_argument(name):
    _, (_, gradient) = program(name)(make_params(name), make_batch(), make_value())
    assert_all_zero(gradient)


@every_loss
def test_loss_passes_no_gradient_to_a_value_closed_over(name):
    @jax.jit
    @jax.grad
    def gradient(value_params):
        value = functools.partial(values, value_params)
        return losses.get(name).fn(make_params(name), make_batch(), value)

    assert_all_zero(gradient(make_value().args[0]))


@every_loss
def test_loss_passes_no_gradient_to_the_normalizer(name):
    _, (gradient, _) = program(name)(make_params(name), make_batch(), make_value())
    assert_all_zero(gradient.normalizer)


@every_loss
def test_loss_of_identical_rows_and_a_flat_value_is_finite(name):
    batch = make_batch()
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1, :1], x.shape), batch)
    found = run(name, make_params(name), same, scale=0.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_vagram_loss_needs_three_arguments_alone():
    found = losses.vagram_loss(make_params("vagram"), make_batch(), make_value())
    assert found.shape == ()


def test_register_leaves_the_function_as_it_is(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", {})

    def own_loss(params, batch, value_fn, *, predict=None):
        return 0.0

    options = {"takes": "targets", "gaussian": True, "reads": ("weight",)}
    assert losses.register("own", **options)(own_loss) is own_loss
    assert losses.get("own")._asdict() == options | {
        "name": "own",
        "fn": own_loss,
        "prepare": None,
    }


def test_register_takes_a_loss_without_options(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", {})
    losses.register("own")(lambda params, batch, value_fn: 0.0)
    found = losses.get("own")
    assert (found.prepare, found.takes, found.gaussian) == (None, "weights", False)
    assert found.reads == ()


def test_register_refuses_a_name_that_is_taken(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", dict(losses.LOSSES))
    with pytest.raises(ValueError, match="name='vagram' is taken"):
        losses.register("vagram")(lambda params, batch, value_fn: 0.0)
    assert losses.get("vagram").fn is losses.vagram_loss


def test_register_takes_the_same_definition_again(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", {})

    def define():
        @losses.register("own")
        def own_loss(params, batch, value_fn, *, predict=None):
            return 0.0

        return own_loss

    define()
    again = define()
    assert losses.get("own").fn is again


def test_get_names_the_known_and_the_nearest_loss():
    with pytest.raises(config.ConfigError, match="did you mean vagram") as caught:
        losses.get("vagrm")
    assert all(name in str(caught.value) for name in ALL)


def test_registered_names_are_the_public_functions():
    public = {
        "calibrated_vaml": vagram_jax.calibrated_vaml_loss,
        "constant_weights": vagram_jax.constant_weights_loss,
        "mle": vagram_jax.mle_loss,
        "mse": vagram_jax.mse_loss,
        "mse_normalized": vagram_jax.mse_normalized_loss,
        "muzero": vagram_jax.muzero_loss,
        "quadratic": vagram_jax.quadratic_loss,
        "quadratic_eigen": vagram_jax.quadratic_eigen_loss,
        "sample_weighted": vagram_jax.sample_weighted_loss,
        "vagram": vagram_jax.vagram_loss,
        "vagram_nll": vagram_jax.vagram_nll_loss,
        "vagram_unbounded": vagram_jax.vagram_unbounded_loss,
        "value_equivalence": vagram_jax.value_equivalence_loss,
        "value_l1": vagram_jax.value_l1_loss,
        "value_weighted": vagram_jax.value_weighted_loss,
        "vaml": vagram_jax.vaml_loss,
    }
    assert {name: losses.LOSSES[name].fn for name in ALL} == public


def test_a_prediction_and_a_plain_tuple_are_the_same_to_a_loss():
    next_obs = jax.random.normal(jax.random.key(0), (4, 3))
    zeros = jnp.zeros(4, bool)
    batch = Transition(
        obs=next_obs,
        action=jnp.zeros((4, 1)),
        reward=jnp.ones(4),
        next_obs=2.0 * next_obs,
        terminated=zeros,
        truncated=zeros,
    )

    def loss(predict):
        return losses.mse_loss({}, batch, predict=lambda *_: predict)

    named = loss(vagram_jax.Prediction(next_obs, jnp.zeros(4)))
    assert named == loss((next_obs, jnp.zeros(4)))
