"Traits of real drones: what they do to drones, commands, sensors and the air, in l2f"
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from raptor_nb.drones import hover_thrusts, load_drone, real_drones, sample_split, with_conditions
from raptor_nb.evaluation.scores import ASKED, real_checks, real_flown, score_table
from raptor_nb.policy import EvaluationError, RaptorPolicy
from raptor_nb.settings import load_config
from raptor_nb.sim import traits
from raptor_nb.sim.conditions import ACTUATORS, WORLD, flight_actuators, flight_keywords
from raptor_nb.sim.conditions import flight_randoms, flight_sensors, flight_world
from raptor_nb.sim.l2f import FlightError, Simulator
from raptor_nb.sim.loops import find_loop, with_step
from raptor_nb.sim.physics import TorchSimulator, from_simulator
from raptor_nb.sim.real import RealFlight, able, can_fly, loop_conditions, real_conditions
from raptor_nb.sim.real import real_flights
from raptor_nb.sim.rollout import Tracks, evaluate, rollout

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
SETTINGS = load_config()
CALM = dict(force=0., observation_noise=0., velocity_limit=False, guidance=1.)
GRID = real_conditions(SETTINGS) | loop_conditions(SETTINGS)
randoms = lambda n: lambda stream: flight_randoms(7, range(n), 1, stream)


@pytest.fixture(scope="module")
def fleet(): return sample_split("tests", 8)


def constant(drones, value): # a policy that gives every drone its own value, -1..1
    command = np.repeat(np.reshape(value, (-1, 1)), 4, 1).astype(np.float32)
    return lambda seen: np.broadcast_to(command, (len(drones), 4))


def level(drone, random): # a start, with all rotors at hover
    limit = drone.dynamics.action_limit
    speed = limit.min + (limit.max - limit.min) * drone.hover_throttle
    return dict(position=np.zeros(3), orientation=np.array([1., 0, 0, 0]), linear_velocity=np.zeros(3),
                angular_velocity=np.zeros(3), rotor_speed=np.full(4, speed))


def vertical(drones, value, condition, steps=300):
    "(drones, steps) upward acceleration, m/s^2, of level drones with constant commands"
    policy = constant(drones, value)
    _, tracks = evaluate(policy, drones, CALM | dict(terminate=False, start=level) | condition,
                         steps=steps, record=True)
    return np.diff(tracks["linear_velocity"][..., 2], axis=1) / .01


# ------------------------------------------------------------------ drones

def test_an_offset_centre_of_gravity_turns_the_drone(fleet):
    "Equal thrusts, a known torque: angular acceleration in l2f"
    for drone in fleet[:4]:
        off = with_conditions(traits.OffCentre(.25)(drone), **CALM)
        moved = np.subtract(drone.dynamics.rotor_positions, off.dynamics.rotor_positions)[0]
        assert abs(np.linalg.norm(moved) - .25 * drone.arm_length) < 1e-6 and moved[2] == 0
        simulator, throttle = Simulator([off], seed=0), off.hover_throttle
        high = off.dynamics.action_limit.max
        simulator.set_state(position=np.zeros(3), orientation=[1., 0, 0, 0],
                            linear_velocity=np.zeros(3), angular_velocity=np.zeros(3),
                            rotor_speed=np.full(4, high * throttle))
        simulator.step(np.full((1, 4), off.hover_action, np.float32))
        turn = np.linalg.solve(np.asarray(off.dynamics.J),
                               np.cross(-moved, [0, 0, off.weight]))
        found = simulator.state()["angular_velocity"][0] / .01
        assert np.abs(found - turn).max() < .02 * np.abs(turn).max()
        level = hover_thrusts(off.dynamics) / hover_thrusts(drone.dynamics)
        assert level.max() > 1.2 and abs(level.mean() - 1) < 1e-6


def test_a_weak_rotor_is_weak_and_slow(fleet):
    for drone in fleet:
        d, w = drone.dynamics, traits.WeakRotor(.3)(drone).dynamics
        share = np.array(w.rotor_thrust_coefficients)[:, 2] / np.array(d.rotor_thrust_coefficients)[:, 2]
        lag = np.divide(w.rotor_time_constants_rising, d.rotor_time_constants_rising)
        assert np.allclose(sorted(share), [.7, 1, 1, 1])
        assert np.allclose(lag[share.argmin()], 1.3) and np.allclose(sorted(lag)[:3], 1)
    weak = {traits.WeakRotor(.3)(d).dynamics.rotor_thrust_coefficients.index(
        min(traits.WeakRotor(.3)(d).dynamics.rotor_thrust_coefficients)) for d in fleet}
    assert len(weak) > 1, "which one is by chance"


def test_unequal_rotors_differ_by_up_to_their_share(fleet):
    thrust = np.array([[np.array(traits.UnequalRotors(.1)(d).dynamics.rotor_thrust_coefficients)[:, 2],
                        np.array(d.dynamics.rotor_thrust_coefficients)[:, 2]] for d in fleet])
    share = thrust[:, 0] / thrust[:, 1]
    assert .9 <= share.min() < .95 and 1.05 < share.max() <= 1.1
    assert len(np.unique(share.round(9))) == share.size


def test_a_redrawn_drone_changes_in_one_number(fleet):
    weak = [traits.Redrawn(thrust_to_weight=(1.7, 2.2))(d) for d in fleet]
    slow = [traits.Redrawn(torque_to_inertia=(40., 100.))(d) for d in fleet]
    assert all(1.7 <= d.thrust_to_weight <= 2.2 for d in weak)
    assert all(40 <= d.torque_to_inertia <= 100.001 for d in slow)
    for changed, k in ((weak, "torque_to_inertia"), (slow, "thrust_to_weight"), (weak, "mass")):
        assert np.allclose([getattr(d, k) for d in changed], [getattr(d, k) for d in fleet])
    assert traits.Redrawn(thrust_to_weight=(1.7, 2.2))(fleet[0]) == weak[0], "the same every time"


def test_who_cannot_hover_is_left_out_by_physics():
    drones = sample_split("tests", 60)
    for condition, need in ((dict(payload=.5), 1.5 / .9), (dict(sag=.2), 1 / .8 / .9), ({}, 1 / .9)):
        kept = {d.name for d in able(drones, condition)}
        assert kept == {d.name for d in drones if d.thrust_to_weight >= need}
    weak = dict(drone=traits.WeakRotor(.3))
    assert {d.name for d in able(drones, weak)} == \
        {d.name for d in drones if d.thrust_to_weight * .7 >= 1 / .9}
    assert not can_fly(drones[0], dict(drone=traits.OffCentre(3.))), "refused by the drone itself"


# ------------------------------------------------------------------ commands

@pytest.mark.parametrize("exponent", [1., 1.5, 3.])
def test_thrust_over_command_is_as_asked_in_l2f(exponent, fleet):
    drones, u = fleet[:3], np.array([.45, .6, .8])
    up = vertical(drones, 2 * u - 1, dict(motor_curve=exponent))[:, -1]
    curves = traits.ThrustCurves(drones)
    thrust = curves.least + (curves.most - curves.least) * u[:, None] ** exponent
    wanted = thrust.sum(1) / [d.mass for d in drones] - 9.81
    assert np.allclose(up, wanted, rtol=2e-3, atol=.02)


def test_a_battery_sags_in_a_line(fleet):
    "Two thirds through the flight, the thrust is down by two thirds of the share"
    drones = fleet[:3]
    hover = [d.hover_action for d in drones]
    up = vertical(drones, hover, dict(sag=.2), steps=600)
    assert np.allclose(up[:, 400], -9.81 * .2 * 2 / 3, atol=.1)


def test_the_policy_observes_its_own_command(fleet):
    asked = np.full(8, .123)
    for how in dict(motor_curve=1.), dict(quantised=3), dict(sag=.5):
        _, tracks = evaluate(constant(fleet, asked), fleet, CALM | how, steps=3, record=True)
        assert np.allclose(tracks["observation"][:, 1:, 18:], .123)


def test_commands_in_bits(fleet):
    coarse = traits.Quantised(8)
    command = np.random.default_rng(0).uniform(-1.2, 1.2, (100, 4)).astype(np.float32)
    given = coarse(command, None)
    assert len(np.unique(given)) <= 256 and given.min() == -1 and given.max() == 1
    assert np.abs(given - command.clip(-1, 1)).max() <= 1 / 255 + 1e-6


# ------------------------------------------------------------------ the world

def test_drag_pulls_towards_the_wind(fleet):
    drones, forces = fleet[:4], []
    class Watch:
        def begin(self, flight): pass
        def before_step(self, flight): pass
        def after_step(self, flight): forces.append(flight.simulator.force().copy())
        def end(self, flight): pass
    evaluate(constant(drones, [d.hover_action for d in drones]), drones, CALM | dict(wind=7.),
             steps=1, observers=[Watch()])
    pull = np.linalg.norm(forces[0], axis=1) / [d.mass for d in drones]
    assert np.allclose(pull, (traits.LINEAR + traits.QUADRATIC * 7) * 7, rtol=1e-4)
    assert np.allclose(forces[0][:, 2], 0) and np.ptp(np.arctan2(*forces[0][:, :2].T)) > .5
    assert np.allclose(pull / 9.81, traits.drag_share(7.), rtol=1e-4)


def test_a_payload_is_picked_up_once_and_left_before_the_next_flight(fleet):
    drones = fleet[:3]
    hover = constant(drones, [d.hover_action for d in drones])
    _, tracks = evaluate({"a": hover, "b": hover}, drones,
                         CALM | dict(payload=.5, seconds=3., terminate=False, start=level), record=True)
    for track in tracks.values():
        up = np.diff(track["linear_velocity"][..., 2], axis=1) / .01
        assert np.abs(up[:, 190]).max() < .02
        assert np.allclose(up[:, 250], 9.81 / 1.5 - 9.81, atol=.05)


def test_other_drones_go_on_from_the_same_state(fleet):
    simulator, heavy = Simulator(fleet, seed=1), [traits.with_dynamics(d, mass=1.2 * d.mass) for d in fleet]
    before = simulator.state()
    simulator.set_drones(heavy)
    after = simulator.state()
    assert all(np.array_equal(before[k], after[k]) for k in before) and simulator.drones == heavy
    other = Simulator(heavy, seed=1)
    action = np.full((8, 4), .2, np.float32)
    simulator.step(action), other.step(action)
    assert np.array_equal(simulator.position(), other.position())
    assert np.array_equal(simulator.observe(lanes=[2]), other.observe()[[2]])
    with pytest.raises(FlightError, match="2 drones for 8 lanes"): simulator.set_drones(heavy[:2])


# ------------------------------------------------------------------ sensors

def shown(sensor, values): # (steps,) -> what is seen of the velocity
    out = []
    for v in values:
        observation = np.zeros((1, 22), np.float32)
        observation[:, 12] = v
        out.append(sensor(observation)[0, 12])
    return np.array(out)


@pytest.mark.parametrize("dt", [.01, .0025, .0005])
def test_the_step_response_of_a_filter(dt):
    "After its time constant the velocity seen has come 63 % of the way, at any rate"
    n = round(.05 / dt)
    seen = shown(traits.VelocityFilter(.05, dt), np.r_[0., np.ones(4 * n)])
    assert abs(seen[n] - (1 - np.exp(-1))) < 1e-5 and abs(seen[3 * n] - (1 - np.exp(-3))) < 1e-5
    assert shown(traits.VelocityFilter(.05, dt), np.ones(3)).min() == 1, "begins at the truth"


@pytest.mark.parametrize("dt", [.01, .0025])
def test_a_late_velocity_is_late_by_its_seconds(dt):
    seen, k = shown(traits.VelocityDelay(.02, dt), np.arange(100.)), round(.02 / dt)
    assert np.array_equal(seen, np.maximum(np.arange(100.) - k, 0))
    full = np.arange(22, dtype=np.float32)[None]
    assert np.array_equal(traits.VelocityDelay(.02, dt)(full), full), "nothing else is touched"


def test_gyro_and_mounting():
    n, full = 5, np.zeros((5, 22), np.float32)
    full[:, 3:12] = np.eye(3).ravel()
    full[:, 15:18] = [1., 2, 3]
    off = traits.GyroBias(.1, randoms(n))(full) - full
    assert np.allclose(np.linalg.norm(off[:, 15:18], axis=1), .1, atol=1e-6)
    assert np.count_nonzero(off[:, :15]) == np.count_nonzero(off[:, 18:]) == 0
    askew = traits.Mounting(.2, randoms(n))(full)
    R = askew[:, 3:12].reshape(n, 3, 3)
    assert np.allclose(R @ R.transpose(0, 2, 1), np.eye(3), atol=1e-6)
    assert np.allclose(np.arccos(R[:, 2, 2]), .2, atol=1e-4)
    world = (R @ askew[:, 15:18, None])[..., 0]
    assert np.allclose(world, [1, 2, 3], atol=1e-5), "the same turning, in another frame"


def test_repeated_observations_come_whole():
    shaky, n = traits.Repeated(.3, randoms(4)), 600
    seen = np.array([shaky(np.full((4, 22), t, float)) for t in range(n)])
    assert np.array_equal(seen[..., 0], seen[..., 17]) and (seen[..., 18] == np.arange(n)[:, None]).all()
    lost = (np.diff(seen[..., 0], axis=0) == 0).mean(0)
    assert np.abs(lost - .3).max() < .08 and len(set(lost)) > 1


def test_wind_with_gusts_lies_between_both(fleet):
    "A drone that hovers is pushed further by gusts than by the wind between them, not as far as by them"
    calm = dict(force=0., observation_noise=0., velocity_limit=False, position_threshold=50., guidance=1.)
    def drift(wind):
        _, tracks = evaluate(lambda seen: np.tile(2 * hover - 1, (len(seen), 1)), fleet[:1], calm | dict(wind=wind, seconds=1.), record=True)
        return np.linalg.norm(tracks["position"][0, -1, :2])
    hover = np.full((1, 4), fleet[0].hover_throttle, np.float32)
    assert drift(3.) < drift((3., 9.)) < drift(9.)


def test_a_slow_velocity_is_the_drones_own_and_not_the_targets(fleet):
    "Along a figure eight the target's velocity is known at once"
    along = GRID["figure eight in 5.5 s"] | dict(velocity_filter=1e3 / 100)
    _, tracks = evaluate(lambda seen: np.zeros((len(seen), 4), np.float32), fleet[:1], along, record=True)
    change = np.diff(tracks["observation"][0, :20, 12])
    target = np.diff(tracks["target"][0, :, 0], n=2)[:19] / .01
    assert np.allclose(change, -target, atol=5e-3) and np.abs(target).max() > 1e-3


@pytest.mark.parametrize("how, match", [
    (dict(motor_curve="square"), "motor_curve is 'square'"), (dict(sag=2.), "sag is 2.0"),
    (dict(quantised=0), "bits is 0"), (dict(wind=-1.), "wind is -1.0"),
    (dict(payload="heavy"), "payload is 'heavy'"), (dict(repeated=1.5), "repeated is 1.5"),
    (dict(wind=(3., 4., 5.)), r"wind is \(3.0"), (dict(velocity_filter=-1.), "velocity_filter is -1.0"), (dict(velocty_delay=.1), "velocity_delay")])
def test_bad_traits_are_refused(how, match, fleet):
    with pytest.raises(EvaluationError, match=match):
        evaluate(RaptorPolicy.published(), fleet[:1], how, steps=2)


# ------------------------------------------------------------------ the named conditions

@pytest.mark.parametrize("name", GRID)
def test_every_condition_flies(name, fleet):
    how = GRID[name] | dict(seconds=.05) if "target" not in GRID[name] else GRID[name]
    if "target" in how: how = how | dict(target=type(how["target"])())
    drones = able(fleet, how)[:1]
    idle = lambda seen: np.zeros((len(seen), 4), np.float32)
    table = evaluate(idle, drones, how | dict(terminate=True))
    assert len(table) == 1 and table.steps[0] >= 1
    assert {"overshoot", "arrival"} <= set(table) or "away" not in name


def test_every_threshold_belongs_to_a_condition():
    assert set(ASKED) <= set(GRID)
    assert {*ACTUATORS, *WORLD} <= {k for how in GRID.values() for k in how}


def test_real_drones_keep_what_they_are(fleet):
    known = list(real_drones().values())
    flights = {f.condition: f for f in real_flights(GRID, fleet, known, 3)}
    assert len(flights["clean"].drones) == 8 + 7 * 3
    assert len(flights["torque-to-inertia 40 to 100"].drones) == 8
    assert len(flights["ten minutes in noise and wind"].drones) == 8
    assert flights["payload of half the weight"].left_out == \
        len(fleet) - len(able(fleet, GRID["payload of half the weight"]))


def test_scores_compare_what_both_survive(tmp_path, fleet):
    policies = {"student": RaptorPolicy.pretrained(), "published": RaptorPolicy.published()}
    names = "clean", "velocity filtered by 50 ms"
    short = {n: GRID[n] | dict(seconds=2.5) for n in names}
    flights = real_flights(short, fleet[:4], [load_drone("crazyflie")], 2)
    flown = real_flown(tmp_path / "f.parquet", flights, policies, workers=1)
    assert flown.groupby(["fleet", "condition", "policy"]).size().to_dict() == \
        {(f, c, p): k for f, k in (("held-out", 4), ("real", 2)) for c in names for p in policies}
    again = real_flown(tmp_path / "f.parquet", [RealFlight(*f) for f in flights], policies, workers=1)
    assert again.equals(flown), "flown once"
    lost = flown.assign(terminated=(flown.policy == "published") & (flown.flight == 0)
                        & (flown.drone == fleet[0].name))
    table = score_table(lost)
    own = table[(table.fleet == "held-out") & (table.condition == "clean")].set_index("policy")
    assert own.survival.to_dict() == {"student": 1, "published": .75}
    mine = flown[(flown.policy == "student") & (flown.condition == "clean") & (flown.fleet == "held-out")]
    assert np.isclose(own.steady_error_paired["student"], mine.steady_error[1:].mean())
    assert np.isclose(own.steady_error["student"], mine.steady_error.mean())
    rows = {r["name"]: r for r in real_checks(table)}
    slow = rows["steady error, 4 held-out drones, velocity filtered by 50 ms"]
    assert slow["required"] == .006 and slow["met"] == (slow["value"] <= .006)
    assert rows["survival, 4 held-out drones, clean"]["published"] == .75
    assert rows["survival, 1 real drones, clean"]["required"] is None


def test_a_minute_of_flight_is_a_minute():
    assert round(GRID["a minute in noise and wind"]["seconds"] / .01) == 6000
    flight = SimpleNamespace(seconds=30., whole=60., simulator=SimpleNamespace(drones=sample_split("tests", 1)))
    sag = traits.Sag(.2)
    half, = sag(np.full((1, 4), .5, np.float32), flight)
    curves = traits.ThrustCurves(flight.simulator.drones)
    assert np.allclose(curves.thrust(half[None]), .9 * curves.thrust(np.full((1, 4), .5)), rtol=1e-5)


@pytest.mark.parametrize("how", [
    dict(wind=7.), dict(payload=.5), dict(motor_curve=1.), dict(sag=.2, quantised=8),
    dict(loop="px4", velocity_filter=.05), dict(loop="px4 250 Hz", wind=3., mounting=.05)],
    ids=lambda how: "+".join(how))
def test_torch_flies_the_same(how, fleet, monkeypatch):
    "The same traits and loops in the torch physics, from the same states"
    monkeypatch.setattr(traits.Payload, "after", .2)
    drones = [with_conditions(d, **CALM | dict(guidance=0.), terminate=False) for d in fleet]
    if "loop" in how: drones = [with_step(d, find_loop(how["loop"]).dt) for d in drones]
    flown, start = [], None
    for make in (Simulator, TorchSimulator):
        simulator, plan = make(drones, seed=3), flight_keywords(how)
        loop, tracks = plan["loop"], Tracks("position", "orientation")
        dt = loop.dt if loop else .01
        start = start or from_simulator(simulator, torch.zeros(()))
        if make is TorchSimulator: simulator.now = start
        rollout(RaptorPolicy.pretrained(), simulator, 50, [tracks], loop=loop,
                sensors=flight_sensors(plan, randoms(8), dt), actuators=flight_actuators(plan),
                world=flight_world(plan, randoms(8), drones, dt))
        flown.append(tracks.arrays)
    for k in "position", "orientation":
        assert np.abs(flown[0][k] - flown[1][k]).max() < 2e-3, k
    assert np.ptp(flown[0]["position"], axis=1).max() > .1
