"Lost flights begin again where they began, and what is proven about them is right"
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from raptor_nb.drones import sample_fleet, sample_split, with_conditions
from raptor_nb.evaluation.failures import CAUSES, classify, diagnose
from raptor_nb.evaluation.failures import equilibrium_action, evenly_spaced, excursion_lower_bound
from raptor_nb.evaluation.failures import failure_rates, fixed_starts, initial_states, lost_flights
from raptor_nb.evaluation.failures import start_properties, survives_from
from raptor_nb.learn import apg
from raptor_nb.policy import RaptorPolicy, untrained_policy
from raptor_nb.settings import load_config
from raptor_nb.sim.conditions import Tilted
from raptor_nb.sim.l2f import Simulator
from raptor_nb.sim.rollout import evaluate

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
FREE = dict(force=0., observation_noise=0., velocity_limit=False)
SETTINGS = load_config().apg


def free(drones): return [with_conditions(d, **FREE) for d in drones]


@pytest.fixture(scope="module")
def published(): return RaptorPolicy.published()


@pytest.fixture(scope="module")
def fleet(): return sample_split("tests", 300)


@pytest.fixture(scope="module")
def flights(published, fleet): return evaluate({"student": published}, fleet, FREE)


@pytest.fixture(scope="module")
def lost(flights): return np.flatnonzero(flights.terminated)


def test_lost_flights_are_listed_as_they_were_flown(published, fleet):
    condition, drones = FREE | dict(start=Tilted(np.radians(80), np.radians(90))), fleet[:20]
    policies = {"student": untrained_policy(), "published": published}
    table, tracks = evaluate(policies, drones, condition, flights=2, steps=200, record=True)
    lost, flown = lost_flights(table, drones, condition), tracks["student"]
    assert len(lost) == 40 and lost["published survives"].mean() > .6
    position, velocity = flown["position"][:, 0], flown["linear_velocity"][:, 0]
    assert np.allclose(lost[["x", "y", "z"]], position, atol=1e-6)
    assert np.allclose(lost[["vx", "vy", "vz"]], velocity, atol=1e-6)
    tilt = np.degrees(np.arccos(flown["observation"][:, 0, 11]))
    assert np.allclose(lost.tilt, tilt, atol=.1) and lost.tilt.max() > 75
    assert lost.rotor_speed.between(0, 1).all()
    assert list(lost.drone[:3]) == [drones[0].name] * 2 + [drones[1].name]
    some = initial_states(drones, condition, [5, 31], flights=2)
    assert np.allclose(some["position"], lost.loc[[5, 31], ["x", "y", "z"]], atol=1e-6)


def test_nothing_is_listed_where_nothing_is_lost(flights, fleet):
    assert len(lost_flights(flights.assign(terminated=False), fleet, FREE)) == 0


def test_flights_begin_again_where_they_began(published, fleet, flights, lost):
    lanes = np.r_[lost, np.arange(20)]
    state = initial_states(fleet, FREE, lanes)
    survived = survives_from(published, free([fleet[i] for i in lanes]), state)
    assert (survived == ~flights.terminated.to_numpy(bool)[lanes]).all()


def test_teachers_fly_from_a_state_as_from_the_start():
    drones = sample_fleet(4)
    teachers = apg.train(replace(SETTINGS, num_updates=20, horizon=64), drones)
    survived = survives_from(teachers, free(drones), initial_states(drones, FREE, range(4)))
    assert (survived == ~evaluate({"t": teachers}, drones, FREE).terminated).all()


def test_the_first_previous_action_is_the_one_that_is_observed(fleet):
    simulator = Simulator(fleet[:20])
    simulator.reset()
    action = equilibrium_action(fleet[:20], simulator.state())
    assert np.abs(action - simulator.observe()[:, 18:22]).max() < 1e-5


def test_nothing_that_was_saved_is_called_impossible(fleet, flights):
    state = initial_states(fleet, FREE, range(len(fleet)))
    bound = excursion_lower_bound(free(fleet), state)
    assert (bound[~flights.terminated] < 1).all() and (bound > 0).mean() > .8
    limits = np.array([d.mdp.termination.position_threshold for d in fleet])
    start = np.abs(state["position"]).max(1) / limits
    assert (bound > start - .05).all(), "it is where it begins, at least"


FALLS, SLIDES = dict(linear_velocity=[0, 0, -6.]), dict(linear_velocity=[6., 0, 0])
UPSIDE_DOWN = dict(position=[0, 0, -.98], linear_velocity=[0, 0, -3.], orientation=[0, 1, 0, 0])


@pytest.mark.parametrize("change", [FALLS, SLIDES, UPSIDE_DOWN],
                         ids=["falls", "slides", "upside-down"])
def test_impossible_starts_are_proven_so_and_lost(published, fleet, change):
    drones, zero = free(fleet[:30]), np.zeros((30, 3))
    limits = np.array([[d.mdp.termination.position_threshold] for d in drones])
    state = dict(position=zero, orientation=np.tile([1., 0, 0, 0], (30, 1)), linear_velocity=zero,
                 angular_velocity=zero, force=zero,
                 rotor_speed=np.array([[d.hover_throttle] * 4 for d in drones]))
    assert (excursion_lower_bound(drones, state) < .1).all()
    for k, v in change.items():
        state[k] = np.tile(np.float64(v), (30, 1)) * (limits if k != "orientation" else 1)
    proven = excursion_lower_bound(drones, state) > 1
    assert proven.sum() > 10 and not (survives_from(published, drones, state) & proven).any()


def test_the_bound_knows_the_speed_limit(fleet):
    limited = [with_conditions(fleet[0], **(FREE | dict(velocity_limit=v))) for v in (True, False)]
    state = {k: np.repeat(v, 2, 0) for k, v in initial_states(fleet, FREE, [0]).items()}
    state |= dict(linear_velocity=np.array([[0, 0, 2.5]] * 2), position=np.zeros((2, 3)))
    with_limit, without = excursion_lower_bound(limited, state)
    assert with_limit > 1 and with_limit > without


def test_specialists_begin_at_their_start(fleet, lost):
    drones, state = free([fleet[i] for i in lost[:2]]), initial_states(fleet, FREE, lost[:2])
    begin, force = fixed_starts(drones, state, 16)
    assert begin.shape == (2, 16, 21) and not force.any()
    assert np.abs(begin[:, 5, :3].numpy() - state["position"]).max() < 1e-6
    assert np.abs(begin[:, 0, 13:17].numpy() - state["rotor_speed"]).max() < 1e-6


def test_a_lost_flight_is_diagnosed(published, fleet, lost):
    settings = replace(SETTINGS, num_updates=60, horizon=96, max_force_std=0., tilt_share=0.)
    table = diagnose(published, fleet, FREE, lost[:3], settings)
    assert set(table.cause) <= set(CAUSES) and (table.excursion < 1).all()
    saved = table.teacher | table.specialist
    assert saved.any(), "a teacher saves what the published policy loses"


def test_without_the_limit_it_is_asked_once_more(published, fleet, lost):
    settings = replace(SETTINGS, horizon=20, num_envs=16, num_updates=1)
    slow = FREE | dict(velocity_limit=True)
    table = diagnose(published, fleet, slow, lost[:1], settings)
    assert "unlimited" in table and not table.unlimited[0]


COLUMNS = ["excursion", "teacher", "specialist", "at_rest", "unlimited", "informed"]


@pytest.mark.parametrize("row, cause", [
    ((1.1, False, False, False, False, False), "impossible"),
    ((.5, False, False, False, True, True), "nobody survives"),
    ((.5, True, False, False, True, True), "lost at rest too"),
    ((.5, False, True, True, True, True), "speed limit"),
    ((.5, True, False, True, False, True), "did not know the drone"),
    ((.5, True, False, True, False, False), "start too hard for it")])
def test_causes(row, cause): assert classify(pd.DataFrame([row], columns=COLUMNS)) == [cause]


def test_rates_and_their_intervals():
    lost = np.r_[np.ones(10, bool), np.zeros(90, bool)]
    t = failure_rates(lost, np.full(100, 1.), [0, 2, 4])
    assert t.rate[0] == .1 and abs(t.low[0] - .0552) < 1e-3 and abs(t.high[0] - .1744) < 1e-3
    assert np.isnan(t.rate[1]) and t.flights.tolist() == [100, 0]


def test_no_more_flights_than_asked():
    assert evenly_spaced(np.arange(5), 9).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spaced(np.arange(100), 3).tolist() == [0, 50, 99]


def test_where_flights_begin(fleet):
    t = start_properties(fleet[:50], FREE)
    assert t.tilt.max() < 58 and t.speed.max() <= 1 and (t.room >= .45).all()
