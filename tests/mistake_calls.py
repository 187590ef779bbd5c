"""Mistakes of a researcher in Python: as in `mistake_cases`, with expressions."""

from mistake_cases import Group

EXAMPLE = """\
import jax
import jax.numpy as jnp
import numpy as np

import vagram_jax as vj
from vagram_jax.analysis import stats
from vagram_jax.analysis.study import Study

obs, action = np.ones((8, 3)), np.ones((8, 2))
batch = {"obs": obs, "action": action, "reward": obs[:, 0], "next_obs": obs}
small = vj.DynamicsConfig(hidden=(), num_members=2, num_elites=1)
params = vj.init_dynamics(jax.random.key(0), obs_dim=3, action_dim=2, config=small)
mine = {"w": jnp.eye(3)}


def predict(params, obs, action):
    return obs @ params["w"], obs[:, 0]


def value_fn(state):
    return -jnp.sum(state**2)
"""

CALLS = (
    Group(
        "Batches",
        (
            "a list of transitions: `vj.vagram_loss(params, [batch, batch], value_fn)`",
            "a tuple of arrays: `vj.vagram_loss(params, (obs, action), value_fn)`",
            'other names: `vj.vagram_loss(params, {"s": obs, "a": action}, value_fn)`',
            "no next observation: "
            '`vj.vagram_loss(params, {"obs": obs, "action": action, "reward": '
            "obs[:, 0]}, value_fn)`",
            "lists instead of arrays: "
            '`vj.vagram_loss(params, {**batch, "obs": obs.tolist()}, value_fn)`',
            "texts instead of numbers: "
            '`vj.vagram_loss(params, {**batch, "reward": obs[:, 0].astype(str)}, '
            "value_fn)`",
            "one-dimensional actions: "
            '`vj.vagram_loss(params, {**batch, "action": action[:, 0]}, value_fn)`',
            "rewards in a column: "
            '`vj.vagram_loss(params, {**batch, "reward": obs[:, :1]}, value_fn)`',
            "one transition: "
            "`vj.vagram_loss(params, jax.tree.map(lambda x: x[0], batch), "
            "value_fn)`",
            "images: "
            '`vj.vagram_loss(params, {**batch, "obs": np.ones((8, 4, 4, 3))}, '
            "value_fn)`",
            "an empty batch: "
            "`vj.vagram_loss(params, jax.tree.map(lambda x: x[:0], batch), "
            "value_fn)`",
            "NaN in the data: "
            '`vj.vagram_loss(params, {**batch, "reward": obs[:, 0] * np.nan}, '
            "value_fn)`",
            "sequences: "
            "`vj.vagram_loss(params, jax.tree.map(lambda x: np.stack([x] * 5), "
            "batch), value_fn)`",
            "no weights for a weighted loss: `vj.sample_weighted_loss(params, batch)`",
            "no values for MuZero's loss: `vj.muzero_loss(params, batch, value_fn)`",
        ),
    ),
    Group(
        "Models",
        (
            "a model without `predict`: `vj.vagram_loss(mine, batch, value_fn)`",
            "observations of another size: "
            '`vj.vagram_loss(params, {**batch, "obs": obs[:, :2], "next_obs": '
            "obs[:, :2]}, value_fn)`",
            "actions of another size: "
            '`vj.vagram_loss(params, {**batch, "action": obs}, value_fn)`',
            "parameters as `predict`: "
            "`vj.vagram_loss(mine, batch, value_fn, predict=mine)`",
            "a model of one sample, which raises: "
            "`vj.vagram_loss(mine, batch, value_fn, predict=lambda p, obs, action: "
            '(p["w"] @ obs, obs[0]))`',
            "a model of one sample, with another shape: "
            "`vj.vagram_loss(mine, batch, value_fn, predict=lambda p, obs, action: "
            "(obs, obs[0]))`",
            "no reward: "
            "`vj.vagram_loss(mine, batch, value_fn, predict=lambda p, obs, action: "
            "obs)`",
            "a reward of None: "
            "`vj.vagram_loss(mine, batch, value_fn, predict=lambda p, obs, action: "
            "(obs, None))`",
            "a dict: "
            "`vj.vagram_loss(mine, batch, value_fn, predict=lambda p, obs, action: "
            '{"next_obs": obs})`',
            "four elements: "
            "`vj.vagram_loss(mine, batch, value_fn, predict=lambda p, obs, action: "
            "(obs, obs[:, 0], None, None))`",
            "no variance for a likelihood: `vj.mle_loss(mine, batch, predict=predict)`",
            "more elites than members: "
            "`vj.init_dynamics(jax.random.key(0), obs_dim=3, action_dim=2, "
            "config=small.replace(num_elites=3))`",
            "a state without dimensions: "
            "`vj.init_dynamics(jax.random.key(0), obs_dim=0, action_dim=2)`",
        ),
    ),
    Group(
        "Value functions",
        (
            "of a batch: `vj.vagram_loss(params, batch, lambda states: states[:, 0])`",
            "that sums over axis 1: "
            "`vj.vagram_loss(params, batch, lambda states: jnp.sum(states**2, "
            "axis=1))`",
            "that returns the state: "
            "`vj.vagram_loss(params, batch, lambda state: state)`",
            "that returns a tuple: "
            "`vj.vagram_loss(params, batch, lambda state: (state[0], state[1]))`",
            "that returns a column: "
            "`vj.vagram_loss(params, batch, lambda state: state[:2, None])`",
            "that returns an index: `vj.vagram_loss(params, batch, jnp.argmax)`",
            "that uses NumPy: "
            "`vj.vagram_loss(params, batch, lambda state: np.linalg.norm(state))`",
            "that takes the number: "
            "`vj.vagram_loss(params, batch, lambda state: jnp.sum(state).item())`",
            "that decides by a number: "
            "`vj.vagram_loss(params, batch, lambda state: state[0] if state[0] > 0 "
            "else 0.0)`",
            "none: `vj.vagram_loss(params, batch, None)`",
            "values instead of a function: `vj.vagram_loss(params, batch, np.ones(8))`",
            "arguments in the wrong order: `vj.value_gradient_weights(obs, value_fn)`",
        ),
    ),
    Group(
        "Options of a loss",
        (
            "weights as an array: "
            "`vj.vagram_loss(params, batch, value_fn, weights=np.ones((8, 3)))`",
            "options as a dict: "
            '`vj.vagram_loss(params, batch, value_fn, gradients={"clip_quantile": '
            "0.9})`",
            "gradients at another state: "
            "`vj.vagram_loss(params, batch, value_fn, "
            'gradients=vj.GradientConfig(at="obs"))`',
            "a quantile in percent: "
            "`vj.value_gradient_weights(value_fn, obs, clip_quantile=95)`",
            "two scales: "
            "`vj.vagram_loss(params, batch, value_fn, "
            "weights=vj.WeightConfig(normalize=True, scale_by_dim=True))`",
            "an option without effect: "
            "`vj.vagram_loss(params, batch, value_fn, "
            "weights=vj.WeightConfig(mse_normalized=True))`",
            "a schedule outside training: "
            "`vj.vagram_loss(params, batch, value_fn, "
            "weights=vj.WeightConfig(mse_coef=vj.Schedule(1, 0, 0, 1000)))`",
            "a mask without terminations: "
            "`vj.vagram_loss(params, batch, value_fn, "
            "gradients=vj.GradientConfig(mask_terminated=True))`",
            "one prepared weight for each row: "
            "`vj.vagram_loss(params, batch, value_fn, prepared=np.ones(8))`",
            "options for prepared weights: "
            "`vj.vagram_loss(params, batch, value_fn, prepared=obs, "
            "weights=vj.WeightConfig(normalize=True))`",
            "a mask in a column: "
            "`vj.value_gradient_weights(value_fn, obs, where=np.ones((8, 1), "
            "bool))`",
            "one sample: "
            "`vj.calibrated_vaml_loss(params, batch, value_fn, num_samples=1)`",
        ),
    ),
    Group(
        "A loss of your own",
        (
            'a name with a space: `vj.register("my loss")`',
            'a reserved name: `vj.register("none")`',
            'a name that is taken: `vj.register("vagram")(vj.mse_loss)`',
            "a decorator without parentheses: `vj.register(predict)`",
            'a function without `predict`: `vj.register("mine")(predict)`',
            'an unknown config: `vj.register("mine", reads_config=("weight",))`',
        ),
    ),
    Group(
        "Configs",
        (
            "a misspelt key: "
            '`vj.from_mapping(vj.MBPOConfig, {"sac": {"discont": 0.9}})`',
            'a key with a dot: `vj.from_mapping(vj.MBPOConfig, {"sac.discount": 0.9})`',
            "a key without its part: "
            '`vj.from_mapping(vj.MBPOConfig, {"discount": 0.9})`',
            "half a schedule: "
            '`vj.from_mapping(vj.MBPOConfig, {"imagine": {"horizon": [1, 5]}})`',
            "a number as text: "
            '`vj.from_mapping(vj.FitConfig, {"learning_rate": "1e-3"})`',
            'a number for true: `vj.from_mapping(vj.FitConfig, {"bootstrap": 1})`',
            "no mapping: `vj.from_mapping(vj.FitConfig, None)`",
        ),
    ),
    Group(
        "Environments",
        (
            'a misspelt task: `vj.make("pendulm")`',
            'a misspelt option: `vj.make("pendulum", distractor=5)`',
            'an unknown observation: `vj.make("pendulum", observation="pixels")`',
            'discrete actions: `vj.make("gymnasium:CartPole-v1")`',
            "no environment: `vj.check_env(object())`",
        ),
    ),
    Group(
        "Results and statistics",
        (
            'a folder without a run: `vj.load("results/hopper/vagram")`',
            'a misspelt folder: `Study.load("resluts")`',
            "a list instead of tasks: `stats.interval([np.ones(4)])`",
            "NaN in the returns: "
            '`stats.interval({"hopper": np.array([1.0, np.nan, 2.0])})`',
            'one seed: `stats.interval({"hopper": np.ones(1)})`',
            "a confidence in percent: "
            '`stats.interval({"hopper": np.ones(4)}, confidence=95)`',
        ),
    ),
)
