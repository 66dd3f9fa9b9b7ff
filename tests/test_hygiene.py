"What holds the project together: the library is what the notebooks export, and rules of the house"
import ast
import configparser
import graphlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]
import architecture  # noqa: E402
import house  # noqa: E402

NOTEBOOKS = house.notebooks(ROOT)
FILES = architecture.module_files()
GRAPH = architecture.import_graph()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Lines of code that are wider: these numbers may only go down
NOTEBOOKS_WIDER = {88: 19, 100: 0, 120: 0}
TESTS_WIDER = {100: 189}
# exported cells of more than 40 lines, by what they define first: why
LONG = {}

named = pytest.mark.parametrize("notebook", NOTEBOOKS,
                                ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
modules = pytest.mark.parametrize("module", FILES)


def cells(notebook): return json.loads(notebook.read_text(encoding="utf-8"))["cells"]
def source(cell): return "".join(cell["source"])
def code_of(notebook): return [source(c) for c in cells(notebook) if c["cell_type"] == "code"]
def tree(module): return ast.parse(FILES[module].read_text(encoding="utf-8"))


def tracked():
    "The files of the repository; without git, everything that is not made"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    if any(names): return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    made = {".venv", ".git", "build", "runs", "_docs", "_proc", ".cache"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not made & set(p.relative_to(ROOT).parts)]


# --- the library is what the notebooks export

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "Notebooks and library in another place, with one notebook more, cleaned and exported there"
    folder = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.key")
    shutil.copy(ROOT / "settings.ini", folder)
    for name in ("nbs", "raptor_nb"): shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    extra = {"cell_type": "code", "execution_count": 7, "id": "a1", "outputs": [],
             "source": ["steps = 3"], "metadata": {"tags": ["parameters"], "collapsed": True}}
    notebook = {"cells": [extra], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "nbs/99_extra.ipynb").write_text(json.dumps(notebook))
    for command in ("nbdev_clean", "nbdev_export"):
        done = subprocess.run([BIN / command], cwd=folder, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(folder)})
        assert done.returncode == 0, done.stderr
    return folder


def test_export_changes_nothing(copy):
    def files(top):
        paths = (top / "raptor_nb").rglob("*.py")
        return {p.relative_to(top).as_posix(): p.read_text() for p in paths}
    fresh, here = files(copy), files(ROOT)
    stale = sorted(n for n in fresh.keys() | here.keys() if fresh.get(n) != here.get(n))
    assert not stale, f"not what the notebooks export (run nbdev_export): {stale}"


def test_clean_changes_nothing(copy):
    names = [p.relative_to(ROOT) for p in NOTEBOOKS]
    dirty = [str(n) for n in names if (copy / n).read_bytes() != (ROOT / n).read_bytes()]
    assert not dirty, f"run nbdev_clean: {dirty}"


def test_clean_keeps_the_parameters_tag(copy):
    cell, = cells(copy / "nbs/99_extra.ipynb")
    assert cell["metadata"] == {"tags": ["parameters"]}
    assert cell["execution_count"] is None


@named
def test_no_outputs_in_the_sources(notebook):
    assert not any(c.get("outputs") for c in cells(notebook)), "outputs belong into reports/"


# --- how a notebook is written

@named
def test_title_and_question(notebook):
    "`# Plain name`, and below it `> `raptor_nb.module`: the question in one sentence`"
    title, *rest = [l for l in source(cells(notebook)[0]).splitlines() if l.strip()]
    assert re.fullmatch(r"# [A-Z0-9][^`]*", title) or notebook.stem == "index", title
    exports = [m[1] for t in code_of(notebook) if (m := re.match(r"#\| default_exp (\S+)", t))]
    start = f"> `raptor_nb.{exports[0]}`: " if exports else "> "
    assert rest and rest[0].startswith(start), f"after the title, '{start}' and the question"


def test_no_two_notebooks_have_the_same_title():
    titles = Counter(source(cells(p)[0]).splitlines()[0] for p in NOTEBOOKS)
    assert max(titles.values()) == 1, titles.most_common(3)


@named
def test_exported_cells_are_short(notebook):
    for text in filter(house.exported, code_of(notebook)):
        if len(text.splitlines()) <= 40: continue
        name = next(iter(house.top_names(house.tree_of(text))), text.splitlines()[1])
        assert name in LONG, f"{name} is {len(text.splitlines())} lines: split it"


def wider(texts, columns): return sum(len(l) > columns for t in texts for l in t.splitlines())


@pytest.mark.parametrize("columns", NOTEBOOKS_WIDER)
def test_lines_of_notebooks_fit_the_page(columns):
    found = wider((text for _, text in house.code_cells(ROOT)), columns)
    assert found <= NOTEBOOKS_WIDER[columns], "the page shows 88 columns: break the new lines"


@pytest.mark.parametrize("columns", TESTS_WIDER)
def test_lines_of_tests_fit_the_page(columns):
    paths = sorted((ROOT / "tests").rglob("*.py"))
    assert wider((p.read_text() for p in paths), columns) <= TESTS_WIDER[columns]


@named
def test_imports_are_in_cells_of_their_own(notebook):
    "A cell that mixes them with other code is run again when the documentation is rendered"
    for text in code_of(notebook):
        marked = re.search(r"^#\|\s*(eval:\s*false|exports?\b)", text, re.M)
        magic = re.search(r"^\s*[%!]", text, re.M)
        if magic or marked and "import" not in text: continue
        constant = lambda n: isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
        body = [n for n in ast.parse(text).body if not constant(n)]
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in body}
        assert len(kinds) < 2, text


TAGGED = ["03_direct", "03_pretrain", "04_distill", "05_export", "06_evaluate", "08_understand",
          "10_proof", "12_direct", "13_transfer", "14_identify", "15_paper", "16_real",
          "17_gpu"]


@pytest.mark.parametrize("stage", TAGGED)
def test_stages_have_plain_parameters(stage):
    notebook = cells(ROOT / f"nbs/{stage}.ipynb")
    tagged = [source(c) for c in notebook if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "one cell tagged `parameters`"
    assignments = ast.parse(tagged[0]).body
    assert assignments
    for node in assignments:
        assert isinstance(node, ast.Assign), ast.unparse(node)
        assert isinstance(node.targets[0], ast.Name), ast.unparse(node)
        ast.literal_eval(node.value)


def test_the_table_of_contents_is_whole():
    listed = re.findall(r"- (\S+\.ipynb)$", (ROOT / "nbs/sidebar.yml").read_text(), re.M)
    assert sorted(listed) == sorted(p.relative_to(ROOT / "nbs").as_posix() for p in NOTEBOOKS)


def test_readme_is_up_to_date():
    command = [sys.executable, ROOT / "tools/readme.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- rooms

@modules
def test_imports_go_one_way(module):
    here = architecture.layer_of(module)
    assert here is not None, f"{module} has no place in tools/architecture.py"
    for other in GRAPH[module]:
        assert architecture.layer_of(other) <= here, f"{module} imports {other}, which is above it"


@pytest.mark.parametrize("stage", sorted(architecture.STAGES))
def test_stages_pass_files_to_each_other(stage):
    assert not GRAPH[stage] & architecture.STAGES


def test_no_circle_of_imports():
    assert set(graphlib.TopologicalSorter(GRAPH).static_order()) == GRAPH.keys()


def test_every_room_has_modules():
    rooms = {room for layer in architecture.LAYERS for room in layer}
    assert rooms == {architecture.room_of(module) for module in FILES}


# --- the package

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
    assert settings["DEFAULT"]["min_python"] == "3.11"
    assert PYPROJECT["project"]["requires-python"].startswith(">=3.11,")


@modules
def test_figure_functions_give_what_they_draw_on(module):
    "An axis that they take; or a whole figure, which they make"
    for node in ast.walk(tree(module)):
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("plot_"): continue
        drawn = {a.arg for a in node.args.args} & {"ax", "axes"} or {"fig"}
        own = list(house.own_nodes(node))
        returned = {ast.unparse(n.value) for n in own if isinstance(n, ast.Return) and n.value}
        assert len(drawn) == 1 and returned == drawn, f"{node.name} gives {returned}"


PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def unsafe(call):
    "Whether a call could run code that a file holds, or write such a file"
    name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name == "torch.load": return given.get("weights_only") != "True"
    if name == "torch.save" or name.endswith(("read_pickle", "to_pickle")): return True
    return given.get("allow_pickle") == "True"


def loads_pickle(tree):
    "Imports and calls by which a file could run code when it is read"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            if {n.split(".")[0] for n in names} & PICKLES: yield ast.unparse(node)
        if isinstance(node, ast.Call) and unsafe(node): yield ast.unparse(node)


@pytest.mark.parametrize("text, found", [
    ("import pickle", 1), ("from pickle import loads", 1), ("torch.load(p)", 1),
    ("torch.load(p, weights_only=True)", 0), ("np.load(p, allow_pickle=True)", 1),
    ("frame.to_pickle(p)", 1), ("import json", 0)])
def test_pickle_is_recognised(text, found): assert len(list(loads_pickle(ast.parse(text)))) == found


@modules
def test_no_pickle(module): assert not list(loads_pickle(tree(module)))


BINARY = {".png", ".webp", ".safetensors", ".h5", ".parquet", ".onnx", ".tflite", ".tar"}


def test_no_places_of_one_machine():
    "No path of somebody's machine and no package registry's host, in any file that is kept"
    words = ["/work/" + "main", "/tmp/" + "w/", "../" + "shared", "/root/" + r"\.",
             "/home/" + r"\w+/", "py" + r"pi\.org", "python" + r"hosted\.org",
             "deb\\." + "debian", "npm" + r"js\.org", "file" + ":///"]
    pattern = re.compile("|".join(words))
    for path in tracked():
        if path.suffix in BINARY: continue
        found = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


def test_reports_are_small():
    assert sum(p.stat().st_size for p in tracked() if ROOT / "reports" in p.parents) < 30e6


OLD_PYTHON = '#!/bin/sh\ncase "$2" in *exit*) exit 1;; *) echo 3.9.2;; esac\n'


def test_wrong_python_is_one_sentence(tmp_path):
    old = tmp_path / "python3"
    old.write_text(OLD_PYTHON)
    old.chmod(0o755)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/setup.sh", tmp_path / "tools")
    for name in ("requirements.lock", "pyproject.toml", "settings.ini"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["bash", "tools/setup.sh"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHON": str(old)})
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"set-up: Python 3.11 or 3.12 is needed, {old} is 3.9.2: install " \
                          "python3.11, or name one with make PYTHON=/path/to/python3.11\n"
    assert not (tmp_path / ".venv").exists()
