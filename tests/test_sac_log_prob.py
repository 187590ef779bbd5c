"""The log-density of the tanh of a Gaussian, where others lose their digits."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_sac
import scipy.integrate

from vagram_jax import sac


def test_tanh_gaussian_log_prob_keeps_its_digits_at_saturation():
    raw = np.linspace(-20.0, 20.0, 161, dtype=np.float32)[:, None]
    mean, log_std = raw + np.float32(0.3), np.full_like(raw, -0.5)
    actual = jax.jit(sac.tanh_gaussian_log_prob)(raw, mean, log_std)
    expected = [
        oracles_sac.tanh_gaussian_log_prob(*map(np.float64, row))
        for row in zip(raw, mean, log_std, strict=True)
    ]
    # A few roundings of float32, 6e-8, of numbers up to 40.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_tanh_gaussian_log_prob_has_a_finite_gradient_at_saturation():
    raw = jnp.array([[-20.0], [0.0], [20.0]])
    slope = jax.jit(
        jax.grad(lambda u: jnp.sum(sac.tanh_gaussian_log_prob(u, u, 0 * u)))
    )
    # Of minus the correction alone, the Gaussian's part is constant; float32.
    np.testing.assert_allclose(slope(raw), 2 * np.tanh(raw), atol=1e-6)


def test_tanh_gaussian_log_prob_integrates_to_one(x64):
    log_prob = jax.jit(sac.tanh_gaussian_log_prob)

    def density(action):
        raw = jnp.arctanh(jnp.array([action]))
        return float(jnp.exp(log_prob(raw, jnp.array([0.3]), jnp.array([-0.5]))))

    total, _ = scipy.integrate.quad(density, -1.0, 1.0, epsabs=1e-9)
    # What quad was asked for, with a margin for its own estimate.
    np.testing.assert_allclose(total, 1.0, atol=1e-8)
