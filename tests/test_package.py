"The package as others get it: a wheel with everything it needs and nothing else, which flies without extras, and works without a clone"
import json, os, re, subprocess, sys, sysconfig, venv, zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ["l2f", "foundation_policy", "onnx", "onnxruntime", "papermill", "nbformat", "tensorboard", "dask", "IPython", "nbdev", "fastcore", "ipywidgets", "websockets"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", "-z", "raptor_nb", "nbs", "docs", "pyproject.toml", "setup.py", "README.md", "LICENSE"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, files):   # a copy, so that nothing is built inside the clone
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("raptor_nb-*.whl"))


def test_wheel_holds_what_flies_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("raptor_nb/weights/student.safetensors", "raptor_nb/registry/crazyflie.json", "raptor_nb/configs/default.yaml", "raptor_nb/native/student.cpp", "raptor_nb/native/simd.h"): assert needed in names
    assert {name.split("/")[0] for name in names} == {"raptor_nb", re.match(r"[^-]+-[^-]+", wheel.name)[0] + ".dist-info"}
    notebooks = {p.relative_to(ROOT / "nbs").as_posix() for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    assert {name.removeprefix("raptor_nb/notebooks/") for name in names if name.endswith(".ipynb")} == notebooks
    assert {name for name in names if "/guides/" in name} == {"raptor_nb/guides/javascript.md", "raptor_nb/guides/microcontroller.md"}
    assert wheel.stat().st_size < 1.5e6


def test_the_clone_holds_no_second_copy():
    listed = subprocess.run(["git", "ls-files", "raptor_nb"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert not [name for name in listed if name.endswith(".ipynb") or "/guides/" in name]
    from raptor_nb.pipeline import notebooks_folder
    assert notebooks_folder() == ROOT / "nbs"


TINY = """inherit: quick.yaml
training: {num_teachers: 8}
apg: {updates: 100}
distillation: {online: {updates: 500}, polish: {updates: 50}}
evaluation: {num_drones: 16, observation_noise: [0.01]}
"""


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "An environment with the wheel, the packages of this one, and no clone; a function that runs its programs in an empty folder"
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv")
    python = home / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], check=True, capture_output=True)
    own = next((home / "venv/lib").glob("python*/site-packages"))
    (own / "others.pth").write_text("\n".join(dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")))))   # *.pth there, an editable install, are not read
    (home / "empty").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTHON", "RAPTOR_NB", "IN_TEST"))}
    environment["JUPYTER_PATH"] = os.path.join(sys.prefix, "share/jupyter")   # nbconvert's templates, which a real installation has beside its programs
    def run(program, *arguments):
        done = subprocess.run([python, *arguments] if program == "python" else [home / "venv/bin" / program, *arguments], cwd=home / "empty", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout
    run.folder, run.package = home / "empty", own / "raptor_nb"
    return run


@pytest.mark.slow
def test_without_a_clone_teachers_pipeline_and_export(installed):
    assert installed("python", "-c", "import raptor_nb.pipeline as P; print(P.notebooks_folder())").strip() == str(installed.package / "notebooks")
    installed("raptor_train_teachers", "--algorithm", "apg", "--num-teachers", "8", "--steps", "60000", "--output-dir", "runs/mine", "--device", "cpu")
    (installed.folder / "tiny.yaml").write_text(TINY)
    said = installed("raptor_pipeline", "--profile", "tiny.yaml", "--device", "cpu")
    assert re.search(r"The student survives [\d.]+ % of flights on 16 drones that it was not trained on", said)
    assert {"drones": 8}.items() <= {r["name"]: r["value"] for r in json.loads((installed.folder / "runs/tiny/report/verdict.json").read_text())}.items()
    installed("raptor_export", "--model-path", "published", "--targets", "onnx,h5,c,json", "--output-dir", "exported")
    made = {p.relative_to(installed.folder).as_posix() for p in installed.folder.rglob("*")}
    assert {"runs/mine/teachers.safetensors", "runs/mine/03_pretrain.ipynb", "runs/tiny/student.safetensors", "runs/tiny/report/index.html",
            *(f"exported/student.{end}" for end in ("onnx", "h5", "h", "json"))} <= made
    assert {name.split("/")[0] for name in made} == {"runs", "exported", "tiny.yaml"}, "nothing beside what was asked for"


@pytest.mark.slow
def test_without_a_clone_the_copied_notebooks_run(installed):
    installed("raptor_notebooks", "nb")
    installed("python", "-m", "papermill", "nb/03_pretrain.ipynb", "out.ipynb", *"-p algorithm apg -p num_teachers 2 -p steps 20000 -p output_dir runs/nb".split())
    assert "2 teachers by apg, each on its own drone, survive" in (installed.folder / "out.ipynb").read_text()
    assert installed("python", "-c", "from raptor_nb.proof import guide; print(len(guide('microcontroller', 'control_loop.h')))").strip().isdigit()
