"The documentation's own tools"
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbdev")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import docs  # noqa: E402


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text('<a href="sub/a.html#here">1</a> <a href="sub/a.html#there">2</a> <a href="https://example.org/x">3</a> <img src="no.png"> <a href="#top" id="top">4</a> <a href="a%20b.txt">5</a>')
    (tmp_path / "sub/a.html").write_text('<p id="here"></p><a href="../index.html">1</a><a href="../gone.html">2</a>')
    (tmp_path / "a b.txt").write_text("")
    assert list(docs.broken_links(tmp_path)) == ["index.html: sub/a.html#there (no such place in it)", "index.html: no.png", "sub/a.html: ../gone.html"]


def test_links_stay_within_the_site():
    assert docs.localise("[x](01_drones.ipynb) [y](../docs/bad_input.md) [z](../reports/site/fly.png)", "") == "[x](drones.ipynb) [y](bad_input.md) [z](reports/site/fly.png)"
    assert docs.localise("[y](../../raptor_nb/weights/README.md)", "../") == "[y](../weights.md)"
    assert docs.localise("[z](../../reports/quick/figures/a.png)", "../") == "[z](../reports/quick/figures/a.png)"


def test_widgets_warnings_and_cleared_outputs_are_not_shown():
    from nbformat.v4 import new_code_cell, new_output
    outputs = [new_output("stream", name="stderr", text="warning"), new_output("stream", name="stdout", text="shown"),
               new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "HBox()"}), new_output("display_data", {"text/plain": "7"}),
               new_output("stream", name="stdout", text="\x1b[2K\r")]
    assert docs.shown(new_code_cell("", outputs=outputs)) == [outputs[1], outputs[3]]


def test_links_of_a_report_lead_where_its_notebook_meant():
    from nbformat.v4 import new_markdown_cell
    cell = new_markdown_cell("[a](10_proof.ipynb) [b](targets/onnx.ipynb) [c](https://example.org/x.ipynb) [d](../docs/server.md)")
    assert docs.report_cell(cell, "../../").source == "[a](../../proof.ipynb) [b](../../targets/onnx.ipynb) [c](https://example.org/x.ipynb) [d](../../server.md)"


def test_a_report_of_the_very_same_cells_lends_its_outputs(tmp_path, monkeypatch):
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
    monkeypatch.chdir(tmp_path)
    def write(path, *cells):
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=list(cells)), path)
        return path
    stage = write(Path("nbs/03_x.ipynb"), new_markdown_cell("# x"), new_code_cell("a = 1"), new_code_cell("a"))
    seven = [new_output("execute_result", {"text/plain": "7"}, execution_count=1)]
    write(Path("reports/old/03_x.ipynb"), new_code_cell("a = 1"), new_code_cell("b", outputs=seven))
    assert docs.recorded(stage) is None
    write(Path("reports/run/03_x.ipynb"), new_code_cell("a = 1"), new_code_cell("a = 7"), new_code_cell("a", outputs=seven))   # with injected parameters
    report, outputs = docs.recorded(stage)
    docs.take_over(stage, report, outputs)
    first, *code = nbformat.read("build/executed/03_x.ipynb", as_version=4).cells
    assert report == Path("reports/run/03_x.ipynb") and [len(c.outputs) for c in code] == [0, 1] and "](../reports/run/index.md)" in first.source
