"The published distillation: flights, labels, sequences, gradients, training by epochs"
import os
import signal
from contextlib import closing

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings as hypothesis_settings, strategies as st

from raptor_nb.core.parallel import WorkerError
from raptor_nb.core.records import Checkpoints
from raptor_nb.drones import sample_fleet, with_conditions
from raptor_nb.learn import published, sac
from raptor_nb.learn.published import DroneBatch, FlightCollector, FlightRecord, PublishedTraining
from raptor_nb.learn.published import RecipeError, RolloutWorker, chain_episodes, collector_of
from raptor_nb.learn.published import empty_record, label_flights, target_paths, train
from raptor_nb.policy import RaptorPolicy, Teachers
from raptor_nb.settings import load_config
from raptor_nb.sim import native
from raptor_nb.sim.l2f import FlightError, Simulator

TASK = load_config(
    "default", environment=dict(episode_steps=40), training=dict(seed=5),
    data_collection=dict(num_episodes=16, num_episodes_eval=4),
    distillation=dict(sequence_length=40, batch_size=16, n_epochs=6, epoch_teacher_forcing=2,
                      learning_rate=3e-3))


def actors(drones, obs_dim=29, activation="tanh", seed=0):
    "Hover, more or less"
    torch.manual_seed(seed)
    teachers = Teachers(len(drones), obs_dim, 32, activation=activation).requires_grad_(False)
    teachers.w3 *= 0.2
    hover = torch.tensor([[[d.hover_action] * 4] for d in drones])
    teachers.b3.copy_(hover.clamp(-.9, .9).atanh())
    return teachers


def random_record(n, steps, rows=1., force=1., length=None):
    "Flights that nobody flew"
    flights = empty_record(n, steps)
    flights.rows.normal_(std=rows)
    flights.force.normal_(std=force)
    flights.length.copy_(torch.tensor(length)) if length else flights.length.fill_(steps)
    return flights


@pytest.fixture(scope="module")
def fleet(): return sample_fleet(3)


# ------------------------------------------------------------------------------------------ labels
@pytest.mark.parametrize("obs_dim, activation", [(22, "tanh"), (26, "tanh"), (29, "tanh"),
                                                 (29, "relu")])
@pytest.mark.parametrize("fast", [True, False])
def test_labels_are_what_the_teachers_do(fleet, obs_dim, activation, fast):
    teachers, flights = actors(fleet, obs_dim, activation), random_record(15, 33)
    force, target = flights.force[:, None].expand(15, 33, 3), flights.rows[..., 26:]
    observation = torch.cat([flights.rows[..., :26], force], 2)
    observation[..., :3] -= target[..., :3]
    observation[..., 12:15] -= target[..., 3:]
    label_flights(teachers, flights, fast)
    wanted = teachers(observation[..., :obs_dim].reshape(3, -1, obs_dim))
    assert torch.allclose(flights.label.view(3, -1, 4), wanted, atol=1e-5)


def test_labels_reach_as_far_as_the_flights(fleet):
    teachers, flights = actors(fleet), random_record(6, 50, length=[50, 1, 0, 17, 33, 0])
    whole = flights._replace(label=torch.zeros_like(flights.label),
                             length=torch.full_like(flights.length, 50))
    for f in (flights, whole): label_flights(teachers, f)
    for a, b, n in zip(flights.label, whole.label, flights.length): assert torch.equal(a[:n], b[:n])


# ----------------------------------------------------------------------------------------- flights
@pytest.mark.parametrize("obs_dim", [22, 26, 29])
def test_flights_are_those_of_the_simulator(fleet, obs_dim):
    teachers, flights, seeds = actors(fleet, obs_dim), empty_record(6, 60), [3, 1, 4, 1, 5, 9]
    DroneBatch(teachers, fleet, 2).fly(flights, seeds)
    simulator = Simulator([d for d in fleet for _ in range(2)])
    simulator.seed(seeds)
    simulator.reset()
    alive, total, length = np.ones(6, bool), np.zeros(6), np.zeros(6)
    for t in range(60):
        observation = torch.from_numpy(simulator.observe(obs_dim))
        for i in np.flatnonzero(alive):
            recorded = flights.rows[i, t, :min(obs_dim, 26)]
            assert torch.allclose(recorded, observation[i, :26], atol=1e-3)
        action = teachers(observation.view(3, 2, -1)).view(6, 4).numpy()
        reward, terminated = simulator.step(action)
        total += alive * reward
        length += alive
        alive &= ~terminated
        if terminated.any(): simulator.reset(terminated)
    assert flights.length.tolist() == length.tolist()
    assert flights.terminated.tolist() == (~alive).tolist()
    assert flights.episode_return.numpy() == pytest.approx(total, abs=.05)


@pytest.mark.parametrize("obs_dim", [22, 29])
@pytest.mark.parametrize("fast", [True, False])
def test_the_student_remembers_and_begins_afresh(fleet, obs_dim, fast):
    student, flights = RaptorPolicy.published(), empty_record(6, 60)
    batch = DroneBatch(actors(fleet, obs_dim), fleet, 2)
    for seeds in (range(6), range(6, 12)):
        batch.fly(flights, list(seeds), student, fast=fast)
        with torch.no_grad(): action, _ = student(flights.rows[..., :22])
        for rows, a, n in zip(flights.rows, action, flights.length):
            assert torch.allclose(rows[1:n, 18:22], a[:n - 1], atol=1e-4)


def test_flights_depend_on_seed_and_epoch_alone(fleet):
    student, teachers = RaptorPolicy.published(), actors(fleet)
    def returns(ids=(0, 1, 2), **how):
        drones, flights = [fleet[i] for i in ids], empty_record(2 * len(ids), 60)
        RolloutWorker(teachers.select(ids), drones, 2, flights, ids[0]).collect(student, **how)
        return flights.episode_return.numpy().copy()
    first = returns(seed=1, epoch=4)
    parts = [returns([0, 1], seed=1, epoch=4), returns([2], seed=1, epoch=4)]
    assert np.concatenate(parts) == pytest.approx(first, abs=1e-3)
    assert returns(seed=2, epoch=4) != pytest.approx(first, abs=1e-3)
    assert returns(seed=1, epoch=5) != pytest.approx(first, abs=1e-3)


def test_flights_feel_their_drones_disturbance(fleet):
    for force in (.2, 0.):
        drones, flights = [with_conditions(d, force=force) for d in fleet], empty_record(6, 5)
        DroneBatch(actors(drones), drones, 2).fly(flights, list(range(6)))
        assert (flights.force.abs().sum(1) > 0).tolist() == [force > 0] * 6


def flown(drones, steps, **data):
    "A record of teachers' flights under settings of data_collection"
    settings = load_config(TASK, data_collection=data, environment=dict(episode_steps=steps))
    with closing(collector_of(settings, actors(drones), drones)) as collector: collector.collect()
    return collector.flights


def test_flights_end_at_2_m_s_where_the_settings_say_so(fleet):
    limits = dict(max_linear_velocity=3., position_threshold=50.)
    fast = [with_conditions(d, **limits) for d in fleet]
    assert flown(fast, 3, velocity_limit=True).terminated.float().mean() > 0.5
    assert not flown(fast, 3, velocity_limit=False).terminated.any()


def test_flights_begin_near_the_target_where_the_settings_say_so(fleet):
    wide = [with_conditions(d, max_position=3., position_threshold=9.) for d in fleet]
    start = lambda within: flown(wide, 2, max_position=within).rows[:, 0, :3].abs().max().item()
    assert .4 < start(.5) <= .5 and 2 < start(0.) <= 3


# --------------------------------------------------------------------------------------- processes
def same(name, a, b, length):
    "Rows and labels count as far as the flights reach"
    if name in ("rows", "label"):
        a, b = (torch.cat([x[:n] for x, n in zip(xs, length)]) for xs in (a, b))
    return torch.allclose(a.float(), b.float(), atol=1e-2)


def test_processes_fly_the_same(fleet):
    several = FlightCollector(actors(fleet), fleet, 4, 60, workers=2)
    alone = FlightCollector(actors(fleet), fleet, 4, 60)
    with closing(several):
        for student in (None, RaptorPolicy.published()):
            for collector in (several, alone): spent = collector.collect(student, seed=1, epoch=2)
            assert set(spent) == {"flying", "labelling"}
            length = alone.flights.length
            for name, a, b in zip(FlightRecord._fields, several.flights, alone.flights):
                assert same(name, a, b, length), name
        offsets = several.steady_offsets(3), alone.steady_offsets(3)
    assert torch.allclose(*offsets, atol=1e-5)


def test_what_goes_wrong_in_a_process_is_said(fleet):
    broken = RaptorPolicy()
    with torch.no_grad(): broken.output_layer.linear.bias.fill_(torch.nan)
    with closing(FlightCollector(actors(fleet), fleet, 4, 20, workers=2)) as collector:
        with pytest.raises(FlightError, match="action of drone 0, motor 0 is nan"):
            collector.collect(broken)
        collector.collect(RaptorPolicy()) # the processes live on
        workers = [p for p in psutil.Process().children() if "spawn_main" in str(p.cmdline())]
        os.kill(workers[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="a worker process has ended"):
            collector.collect(RaptorPolicy())


# ----------------------------------------------------------------------------------- moving targets
class PhiloxKicks:
    "The random numbers of a path, as `TargetTrajectory` asks for them"
    def __init__(self, seed):
        random = np.random.Generator(np.random.Philox(key=seed))
        random.random()
        self.noise = iter(random.standard_normal((300, 3)))
    def standard_normal(self, n): return next(self.noise)


def test_targets_move_as_those_of_the_published_teachers():
    seeds = list(range(40, 240))
    paths = target_paths(seeds, 300, .5)
    moving = np.abs(paths[:, -1]).sum(1) > 0
    assert (paths[:, 0] == 0).all() and (paths[~moving] == 0).all() and .35 < moving.mean() < .65
    assert np.array_equal(target_paths(seeds[50:60], 300, .5), paths[50:60])
    first = int(np.flatnonzero(moving)[0])
    target = sac.TargetTrajectory(PhiloxKicks(seeds[first]))
    for row in paths[first, 1:]:
        target.step()
        assert row[:3] == pytest.approx(target.position, abs=1e-6)
        assert row[3:] == pytest.approx(target.velocity, abs=1e-6)


def test_the_reward_is_that_of_the_target_which_the_student_does_not_see(fleet):
    student, seeds = RaptorPolicy.published(), list(range(24))
    batch = DroneBatch(actors(fleet), fleet, 8)
    resting, moving, changed = empty_record(24, 80), empty_record(24, 80), 0
    batch.fly(resting, seeds, student)
    batch.fly(moving, seeds, student, moving_targets=.5)
    assert torch.equal(resting.length, moving.length)
    for i, n in enumerate(resting.length.tolist()):
        assert torch.equal(resting.rows[i, :n, :26], moving.rows[i, :n, :26])
        n -= int(resting.terminated[i]) # the penalty of the last step does not depend on the target
        position, target = moving.rows[i, :n, :3], moving.rows[i, :n, 26:29]
        more = (position.norm(dim=1) - (position - target).norm(dim=1)).sum().item()
        difference = (moving.episode_return[i] - resting.episode_return[i]).item()
        assert difference == pytest.approx(more, abs=1e-3)
        changed += more != 0
    assert 4 < changed < 20


# ---------------------------------------------------------------------------------- steady offsets
def test_steady_offset_is_where_a_teacher_rests(fleet):
    resting = [with_conditions(d, force=0., guidance=1.) for d in fleet]
    teachers = actors(resting)
    for p in (teachers.w1, teachers.w2, teachers.w3): p.zero_()
    hover = teachers.b3.clone()
    def offsets(bias, steps):
        teachers.b3.copy_(bias)
        return RolloutWorker(teachers, resting, 1, empty_record(3, steps)).steady_offsets(4)
    low, middle, high = (offsets(hover + more, 40)[:, 2] for more in (-.3, 0., .3))
    assert (low < middle).all() and (middle < high).all()
    motors_off = offsets(torch.full_like(hover, -3.), 200)
    assert motors_off.tolist() == [[0.] * 3] * 3 # no flight lasts


def test_the_offset_is_taken_from_the_position_alone():
    flights, offset = random_record(4, 30), torch.randn(4, 3)
    flights.label.normal_()
    index, reset = chain_episodes(flights.length, 30, 7, 16)
    observation, label, _ = published.gather_sequences(flights, offset, index, reset)
    at = torch.from_numpy(index).long()
    rows = flights.rows.view(-1, published.STEP_WIDTH)[at]
    assert torch.equal(observation[..., 3:], rows[..., 3:22])
    assert torch.equal(label, flights.label.view(-1, 4)[at])
    assert torch.allclose(observation[..., :3] + offset[at // 30], rows[..., :3], atol=1e-6)


# --------------------------------------------------------------------------------------- sequences
LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(any)


@given(LENGTHS, st.integers(1, 15), st.integers(1, 4), st.booleans())
@hypothesis_settings(max_examples=60, deadline=None)
def test_sequences_hold_flights_in_one_piece(length, sequence, batch, shuffle):
    random = np.random.default_rng(0) if shuffle else None
    index, reset = chain_episodes(length, 12, sequence, batch, random)
    counted = [12 * i + k for i, n in enumerate(length) for k in range(n)]
    assert len(set(index.ravel())) == index.size and set(index.ravel()) <= set(counted)
    assert reset[:, 0].all() and (reset[:, 1:] == (index[:, 1:] % 12 == 0)).all()
    inside = ~reset[:, 1:]
    assert (index[:, 1:][inside] == index[:, :-1][inside] + 1).all()
    whole = len(counted) // (sequence * batch) * batch
    if whole: assert index.shape == (whole, sequence)
    if not shuffle: assert index.ravel().tolist() == counted[:index.size]


def test_a_short_flight_counts():
    index, reset = chain_episodes([500] * 60 + [30] * 200, 500, random=np.random.default_rng(0))
    assert index.shape == (64, 500) and reset.sum() > 200


# ---------------------------------------------------------------------------------------- learning
@pytest.mark.parametrize("count", [16, 5])
def test_gradients_are_those_of_autograd(count):
    torch.manual_seed(1)
    student, offset = RaptorPolicy(), .1 * torch.randn(9, 3)
    flights = random_record(9, 40, rows=.5, length=torch.randint(20, 41, (9,)).tolist())
    flights.label.normal_(std=.3)
    chained = chain_episodes(flights.length, 40, 15, 1, np.random.default_rng(2))
    batch = flights, offset, *(x[:count] for x in chained)
    loss, grads = published.batch_gradients(student, *batch)
    observation, label, reset = published.gather_sequences(*batch)
    wanted = (student(observation, None, reset)[0] - label).square().mean()
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-4)
    for name, p in student.named_parameters():
        if p.requires_grad: assert torch.allclose(grads[name], p.grad, atol=2e-5), name


def curve_of(settings, fleet, **how):
    "The student, and what was logged of each epoch"
    rows = []
    log = lambda epoch, numbers: rows.append(dict(epoch=epoch, **numbers))
    return train(settings, actors(fleet), fleet, log=log, **how), rows


def mean_return(settings, fleet, student, epoch):
    "Of the flights of an epoch, flown once more"
    with closing(collector_of(settings, actors(fleet), fleet)) as collector:
        collector.collect(student, settings.training.seed, epoch)
    return collector.flights.episode_return.mean().item()


def test_training_learns_and_keeps_the_best(fleet):
    longer = dict(n_epochs=40, epoch_teacher_forcing=25, learning_rate=1e-2)
    settings = load_config(TASK, distillation=longer)
    student, rows = curve_of(settings, fleet)
    assert [r["epoch"] for r in rows] == list(range(41))
    assert np.mean([r["loss"] for r in rows[20:25]]) < 0.3 * rows[0]["loss"]
    best = max(rows[25:], key=lambda r: r["return"])
    again = mean_return(settings, fleet, student, best["epoch"])
    assert again == pytest.approx(best["return"], abs=1e-2)


def test_teachers_fly_first(fleet):
    _, rows = curve_of(TASK, fleet)
    teachers_return = [mean_return(TASK, fleet, None, epoch) for epoch in range(3)]
    logged = [r["return"] for r in rows]
    assert teachers_return[:2] == pytest.approx(logged[:2], abs=1e-3)
    assert teachers_return[2] != pytest.approx(logged[2], abs=1e-3)


def test_off_policy_teachers_fly_always(fleet):
    settings = load_config(TASK, data_collection=dict(on_policy=False))
    student, rows = curve_of(settings, fleet)
    assert mean_return(settings, fleet, None, 5) == pytest.approx(rows[5]["return"], abs=1e-3)
    last = mean_return(settings, fleet, student, 6) # the last student is judged by its own flights
    assert last == pytest.approx(rows[6]["return"], abs=1e-3)


class Stop(Exception): pass


def test_training_resumes_where_it_was_interrupted(fleet, tmp_path):
    whole, _ = curve_of(TASK, fleet)
    def stop(epoch, numbers):
        if epoch == 4: raise Stop
    with pytest.raises(Stop):
        train(TASK, actors(fleet), fleet, log=stop, checkpoints=Checkpoints(tmp_path))
    resumed, rows = curve_of(TASK, fleet, checkpoints=Checkpoints(tmp_path), workers=2)
    assert [r["epoch"] for r in rows] == [4, 5, 6] # the interrupted epoch is done again
    for x, y in zip(whole.state_dict().values(), resumed.state_dict().values()):
        assert torch.allclose(x, y, atol=1e-6)


def test_without_the_native_engine(fleet, monkeypatch):
    fast, _ = curve_of(TASK, fleet)
    monkeypatch.setattr(native, "available", lambda: False)
    slow, _ = curve_of(TASK, fleet)
    for x, y in zip(fast.state_dict().values(), slow.state_dict().values()):
        assert torch.allclose(x, y, atol=5e-3)


def test_any_policy_flies_in_the_flights_of_an_epoch(fleet):
    policies = dict(published=RaptorPolicy.published(), untrained=RaptorPolicy())
    table = published.evaluate_as_published(TASK, policies, actors(fleet), fleet, epoch=3)
    wanted = [mean_return(TASK, fleet, policy, 3) for policy in policies.values()]
    assert table.policy.tolist() == list(policies)
    assert table["return"].tolist() == pytest.approx(wanted, abs=1e-3)


def test_the_published_curve_is_packaged():
    curve = published.published_curve()
    assert len(curve) == 1000 and curve.hours.iloc[-1] == pytest.approx(1.98, abs=.01)
    assert curve["return"].iloc[:10].mean() == pytest.approx(648.5, abs=1)


# --------------------------------------------------------------------------------------- bad input
def resume_elsewhere(fleet, tmp_path):
    train(TASK, actors(fleet), fleet, checkpoints=Checkpoints(tmp_path))
    other = load_config(TASK, training=dict(seed=6))
    train(other, actors(fleet), fleet, checkpoints=Checkpoints(tmp_path))


@pytest.mark.parametrize("make, message", [
    pytest.param(lambda f, t: PublishedTraining(TASK, actors(f), f[:2]),
                 "there are 2 drones for 3 teachers", id="drones-missing"),
    pytest.param(lambda f, t: label_flights(actors(f), empty_record(4, 5)),
                 "there are 4 flights for 3 teachers", id="flights-not-even"),
    pytest.param(lambda f, t: chain_episodes([0, 0], 5),
                 "no flight has a single step", id="no-steps"),
    pytest.param(resume_elsewhere,
                 "the checkpoint was made with seed 5, the settings say 6", id="other-seed"),
])
def test_bad_input(fleet, tmp_path, make, message):
    with pytest.raises(RecipeError, match=message): make(fleet, tmp_path)
