"""What a training survives: kills at random moments, full disks, truncated files, jumping clocks -> reports/scale/faults.json

python benchmarks/faults.py [--moments 30] [--updates 200] [--parts kills,disks] [--engines local,dask,slurm] [--output reports/scale]

A small direct training of two seeds, whole once, then disturbed. Each try is a process that is forked from this one and ends, or is
ended by kill -9. Every update is counted, so that the work that is done again is a count and not a time. On Dask and SLURM (started
on this machine, as root) that process is the driver, and what is killed is any of the processes that a training has there."""
import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch

from raptor_nb import direct
from raptor_nb.core.records import load_json, save_json
from raptor_nb.core.tracking import tensorboard_writer
from raptor_nb.core.units import unit_states
from raptor_nb.drones import sample_fleet
from raptor_nb.evaluation.acceptance import check
from raptor_nb.policy import RaptorPolicy
from raptor_nb.settings import load_config

SEEDS = 42, 43
TAG = "RAPTOR_FAULTS"  # in the environment of what a driver starts
ROLES = {"distributed.Scheduler": "scheduler", "distributed.Nanny": "nanny", "spawn_main": "worker",  # by the command line
         "srun\0": "srun", "slurm_script": "batch script", "submitit.core._submit": "job step"}


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import slurm_here  # noqa: E402
from scale import cluster  # noqa: E402


def settings_for(updates, **more):
    return load_config(**direct.TRIAL | {
        "apg.engine": "native", "environment.episode_steps": 50, "direct.num_updates": updates,
        "direct.validation_interval": max(1, updates // 10), "direct.flights": 64} | more)


def counted(folder, original):
    "`training_log` that notes every update in a file"
    def training_log(*args, **kw):
        metrics, log = original(*args, **kw)
        def also(update, numbers):
            with (folder / "updates.log").open("ab") as f: f.write(b".")
            log(update, numbers)
        return metrics, also
    return training_log


def train(folder, notes, settings, jump):
    "What a try does, in a process of its own; what failed is written down"
    for n in (1, 2): os.dup2(os.open(os.devnull, os.O_WRONLY), n)
    os.environ[TAG] = str(folder)
    real = time.time
    if jump: time.time = lambda: real() + jump
    direct.training_log = counted(notes, direct.training_log)
    text = json.dumps(settings.of_results(), sort_keys=True)
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]  # of its checkpoints, as the stage has it
    try: direct.train_students(settings, sample_fleet(3), folder, mark=mark)
    except Exception as e:
        (notes / "said.txt").write_text(f"{type(e).__name__}: {e}")
        os._exit(1)
    os._exit(0)


def start(folder, notes, settings, jump=0.):
    pid = os.fork()
    if not pid: train(folder, notes, settings, jump)
    return pid


def end(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def students(folder):
    return [RaptorPolicy.load(folder / f"students/seed-{n}.safetensors").state_dict() for n in SEEDS]


def same(a, b): return all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in x)


class Trial:
    "A training that is disturbed, beside one that was not"
    def __init__(self, args):
        self.settings, self.rows, self.file = settings_for(args.updates), [], Path(args.output) / "faults.json"
        self.top = Path(tempfile.mkdtemp())
        self.notes = self.new("notes")
        tensorboard_writer(self.notes / "tensorboard", 0)  # imported once, before the forks
        began = time.monotonic()
        assert self.go(self.new("whole")) == 0, self.said()
        self.seconds, self.needed = time.monotonic() - began, self.updates()
        self.whole = students(self.top / "whole")

    def new(self, name):
        (self.top / name).mkdir()
        return self.top / name

    def updates(self):
        "How many since the last question"
        file = self.notes / "updates.log"
        n = file.stat().st_size if file.exists() else 0
        file.unlink(missing_ok=True)
        return n

    def said(self):
        file = self.notes / "said.txt"
        text = file.read_text() if file.exists() else ""
        file.unlink(missing_ok=True)
        return text.replace(f"{self.top}/", "")

    def go(self, folder, settings=None, jump=0.):
        return end(start(folder, self.notes, settings or self.settings, jump))

    def add(self, name, ok, note=""):
        self.rows.append(check(name, float(ok), "share", 1., note=note))
        print(f"{name}: {'yes' if ok == 1 else ok} {note}", flush=True)

    def save(self):
        "Beside the rows of other parts and engines"
        new = {r["name"] for r in self.rows}
        kept = [r for r in (load_json(self.file) if self.file.exists() else []) if r["name"] not in new]
        save_json(self.file, kept + self.rows)


def kills(trial, moments):
    "kill -9 at random moments, until as many have hit"
    random.seed(1)
    hit, good, runs, repeated = 0, 0, 0, 0
    while hit < moments:
        folder, kills_here = trial.new(f"killed-{runs}"), 0
        while True:
            pid = start(folder, trial.notes, trial.settings, 0.)
            if hit < moments and kills_here < 5:
                time.sleep(random.uniform(0, trial.seconds))
                os.kill(pid, signal.SIGKILL)
            code = end(pid)
            if code == 0: break
            assert code == -signal.SIGKILL, trial.said()
            hit, kills_here = hit + 1, kills_here + 1
        runs, good = runs + 1, good + same(students(folder), trial.whole)
        repeated += trial.updates() - trial.needed
    trial.add(f"bit-equal after kill -9, {hit} random moments", good / runs, f"{runs} trainings, 5 kills each or fewer")
    trial.rows.append(check("work repeated, mean of a kill", repeated / hit / trial.needed, "share",
                            note=f"{repeated} of {trial.needed} updates after {hit} kills; checkpoints every tenth of a training"))


def logged(folder):
    "Updates that were done on an engine, those that were done again too"
    return sum(p.read_bytes().count(b"\n") for p in folder.glob("logs/direct/*/metrics.jsonl"))


def started_for(folder):
    "What a training runs on this machine beside its driver -> {role: process ids}"
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{TAG}={folder}".encode() not in (path / "environ").read_bytes().split(b"\0"): continue
            words = (path / "cmdline").read_bytes().decode(errors="replace")
        except OSError: continue
        role = next((role for mark, role in ROLES.items() if mark in words), None)
        if role: found.setdefault(role, []).append(int(path.name))
    return found


def kill(pid):
    "-> whether it was still there"
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: return False
    return True


def moment(folder, seconds, needed):
    "A random time, or a random number of updates that are done -> function that says whether it has come"
    done, due = logged(folder), time.monotonic() + random.uniform(0, seconds)
    goal = random.uniform(done, max(done, needed))
    return random.choice([lambda: time.monotonic() >= due, lambda: logged(folder) >= goal])


def disturbed(driver, folder, seconds, needed, most, killed, patience=600):
    "kill -9 of anything at random moments until `most` have hit -> exit code of the driver, None: it does not end"
    late, due = time.monotonic() + patience, moment(folder, seconds, needed)
    while time.monotonic() < late:
        pid, status = os.waitpid(driver, os.WNOHANG)
        if pid: return os.waitstatus_to_exitcode(status)
        if len(killed) < most and due():
            found = started_for(folder) | {"driver": [driver]}
            role, victim = random.choice([(role, pid) for role, pids in found.items() for pid in pids])
            if kill(victim): killed.append(role)
            due = moment(folder, seconds, needed)
        time.sleep(.05)
    kill(driver)
    end(driver)


def clear(folder, engine):
    "Nothing of a training is left"
    if engine == "slurm": subprocess.run(["scancel", "--user=root"], capture_output=True)  # of the SLURM that was started here
    for pids in started_for(folder).values():
        for pid in pids: kill(pid)


def until_whole(trial, folder, settings, seconds, most):
    "The same command until it ends well -> (roles that were killed, starts, sentences of drivers), None: it hung or never did"
    killed, said = [], []
    for starts in range(1, most + 4):
        code = disturbed(start(folder, trial.notes, settings), folder, seconds, trial.needed, most, killed)
        if code is None: break
        if code == 0: return killed, starts, said
        if code != -signal.SIGKILL: said.append(trial.said())


def engine_kills(trial, engine, moments, workers, minutes, window, each=3):
    "Like `kills`, of driver, workers and whatever else an engine has running; fewer, if the time is over"
    settings = load_config(trial.settings, **{"scale.engine": engine, "scale.workers": workers, "scale.memory": 1.})
    late = time.monotonic() + 60 * minutes
    seconds, needed = window or 4 * trial.seconds, trial.needed  # processes that start and import take most of it
    random.seed(1)
    roles, good, runs, starts, repeated, tries, said = Counter(), 0, 0, 0, 0, 0, []
    while roles.total() < moments and time.monotonic() < late:
        folder = trial.new(f"{engine}-{runs}")
        ended = until_whole(trial, folder, settings, seconds, min(each, moments - roles.total()))
        clear(folder, engine)
        runs += 1
        if not ended: print(f"{folder} has no students", unit_states(folder).to_string(), sep="\n", flush=True); break
        good += same(students(folder), trial.whole)
        roles, starts, said = roles + Counter(ended[0]), starts + ended[1], said + ended[2]
        repeated, tries = repeated + logged(folder) - needed, tries + int(unit_states(folder).tries.sum())
        print(f"{engine} {runs}: killed {', '.join(ended[0])}; {ended[1]} starts {ended[2]}", flush=True)
    hit, what = roles.total(), ", ".join(f"{n} {role}" for role, n in roles.most_common())
    trial.add(f"{engine}: bit-equal after kill -9 at random moments", good / runs,
              f"{hit} moments: {what}; {runs} trainings, {each} kills each or fewer, {starts} starts of the driver, workers: {workers}")
    trial.rows.append(check(f"{engine}: work repeated, mean of a kill", repeated / max(hit, 1) / needed, "share",
                            note=f"{repeated} of {needed} updates after {hit} kills; {tries} tries with a reason kept"))
    if said: trial.add(f"{engine}: a driver that ends without a result says one sentence",
                       sum(map(one_sentence, said)) / len(said), f"{len(said)} times: {said[-1]}")


def all_kills(trial, args):
    for engine in args.engines.split(","):
        if engine == "local": kills(trial, args.moments); continue
        if engine == "slurm" and slurm_here.missing(): print(slurm_here.missing()); continue
        with cluster(engine, trial.top): engine_kills(trial, engine, args.engine_moments, args.workers, args.minutes, args.window)
        trial.save()


@contextmanager
def small_disk(folder, size):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try: yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally: subprocess.run(["umount", "-l", folder])


def one_sentence(text): return bool(text) and len(text.splitlines()) == 1


def full_disks(trial, sizes=("16k", "64k", "128k", "256k", "384k")):
    stopped, good, sentences = 0, 0, 0
    for size in sizes:
        folder = trial.new(f"disk-{size}")
        with small_disk(folder, size) as remount:
            if trial.go(folder):
                stopped += 1
                said = trial.said()
                sentences += one_sentence(said)
                remount("size=64m")
                assert trial.go(folder) == 0, trial.said()
            good += same(students(folder), trial.whole)
    trial.add("full disk: bit-equal when there is room again", good / len(sizes), f"{len(sizes)} sizes of disk, {stopped} stopped the training")
    trial.add("full disk: one sentence", sentences / max(stopped, 1), said)


def read_only(trial):
    folder = trial.new("read-only")
    with small_disk(folder, "64m") as remount:
        remount("ro")
        code, said = trial.go(folder), trial.said()
        remount("rw")
        trial.add("read-only folder: one sentence, then bit-equal", code == 1 and one_sentence(said)
                  and trial.go(folder) == 0 and same(students(folder), trial.whole), said)


def two_runs(trial):
    folder = trial.new("two")
    trial.updates()
    both = [start(folder, trial.notes, trial.settings) for _ in range(2)]
    codes = [end(pid) for pid in both]
    done = trial.updates()
    trial.add("two runs on one folder: bit-equal", codes == [0, 0] and same(students(folder), trial.whole),
              f"{done} updates were done where one run needs {trial.needed}")


def truncated(trial):
    "Each kind of file of a finished run, cut in half"
    folder = trial.new("truncated")
    assert trial.go(folder) == 0
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size > 1 and "tensorboard" not in p.parts]
    files = list({re.sub(r"\d+|-[0-9a-f]{8}", "", str(p.relative_to(folder))): p for p in files}.values())
    good = 0
    for path in files:
        if not path.exists(): continue
        os.truncate(path, path.stat().st_size // 2)
        code = trial.go(folder)
        good += code == 0 and same(students(folder), trial.whole)
        if code: print(path.relative_to(folder), trial.said())
    trial.add("truncated file of a finished run: bit-equal", good / len(files), f"{len(files)} kinds of file, one at a time")


def clock(trial):
    good, jumps = 0, (-1e9, -86400., 86400., 1e9)
    for jump in jumps:
        folder = trial.new(f"clock{jump}")
        pid = start(folder, trial.notes, trial.settings, jump)
        time.sleep(trial.seconds / 2)
        os.kill(pid, signal.SIGKILL)
        end(pid)
        for path in folder.rglob("*"): os.utime(path, (time.time() + jump,) * 2)
        good += trial.go(folder, jump=-jump) == 0 and same(students(folder), trial.whole)
    trial.add("clock that jumps by a day or 30 years: bit-equal", good / len(jumps), f"{len(jumps)} jumps, killed in between")


def other_settings(trial, updates):
    folder, other = trial.new("settings"), settings_for(updates, **{"direct.learning_rate": .002})
    pid = start(folder, trial.notes, trial.settings)
    time.sleep(trial.seconds / 2)
    os.kill(pid, signal.SIGKILL)
    end(pid)
    alone = trial.new("other")
    codes = [trial.go(folder, other), trial.go(alone, other)]
    between = same(students(folder), students(alone))
    codes.append(trial.go(folder))
    trial.add("settings change in between and back: both bit-equal", codes == [0, 0, 0] and between
              and same(students(folder), trial.whole))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--moments", type=int, default=30)
    p.add_argument("--engine-moments", type=int, default=10, help="as --moments, on Dask and on SLURM")
    p.add_argument("--workers", type=int, default=2, help="of Dask and of SLURM, at once")
    p.add_argument("--window", type=float, default=0., help="s in which a moment of Dask and SLURM falls; 0: 4 times the local training")
    p.add_argument("--minutes", type=float, default=60, help="of an engine, after which no training is begun")
    p.add_argument("--engines", default="local,dask,slurm", help="of the part kills")
    p.add_argument("--updates", type=int, default=200)
    p.add_argument("--parts", default="kills,disks,two,truncated,clock,settings", help="the others' rows are kept")
    p.add_argument("--output", default="reports/scale")
    args = p.parse_args()
    torch.set_num_threads(1)
    trial = Trial(args)
    print(f"{trial.needed} updates, {trial.seconds:.1f} s undisturbed", flush=True)
    parts = dict(kills=lambda: all_kills(trial, args), disks=lambda: (full_disks(trial), read_only(trial)),
                 two=lambda: two_runs(trial), truncated=lambda: truncated(trial), clock=lambda: clock(trial),
                 settings=lambda: other_settings(trial, args.updates))
    for name, part in parts.items():
        if name in args.parts.split(",") and (name != "disks" or os.geteuid() == 0): part()
        trial.save()


if __name__ == "__main__": main()
