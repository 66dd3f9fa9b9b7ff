"Soft actor-critic: stacks equal singles, a killed run goes on, the bootstrap, bad input, and learning itself"
import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("l2f", reason="flying needs l2f")

from raptor_nb.core.config import ConfigError, load_config
from raptor_nb.core.records import Checkpoints, RecordError, WriteError, load_json
from raptor_nb.drones import real_drones, sample_drone, vary
from raptor_nb.learn import sac, sac_native
from raptor_nb.policy import Teachers


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**changes):
    "Settings of a run of seconds, by the native engine where it is: narrow critics, a short warm-up, few flights"
    return load_config("default", **{"training": dict(device="cpu", seed=3, eval_frequency=100, checkpoint_frequency=60),
                                     "sac": dict(n_warmup_steps=50, critic_hidden_dim=32, actor_hidden_dim=32, critic_batch_size=32, actor_batch_size=16),
                                     "data_collection": dict(num_episodes_eval=3)} | changes)


def random_batch(k=1, b=8, inputs=26, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)
    return sac.Batch(draw(k, b, inputs), draw(k, b, 4).tanh(), draw(k, b), draw(k, b, inputs), (draw(k, b) > 0).float())


# --- networks and losses ---

def test_log_probability_is_that_of_torchs_transformed_normal():
    mean, log_std, noise = (torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    action, log_prob = sac.squash(mean, log_std, noise)
    tanh = torch.distributions.TransformedDistribution(torch.distributions.Normal(mean, log_std.exp()), [torch.distributions.TanhTransform(cache_size=1)])
    x = mean + log_std.exp() * noise
    inside = x.abs() < 8
    reference = tanh.base_dist.log_prob(x) - torch.log1p(-torch.tanh(x)**2)
    assert torch.equal(action, torch.tanh(x))
    assert inside.all(-1).sum() > 40
    assert torch.allclose(log_prob[inside.all(-1)], reference.sum(-1)[inside.all(-1)], atol=1e-8)


def test_density_of_a_squashed_gaussian_integrates_to_one():
    grid = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    action, log_prob = sac.squash(torch.tensor([0.3], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64), grid[:, None])
    assert torch.trapezoid(log_prob.exp(), action[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_saturated_actions_have_finite_log_probability_and_gradient():
    mean = torch.tensor([[60., -60., 20., 0.]], requires_grad=True)
    log_prob = sac.squash(mean, torch.zeros(1, 4), torch.zeros(1, 4))[1]
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all() and torch.isfinite(mean.grad).all()


def test_log_std_is_kept_within_its_bounds():
    actor = sac.network([26, 8, 8], [0])
    actor[-1][..., 4:] = torch.tensor([1e3, -1e3, 0., 0.])
    actor[-2].zero_()
    log_std = sac.gaussian(actor, torch.randn(1, 5, 26))[1]
    assert log_std[..., 0].unique().item() == 2 and log_std[..., 1].unique().item() == -20


def test_critics_of_a_teacher_lie_side_by_side():
    critic = sac.network([30, 8, 1], [1, 2, 3, 4])
    observation, action = torch.randn(2, 5, 26), torch.randn(2, 5, 4)
    q, x = sac.value(critic, observation, action), torch.cat([observation, action], -1)
    for k in range(2):
        for twin in range(2):
            alone = sac.forward([p[2 * k + twin:2 * k + twin + 1] for p in critic], x[k:k + 1])
            assert torch.allclose(q[k, twin], alone[0, :, 0], atol=1e-6)


def test_only_termination_stops_the_bootstrap():
    "500 steps without a crash end the flight by truncation, and the memory says so"
    drone = vary(real_drones()["crazyflie"], guidance=1.)  # begins at hover
    flights, hover = sac.Flights([drone], [0], seed=0, episode_steps=5), np.full((1, 4), drone.hover_action, np.float32)
    ends = [flights.step(hover)[2:] for _ in range(12)]
    assert [bool(t[0]) for _, t in ends] == [False, False, False, False, True] * 2 + [False] * 2
    assert not any(t[0] for t, _ in ends)
    full = sac.Flights([drone], [0], seed=0)
    crash = [full.step(np.array([[1., -1, -1, 1]], np.float32)) for _ in range(60)]
    first = next(i for i, c in enumerate(crash) if c[2][0])
    assert crash[first][0][0] == -100 and not crash[first][3][0]
    run = sac.start(small(environment=dict(episode_steps=5)), [drone], [0], 20)
    run.flights.step = lambda action: (np.array([1.]), np.zeros((1, 26)), np.array([False]), np.array([True]))
    sac.collect(run, sac.draws(run))
    assert run.memory.sample(torch.zeros(1, 1, dtype=int)).terminated.item() == 0


def test_a_flight_behind_a_target_is_a_flight_in_the_world_seen_from_the_target():
    "The same actions, with and without a target: places differ by the target's, velocities by its velocity, all else is equal"
    drone, random = vary(real_drones()["crazyflie"], guidance=1., terminate=False), np.random.default_rng(0)
    behind, world = (sac.Flights([drone], [0], seed=0, trajectories=share) for share in (1., 0.))
    assert behind.targets and not world.targets
    for action in random.uniform(-0.2, 0.2, (200, 1, 4)) + drone.hover_action:
        behind.step(action), world.step(action)
    target, a, b = behind.targets[0], behind.observation[0], world.observation[0]
    assert np.linalg.norm(target.position) > 0.05
    assert np.allclose(a[:3] + target.position, b[:3], atol=1e-4) and np.allclose(a[12:15] + target.velocity, b[12:15], atol=1e-4)
    assert np.allclose(np.delete(a, [0, 1, 2, 12, 13, 14]), np.delete(b, [0, 1, 2, 12, 13, 14]), atol=1e-5)


def test_half_of_the_flights_follow_a_target_when_asked_to():
    flights, moving = sac.Flights([real_drones()["crazyflie"]] * 2, [0, 1], seed=0, episode_steps=1, trajectories=0.5), []
    for _ in range(200):
        moving.append([k in flights.targets for k in range(2)])
        flights.step(np.zeros((2, 4), np.float32))
    assert 0.4 < np.mean(moving) < 0.6 and 0.3 < np.mean(np.not_equal(*np.transpose(moving))) < 0.7


def test_targets_wander_as_far_as_their_equation_says():
    "The spring holds x within sigma / (omega sqrt(2 gamma)) = 0.18 m; smoothing over a second leaves less"
    ends = np.array([sac.Target(np.random.default_rng(i)) for i in range(400)])
    for t in ends: [t.step() for _ in range(400)]
    assert np.std([t.x for t in ends]) == pytest.approx(0.5 / (2 * 2**0.5), rel=0.1)
    assert 0.04 < np.std([t.position for t in ends]) < 0.17 and abs(np.mean([t.position for t in ends])) < 0.02


def test_following_observation_is_the_one_before_the_reset():
    drone = real_drones()["crazyflie"]
    flights = sac.Flights([drone], [0], seed=0)
    for _ in range(200):
        _, following, terminated, _ = flights.step(np.ones((1, 4), np.float32))
        if terminated[0]: break
        assert np.array_equal(following, flights.observation)
    limit = drone.mdp.termination
    outside = [abs(following[0, :3]).max() / limit.position_threshold, abs(following[0, 12:15]).max() / limit.linear_velocity_threshold, abs(following[0, 15:18]).max() / limit.angular_velocity_threshold]
    assert terminated[0] and max(outside) > 1
    assert flights.time[0] == 0 and flights.flight[0] == 1 and not np.array_equal(following, flights.observation)


def test_update_moves_what_it_should():
    settings = small().sac
    learner = sac.create_learner([0], settings, 0, 26)
    noise = torch.randn(1, 8, 4)
    moved = []
    for _ in range(4):
        before = [p.detach().clone() for p in (*learner.actor, learner.log_temperature)], [p.detach().clone() for p in learner.critic]
        metrics = sac.update(learner, random_batch(), noise, noise, settings)
        assert all(torch.isfinite(x).all() for x in metrics.values())
        moved.append(all(not torch.equal(a, b) for a, b in zip(before[0], (*learner.actor, learner.log_temperature))))
        assert all(not torch.equal(a, b) for a, b in zip(before[1], learner.critic))
    assert moved == [True, False, True, False]


def test_critic_learns_the_values_of_a_chain_with_a_known_answer():
    "Reward 1 for ever has the value 1 / (1 - gamma); reward 1 and termination the value 1 (temperature ~ 0)"
    settings = small(sac=dict(gamma=0.8, temperature=1e-9, temperature_learning_rate=1e-9, learning_rate=3e-3, tau=0.05, critic_hidden_dim=32, actor_hidden_dim=8)).sac
    learner = sac.create_learner([0], settings, 0, 26)
    for step in range(600):
        b = random_batch(b=32, seed=step)
        b = b._replace(observation=b.observation.sign() * 0.1, reward=torch.ones_like(b.reward))
        ends = b.observation[..., 0] > 0
        following = b.observation.clone()
        b = b._replace(following=following, terminated=ends.float())
        sac.update_critic(learner, b, torch.zeros(1, 32, 4), settings)
    q = sac.value(learner.critic, b.observation, b.action).detach().mean(1)
    assert q[ends].mean().item() == pytest.approx(1, abs=0.25)
    assert q[~ends].mean().item() == pytest.approx(5, abs=0.6)


# --- independence of the teachers of a stack ---

@pytest.mark.parametrize("engine", ["native", "plain"])
def test_a_stack_of_three_gives_each_teacher_what_it_would_have_got_alone(engine):
    """2000 updates on three threads, one of the drones with sensor noise. The native engine takes teachers one by one: equal to the last bit. Batched products of
    another size may be rounded differently by a library, and training amplifies that: torch may differ by 1e-5 after 250 updates (here it is equal too)"""
    native, updates = engine == "native", 2000 if engine == "native" else 250
    fleet, ids, settings = [real_drones()["crazyflie"], sample_drone(7), vary(sample_drone(8), observation_noise=0.01)], [0, 7, 8], small(**{"sac.engine": engine})
    stack = sac.begin(settings, fleet, ids, 50 + updates)
    alone = [sac.start(settings, [d], [i], 50 + updates) for d, i in zip(fleet, ids)]
    sac_native.side_by_side(stack, 50 + updates, sac.advance, workers=3)
    for run in alone: sac.advance(run, 50 + updates)
    stored = {}
    for run in stack: stored |= sac.snapshot(run)
    assert list(stored) == ids and min(s["flight"] for s in stored.values()) >= 3
    for one in alone:
        (i, expected), = sac.snapshot(one).items()
        assert stored[i]["updates"] == updates and (stored[i]["flight"], stored[i]["time"]) == (expected["flight"], expected["time"])
        for name, layers in expected["stacks"].items():
            for a, b in zip(stored[i]["stacks"][name], layers):
                assert torch.equal(a, b) if native else torch.allclose(a, b, rtol=0, atol=1e-5), (i, name)


@pytest.mark.parametrize("privileged, interval", [(True, 2), (False, 2), (True, 1)])
def test_both_engines_do_the_same(privileged, interval):
    "60 updates; float32 sums in another order"
    settings = small(**{"sac.privileged": privileged, "sac.actor_update_interval": interval, "sac.trajectories": 0.5})
    native, plain = (sac.start(load_config(settings, **{"sac.engine": engine}), [sample_drone(7)], [7], 110) for engine in ("native", "plain"))
    for run in (native, plain): sac.advance(run, 110)
    a, b = (sac.snapshot(run)[7] for run in (native, plain))
    assert plain.engine is None and native.engine and a["updates"] == b["updates"] == 60 and a["counts"] == b["counts"]
    for name, layers in a["stacks"].items():
        for x, y in zip(layers, b["stacks"][name]): assert torch.allclose(x, y, rtol=1e-3, atol=2e-6), (name, (x - y).abs().max())
    for name, x in a["sums"].items(): assert x == pytest.approx(b["sums"][name], rel=1e-3), name
    assert torch.allclose(native.memory.rows, plain.memory.rows, atol=1e-4)


def test_one_engine_goes_on_where_the_other_stopped(tmp_path):
    drone, last = [real_drones()["crazyflie"]], []
    for name, engines in dict(native=["native"], plain=["plain"], both=["plain", "native"]).items():
        for i, engine in enumerate(engines): sac.train(small(**{"sac.engine": engine}), drone, 60 if len(engines) > i + 1 else 120, output_dir=tmp_path / name)
        last.append(Teachers.load(tmp_path / name / "last.safetensors"))
    for a, b, c in zip(*(t.parameters() for t in last)): assert torch.allclose(a, c, atol=1e-5) and torch.allclose(b, c, atol=1e-5)


def test_teachers_differ_and_do_not_depend_on_their_place():
    settings, fleet = small(), {7: sample_drone(7), 9: sample_drone(9)}
    a, b = (sac.train(settings, [fleet[i] for i in ids], 120, ids=ids)[0] for ids in ([7, 9], [9, 7]))
    for x, y in zip(a.select([9]).parameters(), b.select([9]).parameters()): assert torch.allclose(x, y, atol=1e-5)
    assert not torch.allclose(a.w1[0], a.w1[1], atol=1e-2)


def test_another_seed_is_another_run():
    drone = [real_drones()["crazyflie"]]
    a, b = (sac.start(small(**{"training.seed": s}), drone, [0], 100) for s in (3, 4))
    assert not torch.equal(a.learner.actor[0], b.learner.actor[0]) and not np.array_equal(a.flights.observation, b.flights.observation)


def test_evaluation_leaves_the_run_alone():
    drone = [real_drones()["crazyflie"]]
    a, b = (sac.start(small(), drone, [0], 120) for _ in range(2))
    for i in range(120):
        sac.advance(a)
        sac.advance(b)
        if i % 20 == 0: sac.assess(b)
    sac.settle(a), sac.settle(b)
    assert torch.equal(a.memory.rows, b.memory.rows) and torch.equal(a.learner.critic[0], b.learner.critic[0])


# --- records ---

class Killed(Exception): pass


def judge_as(monkeypatch, scores):
    "Evaluations give these returns, whatever was flown"
    real = sac.evaluate

    def judged(*a, **k):
        rows, first = real(*a, **k)
        return rows.assign(**{"return": next(scores)}), first

    monkeypatch.setattr(sac, "evaluate", judged)


@pytest.mark.parametrize("at", [100, 200])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, at):
    fleet, settings = [real_drones()["crazyflie"], vary(sample_drone(7), observation_noise=0.01)], small()
    whole, curve = sac.train(settings, fleet, 260, output_dir=tmp_path / "whole")

    def kill(step, rows):
        if step == at: raise Killed

    with pytest.raises(Killed): sac.train(settings, fleet, 260, output_dir=tmp_path / "killed", log=kill)
    assert Checkpoints(tmp_path / "killed" / "checkpoints").latest() is not None
    steps = []
    again, again_curve = sac.train(settings, fleet, 260, output_dir=tmp_path / "killed", log=lambda step, rows: steps.append(step))
    assert steps[0] > 0, "it began anew instead of going on"
    last = [Teachers.load(tmp_path / name / "last.safetensors") for name in ("whole", "killed")]
    for a, b in [(whole, again), last]:
        for x, y in zip(a.parameters(), b.parameters()): assert torch.equal(x, y)
    pd.testing.assert_frame_equal(curve, again_curve, rtol=1e-6, check_dtype=False)
    assert list(pd.read_csv(tmp_path / "killed" / "curve.csv")["step"]) == [0, 0, 100, 100, 200, 200, 260, 260]


@pytest.mark.slow
def test_a_process_that_is_killed_three_times_ends_with_equal_weights(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "sac_kill.py"
    done = subprocess.run([sys.executable, script, "--steps", "1500", "--out", tmp_path / "kill.json"], capture_output=True, text=True)
    report = load_json(tmp_path / "kill.json")
    assert done.returncode == 0 and report["equal"] and len(report["kills"]) == 3, done.stdout + done.stderr


def stopped(folder, steps=120, at=120):
    "A run that was killed behind a checkpoint; its folder"
    def kill(step, rows):
        if step == at: raise Killed
    drone = [real_drones()["crazyflie"]]
    with pytest.raises(Killed): sac.train(small(**{"training.eval_frequency": 40}), drone, steps, output_dir=folder, log=kill)
    return lambda steps=160: sac.train(small(**{"training.eval_frequency": 40}), drone, steps, output_dir=folder)


def whole(steps=160): return sac.train(small(**{"training.eval_frequency": 40}), [real_drones()["crazyflie"]], steps)[1]


def same_curve(a, b):
    "Equal but for text and back; a run that ends at a step is evaluated there once more"
    pd.testing.assert_frame_equal(a, b, rtol=1e-6, check_dtype=False)


@pytest.mark.parametrize("damage", ["checkpoint", "memory"])
def test_what_was_cut_short_is_left_out_and_the_older_checkpoint_goes_on(tmp_path, damage):
    go_on = stopped(tmp_path, steps=200, at=160)  # checkpoints at 60 and 120
    path = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1] if damage == "checkpoint" else tmp_path / "memory" / "0.f32"
    path.write_bytes(path.read_bytes()[:-5 if damage == "checkpoint" else -58 * 4 * 30])
    with pytest.warns(UserWarning, match="checkpoint skipped: .*truncated"): same_curve(go_on()[1], whole())


def test_memory_that_fits_no_checkpoint_is_one_sentence(tmp_path):
    go_on = stopped(tmp_path)
    path = tmp_path / "memory" / "0.f32"
    path.write_bytes(bytes(8) + path.read_bytes()[8:])
    with pytest.raises(RecordError, match="'.*0.f32' is damaged: its first 60 rows are not those that were written; use an older checkpoint"): go_on()


def test_no_space_for_the_memory_leaves_the_run_as_it_was(tmp_path, monkeypatch):
    drone, settings = [real_drones()["crazyflie"]], small(**{"training.eval_frequency": 40})

    def full(_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(step, rows):
        if step == 80: monkeypatch.setattr("raptor_nb.core.records.os.fsync", full)

    with pytest.raises(WriteError, match="no space left on device"): sac.train(settings, drone, 160, output_dir=tmp_path, log=fill)
    monkeypatch.undo()
    same_curve(sac.train(settings, drone, 160, output_dir=tmp_path)[1], whole())


def test_a_second_run_is_refused_and_told_who_has_the_folder(tmp_path):
    def again(step, rows):
        if step: return
        with pytest.raises(WriteError, match="is being written by process [0-9]+ on .*; wait for it, end it, or choose another"): sac.train(small(), [real_drones()["crazyflie"]], 60, output_dir=tmp_path)
        tried.append(step)
    tried = []
    sac.train(small(), [real_drones()["crazyflie"]], 60, output_dir=tmp_path, log=again)
    assert tried == [0]


def test_one_failure_ends_all_threads():
    class Steps:
        def __init__(self, bad): self.step, self.bad = 0, bad
    def go_on(run, step):
        if run.bad: raise Killed
        run.step = step
    runs = [Steps(False), Steps(True), Steps(False)]
    with pytest.raises(Killed): sac_native.side_by_side(runs, 10**9, go_on, workers=2, stride=1)
    assert runs[0].step < 10**9


def test_a_finished_run_is_not_trained_again(tmp_path):
    drone, settings = [real_drones()["crazyflie"]], small()
    first, curve = sac.train(settings, drone, 100, output_dir=tmp_path)
    calls = []
    second, again = sac.train(settings, drone, 100, output_dir=tmp_path, log=lambda *_: calls.append(1))
    assert not calls and torch.equal(first.w3, second.w3) and len(again) == len(curve)


def test_a_run_can_be_prolonged(tmp_path):
    drone, settings = [real_drones()["crazyflie"]], small()
    sac.train(settings, drone, 100, output_dir=tmp_path)
    longer, _ = sac.train(settings, drone, 200, output_dir=tmp_path)
    whole, _ = sac.train(settings, drone, 200)
    assert torch.equal(longer.w2, whole.w2)


def test_the_best_teachers_are_kept_and_not_the_last(tmp_path, monkeypatch):
    scores = iter([1., 9., 4., 2.])
    judge_as(monkeypatch, scores)
    seen = {}
    best, curve = sac.train(small(), [real_drones()["crazyflie"]], 300, output_dir=tmp_path, log=lambda step, _: seen.update({step: Teachers.load(tmp_path / "last.safetensors").w1}))
    assert list(curve["return"]) == [1., 9., 4., 2.]
    assert torch.equal(best.w1, seen[100]) and not torch.equal(best.w1, seen[300])
    assert torch.equal(Teachers.load(tmp_path / "teachers.safetensors").w1, best.w1)


def test_the_best_teachers_survive_a_restart(tmp_path, monkeypatch):
    scores = iter([1., 9., 4., 2., 3.])
    judge_as(monkeypatch, scores)
    seen = {}

    def kill(step, rows):
        seen[step] = Teachers.load(tmp_path / "last.safetensors").w1
        if step == 200: raise Killed

    drone = [real_drones()["crazyflie"]]
    with pytest.raises(Killed): sac.train(small(), drone, 260, output_dir=tmp_path, log=kill)
    best, curve = sac.train(small(), drone, 260, output_dir=tmp_path)
    assert list(curve["return"]) == [1., 9., 2., 3.]
    assert torch.equal(best.w1, seen[100])


def test_the_curve_shows_means_since_the_last_evaluation(monkeypatch):
    run, rows = sac.start(small(**{"sac.engine": "plain"}), [real_drones()["crazyflie"]], [0], 100), []
    for loss in (1., 2., 3., 5.):
        monkeypatch.setattr(sac, "update", lambda *_: dict(critic_loss=torch.tensor([loss])))
        sac.advance(run, max(run.step, 60) + 1)
        if loss in (2., 5.): rows.append(sac.assess(run))
    assert rows[0]["critic_loss"].item() == pytest.approx((11 * 1 + 2) / 12) and rows[1]["critic_loss"].item() == 4


def test_teachers_without_rotor_speeds_take_22_inputs():
    teachers, curve = sac.train(small(**{"sac.privileged": False}), [sample_drone(3)], 60, ids=[3])
    assert teachers.w1.shape[1] == 22 and teachers.ids == (3,) and curve["teacher"].tolist() == [3, 3]


def test_curve_has_its_columns_and_starts_untrained():
    _, curve = sac.train(small(), [real_drones()["crazyflie"]], 120)
    assert curve["step"].tolist() == [0, 100, 120]
    assert {"return", "survival", "steady_error", "length", "critic_loss", "actor_loss", "entropy", "temperature", "value"} <= set(curve)
    assert math.isnan(curve["critic_loss"][0]) and np.isfinite(curve["critic_loss"][1:]).all()


# --- bad input ---

def fill(**bad):
    step = dict(observation=np.zeros((1, 26)), action=np.zeros((1, 4)), reward=np.zeros(1), following=np.zeros((1, 26)), terminated=np.zeros(1))
    memory = sac.Replay(1, 1, 26)
    for _ in range(bad.pop("times", 1)): memory.add(**step | bad)


def wide():
    settings = small().sac
    sac.update(sac.create_learner([0], settings, 0, 26), random_batch(inputs=22), torch.zeros(1, 8, 4), torch.zeros(1, 8, 4), settings)


def other(folder, **changes):
    drone = [real_drones()["crazyflie"]]
    sac.train(small(), drone, 60, output_dir=folder)
    resume = changes.pop("resume", True)
    steps, fleet = changes.pop("steps", 60), changes.pop("fleet", drone)
    sac.train(small(**changes), fleet, steps, output_dir=folder, resume=resume)


BAD = [
    pytest.param(lambda d: sac.train(small(**{"sac.engine": "native", "sac.critic_hidden_dim": 40}), [sample_drone(1)], 100), RuntimeError, "sac.engine is 'native'; that needs a CPU, hidden layers of a multiple of 32", id="native-with-odd-sizes"),
    pytest.param(lambda d: sac.train(small(), [], 100), ValueError, "the fleet is empty; give at least one drone", id="empty-fleet"),
    pytest.param(lambda d: sac.train(small(), [sample_drone(1)], 50), ValueError, r"steps is 50; it must be above sac.n_warmup_steps \(50\)", id="steps-within-warm-up"),
    pytest.param(lambda d: sac.train(small(), [sample_drone(1)], -5), ValueError, "steps is -5; it must be", id="negative-steps"),
    pytest.param(lambda d: sac.train(small(), [sample_drone(1)], 1e5), ValueError, "steps is 100000.0; it must be a whole number", id="steps-not-whole"),
    pytest.param(lambda d: sac.train(small(), [sample_drone(1)] * 2, 100, ids=[4, 4]), ValueError, r"every drone needs an id of its own: 2 expected, got \[4, 4\]", id="repeated-ids"),
    pytest.param(lambda d: sac.train(small(), [sample_drone(1)], 100, ids=[1, 2]), ValueError, r"every drone needs an id of its own: 1 expected, got \[1, 2\]", id="too-many-ids"),
    pytest.param(lambda d: sac.train(small(), [sample_drone(1)], 100, ids=[-1]), ValueError, "id is -1; it must be a whole number, 0 or above", id="negative-id"),
    pytest.param(lambda d: sac.train(small(), ["crazyflie"], 100), ValueError, "drones\\[0\\] is of type str; it must be a Drone", id="not-a-drone"),
    pytest.param(lambda d: small(**{"sac.gama": 0.9}), ConfigError, "section 'sac' has no 'gama'; the nearest is 'gamma'", id="unknown-setting"),
    pytest.param(lambda d: sac.train(small(**{"sac.actor_batch_size": 64}), [sample_drone(1)], 100), ValueError, "actor_batch_size is 64; it must not be above sac.critic_batch_size", id="actor-batch-too-large"),
    pytest.param(lambda d: fill(reward=np.array([np.nan])), ValueError, "the reward of lane 0 at step 0 is nan; it must be finite; nothing was stored", id="nan-reward"),
    pytest.param(lambda d: fill(following=np.full((1, 26), np.inf)), ValueError, "the following of lane 0 at step 0 is inf", id="infinite-observation"),
    pytest.param(lambda d: fill(observation=np.zeros((1, 22))), ValueError, r"the observation has shape \(1, 22\); it must be \(1, 26\)", id="observation-of-wrong-size"),
    pytest.param(lambda d: fill(times=2), ValueError, "all 1 rows are taken", id="memory-full"),
    pytest.param(lambda d: wide(), ValueError, "observations of 22 values, the actors take 26", id="batch-of-wrong-size"),
    pytest.param(lambda d: other(d, **{"sac.gamma": 0.9}), ValueError, "the stored run has sac.gamma = 0.99 instead of 0.9; resume with", id="resume-with-other-settings"),
    pytest.param(lambda d: other(d, **{"training.seed": 5}), ValueError, "the stored run has other seed: 3 instead of 5", id="resume-with-other-seed"),
    pytest.param(lambda d: other(d, fleet=[sample_drone(1)]), ValueError, "the stored run has other drones", id="resume-with-other-drone"),
    pytest.param(lambda d: other(d, steps=55), ValueError, "the stored run is at step 60, beyond the 55 steps asked for", id="resume-with-fewer-steps"),
    pytest.param(lambda d: other(d, resume=False), ValueError, "holds a run already", id="folder-of-another-run"),
]


@pytest.mark.parametrize("call, error, message", BAD)
def test_bad_input_is_one_sentence(tmp_path, call, error, message):
    with pytest.raises(error, match=message) as e: call(tmp_path)
    assert "\n" not in str(e.value)


def test_nothing_is_lost_when_a_resume_is_refused(tmp_path):
    drone = [real_drones()["crazyflie"]]
    sac.train(small(), drone, 60, output_dir=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError): sac.train(small(**{"sac.tau": 0.1}), drone, 60, output_dir=tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


# --- learning ---

@pytest.mark.slow
def test_fifty_thousand_steps_rise_well_above_the_untrained_baseline():
    settings = load_config("default", **{"training.device": "cpu", "training.seed": 0, "training.eval_frequency": 10_000, "data_collection.num_episodes_eval": 50})
    _, curve = sac.train(settings, [real_drones()["crazyflie"]], 50_000)
    untrained, best = curve["return"].iloc[0], curve["return"].max()
    assert untrained < 0
    assert best > 200
    assert curve["length"].max() > 3 * curve["length"].iloc[0]
