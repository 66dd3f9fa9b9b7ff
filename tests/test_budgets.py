"Quality over computing time: what is trained, timed, kept and compared"
import re

import numpy as np
import pandas as pd
import pytest
import torch

from raptor_nb.core.config import ConfigError
from raptor_nb.core.parallel import single_threaded
from raptor_nb.core.records import load_json, save_json
from raptor_nb.evaluation import budgets
from raptor_nb.evaluation.budgets import RECIPE, TimedTraining, Variant, trained
from raptor_nb.learn import direct
from raptor_nb.learn.student import init_student
from raptor_nb.policy import RaptorPolicy
from raptor_nb.settings import load_config

SMALL = {"direct.num_drones": 4, "direct.extra_train_drones": 0, "direct.ood_train_drones": 0,
         "direct.num_updates": 6, "direct.flights": 16, "direct.horizon": 20,
         "environment.episode_steps": 50, "validation.num_drones": 2}


@pytest.fixture
def small(): return load_config("default", **SMALL)


def row(policy): return torch.cat([p.detach().flatten() for p in policy.parameters()])


def test_a_unit_is_trained_as_the_product_trains(small, tmp_path):
    "Same rates, same drones: the last student of learn.direct, bit for bit"
    run = direct.begin_training(small, small.direct, init_student(small),
                                budgets.training_fleet(small))
    with single_threaded(1):
        while run.updates < small.direct.num_updates:
            run.advance(direct.next_rates(small.direct, run.updates))
    made = trained(TimedTraining("a", small), tmp_path)
    assert made.updates == run.updates == 6
    assert torch.equal(row(made.student), row(run.student()))


def test_a_kept_unit_is_not_trained_again(small, tmp_path, monkeypatch):
    first = trained(TimedTraining("a", small), tmp_path)
    monkeypatch.setattr(budgets, "train_direct", None)
    again = trained(TimedTraining("a", small), tmp_path)
    assert again[1:] == first[1:] and torch.equal(row(again.student), row(first.student))
    with pytest.raises(TypeError): trained(TimedTraining("a", small, schedule="cosine"), tmp_path)


def test_two_threads_make_the_same_student(small, tmp_path):
    one, two = (trained(TimedTraining("a", small, threads=n), tmp_path) for n in (1, 2))
    assert torch.equal(row(one.student), row(two.student))


def test_units_come_back_in_their_order(small, tmp_path):
    short = load_config(small, **{"direct.num_updates": 1})
    units = [TimedTraining("short", short), TimedTraining("long", small)]
    done = budgets.train_all(units, tmp_path, cores=2)
    assert list(done) == ["short", "long"]
    assert [t.updates for t in done.values()] == [1, 6]


def test_a_long_interval_is_adam(small):
    "Against torch's own Adam, on gradients of random numbers"
    from raptor_nb.learn.soap import Soap
    torch.manual_seed(0)
    ours, theirs = RaptorPolicy(), RaptorPolicy()
    for p in (*ours.parameters(), *theirs.parameters()): p.requires_grad_()
    theirs.load_state_dict(ours.state_dict())
    soap = Soap(ours, interval=budgets.NEVER)
    adam = torch.optim.Adam(theirs.parameters(), lr=.01, betas=(.9, .99))
    for _ in range(7):
        grads = {k: torch.randn_like(p) for k, p in ours.named_parameters()}
        soap.step(grads, .01)
        for k, p in theirs.named_parameters(): p.grad = grads[k]
        adam.step()
    torch.testing.assert_close(row(ours), row(theirs), atol=1e-6, rtol=1e-5)


def test_a_budget_needs_no_second_measurement(small, tmp_path):
    save_json(tmp_path / "rates.json", {"16 flights, 20 steps, 16 units": 250.})
    for budget, wanted in ((1e-4, 1), (.1, 25), (5, 1200), (640, 160_000)):
        got = budgets.within_budget(small, budget, tmp_path).direct.num_updates
        assert got == wanted
    assert len(load_json(tmp_path / "rates.json")) == 1


@pytest.mark.parametrize("words, change", [
    ("Unit 'a'", dict(schedule="sine")), ("two phases", dict(road="published"))])
def test_an_unknown_word_is_named(small, words, change):
    with pytest.raises(ConfigError, match="choose one of"): TimedTraining("a", small, **change)


def test_every_variant_changes_one_thing(small):
    variants = budgets.all_variants(load_config("default"))
    recipe = load_config("default")
    made = [(str(budgets.changed_settings(recipe, v)), v.schedule, v.scale)
            for v in variants.values()]
    assert len(set(made)) == len(made) and next(iter(variants)) == RECIPE
    same = Variant("drones", {"direct.horizon": recipe.direct.horizon})
    with pytest.raises(ConfigError, match="changes nothing"):
        budgets.changed_settings(recipe, same)


def test_better_from_needs_every_student_and_all_longer_budgets():
    table = pd.DataFrame({"budget": [5, 5, 10, 10, 20], "core_seconds": [5, 5, 10, 11, 20.],
                          "steady_error": [.01, .01, .01, np.nan, .01]})
    assert budgets.better_from(table, .02, "steady_error") == 20
    table.loc[3, "steady_error"] = .015
    assert budgets.better_from(table, .02, "steady_error") == 5
    table.loc[4, "steady_error"] = .03
    assert budgets.better_from(table, .02, "steady_error") is None


def test_the_table_compares_with_the_recipe():
    found = pd.DataFrame([
        dict(variant=v, group=v, seed=n, condition=c, updates=9, core_seconds=1.,
             median_error=.01, survival=1., steady_error=.02, **{"return": r + n})
        for v, r in (("x", 500.), (RECIPE, 600.)) for n in (0, 2)
        for c in ("clean", "noise 0.03")])
    table = budgets.variant_table(found).set_index("variant")
    assert table["return_change"].to_dict() == {"x": -100, RECIPE: 0}
    assert table.loc["x", "return"] == table.loc["x", budgets.DISTURBED] == 501
    assert table.loc["x", "return_std"] == pytest.approx(2 ** .5)


def test_rows_are_those_of_the_report():
    "Of the same flights, whatever the number of drones"
    full = load_config("full", evaluation=dict(
        both_limits=False, figure_eights=[], target_steps=0, real_flights=2,
        observation_noise=[.01], delay_steps=[], max_tilt=0.))
    jobs = budgets.report_jobs(full, 3)
    policies = {"published": RaptorPolicy.published(), "mine": RaptorPolicy.published()}
    flights = budgets.fly_jobs(jobs, policies, 7, 1)
    rows = budgets.report_rows(flights, "mine", full)
    names = {re.sub(r"\d+ (held-out|flights)", r"\1", r["name"]) for r in rows}
    for wanted in ("return of student, held-out drones, clean",
                   "survival of student, flights of x500, noise 0.01",
                   "steady error of student where both survive, held-out drones, force 0.1"):
        assert wanted in names
    better, all_rows, worse = budgets.count_better(rows)
    equal = [r for r in rows if r["met"]]
    assert better == len(equal) and all("survival" in r["name"] for r in equal)
    assert better + len(worse) == all_rows


def test_flights_are_kept_for_the_same_weights(tmp_path, monkeypatch):
    jobs = budgets.report_jobs(load_config("default"), 2)[:1]
    path, one = tmp_path / "a.parquet", {"published": RaptorPolicy.published()}
    first = budgets.flown(path, jobs, one, workers=1)
    monkeypatch.setattr(budgets, "fly_jobs", None)
    pd.testing.assert_frame_equal(budgets.flown(path, jobs, one), first)
    with pytest.raises(TypeError): budgets.flown(path, jobs, {"published": RaptorPolicy()})
