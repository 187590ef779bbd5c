"""The studies of the paper's claims: one file each, all with a function `run`.

`loop` trains the cells of a study and concludes from their returns; `verdicts` says by
which rule. A study of your own: a file here with a `run`, and a row below.
"""

from __future__ import annotations

from typing import NamedTuple

from vagram_jax.run import session

STUDIES = {
    "loss_surface": "each loss as a function of the predicted next state",
    "changing_values": "value errors while the value function moves",
    "capacity": "return against the width of the model",
    "distraction": "return against the number of distracting dimensions",
    "cartpole_capacity": "cartpole: return against the width of the model",
    "cartpole_distraction": "cartpole: return against distracting dimensions",
    "distractor_scale": "return against the scale of the distracting dimensions",
    "ablation": "VaGraM against its parts",
    "baselines": "which baseline is the strongest",
    "confirmation": "pendulum: where VaGraM does best, on fresh seeds",
    "cartpole_confirmation": "cartpole: where VaGraM does best, on fresh seeds",
    "hopper_capacity": "Hopper with a small and a large model",
    "hopper_distraction": "Hopper with distracting dimensions",
    "distractor_kind": "Hopper with distracting dimensions of two kinds",
    "mujoco_suite": "Gymnasium's MuJoCo tasks",
}
"""What there is, each with what it shows."""


class Plan(NamedTuple):
    """What a study is asked to do.

    Attributes:
      preset: "quick" or "full".
      place: the results folder and the name of the study in it.
      kept: where runs train and how they are kept.
      seeds: how many, 0 for the preset's own number.
      first_seed: they are numbered from here.
      began: when it was started, by `time.time`, in s.
    """

    preset: str
    place: tuple[str, str]
    kept: session.Keeping
    seeds: int
    first_seed: int
    began: float
