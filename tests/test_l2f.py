"The simulator: against l2f itself, lane against lane, and against bad input"
import numpy as np
import pytest

from raptor_nb.drones import load_drone, sample_fleet, with_conditions
from raptor_nb.sim import l2f as binding
from raptor_nb.sim.l2f import FlightError, Simulator, check_action

l2f = pytest.importorskip("l2f", reason="l2f is not installed: pip install 'raptor-nb[sim]'")
FLEET = sample_fleet(5, seed=11)


def random_actions(n, steps, seed=0, spread=1.):
    random = np.random.default_rng(seed)
    return random.uniform(-spread, spread, (steps, n, 4)).astype(np.float32)


class SingleDrone:
    "l2f's calls for one drone, with nothing of ours"
    def __init__(self, drone, seed):
        self.device, self.env, self.rng = l2f.Device(), l2f.Environment(), l2f.Rng()
        self.parameters, self.state, self.next = l2f.Parameters(), l2f.State(), l2f.State()
        l2f.initialize_environment(self.device, self.env)
        l2f.initialize_rng(self.device, self.rng, seed)
        l2f.parameters_from_json(self.device, self.env, drone.to_l2f(), self.parameters)
        self.args = self.device, self.env, self.parameters, self.state
        l2f.sample_initial_state(*self.args, self.rng)

    def step(self, action):
        l2f.step(*self.args, action, self.next, self.rng)
        self.state.assign(self.next)

    def observe(self):
        out = l2f.Observation()
        l2f.observe(*self.args, out, self.rng)
        return np.float32(out.observation)[:22]


@pytest.mark.parametrize("i", range(5))
def test_simulator_is_l2f(i):
    "The same drone, states and actions through l2f's single-drone calls"
    theirs, ours = SingleDrone(FLEET[i], 5 + i), Simulator([FLEET[i]], seed=5 + i)
    for a in random_actions(1, 50, seed=i, spread=1.5):
        theirs.step(a[0])
        ours.step(a)
        assert np.array_equal(ours.observe()[0], theirs.observe())
        for name, attribute in binding._ACCESSORS.items():
            assert np.array_equal(ours.state()[name][0], getattr(theirs.state, attribute)), name


def test_lanes_are_a_power_of_two():
    simulator = Simulator(FLEET)
    assert simulator.n == 5 and simulator.blocks[0].lanes == 8


@pytest.mark.parametrize("n", [1, 3, 8, 9])
def test_lanes_do_not_disturb_each_other(n):
    drones = [with_conditions(d, observation_noise=.02, force=.1) for d in sample_fleet(n, seed=2)]
    together = Simulator(drones, seed=40)
    alone = [Simulator([d], seed=40 + i) for i, d in enumerate(drones)]
    for a in random_actions(n, 120):
        reward, terminated = together.step(a)
        observation = together.observe()
        together.reset(terminated)
        for i, s in enumerate(alone):
            r, ended = s.step(a[i:i + 1])
            assert r[0] == reward[i] and ended[0] == terminated[i]
            assert np.array_equal(s.observe()[0], observation[i])
            s.reset(ended)


def test_more_lanes_than_l2f_has():
    "Blocks of 8 instead of 8192: three of them"
    class Small(Simulator): block_size = 8
    whole, small = Simulator(sample_fleet(19), seed=1), Small(sample_fleet(19), seed=1)
    assert [b.lanes for b in small.blocks] == [8, 8, 4] and len(whole.blocks) == 1
    for a in random_actions(19, 60):
        for x, y in zip(whole.step(a), small.step(a)): assert np.array_equal(x, y)
        assert np.array_equal(whole.observe(), small.observe())
        assert np.array_equal(whole.observe(lanes=[3, 17]), small.observe(lanes=[3, 17]))
        for s in (whole, small): s.set_state([9, 16], position=[[.1, 0, 0], [0, .2, 0]])
        assert small.position()[16, 1] == np.float32(.2)


def test_sampling_one_by_one_is_sampling_all_at_once():
    a, b = (Simulator(sample_fleet(64), seed=3) for _ in range(2))
    a.blocks[0].few, b.blocks[0].few = 0, 1e9
    for _ in range(3):
        mask = np.random.default_rng(0).random(64) < .5
        a.reset(mask)
        b.reset(mask)
        for k, v in a.state().items(): assert np.array_equal(v, b.state()[k]), k


def test_force_is_the_one_that_acts():
    "A drone in free fall with its rotors off accelerates by gravity and force / mass"
    drone = with_conditions(load_drone("crazyflie"), force=.3, guidance=1., velocity_limit=False)
    simulator = Simulator([drone] * 4, seed=0)
    simulator.set_state(rotor_speed=0.)
    force = simulator.force()
    simulator.step(np.full((4, 4), -1.))
    lift = sum(c[0] for c in drone.dynamics.rotor_thrust_coefficients)
    acceleration = force / drone.mass + drone.dynamics.gravity + [0, 0, lift / drone.mass]
    velocity = simulator.state()["linear_velocity"]
    np.testing.assert_allclose(velocity, acceleration * .01, atol=2e-5)
    assert force.std() > .1 * drone.weight


def test_set_state():
    simulator = Simulator(FLEET, seed=0)
    parts = dict(position=[.1, .2, .3], orientation=[np.cos(.1), 0, np.sin(.1), 0],
                 linear_velocity=[1, 0, 0], angular_velocity=[0, 0, 2], rotor_speed=.4,
                 force=[0, 0, 1e-3], last_action=.25)
    simulator.set_state([1, 3], previous_action=.5, **parts)
    state = simulator.state()
    for k, v in parts.items():
        got = state[k][[1, 3]]
        np.testing.assert_allclose(got, np.broadcast_to(np.float32(v), got.shape), atol=1e-6)
    np.testing.assert_array_equal(simulator.observe()[[1, 3], 18:], .5)
    assert not np.allclose(state["position"][0], [.1, .2, .3])


def test_a_snapshot_is_flown_again():
    simulator, actions = Simulator(FLEET, seed=0), random_actions(5, 20)
    kept = simulator.snapshot()
    first = [simulator.step(a)[0] for a in actions]
    simulator.restore(kept)
    assert np.array_equal(first, [simulator.step(a)[0] for a in actions])


def test_unclipped_actions_fly_as_in_l2f():
    "Motors saturate, and the next observation shows what was asked for"
    free, clipped = simulators = [Simulator(FLEET, seed=0, clip=clip) for clip in (None, True)]
    asked = np.full((5, 4), 1.4, np.float32)
    for s in simulators: s.step(asked)
    np.testing.assert_array_equal(free.rotor_speeds(), clipped.rotor_speeds())
    assert (free.observe()[:, 18:] == asked).all() and (clipped.observe()[:, 18:] == 1).all()


def test_rotor_speeds_follow_a_first_order_lag():
    "Runge-Kutta's fixed factor with the rising or the falling time constant"
    simulator = Simulator(sample_fleet(100), seed=0)
    rising, falling = (np.array([getattr(d.dynamics, f"rotor_time_constants_{k}")
                                 for d in simulator.drones]) for k in ("rising", "falling"))
    for a in random_actions(100, 20):
        w, u = simulator.rotor_speeds().astype(float), (a + 1.) / 2
        h = .01 / np.where(u >= w, rising, falling)
        simulator.step(a)
        expected = u + (w - u) * (1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24)
        np.testing.assert_allclose(simulator.rotor_speeds(), expected, atol=5e-7)


@pytest.mark.parametrize("dim", [22, 26, 29])
def test_what_teachers_observe(dim):
    drones = [with_conditions(d, force=.1) for d in sample_fleet(12)]
    simulator = Simulator(drones, seed=1)
    observation = simulator.observe(dim)
    assert observation.shape == (12, dim) and observation.dtype == np.float32
    assert ((observation[:, 22:26] >= 0) & (observation[:, 22:26] <= 1)).all()
    weight = np.array([[d.weight] for d in drones])
    expected = (simulator.force() / weight)[:, :dim - 26 if dim > 26 else 0]
    assert np.allclose(observation[:, 26:], expected, rtol=1e-5)


def test_rotor_speeds_of_a_drone_that_counts_otherwise():
    "mrs counts rotor speeds 0..2000; a teacher observes their share"
    assert Simulator([load_drone("mrs")] * 4).observe(26)[:, 22:].max() <= 1


def test_tilt_is_that_of_the_rotation_matrix():
    simulator = Simulator(sample_fleet(20))
    angle = binding.tilt_angle(simulator.state()["orientation"])
    assert np.allclose(np.cos(angle), simulator.observe()[:, 11], atol=1e-6) and angle.max() > .5


def test_check_action_keeps_float32():
    a = np.float32([.1, -1.2, 0, 1])
    assert check_action(a, (4,)) is a
    assert check_action([1, 2, 3, 4], (4,)).dtype == np.float32
    assert check_action(a.astype(float), (4,), clip=True).min() == -1


NAN = np.where(np.arange(20).reshape(5, 4) == 9, np.nan, 0)
BAD = {
    "actions-of-too-few-drones": (lambda s: s.step(np.zeros((4, 4))),
                                  r"action has shape \(4, 4\); it must be \(5, 4\)"),
    "actions-nan": (lambda s: s.step(NAN), "action of drone 2, motor 1 is nan"),
    "simulator-without-drones": (lambda s: Simulator([]), "there are no drones"),
    "simulator-drone-by-name": (lambda s: Simulator(["x500"]),
                                r"drones\[0\] is of type str; it must be a Drone"),
    "mask-of-ints": (lambda s: s.reset([1, 0, 0, 0, 1]),
                     r"mask is int64 of shape \(5,\); it must be bool of shape \(5,\)"),
    "state-part-unknown": (lambda s: s.set_state(velocity=0.),
                           "a state has no velocity; the nearest is 'linear_velocity'"),
    "lane-out-of-range": (lambda s: s.set_state([7], position=0.),
                          "lanes must be indices from 0 to 4"),
    "observed-values": (lambda s: s.observe(25), "the policy observes 25 values; it must be 22"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(FlightError, match=message) as caught: call(Simulator(FLEET))
    assert "\n" not in str(caught.value)


def test_without_l2f(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "l2f", None)
    with pytest.raises(ImportError, match=r"pip install 'raptor-nb\[sim\]'"): Simulator(FLEET)


