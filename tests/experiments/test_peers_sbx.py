"""The peers themselves, at tiny sizes: SBX, Stable-Baselines3 and PyTorch."""

import pytest

from experiments import peers_training, peers_updates, updates
from experiments.peers_training import TASKS
from vagram_jax.dynamics import DynamicsConfig

REASON = 'needs pip install "vagram_jax[peers,mujoco]"'
sbx = pytest.importorskip("sbx", reason=REASON)
torch = pytest.importorskip("torch", reason=REASON)


@pytest.mark.parametrize("method", ["sbx_sac", "sbx_crossq"])
def test_sbx_trains_and_is_evaluated_on_gymnasiums_task(monkeypatch, method):
    settings = {"learning_starts": 10, "policy_kwargs": {"net_arch": [8, 8]}}
    name, _ = peers_training._PUBLISHED[method]
    monkeypatch.setitem(
        peers_training._PUBLISHED, method, (name, {"pendulum": settings})
    )
    task = TASKS["pendulum"]._replace(steps=40, eval_every=20)
    cell = peers_training.train(method, task, [3], minutes=5.0)[3]
    assert [row["env_steps"] for row in cell["curve"]] == [20, 40]
    # 200 steps, of which each costs at most 16.3.
    assert all(-3300.0 < row["return"] < 0.0 for row in cell["curve"])
    assert 0.0 < cell["curve"][-1]["compile_seconds"] < cell["curve"][-1]["seconds"]
    assert cell["settings"] == settings


def test_a_call_of_the_peers_sac_takes_all_updates(monkeypatch):
    pytest.importorskip("mujoco", reason=REASON)
    library = pytest.importorskip("stable_baselines3", reason=REASON)
    models = []

    class SAC(library.SAC):
        def __init__(self, *args, **options):
            models.append(self)
            super().__init__(*args, policy_kwargs={"net_arch": [8]}, **options)

    monkeypatch.setattr(library, "SAC", SAC)
    peers_updates.stable_baselines(library)()
    assert models[0]._n_updates == updates.STEPS


def test_the_ensemble_in_pytorch_learns(monkeypatch):
    small = DynamicsConfig(hidden=(8,), num_members=2, num_elites=1)
    monkeypatch.setattr(updates, "DYNAMICS", small)
    steps = peers_updates.torch_ensemble()
    losses = [steps().item() for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
