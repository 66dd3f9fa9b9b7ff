"The package as others get it: a wheel that flies without extras and works without a clone"
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ["l2f", "foundation_policy", "onnx", "onnxruntime", "papermill", "nbformat", "tensorboard",
          "psutil", "IPython", "nbdev", "ipywidgets", "websockets"]
SOURCES = ["raptor_nb", "nbs", "docs", "pyproject.toml", "setup.py", "README.md", "LICENSE"]
PIP = [sys.executable, "-m", "pip"]


def tracked(*paths):
    command = ["git", "ls-files", "-z", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return [name for name in done.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked(*SOURCES):   # a copy, so that nothing is built inside the clone
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    command = [*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder,
               folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("raptor_nb-*.whl"))


NEEDED = {"weights/student.safetensors", "weights/student.px4.tar", "registry/crazyflie.json",
          "configs/default.yaml",
          "native/student.cpp", "native/simd.h", "templates/report.html.jinja"}


def test_wheel_holds_what_flies_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = re.match(r"[^-]+-[^-]+", wheel.name)[0] + ".dist-info"
    assert {name.split("/")[0] for name in names} == {"raptor_nb", info}
    inside = {name.removeprefix("raptor_nb/") for name in names}
    assert NEEDED <= inside
    notebooks = {p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb")
                 if ".ipynb_checkpoints" not in p.parts}
    assert {n for n in inside if n.endswith(".ipynb")} == {f"notebooks/{n}" for n in notebooks}
    guides = {n for n in inside if n.startswith("guides/")}
    assert guides == {"guides/javascript.md", "guides/microcontroller.md"}
    assert wheel.stat().st_size < 1.75e6


def test_the_clone_holds_no_second_copy():
    listed = tracked("raptor_nb")
    assert not [name for name in listed if name.endswith(".ipynb") or "/guides/" in name]
    from raptor_nb.pipeline import notebooks_folder
    assert notebooks_folder() == ROOT / "nbs"


TINY = """inherit: quick.yaml
training: {num_teachers: 8}
apg: {num_updates: 100}
distillation: {dagger: {num_updates: 500}, direct: {num_updates: 50}}
evaluation: {num_drones: 16, observation_noise: [0.01]}
"""


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel, the packages of this one, and no clone; a function that runs
    its programs in an empty folder"""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv")
    programs, empty = home / "venv/bin", home / "empty"
    empty.mkdir()
    install = [*PIP, "--python", programs / "python", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, wheel], check=True, capture_output=True)
    own = next((home / "venv/lib").glob("python*/site-packages"))
    others = dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")))
    (own / "others.pth").write_text("\n".join(others))   # *.pth there are not read
    ours = "COV", "PYTHON", "RAPTOR_NB", "IN_TEST"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}

    def run(program, *arguments):
        done = subprocess.run([programs / program, *arguments], cwd=empty, env=environment,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout
    run.folder, run.package = empty, own / "raptor_nb"
    return run


@pytest.mark.slow
def test_without_a_clone_teachers_pipeline_and_export(installed):
    found = installed("python", "-c",
                      "import raptor_nb.pipeline as P; print(P.notebooks_folder())")
    assert found.strip() == str(installed.package / "notebooks")
    installed("raptor_train_teachers", *"--algorithm apg --num-teachers 8 --steps 60000 "
                                        "--output-dir runs/mine --device cpu".split())
    (installed.folder / "tiny.yaml").write_text(TINY)
    said = installed("raptor_pipeline", "--profile", "tiny.yaml", "--device", "cpu")
    assert re.search(r"The student \(from random weights, without teachers, in \d+ s\) survives "
                     r"[\d.]+ % of flights on 16 drones that it was not trained on", said)
    report = json.loads((installed.folder / "runs/tiny/report/verdict.json").read_text())
    assert {row["name"]: row["value"] for row in report}["drones"] == 5500
    installed("raptor_export", *"--model-path published --targets onnx,h5,c,json "
                                "--output-dir exported".split())
    paths = installed.folder.rglob("*")
    made = {p.relative_to(installed.folder).as_posix() for p in paths}
    assert {"runs/mine/teachers.safetensors", "runs/mine/03_pretrain.ipynb",
            "runs/tiny/student.safetensors", "runs/tiny/report/index.html",
            *(f"exported/student.{end}" for end in ("onnx", "h5", "h", "json"))} <= made
    top = {name.split("/")[0] for name in made}
    assert top == {"runs", "exported", "tiny.yaml"}, "nothing but what was asked for"


GUIDE = "from raptor_nb.targets.harness import guide_program; " \
        "print(len(guide_program('microcontroller', 'control_loop.h')))"


@pytest.mark.slow
def test_without_a_clone_the_copied_notebooks_run(installed):
    installed("raptor_notebooks", "nb")
    installed("python", *"-m papermill nb/03_pretrain.ipynb out.ipynb -p algorithm apg "
                         "-p num_teachers 2 -p steps 20000 -p output_dir runs/nb".split())
    text = (installed.folder / "out.ipynb").read_text()
    assert "2 teachers by apg, each on its own drone, survive" in text
    assert installed("python", "-c", GUIDE).strip().isdigit()
