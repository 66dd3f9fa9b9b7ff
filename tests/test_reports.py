"What `make reports` publishes, and what it does not"
import json, os, sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import reports  # noqa: E402

FINISHED = {
    "runs/quick/report/03_pretrain.ipynb": "new",
    "runs/quick/report/figures/a.png": "new",
    "runs/quick/report/verdict.json": "[]",
    "runs/quick/report/index.html": "new",
}
PUBLISHED = {"reports/quick/gone.html": "old", "reports/quick/README.md": "about"}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A clone with a finished run of profile quick, and an older published report"
    monkeypatch.setattr(reports, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, text in (FINISHED | PUBLISHED).items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    return tmp_path


def files(folder):
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_finished_report_replaces_the_published_one(clone, capsys):
    reports.main(["quick"])
    assert files("reports/quick") == {"03_pretrain.ipynb", "figures/a.png", "verdict.json",
                                      "index.html", "README.md"}
    assert Path("reports/quick/README.md").read_text() == "about"
    assert Path("reports/quick/index.html").read_text() == "new"
    assert [p.name for p in Path("reports").iterdir()] == ["quick"]
    assert files("runs") == {name.removeprefix("runs/") for name in FINISHED}
    assert capsys.readouterr().out == "reports/quick is a copy of 'runs/quick/report'\n"


def later(path): os.utime(path, ns=(2 * 10**18, 2 * 10**18))
def a_stage_that_ran_since(): later("runs/quick/report/03_pretrain.ipynb")
def a_stage_that_runs():
    Path("runs/quick/stages").mkdir()
    Path("runs/quick/stages/04_distill.running.json").write_text("{}")
def no_rows(): Path("runs/quick/report/verdict.json").unlink()
def nothing(): pass


def test_what_another_program_left_in_a_report_stays(clone):
    for path, text in {"paper/lead.json": "[]", "paper/figures/lead.png": "x",
                       "paper/gone.json": "[]", "real/seeds/real-43.safetensors": "w",
                       "real/seeds/scores.csv": "x", "real/gone/scores.csv": "x"}.items():
        path = Path("reports", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("paper", "real"):
        report = Path(f"runs/{name}/report_{name}")
        report.mkdir(parents=True)
        for file in ("verdict.json", "index.html"): (report / file).write_text("[]")
        reports.main([name])
    own = {"verdict.json", "index.html"}
    assert files("reports/paper") == own | {"lead.json", "figures/lead.png"}
    assert files("reports/real") == own | {"seeds/real-43.safetensors", "seeds/scores.csv"}


@pytest.mark.parametrize("name, happens, sentence", [
    pytest.param("foundation", nothing, "there is no 'runs/full/report'; make it first",
                 id="no-run"),
    pytest.param("quik", nothing, "there is no report 'quik'; the nearest is 'quick'",
                 id="misspelled"),
    pytest.param("quick", no_rows, "'runs/quick/report' is not finished: resume it",
                 id="stopped-before-the-end"),
    pytest.param("quick", a_stage_that_ran_since,
                 "the run of 'runs/quick/report' is not finished (see '03_pretrain.ipynb')",
                 id="stopped-when-run-again"),
    pytest.param("quick", a_stage_that_runs,
                 "the run of 'runs/quick/report' is not finished (see '04_distill.running.json')",
                 id="running"),
])
def test_what_is_not_finished_is_refused(clone, name, happens, sentence):
    happens()
    with pytest.raises(SystemExit, match="^reports: ") as told: reports.main([name])
    assert sentence in str(told.value) and "\n" not in str(told.value)
    assert files("reports") == {"quick/gone.html", "quick/README.md"}


def test_without_a_name_it_lists_them(clone, capsys):
    reports.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(reports.REPORTS)
    assert "make reports NAME=quick" in lines[0]
    assert "there is no 'runs/full/report'; make it first" in lines[1]
    assert files("reports") == {"quick/gone.html", "quick/README.md"}


def test_exported_files_go_with_their_report(clone):
    Path("runs/quick").rename("runs/export")
    sentence = f"there is no 'runs/export/{reports.EXPORTED[0]}' to ship: make export-report"
    with pytest.raises(SystemExit, match=sentence): reports.main(["export"])
    for name in reports.EXPORTED: Path("runs/export", name).write_text(name)
    reports.main(["export"])
    assert files("raptor_nb/weights") == set(reports.EXPORTED)
    assert "index.html" in files("reports/export")


def test_the_student_goes_with_its_report(clone, monkeypatch):
    Path("runs/quick").rename("runs/full")
    Path("runs/full/report/verdict.json").write_text(json.dumps([{"name": "a"}]))
    later("runs/full/report/index.html")
    shipped = []
    monkeypatch.setattr(reports, "ship", lambda *given: shipped.append(given))
    reports.main(["foundation"])
    assert shipped == [(Path("runs/full"), Path("raptor_nb/weights"), [{"name": "a"}])]
    assert "index.html" in files("reports/foundation")
