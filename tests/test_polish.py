"The student's own flights, improved by their gradient"
import pytest
import torch

from raptor_nb.core.config import load_config
from raptor_nb.core.records import load_state, save_state
from raptor_nb.drones import sample_fleet
from raptor_nb.learn import apg, flight, native, polish
from raptor_nb.policy import RaptorPolicy

DRONES = sample_fleet(4)
SMALL = dict(polish=dict(updates=40, drones=2, segment=20), sequence_length=100)
engines = pytest.mark.parametrize("engine", ["plain", pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no C++ compiler"))])


def settings(online=None, **changes): return load_config("default", distillation=SMALL | dict(online=online or {}, polish=SMALL["polish"] | changes), training=dict(seed=5))
def engine_of(name): return native if name == "native" else apg.plain


def student_of(seed=0):
    torch.manual_seed(seed)
    return RaptorPolicy()


def run_of(s=None, seed=0): return polish.Polish(s or settings(), student_of(seed), DRONES, torch.ones(4) / 4)


def flights_of(s=None, seed=0): return polish.Flights(s or settings(), DRONES, generator=torch.Generator().manual_seed(seed))


def renewed(flights, rows=(0, 1, 2, 3)): return polish.renew(flights, list(rows), flight.select(flights.fleet, list(rows)))


@engines
def test_polishing_lowers_the_cost(engine):
    s = settings(reset_probability=1., learning_rate=.02, final_learning_rate=.02, segment=30)
    judged = lambda student: polish.segment(student, flights_of(s, seed=9), [0, 1, 2, 3], engine_of(engine))[1].mean().item()
    run = run_of(s)
    before = judged(run.student)
    for _ in range(10): polish.improve(run, engine_of(engine))
    assert judged(run.student) < .88 * before


@engines
def test_polishing_goes_on_where_it_was_interrupted(engine, tmp_path):
    whole, first = run_of(), run_of()
    for _ in range(6): polish.improve(whole, engine_of(engine))
    for _ in range(3): polish.improve(first, engine_of(engine))
    path = save_state(tmp_path / "checkpoint.safetensors", first.state_dict())
    resumed = run_of(seed=1)
    resumed.load_state_dict(load_state(path))
    got, wanted = (polish.improve(r, engine_of(engine)) for r in (resumed, first))
    assert got == wanted and resumed.update == 4
    for _ in range(2): polish.improve(resumed, engine_of(engine))
    for x, y in zip(whole.student.state_dict().values(), resumed.student.state_dict().values()): assert torch.equal(x, y)
    for k, v in whole.flights.state_dict().items(): assert torch.equal(v, resumed.flights.state_dict()[k]), k


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_both_engines_improve_alike():
    calm, students = settings(dict(observation_noise=0.)), []
    for engine in (native, apg.plain):
        run = run_of(calm)
        for _ in range(3): got = polish.improve(run, engine)
        students.append((run, got))
    (a, one), (b, other) = students
    assert one == pytest.approx(other, rel=1e-2)
    for x, y in zip(a.student.state_dict().values(), b.student.state_dict().values()): assert torch.allclose(x, y, atol=1e-3)


def test_the_gradient_is_that_of_the_cost():
    "Against finite differences in double precision: memory, delay, wind and an ending flight included"
    fleet, s = flight.fleet_of(DRONES[:2], dtype=torch.float64), settings().apg
    g = torch.Generator().manual_seed(0)
    states = apg.bundle(flight.sample_state(fleet, 8, g))
    moving, fresh = states.split(4, 1)
    moving = moving.clone(); moving[0, 0, 7] = 1.999; moving[0, 0, 1:3] = 0
    draw = lambda *k: torch.randn(2, 4, *k, generator=g, dtype=torch.float64)
    wind = .1 * 9.81 * fleet.mass[..., None, None] * torch.randn(2, 3, 4, 3, generator=g, dtype=torch.float64)
    student = student_of().double()
    rest = .3 * draw(16), .2 * draw(36), fresh, wind, torch.zeros(2, 4, dtype=torch.float64), torch.tensor([[0., 1, 2, 1], [2, 1, 0, 2]]), torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0]]).bool(), 0, s, 10, 1.
    _, grads, costs, _ = polish._by_autograd(student, fleet, moving, *rest)
    own = {n: p for n, p in student.named_parameters() if p.requires_grad}
    direction = {n: torch.randn(p.shape, generator=g, dtype=torch.float64) for n, p in own.items()}
    def cost(t):
        with torch.no_grad():
            for n, p in own.items(): p += t * direction[n]
        out = polish._by_autograd(student, fleet, moving, *rest)[2]
        with torch.no_grad():
            for n, p in own.items(): p -= t * direction[n]
        return out
    slope = (cost(1e-6) - cost(-1e-6)) / 2e-6
    for d in range(2): assert sum((grads[n][d] * direction[n]).sum().item() for n in own) == pytest.approx(slope[d].item(), rel=1e-4)


# ---- gradients
def test_gradients_are_clipped_block_by_block():
    grads = dict(a=torch.tensor([[3., 4.], [.3, .4], [0., 0.]]), b=torch.tensor([[[12.]], [[0.]], [[0.]]]))
    mean, norm = polish.mean_gradient(grads, 6.5)
    assert norm.tolist() == pytest.approx([13, .5, 0])
    assert mean["a"].tolist() == pytest.approx([(1.5 + .3) / 3, (2 + .4) / 3], rel=1e-5) and mean["b"].tolist() == [pytest.approx([2.], rel=1e-5)]
    assert grads["a"][0].tolist() == [3, 4], "what was given stays as it is"


@pytest.mark.parametrize("tumbling, pull", [(1e6, 3.), (1e30, 0.), (float("inf"), 0.), (float("nan"), 0.)], ids=["huge", "overflow", "infinite", "nan"])
def test_one_tumbling_block_cannot_drown_the_others(tumbling, pull):
    grads = dict(a=torch.tensor([[1., 0.]] * 9 + [[0., tumbling]]))
    mean, _ = polish.mean_gradient(grads, 3.)
    assert mean["a"].tolist() == pytest.approx([.9, pull / 10], rel=1e-5)


def test_an_update_survives_a_lost_flight():
    run = run_of(settings(reset_probability=0.))
    renewed(run.flights)
    run.flights.moving[:, 2] = torch.nan
    got = polish.improve(run, apg.plain)
    assert all(torch.isfinite(p).all() for p in run.student.parameters()) and got["cost"] > 0
    assert sorted(torch.isfinite(run.flights.moving).all(-1).sum(1).tolist()) == [15, 15, 16, 16], "the two drones that flew have got over it"


# ---- conditions
def test_every_drone_begins_once():
    flights = flights_of(settings(dict(pushes=0.), reset_probability=0.))
    assert renewed(flights, [0, 2])[1].all() and flights.begun.tolist() == [True, False, True, False]
    before = flights.moving.clone()
    _, anew = renewed(flights)
    assert anew.all(1).tolist() == [False, True, False, True] and not anew[0].any()
    assert torch.equal(flights.moving[[0, 2]], before[[0, 2]])


def test_flights_begin_anew_as_often_as_was_said():
    flights = flights_of(settings(dict(environments=1000), reset_probability=.3))
    renewed(flights)
    assert renewed(flights)[1].float().mean().item() == pytest.approx(.3, abs=.03)


def test_conditions_change_with_the_flight():
    flights = flights_of(settings(dict(environments=64), reset_probability=.5))
    renewed(flights)
    polish.winds(flights, [0, 1, 2, 3], flights.fleet)
    before = {k: v.clone() for k, v in flights.state_dict().items()}
    _, anew = renewed(flights)
    for name in ("sigma", "steady", "gust", "phase", "frequency"):
        changed = (flights.state_dict()[name] != before[name]).flatten(2).all(-1) if before[name].ndim > 2 else flights.state_dict()[name] != before[name]
        assert torch.equal(changed, anew), name
    assert torch.equal(flights.age == 0, anew) and flights.age[~anew].unique().tolist() == pytest.approx([.2])


def test_a_push_moves_the_drone_and_nothing_else():
    s = settings(dict(pushes=5., environments=64), reset_probability=0.)  # 5 * 20 / 100: at every segment
    flights = flights_of(s)
    renewed(flights)
    flights.moving = torch.randn(4, 64, 21); flights.memory = torch.randn(4, 64, 16)
    before = {k: v.clone() for k, v in flights.state_dict().items()}
    _, anew = renewed(flights)
    assert not anew.any() and (flights.moving[..., :3] != before["moving"][..., :3]).any(-1).float().mean() > .8
    assert torch.equal(flights.moving[..., 13:], before["moving"][..., 13:])
    for name in ("memory", "past", "steady", "sigma", "delay", "age"): assert torch.equal(flights.state_dict()[name], before[name]), name


def test_wind_goes_on_from_segment_to_segment():
    flights = flights_of(settings(dict(force=.2, gust=.2)))
    renewed(flights)
    first, second = (polish.winds(flights, [0, 1, 2, 3], flights.fleet) for _ in range(2))
    assert first.shape == (4, 14, 16, 3) and torch.allclose(first[:, -1], second[:, 0], rtol=1e-3, atol=1e-4) and not torch.allclose(first[:, 0], second[:, 0], atol=1e-3)
    steady = flights_of(settings(dict(force=.2, gust=0.)))
    renewed(steady)
    wind = polish.winds(steady, [3, 1], flight.select(steady.fleet, [3, 1])) / (9.81 * steady.fleet.mass[[3, 1]][..., None, None])
    assert torch.allclose(wind, steady.steady[[3, 1]][:, None].expand_as(wind), atol=1e-6) and (steady.age[[3, 1]] > 0).all() and (steady.age[[0, 2]] == 0).all()


def test_only_the_drones_that_are_asked_for_fly():
    flights = flights_of()
    before = {k: v.clone() for k, v in flights.state_dict().items()}
    grads, costs, ended = polish.segment(student_of(), flights, [3, 1], apg.plain)
    assert costs.shape == (2,) and (costs > 0).all() and 0 <= ended <= 100
    for name, old in before.items():
        new = flights.state_dict()[name]
        assert torch.equal(new[[0, 2]], old[[0, 2]]), name
    assert (flights.moving[[1, 3]] != 0).any(-1).all() and flights.memory[[1, 3]].abs().sum() > 0


def test_what_is_drawn_is_drawn_by_chance():
    run = polish.Polish(settings(), student_of(), DRONES, torch.tensor([.5, 0., .5, 0.]))
    for _ in range(2): polish.improve(run, apg.plain)
    assert run.flights.begun.tolist() == [True, False, True, False]


def test_learning_rate_falls_to_its_end():
    s = settings(updates=4, learning_rate=1e-2, final_learning_rate=1e-4)
    run, rates = run_of(s), []
    for _ in range(4):
        polish.improve(run, apg.plain)
        rates.append(run.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([apg.cosine(u / 4, 1e-2, 1e-4) for u in range(4)]) and rates[0] == 1e-2 and all(a > b for a, b in zip(rates, rates[1:]))


def test_a_large_gradient_moves_no_further():
    run = run_of(settings(clip=1e-3))
    polish.improve(run, apg.plain)
    norm = sum(p.grad.square().sum() for p in run.student.parameters() if p.grad is not None).sqrt().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_flights_of_polishing_end_where_the_settings_say():
    fleet = flight.fleet_of(DRONES)
    flights = flights_of(settings(velocity_limit=5.))
    assert flights.fleet.limits[1] == 5. and flights.fleet.limits[2] == fleet.limits[2]
