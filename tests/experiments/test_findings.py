"""The findings page, the README's table and the results they are computed from."""

import dataclasses
import re

import numpy as np
import pytest

from experiments import agent_page, claims, findings, pages, peers_page, studies
from vagram_jax.analysis import verdicts
from vagram_jax.analysis.study import Design, Result, Study
from vagram_jax.storage import files

PAGE = findings.ROOT / findings.PAGE
RESULTS = findings.ROOT / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("**/study.json"))


@pytest.fixture(scope="module")
def page():
    return findings.text()


def test_the_page_is_up_to_date(page):
    message = "docs/findings.md is stale; run `vagram study --write_findings`"
    assert PAGE.read_text(encoding="utf-8") == page, message


def test_the_page_of_the_agent_is_up_to_date():
    path = findings.ROOT / agent_page.PAGE
    message = f"{path} is stale; run `vagram study --write_findings`"
    assert path.read_text(encoding="utf-8") == agent_page.text(), message


def test_the_page_is_short_and_its_links_exist(page):
    assert page.count("\n") <= 150
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page):
        assert (PAGE.parent / link).exists(), link


def test_the_readme_has_the_table_of_the_main_job():
    readme = (findings.ROOT / findings.README).read_text(encoding="utf-8")
    block = findings.readme_block()
    assert "| two layers of 16 | -1" in block
    assert f"{pages.BLOCK[0]}\n\n{block}\n{pages.BLOCK[1]}" in readme


def test_write_replaces_the_blocks_of_other_pages(tmp_path, monkeypatch):
    (tmp_path / "docs" / "howto").mkdir(parents=True)
    monkeypatch.setattr(findings, "ROOT", tmp_path)
    blocks = {
        "README.md": findings.readme_block(),
        "docs/howto/peers.md": peers_page.block(),
    }
    for path in blocks:
        old = "Before.\n<!-- results -->\nold\n<!-- /results -->\nAfter.\n"
        (tmp_path / path).write_text(old)
    assert [path.name for path in findings.write()] == [
        "findings.md", "agent.md", "findings.png", "README.md", "peers.md",
    ]  # fmt: skip
    texts = {path: (tmp_path / path).read_text() for path in blocks}
    for path, text in texts.items():
        assert text == (
            f"Before.\n<!-- results -->\n\n{blocks[path]}\n<!-- /results -->\nAfter.\n"
        )
    findings.write()
    assert {path: (tmp_path / path).read_text() for path in blocks} == texts


@pytest.mark.parametrize("page", [None, "No markers.\n"])
def test_a_page_without_markers_stays_as_it_is(tmp_path, page):
    path = tmp_path / "page.md"
    if page is not None:
        path.write_text(page)
    assert not pages.write_block(path, "new")
    assert (path.read_text() if path.exists() else None) == page


def with_results(monkeypatch, name, change):
    """Lets the page see changed results of a study."""
    study, others = claims.load(name), claims.load
    changed = dataclasses.replace(study, results=[change(x) for x in study.results])
    monkeypatch.setattr(
        findings, "load", lambda other: changed if other == name else others(other)
    )


@pytest.mark.parametrize(
    ("returns", "clause"), [(0.0, "beats MLE, MSE"), (-9e3, "is worse than MLE, MSE")]
)
def test_the_answer_follows_the_results(monkeypatch, returns, clause):
    def change(result):
        if result.labels["loss"] != "vagram":
            return result
        values = returns + np.arange(len(result.seeds), dtype=float)
        return dataclasses.replace(result, values=values)

    with_results(monkeypatch, "confirmation", change)
    answer = re.sub(r"\s+", " ", findings.text())
    assert f"VaGraM {clause} and plain SAC on fresh seeds" in answer


def test_the_readme_follows_the_results(monkeypatch):
    def change(result):
        return dataclasses.replace(result, values=np.zeros(len(result.seeds)))

    with_results(monkeypatch, "scale_confirmation", change)
    block = re.sub(r"\s+", " ", findings.readme_block())
    assert "ten times the scale it does not differ significantly from MLE, MLE" in block
    monkeypatch.setattr(findings, "outcomes", lambda *_, **__: {"MLE": verdicts.BETTER})
    with pytest.raises(files.ResultsError, match="on Hopper VaGraM beats no baseline"):
        findings.readme_block()


def test_a_sentence_that_the_results_contradict_is_refused(monkeypatch):
    def change(result):
        return dataclasses.replace(result, values=np.zeros(len(result.seeds)))

    with_results(monkeypatch, "baselines", change)
    with pytest.raises(files.ResultsError, match="no longer show: VAML's return is"):
        findings.text()


@pytest.mark.parametrize(
    ("outcomes", "sentence", "in_table"),
    [
        ("+", "beats MLE", "better than MLE"),
        ("++-", "beats MLE and MSE and is worse than plain SAC",
         "better than MLE, MSE; worse than plain SAC"),
        ("000", "does not differ significantly from MLE, MSE or plain SAC",
         "not different"),
        ("+0-", "beats MLE, does not differ significantly from MSE "
         "and is worse than plain SAC", "better than MLE; worse than plain SAC"),
    ],
)  # fmt: skip
def test_outcomes_in_words(outcomes, sentence, in_table):
    words = {"+": verdicts.BETTER, "0": verdicts.UNDECIDED, "-": verdicts.WORSE}
    named = {
        name: words[x] for name, x in zip(claims.BASELINES, outcomes, strict=False)
    }
    assert pages.clauses(named) == sentence
    assert pages.significance(named) == in_table


def test_every_setting_of_hopper_has_all_losses():
    settings = claims.hopper()
    assert set(settings) == {"large", "small", "large, distracted", "small, distracted"}
    for name, (study, labels) in settings.items():
        assert ("distracted" in name) == (labels["distractors"] == 15)
        assert name.startswith(labels["model"])
        losses = {"vagram", "mle", "mse_normalized", "sac"}
        assert set(study.at(**labels)) == losses
    assert len(settings) == len(claims.load("hopper").settings)


@pytest.mark.parametrize(
    ("better", "other", "diverged", "par", "verdict"),
    [
        ([9, 10, 11], [1, 2, 3], 0, False, claims.HOLDS),
        ([1, 2, 3], [9, 10, 11], 0, False, claims.FAILS),
        ([1, 5, 9], [2, 6, 8], 0, False, claims.OPEN),
        ([1, 5, 9], [2, 6, 8], 0, True, claims.HOLDS),
        ([1, 2, 3], [9, 10, 11], 0, True, claims.FAILS),
        ([9, 10, 11], [1, 2, 3], 2, False, claims.FAILS),
    ],
)
def test_judge_follows_the_rule_of_the_page(better, other, diverged, par, verdict):
    study = Study(RESULTS, Design(), [])
    one, two = (
        Result({}, np.arange(3), np.array(x, float), np.arange(3) < count)
        for x, count in ((better, diverged), (other, 0))
    )
    claim = claims.Claim("", par, {"task": [claims.Pair(study, one, two)]})
    assert claims.judge(claim, "task") == verdict


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_tables_and_verdicts_are_those_of_the_seeds(folder):
    if folder.name == "loss_surface":  # has no seeds
        return
    study = Study.load(folder)
    assert files.read_rows(folder / "table.csv") == study.table()
    verdict = study.verdict()
    assert study.record["verdict"][: len(verdict)] == verdict


def test_results_hold_the_studies_and_nothing_large():
    folders = {path.name for path in (RESULTS / "studies").iterdir()}
    assert folders == set(studies.descriptions())
    # Git ignores all other folders: they hold what a user trained in this checkout.
    published = ("README.md", "benchmark", "example", "gpu", "studies")
    published += ("published_curves.csv",)
    roots = [RESULTS / name for name in published]
    paths = [x for root in roots for x in (root, *root.rglob("*")) if x.is_file()]
    assert len(paths) <= 100
    assert sum(path.stat().st_size for path in paths) <= 4_000_000
