"Conditions, starts and targets: what they change, and that they are the same for every policy"
from functools import partial

import numpy as np
import pytest

from raptor_nb.drones import load_drone, sample_fleet, with_conditions
from raptor_nb.policy import EvaluationError, RaptorPolicy, Teachers, untrained_policy
from raptor_nb.settings import load_config
from raptor_nb.sim import conditions as sim_conditions
from raptor_nb.sim.conditions import SENSORS, FigureEight, TargetSteps, Tilted, Trajectory
from raptor_nb.sim.conditions import apply_condition, check_apart, conditions, flight_keywords
from raptor_nb.sim.conditions import flight_randoms, flight_sensors, held_out_fleet
from raptor_nb.sim.conditions import moving_targets
from raptor_nb.sim.l2f import Simulator, flight_seed
from raptor_nb.sim.rollout import evaluate

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
SETTINGS = load_config()


@pytest.fixture(scope="module")
def published(): return RaptorPolicy.published()


@pytest.fixture(scope="module")
def fleet(): return held_out_fleet(SETTINGS, 64)


@pytest.fixture(scope="module")
def clean(fleet): return apply_condition(fleet[:12], conditions(SETTINGS)["clean"])


# ------------------------------------------------------------------ which there are

def test_conditions_change_one_thing():
    c = conditions(SETTINGS)
    assert list(c) == ["clean", "noise 0.01", "noise 0.03", "force 0.1", "2 m/s limit"]
    changed = {n: sum(c[n][k] != c["clean"][k] for k in c["clean"]) for n in c}
    assert changed.pop("clean") == 0 and set(changed.values()) == {1}
    calm = with_conditions(sample_fleet(1)[0], **c["clean"])
    assert calm.disturbances.random_force.std == 0
    assert calm.mdp.termination.linear_velocity_threshold > 1e5


def test_full_conditions():
    noises = [f"noise {s}" for s in (.005, .01, .03, .05)]
    plain = ["clean", *noises, "force 0.1", "delay 10 ms", "delay 20 ms"]
    limited = ["2 m/s limit", *(f"{n}, 2 m/s limit" for n in plain[1:])]
    eights = [f"figure eight in {s} s" for s in ("10", "5.5", "3.5")]
    expected = [*plain, *limited, "tilted up to 90°", *eights, "target steps"]
    assert list(conditions(load_config("full"))) == expected


def test_held_out_drones_are_stable_and_apart():
    names = [d.name for d in held_out_fleet(SETTINGS, 9)]
    assert names[:3] == ["1000000", "1000001", "1000002"]
    assert names[:3] == [d.name for d in held_out_fleet(SETTINGS, 3)]
    assert len(held_out_fleet(SETTINGS)) == 256
    check_apart(sample_fleet(64), held_out_fleet(SETTINGS, 64))
    narrow = load_config(domain_randomization={"mass": [1., 1.1]})
    assert all(1 <= d.mass <= 1.1 for d in held_out_fleet(narrow, 20))


def test_a_condition_that_changes_no_drone_leaves_them(clean):
    assert apply_condition(clean, dict(delay=2)) is clean and apply_condition(clean, None) is clean


def test_without_a_condition_nothing_is_switched_on():
    how = flight_keywords(None)
    assert not any(how.values()) and flight_sensors(how, randoms=None) == []


@pytest.mark.parametrize("keyword", SENSORS)
def test_faults_of_the_sensors_are_made_anew(keyword):
    how = flight_keywords({keyword: 1})
    one, two = (flight_sensors(how, partial(flight_randoms, 7, range(3), 1)) for _ in range(2))
    assert len(one) == len(two) == 1 and one[0] is not two[0]


def test_a_new_fault_of_the_sensors_needs_an_entry_in_the_table(published, clean, monkeypatch):
    "Its random stream is its own, and what is shown with it may be late as well"
    def biased(std, randoms, dt):
        offset = np.float32([[r.normal(0, std)] for r in randoms(9)])
        return lambda seen: np.concatenate([seen[:, :15] + offset, seen[:, 15:]], 1)
    monkeypatch.setattr(sim_conditions, "SENSORS", {"bias": biased} | SENSORS)
    def seen(policy, condition):
        return evaluate(policy, clean, condition, steps=5, record=True)[1]["observation"]
    exact, shown = seen(published, None), seen(published, dict(bias=.1, delay=1))
    offset = shown[:, 0, 0] - exact[:, 0, 0]
    assert len(set(offset.tolist())) == 12, "each flight has its own"
    assert np.array_equal(shown[:, 1, :18], shown[:, 0, :18]), "late, with the bias"
    other = seen(untrained_policy(), dict(bias=.1))
    assert np.array_equal(other[:, 0], shown[:, 0]), "the same for every policy"


# ------------------------------------------------------------------ delay

def test_a_late_observation_in_a_plain_loop(published, clean):
    "What the policy observes is what was so k steps before, with its own last action"
    late, prompt = (evaluate(published, clean, condition, steps=40, record=True)[1]["observation"]
                    for condition in (dict(delay=2), None))
    assert np.array_equal(late[:, 0], prompt[:, 0])
    simulator, past = Simulator(clean[0]), []
    simulator.seed(flight_seed(np.array([7]), np.array([0])).tolist())
    simulator.reset()
    published.reset()
    for t in range(40):
        past.append(simulator.observe())
        shown = np.concatenate([past[max(0, t - 2)][:, :18], past[-1][:, 18:]], 1)
        assert np.allclose(shown[0], late[0, t], atol=1e-5)
        simulator.step(published.evaluate_step(shown))


def test_delay_is_harder_and_none_is_none(published, fleet):
    drones = apply_condition(fleet, conditions(SETTINGS)["clean"])
    none, one, two = (evaluate(published, drones, dict(delay=k))["return"] for k in (0, 1, 2))
    assert none.tolist() == evaluate(published, drones)["return"].tolist()
    assert none.mean() > one.mean() + 100 > two.mean() + 150


def test_teachers_are_delayed_too(clean):
    teachers = Teachers(12, obs_dim=29)
    _, tracks = evaluate(teachers, clean, dict(delay=1), steps=4, record=True)
    first, second, third = tracks["observation"][:, :3].swapaxes(0, 1)
    assert np.array_equal(second[:, :18], first[:, :18])
    assert not np.array_equal(third[:, :18], second[:, :18])
    assert not np.array_equal(second[:, 22:], first[:, 22:])


# ------------------------------------------------------------------ starts

def test_tilted_starts_are_paired_and_keep_the_rest(published, clean):
    def first(policy, drones, start):
        _, tracks = evaluate(policy, drones, dict(start=start), steps=2, record=True)
        return tracks["observation"][:, 0]
    start = Tilted(np.radians(60), np.radians(90))
    plain, a = first(published, clean, None), first(published, clean, start)
    assert np.array_equal(a, first(untrained_policy(), clean, start))
    assert np.array_equal(a[:3], first(published, clean[:3], start))
    assert np.array_equal(a[:, :3], plain[:, :3]) and np.array_equal(a[:, 12:], plain[:, 12:])
    tilt = np.degrees(np.arccos(a[:, 11]))
    assert (tilt > 59.9).all() and (tilt < 90.1).all() and tilt.std() > 3


# ------------------------------------------------------------------ targets

def test_a_target_that_stands_still_is_no_target(published, clean):
    step, zeros = np.arange(101), np.zeros((101, 3))
    still = lambda drone, random: Trajectory(zeros, zeros, step > 0, step > 50)
    moving, along = evaluate(published, clean, dict(target=still), record=True)
    plain, tracks = evaluate(published, clean, steps=100, record=True)
    same = dict(atol=1e-6, equal_nan=True)
    assert np.allclose(along["position"], tracks["position"], **same)
    assert moving.terminated.tolist() == plain.terminated.tolist()
    assert np.allclose(moving.steady_error, plain.steady_error, **same)
    assert moving["return"].isna().all() and moving.rmse.isna().equals(moving.terminated)


def test_error_along_a_figure_eight(published, clean):
    target = FigureEight(5.)
    table, tracks = evaluate(published, clean, dict(guidance=1., target=target), record=True)
    position, goal = tracks["position"], tracks["target"]
    assert position.shape == goal.shape == (12, 700, 3)
    assert np.allclose(position[:, 0], goal[:, 0], atol=1e-6)
    begun = tracks["linear_velocity"][:, 0]
    assert np.allclose(begun, target(clean[0]).velocity[0], atol=1e-6)
    relative = tracks["observation"][..., :3]
    assert np.allclose(relative, position - goal, atol=1e-5, equal_nan=True)
    error = np.sqrt((np.linalg.norm(position - goal, axis=2)[:, 201:] ** 2).mean(1))
    kept = ~table.terminated
    assert kept.sum() > 6 and np.allclose(table.rmse[kept], error[kept], rtol=.02)
    assert table.steady_error.isna().all()


def test_who_does_not_follow_is_lost(clean):
    "The limit of position holds relative to the target, even where the drone stays"
    hover = lambda obs: np.float32([[d.hover_action] * 4 for d in clean])
    condition = dict(guidance=1., velocity_limit=False, target=FigureEight(10., (5., 0.)))
    table, tracks = evaluate(hover, clean, condition, record=True)
    assert table.terminated.all()
    for i, d in enumerate(clean):
        n, limit = table.steps[i], d.mdp.termination.position_threshold
        error = np.abs(tracks["position"][i] - tracks["target"][i]).max(1)
        assert (error[:n] <= limit).all() and error[n - 1] > .9 * limit


def test_target_steps(published, clean):
    condition = dict(guidance=1., target=TargetSteps(2, interval=1., first=.5))
    policies = {"a": published, "b": untrained_policy()}
    table, tracks = evaluate(policies, clean, condition, record=True)
    goal = tracks["a"]["target"]
    assert goal.shape == (12, 250, 3) and np.array_equal(goal, tracks["b"]["target"])
    jump = np.diff(goal, axis=1)
    assert np.flatnonzero(np.abs(jump).max((0, 2))).tolist() == [49, 149]
    box = np.array([d.mdp.init.max_position for d in clean])[:, None, None]
    assert (np.abs(jump) <= box + 1e-6).all() and (np.abs(jump / box).max((0, 1)) > .6).all()
    a = table[(table.policy == "a") & ~table.terminated].index
    error = np.linalg.norm(tracks["a"]["position"] - goal, axis=2)
    steady = np.concatenate([error[a, 100:150], error[a, 200:250]], 1).mean(1)
    assert len(a) > 6 and np.allclose(table.steady_error[a], steady, rtol=.03, atol=1e-3)


def test_figure_eights_can_be_flown():
    "Every drone of the distribution lifts 1.5 times its weight"
    eights = [c["target"] for c in moving_targets(load_config("full")).values()]
    thrust = [t.thrust(load_drone("x500")) for t in eights if isinstance(t, FigureEight)]
    assert len(thrust) == 3 and max(thrust) < 1.25


# ------------------------------------------------------------------ bad input

BAD = {
    "evaluate-negative-delay": (lambda c: evaluate(untrained_policy(), c, dict(delay=-1)),
                                "delay is -1; it must be a whole number of steps, 0 or more"),
    "evaluate-trained-on-test-drone": (lambda c: check_apart(c[5:6], c),
                                       "held-out drone '1000005' is training drone '1000005'"),
    "evaluate-negative-test-drones": (lambda c: held_out_fleet(SETTINGS, -1), "test_drones is -1"),
    "condition-unknown": (lambda c: evaluate(untrained_policy(), c, dict(delai=1)),
                          "there is no condition 'delai'; the nearest is 'delay'"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input(clean, call, message):
    with pytest.raises(EvaluationError, match=message) as caught: call(clean)
    assert "\n" not in str(caught.value)
