"Which teachers are trained, on which drones, and how they are rated"
import json

import numpy as np
import pytest
import torch

from raptor_nb import pretrain
from raptor_nb.core.config import ConfigError, load_config
from raptor_nb.drones import sample_fleet, save_fleet, write_drone_files
from raptor_nb.learn import apg
from raptor_nb.policy import Teachers

SMALL = dict(segment=10, updates=2, environments=4, engine="plain", group=2)


def test_parameters_become_settings():
    base = load_config("default")
    s = load_config(base, **pretrain.change_settings(base, "apg", "plan", 20_480, False, "cpu", 3))
    assert (s.training.algorithm, s.domain_randomization.distribution, s.apg.updates, s.training.steps_per_teacher) == ("apg", "plan", 10, 20_480)
    assert (s.apg.privileged, s.sac.privileged, s.training.device, s.training.seed) == (False, False, "cpu", 3)
    assert load_config(base, **pretrain.change_settings(base)) == base


@pytest.mark.parametrize("kwargs, message", [
    pytest.param(dict(teacher_id=1000), "ids go from 0 to 999", id="teacher-id-too-large"),
    pytest.param(dict(teacher_id=-2), "cannot read", id="teacher-id-negative"),
    pytest.param(dict(teacher_ids="3-1"), "runs backwards", id="teacher-ids-backwards"),
    pytest.param(dict(teacher_ids="a few"), "cannot read", id="teacher-ids-words"),
    pytest.param(dict(num_teachers=1001), "ids go from 0 to 999", id="too-many-teachers"),
    pytest.param(dict(num_teachers=-5), "cannot read", id="negative-number-of-teachers"),
    pytest.param(dict(teacher_id=1, num_teachers=2), "exclude each other", id="two-ways-to-say-which"),
])
def test_bad_ids(kwargs, message):
    with pytest.raises(ConfigError, match=message): pretrain.choose_ids(load_config("default"), 1000, **kwargs)


def test_bad_steps():
    with pytest.raises(ConfigError, match="steps is -1; it must be 1 or more"): pretrain.change_settings(load_config("default"), steps=-1)


def test_a_drone_is_the_same_in_every_fleet(tmp_path):
    s = load_config("default")
    assert pretrain.gather(s, ids=[7])[0] == sample_fleet(10)[7]
    write_drone_files(tmp_path/"files", 4); save_fleet(sample_fleet(4), tmp_path/"drones.json")
    for source in ("files", "drones.json"):
        assert pretrain.gather(s, tmp_path/source) == 4 and pretrain.gather(s, tmp_path/source, [3])[0].dynamics == sample_fleet(4)[3].dynamics
    with pytest.raises((ValueError, OSError), match="nowhere"): pretrain.gather(s, tmp_path/"nowhere")


def test_groups_give_a_teacher_for_every_drone(tmp_path):
    s = load_config("default", apg=SMALL)
    drones, ids = sample_fleet([4, 5, 9]), [4, 5, 9]
    logged = []
    made = pretrain.train_by_gradients(s, drones, ids, folder=tmp_path, log=lambda u, n: logged.append(u))
    assert made.ids == (4, 5, 9) and logged[-1] == 4
    first = apg.train(s.apg, drones[:2], s.training.seed)
    assert torch.equal(made.w1[:2], first.w1)
    again = pretrain.train_by_gradients(s, drones, ids, folder=tmp_path, log=lambda u, n: logged.append("trained again"))
    assert torch.equal(made.w3, again.w3) and "trained again" not in logged
    other = pretrain.train_by_gradients(load_config(s, apg=dict(learning_rate=1e-3)), drones, ids, folder=tmp_path)
    assert not torch.equal(made.w3, other.w3)


def test_ratings_are_returns_of_l2f():
    drones = pretrain.judged(sample_fleet(2))
    teachers = pretrain.beginners(load_config("default"), drones, [0, 1])
    table = pretrain.rate(teachers, drones, flights=4, steps=60)
    assert list(table["teacher"]) == [0, 1] and (table["length"] <= 60).all() and (table["return"] < 90).all()
    crash = Teachers(2, 22); torch.nn.init.constant_(crash.b3, -20.)
    fallen = pretrain.rate(crash, drones, flights=4)
    assert (fallen["survival"] == 0).all() and (fallen["return"] < 0).all() and fallen["steady_error"].isna().all()
