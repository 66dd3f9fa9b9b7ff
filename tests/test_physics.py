"The torch physics against l2f, and what a differentiable simulator must be able to do"
import numpy as np
import pytest
import torch

from raptor_nb.drones import real_drones, sample_fleet, with_conditions
from raptor_nb.policy import RaptorPolicy
from raptor_nb.sim import physics, rollout
from raptor_nb.sim.l2f import Simulator
from raptor_nb.sim.physics import State, batch_params, from_simulator, sample_state, step

TOLERANCE = dict(position=2e-6, linear_velocity=5e-6, angular_velocity=5e-5, rotor_speed=5e-7,
                 orientation=2e-6, reward=1e-5)
DOUBLE = dict(dtype=torch.float64)


def seeded(seed): return torch.Generator().manual_seed(seed)


# ---- against l2f
def gaps_of_step(simulator, params, action):
    "Largest difference of each quantity after a step; rotor speeds as a share of their range"
    span = torch.as_tensor(params.rotor_max - params.rotor_min).expand(params.size, 1)
    state, a = from_simulator(simulator, params.like), torch.as_tensor(action)[:, None]
    rewards, ended = simulator.step(action)
    after, ours = from_simulator(simulator, params.like), step(state, a, params)
    assert np.array_equal(physics.terminated(ours, params)[:, 0].numpy(), ended)
    gap = {k: getattr(ours, k) - getattr(after, k) for k in TOLERANCE if k != "reward"}
    gap["rotor_speed"] = gap["rotor_speed"] / span[..., None]
    gap["reward"] = physics.reward(state, a, ours, params)[:, 0] - torch.as_tensor(rewards)
    return {k: x.abs().max().item() for k, x in gap.items()}, ended


def differences(drones, steps, force=0.):
    "The largest over random steps, re-synchronised after each; and how many flights ended"
    drones, rng = [with_conditions(d, force=force) for d in drones], np.random.default_rng(0)
    params, simulator = batch_params(drones), Simulator(drones, seed=0)
    worst, ends = dict.fromkeys(TOLERANCE, 0.), 0
    for _ in range(steps):
        action = rng.uniform(-1.2, 1.2, (len(drones), 4)).astype(np.float32)
        gaps, ended = gaps_of_step(simulator, params, action)
        worst, ends = {k: max(x, gaps[k]) for k, x in worst.items()}, ends + ended.sum()
        simulator.reset(ended)
    return {k: v for k, v in worst.items() if v > TOLERANCE[k]}, ends


def test_a_thousand_drones_fly_as_in_l2f():
    too_large, ends = differences(sample_fleet(1000), 100, force=0.1)
    assert ends > 1000, "random actions must end flights, or terminations are not tested"
    assert too_large == {}


def test_real_drones_fly_as_in_l2f():
    too_large, _ = differences([d for d in real_drones().values() for _ in range(8)], 100)
    assert too_large == {}


def test_observations_are_those_of_l2f():
    drones = sample_fleet(512)
    simulator = Simulator(drones, seed=3)
    state = from_simulator(simulator, batch_params(drones).like)
    assert np.abs(physics.observe(state)[:, 0].numpy() - simulator.observe()).max() < 1e-6


@pytest.mark.parametrize("name", [k for k in State._fields if k not in ("force", "torque")])
def test_starts_are_those_of_l2f(name):
    drones = sample_fleet(512)
    params = batch_params(drones)
    ours = getattr(sample_state(params, 64, seeded(0)), name).flatten(0, 1)
    theirs = [from_simulator(Simulator(drones, seed=1000 * k), params.like) for k in range(8)]
    theirs = torch.cat([getattr(s, name)[:, 0] for s in theirs])
    assert torch.allclose(ours.mean(0), theirs.mean(0), atol=0.06)
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.1, atol=1e-6)


# ---- as a function
def test_a_stack_is_its_members():
    drones, g = sample_fleet(3), seeded(1)
    params = batch_params(drones, **DOUBLE)
    state = sample_state(params, 5, g)
    action = torch.rand(3, 5, 4, generator=g, **DOUBLE) * 2 - 1
    together = step(state, action, params)
    for i, drone in enumerate(drones):
        own = State(*(x[i:i + 1] for x in state))
        alone = step(own, action[i:i + 1], batch_params([drone], **DOUBLE))
        for x, y in zip(together, alone): assert (x[i:i + 1] - y).abs().max() < 1e-12


def test_some_drones_in_another_order():
    params, g, rows = batch_params(sample_fleet(3), **DOUBLE), seeded(1), [2, 0]
    state, action = sample_state(params, 5, g), torch.zeros(3, 5, 4, **DOUBLE)
    together = step(state, action, params)
    some = step(State(*(x[rows] for x in state)), action[rows], physics.select(params, rows))
    assert all(torch.equal(x[rows], y) for x, y in zip(together, some))


def test_a_state_vector_is_a_state():
    params = batch_params(sample_fleet(2))
    state = sample_state(params, 3, seeded(0))
    again = physics.unflatten_state(physics.flatten_state(state), state.force)
    for name in State._fields[:6]: assert torch.equal(getattr(again, name), getattr(state, name))
    assert torch.equal(again.last_action, state.action), "what was observed is what was flown"


def test_hover_is_an_equilibrium():
    drones = [with_conditions(d, guidance=1., force=0.) for d in real_drones().values()]
    params = batch_params(drones, **DOUBLE)
    low = torch.as_tensor(params.rotor_min, **DOUBLE)
    span = torch.as_tensor(params.rotor_max - params.rotor_min, **DOUBLE)
    speed = (low + params.hover_throttle * span)[..., None].expand(-1, 1, 4)
    hover = (2 * params.hover_throttle - 1)[..., None].expand(-1, 1, 4)
    state = sample_state(params, 1, seeded(0))._replace(rotor_speed=speed)
    for _ in range(100): state = step(state, hover, params)
    assert state.position.abs().max() < 1e-3 and state.linear_velocity.abs().max() < 2e-3


def test_gradients_agree_with_finite_differences():
    params = batch_params(sample_fleet(2), **DOUBLE)
    state = sample_state(params, 2, seeded(0))
    action = torch.rand(2, 2, 4, generator=seeded(1), **DOUBLE) - 0.5
    def lands(action, velocity):
        s = state._replace(linear_velocity=velocity)
        for _ in range(5): s = step(s, action, params)
        return torch.cat([s.position, s.orientation, s.rotor_speed], -1)
    inputs = action.requires_grad_(), state.linear_velocity.clone().requires_grad_()
    assert torch.autograd.gradcheck(lands, inputs, eps=1e-6, atol=1e-6)


def cut_at_zero(drone): # the same drone with a reward that is not negative
    reward = drone.mdp.reward.model_copy(update=dict(non_negative=True))
    mdp = drone.mdp.model_copy(update=dict(reward=reward))
    return drone.model_copy(update=dict(mdp=mdp))


def test_bad_fleets_are_refused():
    with pytest.raises(ValueError, match="at least one drone"): batch_params([])
    cut = cut_at_zero(sample_fleet(1)[0])
    with pytest.raises(ValueError, match="non_negative is true"): batch_params([cut])


# ---- whole flights
def flown_in_l2f(policy, simulator):
    "Return, survival and steady error of each drone"
    alive, total, error = np.ones(8, bool), np.zeros(8), np.zeros(8)
    policy.reset()
    for t in range(500):
        reward, ended = simulator.step(policy.evaluate_step(simulator.observe()))
        total, alive = total + alive * reward, alive & ~ended
        if t >= 250: error += np.linalg.norm(simulator.state()["position"], axis=1) / 250
    return total, alive, error


def test_a_flight_is_worth_what_l2f_says(monkeypatch):
    "From the same starts, where one drone breaks the 2 m/s limit"
    policy, drones = RaptorPolicy.pretrained(), sample_fleet(8)
    simulator = Simulator(drones, seed=4)
    start = from_simulator(simulator, torch.zeros(()))
    start = start._replace(last_action=torch.zeros(8, 1, 4))
    monkeypatch.setattr(physics, "sample_state", lambda params, n, generator: start)
    flown = rollout.fly(policy, drones, velocity_limit=True)
    total, alive, error = flown_in_l2f(policy, simulator)
    assert 0 < alive.sum() < 8 and flown.survived.tolist() == alive.tolist()
    np.testing.assert_allclose(flown["return"], total, atol=.05)
    np.testing.assert_allclose(flown.steady_error[alive], error[alive], atol=1e-4)
    assert flown.steady_error[~alive].isna().all()


def test_the_step_that_ends_a_flight_costs_its_penalty():
    "A drone falls until it is 2 m/s fast, and nothing is added afterwards"
    drone = with_conditions(sample_fleet(1)[0], guidance=1.)
    def at_rest(observation): return -np.ones((len(observation), 4), np.float32)
    def fall(steps): return rollout.fly(at_rest, [drone], steps, velocity_limit=True).iloc[0]
    last = next(steps for steps in range(20, 60) if not fall(steps).survived)
    cost = fall(last)["return"] - fall(last - 1)["return"]
    assert last > 20 and cost == pytest.approx(-100, abs=1e-3)
    assert fall(60)["return"] == fall(last)["return"] and np.isnan(fall(60).steady_error)
