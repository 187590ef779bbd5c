"""Flax modules: a multi-layer perceptron, and with it policy, critic and dynamics.

Each module is one network with any leading axes; `vmap` makes ensembles, twin critics
and seeds of it. `dynamics` and `sac` interpret the outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn


@jax.custom_jvp
def silu(x: jax.Array) -> jax.Array:
    """Returns `x sigmoid(x)`, the activation of MBPO's models, also called swish.

    The derivative reuses the sigmoid, which saves 3% of a fit step on a CPU.
    """
    return x * nn.sigmoid(x)


@silu.defjvp
def _silu_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    sigmoid = nn.sigmoid(x)
    value = x * sigmoid
    return value, (sigmoid + value * (1.0 - sigmoid)) * tangent


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "elu": nn.elu,
    "relu": nn.relu,
    "silu": silu,
    "tanh": nn.tanh,
}


class Dense(nn.Module):
    """A dense layer, with the features on the first or the last axis.

    Attributes:
      width: number of outputs.
      axis: axis of the features, 0 or -1.
    """

    width: int
    axis: int = -1

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[in_dim, ...]` to `[width, ...]`, or `[..., in_dim]` to `[..., width]`."""
        shape = (inputs.shape[self.axis], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        if self.axis == -1:
            return inputs @ kernel + bias
        outputs = jnp.tensordot(kernel, inputs, ((0,), (0,)))
        return outputs + jnp.expand_dims(bias, tuple(range(1, inputs.ndim)))


class MLP(nn.Module):
    """Dense layers with an activation between them.

    Attributes:
      hidden: widths of the hidden layers.
      out_dim: width of the output.
      activation: a name in `ACTIVATIONS`.
      layer_norm: normalize the features of each sample before each activation (Ba et
        al. 2016, arXiv 1607.06450), with a learned scale and offset.
      unit_features: scale the features before the last layer to norm one, as the
        paper's code does in actor and critic (Bjorck et al. 2021, arXiv 2112.04966).
      features_first: compute with the features on the first axis and the samples behind
        it. A CPU's products then have the batch, a multiple of a vector register, as
        their inner loop, and not the width. A fit step of layers of 200 takes 5% less
        time, of layers of 16 20% less; an update of layers of 256 takes 4% more.
    """

    hidden: tuple[int, ...]
    out_dim: int
    activation: str = "relu"
    layer_norm: bool = False
    unit_features: bool = False
    features_first: bool = False

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """`[..., in_dim]` to `[..., out_dim]`."""
        axis = 0 if self.features_first else -1
        features = jnp.moveaxis(inputs, -1, axis)
        for i, width in enumerate(self.hidden):
            features = Dense(width, axis, name=f"Dense_{i}")(features)
            if self.layer_norm:
                norm = nn.LayerNorm(
                    reduction_axes=axis, feature_axes=axis, name=f"LayerNorm_{i}"
                )
                features = norm(features)
            features = ACTIVATIONS[self.activation](features)
        if self.unit_features:
            # The epsilon is inside the root, so that a zero vector has a gradient.
            square = jnp.sum(jnp.square(features), axis=axis, keepdims=True)
            features = features * jax.lax.rsqrt(square + 1e-8)
        outputs = Dense(self.out_dim, axis, name=f"Dense_{len(self.hidden)}")(features)
        return jnp.moveaxis(outputs, axis, -1)


class Policy(nn.Module):
    """Mean and log-standard-deviation of a Gaussian before the tanh.

    Attributes:
      mlp: the network, with `out_dim` twice the size of an action.
      log_std_range: lowest and highest log-standard-deviation.
    """

    mlp: MLP
    log_std_range: tuple[float, float] = (-5.0, 2.0)

    def __call__(self, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[..., obs_dim]` to mean and log-std, `[..., action_dim]` each."""
        mean, raw = jnp.split(self.mlp(obs), 2, axis=-1)
        low, high = self.log_std_range
        # Unlike a clip, the tanh has a gradient everywhere.
        return mean, low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)


class Critic(nn.Module):
    """One Q function.

    Attributes:
      mlp: the network, with `out_dim` one.
    """

    mlp: MLP

    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        """`[..., obs_dim], [..., action_dim]` to `[...]`, in units of return."""
        return jnp.squeeze(self.mlp(jnp.concatenate([obs, action], axis=-1)), axis=-1)


class Dynamics(nn.Module):
    """One member of a dynamics ensemble, with normalized inputs and outputs.

    Attributes:
      mlp: the network, with `out_dim` the number of targets, or twice that with
        `gaussian`.
      gaussian: also return the log-variance of each target.
      log_var_range: initial bounds of the log-variance.
    """

    mlp: MLP
    gaussian: bool = False
    log_var_range: tuple[float, float] = (-10.0, 0.5)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """`[..., in_dim]` to mean and log-variance, `[..., targets]` each or None."""
        if not self.gaussian:
            return self.mlp(inputs), None
        mean, raw = jnp.split(self.mlp(inputs), 2, axis=-1)
        bounds = [
            self.param(name, nn.initializers.constant(start), mean.shape[-1:])
            for name, start in zip(
                ("min_log_var", "max_log_var"), self.log_var_range, strict=True
            )
        ]
        return mean, soft_clamp(raw, *bounds)


def soft_clamp(value: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Returns a value within bounds, with a gradient everywhere (Chua et al. 2018).

    The upper limit is `low + softplus(high - low)`, slightly above `high`.

    Args:
      value: `[...]`.
      low: broadcasts to `value`.
      high: broadcasts to `value`, above `low`.

    Returns:
      `[...]`.
    """
    value = high - nn.softplus(high - value)
    return low + nn.softplus(value - low)
