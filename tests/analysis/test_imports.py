"""The analysis runs on machines without JAX."""

import re
import subprocess
import sys
from pathlib import Path

from vagram_jax import analysis

FOLDER = Path(analysis.__file__).parent
CODE = """
import importlib, sys, types
package = types.ModuleType("vagram_jax")  # without running its __init__
package.__path__ = [sys.argv[1]]
sys.modules["vagram_jax"] = package
for name in sys.argv[2:]:
    importlib.import_module(f"vagram_jax.analysis.{name}")
print(*{"jax", "jaxlib", "flax", "optax", "pandas", "scipy"} & set(sys.modules))
"""


def test_analysis_imports_no_jax():
    names = [path.stem for path in FOLDER.glob("[a-z]*.py")]
    command = [sys.executable, "-c", CODE, str(FOLDER.parent), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    sources = "".join(path.read_text() for path in FOLDER.glob("*.py"))
    assert not re.search(r"^\s*(import|from) (jax|flax|optax)", sources, re.MULTILINE)
