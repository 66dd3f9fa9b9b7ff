"""What a drone more costs: core-seconds, memory and bytes on disk over the size of the fleet.
`python benchmarks/law.py [runs/law] [10,100,1000,10000] [repetitions]` measures what is missing,
each size in a process of its own, and writes law.json and law.png there."""
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HORIZON, UPDATES, OFFSET_STEPS = 8, 2, 4 # a short training: costs are for each step of flight
CALIBRATION = 32, 128 # steps, of one group of 125
PHASES = ("sample", "stack", "teachers", "offsets")
REAL = dict(updates=400, checkpoints=2)  # of a whole training; of each group, kept
MILLION = 1_000_000


def memory(word): # MB of this process: VmRSS now, VmHWM at most since `forget_peak`
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith(word)).split()[1]) * 1.024e-3


def forget_peak(): Path("/proc/self/clear_refs").write_text("5")


def size_of(folder): # bytes of all files below it
    return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())


def measure(drones, horizon=HORIZON): # -> {name: number}
    "One fleet from sampling to the offsets that distillation begins with"
    import torch

    from raptor_nb.drones import sample_fleet
    from raptor_nb.learn import apg, dagger
    from raptor_nb.pretrain import train_in_groups
    from raptor_nb.settings import load_config
    from raptor_nb.sim import physics
    torch.set_num_threads(1)
    s = load_config("full", **{"apg.num_updates": UPDATES, "apg.checkpoint_interval": 1,
                               "apg.horizon": horizon, "environment.episode_steps": OFFSET_STEPS})
    out = dict(drones=drones, horizon=horizon, base_mb=memory("VmRSS"))

    def phase(name, work):
        forget_peak()
        before, start = memory("VmRSS"), time.process_time()
        made = work()
        out[f"{name}_s"] = time.process_time() - start
        out[f"{name}_mb"] = memory("VmRSS") - before
        out[f"{name}_peak_mb"] = memory("VmHWM") - before
        return made

    fleet = phase("sample", lambda: sample_fleet(drones))
    params = phase("stack", lambda: physics.batch_params(fleet))
    with tempfile.TemporaryDirectory() as folder:
        train = lambda: train_in_groups(s, fleet, list(range(drones)), "cpu", folder)
        teachers = phase("teachers", train)
        out["checkpoint_bytes"] = size_of(folder)
        out["teachers_bytes"] = teachers.save(Path(folder) / "all.safetensors").stat().st_size
    out["fleet_bytes"] = sum(len(d.to_json().encode()) for d in fleet[:100]) / min(100, drones) * drones
    phase("offsets", lambda: dagger.steady_state_offset(teachers, params, s))
    return out | dict(flights=s.apg.num_envs, group=s.apg.group)


def student_update(): # -> core-seconds; the same for any fleet
    "Of one update of the student, by distillation and by its own flights"
    import torch

    from raptor_nb.drones import sample_fleet
    from raptor_nb.learn import apg, dagger, direct
    from raptor_nb.learn.student import init_student
    from raptor_nb.settings import load_config
    torch.set_num_threads(1)
    s, fleet = load_config("full"), sample_fleet(16)
    made = apg.APGState(s.apg, fleet).teachers()
    run = dagger.DAggerState(load_config(s, **{"distillation.dagger.remove_offset": False}),
                             made, fleet, fleet[:1])
    engine = dagger.choose_engine(s, made)
    own = direct.begin_training(s, s.direct, init_student(s), fleet)
    out = {}
    for name, work in (("dagger", lambda: dagger.update_by_dagger(run, engine)),
                       ("direct", lambda: own.advance([.001]))):
        with engine.threads():
            work()
            start = time.process_time()
            for _ in range(3): work()
            out[f"{name}_update_s"] = (time.process_time() - start) / 3
    return out


def fit(x, y): # exponent of y over x in a power law, and its 95 % interval
    from scipy import stats
    line = stats.linregress(np.log(x), np.log(y))
    wide = stats.t.ppf(.975, len(x) - 2) * line.stderr
    return dict(exponent=line.slope, low=line.slope - wide, high=line.slope + wide)


def interval(values): # mean and 95 % interval of repetitions
    from scipy import stats
    v = np.asarray(values, float)
    wide = stats.t.ppf(.975, len(v) - 1) * v.std(ddof=1) / len(v) ** .5 if len(v) > 1 else np.nan
    return dict(mean=v.mean(), low=v.mean() - wide, high=v.mean() + wide, n=len(v))


def each(rows, name): # rows of 100 drones or more -> what one drone more costs, 95 %
    "The slope of a line over the size; what is there with no drone at all is not in it"
    from scipy import stats
    line = stats.linregress([r["drones"] for r in rows], [r[name] for r in rows])
    wide = stats.t.ppf(.975, len(rows) - 2) * line.stderr
    return dict(mean=line.slope, low=line.slope - wide, high=line.slope + wide, n=len(rows))


def law(rows, calibration, student): # -> what law.json holds
    "Costs of a drone, exponents over the size, and what a million cost by them"
    columns = [f"{p}_{unit}" for p in PHASES for unit in ("s", "peak_mb")]
    columns += ["checkpoint_bytes", "teachers_bytes", "fleet_bytes"]
    large = [r for r in rows if r["drones"] >= 100] # below, a fixed part outweighs
    out = {"measured": rows, "calibration": calibration, "student": student,
           "a_drone": {c: each(large, c) for c in columns},
           "exponent": {f"{p}_s": fit([r["drones"] for r in large], [r[f"{p}_s"] for r in large])
                        for p in PHASES}}
    per_step = [r["teachers_s"] / (r["drones"] * r["flights"] * r["horizon"] * UPDATES)
                for r in calibration if r["horizon"] == 128]
    out["teacher_step_s"] = interval(per_step)
    return out | dict(a_million=million(out, rows[0]["flights"]))


def million(found, flights): # -> {what: {value, unit, formula}}
    "The law at a million drones, on paper from what was measured"
    one = {k: v["mean"] for k, v in found["a_drone"].items()}
    step, n = found["teacher_step_s"]["mean"], MILLION
    def row(value, unit, formula): return dict(value=value, unit=unit, formula=formula)
    return {
        "sampling the drones": row(n * one["sample_s"] / 3600, "core-hours", "n * sample_s / 3600"),
        "teachers by gradients": row(
            n * flights * 128 * REAL["updates"] * step / 3600, "core-hours",
            "n * 16 flights * 128 steps * 400 updates * teacher_step_s / 3600"),
        "offsets of the teachers": row(
            n * one["offsets_s"] / OFFSET_STEPS * 500 / 3600, "core-hours",
            f"n * offsets_s / {OFFSET_STEPS} * 500 steps / 3600"),
        "drones in memory": row(n * one["sample_peak_mb"] / 1e3, "GB", "n * sample_peak_mb / 1000"),
        "teachers in memory": row(n * one["teachers_peak_mb"] / 1e3, "GB", "n * teachers_peak_mb / 1000"),
        "drones as a stack": row(n * one["stack_peak_mb"] / 1e3, "GB", "n * stack_peak_mb / 1000"),
        "offsets in memory": row(n * one["offsets_peak_mb"] / 1e3, "GB", "n * offsets_peak_mb / 1000"),
        "teachers on disk": row(n * one["teachers_bytes"] / 1e9, "GB", "n * teachers_bytes / 1e9"),
        "groups and checkpoints on disk": row(
            n * one["checkpoint_bytes"] / 1e9, "GB", "n * checkpoint_bytes / 1e9"),
        "drones on disk": row(n * one["fleet_bytes"] / 1e9, "GB", "n * fleet_bytes / 1e9")}


def draw(rows, path):
    import matplotlib.pyplot as plt

    from raptor_nb.evaluation.figures import save_figure
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    n = np.array(sorted({r["drones"] for r in rows}))
    words = dict(sample="sampling the drones", stack="drones as a stack",
                 teachers=f"teachers, {UPDATES} updates of {HORIZON} steps",
                 offsets=f"offsets, {OFFSET_STEPS} steps")
    bytes_of = dict(fleet_bytes="drones", teachers_bytes="teachers",
                    checkpoint_bytes="groups and checkpoints")
    panels = [({f"{p}_s": w for p, w in words.items()}, "core-seconds", 1),
              ({f"{p}_peak_mb": w for p, w in words.items()}, "memory taken (MB)", 1),
              (bytes_of, "on disk (MB)", 1e-6)]
    for ax, (columns, label, scale) in zip(axes, panels):
        for i, (c, w) in enumerate(columns.items()):
            x, y = [r["drones"] for r in rows], [max(scale * r[c], 1e-3) for r in rows]
            ax.loglog(x, y, ".", color=f"C{i}")
            mean = [np.mean([v for d, v in zip(x, y) if d == k]) for k in n]
            ax.loglog(n, mean, color=f"C{i}", label=w)
        ax.set(xlabel="drones", ylabel=label)
        ax.legend(frameon=False, fontsize=7)
    save_figure(fig, path)


def run(folder, sizes, repetitions):
    "Measure what is missing, the largest last, then write"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "measured.jsonl"
    done = [json.loads(x) for x in kept.read_text().splitlines()] if kept.exists() else []
    small, large = sizes[:-1], sizes[-1:]
    wanted = [("measure", [d, HORIZON]) for _ in range(repetitions) for d in small]
    wanted += [("measure", [125, h]) for _ in range(repetitions) for h in CALIBRATION]
    wanted += [("student_update", [])] * repetitions
    wanted += [("measure", [d, HORIZON]) for d in large] * repetitions
    warm()
    fork = multiprocessing.get_context("fork")
    for what, given in wanted:
        mine = sum(x["what"] == what and x["given"] == given for x in done)
        if mine >= wanted.count((what, given)): continue
        with fork.Pool(1) as pool: found = pool.apply(globals()[what], given)
        done.append(dict(what=what, given=given, found=found))
        with kept.open("a") as file: file.write(json.dumps(done[-1]) + "\n")
        print(what, given, flush=True)
    write(folder, done, sizes)


def warm():
    "Load and compile, so that each process that is forked has nothing left to do"
    import torch

    from raptor_nb.drones import sample_fleet
    from raptor_nb.learn import apg, dagger
    from raptor_nb.settings import load_config
    from raptor_nb.sim import physics
    torch.set_num_threads(1)
    s = load_config("full", **{"apg.num_updates": 1, "apg.horizon": HORIZON,
                               "environment.episode_steps": 2})
    small = sample_fleet(2)
    dagger.steady_state_offset(apg.train(s.apg, small), physics.batch_params(small), s)


def write(folder, done, sizes):
    from raptor_nb.core.records import commit, save_json, versions
    rows = [x["found"] for x in done if x["what"] == "measure" and x["given"][0] in sizes]
    calibration = [x["found"] for x in done if x["what"] == "measure" and x["given"][0] == 125]
    updates = [x["found"] for x in done if x["what"] == "student_update"]
    student = {k: interval([u[k] for u in updates]) for k in updates[0]}
    about = dict(commit=commit(), versions=versions())
    save_json(Path(folder) / "law.json", about | law(rows, calibration, student))
    draw(rows, Path(folder) / "law.png")


if __name__ == "__main__":
    given = sys.argv[1:]
    sizes = [int(n) for n in (given[1] if len(given) > 1 else "10,100,1000,10000").split(",")]
    run(given[0] if given else "runs/law", sizes, int(given[2]) if len(given) > 2 else 3)
