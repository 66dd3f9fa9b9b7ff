"""The same students on every engine, what an engine costs, and a grid of 24 trainings -> reports/scale/verdict.json

python benchmarks/scale.py [--engines local,dask,slurm] [--profile quick] [--grid 24] [--output reports/scale]

--profile quick trains the students of the quick profile (minutes), --profile tiny small ones. SLURM is started on this machine, where
it can be (as root, with slurm-wlm and munge), and workers are killed meanwhile."""
import argparse
import os
import socket
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from raptor_nb import direct
from raptor_nb.core.parallel import core_count
from raptor_nb.core.records import save_json
from raptor_nb.core.scale import run_units
from raptor_nb.core.units import Unit, read, unit_states
from raptor_nb.drones import sample_fleet
from raptor_nb.evaluation.acceptance import check
from raptor_nb.grid import run_grid
from raptor_nb.settings import load_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import slurm_here  # noqa: E402

TINY = direct.TRIAL | {"environment.episode_steps": 50, "direct.num_updates": 60, "direct.validation_interval": 10,
                       "apg.engine": "native"}


def nothing(folder, name, check_cancelled=None):
    "A unit that costs nothing: what is left is the engine"
    save_json(folder / f"{name}.json", name)


def same(a, b): return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def load(): return f"load {os.getloadavg()[0]:.0f} on {core_count()} cores"


@contextmanager
def cluster(engine, folder):
    "SLURM on this machine where it is asked for"
    if engine != "slurm": yield; return
    folder.chmod(0o755)  # its munge is not root
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    with slurm_here.slurm(folder / "slurm", port) as env:
        os.environ["SLURM_CONF"] = env["SLURM_CONF"]
        yield


@contextmanager
def killing(folder, times):
    "Workers are killed meanwhile -> list with how many were"
    from test_scale import kill_a_worker
    killed = []
    thread = threading.Thread(target=lambda: killed.append(kill_a_worker(folder, times)), daemon=True)
    thread.start()
    yield killed
    thread.join(90)


def students(settings, fleet, folder, kill=0):
    "-> students, seconds, seconds of the units, workers that were killed"
    began = time.monotonic()
    with killing(folder, kill) if kill else nullcontext([0]) as killed:
        made = direct.train_students(settings, fleet, folder)
        took = time.monotonic() - began
    parts = sum(read(p.parent, "done")["seconds"] for p in folder.glob("units/*/unit.json"))
    return made, took, parts, killed[0]


def measure(engine, args, base, fleet, known):
    "Rows of one engine; `known`: the local students"
    rows, top = [], Path(tempfile.mkdtemp())
    settings = load_config(base, **{"scale.engine": engine, "scale.workers": core_count(), "scale.memory": 1.})
    with cluster(engine, top):
        made, took, parts, _ = students(settings, fleet, top / "whole")
        known = known or made
        equal = all(same(made[n], known[n]) for n in known)
        rows.append(check(f"{engine}: students equal to the last bit", float(equal), "share", 1.,
                          note=f"{len(made)} students, profile {args.profile}"))
        rows.append(check(f"{engine}: wall time of {len(made)} students", took, "s",
                          note=f"the sum of the units is {parts:.1f} s, {load()}"))
        if engine != "local":
            made, _, _, killed = students(settings, fleet, top / "killed", kill=1)
            equal, tries = all(same(made[n], known[n]) for n in known), int(unit_states(top / "killed").tries.sum())
            rows.append(check(f"{engine}: equal after kill -9 of workers", float(equal), "share", 1.,
                              note=f"{killed} killed, {tries} tries with a reason kept"))
        units = [Unit(f"nothing-{n}", "scale:nothing", dict(name=f"n{n}"), (f"n{n}.json",)) for n in range(args.empty)]
        began = time.monotonic()
        run_units(units, top / "empty", settings.scale)
        rows.append(check(f"{engine}: {args.empty} empty units", time.monotonic() - began, "s",
                          note=f"with the start of workers; {load()}"))
        began = time.monotonic()
        points = [{"student.hidden_dim": d, "direct.learning_rate": r} for d in (4, 8, 16) for r in (.002, .004)]
        table = run_grid(load_config(settings, **TINY), points, range(1, 1 + max(1, args.grid // 6)), top / "grid")
        wall, parts = time.monotonic() - began, table.seconds.sum()
        rows.append(check(f"{engine}: wall time of a grid of {len(table)} trainings", wall, "s",
                          note=f"the sum of its parts is {parts:.1f} s, {core_count()} workers, {load()}"))
    for r in rows: print(f"{r['name']}: {r['value']:.4g} {r['unit']} ({r['note']})", flush=True)
    return rows, known


def overheads(rows, profile):
    "An engine's wall time over that of this machine; what is asked for is asked for at the quick profile's size"
    most = .05 if profile == "quick" else None
    named = {r["name"]: r["value"] for r in rows}
    for engine in ("dask", "slurm"):
        took = [v for n, v in named.items() if n.startswith(f"{engine}: wall time of") and "students" in n]
        here = [v for n, v in named.items() if n.startswith("local: wall time of") and "students" in n]
        if took and here:
            yield check(f"{engine}: overhead over local", took[0] / here[0] - 1, "share", most, higher_is_better=False,
                        note=f"profile {profile}; processes that start and import are most of it; {load()}")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--engines", default="local,dask,slurm")
    p.add_argument("--profile", default="quick")
    p.add_argument("--grid", type=int, default=24)
    p.add_argument("--empty", type=int, default=20)
    p.add_argument("--output", default="reports/scale")
    args = p.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    base = load_config("default", **TINY) if args.profile == "tiny" else load_config(args.profile, **{"direct.seeds": 2})
    fleet = sample_fleet(3) if args.profile == "tiny" else direct.choose_fleet(base)
    rows, known = [], None
    for engine in args.engines.split(","):
        if engine == "slurm" and slurm_here.missing(): print(slurm_here.missing()); continue
        new, known = measure(engine, args, base, fleet, known)
        rows += new
        save_json(Path(args.output) / "verdict.json", rows + list(overheads(rows, args.profile)))


if __name__ == "__main__": main()
