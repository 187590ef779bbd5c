"""The networks: against NumPy, and the range of what they give."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.special

from vagram_jax import networks

pytestmark = pytest.mark.usefixtures("x64")

# float64 arithmetic in another order.
EXACT = 1e-12


def make(module, *inputs, seed=0):
    """Parameters with no zero among them: biases start at zero and would hide."""
    params = jax.eval_shape(module.init, jax.random.key(seed), *inputs)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), params)


def apply(module, params, *inputs):
    return jax.jit(module.apply)(params, *inputs)


def layers_of(params):
    inner = params["params"]
    names = sorted(inner, key=lambda name: int(name.removeprefix("Dense_")))
    return [
        (np.asarray(inner[n]["kernel"]), np.asarray(inner[n]["bias"])) for n in names
    ]


def softplus(x):
    return np.logaddexp(0.0, x)


@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("activation", networks.ACTIVATIONS)
def test_mlp_equals_the_oracle(activation, features_first):
    module = networks.MLP((4, 3), 2, activation, features_first=features_first)
    inputs = np.random.default_rng(1).normal(size=(5, 3))
    params = make(module, inputs)
    expected = [oracles.mlp(layers_of(params), row, activation) for row in inputs]
    np.testing.assert_allclose(apply(module, params, inputs), expected, rtol=EXACT)


def test_mlp_without_hidden_layers_is_linear():
    module = networks.MLP(hidden=(), out_dim=2)
    inputs = np.random.default_rng(2).normal(size=3)
    params = make(module, inputs)
    kernel, bias = layers_of(params)[0]
    actual = apply(module, params, inputs)
    np.testing.assert_allclose(actual, inputs @ kernel + bias, rtol=EXACT)


def test_mlp_takes_any_leading_axes():
    module = networks.MLP(hidden=(4,), out_dim=2)
    inputs = np.random.default_rng(3).normal(size=(2, 5, 3))
    params = make(module, inputs)
    actual = apply(module, params, inputs)
    expected = [apply(module, params, rows) for rows in inputs]
    np.testing.assert_allclose(actual, expected, rtol=EXACT)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "unit_features": True}])
@pytest.mark.parametrize("axes", [(), (5,), (2, 5)])
def test_mlp_with_features_first_returns_and_differentiates_to_the_same(axes, options):
    inputs = np.random.default_rng(8).normal(size=(*axes, 3))
    outputs = np.random.default_rng(9).normal(size=(*axes, 2))
    modules = [
        networks.MLP((4, 3), 2, activation="tanh", features_first=first, **options)
        for first in (False, True)
    ]
    params = make(modules[0], inputs)
    chex.assert_trees_all_equal_shapes(params, make(modules[1], inputs))
    (last, last_vjp), (first, first_vjp) = (
        jax.vjp(module.apply, params, inputs) for module in modules
    )
    np.testing.assert_allclose(first, last, rtol=EXACT)
    chex.assert_trees_all_close(first_vjp(outputs), last_vjp(outputs), rtol=1e-10)


def test_mlp_refuses_an_activation_that_it_does_not_know():
    with pytest.raises(KeyError, match="gelu"):
        networks.MLP(hidden=(4,), out_dim=2, activation="gelu").init(
            jax.random.key(0), jnp.zeros(3)
        )


def features_of(inputs):
    """The scaled features: the last layer is made the identity."""
    module = networks.MLP(hidden=(4,), out_dim=4, activation="tanh", unit_features=True)
    params = make(module, inputs)["params"]
    last = {"kernel": np.eye(4), "bias": np.zeros(4)}
    return apply(module, {"params": params | {"Dense_1": last}}, inputs)


def test_unit_features_have_norm_one():
    actual = features_of(np.random.default_rng(4).normal(size=(6, 3)))
    # 1e-8 under the root, half of it after, beside squares of about one.
    np.testing.assert_allclose(np.linalg.norm(actual, axis=-1), 1.0, rtol=1e-7)


def test_unit_features_have_finite_gradients_at_zero_features():
    inputs = jnp.zeros((2, 3))
    module = networks.MLP(hidden=(4,), out_dim=1, activation="tanh", unit_features=True)
    params = jax.tree.map(np.zeros_like, make(module, inputs))
    params["params"]["Dense_1"]["kernel"] = np.ones((4, 1))
    total = jax.jit(jax.value_and_grad(lambda p: jnp.sum(module.apply(p, inputs))))
    value, gradient = total(params)
    assert float(value) == 0.0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


def policy_and_params(**options):
    module = networks.Policy(mlp=networks.MLP(hidden=(4,), out_dim=4), **options)
    return module, make(module, np.ones(3))


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_policy_keeps_the_log_std_in_its_range(scale):
    module, params = policy_and_params(log_std_range=(-3.0, 1.0))
    inputs = scale * np.random.default_rng(5).normal(size=(20, 3))
    _, log_std = apply(module, params, inputs)
    assert np.all((log_std >= -3.0) & (log_std <= 1.0))
    if scale > 1.0:  # both ends are reached, so neither is off
        np.testing.assert_allclose([log_std.min(), log_std.max()], [-3.0, 1.0])


def test_policy_splits_mean_and_squashed_log_std():
    module, params = policy_and_params()
    inputs = np.random.default_rng(6).normal(size=3)
    layers = layers_of({"params": params["params"]["mlp"]})
    raw = oracles.mlp(layers, inputs, "relu")
    mean, log_std = apply(module, params, inputs)
    np.testing.assert_allclose(mean, raw[:2], rtol=EXACT)
    # The range -5 to 2 is -1.5 plus or minus 3.5.
    np.testing.assert_allclose(log_std, -1.5 + 3.5 * np.tanh(raw[2:]), rtol=EXACT)


def test_critic_sees_observation_then_action_and_drops_the_last_axis():
    module = networks.Critic(mlp=networks.MLP(hidden=(4,), out_dim=1))
    rng = np.random.default_rng(7)
    obs, action = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    params = make(module, obs, action)
    layers = layers_of({"params": params["params"]["mlp"]})
    expected = [oracles.mlp(layers, row, "relu")[0] for row in np.hstack([obs, action])]
    np.testing.assert_allclose(apply(module, params, obs, action), expected, rtol=EXACT)


def test_soft_clamp_equals_its_closed_form():
    value = np.linspace(-15.0, 5.0, 41)
    low, high = -10.0, 0.5
    inner = high - softplus(high - value)
    expected = low + softplus(inner - low)
    np.testing.assert_allclose(
        networks.soft_clamp(value, low, high), expected, rtol=EXACT
    )


def test_soft_clamp_has_a_limit_slightly_above_the_upper_bound():
    actual = networks.soft_clamp(jnp.array([-1e4, 1e4]), -10.0, 0.5)
    expected = [-10.0, -10.0 + np.log1p(np.exp(10.5))]  # 0.5000275
    np.testing.assert_allclose(actual, expected, rtol=EXACT)
    np.testing.assert_allclose(actual[1], 0.5000275, atol=1e-7)  # as many digits


def test_soft_clamp_rises_everywhere_between_the_bounds():
    slope = jax.vmap(jax.grad(networks.soft_clamp), in_axes=(0, None, None))
    actual = slope(jnp.linspace(-20.0, 10.0, 31), -10.0, 0.5)
    assert np.all((actual > 0.0) & (actual <= 1.0))


def test_dynamics_without_gaussian_gives_no_log_variance():
    module = networks.Dynamics(mlp=networks.MLP(hidden=(4,), out_dim=3))
    mean, log_var = apply(module, make(module, np.ones(2)), np.ones(2))
    assert (mean.shape, log_var) == ((3,), None)


def test_dynamics_starts_its_bounds_at_the_range():
    module = networks.Dynamics(
        mlp=networks.MLP(hidden=(4,), out_dim=6),
        gaussian=True,
        log_var_range=(-9.0, 1.0),
    )
    params = module.init(jax.random.key(0), np.ones(2))["params"]
    np.testing.assert_array_equal(params["min_log_var"], np.full(3, -9.0))
    np.testing.assert_array_equal(params["max_log_var"], np.full(3, 1.0))


def test_dynamics_clamps_the_second_half_of_the_output():
    module = networks.Dynamics(mlp=networks.MLP(hidden=(4,), out_dim=6), gaussian=True)
    params, inputs = make(module, np.ones(2)), np.array([0.3, -0.7])
    bounds = {"min_log_var": jnp.full(3, -10.0), "max_log_var": jnp.full(3, 0.5)}
    params = {"params": params["params"] | bounds}
    raw = oracles.mlp(layers_of({"params": params["params"]["mlp"]}), inputs, "relu")
    mean, log_var = apply(module, params, inputs)
    np.testing.assert_allclose(mean, raw[:3], rtol=EXACT)
    expected = networks.soft_clamp(raw[3:], -10.0, 0.5)
    np.testing.assert_allclose(log_var, expected, rtol=EXACT)


def test_silu_is_x_times_its_sigmoid_with_both_derivatives():
    x = np.concatenate([np.linspace(-30.0, 30.0, 121), [-1e4, -700.0, 700.0, 1e4]])
    sigmoid = scipy.special.expit(x)
    slope = sigmoid * (1.0 + x * (1.0 - sigmoid))
    curvature = sigmoid * (1.0 - sigmoid) * (2.0 + x * (1.0 - 2.0 * sigmoid))
    first = jax.grad(networks.silu)
    near = {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(networks.silu(x), x * sigmoid, **near)
    np.testing.assert_allclose(jax.vmap(first)(x), slope, **near)
    np.testing.assert_allclose(jax.vmap(jax.grad(first))(x), curvature, **near)
