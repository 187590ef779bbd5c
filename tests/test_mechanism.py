"""Which model each loss prefers if the capacity is limited, in closed form.

The model is linear and of rank r: s_hat = x A C with x = (obs, action), A [p, r] and
C [r, d]. Any loss (1/B) sum_b a_b e_b M e_b^T of its error e = s_hat - s', with row
weights a and a metric M = L L^T, is then a reduced-rank regression: let F be the
a-weighted least-squares fit without a limit and V_r the leading r right singular
vectors of diag(a)^(1/2) F L. The best s_hat L is F L V_r V_r^T (Eckart and Young), and
the loss left is that of F plus the squared singular values left out, over B.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import optimize

from vagram_jax import losses
from vagram_jax.types import Transition

pytestmark = pytest.mark.usefixtures("x64")

# float64 arithmetic in another order.
EXACT = 1e-10
# The precision of a descent: near the root of that of float64, with some margin.
REACHED = 1e-5

OBS_DIM, ACTION_DIM, RANK = 5, 2, 2
# K = 3 linear value functions: more than the rank, so that it limits, and fewer than
# the dimensions, so that losses of values alone ignore some errors.
SLOPES = np.random.default_rng(10).normal(size=(3, OBS_DIM)) * [3.0, 2.0, 1.0, 0.5, 0.2]
RIDGE = np.array([2.0, -1.5, 1.0, 0.7, -0.3])
CURVATURES = np.array([3.0, -2.0, 1.0, 0.5, 0.2])


def linear(state):
    return jnp.asarray(SLOPES) @ state


def ridge(state):
    """Quadratic along one direction u: its gradients (u.s) u differ only in length."""
    return 0.5 * (state @ RIDGE) ** 2


def separable(state):
    """Quadratic with a diagonal Hessian h: the gradient in dimension d is h_d s_d."""
    return 0.5 * jnp.sum(CURVATURES * state**2)


def low_rank(params, obs, action):
    """The model; the reward has a separate head, outside of the rank limit."""
    inputs = jnp.concatenate([obs, action], axis=-1)
    return inputs @ params["encoder"] @ params["decoder"], inputs @ params["reward"]


def predicted(params, batch):
    return inputs_of(batch) @ params["encoder"] @ params["decoder"]


def inputs_of(batch):
    return np.concatenate([batch["obs"], batch["action"]], axis=1)


def make_params(encoder, decoder):
    """Parameters whose reward head has no error on `make_batch`."""
    return {"encoder": encoder, "decoder": decoder, "reward": np.ones(len(encoder))}


def random_params(seed, batch, rank):
    rng, size = np.random.default_rng([seed, rank]), inputs_of(batch).shape[1]
    decoder = 0.5 * rng.normal(size=(rank, batch["obs"].shape[1]))
    params = make_params(0.5 * rng.normal(size=(size, rank)), decoder)
    return params | {"reward": rng.normal(size=size)}


def make_batch(obs, action, next_obs):
    flags = np.zeros(len(obs), bool)
    batch = {"obs": obs, "action": action, "next_obs": next_obs}
    reward = inputs_of(batch).sum(axis=1)
    return batch | {"reward": reward, "terminated": flags, "truncated": flags}


def random_batch(bend=0.0, rows=60):
    """A linear system of full rank plus noise; `bend` adds a quadratic part.

    The dimensions differ in scale, so that the losses prefer different ranks.
    """
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(rows, OBS_DIM))
    action = rng.uniform(-1.0, 1.0, size=(rows, ACTION_DIM))
    truth = rng.normal(size=(OBS_DIM + ACTION_DIM, OBS_DIM)) * [0.3, 0.5, 0.8, 1.2, 1.5]
    straight = np.concatenate([obs, action], axis=1) @ truth
    noise = 0.3 * rng.normal(size=straight.shape)
    return make_batch(obs, action, straight + bend * straight**2 + noise)


class Optimum(NamedTuple):
    """A minimizer and its loss; only `s_hat @ root` is unique, with root = L."""

    params: dict
    loss: float
    root: np.ndarray


def reduced_rank(batch, metric, rank=RANK, row_weights=1.0):
    """The closed form of the module's docstring, with NumPy alone."""
    inputs, targets = inputs_of(batch), batch["next_obs"]
    scale = np.sqrt(row_weights * np.ones(len(inputs)))[:, None]
    eigenvalues, vectors = np.linalg.eigh(metric)
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    fit = np.linalg.lstsq(scale * inputs, scale * targets, rcond=None)[0]
    singular, directions = np.linalg.svd(scale * (inputs @ fit) @ root)[1:]
    leading = directions[:rank].T
    residual = np.sum((scale * (targets - inputs @ fit) @ root) ** 2)
    # In a direction without weight any prediction is optimal; this takes zero.
    params = make_params(
        fit @ root @ leading, leading.T @ np.linalg.pinv(root, rcond=1e-6)
    )
    return Optimum(
        params, (residual + np.sum(singular[rank:] ** 2)) / len(inputs), root
    )


def unlimited(batch, weights):
    """The minimizer without a rank limit: weighted least squares per dimension."""
    inputs = inputs_of(batch)
    columns = [
        np.linalg.solve(inputs.T @ (w[:, None] * inputs), inputs.T @ (w * target))
        for w, target in zip(weights.T, batch["next_obs"].T, strict=True)
    ]
    return make_params(np.stack(columns, axis=1), np.eye(len(columns)))


def objective(name, batch, value_fn=None):
    """The loss and its gradient as one compiled function of the parameters."""
    rows, fn = Transition(**batch), losses.get(name).fn
    return jax.jit(
        jax.value_and_grad(lambda params: fn(params, rows, value_fn, predict=low_rank))
    )


def descents(value_and_grad, starts):
    """Yields the parameters and the loss at which L-BFGS ends from each start."""
    unravel = ravel_pytree(starts[0])[1]

    @jax.jit
    def on_vectors(vector):
        loss, grad = value_and_grad(unravel(vector))
        return loss, ravel_pytree(grad)[0]

    options = {"maxiter": 5000, "maxfun": 10000, "maxcor": 30, "ftol": 0, "gtol": 1e-9}
    for start in starts:
        actual = optimize.minimize(
            lambda vector: jax.tree.map(np.asarray, on_vectors(vector)),
            ravel_pytree(start)[0],
            jac=True,
            method="L-BFGS-B",
            options=options,
        )
        yield jax.tree.map(np.asarray, unravel(actual.x)), actual.fun


def assert_stationary(value_and_grad, params, loss):
    actual, grad = value_and_grad(params)
    np.testing.assert_allclose(actual, loss, rtol=EXACT)
    for leaf in jax.tree.leaves(grad):
        np.testing.assert_allclose(leaf, 0.0, atol=EXACT * max(1.0, loss))


def one(batch):
    return np.ones(len(batch["obs"]))


def identity(batch):
    return np.eye(OBS_DIM)


def over_variance(batch):
    return np.diag(1.0 / np.var(batch["next_obs"] - batch["obs"], axis=0))


def magnitude(batch):
    values = np.mean(np.abs(batch["next_obs"] @ SLOPES.T), axis=1)
    return values / np.mean(values)


def squared_slopes(batch):
    return np.diag(np.mean(SLOPES**2, axis=0))


def outer_slopes(batch):
    return SLOPES.T @ SLOPES / len(SLOPES)


def mean_squared_slopes(batch):
    return np.diag(np.mean((CURVATURES * batch["next_obs"]) ** 2, axis=0))


def along_ridge(batch):
    return (batch["next_obs"] @ RIDGE) ** 2


# The row weights and the metric of each loss, by its formula. If gradients differ
# between samples, VaGraM's weights differ in each dimension, and a limited rank has no
# closed form in general. It has one if the weights are a factor of the row times a
# factor of the dimension, as for a ridge, and if the loss averages them.
CASES = [
    ("mse", linear, one, identity),
    ("mse_normalized", linear, one, over_variance),
    ("value_weighted", linear, magnitude, identity),
    ("vagram", linear, one, squared_slopes),
    ("quadratic", linear, one, squared_slopes),
    ("vagram_unbounded", linear, one, outer_slopes),
    ("vaml", linear, one, outer_slopes),
    ("value_equivalence", linear, one, lambda batch: SLOPES.T @ SLOPES),
    ("vagram", ridge, along_ridge, lambda batch: np.diag(RIDGE**2)),
    ("vagram_unbounded", ridge, along_ridge, lambda batch: np.outer(RIDGE, RIDGE)),
    ("constant_weights", separable, one, mean_squared_slopes),
]
each_case = pytest.mark.parametrize(
    "case", CASES, ids=[f"{name}-{value.__name__}" for name, value, *_ in CASES]
)


def solve(case, batch):
    """The closed form of a case, and its loss and gradient as a function."""
    name, value_fn, row_weights, metric = case
    best = reduced_rank(batch, metric(batch), row_weights=row_weights(batch))
    return best, objective(name, batch, value_fn)


@each_case
def test_the_closed_form_is_stationary_and_every_descent_ends_there(case):
    batch = random_batch()
    best, value_and_grad = solve(case, batch)
    assert_stationary(value_and_grad, best.params, best.loss)
    expected = predicted(best.params, batch) @ best.root
    starts = [random_params(seed, batch, RANK) for seed in range(2)]
    for params, loss in descents(value_and_grad, starts):
        # Not above the closed form, and never below it.
        np.testing.assert_allclose(loss, best.loss, rtol=EXACT)
        actual = predicted(params, batch) @ best.root
        np.testing.assert_allclose(actual, expected, atol=REACHED)


@pytest.mark.parametrize("name", ["vaml", "vagram_unbounded"])
def test_one_linear_value_needs_rank_one_and_ignores_other_directions(name):
    batch, slope = random_batch(), SLOPES[0]
    best = reduced_rank(batch, np.outer(slope, slope), rank=1).params
    # The least-squares prediction of the one direction with weight.
    fit = predicted(unlimited(batch, np.ones_like(batch["next_obs"])), batch) @ slope
    # Any change of the decoder that the slope does not see.
    change = np.random.default_rng(2).normal(size=OBS_DIM)
    change -= slope * (change @ slope) / (slope @ slope)
    other = best | {"decoder": best["decoder"] + change}
    assert np.std(predicted(other, batch) - predicted(best, batch)) > 1.0
    value_and_grad = objective(name, batch, lambda s: s @ slope)
    for params in (best, other):
        np.testing.assert_allclose(predicted(params, batch) @ slope, fit, rtol=EXACT)
        loss = np.mean((fit - batch["next_obs"] @ slope) ** 2)
        assert_stationary(value_and_grad, params, loss)


def test_value_l1_of_one_linear_value_has_its_minimum_at_a_linear_program():
    batch, slope = random_batch(), SLOPES[0]
    inputs, target = inputs_of(batch), batch["next_obs"] @ slope
    rows, size = inputs.shape
    # Least absolute deviations: the mean of bounds t with -t <= x b - y <= t.
    best = optimize.linprog(
        np.concatenate([np.zeros(size), np.ones(rows) / rows]),
        np.block([[inputs, -np.eye(rows)], [-inputs, -np.eye(rows)]]),
        np.concatenate([target, -target]),
        bounds=[(None, None)] * size + [(0, None)] * rows,
    )
    params = make_params(best.x[:size, None], slope[None] / (slope @ slope))
    value_and_grad = objective("value_l1", batch, lambda s: s @ slope)
    np.testing.assert_allclose(value_and_grad(params)[0], best.fun, rtol=EXACT)
    for step in 0.01 * np.random.default_rng(3).normal(size=(20, size, 1)):
        near = params | {"encoder": params["encoder"] + step}
        assert value_and_grad(near)[0] > best.fun


def test_vagram_without_a_rank_limit_is_a_weighted_regression_per_dimension():
    # For a curved system the weights decide where a linear model errs.
    batch = random_batch(bend=0.3)
    weights = (CURVATURES * batch["next_obs"]) ** 2
    best, plain = unlimited(batch, weights), unlimited(batch, np.ones_like(weights))
    squares = (predicted(best, batch) - batch["next_obs"]) ** 2
    value_and_grad = objective("vagram", batch, separable)
    assert_stationary(value_and_grad, best, np.sum(weights * squares) / len(squares))
    [(actual, _)] = descents(value_and_grad, [random_params(0, batch, OBS_DIM)])
    np.testing.assert_allclose(
        predicted(actual, batch), predicted(best, batch), atol=REACHED
    )
    # The minimizer without weights is another model, and worse by this loss.
    assert value_and_grad(plain)[0] > 1.1 * value_and_grad(best)[0]


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_vagram_and_mse_are_each_best_by_their_own_loss(rank):
    batch = random_batch()
    ours = reduced_rank(batch, squared_slopes(batch), rank).params
    plain = reduced_rank(batch, identity(batch), rank).params
    vagram, mse = objective("vagram", batch, linear), objective("mse", batch)
    if rank < OBS_DIM:
        assert vagram(ours)[0] < 0.99 * vagram(plain)[0]
        assert mse(plain)[0] < 0.99 * mse(ours)[0]
    else:
        same = predicted(plain, batch)
        np.testing.assert_allclose(predicted(ours, batch), same, rtol=EXACT)


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
def test_the_value_error_of_vagrams_model_is_between_the_least_and_its_bound(rank):
    batch = random_batch()
    ours = reduced_rank(batch, squared_slopes(batch), rank)
    least = reduced_rank(batch, outer_slopes(batch), rank).loss
    actual = objective("vaml", batch, linear)(ours.params)[0]
    assert least * (1.0 - EXACT) <= actual <= OBS_DIM * ours.loss


# Below, each dimension has a separate input, so that predicting it takes one rank.
# Two real dimensions come first, then two distractors of larger scale.
SIGNAL = np.array([1.0, 1.0, 5.0, 4.0])  # standard deviation of the predictable part
NOISE = np.array([0.1, 0.5, 1.5, 1.8])  # and of the unpredictable part
REAL = np.array([2.0, -1.0, 0.0, 0.0])  # slopes of a value that ignores distractors


def distracted_batch(rows=40):
    """A batch of uncorrelated signal and noise: losses are sums over dimensions."""
    columns = np.random.default_rng(3).normal(size=(rows, 12))
    columns, _ = np.linalg.qr(columns - columns.mean(axis=0))
    before, inputs, noise = np.split(np.sqrt(rows) * columns, 3, axis=1)
    # A dimension is as large before the step as after it.
    obs = before * np.sqrt(SIGNAL**2 + NOISE**2)
    return make_batch(obs, inputs, inputs * SIGNAL + noise * NOISE)


PREDICTED = {
    "mse": [2, 3],  # the largest signals: both distractors
    "mse_normalized": [0, 2],  # the largest shares of signal in what varies
    "vagram": [0, 1],  # the largest signals times slope: both real dimensions
}


@pytest.mark.parametrize("name", PREDICTED)
def test_a_limited_rank_predicts_the_dimensions_that_the_loss_weights_most(name):
    batch, chosen = distracted_batch(), np.isin(range(4), PREDICTED[name])
    start = random_params(4, batch, rank=2)
    value_and_grad = objective(name, batch, lambda s: s @ REAL)
    [(params, _)] = descents(value_and_grad, [start])
    # VaGraM ignores the prediction of dimensions with a slope of zero.
    counted = REAL != 0.0 if name == "vagram" else np.full(4, True)
    actual, expected = predicted(params, batch), batch["action"] * SIGNAL * chosen
    np.testing.assert_allclose(actual[:, counted], expected[:, counted], atol=REACHED)
    # 0.29 for VaGraM, all of it noise; 1.29 for standardized targets; 5.29 for MSE.
    least = np.sum(REAL**2 * (NOISE**2 + SIGNAL**2 * ~chosen))
    value_error = objective("vaml", batch, lambda s: s @ REAL)(params)[0]
    np.testing.assert_allclose(value_error, least, rtol=REACHED)


@pytest.mark.parametrize("name", PREDICTED)
def test_without_a_limit_all_losses_prefer_the_same_model(name):
    batch = distracted_batch()
    # Distractors need some slope, or VaGraM ignores their prediction.
    value_and_grad = objective(name, batch, lambda s: s @ (REAL + 0.01))
    same = unlimited(batch, np.ones_like(batch["next_obs"]))
    np.testing.assert_allclose(
        predicted(same, batch), batch["action"] * SIGNAL, atol=EXACT
    )
    # At full rank a loss is convex in the prediction: a stationary point is a minimum.
    assert_stationary(value_and_grad, same, value_and_grad(same)[0])
