"Which teachers are trained, on which drones, and how they are evaluated"
import pytest
import torch

from raptor_nb import pretrain
from raptor_nb.core.config import ConfigError
from raptor_nb.drones import sample_fleet, save_fleet, write_drone_files
from raptor_nb.learn import apg
from raptor_nb.policy import Teachers
from raptor_nb.settings import load_config

SMALL = dict(horizon=10, num_updates=2, num_envs=4, engine="torch", group=2)
DEFAULT = load_config("default")


def test_parameters_become_settings():
    changes = pretrain.parameter_changes(DEFAULT, "apg", "wide_rotor_lag", 20_480, False, "cpu", 3)
    s = load_config(DEFAULT, **changes)
    assert s.domain_randomization.distribution == "wide_rotor_lag"
    assert s.training.algorithm == "apg"
    assert s.training.steps_per_teacher == 20_480
    assert s.apg.num_updates == 10
    assert not s.apg.privileged and not s.sac.privileged
    assert (s.training.device, s.training.seed) == ("cpu", 3)


def test_no_parameters_leave_the_settings_as_they_are():
    assert load_config(DEFAULT, **pretrain.parameter_changes(DEFAULT)) == DEFAULT


@pytest.mark.parametrize("asked, message", [
    pytest.param(dict(teacher_id=1000), "ids go from 0 to 999", id="teacher-id-too-large"),
    pytest.param(dict(teacher_id=-2), "cannot read", id="teacher-id-negative"),
    pytest.param(dict(teacher_ids="3-1"), "runs backwards", id="teacher-ids-backwards"),
    pytest.param(dict(teacher_ids="a few"), "cannot read", id="teacher-ids-words"),
    pytest.param(dict(num_teachers=1001), "ids go from 0 to 999", id="too-many-teachers"),
    pytest.param(dict(num_teachers=-5), "cannot read", id="negative-number-of-teachers"),
    pytest.param(dict(teacher_id=1, num_teachers=2), "exclude each other", id="two-ways"),
])
def test_bad_ids(asked, message):
    with pytest.raises(ConfigError, match=message): pretrain.choose_ids(DEFAULT, 1000, **asked)


def test_bad_steps():
    with pytest.raises(ConfigError, match="steps is -1; it must be 1 or more"):
        pretrain.parameter_changes(DEFAULT, steps=-1)


def test_a_sampled_drone_is_the_same_in_every_fleet():
    assert pretrain.choose_drones(DEFAULT, ids=[7])[0] == sample_fleet(10)[7]


@pytest.mark.parametrize("source", ["files", "drones.json"])
def test_a_stored_fleet_is_read(tmp_path, source):
    write_drone_files(tmp_path/"files", 4)
    save_fleet(sample_fleet(4), tmp_path/"drones.json")
    assert pretrain.choose_drones(DEFAULT, tmp_path/source) == 4
    third, = pretrain.choose_drones(DEFAULT, tmp_path/source, [3])
    assert third.dynamics == sample_fleet(4)[3].dynamics


def test_a_fleet_that_is_not_there(tmp_path):
    with pytest.raises((ValueError, OSError), match="nowhere"):
        pretrain.choose_drones(DEFAULT, tmp_path/"nowhere")


def test_groups_give_a_teacher_for_every_drone(tmp_path):
    settings, ids, logged = load_config("default", apg=SMALL), [4, 5, 9], []
    drones = sample_fleet(ids)
    def train(settings):
        return pretrain.train_in_groups(settings, drones, ids, folder=tmp_path,
                                        log=lambda update, numbers: logged.append(update))
    made = train(settings)
    assert made.ids == (4, 5, 9)
    assert logged[-1] == 4
    first = apg.train(settings.apg, drones[:2], settings.training.seed)
    assert torch.equal(made.w1[:2], first.w1)
    before = len(logged)
    again = train(settings)
    assert torch.equal(made.w3, again.w3)
    assert len(logged) == before, "trained again"
    other = train(load_config(settings, apg=dict(learning_rate=1e-3)))
    assert not torch.equal(made.w3, other.w3)


def test_untrained_teachers_get_little():
    drones = pretrain.without_force(sample_fleet(2))
    teachers = pretrain.init_teachers(DEFAULT, drones, [0, 1])
    table = pretrain.evaluate_teachers(teachers, drones, flights=4, steps=60)
    assert list(table["teacher"]) == [0, 1]
    assert (table["length"] <= 60).all()
    assert (table["return"] < 90).all()


def test_teachers_that_stop_their_motors_fall():
    crash = Teachers(2, 22)
    torch.nn.init.constant_(crash.b3, -20.)
    fallen = pretrain.evaluate_teachers(crash, sample_fleet(2), flights=4)
    assert (fallen["survival"] == 0).all()
    assert (fallen["return"] < 0).all()
    assert fallen["steady_error"].isna().all()
