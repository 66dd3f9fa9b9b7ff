"The published recipe: flights, labels, sequences, gradients, training by epochs"
import numpy as np
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from raptor_nb.core.config import load_config
from raptor_nb.core.records import Checkpoints
from raptor_nb.drones import sample_fleet, vary
from raptor_nb.environment import Simulator, see
from raptor_nb.learn import epochs, native, sac
from raptor_nb.policy import RaptorPolicy, Teachers

SMALL = dict(distillation=dict(method="epochs", sequence_length=40, batch_size=16, n_epochs=6, epoch_teacher_forcing=2, learning_rate=3e-3),
             data_collection=dict(num_episodes=16, num_episodes_eval=4), environment=dict(episode_steps=40), training=dict(seed=5))
TASK = load_config("default", **SMALL)


def actors(drones, obs_dim=29, activation="tanh", seed=0):
    "Hover, more or less"
    torch.manual_seed(seed)
    teachers = Teachers(len(drones), obs_dim, 32, activation=activation).requires_grad_(False)
    teachers.w3 *= 0.2
    teachers.b3.copy_(torch.tensor([[[d.hover_action] * 4] for d in drones]).clamp(-.9, .9).atanh())
    return teachers


@pytest.fixture(scope="module")
def fleet(): return sample_fleet(3)


@pytest.mark.parametrize("obs_dim, activation", [(22, "tanh"), (26, "tanh"), (29, "tanh"), (29, "relu")])
def test_labels_are_what_the_teachers_do(fleet, obs_dim, activation):
    teachers, flights = actors(fleet, obs_dim, activation), epochs.record(15, 33)
    flights.rows.normal_(); flights.force.normal_(); flights.length.fill_(33)
    seen, target = torch.cat([flights.rows[..., :26], flights.force[:, None].expand(15, 33, 3)], 2), flights.rows[..., 26:]
    seen[..., :3] -= target[..., :3]; seen[..., 12:15] -= target[..., 3:]
    for fast in (True, False):
        flights.label.zero_()
        epochs.teach(teachers, flights, fast)
        assert torch.allclose(flights.label.view(3, -1, 4), teachers(seen[..., :obs_dim].reshape(3, -1, obs_dim)), atol=1e-5)


def test_labels_reach_as_far_as_the_flights(fleet):
    teachers, flights, whole = actors(fleet), epochs.record(6, 50), epochs.record(6, 50)
    flights.rows.normal_(); flights.length.copy_(torch.tensor([50, 1, 0, 17, 33, 0]))
    whole = flights._replace(label=torch.zeros_like(flights.label), length=torch.full_like(flights.length, 50))
    for f in (flights, whole): epochs.teach(teachers, f)
    for a, b, n in zip(flights.label, whole.label, flights.length): assert torch.equal(a[:n], b[:n])


@pytest.mark.parametrize("obs_dim", [22, 26, 29])
def test_flights_are_those_of_the_simulator(fleet, obs_dim):
    teachers, flights = actors(fleet, obs_dim), epochs.record(6, 60)
    squad, seeds = epochs.Squad(teachers, fleet, 2), [3, 1, 4, 1, 5, 9]
    squad.fly(epochs.TeacherPilot(teachers, flights), flights, seeds)
    simulator = Simulator([d for d in fleet for _ in range(2)])
    simulator.seed(seeds); simulator.reset()
    alive, gain, length = np.ones(6, bool), np.zeros(6), np.zeros(6)
    for t in range(60):
        seen = torch.from_numpy(see(simulator, obs_dim))
        for i in np.flatnonzero(alive): assert torch.allclose(flights.rows[i, t, :min(obs_dim, 26)], seen[i, :26], atol=1e-3)
        reward, ended = simulator.step(teachers(seen.view(3, 2, -1)).view(6, 4).numpy())
        gain += alive * reward; length += alive; alive &= ~ended
        if ended.any(): simulator.reset(ended)
    assert flights.length.tolist() == length.tolist() and flights.ended.tolist() == (~alive).tolist()
    assert flights.gain.numpy() == pytest.approx(gain, abs=.05)


def test_the_student_remembers_and_begins_afresh(fleet):
    student, flights = RaptorPolicy.published(), epochs.record(6, 60)
    squad = epochs.Squad(actors(fleet), fleet, 2)
    for seeds in (range(6), range(6, 12)):
        squad.fly(epochs.StudentPilot(student, flights), flights, list(seeds))
        with torch.no_grad(): action, _ = student(flights.rows[..., :22])
        for rows, a, n in zip(flights.rows, action, flights.length): assert torch.allclose(rows[1:n, 18:22], a[:n - 1], atol=1e-4)


def test_flights_depend_on_seed_and_epoch_alone(fleet):
    student, teachers = RaptorPolicy.published(), actors(fleet)
    def returns(part=slice(None), **how):
        crew = epochs.Crew(epochs.some_of(teachers, part.start or 0, part.stop), fleet[part], 2, epochs.record(2 * len(fleet[part]), 60), part.start or 0)
        crew.collect(student, **how)
        return crew.flights.gain.numpy().copy()
    first = returns(seed=1, epoch=4)
    assert np.concatenate([returns(slice(0, 2), seed=1, epoch=4), returns(slice(2, 3), seed=1, epoch=4)]) == pytest.approx(first, abs=1e-3)
    assert returns(seed=2, epoch=4) != pytest.approx(first, abs=1e-3) and returns(seed=1, epoch=5) != pytest.approx(first, abs=1e-3)


def test_processes_fly_the_same(fleet):
    crews = epochs.crew_of(actors(fleet), fleet, 4, 60, workers=2)
    alone = epochs.crew_of(actors(fleet), fleet, 4, 60)
    for student in (None, RaptorPolicy.published()):
        for crew in (crews, alone): spent = crew.collect(student, seed=1, epoch=2)
        assert set(spent) == {"flying", "labelling"}
        for name, a, b in zip(epochs.Flights._fields, crews.flights, alone.flights):
            if name in ("rows", "label"): a, b = (torch.cat([x[:n] for x, n in zip(xs, alone.flights.length)]) for xs in (a, b)) # what comes later does not count
            assert torch.allclose(a.float(), b.float(), atol=1e-2), name
    assert torch.allclose(epochs.offsets_of(crews, 3), epochs.offsets_of(alone, 3), atol=1e-5)
    pids = [p.pid for p in crews.processes]
    crews.close()
    assert len(pids) == 2 and all(p.returncode == 0 for p in crews.processes)


def test_what_goes_wrong_in_a_process_is_said(fleet):
    crews = epochs.crew_of(actors(fleet), fleet, 4, 20, workers=2)
    broken = RaptorPolicy()
    with torch.no_grad(): broken.output_layer.linear.bias.fill_(torch.nan)
    with pytest.raises(epochs.EpochError, match="a process that flew met with FlightError: action of drone 0, motor 0 is nan"): crews.collect(broken)
    crews.collect(RaptorPolicy()) # and goes on
    crews.processes[0].kill()
    with pytest.raises(epochs.EpochError, match="a process that flew has ended"): crews.collect(RaptorPolicy())
    crews.close()


def test_flights_feel_their_drones_disturbance(fleet):
    windy, calm = ([vary(d, force=f) for d in fleet] for f in (.2, 0.))
    for drones, some in (windy, True), (calm, False):
        flights = epochs.record(6, 5)
        epochs.Squad(actors(drones), drones, 2).fly(epochs.TeacherPilot(actors(drones), flights), flights, list(range(6)))
        assert (flights.force.abs().sum(1) > 0).tolist() == [some] * 6


def test_flights_end_at_2_m_s_where_the_settings_say_so(fleet):
    fast = [vary(d, max_linear_velocity=3., position_threshold=50.) for d in fleet]
    ended = []
    for limit in (True, False):
        run = epochs.Run(load_config(TASK, data_collection=dict(velocity_limit=limit), environment=dict(episode_steps=3)), actors(fast), fast)
        run.crew.collect()
        ended.append(run.flights.ended.float().mean().item())
    assert ended[0] > 0.5 and ended[1] == 0


def test_flights_begin_near_the_target_where_the_settings_say_so(fleet):
    wide, far = [vary(d, max_position=3., position_threshold=9.) for d in fleet], []
    for within in (.5, 0.):
        run = epochs.Run(load_config(TASK, data_collection=dict(max_position=within), environment=dict(episode_steps=2)), actors(wide), wide)
        run.crew.collect()
        far.append(run.flights.rows[:, 0, :3].abs().max().item())
    assert .4 < far[0] <= .5 and 2 < far[1] <= 3


def test_targets_move_as_those_of_the_published_teachers():
    seeds = list(range(40, 240))
    paths = epochs.targets(seeds, 300, .5)
    moving = np.abs(paths[:, -1]).sum(1) > 0
    assert (paths[:, 0] == 0).all() and (paths[~moving] == 0).all() and .35 < moving.mean() < .65
    assert np.array_equal(epochs.targets(seeds[50:60], 300, .5), paths[50:60]) # a flight's path is its own
    class Chance:
        def __init__(self, seed):
            self.random = np.random.Generator(np.random.Philox(key=seed)); self.random.random()
            self.noise = iter(self.random.standard_normal((300, 3)))
        def standard_normal(self, n): return next(self.noise)
    first = int(np.flatnonzero(moving)[0])
    target = sac.Target(Chance(seeds[first]))
    for row in paths[first, 1:]:
        target.step()
        assert row[:3] == pytest.approx(target.position, abs=1e-6) and row[3:] == pytest.approx(target.velocity, abs=1e-6)


def test_the_reward_is_that_of_the_target_which_the_student_does_not_see(fleet):
    student, squad, seeds = RaptorPolicy.published(), epochs.Squad(actors(fleet), fleet, 8), list(range(24))
    resting, moving = epochs.record(24, 80), epochs.record(24, 80)
    squad.fly(epochs.StudentPilot(student, resting), resting, seeds)
    squad.fly(epochs.StudentPilot(student, moving), moving, seeds, trajectories=.5)
    assert torch.equal(resting.length, moving.length)
    changed = 0
    for i, n in enumerate(resting.length.tolist()):
        assert torch.equal(resting.rows[i, :n, :26], moving.rows[i, :n, :26])
        n -= int(resting.ended[i]) # the penalty of the last step does not depend on the target
        position, target = moving.rows[i, :n, :3], moving.rows[i, :n, 26:29]
        more = (position.norm(dim=1) - (position - target).norm(dim=1)).sum().item()
        assert (moving.gain[i] - resting.gain[i]).item() == pytest.approx(more, abs=1e-3)
        changed += more != 0
    assert 4 < changed < 20


def test_steady_offset_is_where_a_teacher_rests(fleet):
    resting = [vary(d, force=0., guidance=1.) for d in fleet]
    teachers = actors(resting)
    for p in (teachers.w1, teachers.w2, teachers.w3): p.zero_()
    hover, rest = teachers.b3.clone(), lambda steps: epochs.steady_offsets(epochs.Crew(teachers, resting, 1, epochs.record(3, steps)), 4)
    heights = []
    for more in (-.3, 0., .3):
        teachers.b3.copy_(hover + more)
        heights.append(rest(40)[:, 2])
    assert (heights[0] < heights[1]).all() and (heights[1] < heights[2]).all()
    teachers.b3.fill_(-3.) # nothing turns: no flight lasts
    assert rest(200).tolist() == [[0.] * 3] * 3


def test_the_offset_is_taken_from_the_position_alone():
    flights, shift = epochs.record(4, 30), torch.randn(4, 3)
    flights.rows.normal_(); flights.label.normal_(); flights.length.fill_(30)
    where, begins = epochs.chained(flights.length, 30, 7, 16)
    observation, label, reset = epochs.sequences(flights, shift, where, begins)
    at = torch.from_numpy(where).long()
    rows = flights.rows.view(-1, epochs.WIDTH)[at]
    assert torch.equal(observation[..., 3:], rows[..., 3:22]) and torch.equal(label, flights.label.view(-1, 4)[at])
    assert torch.allclose(observation[..., :3] + shift[at // 30], rows[..., :3], atol=1e-6)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(any), st.integers(1, 15), st.integers(1, 4), st.booleans())
@hypothesis_settings(max_examples=60, deadline=None)
def test_sequences_hold_flights_in_one_piece(length, sequence, batch, shuffle):
    where, begins = epochs.chained(length, 12, sequence, batch, np.random.default_rng(0) if shuffle else None)
    counted = [12 * i + k for i, n in enumerate(length) for k in range(n)]
    assert len(set(where.ravel())) == where.size and set(where.ravel()) <= set(counted)
    assert begins[:, 0].all() and (begins[:, 1:] == (where[:, 1:] % 12 == 0)).all()
    inside = ~begins[:, 1:]
    assert (where[:, 1:][inside] == where[:, :-1][inside] + 1).all()
    if len(counted) >= sequence * batch: assert where.shape[1] == sequence and len(where) == len(counted) // (sequence * batch) * batch
    if not shuffle: assert where.ravel().tolist() == counted[:where.size]


def test_a_short_flight_counts():
    where, begins = epochs.chained([500] * 60 + [30] * 200, 500, random=np.random.default_rng(0))
    assert where.shape == (64, 500) and begins.sum() > 200


@pytest.mark.parametrize("count", [16, 5])
def test_gradients_are_those_of_autograd(count):
    torch.manual_seed(1)
    student, flights, shift = RaptorPolicy(), epochs.record(9, 40), .1 * torch.randn(9, 3)
    flights.rows.normal_(std=.5); flights.label.normal_(std=.3); flights.length.copy_(torch.randint(20, 41, (9,)))
    where, begins = (x[:count] for x in epochs.chained(flights.length, 40, 15, 1, np.random.default_rng(2)))
    loss, grads = epochs.gradients(student, flights, shift, where, begins)
    observation, label, reset = epochs.sequences(flights, shift, where, begins)
    wanted = (student(observation, None, reset)[0] - label).square().mean()
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-4)
    for name, p in student.named_parameters():
        if p.requires_grad: assert torch.allclose(grads[name], p.grad, atol=2e-5), name


def test_training_learns_and_keeps_the_best(fleet):
    longer, rows = load_config(TASK, distillation=dict(n_epochs=40, epoch_teacher_forcing=25, learning_rate=1e-2)), []
    student = epochs.train(longer, actors(fleet), fleet, log=lambda e, n: rows.append(dict(epoch=e, **n)))
    assert [r["epoch"] for r in rows] == list(range(41))
    assert np.mean([r["loss"] for r in rows[20:25]]) < 0.3 * rows[0]["loss"]
    best = max(rows[25:], key=lambda r: r["return"])
    run = epochs.Run(longer, actors(fleet), fleet)
    run.crew.collect(student, TASK.training.seed, best["epoch"])
    assert run.flights.gain.mean().item() == pytest.approx(best["return"], abs=1e-2)


def test_teachers_fly_first(fleet):
    rows, run = [], epochs.Run(TASK, actors(fleet), fleet)
    epochs.train(TASK, actors(fleet), fleet, log=lambda e, n: rows.append(n["return"]))
    for e in (0, 1):
        run.crew.collect(None, 5, e)
        assert run.flights.gain.mean().item() == pytest.approx(rows[e], abs=1e-3)
    run.crew.collect(None, 5, 2)
    assert run.flights.gain.mean().item() != pytest.approx(rows[2], abs=1e-3)


def test_off_policy_teachers_fly_always(fleet):
    off, rows = load_config(TASK, data_collection=dict(on_policy=False)), []
    student, run = epochs.train(off, actors(fleet), fleet, log=lambda e, n: rows.append(n["return"])), epochs.Run(off, actors(fleet), fleet)
    run.crew.collect(None, 5, 5)
    assert run.flights.gain.mean().item() == pytest.approx(rows[5], abs=1e-3)
    run.crew.collect(student, 5, 6) # the last student is judged by its own flights
    assert run.flights.gain.mean().item() == pytest.approx(rows[6], abs=1e-3)


def test_training_goes_on_where_it_was_interrupted(fleet, tmp_path):
    whole = epochs.train(TASK, actors(fleet), fleet)
    class Stop(Exception): pass
    def stop(epoch, numbers):
        if epoch == 4: raise Stop
    with pytest.raises(Stop): epochs.train(TASK, actors(fleet), fleet, log=stop, checkpoints=Checkpoints(tmp_path))
    seen = []
    resumed = epochs.train(TASK, actors(fleet), fleet, log=lambda e, n: seen.append(e), checkpoints=Checkpoints(tmp_path), workers=2)
    assert seen == [4, 5, 6] # the interrupted epoch is done again
    for x, y in zip(whole.state_dict().values(), resumed.state_dict().values()): assert torch.allclose(x, y, atol=1e-6)


def test_without_the_native_engine(fleet, monkeypatch):
    fast = epochs.train(TASK, actors(fleet), fleet)
    monkeypatch.setattr(native, "available", lambda: False)
    slow = epochs.train(TASK, actors(fleet), fleet)
    for x, y in zip(fast.state_dict().values(), slow.state_dict().values()): assert torch.allclose(x, y, atol=5e-3)


def test_the_published_curve_is_packaged():
    curve = epochs.published_curve()
    assert len(curve) == 1000 and curve["return"].iloc[:10].mean() == pytest.approx(648.5, abs=1) and curve.hours.iloc[-1] == pytest.approx(1.98, abs=.01)


def resume_elsewhere(fleet, tmp_path):
    epochs.train(TASK, actors(fleet), fleet, checkpoints=Checkpoints(tmp_path))
    epochs.train(load_config(TASK, training=dict(seed=6)), actors(fleet), fleet, checkpoints=Checkpoints(tmp_path))


@pytest.mark.parametrize("make, message", [
    pytest.param(lambda f, t: epochs.train(TASK, actors(f), f[:2]), "there are 2 drones for 3 teachers", id="drones-missing"),
    pytest.param(lambda f, t: epochs.teach(actors(f), epochs.record(4, 5)), "there are 4 flights for 3 teachers", id="flights-not-even"),
    pytest.param(lambda f, t: epochs.chained([0, 0], 5), "no flight has a single step", id="no-steps"),
    pytest.param(resume_elsewhere, "the checkpoint was made with seed 5, the settings say 6", id="other-seed"),
])
def test_bad_input(fleet, tmp_path, make, message):
    with pytest.raises(epochs.EpochError, match=message): make(fleet, tmp_path)
