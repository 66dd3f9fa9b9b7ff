"Students without a part of the recipe: trained once, from what they should be, and kept"
import matplotlib
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from raptor_nb.core.config import ConfigError
from raptor_nb.drones import sample_fleet, sample_split
from raptor_nb.evaluation import ablation
from raptor_nb.evaluation.ablation import ABLATIONS, CachedTraining, ablated_settings, fly_under
from raptor_nb.evaluation.ablation import own_drones, plot_ablation, plot_scaling
from raptor_nb.evaluation.statistics import HOVER_METRICS
from raptor_nb.policy import EvaluationError, RaptorPolicy, Teachers, untrained_policy
from raptor_nb.settings import load_config

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
FREE = dict(force=0., observation_noise=0., velocity_limit=False)
DAGGER = dict(drones=1, num_envs=16, num_updates=2, validation_interval=2)
TUNING = dict(num_updates=1, flights=16)
TINY = load_config(apg=dict(horizon=20, num_envs=16, num_updates=2, engine="torch"),
                   distillation=dict(sequence_length=30, dagger=DAGGER, fine_tuning=TUNING),
                   direct=dict(horizon=20),
                   validation=dict(num_drones=2))


@pytest.fixture
def training(tmp_path):
    teachers = Teachers(3, 29, ids=[4, 2, 9])
    return CachedTraining(tmp_path, teachers, sample_fleet([4, 2, 9]), sample_fleet(2))


@pytest.fixture
def calls(monkeypatch):
    "How often students are distilled and fine-tuned"
    calls = dict(train=0, direct=0)
    def counted(module, name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)
        monkeypatch.setattr(module, "train", call)
    counted(ablation.dagger, "train", ablation.dagger.train)
    counted(ablation.direct, "direct", lambda settings, how, student, *_: student)
    return calls


def test_subsets_are_nested_and_keep_their_drones(training):
    small, large = training.first_teachers(2), training.first_teachers(3)
    assert set(small.teachers.ids) < set(large.teachers.ids)
    assert [int(d.name) for d in large.drones] == list(large.teachers.ids)
    row = training.teachers.ids.index(small.teachers.ids[0])
    assert torch.equal(small.teachers.w1[0], training.teachers.w1[row])


@pytest.mark.parametrize("n", [0, 4])
def test_bad_number_of_teachers_is_refused(training, n):
    with pytest.raises(EvaluationError, match="there are 3"): training.first_teachers(n)


def test_own_drones_are_repeated(training):
    assert [d.name for d in own_drones(training, 4)] == ["0004", "0002", "0009", "0004"]


def leaves(d, at=""):
    "Nested settings as {'a.b': value}"
    for k, x in d.items():
        if isinstance(x, dict): yield from leaves(x, f"{at}{k}.")
        else: yield f"{at}{k}", x


def test_every_ablation_changes_what_it_names():
    base = load_config("quick")
    was = dict(leaves(base.to_dict()))
    for name, settings in ablated_settings(base).items():
        now = dict(leaves(settings.to_dict()))
        changed = {k for k, v in now.items() if was[k] != v}
        named = {k.split(".")[-1] for k in ABLATIONS[name]}
        assert {k.split(".")[-1] for k in changed} == named, name


def test_bad_ablations_are_refused():
    misspelt = {"noise": {"flight_randomization.max_observation_nose": 0.}}
    with pytest.raises(ConfigError, match="max_observation_noise"):
        ablated_settings(load_config(), misspelt)
    with pytest.raises(EvaluationError, match="no ablation 'salt'"):
        ablated_settings(load_config(), keep=["salt"])
    with pytest.raises(EvaluationError, match="changes nothing"):
        ablated_settings(load_config(**{"flight_randomization.delay_share": 0.}))


def test_a_student_is_trained_once(training, calls):
    first, again = (training.student("one", TINY) for _ in range(2))
    assert calls == dict(train=1, direct=1)
    weights = zip(first.state_dict().values(), again.state_dict().values())
    assert all(torch.equal(a, b) for a, b in weights)


def test_other_settings_make_another_student(training, calls):
    training.student("one", TINY)
    training.student("one", load_config(TINY, **{"distillation.dagger.num_updates": 3}))
    assert calls == dict(train=2, direct=2) and len(list(training.folder.iterdir())) == 2


def test_a_student_without_fine_tuning_is_not_fine_tuned(training, calls):
    training.student("one", load_config(TINY, **{"distillation.fine_tuning.num_updates": 0}))
    assert calls == dict(train=1, direct=0)


def test_a_damaged_student_is_trained_again(training, calls):
    training.student("one", TINY)
    next(training.folder.glob("one-*")).joinpath("student.safetensors").write_bytes(b"cut")
    training.student("one", TINY)
    assert calls == dict(train=2, direct=2)


def test_other_teachers_make_another_student(training, calls):
    training.student("one", TINY)
    other = Teachers(3, 29, ids=[4, 2, 9], activation="relu")
    training.with_teachers(other).student("one", TINY)
    assert len(list(training.folder.iterdir())) == 2


@pytest.mark.parametrize("change, obs_dim", [({}, 29), ({"apg.force_input": False}, 26),
                                             ({"apg.privileged": False}, 22)])
def test_teachers_observe_what_the_ablation_leaves(training, monkeypatch, change, obs_dim):
    settings = load_config(TINY, **change)
    made = training.for_settings(settings, TINY).teachers
    assert made.obs_dim == obs_dim and made.ids == (4, 2, 9)
    assert (made is training.teachers) == (not change)
    monkeypatch.setattr(ablation.apg, "train", None)
    assert torch.equal(made.w1, training.for_settings(settings, TINY).teachers.w1)


@pytest.fixture(scope="module")
def table():
    "Two students under two conditions"
    policies = {"nothing": RaptorPolicy.published(), "all": untrained_policy()}
    conditions = {"clean": FREE, "delay 20 ms": FREE | dict(delay=2)}
    table = fly_under(policies, sample_split("tests", 6), conditions)
    return table.rename(columns={"policy": "without"})


@pytest.mark.parametrize("metric", HOVER_METRICS)
def test_the_figure_of_ablations_has_their_names(table, metric):
    ax = plot_ablation(table, metric, plt.subplots()[1])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["nothing", "all"]
    plt.close("all")


def test_the_figure_of_scaling_is_over_the_number_of_teachers(table):
    clean = table[(table.condition == "clean") & (table.without == "nothing")]
    grown = pd.concat([clean.assign(teachers=n, fleet=f)
                       for n in (1, 10) for f in ("held-out", "own")])
    ax = plot_scaling(grown, "return", plt.subplots()[1], 600.)
    assert any(list(line.get_xdata()) == [1, 10] for line in ax.get_lines())
    plt.close("all")


def test_no_ablation_is_taken_for_another():
    found = [ablation._settings_that_matter(s) for s in ablated_settings(load_config("full")).values()]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
