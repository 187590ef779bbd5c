"""Writes docs/agent.md: which agent the MuJoCo tasks are trained with, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from experiments.claims import STUDIES, load
from experiments.pages import NAMES, cell, check, listed, paragraph, rounded, table
from experiments.studies import loop
from vagram_jax.analysis import published
from vagram_jax.analysis.published import PublishedCurve
from vagram_jax.analysis.study import Result
from vagram_jax.analysis.verdicts import BETTER, UNDECIDED, WORSE
from vagram_jax.storage import files

PAGE = Path("docs/agent.md")

_AGENTS = {
    "plain": "plain",
    "layer_norm": "LayerNorm in the critics",
    "normalized": "normalized observations",
    "normalized_clipped": "the same, imagined states clipped",
    "both": "LayerNorm and normalized observations",
    "both_clipped": "the same, imagined states clipped",
    "both_direct": "LayerNorm, normalized observations, direct prediction",
    "all": "the same, imagined states clipped",
}
_CHOICE = {"plain": "plain", "chosen": "normalized, clipped: the default"}
_FITS = {"budget": "250 steps", "patience": "until no member improves"}
_SHARES = {"0.05": "5%, as in MBPO", "0.5": "half", "0.9": "90%, the default"}
_LOSSES = {"vagram": "VaGraM", "mle": "MLE", "sac": "plain SAC"}
_MODEL_LOSSES = {"vagram": "VaGraM", "mle": "MLE", "mse_normalized": "MSE"}
_SHORT = _MODEL_LOSSES | {"sac": "plain SAC"}
_CURVES = {
    "Hopper": ("hopper_published", (25_000, 50_000, 75_000)),
    "Walker2d": ("mujoco_suite", (10_000, 20_000, 30_000)),
    "HalfCheetah": ("mujoco_suite", (10_000, 20_000, 30_000)),
}
"""Tasks to their study and the steps that are shown."""

_ERRORS = {
    "state": "state, in standard deviations of its change",
    "reward": "reward, in standard deviations",
    "value": "value of the next state, in standard deviations",
    "missed": "terminations that the model misses",
    "false_alarms": "other steps that it ends",
}
_SLOW, _FAST = 2000.0, 2500.0
"""Returns of a Hopper that falls early, and of one that hops for a whole episode."""
_STANDING = (900.0, 1100.0)
"""Final returns of a Hopper that stands still for the 1,000 steps of an episode."""


def text() -> str:
    """The content of docs/agent.md."""
    sections = "\n\n".join(section() for section in _SECTIONS)
    return f"""# The agent

The `quick` configs of MuJoCo's tasks train SAC with three changes to MBPO, the same for
all losses: observations are normalized, imagined states are clipped to the range of the
data, and 90% of each batch is real. The older studies `hopper_agent` and `hopper_fits`
have batches that are half real, and their fits change a member only if its score
improves by 1%.

{sections}
"""


def _options() -> str:
    """The section on normalization, clipping and the other options of the agent."""
    results = {loss: load("hopper_agent").at(loss=loss) for loss in _LOSSES}
    vagram, sac = results["vagram"], results["sac"]
    everything = [x for by_agent in results.values() for x in by_agent.values()]
    check(not any(x.diverged.any() for x in everything), "no seed diverges")
    ranked = sorted(vagram, key=lambda name: -vagram[name].interval.value)
    check(ranked[:2] == ["normalized_clipped", "all"], "MLE trains with the best two")
    best = ranked[0]
    outcome = load("hopper_agent").outcome
    check(outcome(vagram[best], vagram["plain"]) == BETTER, "it beats the plain agent")
    check(outcome(sac["both"], sac["plain"]) == BETTER, "both options help plain SAC")
    between = {outcome(sac["normalized"], sac[x]) for x in ("plain", "both")}
    check(between == {UNDECIDED}, "normalization alone is no different for plain SAC")
    finals = np.concatenate([x.values for x in everything])
    low, high = _STANDING
    standing = np.sum((finals >= low) & (finals <= high))
    about = paragraph(
        "Final return on Hopper with 15 distracting dimensions of the kind `switching` "
        f"after 15,000 steps: interquartile mean over {len(vagram[best].seeds)} seeds "
        "with 95% interval (`vagram study hopper_agent`). Four seeds are too few to "
        f"show small differences. A return of {low:.0f} to {high:.0f} is that of a "
        "Hopper that stands still for a whole episode; seeds that end there: "
        f"{standing} of {len(finals)}."
    )
    return f"""## Normalization and clipping

On Hopper with the distracting dimensions of the paper's code no seed of any variant
diverges. The default, with normalized observations and imagined states that are clipped
to the range of the data, is best for VaGraM and significantly better than the plain
agent. Plain SAC is significantly better than the plain agent with LayerNorm and
normalized observations; with normalized observations alone it does not differ
significantly from either.

{table(["agent and model", *_LOSSES.values()], _rows(results, _AGENTS))}

{about}"""


def _undistracted() -> str:
    """The section on the default and the plain agent without distractors."""
    study = load("hopper_agent_undistracted")
    results = {loss: study.at(loss=loss) for loss in _LOSSES}
    everything = [x for by_agent in results.values() for x in by_agent.values()]
    check(not any(x.diverged.any() for x in everything), "no seed diverges")
    outcomes = {study.outcome(x["chosen"], x["plain"]) for x in results.values()}
    check(outcomes == {UNDECIDED}, "the agents don't differ with any loss")
    about = paragraph(
        "The same, with batches that are 90% real and on "
        f"{len(everything[0].seeds)} other seeds (`vagram study "
        "hopper_agent_undistracted --preset=long`)."
    )
    return f"""### Without distracting dimensions

No seed diverges with either agent. With each loss the two agents don't differ
significantly.

{table(["agent and model", *_LOSSES.values()], _rows(results, _CHOICE))}

{about}"""


def _shares() -> str:
    """The section on the share of real transitions in a batch."""
    study = load("hopper_real_fraction")
    rows = []
    for share, title in _SHARES.items():
        cells = [cell(study.at(loss=loss)[share]) for loss in ("vagram", "mle")]
        rows.append([title, *cells])
    no_model = study.at(loss="vagram")["all"]
    rows.append(["all, without a model", cell(no_model), ""])
    for loss in ("vagram", "mle"):
        by_share = study.at(loss=loss)
        same = {study.outcome(by_share["0.9"], x) for x in by_share.values()}
        check(same == {UNDECIDED}, "no share differs significantly from 90%")
        with_model = {share: x for share, x in by_share.items() if share in _SHARES}
        best = max(with_model, key=lambda share: with_model[share].interval.value)
        check(best == "0.9", "90% is best of the shares with a model")
        lower = by_share[best].interval.value < by_share["all"].interval.value
        check(lower, "the agent without a model is ahead")
    later = load("hopper_published").at()
    outcomes = {
        load("hopper_published").outcome(later["sac"], x) for x in later.values()
    }
    check(outcomes == {UNDECIDED}, "later no loss differs from plain SAC")
    about = paragraph(
        "Final return on Hopper without distracting dimensions after 25,000 steps, on "
        f"{len(no_model.seeds)} seeds (`vagram study "
        "hopper_real_fraction --preset=long`). With both losses 90% is the best of the "
        "shares with a model, but by the rule of the findings no row differs "
        "significantly from it. The agent without a model has the highest return, but "
        "not significantly. After 75,000 steps "
        "[no loss differs significantly from it](#beside-published-results)."
    )
    return f"""## How much of a batch is real

{about}

{table(["real share of a batch", "VaGraM", "MLE"], rows)}"""


def _errors() -> str:
    """The section on what the models get wrong."""
    rows = files.read_rows(STUDIES / "hopper_real_fraction" / "errors.csv")
    by_run = {(row["loss"], row["real"]): row for row in rows}
    shares = {0.05: "5%", 0.9: "90%"}
    columns = {
        (loss, share): f"{_LOSSES[loss]}, {title} real"
        for loss in ("vagram", "mle")
        for share, title in shares.items()
    }
    lines = [
        [title, *(_error(name, by_run[run][name]) for run in columns)]
        for name, title in _ERRORS.items()
    ]
    missed = {run: by_run[run]["missed"] for run in columns}
    few = [x for (loss, _), x in missed.items() if loss == "mle"]
    many = [x for (loss, _), x in missed.items() if loss == "vagram"]
    check(min(many) > 0.25 > 0.05 > max(few), "only VaGraM misses many")
    return f"""## What the models get wrong

The errors of rewards and values are small with every share, on real transitions that no
fit has seen, in the second half of these runs. VaGraM misses more than a quarter of the
terminations, so that falling looks better than it is. MLE misses few, and is no better
than no model either.

{table(["error", *columns.values()], lines)}

{_errors_by_model()}"""


def _errors_by_model() -> str:
    """The errors in each setting of the study `hopper`, of all losses."""
    by_setting: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in files.read_rows(STUDIES / "hopper" / "errors.csv"):
        setting = f"{row['model']} model, {row['distractors'] or 'no'} distractors"
        by_setting.setdefault(setting, {})[row["loss"]] = row
    lines, lowest = [], []
    for setting, rows in by_setting.items():
        value, missed = (
            [rows[loss][name] for loss in _MODEL_LOSSES] for name in ("value", "missed")
        )
        lowest += [setting] if value[0] == min(value) else []
        check(missed[0] == max(missed), "VaGraM misses the most terminations")
        numbers = [*(("value", x) for x in value), *(("missed", x) for x in missed)]
        lines.append([setting, *(_error(name, x) for name, x in numbers)])
    expected = lowest == ["small model, 15 distractors"]
    check(expected, "VaGraM's value error is lowest with small model and distractors")
    columns = [
        f"{what}, {loss}"
        for what in ("value", "missed")
        for loss in _MODEL_LOSSES.values()
    ]
    about = paragraph(
        "In the four settings of the study `hopper` VaGraM misses the most "
        "terminations too. Its error of the value, which its loss is meant to lower, "
        "is the lowest with a small model and distractors, the paper's setting, and in "
        'no other. "Value" is that of the next state, "missed" the terminations.'
    )
    return f"{about}\n\n{table(['setting', *columns], lines)}"


def _error(name: str, value: float) -> str:
    if name in ("missed", "false_alarms"):
        return f"{value:.2%}" if value < 0.01 else f"{value:.0%}"
    return f"{value:.2f}"


def _curves() -> str:
    """The section that compares learning curves with published ones."""
    losses = ("vagram", "mle", "mse_normalized", "sac")
    lines = [line for task in _CURVES for line in _curve_rows(task, losses)]
    columns = [*(NAMES[x] for x in losses), "MBPO, published", "SAC, published"]
    studies = dict.fromkeys(study for study, _ in _CURVES.values())
    commands = [f"`vagram study {study} --preset=long`" for study in studies]
    about = paragraph(
        f"Return without distracting dimensions ({', '.join(commands)}): interquartile "
        "mean over 8 seeds on Hopper and 4 on the others, with 95% interval, and the "
        "published means of [4kubo/erl_lib](https://github.com/4kubo/erl_lib) on v4."
    )
    figures = "\n\n".join(
        f"![Learning curves](../results/studies/{study}/curves.png)"
        for study in ("hopper", *studies)
    )
    return f"""## Beside published results

{about}

{table(["task", "environment steps", *columns], lines)}

{_beside_the_curves()}

{figures}"""


def _curve_rows(task: str, losses: Sequence[str]) -> list[list[str]]:
    """The returns of a task, a row for each number of steps."""
    own, mbpo, sac = _own(task), _published(task, "mbpo"), _published(task, "sac")
    trained = {row["loss"] for row in own}
    rows = []
    for step in _CURVES[task][1]:
        cells = [cell(_result_at(own, x, step)) if x in trained else "" for x in losses]
        rows.append(
            [task, f"{step:,}", *cells, f"{mbpo(step):.0f}", f"{sac(step):.0f}"]
        )
    return rows


def _beside_the_curves() -> str:
    """The sentences on where published MBPO is ahead."""
    ahead = {}
    for task, (_, steps) in _CURVES.items():
        mbpo = _published(task, "mbpo")
        ahead[task] = [
            _SHORT[loss]
            for loss, by_step in _by_loss(task, steps).items()
            if any(x.interval.high < mbpo(step) for step, x in by_step.items())
        ]
    where = [
        f"{' and '.join(names) or 'none'} on {task}" for task, names in ahead.items()
    ]
    return paragraph(
        "Losses whose interval is below published MBPO at any of these steps: "
        f"{', '.join(where)}. The agents have layers of 64 here. "
        f"{_means()} {_slow_seeds()}"
    )


def _means() -> str:
    """The sentences on the means over seeds on Hopper."""
    mbpo, steps = _published("Hopper", "mbpo"), _CURVES["Hopper"][1]
    results = _by_loss("Hopper", steps)
    lower = {
        step: [
            f"{_SHORT[loss]} {rounded(by_step[step].values.mean())}"
            for loss, by_step in results.items()
            if by_step[step].values.mean() < mbpo(step)
        ]
        for step in steps
    }
    reached = [f"{step:,}" for step, names in lower.items() if not names]
    check(bool(reached), "every mean is at least the published one at some step")
    missed = [
        f" After {step:,} steps it is lower: {listed(names, 'and')}. Published "
        f"MBPO has {mbpo(step):.0f}. {_significance(results, step)}"
        for step, names in lower.items()
        if names
    ]
    return (
        "The published numbers are means over seeds. On Hopper, after "
        f"{listed(reached, 'and')} steps, the mean of every loss is at least that of "
        f"published MBPO.{''.join(missed)}"
    )


def _significance(results: Mapping[str, Mapping[int, Result]], step: int) -> str:
    """The sentence on whether any mean differs from the published one on Hopper."""
    curve = _published_curve("Hopper", "mbpo")
    mean, std = (np.interp(step, curve.env_steps, x) for x in (curve.mean, curve.std))
    own = [by_step[step].values for by_step in results.values()]
    p_values = [
        scipy.stats.ttest_ind_from_stats(
            *(x.mean(), x.std(ddof=1), len(x)), mean, std, curve.seeds, equal_var=False
        ).pvalue
        for x in own
    ]
    check(min(p_values) > 0.05, "no mean differs from the published one")
    return (
        f"Its standard deviation over {curve.seeds} seeds is {std:.0f}, and no loss "
        "differs significantly from it (Welch's t-test, p from "
        f"{min(p_values):.2f} to {max(p_values):.2f})."
    )


def _slow_seeds() -> str:
    """The sentence on the seeds that don't hop through an episode in the end."""
    last = _CURVES["Hopper"][1][-1]
    finals = {
        _SHORT[loss]: by_step[last].values
        for loss, by_step in _by_loss("Hopper", (last,)).items()
    }
    between = [x for values in finals.values() for x in values if _SLOW < x < _FAST]
    check(not between, "a seed has either learned the task or not")
    seeds = len(finals["VaGraM"])
    slow = [f"{sum(x < _SLOW)} with {name}" for name, x in finals.items()]
    return (
        f"Some of the {seeds} seeds still fall early and have less than {_SLOW:,.0f}: "
        f"{listed(slow, 'and')}. All others have more than {_FAST:,.0f}."
    )


def _by_loss(task: str, steps: Sequence[int]) -> dict[str, dict[int, Result]]:
    """The returns of a task, by loss and step."""
    own = _own(task)
    losses = dict.fromkeys(row["loss"] for row in own)
    return {x: {step: _result_at(own, x, step) for step in steps} for x in losses}


def _own(task: str) -> list[Mapping[str, Any]]:
    """The rows of a task's learning curves."""
    study, _ = _CURVES[task]
    rows = files.read_rows(STUDIES / study / "curves.csv")
    return [row for row in rows if row["task"] == task.lower()]


def _published(task: str, algorithm: str) -> Callable[[int], float]:
    """A published learning curve: environment steps to the mean return."""
    curve = _published_curve(task, algorithm)
    return lambda step: float(np.interp(step, curve.env_steps, curve.mean))


def _published_curve(task: str, algorithm: str) -> PublishedCurve:
    curves = published.load(loop.PUBLISHED)[task.lower()]
    [curve] = [x for x in curves if x.algorithm == algorithm]
    return curve


def _result_at(rows: Sequence[Mapping[str, Any]], loss: str, step: int) -> Result:
    """The returns of a loss at the evaluations nearest to a step."""
    own = [row for row in rows if row["loss"] == loss]
    nearest = min((row["env_steps"] for row in own), key=lambda x: abs(x - step))
    values = np.array([r["return"] for r in own if r["env_steps"] == nearest], float)
    seeds = np.arange(len(values))
    return Result({}, seeds, values, np.zeros(len(values), bool))


def _width() -> str:
    """The section on the width at which MLE begins to suffer."""
    study = load("hopper_width")
    results = study.at()
    widths = sorted(results, key=int, reverse=True)
    large = results[widths[0]]
    worse = [x for x in widths if study.outcome(results[x], large) == WORSE]
    which = f"worse with {' and '.join(worse)}" if worse else "no worse with fewer"
    errors = files.read_rows(STUDIES / "hopper_width" / "errors.csv")
    by_width = {str(row["hidden"]): row for row in errors}
    for name in ("state", "reward", "value", "missed"):
        values = [by_width[width][name] for width in widths]
        check(values == sorted(values), f"the error {name} grows as the model shrinks")
    first, second = (by_width[width]["state"] for width in widths[:2])
    about = paragraph(
        "Final return of MLE with two layers in the model, on the task and four of the "
        "seeds of `hopper_real_fraction` (`vagram study hopper_width --preset=long`). "
        f"By the rule of the findings it is {which} than with {widths[0]} units. But "
        "the errors of the model, defined as above, grow as it shrinks: that of the "
        f"state is {second / first:.1f} times as large with {widths[1]} units as with "
        f"{widths[0]}."
    )
    rows = [["final return", *(cell(results[width]) for width in widths)]]
    for name, title in _ERRORS.items():
        cells = [_error(name, by_width[width][name]) for width in widths]
        rows.append([title, *cells])
    return f"""## How small a model can be

{about}

{table(["", *(f"{width} units" for width in widths)], rows)}"""


def _fits() -> str:
    """The section on how long the model is fitted."""
    study, losses = load("hopper_fits"), ("vagram", "mle")
    results = {loss: study.at(loss=loss) for loss in losses}
    rows = []
    for fit, title in _FITS.items():
        seconds = (
            study.record["run_seconds"][f"task-hopper_fit-{fit}_{loss}"]
            for loss in losses
        )
        cells = [cell(results[loss][fit]) for loss in losses]
        rows.append([title, *cells, *(f"{s:,} s" for s in seconds)])
    outcomes = {study.outcome(x["budget"], x["patience"]) for x in results.values()}
    check(outcomes == {UNDECIDED}, "short fits don't change the return significantly")
    seconds = study.record["run_seconds"]
    share = sum(s for name, s in seconds.items() if "budget" in name) / sum(
        s for name, s in seconds.items() if "patience" in name
    )
    about = paragraph(
        "A fit of the `quick` configs ends after 250 steps of batch 128. On Hopper "
        "without distracting dimensions (`vagram study hopper_fits --preset=long`), "
        f"25,000 steps take {share:.0%} of the time that they take with fits until no "
        "member improves. With neither loss does the return differ significantly, but "
        "four seeds can't show that it is the same. The times are those of one core."
    )
    return f"""## How long a fit is

{about}

{table(["fit", "VaGraM", "MLE", "time of VaGraM", "time of MLE"], rows)}"""


def _costs() -> str:
    """The section on the time that each option takes."""
    benchmark = files.read_json(STUDIES.parent / "benchmark" / "one-core.json")
    rows = [
        [*name.removesuffix(", time").split(" with ", 1), f"{ratio:.2f}"]
        for name, ratio in benchmark.items()
        if " with " in name
    ]
    return f"""## What the options cost

The time of an update, a fit step and rollouts with an option, relative to the time
without it, on one core (`vagram benchmark --suite=options`). Differences below 0.1 are
noise.

{table(["what is measured", "option", "time"], rows)}"""


def _rows(
    results: Mapping[str, Mapping[str, Result]], names: Mapping[str, str]
) -> list[list[str]]:
    return [
        [title, *(cell(x[name]) if name in x else "" for x in results.values())]
        for name, title in names.items()
    ]


_SECTIONS = (_options, _undistracted, _shares, _errors, _width, _curves, _fits, _costs)
"""The sections of the page."""
