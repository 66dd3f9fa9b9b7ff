"The two environments: against Gymnasium's checks, against each other, and against bad input"
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from live_page import page  # noqa: F401
from raptor_nb.drones import real_drones, sample_drone, sample_fleet
from raptor_nb.environment import HoverAction, QuadrotorEnv, QuadrotorVectorEnv
from raptor_nb.environment import ScaledObservation, VectorHoverAction, VectorScaledObservation
from raptor_nb.environment import as_drone, from_hover
from raptor_nb.sim import render
from raptor_nb.sim.l2f import FlightError, ResetNeeded

pytest.importorskip("l2f", reason="l2f is not installed: pip install 'raptor-nb[sim]'")
FLEET = sample_fleet(5, seed=11)


def random_actions(n, steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, n, 4)).astype(np.float32)


# ------------------------------------------------------------------ QuadrotorEnv

ALL_OPTIONS = dict(drone="mrs", privileged=True, observation_noise=.02, force=.1,
                   velocity_limit=False, render_mode="rgb_array")


@pytest.mark.parametrize("settings", [dict(), dict(privileged=True), ALL_OPTIONS])
def test_check_env(settings, page, monkeypatch):  # noqa: F811
    "Gymnasium's checker, which tries every render_mode, and the one that looks at every step"
    monkeypatch.setattr(render.LiveView.__init__, "__defaults__", (page[0], None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("raptor_nb/Quadrotor-v0", **settings).unwrapped)
        env = gymnasium.make("raptor_nb.environment:raptor_nb/Quadrotor-v0", **settings)
        env.reset(seed=1)
        for _ in range(60):
            if any(env.step(env.action_space.sample())[2:4]): env.reset()
        env.close()


def fly(env, seed, steps=60):
    data = [env.reset(seed=seed)[0]]
    for a in random_actions(1, steps, seed=9)[:, 0]:
        *out, _ = env.step(a)
        data.append(np.r_[tuple(out)])
        if out[2] or out[3]: data.append(env.reset()[0])
    return data


def test_a_seed_is_a_flight():
    make = lambda: QuadrotorEnv("crazyflie", observation_noise=.01, force=.1)
    env = make()
    one, two, other, again = fly(env, 3), fly(make(), 3), fly(env, 4), fly(env, 3)
    assert len(one) > 62 and not np.array_equal(one[0], other[0])
    for a, b, c in zip(one, two, again, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)


def test_resets_never_change_the_drone():
    env, zero = QuadrotorEnv(sample_drone(3)), [0, 0, 0]
    hover, throttle = env.drone.hover_action, env.drone.hover_throttle
    start = dict(position=zero, orientation=[1, 0, 0, 0], linear_velocity=zero,
                 angular_velocity=zero, rotor_speed=throttle, force=zero)
    upright = np.r_[zero, np.eye(3).ravel(), np.zeros(6)]
    for seed in range(20):
        env.reset(seed=seed, options=start)
        for _ in range(50): observation, *_ = env.step(np.full(4, hover))
        assert abs(observation[:18] - upright).max() < 1e-3


def test_truncation_is_not_termination():
    env = QuadrotorEnv("x500", episode_steps=12, terminate=False)
    env.reset(seed=0)
    ends = [env.step(np.zeros(4))[2:4] for _ in range(12)]
    assert ends == [(False, False)] * 11 + [(False, True)]


def test_a_flight_that_breaks_a_limit_is_terminated():
    env = QuadrotorEnv("x500", episode_steps=500)
    env.reset(seed=0, options=dict(linear_velocity=[5, 0, 0]))
    _, reward, terminated, truncated, _ = env.step(np.zeros(4))
    assert terminated and not truncated and reward == -100


def test_starts():
    env = QuadrotorEnv("crazyflie")
    position = dict(low=[.1, 0, -.2], high=[.2, 0, 0])
    options = dict(position=position, tilt=.5, linear_velocity=[0, 1, 0], rotor_speed=.6)
    observation, _ = env.reset(seed=0, options=options)
    (x, y, z), matrix = observation[:3], observation[3:12].reshape(3, 3)
    assert .1 <= x <= .2 and y == 0 and -.2 <= z <= 0 and observation[13] == 1
    assert abs(np.arccos((np.trace(matrix) - 1) / 2) - .5) < 1e-4
    np.testing.assert_allclose(observation[18:], .2, atol=1e-6)


def test_a_range_is_drawn_by_the_seed():
    env, options = QuadrotorEnv("crazyflie"), dict(position=dict(low=-.1, high=.1))
    first, second = (env.reset(seed=0, options=options)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_observation_noise_has_its_size():
    env = QuadrotorEnv("crazyflie", observation_noise=.05, guidance=1., episode_steps=10**6)
    still = dict(position=[0, 0, 0], orientation=[1, 0, 0, 0])
    seen = np.array([env.reset(seed=i, options=still)[0] for i in range(400)])
    np.testing.assert_allclose(seen[:, [0, 4, 12, 15]].std(0), [.05, .05, .1, .25], rtol=.15)


CRAZYFLIE = real_drones()["crazyflie"]


@pytest.mark.parametrize("given", ["crazyflie", CRAZYFLIE, CRAZYFLIE.to_dict()])
def test_ways_to_name_a_drone(given, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(as_drone(given).to_json())
    assert as_drone(str(path)).dynamics == as_drone(path).dynamics == CRAZYFLIE.dynamics


# ------------------------------------------------------------------ QuadrotorVectorEnv

def equal_infos(ours, theirs):
    assert set(ours) == set(theirs)
    for k in theirs:
        if k == "final_obs":
            for x, y in zip(ours[k], theirs[k]):
                assert (x is None and y is None) or np.array_equal(x, y)
        elif k == "final_info":
            for j in theirs[k]: assert np.array_equal(ours[k][j], theirs[k][j])
        else: assert np.array_equal(ours[k], theirs[k]), k


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("conditions", [dict(), dict(observation_noise=.02, force=.1),
                                        dict(privileged=True)])
def test_vector_equals_single_environments(mode, conditions):
    "Every number of Gymnasium's own vector of environments, across many ends of flights"
    vector = QuadrotorVectorEnv(FLEET, autoreset=mode, episode_steps=40, **conditions)
    make = lambda d: lambda: QuadrotorEnv(d, episode_steps=40, **conditions)
    singles = SyncVectorEnv([make(d) for d in FLEET], autoreset_mode=mode)
    assert vector.observation_space == singles.observation_space
    assert vector.action_space == singles.action_space
    assert vector.metadata["autoreset_mode"] is mode
    for seed in (17, [3, 1, 4, 1, 5]):
        for x, y in zip(vector.reset(seed=seed), singles.reset(seed=seed)):
            assert data_equivalence(x, y)
        ends = 0
        for a in random_actions(5, 150):
            ours, theirs = vector.step(a), singles.step(a)
            for x, y in zip(ours[:4], theirs[:4]):
                assert x.dtype == y.dtype and np.array_equal(x, y)
            ends += (ours[2] | ours[3]).sum()
            equal_infos(ours[4], theirs[4])
        assert ends > 20
    for x, y in zip(vector.reset(), singles.reset()): assert data_equivalence(x, y)


def test_vector_equals_single_environments_with_options():
    options = dict(position=dict(low=-.1, high=.1), tilt=dict(low=0, high=.3))
    vector = QuadrotorVectorEnv(FLEET)
    singles = SyncVectorEnv([lambda d=d: QuadrotorEnv(d) for d in FLEET])
    for seed in (2, None):
        ours, theirs = (e.reset(seed=seed, options=options)[0] for e in (vector, singles))
        np.testing.assert_array_equal(ours, theirs)


def check_outputs(env, out):
    seen, rewards, terminations, truncations, infos = out
    assert seen in env.observation_space and seen.dtype == np.float32 and isinstance(infos, dict)
    for x in (rewards, terminations, truncations): assert x.shape == (env.num_envs,)
    assert rewards.dtype == np.float64 and np.isfinite(rewards).all()
    assert terminations.dtype == truncations.dtype == bool


def recorded(env, seed):
    "A reset and forty random steps"
    env.action_space.seed(seed)
    flight = [env.reset(seed=seed)]
    for _ in range(40):
        flight.append(env.step(env.action_space.sample()))
        check_outputs(env, flight[-1])
    return flight


def check_vector_env(env, seed=123):
    "What `check_env` demands of one environment, demanded of a vector"
    n = env.num_envs
    assert env.observation_space.shape == (n, *env.single_observation_space.shape)
    assert env.action_space.shape == (n, 4)
    assert isinstance(env.metadata["autoreset_mode"], AutoresetMode)
    first, second = recorded(env, seed), recorded(env, seed)
    for a, b in zip(first, second):
        assert data_equivalence(a[0], b[0]) and data_equivalence(a[1], b[1])
    arrays = [x for out in first for x in (*out[:-1], *out[-1].values())]
    arrays = [x for x in arrays if isinstance(x, np.ndarray)]
    for i, a in enumerate(arrays[:40]):
        assert not any(np.shares_memory(a, b) for b in arrays[i + 1:40])
    assert not np.array_equal(env.reset()[0], env.reset()[0])
    assert not np.array_equal(env.reset(seed=seed)[0], env.reset(seed=seed + 1)[0])
    env.close()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("n", [1, 7, 64])
def test_check_vector_env(mode, n):
    how = dict(autoreset=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_vector_env(QuadrotorVectorEnv(sample_fleet(n), **how))
        check_vector_env(QuadrotorVectorEnv("x500", n, privileged=True, observation_noise=.01,
                                            **how))
        check_vector_env(gymnasium.make_vec("raptor_nb/Quadrotor-v0", num_envs=n, drone="arpl",
                                            **how))


def test_order_of_autoreset():
    """NEXT_STEP: the last observation, then the first of the next flight with reward 0 whatever
    the action; SAME_STEP: the first one at once, the last in final_obs"""
    following, same = (QuadrotorVectorEnv(["crazyflie"] * 3, episode_steps=5, terminate=False,
                                          autoreset=m) for m in ("NextStep", "SameStep"))
    for env in (following, same):
        env.reset(seed=0)
        for _ in range(4): env.step(np.zeros((3, 4)))
    left, right = (env.step(np.zeros((3, 4))) for env in (following, same))
    assert left[3].all() and right[3].all() and not left[2].any()
    np.testing.assert_array_equal(left[0], np.stack(right[4]["final_obs"]))
    np.testing.assert_array_equal(right[4]["final_info"]["step"], [5, 5, 5])
    np.testing.assert_array_equal(right[4]["step"], [0, 0, 0])
    again = following.step(np.ones((3, 4)))
    np.testing.assert_array_equal(again[0], right[0])
    assert (again[1] == 0).all() and not again[3].any() and (again[4]["step"] == 0).all()


def test_disabled_autoreset_with_a_mask():
    env = QuadrotorVectorEnv(FLEET, autoreset="Disabled", episode_steps=3, terminate=False)
    env.reset(seed=0, options=dict(reset_mask=np.ones(5, bool)))
    for _ in range(2): env.step(np.zeros((5, 4)))
    _, infos = env.reset(options=dict(reset_mask=np.array([1, 0, 0, 0, 0], bool)))
    assert (infos["_step"] == [1, 0, 0, 0, 0]).all()
    last, _, _, truncated, infos = env.step(np.zeros((5, 4)))
    assert (truncated == [False, True, True, True, True]).all()
    assert (infos["step"] == [1, 3, 3, 3, 3]).all()
    with pytest.raises(ResetNeeded, match="flight of lane 1 has ended"): env.step(np.zeros((5, 4)))
    seen = env.reset(options=dict(reset_mask=truncated))[0]
    np.testing.assert_array_equal(seen[0], last[0])
    env.step(np.zeros((5, 4)))


def test_one_drone_for_all_is_read_once():
    env = QuadrotorVectorEnv("x500", 6, force=.1)
    assert len({id(d) for d in env.drones}) == 1 and env.num_envs == 6
    mixed = QuadrotorVectorEnv(["x500", "arpl", "x500"])
    assert [d.name for d in mixed.drones] == ["x500", "arpl", "x500"]


# ------------------------------------------------------------------ wrappers

def test_wrappers_agree_with_their_vector_counterparts():
    same = dict(rtol=1e-5, atol=1e-6)
    vector = QuadrotorVectorEnv(FLEET, privileged=True, autoreset="SameStep")
    vector = VectorHoverAction(VectorScaledObservation(vector))
    make = lambda d: lambda: HoverAction(ScaledObservation(QuadrotorEnv(d, privileged=True)))
    singles = SyncVectorEnv([make(d) for d in FLEET], autoreset_mode="SameStep",
                            observation_mode="different")
    np.testing.assert_allclose(vector.reset(seed=0)[0], singles.reset(seed=0)[0], rtol=1e-6)
    for a in random_actions(5, 60):
        (seen, *_, ours), (expected, *_, theirs) = vector.step(a), singles.step(a)
        np.testing.assert_allclose(seen, expected, **same)
        for i in np.flatnonzero(theirs.get("_final_obs", [])):
            np.testing.assert_allclose(ours["final_obs"][i], theirs["final_obs"][i], **same)


def test_scaled_observations_are_in_their_space():
    env = ScaledObservation(QuadrotorEnv("crazyflie"))
    assert env.reset(seed=0)[0] in env.observation_space


def test_zero_hovers():
    env = HoverAction(QuadrotorEnv("x500", guidance=1., force=0.))
    throttle = env.unwrapped.drone.hover_throttle
    env.reset(seed=0, options=dict(rotor_speed=throttle, force=[0, 0, 0]))
    for _ in range(100): observation, *_ = env.step(np.zeros(4))
    assert abs(observation[:3]).max() < 1e-3
    assert from_hover(-1, .3) == -1 and from_hover(1, .3) == 1


def test_gymnasium_wrappers_work_too():
    env = gymnasium.wrappers.NormalizeObservation(QuadrotorEnv("crazyflie", clip=True))
    low, high = np.zeros(4, np.float32), np.ones(4, np.float32)
    env = gymnasium.wrappers.RescaleAction(env, low, high)
    env.reset(seed=0)
    assert all(np.isfinite(env.step(env.action_space.sample())[0]).all() for _ in range(5))


# ------------------------------------------------------------------ bad input

def started(**settings):
    env = QuadrotorEnv("crazyflie", **settings)
    env.reset(seed=0)
    return env

def ended():
    env = started(episode_steps=1)
    env.step(np.zeros(4))
    return env

def step(action, **settings): return lambda: started(**settings).step(action)

def reset(**how): return lambda: started().reset(**how)

def begin(**options): return lambda: started().reset(options=options)

def make(*args, **settings): return lambda: QuadrotorEnv(*args, **settings)

def vector(*args, **settings): return lambda: QuadrotorVectorEnv(*args, **settings)


BAD = {
    "action-nan": (step([0, np.nan, 0, 0]), "action of motor 1 is nan; it must be a number"),
    "action-infinite": (step([0, 0, 0, np.inf]), "action of motor 3 is inf; it must be a number"),
    "action-infinite-clipped": (step([0, 0, -np.inf, 0], clip=True), "action of motor 2 is -inf"),
    "action-too-short": (step([0, 0, 0]), r"action has shape \(3,\); it must be \(4,\)"),
    "action-text": (step(["up"] * 4), "action is not an array of numbers"),
    "action-text-array": (step(np.array(["1"] * 4)),
                          "action has type <U1; it must be an array of numbers"),
    "action-none": (step(None), "action (is not an array|has shape)"),
    "action-absurd": (step([0, 0, 0, 1e9]),
                      r"action of motor 3 is 1e\+09; it must be in \[-1, 1\] \(up to 100"),
    "action-out-of-range": (step([0, 1.2, 0, 0], clip=False),
                            r"action of motor 1 is 1.2; it must be in \[-1, 1\]"),
    "option-unknown": (make("crazyflie", obsevation_noise=.1),
                       "there is no option 'obsevation_noise'; the nearest is 'observation_noise'"),
    "option-negative": (make("crazyflie", observation_noise=-.1), "observation_noise"),
    "drone-unknown": (make("crazyfly"),
                      "there is no drone 'crazyfly'; the nearest is 'crazyflie'"),
    "drone-wrong-type": (make(7), "drone is of type int; it must be a Drone"),
    "drone-incomplete": (make({"name": "nothing"}), "dynamics"),
    "episode-steps-zero": (make("crazyflie", episode_steps=0),
                           "episode_steps is 0; it must be a whole number of at least 1"),
    "render-mode": (make("crazyflie", render_mode="ascii"),
                    "render_mode is 'ascii'; it must be 'rgb_array', 'human' or None"),
    "clip": (make("crazyflie", clip="yes"), "clip is 'yes'; it must be True, False or None"),
    "no-lanes": (vector("crazyflie", 0), "num_envs is 0; it must be a whole number of at least 1"),
    "no-drones": (vector([]), "there are no drones"),
    "lanes-and-drones-differ": (vector(FLEET, 3), "num_envs is 3, but there are 5 drones"),
    "autoreset-unknown": (vector("x500", 2, autoreset="Later"), "autoreset is 'Later'; "
                          "it must be one of NextStep, SameStep, Disabled"),
    "seed-negative": (reset(seed=-1), "seed is -1; it must be a whole number from 0"),
    "seed-fraction": (reset(seed=.5), "seed is 0.5; it must be a whole number"),
    "seeds-too-many": (lambda: vector("x500", 2)().reset(seed=[1, 2, 3]),
                       "there are 3 seeds for 2 lanes"),
    "reset-mask-shape": (lambda: vector("x500", 2)().reset(options=dict(reset_mask=[True])),
                         r"reset_mask must be bool of shape \(2,\)"),
    "quaternion-not-normalised": (begin(orientation=[1, 1, 0, 0]), "orientation has norm 1.414; "
                                  "it must be a unit quaternion w, x, y, z"),
    "quaternion-range": (begin(orientation=dict(low=0, high=1)),
                         "orientation is a unit quaternion"),
    "start-unknown": (begin(positon=[0, 0, 0]),
                      "there is no reset option 'positon'; the nearest is 'position'"),
    "start-shape": (begin(position=[0, 0]), r"position must be numbers of shape \(1, 3\)"),
    "start-nan": (begin(position=[0, 0, np.nan]), "position has a value that is not a number"),
    "start-range-upside-down": (begin(position=dict(low=1, high=0)),
                                "low of position is above high"),
    "start-range-names": (begin(position=dict(min=1, max=0)), "a range has low and high"),
    "tilt-text": (begin(tilt="steep"), "tilt is 'steep'; it must be an angle in rad"),
    "rotor-speed-out-of-range": (begin(rotor_speed=1.5),
                                 "rotor_speed must be from 0 to 1 for drone 'crazyflie'"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as caught: call()
    assert "\n" not in str(caught.value)


EARLY = {
    "step-before-reset": (lambda: make("crazyflie")().step(np.zeros(4)),
                          r"call reset\(\) before the first step"),
    "step-after-the-end": (lambda: ended().step(np.zeros(4)), "after a flight has ended"),
    "vector-step-before-reset": (lambda: vector("crazyflie", 2)().step(np.zeros((2, 4))),
                                 "no flight has begun"),
    "render-before-reset": (lambda: make("crazyflie", render_mode="rgb_array")().render(),
                            r"no flight to show: call reset\(\)"),
}


@pytest.mark.parametrize("call, message", EARLY.values(), ids=EARLY)
def test_a_flight_must_have_begun(call, message):
    with pytest.raises(ResetNeeded, match=message): call()


def test_a_drone_file_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="x.json"): QuadrotorEnv("nowhere/x.json")


def test_an_error_leaves_the_flight_as_it_was():
    one, two = started(), started()
    for bad in ([np.nan] * 4, [0] * 3, [1e9] * 4):
        with pytest.raises(FlightError): one.step(bad)
    assert np.array_equal(one.step(np.zeros(4))[0], two.step(np.zeros(4))[0])
