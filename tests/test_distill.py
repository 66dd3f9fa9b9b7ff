"The stage: several students, and the one that is chosen"
import pytest
import torch

from raptor_nb import distill
from raptor_nb.settings import load_config
from raptor_nb.drones import sample_fleet
from raptor_nb.learn import student
from raptor_nb.policy import RaptorPolicy, Teachers

TINY = {
    "apg.engine": "torch", "environment.episode_steps": 20, "distillation.sequence_length": 20,
    "distillation.seeds": 2, "distillation.dagger.drones": 1,
    "distillation.dagger.num_envs": 4, "distillation.dagger.num_updates": 2,
    "distillation.dagger.log_interval": 1, "distillation.dagger.validation_interval": 2,
    "validation.num_drones": 2, "validation.selection_drones": 2,
    "distillation.fine_tuning.num_updates": 2, "distillation.fine_tuning.flights": 16,
    "direct.horizon": 5, "direct.log_interval": 1,
    "direct.extra_train_drones": 2, "direct.ood_train_drones": 1}
DRONES = sample_fleet(2)


@pytest.fixture(scope="module")
def teachers():
    torch.manual_seed(0)
    return Teachers(2, 29, 8).requires_grad_(False)


def same(a, b): return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_every_seed_gives_a_student_that_is_kept(teachers, tmp_path):
    settings = load_config("default", **TINY)
    students = distill.train_students(settings, teachers, DRONES, tmp_path)
    assert list(students) == [42, 43] and not same(*students.values())
    for seed, made in students.items():
        assert same(made, RaptorPolicy.load(tmp_path / f"students/seed-{seed}.safetensors"))
    log = distill.Metrics(tmp_path / "logs/distill/seed-43").frame()
    assert log["step"].tolist() == [1, 2, 3, 4], "fine-tuning continues the count"
    assert "cost" in log and "loss" in log


def test_a_training_that_was_cancelled_resumes(teachers, tmp_path):
    settings = load_config("default", **TINY)
    whole = distill.train_student(settings, teachers, DRONES, tmp_path / "whole")
    calls = []
    def cancel():
        calls.append(0)
        if len(calls) == 4: raise InterruptedError
    args = settings, teachers, DRONES, tmp_path / "other"
    with pytest.raises(InterruptedError): distill.train_student(*args, check_cancelled=cancel)
    assert same(whole, distill.train_student(*args))


def test_both_fleets_choose(monkeypatch):
    settings, asked = load_config("default", **TINY), []
    def score(student, params, settings, seed):
        asked.append(params.size)
        return {"return": student.worth, "survival": 1., "steady_error": 0.}
    monkeypatch.setattr(student, "score", score)
    students = {seed: RaptorPolicy() for seed in (1, 2)}
    students[1].worth, students[2].worth = 500., 600.
    table = student.score_students(students, settings)
    assert asked == [2] * 4 and table["selection_score"].to_dict() == {1: 500., 2: 600.}


def test_parameters_change_the_settings():
    settings = load_config("default")
    changed = distill.change_settings(settings, updates=7, device="cpu", seed=3)
    assert changed.distillation.dagger.num_updates == 7 and changed.training.seed == 3
    recipe = distill.change_settings(settings, method="published", updates=7)
    assert recipe.distillation.n_epochs == 7
    assert recipe.distillation.dagger.num_updates == settings.distillation.dagger.num_updates
    assert distill.seeds(recipe) == [42] and "data_collection" in distill.sections(recipe)


def test_a_student_depends_on_the_flights_it_was_trained_in():
    calm = load_config(**{"flight_randomization.max_observation_noise": 0.})
    assert distill.sections(calm) != distill.sections(load_config())
