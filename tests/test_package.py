"The package as others get it: a wheel with everything it needs and nothing else, which flies without extras"
import re, subprocess, sys, zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ["l2f", "foundation_policy", "onnx", "onnxruntime", "papermill", "nbformat", "tensorboard", "dask", "IPython", "nbdev", "fastcore", "ipywidgets", "websockets"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", "-z", "raptor_nb", "pyproject.toml", "README.md", "LICENSE"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, files):   # a copy, so that nothing is built inside the clone
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("raptor_nb-*.whl"))


def test_wheel_holds_what_flies_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("raptor_nb/weights/student.safetensors", "raptor_nb/registry/crazyflie.json", "raptor_nb/configs/default.yaml", "raptor_nb/learn/native.cpp"): assert needed in names
    assert {name.split("/")[0] for name in names} == {"raptor_nb", re.match(r"[^-]+-[^-]+", wheel.name)[0] + ".dist-info"}
    assert wheel.stat().st_size < 1e6
