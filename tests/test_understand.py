"What is said about the student: probes that can be trusted, causes that are right, students that are kept"
import json
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from raptor_nb import understand as module
from raptor_nb.core.config import ConfigError, load_config
from raptor_nb.drones import sample_fleet, vary
from raptor_nb.environment import Simulator
from raptor_nb.evaluate import initial_states, judge, untrained_policy
from raptor_nb.learn import apg
from raptor_nb.policy import RaptorPolicy, Teachers
from raptor_nb.understand import (CAUSES, INGREDIENTS, UnderstandError, adaptation, apprentice, classify, commands, examine, exchanged, finding, flown_under, fly_from, plot_growth,
                                  plot_ingredients, plot_lost, probe, probe_policy, quantities, r_squared, rates, reach, recipes, reloaded, settled, spaced, start_of, start_specialists,
                                  StartRun, subset, teachers_of, watch)

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
FREE = dict(force=0., observation_noise=0., velocity_limit=False)
TINY = load_config(apg=dict(segment=20, environments=16, updates=2, engine="plain"),
                   distillation=dict(sequence_length=30, online=dict(drones=1, environments=16, updates=2, validation_interval=2, validation_drones=2), polish=dict(updates=1, drones=1, segment=20)))


@pytest.fixture(scope="module")
def published(): return RaptorPolicy.published()


@pytest.fixture(scope="module")
def fleet(): return sample_fleet(range(3_000_000, 3_000_300))


@pytest.fixture(scope="module")
def stack(): return Teachers(3, 29, ids=[4, 2, 9]), sample_fleet([4, 2, 9])


# the probe

def test_the_filmed_flights_are_the_judged_ones(published, fleet):
    drones = fleet[:64]
    film = watch(published, [vary(d, **FREE) for d in drones], [500])
    assert (film.alive == ~judge({"p": published}, drones, FREE).terminated).all()


def test_memory_is_the_hidden_state_after_the_look(published, fleet):
    drones = [vary(d, **FREE) for d in fleet[:3]]
    film = watch(published, drones, [1, 2])
    published.reset()
    action = published.evaluate_step(film.observation[:, 0].astype(np.float32))
    assert np.abs(published.get_hidden_state()[0].numpy() - film.memory[:, 0]).max() < 1e-6
    assert np.abs(film.observation[:, 1, 18:] - action).max() < 1e-6


def test_wind_is_told_as_a_share_of_weight(published, fleet):
    film = watch(published, [vary(d, force=.1) for d in fleet], [1])
    assert abs(film.wind.std() - .1) < .01


def test_a_flight_goes_on_with_another_drone(fleet):
    simulator = Simulator(fleet[:5])
    for _ in range(3): simulator.step(np.full((5, 4), .1, np.float32))
    other = exchanged(simulator, [reloaded(d, 2.5) for d in fleet[:5]])
    assert all(np.abs(v - other.state()[k]).max() < 1e-6 for k, v in simulator.state().items())
    assert np.abs(simulator.observe() - other.observe()).max() < 1e-6


def test_a_load_changes_the_mass_alone(fleet):
    before, after = fleet[0], reloaded(fleet[0], 2.5)
    assert abs(after.thrust_to_weight - 2.5) < 1e-9 and after.dynamics.J == before.dynamics.J
    assert abs(after.mass * 2.5 - before.mass * before.thrust_to_weight) < 1e-9


def test_probe_finds_what_is_there_and_nothing_else():
    random = np.random.default_rng(0)
    memory, learn = random.normal(size=(300, 2, 16)), np.arange(300) < 200
    table, guesses = probe(memory, pd.DataFrame({"here": memory[:, 1, 3] + .3 * random.normal(size=300), "nowhere": random.normal(size=300)}), learn)
    r2 = table.pivot(index="quantity", columns="look", values="r2")
    assert r2.loc["here", 1] > .85 and r2.loc["here", 0] < .2 and (r2.loc["nowhere"] < .1).all()
    assert ((table.low <= table.r2) & (table.r2 <= table.high)).all() and guesses.shape == (300, 2, 2)


def test_probe_does_not_see_the_judging_flights():
    random = np.random.default_rng(0)
    memory, learn = random.normal(size=(40, 1, 16)), np.arange(40) < 30
    y = pd.DataFrame({"q": random.normal(size=40)})
    changed = y.copy(); changed.loc[30:, "q"] += 100 * random.normal(size=10)
    assert np.array_equal(probe(memory, y, learn)[1], probe(memory, changed, learn)[1])


def test_one_wild_flight_does_not_outvote_the_others():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 4)); y = x[:, :1].copy()
    x[150] = 1e4
    assert r_squared(y[150:], module.ridge(x[:150], y[:150])(x[150:]))[0] > .5


def test_memory_of_the_published_policy(published, fleet):
    learn = np.arange(300) < 200
    table, _ = probe_policy(published, fleet, [1, 100, 300], {"still air": 0., "wind": .1}, learn)
    r2 = table[table.source == "memory"].set_index(["air", "quantity", "look"]).r2.sort_index()
    assert r2["still air", "thrust-to-weight", 0] < .2 < .7 < r2["still air", "thrust-to-weight", 1] < r2["still air", "hover throttle", 2]
    assert (r2["still air", "mass"] < .2).all() and r2["wind", "wind, sideways", 2] > .6 > .4 > r2["wind", "wind, vertical", 2]


def test_memory_follows_a_change_of_load(published, fleet):
    table = adaptation(published, fleet[:150], np.arange(150) < 100)
    assert table[table.seconds < 0].middle.abs().max() < .3 and abs(table.middle.iloc[-1] - 1) < .1
    assert 0 < settled(table) < 1.5


@pytest.mark.parametrize("middle, seconds", [([0, 0, 1, 1], 2.), ([0, 1, 0, 1], 3.), ([0, 0, 0, 0], np.nan)])
def test_settled(middle, seconds): assert np.array_equal(settled(pd.DataFrame(dict(seconds=[0., 1, 2, 3], middle=middle))), seconds, equal_nan=True)


def test_quantities_have_no_size(fleet):
    "All but the mass are ratios; yaw authority alone follows it, because in this distribution the reaction torque does not grow with the drone"
    q = quantities(fleet)
    assert (q.drop(columns=["mass", "yaw authority"]).corrwith(q.mass).abs() < .2).all() and q["yaw authority"].corr(q.mass) < -.3


# failures

@pytest.fixture(scope="module")
def lost(published, fleet):
    flights = judge({"student": published}, fleet, FREE)
    return np.flatnonzero(flights.terminated), flights


def test_flights_begin_again_where_they_began(published, fleet, lost):
    lanes = np.r_[lost[0], np.arange(20)]
    state = initial_states(fleet, FREE, lanes)
    survived = fly_from(published, [vary(fleet[i], **FREE) for i in lanes], state)
    assert (survived == ~lost[1].terminated.to_numpy(bool)[lanes]).all()


def test_teachers_fly_from_a_state_as_from_the_start(fleet):
    drones = sample_fleet(4)
    flown = [vary(d, **FREE) for d in drones]
    teachers = apg.train(replace(load_config().apg, updates=20, segment=64), drones)
    survived = fly_from(teachers, flown, initial_states(drones, FREE, range(4)))
    assert (survived == ~judge({"t": teachers}, drones, FREE).terminated).all()


def test_first_previous_action_is_the_one_that_is_observed(fleet):
    simulator = Simulator(fleet[:20]); simulator.reset()
    assert np.abs(commands(fleet[:20], simulator.state()) - simulator.observe()[:, 18:22]).max() < 1e-5


def test_nothing_that_was_saved_is_called_impossible(fleet, lost):
    state = initial_states(fleet, FREE, range(len(fleet)))
    far = reach([vary(d, **FREE) for d in fleet], state)
    assert (far[~lost[1].terminated] < 1).all() and (far > 0).mean() > .8
    limits = np.array([d.mdp.termination.position_threshold for d in fleet])
    assert (far > np.abs(state["position"]).max(1) / limits - .05).all(), "it is where it begins, at least"


@pytest.mark.parametrize("change", [dict(linear_velocity=[0, 0, -6.]), dict(linear_velocity=[6., 0, 0]), dict(position=[0, 0, -.98], linear_velocity=[0, 0, -3.], orientation=[0, 1, 0, 0])], ids=["falls", "slides", "upside-down"])
def test_impossible_starts_are_proven_so_and_lost(published, fleet, change):
    drones = [vary(d, **FREE) for d in fleet[:30]]
    limits = np.array([[d.mdp.termination.position_threshold] for d in drones])
    state = dict(position=np.zeros((30, 3)), orientation=np.tile([1., 0, 0, 0], (30, 1)), linear_velocity=np.zeros((30, 3)), angular_velocity=np.zeros((30, 3)),
                 rotor_speed=np.array([[d.hover_throttle] * 4 for d in drones]), force=np.zeros((30, 3)))
    assert (reach(drones, state) < .1).all()
    state |= {k: np.tile(np.float64(v), (30, 1)) * (limits if k != "orientation" else 1) for k, v in change.items()}
    proven = reach(drones, state) > 1
    assert proven.sum() > 10 and not (fly_from(published, drones, state) & proven).any()


def test_reach_knows_the_speed_limit(fleet):
    drones = [vary(fleet[0], **(FREE | dict(velocity_limit=v))) for v in (True, False)]
    state = {k: np.repeat(v, 2, 0) for k, v in initial_states(fleet, FREE, [0]).items()} | dict(linear_velocity=np.array([[0, 0, 2.5]] * 2), position=np.zeros((2, 3)))
    a, b = reach(drones, state)
    assert a > 1 > b or a > b


def test_specialists_begin_at_their_start(fleet, lost):
    lanes = lost[0][:2]
    drones, state = [vary(fleet[i], **FREE) for i in lanes], initial_states(fleet, FREE, lanes)
    run = StartRun(TINY.apg, drones, state)
    for moving, force in (run.starts(), (run.moving, run.force)):
        assert moving.shape == (2, 16, 21) and np.abs(moving[:, 5, :3].numpy() - state["position"]).max() < 1e-6 and not force.any()
        assert np.abs(moving[:, 0, 13:17].numpy() - state["rotor_speed"]).max() < 1e-6


def test_a_lost_flight_is_explained(published, fleet, lost):
    settings = replace(load_config().apg, updates=60, segment=96, force=0., tilt_share=0.)
    table = examine(published, fleet, FREE, lost[0][:3], settings)
    assert set(table.cause) <= set(CAUSES) and (table.reach < 1).all()
    assert (table.teacher | table.specialist).any(), "a teacher saves what the published policy loses"
    slow = examine(published, fleet, FREE | dict(velocity_limit=True), lost[0][:1], replace(TINY.apg, updates=1))
    assert "unlimited" in slow and not slow.unlimited[0]


@pytest.mark.parametrize("row, cause", [((1.1, False, False, False, False, False), "impossible"), ((.5, False, False, False, True, True), "nobody survives"), ((.5, True, False, False, True, True), "lost at rest too"),
                                        ((.5, False, True, True, True, True), "speed limit"), ((.5, True, False, True, False, True), "did not know the drone"), ((.5, True, False, True, False, False), "start too hard for it")])
def test_causes(row, cause):
    assert classify(pd.DataFrame([row], columns=["reach", "teacher", "specialist", "at_rest", "unlimited", "informed"])) == [cause]


def test_rates_and_their_intervals():
    t = rates(np.r_[np.ones(10, bool), np.zeros(90, bool)], np.full(100, 1.), [0, 2, 4])
    assert t.rate[0] == .1 and abs(t.low[0] - .0552) < 1e-3 and abs(t.high[0] - .1744) < 1e-3 and np.isnan(t.rate[1]) and t.flights.tolist() == [100, 0]


def test_spaced_takes_no_more_than_asked():
    assert spaced(np.arange(5), 9).tolist() == [0, 1, 2, 3, 4] and spaced(np.arange(100), 3).tolist() == [0, 50, 99]


def test_where_flights_begin(fleet):
    t = start_of(fleet[:50], FREE)
    assert t.tilt.max() < 58 and t.speed.max() <= 1 and (t.room >= .45).all()


# students

def test_subsets_are_nested_and_keep_their_drones(stack):
    teachers, drones = stack
    small, large = subset(teachers, drones, 2), subset(teachers, drones, 3)
    assert set(small[0].ids) < set(large[0].ids) and [int(d.name) for d in large[1]] == list(large[0].ids)
    row = teachers.ids.index(small[0].ids[0])
    assert torch.equal(small[0].w1[0], teachers.w1[row])


@pytest.mark.parametrize("n", [0, 4])
def test_bad_number_of_teachers_is_refused(stack, n):
    with pytest.raises(UnderstandError, match="there are 3"): subset(*stack, n)


def test_every_ingredient_changes_what_it_names():
    base = load_config("quick")
    for name, s in recipes(base).items():
        was, now = base.to_dict(), s.to_dict()
        leaves = lambda d, at="": {f"{at}{k}": v for k, x in d.items() for k, v in (leaves(x, f"{k}.").items() if isinstance(x, dict) else [(k, x)])}
        changed = {k for k, v in leaves(now).items() if leaves(was)[k] != v}
        assert {c.split(".")[-1] for c in changed} == {k.split(".")[-1] for k in INGREDIENTS[name]}, name


def test_bad_ingredients_are_refused():
    with pytest.raises(ConfigError, match="observation_noise"): recipes(load_config(), {"noise": {"distillation.online.observation_nose": 0.}})
    with pytest.raises(UnderstandError, match="no ingredient 'salt'"): recipes(load_config(), keep=["salt"])
    with pytest.raises(UnderstandError, match="changes nothing"): recipes(load_config(**{"distillation.online.delay": 0.}))


def test_a_student_is_trained_once(stack, tmp_path, monkeypatch):
    teachers, drones = stack
    first = apprentice("one", TINY, teachers, drones, sample_fleet(2), tmp_path)
    calls = []
    train = module.distill.train
    monkeypatch.setattr(module.distill, "train", lambda *args, **kw: calls.append(args) or train(*args, **kw))
    finished = []
    monkeypatch.setattr(module.distill, "finish", lambda *args: finished.append(args) or args[1])
    again = apprentice("one", TINY, teachers, drones, sample_fleet(2), tmp_path)
    assert not calls and all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))
    apprentice("one", load_config(TINY, **{"distillation.online.updates": 3}), teachers, drones, sample_fleet(2), tmp_path)
    assert len(calls) == len(finished) == 1 and len(list(tmp_path.iterdir())) == 2
    apprentice("one", load_config(TINY, **{"distillation.polish.updates": 0}), teachers, drones, sample_fleet(2), tmp_path / "unpolished")
    assert len(calls) == 2 and len(finished) == 1, "a recipe without polishing is not polished"
    next(tmp_path.glob("one-*")).joinpath("student.safetensors").write_bytes(b"cut")
    apprentice("one", TINY, teachers, drones, sample_fleet(2), tmp_path); apprentice("one", load_config(TINY, **{"distillation.online.updates": 3}), teachers, drones, sample_fleet(2), tmp_path)
    assert len(calls) == 3


def test_other_teachers_make_another_student(stack, tmp_path):
    teachers, drones = stack
    for t in (teachers, Teachers(3, 29, ids=[4, 2, 9])): apprentice("one", TINY, t, drones, sample_fleet(2), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change, sees", [({}, 29), ({"apg.force_input": False}, 26), ({"apg.privileged": False}, 22)])
def test_teachers_see_what_the_ingredient_leaves(stack, tmp_path, monkeypatch, change, sees):
    made = teachers_of(load_config(TINY, **change), TINY, *stack, tmp_path)
    assert made.obs_dim == sees and made.ids == (4, 2, 9) and (made is stack[0]) == (not change)
    monkeypatch.setattr(module.apg, "train", None)
    kept = teachers_of(load_config(TINY, **change), TINY, *stack, tmp_path)
    assert torch.equal(made.w1, kept.w1)


def test_figures_of_students(published, fleet):
    conditions = {"clean": FREE, "delay 20 ms": FREE | dict(delay=2)}
    table = flown_under({"nothing": published, "all": untrained_policy()}, fleet[:6], conditions).rename(columns={"policy": "without"})
    _, axes = plt.subplots(1, 3)
    for metric, ax in zip(module.HOVER, axes):
        plot_ingredients(table, metric, ax)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["nothing", "all"]
    grown = pd.concat([table[table.condition == "clean"].assign(teachers=n, fleet=f) for n in (1, 10) for f in ("held-out", "own")]).query("without == 'nothing'")
    lines = [l for l in plot_growth(grown, "return", axes[0], 600.).get_lines() if len(l.get_xdata()) == 2]
    assert any(l.get_xdata()[0] == 1 and l.get_xdata()[1] == 10 for l in lines)
    plt.close("all")


def test_findings_hold_no_nan():
    row = finding("x", np.float64("nan"), "m", 1.)
    assert row["value"] is None and json.dumps(row) and row["published"] == 1.
