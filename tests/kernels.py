"What the tests of engines and kernels fly"
import pytest
import torch

from raptor_nb.drones import sample_fleet
from raptor_nb.learn import apg, direct
from raptor_nb.learn.cost import cost_weights
from raptor_nb.learn.engines import FlightDisturbances
from raptor_nb.policy import RaptorPolicy, Teachers
from raptor_nb.sim import native, physics
from raptor_nb.sim.physics import flatten_state, sample_state, weight
from raptor_nb.settings import load_config

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
DRONES = sample_fleet(3)
PARAMS = physics.batch_params(DRONES)
OBSERVES = {22: dict(privileged=False), 26: dict(force_input=False), 29: {}}


def close(ours, theirs, share=2e-3):
    "Within a share of the size of all that is compared"
    gap = (ours - theirs).norm()
    assert torch.isfinite(ours).all()
    assert gap <= share * theirs.norm() + 1e-7, (gap / theirs.norm()).item()


def leaving(state, which, outwards=1.):
    "State vectors of which some flights are at the limit of the position, at speed"
    state, limit = state.clone(), torch.as_tensor(PARAMS.limits[0]).expand(3, 1)
    for drone, env in which:
        state[drone, env, 1] = limit[drone, 0] - .005
        state[drone, env, 8] = outwards
    return state


def student_of(hidden=16, seed=0):
    torch.manual_seed(seed)
    return RaptorPolicy(hidden_dim=hidden)


def actors(obs_dim=29, hidden=32, activation="tanh", seed=0):
    "Hover, more or less"
    torch.manual_seed(seed)
    teachers = Teachers(3, obs_dim, hidden, activation=activation).requires_grad_(False)
    teachers.w3 *= .2
    hover = torch.tensor([[[d.hover_action] * 4] for d in DRONES])
    teachers.b3.copy_(hover.clamp(-.9, .9).atanh())
    return teachers


def weights_of(**changes): # section apg -> CostWeights
    return cost_weights(load_config("default", apg=changes).apg)


def teacher_flights(environments=16, hidden=64, obs_dim=29, steps=30, **changes):
    "What `teacher_segment` takes; two flights end within the segment"
    sizes = dict(horizon=steps, num_envs=environments, hidden_dim=hidden)
    s = load_config("default", apg=sizes | OBSERVES[obs_dim]).apg
    run = apg.APGState(s, DRONES, seed=1)
    torch.manual_seed(0)
    w = {k: v + .05 * torch.randn_like(v) for k, v in run.absorb_normalisation().items()}
    reset_state, _ = run.starts()
    state = leaving(run.state, [(0, 3), (2, environments - 1)])
    return w, state, run.force, reset_state, run.params, weights_of(**changes), steps


def forces(knots, environments, generator): # -> (D, W, E, 3) N
    drawn = torch.randn(3, knots, environments, 3, generator=generator)
    return .15 * weight(PARAMS)[..., None, None] * drawn


def disturbances(environments=16, knots=5, resets=3, seed=0, **changes):
    "Flights without noise, some at the limit, with all delays; teachers fly a third"
    g, shape = torch.Generator().manual_seed(seed), (3, environments)
    states = flatten_state(sample_state(PARAMS, (resets + 1) * environments, g))
    states = states.unflatten(1, (resets + 1, environments))
    force = forces(knots, environments, g)
    delay = torch.randint(3, shape, generator=g).float()
    by_teacher = torch.rand(shape, generator=g) < .3
    start = leaving(states[:, 0], [(1, 0), (1, 5)])
    out = FlightDisturbances(start, states[:, 1:], force, torch.zeros(shape), delay,
                             torch.zeros(shape), by_teacher, 7)
    return out._replace(**changes)


def own_flights(updates=6): # -> parameters, flights, optimiser, gradients of the last update
    "Some updates of a student by its own flights; six are past the first rotation"
    s = load_config("default", direct=dict(flights=48, horizon=30), apg=dict(engine="native"),
                    flight_randomization=dict(velocity_jumps=3., delay_share=.5))
    run = direct.begin_training(s, s.direct, student_of(20), DRONES)
    run.advance([.005] * updates)
    return run.parameters, run.pool, run.optimiser, run.block_gradients


def numbers():
    "All kernels on something: noise, jumps and flights that end included"
    moved, grads, costs = native.teacher_segment(*teacher_flights(32))
    noisy = dict(sigma=torch.full((3, 32), .02), jump=torch.full((3, 32), .1))
    flights = disturbances(32, **noisy)
    recorded = native.student_rollout(student_of(), actors(), PARAMS, *flights, 40)
    loss, imitation = native.imitation_gradients(student_of(), *recorded)
    return [moved, *grads.values(), costs, *recorded, torch.tensor(loss), *imitation.values(),
            *own_flights()]
