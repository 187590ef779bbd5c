"""The architecture: which part imports which, and how long functions and files are.

These tests read source text; only the last one runs code. Ruff's configuration in
pyproject.toml bans imports and calls that are never safe.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

# The method's modules and folders in the order in which data flows through them. Each
# imports only those before it.
FLOW = [
    *("types", "schedules", "user_code", "config"),
    *("envs", "replay", "networks", "dynamics"),
    *("losses", "diagnostics", "fit", "arrays", "termination", "imagine", "sac"),
    *("divergence", "mbpo"),
    "evaluate",
]
# The folders around the method, with the parts of the package that each may import.
# `cli` may import everything.
FOLDERS = {
    "storage": {"storage"},
    "run": {*FLOW, "storage", "analysis", "run"},
    "analysis": {"analysis", "storage"},
    "render": {*FLOW, "storage", "run", "render"},
}
WITHOUT_JAX = ("storage", "analysis")

ROOT = Path(__file__).parents[1]
FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for folder in ("vagram_jax", "experiments")
    for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
}
TREES = {file: ast.parse(text) for file, text in FILES.items()}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def part_of(file):
    """`envs` for vagram_jax/envs/base.py, `fit` for vagram_jax/fit.py."""
    parts = Path(file).with_suffix("").parts
    return parts[1] if parts[0] == "vagram_jax" else "experiments"


PARTS = {file: part_of(file) for file in FILES if file != "vagram_jax/__init__.py"}


def nodes_at_import(tree):
    """The nodes that run when a file is imported, without type-checking blocks."""
    for node in ast.iter_child_nodes(tree):
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(
            node.test
        )
        if not isinstance(node, FUNCTIONS) and not is_for_types:
            yield node
            yield from nodes_at_import(node)


def imports(nodes):
    """Every `(module, name)` that is imported; `name` is None for `import module`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def roots(nodes):
    """The top-level packages that are imported."""
    return {module.split(".")[0] for module, _ in imports(nodes)}


def parts_imported(nodes):
    """The parts of vagram_jax that are imported; a public name counts as itself."""
    for module, name in imports(nodes):
        if module.split(".")[0] == "vagram_jax":
            yield [*module.split("."), name][1]


def test_every_part_of_the_package_is_known():
    known = {*FLOW, *FOLDERS, "cli", "__main__"}
    assert set(PARTS.values()) - known == {"experiments"}
    assert set(FLOW) <= set(PARTS.values()), "FLOW names a module that doesn't exist"


def test_imports_follow_the_flow_of_data():
    errors = []
    for file, part in PARTS.items():
        if part in FLOW:
            allowed = set(FLOW[: FLOW.index(part) + 1])
            later = set(parts_imported(ast.walk(TREES[file]))) - allowed
            errors += [f"{file} imports {other}" for other in sorted(later)]
    assert errors == []


def test_folders_import_only_what_they_may():
    errors = []
    for file, part in PARTS.items():
        nodes = [*nodes_at_import(TREES[file])]
        if part in FOLDERS:
            other = set(parts_imported(nodes)) - FOLDERS[part]
            errors += [f"{file} imports {name}" for name in sorted(other)]
        if part in WITHOUT_JAX and roots(nodes) & {"jax", "flax", "optax"}:
            errors.append(f"{file} imports JAX")
        if part not in ("cli", "__main__") and roots(nodes) & {
            "absl",
            "ml_collections",
        }:
            errors.append(f"{file} reads flags")
        if part != "experiments" and "experiments" in roots(ast.walk(TREES[file])):
            errors.append(f"{file} imports experiments")
    assert errors == []


def test_losses_know_neither_agent_nor_environment():
    for file, part in PARTS.items():
        if part == "losses":
            parts = set(parts_imported(ast.walk(TREES[file])))
            assert not parts & {"sac", "envs"}, file


def is_module(name):
    path = name.replace(".", "/")
    return f"{path}.py" in FILES or f"{path}/__init__.py" in FILES


def test_functions_are_used_through_their_module():
    """Classes, types and config functions may be imported by name."""
    errors = []
    for file, tree in TREES.items():
        for module, name in imports(ast.walk(tree)):
            is_ours = module.split(".")[0] == "vagram_jax"
            exempt = module in ("vagram_jax.types", "vagram_jax.config")
            if file.endswith("__init__.py") or not is_ours or exempt:
                continue
            if name and name[0].islower() and not is_module(f"{module}.{name}"):
                errors.append(f"{file} imports {name} from {module}")
    assert errors == []


def defined_names(file):
    """The names that a module defines or imports at module level."""
    for node in ast.walk(TREES[file]):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def module_file(name):
    path = name.replace(".", "/")
    return f"{path}.py" if f"{path}.py" in FILES else f"{path}/__init__.py"


def names_used(tree):
    """Every name that a file takes out of a module of ours, with that module."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_module(node.module or ""):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if is_module(inner):
                    modules[alias.asname or alias.name] = inner
                elif node.module != "vagram_jax":
                    yield node.module, alias.name
    for node in ast.walk(tree):  # a variable may have the name of a module
        if isinstance(node, ast.arg):
            modules.pop(node.arg, None)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            modules.pop(node.id, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr[:2] != "__":
            module = modules.get(ast.unparse(node.value))
            yield from [(module, node.attr)] if module else []


def test_names_taken_out_of_our_modules_exist():
    """Pyright can't check this, see pyproject.toml."""
    names = {module: set() for tree in TREES.values() for module, _ in names_used(tree)}
    for module, defined in names.items():
        defined.update(defined_names(module_file(module)))
    errors = sorted(
        f"{file}: {module} has no {name}"
        for file, tree in TREES.items()
        for module, name in names_used(tree)
        if name not in names[module] and not is_module(f"{module}.{name}")
    )
    assert errors == []


def named_functions(tree, prefix="", depth=0):
    """Every function with its dotted name and the number of functions around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            is_function = isinstance(node, FUNCTIONS)
            if is_function:
                yield prefix + node.name, node, depth
            yield from named_functions(
                node, f"{prefix}{node.name}.", depth + is_function
            )
        else:
            yield from named_functions(node, prefix, depth)


def code_lines(function, text):
    """Counts the lines of a function without docstring, blank lines and comments."""
    lines = set(range(function.lineno, function.end_lineno + 1))
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    source = [text[number - 1].strip() for number in lines]
    return sum(1 for line in source if line and not line.startswith("#"))


def test_functions_keep_their_budgets():
    errors = []
    for file, tree in TREES.items():
        text = FILES[file].splitlines()
        for name, node, depth in named_functions(tree):
            if (length := code_lines(node, text)) > 40:
                errors.append(f"{file}:{name} has {length} lines of code; at most 40")
            if depth > 1:
                errors.append(f"{file}:{name} is nested twice; at most once")
            arguments = node.args
            positional = [
                each
                for each in [*arguments.posonlyargs, *arguments.args]
                if each.arg not in ("self", "cls")
            ]
            rest = [each for each in (arguments.vararg, arguments.kwarg) if each]
            total = len(positional) + len(arguments.kwonlyargs) + len(rest)
            if len(positional) > 5 or total > 8:
                errors.append(
                    f"{file}:{name} has more than 5 positional or 8 parameters"
                )
    assert errors == []


def test_files_keep_their_budget_and_have_a_name_that_says_what_is_in_them():
    long = [file for file, text in FILES.items() if len(text.splitlines()) > 500]
    assert long == []
    vague = {"util", "utils", "common", "helpers", "misc"}
    assert [file for file in FILES if Path(file).stem.strip("_") in vague] == []


def test_no_docstring_uses_a_formula():
    formulas = ("Comes in:", "Goes out:", "Comes in ", "Goes out ")
    actual = [
        f"{file}: {formula}"
        for file, text in FILES.items()
        for formula in formulas
        if formula in text
    ]
    assert actual == []


def unsafe(tree):
    """Lists changes of the process at import, and calls that unpickle."""
    errors = []
    at_import = {id(node) for node in nodes_at_import(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            errors.append("allow_pickle")
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            changes = {"setdefault", "update", "pop", "clear"}
            if called in {f"os.environ.{name}" for name in changes}:
                errors.append(called)
            if "config.update" in called and id(node) in at_import:
                errors.append(f"{called} at import")
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            errors += {ast.unparse(node.value)} & {"os.environ"}
    return errors


def test_no_file_changes_the_process_at_import_or_unpickles():
    errors = {file: unsafe(tree) for file, tree in TREES.items()}
    assert {file: actual for file, actual in errors.items() if actual} == {}
    # JAX executes what it loads from its cache, so only `cache` may set one.
    users = [file for file, text in FILES.items() if "compilation_cache" in text]
    assert users == ["vagram_jax/run/cache.py"]


def test_unsafe_code_is_recognized():
    refused = [
        "numpy.load(f, allow_pickle=True)",
        "os.environ['A'] = 'b'",
        "del os.environ['A']",
        "os.environ.setdefault('A', 'b')",
        "jax.config.update('a', 1)",
    ]
    accepted = [
        "def f():\n    jax.config.update('a', 1)",
        "os.environ['A']",
        "os.environ.get('A')",
        "numpy.load(f)",
    ]
    assert [len(unsafe(ast.parse(code))) for code in refused] == [1] * len(refused)
    assert [unsafe(ast.parse(code)) for code in accepted] == [[]] * len(accepted)


IMPORTS = """
import json, sys
steps = {}
def loaded(step, *modules):
    for module in modules:
        __import__(module)
    steps[step] = sorted({name.split(".")[0] for name in sys.modules})
loaded("package", "vagram_jax")
loaded("files", "vagram_jax.analysis.stats", "vagram_jax.storage.results")
loaded("libraries", "jax", "numpy", "optax", "flax.linen", "flax.struct")
loaded("losses", "vagram_jax.losses")
from vagram_jax import vagram_loss
assert vagram_loss.__module__.startswith("vagram_jax.losses")
print(json.dumps(steps))
"""


def test_imports_are_lazy():
    """Tables and statistics load no JAX; the losses load no environment or plots."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    steps = {name: set(actual) for name, actual in json.loads(done.stdout).items()}
    heavy = {"jax", "jaxlib", "flax", "optax", "matplotlib", "mujoco", "absl"}
    assert not steps["package"] & (heavy | {"numpy"})
    assert not steps["files"] & heavy
    extra = steps["losses"] - steps["libraries"] - set(sys.stdlib_module_names)
    assert extra == set()
