"Teachers by analytic policy gradients"
import pytest
import torch

from raptor_nb.settings import load_config
from raptor_nb.drones import sample_fleet, with_conditions
from raptor_nb.learn import apg
from raptor_nb.learn.cost import cost_weights
from raptor_nb.learn.engines import TorchEngine, env_step
from raptor_nb.sim import physics
from raptor_nb.sim.physics import flatten_state, observe_privileged

SMALL = dict(horizon=20, num_updates=6, num_envs=8, engine="torch", checkpoint_interval=3,
             log_interval=1)
ENGINE = TorchEngine()


def settings(**changes): return load_config("default", apg=SMALL | changes).apg


def gradients(w, state, *flights): return ENGINE.teacher_segment(w, state, *flights)[1]


def test_the_backward_pass_is_the_derivative():
    s, g = settings(), torch.Generator().manual_seed(0)
    drones = [with_conditions(d, force=0.1) for d in sample_fleet(2)]
    params = physics.batch_params(drones, dtype=torch.float64)
    state, reset = (physics.sample_state(params, 3, g) for _ in range(2))
    w = dict(apg.init_actors(params, s, 29, g).state_dict())
    args = (flatten_state(state), state.force, flatten_state(reset), params, cost_weights(s), 8)
    grads = gradients(w, *args)
    direction = {k: torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in w.items()}
    def cost(t):
        moved = {k: v + t * direction[k] for k, v in w.items()}
        return ENGINE.fly_teachers(moved, *args).costs.sum().item()
    slope = (cost(1e-6) - cost(-1e-6)) / 2e-6
    along = sum((grads[k] * direction[k]).sum().item() for k in w)
    assert along == pytest.approx(slope, rel=1e-5)


def test_scaling_is_absorbed_by_the_first_layer():
    run = apg.APGState(settings(), sample_fleet(3), seed=1)
    seen = observe_privileged(run.state, run.force, run.params)
    stored = run.teachers()
    assert torch.allclose(run.actors((seen - run.shift) * run.scale), stored(seen), atol=1e-5)
    assert seen.shape == (3, 8, 29) and stored.obs_dim == 29


def test_the_first_action_hovers():
    run = apg.APGState(settings(), sample_fleet(16), seed=1)
    at_target = run.params._replace(init=(1.,) + run.params.init[1:])
    rest = flatten_state(physics.sample_state(at_target, 1, torch.Generator().manual_seed(0)))
    action = run.teachers()(observe_privileged(rest, torch.zeros(16, 1, 3), run.params))
    hover = 2 * run.params.hover_throttle[:, 0] - 1
    assert (action.mean((1, 2)) - hover).abs().max() < 0.25


@pytest.mark.parametrize("changes, dim", [
    ({}, 29), (dict(force_input=False), 26), (dict(privileged=False), 22)])
def test_what_teachers_see(changes, dim):
    assert apg.APGState(settings(**changes), sample_fleet(1)).teachers().obs_dim == dim


def test_a_flight_that_ends_begins_again():
    run = apg.APGState(settings(), sample_fleet(2), seed=0)
    gone, (reset, _) = run.state.clone(), run.starts()
    gone[0, 0, 0] = 1e3
    after, seen, cost, ended = env_step(gone, torch.zeros(2, 8, 4), run.force, reset, run.params,
                                        cost_weights(run.settings), 29)
    assert ended[0, 0] and torch.equal(after[0, 0], reset[0, 0])
    assert torch.allclose(seen[0, 0, :3], reset[0, 0, :3]) and torch.isfinite(cost).all()


def test_starts_can_be_given():
    one = apg.APGState(settings(), sample_fleet(2), seed=0)
    given = torch.zeros_like(one.state), torch.ones_like(one.force)
    run = apg.APGState(settings(reset_probability=1.), sample_fleet(2), starts=lambda: given)
    state, force, reset = apg.begin_again(run)
    assert all(torch.equal(x, given[0]) for x in (state, reset)) and torch.equal(force, given[1])


def test_gradients_are_clipped_drone_by_drone():
    g = dict(a=torch.tensor([[3., 4.], [0.3, 0.4], [float("nan"), 1.]]))
    norm = apg.clip_per_drone(g, 1.)
    assert norm[:2].tolist() == pytest.approx([5, 0.5])
    assert g["a"][0].norm().item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(g["a"][1], torch.tensor([0.3, 0.4])) and g["a"][2].tolist() == [0, 0]


def same(a, b): return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_training_resumes_where_it_was_interrupted(tmp_path):
    from raptor_nb.core.records import Checkpoints
    drones, s = sample_fleet(2), settings()
    whole = apg.train(s, drones, seed=3)
    class Stop(Exception): pass
    def stop(update, numbers):
        if update == 5: raise Stop
    def resumed(log=None): return apg.train(s, drones, 3, log=log, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(Stop): resumed(stop)
    assert same(whole, resumed())


def test_a_teacher_does_not_depend_on_its_neighbours():
    s = settings()
    run = apg.APGState(s, sample_fleet(2), seed=0)
    w, (reset, _), how = run.absorb_normalisation(), run.starts(), (cost_weights(s), 20)
    both = gradients(w, run.state, run.force, reset, run.params, *how)
    second = {k: v[1:] for k, v in w.items()}
    alone = gradients(second, run.state[1:], run.force[1:], reset[1:],
                      physics.select(run.params, [1]), *how)
    for k, g in both.items():
        assert torch.allclose(g[1:], alone[k], rtol=1e-3, atol=1e-5 * g.abs().max().item()), k


@pytest.mark.slow
def test_compiled_equals_torch():
    def teachers(engine): return apg.train(settings(num_updates=3, engine=engine), sample_fleet(2))
    both = (teachers(engine).state_dict().values() for engine in ("torch", "compiled"))
    for x, y in zip(*both): assert torch.allclose(x, y, atol=1e-4)


@pytest.mark.slow
def test_a_teacher_learns_to_fly():
    from raptor_nb.pretrain import evaluate_teachers, without_force
    drones = sample_fleet(4)
    s = load_config("default", apg=dict(num_updates=100, engine="compiled")).apg
    both = apg.APGState(s, drones).teachers(), apg.train(s, drones)
    before, after = (evaluate_teachers(t, without_force(drones), 16) for t in both)
    assert after["return"].mean() > before["return"].mean() + 300
    assert after["survival"].mean() > 0.9
