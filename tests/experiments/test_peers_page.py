"""The results in docs/howto/peers.md, and the figures they are computed from."""

import pytest

from experiments import findings, pages, peers_page
from vagram_jax.storage import files

SPEED = {
    "matrix product, Gflop/s": 90.0,
    "SAC update, vagram_jax, rate to product's": 0.9,
    "SAC update, vagram_jax, ms": 4.0,
    "SAC update, SBX, ms": 5.0,
    "SAC update, SBX to vagram_jax, time": 1.25,
}


def reached(seconds, count=3):
    times = {"seconds": seconds, "without_compiling": seconds, "all_seeds": None}
    return {"seeds": 3, "reached": count, "env_steps": seconds and 1e4} | times


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Writes results of a comparison of its own, changed by keyword arguments."""

    def write(**changes):
        task = {"gymnasium": "Hopper-v5", "target": 1000.0}
        methods = {
            "vagram": reached(20.0),
            "sac": reached(30.0, 2),
            "sbx_sac": reached(None, 1),
        }
        content = {
            "device": "1 x cpu",
            "versions": {"jax": "1.0", "sbx-rl": "2.0"},
            "minutes": 6.0,
            "speed": SPEED,
            "tasks": {"hopper": task},
            "reached": {"hopper": methods},
        }
        files.write_json(tmp_path / "peers.json", content | changes)
        monkeypatch.setattr(peers_page, "RESULTS", tmp_path / "peers.json")

    return write


def test_the_page_is_up_to_date():
    path = findings.ROOT / peers_page.PAGE
    block = f"{pages.BLOCK[0]}\n\n{peers_page.block()}\n{pages.BLOCK[1]}"
    message = f"{path} is stale; run `vagram study --write_findings`"
    assert block in path.read_text(encoding="utf-8"), message


def test_the_tables_have_a_row_per_library_and_method(results):
    results()
    rows = [line for line in peers_page.block().splitlines() if line[:1] == "|"]
    assert rows[2:4] == [
        "| SAC update | vagram_jax | 4.0 | 1.00 |",
        "| SAC update | SBX | 5.0 | 1.25 |",
    ]
    assert rows[6:] == [
        "| VaGraM (vagram_jax) | 3 of 3 | 10,000 | 20 | 20 | - | 1.00 |",
        "| SAC (vagram_jax) | 2 of 3 | 10,000 | 30 | 30 | - | 1.50 |",
        "| SBX SAC | 1 of 3 | - | - | - | - | - |",
    ]


def test_the_sentences_follow_the_results(results):
    results()
    text = " ".join(peers_page.block().split())
    assert "with jax 1.0 and sbx-rl 2.0: 3 seeds, each trained for at most 6" in text
    assert "in the least time by VaGraM (vagram_jax) on Hopper-v5." in text
    assert "medians of the seeds:" in text
    methods = {"vagram": reached(None, 0), "sbx_sac": reached(10.0)}
    results(reached={"hopper": methods})
    text = " ".join(peers_page.block().split())
    assert "in the least time by SBX SAC on Hopper-v5." in text
    assert "(no seed of VaGraM (vagram_jax) has it in this time):" in text
    # Relative to a method that never has the return, there is no time.
    assert "| SBX SAC | 3 of 3 | 10,000 | 10 | 10 | - | - |" in text


def test_a_faster_library_is_not_hidden(results):
    results(speed=SPEED | {"SAC update, SBX to vagram_jax, time": 0.9})
    with pytest.raises(files.ResultsError, match="no peer is faster per update"):
        peers_page.block()
