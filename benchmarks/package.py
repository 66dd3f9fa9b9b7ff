"""The wheel in an empty environment, without a clone: its size, what comes with it, how long an import
takes, whether the student flies; then, with its extras, teachers, the pipeline and the export

Writes the figures to reports/site/verdict.json. PIP_ARGS as for `make`: the default torch of Linux
is the CUDA build. WHEELS, a folder with a wheel of l2f, saves compiling it.
"""
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()
TORCH = next(line for line in LOCK if line.startswith("torch=="))
IMPORT = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"
COMMANDS = ("raptor_train_teachers --algorithm apg --num-teachers 8 --output-dir runs/teachers",
            "raptor_pipeline --profile quick",
            "raptor_export --model-path runs/quick/student.safetensors --output-dir exported --targets onnx,h5,c,json")
POSITION = "\nprint(state.position.norm(dim=-1).median().item())"


def run(*words, **how):
    "-> what a command prints"
    words = [str(w) for w in words]
    return subprocess.run(words, check=True, capture_output=True, text=True, **how).stdout


def import_seconds(python, folder, name):
    "Of the processor, the best of three"
    tries = [float(run(python, "-c", IMPORT.format(name), cwd=folder)) for _ in range(3)]
    return round(min(tries), 2)


def wheel_alone(wheel, python, pip, folder):
    "-> seconds of the installation with extras and of each command, in an empty folder"
    find, lock = os.environ.get("WHEELS"), folder / "constraints.txt"
    lock.write_text("\n".join(line for line in LOCK if "==" in line))
    where = ["--find-links", find, "--prefer-binary"] if find else []
    out, empty = {}, folder / "empty"
    empty.mkdir()
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def timed(name, *words):
        begin = time.perf_counter()
        run(*words, cwd=empty, env=own)
        out[name] = round(time.perf_counter() - begin, 1)
    timed("pip install, with the extras sim, export and lab", python, "-m", "pip", "install", "-q", *pip, *where,
          "-c", lock, f"{wheel}[sim,export,lab]")
    for command in COMMANDS:
        program, *words = command.split()
        timed(command, python.parent / program, *words)
    return out


def direct_dependencies():
    "How many pyproject.toml names"
    return len(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run("git", "clone", "-q", ROOT, folder / "clone")
        begin = time.perf_counter()
        dist, build = folder / "dist", (sys.executable, "-m", "build", "--no-isolation")
        run(*build, "-o", dist, folder / "clone")
        built = time.perf_counter() - begin
        wheel, source = next(dist.glob("*.whl")), next(dist.glob("*.tar.gz"))
        venv.create(folder / "venv", with_pip=True)
        python, pip = folder / "venv/bin/python", shlex.split(os.environ.get("PIP_ARGS", ""))
        freeze = python, "-m", "pip", "freeze", "--all"
        own = set(run(*freeze).split())
        begin = time.perf_counter()
        run(python, "-m", "pip", "install", "-q", *pip, TORCH, wheel, cwd=folder)
        installed = time.perf_counter() - begin
        packages = set(run(*freeze, cwd=folder).splitlines()) - own
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(), re.S)
        code = next(b for b in blocks if "state.position" in b)
        flown = float(run(python, "-c", code + POSITION, cwd=folder).split()[-1])
        names = "raptor_nb", "raptor_nb.policy", "raptor_nb.drones", "torch"
        out = dict(wheel_bytes=wheel.stat().st_size, sdist_bytes=source.stat().st_size,
                   packages_with_dependencies=len(packages),
                   direct_dependencies=direct_dependencies(),
                   build_seconds=round(built, 1), install_seconds=round(installed, 1),
                   import_cpu_seconds={n: import_seconds(python, folder, n) for n in names},
                   median_distance_after_5_s=round(flown, 4),
                   without_a_clone_seconds=wheel_alone(wheel, python, pip, folder))
    file = ROOT / "reports/site/verdict.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(kept | {"package": out}, indent=1) + "\n")
    print(json.dumps(out, indent=1))


if __name__ == "__main__": main()
