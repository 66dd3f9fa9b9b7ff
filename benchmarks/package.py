"""The wheel in an empty environment, without extras: its size, what comes with it, how long an import takes, and whether the student flies

Writes the figures to reports/site/verdict.json. PIP_ARGS as for `make`: the default torch of Linux is the CUDA build.
"""
import json, os, re, shlex, subprocess, sys, tempfile, time, tomllib, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH = next(l for l in (ROOT / "requirements.lock").read_text().splitlines() if l.startswith("torch=="))


def run(*words, **how): return subprocess.run([str(w) for w in words], check=True, capture_output=True, text=True, **how).stdout


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run("git", "clone", "-q", ROOT, folder / "clone")
        begin = time.perf_counter()
        run(sys.executable, "-m", "build", "--no-isolation", "-o", folder / "dist", folder / "clone")
        built = time.perf_counter() - begin
        wheel, source = next((folder / "dist").glob("*.whl")), next((folder / "dist").glob("*.tar.gz"))
        venv.create(folder / "venv", with_pip=True)
        python, pip = folder / "venv/bin/python", shlex.split(os.environ.get("PIP_ARGS", ""))
        own = set(run(python, "-m", "pip", "freeze", "--all").split())
        begin = time.perf_counter()
        run(python, "-m", "pip", "install", "-q", *pip, TORCH, wheel, cwd=folder)
        installed = time.perf_counter() - begin
        packages = sorted(set(run(python, "-m", "pip", "freeze", "--all", cwd=folder).splitlines()) - own)
        code = re.search(r"```python\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(), re.S)[1]
        flown = float(run(python, "-c", code + "\nprint(state.position.norm(dim=-1).median().item())", cwd=folder))
        timed = lambda name: round(min(float(run(python, "-c", f"import time; t = time.process_time(); import {name}; print(time.process_time() - t)", cwd=folder)) for _ in range(3)), 2)
        out = dict(wheel_bytes=wheel.stat().st_size, sdist_bytes=source.stat().st_size, packages_with_dependencies=len(packages), direct_dependencies=len(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]), build_seconds=round(built, 1),
                   install_seconds=round(installed, 1), import_cpu_seconds={name: timed(name) for name in ("raptor_nb", "raptor_nb.policy", "raptor_nb.drones", "torch")}, median_distance_after_5_s=round(flown, 4))
    file = ROOT / "reports/site/verdict.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(kept | {"package": out}, indent=1) + "\n")
    print(json.dumps(out, indent=1))


if __name__ == "__main__": main()
