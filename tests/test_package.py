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
    for needed in ("raptor_nb/weights/student.safetensors", "raptor_nb/registry/crazyflie.json", "raptor_nb/configs/default.yaml", "raptor_nb/native/student.cpp", "raptor_nb/native/simd.h"): assert needed in names
    assert {name.split("/")[0] for name in names} == {"raptor_nb", re.match(r"[^-]+-[^-]+", wheel.name)[0] + ".dist-info"}
    assert wheel.stat().st_size < 1e6


def test_the_quickstart_flies_from_the_wheel_without_extras(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(), re.S)[1]
    code = code.replace("state.position.norm(dim=-1)", "far = state.position.norm(dim=-1)")
    before = f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\nsys.path.insert(0, {str(tmp_path / 'site')!r})\n"
    after = "\nimport raptor_nb; assert raptor_nb.__file__.startswith(sys.path[0]), raptor_nb.__file__\nprint(far.median().item())"
    done = subprocess.run([sys.executable, "-c", before + code + after], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < .05
