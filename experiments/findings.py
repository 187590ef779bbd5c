"""Writes the pages with results: findings, agent, and parts of README.md and peers.md.

All numbers come from the studies in results/. A sentence about a result is checked
against the results: if they no longer support it, writing fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import agent_page, peers_page
from experiments.claims import (
    BASELINES,
    STUDIES,
    SUITE,
    Pair,
    claims,
    effect,
    frozen,
    hopper,
    judge,
    load,
    moving,
    outcomes,
)
from experiments.pages import (
    NAMES,
    cell,
    check,
    clauses,
    paragraph,
    rounded,
    significance,
    table,
    write_block,
)
from experiments.studies import hopper as hopper_study
from vagram_jax.analysis import plots, stats
from vagram_jax.analysis.study import Study
from vagram_jax.analysis.verdicts import BETTER, UNDECIDED, WORSE, Label
from vagram_jax.storage import files

ROOT = Path(__file__).parent.parent
PAGE, FIGURE = Path("docs/findings.md"), Path("docs/findings.png")
README = Path("README.md")

_EXAMPLE = ("vagram", "mle", "mle_raw", "mse_normalized", "sac")
"""The losses of the README's example, in the order of its table."""

_SCALED = "15 of ten times the scale"
_CONDITIONS = {
    "full": "layers of 64",
    "small": "layers of 8",
    "distracted": "layers of 64, 10 distracting dimensions",
    "small, distracted": "layers of 8, 10 distracting dimensions",
}


def write() -> list[Path]:
    """Writes the pages and the figure, and what is between the markers of others.

    Returns:
      The paths of the files.

    Raises:
      ResultsError: a study can't be read, a file can't be written, or a sentence
        contradicts the results.
    """
    pages = {PAGE: text(), agent_page.PAGE: agent_page.text()}
    draw()
    for path, page in pages.items():
        files.write_text(ROOT / path, page)
    written = [*(ROOT / path for path in pages), ROOT / FIGURE]
    blocks = {README: readme_block(), peers_page.PAGE: peers_page.block()}
    written += [
        ROOT / path for path, block in blocks.items() if write_block(ROOT / path, block)
    ]
    return written


def text() -> str:
    """The content of docs/findings.md."""
    sections = [
        _answer(),
        _grid(),
        _limits(),
        _width(),
        _distraction(),
        _vaml(),
        _surfaces(),
        _ablation(),
        _example(),
    ]
    return "\n\n".join(sections) + "\n"


def readme_block() -> str:
    """The README's table: the example with a small and a large model."""
    rows = [
        [f"two layers of {width}", *(cell(results[x]) for x in _EXAMPLE)]
        for width in (16, 64)
        for results in [load("example").at(distractors=15, hidden=width)]
    ]
    seeds = len(load("example").at(distractors=15, hidden=16)["vagram"].seeds)
    returns = table(["dynamics model", *(NAMES[x] for x in _EXAMPLE)], rows)
    about = paragraph(
        "Final return on the pendulum with 15 distracting dimensions: interquartile "
        f"mean over {seeds} seeds with 95% interval (`vagram study example`, on one "
        "core; the figure above shows the same runs). "
        f"{_example_verdict()} {_beyond_the_example()}"
    )
    return f"{returns}\n\n{about}\n"


def _beyond_the_example() -> str:
    """The sentences of the README on other settings."""
    scaled, cartpole = load("scale_confirmation"), load("cartpole_confirmation")
    fresh, distracted = load("hopper_confirmation"), load("hopper_distracted")
    again = [(x, {}) for x in (load("hopper_published"), fresh, distracted)]
    settings = [*hopper().values(), *again]
    on_hopper = [outcomes(study, **labels) for study, labels in settings]
    beaten = [name for x in on_hopper for name in x if x[name] == BETTER]
    check(not beaten, "on Hopper VaGraM beats no baseline")
    return (
        "With distracting dimensions of ten times the scale it "
        f"{_example_clauses(scaled)}, on {_seeds(scaled)} fresh seeds (`vagram study "
        "scale_confirmation`). On cartpole with a small model it "
        f"{clauses(outcomes(cartpole))}, on {_seeds(cartpole)} fresh seeds (`vagram "
        "study cartpole_confirmation`). On Hopper it beats no baseline significantly "
        "(`vagram study hopper --preset=long`). In its best setting there, a small "
        f"model without distracting dimensions, it {clauses(outcomes(fresh))}, on "
        f"{_seeds(fresh)} fresh seeds (`vagram study hopper_confirmation "
        "--preset=long`). With distracting dimensions and the same model it "
        f"{clauses(outcomes(distracted))}, on {_seeds(distracted)} fresh seeds "
        "(`vagram study hopper_distracted --preset=long`)."
    )


def draw() -> None:
    """Draws the effect of every claim on every task, with its interval."""
    effects = {
        claim.name: {
            task: stats.Interval(*effect(pairs)) for task, pairs in claim.pairs.items()
        }
        for claim in claims()
    }
    label = "probability that a seed is better, as claimed"
    plots.forest(effects, ROOT / FIGURE, x_label=label, reference=0.5)


def _answer() -> str:
    pendulum = outcomes(load("confirmation"))
    scaled = outcomes(load("scale_confirmation"))
    cartpole = outcomes(load("cartpole_confirmation"))
    ablation = load("ablation").at()
    constant = ablation["constant_weights"]
    weights = {
        BETTER: "is better than VaGraM",
        WORSE: "is worse than VaGraM: it matters that the weights follow the state",
        UNDECIDED: "does not differ significantly from VaGraM",
    }[load("ablation").outcome(constant, ablation["vagram"])]
    answer = paragraph(
        "On the pendulum, with distracting dimensions and a model that is too small "
        f"for all dimensions, VaGraM {clauses(pendulum)} on fresh seeds. With "
        "distracting dimensions of ten times the scale (the paper's code: ten to a "
        f"hundred times) it {clauses(scaled)}. On cartpole, with distracting "
        f"dimensions and a small model, it {clauses(cartpole)} on fresh seeds. "
        f"{_on_hopper()} "
        f"On the pendulum one constant weight per dimension {weights}."
    )
    return f"# Findings\n\n{answer}"


def _on_hopper() -> str:
    """The sentences on Hopper."""
    settings = [outcomes(study, **labels) for study, labels in hopper().values()]
    names = ("confirmation", "distracted", "published")
    fresh = [load(f"hopper_{name}") for name in names]
    compared = [*settings, *(outcomes(study) for study in fresh)]
    verdicts = {x for by_baseline in compared for x in by_baseline.values()}
    check(verdicts == {UNDECIDED}, "on Hopper VaGraM differs from no baseline")
    half = load("hopper_half_real")
    return (
        f"On Hopper, after {_hopper_steps():,} steps or more, no baseline differs "
        f"significantly from it in {len(settings)} settings, or in {len(fresh)} on "
        f"{_seeds(fresh[0])} fresh seeds. With distracting dimensions, a large model "
        f"and half-real batches it {clauses(outcomes(half))}."
    )


def _grid() -> str:
    columns = ("pendulum", "cartpole", "Hopper", "other MuJoCo")
    rows = []
    for claim in claims():
        cells = [
            f"{judge(claim, task)}, {effect(claim.pairs[task]).value:.2f}"
            if task in claim.pairs
            else ""
            for task in columns
        ]
        rows.append([claim.name, *cells])
    return f"""## The claims

Claims of Voelcker et al. 2022 ([arXiv 2204.01464](https://arxiv.org/abs/2204.01464)),
taken as orderings. Numbers: the probability that a seed ends better, as claimed.

{table(["claim", *columns], rows)}

**Rule.** Two results differ significantly if the 95% intervals of their interquartile
means don't overlap. A claim of *better* holds if the difference is significant. A claim
of *on par* holds if VaGraM is not significantly worse. A claim does not hold if VaGraM
is significantly worse or at least half of its seeds diverge. Otherwise it is open. If a
cell has several settings, the claim must hold in all of them. MLE and MSE were trained
in several forms, of which the strongest counts.

![Probability of improvement for every claim](findings.png)"""


def _limits() -> str:
    loop = load("baselines")
    best = loop.compare("vagram").baseline
    return f"""## Limits

- Most results have 4 seeds. Their intervals are too short, and overlapping intervals
  are no proof of equality. No correction is made for the number of comparisons.
- The settings of pendulum and cartpole were found by a search for one in which VaGraM
  does well. Fresh seeds played no part in it, but share the setting.
- MuJoCo's tasks are trained with small networks, not with the paper's settings. A row
  with half-real batches was trained before [90% became the default](agent.md).
- The strongest baseline is the best one on the same seeds, which favors the baselines.
  Not every study trains every baseline; in `baselines` the best is `{best}`.

`vagram` is the paper's loss, on the two small tasks with weights of mean one. *Mixed*
VaGraM (`vagram_mixed`) adds a fifth of MSE on normalized targets. A diverged seed
counts with the lowest return of its study. [All seeds](../results/studies) are kept."""


def _width() -> str:
    capacity, cartpole = load("capacity"), load("cartpole_capacity")
    pendulum, fresh = load("confirmation"), load("cartpole_confirmation")
    suite, long, real = load("mujoco_suite"), hopper(), load("hopper_published")
    small = load("hopper_confirmation")
    rows = [
        ("pendulum, layers of 16", capacity, {"hidden": 16}),
        (f"pendulum, layers of 16, {_seeds(pendulum)} fresh seeds", pendulum, {}),
        ("pendulum, layers of 64", capacity, {"hidden": 64}),
        ("cartpole, layers of 16", cartpole, {"hidden": 16}),
        (f"cartpole, layers of 16, {_seeds(fresh)} fresh seeds", fresh, {}),
        ("cartpole, layers of 64", cartpole, {"hidden": 64}),
        ("Hopper, layers of 128", *long["large"]),
        (f"Hopper, layers of 128, {_seeds(real)} fresh seeds", real, {}),
        ("Hopper, layers of 16", *long["small"]),
        (f"Hopper, layers of 16, {_seeds(small)} fresh seeds", small, {}),
        *((f"{SUITE[x]}, layers of 128", suite, {"task": x}) for x in SUITE),
    ]
    return f"""## The width of the model

The paper: MLE deteriorates with a small model, and VaGraM stays stable. With a large
one they are on par on MuJoCo, and VaGraM is better on Ant (not trained here). The
pendulum has 15 distracting dimensions in this table, cartpole 5, the others none.

{_methods_table(rows)}"""


def _distraction() -> str:
    pendulum, cartpole = load("distraction"), load("cartpole_distraction")
    scale, fresh = load("distractor_scale"), load("scale_confirmation")
    long, again, kind = hopper(), load("hopper_distracted"), "15 of the paper's kind"
    half = load("hopper_half_real")
    rows = [
        ("pendulum, none", pendulum, {"distractors": 0}),
        ("pendulum, 15", pendulum, {"distractors": 15}),
        (f"pendulum, {_SCALED}", scale, {"scale": 10}),
        (f"pendulum, {_SCALED}, {_seeds(fresh)} fresh seeds", fresh, {}),
        ("cartpole, none", cartpole, {"distractors": 0}),
        ("cartpole, 5", cartpole, {"distractors": 5}),
        (f"Hopper, {kind}", *long["large, distracted"]),
        (f"Hopper, {kind}, layers of 16", *long["small, distracted"]),
        (f"Hopper, {kind}, layers of 16, {_seeds(again)} fresh seeds", again, {}),
        (f"Hopper, {kind}, half real, {_seeds(half)} fresh seeds", half, {}),
    ]
    return f"""## Distracting dimensions

The paper: MLE fails as irrelevant dimensions are added, VaGraM later. On the pendulum
and cartpole the model has layers of 16, on Hopper of 128.

{_methods_table(rows)}"""


def _vaml() -> str:
    study = load("changing_values")
    rows, pairs = [], []
    for condition, by_loss in moving(study).items():
        constant = frozen(study, condition)
        others = ("mse_normalized", "mle")
        best = study.compare("vagram", others, condition=condition, values="moving")
        shown = (by_loss["vaml"], constant, by_loss["vagram"], by_loss[best.baseline])
        rows.append([_CONDITIONS[condition], *(cell(x, 1e4) for x in shown)])
        pairs.append(Pair(study, constant, by_loss["vaml"]))
        higher = study.outcome(constant, by_loss["vaml"]) == BETTER
        check(not higher, "VAML's error is nowhere significantly higher")
    columns = ("model", "VAML", "VAML, constant value", "VaGraM", "best of MSE and MLE")
    about = paragraph(
        "The paper: VAML fails as the value function changes. On fixed data its value "
        "error is nowhere significantly higher than with a constant value function; a "
        f"seed's is higher with probability {effect(pairs).value:.2f}. "
        f"{_vaml_in_training()} Errors after eight fits, in 1e-4 of the values' "
        "variance:"
    )
    return f"""## VAML as the value function changes

{about}

{table(columns, rows)}"""


def _vaml_in_training() -> str:
    """The sentence on the return of VAML."""
    study = load("baselines")
    vaml, best = study.at()["vaml"], study.compare("vaml").baseline
    worse = study.outcome(vaml, study.at()[best]) == WORSE
    check(worse, "VAML's return is significantly lower")
    num_diverged = int(vaml.diverged.sum()) or "none"
    return (
        f"In training (`baselines`) its return is {rounded(vaml.interval.value)}, "
        "significantly below that of the strongest baseline, "
        f"{rounded(study.at()[best].interval.value)}; of {len(vaml.seeds)} seeds "
        f"{num_diverged} diverged."
    )


def _surfaces() -> str:
    rows = files.read_rows(STUDIES / "loss_surface" / "table.csv")
    vaml, vagram = ({r["loss"]: r for r in rows}[x] for x in ("vaml", "vagram"))
    check(vaml["pieces"] > 1 == vagram["pieces"], "VAML winds, VaGraM is an ellipse")
    regions, furthest = vaml["pieces"], f"{vaml['furthest_angle']:.0%}"
    return f"""## The surfaces of the losses

The paper's figure 1: VAML is low along level sets of the value, VaGraM in an ellipse
around the real state. [One state](../results/studies/loss_surface/surface.png) agrees:
the lowest 5% of VAML are {regions} regions, up to {furthest} of the angle's range away
from the real state; those of VaGraM are one region, up to \
{vagram["furthest_angle"]:.0%} away."""


def _ablation() -> str:
    study = load("ablation")
    results = study.at()
    mixed = results["vagram_mixed"]
    words = {BETTER: "worse", WORSE: "better", UNDECIDED: "no"}
    rows = []
    for name in sorted(results, key=lambda name: -results[name].interval.value):
        if name in study.design.baselines:
            continue
        row = [f"`{name}`", cell(results[name]), "", ""]
        if name != "vagram_mixed":
            row[2] = words[study.outcome(mixed, results[name])]
            row[3] = f"{study.probability(mixed, results[name]).value:.2f}"
        rows.append(row)
    better = "probability that a seed of mixed VaGraM is better"
    columns = ("variant", "final return", "significantly different", better)
    return f"""## Which part of the loss matters

Variants of mixed VaGraM on the pendulum with 15 distracting dimensions and layers of 16
(`ablation`; its file describes them). The oracle is told which dimensions distract.

{table(columns, rows)}"""


def _example() -> str:
    rows = []
    for setting, results in load("example").settings.items():
        labels = dict(setting)
        name = f"{labels['distractors']}, layers of {labels['hidden']}"
        rows.append([name, *(cell(results[loss]) for loss in _EXAMPLE)])
    about = paragraph(
        "`make compare` (15 distracting dimensions and layers of 16, 2,000 steps) and "
        "variations. A [figure](../results/example/attention.png) shows what the "
        f"losses attend to. {_example_verdict()}"
    )
    return f"""## The README's example

{about}

{table(["distractors", *(NAMES[loss] for loss in _EXAMPLE)], rows)}"""


def _example_verdict() -> str:
    """A sentence on the example itself, from its results."""
    found = _example_clauses(load("example"), distractors=15, hidden=16)
    return f"With the small model VaGraM {found}."


def _example_clauses(study: Study, **labels: Label) -> str:
    """Compares VaGraM with the baselines of the example in a setting of a study."""
    found = {
        _spoken(loss): study.compare("vagram", (loss,), **labels).outcome
        for loss in _EXAMPLE[1:]
    }
    return clauses(found)


def _methods_table(rows: Sequence[tuple[str, Study, Mapping]]) -> str:
    """A row per setting: VaGraM, the best form of each baseline, and the outcomes."""
    lines = []
    for name, study, labels in rows:
        results = study.at(**labels)
        names = ["vagram", "vagram_mixed"]
        for forms in BASELINES.values():
            trained = [form for form in forms if form in results]
            names.append(
                study.compare("vagram", trained, **labels).baseline if trained else ""
            )
        cells = [cell(results[x]) if x in results else "" for x in names]
        lines.append([name, *cells, significance(outcomes(study, **labels))])
    columns = [
        "setting",
        "VaGraM",
        "mixed VaGraM",
        *BASELINES,
        "VaGraM is significantly",
    ]
    return table(columns, lines)


def _spoken(loss: str) -> str:
    """The name of a loss in a sentence."""
    return NAMES[loss].replace(",", " with")


def _hopper_steps() -> int:
    """The steps of the runs of the study `hopper`."""
    [steps] = {run["total_steps"] for _, run in hopper_study.labeled("long")}
    return int(steps)


def _seeds(study: Study) -> int:
    return len(study.at()["vagram"].seeds)
