"The stage of the direct road: seeds, stops, starts, and what it refuses"
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from raptor_nb import direct as stage
from raptor_nb.core.config import ConfigError
from raptor_nb.core.tracking import Metrics
from raptor_nb.drones import DroneError, sample_fleet, save_fleet
from raptor_nb.learn import direct
from raptor_nb.learn.student import init_student
from raptor_nb.policy import PolicyError, RaptorPolicy
from raptor_nb.settings import load_config

ROOT = Path(__file__).resolve().parents[1]
TINY = load_config("default", **stage.TRIAL | {"environment.episode_steps": 20})
DRONES = sample_fleet(3)


def same(a, b): return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


# --- training
def test_every_seed_gives_a_student_that_is_kept(tmp_path):
    students = stage.train_students(TINY, DRONES, tmp_path)
    assert list(students) == [42, 43] and not same(*students.values())
    for seed, made in students.items():
        assert same(made, RaptorPolicy.load(tmp_path / f"students/seed-{seed}.safetensors"))
    log = Metrics(tmp_path / "logs/direct/seed-43", tensorboard=False).frame()
    assert log["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert log["validation_return"].notna().tolist() == [False, False, True] * 2
    assert (log["lost_gradients"] == 0).all()


def test_seeds_side_by_side_are_those_trained_alone(tmp_path):
    together = stage.train_students(TINY, DRONES, tmp_path / "together")
    for seed, made in together.items():
        own = load_config(TINY, **{"training.seed": seed})
        assert same(made, stage.train_student(own, DRONES, tmp_path / "alone"))


def test_a_cancelled_training_resumes_bit_by_bit(tmp_path):
    whole, calls = stage.train_student(TINY, DRONES, tmp_path / "whole"), []
    def cancel():
        calls.append(0)
        if len(calls) == 5: raise InterruptedError
    args = TINY, DRONES, tmp_path / "other"
    with pytest.raises(InterruptedError): stage.train_student(*args, check_cancelled=cancel)
    assert same(whole, stage.train_student(*args))
    steps = Metrics(tmp_path / "other/logs/direct/seed-42", tensorboard=False).frame()["step"]
    assert steps.tolist() == [1, 2, 3, 4, 5, 6], "the update after the checkpoint is told once"


KILLED = """
import time
from raptor_nb import direct as stage
from raptor_nb.drones import sample_fleet
from raptor_nb.settings import load_config
settings = load_config("default", **stage.TRIAL | {"environment.episode_steps": 20})
wait = lambda: time.sleep(.5)
stage.train_student(settings, sample_fleet(3), "out", check_cancelled=wait)
"""


def test_a_killed_training_resumes_bit_by_bit(tmp_path):
    program = subprocess.Popen([sys.executable, "-c", KILLED], cwd=tmp_path,
                               stdout=subprocess.DEVNULL, env={"PYTHONPATH": str(ROOT)})
    there, end = [], time.monotonic() + 120
    while not there and program.poll() is None and time.monotonic() < end:
        there = list(tmp_path.glob("out/checkpoints/direct/*/*.safetensors"))
        time.sleep(.02)
    program.send_signal(signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL and there
    assert not (tmp_path / "out/students").exists(), "killed before its end"
    resumed = stage.train_student(TINY, DRONES, tmp_path / "out")
    assert same(resumed, stage.train_student(TINY, DRONES, tmp_path / "whole"))


@pytest.mark.parametrize("size", [4, 24])
def test_a_student_of_any_size_is_trained(tmp_path, size):
    settings = stage.change_settings(TINY, hidden_dim=size)
    made = stage.train_student(settings, DRONES, tmp_path)
    assert made.hidden_dim == size and not same(made, init_student(settings))


def test_gradients_that_are_not_finite_are_counted_and_said(tmp_path, monkeypatch, capsys):
    once, gradients = [], direct.TorchTraining.gradients
    def broken(run):
        grads, *more = gradients(run)
        if not once: next(iter(grads.values()))[0] = torch.nan
        once.append(0)
        return grads, *more
    monkeypatch.setattr(direct.TorchTraining, "gradients", broken)
    made = stage.train_student(TINY, DRONES, tmp_path)
    assert all(torch.isfinite(p).all() for p in made.parameters())
    log = Metrics(tmp_path / "logs/direct/seed-42", tensorboard=False).frame()
    assert log["lost_gradients"].tolist() == [1, 0, 0, 0, 0, 0]
    assert "update 1 of 6: cost" in (said := capsys.readouterr().out)
    assert "lost_gradients 1" in said and "lost_gradients 0" not in said


# --- where it begins
def test_a_training_goes_on_from_a_student(tmp_path):
    published = RaptorPolicy.published()
    published.save(tmp_path / "first.safetensors")
    assert same(stage.first_student(TINY, tmp_path / "first.safetensors"), published)
    wild = load_config(TINY, direct=dict(learning_rate=10.),
                       environment=dict(episode_steps=100))
    made = stage.train_student(wild, DRONES, tmp_path, start=tmp_path / "first.safetensors")
    assert same(made, published), "the best was the one that was given"


@pytest.mark.parametrize("start, kind, sentence", [
    pytest.param("small.safetensors", ConfigError,
                 r"start is 'small.safetensors', a student with a hidden state of 8, and "
                 r"student.hidden_dim is 16; set hidden_dim to 8", id="another-size"),
    pytest.param("nobody.safetensors", FileNotFoundError, "there is no student", id="missing"),
    pytest.param("text.safetensors", PolicyError, "text.safetensors", id="no-weights"),
    pytest.param("raptor_nb.policy:untrained_policy", ConfigError,
                 "which is no student of raptor_nb", id="another-policy")])
def test_a_start_that_cannot_be_used_is_refused(tmp_path, monkeypatch, start, kind, sentence):
    monkeypatch.chdir(tmp_path)
    RaptorPolicy(hidden_dim=8).save("small.safetensors")
    Path("text.safetensors").write_text("weights")
    with pytest.raises(kind, match=sentence): stage.first_student(TINY, start)


# --- the fleet
def test_the_fleet_is_the_teachers_and_more(tmp_path):
    fleet = stage.choose_fleet(TINY)
    assert [d.name for d in fleet[:2]] == [d.name for d in sample_fleet(2)] and len(fleet) == 4
    save_fleet(DRONES, tmp_path / "drones.json")
    own = stage.choose_fleet(TINY, tmp_path / "drones.json")
    assert [d.to_dict() for d in own[:3]] == [d.to_dict() for d in DRONES] and len(own) == 5


def test_a_fleet_that_cannot_hover_is_refused(tmp_path):
    save_fleet(DRONES, tmp_path / "drones.json")
    text = json.loads((tmp_path / "drones.json").read_text())
    heavy = json.dumps(text).replace('"mass": ', '"mass": 99')
    (tmp_path / "heavy.json").write_text(heavy)
    with pytest.raises(DroneError, match="cannot hover: full throttle lifts"):
        stage.choose_fleet(TINY, tmp_path / "heavy.json")
    weak = load_config(TINY, **{"domain_randomization.thrust_to_weight": [.5, .8]})
    with pytest.raises(DroneError, match="cannot hover: the range of thrust_to_weight"):
        stage.choose_fleet(weak)


def test_the_parameters_change_the_settings():
    changed = stage.change_settings(load_config("quick"), 7, 24, "cpu", 3)
    assert (changed.direct.num_updates, changed.student.hidden_dim) == (7, 24)
    assert (changed.training.device, changed.training.seed) == ("cpu", 3)
    assert stage.change_settings(load_config("quick")) == load_config("quick")
    other = load_config("quick", **{"domain_randomization.mass": [1., 2.]})
    assert stage.sections(other) != stage.sections(load_config("quick"))


def test_the_figure_says_what_an_update_takes():
    ax = stage.plot_method(TINY.direct, 5500)
    said = " ".join(t.get_text() for t in ax.texts)
    assert "fleet of 5500" in said and "16 at once" in said and "step 10" in said
