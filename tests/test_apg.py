"Teachers by analytic policy gradients"
import pytest
import torch

from raptor_nb.core.config import load_config
from raptor_nb.core.records import Checkpoints
from raptor_nb.drones import sample_fleet, vary
from raptor_nb.learn import apg, flight

SMALL = dict(segment=20, updates=6, environments=8, engine="plain", checkpoint_interval=3, log_interval=1)


def settings(**changes): return load_config("default", apg=SMALL | changes).apg


def test_the_way_back_is_the_derivative():
    s = settings(segment=8)
    fleet = flight.fleet_of([vary(d, force=0.1) for d in sample_fleet(2)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    state, fresh = (flight.sample_state(fleet, 3, generator) for _ in range(2))
    w = dict(apg.beginner(fleet, s, 29, generator).state_dict())
    args = apg.bundle(state), state.force, apg.bundle(fresh), fleet, s
    g = apg.gradients(w, apg.fly(w, *args), *args[1:])
    direction = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in w.items()}
    def cost(t): return apg.fly({k: v + t * direction[k] for k, v in w.items()}, *args).costs.sum().item()
    slope = (cost(1e-6) - cost(-1e-6)) / 2e-6
    assert sum((g[k] * direction[k]).sum().item() for k in w) == pytest.approx(slope, rel=1e-5)


def test_scaling_is_folded_into_the_first_layer():
    run = apg.Run(settings(), sample_fleet(3), seed=1)
    sight = apg.sees(run.moving, run.force, run.fleet)
    scaled = (sight - run.shift) * run.scale
    actors, folded = run.actors, run.teachers()
    assert torch.allclose(actors(scaled), folded(sight), atol=1e-5)
    assert sight.shape == (3, 8, 29) and folded.obs_dim == 29


def test_the_first_action_hovers():
    run = apg.Run(settings(), sample_fleet(16), seed=1)
    rest = apg.bundle(flight.sample_state(run.fleet._replace(init=(1.,) + run.fleet.init[1:]), 1, torch.Generator().manual_seed(0)))
    action = run.teachers()(apg.sees(rest, torch.zeros(16, 1, 3), run.fleet))
    assert (action.mean((1, 2)) - (2 * run.fleet.hover_throttle[:, 0] - 1)).abs().max() < 0.25


@pytest.mark.parametrize("changes, dim", [({}, 29), (dict(force_input=False), 26), (dict(privileged=False), 22)])
def test_what_teachers_see(changes, dim):
    assert apg.Run(settings(**changes), sample_fleet(1)).teachers().obs_dim == dim


def test_a_flight_that_ends_starts_anew():
    run = apg.Run(settings(), sample_fleet(2), seed=0)
    gone = run.moving.clone(); gone[0, 0, 0] = 1e3
    fresh, _ = run.starts()
    after, sight, price, ended = apg.advance(gone, torch.zeros(2, 8, 4), run.force, fresh, run.fleet, run.settings, 29)
    assert ended[0, 0] and torch.equal(after[0, 0], fresh[0, 0]) and torch.allclose(sight[0, 0, :3], fresh[0, 0, :3]) and torch.isfinite(price).all()


def test_gradients_are_clipped_drone_by_drone():
    g = dict(a=torch.tensor([[3., 4.], [0.3, 0.4], [float("nan"), 1.]]))
    norm = apg.clip(g, 1.)
    assert norm[:2].tolist() == pytest.approx([5, 0.5]) and g["a"][0].norm().item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(g["a"][1], torch.tensor([0.3, 0.4])) and g["a"][2].tolist() == [0, 0]


def test_training_goes_on_where_it_was_interrupted(tmp_path):
    drones, s = sample_fleet(2), settings()
    whole = apg.train(s, drones, seed=3)
    class Stop(Exception): pass
    def stop(update, numbers):
        if update == 5: raise Stop
    with pytest.raises(Stop): apg.train(s, drones, seed=3, log=stop, checkpoints=Checkpoints(tmp_path))
    resumed = apg.train(s, drones, seed=3, checkpoints=Checkpoints(tmp_path))
    for x, y in zip(whole.state_dict().values(), resumed.state_dict().values()): assert torch.equal(x, y)


def test_a_teacher_does_not_depend_on_its_neighbours():
    drones = sample_fleet(2)
    s = settings()
    run = apg.Run(s, drones, seed=0)
    w, (fresh, _) = run.folded(), run.starts()
    g = apg.gradients(w, apg.fly(w, run.moving, run.force, fresh, run.fleet, s), run.force, fresh, run.fleet, s)
    one = flight.select(run.fleet, [1])
    w1 = {k: v[1:] for k, v in w.items()}
    g1 = apg.gradients(w1, apg.fly(w1, run.moving[1:], run.force[1:], fresh[1:], one, s), run.force[1:], fresh[1:], one, s)
    for k in g: assert torch.allclose(g[k][1:], g1[k], rtol=1e-3, atol=1e-5 * g[k].abs().max().item()), k


@pytest.mark.slow
def test_compiled_equals_plain():
    drones, s = sample_fleet(2), settings(updates=3)
    plain, fused = (apg.train(load_config("default", apg=SMALL | dict(updates=3, engine=c)).apg, drones, seed=0) for c in ('plain', 'compiled'))
    for x, y in zip(plain.state_dict().values(), fused.state_dict().values()): assert torch.allclose(x, y, atol=1e-4)


@pytest.mark.slow
def test_a_teacher_learns_to_fly():
    from raptor_nb.pretrain import judged, rate
    drones = sample_fleet(4)
    s = load_config("default", apg=dict(updates=100, engine='compiled')).apg
    before, after = (rate(t, judged(drones), 16) for t in (apg.Run(s, drones).teachers(), apg.train(s, drones)))
    assert after["return"].mean() > before["return"].mean() + 300 and after["survival"].mean() > 0.9
