"Units of work on three engines: the same weights, whoever is killed meanwhile"
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
import torch
from filelock import FileLock

import slurm_here
from raptor_nb import cli, direct, evaluate, pretrain, understand
from raptor_nb.core import scale as S
from raptor_nb.core import units as U
from raptor_nb.core.records import load_json, save_json
from raptor_nb.core.scale import Driver, Scale, ScaleError, run_units
from raptor_nb.core.tracking import Live
from raptor_nb.core.units import Unit, describe, is_done, unit_states, work
from raptor_nb.drones import load_fleet, sample_fleet
from raptor_nb.evaluation.ablation import CachedTraining
from raptor_nb.grid import grid_units, parse_grid, run_grid
from raptor_nb.learn.student import kept_fleet, kept_teachers
from raptor_nb.pipeline import dependencies, find_notebook, plan_road, run_status, STAGES
from raptor_nb.policy import RaptorPolicy, Teachers
from raptor_nb.settings import load_config

TINY = direct.TRIAL | {"environment.episode_steps": 20, "apg.engine": "native"}


def same(a, b): return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def count(folder, name, fail=(), check_cancelled=None):
    "A unit that notes that it was begun, and fails as often as is asked for"
    begun = folder / f"begun-{name}"
    tries = int(begun.read_text()) if begun.exists() else 0
    begun.write_text(str(tries + 1))
    if tries < len(fail): raise {"OSError": OSError, "ValueError": ValueError}[fail[tries]]("so")
    save_json(folder / f"{name}.json", dict(name=name))


def counting(name, **more):
    return Unit(name, "test_scale:count", dict(name=name) | more, (f"{name}.json",))


def begun(folder, name): return int((folder / f"begun-{name}").read_text())


class Here:
    "An engine of this process; units named in `lost` are lost so many times"
    name, poll = "here", 0.

    def __init__(self, **lost): self.lost, self.jobs = lost, 0

    def submit(self, places):
        for place in places:
            self.jobs += 1
            name = place.name.rpartition("-")[0]
            self.lost[name] = self.lost.get(name, 0) - 1
            if self.lost[name] >= 0: continue
            try: work(place)
            except (OSError, ValueError): pass
        return [f"{place.name} {self.jobs}" for place in places]

    def alive(self): return {}
    def why(self, job): return "the node went down"


def drive(folder, units, engine, retries=2):
    Driver(engine, [describe(u, folder) for u in units], retries).run(lambda text: None)


# --- units

def test_a_unit_is_done_once_and_again_when_its_file_was_truncated(tmp_path):
    place = describe(counting("a"), tmp_path)
    for _ in range(3): work(place)
    assert begun(tmp_path, "a") == 1 and is_done(place)
    (tmp_path / "a.json").write_text("{")
    assert not is_done(place)
    work(place)
    assert begun(tmp_path, "a") == 2 and load_json(tmp_path / "a.json") == {"name": "a"}


def test_other_arguments_are_another_unit(tmp_path):
    assert counting("a").place(tmp_path) != counting("a", fail=["OSError"]).place(tmp_path)


def test_two_workers_on_one_unit_do_it_once(tmp_path):
    place = describe(counting("a"), tmp_path)
    with FileLock(place / ".lock"):
        other = subprocess.Popen([sys.executable, "-c", f"import sys; sys.path.insert(0, "
                                  f"{str(Path(__file__).parent)!r}); from raptor_nb.core.units "
                                  f"import work; work({str(place)!r})"])
        time.sleep(.5)
        assert not (tmp_path / "begun-a").exists(), "it waits for the lock"
    assert other.wait(60) == 0 and is_done(place)
    work(place)
    assert begun(tmp_path, "a") == 1


def test_states_are_told_from_locks(tmp_path):
    units = {name: describe(counting(name), tmp_path) for name in "abcd"}
    work(units["a"])
    wrong = describe(counting("e", fail=["ValueError"]), tmp_path)
    with pytest.raises(ValueError): work(wrong)
    save_json(units["c"] / "running.json", dict(where="x", tries=0, job="7_1"))
    save_json(units["d"] / "submitted.json", dict(engine="slurm", job="7_2", tries=0))
    with FileLock(units["b"] / ".lock"): table = unit_states(tmp_path)
    states = dict(zip(table.unit.str[0], table.state))
    assert states == dict(a="done", b="running", c="stopped", d="submitted", e="failed")
    assert table.said.iloc[4] == "ValueError: so" and "slurm job 7_2" in table["where"].iloc[3]


def test_raptor_status_says_it_in_a_table(tmp_path, capsys):
    work(describe(counting("a"), tmp_path))
    assert cli.status_command([str(tmp_path)]) == 0
    assert "done" in capsys.readouterr().out
    assert cli.status_command([str(tmp_path / "nothing")]) == 2
    assert "there is no run in" in capsys.readouterr().err


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_cannot_be_written_is_one_sentence_and_then_it_goes_on(trouble, tmp_path):
    if os.geteuid(): pytest.skip("a small disk is mounted by root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode: pytest.xfail("nothing can be mounted here")
    remount = lambda options: subprocess.run(["mount", "-o", f"remount,{options}", tmp_path], check=True)
    try:
        if trouble == "read-only": remount("size=1m,ro")
        with pytest.raises(OSError, match="(no space left on device|read-only file system)"):
            run_units([counting("a"), counting("b")], tmp_path)
        remount("size=1m,rw")
        run_units([counting("a"), counting("b")], tmp_path)
        assert load_json(tmp_path / "b.json") == {"name": "b"}
    finally: subprocess.run(["umount", "-l", tmp_path])


def test_truncated_records_of_a_unit_are_written_anew(tmp_path):
    run_units([counting("a")], tmp_path)
    for name in ("unit", "done"):
        os.truncate(counting("a").place(tmp_path) / f"{name}.json", 9)
        run_units([counting("a")], tmp_path)
    assert begun(tmp_path, "a") == 2, "a broken description of what is done costs nothing"


# --- the driver

def test_lost_jobs_are_submitted_again_with_the_reason_kept(tmp_path):
    engine = Here(a=2)
    drive(tmp_path, [counting("a"), counting("b")], engine)
    assert engine.jobs == 4
    failed = U.failures(counting("a").place(tmp_path))
    assert [f["reason"] for f in failed] == ["the node went down"] * 2


def test_at_most_n_times(tmp_path):
    sentence = "1 of 2 units have no result, the first is a-.*: the node went down; raptor_status"
    with pytest.raises(ScaleError, match=sentence):
        drive(tmp_path, [counting("a"), counting("b")], Here(a=3))
    assert is_done(counting("b").place(tmp_path)), "the others come to an end"
    drive(tmp_path, [counting("a")], Here())
    assert is_done(counting("a").place(tmp_path)), "the same command begins to count anew"


def test_what_may_pass_is_tried_again_and_what_cannot_is_not(tmp_path):
    drive(tmp_path, [counting("a", fail=["OSError"])], Here())
    assert begun(tmp_path, "a") == 2
    with pytest.raises(ScaleError, match="ValueError: so"):
        drive(tmp_path, [counting("b", fail=["ValueError"])], Here())
    assert begun(tmp_path, "b") == 1


def test_a_new_driver_takes_over_the_jobs_that_live(tmp_path):
    place = describe(counting("a"), tmp_path)
    save_json(place / "submitted.json", dict(engine="here", job="old", tries=0))
    engine = Here()
    engine.alive = lambda: {} if is_done(place) else work(place) or {"old": "running"}
    Driver(engine, [place], 0).run(lambda text: None)
    assert engine.jobs == 0 and begun(tmp_path, "a") == 1


def test_a_controller_without_answer_is_no_lost_job(tmp_path):
    engine, answers = Here(a=1), [{}, None, None, None]
    place = describe(counting("a"), tmp_path)
    driver = Driver(engine, [place], 0)
    driver.submit()
    engine.alive = lambda: None
    for _ in answers: driver.look()
    assert driver.jobs and not driver.failed


def test_locally_a_failure_is_the_exception_itself(tmp_path):
    with pytest.raises(ValueError, match="so"):
        run_units([counting("a", fail=["ValueError"])], tmp_path)


def test_a_dask_worker_of_this_machine_that_is_gone_is_started_again():
    class Process: returncode = None
    class Dead: returncode = -9
    def worker(process): return type("Worker", (), dict(process=process))()
    class Cluster:
        worker_spec, workers, asked = {0: {}, 1: {}}, {0: worker(Dead), 1: worker(Process)}, []
        def scale(self, n): self.asked.append(n)
    cluster = Cluster()
    for _ in range(2): S._replace_dead(cluster)
    assert list(cluster.workers) == [1] and cluster.asked == [2]


def test_a_scheduler_that_is_gone_is_said_although_its_cluster_cannot_be_closed(
        tmp_path, monkeypatch):
    class Client: status = "closed"
    class Cluster:
        def close(self): raise OSError("Timed out trying to connect")
    engine = S.Dask.__new__(S.Dask)
    engine.client, engine.cluster, engine.futures = Client(), Cluster(), {}
    engine.submit = lambda places: [str(p) for p in places]
    monkeypatch.setattr(S, "open_engine", lambda how, folder: engine)
    with pytest.raises(ScaleError, match="the Dask scheduler has gone; the same command goes on"):
        run_units([counting("a")], tmp_path, Scale(engine="dask"))


def test_without_slurm_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ScaleError, match="there is no SLURM on this machine"):
        run_units([counting("a")], tmp_path, Scale(engine="slurm"))


# --- what is spread

def test_the_engine_changes_no_result_and_nothing_is_done_again():
    notebook = find_notebook("03_direct")
    given = dict(config="quick", output_dir="out")
    made = [dependencies(STAGES["03_direct"], notebook, given | more, {})
            for more in ({}, dict(engine="slurm"))]
    assert made[0] == made[1] and "scale" not in made[0]["settings"]


def test_the_engine_reaches_every_stage_that_has_parts():
    tasks = plan_road("both", load_config("quick"), "quick", "out", "", -1, "dask")
    assert {n for n, p in tasks.items() if p.get("engine") == "dask"} == {
        "03_direct", "03_pretrain", "04_distill", "06_evaluate"}


def test_fleet_and_teachers_come_to_the_worker_as_they_are(tmp_path):
    fleet, teachers = sample_fleet(3), Teachers(3)
    again = load_fleet(tmp_path / kept_fleet(fleet, tmp_path))
    assert [d.to_json() for d in again] == [d.to_json() for d in fleet]
    assert same(teachers, Teachers.load(tmp_path / kept_teachers(teachers, tmp_path)))


class Closing(Here):
    def close(self, cancel): pass


@pytest.fixture
def spread(monkeypatch):
    "A cluster that is this process"
    monkeypatch.setattr(S, "open_engine", lambda how, folder: Closing())


SHORT = {"apg.num_updates": 3, "apg.horizon": 10, "apg.num_envs": 4, "apg.group": 2,
         "training.steps_per_teacher": 400, "training.eval_frequency": 200,
         "sac.learning_starts": 100, "training.checkpoint_frequency": 200, "training.device": "cpu"}


@pytest.mark.parametrize("algorithm", ["apg", "sac"])
def test_teachers_of_units_are_those_of_one_run(algorithm, spread, tmp_path):
    base, fleet = load_config(**SHORT | {"training.algorithm": algorithm}), sample_fleet(3)
    told = []
    whole = pretrain.train_teachers(base, fleet, [0, 1, 2], tmp_path / "whole")
    on_cluster = load_config(base, **{"scale.engine": "dask"})
    made = pretrain.train_teachers(on_cluster, fleet, [0, 1, 2], tmp_path / "spread",
                                   lambda step, numbers: told.append(step))
    assert same(whole, made) and made.ids == whole.ids and len(told) > 1


@pytest.mark.parametrize("algorithm, before, last", [("apg", ["done"], 6), ("sac", [], 400)])
def test_teachers_of_this_machine_are_in_the_table_too(algorithm, before, last, tmp_path):
    settings, fleet = load_config(**SHORT | {"training.algorithm": algorithm}), sample_fleet(3)
    def train(folder, log=None):
        return pretrain.train_teachers(settings, fleet, [0, 1, 2], tmp_path / folder, log)
    def states(): return run_status(tmp_path / "a").state.tolist()
    whole = train("whole")
    for error, state in (OSError("no room"), "failed"), (KeyboardInterrupt(), "stopped"):
        def log(step, numbers):
            if step < last: return
            Live().update(f"step {step}")
            assert states() == [*before, "running"]
            assert run_status(tmp_path / "a").said.iloc[-1] == f"step {step}"
            raise error
        with pytest.raises(type(error)): train("a", log)
        assert states() == [*before, state]
        if state == "failed": assert run_status(tmp_path / "a").said.iloc[-1] == "OSError: no room"
    assert same(train("a"), whole) and states() == [*before, "done"]
    files = lambda run: sorted((tmp_path / run / "checkpoints/pretrain").glob("*.safetensors"))
    assert [f.name for f in files("a")] == [f.name for f in files("whole")]
    shutil.rmtree(tmp_path / "a/units") # a run of before there were any
    told = []
    assert same(train("a", lambda step, numbers: told.append(step)), whole)
    assert not told and states() == [*before, "done"]


def test_groups_of_this_machine_and_of_a_cluster_are_the_same_units(spread, tmp_path):
    settings, told = load_config(**SHORT | {"training.algorithm": "apg"}), []
    given = sample_fleet(3), [0, 1, 2], tmp_path
    def stop(step, numbers):
        if step == 6: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): pretrain.train_teachers(settings, *given, stop)
    on_cluster = load_config(settings, **{"scale.engine": "dask"})
    log = lambda step, numbers: told.append(step)
    made = pretrain.train_teachers(on_cluster, *given, log)
    assert same(made, pretrain.train_teachers(settings, *given))
    assert unit_states(tmp_path).state.tolist() == ["done"] * 2
    assert told and min(told) > 3, "the second group's curve is that of the second group"


def test_flights_of_units_are_those_of_one_run(spread, tmp_path):
    pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
    few = {"evaluation.num_drones": 4, "evaluation.observation_noise": [.03]}
    def fly(engine):
        settings = load_config(**few | {"scale.engine": engine})
        return evaluate.fly_all(evaluate.load_inputs(settings, tmp_path, "published", teachers="none"))
    here, there = fly("local"), fly("dask")
    pd.testing.assert_frame_equal(here.flights, there.flights)
    pd.testing.assert_frame_equal(here.lost, there.lost, check_dtype=False)
    assert unit_states(tmp_path).state.tolist() == ["done"] * here.flights.condition.nunique()


def test_ablations_of_units_are_those_of_one_run(spread, tmp_path):
    fleet, teachers = sample_fleet(2), Teachers(2, 29)
    short = {"distillation.dagger.num_updates": 2, "distillation.dagger.num_envs": 16,
             "distillation.dagger.drones": 1, "distillation.sequence_length": 20,
             "distillation.dagger.validation_interval": 2, "environment.episode_steps": 20,
             "distillation.fine_tuning.num_updates": 0, "apg.engine": "native"}
    def train(engine):
        settings, folder = load_config(**short | {"scale.engine": engine}), tmp_path / engine
        training = CachedTraining(folder, teachers, fleet, fleet)
        study = understand.Study(settings, {}, folder, training=training, log=lambda text: None)
        return understand.train_students(study, {"nothing, here": (training, settings)})["nothing, here"]
    assert same(train("local"), train("dask"))
    assert unit_states(tmp_path / "dask").state.tolist() == ["done"]


def test_a_grid_is_every_combination_and_grows(tmp_path):
    points = parse_grid(["student.hidden_dim=4,8"])
    made = grid_units(load_config(**TINY), points, [1, 2])
    assert len({unit.leaves for unit, _ in made}) == 4
    small = {"direct.seeds": 1, "direct.num_updates": 2, "direct.validation_interval": 2}
    settings = load_config(**TINY | small)
    table = run_grid(settings, points[:1], [1], tmp_path)
    more = run_grid(settings, points, [1], tmp_path)
    assert more.iloc[0].to_dict() == table.iloc[0].to_dict(), "the first was kept, its seconds too"
    assert more["student.hidden_dim"].tolist() == [4, 8]


# --- real clusters

BASE = TINY | {"direct.num_updates": 60, "direct.validation_interval": 10}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "Students of this machine"
    folder, settings = tmp_path_factory.mktemp("alone"), load_config(**BASE)
    return direct.train_students(settings, sample_fleet(3), folder)


@contextmanager
def beside(function, *arguments):
    "A thread that works meanwhile, and what it has done"
    done = []
    thread = Thread(target=lambda: done.append(function(*arguments)), daemon=True)
    thread.start()
    yield done
    thread.join(60)


def kill_a_worker(folder, times, wait=60):
    "kill -9 of the process that holds a unit, as its running.json says -> how many were killed"
    killed, end = set(), time.monotonic() + wait
    while len(killed) < times and time.monotonic() < end:
        time.sleep(.1)
        for path in Path(folder).glob("units/*/running.json"):
            pid = int(U.read(path.parent, "running").get("where", "process 0").split()[1])
            if not pid or pid in killed or not U.is_held(path.parent): continue
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: continue
            killed.add(pid)
            break
    return len(killed)


def settings_of(engine):
    return load_config(**BASE | {"scale.engine": engine, "scale.workers": 2, "scale.memory": 1.})


@pytest.mark.slow
def test_a_dask_cluster_whose_workers_are_killed_gives_the_same_students(alone, tmp_path):
    pytest.importorskip("distributed")
    with beside(kill_a_worker, tmp_path, 2) as killed:
        made = direct.train_students(settings_of("dask"), sample_fleet(3), tmp_path)
    assert killed == [2]
    assert all(same(made[n], alone[n]) for n in alone)


@pytest.mark.slow
def test_dask_without_any_worker_left_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    here = str(Path(__file__).parent) # workers find the unit's function there
    path = [here, os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    engine, place = S.Dask(Scale(engine="dask", workers=1)), describe(counting("a"), tmp_path)
    try:
        engine.client.run(lambda: None)
        os.kill(engine.cluster.workers[0].process.pid, signal.SIGKILL)
        engine.submit([place])
        end = time.monotonic() + 120
        while not is_done(place) and time.monotonic() < end:
            engine.alive()
            time.sleep(.2)
        assert is_done(place)
    finally: engine.close([])


@pytest.mark.slow
def test_a_stage_by_its_command_runs_on_dask_and_is_not_done_again(tmp_path, capsys):
    pytest.importorskip("distributed")
    small = TINY | {"scale.workers": 1, "direct.seeds": 1, "direct.learning_rate": 1e-12}
    RaptorPolicy.pretrained().save(tmp_path / "start.safetensors")
    (tmp_path / "tiny.yaml").write_text(load_config(**small).to_yaml())
    def train(folder, engine):
        assert cli.train_command(["--config", str(tmp_path / "tiny.yaml"), "--output-dir",
                                  str(tmp_path / folder), "--engine", engine, "--start",
                                  str(tmp_path / "start.safetensors")]) == 0
        return capsys.readouterr().out
    for engine in ("local", "dask"): train(engine, engine)
    students = [RaptorPolicy.load(tmp_path / f"{engine}/student.safetensors") for engine in ("local", "dask")]
    assert same(*students)
    assert "nothing changed: skipped" in train("local", "dask")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm_here.missing(): pytest.skip(reason)
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    for path in (folder, *folder.parents[:2]): path.chmod(0o755)
    with socket.socket() as s: s.bind(("", 0)); port = s.getsockname()[1]
    with slurm_here.slurm(folder / "here", port) as env:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", env["SLURM_CONF"])
            yield slurm_here


def scontrol(*words): return subprocess.run(["scontrol", *words], capture_output=True, text=True)


def running_job():
    "The last job that runs, or ''"
    asked = ["squeue", "-h", "-r", "-t", "R", "-o", "%i"]
    return (subprocess.run(asked, capture_output=True, text=True).stdout.split() or [""])[-1]


def disturb(folder):
    "A worker killed; when that was seen a job requeued, the node drained for a while -> killed"
    killed, end = kill_a_worker(folder, 1), time.monotonic() + 60
    while not list(Path(folder).glob("units/*/failures.json")) and time.monotonic() < end:
        time.sleep(.2)
    if job := running_job():
        scontrol("requeue", job)
        time.sleep(.5)
        scontrol("update", f"jobid={job}", "starttime=now")
    node = "nodename=" + os.uname().nodename.split(".")[0]
    scontrol("update", node, "state=drain", "reason=test")
    time.sleep(2)
    scontrol("update", node, "state=resume")
    return killed


@pytest.mark.slow
def test_slurm_whose_jobs_are_killed_requeued_and_drained_gives_the_same_students(
        alone, cluster, tmp_path):
    with beside(disturb, tmp_path) as killed:
        made = direct.train_students(settings_of("slurm"), sample_fleet(3), tmp_path)
    assert killed == [1]
    assert all(same(made[n], alone[n]) for n in alone)
    assert sum(unit_states(tmp_path).tries) >= 1, "the reason is kept"
    assert set(run_status(tmp_path).state) == {"done"}


@pytest.mark.slow
def test_the_driver_dies_and_its_jobs_work_on(alone, cluster, tmp_path):
    code = ("import sys; sys.path.insert(0, {!r}); from test_scale import *; direct.train_students("
            "settings_of('slurm'), sample_fleet(3), Path({!r}))")
    driver = subprocess.Popen([sys.executable, "-c", code.format(str(Path(__file__).parent), str(tmp_path))])
    end = time.monotonic() + 120
    while not list(tmp_path.glob("units/*/submitted.json")) and time.monotonic() < end: time.sleep(.1)
    driver.kill()
    driver.wait()
    jobs = {p.parent: load_json(p)["job"] for p in tmp_path.glob("units/*/submitted.json")}
    made = direct.train_students(settings_of("slurm"), sample_fleet(3), tmp_path)
    assert jobs and all(same(made[n], alone[n]) for n in alone)
    assert all(load_json(p / "submitted.json")["job"] == job for p, job in jobs.items()), "taken over"
