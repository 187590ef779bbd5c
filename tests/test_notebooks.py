"""Every notebook runs from top to bottom and draws a figure.

The notebooks are text in jupytext's percent format, which is also a Python script.
"""

import re
import runpy
import time
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import pytest

from vagram_jax import losses

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
# Two minutes on two cores; the time of the processor doesn't depend on other programs.
MAX_PROCESSOR_SECONDS = 2 * 120

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _figures():
    """Draws without a screen, and closes the figures."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


@every_notebook
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A loss that a notebook registers doesn't stay in the registry.
    began = time.process_time()
    with mock.patch.dict(losses.LOSSES):
        names = runpy.run_path(str(path))
    assert time.process_time() - began < MAX_PROCESSOR_SECONDS
    drawn = [axis for axis in names["fig"].axes if axis.has_data()]
    assert drawn
    assert all(axis.get_ylabel() for axis in drawn)
    assert [*tmp_path.iterdir()] == []


@every_notebook
def test_a_notebook_is_a_percent_script_that_installs_the_package_on_colab(path):
    header, *cells = re.split(r"^# %%", path.read_text(), flags=re.MULTILINE)
    assert "format_name: percent" in header
    assert "name: python3" in header
    texts = [cell for cell in cells if cell.startswith(" [markdown]\n")]
    assert texts[0] == cells[0], "a notebook begins with what it shows"
    assert all(line[:1] in ("", "#") for text in texts for line in text.split("\n")[1:])
    assert 'if "google.colab" in sys.modules:' in cells[1]
    assert "install" in cells[1]
