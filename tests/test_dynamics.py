"""The ensemble: predictions, samples, bounds, elites and the check of its config."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

from vagram_jax import config, dynamics

# float64 arithmetic in another order.
EXACT = 1e-12
MEMBERS, ROWS, OBS, ACTION = 3, 5, 3, 2

heads = pytest.mark.parametrize("head", ["deterministic", "gaussian"])


def make_config(**options):
    options = {"hidden": (4,), "num_members": MEMBERS, "num_elites": 2} | options
    return dynamics.DynamicsConfig(**options)


@functools.cache
def make_params(**options):
    """An ensemble in float64, no parameter zero, with a normaliser that does much."""
    drawn = dynamics.init_dynamics(
        jax.random.key(0), obs_dim=OBS, action_dim=ACTION, config=make_config(**options)
    )
    rng = np.random.default_rng(0)
    network = jax.tree.map(lambda x: rng.normal(size=x.shape), drawn.network)
    inner = network["params"]
    if "min_log_var" in inner:  # as they start: crossed bounds would mean nothing
        inner["min_log_var"] = np.full((MEMBERS, OBS + 1), -10.0)
        inner["max_log_var"] = np.full((MEMBERS, OBS + 1), 0.5)
    normalizer = dynamics.Normalizer(
        input_mean=rng.normal(size=OBS + ACTION),
        input_std=rng.uniform(0.5, 2.0, size=OBS + ACTION),
        target_mean=rng.normal(size=OBS + 1),
        target_std=rng.uniform(0.5, 2.0, size=OBS + 1),
        obs_low=np.full(OBS, -np.inf),
        obs_high=np.full(OBS, np.inf),
    )
    return drawn.replace(network=network, normalizer=normalizer)


def member(params, index):
    return params.replace(network=jax.tree.map(lambda x: x[index], params.network))


def inputs_of(seed, leading=(ROWS,)):
    batch = oracles.random_batch(seed, leading, obs_dim=OBS, action_dim=ACTION)
    return batch["obs"], batch["action"]


def predict(params, obs, action):
    return jax.jit(dynamics.predict)(params, obs, action)


def assert_close(actual, expected):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=EXACT, atol=EXACT)


def oracle_prediction(params, obs, action):
    """One member's prediction of one row, by the definitions."""
    layers = [
        (layer["kernel"], layer["bias"])
        for _, layer in sorted(params.network["params"]["mlp"].items())
    ]
    scale = params.normalizer
    inputs = (np.append(obs, action) - scale.input_mean) / scale.input_std
    output = oracles.mlp(layers, inputs, params.config.activation)
    step = output[: OBS + 1] * scale.target_std + scale.target_mean
    log_var = None
    if params.config.head == "gaussian":
        low, high = -10.0, 0.5
        inner = high - np.logaddexp(0.0, high - output[OBS + 1 :])
        log_var = low + np.logaddexp(0.0, inner - low)
        # The variance of a scaled variable has the scale squared.
        log_var = np.log(np.exp(log_var) * scale.target_std**2)
    return obs + step[:OBS], step[OBS], log_var


@pytest.mark.usefixtures("x64")
@heads
def test_predict_equals_the_oracle(head):
    params, (obs, action) = make_params(head=head), inputs_of(1)
    actual = predict(params, obs, action)
    for i in range(MEMBERS):
        for j in range(ROWS):
            expected = oracle_prediction(member(params, i), obs[j], action[j])
            assert_close(jax.tree.map(lambda x, at=(i, j): x[at], actual), expected)


@pytest.mark.usefixtures("x64")
@heads
def test_predict_of_an_ensemble_equals_a_loop_over_members(head):
    params, inputs = make_params(head=head), inputs_of(2)
    actual = predict(params, *inputs)
    for i in range(MEMBERS):
        expected = predict(member(params, i), *inputs)
        assert_close(jax.tree.map(lambda x, i=i: x[i], actual), expected)


@pytest.mark.usefixtures("x64")
@heads
def test_predict_gives_each_member_its_own_rows(head):
    params, (obs, action) = make_params(head=head), inputs_of(3, (MEMBERS, ROWS))
    actual = predict(params, obs, action)
    for i in range(MEMBERS):
        expected = predict(member(params, i), obs[i], action[i])
        assert_close(jax.tree.map(lambda x, i=i: x[i], actual), expected)


@pytest.mark.usefixtures("x64")
@heads
def test_predict_of_a_single_model_equals_a_member_under_vmap(head):
    params, inputs = make_params(head=head), inputs_of(4)
    axes = params.replace(network=0, normalizer=None)
    actual = jax.jit(jax.vmap(dynamics.predict, in_axes=(axes, None, None)))
    assert_close(actual(params, *inputs), predict(params, *inputs))


@pytest.mark.usefixtures("x64")
def test_predict_of_a_single_model_takes_one_row():
    params, (obs, action) = member(make_params(head="gaussian"), 0), inputs_of(5)
    actual = predict(params, obs[1], action[1])
    assert_close(actual, jax.tree.map(lambda x: x[1], predict(params, obs, action)))


@pytest.mark.usefixtures("x64")
def test_predict_of_a_new_model_is_in_the_units_of_the_data():
    # A network that gives zero predicts the mean difference and the mean reward.
    params = make_params(head="deterministic")
    still = params.replace(network=jax.tree.map(np.zeros_like, params.network))
    obs, action = inputs_of(6)
    actual, mean = predict(still, obs, action), params.normalizer.target_mean
    np.testing.assert_allclose(actual.next_obs[0], obs + mean[:OBS], rtol=EXACT)
    np.testing.assert_allclose(actual.reward, np.full((MEMBERS, ROWS), mean[OBS]))


@pytest.mark.usefixtures("x64")
@heads
def test_predict_passes_no_gradient_to_the_normalizer(head):
    params, inputs = make_params(head=head), inputs_of(7)

    @jax.jit
    @jax.grad
    def gradient(params):
        return sum(map(jnp.sum, jax.tree.leaves(dynamics.predict(params, *inputs))))

    for actual in jax.tree.leaves(gradient(params).normalizer):
        np.testing.assert_array_equal(actual, 0.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("bounds", "moves"), [("fixed", False), ("learned", True)])
def test_log_var_bounds_have_a_gradient_only_if_learned(bounds, moves):
    params, inputs = make_params(head="gaussian", log_var_bounds=bounds), inputs_of(8)

    @jax.jit
    @jax.grad
    def gradient(params):
        return jnp.sum(dynamics.predict(params, *inputs).log_var)

    actual = gradient(params).network["params"]
    for name in ("min_log_var", "max_log_var"):
        assert np.all((actual[name] != 0.0) == moves)
    assert np.all(actual["mlp"]["Dense_1"]["kernel"][..., OBS + 1 :] != 0.0)


@pytest.mark.usefixtures("x64")
def test_predict_keeps_log_var_below_its_true_upper_bound():
    params = make_params(head="gaussian")
    unit = params.normalizer.replace(target_std=np.ones(OBS + 1))
    params = params.replace(normalizer=unit)
    obs, action = inputs_of(9)
    actual = predict(params, 1e6 * obs, action).log_var
    bound = -10.0 + np.log1p(np.exp(10.5))  # 0.50003, not 0.5
    assert actual.min() >= -10.0
    np.testing.assert_allclose(actual.max(), bound, rtol=EXACT)


def test_init_dynamics_gives_each_member_different_parameters():
    params = dynamics.init_dynamics(
        jax.random.key(0), obs_dim=OBS, action_dim=ACTION, config=make_config()
    )
    for layer in params.network["params"]["mlp"].values():
        flat = np.asarray(layer["kernel"]).reshape(MEMBERS, -1)
        assert len(np.unique(flat[:, 0])) == MEMBERS


def test_init_dynamics_depends_on_the_key():
    def kernel(seed):
        params = dynamics.init_dynamics(
            jax.random.key(seed), obs_dim=OBS, action_dim=ACTION, config=make_config()
        )
        return np.asarray(params.network["params"]["mlp"]["Dense_0"]["kernel"])

    assert np.all(kernel(0) != kernel(1))
    np.testing.assert_array_equal(kernel(0), kernel(0))


def test_init_dynamics_starts_with_the_identity_normalizer():
    params = dynamics.init_dynamics(
        jax.random.key(0), obs_dim=OBS, action_dim=ACTION, config=make_config()
    )
    scale = params.normalizer
    np.testing.assert_array_equal(scale.input_mean, np.zeros(OBS + ACTION))
    np.testing.assert_array_equal(scale.input_std, np.ones(OBS + ACTION))
    np.testing.assert_array_equal(scale.target_mean, np.zeros(OBS + 1))
    np.testing.assert_array_equal(scale.target_std, np.ones(OBS + 1))


def test_init_dynamics_refuses_more_elites_than_members():
    with pytest.raises(config.ConfigError, match=r"num_elites=4; at most .*members=3"):
        dynamics.init_dynamics(
            jax.random.key(0),
            obs_dim=OBS,
            action_dim=ACTION,
            config=make_config(num_elites=4),
        )


def constant_model(head="deterministic"):
    """Members that predict their own number as reward, and as each state change."""
    params = make_params(head=head)
    network = jax.tree.map(np.zeros_like, params.network)
    last, number = network["params"]["mlp"]["Dense_1"], np.arange(MEMBERS)[:, None]
    last["bias"][:, : OBS + 1] = 10.0 * number
    if head == "gaussian":
        network["params"]["min_log_var"] -= 10.0
        network["params"]["max_log_var"] += 0.5
    scale = jax.tree.map(np.zeros_like, params.normalizer)
    scale = scale.replace(
        input_std=np.ones(OBS + ACTION), target_std=np.array([1.0, 2.0, 0.5, 3.0])
    )
    return params.replace(network=network, normalizer=scale)


def draw(key, params, elites, rows):
    zeros = np.zeros((rows, OBS)), np.zeros((rows, ACTION))
    return jax.jit(dynamics.sample)(key, params, np.asarray(elites), *zeros)


@pytest.mark.usefixtures("key_reuse")
def test_sample_draws_from_the_elites_uniformly():
    _, reward, _ = draw(jax.random.key(1), constant_model(), [2, 0], rows=20_000)
    members, counts = np.unique(np.asarray(reward) / 30.0, return_counts=True)
    np.testing.assert_array_equal(members, [0, 2])
    # The key is fixed: this can't fail now and then, only for a biased choice.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_sample_takes_state_and_reward_from_the_same_member():
    next_obs, reward, _ = draw(jax.random.key(2), constant_model(), [0, 1, 2], rows=100)
    step = np.outer(np.asarray(reward) / 3.0, [1.0, 2.0, 0.5])
    np.testing.assert_array_equal(next_obs, step)


@pytest.mark.parametrize("rows", [1, 2048, 5000])
def test_sample_returns_the_step_of_its_row_for_any_number_of_rows(rows):
    params, rng = make_params(), np.random.default_rng(7)
    obs, action = rng.normal(size=(rows, OBS)), rng.normal(size=(rows, ACTION))
    next_obs, reward, _ = jax.jit(dynamics.sample)(
        jax.random.key(6), params, np.array([1]), obs, action
    )
    expected = predict(member(params, 1), obs, action)
    np.testing.assert_allclose(next_obs, expected.next_obs, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(reward, expected.reward, rtol=1e-6, atol=1e-6)


def test_sample_returns_the_disagreement_of_the_elites():
    model = constant_model()
    std = np.array([1.0, 2.0, 4.0, 1.0])[:OBS]
    normalizer = model.normalizer.replace(
        input_std=np.concatenate([std, np.ones(ACTION)])
    )
    model = model.replace(normalizer=normalizer)
    _, _, actual = draw(jax.random.key(3), model, [0, 2], rows=4)
    # Members predict 10 times their number, in deviations of the targets.
    steps = np.array([0.0, 20.0])[:, None] * np.array([1.0, 2.0, 0.5])
    expected = np.sqrt(np.mean((steps.std(axis=0) / std) ** 2))
    np.testing.assert_allclose(actual, np.full(4, expected), rtol=1e-6)


def test_sample_depends_on_the_key():
    first, second = (
        draw(jax.random.key(seed), constant_model(), [0, 1, 2], rows=100)[1]
        for seed in (3, 4)
    )
    assert np.mean(np.asarray(first) != np.asarray(second)) > 0.5  # 2/3 are expected


@pytest.mark.usefixtures("key_reuse")
def test_sample_of_a_gaussian_has_its_mean_and_standard_deviation():
    model, rows = constant_model("gaussian"), 40_000
    next_obs, reward, _ = draw(jax.random.key(5), model, [1], rows=rows)
    actual = np.column_stack([next_obs, reward])
    expected = predict(member(model, 1), np.zeros(OBS), np.zeros(ACTION))
    mean, std = (
        np.append(expected.next_obs, expected.reward),
        np.exp(expected.log_var / 2),
    )
    # Five standard errors, of a mean and of a standard deviation.
    np.testing.assert_array_less(abs(actual.mean(0) - mean), 5 * std / rows**0.5)
    np.testing.assert_allclose(actual.std(0), std, rtol=5 / (2 * rows) ** 0.5)


@pytest.mark.usefixtures("key_reuse")
def test_sample_of_a_gaussian_draws_its_noise_independently():
    actual = draw(jax.random.key(6), constant_model("gaussian"), [1], rows=40_000)
    noise = np.column_stack(actual[:2])
    # Five standard errors of a correlation; across dimensions and from row to row.
    across = np.corrcoef(noise.T) - np.eye(OBS + 1)
    along = np.corrcoef(noise[1:].T, noise[:-1].T)[: OBS + 1, OBS + 1 :]
    assert max(np.abs(across).max(), np.abs(along).max()) < 5 / 200


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0, 1.0, 2.0], [1, 2]),
        ([np.nan, 1.0, 2.0], [1, 2]),
        ([-np.inf, 5.0, 4.0], [2, 1]),
        ([np.inf, np.nan, 7.0], [2, 0]),
        ([-3.0, -1.0, -2.0], [0, 2]),
    ],
)
def test_elites_of_are_the_lowest_finite_scores_first(scores, expected):
    actual = dynamics.elites_of(jnp.array(scores), 2)
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype == jnp.int32
