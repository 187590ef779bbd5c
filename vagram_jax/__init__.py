"""Value-gradient weighted model-based reinforcement learning (VaGraM) in JAX.

The flow of data, one file a stop, each importing only what stands above it:

    types, config           the words that all share; mappings to configs
    envs                    environments, distractors, episodes        env.step
    replay                  the buffers                                 -> buffer
    networks, dynamics      the ensemble
    weights, losses         what a model is trained for
    fit                     training the ensemble                       -> fit
    termination             which steps end, where that is learned
    imagine                 short rollouts in the model                 -> imagine
    sac                     the agent, and the value function           -> update
    training, mbpo          one state with all of it; one epoch, a pure function
    evaluate                returns of a policy
    devices, programs       lanes, each a seed of a config, in one program
    files, checkpoint, lock what is written whole, saved and owned
    progress, runner        what is told after each epoch; the host's loop
    session, results        runs on disk while they train, and afterwards
    policies                the policy of a run, to act with
    offscreen, render       what it looks like
    stats, summary          statistics with intervals; what runs reached
    drawing, plots, maps    pictures
    report                  a page with all of it

Importing this package needs jax, flax, optax and NumPy alone.
"""

from vagram_jax.config import ConfigError, from_mapping, to_dict
from vagram_jax.dynamics import DynamicsConfig, init_dynamics, predict
from vagram_jax.envs import check_env, make
from vagram_jax.fit import FitConfig
from vagram_jax.imagine import ImagineConfig
from vagram_jax.losses import (
    LOSSES,
    calibrated_vaml_loss,
    constant_weights_loss,
    mle_loss,
    mse_loss,
    mse_normalized_loss,
    muzero_loss,
    quadratic_eigen_loss,
    quadratic_loss,
    register,
    sample_weighted_loss,
    vagram_loss,
    vagram_nll_loss,
    vagram_unbounded_loss,
    value_equivalence_loss,
    value_l1_loss,
    value_weighted_loss,
    vaml_loss,
)
from vagram_jax.losses.value_gradients import (
    GradientConfig,
    WeightConfig,
    value_gradient_weights,
)
from vagram_jax.mbpo import epoch
from vagram_jax.run.policies import load_policy
from vagram_jax.sac import SACConfig, value_fn
from vagram_jax.termination import TerminationConfig
from vagram_jax.training import MBPOConfig, MBPOState
from vagram_jax.types import Prediction, Transition

__all__ = [
    "LOSSES",
    "ConfigError",
    "DynamicsConfig",
    "FitConfig",
    "GradientConfig",
    "ImagineConfig",
    "MBPOConfig",
    "MBPOState",
    "Prediction",
    "SACConfig",
    "TerminationConfig",
    "Transition",
    "WeightConfig",
    "calibrated_vaml_loss",
    "check_env",
    "constant_weights_loss",
    "epoch",
    "from_mapping",
    "init_dynamics",
    "load_policy",
    "make",
    "mle_loss",
    "mse_loss",
    "mse_normalized_loss",
    "muzero_loss",
    "predict",
    "quadratic_eigen_loss",
    "quadratic_loss",
    "register",
    "sample_weighted_loss",
    "to_dict",
    "vagram_loss",
    "vagram_nll_loss",
    "vagram_unbounded_loss",
    "value_equivalence_loss",
    "value_fn",
    "value_gradient_weights",
    "value_l1_loss",
    "value_weighted_loss",
    "vaml_loss",
]
