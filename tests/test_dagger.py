"Distillation by DAgger: flights to learn from, its loss, its training"
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from raptor_nb.core.parallel import single_threaded
from raptor_nb.core.records import Checkpoints
from raptor_nb.drones import sample_fleet, with_conditions
from raptor_nb.learn import apg, dagger, direct, engines
from raptor_nb.learn.student import score
from raptor_nb.policy import RaptorPolicy, Teachers
from raptor_nb.sim import native, physics
from raptor_nb.sim.physics import observe_privileged, weight
from raptor_nb.settings import load_config

CALM = dict(max_observation_noise=0., delay_share=0., max_force_std=0., max_gust_std=0.,
            velocity_jumps=0., tilt_share=0.)
SMALL = dict(
    sequence_length=40, fine_tuning=dict(num_updates=8, flights=16),
    dagger=dict(drones=2, num_envs=16, num_updates=12, log_interval=1, validation_interval=4))
APG = dict(horizon=20, num_updates=30, num_envs=16, hidden_dim=16, engine="torch")
DRONES, VALIDATION = sample_fleet(3), sample_fleet(range(500_000, 500_002))
PARAMS, ENGINE = physics.batch_params(DRONES), engines.TorchEngine()
needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler")


@pytest.fixture(scope="module")
def settings():
    return load_config("default", distillation=SMALL, environment=dict(episode_steps=40), apg=APG,
                       validation=dict(num_drones=2), training=dict(seed=5),
                       direct=dict(horizon=20))


@pytest.fixture(scope="module")
def teachers(settings): return apg.train(settings.apg, DRONES)


@pytest.fixture
def fly(settings, teachers):
    "Function that draws flights and flies them: (disturbances, rollout)"
    def flown(student=None, beta=0., params=PARAMS, seed=0, replace=None, labels=teachers, **how):
        generator = torch.Generator().manual_seed(seed)
        drawn = dagger.sample_flights(params, changed(settings, **how), generator, beta)
        if replace: drawn = drawn._replace(**replace(drawn))
        student = student or RaptorPolicy()
        return drawn, ENGINE.student_rollout(student, labels, params, drawn, 40)
    return flown


def changed(settings, **how):
    "How flights are disturbed, and how DAgger is done, by the names of both sections"
    flights = {k: how.pop(k) for k in list(how) if hasattr(settings.flight_randomization, k)}
    return load_config(settings, flight_randomization=flights, distillation=dict(dagger=how))


def student_of(seed=0):
    torch.manual_seed(seed)
    return RaptorPolicy()


def silent(obs_dim=22): # teachers whose parameters are all nothing
    out = Teachers(3, obs_dim, 16).requires_grad_(False)
    for p in out.parameters(): p.zero_()
    return out


def same(a, b): return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


# ---- who flies
def test_teachers_fly_their_flights(fly):
    _, out = fly(beta=1., **CALM)
    kept = ~out.reset[:, 1:]
    reported, flown = out.observation[:, 1:, 18:][kept], out.label[:, :-1][kept]
    assert torch.allclose(reported, flown, atol=1e-6), "the next observation reports the action"


def test_the_student_flies_the_others(fly):
    student = student_of()
    drawn, out = fly(student, beta=.5)
    with torch.no_grad(): action, _ = student(out.observation, None, out.reset)
    kept, taught = ~out.reset[:, 1:], drawn.by_teacher.flatten()[:, None, None]
    assert 0.2 < taught.float().mean() < 0.8
    flown = torch.where(taught, out.label, action.clamp(-2, 2))
    assert torch.allclose(out.observation[:, 1:, 18:][kept], flown[:, :-1][kept], atol=1e-5)


# ---- sensors
def test_noise_is_as_it_is_said(fly):
    at_target = physics.batch_params([with_conditions(d, guidance=1.) for d in DRONES])
    noisy = CALM | dict(max_observation_noise=0.5, num_envs=400)
    drawn, out = fly(params=at_target, **noisy)
    true = observe_privileged(drawn.start, drawn.force[:, 0], at_target, 22).reshape(-1, 22)
    first, sigma = out.observation[:, 0], drawn.sigma.view(-1, 1)
    noise = ((first - true) / sigma)[sigma.flatten() > .01]
    parts = (slice(0, 3), 1), (slice(3, 12), 1), (slice(12, 15), 2), (slice(15, 18), 5)
    for part, scale in parts: assert noise[:, part].std().item() == pytest.approx(scale, rel=0.06)
    assert torch.equal(first[:, 18:], true[:, 18:]), "the action is known"


def delayed(fly, steps):
    return fly(beta=1., **CALM, replace=lambda d: dict(delay=torch.full_like(d.delay, steps)))[1]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_sensors_are_late_and_the_action_is_not(fly, steps):
    late, now = delayed(fly, steps), delayed(fly, 0)
    assert torch.equal(late.reset, now.reset)
    assert torch.equal(late.label, now.label), "teachers are never late"
    whole = ~now.reset[:, 1:].any(1)
    assert whole.any()
    seen, true = late.observation[whole], now.observation[whole]
    for k in range(steps + 1):
        assert torch.equal(seen[:, k, :18], true[:, 0, :18]), "nothing older than the flight"
    assert torch.equal(seen[:, steps:, :18], true[:, :40 - steps, :18])
    assert torch.equal(seen[..., 18:], true[..., 18:])


@pytest.mark.parametrize("steps", [1, 2])
def test_a_flight_that_begins_in_the_middle_is_seen_at_once(fly, steps):
    late, now = delayed(fly, steps), delayed(fly, 0)
    others = now.reset[:, 1:].any(1).nonzero().flatten()
    assert len(others)
    for i in others[:5]:
        k = now.reset[i, 1:].nonzero()[0].item() + 1
        assert torch.equal(late.observation[i, k, :18], now.observation[i, k, :18])


# ---- jumps
def test_a_jump_keeps_rotors_action_and_hidden_state(fly):
    student = student_of()
    often = lambda p: lambda d: dict(jump=torch.full_like(d.jump, p))
    (_, alone), (drawn, out) = (fly(student, **CALM, replace=often(p)) for p in (0., 1.))
    reported = out.observation[:, 1, 18:]
    assert torch.equal(reported, alone.observation[:, 1, 18:]), "the action that was flown"
    for t in range(1, 9):
        state = drawn.reset_states[:, (t - 1) % dagger.RESET_STATES]
        seen = observe_privileged(state, drawn.force[:, 0], PARAMS, 22)[..., :18].reshape(-1, 18)
        assert torch.allclose(out.observation[:, t, :18], seen, atol=1e-6)
    assert not out.reset[:, 1].any(), "a jump is not a beginning"
    assert out.reset[:, 1:].float().mean() < .1
    with torch.no_grad(): action, _ = student(out.observation, None, out.reset)
    kept, flown = ~out.reset[:, 1:], action[:, :-1].clamp(-2, 2)
    assert torch.allclose(out.observation[:, 1:, 18:][kept], flown[kept], atol=1e-5)


def test_rotors_turn_on_through_a_jump(fly):
    drawn, last = fly(num_envs=4)[0], dagger.RESET_STATES - 1
    after = torch.randn(3, 4, 21)
    ended, jumped = torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    jumped[0], ended[1] = True, True
    at = torch.full((3, 4), last)
    state, following = engines.continue_elsewhere(drawn, after, at, ended, jumped)
    other = drawn.reset_states[:, -1]
    assert torch.equal(state[0, :, :13], other[0, :, :13])
    assert torch.equal(state[0, :, 13:], after[0, :, 13:])
    assert torch.equal(state[1], other[1]) and torch.equal(state[2], after[2])
    assert following.tolist() == [[0] * 4, [0] * 4, [last] * 4], "the first comes after the last"


def test_jumps_are_as_many_as_was_said(fly):
    drawn, _ = fly(velocity_jumps=1.5, num_envs=2000)
    assert 40 * drawn.jump.mean().item() == pytest.approx(1.5, rel=.05)
    without = (drawn.jump == 0).float().mean().item()
    assert without == pytest.approx(.5, abs=.03), "half of the flights have none"


# ---- forces and starts
def test_forces_are_interpolated(fly):
    share = torch.linspace(0, .2, 5).view(1, 5, 1, 1) * torch.tensor([1., -1., .5])
    ramp = (share * weight(PARAMS)[..., None, None]).expand(3, 5, 16, 3)
    says = silent(29) # teachers that say what force they feel
    for axis in (0, 1):
        says.w1[:, 26 + axis, axis] = says.w2[:, axis, axis] = says.w3[:, axis, axis] = 1.
    _, out = fly(labels=says, **CALM, replace=lambda d: dict(force=ramp))
    felt = out.label[..., :2].atanh().atanh().atanh()
    for t in (0, 1, 5, 10, 39):
        assert torch.allclose(felt[:, t], torch.tensor([.2, -.2]) * t / 40, atol=1e-4)


def test_forces_of_a_flight_are_told_every_tenth_of_a_second(fly):
    drawn, _ = fly(num_envs=32)
    assert drawn.force.shape == (3, dagger.FORCE_TIMES, 32, 3)
    assert drawn.reset_states.shape == (3, dagger.RESET_STATES, 32, 21)


def test_some_starts_are_tilted_further(fly):
    def angle(share):
        drawn, _ = fly(tilt_share=share, max_tilt=1.8, num_envs=2000)
        return 2 * drawn.start[..., 3].clamp(-1, 1).acos()
    published, wide = angle(0.), angle(.5)
    assert published.max().item() == pytest.approx(1., abs=.01)
    assert wide.max().item() == pytest.approx(1.8, abs=.02)
    tilted = (published > 0).float().mean().item()
    wanted = .5 * (1 - 1 / 1.8) * tilted
    assert (wide > 1).float().mean().item() == pytest.approx(wanted, abs=.02)


def test_resets_mark_flights(fly, teachers):
    drawn, out = fly()
    assert out.reset[:, 0].all() and out.reset[:, 1:].any()
    assert torch.isfinite(out.observation).all()
    loss, grads, ended = dagger.imitate(RaptorPolicy(), teachers, PARAMS, drawn, 40, ENGINE)
    assert 0 < ended < 100 and loss > 0
    assert all(torch.isfinite(g).all() for g in grads.values())


# ---- teachers
def test_teachers_without_their_offset_rest_at_the_target(settings):
    span = PARAMS.rotor_max - PARAMS.rotor_min
    speed = PARAMS.rotor_min + PARAMS.hover_throttle * span
    at_rest = PARAMS._replace(init=(1., *PARAMS.init[1:5], speed, speed))
    hovers, place = silent(), torch.tensor([.01, .02, .03]) # drawn to a place above the target
    hovers.w1[:, 2, 0], hovers.w1[:, 14, 0], hovers.b1[:, 0, 0] = -.1, -.1, .1 * place
    hovers.w2[:, 0, 0], hovers.w3[:, 0] = 1., 15.
    action = (2 * PARAMS.hover_throttle - 1).atanh()
    hovers.b3.copy_(action[..., None].expand(3, 1, 4))
    long = load_config(settings, environment=dict(episode_steps=500))
    offset = dagger.steady_state_offset(hovers, at_rest, long)
    assert offset[:, 2].tolist() == pytest.approx(place.tolist(), abs=2e-3)
    assert offset[:, :2].abs().max() < 1e-4
    without = dagger.remove_offset(hovers, offset)
    assert dagger.steady_state_offset(without, at_rest, long).norm(dim=1).max() < 2e-3
    assert torch.equal(hovers.b1[:, 0, 0], .1 * place), "the given teachers stay as they are"


def test_flights_that_end_have_no_offset(settings):
    crash = Teachers(3, 29, 16).requires_grad_(False)
    crash.b3.fill_(-20.)
    long = load_config(settings, environment=dict(episode_steps=500))
    assert dagger.steady_state_offset(crash, PARAMS, long).tolist() == [[0.] * 3] * 3


def test_the_offset_is_removed_where_the_settings_say_so(settings, teachers, monkeypatch):
    offsets = torch.tensor([[.01, 0., 0.], [0., .02, 0.], [0., 0., -.03]])
    monkeypatch.setattr(dagger, "steady_state_offset", lambda *args: offsets)
    def of(removed):
        own = changed(settings, remove_offset=removed)
        run = dagger.DAggerState(own, teachers, DRONES, VALIDATION)
        return run.teachers.b1
    assert torch.equal(of(False), teachers.b1)
    moved = torch.stack([offsets[i, i] * teachers.w1[i, i] for i in range(3)])[:, None]
    assert torch.allclose(of(True), teachers.b1 + moved, atol=1e-6)


@pytest.mark.parametrize("make", [
    pytest.param(lambda t: dagger.match(t, DRONES[:2]), id="drone-missing"),
    pytest.param(lambda t: dagger.match(t.select([2]), DRONES[:1]), id="other-drone")])
def test_bad_input(teachers, make):
    with pytest.raises(dagger.DistillError, match="there is no drone 0002 for its teacher"):
        make(teachers)


# ---- training
def train(settings, teachers, log=None, checkpoints=None):
    return dagger.train(settings, teachers, DRONES, VALIDATION, log=log, checkpoints=checkpoints)


def test_training_lowers_the_loss_and_keeps_the_best(settings, teachers, fly):
    longer = dict(num_updates=80, validation_interval=8, beta_share=1., learning_rate=.02)
    longer = load_config(changed(settings, **longer), apg=dict(engine="auto"))
    rows = []
    student = train(longer, teachers, lambda update, numbers: rows.append(numbers))
    drawn, _ = fly(beta=1., seed=1)
    loss = lambda s: dagger.imitate(s, teachers, PARAMS, drawn, 40, ENGINE)[0]
    assert loss(student) < .4 * loss(student_of(settings.training.seed))
    judged = [n["validation_return"] for n in rows if "validation_return" in n]
    best = score(student, physics.batch_params(VALIDATION), longer)["return"]
    assert len(rows) == 80 and len(judged) == 10 and best == pytest.approx(max(judged), rel=1e-5)


@pytest.mark.parametrize("engine", ["torch", pytest.param("auto", marks=needs_native)])
def test_distillation_resumes_where_it_was_interrupted(settings, teachers, tmp_path, engine):
    settings = load_config(settings, apg=dict(engine=engine))
    whole = train(settings, teachers)
    class Stop(Exception): pass
    def stop(update, numbers):
        if update >= 7: raise Stop
    with pytest.raises(Stop): train(settings, teachers, stop, Checkpoints(tmp_path))
    seen, log = [], lambda update, numbers: seen.append(update)
    resumed = train(settings, teachers, log, Checkpoints(tmp_path))
    assert seen == list(range(5, 13)) and same(whole, resumed)


@needs_native
def test_students_trained_at_once_are_those_trained_alone(settings, teachers):
    settings = load_config(settings, apg=dict(engine="native"))
    def student(seed):
        own = load_config(settings, training=dict(seed=seed))
        made = train(own, teachers)
        return direct.train(own, direct.fine_tuning(own), made, DRONES + VALIDATION, VALIDATION)
    alone = [student(seed) for seed in (1, 2)]
    with single_threaded(1), ThreadPoolExecutor(2) as pool:
        together = list(pool.map(student, (1, 2)))
    assert all(map(same, alone, together)) and not same(*alone)


def test_lines_of_the_log_are_means(settings, teachers):
    every, third = [], []
    train(settings, teachers, lambda update, numbers: every.append(numbers["loss"]))
    log = lambda update, numbers: third.append((update, numbers["loss"]))
    train(changed(settings, log_interval=3), teachers, log)
    updates, losses = zip(*third)
    assert updates == (3, 4, 6, 8, 9, 12), "every third update and each validation"
    wanted = sum(every[:3]) / 3, every[3], sum(every[9:]) / 3
    assert (losses[0], losses[1], losses[-1]) == pytest.approx(wanted)


def test_teachers_fade_out(settings, teachers):
    shares = []
    log = lambda update, numbers: shares.append(numbers["beta"])
    train(changed(settings, beta_share=.5), teachers, log)
    assert shares == pytest.approx([max(0., 1 - u / 6) for u in range(12)])


@needs_native
@pytest.mark.parametrize("activation, obs_dim", [("tanh", 29), ("relu", 26)])
def test_the_native_engine_learns_the_same(settings, activation, obs_dim):
    "Without noise, whose random numbers differ; teachers of either kind"
    torch.manual_seed(0)
    teachers = Teachers(3, obs_dim, 16, activation=activation).requires_grad_(False)
    students, losses = [], []
    log = lambda update, numbers: losses.append(numbers["loss"])
    for engine in ("torch", "native"):
        calm = changed(settings, **CALM, num_updates=3, beta_share=0.)
        students.append(train(load_config(calm, apg=dict(engine=engine)), teachers, log))
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-3)
    for x, y in zip(*(s.state_dict().values() for s in students)):
        assert torch.allclose(x, y, atol=2e-4)


@pytest.mark.parametrize("n, twice", [(3, False), (4, True)])
def test_nobody_flies_twice_where_there_are_enough(n, twice):
    rows = dagger.sample_rows(torch.ones(3), n, torch.Generator().manual_seed(0))
    assert len(rows) == n and (len(set(rows)) < n) == twice


def test_an_update_whose_gradient_overflows_is_left_out(settings, teachers, monkeypatch):
    imitate, seen, rows = dagger.imitate, [], []
    def overflowing(*args):
        loss, grads, ended = imitate(*args)
        seen.append(args[0].gru.gru.weight_hh_l0.detach().clone())
        if len(seen) == 3: loss, grads = math.inf, {k: v * math.inf for k, v in grads.items()}
        return loss, grads, ended
    monkeypatch.setattr(dagger, "imitate", overflowing)
    student = train(settings, teachers, lambda update, numbers: rows.append(numbers["loss"]))
    moved = [not torch.equal(seen[i], seen[i + 1]) for i in (1, 2, 3)]
    assert moved == [True, False, True]
    finite = [math.isfinite(loss) for loss in rows]
    assert finite == [True] * 2 + [False] + [True] * 9 and math.isnan(rows[2])
    assert all(torch.isfinite(p).all() for p in student.parameters())
