"""Writes docs/agent.md: which agent the MuJoCo tasks are trained with, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.claims import STUDIES, load
from experiments.pages import cell, check, rounded, table
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
_CHOICE = {"plain": "plain", "chosen": "the default: normalized, clipped"}
_FITS = {"budget": "250 steps", "patience": "until no member improves"}
_LOSSES = {"vagram": "VaGraM", "mle": "MLE", "sac": "plain SAC"}
_STANDING = (900.0, 1100.0)
"""Final returns of a Hopper that stands still for the 1,000 steps of an episode."""


def text() -> str:
    """The content of docs/agent.md."""
    results = {loss: load("hopper_agent").at(loss=loss) for loss in _LOSSES}
    vagram, sac = results["vagram"], results["sac"]
    diverged = {name for name, x in vagram.items() if x.diverged.any()}
    check(diverged == {"plain"}, "only the plain agent diverges")
    normalized = load("hopper_agent").outcome(sac["normalized"], sac["plain"])
    check(normalized == BETTER, "normalization helps plain SAC")
    best = max(vagram, key=lambda name: vagram[name].interval.value)
    check(best == "normalized_clipped", "VaGraM is best with clipping")
    plain = vagram["plain"]
    standing = _num_standing(results)
    undistracted = {x: load("hopper_agent_undistracted").at(loss=x) for x in _LOSSES}
    seeds = len(undistracted["vagram"]["chosen"].seeds)
    return f"""# The agent

With the plain agent {int(plain.diverged.sum())} of {len(plain.seeds)} seeds of VaGraM \
diverge on Hopper with the distracting
dimensions of the paper's code. With normalized observations none does, and plain SAC is
significantly better than without. VaGraM is best if imagined states are also clipped to
the range of the data. Both are the default of MuJoCo's `quick` configs, for all losses.

{table(["agent and model", *_LOSSES.values()], _rows(results))}

Final return on Hopper with 15 distracting dimensions of the kind `switching` after
15,000 steps: interquartile mean over {len(plain.seeds)} seeds with 95% interval \
(`vagram study hopper_agent`).
{standing[0]} of the {standing[1]} seeds end within {_STANDING[0]:.0f} and \
{_STANDING[1]:.0f}, the return of a Hopper that stands still
for a whole episode; of VaGraM with clipping these are \
{_num_standing({"": {best: vagram[best]}})[0]} of {len(vagram[best].seeds)}.
Four seeds are too few to show small differences.

## Without distracting dimensions

{_undistracted_verdict(undistracted)}

{table(["agent and model", *_LOSSES.values()], _rows(undistracted, _CHOICE))}

As above, with the fits of the `quick` configs, over {seeds} seeds of its own
(`vagram study hopper_agent_undistracted --preset=long`).

{_fits()}

{_costs()}
"""


def _undistracted_verdict(results: Mapping[str, Mapping[str, Result]]) -> str:
    everything = [x for by_agent in results.values() for x in by_agent.values()]
    check(not any(x.diverged.any() for x in everything), "no seed diverges")
    study = load("hopper_agent_undistracted")
    outcomes = {study.outcome(x["chosen"], x["plain"]) for x in results.values()}
    check(outcomes == {UNDECIDED}, "the agents don't differ with any loss")
    moving = [int(np.sum(x["chosen"].values > _STANDING[1])) for x in results.values()]
    plain = [int(np.sum(x["plain"].values > _STANDING[1])) for x in results.values()]
    check(sum(moving) == moving[1] and not any(plain), "only MLE ends above standing")
    return f"""No seed diverges with either agent. With each loss the two agents don't
differ significantly. Only with MLE and the chosen agent do seeds, {moving[1]} of \
{len(results["mle"]["chosen"].seeds)}, end above {_STANDING[1]:.0f},
which is more than a Hopper that stands still has."""


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
    shorter = load("hopper_agent_undistracted").at(loss="mle")["chosen"]
    longer = results["mle"]["budget"].interval.value
    check(shorter.interval.value > longer, "the shorter run of MLE ends higher")
    words = {BETTER: "is better", WORSE: "is worse", UNDECIDED: "is no different"}
    verdicts = [
        f"{_LOSSES[loss]} {words[study.outcome(x['budget'], x['patience'])]}"
        for loss, x in results.items()
    ]
    first = study.record["run_seconds"]
    share = sum(s for name, s in first.items() if "budget" in name) / sum(
        s for name, s in first.items() if "patience" in name
    )
    return f"""## How long a fit is

A fit of the `quick` configs ends after 250 steps of batch 128. On Hopper without
distracting dimensions (`vagram study hopper_fits --preset=long`), 25,000 steps take
{share:.0%} of the time that they take with fits until no member improves. With short
fits {" and ".join(verdicts)} by the rule of
[the findings](findings.md). The intervals of four seeds are too narrow for it: with the
same fits and seeds, but a buffer for 15,000 steps, MLE ended at \
{rounded(shorter.interval.value)} after 15,000 steps.
The times in the table are those of one core.

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
without it, on one core (`vagram benchmark --suite=options`). Differences below 0.05 are
noise.

{table(["what is measured", "option", "time"], rows)}"""


def _rows(
    results: Mapping[str, Mapping[str, Result]], names: Mapping[str, str] = _AGENTS
) -> list[list[str]]:
    return [
        [title, *(cell(x[name]) if name in x else "" for x in results.values())]
        for name, title in names.items()
    ]


def _num_standing(results: Mapping[str, Mapping[str, Result]]) -> tuple[int, int]:
    """Counts the seeds that end as a standing Hopper, and all seeds."""
    finals = np.concatenate([x.values for by in results.values() for x in by.values()])
    low, high = _STANDING
    return int(np.sum((finals >= low) & (finals <= high))), len(finals)
