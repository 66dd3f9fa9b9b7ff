"The torch physics against l2f, step by step, and what a differentiable simulator must be able to do"
import numpy as np
import pytest
import torch

from raptor_nb.drones import real_drones, sample_fleet, vary
from raptor_nb.environment import Simulator
from raptor_nb.learn import flight

TOLERANCE = dict(position=2e-6, linear_velocity=5e-6, angular_velocity=5e-5, rotor_speed=5e-7, orientation=2e-6, reward=1e-5)


def differences(drones, steps, seed=0, force=0.):
    "Largest difference of each quantity over random steps, re-synchronised after each; rotor speeds as a share of their range"
    drones = [vary(d, force=force) for d in drones]
    fleet, judge, rng = flight.fleet_of(drones), Simulator(drones, seed=seed), np.random.default_rng(seed)
    span = torch.as_tensor(fleet.rotor_max - fleet.rotor_min).expand(len(drones), 1)
    worst, ends = dict.fromkeys(TOLERANCE, 0.), 0
    for _ in range(steps):
        action = rng.uniform(-1.2, 1.2, (len(drones), 4)).astype(np.float32)
        state = flight.from_simulator(judge, fleet.like)
        rewards, ended = judge.step(action)
        after, a = flight.from_simulator(judge, fleet.like), torch.as_tensor(action)[:, None]
        ours = flight.step(state, a, fleet)
        assert np.array_equal(flight.terminated(ours, fleet)[:, 0].numpy(), ended)
        for name in TOLERANCE:
            if name == "reward": gap = flight.reward(state, a, ours, fleet)[:, 0] - torch.as_tensor(rewards)
            else: gap = getattr(ours, name) - getattr(after, name)
            if name == "rotor_speed": gap = gap / span[..., None]
            worst[name] = max(worst[name], gap.abs().max().item())
        ends += ended.sum()
        judge.reset(ended)
    return worst, ends


def test_a_thousand_drones_fly_as_in_l2f():
    worst, ends = differences(sample_fleet(1000), 100, force=0.1)
    assert ends > 1000, "random actions must end flights, or terminations are not tested"
    assert {k: v for k, v in worst.items() if v > TOLERANCE[k]} == {}


def test_real_drones_fly_as_in_l2f():
    worst, _ = differences([d for d in real_drones().values() for _ in range(8)], 100)
    assert {k: v for k, v in worst.items() if v > TOLERANCE[k]} == {}


def test_observation_and_starts_are_those_of_l2f():
    drones = sample_fleet(512)
    fleet, judge = flight.fleet_of(drones), Simulator(drones, seed=3)
    state = flight.from_simulator(judge, fleet.like)
    assert np.abs(flight.observe(state)[:, 0].numpy() - judge.observe()).max() < 1e-6
    ours = flight.sample_state(fleet, 64, torch.Generator().manual_seed(0))
    theirs = [flight.from_simulator(Simulator(drones, seed=1000 * k), fleet.like) for k in range(8)]
    for name in ("position", "orientation", "linear_velocity", "angular_velocity", "rotor_speed", "action", "last_action"):
        x, y = getattr(ours, name).flatten(0, 1), torch.cat([getattr(s, name)[:, 0] for s in theirs])
        assert torch.allclose(x.mean(0), y.mean(0), atol=0.06) and torch.allclose(x.std(0), y.std(0), rtol=0.1, atol=1e-6), name


def test_a_stack_is_its_members():
    drones = sample_fleet(3)
    fleet, generator = flight.fleet_of(drones, dtype=torch.float64), torch.Generator().manual_seed(1)
    state = flight.sample_state(fleet, 5, generator)
    action = torch.rand(3, 5, 4, generator=generator, dtype=torch.float64) * 2 - 1
    together = flight.step(state, action, fleet)
    for i in range(3):
        alone = flight.step(flight.State(*(x[i:i + 1] for x in state)), action[i:i + 1], flight.fleet_of(drones[i:i + 1], dtype=torch.float64))
        for x, y in zip(together, alone): assert (x[i:i + 1] - y).abs().max() < 1e-12
    some = flight.select(fleet, [2, 0])
    swapped = flight.step(flight.State(*(x[[2, 0]] for x in state)), action[[2, 0]], some)
    assert all(torch.equal(x[[2, 0]], y) for x, y in zip(together, swapped))


def test_hover_is_an_equilibrium():
    drones = [vary(d, guidance=1., force=0.) for d in real_drones().values()]
    fleet = flight.fleet_of(drones, dtype=torch.float64)
    state = flight.sample_state(fleet, 1, torch.Generator().manual_seed(0))
    hover = torch.as_tensor(2 * fleet.hover_throttle - 1)[..., None].expand(-1, 1, 4)
    low, span = (torch.as_tensor(x, dtype=torch.float64) for x in (fleet.rotor_min, fleet.rotor_max - fleet.rotor_min))
    speed = (low + fleet.hover_throttle * span)[..., None].expand(-1, 1, 4)
    start = state._replace(rotor_speed=speed)
    for _ in range(100): start = flight.step(start, hover, fleet)
    assert start.position.abs().max() < 1e-3 and start.linear_velocity.abs().max() < 2e-3


def test_gradients_agree_with_finite_differences():
    fleet = flight.fleet_of(sample_fleet(2), dtype=torch.float64)
    state = flight.sample_state(fleet, 2, torch.Generator().manual_seed(0))
    action = torch.rand(2, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 0.5
    def lands(action, velocity):
        s = state._replace(linear_velocity=velocity)
        for _ in range(5): s = flight.step(s, action, fleet)
        return torch.cat([s.position, s.orientation, s.rotor_speed], -1)
    assert torch.autograd.gradcheck(lands, (action.requires_grad_(), state.linear_velocity.clone().requires_grad_()), eps=1e-6, atol=1e-6)


def test_bad_fleets_are_refused():
    with pytest.raises(ValueError, match="at least one drone"): flight.fleet_of([])
    drone = sample_fleet(1)[0]
    cut = drone.model_copy(update=dict(mdp=drone.mdp.model_copy(update=dict(reward=drone.mdp.reward.model_copy(update=dict(non_negative=True))))))
    with pytest.raises(ValueError, match="non_negative is true"): flight.fleet_of([cut])


def test_a_flight_is_worth_what_l2f_says(monkeypatch):
    "From the same starts: return, survival and steady error of the policy in l2f, where one drone breaks the 2 m/s limit"
    from raptor_nb.policy import RaptorPolicy
    policy, drones = RaptorPolicy.pretrained(), sample_fleet(8)
    judge = Simulator(drones, seed=4)
    monkeypatch.setattr(flight, "sample_state", lambda fleet, n, generator: start)
    start = flight.from_simulator(judge, torch.zeros(()))._replace(last_action=torch.zeros(8, 1, 4))
    flown = flight.fly(policy, drones, velocity_limit=True)
    alive, total, error = np.ones(8, bool), np.zeros(8), np.zeros(8)
    policy.reset()
    for t in range(500):
        reward, ended = judge.step(policy.evaluate_step(judge.observe()))
        total, alive = total + alive * reward, alive & ~ended
        if t >= 250: error += np.linalg.norm(judge.state()["position"], axis=1) / 250
    assert 0 < alive.sum() < 8 and flown.survived.tolist() == alive.tolist()
    np.testing.assert_allclose(flown["return"], total, atol=.05)
    np.testing.assert_allclose(flown.steady_error[alive], error[alive], atol=1e-4)
    assert flown.steady_error[~alive].isna().all()


def test_the_step_that_ends_a_flight_costs_its_penalty():
    "Rotors at rest: a drone falls from its target until it is 2 m/s fast, and nothing is added afterwards"
    drone, falling = vary(sample_fleet(1)[0], guidance=1.), lambda seen, hidden: (-torch.ones(len(seen), 4), hidden)
    fall = lambda steps: flight.fly(falling, [drone], steps, velocity_limit=True).iloc[0]
    last = next(steps for steps in range(20, 60) if not fall(steps).survived)
    assert last > 20 and fall(last)["return"] - fall(last - 1)["return"] == pytest.approx(-100, abs=1e-3)
    assert fall(60)["return"] == fall(last)["return"] and np.isnan(fall(60).steady_error)
