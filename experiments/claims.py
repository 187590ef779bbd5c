"""The paper's claims, the results that they are judged by, and the verdicts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vagram_jax.analysis import stats
from vagram_jax.analysis.study import Result, Study
from vagram_jax.analysis.verdicts import BETTER, WORSE, Label

STUDIES = Path(__file__).resolve().parent.parent / "results" / "studies"
MLE, MSE = ("mle", "mle_raw"), ("mse", "mse_raw", "mse_normalized")
"""The forms of two baselines; the stronger form of a setting counts."""

BASELINES = {"MLE": MLE, "MSE": MSE, "plain SAC": ("sac",)}
"""What VaGraM is compared with, each in its forms."""

SUITE = {"walker2d": "Walker2d", "halfcheetah": "HalfCheetah"}
HOLDS, OPEN, FAILS = "holds", "open", "does not hold"


class Pair(NamedTuple):
    """A claim in one setting: that `better` is better than `other`, or on par.

    Attributes:
      study: of both results.
      better: the result that should be better.
      other: the other result.
    """

    study: Study
    better: Result
    other: Result


class Claim(NamedTuple):
    """A claim of the paper.

    Attributes:
      name: the claim in words.
      par: the claim is that `better` is not worse, instead of better.
      pairs: a task to the settings in which the claim is judged there.
    """

    name: str
    par: bool
    pairs: Mapping[str, Sequence[Pair]]


@functools.cache
def load(name: str) -> Study:
    """Loads a study of results/studies once."""
    return Study.load((STUDIES / name).resolve())


def hopper() -> dict[str, tuple[Study, dict[str, Label]]]:
    """The settings of the study `hopper`.

    Returns:
      Names, "large", "small", "large, distracted" and "small, distracted", to the study
      and the labels of the setting.
    """
    study = load("hopper")
    return {
        f"{model}, distracted" if distractors else model: (
            study,
            {"distractors": distractors, "model": model},
        )
        for distractors in (0, 15)
        for model in ("large", "small")
    }


def claims() -> list[Claim]:
    """The claims of the paper, with the results that they are judged by."""
    return [*_vagram_claims(), *_vaml_claims()]


def judge(claim: Claim, task: str) -> str:
    """Judges a claim on one task by the rule that the page states.

    Args:
      claim: one of `claims`.
      task: a key of `claim.pairs`.

    Returns:
      "holds", "open" or "does not hold".
    """
    pairs = claim.pairs[task]
    outcomes = [pair.study.outcome(pair.better, pair.other) for pair in pairs]
    diverged = any(pair.better.diverged.mean() >= 0.5 for pair in pairs)
    if WORSE in outcomes or diverged:
        return FAILS
    return HOLDS if claim.par or set(outcomes) == {BETTER} else OPEN


def outcomes(study: Study, **labels: Label) -> dict[str, str]:
    """Compares VaGraM with each baseline in one setting, in the baseline's best form.

    Args:
      study: whose contrast is the loss.
      **labels: of the setting, as for `Study.at`.

    Returns:
      The baselines that were trained there to their outcomes: `BETTER` if VaGraM is
      better.
    """
    trained = set(study.at(**labels))
    return {
        name: study.compare("vagram", forms, **labels).outcome
        for name, forms in BASELINES.items()
        if trained & set(forms)
    }


def effect(pairs: Sequence[Pair]) -> stats.Interval:
    """The probability that a seed of `better` is better, the mean over settings.

    Args:
      pairs: of studies in which the same direction is better.

    Returns:
      Probability and 95% interval.
    """
    sign = 1.0 if pairs[0].study.design.higher_is_better else -1.0
    return stats.probability_of_improvement(
        {str(i): sign * pair.better.values for i, pair in enumerate(pairs)},
        {str(i): sign * pair.other.values for i, pair in enumerate(pairs)},
    )


def frozen(study: Study, condition: str) -> Result:
    """The result of VAML with a value function that doesn't change."""
    return study.at(condition=condition, values="frozen")["vaml"]


def moving(study: Study) -> dict[str, dict[str, Result]]:
    """The results with a changing value function, by condition."""
    return {
        str(dict(setting)["condition"]): by_loss
        for setting, by_loss in study.settings.items()
        if dict(setting)["values"] == "moving"
    }


def _pairs(settings: Mapping, baselines: Sequence[str] | None) -> dict:
    """Pairs of VaGraM and the strongest of some baselines, by task."""
    pairs: dict[str, list[Pair]] = {}
    for task, places in settings.items():
        for study, labels in places:
            strongest = study.compare("vagram", baselines, **labels).baseline
            by_loss = study.at(**labels)
            pair = Pair(study, by_loss["vagram"], by_loss[strongest])
            pairs.setdefault(task, []).append(pair)
    return pairs


def _vagram_claims() -> list[Claim]:
    capacity, cartpole = load("capacity"), load("cartpole_capacity")
    suite, long = load("mujoco_suite"), hopper()
    small = {
        "pendulum": [(capacity, {"hidden": 16})],
        "cartpole": [(cartpole, {"hidden": 16})],
        "Hopper": [long["small"], (load("hopper_confirmation"), {})],
    }
    distracted = {
        "pendulum": [(load("distraction"), {"distractors": 15})],
        "cartpole": [(load("cartpole_distraction"), {"distractors": 5})],
        "Hopper": [x for name, x in long.items() if "distracted" in name],
    }
    fresh = {
        "pendulum": [(load("confirmation"), {})],
        "cartpole": [(load("cartpole_confirmation"), {})],
        "Hopper": [(load(f"hopper_{x}"), {}) for x in ("distracted", "half_real")],
    }
    scaled = {"pendulum": [(load("scale_confirmation"), {})]}
    enough = {
        "pendulum": [(capacity, {"hidden": 64})],
        "cartpole": [(cartpole, {"hidden": 64})],
        "Hopper": [long["large"], (load("hopper_published"), {})],
        "other MuJoCo": [(suite, {"task": task}) for task in SUITE],
    }
    rows = [
        ("Small model: better than", False, small),
        ("Distracting dimensions: better than", False, distracted),
        ("Distracting dimensions, fresh seeds: better than", False, fresh),
        ("Distracting dimensions of ten times the scale: better than", False, scaled),
        ("Large model: on par with", True, enough),
    ]
    return [
        Claim(f"{name} {against}", par, _pairs(settings, baselines))
        for name, par, settings in rows
        for against, baselines in (("MLE", MLE), ("the strongest baseline", None))
    ]


def _vaml_claims() -> list[Claim]:
    values, training = load("changing_values"), load("baselines")
    pairs = [
        Pair(values, frozen(values, condition), results["vaml"])
        for condition, results in moving(values).items()
    ]
    strongest = training.compare("vaml").baseline
    trained = Pair(training, training.at()[strongest], training.at()["vaml"])
    return [
        Claim("VAML: error grows as values change", False, {"pendulum": pairs}),
        Claim("VAML: worse in training", False, {"pendulum": [trained]}),
    ]
