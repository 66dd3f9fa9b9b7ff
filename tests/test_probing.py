"Probes find what is there and nothing else"
import numpy as np
import pandas as pd
import pytest

from raptor_nb.drones import sample_split, with_conditions
from raptor_nb.evaluation.probing import adaptation, for_probing, probe, probe_policy, quantities
from raptor_nb.evaluation.probing import r_squared, record_hidden_states, ridge, settling_time
from raptor_nb.evaluation.probing import swap_drones, with_payload
from raptor_nb.policy import RaptorPolicy
from raptor_nb.sim.l2f import Simulator
from raptor_nb.sim.rollout import evaluate

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
FREE = dict(force=0., observation_noise=0., velocity_limit=False)


@pytest.fixture(scope="module")
def published(): return RaptorPolicy.published()


@pytest.fixture(scope="module")
def fleet(): return sample_split("tests", 300)


def test_the_recorded_flights_are_the_evaluated_ones(published, fleet):
    drones = fleet[:64]
    recording = record_hidden_states(published, [with_conditions(d, **FREE) for d in drones], [500])
    assert (recording.alive == ~evaluate({"p": published}, drones, FREE).terminated).all()


def test_recorded_is_the_hidden_state_after_the_observation(published, fleet):
    drones = [with_conditions(d, **FREE) for d in fleet[:3]]
    recording = record_hidden_states(published, drones, [1, 2])
    published.reset()
    action = published.evaluate_step(recording.observation[:, 0].astype(np.float32))
    hidden = published.get_hidden_state()[0].numpy()
    assert np.abs(hidden - recording.hidden[:, 0]).max() < 1e-6
    assert np.abs(recording.observation[:, 1, 18:] - action).max() < 1e-6


def test_force_is_a_share_of_weight(published, fleet):
    recording = record_hidden_states(published, for_probing(fleet, .1), [1])
    assert abs(recording.force.std() - .1) < .01


def test_a_flight_is_continued_by_another_drone(fleet):
    simulator = Simulator(fleet[:5])
    for _ in range(3): simulator.step(np.full((5, 4), .1, np.float32))
    other = swap_drones(simulator, [with_payload(d, 2.5) for d in fleet[:5]])
    was, now = simulator.state(), other.state()
    assert all(np.abs(v - now[k]).max() < 1e-6 for k, v in was.items())
    assert np.abs(simulator.observe() - other.observe()).max() < 1e-6


def test_a_payload_changes_the_mass_alone(fleet):
    before, after = fleet[0], with_payload(fleet[0], 2.5)
    assert abs(after.thrust_to_weight - 2.5) < 1e-9 and after.dynamics.J == before.dynamics.J
    assert abs(after.mass * 2.5 - before.mass * before.thrust_to_weight) < 1e-9


def test_probe_finds_what_is_there_and_nothing_else():
    random = np.random.default_rng(0)
    hidden, train = random.normal(size=(300, 2, 16)), np.arange(300) < 200
    here = hidden[:, 1, 3] + .3 * random.normal(size=300)
    targets = pd.DataFrame({"here": here, "nowhere": random.normal(size=300)})
    table, predictions = probe(hidden, targets, train)
    r2 = table.pivot(index="quantity", columns="sample", values="r2")
    assert r2.loc["here", 1] > .85 and r2.loc["here", 0] < .2 and (r2.loc["nowhere"] < .1).all()
    assert ((table.low <= table.r2) & (table.r2 <= table.high)).all()
    assert predictions.shape == (300, 2, 2)


def test_probe_does_not_see_the_test_flights():
    random = np.random.default_rng(0)
    hidden, train = random.normal(size=(40, 1, 16)), np.arange(40) < 30
    y = pd.DataFrame({"q": random.normal(size=40)})
    changed = y.copy()
    changed.loc[30:, "q"] += 100 * random.normal(size=10)
    assert np.array_equal(probe(hidden, y, train)[1], probe(hidden, changed, train)[1])


def test_one_wild_flight_does_not_outweigh_the_others():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 4))
    y = x[:, :1].copy()
    x[150] = 1e4
    assert r_squared(y[150:], ridge(x[:150], y[:150])(x[150:]))[0] > .5


def test_hidden_state_of_the_published_policy(published, fleet):
    train, forces = np.arange(300) < 200, {"calm": 0., "force": .1}
    table, _ = probe_policy(published, fleet, np.array([1, 100, 300]), forces, train)
    table = table[table.inputs == "hidden state"]
    r2 = table.set_index(["condition", "quantity", "sample"]).r2.sort_index()
    first, second = (r2["calm", "thrust-to-weight", k] for k in (0, 1))
    assert first < .2 < .7 < second < r2["calm", "hover throttle", 2]
    assert (r2["calm", "mass"] < .2).all()
    assert r2["force", "lateral force", 2] > .6 > .4 > r2["force", "vertical force", 2]


def test_hidden_state_follows_a_change_of_mass(published, fleet):
    table = adaptation(published, fleet[:150], np.arange(150) < 100)
    assert table[table.seconds < 0].middle.abs().max() < .3
    assert abs(table.middle.iloc[-1] - 1) < .1 and 0 < settling_time(table) < 1.5


@pytest.mark.parametrize("middle, seconds", [([0, 0, 1, 1], 2.), ([0, 1, 0, 1], 3.),
                                             ([0, 0, 0, 0], np.nan)])
def test_settling_time(middle, seconds):
    table = pd.DataFrame(dict(seconds=[0., 1, 2, 3], middle=middle))
    assert np.array_equal(settling_time(table), seconds, equal_nan=True)


def test_quantities_have_no_size(fleet):
    """All but the mass are ratios; yaw authority alone follows it, because in this distribution
    the reaction torque does not grow with the drone"""
    q = quantities(fleet)
    ratios = q.drop(columns=["mass", "yaw authority"])
    assert (ratios.corrwith(q.mass).abs() < .2).all() and q["yaw authority"].corr(q.mass) < -.3
