"""Independent versions of the losses' formulas in NumPy float64, with explicit loops.

This module imports nothing from the package, so that a mistake in one of its formulas
is not repeated here. Predictions always have a member axis, `[E, B, ...]`; the batch is
`[B, ...]`, or `[E, B, ...]` with one batch per member. A value function maps one state
`[obs_dim]` to a list or an array of K numbers.
"""

import math
import statistics

import numpy as np
from scipy import stats

# The best step of a central difference is near the cube root of the precision.
STEP = 6e-6
# The best step of second derivatives by differences of fourth order.
SECOND_STEP = 5e-4
# A first derivative of fourth order: offsets in steps, and factors.
STENCIL = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}


def random_batch(seed, leading=(6,), obs_dim=3, action_dim=2):
    """The fields of transitions with any leading axes, as a dict of float64 arrays."""
    rng = np.random.default_rng(seed)
    return {
        "obs": rng.normal(size=(*leading, obs_dim)),
        "action": rng.uniform(-1, 1, size=(*leading, action_dim)),
        "reward": rng.normal(size=leading),
        "next_obs": rng.normal(size=(*leading, obs_dim)),
        "terminated": rng.uniform(size=leading) < 0.3,
        "truncated": rng.uniform(size=leading) < 0.3,
    }


def random_extras(seed, leading=(6,)):
    """The fields of a batch that only some losses read."""
    rng = np.random.default_rng([seed, 2])
    return {
        "weight": rng.uniform(0.5, 2.0, size=leading),
        "next_value": rng.normal(size=leading),
    }


def random_values(seed, num_values=2, obs_dim=3, hidden=5):
    """Parameters of K one-layer value functions: inner, shift and outer weights."""
    rng = np.random.default_rng(seed)
    return {
        "inner": rng.normal(size=(num_values, hidden, obs_dim)),
        "shift": rng.normal(size=(num_values, hidden)),
        "outer": rng.normal(size=(num_values, hidden)),
    }


def values(params, state):
    """The values of one state by the functions of `random_values`, a list of K."""
    results = []
    for inner, shift, outer in zip(
        params["inner"], params["shift"], params["outer"], strict=True
    ):
        total = 0.0
        for row, offset, factor in zip(inner, shift, outer, strict=True):
            total += factor * math.tanh(float(np.dot(row, state)) + offset)
        results.append(total)
    return results


def value_gradients(value_fn, states):
    """Central differences: `[B, obs_dim]` to `[B, K, obs_dim]`."""
    rows = []
    for state in states:
        columns = []
        for dim in range(len(state)):
            above, below = np.array(state), np.array(state)
            above[dim] += STEP
            below[dim] -= STEP
            # The step after rounding, which differs from 2 STEP.
            width = above[dim] - below[dim]
            change = np.asarray(value_fn(above)) - np.asarray(value_fn(below))
            columns.append(change / width)
        rows.append(np.stack(columns, axis=-1))
    return np.stack(rows)


def value_hessians(value_fn, states):
    """Second derivatives by differences of values: `[B, K, obs_dim, obs_dim]`."""
    hessians = []
    for state in states:
        dims = range(len(state))
        rows = [[_second(value_fn, state, i, j) for j in dims] for i in dims]
        hessians.append(np.moveaxis(np.array(rows), -1, 0))
    return np.stack(hessians)


def _second(value_fn, state, first, second):
    """d^2 V_k / ds_first ds_second for each k, the stencil along both."""
    total = 0.0
    for steps, factor in STENCIL.items():
        for other_steps, other_factor in STENCIL.items():
            moved = np.array(state)
            moved[first] += steps * SECOND_STEP
            moved[second] += other_steps * SECOND_STEP
            total = total + factor * other_factor * np.asarray(value_fn(moved))
    return total / SECOND_STEP**2


def value_gradient_weights(value_fn, states):
    """The mean over value functions of the squared gradient, `[B, obs_dim]`."""
    gradients = value_gradients(value_fn, states)
    weights = np.zeros(states.shape)
    for row in range(gradients.shape[0]):
        for dim in range(gradients.shape[2]):
            squares = [gradient[dim] ** 2 for gradient in gradients[row]]
            weights[row, dim] = sum(squares) / len(squares)
    return weights


def vagram(prediction, batch, value_fn):
    """Squared errors weighted by the squared value gradient."""

    def sample_loss(error, row):
        weights = value_gradient_weights(value_fn, row["next_obs"][None])[0]
        return sum(w * e**2 for w, e in zip(weights, error, strict=True))

    return _mean_over_samples(prediction, batch, sample_loss)


def vagram_unbounded(prediction, batch, value_fn):
    """The squared inner product of value gradient and error."""

    def sample_loss(error, row):
        gradients = value_gradients(value_fn, row["next_obs"][None])[0]
        squares = [float(np.dot(gradient, error)) ** 2 for gradient in gradients]
        return sum(squares) / len(squares)

    return _mean_over_samples(prediction, batch, sample_loss)


def vaml(prediction, batch, value_fn):
    """The squared difference of the values at predicted and at real successor."""

    def sample_loss(error, row):
        predicted = value_fn(row["next_obs"] + error)
        real = value_fn(row["next_obs"])
        squares = [(p - r) ** 2 for p, r in zip(predicted, real, strict=True)]
        return sum(squares) / len(squares)

    return _mean_over_samples(prediction, batch, sample_loss)


def value_equivalence(prediction, batch, value_fn):
    """The squared differences of values, summed over the value functions."""
    return _of_value_errors(
        prediction, batch, value_fn, lambda errors: sum(e**2 for e in errors)
    )


def value_l1(prediction, batch, value_fn):
    """The absolute difference of values, its mean over the value functions."""
    return _of_value_errors(
        prediction, batch, value_fn, lambda errors: sum(map(abs, errors)) / len(errors)
    )


def muzero(prediction, batch, value_fn):
    """The squared difference of predicted values and the batch's bootstrapped one."""

    def sample_loss(error, row):
        predicted = value_fn(row["next_obs"] + error)
        squares = [(p - row["next_value"]) ** 2 for p in predicted]
        return sum(squares) / len(squares)

    return _mean_over_samples(prediction, batch, sample_loss)


def calibrated_vaml(prediction, batch, value_fn, noise):
    """VAML of sample means less their variance, with noise `[M, E, B, obs_dim]`."""
    losses, noise = [], noise.reshape(len(noise), -1, _obs_dim(batch))
    for place, (predicted, row) in enumerate(_samples(prediction, batch)):
        std = np.exp(0.5 * predicted["log_var"][:-1])
        states = [predicted["next_obs"] + std * eps for eps in noise[:, place]]
        values = np.array([value_fn(state) for state in states])  # [M, K]
        parts = []
        for column, real in zip(values.T, value_fn(row["next_obs"]), strict=True):
            square = (statistics.fmean(column) - real) ** 2
            parts.append(square - statistics.variance(column) / len(column))
        scale = math.exp(0.5 * predicted["log_var"][-1])
        nll = -stats.norm.logpdf(row["reward"], predicted["reward"], scale)
        losses.append(sum(parts) / len(parts) + nll)
    return math.fsum(losses) / len(losses)


def quadratic(prediction, batch, value_fn):
    """Second-order Taylor terms, squared dimension by dimension."""
    return _of_taylor_terms(prediction, batch, value_fn, lambda hessian: None)


def quadratic_eigen(prediction, batch, value_fn):
    """Second-order Taylor terms, squared along each eigenvector of the Hessian."""
    return _of_taylor_terms(
        prediction, batch, value_fn, lambda hessian: np.linalg.eigh(hessian)[1]
    )


def constant_weights(prediction, batch, value_fn):
    """Squared errors weighted by the mean over the batch of VaGraM's weights."""
    states = batch["next_obs"].reshape(-1, _obs_dim(batch))
    rows = value_gradient_weights(value_fn, states)
    weights = [math.fsum(column) / len(column) for column in rows.T]
    return _mean_over_samples(
        prediction,
        batch,
        lambda error, row: sum(w * e**2 for w, e in zip(weights, error, strict=True)),
    )


def sample_weighted(prediction, batch, value_fn=None):
    """Squared errors of state and reward, times the weight of each row."""
    del value_fn
    losses = []
    for predicted, row in _samples(prediction, batch):
        square = (predicted["reward"] - row["reward"]) ** 2
        for guess, real in zip(predicted["next_obs"], row["next_obs"], strict=True):
            square += (guess - real) ** 2
        losses.append(row["weight"] * square)
    return math.fsum(losses) / len(losses)


def mse(prediction, batch, value_fn=None):
    """The plain squared error, summed over dimensions."""
    del value_fn
    return _mean_over_samples(
        prediction, batch, lambda error, row: sum(e**2 for e in error)
    )


def mse_normalized(prediction, batch, value_fn=None):
    """Squared errors of targets that are scaled to unit variance in this batch."""
    del value_fn
    differences = (batch["next_obs"] - batch["obs"]).reshape(-1, _obs_dim(batch))
    scales = [float(np.std(column)) for column in differences.T]
    reward_scale = float(np.std(batch["reward"]))
    return _mean_over_samples(
        prediction,
        batch,
        lambda error, row: sum(
            (e / scale) ** 2 for e, scale in zip(error, scales, strict=True)
        ),
        reward_weight=1.0 / reward_scale**2,
    )


def value_weighted(prediction, batch, value_fn):
    """Squared errors weighted by the magnitude of the value over its mean."""

    def magnitude(state):
        return float(np.mean([abs(value) for value in value_fn(state)]))

    states = batch["next_obs"].reshape(-1, _obs_dim(batch))
    mean = sum(magnitude(state) for state in states) / len(states)
    return _mean_over_samples(
        prediction,
        batch,
        lambda error, row: magnitude(row["next_obs"]) / mean * sum(e**2 for e in error),
    )


def gaussian_nll(prediction, batch, value_fn=None):
    """The negative log-likelihood of state and reward, in nats, by SciPy."""
    return _weighted_nll(prediction, batch, lambda state: np.ones(len(state)))


def vagram_nll(prediction, batch, value_fn):
    """The same, with the state's terms weighted by the weights of VaGraM."""
    return _weighted_nll(
        prediction,
        batch,
        lambda state: value_gradient_weights(value_fn, state[None])[0],
    )


def moments(values, where):
    """Mean and standard deviation of the rows that count, one column at a time."""
    rows = [row for row, counts in zip(values, where, strict=True) if counts]
    columns = np.asarray(rows, np.float64).T
    means = [math.fsum(column) / len(column) for column in columns]
    variances = [
        math.fsum((x - mean) ** 2 for x in column) / len(column)
        for column, mean in zip(columns, means, strict=True)
    ]
    return np.array(means), np.sqrt(variances)


def mlp(layers, inputs, activation):
    """Dense layers `[(kernel, bias), ...]` on one input vector, neuron by neuron."""
    functions = {
        "elu": lambda x: x if x > 0 else math.expm1(x),
        "relu": lambda x: max(x, 0.0),
        "silu": lambda x: x / (1.0 + math.exp(-x)),
        "tanh": math.tanh,
    }
    features = [float(x) for x in inputs]
    for depth, (kernel, bias) in enumerate(layers):
        sums = [
            sum(x * float(kernel[i, j]) for i, x in enumerate(features)) + float(b)
            for j, b in enumerate(bias)
        ]
        last = depth == len(layers) - 1
        features = sums if last else [functions[activation](x) for x in sums]
    return np.array(features)


def _obs_dim(batch):
    return batch["obs"].shape[-1]


def _samples(prediction, batch):
    """Yields each member's prediction of each row, and that row of its batch."""
    shared = batch["obs"].ndim == 2
    for member in range(prediction["next_obs"].shape[0]):
        for index in range(prediction["next_obs"].shape[1]):
            at = index if shared else (member, index)
            row = {name: field[at] for name, field in batch.items()}
            predicted = {name: x[member, index] for name, x in prediction.items()}
            yield predicted, row


def _mean_over_samples(prediction, batch, sample_loss, reward_weight=1.0):
    losses = []
    for predicted, row in _samples(prediction, batch):
        error = predicted["next_obs"] - row["next_obs"]
        reward_error = predicted["reward"] - row["reward"]
        losses.append(sample_loss(error, row) + reward_weight * reward_error**2)
    return math.fsum(losses) / len(losses)


def _of_value_errors(prediction, batch, value_fn, of_errors):
    def sample_loss(error, row):
        predicted = value_fn(row["next_obs"] + error)
        real = value_fn(row["next_obs"])
        return of_errors([p - r for p, r in zip(predicted, real, strict=True)])

    return _mean_over_samples(prediction, batch, sample_loss)


def _of_taylor_terms(prediction, batch, value_fn, basis_of):
    """`basis_of(hessian)` has directions in its columns; None means the axes."""

    def sample_loss(error, row):
        state = row["next_obs"][None]
        gradients = value_gradients(value_fn, state)[0]
        losses = []
        for gradient, hessian in zip(
            gradients, value_hessians(value_fn, state)[0], strict=True
        ):
            basis = basis_of(hessian)
            basis = np.eye(len(error)) if basis is None else basis
            loss = 0.0
            for direction in basis.T:
                step = float(direction @ error)
                curvature = float(direction @ hessian @ direction)
                loss += (
                    float(direction @ gradient) * step + curvature / 2 * step**2
                ) ** 2
            losses.append(loss)
        return sum(losses) / len(losses)

    return _mean_over_samples(prediction, batch, sample_loss)


def _weighted_nll(prediction, batch, weights_of):
    losses = []
    for predicted, row in _samples(prediction, batch):
        mean = [*predicted["next_obs"], predicted["reward"]]
        target = [*row["next_obs"], row["reward"]]
        weights = [*weights_of(row["next_obs"]), 1.0]
        loss = 0.0
        for weight, m, t, v in zip(
            weights, mean, target, predicted["log_var"], strict=True
        ):
            loss -= weight * stats.norm.logpdf(t, loc=m, scale=math.exp(0.5 * v))
        losses.append(loss)
    return math.fsum(losses) / len(losses)
