"The console commands: what they give the stages, their exit status, their one sentence of failure"
import json, os, subprocess, sys
from pathlib import Path

import pytest

import raptor_nb
from raptor_nb import cli
from raptor_nb.core.config import ConfigError
from raptor_nb.drones import load_drone, sample_drone
from stages import Fake, cell, place, stand_in, write   # noqa: F401  (a fixture)

COMMANDS = {
    "raptor_pipeline": cli.pipeline_command,
    "raptor_train": cli.train_command,
    "raptor_train_teachers": cli.train_teachers_command,
    "raptor_train_student": cli.train_student_command,
    "raptor_export": cli.export_command,
    "raptor_notebooks": cli.notebooks_command,
}


def call(line):
    "A command line in this process; -> exit status"
    name, *arguments = line.split()
    return COMMANDS[name](arguments)


@pytest.fixture
def given(place, monkeypatch):
    "The parameters that the stages get, in order; no kernel is started"
    fake = Fake()
    run_stage, pipeline = cli.run_stage, cli.pipeline
    monkeypatch.setattr(cli, "run_stage", lambda *a: run_stage(*a, execute=fake))
    monkeypatch.setattr(cli, "pipeline", lambda *a, **k: pipeline(*a, execute=fake, **k))
    return fake.given


@pytest.mark.parametrize("name, options", [
    ("raptor_pipeline", "--profile --road --output-dir --report-dir --device --seed --studies "
                        "--ship"),
    ("raptor_train", "--config --output-dir --drones --start --updates --hidden-dim --device "
                     "--seed"),
    ("raptor_train_teachers", "--config --output-dir --dynamics-dir --num-teachers --steps --seed "
                              "--generate-dynamics --device --algorithm --teacher-ids"),
    ("raptor_train_student", "--config --output-dir --teachers-dir --dynamics-dir --device"),
    ("raptor_export", "--model-path --output-dir --targets --quantize --route --report-dir "
                      "--test-drones"),
    ("raptor_notebooks", "folder"),
])
def test_help(name, options, capsys):
    with pytest.raises(SystemExit) as end: call(f"{name} --help")
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith(f"usage: {name}")
    assert all(o in text for o in options.split())


# --- what the stages are given

def test_teachers_with_fresh_drones(given):
    assert call("raptor_train_teachers --generate-dynamics --num-teachers 3 --dynamics-dir drones "
                "--output-dir teachers --algorithm apg --steps 20 --teacher-ids 0-1 --device cpu "
                "--seed 4") == 0
    assert given == [dict(config="pre_training", output_dir="teachers", drones="drones",
                          num_teachers=3, algorithm="apg", teacher_ids="0-1", steps=20,
                          device="cpu", seed=4)]
    drones = sorted(p.name for p in Path("drones").iterdir())
    assert drones == ["0000.json", "0001.json", "0002.json"]
    assert Path("teachers/03_pretrain.ipynb").is_file()


def test_a_student_from_the_teachers_of_another_folder(given):
    call("raptor_train_teachers --output-dir a")
    assert call("raptor_train_student --teachers-dir a --output-dir b --updates 5") == 0
    assert given[1] == dict(config="default", output_dir="b", updates=5,
                            teachers="a/teachers.safetensors", drones="a/drones.json")
    Path("drones").mkdir()
    call("raptor_train_student --teachers-dir a --dynamics-dir drones --output-dir b")
    assert given[2]["drones"] == "drones"


def test_defaults_pass_on_from_one_to_the_next(given):
    commands = "raptor_train_teachers", "raptor_train_student", "raptor_export"
    assert [call(c) for c in commands] == [0, 0, 0]
    assert [g.pop("config") for g in given] == ["pre_training", "default", "default"]
    assert given == [dict(output_dir="runs/default")] * 3   # 04 and 05 take what lies there


def test_export(given):
    Path("s.safetensors").write_text("student")
    assert call("raptor_export --model-path s.safetensors --output-dir out --targets h5") == 0
    assert given == [dict(config="default", output_dir="out", student="s.safetensors",
                          targets="h5")]
    assert Path("out/05_export.ipynb").is_file()


def test_a_report_adds_the_notebook_that_flies_the_files(given, place):
    write(place / "nbs/10_proof.ipynb", *stand_in("10_proof"))
    Path("s.safetensors").write_text("student")
    assert call("raptor_export --model-path s.safetensors --output-dir out --targets onnx "
                "--quantize --route module --report-dir rep --test-drones 8") == 0
    files = dict(config="default", output_dir="out", student="s.safetensors",
                 targets="onnx,tflite,tflite_float16,tflite_int8")
    assert given == [files | dict(route="module"), files | dict(test_drones=8)]
    report = {p.name for p in Path("rep").iterdir()}
    assert {"05_export.ipynb", "10_proof.ipynb", "index.html", "verdict.json"} == report
    assert json.loads(Path("rep/verdict.json").read_text())[0]["name"] == "return"
    page = Path("rep/index.html").read_text()
    assert "whether every exported file flies as the student does" in page


@pytest.mark.parametrize("targets, all_of_them", [
    ("", f"{cli.DEFAULT},tflite,tflite_float16,tflite_int8"), ("all", "all"),
    ("tflite,h5", "tflite,h5,tflite_float16,tflite_int8")])
def test_quantize_adds_the_files_of_tflite(targets, all_of_them):
    assert cli.with_tflite(targets) == all_of_them


def test_a_student_without_teachers(given):
    Path("s.safetensors").write_text("student")
    assert call("raptor_train --output-dir a --start s.safetensors --updates 5 --hidden-dim 8 "
                "--seed 3 --device cpu") == 0
    assert given == [dict(config="default", output_dir="a", start="s.safetensors", updates=5,
                          hidden_dim=8, seed=3, device="cpu")]
    assert Path("a/student.safetensors").is_file() and Path("a/03_direct.ipynb").is_file()


def test_what_came_out_is_the_last_line(given, monkeypatch, capsys):
    monkeypatch.setattr(cli, "headline_of", lambda path: f"It flies, says {path}.")
    assert call("raptor_train --output-dir a") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "It flies, says a/03_direct.ipynb."


def test_one_road(given):
    assert call("raptor_pipeline --road direct --output-dir a") == 0
    assert [g["output_dir"] for g in given] == ["a"] * 3 and not Path("a/two_phase").exists()


def test_pipeline(given):
    assert call("raptor_pipeline --profile quick --output-dir a --report-dir b --device cpu "
                "--seed 2") == 0
    assert [g["output_dir"] for g in given] == ["a", "a/two_phase", "a/two_phase", "a", "a"]
    assert given[0] == dict(config="quick", output_dir="a", device="cpu", seed=2)
    assert Path("b/index.html").is_file() and Path("b/verdict.json").is_file()


# --- drones

@pytest.mark.parametrize("config, distribution",
                         [("pre_training", "wide_rotor_lag"), ("quick", "published")])
def test_generated_drones_are_those_of_the_settings(given, config, distribution):
    call(f"raptor_train_teachers --generate-dynamics --num-teachers 2 --config {config} "
         "--dynamics-dir drones")
    assert load_drone("drones/0001.json") == sample_drone(1, distribution)


def test_generated_drones_of_a_distribution_of_ones_own(given):
    randomization = "{mass: [1.0, 1.0], seed: 3}"
    Path("a.yaml").write_text(f"inherit: default.yaml\ndomain_randomization: {randomization}\n")
    call("raptor_train_teachers --generate-dynamics --num-teachers 1 --config a.yaml "
         "--dynamics-dir drones")
    assert load_drone("drones/0000.json").mass == pytest.approx(1)


def test_generating_again_is_fine_but_nothing_is_overwritten(given, capsys):
    line = "raptor_train_teachers --generate-dynamics --num-teachers 2 --dynamics-dir drones"
    assert [call(line), call(line)] == [0, 0] and len(given) == 1
    Path("drones/0000.json").write_text("{}")
    Path("drones/0001.json").unlink()
    assert call(line) == 2
    assert Path("drones/0000.json").read_text() == "{}"
    assert not Path("drones/0001.json").exists()
    assert "'drones/0000.json' is there already and holds another drone; nothing was overwritten" \
           in capsys.readouterr().err


# --- copies of the notebooks

def test_notebooks(place, capsys):
    assert call("raptor_notebooks nb") == 0 and Path("nb/03_pretrain.ipynb").is_file()
    said = "5 notebooks in 'nb'; run one with: papermill nb/03_direct.ipynb"
    assert said in capsys.readouterr().out
    assert call("raptor_notebooks nb") == 2
    assert capsys.readouterr().err == "raptor_notebooks: 'nb/03_direct.ipynb' is there already; " \
                                      "nothing was overwritten: name another folder\n"


def test_copies_keep_their_folders(place):
    write(place / "nbs/learn/sac.ipynb", cell("a = 1"))
    write(place / "nbs/.ipynb_checkpoints/03_pretrain-checkpoint.ipynb", cell("a = 1"))
    copies = cli.copy_notebooks("copies")
    assert [p.as_posix() for p in copies] == [
        "copies/03_direct.ipynb", "copies/03_pretrain.ipynb", "copies/04_distill.ipynb",
        "copies/05_export.ipynb", "copies/06_evaluate.ipynb", "copies/learn/sac.ipynb"]
    assert copies[-1].read_bytes() == (place / "nbs/learn/sac.ipynb").read_bytes()


def test_no_notebooks_to_copy_is_a_sentence(place, monkeypatch):
    monkeypatch.setenv("RAPTOR_NB_NOTEBOOKS", str(place / "work"))
    with pytest.raises(ConfigError, match="there are no notebooks in"): cli.copy_notebooks("copies")


# --- what goes wrong

@pytest.mark.parametrize("line, sentence", [
    pytest.param("raptor_pipeline --profile quik",
                 "raptor_pipeline: settings file 'quik' does not exist; packaged ones are",
                 id="unknown-profile"),
    pytest.param("raptor_pipeline --output reports", "unrecognized arguments: --output reports",
                 id="abbreviated-option"),
    pytest.param("raptor_pipeline --seed many", "argument --seed: invalid int value: 'many'",
                 id="seed-is-a-word"),
    pytest.param("raptor_pipeline --studies 8_understand",
                 "there is no study '8_understand'; the nearest is '08_understand'",
                 id="unknown-study"),
    pytest.param("raptor_pipeline --road rail",
                 "raptor_pipeline: there is no road 'rail'; known: direct, teachers, both",
                 id="unknown-road"),
    pytest.param("raptor_train --updates 0", "--updates is 0; it must be at least 1",
                 id="no-updates"),
    pytest.param("raptor_train --start nobody.safetensors",
                 "03_direct: start is 'nobody.safetensors', and there is no such file",
                 id="missing-start"),
    pytest.param("raptor_train --drones nowhere/drones.json",
                 "03_direct: drones is 'nowhere/drones.json', and there is no such file",
                 id="missing-fleet"),
    pytest.param("raptor_train_teachers --algorithm ppo",
                 "argument --algorithm: invalid choice: 'ppo'", id="unknown-algorithm"),
    pytest.param("raptor_train_teachers --num-teachers 0",
                 "--num-teachers is 0; it must be at least 1", id="no-teachers"),
    pytest.param("raptor_train_teachers --steps -5", "--steps is -5; it must be at least 1",
                 id="negative-steps"),
    pytest.param("raptor_train_teachers --config mine.yaml",
                 "settings file 'mine.yaml' does not exist", id="missing-config"),
    pytest.param("raptor_train_teachers --dynamics-dir empty",
                 "there are no drones (0000.json ...) in 'empty'; add --generate-dynamics",
                 id="no-drones-in-folder"),
    pytest.param("raptor_train_student --teachers-dir nowhere",
                 "04_distill: teachers is 'nowhere/teachers.safetensors', and there is no such file",
                 id="missing-teachers"),
    pytest.param("raptor_train_student",
                 "04_distill needs 'runs/default/teachers.safetensors', which 03_pretrain makes: "
                 "run that first", id="missing-earlier-stage"),
    pytest.param("raptor_export --model-path nothing.safetensors",
                 "05_export: student is 'nothing.safetensors', and there is no such file",
                 id="missing-model"),
    pytest.param("raptor_export --route onnx2tf", "argument --route: invalid choice: 'onnx2tf'",
                 id="unknown-route"),
    pytest.param("raptor_export --report-dir r --test-drones 0",
                 "--test-drones is 0; it must be at least 1", id="no-test-drones"),
])
def test_bad_arguments(given, capsys, line, sentence):
    try: status = call(line)
    except SystemExit as end: status = end.code
    said = capsys.readouterr().err
    assert status == 2 and sentence in said and "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith(line.split()[0])
    assert not given


@pytest.mark.parametrize("error, status, sentence", [
    (cli.StageError("03_pretrain failed: no"), 1, "03_pretrain failed: no"),
    (PermissionError(13, "no right"), 1, "no right"),
    (KeyError("x"), 1, "KeyError: 'x'"),
    (KeyboardInterrupt(), 130, "stopped; the same command resumes it"),
], ids=["stage", "file", "mistake", "ctrl-c"])
def test_failures_are_one_sentence(given, monkeypatch, capsys, error, status, sentence):
    def fail(*_): raise error
    monkeypatch.setattr(cli, "run_stage", fail)
    assert call("raptor_train_teachers") == status
    said = capsys.readouterr().err
    assert said.startswith("raptor_train_teachers: ")
    assert sentence in said and said.count("\n") == 1


@pytest.mark.parametrize("line", ["raptor_pipeline", "raptor_train", "raptor_train_teachers",
                                  "raptor_train_student", "raptor_export"])
def test_without_papermill_every_stage_says_what_to_install(place, monkeypatch, capsys, line):
    for name in ("student.safetensors", "teachers.safetensors", "drones.json"):
        write(place / "work/runs/default" / name)
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert call(line) == 1
    said = capsys.readouterr()
    assert said.err == f"{line}: executing a notebook needs papermill, which is not installed: " \
                       "pip install 'raptor-nb[lab]'\n"
    assert "Traceback" not in said.out


@pytest.fixture
def program(place):
    "raptor_export as a program of its own, in a folder that has a student"
    student = place / "work/runs/default/student.safetensors"
    student.parent.mkdir(parents=True)
    student.write_text("student")
    code = "import sys; from raptor_nb.cli import export_command; sys.exit(export_command())"
    library = str(Path(raptor_nb.__file__).parents[1])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    def run(more=""):
        return subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{code}" {more}'],
                              env=environment | {"PYTHONPATH": library}, capture_output=True,
                              text=True)
    return run


@pytest.mark.parametrize("stdin", ["</dev/null", "<&-"], ids=["empty-stdin", "no-stdin"])
def test_as_a_program(program, stdin):
    done = program(stdin)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["05_export"] * 2
    executed = json.loads(Path("runs/default/05_export.ipynb").read_text())
    assert executed["cells"][-1]["execution_count"]
    assert Path("runs/default/student.onnx").read_text() == "exported"


def test_a_program_called_again_and_wrongly(program):
    program()
    assert program().stdout == "05_export: nothing changed: skipped\n"
    wrong = program("--targets h5,h5/x")
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("raptor_export: 05_export failed: NotADirectoryError")
