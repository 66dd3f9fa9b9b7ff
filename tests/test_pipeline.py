"The pipeline on small stand-ins of the stages: what is checked, skipped, done again, gone on with, and left behind"
import json, os, re, subprocess, sys, time
from pathlib import Path

import pytest

from raptor_nb import pipeline as P
from raptor_nb.core.config import ConfigError
from raptor_nb.core.records import WriteError

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
FIRST = "import base64, json, os\nfrom pathlib import Path\nout = Path(output_dir)\nout.mkdir(parents=True, exist_ok=True)\n"
STAND_INS = {   # parameters, work
    "03_pretrain": ("config = ''\noutput_dir = 'runs/default'\ndrones = ''\nteacher_ids = ''\nnum_teachers = 0\nalgorithm = ''\nsteps = 0\ndevice = ''\nseed = -1", """
done = out/'half'
begun = done.exists()
done.write_text('half of it')
print('line', 'of the log', os.getcwd())
if steps == 13: raise ValueError('thirteen steps\\nbring bad luck')
if steps == 9: os._exit(9)
for name in ('drones.json', 'teachers.safetensors', 'teachers.csv'): (out/name).write_text(json.dumps(['went on' if begun else 'from the start', seed]))
"""),
    "04_distill": ("config = ''\noutput_dir = 'runs/default'\nteachers = ''\ndrones = ''\nupdates = 0\ndevice = ''\nseed = -1",
                   "(out/'student.safetensors').write_text(Path(teachers or out/'teachers.safetensors').read_text() + str(updates))"),
    "05_export": ("config = ''\noutput_dir = 'runs/default'\nstudent = ''\ntargets = 'onnx,h5'\nroute = ''", "for t in targets.split(','): (out/f'student.{t}').write_text('exported')"),
    "06_evaluate": ("config = ''\noutput_dir = 'runs/default'\nstudent = ''\nteachers = ''\ndrones = ''", f"""
(out/'figures').mkdir(exist_ok=True)
(out/'figures/flights.png').write_bytes(base64.b64decode('{PICTURE}'))
(out/'flights.parquet').write_text('flights')
(out/'verdict.json').write_text(json.dumps([dict(name='survival', value=.95, unit='', published=.945, bar=.9, ok=True), dict(name='<b>', value=1, unit='m', published=None, bar=None, ok=None)]))
"""),
}


def cell(source, *tags):
    return {"cell_type": "code", "execution_count": None, "id": f"c{abs(hash(source)) % 10**8}", "metadata": {"tags": list(tags)} if tags else {}, "outputs": [], "source": source}


def write(folder, name, *cells):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").write_text(json.dumps({"cells": list(cells), "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture
def place(tmp_path, monkeypatch):
    "An empty working directory, and stand-ins for the stages somewhere else"
    for name, (parameters, work) in STAND_INS.items(): write(tmp_path / "nbs", name, cell(parameters, "parameters"), cell(FIRST + work))
    monkeypatch.setenv("RAPTOR_NB_NOTEBOOKS", str(tmp_path / "nbs"))
    for name, value in {"PYTHONPATH": "", "TQDM_MININTERVAL": "30"}.items(): monkeypatch.setenv(name, os.environ.get(name, value))   # put back at the end
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


class Here:
    "An engine that works in this process and keeps account"
    def __init__(self): self.jobs = []
    def map(self, function, tasks): return map(function, tasks)
    def submit(self, function, job):
        self.jobs.append(Path(job["notebook"]).stem)
        out = P.Future()
        out.set_result(self.work(function, job))
        return out
    def work(self, function, job): return function(job)


class Fake(Here):
    "The same without papermill, in a moment"
    error, seconds = None, 2.
    def work(self, function, job):
        notebook = json.loads(Path(job["notebook"]).read_text())
        names = {}
        sources = [c["source"] for c in notebook["cells"]]
        exec(sources[0], names)
        names |= job["parameters"]
        error = self.error
        try:
            if not error: [exec(s, names) for s in sources[1:]]
        except Exception as e: error = f"{type(e).__name__}: {str(e).splitlines()[0]}"
        return dict(error=error, seconds=self.seconds, peak=10**9)


# --- finding and checking

@pytest.mark.parametrize("name, parameters, kind, sentence", [
    pytest.param("03_pretrian", {}, ConfigError, r"there is no notebook '03_pretrian' in '.*nbs'; the nearest is '03_pretrain'", id="unknown-stage"),
    pytest.param("03_pretrain", {"step": 5}, ConfigError, r"03_pretrain.ipynb has no parameter 'step'; the nearest is 'steps'", id="misspelled-parameter"),
    pytest.param("03_pretrain", {"colour": 5}, ConfigError, r"03_pretrain.ipynb has no parameter 'colour'; known: config, output_dir, drones", id="unknown-parameter"),
    pytest.param("03_pretrain", {"config": "quik"}, ConfigError, r"settings file 'quik' does not exist; packaged ones are .*quick", id="unknown-settings"),
    pytest.param("03_pretrain", {"output_dir": ""}, ConfigError, r"03_pretrain: output_dir is empty; it must name the folder", id="no-output-folder"),
    pytest.param("03_pretrain", {"drones": "x/drones.json"}, FileNotFoundError, r"03_pretrain: drones is 'x/drones.json', and there is no such file or folder", id="missing-drones-file"),
    pytest.param("04_distill", {}, FileNotFoundError, r"04_distill needs 'out/teachers.safetensors', which 03_pretrain makes: run that first", id="missing-earlier-stage"),
    pytest.param("05_export", {}, FileNotFoundError, r"05_export needs 'out/student.safetensors', which 04_distill makes", id="missing-student"),
    pytest.param("06_evaluate", {"student": "no.safetensors"}, FileNotFoundError, r"06_evaluate: student is 'no.safetensors', and there is no such file", id="missing-named-student"),
])
def test_refused_before_a_kernel_starts(place, name, parameters, kind, sentence):
    engine = Fake()
    with pytest.raises(kind, match=sentence): P.run_stage(name, {"output_dir": "out"} | parameters, engine=engine)
    assert not engine.jobs


def test_no_notebooks_in_the_folder(place, monkeypatch):
    monkeypatch.setenv("RAPTOR_NB_NOTEBOOKS", str(place / "work"))
    with pytest.raises(ConfigError, match=r"there are no notebooks in '.*work'; RAPTOR_NB_NOTEBOOKS must be unset, or name a folder"): P.find_notebook("03_pretrain")


def test_notebooks_of_the_clone(monkeypatch):
    monkeypatch.delenv("RAPTOR_NB_NOTEBOOKS", raising=False)
    assert P.find_notebook("07_pipeline") == Path(__file__).resolve().parents[1] / "nbs/07_pipeline.ipynb"


def test_notebooks_of_the_installed_package(tmp_path, monkeypatch):
    monkeypatch.delenv("RAPTOR_NB_NOTEBOOKS", raising=False)
    monkeypatch.setattr(P.raptor_nb, "__file__", str(tmp_path / "site/raptor_nb/__init__.py"))
    write(tmp_path / "site/raptor_nb/notebooks", "03_pretrain", cell("a = 1", "parameters"))
    assert P.find_notebook("03_pretrain") == tmp_path / "site/raptor_nb/notebooks/03_pretrain.ipynb"
    (tmp_path / "site/nbs").mkdir()   # somebody else's
    assert P.notebooks_folder() == tmp_path / "site/raptor_nb/notebooks"


def test_copies_of_the_notebooks(place):
    write(place / "nbs/learn", "sac", cell("a = 1"))
    write(place / "nbs/.ipynb_checkpoints", "03_pretrain-checkpoint", cell("a = 1"))
    copies = P.copy_notebooks("mine")
    assert [p.as_posix() for p in copies] == [*(f"mine/{name}.ipynb" for name in sorted(STAND_INS)), "mine/learn/sac.ipynb"]
    assert Path("mine/learn/sac.ipynb").read_bytes() == (place / "nbs/learn/sac.ipynb").read_bytes()
    Path("mine/03_pretrain.ipynb").unlink()
    Path("mine/04_distill.ipynb").write_text("mine")
    with pytest.raises(ConfigError, match="'mine/04_distill.ipynb' is there already; nothing was overwritten: name another folder"): P.copy_notebooks("mine")
    assert Path("mine/04_distill.ipynb").read_text() == "mine" and not Path("mine/03_pretrain.ipynb").exists()


@pytest.mark.parametrize("which", [pytest.param("output", id="output-is-a-file"), pytest.param("report", id="report-is-a-file")])
def test_unwritable_output(place, which):
    Path("file").write_text("mine")
    with pytest.raises(OSError, match="cannot write"): P.run_stage("03_pretrain", {"output_dir": "file" if which == "output" else "out"}, "file/x.ipynb" if which == "report" else None, Fake())
    assert Path("file").read_text() == "mine"


def test_the_real_stages_declare_what_the_pipeline_gives(monkeypatch):
    monkeypatch.delenv("RAPTOR_NB_NOTEBOOKS", raising=False)
    for stage, parameters in P.plan("quick", "out", "cpu", 3, "drones.json").items(): P.check_parameters(P.find_notebook(stage), parameters)
    for stage in P.STAGES.values(): P.check_parameters(P.find_notebook(stage.name), dict.fromkeys(stage.reads))


# --- one stage, really executed

def test_execution_leaves_a_copy_and_a_log(place, capfd):
    run = P.run_stage("03_pretrain", {"config": "quick", "output_dir": "out", "seed": 3}, "reports/03_pretrain.ipynb")
    assert not run.skipped and run.peak > 2e7 and run.seconds > 0
    assert json.loads(Path("out/teachers.csv").read_text()) == ["from the start", 3]
    copy = Path("reports/03_pretrain.ipynb").read_text()
    assert "line of the log" in copy and str(place / "work") + "/" not in copy
    assert sorted(p.name for p in Path("reports").iterdir()) == ["03_pretrain.ipynb"]
    log = capfd.readouterr().out
    assert f"    line of the log {place}/work" in log    # the working directory is the caller's
    P.run_stage("03_pretrain", {"config": "quick", "output_dir": "out", "seed": 3}, "reports/03_pretrain.ipynb", Fake())
    assert capfd.readouterr().out == "03_pretrain: nothing changed: skipped\n"


def test_a_failing_stage_leaves_its_copy_and_a_sentence(place):
    with pytest.raises(P.StageError, match=r"^03_pretrain failed: ValueError: thirteen steps; the executed notebook is 'out/03_pretrain.ipynb'$"):
        P.run_stage("03_pretrain", {"output_dir": "out", "steps": 13}, engine=Here())
    outputs = [o for c in json.loads(Path("out/03_pretrain.ipynb").read_text())["cells"] for o in c.get("outputs", [])]
    assert [o["ename"] for o in outputs if o["output_type"] == "error"] == ["ValueError"]


def test_a_kernel_that_dies_is_a_sentence(place):
    with pytest.raises(P.StageError, match=r"03_pretrain failed: its kernel died, as happens when memory runs out; the executed notebook is"):
        P.run_stage("03_pretrain", {"output_dir": "out", "steps": 9}, engine=Here())
    assert Path("out/03_pretrain.ipynb").is_file()


def kill_its_own_process(job): os._exit(3)


def test_a_process_that_dies_is_a_sentence(place, monkeypatch):
    monkeypatch.setattr(P, "execute", kill_its_own_process)
    with pytest.raises(P.StageError, match=r"03_pretrain failed: its process was ended from outside"): P.run_stage("03_pretrain", {"output_dir": "out"})


def test_papermill_missing_is_a_sentence(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    with pytest.raises(P.StageError, match=r"papermill is needed to execute notebooks: pip install 'raptor-nb\[lab\]'"): P._submit({}, None)


# --- what is skipped and what is done again

def ran(place, **parameters):
    "Which stages work when 03 and 04 are asked for"
    engine = Fake()
    for name in ("03_pretrain", "04_distill"): P.run_stage(name, {"config": "quick", "output_dir": "out"} | parameters.get(name, {}), engine=engine)
    return [j[:2] for j in engine.jobs]


def test_unchanged_is_skipped(place):
    assert ran(place) == ["03", "04"]
    assert ran(place) == []


def change_parameter(place): return {"03_pretrain": {"seed": 5}}
def change_later_parameter(place): return {"04_distill": {"updates": 5}}
def change_notebook(place): write(place / "nbs", "04_distill", cell(STAND_INS["04_distill"][0], "parameters"), cell(FIRST + STAND_INS["04_distill"][1] + " # new"))
def change_ids_only(place):
    notebook = json.loads((place / "nbs/04_distill.ipynb").read_text())
    for i, c in enumerate(notebook["cells"]): c["id"] = f"other{i}"
    (place / "nbs/04_distill.ipynb").write_text(json.dumps(notebook))
def change_input(place): Path("out/drones.json").write_text("[]")
def remove_artefact(place): Path("out/student.safetensors").unlink()
def damage_artefact(place): Path("out/student.safetensors").write_text("")
def remove_report(place): Path("out/04_distill.ipynb").unlink()
def damage_record(place): Path("out/stages/04_distill.json").write_text("{")


@pytest.mark.parametrize("change, again", [(change_parameter, ["03", "04"]), (change_later_parameter, ["04"]), (change_notebook, ["04"]), (change_ids_only, []), (change_input, ["03"]),
                                           (remove_artefact, ["04"]), (damage_artefact, ["04"]), (remove_report, ["04"]), (damage_record, ["04"])], ids=lambda x: getattr(x, "__name__", None))
def test_what_has_changed_is_done_again(place, change, again):
    Path("half").mkdir()   # so that both runs write the same
    ran(place)
    ran(place)
    for name in ("drones.json", "teachers.safetensors", "teachers.csv"): assert "went on" not in Path(f"out/{name}").read_text()
    Path("out/half").unlink()
    assert ran(place, **(change(place) or {})) == again
    assert ran(place, **(change(place) or {}) if change in (change_parameter, change_later_parameter) else {}) == []


def test_changed_settings_file_is_done_again(place):
    Path("mine.yaml").write_text("inherit: quick.yaml\ntraining: {num_teachers: 3}\n")
    engine = Fake()
    again = lambda: P.run_stage("03_pretrain", {"config": "mine.yaml", "output_dir": "out"}, engine=engine).skipped
    assert [again(), again()] == [False, True]
    Path("mine.yaml").write_text("inherit: quick.yaml\ntraining: {num_teachers: 3} # a comment\n")
    assert again()
    Path("mine.yaml").write_text("inherit: quick.yaml\ntraining: {num_teachers: 4}\n")
    assert not again()


def test_changed_library_is_done_again(place, monkeypatch):
    ran(place)
    monkeypatch.setattr(P, "_library", lambda name: "another")
    Path("out/half").unlink()
    assert ran(place) == ["03", "04"]


def test_a_stage_does_not_depend_on_the_other_stages(tmp_path, monkeypatch):
    for name in ("core/x.py", "distill.py", "pretrain.py", "understand.py", "weights/student.safetensors", "pipeline.py", "__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(P.raptor_nb, "__file__", str(tmp_path / "__init__.py"))
    fresh = P._library.__wrapped__
    before = {n: fresh(n) for n in ("03_pretrain", "04_distill", "08_understand")}
    changed = lambda: [n for n in before if fresh(n) != before[n]]
    for name in ("pipeline.py", "weights/student.safetensors"): (tmp_path / name).write_text("2")
    assert changed() == [], "what is shipped comes from a run and does not make it run again"
    (tmp_path / "understand.py").write_text("2")
    assert changed() == ["08_understand"]
    (tmp_path / "distill.py").write_text("2")
    assert changed() == ["04_distill", "08_understand"], "what comes further uses the stages"
    (tmp_path / "core/x.py").write_text("2")
    assert changed() == ["03_pretrain", "04_distill", "08_understand"]


def test_a_stage_that_failed_goes_on(place):
    engine = Fake()
    engine.error = "ValueError: full disk"
    parameters = {"config": "quick", "output_dir": "out"}
    with pytest.raises(P.StageError, match="full disk"): P.run_stage("03_pretrain", parameters, engine=engine)
    engine.error = None
    Path("out/half").write_text("half of it")
    run = P.run_stage("03_pretrain", parameters, engine=engine)
    assert run.seconds == 4   # both tries
    assert json.loads(Path("out/teachers.csv").read_text())[0] == "went on"
    assert sorted(p.name for p in Path("out/stages").iterdir() if p.name != ".lock") == ["03_pretrain.json"]


def test_the_time_of_a_killed_try_counts(place):
    parameters = {"config": "quick", "output_dir": "out"}
    P.run_stage("03_pretrain", parameters, engine=Fake())
    depends = json.loads(Path("out/stages/03_pretrain.json").read_text())["depends"]
    mark = Path("out/stages/03_pretrain.running.json")
    mark.write_text(json.dumps(dict(depends=depends, spent=5., start=1000.)))
    os.utime(mark, (1100., 1100.))
    assert P._spent(mark, depends) == pytest.approx(105)
    assert P._spent(mark, {**depends, "library": "another"}) == 0


def test_work_found_done_keeps_its_time(place):
    parameters = {"config": "quick", "output_dir": "out"}
    P.run_stage("03_pretrain", parameters, engine=Fake())
    Path("out/03_pretrain.ipynb").unlink()
    Path("out/half").unlink()
    quick = Fake()
    quick.seconds = .5
    run = P.run_stage("03_pretrain", parameters, engine=quick)
    assert quick.jobs == ["03_pretrain"] and run.seconds == 2 and not run.skipped


def test_two_at_a_time_are_refused(place):
    with P.run_lock("out/stages"), pytest.raises(WriteError, match="is being written by process"): P.run_stage("03_pretrain", {"output_dir": "out"}, engine=Fake())


# --- engines

def fail(x): raise ValueError(f"no {x}")
def process(x): return x, os.getpid()


def test_processes_are_fresh_and_in_order():
    with P.ProcessEngine(2) as engine:
        (a, first), (b, second) = engine.map(process, [3, 1])
        assert (a, b) == (3, 1) and len({first, second, os.getpid()}) == 3
        with pytest.raises(ValueError, match="no 7"): engine.submit(fail, 7).result()


def alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError: return False


def test_a_killed_pipeline_leaves_no_process(place):
    Path("main.py").write_text("""
import os, time, raptor_nb.pipeline as P
def task(path):
    with open(path, "w") as f: f.write(str(os.getpid()))
    time.sleep(300)
if __name__ == "__main__":
    with P.ProcessEngine() as engine: engine.submit(task, "pid").result()
""")
    parent = subprocess.Popen([sys.executable, "main.py"], env={**os.environ, "PYTHONPATH": str(Path(P.raptor_nb.__file__).parents[1])}, stdin=subprocess.DEVNULL)
    wait = lambda condition: [time.sleep(.1) for _ in range(1200) if not condition()]
    wait(lambda: Path("pid").is_file() and Path("pid").read_text())
    worker = int(Path("pid").read_text())
    assert alive(worker)
    parent.kill()
    parent.wait()
    wait(lambda: not alive(worker))
    assert not alive(worker)


# --- everything

def test_pipeline_on_another_engine(place, capsys):
    engine = Fake()
    rows = P.pipeline("quick", engine=engine)
    assert engine.jobs == list(P.STAGES)
    assert rows == json.loads(Path("runs/quick/report/verdict.json").read_text())
    assert all(list(r) == ["name", "value", "unit", "published", "bar", "ok"] for r in rows)
    value = {r["name"]: r for r in rows}
    assert value["survival"]["published"] == .945
    assert value["wall time"]["bar"] == 900 and value["wall time"]["ok"] and value["peak memory"]["bar"] == 6
    assert [r["value"] for n, r in value.items() if n.startswith("wall time 0")] == [2.] * 4
    assert 1 < value["peak memory"]["value"] < 6
    assert {"index.html", "verdict.json", "figures", *(f"{s}.{e}" for s in P.STAGES for e in ("ipynb", "html"))} == {p.name for p in Path("runs/quick/report").iterdir()}
    page = Path("runs/quick/report/index.html").read_text()
    assert "All 3 checks are met." in page and "figures/flights.png" in page and "&lt;b&gt;" in page and "<td><b></td>" not in page
    assert "http" not in page.replace('lang="en"', "") and "<script" not in page
    assert "All 3 checks are met. The report is 'runs/quick/report/index.html'" in capsys.readouterr().out
    assert [p.name for p in Path(".").iterdir()] == ["runs"], "a run writes into its folder alone"

    again = P.pipeline("quick", engine=engine, before=40.)
    assert len(engine.jobs) == 4
    assert again[:-1] == rows and again[-1]["name"] == "second run" and 40 < again[-1]["value"] and again[-1]["ok"] is False
    assert [r["name"] for r in P.pipeline("quick", engine=engine)].count("second run") == 1

    changed = P.pipeline("quick", seed=5, engine=engine)
    assert engine.jobs[4:] == list(P.STAGES)   # the last two take no seed, but the student is another
    assert "second run" not in [r["name"] for r in changed]


def test_pipeline_stops_at_the_first_failure_and_goes_on(place):
    Path("mine.yaml").write_text("inherit: quick.yaml\n")
    engine = Fake()
    work = engine.work
    engine.work = lambda function, job: work(function, job) if "04" not in job["notebook"] else dict(error="ValueError: no", seconds=1., peak=0)
    with pytest.raises(P.StageError, match=r"04_distill failed: ValueError: no; the executed notebook is 'runs/mine/report/04_distill.ipynb'"): P.pipeline("mine.yaml", engine=engine)
    assert not Path("runs/mine/report/verdict.json").exists()
    engine.jobs, engine.work = [], work
    P.pipeline("mine.yaml", engine=engine)
    assert engine.jobs == ["04_distill", "05_export", "06_evaluate"]


TINY = """inherit: quick.yaml
training: {num_teachers: 8, algorithm: apg}
apg: {updates: 100}
distillation: {online: {updates: 500}, polish: {updates: 50}}
evaluation: {num_drones: 16, observation_noise: [0.01]}
"""


@pytest.mark.slow
def test_a_tiny_fleet_through_the_real_stages(tmp_path, monkeypatch):
    monkeypatch.delenv("RAPTOR_NB_NOTEBOOKS", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    rows = P.pipeline("tiny.yaml", device="cpu")
    assert {r["name"]: r["value"] for r in rows}["drones"] == 8
    assert all((Path("runs/tiny") / name).exists() for stage in P.STAGES.values() for name in stage.leaves)
    assert sum(p.stat().st_size for p in Path("runs/tiny/report").rglob("*")) < 5e6
    assert P.pipeline("tiny.yaml", device="cpu")[-1]["name"] == "second run"


def test_pages_show_outputs_and_hide_the_library(tmp_path):
    nb = {"cells": [cell("#| export\ndef secret(): pass"), cell("1+1") | {"outputs": [{"output_type": "stream", "name": "stdout", "text": "two <2>"},
          {"output_type": "display_data", "metadata": {}, "data": {"image/png": PICTURE, "text/plain": "x"}}]}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "a.ipynb").write_text(json.dumps(nb))
    page = P.notebook_page(tmp_path / "a.ipynb")
    assert "secret" not in page and "two &lt;2&gt;" in page and f"data:image/png;base64,{PICTURE}" in page
    assert "http" not in page and "<script" not in page


def row(name, ok, note=""): return P.row(name, 1.5, "m", ok, 1., 2.) | dict(note=note)


def test_the_front_page_says_what_came_out_before_what_was_checked():
    rows = [row("good", True), row("poor", False), row("other", None)]
    page = P.index_page("quick", "It survives <all>.", rows, [P.Run("03_pretrain", False, 7., 0, "")], ["a_b.png"], "seed: 1", "8 drones")
    places = [page.index(text) for text in ("<h1>raptor_nb: quick", "It survives &lt;all&gt;.", "1 of 2 checks is not met: poor.", "8 drones", "✗ not met", "✓ met", "other", "figures/a_b.png", "7 s", "seed: 1")]
    assert places == sorted(places)
    assert not {"verdict", "bar", "bars", "missed", "cleared"} & set(re.findall(r"[a-z]+", re.sub(r"<[^>]+>", " ", page.split("</style>")[1]).lower()))


def test_what_is_not_met_is_never_folded_away():
    table = P.checks_table([*(row(f"good {i}", True) for i in range(40)), *(row(f"poor {i}", False) for i in range(20))])
    shown, folded = table.split("<details>")
    assert shown.count("✗ not met") == 20 and "✓ met" not in shown and folded.count("✓ met") == 40 and "40 more checks, all met" in folded
    assert P.checks_table([]) == "" and P.checks_line([]) == "" and P.checks_line([row("a", True)]) == "The one check is met."


def test_the_sentence_of_a_notebook_opens_its_report(place, capsys):
    parameters, work = STAND_INS["06_evaluate"]
    write(place / "nbs", "06_evaluate", cell("from raptor_nb.core.records import Headline\nheadline = Headline()"), cell(parameters, "parameters"), cell(FIRST + work), cell("headline.update('It flies.')"))
    engine = Fake()
    engine.work = lambda function, job: function(job) if "06" in job["notebook"] else Fake.work(engine, function, job)   # a kernel for this one
    P.pipeline("quick", engine=engine)
    assert "<p class=headline>It flies.</p>" in Path("runs/quick/report/index.html").read_text()
    assert "It flies. All 3 checks are met. The report is" in capsys.readouterr().out
    first = json.loads(Path("runs/quick/report/06_evaluate.ipynb").read_text())["cells"][0]
    assert ["".join(o["data"]["text/markdown"]) for o in first["outputs"]] == ["**It flies.**"]


def test_log_thins_progress_and_cuts_long_texts(capsys):
    show = P._Log(every=1000)
    shown = lambda text: {"msg_type": "update_display_data", "content": {"data": {"text/plain": text}, "transient": {"display_id": "a"}}}
    for i in range(5): show(shown(f"update {i}"))
    show({"msg_type": "stream", "content": {"name": "stdout", "text": "a\nb\nc\nd\n"}})
    show({"msg_type": "stream", "content": {"name": "stderr", "text": "a warning"}})
    show({"msg_type": "update_display_data", "content": {"data": {"text/plain": "<Figure>", "image/png": ""}, "transient": {"display_id": "b"}}})
    assert capsys.readouterr().out.split("\n") == ["    update 0", "    a", "    ... (3 more lines)", ""]

def test_studies_follow_and_have_reports_of_their_own(place):
    rows = "json.dumps([dict(name='R2', value=.9, unit='', published=None, bar=None, ok=None)])"
    for name, leaf in (("08_understand", "understand.json"), ("09_published_recipe", "epochs/verdict.json")):
        write(place / "nbs", name, cell("config = ''\noutput_dir = 'runs/default'\nepochs = 0", "parameters"),
              cell(f"import json\nfrom pathlib import Path\nout = Path(output_dir)/'{leaf}'\nout.parent.mkdir(exist_ok=True)\nout.write_text({rows})"))
    engine = Fake()
    with pytest.raises(ConfigError, match="there is no further notebook '08_undrstand'; the nearest is '08_understand'"): P.pipeline("quick", engine=engine, further=("08_undrstand",))
    assert not engine.jobs
    made = P.pipeline("quick", engine=engine, further=("09_published_recipe", "08_understand"))
    assert engine.jobs == [*P.STAGES, "09_published_recipe", "08_understand"]
    assert "R2" not in [r["name"] for r in made] and "08_understand" not in Path("runs/quick/report/index.html").read_text()
    for study, makes in (("published_recipe", "over the published curve"), ("understand", "why it fails")):
        folder = Path(f"runs/quick/report_{study}")
        assert [r["name"] for r in json.loads((folder / "verdict.json").read_text())] == ["R2"]
        assert makes in (folder / "index.html").read_text() and len(list(folder.glob("0*.html"))) == 1
    again = P.pipeline("quick", engine=engine, further=("09_published_recipe", "08_understand"))
    assert len(engine.jobs) == 6 and again[-1]["name"] == "second run"


def test_shipping(place):
    from raptor_nb.core.records import write_manifest
    from raptor_nb.policy import RaptorPolicy
    out, settings = Path("runs/x"), P.load_config("quick").to_dict()
    student = RaptorPolicy()
    out.mkdir(parents=True)
    student.save(out / "student.safetensors"); student.to_hdf5(out / "student.h5")
    with pytest.raises(FileNotFoundError, match="student.onnx' to ship"): P.ship(out, "weights", [])
    assert not Path("weights").exists()
    for name in ("student.onnx", "student.sequence.onnx", "student.h", "student.json"): (out / name).write_bytes(b"exported")
    write_manifest(out / "student.safetensors", settings=settings, seed=42, inputs=[], seconds=1., metrics={})
    Path("weights").mkdir()
    Path("weights/student.int8.tflite").write_bytes(b"of another student")
    P.ship(out, "weights", [row("RMSE of student, 9 drones, a", False, "better: -1"), row("RMSE of student, 9 drones, b", False, "NOT better: +1"), row("RMSE of published, 9 drones, b", None)])
    assert (Path("weights/student.h5")).read_bytes() == (out / "student.h5").read_bytes()
    assert sorted(p.name for p in Path("weights").iterdir()) == sorted([*P.SHIPPED, "README.md"]), "what is not made by a run is not left from another student"
    text = Path("weights/README.md").read_text()
    assert "| RMSE, 9 drones, a | 1.5 | 2 | yes |" in text and "| RMSE, 9 drones, b | 1.5 | 2 | **no** |" in text and "RMSE of published" not in text
