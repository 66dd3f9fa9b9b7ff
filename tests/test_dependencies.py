"What is imported is declared, what is declared is imported, and both are locked"
import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LIBRARY = sorted(p for p in (ROOT / "raptor_nb").rglob("*.py")
                 if p.name not in ("_modidx.py", "__init__.py"))
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
FOLDERS = "tests", "tools", "benchmarks", "docs"
OTHERS = [ROOT / "setup.py", *sorted(p for f in FOLDERS for p in (ROOT / f).rglob("*.py"))]

IMPORT_NAMES = {"pyyaml": "yaml", "pillow": "PIL"}
# declared without an import of ours: why
UNIMPORTED = {
    "pyarrow": "pandas reads and writes Parquet by it",
    "jupyterlab": "`make lab` starts it",
    "ipykernel": "the kernel that papermill starts",
    "tensorboard": "torch.utils.tensorboard writes with it",
    "ui-server": "the program that shows a live view",
    "execnb": "nbdev needs a version below",
    "ghapi": "nbdev needs a version below",
    "pytest-cov": "`make test` measures coverage by it",
    "pytest-xdist": "`make test` runs tests on several cores by it",
    "coverage": "`make test` measures coverage by it",
    "torchdiffeq": "RotorPy's batch of vehicles integrates with it",
    "roma": "RotorPy's batch of vehicles rotates with it",
    "myst-nb": "named in docs/conf.py",
    "sphinx-book-theme": "named in docs/conf.py",
}
# imported without being declared: what brings it
BROUGHT = {
    "mpl_toolkits": "matplotlib", "jupyter_client": "nbclient", "IPython": "ipykernel",
    "pygments": "nbconvert", "no_such_package": "a lesson on what is missing", "markdown_it": "myst-nb",
}


def distribution(requirement):
    "The name in a requirement, as packages are compared"
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def import_name(requirement):
    name = distribution(requirement)
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


BASE = {import_name(r) for r in PROJECT["dependencies"]}
DECLARED = BASE | {import_name(r) for extra in EXTRAS.values() for r in extra}
OURS = {"raptor_nb", *(p.stem for p in OTHERS)}


def dotted(path): return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def named(node):
    "Modules that an import names, or a call that imports by name"
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom): return [] if node.level else [node.module]
    if not isinstance(node, ast.Call) or not node.args: return []
    function = ast.unparse(node.func).rpartition(".")[2]
    by_name = function in ("optional", "format_package", "import_module", "importorskip",
                           "find_spec")
    text = getattr(node.args[0], "value", None)
    return [text] if by_name and isinstance(text, str) else []


def imported(nodes):
    "The packages that these nodes import, the standard library's and ours left out"
    names = {name.split(".")[0].replace("-", "_") for node in nodes for name in named(node)}
    return names - sys.stdlib_module_names - OURS


def tree(path):
    "A module, or the code of a notebook"
    if path.suffix == ".py": return ast.parse(path.read_text(encoding="utf-8"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return ast.parse(re.sub(r"^\s*[%!].*$", "", "\n\n".join(code), flags=re.M))


EVERYTHING = [*LIBRARY, *NOTEBOOKS, *OTHERS]
modules = pytest.mark.parametrize("path", LIBRARY, ids=dotted)


def test_what_is_imported_is_declared():
    for path in EVERYTHING:
        missing = imported(ast.walk(tree(path))) - DECLARED - BROUGHT.keys()
        assert not missing, f"{path} imports {missing}: declare it in pyproject.toml"


def test_what_is_declared_is_imported():
    found = set().union(*(imported(ast.walk(tree(p))) for p in EVERYTHING))
    found |= {import_name(name) for name in UNIMPORTED}
    idle = DECLARED - found
    assert not idle, f"nothing imports {idle}: drop it, or say in UNIMPORTED what it does"


def test_the_exceptions_are_needed():
    declared = {distribution(r) for rs in (PROJECT["dependencies"], *EXTRAS.values()) for r in rs}
    assert UNIMPORTED.keys() <= declared
    assert not BROUGHT.keys() & DECLARED


def test_base_dependencies_are_imported_by_the_library():
    found = set().union(*(imported(ast.walk(tree(p))) for p in LIBRARY))
    assert BASE - found <= {import_name(n) for n in UNIMPORTED} | {"fastcore"}


@modules
def test_only_base_dependencies_are_imported_at_once(path):
    extra = imported(tree(path).body) - BASE
    assert not extra, f"import {extra} where it is used, or make it a base dependency"


def test_library_imports_without_extras():
    extras = sorted((DECLARED | {"IPython"}) - BASE - {"setuptools"})
    code = f"import sys, importlib\nfor name in {extras}: sys.modules[name] = None\n" \
           f"for name in {[dotted(p) for p in LIBRARY]}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", ["base", "sim", "export", "tflite", "lab", "identify", "transfer",
                                   "live", "docs", "dev"])
def test_locks_cover_the_dependencies(extra):
    lines = lambda name: [l for l in (ROOT / name).read_text().splitlines() if re.match(r"\w", l)]
    default, tflite = lines("requirements.lock"), lines("requirements-tflite.lock")
    exact = [re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in (*default, *tflite)]
    assert all(exact), "exact versions, and nothing else"
    locked, more = ({distribution(l) for l in lock} for lock in (default, tflite))
    assert not locked & more
    needed = PROJECT["dependencies"] if extra == "base" else EXTRAS[extra]
    assert {distribution(r) for r in needed} <= (locked | more if extra == "tflite" else locked)
