"The simulator and the two environments: against l2f itself, against each other, and against bad input"
import json, socket, time, warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from raptor_nb import environment, evaluate
from raptor_nb.drones import parse_drone, real_drones, sample_drone, sample_fleet, vary
from raptor_nb.environment import (FlightError, HoverAction, QuadrotorEnv, QuadrotorVectorEnv, ResetNeeded, ScaledObservation, Simulator,
                                   VectorHoverAction, VectorScaledObservation, as_drone, check_action, from_hover)

l2f = pytest.importorskip('l2f', reason="l2f is not installed: pip install 'raptor-nb[sim]'")
FLEET = sample_fleet(5, seed=11)


def random_actions(n, steps, seed=0, spread=1.): return np.random.default_rng(seed).uniform(-spread, spread, (steps, n, 4)).astype(np.float32)


# ---------------------------------------------------------------- Simulator

def test_simulator_is_l2f():
    "The same drones, states and actions through l2f's single-drone calls"
    simulator, device, env = Simulator(FLEET, seed=5), l2f.Device(), l2f.Environment()
    l2f.initialize_environment(device, env)
    for i, drone in enumerate(FLEET):
        parameters, state, following, seen, rng = l2f.Parameters(), l2f.State(), l2f.State(), l2f.Observation(), l2f.Rng()
        l2f.initialize_rng(device, rng, 5 + i)
        l2f.parameters_from_json(device, env, drone.to_l2f(), parameters)
        l2f.sample_initial_state(device, env, parameters, state, rng)
        alone = Simulator([drone], seed=5 + i)
        for a in random_actions(1, 50, seed=i, spread=1.5):
            l2f.step(device, env, parameters, state, a[0], following, rng)
            state.assign(following)
            l2f.observe(device, env, parameters, state, seen, rng)
            alone.step(a)
            assert np.array_equal(alone.observe()[0], np.float32(seen.observation)[:22])
            for name, attribute in environment._ACCESSORS.items(): assert np.array_equal(alone.state()[name][0], getattr(state, attribute)), name
    assert simulator.n == 5 and simulator.blocks[0].lanes == 8


@pytest.mark.parametrize('n', [1, 3, 8, 9])
def test_lanes_do_not_disturb_each_other(n):
    drones = [vary(d, observation_noise=.02, force=.1) for d in sample_fleet(n, seed=2)]
    together, alone = Simulator(drones, seed=40), [Simulator([d], seed=40 + i) for i, d in enumerate(drones)]
    for t, a in enumerate(random_actions(n, 120)):
        reward, terminated = together.step(a)
        seen = together.observe()
        together.reset(terminated)
        for i, s in enumerate(alone):
            r, over = s.step(a[i:i + 1])
            assert r[0] == reward[i] and over[0] == terminated[i] and np.array_equal(s.observe()[0], seen[i])
            s.reset(over)


def test_more_lanes_than_l2f_has():
    "Blocks of 8 instead of 8192: three of them"
    class Small(Simulator): block_size = 8
    whole, small = Simulator(sample_fleet(19), seed=1), Small(sample_fleet(19), seed=1)
    assert [b.lanes for b in small.blocks] == [8, 8, 4] and len(whole.blocks) == 1
    for a in random_actions(19, 60):
        for x, y in zip(whole.step(a), small.step(a)): assert np.array_equal(x, y)
        assert np.array_equal(whole.observe(), small.observe()) and np.array_equal(whole.observe([3, 17]), small.observe([3, 17]))
        for s in (whole, small): s.set_state([9, 16], position=[[.1, 0, 0], [0, .2, 0]])
        assert small.state()['position'][16, 1] == np.float32(.2)


def test_sampling_one_by_one_is_sampling_all_at_once():
    a, b = (Simulator(sample_fleet(64), seed=3) for _ in range(2))
    a.blocks[0].few, b.blocks[0].few = 0, 1e9
    for _ in range(3):
        mask = np.random.default_rng(0).random(64) < .5
        a.reset(mask); b.reset(mask)
        for k, v in a.state().items(): assert np.array_equal(v, b.state()[k]), k


def test_force_is_the_one_that_acts():
    "A drone in free fall with its rotors off accelerates by gravity and force / mass"
    drone = vary(as_drone('crazyflie'), force=.3, guidance=1., velocity_limit=False)
    simulator = Simulator([drone] * 4, seed=0)
    simulator.set_state(rotor_speed=0.)
    before = simulator.state()
    simulator.step(np.full((4, 4), -1.))
    lift = sum(c[0] for c in drone.dynamics.rotor_thrust_coefficients)
    expected = (before['force'] / drone.mass + [0, 0, -9.81 + lift / drone.mass]) * .01
    np.testing.assert_allclose(simulator.state()['linear_velocity'], expected, atol=2e-5)
    assert before['force'].std() > .1 * drone.weight


def test_set_state_and_snapshot():
    simulator = Simulator(FLEET, seed=0)
    parts = dict(position=[.1, .2, .3], orientation=[np.cos(.1), 0, np.sin(.1), 0], linear_velocity=[1, 0, 0], angular_velocity=[0, 0, 2], rotor_speed=.4, force=[0, 0, 1e-3], last_action=.25)
    simulator.set_state([1, 3], previous_action=.5, **parts)
    state, seen = simulator.state(), simulator.observe()
    for k, v in parts.items(): np.testing.assert_allclose(state[k][[1, 3]], np.broadcast_to(np.float32(v), state[k][[1, 3]].shape), atol=1e-6)
    np.testing.assert_array_equal(seen[[1, 3], 18:], .5)
    assert not np.allclose(state['position'][0], [.1, .2, .3])
    kept, actions = simulator.snapshot(), random_actions(5, 20)
    first = [simulator.step(a)[0] for a in actions]
    simulator.restore(kept)
    assert np.array_equal(first, [simulator.step(a)[0] for a in actions])


def test_unclipped_actions_fly_as_in_l2f():
    "Motors saturate, and the next observation shows what was asked for; clip=True shows what was flown"
    simulators = [Simulator(FLEET, seed=0, clip=clip) for clip in (None, True)]
    asked = np.full((5, 4), 1.4, np.float32)
    for s in simulators: s.step(asked)
    free, clipped = (s.state() for s in simulators)
    np.testing.assert_array_equal(free['rotor_speed'], clipped['rotor_speed'])
    assert (simulators[0].observe()[:, 18:] == asked).all() and (simulators[1].observe()[:, 18:] == 1).all()


def test_rotor_speeds_follow_a_first_order_lag():
    "Runge-Kutta's fixed factor with the rising or the falling time constant"
    simulator = Simulator(sample_fleet(100), seed=0)
    rising, falling = (np.array([getattr(d.dynamics, f'rotor_time_constants_{k}') for d in simulator.drones]) for k in ('rising', 'falling'))
    for a in random_actions(100, 20):
        w, u = simulator.rotor_speeds().astype(float), (a + 1.) / 2
        h = .01 / np.where(u >= w, rising, falling)
        simulator.step(a)
        np.testing.assert_allclose(simulator.rotor_speeds(), u + (w - u) * (1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24), atol=5e-7)


# ---------------------------------------------------------------- QuadrotorEnv

@pytest.mark.parametrize('settings', [dict(), dict(privileged=True), dict(drone='mrs', privileged=True, observation_noise=.02, force=.1, velocity_limit=False, render_mode='rgb_array')])
def test_check_env(settings, page, monkeypatch):
    monkeypatch.setattr(environment.LiveView.__init__, "__defaults__", (page[0], None)) # it tries every render_mode
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        env = gymnasium.make('raptor_nb/Quadrotor-v0', **settings)
        check_env(env.unwrapped)
        env = gymnasium.make('raptor_nb.environment:raptor_nb/Quadrotor-v0', **settings) # Gymnasium's passive checker looks at every step
        env.reset(seed=1)
        for _ in range(60):
            if any(env.step(env.action_space.sample())[2:4]): env.reset()
        env.close()


def fly(env, seed, steps=60, options=None):
    data, actions = [env.reset(seed=seed, options=options)[0]], random_actions(1, steps, seed=9)[:, 0]
    for a in actions:
        *out, info = env.step(a)
        data.append(np.r_[tuple(out)])
        if out[2] or out[3]: data.append(env.reset()[0])
    return data


def test_a_seed_is_a_flight():
    env = QuadrotorEnv('crazyflie', observation_noise=.01, force=.1)
    one, two, other = fly(env, 3), fly(QuadrotorEnv('crazyflie', observation_noise=.01, force=.1), 3), fly(env, 4)
    assert len(one) > 62 and all(np.array_equal(a, b) for a, b in zip(one, two, strict=True)) and not np.array_equal(one[0], other[0])
    assert all(np.array_equal(a, b) for a, b in zip(one, fly(env, 3), strict=True))


def test_resets_never_change_the_drone():
    env = QuadrotorEnv(sample_drone(3))
    hover = env.drone.hover_action
    start = dict(position=[0, 0, 0], orientation=[1, 0, 0, 0], linear_velocity=[0, 0, 0], angular_velocity=[0, 0, 0], rotor_speed=env.drone.hover_throttle, force=[0, 0, 0])
    for seed in range(20):
        env.reset(seed=seed, options=start)
        for _ in range(50): seen, *_ = env.step(np.full(4, hover))
        assert abs(seen[:18] - [0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]).max() < 1e-3


def test_truncation_is_not_termination():
    env = QuadrotorEnv('x500', episode_steps=12, terminate=False)
    env.reset(seed=0)
    ends = [env.step(np.zeros(4))[2:4] for _ in range(12)]
    assert ends == [(False, False)] * 11 + [(False, True)]
    env = QuadrotorEnv('x500', episode_steps=500)
    env.reset(seed=0, options=dict(linear_velocity=[5, 0, 0]))
    _, reward, terminated, truncated, _ = env.step(np.zeros(4))
    assert terminated and not truncated and reward == -100


def test_starts():
    env = QuadrotorEnv('crazyflie')
    seen, _ = env.reset(seed=0, options=dict(position=dict(low=[.1, 0, -.2], high=[.2, 0, 0]), tilt=.5, linear_velocity=[0, 1, 0], rotor_speed=.6))
    angle = np.arccos((np.trace(seen[3:12].reshape(3, 3)) - 1) / 2)
    assert .1 <= seen[0] <= .2 and seen[1] == 0 and -.2 <= seen[2] <= 0 and abs(angle - .5) < 1e-4 and seen[13] == 1
    np.testing.assert_allclose(seen[18:], .2, atol=1e-6)
    np.testing.assert_array_equal(env.reset(seed=0, options=dict(position=dict(low=-.1, high=.1)))[0], env.reset(seed=0, options=dict(position=dict(low=-.1, high=.1)))[0])


def test_observation_noise_has_its_size():
    env = QuadrotorEnv('crazyflie', observation_noise=.05, guidance=1., episode_steps=10**6)
    still = dict(position=[0, 0, 0], orientation=[1, 0, 0, 0])
    seen = np.array([env.reset(seed=i, options=still)[0] for i in range(400)])
    np.testing.assert_allclose(seen[:, [0, 4, 12, 15]].std(0), [.05, .05, .1, .25], rtol=.15)


@pytest.mark.parametrize('given', ['crazyflie', real_drones()['crazyflie'], real_drones()['crazyflie'].to_dict()])
def test_ways_to_name_a_drone(given, tmp_path):
    reference = as_drone(given)
    path = tmp_path / 'mine.json'
    path.write_text(reference.to_json())
    assert as_drone(str(path)).dynamics == as_drone(path).dynamics == real_drones()['crazyflie'].dynamics


def test_picture():
    env = QuadrotorEnv('crazyflie', render_mode='rgb_array')
    env.reset(seed=0, options=dict(position=[.2, .2, .1]))
    first = env.render()
    assert first.shape == (480, 640, 3) and first.dtype == np.uint8 and (first < 250).any(-1).mean() > .02
    env.step(np.ones(4)); env.reset(options=dict(position=[-.2, -.2, 0], tilt=.5))
    second = env.render()
    assert (first != second).any(-1).mean() > .01 and len(env.trail) == 1
    assert QuadrotorEnv('crazyflie').render() is None
    frames = QuadrotorVectorEnv(['x500', 'crazyflie'], render_mode='rgb_array')
    frames.reset(seed=0)
    for _ in range(5): frames.step(np.zeros((2, 4)))
    assert [len(x) for x in (frames._trail, env.trail)] == [6, 1]
    assert [f.shape for f in frames.render()] == [(480, 640, 3)] * 2


# ---------------------------------------------------------------- QuadrotorVectorEnv

@pytest.mark.parametrize('mode', [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize('conditions', [dict(), dict(observation_noise=.02, force=.1), dict(privileged=True)])
def test_vector_equals_single_environments(mode, conditions):
    "Every number of Gymnasium's own vector of single environments, across many ends of flights, infos included"
    vector = QuadrotorVectorEnv(FLEET, autoreset=mode, episode_steps=40, **conditions)
    singles = SyncVectorEnv([lambda d=d: QuadrotorEnv(d, episode_steps=40, **conditions) for d in FLEET], autoreset_mode=mode)
    assert vector.observation_space == singles.observation_space and vector.action_space == singles.action_space
    assert vector.metadata['autoreset_mode'] is mode
    for seed in (17, [3, 1, 4, 1, 5]):
        for x, y in zip(vector.reset(seed=seed), singles.reset(seed=seed)): assert data_equivalence(x, y)
        ends = 0
        for a in random_actions(5, 150):
            ours, theirs = vector.step(a), singles.step(a)
            for x, y in zip(ours[:4], theirs[:4]): assert x.dtype == y.dtype and np.array_equal(x, y)
            ends += (ours[2] | ours[3]).sum()
            assert set(ours[4]) == set(theirs[4])
            for k in theirs[4]:
                if k == 'final_obs':
                    for x, y in zip(ours[4][k], theirs[4][k]): assert (x is None and y is None) or np.array_equal(x, y)
                elif k == 'final_info': assert all(np.array_equal(ours[4][k][j], theirs[4][k][j]) for j in theirs[4][k])
                else: assert np.array_equal(ours[4][k], theirs[4][k]), k
        assert ends > 20
    for x, y in zip(vector.reset(), singles.reset()): assert data_equivalence(x, y)


def test_vector_equals_single_environments_with_options():
    options = dict(position=dict(low=-.1, high=.1), tilt=dict(low=0, high=.3))
    vector, singles = QuadrotorVectorEnv(FLEET), SyncVectorEnv([lambda d=d: QuadrotorEnv(d) for d in FLEET])
    for seed in (2, None): np.testing.assert_array_equal(vector.reset(seed=seed, options=options)[0], singles.reset(seed=seed, options=options)[0])


def check_vector_env(env, seed=123):
    "What `check_env` demands of one environment, demanded of a vector"
    n = env.num_envs
    assert env.observation_space.shape == (n, *env.single_observation_space.shape) and env.action_space.shape == (n, 4)
    assert isinstance(env.metadata['autoreset_mode'], AutoresetMode)
    flights = []
    for _ in range(2):
        env.action_space.seed(seed)
        seen, infos = env.reset(seed=seed)
        flight = [(seen, infos)]
        for _ in range(40):
            out = env.step(env.action_space.sample())
            seen, rewards, terminations, truncations, infos = out
            assert seen in env.observation_space and seen.dtype == np.float32 and isinstance(infos, dict)
            assert rewards.shape == terminations.shape == truncations.shape == (n,) and rewards.dtype == np.float64 and terminations.dtype == truncations.dtype == bool
            assert np.isfinite(rewards).all()
            flight.append(out)
        flights.append(flight)
    assert data_equivalence(flights[0][0], flights[1][0])
    for a, b in zip(*flights): assert data_equivalence(a[0], b[0]) and data_equivalence(a[1], b[1])
    arrays = [x for out in flights[0] for x in (*out[:-1], *[v for v in out[-1].values() if isinstance(v, np.ndarray)])]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays[:40]) for b in arrays[i + 1:40])
    assert not np.array_equal(env.reset()[0], env.reset()[0]) and not np.array_equal(env.reset(seed=seed)[0], env.reset(seed=seed + 1)[0])
    env.close()


@pytest.mark.parametrize('mode', ['NextStep', 'SameStep'])
@pytest.mark.parametrize('n', [1, 7, 64])
def test_check_vector_env(mode, n):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_vector_env(QuadrotorVectorEnv(sample_fleet(n), autoreset=mode))
        check_vector_env(QuadrotorVectorEnv('x500', n, autoreset=mode, privileged=True, observation_noise=.01))
        check_vector_env(gymnasium.make_vec('raptor_nb/Quadrotor-v0', num_envs=n, drone='arpl', autoreset=mode))


def test_order_of_autoreset():
    "NEXT_STEP: the last observation, then the first of the next flight with reward 0 whatever the action; SAME_STEP: the first one at once, the last in final_obs"
    following, same = (QuadrotorVectorEnv(['crazyflie'] * 3, episode_steps=5, terminate=False, autoreset=m) for m in ('NextStep', 'SameStep'))
    for env in (following, same): env.reset(seed=0)
    a = np.zeros((3, 4))
    for t in range(5): left, right = following.step(a), same.step(a)
    assert left[3].all() and right[3].all() and not left[2].any()
    np.testing.assert_array_equal(left[0], np.stack(right[4]['final_obs']))
    np.testing.assert_array_equal(right[4]['final_info']['step'], [5, 5, 5])
    np.testing.assert_array_equal(right[4]['step'], [0, 0, 0])
    again = following.step(np.ones((3, 4)))
    np.testing.assert_array_equal(again[0], right[0])
    assert (again[1] == 0).all() and not again[3].any() and (again[4]['step'] == 0).all()


def test_disabled_autoreset_with_a_mask():
    env = QuadrotorVectorEnv(FLEET, autoreset='Disabled', episode_steps=3, terminate=False)
    env.reset(seed=0, options=dict(reset_mask=np.ones(5, bool)))
    for _ in range(2): env.step(np.zeros((5, 4)))
    first = env.reset(options=dict(reset_mask=np.array([1, 0, 0, 0, 0], bool)))
    assert (first[1]['_step'] == [1, 0, 0, 0, 0]).all()
    out = env.step(np.zeros((5, 4)))
    assert (out[3] == [False, True, True, True, True]).all() and (out[4]['step'] == [1, 3, 3, 3, 3]).all()
    with pytest.raises(ResetNeeded, match='flight of lane 1 has ended'): env.step(np.zeros((5, 4)))
    seen = env.reset(options=dict(reset_mask=out[3]))[0]
    np.testing.assert_array_equal(seen[0], out[0][0])
    env.step(np.zeros((5, 4)))


def test_one_drone_for_all_is_read_once():
    env = QuadrotorVectorEnv('x500', 6, force=.1)
    assert len({id(d) for d in env.drones}) == 1 and env.num_envs == 6
    mixed = QuadrotorVectorEnv(['x500', 'arpl', 'x500'])
    assert [d.name for d in mixed.drones] == ['x500', 'arpl', 'x500']


# ---------------------------------------------------------------- wrappers

def test_wrappers_agree_with_their_vector_counterparts():
    vector = VectorHoverAction(VectorScaledObservation(QuadrotorVectorEnv(FLEET, privileged=True, autoreset='SameStep')))
    singles = SyncVectorEnv([lambda d=d: HoverAction(ScaledObservation(QuadrotorEnv(d, privileged=True))) for d in FLEET], autoreset_mode='SameStep', observation_mode='different')
    np.testing.assert_allclose(vector.reset(seed=0)[0], singles.reset(seed=0)[0], rtol=1e-6)
    for a in random_actions(5, 60):
        x, y = vector.step(a), singles.step(a)
        np.testing.assert_allclose(x[0], y[0], rtol=1e-5, atol=1e-6)
        if 'final_obs' in y[4]:
            for i in np.flatnonzero(y[4]['_final_obs']): np.testing.assert_allclose(x[4]['final_obs'][i], y[4]['final_obs'][i], rtol=1e-5, atol=1e-6)
    assert ScaledObservation(QuadrotorEnv('crazyflie')).reset(seed=0)[0] in ScaledObservation(QuadrotorEnv('crazyflie')).observation_space


def test_zero_hovers():
    env = HoverAction(QuadrotorEnv('x500', guidance=1., force=0.))
    throttle = env.unwrapped.drone.hover_throttle
    env.reset(seed=0, options=dict(rotor_speed=throttle, force=[0, 0, 0]))
    for _ in range(100): seen, *_ = env.step(np.zeros(4))
    assert abs(seen[:3]).max() < 1e-3 and from_hover(-1, .3) == -1 and from_hover(1, .3) == 1


def test_gymnasium_wrappers_work_too():
    env = gymnasium.wrappers.RescaleAction(gymnasium.wrappers.NormalizeObservation(QuadrotorEnv('crazyflie', clip=True)), np.zeros(4, np.float32), np.ones(4, np.float32))
    env.reset(seed=0)
    assert all(np.isfinite(env.step(env.action_space.sample())[0]).all() for _ in range(5))


# ---------------------------------------------------------------- bad input

def started(**settings):
    env = QuadrotorEnv('crazyflie', **settings)
    env.reset(seed=0)
    return env

def ended():
    env = started(episode_steps=1)
    env.step(np.zeros(4))
    return env

BAD = [
    pytest.param(lambda: started().step([0, np.nan, 0, 0]), FlightError, "action of motor 1 is nan; it must be a number", id='action-nan'),
    pytest.param(lambda: started().step([0, 0, 0, np.inf]), FlightError, "action of motor 3 is inf; it must be a number", id='action-infinite'),
    pytest.param(lambda: started(clip=True).step([0, 0, -np.inf, 0]), FlightError, "action of motor 2 is -inf", id='action-infinite-clipped'),
    pytest.param(lambda: started().step([0, 0, 0]), FlightError, r"action has shape \(3,\); it must be \(4,\)", id='action-too-short'),
    pytest.param(lambda: started().step(['up', 'up', 'up', 'up']), FlightError, "action is not an array of numbers", id='action-text'),
    pytest.param(lambda: started().step(np.array(['1'] * 4)), FlightError, "action has type <U1; it must be an array of numbers", id='action-text-array'),
    pytest.param(lambda: started().step(None), FlightError, "action (is not an array|has shape)", id='action-none'),
    pytest.param(lambda: started().step([0, 0, 0, 1e9]), FlightError, r"action of motor 3 is 1e\+09; it must be in \[-1, 1\] \(up to 100", id='action-absurd'),
    pytest.param(lambda: started(clip=False).step([0, 1.2, 0, 0]), FlightError, r"action of motor 1 is 1.2; it must be in \[-1, 1\]", id='action-out-of-range'),
    pytest.param(lambda: Simulator(FLEET).step(np.zeros((4, 4))), FlightError, r"action has shape \(4, 4\); it must be \(5, 4\)", id='actions-of-too-few-drones'),
    pytest.param(lambda: Simulator(FLEET).step(np.where(np.arange(20).reshape(5, 4) == 9, np.nan, 0)), FlightError, "action of drone 2, motor 1 is nan", id='actions-nan'),
    pytest.param(lambda: QuadrotorEnv('crazyflie').step(np.zeros(4)), ResetNeeded, r"call reset\(\) before the first step", id='step-before-reset'),
    pytest.param(lambda: ended().step(np.zeros(4)), ResetNeeded, "after a flight has ended", id='step-after-the-end'),
    pytest.param(lambda: QuadrotorVectorEnv('crazyflie', 2).step(np.zeros((2, 4))), ResetNeeded, "no flight has begun", id='vector-step-before-reset'),
    pytest.param(lambda: QuadrotorEnv('crazyflie', render_mode='rgb_array').render(), ResetNeeded, r"no flight to show: call reset\(\)", id='render-before-reset'),
    pytest.param(lambda: QuadrotorEnv('crazyfly'), FlightError, "there is no drone 'crazyfly'; did you mean 'crazyflie'?", id='drone-unknown'),
    pytest.param(lambda: QuadrotorEnv('nowhere/x.json'), FileNotFoundError, "x.json", id='drone-file-missing'),
    pytest.param(lambda: QuadrotorEnv(7), FlightError, "drone is of type int; it must be a Drone", id='drone-wrong-type'),
    pytest.param(lambda: QuadrotorEnv({'name': 'nothing'}), ValueError, "dynamics", id='drone-incomplete'),
    pytest.param(lambda: QuadrotorEnv('crazyflie', obsevation_noise=.1), FlightError, "there is no option 'obsevation_noise'; did you mean 'observation_noise'?", id='option-unknown'),
    pytest.param(lambda: QuadrotorEnv('crazyflie', observation_noise=-.1), ValueError, "observation_noise", id='option-negative'),
    pytest.param(lambda: QuadrotorEnv('crazyflie', episode_steps=0), FlightError, "episode_steps is 0; it must be a whole number of at least 1", id='episode-steps-zero'),
    pytest.param(lambda: QuadrotorEnv('crazyflie', render_mode='ascii'), FlightError, "render_mode is 'ascii'; it must be 'rgb_array', 'human' or None", id='render-mode'),
    pytest.param(lambda: QuadrotorEnv('crazyflie', clip='yes'), FlightError, "clip is 'yes'; it must be True, False or None", id='clip'),
    pytest.param(lambda: QuadrotorVectorEnv('crazyflie', 0), FlightError, "num_envs is 0; it must be a whole number of at least 1", id='no-lanes'),
    pytest.param(lambda: QuadrotorVectorEnv([]), FlightError, "there are no drones", id='no-drones'),
    pytest.param(lambda: Simulator([]), FlightError, "there are no drones", id='simulator-without-drones'),
    pytest.param(lambda: Simulator(['x500']), FlightError, r"drones\[0\] is of type str; it must be a Drone", id='simulator-drone-by-name'),
    pytest.param(lambda: QuadrotorVectorEnv(FLEET, 3), FlightError, "num_envs is 3, but there are 5 drones", id='lanes-and-drones-differ'),
    pytest.param(lambda: QuadrotorVectorEnv('x500', 2, autoreset='Later'), FlightError, "autoreset is 'Later'; it must be one of NextStep, SameStep, Disabled", id='autoreset-unknown'),
    pytest.param(lambda: started().reset(seed=-1), FlightError, "seed is -1; it must be a whole number from 0", id='seed-negative'),
    pytest.param(lambda: started().reset(seed=.5), FlightError, "seed is 0.5; it must be a whole number", id='seed-fraction'),
    pytest.param(lambda: QuadrotorVectorEnv('x500', 2).reset(seed=[1, 2, 3]), FlightError, "there are 3 seeds for 2 lanes", id='seeds-too-many'),
    pytest.param(lambda: started().reset(options=dict(orientation=[1, 1, 0, 0])), FlightError, "orientation has norm 1.414; it must be a unit quaternion w, x, y, z", id='quaternion-not-normalised'),
    pytest.param(lambda: started().reset(options=dict(orientation=dict(low=0, high=1))), FlightError, "orientation is a unit quaternion", id='quaternion-range'),
    pytest.param(lambda: started().reset(options=dict(positon=[0, 0, 0])), FlightError, "there is no reset option 'positon'; did you mean 'position'?", id='start-unknown'),
    pytest.param(lambda: started().reset(options=dict(position=[0, 0])), FlightError, r"position must be numbers of shape \(1, 3\)", id='start-shape'),
    pytest.param(lambda: started().reset(options=dict(position=[0, 0, np.nan])), FlightError, "position has a value that is not a number", id='start-nan'),
    pytest.param(lambda: started().reset(options=dict(position=dict(low=1, high=0))), FlightError, "low of position is above high", id='start-range-upside-down'),
    pytest.param(lambda: started().reset(options=dict(position=dict(min=1, max=0))), FlightError, r"a range has low and high", id='start-range-names'),
    pytest.param(lambda: started().reset(options=dict(tilt='steep')), FlightError, "tilt is 'steep'; it must be an angle in rad", id='tilt-text'),
    pytest.param(lambda: started().reset(options=dict(rotor_speed=1.5)), FlightError, "rotor_speed must be from 0 to 1 for drone 'crazyflie'", id='rotor-speed-out-of-range'),
    pytest.param(lambda: QuadrotorVectorEnv('x500', 2).reset(options=dict(reset_mask=[True])), FlightError, r"reset_mask must be bool of shape \(2,\)", id='reset-mask-shape'),
    pytest.param(lambda: Simulator(FLEET).reset([1, 0, 0, 0, 1]), FlightError, r"mask is int64 of shape \(5,\); it must be bool of shape \(5,\)", id='mask-of-ints'),
    pytest.param(lambda: Simulator(FLEET).set_state(velocity=0.), FlightError, "a state has no velocity; did you mean", id='state-part-unknown'),
    pytest.param(lambda: Simulator(FLEET).set_state([7], position=0.), FlightError, "lanes must be indices from 0 to 4", id='lane-out-of-range'),
]


@pytest.mark.parametrize('call, error, message', BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message) as caught: call()
    assert '\n' not in str(caught.value)


def test_an_error_leaves_the_flight_as_it_was():
    one, two = started(), started()
    for bad in ([np.nan] * 4, [0] * 3, [1e9] * 4):
        with pytest.raises(FlightError): one.step(bad)
    assert np.array_equal(one.step(np.zeros(4))[0], two.step(np.zeros(4))[0])


def test_without_l2f(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'l2f', None)
    with pytest.raises(ImportError, match=r"pip install 'raptor-nb\[sim\]'"): Simulator(FLEET)


def test_check_action_keeps_float32():
    a = np.float32([.1, -1.2, 0, 1])
    assert check_action(a, (4,)) is a and check_action([1, 2, 3, 4], (4,)).dtype == np.float32
    assert check_action(a.astype(float), (4,), clip=True).min() == -1


@pytest.fixture
def page():
    "ui-server on a free port, and what its pages would be told"
    ui_server, client = pytest.importorskip("ui_server.ui_server"), pytest.importorskip("websockets.sync.client")
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    ui_server.Server(port=port, scenario="generic").run_in_background()
    for _ in range(300):
        try: listener = client.connect(f"ws://127.0.0.1:{port}/ui", max_size=None); break
        except OSError: time.sleep(.1)
    yield f"ws://127.0.0.1:{port}/backend", listener
    listener.close()


def told(listener, channel):
    while True:
        message = json.loads(listener.recv(timeout=20))
        if message["channel"] == channel: return message["data"]


def test_a_live_view_shows_every_step(page, monkeypatch):
    url, listener = page
    monkeypatch.setattr(environment.LiveView.__init__, "__defaults__", (url, .5))
    env = QuadrotorVectorEnv("crazyflie", 3, render_mode="human")
    env.reset(seed=0)
    told(listener, "setUI"), told(listener, "setParameters"), told(listener, "setState")
    for _ in range(20): env.step(np.zeros((3, 4), np.float32))
    shown = [told(listener, "setState") for _ in range(20)][-1]
    assert env.render() is None
    places = np.array([drone["position"] for drone in shown["state"]][:3])
    np.testing.assert_allclose(places - [[0, 0, 0], [.5, 0, 0], [1, 0, 0]], env.simulator.state()["position"], atol=1e-5)
    env.close()


def test_policies_are_watched_as_they_are_judged(page, monkeypatch):
    url, listener = page
    monkeypatch.setattr(environment.LiveView.__init__, "__defaults__", (url, .5))
    drones, policies = [vary(real_drones()["crazyflie"], terminate=False)] * 2, {"falls": lambda observation: np.full((2, 4), -1, np.float32), "hovers": lambda observation: np.zeros((2, 4), np.float32)}
    table, tracks = evaluate.compare(policies, drones, steps=20, record=True, live=True)
    assert (table.steps == 20).all()
    told(listener, "setUI"), told(listener, "setParameters")
    shown = [told(listener, "setState") for _ in range(40)]
    at = lambda message: np.array([drone["position"] for drone in message["state"]][:2]) - [[0, 0, 0], [.5, 0, 0]]
    np.testing.assert_allclose(at(shown[18]), tracks["falls"]["position"][:, 19], atol=1e-5)
    np.testing.assert_allclose(at(shown[-2]), tracks["hovers"]["position"][:, 19], atol=1e-5)
