"The documentation's own tools"
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

for name in ("nbdev", "jupyter_cache", "sphinx_book_theme"): pytest.importorskip(name)
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import docs  # noqa: E402
import nbformat  # noqa: E402
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output  # noqa: E402


def write(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def site(tmp_path):
    """A repository with two notebooks, of which one uses the names of whoever executes it; and how
    its site is built"""
    for name in ("tools/docs.py", "tools/architecture.py", "docs/conf.py", "docs/extra/index.html",
                 "settings.ini"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "docs/_static", tmp_path / "docs/_static")
    (tmp_path / "docs/contents.md").write_text("```{toctree}\nother\n```\n")
    (tmp_path / "web").mkdir()
    for name in ("page", "fly"): (tmp_path / f"web/{name}.html").write_text("<p>flying</p>")
    names = ("execute", "main", "path", "cell", "Path", "nb", "docs")
    write(tmp_path / "nbs/index.ipynb", new_markdown_cell("# index"),
          new_code_cell(f"{' = '.join(names)} = 7"))

    def build():
        command = [sys.executable, tmp_path / "tools/docs.py"]
        return subprocess.run(command, capture_output=True, text=True)
    return tmp_path, build


def test_a_site_of_two_notebooks(site):
    folder, build = site
    write(folder / "nbs/other.ipynb", new_markdown_cell("# other"),
          new_code_cell("raise ValueError('not today')"))
    done = build()
    assert done.returncode != 0
    assert "nbs/other.ipynb does not run: ValueError: not today" in done.stderr
    assert "nbs/index.ipynb: executed" in done.stdout
    write(folder / "nbs/other.ipynb", new_markdown_cell("# other\n[back](index.ipynb)"),
          new_code_cell("import os, pathlib\n"
                        "print(pathlib.Path.cwd().name, 'IN_TEST' in os.environ)"))
    done = build()
    assert done.returncode == 0, done.stderr
    assert "nbs/index.ipynb" not in done.stdout, "what ran is not run again"
    assert "no broken link" in done.stdout
    assert "nbs True" in (folder / "_docs/nbs/other.html").read_text()


@pytest.mark.slow
def test_a_link_to_no_page_fails_the_build_each_time(site):
    folder, build = site
    write(folder / "nbs/other.ipynb", new_markdown_cell("# other\n[gone](gone.ipynb)"))
    for _ in range(2):
        done = build()
        assert done.returncode != 0
        assert "other.ipynb" in done.stderr and "'gone.ipynb'" in done.stderr


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="sub/a.html#here">1</a> <a href="sub/a.html#there">2</a> '
        '<a href="https://example.org/x">3</a> '
        '<img src="no.png"> <a href="#top" id="top">4</a> <a href="a%20b.txt">5</a>')
    (tmp_path / "sub/a.html").write_text(
        '<p id="here"></p><a href="../index.html">1</a><a href="../gone.html">2</a>'
        '<pre>&lt;a href="shown.html"&gt;</pre><script>"<a href=\'no.html\'>"</script>')
    (tmp_path / "a b.txt").write_text("")
    broken = ["index.html: sub/a.html#there", "index.html: no.png", "sub/a.html: ../gone.html"]
    assert docs.broken_links(tmp_path) == broken


def test_public_names_lead_to_their_documentation(tmp_path):
    module = tmp_path / "raptor_nb/core/config.py"
    module.parent.mkdir(parents=True)
    module.write_text("__all__ = ['load', 'X', 'gone']\nX = 1\n"
                      "def load():\n    'Read | it\\nmore'\ndef _hidden(): pass\n")
    names = docs.public_names(tmp_path / "raptor_nb")
    assert list(names) == ["raptor_nb.core.config.load"]
    text = "# `load`\n`load`, `load()`, `loads` [`load`](x.md)\n```\n`load`\n```"
    role = "{py:obj}`load <raptor_nb.core.config.load>`"
    linked = f"# `load`\n{role}, {role}, `loads` [`load`](x.md)\n```\n`load`\n```"
    assert docs.linked(text, names, "") == linked
    line = '<a href="../_modules/raptor_nb/core/config.html#load">3</a>'
    assert f"| {role} | Read \\| it | {line} |" in docs.api(names)


def test_exported_cells_are_folded_behind_their_documentation():
    def page(source): return docs.converted(new_code_cell(source), {}, "raptor_nb.settings")
    about, cell = page("#| export\ndef load_config(path):\n    'Read it'\n")
    assert about.source.startswith("::::{py:function} load_config(")
    assert ":module: raptor_nb.settings" in about.source and "Read it" in about.source
    assert cell.metadata.tags == ["hide-input"] and cell.source.startswith("def load_config")
    sources = "#| export\nimport os", "#| hide\n1", "1", "#| echo: false\n1"
    tags = [c.metadata.get("tags") for s in sources for c in page(s)]
    assert tags == [["remove-cell"], ["remove-cell"], [], ["remove-input"]]
    assert page("#| default_exp core.config") == []


def test_widgets_warnings_and_cleared_outputs_are_not_shown():
    stream = lambda name, text: new_output("stream", name=name, text=text)
    outputs = [stream("stderr", "warning"), stream("stdout", "shown"),
               new_output("display_data", {docs.WIDGET: {}, "text/plain": "HBox()"}),
               new_output("display_data", {"text/plain": "7"}), stream("stdout", "\x1b[2K\r")]
    assert docs.shown(new_code_cell("", outputs=outputs)) == [outputs[1], outputs[3]]


def test_links_of_a_report_lead_where_its_notebook_meant(tmp_path):
    text = "[a](10_proof.ipynb) [c](https://example.org/x.ipynb) [d](../docs/server.md) [e](#here)"
    report = write(tmp_path / "10_proof.ipynb", new_markdown_cell(text),
                   new_code_cell("silent = 1"))
    page = docs.report_page(report)
    assert [c.source for c in page.cells] == [
        "[a](../../nbs/10_proof.ipynb) [c](https://example.org/x.ipynb) "
        "[d](../../nbs/../docs/server.md) [e](#here)"]


def test_a_report_of_the_very_same_cells_lends_its_outputs(tmp_path):
    first, last = new_code_cell("a = 1"), new_code_cell("#| hide\na")
    stage = write(tmp_path / "nbs/03_x.ipynb", new_markdown_cell("# x"), first, last)
    seven = [new_output("execute_result", {"text/plain": "7"}, execution_count=1)]
    write(tmp_path / "reports/old/03_x.ipynb", first, new_code_cell("b", outputs=seven))
    assert docs.recorded(stage) is None and "mystnb" not in docs.notebook_page(stage, {}).metadata
    write(tmp_path / "reports/run/03_x.ipynb", new_code_cell("a = 1"), new_code_cell("a = 7"),
          new_code_cell("#| hide\na", outputs=seven))   # with injected parameters
    page = docs.notebook_page(stage, {})
    assert [c.get("outputs", []) for c in page.cells] == [[], [], seven]
    assert "](../reports/run/README.md)" in page.cells[0].source
    assert page.metadata.mystnb.execution_mode == "off"


def test_the_page_on_architecture_shows_every_module():
    page = docs.architecture.page(docs.notebooks_of_modules())
    assert all(f">{room}</text>" in page for layer in docs.architecture.LAYERS for room in layer)
    for module in docs.architecture.module_files():
        assert re.search(rf"\[{module.rpartition('.')[2]}\]\(\.\./nbs/\S+\.ipynb\)", page), module


def test_arrows_of_the_architecture_leave_out_what_a_longer_way_says():
    graph = {"cli": {"core.records", "pipeline"}, "pipeline": {"core.config"}, "core.config": set()}
    assert docs.architecture.arrows(graph) == {("cli", "pipeline"), ("pipeline", "core")}
