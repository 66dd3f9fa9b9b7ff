"""A whole profile, with its notebooks and by its command, on every engine -> pipelines.json

python benchmarks/pipelines.py [--engines local,dask,slurm] [--profile quick] [--threads 1] [--output reports/scale]

Every weight that a run leaves (teachers, students, the kept student) and every value of its verdict but seconds and memory are
compared with those of the first engine. SLURM is started on this machine, where it can be (as root, with slurm-wlm and munge)."""
import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from raptor_nb.core.records import load_json, save_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from scale import cluster, load  # noqa: E402


def weights(run): # -> {file: {name: tensor}}
    kept = [p for p in run.rglob("*.safetensors") if not {"checkpoints", "units", "report"} & set(p.relative_to(run).parts)]
    return {str(p.relative_to(run)): load_file(p) for p in sorted(kept)}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def values(run): # -> {name of a row: value}
    rows = load_json(run / "verdict.json")
    return {r["name"]: r["value"] for r in rows if not r["name"].startswith(("wall time", "peak memory"))}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--engines", default="local,dask,slurm")
    p.add_argument("--profile", default="quick")
    p.add_argument("--threads", type=int, default=1, help="of a unit of Dask and SLURM")
    p.add_argument("--output", default="reports/scale")
    args = p.parse_args()
    top, rows, first = Path(tempfile.mkdtemp()), [], None
    profile = top / "profile.yaml"  # another name than what it inherits
    profile.write_text(f"inherit: {args.profile}.yaml\nscale: {{threads: {args.threads}}}\n")
    for engine in args.engines.split(","):
        run, before = top / engine, load()
        command = [shutil.which("raptor_pipeline"), "--profile", str(profile), "--engine", engine, "--output-dir", str(run)]
        with cluster(engine, top):
            began = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True)
            took = time.monotonic() - began
        if done.returncode: raise SystemExit(f"{engine}: {(done.stderr or done.stdout)[-800:]}")
        made, said = weights(run), values(run)
        first = first or (made, said)
        equal = [name for name in first[0] if name in made and same(made[name], first[0][name])]
        told = [name for name in first[1] if said.get(name) == first[1][name]]
        rows.append(dict(engine=engine, profile=args.profile, threads=args.threads, seconds=took, load=before, files=len(made), equal_files=len(equal),
                         values=len(said), equal_values=len(told), different=sorted(set(first[0]) - set(equal)) + sorted(set(first[1]) - set(told))))
        print(rows[-1], flush=True)
        save_json(Path(args.output) / "pipelines.json", rows)


if __name__ == "__main__": main()
