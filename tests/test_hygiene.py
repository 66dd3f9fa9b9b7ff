"What holds the project together: the library is what the notebooks export, and rules that no single notebook can keep"
import ast, configparser, graphlib, importlib, json, os, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MODULES = sorted(p for p in (ROOT / "raptor_nb").rglob("*.py") if p.name not in ("_modidx.py", "__init__.py"))
LAYERS = [{"core"}, {"policy", "drones", "design"}, {"environment", "learn", "targets"}, {"pretrain", "distill", "export", "evaluate"}, {"pipeline", "understand", "proof"}]
STAGES = LAYERS[3]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

named = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
modules = pytest.mark.parametrize("module", MODULES, ids=lambda p: p.relative_to(ROOT / "raptor_nb").as_posix())


def cells(notebook): return json.loads(notebook.read_text(encoding="utf-8"))["cells"]
def source(cell): return "".join(cell["source"])
def code_of(notebook): return [source(c) for c in cells(notebook) if c["cell_type"] == "code"]
def distribution(requirement): return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def tracked():
    "The files of the repository; without git, everything that is not made"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout: return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    made = {".venv", ".git", "build", "runs", "_docs", "_proc", ".cache"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not made & set(p.relative_to(ROOT).parts)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The notebooks and the library in another place, with one notebook more, cleaned and exported there"
    folder = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.key")
    shutil.copy(ROOT / "settings.ini", folder)
    for name in ("nbs", "raptor_nb"): shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    extra = {"cell_type": "code", "execution_count": 7, "id": "a1", "outputs": [], "source": ["steps = 3"],
             "metadata": {"tags": ["parameters"], "collapsed": True}}
    (folder / "nbs/99_extra.ipynb").write_text(json.dumps({"cells": [extra], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    for command in ("nbdev_clean", "nbdev_export"):
        done = subprocess.run([BIN / command], cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)})
        assert done.returncode == 0, done.stderr
    return folder


def test_export_changes_nothing(copy):
    files = lambda top: {p.relative_to(top).as_posix(): p.read_text() for p in (top / "raptor_nb").rglob("*.py")}
    fresh, here = files(copy), files(ROOT)
    stale = sorted(name for name in fresh.keys() | here.keys() if fresh.get(name) != here.get(name))
    assert not stale, f"not what the notebooks export (run nbdev_export): {stale}"


def test_clean_changes_nothing(copy):
    dirty = [str(p.relative_to(ROOT)) for p in NOTEBOOKS if (copy / p.relative_to(ROOT)).read_bytes() != p.read_bytes()]
    assert not dirty, f"run nbdev_clean: {dirty}"


def test_clean_keeps_the_parameters_tag(copy):
    cell, = cells(copy / "nbs/99_extra.ipynb")
    assert cell["metadata"] == {"tags": ["parameters"]}
    assert cell["execution_count"] is None


@named
def test_no_outputs_in_the_sources(notebook):
    assert not any(c.get("outputs") for c in cells(notebook)), "outputs belong into reports/"


@named
def test_exported_cells_are_short(notebook):
    lengths = [len(s.splitlines()) for s in code_of(notebook) if re.search(r"^#\|\s*exports?\b", s, re.M)]
    assert max(lengths, default=0) <= 60


@named
def test_imports_are_in_cells_of_their_own(notebook):
    "A cell that mixes imports with other code is run again when the documentation is rendered"
    for text in code_of(notebook):
        if re.search(r"^\s*[%!]", text, re.M) or re.search(r"^#\|\s*(eval:\s*false|exports?\b)", text, re.M) and "import" not in text: continue
        body = [n for n in ast.parse(text).body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
        imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in body]
        assert all(imports) or not any(imports), text


@pytest.mark.parametrize("stage", ["03_pretrain", "04_distill", "05_export", "06_evaluate", "08_understand", "10_proof"])
def test_stages_have_plain_parameters(stage):
    tagged = [source(c) for c in cells(ROOT / f"nbs/{stage}.ipynb") if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "one cell tagged `parameters`"
    assignments = ast.parse(tagged[0]).body
    assert assignments
    for node in assignments:
        assert isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name), ast.unparse(node)
        ast.literal_eval(node.value)


def test_the_table_of_contents_is_whole():
    listed = re.findall(r"- (\S+\.ipynb)$", (ROOT / "nbs/sidebar.yml").read_text(), re.M)
    assert sorted(listed) == sorted(p.relative_to(ROOT / "nbs").as_posix() for p in NOTEBOOKS)


def test_readme_is_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "tools/readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def own_imports(module):
    "Names of our modules that a module imports, anywhere in it"
    package = ["raptor_nb", *module.relative_to(ROOT / "raptor_nb").parts[:-1]]
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names if a.name.startswith("raptor_nb."))
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[:len(package) - node.level + 1]) if node.level else ""
            name = ".".join(filter(None, [base, node.module]))
            if name.split(".")[0] == "raptor_nb":
                yield from ([f"{name}.{a.name}" for a in node.names] if name.count(".") < 1 else [name])


def layer(name):
    part = name.split(".")[1]
    return next((i for i, names in enumerate(LAYERS) if part in names), -1)


def dotted(module): return ".".join(module.relative_to(ROOT).with_suffix("").parts)


@modules
def test_imports_go_one_way(module):
    mine, here = dotted(module), layer(dotted(module))
    assert here >= 0, f"{mine} has no place in LAYERS"
    for other in own_imports(module):
        if layer(other) < 0: continue   # a name of the package itself, such as __version__
        assert layer(other) <= here, f"{mine} imports {other}, which is above it"
        if here == LAYERS.index(STAGES) and other != mine:
            assert other.split(".")[1] not in STAGES, f"{mine} imports {other}: stages pass files to each other"


def test_no_circle_of_imports():
    names = {dotted(m) for m in MODULES}
    graph = {dotted(m): {n for n in own_imports(m) if n in names} for m in MODULES}
    assert set(graphlib.TopologicalSorter(graph).static_order()) == names


@modules
def test_only_base_dependencies_are_imported_at_once(module):
    allowed = {distribution(r).replace("-", "_") for r in PYPROJECT["project"]["dependencies"]} | sys.stdlib_module_names | {"raptor_nb"}
    for node in ast.parse(module.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            name = name.split(".")[0]
            assert {"yaml": "pyyaml"}.get(name, name) in allowed, f"import {name} where it is used, or make it a base dependency"


def test_library_imports_without_extras():
    extras = ["l2f", "foundation_policy", "onnx", "onnxruntime", "onnx_tf", "tensorflow", "ai_edge_litert", "papermill", "nbformat", "nbconvert",
              "nbclient", "tensorboard", "dask", "IPython", "nbdev", "fastcore", "pytest", "hypothesis"]
    code = f"import sys, importlib\nfor name in {extras}: sys.modules[name] = None\nfor name in {[dotted(m) for m in MODULES]}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_console_commands_exist():
    for name, target in PYPROJECT["project"]["scripts"].items():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function)), name


def test_one_version():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    import raptor_nb
    assert raptor_nb.__version__ == settings["DEFAULT"]["version"]
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert re.search(r"min_python = 3\.11", (ROOT / "settings.ini").read_text()) and PYPROJECT["project"]["requires-python"].startswith(">=3.11,")


@pytest.mark.parametrize("extra", ["base", "sim", "export", "tflite", "lab", "live", "docs", "dev"])
def test_locks_cover_the_dependencies(extra):
    lock = lambda name: {distribution(l): l for l in (ROOT / name).read_text().splitlines() if re.match(r"\w", l)}
    default, tflite = lock("requirements.lock"), lock("requirements-tflite.lock")
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in (*default.values(), *tflite.values())), "exact versions, and nothing else"
    assert not default.keys() & tflite.keys()
    project = PYPROJECT["project"]
    needed = project["dependencies"] if extra == "base" else project["optional-dependencies"][extra]
    locked = default | tflite if extra == "tflite" else default
    assert {distribution(r) for r in needed} <= locked.keys()


@modules
def test_figure_functions_take_an_axis_and_return_it(module):
    for node in ast.walk(ast.parse(module.read_text())):
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("plot_"): continue
        axis, = {a.arg for a in node.args.args} & {"ax", "axes"}
        returned = [ast.unparse(n.value) for n in ast.walk(node) if isinstance(n, ast.Return) and n.value]
        assert returned and all(re.search(rf"\b{axis}$", r) for r in returned), f"{node.name} gives {returned}"


def loads_pickle(tree):
    "Imports and calls by which a file could run code when it is read"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            if {n.split(".")[0] for n in names} & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}: yield ast.unparse(node)
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load" and given.get("weights_only") != "True": yield ast.unparse(node)
            if name == "torch.save" or name.endswith(("read_pickle", "to_pickle")) or given.get("allow_pickle") == "True": yield ast.unparse(node)


@pytest.mark.parametrize("text, found", [("import pickle", 1), ("from pickle import loads", 1), ("torch.load(p)", 1), ("torch.load(p, weights_only=True)", 0),
                                         ("np.load(p, allow_pickle=True)", 1), ("frame.to_pickle(p)", 1), ("import json", 0)])
def test_pickle_is_recognised(text, found): assert len(list(loads_pickle(ast.parse(text)))) == found


@modules
def test_no_pickle(module): assert not list(loads_pickle(ast.parse(module.read_text())))


def test_no_places_of_one_machine():
    "No path of somebody's machine and no package registry's host, in any file that is kept"
    words = ["/work/" + "main", "/tmp/" + "w/", "../" + "shared", "/root/" + r"\.", "/home/" + r"\w+/", "py" + r"pi\.org", "python" + r"hosted\.org",
             "deb\\." + "debian", "npm" + r"js\.org", "file" + ":///"]
    pattern = re.compile("|".join(words))
    found = [f"{p.relative_to(ROOT)}: {m[0]}" for p in tracked() if p.suffix not in {".png", ".safetensors", ".h5", ".parquet", ".onnx", ".tflite"}
             for m in [pattern.search(p.read_text(encoding="utf-8", errors="replace"))] if m]
    assert not found


def test_reports_are_small():
    assert sum(p.stat().st_size for p in tracked() if ROOT / "reports" in p.parents) < 30e6


def test_wrong_python_is_one_sentence(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\ncase \"$2\" in *exit*) exit 1;; *) echo 3.9.2;; esac\n")
    old.chmod(0o755)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/setup.sh", tmp_path / "tools")
    for name in ("requirements.lock", "pyproject.toml", "settings.ini"): shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["bash", "tools/setup.sh"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHON": str(old)})
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"set-up: Python 3.11 or 3.12 is needed, {old} is 3.9.2: install python3.11, or name one with make PYTHON=/path/to/python3.11\n"
    assert not (tmp_path / ".venv").exists()
