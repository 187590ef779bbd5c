"""Promises of every registered loss, whatever its formula, and the registry."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.test_util import check_grads

import vagram_jax
from vagram_jax import config, dynamics, losses, schedules
from vagram_jax.losses import registry
from vagram_jax.types import Transition

ALL = sorted(losses.LOSSES)
PREPARED = [name for name in ALL if losses.get(name).prepare]
# One loss of each way in which a loss reads the value function.
FAMILIES = ["calibrated_vaml", "mle", "quadratic_eigen", "vagram", "vaml"]
# The mean or variance of the whole batch scales the loss, so that members share it.
POOLED = ["constant_weights", "mse_normalized", "value_weighted"]
FORMS = ["single", "ensemble", "per_member"]
MEMBERS, ROWS = 3, 8

every_loss = pytest.mark.parametrize("name", ALL)
every_form = pytest.mark.parametrize("form", FORMS)

# Each option of the value gradients and of the weights, with what it needs.
GRADIENTS = [{"at": "delta"}, {"clip_quantile": 0.5}, {"mask_terminated": True}]
WEIGHTS = [
    {"normalize": True},
    {"scale_by_dim": True},
    {"gradient_coef": 0.5},
    {"mse_coef": 0.5},
    {"mse_coef": 0.5, "mse_normalized": True},
]
OPTIONS = [
    (name, group, option)
    for group, options in (("gradients", GRADIENTS), ("weights", WEIGHTS))
    for name in ALL
    if group in losses.get(name).reads_config
    for option in options
]
every_option = pytest.mark.parametrize(
    ("name", "group", "option"),
    OPTIONS,
    ids=[f"{name}-{group}.{'-'.join(option)}" for name, group, option in OPTIONS],
)

# The rounding of float32 in sums of some dozen terms.
FLOAT32 = {"rtol": 1e-5, "atol": 2e-6}


@functools.partial(jax.jit, static_argnames="head")
def _init(key, head):
    config = dynamics.DynamicsConfig(
        hidden=(5,), num_members=MEMBERS, num_elites=2, head=head
    )
    return dynamics.init_dynamics(key, obs_dim=3, action_dim=2, config=config)


@functools.cache
def make_params(name, form="per_member", seed=0):
    head = "gaussian" if losses.get(name).gaussian else "deterministic"
    params = _init(jax.random.key(seed), head)
    return member(params, 0) if form == "single" else params


def without_spread(name, form="per_member"):
    """Parameters of a model whose samples have no variance, for the loss that samples.

    The noise of a row depends on its position and on the whole batch. Without variance
    the loss is a mean over rows.
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


def assert_all_zero(tree):
    chex.assert_trees_all_equal(tree, jax.tree.map(jnp.zeros_like, tree))


def configs(group, option):
    """The keyword of one option, as a loss and its `prepare` take it."""
    kind = losses.GradientConfig if group == "gradients" else losses.WeightConfig
    return {group: kind(**option)}


@every_form
@every_loss
def test_loss_is_a_finite_scalar_with_finite_gradients(name, form):
    actual = run(name, make_params(name, form), make_batch(form))
    assert actual[0].shape == ()
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(actual))


@every_loss
def test_loss_is_the_same_without_jit(name):
    params, batch = make_params(name), make_batch()
    actual = jax.value_and_grad(losses.get(name).fn)(params, batch, make_value())
    expected = run(name, params, batch)
    chex.assert_trees_all_close((actual[0], actual[1].network), expected, **FLOAT32)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_is_the_same_under_checkpoint(name):
    params, batch = make_params(name), make_batch()
    saving = jax.checkpoint(losses.get(name).fn)
    actual = jax.jit(jax.value_and_grad(saving))(params, batch, make_value())
    expected = run(name, params, batch)
    chex.assert_trees_all_close((actual[0], actual[1].network), expected, **FLOAT32)


def test_vagram_loss_needs_three_arguments_alone():
    actual = losses.vagram_loss(make_params("vagram"), make_batch(), make_value())
    assert actual.shape == ()


@every_loss
def test_loss_vmapped_over_seeds_equals_a_loop(name):
    models = [make_params(name, seed=seed) for seed in range(2)]
    batches = [make_batch(seed=seed) for seed in range(2)]
    expected = [run(name, *case)[0] for case in zip(models, batches, strict=True)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *zip(models, batches, strict=True))
    over_seeds = jax.vmap(losses.get(name).fn, in_axes=(0, 0, None))
    actual = jax.jit(over_seeds)(*stacked, make_value())
    np.testing.assert_allclose(actual, expected, **FLOAT32)


@pytest.mark.usefixtures("x64")
@every_loss
def test_loss_keeps_the_dtype_of_what_it_is_given(name):
    # float64 is on, so that a constant of that type would show.
    narrow = jax.tree.map(
        lambda x: x if x.dtype == bool else x.astype(jnp.float32), make_batch()
    )
    loss = functools.partial(losses.get(name).fn, predict=linear_predict)
    actual = jax.eval_shape(
        lambda params: jax.value_and_grad(loss)(params, narrow, lambda s: s[:2] ** 2),
        linear_params(jnp.float32),
    )
    assert {x.dtype for x in jax.tree.leaves(actual)} == {np.dtype(np.float32)}


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
    actual = run(name, params, batch)
    for index in range(MEMBERS):
        rows = take(batch, index) if form == "per_member" else batch
        expected = run(name, member(params, index), rows)[1]
        scaled = jax.tree.map(lambda x: x / MEMBERS, expected)
        chex.assert_trees_all_close(take(actual[1], index), scaled, **FLOAT32)
    rows = [take(batch, i) if form == "per_member" else batch for i in range(MEMBERS)]
    members = [run(name, member(params, i), rows[i])[0] for i in range(MEMBERS)]
    np.testing.assert_allclose(actual[0], np.mean(members), **FLOAT32)


@pytest.mark.parametrize("name", sorted({*ALL} - {*POOLED}))
def test_loss_of_one_member_ignores_the_batches_of_others(name):
    params, batch = without_spread(name), make_batch()
    changed = batch.replace(
        next_obs=batch.next_obs.at[1].multiply(-2.0), reward=batch.reward.at[1].add(1.0)
    )
    expected, actual = run(name, params, batch)[1], run(name, params, changed)[1]
    for index in (0, 2):
        # Without spread there is still a gradient in it, of the order of its size.
        noise = 1e-15 if name == "calibrated_vaml" else 0.0
        chex.assert_trees_all_close(
            take(actual, index), take(expected, index), rtol=0, atol=noise
        )
    moved = jax.tree.map(lambda x, y: np.any(x[1] != y[1]), actual, expected)
    assert any(jax.tree.leaves(moved))


@every_loss
def test_loss_permutes_its_gradients_with_the_members(name):
    params, batch = without_spread(name), make_batch()
    order = jnp.array([2, 0, 1])
    loss, gradient = run(name, params, batch)
    turned = params.replace(network=take(params.network, order))
    actual = run(name, turned, take(batch, order))
    chex.assert_trees_all_close(actual, (loss, take(gradient, order)), **FLOAT32)


@every_loss
def test_loss_is_the_same_for_rows_in_another_order(name):
    params, batch = without_spread(name), make_batch()
    order = np.random.default_rng(0).permutation(ROWS)
    turned = jax.tree.map(lambda x: x[:, order], batch)
    chex.assert_trees_all_close(
        run(name, params, turned), run(name, params, batch), **FLOAT32
    )


@pytest.mark.parametrize("name", PREPARED)
def test_loss_with_prepared_is_bit_identical(name):
    params, batch = make_params(name), make_batch().replace(next_value=None)
    settings = {"discount": 0.9} if name == "muzero" else {}
    loss = losses.bind(losses.get(name), **settings)
    prepared = loss.prepare(batch, make_value())
    value_fn = make_value() if name == "muzero" else None
    actual = loss.fn(params, batch, value_fn, prepared=prepared)
    direct = loss.fn(params, batch, make_value(), **settings)
    np.testing.assert_array_equal(actual, direct)


@every_option
def test_every_option_changes_the_loss_directly_as_by_prepared(name, group, option):
    params, batch, loss = make_params(name), make_batch(), losses.get(name)
    given = configs(group, option)
    direct = loss.fn(params, batch, make_value(), **given)
    prepared = losses.bind(loss, **given).prepare(batch, make_value())
    by_prepared = loss.fn(params, batch, None, prepared=prepared)
    np.testing.assert_array_equal(direct, by_prepared)
    assert abs(direct - run(name, params, batch)[0]) > 1e-3 * abs(direct)


@every_option
def test_options_beside_prepared_are_refused(name, group, option):
    params, batch, loss = make_params(name), make_batch(), losses.get(name)
    prepared = jnp.ones(4)  # refused before its shape is looked at
    with pytest.raises(ValueError, match=f"{name}_loss: {group} has no effect toget"):
        loss.fn(params, batch, None, prepared=prepared, **configs(group, option))


def test_muzero_refuses_a_discount_without_effect():
    params, batch, value = make_params("muzero"), make_batch(), make_value()
    with pytest.raises(ValueError, match="discount has no effect together with prep"):
        losses.muzero_loss(params, batch, value, prepared=jnp.ones(4), discount=0.9)
    with pytest.raises(ValueError, match="discount has no effect together with batch"):
        losses.muzero_loss(params, batch, value, discount=0.9)


def test_schedules_must_be_constant_outside_training():
    ramp = losses.WeightConfig(mse_coef=schedules.Schedule(1.0, 0.0, 5.0, 5.0))
    arguments = make_params("vagram"), make_batch(), make_value()
    with pytest.raises(config.ConfigError, match="outside training a constant"):
        losses.vagram_loss(*arguments, weights=ramp)
    actual = losses.vagram_loss(*arguments, weights=losses.resolve(ramp, 5))
    np.testing.assert_array_equal(actual, losses.vagram_loss(*arguments))


def test_masking_terminated_rows_needs_to_know_them():
    batch = make_batch().replace(terminated=None)
    masking = losses.GradientConfig(mask_terminated=True)
    with pytest.raises(ValueError, match=r"batch\.terminated is missing; add it"):
        losses.vagram_loss(
            make_params("vagram"), batch, make_value(), gradients=masking
        )


@every_loss
def test_loss_passes_no_gradient_to_a_value_given_as_argument_or_the_normalizer(name):
    _, (model, value) = program(name)(make_params(name), make_batch(), make_value())
    assert_all_zero((value, model.normalizer))


@every_loss
def test_loss_passes_no_gradient_to_a_value_closed_over(name):
    @jax.jit
    @jax.grad
    def gradient(value_params):
        value = functools.partial(values, value_params)
        return losses.get(name).fn(make_params(name), make_batch(), value)

    assert_all_zero(gradient(make_value().args[0]))


@every_loss
def test_loss_of_identical_rows_and_a_flat_value_is_finite(name):
    batch = make_batch()
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1, :1], x.shape), batch)
    actual = run(name, make_params(name), same, scale=0.0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(actual))


def test_register_keeps_the_function_and_every_option(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", {})

    def own_loss(params, batch, value_fn, *, predict=None, prepared=None):
        return 0.0

    options = {
        "prepare": lambda batch, value_fn, *, where=None, discount: batch.reward,
        "gaussian": True,
        "reads": ("weight",),
        "reads_config": ("discount",),
        "prepares_weights": False,
    }
    assert losses.register("own", **options)(own_loss) is own_loss
    registered = losses.get("own")
    assert registered.prepare.__wrapped__ is options["prepare"]
    options["prepare"] = registered.prepare
    assert registered == losses.ModelLoss("own", own_loss, **options)


def test_register_takes_a_loss_without_options(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", {})

    @losses.register("own")
    def own_loss(params, batch, value_fn, *, predict):
        return 0.0

    assert losses.get("own") == losses.ModelLoss("own", own_loss)


def test_register_refuses_a_loss_that_ignores_what_it_prepares(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", {})

    def prepare(batch, value_fn, *, where):
        return batch.reward

    def deaf_loss(params, batch, value_fn, *, predict):
        return 0.0

    with pytest.raises(ValueError, match=r"'own', .*: got an .* 'prepared'; it must"):
        losses.register("own", prepare=prepare)(deaf_loss)
    losses.register("own", prepare=prepare)(lambda *given, **options: 0.0)
    with pytest.raises(ValueError, match="reads_config='fit'; accepted: gradients, "):
        losses.register("other", reads_config=("fit",))


def test_bind_fills_in_the_settings_that_a_loss_reads():
    weights = losses.WeightConfig(normalize=True)
    bound = losses.bind(losses.get("vagram"), weights=weights, discount=0.9)
    assert bound.prepare.keywords == {
        "gradients": losses.GradientConfig(),
        "weights": weights,
    }
    assert bound.reads_config == ()
    assert losses.bind(losses.get("muzero"), discount=0.9).prepare.keywords == {
        "discount": 0.9
    }
    assert losses.bind(losses.get("mse"), weights=weights) == losses.get("mse")
    with pytest.raises(config.ConfigError, match="'muzero' needs discount="):
        losses.bind(losses.get("muzero"))


def test_unread_lists_the_settings_that_a_loss_ignores():
    settings = {
        "gradients": losses.GradientConfig(clip_quantile=0.5),
        "weights": losses.WeightConfig(normalize=True, gradient_coef=0.5),
    }
    ignored = {"weights.normalize": True, "weights.gradient_coef": 0.5}
    assert losses.unread(losses.get("vagram"), **settings) == {}
    assert losses.unread(losses.get("quadratic"), **settings) == ignored
    ignored["gradients.clip_quantile"] = 0.5
    assert losses.unread(losses.get("mle"), **settings) == ignored
    defaults = {"gradients": losses.GradientConfig(), "weights": losses.WeightConfig()}
    assert losses.unread(losses.get("mle"), **defaults) == {}


def test_settings_that_losses_read_are_those_of_their_family():
    read = {name: losses.get(name).reads_config for name in ALL}
    both, gradients = ("gradients", "weights"), ("gradients",)
    expected = dict.fromkeys(ALL, ())
    expected |= dict.fromkeys(("vagram", "vagram_nll", "constant_weights"), both)
    expected |= dict.fromkeys(
        ("vagram_unbounded", "quadratic", "quadratic_eigen"), gradients
    )
    assert read == expected | {"muzero": ("discount",)}


def test_register_refuses_a_name_that_is_taken(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", dict(losses.LOSSES))
    with pytest.raises(ValueError, match="name='vagram' is taken"):
        losses.register("vagram")(lambda *given, **options: 0.0)
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
    public = {name: getattr(vagram_jax, f"{name}_loss") for name in ALL}
    assert {name: losses.get(name).fn for name in ALL} == public
    assert len(ALL) == 16


def test_a_prediction_and_a_plain_tuple_are_the_same_to_a_loss():
    batch = make_batch("single")
    answer = (2.0 * batch.obs, jnp.zeros(ROWS))

    def loss(prediction):
        return losses.mse_loss({}, batch, predict=lambda *_: prediction)

    assert loss(vagram_jax.Prediction(*answer)) == loss(answer)
