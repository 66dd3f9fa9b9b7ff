"The loops of flight stacks: which calls move the hidden state, what is shown, what is applied"
import numpy as np
import pytest
import torch

from raptor_nb.drones import load_drone, sample_split, with_conditions
from raptor_nb.policy import EvaluationError, RaptorPolicy
from raptor_nb.sim.conditions import Away, FigureEight
from raptor_nb.sim.l2f import Simulator
from raptor_nb.sim.loops import LOOPS, PLAIN, Loop, with_step
from raptor_nb.sim.rollout import Approach, FlightStatistics, evaluate

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
CALM = dict(force=0., observation_noise=0., velocity_limit=False)


@pytest.fixture(scope="module")
def student(): return RaptorPolicy.pretrained()


@pytest.fixture(scope="module")
def fleet(): return sample_split("tests", 6)


class Recorder:
    "A policy with a memory that counts; it keeps what it is shown and what it answers"
    obs_dim = 22

    def __init__(self, seed=0, size=.3): self.random, self.size = np.random.default_rng(seed), size

    def reset(self): self.memory, self.seen, self.given, self.memories = 0, [], [], []
    def get_hidden_state(self): return self.memory
    def set_hidden_state(self, hidden): self.memory = hidden

    def evaluate_step(self, observation):
        self.seen.append(observation.copy())
        self.memories.append(self.memory)
        self.memory += 1
        self.given.append(self.random.uniform(-self.size, self.size, (len(observation), 4)))
        return self.given[-1].astype(np.float32)


def record(loop, fleet, steps=5, size=.3, **more):
    policy = Recorder(size=size)
    evaluate(policy, fleet, CALM | more | dict(loop=loop, seconds=steps * LOOPS[loop].move))
    return policy


@pytest.mark.parametrize("more", [{}, dict(delay=2), dict(target=FigureEight(5.5), guidance=1.),
                                  dict(observation_noise=.01)],
                         ids=["hover", "late", "figure-eight", "noise"])
def test_a_plain_loop_is_the_plain_roll_out_bit_by_bit(student, fleet, more):
    flown = [evaluate(student, fleet, CALM | more | how, steps=80, record=True)[1]
             for how in ({}, dict(loop=PLAIN))]
    for k in "position", "action", "observation":
        assert np.array_equal(flown[0][k], flown[1][k], equal_nan=True), k


@pytest.mark.parametrize("loop", LOOPS)
def test_the_hidden_state_moves_once_a_step(loop, fleet):
    policy, calls = record(loop, fleet), LOOPS[loop].calls
    moved = [k + (j > 0) for k in range(5) for j in range(calls)]
    assert policy.memories == moved, "calls between begin where the last move ended"
    assert policy.memory == 5, "and what they make of it is thrown away"


@pytest.mark.parametrize("loop", LOOPS)
def test_the_previous_action_is_the_mean_since_the_state_moved(loop, fleet):
    policy, calls = record(loop, fleet, size=1.4), LOOPS[loop].calls
    commands = np.clip(np.array(policy.given, np.float32), -1, 1)
    assert (policy.seen[0][:, 18:] == LOOPS[loop].first).all(), "as it is switched on"
    for k in range(1, len(commands)):
        since = (k - 1) // calls * calls
        mean = commands[since:k].mean(0)
        assert np.abs(policy.seen[k][:, 18:] - mean).max() < 1e-6, k


@pytest.mark.parametrize("loop", LOOPS)
def test_errors_are_clipped_and_nothing_else(loop, fleet):
    far = dict(start=Away(5.), position_threshold=100.)
    policy, stack = record(loop, fleet, 3, **far), LOOPS[loop]
    plain = Recorder()
    evaluate(plain, fleet, CALM | far, steps=1)
    first, free = policy.seen[0], plain.seen[0]
    assert np.abs(free[:, :3]).max() > 2
    assert np.array_equal(first[:, :3], free[:, :3].clip(-stack.position, stack.position))
    assert np.array_equal(first[:, 12:15], free[:, 12:15].clip(-stack.velocity, stack.velocity))
    assert np.array_equal(first[:, 3:12], free[:, 3:12])
    assert np.array_equal(first[:, 15:18], free[:, 15:18])


def test_shorter_steps_of_l2f_fly_the_same(fleet):
    "Four steps of 2.5 ms are one of 10 ms, as exactly as Runge-Kutta is"
    drone = with_conditions(fleet[0], guidance=1., **CALM)
    states = []
    for d, steps in ((drone, 20), (with_step(drone, .0025), 80)):
        simulator = Simulator([d], seed=3)
        start = np.full((1, 4), d.hover_action + .1, np.float32)
        for _ in range(steps): simulator.step(start * [1, .9, 1, .9])
        states.append(simulator.state())
    for k in "position", "linear_velocity", "rotor_speed":
        assert np.abs(states[0][k] - states[1][k]).max() < 1e-3 * np.abs(states[0][k]).max(), k


def test_seconds_are_seconds_in_every_loop(fleet):
    "A state that moves every 8 ms makes more steps of the same time"
    hover = lambda seen: np.zeros((len(seen), 4), np.float32)
    steps = [evaluate(hover, fleet[:1], CALM | dict(loop=loop, seconds=2., terminate=False)).steps[0]
             for loop in ("px4", "px4 250 Hz")]
    assert steps == [200, 250]


def test_a_loop_does_not_touch_the_initial_hidden_state(student, fleet):
    how = CALM | dict(loop="px4", seconds=.5)
    first = evaluate(student, fleet, how)
    assert first.equals(evaluate(student, fleet, how)), "switched on again with an empty memory"
    before = student.get_hidden_state()
    assert before.shape == (1, 6, 16) and torch.isfinite(before).all()
    assert first["return"].isna().all(), "l2f's return is for 100 Hz"


@pytest.mark.parametrize("condition, match", [
    (dict(loop="px5"), "there is no loop 'px5'"), (dict(seconds=-1.), "seconds is -1.0"),
    (dict(steady="long"), "steady is 'long'")], ids=["loop", "seconds", "steady"])
def test_bad_conditions_are_refused(condition, match, fleet):
    with pytest.raises(EvaluationError, match=match): evaluate(Recorder(), fleet, condition)


@pytest.mark.parametrize("given, match", [
    (dict(rate=50), "from 100"), (dict(rate="fast"), "rate of a loop is 'fast'"),
    (dict(rate=400, position=-1.), "position of a loop is -1.0"), (dict(rate=1e6), "to 10000")],
    ids=["slow", "words", "clip", "fast"])
def test_bad_loops_are_refused(given, match):
    with pytest.raises(EvaluationError, match=match): Loop(**given)


def test_a_policy_that_hides_its_memory_is_refused(fleet):
    class Closed:
        def reset(self): pass
        def evaluate_step(self, seen): return np.zeros((len(seen), 4), np.float32)
    assert len(evaluate(Closed(), fleet[:1], CALM, steps=2)) == 1
    with pytest.raises(EvaluationError, match="a Closed cannot be flown in a loop"):
        evaluate(Closed(), fleet[:1], CALM | dict(loop="px4"), steps=2)


# ------------------------------------------------------------------ what is counted

class Still:
    "What an observer asks of a flight, along a given path of one drone"
    def __init__(self, path, velocity=(0., 0, 0), dt=.01):
        self.path, self.steps, self.calls, self.dt = np.asarray(path), len(path) - 1, 1, dt
        self.alive, self.terminated, self.reward = np.ones(1, bool), np.zeros(1, bool), np.zeros(1)
        self.trajectory = self.loop = None
        self.simulator, self.n, self.velocity, self.step = self, 1, velocity, -1

    def position(self): return self.path[self.step + 1][None]
    def state(self): return dict(linear_velocity=np.array([self.velocity]))
    error = position

    def watch(self, observer):
        observer.begin(self)
        for self.step in range(self.steps): observer.after_step(self)
        observer.end(self)
        return {k: v[0] for k, v in observer.columns().items()}


def test_overshoot_is_along_the_way_and_arrival_is_for_good():
    t = np.linspace(0, 10, 1001)[:, None]
    along = np.where(t < 2, 5 - 3 * t, np.where(t < 6, -1. + .25 * (t - 2), 0.))
    path = along * [.6, .8, 0] + np.where(t > 3, .05, 0) * np.array([0, 0, 1])
    found = Still(path).watch(Approach())
    assert abs(found["overshoot"] - 1) < 1e-6
    assert abs(found["arrival"] - 5.65) < .02, "the first pass within 10 cm does not count"
    never = Still(path + [0, 0, 1.]).watch(Approach())
    assert abs(never["arrival"] - 10) < 1e-9


def test_overshoot_of_a_drone_that_was_switched_on_at_speed():
    path = np.linspace(0, 2, 101)[:, None] * [1., 0, 0]
    assert abs(Still(path, velocity=(4., 0, 0)).watch(Approach())["overshoot"] - 2) < 1e-6


def test_oscillation_tells_circling_from_hanging_beside():
    t = .01 * np.arange(501)[:, None]
    circle = .03 * np.concatenate([np.cos(np.pi * t), np.sin(np.pi * t), 0 * t], 1)
    aside = np.tile([.03, 0, 0], (501, 1))
    for path, around in ((circle, .03), (aside, 0.), (circle + aside, .03)):
        found = Still(path).watch(FlightStatistics())
        assert abs(found["oscillation"] - around) < 1e-6
    assert abs(Still(circle).watch(FlightStatistics(1.))["steady_error"] - .03) < 1e-6


def test_steady_seconds_are_the_last_ones():
    path = np.where(np.arange(501)[:, None] > 400, 0, 1.) * [1., 0, 0]
    assert Still(path).watch(FlightStatistics(1.))["steady_error"] == 0
    assert abs(Still(path).watch(FlightStatistics())["steady_error"] - .6) < 1e-9
    assert load_drone("crazyflie").integration.dt == .01
