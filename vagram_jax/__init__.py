"""Value-gradient weighted model-based reinforcement learning (VaGraM) in JAX.

The method, in the order in which data flows through it; a module imports only modules
above it:

    types, schedules     shared types; numbers that change with the environment steps
    user_code            the line of a user's code that an exception comes from
    config               conversion of mappings to config dataclasses
    envs                 environments, their wrappers and adapters
    replay               ring buffers of transitions
    networks, dynamics   the ensemble of dynamics models
    losses               what a model is trained for: VaGraM and its baselines
    diagnostics          what a loss attends to, errors of several steps
    fit                  training of the ensemble
    arrays               a fit to plain arrays, with one call
    termination          how imagined rollouts end, a learned classifier of it
    imagine              short rollouts in the model
    sac                  the agent and its value function
    mbpo                 the training state, and one epoch as a pure function of it
    evaluate             returns of a policy

What surrounds the method; nothing above imports these packages:

    storage              atomic files, checkpoints, locks, the layout of results
    run                  training from a config to a finished run
    analysis             statistics, tables, plots and the report of finished runs
    render               films of a policy
    cli                  the command `vagram`, and the configs of the tasks

Public names are imported on first use: `import vagram_jax` alone loads neither JAX nor
any other module, and `vagram_jax.storage.results` and `vagram_jax.analysis` never do.
The losses need jax, flax, optax and NumPy only.
"""

from importlib import import_module, util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # editors and type checkers see the names without importing them
    from vagram_jax.arrays import FittedModel as FittedModel, fit_arrays as fit_arrays
    from vagram_jax.config import (
        ConfigError as ConfigError,
        from_mapping as from_mapping,
        to_dict as to_dict,
    )
    from vagram_jax.dynamics import (
        DynamicsConfig as DynamicsConfig,
        init_dynamics as init_dynamics,
        predict as predict,
    )
    from vagram_jax.envs import check_env as check_env, make as make
    from vagram_jax.envs.adapters.to_gymnasium import to_gymnasium as to_gymnasium
    from vagram_jax.fit import FitConfig as FitConfig
    from vagram_jax.imagine import ImagineConfig as ImagineConfig
    from vagram_jax.losses import (
        LOSSES as LOSSES,
        calibrated_vaml_loss as calibrated_vaml_loss,
        constant_weights_loss as constant_weights_loss,
        mle_loss as mle_loss,
        mse_loss as mse_loss,
        mse_normalized_loss as mse_normalized_loss,
        muzero_loss as muzero_loss,
        quadratic_eigen_loss as quadratic_eigen_loss,
        quadratic_loss as quadratic_loss,
        register as register,
        sample_weighted_loss as sample_weighted_loss,
        vagram_loss as vagram_loss,
        vagram_nll_loss as vagram_nll_loss,
        vagram_unbounded_loss as vagram_unbounded_loss,
        value_equivalence_loss as value_equivalence_loss,
        value_l1_loss as value_l1_loss,
        value_weighted_loss as value_weighted_loss,
        vaml_loss as vaml_loss,
    )
    from vagram_jax.losses.value_gradients import (
        GradientConfig as GradientConfig,
        WeightConfig as WeightConfig,
        value_gradient_weights as value_gradient_weights,
    )
    from vagram_jax.mbpo import (
        MBPOConfig as MBPOConfig,
        MBPOState as MBPOState,
        epoch as epoch,
    )
    from vagram_jax.run.trained import (
        Trained as Trained,
        load as load,
        load_transitions as load_transitions,
    )
    from vagram_jax.sac import SACConfig as SACConfig, value_fn as value_fn
    from vagram_jax.schedules import Schedule as Schedule
    from vagram_jax.termination import TerminationConfig as TerminationConfig
    from vagram_jax.types import Prediction as Prediction, Transition as Transition

__version__ = "0.2.0"

# The public names by the module that defines them; a test compares this table with the
# imports above.
_NAMES = {
    "arrays": ("FittedModel", "fit_arrays"),
    "config": ("ConfigError", "from_mapping", "to_dict"),
    "dynamics": ("DynamicsConfig", "init_dynamics", "predict"),
    "envs": ("check_env", "make"),
    "envs.adapters.to_gymnasium": ("to_gymnasium",),
    "fit": ("FitConfig",),
    "imagine": ("ImagineConfig",),
    "losses": (
        "LOSSES",
        "calibrated_vaml_loss",
        "constant_weights_loss",
        "mle_loss",
        "mse_loss",
        "mse_normalized_loss",
        "muzero_loss",
        "quadratic_eigen_loss",
        "quadratic_loss",
        "register",
        "sample_weighted_loss",
        "vagram_loss",
        "vagram_nll_loss",
        "vagram_unbounded_loss",
        "value_equivalence_loss",
        "value_l1_loss",
        "value_weighted_loss",
        "vaml_loss",
    ),
    "losses.value_gradients": (
        "GradientConfig",
        "WeightConfig",
        "value_gradient_weights",
    ),
    "mbpo": ("MBPOConfig", "MBPOState", "epoch"),
    "run.trained": ("Trained", "load", "load_transitions"),
    "sac": ("SACConfig", "value_fn"),
    "schedules": ("Schedule",),
    "termination": ("TerminationConfig",),
    "types": ("Prediction", "Transition"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Imports a public name or a submodule on first use (PEP 562)."""
    if name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and util.find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
