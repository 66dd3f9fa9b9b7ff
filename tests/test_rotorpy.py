"The policy in RotorPy: frames, motors, time, and RotorPy's own controller for the published one"
import numpy as np
import pandas as pd
import pytest

from raptor_nb.core.config import ConfigError
from raptor_nb.drones import DroneError
from raptor_nb.policy import PolicyError, RaptorPolicy
from raptor_nb.sim.l2f import FlightError
from raptor_nb.sim.rotorpy import (CaptureNoise, DrydenWind, RaptorController, RotorPySimulator,
                                   VEHICLES, motion_capture, motor_order, observation, rotation,
                                   vehicle, vehicle_as_drone)

pytest.importorskip("rotorpy", reason="needs the extra `transfer`")
REST = dict(x=np.zeros(3), x_dot=np.zeros(3), yaw=0.)
kinds = pytest.mark.parametrize("name", VEHICLES)


def turned(axis, angle, **parts):
    "RotorPy's state of a drone turned about one of its axes"
    q = np.r_[np.sin(angle / 2) * np.eye(3)[axis], np.cos(angle / 2)]
    return dict(x=np.zeros(3), v=np.zeros(3), w=np.zeros(3), q=q) | parts


def torque(name, state, target=REST):
    "What RotorPy makes of the first command: acceleration and angular acceleration"
    from rotorpy.vehicles.multirotor import Multirotor
    parameters = vehicle(name) | {"tau_m": 1e-9}
    controller = RaptorController(RaptorPolicy.pretrained(), parameters)
    command = controller.update(0., state, target)["cmd_motor_speeds"]
    body = Multirotor(parameters, control_abstraction="cmd_motor_speeds")
    return body.compute_body_wrench(np.zeros(3), command, np.zeros(3))[1]


@kinds
@pytest.mark.parametrize("axis", range(3), ids=["roll", "pitch", "yaw"])
@pytest.mark.parametrize("angle", [-.4, .4])
def test_a_tilted_drone_is_turned_back(name, axis, angle):
    moment = torque(name, turned(axis, angle))
    assert moment[axis] * angle < 0


@kinds
@pytest.mark.parametrize("axis, other, sign", [(0, 1, -1), (1, 0, 1)], ids=["ahead", "left"])
def test_a_drone_that_is_off_tilts_towards_the_target(name, axis, other, sign):
    "Too far ahead: nose up, a negative torque about y; too far left: roll right, positive about x"
    moment = torque(name, turned(0, 0, x=.3 * np.eye(3)[axis], v=np.eye(3)[axis]))
    assert moment[other] * sign > 0


@kinds
def test_another_heading_turns_the_world(name):
    "The same situation, seen from a world that is turned: the same command"
    yaw, there = 1., np.array([.2, -.1, .3])
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    plain = torque(name, turned(2, .2, x=there))
    state = turned(2, .2 + yaw, x=turn @ there)
    assert np.allclose(torque(name, state, REST | {"yaw": yaw}), plain, rtol=1e-4)


def test_rotation_is_scipys():
    from scipy.spatial.transform import Rotation
    q = np.random.default_rng(0).normal(size=(20, 4))
    q /= np.linalg.norm(q, axis=1)[:, None]
    assert np.allclose(rotation(q), Rotation.from_quat(q).as_matrix(), atol=1e-12)


def in_rotorpy(name, make, seconds=3., rate=100, start=(.3, -.2, .1)):
    "A flight in RotorPy's own loop, tilted at first"
    from rotorpy.environments import Environment
    from rotorpy.trajectories.hover_traj import HoverTraj
    from rotorpy.vehicles.multirotor import Multirotor
    parameters = vehicle(name)
    hover = np.sqrt(parameters["mass"] * 9.81 / 4 / parameters["k_eta"])
    first = turned(0, .3, x=np.array(start), wind=np.zeros(3), rotor_speeds=np.full(4, hover))
    body = Multirotor(parameters, first, control_abstraction="cmd_motor_speeds")
    environment = Environment(body, make(parameters), HoverTraj(), sim_rate=rate)
    return environment.run(t_final=seconds, terminate=False)


def controller(policy): return lambda parameters: RaptorController(policy, parameters)


@pytest.mark.parametrize("name", ["crazyflie", "hummingbird"])
def test_the_published_policy_flies_as_in_rotorpys_own_controller(name):
    pytest.importorskip("foundation_policy")
    from rotorpy.controllers.raptor import RaptorFoundationPolicy
    ours = in_rotorpy(name, controller(RaptorPolicy.published()))["state"]
    theirs = in_rotorpy(name, RaptorFoundationPolicy)["state"]
    assert abs(ours["x"] - theirs["x"]).max() < 1e-5
    assert np.linalg.norm(ours["x"][-1]) < .1


@pytest.mark.parametrize("rate", [100, 400])
def test_the_crazyflie_hovers(rate):
    flown = in_rotorpy("crazyflie", controller(RaptorPolicy.pretrained()), rate=rate)
    away = np.linalg.norm(flown["state"]["x"], axis=1)
    assert away[0] > .3 and away[-1] < .05
    moved = np.diff(flown["control"]["cmd_motor_speeds"], axis=0).any(1)
    assert abs(moved.mean() - 100 / rate) < .02, "the policy moves every 10 ms"


def test_a_new_flight_begins_anew():
    policy = RaptorController(RaptorPolicy.pretrained(), vehicle("crazyflie"))
    fly = lambda: [policy.update(.01 * t, turned(0, .3), REST)["cmd_motor_speeds"]
                   for t in range(5)]
    first = fly()
    assert np.array_equal(first, fly()) and not np.array_equal(first[0], first[1])


def test_a_simulator_that_is_too_slow_is_refused():
    policy = RaptorController(RaptorPolicy.pretrained(), vehicle("crazyflie"))
    policy.update(0., turned(0, .3), REST)
    with pytest.raises(FlightError, match="sim_rate must be 100 or more"):
        policy.update(.02, turned(0, .3), REST)


def test_a_state_that_is_no_number_is_refused():
    policy = RaptorController(RaptorPolicy.pretrained(), vehicle("crazyflie"))
    with pytest.raises(PolicyError, match="must be finite"):
        policy.update(0., turned(0, .3, x=np.array([0, np.nan, 0])), REST)


BROKEN = {
    "plus": ({"rotor_pos": {f"r{i}": p for i, p in enumerate(np.eye(3)[[0, 1, 0, 1]] * .1)}},
             "an X"),
    "six": ({"rotor_pos": {f"r{i}": np.array([.1, .1, 0]) for i in range(6)}}, "an X"),
    "mirrored": ({"rotor_directions": np.array([-1, 1, -1, 1])}, "was trained with")}


@pytest.mark.parametrize("change, words", BROKEN.values(), ids=BROKEN)
def test_a_vehicle_that_cannot_be_flown_is_refused(change, words):
    for make in (motor_order, vehicle_as_drone, lambda v: RotorPySimulator([v])):
        with pytest.raises(FlightError, match=words): make(vehicle("crazyflie") | change)


def test_an_unknown_vehicle_is_named():
    with pytest.raises(FlightError, match="choose one of crazyflie"): vehicle("crazyfly")
    with pytest.raises(FlightError, match="no vehicles"): RotorPySimulator([])


@kinds
def test_the_batch_flies_as_rotorpys_own_loop(name):
    flown = in_rotorpy(name, controller(RaptorPolicy.pretrained()), 1.5)["state"]
    simulator, policy = RotorPySimulator([vehicle(name)] * 2), RaptorPolicy.pretrained()
    level = np.array([[np.cos(.15), np.sin(.15), 0, 0]] * 2)
    simulator.set_state(position=flown["x"][[0, 0]], orientation=level)
    policy.reset()
    places = []
    for _ in range(150):
        places.append(simulator.position()[1])
        simulator.step(policy.evaluate_step(simulator.observe()))
    assert abs(np.array(places) - flown["x"][:150]).max() < 2e-3


def test_the_state_has_our_names_and_order():
    simulator = RotorPySimulator([vehicle("px4_sihsim_quadx")])
    given = dict(position=np.array([[1., 2, 3]]), linear_velocity=np.array([[.1, .2, .3]]),
                 orientation=np.array([[.8, 0, 0, .6]]), angular_velocity=np.array([[1., 0, -1]]))
    simulator.set_state(**given)
    state = simulator.state()
    for k, v in given.items(): assert np.allclose(state[k], v, atol=1e-6), k
    simulator.step(np.array([[1, 0, -1, .5]], np.float32))
    speeds = simulator.state()["rotor_speed"][0]
    assert (np.argsort(speeds) == [2, 1, 3, 0]).all(), "front-right was told to be fastest"
    seen = simulator.observe()[0]
    assert np.allclose(seen[18:], [1, 0, -1, .5])
    simulator.reset(np.array([True]))
    assert not simulator.position().any() and not simulator.observe()[0, 18:].any()


@pytest.mark.parametrize("parts, words", [(dict(height=1), "there is no 'height'"),
                                          (dict(position=np.zeros(3)), "shape"),
                                          (dict(position=np.full((1, 3), np.nan)), "finite")])
def test_states_that_cannot_be_set(parts, words):
    with pytest.raises(FlightError, match=words):
        RotorPySimulator([vehicle("crazyflie")]).set_state(**parts)


def test_a_flight_is_lost_by_rotorpys_limits():
    simulator = RotorPySimulator([vehicle("crazyflie")] * 4)
    zero, far = np.zeros((4, 3)), np.zeros((4, 3))
    far[1], fast, spin = [21, 0, 0], zero.copy(), zero.copy()
    fast[2], spin[3] = [0, -21, 0], [0, 0, 101]
    simulator.set_state(position=far, linear_velocity=fast, angular_velocity=spin)
    assert simulator.lost().tolist() == [False, True, True, True]


def test_a_weak_rotor_gives_less():
    "All rotors alike: the drone with a weak front-left rotor falls and turns to that corner"
    thrust = np.ones((2, 4))
    thrust[1, 3] = .5
    simulator = RotorPySimulator([vehicle("px4_sihsim_quadx")] * 2, thrust=thrust)
    hover = simulator.state()["rotor_speed"] * 2 - 1
    for _ in range(5): simulator.step(hover)
    rates, speed = (simulator.state()[k] for k in ("angular_velocity", "linear_velocity"))
    assert abs(rates[0]).max() < 1e-4 and abs(speed[0]).max() < 1e-4
    assert rates[1, 0] < 0 < rates[1, 1] and speed[1, 2] < 0


def test_wind_and_noise_are_the_same_for_each_group():
    wind = DrydenWind([[3., 0, 0], [0, 3, 0]], 1., groups=2, seed=1, before=1.)
    blown = np.stack([wind.update(0, None).numpy() for _ in range(50)])
    assert np.array_equal(blown[:, :2], blown[:, 2:]) and blown.std(0).min() > 0
    again = DrydenWind([[3., 0, 0], [0, 3, 0]], 1., seed=1, before=1.)
    assert np.array_equal(again.update(0, None).numpy(), blown[0, :2])
    noise = CaptureNoise(motion_capture(), 2, groups=2, seed=1)
    still = dict(x=np.zeros((4, 3)), v=np.zeros((4, 3)), w=np.zeros((4, 3)),
                 R=np.tile(np.eye(3), (4, 1, 1)))
    seen = noise(still)
    for part in seen.values(): assert np.array_equal(part[:2], part[2:])
    assert abs(seen["x"]).min() > 0


def test_wind_pushes():
    simulator = RotorPySimulator([vehicle("crazyflie")] * 2, DrydenWind([[8., 0, 0], [0, 0, 0]]))
    hover = simulator.state()["rotor_speed"] * 2 - 1
    for _ in range(20): simulator.step(hover)
    speed = simulator.state()["linear_velocity"]
    assert speed[0, 0] > .1 > abs(speed[1]).max()


def test_as_drone_keeps_what_l2f_knows():
    drone, q = vehicle_as_drone(vehicle("px4_sihsim_quadx"), "px4"), vehicle("px4_sihsim_quadx")
    assert drone.mass == q["mass"]
    assert np.isclose(drone.thrust_to_weight, 4 * q["k_eta"] * 1000**2 / 9.81)
    signs = np.sign(drone.dynamics.rotor_positions)[:, :2].tolist()
    assert signs == [[1, -1], [-1, -1], [-1, 1], [1, 1]]
    with pytest.raises(DroneError): vehicle_as_drone(q | {"mass": 100.}, "heavy")


def test_the_observation_is_l2fs():
    "A state of l2f, shown by l2f and by us"
    pytest.importorskip("l2f")
    from raptor_nb.drones import load_drone
    from raptor_nb.sim.l2f import Simulator
    simulator = Simulator([load_drone("crazyflie")], seed=3)
    simulator.reset()
    s = {k: v[0].astype(float) for k, v in simulator.state().items()}
    state = dict(x=s["position"], v=s["linear_velocity"], w=s["angular_velocity"],
                 q=np.roll(s["orientation"], -1))
    shown = simulator.observe()[0]
    assert np.allclose(observation(state, REST, shown[18:]), shown, atol=1e-5)


# --- the study

def test_flights_are_the_same_for_both_policies_and_for_any_choice():
    from raptor_nb.evaluation.transfer import Lanes, Surroundings, fly_condition
    how = Surroundings(seconds=.3, wind=3., gusts=1., capture=True, off_centre=.1, weak_rotor=.2)
    policies = {"student": RaptorPolicy.pretrained(), "published": RaptorPolicy.pretrained()}
    both, _ = fly_condition(policies, how, Lanes(("crazyflie", "hummingbird"), 2, 7))
    ours, theirs = (both[both.policy == p].reset_index(drop=True) for p in policies)
    assert np.allclose(ours.steady_error, theirs.steady_error) and ours.steady_error.nunique() == 4
    start = Surroundings(seconds=.3)
    some, _ = fly_condition(policies, start, Lanes(("hummingbird",), 2, 7))
    all_, _ = fly_condition(policies, start, Lanes(("crazyflie", "hummingbird"), 2, 7))
    pick = lambda t: t[(t.drone == "hummingbird") & (t.policy == "student")].steady_error.to_numpy()
    assert np.allclose(pick(some), pick(all_))


def flights(ours, theirs, metric="steady_error"):
    "A table of one vehicle and condition; None: lost"
    row = lambda p, k, e: dict(policy=p, condition="c", fleet="v", flight=k, terminated=e is None,
                               **{metric: np.nan if e is None else e})
    return pd.DataFrame([row(p, k, e) for p, errors in (("student", ours), ("published", theirs))
                         for k, e in enumerate(errors)])


CASES = {
    "four times": ([.01, .02], [.04, .08], True, True, 4.),
    "twice": ([.01, .02], [.02, .04], True, False, 2.),
    "worse": ([.02], [.01], False, False, .5),
    "ours lost one": ([.01, None], [.1, .1], False, False, 10.),
    "theirs lost one": ([.01, .01], [.1, None], True, True, 10.),
    "theirs lost all": ([.01, .01], [None, None], True, True, np.nan),
    "all lost": ([None], [None], False, False, np.nan)}


@pytest.mark.parametrize("ours, theirs, better, three, times", CASES.values(), ids=CASES)
def test_what_counts_as_better(ours, theirs, better, three, times):
    from raptor_nb.evaluation.transfer import compare
    row = compare(flights(ours, theirs))
    assert (row["better"], row["by_three"]) == (better, three)
    assert np.isclose(row["factor"], times, equal_nan=True)


def test_more_rows_are_checked(tmp_path):
    from raptor_nb.core.records import save_json
    from raptor_nb.evaluation.acceptance import check
    from raptor_nb.evaluation.transfer import read_rows
    save_json(tmp_path / "a.json", [check("a", 1)])
    save_json(tmp_path / "b.json", [check("b", 2)])
    save_json(tmp_path / "c.json", {"name": "no list"})
    assert [r["name"] for r in read_rows(f"{tmp_path}/a.json, {tmp_path}/b.json")] == ["a", "b"]
    with pytest.raises(ConfigError, match="holds no rows"): read_rows(f"{tmp_path}/c.json")


def test_a_row_that_misses_the_goal_says_so():
    from raptor_nb.evaluation.transfer import comparison, transfer_checks, vehicle_table
    from raptor_nb.drones import sample_split
    flown = flights([.01, .02], [.02, .04]).assign(fleet="hummingbird")
    table = vehicle_table(VEHICLES, sample_split("train", 100))
    count, row = transfer_checks(comparison(flown), table)
    assert count["value"] == 0 and count["met"] is False
    assert row["met"] and "not by a factor of three" in row["note"]
    assert "thrust-to-weight 10.2" in row["note"] and row["factor"] == 2.
