"""The time of a SAC update and of a fit step, and that of other libraries.

The peers are the SAC of SBX (JAX), the SAC of Stable-Baselines3 (PyTorch) and an
ensemble in PyTorch whose layers are batched products, as in mbrl-lib. mbrl-lib itself
can't be installed beside them: it requires Gymnasium 0.26.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import measure, updates

OURS = "vagram_jax"
"""The name of this package in the figures."""

_Calls = dict[str, Callable[[], Any]]


def figures(rounds: int = 15) -> dict[str, float]:
    """Returns times in ms, ratios to this package's, and rates.

    Rates are relative to that of a large float32 matrix product on the same cores. All
    programs run in turn in one process.

    Args:
      rounds: number of rounds; each times every program.
    """
    import sbx
    import stable_baselines3

    product, product_flops = measure.matmul()
    agent = updates.sac_steps(sizes=updates.HOPPER)
    ensemble = updates.fit_steps("mse", sizes=updates.HOPPER)
    kinds: dict[str, tuple[float, _Calls]] = {
        "SAC update": (
            agent.flops,
            {
                OURS: agent.call,
                "SBX": stable_baselines(sbx),
                "Stable-Baselines3": stable_baselines(stable_baselines3),
            },
        ),
        "fit step": (
            ensemble.flops,
            {OURS: ensemble.call, "PyTorch": torch_ensemble()},
        ),
    }
    calls: dict[Any, Callable[[], Any]] = {"product": product}
    for what, (_, sides) in kinds.items():
        calls |= {(what, side): call for side, call in sides.items()}
    seconds = measure.seconds(calls, rounds=rounds)
    rate = product_flops / seconds["product"]
    measured = {"matrix product, Gflop/s": rate / 1e9}
    for what, (flops, sides) in kinds.items():
        ours = seconds[what, OURS]
        measured[f"{what}, {OURS}, rate to product's"] = flops / ours / rate
        for side in sides:
            measured[f"{what}, {side}, ms"] = 1e3 * seconds[what, side] / updates.STEPS
        for side in sides.keys() - {OURS}:
            measured[f"{what}, {side} to {OURS}, time"] = seconds[what, side] / ours
    return measured


def stable_baselines(library: Any) -> Callable[[], Any]:
    """Returns `updates.STEPS` updates of SAC, in one call of a library's `train`.

    The rows are drawn beforehand, so that no side's time contains the drawing.

    Args:
      library: the module `sbx` or `stable_baselines3`.
    """
    import torch
    from stable_baselines3.common import logger
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    model = library.SAC("MlpPolicy", "Hopper-v5", device="cpu", seed=0)
    model.set_logger(logger.Logger(folder=None, output_formats=[]))
    rows = updates.transitions((updates.STEPS * updates.BATCH,), updates.HOPPER)
    obs, action, reward, next_obs = (
        torch.from_numpy(np.array(x).reshape(len(x), -1))
        for x in (rows.obs, rows.action, rows.reward, rows.next_obs)
    )
    ends = torch.zeros_like(reward)

    def sample(count, env=None):
        return ReplayBufferSamples(
            *(x[:count] for x in (obs, action, next_obs, ends, reward))
        )

    model.replay_buffer.sample = sample
    return lambda: model.train(updates.STEPS, updates.BATCH)


def torch_ensemble() -> Callable[[], Any]:
    """Returns `updates.STEPS` fit steps of an ensemble in PyTorch.

    Its layers are batched products, as in mbrl-lib, and its optimizer is one kernel,
    which mbrl-lib's is not.
    """
    import torch

    members = updates.DYNAMICS.num_members
    data = updates.transitions((4096,), updates.HOPPER)
    inputs = torch.from_numpy(np.concatenate([data.obs, data.action], axis=-1))
    targets = torch.from_numpy(np.c_[data.next_obs - data.obs, data.reward])
    shape = (updates.STEPS, members, updates.BATCH)
    rows = torch.from_numpy(np.random.default_rng(2).integers(0, len(inputs), shape))
    layers = []
    widths = [inputs.shape[-1], *updates.DYNAMICS.hidden, targets.shape[-1]]
    for inside, outside in itertools.pairwise(widths):
        weight = torch.randn(members, inside, outside) / inside**0.5
        layers.append((weight.requires_grad_(), torch.zeros(members, 1, outside)))
    params = [param.requires_grad_() for layer in layers for param in layer]
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)

    def steps():
        for batch in rows:
            hidden = inputs[batch]
            for weight, bias in layers[:-1]:
                hidden = torch.nn.functional.silu(torch.baddbmm(bias, hidden, weight))
            weight, bias = layers[-1]
            error = torch.baddbmm(bias, hidden, weight) - targets[batch]
            optimizer.zero_grad()
            loss = error.square().sum(-1).mean(-1).sum()
            loss.backward()
            optimizer.step()
        return loss

    return steps
