"The student: flights to learn from, its loss, its training, and what comes after"
import math
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from raptor_nb import distill
from raptor_nb.core.config import load_config
from raptor_nb.core.records import Checkpoints
from raptor_nb.drones import sample_fleet, vary
from raptor_nb.learn import apg, flight, native
from raptor_nb.policy import RaptorPolicy, Teachers

CALM = dict(observation_noise=0., delay=0., force=0., gust=0., pushes=0., tilt_share=0.)
SMALL = dict(sequence_length=40, online=dict(drones=2, environments=16, updates=12, log_interval=1, validation_interval=4, validation_drones=2),
             polish=dict(updates=8, drones=2, segment=20))


@pytest.fixture(scope="module")
def setting():
    settings = load_config("default", distillation=SMALL, environment=dict(episode_steps=40), apg=dict(segment=20, updates=30, environments=16, hidden_dim=16, engine="plain"), training=dict(seed=5))
    drones = sample_fleet(3)
    return settings, apg.train(settings.apg, drones), drones, sample_fleet(range(500_000, 500_002))


def changed(settings, **online): return load_config(settings, distillation=dict(online=online))


def flights(setting, student=None, share=0., fleet=None, seed=0, replace=None, **online):
    settings, teachers, drones, _ = setting
    settings, fleet = changed(settings, **online), flight.fleet_of(drones) if fleet is None else fleet
    happens = distill.weather(fleet, settings, torch.Generator().manual_seed(seed), share)
    if replace: happens = happens._replace(**replace(happens))
    return happens, distill.rollout(student or RaptorPolicy(), teachers, fleet, happens, settings)


def test_teachers_fly_their_lanes(setting):
    _, out = flights(setting, share=1., **CALM)
    kept = ~out.reset[:, 1:]
    assert torch.allclose(out.observation[:, 1:, 18:][kept], out.label[:, :-1][kept], atol=1e-6), "the next observation reports the action that was flown"


def test_the_student_flies_otherwise(setting):
    torch.manual_seed(0)
    student = RaptorPolicy()
    happens, out = flights(setting, student, share=.5)
    with torch.no_grad(): action, _ = student(out.observation, None, out.reset)
    kept, taught = ~out.reset[:, 1:], happens.by_teacher.flatten()[:, None]
    assert 0.2 < taught.float().mean() < 0.8
    wanted = torch.where(taught[..., None], out.label, action.clamp(-2, 2))
    assert torch.allclose(out.observation[:, 1:, 18:][kept], wanted[:, :-1][kept], atol=1e-5)


def test_noise_is_as_it_is_said(setting):
    fleet = flight.fleet_of([vary(d, guidance=1.) for d in setting[2]])
    happens, out = flights(setting, fleet=fleet, **CALM | dict(observation_noise=0.5, environments=400))
    sigma = 0.5 / 5 ** 0.5  # root mean square of 0.5 u^2, u uniform
    assert happens.sigma.square().mean().sqrt().item() == pytest.approx(sigma, rel=0.1) and (happens.sigma < .125).float().mean().item() == pytest.approx(.5, abs=.05)
    first, true = out.observation[:, 0], apg.sees(happens.moving, happens.wind[:, 0], fleet, 22).reshape(-1, 22)
    noisy = happens.sigma.flatten() > .01
    noise = ((first - true) / happens.sigma.view(-1, 1))[noisy]
    for part, scale in ((slice(0, 3), 1), (slice(3, 12), 1), (slice(12, 15), 2), (slice(15, 18), 5)): assert noise[:, part].std().item() == pytest.approx(scale, rel=0.06)
    assert torch.equal(first[:, 18:], true[:, 18:]), "the action is known"


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_sensors_are_late_and_the_action_is_not(setting, steps):
    late, now = (flights(setting, share=1., **CALM, replace=lambda h: dict(delay=torch.full_like(h.delay, x)))[1] for x in (steps, 0))
    assert torch.equal(late.reset, now.reset) and torch.equal(late.label, now.label), "teachers are never late"
    whole = ~now.reset[:, 1:].any(1)
    assert whole.any()
    seen, true = late.observation[whole], now.observation[whole]
    for k in range(steps + 1): assert torch.equal(seen[:, k, :18], true[:, 0, :18]), "nothing older than the flight exists"
    assert torch.equal(seen[:, steps:, :18], true[:, :40 - steps, :18]) and torch.equal(seen[..., 18:], true[..., 18:])
    others = now.reset[:, 1:].any(1).nonzero().flatten()
    for i in others[:5]: # a flight that begins in the middle is seen at once
        k = now.reset[i, 1:].nonzero()[0].item() + 1
        assert torch.equal(late.observation[i, k, :18], now.observation[i, k, :18])


def test_late_flights_are_as_many_as_was_said(setting):
    happens, _ = flights(setting, delay=.3, environments=2000)
    counts = [(happens.delay == k).float().mean().item() for k in (0, 1, 2)]
    assert counts == pytest.approx([.7, .15, .15], abs=.03)


def test_a_push_keeps_rotors_action_and_memory(setting):
    torch.manual_seed(0)
    student = RaptorPolicy()
    (_, alone), (happens, out) = (flights(setting, student, **CALM, replace=lambda h: dict(push=torch.full_like(h.push, p))) for p in (0., 1.))
    assert torch.equal(out.observation[:, 1, 18:], alone.observation[:, 1, 18:]), "the action that was flown is reported"
    for t in range(1, 9): assert torch.allclose(out.observation[:, t, :18], apg.sees(happens.fresh[:, (t - 1) % distill.STARTS], happens.wind[:, 0], flight.fleet_of(setting[2]), 22)[..., :18].reshape(-1, 18), atol=1e-6)
    assert not out.reset[:, 1].any() and out.reset[:, 1:].float().mean() < .1, "a push is not a beginning"
    with torch.no_grad(): remembered, _ = student(out.observation, None, out.reset)
    kept = ~out.reset[:, 1:]
    assert torch.allclose(out.observation[:, 1:, 18:][kept], remembered[:, :-1].clamp(-2, 2)[kept], atol=1e-5)


def test_rotors_turn_on_through_a_push(setting):
    D, E = 3, 4
    happens, _ = flights(setting, environments=E)
    after = torch.randn(D, E, 21)
    pushed, ended = torch.zeros(D, E, dtype=torch.bool), torch.zeros(D, E, dtype=torch.bool)
    pushed[0], ended[1] = True, True
    state, following = distill._elsewhere(happens, happens.moving, after, torch.full((D, E), distill.STARTS - 1), ended, pushed)
    last = happens.fresh[:, -1]
    assert torch.equal(state[0, :, :13], last[0, :, :13]) and torch.equal(state[0, :, 13:], after[0, :, 13:])
    assert torch.equal(state[1], last[1]) and torch.equal(state[2], after[2])
    assert following.tolist() == [[0] * E, [0] * E, [distill.STARTS - 1] * E], "the first start comes after the last"


def test_pushes_are_as_many_as_was_said(setting):
    happens, _ = flights(setting, pushes=1.5, environments=2000)
    assert 40 * happens.push.mean().item() == pytest.approx(1.5, rel=.05) and (happens.push == 0).float().mean().item() == pytest.approx(.5, abs=.03), "half of the flights have none"


def test_wind_is_interpolated(setting):
    fleet, weight = flight.fleet_of(setting[2]), 9.81 * flight.fleet_of(setting[2]).mass[..., None]
    ramp = torch.linspace(0, .2, 5).view(1, 5, 1, 1) * torch.tensor([1., -1., .5]) * weight[..., None]
    teachers = Teachers(3, 29, 16).requires_grad_(False)
    for p in (teachers.w1, teachers.w2, teachers.w3, teachers.b1, teachers.b2, teachers.b3): p.zero_()
    teachers.w1[:, 26, 0] = teachers.w1[:, 27, 1] = teachers.w2[:, 0, 0] = teachers.w2[:, 1, 1] = teachers.w3[:, 0, 0] = teachers.w3[:, 1, 1] = 1. # says what wind it feels
    settings, happens = changed(setting[0], **CALM), flights(setting, **CALM)[0]._replace(wind=ramp.expand(3, 5, 16, 3))
    out = distill.rollout(RaptorPolicy(), teachers, fleet, happens, settings)
    felt = out.label[..., :2].atanh().atanh().atanh()
    for t in (0, 1, 5, 10, 39): assert torch.allclose(felt[:, t], torch.tensor([.2, -.2]) * t / 40, atol=1e-4)


def test_wind_is_of_every_strength_up_to_what_was_said(setting):
    fleet = flight.fleet_of(setting[2])
    def blown(**changes): # as a share of weight
        drawn, _ = flights(setting, environments=2000, **changes)
        return drawn.wind / (9.81 * fleet.mass[..., None, None])
    wind = blown(force=.3, gust=0.)
    assert wind.shape == (3, distill.KNOTS, 2000, 3) and torch.equal(wind[:, 0], wind[:, -1])
    assert wind.square().mean().sqrt().item() == pytest.approx(.3 / 3 ** .5, rel=.05)
    gusts = blown(force=0., gust=.3)
    crossings = (gusts[:, 1:].sign() != gusts[:, :-1].sign()).sum(1).float()
    assert gusts.square().mean().sqrt().item() == pytest.approx(.3 / 6 ** .5, rel=.05) and crossings.min() <= 1 and 8 <= crossings.max() <= 11, "0.1 to 1 Hz over 5 s"


def test_some_starts_are_tilted_further(setting):
    angle = lambda happens: 2 * happens.moving[..., 3].clamp(-1, 1).acos()
    published, wide = (angle(flights(setting, tilt_share=share, tilt=1.8, environments=2000)[0]) for share in (0., .5))
    assert published.max().item() == pytest.approx(1., abs=.01) and wide.max().item() == pytest.approx(1.8, abs=.02)
    assert (wide > 1).float().mean().item() == pytest.approx(.5 * (1 - 1 / 1.8) * (published > 0).float().mean().item(), abs=.02)


def test_resets_mark_flights(setting):
    _, out = flights(setting)
    assert out.reset[:, 0].all() and out.reset[:, 1:].any() and torch.isfinite(out.observation).all()
    loss, grads, ended = distill.imitate(RaptorPolicy(), setting[1], flight.fleet_of(setting[2]), flights(setting)[0], setting[0], apg.plain)
    assert 0 < ended < 100 and loss > 0 and all(torch.isfinite(g).all() for g in grads.values())


# ---- teachers
def test_centred_teachers_rest_at_the_target(setting):
    fleet = flight.fleet_of(setting[2])
    speed = fleet.rotor_min + fleet.hover_throttle * (fleet.rotor_max - fleet.rotor_min)
    fleet = fleet._replace(init=(1., *fleet.init[1:5], speed, speed)) # every flight begins at rest
    teachers = Teachers(3, 22, 16).requires_grad_(False)              # hovers, and is drawn to a place above the target
    for p in teachers.parameters(): p.zero_()
    place = torch.tensor([.01, .02, .03])
    teachers.w1[:, 2, 0], teachers.w1[:, 14, 0], teachers.b1[:, 0, 0] = -.1, -.1, .1 * place
    teachers.w2[:, 0, 0], teachers.w3[:, 0] = 1., 15.
    teachers.b3.copy_((2 * fleet.hover_throttle - 1).atanh()[..., None].expand(3, 1, 4))
    settings = load_config(setting[0], environment=dict(episode_steps=500))
    found = distill.resting_place(teachers, fleet, settings)
    assert found[:, 2].tolist() == pytest.approx(place.tolist(), abs=2e-3) and found[:, :2].abs().max() < 1e-4
    assert distill.resting_place(distill.centred(teachers, found), fleet, settings).norm(dim=1).max() < 2e-3
    assert torch.equal(teachers.b1[:, 0, 0], .1 * place), "the given teachers stay as they are"


def test_flights_that_end_have_no_resting_place(setting):
    crash = Teachers(3, 29, 16).requires_grad_(False)
    crash.b3.fill_(-20.)
    assert distill.resting_place(crash, flight.fleet_of(setting[2]), load_config(setting[0], environment=dict(episode_steps=500))).tolist() == [[0.] * 3] * 3


def test_training_centres_the_teachers_where_the_settings_say_so(setting, monkeypatch):
    settings, teachers, drones, validation = setting
    places = torch.tensor([[.01, 0., 0.], [0., .02, 0.], [0., 0., -.03]])
    monkeypatch.setattr(distill, "resting_place", lambda *args: places)
    centred, given = (distill.Run(changed(settings, centre=c), teachers, drones, validation).teachers for c in (True, False))
    assert torch.equal(given.b1, teachers.b1)
    for i, (axis, x) in enumerate(((0, .01), (1, .02), (2, -.03))): assert torch.allclose(centred.b1[i], teachers.b1[i] + x * teachers.w1[i, axis], atol=1e-6)


def test_sluggish_drones_are_drawn_more_often():
    lag = lambda x: SimpleNamespace(rotor_time_constants_rising=[.05 * x] * 4, rotor_time_constants_falling=[.1 * x] * 4)
    drones = [SimpleNamespace(torque_to_inertia=x, dynamics=lag(y)) for x, y in ((100., 1), (400., 2), (400., 1))]
    assert distill.chances(drones, 1.).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert distill.chances(drones, 0.).tolist() == pytest.approx([1 / 3] * 3)
    assert distill.chances(drones, .5).tolist() == pytest.approx([(4 / 7 + 1 / 3) / 2, (2 / 7 + 1 / 3) / 2, (1 / 7 + 1 / 3) / 2])
    fleet = sample_fleet(50)
    chance = distill.chances(fleet, .5)
    most = fleet[chance.argmax()]
    assert chance.sum().item() == pytest.approx(1) and most.torque_to_inertia < 150 and sum(d.torque_to_inertia < most.torque_to_inertia for d in fleet) < 3


def test_a_teacher_may_be_asked_for_twice(setting):
    _, teachers, _, _ = setting
    seen = torch.randn(3, 2, 29)
    assert torch.allclose(distill.stacked(teachers, [2, 0, 2])(seen[[2, 0, 2]]), teachers(seen)[[2, 0, 2]], atol=1e-6)


# ---- training
def test_training_lowers_the_loss_and_keeps_the_best(setting):
    settings, teachers, drones, validation = setting
    rows, longer = [], load_config(changed(settings, updates=80, validation_interval=8, teacher_share=1., learning_rate=.02), apg=dict(engine="auto"))
    student = distill.train(longer, teachers, drones, validation, log=lambda u, n: rows.append(n))
    torch.manual_seed(settings.training.seed)
    happens, _ = flights(setting, share=1., seed=1)
    after, before = (distill.imitate(s, teachers, flight.fleet_of(drones), happens, settings, apg.plain)[0] for s in (student, RaptorPolicy()))
    assert after < .4 * before
    judged = [n["validation_return"] for n in rows if "validation_return" in n]
    assert len(rows) == 80 and len(judged) == 10 and distill.score(student, flight.fleet_of(validation), longer)["return"] == pytest.approx(max(judged), rel=1e-5)


@pytest.mark.parametrize("engine", ["plain", pytest.param("auto", marks=pytest.mark.skipif(not native.available(), reason="no C++ compiler"))])
def test_distillation_goes_on_where_it_was_interrupted(setting, tmp_path, engine):
    settings, teachers, drones, validation = setting
    settings = load_config(settings, apg=dict(engine=engine))
    whole = distill.train(settings, teachers, drones, validation)
    class Stop(Exception): pass
    def stop(update, numbers):
        if update >= 7: raise Stop
    with pytest.raises(Stop): distill.train(settings, teachers, drones, validation, log=stop, checkpoints=Checkpoints(tmp_path))
    seen = []
    resumed = distill.train(settings, teachers, drones, validation, log=lambda u, n: seen.append(u), checkpoints=Checkpoints(tmp_path))
    assert seen == list(range(5, 13))
    for x, y in zip(whole.state_dict().values(), resumed.state_dict().values()): assert torch.equal(x, y)


@pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
def test_students_of_two_seeds_trained_side_by_side_are_those_trained_alone(setting):
    settings, teachers, drones, validation = setting
    settings = load_config(settings, apg=dict(engine="native"))
    def student(seed):
        own = load_config(settings, training=dict(seed=seed))
        return distill.finish(own, distill.train(own, teachers, drones, validation), drones + validation, validation).state_dict()
    alone = [student(seed) for seed in (1, 2)]
    with native.small_operations(1), ThreadPoolExecutor(2) as pool: together = list(pool.map(student, (1, 2)))
    for a, b in zip(alone, together): assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(*(a["gru.gru.weight_hh_l0"] for a in alone))


def test_lines_of_the_log_are_means(setting):
    settings, teachers, drones, validation = setting
    every, third = [], []
    distill.train(settings, teachers, drones, validation, log=lambda u, n: every.append(n["loss"]))
    distill.train(changed(settings, log_interval=3), teachers, drones, validation, log=lambda u, n: third.append((u, n["loss"])))
    assert [u for u, _ in third] == [3, 4, 6, 8, 9, 12], "every third update and each validation"
    assert third[0][1] == pytest.approx(sum(every[:3]) / 3) and third[1][1] == pytest.approx(every[3]) and third[-1][1] == pytest.approx(sum(every[9:]) / 3)


def test_teachers_fade_out(setting):
    settings, teachers, drones, validation = setting
    shares = []
    distill.train(changed(settings, teacher_share=.5), teachers, drones, validation, log=lambda u, n: shares.append(n["teacher_share"]))
    assert shares == pytest.approx([max(0., 1 - u / 6) for u in range(12)])


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
@pytest.mark.parametrize("activation, obs_dim", [("tanh", 29), ("relu", 26)])
def test_the_native_engine_learns_the_same(setting, activation, obs_dim):
    "Without noise, whose random numbers differ; teachers of either kind"
    settings, _, drones, validation = setting
    torch.manual_seed(0)
    teachers = Teachers(3, obs_dim, 16, activation=activation).requires_grad_(False)
    students, losses = [], []
    for engine in ("plain", "native"):
        calm = load_config(changed(settings, **CALM, updates=3, teacher_share=0.), apg=dict(engine=engine))
        students.append(distill.train(calm, teachers, drones, validation, log=lambda u, n: losses.append(n["loss"])))
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-3)
    for x, y in zip(*(s.state_dict().values() for s in students)): assert torch.allclose(x, y, atol=2e-4)


@pytest.mark.parametrize("changes, hidden", [({"distillation.online.environments": 8}, 16), ({"student.hidden_dim": 8}, 16), ({}, 24)], ids=["environments", "student", "teachers"])
def test_where_native_cannot_torch_goes_on(setting, monkeypatch, changes, hidden):
    monkeypatch.setattr(native, "available", lambda: True)
    settings = load_config(setting[0], **changes, **{"apg.engine": "auto"})
    assert distill.choose_engine(settings, 1, teachers=Teachers(2, 29, hidden)) is apg.plain
    assert distill.choose_engine(load_config(settings, **{"apg.engine": "native"}), 1, teachers=Teachers(2, 29, hidden)) is native, "who insists is told why not"
    assert distill.choose_engine(load_config(setting[0], **{"apg.engine": "auto"}), 1, teachers=Teachers(2, 29, 64)) is native


# ---- polishing
def test_finish_goes_on_where_it_was_interrupted(setting, tmp_path):
    settings, _, drones, validation = setting
    torch.manual_seed(1)
    beginner = RaptorPolicy()
    whole = distill.finish(settings, beginner, drones, validation)
    class Stop(Exception): pass
    def stop(update, numbers):
        if update >= 6: raise Stop
    with pytest.raises(Stop): distill.finish(settings, beginner, drones, validation, log=stop, checkpoints=Checkpoints(tmp_path))
    seen = []
    resumed = distill.finish(settings, beginner, drones, validation, log=lambda u, n: seen.append(u), checkpoints=Checkpoints(tmp_path))
    assert seen == [5, 6, 7, 8]
    for x, y in zip(whole.state_dict().values(), resumed.state_dict().values()): assert torch.equal(x, y)


def test_finish_keeps_the_best(setting):
    settings, _, drones, validation = setting
    torch.manual_seed(1)
    rows, beginner = [], RaptorPolicy()
    before = {k: v.clone() for k, v in beginner.state_dict().items()}
    finished = distill.finish(settings, beginner, drones, validation, log=lambda u, n: rows.append(n))
    judged = [distill.score(beginner, flight.fleet_of(validation), settings)["return"]] + [n["validation_return"] for n in rows if "validation_return" in n]
    assert len(judged) == 3 and distill.score(finished, flight.fleet_of(validation), settings)["return"] == pytest.approx(max(judged), rel=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in beginner.state_dict().items()), "the given student stays as it is"


def test_finish_keeps_a_student_that_polishing_spoils(setting):
    settings, _, drones, validation = setting
    wild = load_config(settings, distillation=dict(polish=dict(learning_rate=10., final_learning_rate=10.)))
    published = RaptorPolicy.published()
    out = distill.finish(wild, published, drones, validation)
    for x, y in zip(out.state_dict().values(), published.state_dict().values()): assert torch.equal(x, y)


def test_without_polishing_the_student_is_the_same(setting):
    none = load_config(setting[0], distillation=dict(polish=dict(updates=0)))
    student = RaptorPolicy()
    for x, y in zip(distill.finish(none, student, setting[2], setting[3]).state_dict().values(), student.state_dict().values()): assert torch.equal(x, y)


def test_score_is_what_l2f_says():
    from raptor_nb.evaluate import fly
    drones = [vary(d, force=0., velocity_limit=False) for d in sample_fleet(range(64))]
    settings = load_config("default", apg=dict(engine="plain"))
    ours = distill.score(RaptorPolicy.published(), flight.fleet_of(drones), settings)
    theirs = fly(RaptorPolicy.published(), drones, flights=8)
    assert ours["return"] == pytest.approx(theirs["return"].mean(), abs=15) and ours["survival"] == pytest.approx(1 - theirs["terminated"].mean(), abs=0.04)
    assert 0 < ours["steady_error"] < .05 and math.isfinite(ours["steady_error"])


@pytest.mark.parametrize("make, message", [
    pytest.param(lambda t, d: distill.match(t, d[:2]), "there is no drone 0002 for its teacher", id="drone-missing"),
    pytest.param(lambda t, d: distill.match(t.select([2]), [d[0]]), "there is no drone 0002 for its teacher", id="other-drone"),
])
def test_bad_input(setting, make, message):
    _, teachers, drones, _ = setting
    with pytest.raises(distill.DistillError, match=message): make(teachers, drones)


def test_teachers_find_their_drones_by_number(setting):
    _, teachers, drones, _ = setting
    assert [d.name for d in distill.match(teachers.select([2, 0]), drones)] == ["0002", "0000"]


def test_further_drones_are_nobodys_and_some_lie_beyond(setting):
    more = load_config(setting[0], distillation=dict(polish=dict(more_drones=20, beyond_drones=20)))
    drones = distill.further_drones(more)
    own, beyond = drones[:20], drones[20:]
    assert len({d.name for d in drones}) == 40 and min(int(d.name) for d in drones) >= 100_000 and max(int(d.name) for d in drones) < 200_000
    assert all(1.5 <= d.thrust_to_weight <= 5 for d in own) and sum(d.thrust_to_weight > 5 for d in beyond) >= 5 and max(d.thrust_to_weight for d in beyond) <= 12
    assert [d.to_dict() for d in drones] == [d.to_dict() for d in distill.further_drones(more)] and not distill.further_drones(setting[0])


def test_cores_are_divided_among_trainings_side_by_side():
    workers = lambda x, go_on: (x, native._workers[-1])
    assert distill.side_by_side(workers, [1, 2, 3], 2) == [(1, 1), (2, 1), (3, 2)] and distill.side_by_side(workers, [1, 2], 5) == [(1, 2), (2, 2)]
    assert distill.side_by_side(lambda x, go_on: (x, len(native._workers)), [1, 2], 1) == [(1, 0), (2, 0)] and distill.side_by_side(workers, [], 2) == []


def test_a_failure_stops_the_trainings_beside_it():
    ended = []
    def train(x, go_on):
        if x == 0: raise ValueError("the first")
        for _ in range(2000):
            time.sleep(.01)
            go_on()
        ended.append(x)
    with pytest.raises(ValueError, match="the first"): distill.side_by_side(train, [0, 1, 2], 2)
    assert not ended


def test_an_update_whose_gradient_overflows_is_left_out(setting, monkeypatch):
    settings, teachers, drones, validation = setting
    imitate, seen, rows = distill.imitate, [], []
    def overflowing(*args):
        loss, grads, ended = imitate(*args)
        seen.append(args[0].gru.gru.weight_hh_l0.detach().clone())
        if len(seen) == 3: loss, grads = math.inf, {k: v * math.inf for k, v in grads.items()}
        return loss, grads, ended
    monkeypatch.setattr(distill, "imitate", overflowing)
    student = distill.train(settings, teachers, drones, validation, log=lambda u, n: rows.append((u, n["loss"])))
    assert torch.equal(seen[2], seen[3]) and not torch.equal(seen[1], seen[2]) and not torch.equal(seen[3], seen[4])
    assert [u for u, _ in rows] == list(range(1, 13)) and math.isnan(rows[2][1]) and all(math.isfinite(loss) for u, loss in rows if u != 3)
    assert all(torch.isfinite(p).all() for p in student.parameters())
