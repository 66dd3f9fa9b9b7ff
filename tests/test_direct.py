"The student's own flights, improved by their gradient"
import pytest
import torch

from raptor_nb.drones import sample_fleet
from raptor_nb.learn import direct
from raptor_nb.learn.apg import cosine
from raptor_nb.learn.cost import cost_weights
from raptor_nb.learn.engines import NativeEngine, StudentFlights, TorchEngine
from raptor_nb.policy import RaptorPolicy
from raptor_nb.sim import native, physics
from raptor_nb.sim.physics import flatten_state, sample_state, weight
from raptor_nb.settings import load_config

DRONES, ALL = sample_fleet(4), [0, 1, 2, 3]
DIRECT, TORCH = dict(num_updates=40, drones=2, horizon=20), TorchEngine()
needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
engines = pytest.mark.parametrize("engine", [
    pytest.param(TORCH, id="torch"), pytest.param(NativeEngine(), id="native", marks=needs_native)])


def settings(flights=None, num_envs=16, **changes):
    return load_config("default", flight_randomization=flights or {}, training=dict(seed=5),
                       environment=dict(episode_steps=100),
                       direct=DIRECT | dict(num_envs=num_envs) | changes)


def student_of(seed=0):
    torch.manual_seed(seed)
    return RaptorPolicy()


def run_of(s=None, seed=0, often=(.25,) * 4):
    s = s or settings()
    return direct.DirectState(s, s.direct, student_of(seed), DRONES, torch.tensor(often))


def flights_of(s=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    s = s or settings()
    return direct.FlightPopulation(s, s.direct, DRONES, generator=generator)


def begin(flights, rows=ALL):
    return direct.begin_segment(flights, rows, physics.select(flights.params, rows))


def forces(flights, rows=ALL):
    return direct.segment_forces(flights, rows, physics.select(flights.params, rows))


def copied(flights): return {k: v.clone() for k, v in flights.state_dict().items()}


# ---- training
@engines
def test_training_lowers_the_cost(engine):
    s = settings(reset_probability=1., learning_rate=.02, final_learning_rate=.02, horizon=30)
    def cost_of(student):
        return direct.fly_segment(student, flights_of(s, seed=9), ALL, engine)[1].mean().item()
    run = run_of(s)
    before = cost_of(run.student)
    for _ in range(10): direct.update_directly(run, engine)
    assert cost_of(run.student) < .88 * before


@engines
def test_it_resumes_where_it_was_interrupted(engine, tmp_path):
    from raptor_nb.core.records import load_state, save_state
    whole, first = run_of(), run_of()
    for _ in range(6): direct.update_directly(whole, engine)
    for _ in range(3): direct.update_directly(first, engine)
    path = save_state(tmp_path / "checkpoint.safetensors", first.state_dict())
    resumed = run_of(seed=1)
    resumed.load_state_dict(load_state(path))
    got, wanted = (direct.update_directly(r, engine) for r in (resumed, first))
    assert got == wanted and resumed.updates == 4
    for _ in range(2): direct.update_directly(resumed, engine)
    for part in ("student", "flights"):
        a, b = (getattr(r, part).state_dict() for r in (whole, resumed))
        for k, v in a.items(): assert torch.equal(v, b[k]), k


@needs_native
def test_both_engines_improve_alike():
    calm, both = settings(dict(max_observation_noise=0.)), []
    for engine in (NativeEngine(), TORCH):
        run = run_of(calm)
        for _ in range(3): got = direct.update_directly(run, engine)
        both.append((run.student.state_dict().values(), got))
    (a, one), (b, other) = both
    assert one == pytest.approx(other, rel=1e-2)
    for x, y in zip(a, b): assert torch.allclose(x, y, atol=1e-3)


def flights_in_double(params, g):
    "Hidden state, delay, forces, and one flight that ends"
    draw = lambda *k: torch.randn(2, 4, *k, generator=g, dtype=torch.float64)
    state, reset_state = flatten_state(sample_state(params, 8, g)).split(4, 1)
    state = state.clone()
    state[0, 0, 7], state[0, 0, 1:3] = 1.999, 0
    drawn = torch.randn(2, 3, 4, 3, generator=g, dtype=torch.float64)
    force = .1 * weight(params)[..., None, None] * drawn
    delay = torch.tensor([[0., 1, 2, 1], [2, 1, 0, 2]])
    reset_mask = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0]]).bool()
    return StudentFlights(state, .3 * draw(16), .2 * draw(36), reset_state, force,
                          torch.zeros(2, 4, dtype=torch.float64), delay, reset_mask, 0)


def test_the_gradient_is_that_of_the_cost():
    "Against finite differences in double precision"
    params = physics.batch_params(DRONES[:2], dtype=torch.float64)
    g, weights = torch.Generator().manual_seed(0), cost_weights(settings().apg)._replace(excess=1.)
    student, flights = student_of().double(), flights_in_double(params, g)
    own = {n: p for n, p in student.named_parameters() if p.requires_grad}
    along = {n: torch.randn(p.shape, generator=g, dtype=torch.float64) for n, p in own.items()}
    def segment(): return TORCH.student_segment(student, params, flights, weights, 10)
    @torch.no_grad()
    def move(t):
        for n, p in own.items(): p += t * along[n]
    def costs(t):
        move(t)
        out = segment()[2]
        move(-t)
        return out
    grads, slope = segment()[1], (costs(1e-6) - costs(-1e-6)) / 2e-6
    for d in range(2):
        found = sum((grads[n][d] * along[n]).sum().item() for n in own)
        assert found == pytest.approx(slope[d].item(), rel=1e-4)


# ---- an update
def test_gradients_are_clipped_block_by_block():
    a = torch.tensor([[3., 4.], [.3, .4], [0., 0.]])
    b = torch.tensor([[[12.]], [[0.]], [[0.]]])
    mean, norm = direct.mean_gradient(dict(a=a, b=b), 6.5)
    assert norm.tolist() == pytest.approx([13, .5, 0])
    assert mean["a"].tolist() == pytest.approx([(1.5 + .3) / 3, (2 + .4) / 3], rel=1e-5)
    assert mean["b"].tolist() == [pytest.approx([2.], rel=1e-5)]
    assert a[0].tolist() == [3, 4], "what was given stays as it is"


@pytest.mark.parametrize("tumbling, share", [
    pytest.param(1e6, 3., id="huge"), pytest.param(1e30, 0., id="overflow"),
    pytest.param(float("inf"), 0., id="infinite"), pytest.param(float("nan"), 0., id="nan")])
def test_one_tumbling_block_cannot_drown_the_others(tumbling, share):
    grads = dict(a=torch.tensor([[1., 0.]] * 9 + [[0., tumbling]]))
    mean, _ = direct.mean_gradient(grads, 3.)
    assert mean["a"].tolist() == pytest.approx([.9, share / 10], rel=1e-5)


def test_an_update_survives_a_lost_flight():
    run = run_of(settings(reset_probability=0.))
    begin(run.flights)
    run.flights.state[:, 2] = torch.nan
    got = direct.update_directly(run, TORCH)
    assert all(torch.isfinite(p).all() for p in run.student.parameters()) and got["cost"] > 0
    finite = torch.isfinite(run.flights.state).all(-1).sum(1)
    assert sorted(finite.tolist()) == [15, 15, 16, 16], "the two drones that flew have got over it"


def test_drones_are_drawn_by_their_probability():
    run = run_of(often=(.5, 0., .5, 0.))
    for _ in range(2): direct.update_directly(run, TORCH)
    assert run.flights.begun.tolist() == [True, False, True, False]


def test_learning_rate_falls_to_its_end():
    run, rates = run_of(settings(num_updates=4, learning_rate=1e-2, final_learning_rate=1e-4)), []
    for _ in range(4):
        direct.update_directly(run, TORCH)
        rates.append(run.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([cosine(u / 4, 1e-2, 1e-4) for u in range(4)])
    assert rates[0] == 1e-2 and rates == sorted(rates, reverse=True)


def test_a_large_gradient_moves_no_further():
    run = run_of(settings(max_grad_norm=1e-3))
    direct.update_directly(run, TORCH)
    parts = [p.grad.square().sum() for p in run.student.parameters() if p.grad is not None]
    assert sum(parts).sqrt().item() == pytest.approx(1e-3, rel=1e-2)


# ---- flights
def test_every_drone_begins_once():
    flights = flights_of(settings(dict(velocity_jumps=0.), reset_probability=0.))
    assert begin(flights, [0, 2])[1].all()
    assert flights.begun.tolist() == [True, False, True, False]
    before = flights.state.clone()
    _, begins = begin(flights)
    assert begins.all(1).tolist() == [False, True, False, True] and not begins[0].any()
    assert torch.equal(flights.state[[0, 2]], before[[0, 2]])


def test_flights_begin_again_as_often_as_was_said():
    flights = flights_of(settings(num_envs=1000, reset_probability=.3))
    begin(flights)
    assert begin(flights)[1].float().mean().item() == pytest.approx(.3, abs=.03)


def test_disturbances_change_with_the_flight():
    flights = flights_of(settings(num_envs=64, reset_probability=.5))
    begin(flights)
    forces(flights)
    before = copied(flights)
    _, begins = begin(flights)
    for name in ("sigma", "steady", "gust", "phase", "frequency"):
        changed = flights.state_dict()[name] != before[name]
        if changed.ndim > 2: changed = changed.all(-1)
        assert torch.equal(changed, begins), name
    assert torch.equal(flights.age == 0, begins)
    assert flights.age[~begins].unique().tolist() == pytest.approx([.2])


def test_a_jump_moves_the_drone_and_nothing_else():
    often = dict(velocity_jumps=5.) # 5 * 20 / 100: at every segment
    flights = flights_of(settings(often, num_envs=64, reset_probability=0.))
    begin(flights)
    flights.state, flights.hidden = torch.randn(4, 64, 21), torch.randn(4, 64, 16)
    before = copied(flights)
    _, begins = begin(flights)
    moved = (flights.state[..., :3] != before["state"][..., :3]).any(-1)
    assert not begins.any() and moved.float().mean() > .8
    assert torch.equal(flights.state[..., 13:], before["state"][..., 13:])
    for name in ("hidden", "past", "steady", "sigma", "delay", "age"):
        assert torch.equal(flights.state_dict()[name], before[name]), name


def test_forces_continue_from_segment_to_segment():
    flights = flights_of(settings(dict(max_force_std=.2, max_gust_std=.2)))
    begin(flights)
    first, second = forces(flights), forces(flights)
    assert first.shape == (4, 14, 16, 3)
    assert torch.allclose(first[:, -1], second[:, 0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(first[:, 0], second[:, 0], atol=1e-3)


def test_a_steady_force_is_steady_and_only_who_flies_grows_older():
    flights, some = flights_of(settings(dict(max_force_std=.2, max_gust_std=0.))), [3, 1]
    begin(flights)
    share = forces(flights, some) / weight(flights.params)[some][..., None, None]
    assert torch.allclose(share, flights.steady[some][:, None].expand_as(share), atol=1e-6)
    assert (flights.age[some] > 0).all() and (flights.age[[0, 2]] == 0).all()


def test_only_the_drones_that_are_asked_for_fly():
    flights = flights_of()
    before = copied(flights)
    _, costs, ended = direct.fly_segment(student_of(), flights, [3, 1], TORCH)
    assert costs.shape == (2,) and (costs > 0).all() and 0 <= ended <= 100
    for name, old in before.items():
        assert torch.equal(flights.state_dict()[name][[0, 2]], old[[0, 2]]), name
    assert (flights.state[[1, 3]] != 0).any(-1).all()
    assert flights.hidden[[1, 3]].abs().sum() > 0


def test_flights_end_where_the_settings_say():
    limits = physics.batch_params(DRONES).limits
    flights = flights_of(settings(max_velocity=5.))
    assert flights.params.limits[1] == 5. and flights.params.limits[2] == limits[2]


def test_a_student_pays_for_commands_beyond_the_limits():
    s = settings(huber_delta=.1, precision_weight=.2, velocity_barrier=3., excess_weight=.5)
    weights, of_teachers = direct.student_cost(s, s.direct), cost_weights(s.apg)
    assert weights[:2] == (.1, .2) and weights.velocity_barrier == 3. and weights.excess == .5
    assert of_teachers.excess == 0. and weights.barrier == of_teachers.barrier


# ---- a training as a whole
@pytest.fixture(scope="module")
def short():
    trained = dict(num_updates=8, drones=2, horizon=20, log_interval=1, validation_interval=4)
    return load_config("default", direct=trained, environment=dict(episode_steps=40),
                       apg=dict(engine="torch"), training=dict(seed=5))


VALIDATION = sample_fleet(range(500_000, 500_002))


def same(a, b): return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def returns(student, settings):
    from raptor_nb.learn.student import score
    return score(student, physics.batch_params(VALIDATION), settings)["return"]


def test_a_training_resumes_where_it_was_interrupted(short, tmp_path):
    from raptor_nb.core.records import Checkpoints
    args = short, short.direct, student_of(1), DRONES[:3], VALIDATION
    whole = direct.train(*args)
    class Stop(Exception): pass
    def stop(update, numbers):
        if update >= 6: raise Stop
    with pytest.raises(Stop): direct.train(*args, log=stop, checkpoints=Checkpoints(tmp_path))
    seen, log = [], lambda update, numbers: seen.append(update)
    resumed = direct.train(*args, log=log, checkpoints=Checkpoints(tmp_path))
    assert seen == [5, 6, 7, 8] and same(whole, resumed)


def test_a_training_keeps_the_best(short):
    rows, given = [], student_of(1)
    out = direct.train(short, short.direct, given, DRONES[:3], VALIDATION, log=lambda u, n: rows.append(n))
    judged = [n["validation_return"] for n in rows if "validation_return" in n]
    best = max(returns(given, short), *judged)
    assert len(judged) == 2 and returns(out, short) == pytest.approx(best, rel=1e-5)
    assert same(given, student_of(1)), "the given student stays as it is"


def test_a_student_that_training_spoils_is_kept(short):
    rates = dict(learning_rate=10., final_learning_rate=10.)
    wild = load_config(short, direct=rates)
    published = RaptorPolicy.published()
    assert same(direct.train(wild, wild.direct, published, DRONES[:3], VALIDATION), published)


def test_without_updates_the_student_is_the_same(short):
    none, student = load_config(short, **{"direct.num_updates": 0}), student_of(2)
    assert same(direct.train(none, none.direct, student, DRONES[:3], VALIDATION), student)
