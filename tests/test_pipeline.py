"The pipeline on small stand-ins of the stages: what is refused, skipped, done again and resumed"
import json, os
from pathlib import Path

import pytest

import raptor_nb
from raptor_nb import pipeline as P
from raptor_nb.core.config import ConfigError
from raptor_nb.core.records import WriteError, run_lock
from raptor_nb.core.tracking import headline_of
from stages import Fake, cell, place, stand_in, write   # noqa: F401  (a fixture)


# --- finding and checking

@pytest.mark.parametrize("name, parameters, kind, sentence", [
    pytest.param("03_pretrian", {}, ConfigError,
                 r"there is no notebook '03_pretrian' in '.*nbs'; the nearest is '03_pretrain'",
                 id="unknown-stage"),
    pytest.param("03_pretrain", {"step": 5}, ConfigError,
                 r"03_pretrain.ipynb has no parameter 'step'; the nearest is 'steps'",
                 id="misspelled-parameter"),
    pytest.param("03_pretrain", {"colour": 5}, ConfigError,
                 r"has no parameter 'colour'; known: config, output_dir, drones",
                 id="unknown-parameter"),
    pytest.param("03_pretrain", {"config": "quik"}, ConfigError,
                 r"settings file 'quik' does not exist; packaged ones are .*quick",
                 id="unknown-settings"),
    pytest.param("03_pretrain", {"output_dir": ""}, ConfigError,
                 r"03_pretrain: output_dir is empty; it must name the folder",
                 id="no-output-folder"),
    pytest.param("03_pretrain", {"drones": "x/drones.json"}, FileNotFoundError,
                 r"03_pretrain: drones is 'x/drones.json', and there is no such file or folder",
                 id="missing-drones-file"),
    pytest.param("04_distill", {}, FileNotFoundError,
                 r"04_distill needs 'out/teachers.safetensors', which 03_pretrain makes: run that",
                 id="missing-earlier-stage"),
    pytest.param("05_export", {}, FileNotFoundError,
                 r"05_export needs 'out/student.safetensors', which 03_direct makes",
                 id="missing-student"),
    pytest.param("06_evaluate", {"student": "no.safetensors"}, FileNotFoundError,
                 r"06_evaluate: student is 'no.safetensors', and there is no such file",
                 id="missing-named-student"),
])
def test_refused_before_a_kernel_starts(place, name, parameters, kind, sentence):
    fake = Fake()
    with pytest.raises(kind, match=sentence):
        P.run_stage(name, {"output_dir": "out"} | parameters, execute=fake)
    assert not fake.jobs


def test_no_notebooks_in_the_folder_is_a_sentence(place, monkeypatch):
    monkeypatch.setenv("RAPTOR_NB_NOTEBOOKS", str(place / "work"))
    sentence = r"there are no notebooks in '.*work'; RAPTOR_NB_NOTEBOOKS must be unset, or name"
    with pytest.raises(ConfigError, match=sentence): P.find_notebook("03_pretrain")


def test_notebooks_of_the_clone(monkeypatch):
    monkeypatch.delenv("RAPTOR_NB_NOTEBOOKS", raising=False)
    root = Path(__file__).resolve().parents[1]
    assert P.find_notebook("07_pipeline") == root / "nbs/07_pipeline.ipynb"


def test_notebooks_of_the_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site/raptor_nb"
    monkeypatch.delenv("RAPTOR_NB_NOTEBOOKS", raising=False)
    monkeypatch.setattr(raptor_nb, "__file__", str(package / "__init__.py"))
    notebook = write(package / "notebooks/03_pretrain.ipynb", cell("a = 1", "parameters"))
    assert P.find_notebook("03_pretrain") == notebook
    (tmp_path / "site/nbs").mkdir()   # somebody else's
    assert P.notebooks_folder() == package / "notebooks"


# --- one stage, really executed

def test_execution_leaves_a_copy_and_a_log(place, capfd):
    given = {"config": "quick", "output_dir": "out", "seed": 3}, "reports/03_pretrain.ipynb"
    run = P.run_stage("03_pretrain", *given)
    assert not run.skipped and run.peak > 2e7 and run.seconds > 0
    assert json.loads(Path("out/teachers.csv").read_text()) == ["from the start", 3]
    copy = Path("reports/03_pretrain.ipynb").read_text()
    assert "line of the log" in copy and f"{place}/work/" not in copy
    assert [p.name for p in Path("reports").iterdir()] == ["03_pretrain.ipynb"]
    log = capfd.readouterr().out
    assert f"    line of the log {place}/work" in log    # the working directory is the caller's
    P.run_stage("03_pretrain", *given, Fake())
    assert capfd.readouterr().out == "03_pretrain: nothing changed: skipped\n"


def test_a_failing_stage_leaves_its_copy_and_a_sentence(place):
    sentence = r"^03_pretrain failed: ValueError: thirteen steps; " \
               r"the executed notebook is 'out/03_pretrain.ipynb'$"
    with pytest.raises(P.StageError, match=sentence):
        P.run_stage("03_pretrain", {"output_dir": "out", "steps": 13})
    cells = json.loads(Path("out/03_pretrain.ipynb").read_text())["cells"]
    outputs = [o for c in cells for o in c.get("outputs", [])]
    errors = [o["ename"] for o in outputs if o["output_type"] == "error"]
    assert errors == ["ValueError"]


# --- what is skipped and what is done again

def ran(**parameters):
    "Which stages work when 03 and 04 are asked for"
    fake = Fake()
    for name in ("03_pretrain", "04_distill"):
        given = {"config": "quick", "output_dir": "out"} | parameters.get(name, {})
        P.run_stage(name, given, execute=fake)
    return [name[:2] for name in fake.jobs]


def test_unchanged_is_skipped(place):
    assert ran() == ["03", "04"]
    assert ran() == []


def change_parameter(place): return {"03_pretrain": {"seed": 5}}
def change_later_parameter(place): return {"04_distill": {"updates": 5}}
def change_notebook(place):
    write(place / "nbs/04_distill.ipynb", *stand_in("04_distill", "# new"))
def change_ids_only(place):
    path = place / "nbs/04_distill.ipynb"
    path.write_text(path.read_text().replace('"id": "cell', '"id": "other'))
def change_input(place): Path("out/drones.json").write_text("[]")
def remove_artefact(place): Path("out/student.safetensors").unlink()
def damage_artefact(place): Path("out/student.safetensors").write_text("")
def remove_report(place): Path("out/04_distill.ipynb").unlink()
def damage_record(place): Path("out/stages/04_distill.json").write_text("{")


@pytest.mark.parametrize("change, again", [
    (change_parameter, ["03", "04"]), (change_later_parameter, ["04"]), (change_notebook, ["04"]),
    (change_ids_only, []), (change_input, ["03"]), (remove_artefact, ["04"]),
    (damage_artefact, ["04"]), (remove_report, ["04"]), (damage_record, ["04"]),
], ids=lambda x: getattr(x, "__name__", None))
def test_what_has_changed_is_done_again(place, change, again):
    ran()
    Path("out/half").unlink()   # so that the stand-in writes the same again
    given = change(place) or {}
    assert ran(**given) == again
    assert ran(**given) == []


def test_a_changed_settings_file_is_done_again(place):
    def skipped(text):
        Path("mine.yaml").write_text(f"inherit: quick.yaml\ntraining: {text}\n")
        given = {"config": "mine.yaml", "output_dir": "out"}
        return P.run_stage("03_pretrain", given, execute=Fake()).skipped
    assert not skipped("{num_teachers: 3}")
    assert skipped("{num_teachers: 3} # a comment")
    assert not skipped("{num_teachers: 4}")


def test_a_changed_library_is_done_again(place, monkeypatch):
    ran()
    monkeypatch.setattr(P, "library_hash", lambda: "another")
    Path("out/half").unlink()
    assert ran() == ["03", "04"]


@pytest.mark.parametrize("name, counts", [
    ("core/x.py", True), ("native/x.cpp", True), ("registry/x.json", True),
    ("weights/student.safetensors", False), ("weights/student.h", False), ("configs/x.yaml", False),
])
def test_what_the_library_is(tmp_path, monkeypatch, name, counts):
    monkeypatch.setattr(raptor_nb, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("1")
    before = P.library_hash.__wrapped__()
    (tmp_path / name).write_text("2")
    assert (P.library_hash.__wrapped__() != before) == counts


GIVEN = {"config": "quick", "output_dir": "out"}


def test_a_stage_that_failed_is_resumed(place):
    fake = Fake()
    fake.fails = {"03_pretrain": "ValueError: full disk"}
    with pytest.raises(P.StageError, match="full disk"):
        P.run_stage("03_pretrain", GIVEN, execute=fake)
    Path("out/half").write_text("half of it")
    run = P.run_stage("03_pretrain", GIVEN, execute=Fake())
    assert run.seconds == 4   # both tries
    assert json.loads(Path("out/teachers.csv").read_text())[0] == "resumed"
    left = {p.name for p in Path("out/stages").iterdir()} - {".lock"}
    assert left == {"03_pretrain.json"}


def test_the_time_of_a_killed_try_counts(place):
    P.run_stage("03_pretrain", GIVEN, execute=Fake())
    task = P.prepare("03_pretrain", GIVEN)
    mark = dict(depends=task.depends, spent=5., start=1000.)
    task.mark.write_text(json.dumps(mark))
    os.utime(task.mark, (1100., 1100.))
    assert P.seconds_before(task) == pytest.approx(105)
    task.mark.write_text(json.dumps(mark | dict(depends={})))
    assert P.seconds_before(task) == 0


def test_work_found_done_keeps_its_time(place):
    P.run_stage("03_pretrain", GIVEN, execute=Fake())
    Path("out/03_pretrain.ipynb").unlink()
    Path("out/half").unlink()
    quick = Fake()
    quick.seconds = .5
    run = P.run_stage("03_pretrain", GIVEN, execute=quick)
    assert quick.jobs == ["03_pretrain"] and run.seconds == 2 and not run.skipped


def test_two_at_a_time_are_refused(place):
    with run_lock("out/stages"), pytest.raises(WriteError, match="is being written by"):
        P.run_stage("03_pretrain", GIVEN, execute=Fake())


# --- everything

def test_pipeline(place, capsys):
    fake = Fake()
    rows = P.pipeline("quick", execute=fake)
    report = Path("runs/quick/report")
    assert fake.jobs == list(P.STAGES)
    assert rows == json.loads((report / "verdict.json").read_text())
    value = {r["name"]: r["value"] for r in rows}
    assert [value[f"wall time {s}"] for s in P.STAGES] == [2.] * 5
    assert value["wall time"] == 10 and value["peak memory"] == 1 and value["drones"] == 5500
    assert {p.name for p in report.iterdir()} == \
           {"index.html", "verdict.json", "figures", *(f"{s}.ipynb" for s in P.STAGES)}
    said = capsys.readouterr().out
    assert "The student (from random weights, without teachers, in 2 s) survives 99.0 %" in said
    assert "; the other (from teachers, by distillation, in 4 s) 99.0 %, 630 and 0.5 cm; the " \
           "published policy 49.5 %, 315 and 0.2 cm. The one check is met. The report is " in said
    assert [p.name for p in Path(".").iterdir()] == ["runs"], "a run writes into its folder alone"


def test_a_second_pipeline_finds_nothing_to_do(place):
    fake = Fake()
    rows = P.pipeline("quick", execute=fake)
    assert P.pipeline("quick", execute=fake) == rows and len(fake.jobs) == 5
    P.pipeline("quick", seed=5, execute=fake)
    assert fake.jobs[5:] == list(P.STAGES)   # two take no seed, but the student is another


def test_pipeline_stops_at_the_first_failure_and_is_resumed(place):
    Path("mine.yaml").write_text("inherit: quick.yaml\n")
    fake, again = Fake(), Fake()
    fake.fails = {"04_distill": "ValueError: no"}
    sentence = r"04_distill failed: ValueError: no; " \
               r"the executed notebook is 'runs/mine/report/04_distill.ipynb'"
    with pytest.raises(P.StageError, match=sentence): P.pipeline("mine.yaml", execute=fake)
    assert not Path("runs/mine/report/verdict.json").exists()
    P.pipeline("mine.yaml", execute=again)
    assert again.jobs == ["04_distill", "05_export", "06_evaluate"]


def test_drones_of_the_settings(place):
    Path("drones.json").write_text("[]")
    own = "pipeline: {drones: drones.json, road: both}"
    Path("mine.yaml").write_text(f"inherit: quick.yaml\n{own}\n")
    fake = Fake()
    P.pipeline("mine.yaml", execute=fake)
    given = [g.get("drones") for g in fake.given]
    assert given == ["drones.json"] * 2 + [None] * 2 + ["runs/mine/two_phase/drones.json"]


STUDIES = ("09_published_recipe", "08_understand")


@pytest.fixture
def studies(place):
    for name in STUDIES: write(place / f"nbs/{name}.ipynb", *stand_in(name))


def test_studies_follow_and_have_reports_of_their_own(studies):
    fake = Fake()
    rows = P.pipeline("quick", execute=fake, studies=STUDIES)
    assert fake.jobs == [*P.STAGES, *STUDIES]
    assert "R2" not in [r["name"] for r in rows]
    assert "08_understand" not in Path("runs/quick/report/index.html").read_text()
    for name in STUDIES:
        folder = Path(f"runs/quick/report_{name[3:]}")
        assert [r["name"] for r in json.loads((folder / "verdict.json").read_text())] == ["R2"]
        assert P.STUDIES[name].makes in (folder / "index.html").read_text()
        assert [p.name for p in folder.glob("*.ipynb")] == [f"{name}.ipynb"]
    assert P.pipeline("quick", execute=fake, studies=STUDIES) == rows and len(fake.jobs) == 7


def test_an_unknown_study_is_refused(place):
    fake = Fake()
    sentence = "there is no study '08_undrstand'; the nearest is '08_understand'"
    with pytest.raises(ConfigError, match=sentence):
        P.pipeline("quick", execute=fake, studies=("08_undrstand",))
    assert not fake.jobs


def test_the_sentence_of_a_notebook_opens_its_report(place, capsys):
    fake = Fake()
    def kernel_for_the_last(job): return (P.execute if "06" in job["notebook"] else fake)(job)
    P.pipeline("quick", execute=kernel_for_the_last, road="teachers")
    report = Path("runs/quick/report")
    assert '<p class="headline">It flies.</p>' in (report / "index.html").read_text()
    assert "It flies. The one check is met. The report is" in capsys.readouterr().out
    assert headline_of(report / "06_evaluate.ipynb") == "It flies."


# --- roads

@pytest.mark.parametrize("road, jobs", P.ROADS.items())
def test_a_road_runs_its_stages(place, road, jobs):
    fake = Fake()
    P.pipeline("quick", execute=fake, road=road)
    assert fake.jobs == list(jobs) and Path("runs/quick/student.safetensors").is_file()
    assert Path("runs/quick/two_phase").exists() == (road == "both")


def test_both_roads_meet_on_the_same_flights(place):
    fake = Fake()
    P.pipeline("quick", execute=fake, seed=7)
    given = dict(zip(fake.jobs, fake.given))
    other = "runs/quick/two_phase"
    assert [given[s]["output_dir"] for s in P.STAGES] == ["runs/quick", other, other] + \
           ["runs/quick"] * 2
    assert given["06_evaluate"]["others"] == f"{other}/student.safetensors"
    assert given["06_evaluate"]["teachers"] == f"{other}/teachers.safetensors"
    assert json.loads(Path("runs/quick/student.safetensors").read_text())[1] == 7
    assert json.loads(Path(other, "teachers.csv").read_text())[1] == 7
    Path(other, "student.safetensors").write_text("another")
    again = Fake()
    P.pipeline("quick", execute=again, seed=7)
    assert again.jobs == ["04_distill"], "it makes the same again, so nobody flies anew"
    Path("runs/quick/stages/06_evaluate.json").unlink()
    P.pipeline("quick", execute=again, seed=7)
    assert again.jobs == ["04_distill", "06_evaluate"]


def test_the_evaluation_depends_on_the_other_student(place):
    given = {"output_dir": "out", "others": "b/student.safetensors", "config": "quick"}
    for name in ("out", "b"):
        Path(name).mkdir()
        Path(name, "student.safetensors").write_text("student")
    first = P.prepare("06_evaluate", given).depends
    Path("b/student.safetensors").write_text("another")
    assert P.prepare("06_evaluate", given).depends != first
    several = given | {"others": "published,b/student.safetensors"}
    assert "others" not in P.prepare("06_evaluate", several).depends["inputs"]


def test_the_settings_say_which_road(place):
    fake = Fake()
    P.pipeline("full", execute=fake)
    assert fake.jobs == list(P.ROADS["direct"])
    assert fake.given[-1]["teachers"] == "none"


def test_an_unknown_road_is_refused(place):
    fake = Fake()
    with pytest.raises(ConfigError, match="there is no road 'dirct'; the nearest is 'direct'"):
        P.pipeline("quick", execute=fake, road="dirct")
    Path("mine.yaml").write_text("inherit: quick.yaml\npipeline: {road: rails}\n")
    with pytest.raises(ConfigError, match="pipeline.road is 'rails'; it must be 'direct', 'teach"):
        P.pipeline("mine.yaml", execute=fake)
    assert not fake.jobs


def test_studies_that_need_teachers_are_left_out_without_them(studies, capsys):
    fake = Fake()
    P.pipeline("full", execute=fake, studies=STUDIES)
    assert fake.jobs == list(P.ROADS["direct"])
    said = capsys.readouterr().out
    for name in STUDIES: assert f"{name}: left out, it needs teachers; the road" in said
    P.pipeline("full", execute=fake, studies=STUDIES, road="both")
    given = dict(zip(fake.jobs, fake.given))
    for name in STUDIES:
        assert given[name]["teachers"] == "runs/full/two_phase/teachers.safetensors"


TINY = """inherit: quick.yaml
training: {num_teachers: 8, algorithm: apg}
apg: {num_updates: 100}
direct: {num_updates: 100, num_drones: 20, extra_train_drones: 3, ood_train_drones: 2}
distillation: {dagger: {num_updates: 500}, fine_tuning: {num_updates: 50}}
evaluation: {num_drones: 16, observation_noise: [0.01]}
"""


@pytest.mark.slow
def test_a_tiny_fleet_through_the_real_stages(tmp_path, monkeypatch):
    monkeypatch.delenv("RAPTOR_NB_NOTEBOOKS", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    rows = P.pipeline("tiny.yaml", device="cpu")
    assert {r["name"]: r["value"] for r in rows}["drones"] == 25
    for stage in P.STAGES.values():
        folder = Path("runs/tiny") / (P.OTHER if stage.name in P.ROADS["teachers"][:2] else "")
        assert all((folder / name).exists() for name in stage.leaves)
    assert sum(p.stat().st_size for p in Path("runs/tiny/report").rglob("*")) < 5e6
    def never(job): raise AssertionError(job["notebook"])
    assert P.pipeline("tiny.yaml", device="cpu", execute=never) == rows
