"The console commands: what they hand to the stages, their exit codes, and their one sentence when something is wrong"
import json, os, subprocess, sys
from pathlib import Path

import pytest

from raptor_nb import pipeline as P
from test_pipeline import Fake, cell, place, write   # noqa: F401  (a fixture)

COMMANDS = {"raptor_pipeline": P.pipeline_command, "raptor_train_teachers": P.train_teachers_command, "raptor_train_student": P.train_student_command, "raptor_export": P.export_command, "raptor_notebooks": P.notebooks_command}


@pytest.fixture
def given(place, monkeypatch):
    "The parameters that the stages get, in order; nothing is executed"
    jobs = []
    def submit(job, engine):
        jobs.append(job["parameters"])
        return Fake().submit(None, job).result()
    monkeypatch.setattr(P, "_submit", submit)
    return jobs


@pytest.mark.parametrize("name, options", [("raptor_pipeline", ["--profile", "--output-dir", "--report-dir", "--device", "--seed"]),
    ("raptor_train_teachers", ["--config", "--output-dir", "--dynamics-dir", "--num-teachers", "--generate-dynamics", "--device", "--algorithm", "--teacher-ids", "--steps", "--seed"]),
    ("raptor_train_student", ["--config", "--output-dir", "--teachers-dir", "--dynamics-dir", "--device"]), ("raptor_export", ["--model-path", "--output-dir", "--targets", "--quantize", "--route", "--report-dir", "--test-drones"]), ("raptor_notebooks", ["folder"])])
def test_help(name, options, capsys):
    with pytest.raises(SystemExit) as end: COMMANDS[name](["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith(f"usage: {name}") and all(o in text for o in options)


def test_the_way_of_the_plan(given):
    "Teachers with fresh drones, the student from them, the export"
    assert P.train_teachers_command("--generate-dynamics --num-teachers 3 --dynamics-dir drones --output-dir teachers --algorithm apg --steps 20 --teacher-ids 0-1 --device cpu --seed 4".split()) == 0
    assert given[0] == dict(config="pre_training", output_dir="teachers", drones="drones", num_teachers=3, algorithm="apg", teacher_ids="0-1", steps=20, device="cpu", seed=4)
    assert sorted(p.name for p in Path("drones").iterdir()) == ["0000.json", "0001.json", "0002.json"]
    assert P.train_student_command("--teachers-dir teachers --dynamics-dir drones --output-dir student --updates 5".split()) == 0
    assert given[1] == dict(config="post_training", output_dir="student", teachers="teachers/teachers.safetensors", drones="drones", updates=5)
    assert P.export_command("--model-path student/student.safetensors --output-dir exported --targets h5".split()) == 0
    assert given[2] == dict(config="default", output_dir="exported", student="student/student.safetensors", targets="h5")
    assert all(Path(p).is_file() for p in ("teachers/03_pretrain.ipynb", "student/04_distill.ipynb", "exported/05_export.ipynb"))


def test_export_of_everything_with_a_report(given, place):
    "--quantize is the plan's; a report adds the notebook that flies the files, and its verdict"
    write(place / "nbs", "10_proof", cell("config = ''\noutput_dir = 'runs/default'\nstudent = ''\ntargets = ''\ntest_drones = 0", "parameters"),
          cell("from pathlib import Path\n(Path(output_dir)/'proof.json').write_text('[{\"name\": \"return\", \"value\": 1, \"unit\": \"\", \"published\": null, \"bar\": 1, \"ok\": true, \"note\": \"\"}]')"))
    Path("s.safetensors").write_text("student")
    assert P.export_command("--model-path s.safetensors --output-dir out --targets onnx --quantize --route module --report-dir rep --test-drones 8".split()) == 0
    files = dict(config="default", output_dir="out", student="s.safetensors", targets="onnx,tflite,tflite_float16,tflite_int8")
    assert given == [files | dict(route="module"), files | dict(test_drones=8)]
    assert json.loads(Path("rep/verdict.json").read_text())[0]["name"] == "return"
    assert {"05_export.ipynb", "05_export.html", "10_proof.ipynb", "10_proof.html", "index.html", "verdict.json"} <= {p.name for p in Path("rep").iterdir()}
    assert "whether every exported file flies as the student does" in Path("rep/index.html").read_text()
    given.clear()
    assert P.export_command("--model-path published --output-dir pub --quantize".split()) == 0
    assert given == [dict(config="default", output_dir="pub", student="published", targets="onnx,sequence,h5,c,json,tflite,tflite_float16,tflite_int8")]


def test_defaults_pass_on_from_one_to_the_next(given):
    assert [c([]) for c in (P.train_teachers_command, P.train_student_command, P.export_command)] == [0, 0, 0]
    assert [g["output_dir"] for g in given] == ["runs/default"] * 3
    assert given[1] == dict(config="post_training", output_dir="runs/default")   # 04 takes what lies in the folder


def test_drones_of_the_teachers(given):
    P.train_teachers_command(["--output-dir", "a"])
    P.train_student_command("--teachers-dir a --output-dir b".split())
    assert given[1]["drones"] == "a/drones.json"


def test_generated_drones_are_those_of_the_settings(given):
    from raptor_nb.drones import load_drone, sample_drone
    Path("custom.yaml").write_text("inherit: default.yaml\ndomain_randomization: {mass: [1.0, 1.0], seed: 3}\n")
    for config, folder in (("pre_training", "plan"), ("quick", "published"), ("custom.yaml", "custom")):
        assert P.train_teachers_command(["--generate-dynamics", "--num-teachers", "2", "--config", config, "--dynamics-dir", folder, "--output-dir", folder + "-out"]) == 0
    assert load_drone("plan/0001.json") == sample_drone(1, "plan")
    assert load_drone("published/0001.json") == sample_drone(1, "published")
    assert load_drone("custom/0001.json").mass == pytest.approx(1)


def test_generating_again_is_fine_but_nothing_is_overwritten(given, capsys):
    call = lambda: P.train_teachers_command("--generate-dynamics --num-teachers 2 --dynamics-dir drones".split())
    assert [call(), call()] == [0, 0] and len(given) == 1
    Path("drones/0000.json").write_text("{}")
    Path("drones/0001.json").unlink()
    assert call() == 2
    assert Path("drones/0000.json").read_text() == "{}" and not Path("drones/0001.json").exists()
    assert "'drones/0000.json' is there already and holds another drone; nothing was overwritten" in capsys.readouterr().err


def test_pipeline_command(given):
    assert P.pipeline_command("--profile quick --output-dir a --report-dir b --device cpu --seed 2".split()) == 0
    assert [g["output_dir"] for g in given] == ["a"] * 4 and given[0] == dict(config="quick", output_dir="a", device="cpu", seed=2)
    assert Path("b/index.html").is_file() and Path("b/verdict.json").is_file()


def test_notebooks_command(place, capsys):
    assert P.notebooks_command(["nb"]) == 0 and Path("nb/03_pretrain.ipynb").is_file()
    assert "4 notebooks in 'nb'; run one with: papermill nb/03_pretrain.ipynb" in capsys.readouterr().out
    assert P.notebooks_command(["nb"]) == 2
    assert capsys.readouterr().err == "raptor_notebooks: 'nb/03_pretrain.ipynb' is there already; nothing was overwritten: name another folder\n"


@pytest.mark.parametrize("name, arguments, sentence", [
    pytest.param("raptor_pipeline", "--profile quik", "raptor_pipeline: settings file 'quik' does not exist; packaged ones are", id="unknown-profile"),
    pytest.param("raptor_pipeline", "--output reports", "unrecognized arguments: --output reports", id="abbreviated-option"),
    pytest.param("raptor_pipeline", "--seed many", "argument --seed: invalid int value: 'many'", id="seed-is-a-word"),
    pytest.param("raptor_train_teachers", "--algorithm ppo", "argument --algorithm: invalid choice: 'ppo'", id="unknown-algorithm"),
    pytest.param("raptor_train_teachers", "--num-teachers 0", "--num-teachers is 0; it must be at least 1", id="no-teachers"),
    pytest.param("raptor_train_teachers", "--steps -5", "--steps is -5; it must be at least 1", id="negative-steps"),
    pytest.param("raptor_train_teachers", "--config mine.yaml", "settings file 'mine.yaml' does not exist", id="missing-config"),
    pytest.param("raptor_train_teachers", "--dynamics-dir empty", "there are no drones (0000.json ...) in 'empty'; add --generate-dynamics", id="no-drones-in-folder"),
    pytest.param("raptor_train_student", "--teachers-dir nowhere", "04_distill: teachers is 'nowhere/teachers.safetensors', and there is no such file", id="missing-teachers"),
    pytest.param("raptor_train_student", "", "04_distill needs 'runs/default/teachers.safetensors', which 03_pretrain makes: run that first", id="missing-earlier-stage"),
    pytest.param("raptor_export", "--model-path nothing.safetensors", "05_export: student is 'nothing.safetensors', and there is no such file", id="missing-model"),
    pytest.param("raptor_export", "--route onnx2tf", "argument --route: invalid choice: 'onnx2tf'", id="unknown-route"),
    pytest.param("raptor_export", "--report-dir r --test-drones 0", "--test-drones is 0; it must be at least 1", id="no-test-drones"),
])
def test_bad_arguments(given, capsys, name, arguments, sentence):
    try: code = COMMANDS[name](arguments.split())
    except SystemExit as end: code = end.code
    said = capsys.readouterr()
    assert code == 2 and sentence in said.err and "Traceback" not in said.err and said.err.strip().splitlines()[-1].startswith(name.replace("_command", ""))
    assert not given


@pytest.mark.parametrize("error, code, sentence", [(P.StageError("03_pretrain failed: no"), 1, "03_pretrain failed: no"), (PermissionError(13, "no right"), 1, "no right"),
                                                   (KeyError("x"), 1, "KeyError: 'x'"), (KeyboardInterrupt(), 130, "stopped; the same command goes on from there")])
def test_failures_are_one_sentence(given, monkeypatch, capsys, error, code, sentence):
    def fail(*_): raise error
    monkeypatch.setattr(P, "_submit", fail)
    assert P.train_teachers_command([]) == code
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and said.startswith("raptor_train_teachers: ")


@pytest.mark.parametrize("stdin", ["</dev/null", "<&-"], ids=["empty-stdin", "no-stdin"])
def test_as_a_program(place, stdin):
    "For real, in another folder, with a kernel; the second call needs none"
    (place / "work/runs/default").mkdir(parents=True)
    (place / "work/runs/default/student.safetensors").write_text("student")
    call = f'"{sys.executable}" -c "import sys; from raptor_nb.pipeline import export_command; sys.exit(export_command())"'
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")} | {"PYTHONPATH": str(Path(P.raptor_nb.__file__).parents[1])}
    run = lambda more="": subprocess.run(["bash", "-c", f"{call} {more} {stdin}"], cwd=place / "work", env=environment, capture_output=True, text=True)
    first = run()
    assert (first.returncode, first.stderr) == (0, "")
    assert [line.split(":")[0] for line in first.stdout.splitlines()] == ["05_export", "05_export"]
    executed = json.loads((place / "work/runs/default/05_export.ipynb").read_text())
    assert (place / "work/runs/default/student.onnx").read_text() == "exported" and executed["cells"][-1]["execution_count"]
    if stdin == "<&-": return
    assert run().stdout == "05_export: nothing changed: skipped\n"
    wrong = run("--targets h5,h5/x")
    assert wrong.returncode == 1 and wrong.stderr.startswith("raptor_export: 05_export failed: NotADirectoryError") and wrong.stderr.count("\n") == 1
