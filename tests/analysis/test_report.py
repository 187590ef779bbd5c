"""The page: complete, self-contained, safe against what files say, and even-handed."""

import ast
import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vagram_jax.analysis import plots, report, stats
from vagram_jax.storage import files, results
from vagram_jax.storage.files import ResultsError

ATTACK = "<img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note a tag and what it carries."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        """Note what stands between tags."""
        self.text += data


def add_run(root, name, *, best=0.0, diverged=(), finished=True, text=None, steps=500):
    text = text or "toy"
    config = {"loss": name, "num_seeds": 4, "distractors": 0}
    config |= {"sac": {"discount": 0.9}, "dynamics": {"hidden": [8, 8]}}
    config |= {text: text} if text != "toy" else {}
    folder = results.create_run(root, "study", name, config, on={"device": text})
    rows = [
        {
            "env": text,
            "loss": text,
            "seed": seed,
            "env_steps": step,
            "return": math.nan if seed in diverged and step > 200 else best + seed,
            "diverged_at": 250 if seed in diverged and step > 200 else None,
        }
        for step in range(100, steps + 100, 100)
        for seed in range(4)
    ]
    files.append_rows(folder / "metrics.csv", rows)
    times = [
        {"seed": 0, "env_steps": step, "wall_time_s": step * 9.134}
        for step in range(0, steps + 100, 100)
    ]
    files.append_rows(folder / "timing.csv", times)
    fit = {"env_steps": steps, "attention_dim_0": 1, "error_dim_0": 0.5}
    model = [{"seed": seed} | fit for seed in range(4)]
    files.append_rows(folder / "model.csv", model)
    if finished:
        files.write_json(folder / "summary.json", {})
    return folder


@pytest.fixture
def study(tmp_path):
    add_run(tmp_path, "mle", best=10.0)
    add_run(tmp_path, "vagram", best=0.0, diverged=[2])
    return tmp_path / "study"


def write(study, **options) -> Page:
    path = report.write_report(study, resamples=200, **options)
    assert path == study / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_write_report_says_everything_that_was_measured(study):
    page = write(study, title="A study")
    for said in [
        "A study",
        "mle is above vagram.",
        "Diverged seeds of vagram: 1 of 4.",
        "0/4",
        "1/4",
        "250",
        "11.5",
        "4567",  # seconds
        "sac.discount",
        "numpy",
        "What differs between the runs",
    ]:
        assert said in page.text, said
    assert page.tags.count("img") == 2


def test_write_report_loads_and_runs_nothing(study):
    page = write(study)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?:|url\(|@import", (study / "report.html").read_text())


def test_write_report_allows_its_own_style_only(study):
    write(study)
    text = (study / "report.html").read_text()
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'" in text
    assert " style=" not in text


def test_write_report_embeds_the_pictures_that_it_wrote(study):
    page = write(study)
    for name in ("learning_curves.png", "attention.png"):
        data = base64.b64encode((study / name).read_bytes()).decode()
        assert ("src", f"data:image/png;base64,{data}") in page.attributes


def test_write_report_embeds_another_picture_and_nothing_that_is_none(study):
    points = {"mle": {0: [1.0, 2.0, 3.0], 1: [1.0, 2.0, 3.0]}}
    plots.sweep(points, study / "over_capacity.png", x_label="capacity")
    (study / "fake.png").write_text(ATTACK)
    (study / "link.png").symlink_to(study / "mle" / "config.json")
    page = write(study)
    assert page.tags.count("img") == 3
    assert "over capacity" in page.text


def test_write_report_links_to_the_pictures_of_policies(study):
    assert "Policies at work" not in write(study).text
    for name, seed, kind in (("vagram", 10, "gif"), ("mle", 0, "mp4")):
        results.picture_path(study / name, seed, kind).write_text("x")
    page = write(study)
    links = [value for name, value in page.attributes if name == "href"]
    assert links == ["mle/policy-seed0.mp4", "vagram/policy-seed10.gif"]
    assert "Policies at work" in page.text
    assert "vagram, seed 10 (gif)" in page.text
    assert all((study / link).is_file() for link in links)


def test_write_report_escapes_every_text(tmp_path):
    folder = add_run(tmp_path, "mle", text=ATTACK)
    record = files.read_json(folder / "config.json")
    for key in ("command", "started", "revision"):
        record[key] = ATTACK
    record["versions"] = {ATTACK: ATTACK}
    files.write_json(folder / "config.json", record)
    study = tmp_path / "study"
    plots.sweep(
        {"a": {0: [1, 2, 3]}}, study / f"{ATTACK}.png".replace("/", ""), x_label="x"
    )
    renamed = study.rename(tmp_path / ATTACK)
    for title in (None, ATTACK):
        path = report.write_report(
            renamed, title=title, dim_names=[ATTACK], resamples=50
        )
        page = Page(path.read_text(encoding="utf-8"))
        names = {name for name, _ in page.attributes}
        assert names <= {
            "lang",
            "charset",
            "http-equiv",
            "content",
            "name",
            "class",
        } | {
            "alt",
            "src",
        }
        assert page.tags.count("img") == 3
        # Title, heading, picture, environment, config, device, command, versions ...
        assert page.text.count(ATTACK) >= 10


def test_write_report_gives_the_same_bytes_for_the_same_files(study):
    write(study)
    first = {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()}
    write(study)
    again = {path.name: path.read_bytes() for path in study.iterdir() if path.is_file()}
    assert first == again
    assert set(first) == {"attention.png", "learning_curves.png"} | {
        "report.html",
        "summary.json",
    }


def test_write_report_writes_the_summary(study):
    write(study)
    summary = json.loads(
        (study / "summary.json").read_text(), parse_constant=pytest.fail
    )
    assert summary["runs"]["mle"]["iqm"] == 11.5
    assert summary["runs"]["vagram"]["diverged"] == 1
    assert summary["verdict"][0] == "mle is above vagram."


def test_write_report_tells_of_unfinished_and_damaged_runs(study):
    add_run(study.parent, "mse", finished=False)
    with open(study / "mse" / "metrics.csv", "a") as file:
        file.write("toy,ms")
    results.create_run(study.parent, "study", "vaml", {})
    page = write(study)
    assert "mse: unfinished" in page.text
    assert "mse: metrics.csv: the last line is cut off" in page.text
    assert "vaml: no evaluation yet" in page.text


def test_write_report_of_runs_without_model_fits_has_no_attention(tmp_path):
    folder = add_run(tmp_path, "mle")
    (folder / "model.csv").unlink()
    assert write(tmp_path / "study").tags.count("img") == 1


def test_write_report_shows_plain_sac_beside_losses_with_a_model(tmp_path):
    add_run(tmp_path, "mle")
    (add_run(tmp_path, "none") / "model.csv").unlink()
    page = write(tmp_path / "study")
    assert page.tags.count("img") == 2
    assert "none" in page.text


def test_write_report_holds_no_absolute_path(study, tmp_path):
    write(study)
    for path in study.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes()


def test_write_report_refuses_in_one_line(study):
    for break_it in (
        lambda: report.write_report(study, dim_names=["a", "b"]),
        lambda: report.write_report(study / "mle"),
        lambda: report.write_report(study / "missing"),
    ):
        with pytest.raises(ResultsError) as error:
            break_it()
        assert "\n" not in str(error.value)


def test_write_report_refuses_a_study_without_evaluations(tmp_path):
    results.create_run(tmp_path, "study", "vaml", {})
    with pytest.raises(ResultsError, match="no run has an evaluation"):
        report.write_report(tmp_path / "study")


def row(low, high, *, seeds=10, diverged=0, env="toy", steps=500):
    return {
        "env": env,
        "loss": "x",
        "iqm": (low + high) / 2,
        "low": low,
        "high": high,
    } | {
        "seeds": seeds,
        "diverged": diverged,
        "env_steps": steps,
        "seconds": 1.0,
    }


def test_verdict_tells_apart_what_does_not_overlap():
    summary = {"vagram": row(0, 1), "mle": row(2, 3), "mse": row(0.5, 2.5)}
    assert report.verdict(summary) == [
        "mle is above vagram.",
        "Not told apart: vagram and mse; mle and mse.",
    ]


def test_verdict_calls_intervals_that_touch_not_told_apart():
    summary = {"vagram": row(1, 2), "mle": row(2, 3)}
    assert report.verdict(summary) == ["Not told apart: vagram and mle."]


def test_verdict_says_so_if_nothing_is_told_apart():
    summary = {name: row(0, 1) for name in ("a", "b", "c")}
    assert report.verdict(summary) == ["No two of a, b and c are told apart."]


def test_verdict_does_not_judge_three_seeds_or_none_with_a_return():
    summary = {"a": row(0, 1, seeds=3), "b": row(2, 3), "c": row(math.nan, math.nan)}
    said = " ".join(report.verdict(summary))
    assert "above" not in said
    assert "Not judged, as it takes 4 seeds with a return: a and c." in said


def test_verdict_warns_of_few_seeds_and_names_the_diverged():
    summary = {"a": row(0, 1, seeds=4, diverged=2), "b": row(2, 3, seeds=4)}
    said = " ".join(report.verdict(summary))
    assert "Diverged seeds of a: 2 of 4." in said
    assert "fewer than 10 seeds" in said
    assert "fewer" not in " ".join(report.verdict({"a": row(0, 1), "b": row(2, 3)}))


def test_verdict_compares_within_an_environment_and_a_budget_only():
    summary = {"a": row(0, 1), "b": row(2, 3, env="else"), "c": row(2, 3, steps=900)}
    said = report.verdict(summary)
    assert not any("above" in sentence for sentence in said)
    assert said == ["On toy, runs with different numbers of steps are not compared."]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=5)
)
def test_verdict_favours_no_name(ends):
    names = ["vagram", "mle", "mse", "vaml", "other"][: len(ends)]
    rows = [row(low, low + width) for low, width in ends]
    said = report.verdict(dict(zip(names, rows, strict=True)))
    turned = names[1:] + names[:1]
    rename = dict(zip(names, turned, strict=True))
    again = report.verdict(dict(zip(turned, rows, strict=True)))
    words = re.compile("|".join(map(re.escape, names)))
    assert again == [words.sub(lambda m: rename[m.group()], text) for text in said]


def test_verdict_rarely_tells_alike_losses_apart():
    # The page says 3 of 100 with 4 seeds; 400 pairs have a standard error of 0.9 %.
    rng = np.random.default_rng(0)
    apart = 0
    for _ in range(400):
        ends = [
            stats.interval({"t": rng.normal(size=4)}, resamples=400)[1:]
            for _ in range(2)
        ]
        summary = {name: row(*e) for name, e in zip("ab", ends, strict=True)}
        apart += "above" in report.verdict(summary)[0]
    assert apart / 400 < 0.065


READERS = ["files", "results", "stats", "summary", "drawing", "plots", "maps", "report"]


@pytest.mark.parametrize("module", READERS)
def test_what_reads_files_imports_neither_jax_nor_pandas(module):
    path = Path(report.__file__).with_name(f"{module}.py")
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            assert name.split(".")[0] not in ("jax", "flax", "optax", "pandas", "scipy")
            if name.startswith("vagram_jax."):
                assert name.split(".")[1] in READERS[: READERS.index(module)]
