"A student trained by its own flights: both engines, their flights, their optimiser"
import ctypes

import pytest
import torch
from kernels import close

from raptor_nb.core.records import Checkpoints, load_state, save_state
from raptor_nb.drones import sample_fleet
from raptor_nb.learn import direct
from raptor_nb.learn.cost import cost_weights
from raptor_nb.learn.direct_native import NUMBERS, pack, padded, unpack
from raptor_nb.learn.soap import INITIAL, LAYERS, Soap
from raptor_nb.learn.student import sampling_probabilities, score
from raptor_nb.policy import RaptorPolicy
from raptor_nb.sim import native, physics
from raptor_nb.sim.physics import weight
from raptor_nb.settings import load_config

DRONES, VALIDATION = sample_fleet(4), sample_fleet(range(500_000, 500_002))
CALM = dict(max_observation_noise=0., velocity_jumps=0.)
needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
engines = pytest.mark.parametrize("engine", [
    "torch", pytest.param("native", marks=needs_native)])


TRAITS = "plain uneven offset curve load drag filter clip away".split()


def settings(engine="torch", flights=32, randomization=None, real=None, **changes):
    how = dict(num_updates=40, horizon=20, flights=flights, learning_rate=.01)
    return load_config("default", flight_randomization=randomization or {}, real_drones=real or {}, apg=dict(engine=engine),
                       training=dict(seed=5), environment=dict(episode_steps=100),
                       direct=how | changes)


def student_of(seed=0, hidden=16):
    torch.manual_seed(seed)
    return RaptorPolicy(hidden_dim=hidden)


def training(s, student=None, drones=DRONES):
    return direct.begin_training(s, s.direct, student or student_of(), drones)


def flights_of(run): # of either engine -> {name: (F, 1, ...)}
    if isinstance(run, direct.TorchTraining): return run.flights.state_dict()
    return run.flights()


def update(run, rate=.01): return dict(zip(NUMBERS, run.advance([rate])[0].tolist()))


def place(run, flight, **state): # position, velocity: values of a flight's state vector
    "Puts flights elsewhere"
    columns = dict(position=slice(0, 3), velocity=slice(7, 10))
    for name, value in state.items():
        at = columns[name]
        if isinstance(run, direct.TorchTraining): run.flights.state[flight, 0, at] = value
        else: run.pool[flight // 16, 2 + at.start:2 + at.stop, flight % 16] = value


def same(a, b): return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def weights_like(run, seed=0): # gradients of random numbers
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(p.shape, generator=g) for k, p in run.student().named_parameters()}


# ---- learning
@engines
def test_training_lowers_the_cost(engine):
    run = training(settings(engine, flights=64, reset_probability=1., horizon=50))
    costs = run.advance([.02] * 16)[:, 0].tolist()
    assert sum(costs[-4:]) / 4 < .92 * sum(costs[:2]) / 2


@engines
@pytest.mark.parametrize("learned", [True, False])
def test_the_initial_hidden_state_is_learned_where_it_is_asked_for(engine, learned):
    run = training(settings(engine, learn_initial_state=learned))
    before = {k: v.clone() for k, v in run.student().state_dict().items()}
    run.advance([.01] * 2)
    moved = {k for k, v in run.student().state_dict().items() if not torch.equal(v, before[k])}
    assert moved == before.keys() - (set() if learned else {INITIAL})


@engines
def test_it_resumes_where_it_was_interrupted(engine, tmp_path):
    whole, first = (training(settings(engine)) for _ in range(2))
    whole.advance([.01] * 6)
    for _ in range(3): update(first)
    path = save_state(tmp_path / "checkpoint.safetensors", first.state_dict())
    resumed = training(settings(engine), student_of(1))
    resumed.load_state_dict(load_state(path))
    resumed.advance([.01] * 3)
    assert resumed.updates == 6 and same(whole.student(), resumed.student())
    for k, v in flights_of(whole).items(): assert torch.equal(v, flights_of(resumed)[k]), k


# ---- gradients
def in_double(run):
    "The flights of a torch training in double precision"
    flights = run.flights
    limits = flights.fleet.limits
    flights.fleet = physics.batch_params(DRONES, dtype=torch.float64)._replace(limits=limits)
    for k in flights.KEPT:
        x = getattr(flights, k)
        if x.is_floating_point(): setattr(flights, k, x.double())
    return {k: v.detach().double() for k, v in direct.block_weights(run.policy, 2).items()}


def test_the_gradient_is_that_of_the_cost():
    "Against finite differences in double precision; flights begin, end and are late"
    s = settings(randomization=CALM | dict(delay_share=.6), horizon=10)
    run = training(s)
    run.gradients()
    w, g = in_double(run), torch.Generator().manual_seed(0)
    place(run, 3, position=0., velocity=2.01)
    place(run, 20, velocity=torch.tensor([3.499, 0., 0.]))
    kept = {k: v.clone() for k, v in run.flights.state_dict().items()}
    state, weights = run.generator.get_state(), direct.student_cost(s, s.direct)
    def costs(w):
        run.flights.load_state_dict({k: v.clone() for k, v in kept.items()})
        run.generator.set_state(state)
        return run.flights.fly(w, weights, run.engine.env_step)
    along = {k: torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in w.items()}
    moved = lambda t: costs({k: v + t * along[k] for k, v in w.items()})[0]
    slope = (moved(1e-6) - moved(-1e-6)) / 2e-6
    leaves = {k: v.clone().requires_grad_() for k, v in w.items()}
    paid, ended = costs(leaves)
    grads = torch.autograd.grad(paid.sum(), list(leaves.values()))
    found = sum((x * a).flatten(1).sum(1) for x, a in zip(grads, along.values()))
    assert ended > 0 and torch.allclose(found, slope, rtol=1e-4)


def certain(drones):
    "Drones whose flights all begin at rest at the target, with one speed of the rotors"
    def one(d):
        init = d.mdp.init.model_copy(update=dict(guidance=1., min_rpm=-.2, max_rpm=-.2))
        return d.model_copy(update=dict(mdp=d.mdp.model_copy(update=dict(init=init))))
    return [one(d) for d in drones]


def two_engines(s, student, drones):
    "Both with the same flights, some about to begin or to end; nothing random follows"
    ours = training(s, student, drones)
    ours.gradients()
    s = load_config(s, **{"direct.reset_probability": 0., "apg.engine": "torch",
                          "flight_randomization.max_force_std": 0.,
                          "flight_randomization.max_gust_std": 0.,
                          "flight_randomization.delay_share": 0.}
                    | {f"real_drones.{k}_share": 0. for k in TRAITS})
    theirs = training(s, student, drones)
    ours.settings, ours.how = s, s.direct
    ours.cumulative[:], theirs.flights.often = 1., torch.tensor([1.] + [0.] * 3)
    for flight in (2, 17): place(ours, flight, velocity=torch.nan) # begins, of drone 0
    for flight in (5, 30): place(ours, flight, velocity=torch.tensor([0., 3.49, 0.]))
    theirs.flights.load_state_dict(ours.flights())
    return ours, theirs


@needs_native
@pytest.mark.parametrize("hidden, horizon, changes", [
    pytest.param(16, 25, {}, id="usual"),
    pytest.param(16, 25, dict(learn_initial_state=False), id="fixed-start"),
    pytest.param(4, 25, {}, id="four"), pytest.param(20, 25, {}, id="padded"),
    pytest.param(64, 1, {}, id="one-step"),
    pytest.param(16, 25, dict(huber_delta=.2, precision_weight=.1, excess_weight=3.,
                              velocity_barrier=.5, max_velocity=4.), id="other-weights"),
    pytest.param(16, 25, dict(other_rate_share=1.), id="other-rates")])
def test_both_engines_find_the_same_gradients(hidden, horizon, changes):
    student = student_of(hidden=hidden)
    with torch.no_grad(): student.gru.initial_hidden_state.normal_(std=.3)
    late, real = CALM | dict(delay_share=.7), {f"{k}_share": .5 for k in TRAITS}
    s = settings("native", randomization=late, real=real, horizon=horizon, reset_probability=0.,
                 **changes)
    ours, theirs = two_engines(s, student, certain(DRONES))
    assert set(ours.flights()["delay"].flatten().tolist()) == {0., 1., 2.}
    (fast, costs, ends), (slow, wanted, ended) = ours.gradients(), theirs.gradients()
    close(costs, wanted, 1e-4)
    assert ends == pytest.approx(ended) and (ended > 0 or horizon == 1)
    for k, v in slow.items(): close(fast[k], v, 5e-3)
    moved, wanted = ours.flights(), theirs.flights.state_dict()
    assert torch.equal(moved["rows"], wanted["rows"])
    for k in ("state", "hidden", "past", "steady", "gust", "age", "traits", "seen"): close(moved[k], wanted[k], 5e-3)


# ---- an update
def test_gradients_are_clipped_block_by_block():
    a = torch.tensor([[3., 4.], [.3, .4], [0., 0.]])
    b = torch.tensor([[[12.]], [[0.]], [[0.]]])
    mean, norm = direct.mean_gradient(dict(a=a, b=b), 6.5)
    assert norm.tolist() == pytest.approx([13, .5, 0])
    assert mean["a"].tolist() == pytest.approx([(1.5 + .3) / 3, (2 + .4) / 3], rel=1e-5)
    assert mean["b"].tolist() == [pytest.approx([2.], rel=1e-5)]
    assert a[0].tolist() == [3, 4], "what was given stays as it is"
    shorter, _ = direct.mean_gradient(dict(a=a, b=b), 6.5, .1)
    total = sum(x.square().sum() for x in shorter.values()).sqrt().item()
    assert total == pytest.approx(.1, rel=1e-4)


@needs_native
def test_the_native_engine_clips_alike():
    run = training(settings("native", max_block_norm=.02))
    update(run)
    lengths = run.block_gradients.norm(dim=1)
    assert (run.norms > .02).all() and lengths.tolist() == pytest.approx([.02] * 2, rel=1e-3)


@pytest.mark.parametrize("tumbling, share", [
    pytest.param(1e6, 3., id="huge"), pytest.param(1e30, 0., id="overflow"),
    pytest.param(float("inf"), 0., id="infinite"), pytest.param(float("nan"), 0., id="nan")])
def test_one_tumbling_block_cannot_drown_the_others(tumbling, share):
    grads = dict(a=torch.tensor([[1., 0.]] * 9 + [[0., tumbling]]))
    mean, _ = direct.mean_gradient(grads, 3.)
    assert mean["a"].tolist() == pytest.approx([.9, share / 10], rel=1e-5)


@engines
def test_a_flight_that_overflows_costs_its_block_one_gradient(engine):
    run = training(settings(engine, reset_probability=0.))
    update(run)
    place(run, 18, velocity=1e38)
    got, after = update(run), update(run)
    assert (got["lost_gradients"], after["lost_gradients"]) == (1, 0) and got["cost"] > 0
    assert all(torch.isfinite(p).all() for p in run.student().parameters())
    assert all(torch.isfinite(x).all() for x in flights_of(run).values())


def test_the_learning_rate_falls_to_zero_in_a_line():
    how = settings(num_updates=7, learning_rate=.07, log_interval=3, validation_interval=4).direct
    ahead = [direct.next_rates(how, updates) for updates in (0, 3, 4, 6)]
    assert [len(x) for x in ahead] == [3, 1, 2, 1], "up to the next line of the log"
    assert sum(ahead, []) == pytest.approx([.07, .06, .05, .04, .03, .02, .01])


def test_lines_of_the_log_are_means():
    numbers = torch.tensor([[2., .01, 1., 0.], [4., .03, torch.nan, 2.]])
    wanted = dict(cost=3., ended=2., gradient_norm=1., lost_gradients=2)
    assert direct.told(numbers) == pytest.approx(wanted)


# ---- SOAP
def follow(run, steps):
    "Random gradients, the same ones for both engines"
    for i in range(steps):
        grads = weights_like(run, i)
        if isinstance(run, direct.TorchTraining): run.optimiser.step(grads, .01)
        else:
            run.block_gradients[:] = pack(grads, run.policy.hidden_dim)
            step = run._step()
            step.how.learning_rate = .01
            run.library.direct_step(ctypes.byref(step))
            run.updates += 1
    return run.student()


def bases(run): # [(n, n)]
    if isinstance(run, direct.TorchTraining):
        states = [run.optimiser.state[w] for w, _ in LAYERS]
        return [s[k] for s in states for k in ("from_left", "from_right")]
    out, at, H = [], 0, padded(run.policy.hidden_dim)
    for n, m in ((23, H), (H + 1, 3 * H), (H + 1, 3 * H), (H + 1, 4)):
        at += 2 * n * m + n * n + m * m
        out += [run.optimiser[at:at + n * n].view(n, n)]
        out += [run.optimiser[at + n * n:at + n * n + m * m].view(m, m)]
        at += n * n + m * m
    return out


@needs_native
@pytest.mark.parametrize("hidden", [16, 20])
def test_both_engines_step_alike(hidden):
    far = dict(max_grad_norm=1e9)
    theirs, ours = (training(settings(e, **far), student_of(hidden=hidden))
                    for e in ("torch", "native"))
    for x, y in zip(*(follow(r, 30).state_dict().values() for r in (theirs, ours))):
        close(y, x, 5e-3)


@engines
def test_bases_stay_orthonormal(engine):
    run = training(settings(engine))
    follow(run, 30)
    for q in bases(run):
        assert torch.allclose(q.T @ q, torch.eye(len(q)), atol=1e-5)
        assert not torch.allclose(q, torch.eye(len(q)), atol=.1), "it has turned"


@engines
def test_it_is_adam_until_the_first_rotation(engine):
    run, wanted = training(settings(engine, rotation_interval=9, max_grad_norm=1e9)), student_of()
    wanted.requires_grad_(True)
    adam = torch.optim.Adam(wanted.parameters(), .01, betas=(.9, .99))
    for i in range(8):
        grads = weights_like(run, i)
        for k, p in wanted.named_parameters(): p.grad = grads[k]
        adam.step()
    for x, y in zip(wanted.state_dict().values(), follow(run, 8).state_dict().values()):
        assert torch.allclose(x, y, atol=1e-5)


# ---- flights
def quantiles(x): return torch.quantile(x.double(), torch.linspace(.05, .95, 7).double(), dim=0)


@needs_native
def test_both_engines_draw_from_the_same_distributions():
    "Many flights that begin at every segment, after their first step"
    late = dict(delay_share=.3, max_force_std=.3, max_gust_std=.2, tilt_share=.5,
                max_observation_noise=.02)
    real = {f"{k}_share": .6 for k in TRAITS} | dict(plain_share=.2)
    s = dict(flights=16384, randomization=late, real=real, horizon=1, reset_probability=1.)
    drawn = []
    for engine in ("native", "torch"):
        run = training(settings(engine, **s))
        for _ in range(2): run.gradients()
        drawn.append(flights_of(run))
    ours, theirs = ({k: v.flatten(0, 1) for k, v in d.items()} for d in drawn)
    for name in ("state", "steady", "gust", "phase", "frequency", "sigma", "seen"):
        a, b = quantiles(ours[name]), quantiles(theirs[name])
        spread = (b[-1] - b[0]).clamp(min=1e-6)
        assert ((a - b).abs() / spread).max() < .05, name
    a, b = (d["traits"].double() for d in (ours, theirs))
    assert (abs(a.mean(0) - b.mean(0)) < .05 * a.std(0)).all()
    assert torch.allclose(a.std(0), b.std(0), rtol=.06)
    shares = [(ours["delay"] == k).float().mean().item() for k in (0, 1, 2)]
    assert shares == pytest.approx([.7, .15, .15], abs=.01)
    often = sampling_probabilities(DRONES, settings().direct.hard_drone_share)
    for x in (ours, theirs):
        counts = x["rows"].bincount(minlength=4) / len(x["rows"])
        assert counts.tolist() == pytest.approx(often.tolist(), abs=.015)
        assert x["age"].unique().tolist() == pytest.approx([.01])


@engines
def test_flights_begin_as_often_as_was_said(engine):
    run = training(settings(engine, flights=2048, horizon=1, reset_probability=.3))
    run.gradients()
    run.gradients()
    age = flights_of(run)["age"]
    assert (age < .015).float().mean().item() == pytest.approx(.3, abs=.04)
    assert age.unique().tolist() == pytest.approx([.01, .02])


@engines
def test_a_flight_that_ends_begins_again_at_once(engine):
    student = student_of()
    with torch.no_grad(): student.gru.initial_hidden_state.fill_(.7)
    s = settings(engine, horizon=1, randomization=CALM, reset_probability=0.)
    run = training(s, student, certain(DRONES))
    run.gradients()
    place(run, 7, velocity=9.)
    run.gradients()
    flights = flights_of(run)
    assert flights["state"][7, 0, :3].tolist() == [0, 0, 0] == flights["state"][7, 0, 7:10].tolist()
    assert flights["hidden"][7, 0].tolist() == pytest.approx([.7] * 16)
    assert torch.equal(flights["past"][7, 0, :18], flights["past"][7, 0, 18:])
    assert (flights["hidden"][8, 0] - .7).abs().max() > 1e-3


def clock(): # RaptorPolicy
    "Its hidden state tells how long it has flown; it asks for the middle of the throttle"
    student = student_of()
    with torch.no_grad():
        for p in student.parameters(): p.zero_()
        student.gru.initial_hidden_state.fill_(1.)
        student.gru.gru.bias_ih_l0[16:32] = 3.
    return student


@engines
def test_a_jump_moves_the_drone_and_nothing_else(engine):
    s = settings(engine, randomization=dict(velocity_jumps=0.), reset_probability=0., horizon=15)
    run = training(s, clock())
    run.gradients()
    before = {k: v.clone() for k, v in flights_of(run).items()}
    always = load_config(s, **{"flight_randomization.velocity_jumps": 200., "direct.horizon": 1})
    run.settings, run.how, run.jumps = always, always.direct, 1.
    if engine == "torch": run.flights.settings, run.flights.how = always, always.direct
    run.gradients()
    after, same = flights_of(run), lambda k: torch.equal(after[k], before[k])
    moved = (after["state"][..., :3] - before["state"][..., :3]).norm(dim=-1)
    assert (moved > .05).float().mean() > .8
    assert all(map(same, ("steady", "gust", "phase", "frequency", "sigma", "delay", "rows")))
    assert torch.allclose(after["age"], before["age"] + .01)
    flown = (before["hidden"][..., 0] < .6) & (after["hidden"][..., 0] < .99)
    assert flown.float().mean() > .8, "the hidden state goes on"
    gap = (after["state"][..., 13:17] - before["state"][..., 13:17]).abs()
    assert gap[flown].max() < .05, "the rotors turn as they did"


def test_forces_continue_from_segment_to_segment():
    gusts = dict(max_force_std=.2, max_gust_std=.2)
    run = training(settings(randomization=gusts, reset_probability=0.))
    params, _, begins = run.flights.begin_segment()
    end = run.flights.force_after(.2, params)
    assert begins.all() and not torch.allclose(run.flights.force_after(0., params), end, rtol=.01)
    run.gradients()
    params, _, begins = run.flights.begin_segment()
    assert not begins.any() and torch.equal(run.flights.age, torch.full((32, 1), .2))
    assert torch.allclose(run.flights.force_after(0., params), end, rtol=1e-4, atol=1e-6)


def test_a_steady_force_is_a_share_of_the_weight():
    run = training(settings(randomization=dict(max_force_std=.2, max_gust_std=0.)))
    params, _, _ = run.flights.begin_segment()
    for seconds in (0., .7):
        share = run.flights.force_after(seconds, params) / weight(params)[..., None]
        assert torch.allclose(share, run.flights.steady, atol=1e-6)


def test_what_a_student_pays_and_where_flights_end():
    s = settings(huber_delta=.1, precision_weight=.2, velocity_barrier=3., excess_weight=.5,
                 max_velocity=5.)
    weights, of_teachers = direct.student_cost(s, s.direct), cost_weights(s.apg)
    assert weights[:2] == (.1, .2) and weights.velocity_barrier == 3. and weights.excess == .5
    assert of_teachers.excess == 0. and weights.barrier == of_teachers.barrier
    limits, fleet = physics.batch_params(DRONES).limits, direct.fleet_params(DRONES, s.direct)
    assert fleet.limits[1] == 5. and fleet.limits[2] == limits[2]


def test_some_drones_are_flown_at_other_rates():
    def steps(share):
        how = settings(other_rate_share=share).direct
        return direct.fleet_params(DRONES * 100, how).dt
    assert steps(0.) == .01
    some = steps(.3)
    other = some != .01
    assert other.float().mean().item() == pytest.approx(.3, abs=.06)
    rates = 1 / steps(1.)
    assert 80 < rates.min() < 82 and 123 < rates.max() < 125
    assert rates.median().item() == pytest.approx(100, abs=3)
    assert torch.equal(some[other], steps(1.)[other]), "drawn alike at every call"


# ---- parameters of C++
@pytest.mark.parametrize("hidden", [4, 16, 20, 64])
def test_packing_keeps_every_parameter(hidden):
    own = dict(student_of(hidden=hidden).named_parameters())
    row = pack(own, hidden)
    assert row.count_nonzero() <= sum(p.numel() for p in own.values()), "the rest is zero"
    for k, v in unpack(row, hidden).items(): assert torch.equal(v, own[k]), k


@needs_native
def test_units_that_pad_stay_at_zero():
    run = training(settings("native"), student_of(hidden=20))
    run.advance([.01] * 7)
    trained = run.student()
    assert torch.equal(pack(dict(trained.named_parameters()), 20), run.parameters)
    assert not same(trained, student_of(hidden=20))


# ---- what cannot be trained
@pytest.mark.parametrize("change, hidden, drones, kind, sentence", [
    pytest.param({"direct.flights": 24}, 16, DRONES, ValueError,
                 "flights is 24; it must be a multiple of 16", id="flights"),
    pytest.param({"apg.engine": "native"}, 80, DRONES, native.NativeError,
                 "remembers 80 .* up to 64, and 4; choose apg.engine: torch", id="hidden",
                 marks=needs_native),
    pytest.param({}, 16, [], ValueError, "a fleet needs at least one drone", id="no-drone")])
def test_bad_input(change, hidden, drones, kind, sentence):
    s = load_config(settings(), **change)
    with pytest.raises(kind, match=sentence): training(s, student_of(hidden=hidden), drones)


@needs_native
@pytest.mark.parametrize("engine, kind, sentence", [
    ("native", native.NativeError, "of the torch engine: choose that, or begin in another folder"),
    ("torch", ValueError, "of the native one: choose that, or begin in another folder")])
def test_a_checkpoint_of_the_other_engine_is_refused(engine, kind, sentence):
    other = training(settings({"native": "torch", "torch": "native"}[engine]))
    with pytest.raises(kind, match=sentence):
        training(settings(engine)).load_state_dict(other.state_dict())


# ---- a training as a whole
def short(engine="torch", **changes):
    often = dict(num_updates=8, validation_interval=4, log_interval=1)
    s = settings(engine, flights=16, **often, **changes)
    return load_config(s, **{"environment.episode_steps": 40})


def train(s, student=None, **how):
    return direct.train(s, s.direct, student or student_of(1), DRONES[:3], VALIDATION, **how)


@engines
def test_a_training_resumes_where_it_was_stopped(engine, tmp_path):
    whole, seen = train(short(engine)), []
    class Stop(Exception): pass
    def stop(update, numbers):
        if update >= 6: raise Stop
    with pytest.raises(Stop): train(short(engine), log=stop, checkpoints=Checkpoints(tmp_path))
    log = lambda update, numbers: seen.append(update)
    resumed = train(short(engine), log=log, checkpoints=Checkpoints(tmp_path))
    assert seen == [5, 6, 7, 8] and same(whole, resumed)


def test_a_training_keeps_the_best():
    rows, given, s = [], student_of(1), short()
    out = train(s, given, log=lambda u, n: rows.append(n))
    judged = [n["validation_return"] for n in rows if "validation_return" in n]
    params = physics.batch_params(VALIDATION)
    first, last = (score(x, params, s)["return"] for x in (given, out))
    assert len(judged) == 2 and last == pytest.approx(max(first, *judged), rel=1e-5)
    assert same(given, student_of(1)), "the given student stays as it is"


@pytest.mark.parametrize("changes", [
    pytest.param(dict(learning_rate=10.), id="spoiled"),
    pytest.param(dict(num_updates=0), id="no-updates")])
def test_a_student_that_training_does_not_improve_is_kept(changes):
    published = RaptorPolicy.published()
    s = load_config(short("auto"), direct=changes)
    assert same(train(s, published), published)
