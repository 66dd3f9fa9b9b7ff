"Soft actor-critic: stacks equal singles, killed runs resume, the bootstrap, bad input, learning"
import errno
import json
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

from raptor_nb.core.config import ConfigError
from raptor_nb.core.records import Checkpoints, RecordError, WriteError, load_json
from raptor_nb.drones import real_drones, sample_drone, with_conditions
from raptor_nb.learn import sac
from raptor_nb.policy import Teachers
from raptor_nb.settings import load_config

CRAZYFLIE = real_drones()["crazyflie"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**changes):
    "Settings of a run of seconds: narrow networks, a short warm-up, few flights"
    training = dict(device="cpu", seed=3, eval_frequency=100, checkpoint_frequency=60)
    sizes = dict(learning_starts=50, critic_hidden_dim=32, actor_hidden_dim=32,
                 critic_batch_size=32, actor_batch_size=16)
    given = dict(training=training, sac=sizes, data_collection=dict(num_episodes_eval=3))
    return load_config("default", **given | changes)


def often(): return small(**{"training.eval_frequency": 40})


def random_batch(k=1, b=8, inputs=26, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g)
    obs, action, reward = draw(k, b, inputs), draw(k, b, 4).tanh(), draw(k, b)
    return sac.Batch(obs, action, reward, draw(k, b, inputs), (draw(k, b) > 0).float())


def close(a, b, **tolerance):
    "Whether two stacks of teachers hold the same numbers"
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.allclose(x, y, **tolerance) for x, y in pairs)


EXACTLY = dict(rtol=0, atol=0)


# --- networks and losses ---

def test_log_probability_is_that_of_torchs_transformed_normal():
    draw = lambda seed: torch.randn(64, 4, dtype=torch.float64,
                                    generator=torch.Generator().manual_seed(seed))
    mean, log_std, noise = map(draw, range(3))
    action, log_prob = sac.squash(mean, log_std, noise)
    x = mean + log_std.exp() * noise
    normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(x)
    reference = normal - torch.log1p(-torch.tanh(x)**2)
    inside = (x.abs() < 8).all(-1)
    assert torch.equal(action, torch.tanh(x))
    assert inside.sum() > 40
    assert torch.allclose(log_prob[inside], reference.sum(-1)[inside], atol=1e-8)


def test_density_of_a_squashed_gaussian_integrates_to_one():
    double = lambda *x: torch.tensor(x, dtype=torch.float64)
    grid = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    action, log_prob = sac.squash(double(0.3), double(-0.5), grid[:, None])
    area = torch.trapezoid(log_prob.exp(), action[:, 0]).item()
    assert area == pytest.approx(1, abs=1e-6)


def test_saturated_actions_have_finite_log_probability_and_gradient():
    mean = torch.tensor([[60., -60., 20., 0.]], requires_grad=True)
    log_prob = sac.squash(mean, torch.zeros(1, 4), torch.zeros(1, 4))[1]
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(mean.grad).all()


def test_log_std_is_kept_within_its_bounds():
    actor = sac.init_mlp([26, 8, 8], [0])
    actor[-1][..., 4:] = torch.tensor([1e3, -1e3, 0., 0.])
    actor[-2].zero_()
    log_std = sac.gaussian(actor, torch.randn(1, 5, 26))[1]
    assert log_std[..., 0].unique().item() == 2
    assert log_std[..., 1].unique().item() == -20


def test_critics_of_a_teacher_lie_beside_each_other():
    critic = sac.init_mlp([30, 8, 1], [1, 2, 3, 4])
    obs, action = torch.randn(2, 5, 26), torch.randn(2, 5, 4)
    q, x = sac.q_values(critic, obs, action), torch.cat([obs, action], -1)
    for k in range(2):
        for twin in range(2):
            n = 2 * k + twin
            alone = sac.mlp([p[n:n + 1] for p in critic], x[k:k + 1])
            assert torch.allclose(q[k, twin], alone[0, :, 0], atol=1e-6)


def test_update_moves_what_it_should():
    settings, noise, moved = small().sac, torch.randn(1, 8, 4), []
    agent = sac.init_actor_critic([0], settings, 0, 26)
    copied = lambda layers: [p.detach().clone() for p in layers]
    all_moved = lambda old, new: all(not torch.equal(a, b) for a, b in zip(old, new))
    for _ in range(4):
        policy = *agent.actor, agent.log_temperature
        before, critic = copied(policy), copied(agent.critic)
        metrics = sac.update(agent, random_batch(), noise, noise, settings)
        assert all(torch.isfinite(x).all() for x in metrics.values())
        assert all_moved(critic, agent.critic)
        moved.append(all_moved(before, policy))
    assert moved == [True, False, True, False]


def test_critic_learns_the_values_of_a_chain_with_a_known_answer():
    """Reward 1 for ever has the value 1 / (1 - gamma), reward 1 and termination the value 1;
    the temperature is as good as zero"""
    settings = small(sac=dict(gamma=0.8, temperature=1e-9, temperature_learning_rate=1e-9,
                              learning_rate=3e-3, tau=0.05, critic_hidden_dim=32,
                              actor_hidden_dim=8)).sac
    agent = sac.init_actor_critic([0], settings, 0, 26)
    for step in range(600):
        b = random_batch(b=32, seed=step)
        obs = b.obs.sign() * 0.1
        ends = obs[..., 0] > 0
        b = sac.Batch(obs, b.action, torch.ones_like(b.reward), obs.clone(), ends.float())
        sac.update_critic(agent, b, torch.zeros(1, 32, 4), settings)
    q = sac.q_values(agent.critic, b.obs, b.action).detach().mean(1)
    assert q[ends].mean().item() == pytest.approx(1, abs=0.25)
    assert q[~ends].mean().item() == pytest.approx(5, abs=0.6)


# --- environments ---

def test_a_flight_without_a_crash_ends_by_truncation():
    drone = with_conditions(CRAZYFLIE, guidance=1.)  # begins at hover
    pool = sac.EnvPool([drone], [0], seed=0, episode_steps=5)
    hover = np.full((1, 4), drone.hover_action, np.float32)
    ends = [pool.step(hover)[2:] for _ in range(12)]
    truncated = [bool(truncated[0]) for _, truncated in ends]
    assert truncated == [False, False, False, False, True] * 2 + [False] * 2
    assert not any(terminated[0] for terminated, _ in ends)


def test_a_crash_ends_a_flight_by_termination():
    pool = sac.EnvPool([with_conditions(CRAZYFLIE, guidance=1.)], [0], seed=0)
    steps = [pool.step(np.array([[1., -1, -1, 1]], np.float32)) for _ in range(60)]
    reward, _, _, truncated = next(s for s in steps if s[2][0])
    assert reward[0] == -100
    assert not truncated[0]


def test_only_termination_stops_the_bootstrap():
    "A truncated flight is no terminated one in the replay buffer"
    state = sac.init_state(small(), [CRAZYFLIE], [0], 60)
    truncated = np.array([1.]), np.zeros((1, 26)), np.array([False]), np.array([True])
    state.envs.step = lambda action: truncated
    sac.collect(state, sac.step_noise(state))
    assert state.buffer.sample(torch.zeros(1, 1, dtype=int)).terminated.item() == 0


def test_a_flight_behind_a_target_is_a_flight_in_the_world_seen_from_the_target():
    """The same actions, with and without a target: places differ by the target's, velocities by
    its velocity, all else is equal"""
    drone = with_conditions(CRAZYFLIE, guidance=1., terminate=False)
    behind, world = (sac.EnvPool([drone], [0], seed=0, trajectories=t) for t in (1., 0.))
    assert behind.targets and not world.targets
    random = np.random.default_rng(0)
    for action in random.uniform(-0.2, 0.2, (200, 1, 4)) + drone.hover_action:
        behind.step(action)
        world.step(action)
    target, a, b = behind.targets[0], behind.obs[0], world.obs[0]
    rest = lambda obs: np.delete(obs, [0, 1, 2, 12, 13, 14])
    assert np.linalg.norm(target.position) > 0.05
    assert np.allclose(a[:3] + target.position, b[:3], atol=1e-4)
    assert np.allclose(a[12:15] + target.velocity, b[12:15], atol=1e-4)
    assert np.allclose(rest(a), rest(b), atol=1e-5)


def test_half_of_the_flights_follow_a_target_when_asked_to():
    pool = sac.EnvPool([CRAZYFLIE] * 2, [0, 1], seed=0, episode_steps=1, trajectories=0.5)
    moving = []
    for _ in range(200):
        moving.append([k in pool.targets for k in range(2)])
        pool.step(np.zeros((2, 4), np.float32))
    differ = np.not_equal(*np.transpose(moving))
    assert 0.4 < np.mean(moving) < 0.6
    assert 0.3 < np.mean(differ) < 0.7


def test_targets_wander_as_far_as_their_equation_says():
    """The spring holds x within sigma / (omega sqrt(2 gamma)) = 0.18 m; smoothing over a second
    leaves less"""
    targets = [sac.TargetTrajectory(np.random.default_rng(i)) for i in range(400)]
    for target in targets:
        for _ in range(400): target.step()
    position = [t.position for t in targets]
    assert np.std([t.x for t in targets]) == pytest.approx(0.5 / (2 * 2**0.5), rel=0.1)
    assert 0.04 < np.std(position) < 0.17
    assert abs(np.mean(position)) < 0.02


def test_the_next_observation_is_the_one_before_the_reset():
    pool = sac.EnvPool([CRAZYFLIE], [0], seed=0)
    for _ in range(200):
        _, next_obs, terminated, _ = pool.step(np.ones((1, 4), np.float32))
        if terminated[0]: break
        assert np.array_equal(next_obs, pool.obs)
    limit = CRAZYFLIE.mdp.termination
    outside = [(slice(0, 3), limit.position_threshold),
               (slice(12, 15), limit.linear_velocity_threshold),
               (slice(15, 18), limit.angular_velocity_threshold)]
    assert terminated[0]
    assert any(abs(next_obs[0, part]).max() > most for part, most in outside)
    assert pool.time[0] == 0 and pool.flight[0] == 1
    assert not np.array_equal(next_obs, pool.obs)


# --- independence of the teachers of a stack ---

FLEET = {0: CRAZYFLIE, 7: sample_drone(7),
         8: with_conditions(sample_drone(8), observation_noise=0.01)}


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_stack_of_three_gives_each_teacher_what_it_would_have_got_alone(engine):
    """Three threads, one of the drones with sensor noise. The native engine takes teachers one by
    one: equal to the last bit. Batched products of another size may be rounded differently by a
    library, and training amplifies that: torch may differ by 1e-5 after 250 updates"""
    native = engine == "native"
    updates = 2000 if native else 250
    settings, steps = small(**{"sac.engine": engine}), 50 + updates
    stack = sac.init_states(settings, list(FLEET.values()), list(FLEET), steps)
    alone = [sac.init_state(settings, [d], [i], steps) for i, d in FLEET.items()]
    sac.advance(stack, steps, workers=3)
    for state in alone: sac.train_steps(state, steps)
    stored = {i: part for state in stack for i, part in sac.state_dict(state).items()}
    expected = {i: part for state in alone for i, part in sac.state_dict(state).items()}
    assert list(stored) == list(expected) == list(FLEET)
    assert min(part["flight"] for part in stored.values()) >= 3
    for i in FLEET:
        assert stored[i]["updates"] == updates
        for count in ("flight", "time"): assert stored[i][count] == expected[i][count]
        for name, layers in expected[i]["stacks"].items():
            for a, b in zip(stored[i]["stacks"][name], layers):
                assert torch.allclose(a, b, rtol=0, atol=0 if native else 1e-5), (i, name)


@pytest.mark.parametrize("privileged, interval", [(True, 2), (False, 2), (True, 1)])
def test_both_engines_do_the_same(privileged, interval):
    "60 updates; float32 sums in another order"
    settings = small(**{"sac.privileged": privileged, "sac.policy_delay": interval,
                        "sac.trajectories": 0.5})
    states = []
    for engine in ("native", "torch"):
        chosen = load_config(settings, **{"sac.engine": engine})
        states.append(sac.init_state(chosen, [sample_drone(7)], [7], 110))
    for state in states: sac.train_steps(state, 110)
    assert states[0].native is not None and states[1].native is None
    a, b = (sac.state_dict(state)[7] for state in states)
    assert a["updates"] == b["updates"] == 60
    assert a["counts"] == b["counts"]
    for name, layers in a["stacks"].items():
        for x, y in zip(layers, b["stacks"][name]):
            assert torch.allclose(x, y, rtol=1e-3, atol=2e-6), (name, (x - y).abs().max())
    for name, x in a["sums"].items(): assert x == pytest.approx(b["sums"][name], rel=1e-3), name
    assert torch.allclose(states[0].buffer.rows, states[1].buffer.rows, atol=1e-4)


def test_one_engine_resumes_where_the_other_stopped(tmp_path):
    def train(engine, steps, folder):
        sac.train(small(**{"sac.engine": engine}), [CRAZYFLIE], steps, output_dir=folder)
    for engine in ("native", "torch"): train(engine, 120, tmp_path/engine)
    train("torch", 60, tmp_path/"both")
    train("native", 120, tmp_path/"both")
    native, torch_alone, both = (Teachers.load(tmp_path/name/"last.safetensors")
                                 for name in ("native", "torch", "both"))
    assert close(native, both, atol=1e-5)
    assert close(torch_alone, both, atol=1e-5)


def test_teachers_differ_and_do_not_depend_on_their_place():
    fleet = {7: sample_drone(7), 9: sample_drone(9)}
    train = lambda *ids: sac.train(small(), [fleet[i] for i in ids], 120, ids=ids)[0]
    a, b = train(7, 9), train(9, 7)
    assert close(a.select([9]), b.select([9]), atol=1e-5)
    assert not torch.allclose(a.w1[0], a.w1[1], atol=1e-2)


def test_another_seed_is_another_run():
    a, b = (sac.init_state(small(**{"training.seed": s}), [CRAZYFLIE], [0], 100) for s in (3, 4))
    assert not torch.equal(a.agent.actor[0], b.agent.actor[0])
    assert not np.array_equal(a.envs.obs, b.envs.obs)


def test_evaluation_leaves_the_run_alone():
    a, b = (sac.init_state(small(), [CRAZYFLIE], [0], 120) for _ in range(2))
    for i in range(120):
        sac.train_steps(a)
        sac.train_steps(b)
        if i % 20 == 0: sac.evaluate_actor(b)
    for state in (a, b): sac.synchronize(state)
    assert torch.equal(a.buffer.rows, b.buffer.rows)
    assert torch.equal(a.agent.critic[0], b.agent.critic[0])


# --- records ---

class Killed(Exception): pass


def kill_at(at): # -> a log that ends the run in its evaluation at this step
    def log(step, rows):
        if step == at: raise Killed
    return log


def train_killed(settings, drones, steps, folder, log):
    with pytest.raises(Killed): sac.train(settings, drones, steps, output_dir=folder, log=log)


def returns_are(monkeypatch, scores):
    "Evaluations give these returns, whatever was flown"
    real, scores = sac.fly_teachers, iter(scores)

    def invented(*a, **k):
        rows, first = real(*a, **k)
        return rows.assign(**{"return": next(scores)}), first

    monkeypatch.setattr(sac, "fly_teachers", invented)


@pytest.mark.parametrize("at", [100, 200])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, at):
    settings, steps = small(), []
    fleet = [CRAZYFLIE, with_conditions(sample_drone(7), observation_noise=0.01)]
    whole, curve = sac.train(settings, fleet, 260, output_dir=tmp_path/"whole")
    train_killed(settings, fleet, 260, tmp_path/"killed", kill_at(at))
    assert Checkpoints(tmp_path/"killed/checkpoints").latest() is not None
    again, again_curve = sac.train(settings, fleet, 260, output_dir=tmp_path/"killed",
                                   log=lambda step, rows: steps.append(step))
    assert steps[0] > 0, "it began again instead of resuming"
    last = [Teachers.load(tmp_path/name/"last.safetensors") for name in ("whole", "killed")]
    assert close(whole, again, **EXACTLY)
    assert close(*last, **EXACTLY)
    same_curve(curve, again_curve)
    written = pd.read_csv(tmp_path/"killed/curve.csv")
    assert list(written["step"]) == [0, 0, 100, 100, 200, 200, 260, 260]


@pytest.mark.slow
def test_a_process_that_is_killed_three_times_ends_with_equal_weights(tmp_path):
    script = Path(__file__).parents[1]/"benchmarks/sac_kill.py"
    command = [sys.executable, script, "--steps", "1500", "--out", tmp_path/"kill.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    report = load_json(tmp_path/"kill.json")
    assert done.returncode == 0 and report["equal"], done.stdout + done.stderr
    assert len(report["kills"]) == 3


def stopped(folder, steps=120, at=120):
    "A run that was killed behind a checkpoint; a function that resumes it"
    train_killed(often(), [CRAZYFLIE], steps, folder, kill_at(at))
    return lambda steps=160: sac.train(often(), [CRAZYFLIE], steps, output_dir=folder)


def whole_curve(steps=160): return sac.train(often(), [CRAZYFLIE], steps)[1]


def same_curve(a, b):
    "Equal but for text and back"
    pd.testing.assert_frame_equal(a, b, rtol=1e-6, check_dtype=False)


def newest(folder): return sorted((folder/"checkpoints").glob("*.safetensors"))[-1]


def cut(path, count): path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize("damage", ["checkpoint", "replay buffer"])
def test_what_was_cut_short_is_left_out_and_the_older_checkpoint_is_resumed(tmp_path, damage):
    resume = stopped(tmp_path, steps=200, at=160)  # checkpoints at 60 and 120
    if damage == "checkpoint": cut(newest(tmp_path), 5)
    else: cut(tmp_path/"memory/0.f32", 30 * 58 * 4)  # rows of 58 numbers
    with pytest.warns(UserWarning, match="checkpoint skipped: .*truncated"):
        same_curve(resume()[1], whole_curve())


def test_a_replay_buffer_that_fits_no_checkpoint_is_one_sentence(tmp_path):
    resume, path = stopped(tmp_path), tmp_path/"memory/0.f32"
    path.write_bytes(bytes(8) + path.read_bytes()[8:])
    sentence = ("'.*0.f32' is damaged: its first 60 rows are not those that were written; "
                "use an older checkpoint")
    with pytest.raises(RecordError, match=sentence): resume()


def test_no_space_for_the_replay_buffer_leaves_the_run_as_it_was(tmp_path, monkeypatch):
    def full(_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(step, rows):
        if step == 80: monkeypatch.setattr("raptor_nb.core.records.os.fsync", full)

    with pytest.raises(WriteError, match="no space left on device"):
        sac.train(often(), [CRAZYFLIE], 160, output_dir=tmp_path, log=fill)
    monkeypatch.undo()
    same_curve(sac.train(often(), [CRAZYFLIE], 160, output_dir=tmp_path)[1], whole_curve())


def test_a_run_of_before_the_settings_were_renamed_is_resumed(tmp_path, monkeypatch):
    todays = sac.fingerprint
    old = {new: old for old, new in sac.OLD_SETTINGS.items()}

    def of_before(*given):
        names = json.loads(todays(*given))
        names["sac"] = {old.get(name, name): value for name, value in names["sac"].items()}
        return json.dumps(names, sort_keys=True)

    monkeypatch.setattr(sac, "fingerprint", of_before)
    resume = stopped(tmp_path)
    monkeypatch.undo()
    same_curve(resume()[1], whole_curve())


def test_a_second_run_is_refused_and_told_who_has_the_folder(tmp_path):
    sentence = ("is being written by process [0-9]+ on .*; "
                "wait for it, end it, or choose another")
    def again(step, rows):
        if step: return
        with pytest.raises(WriteError, match=sentence):
            sac.train(small(), [CRAZYFLIE], 60, output_dir=tmp_path)
        tried.append(step)
    tried = []
    sac.train(small(), [CRAZYFLIE], 60, output_dir=tmp_path, log=again)
    assert tried == [0]


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, curve = sac.train(small(), [CRAZYFLIE], 100, output_dir=tmp_path)
    calls = []
    second, again = sac.train(small(), [CRAZYFLIE], 100, output_dir=tmp_path,
                              log=lambda *_: calls.append(1))
    assert not calls
    assert torch.equal(first.w3, second.w3)
    assert len(again) == len(curve)


def test_a_run_can_be_prolonged(tmp_path):
    sac.train(small(), [CRAZYFLIE], 100, output_dir=tmp_path)
    longer, _ = sac.train(small(), [CRAZYFLIE], 200, output_dir=tmp_path)
    whole, _ = sac.train(small(), [CRAZYFLIE], 200)
    assert torch.equal(longer.w2, whole.w2)


def test_the_best_teachers_are_kept_and_not_the_last(tmp_path, monkeypatch):
    returns_are(monkeypatch, [1., 9., 4., 2.])
    last = {}
    def keep(step, rows): last[step] = Teachers.load(tmp_path/"last.safetensors").w1
    best, curve = sac.train(small(), [CRAZYFLIE], 300, output_dir=tmp_path, log=keep)
    assert list(curve["return"]) == [1., 9., 4., 2.]
    assert torch.equal(best.w1, last[100])
    assert not torch.equal(best.w1, last[300])
    assert torch.equal(Teachers.load(tmp_path/"teachers.safetensors").w1, best.w1)


def test_the_best_teachers_survive_a_restart(tmp_path, monkeypatch):
    returns_are(monkeypatch, [1., 9., 4., 2., 3.])
    last = {}

    def keep_and_kill(step, rows):
        last[step] = Teachers.load(tmp_path/"last.safetensors").w1
        if step == 200: raise Killed

    train_killed(small(), [CRAZYFLIE], 260, tmp_path, keep_and_kill)
    best, curve = sac.train(small(), [CRAZYFLIE], 260, output_dir=tmp_path)
    assert list(curve["return"]) == [1., 9., 2., 3.]
    assert torch.equal(best.w1, last[100])


def test_the_curve_shows_means_since_the_last_evaluation(monkeypatch):
    state = sac.init_state(small(**{"sac.engine": "torch"}), [CRAZYFLIE], [0], 100)
    rows = []
    for loss in (1., 2., 3., 5.):
        metrics = dict(critic_loss=torch.tensor([loss]))
        monkeypatch.setattr(sac, "update", lambda *_: metrics)
        sac.train_steps(state, max(state.step, 60) + 1)
        if loss in (2., 5.): rows.append(sac.evaluate_actor(state)["critic_loss"].item())
    assert rows[0] == pytest.approx((11 * 1 + 2) / 12)
    assert rows[1] == (3 + 5) / 2


def test_teachers_without_rotor_speeds_take_22_inputs():
    settings = small(**{"sac.privileged": False})
    teachers, curve = sac.train(settings, [sample_drone(3)], 60, ids=[3])
    assert teachers.w1.shape[1] == 22
    assert teachers.ids == (3,)
    assert curve["teacher"].tolist() == [3, 3]


def test_curve_has_its_columns_and_starts_untrained():
    _, curve = sac.train(small(), [CRAZYFLIE], 120)
    flights = {"return", "survival", "steady_error", "length"}
    learning = {"critic_loss", "actor_loss", "entropy", "temperature", "value"}
    assert curve["step"].tolist() == [0, 100, 120]
    assert flights | learning <= set(curve)
    assert math.isnan(curve["critic_loss"][0])
    assert np.isfinite(curve["critic_loss"][1:]).all()


# --- bad input ---

def train(drones=(CRAZYFLIE,), steps=100, ids=None, **changes):
    return lambda folder: sac.train(small(**changes), list(drones), steps, ids=ids)


def add(times=1, **bad):
    step = dict(obs=np.zeros((1, 26)), action=np.zeros((1, 4)), reward=np.zeros(1),
                next_obs=np.zeros((1, 26)), terminated=np.zeros(1))
    def call(folder):
        buffer = sac.ReplayBuffer(1, 1, 26)
        for _ in range(times): buffer.add(**step | bad)
    return call


def update_with_narrow_batch(folder):
    settings, noise = small().sac, torch.zeros(1, 8, 4)
    agent = sac.init_actor_critic([0], settings, 0, 26)
    sac.update(agent, random_batch(inputs=22), noise, noise, settings)


def resume(fleet=(CRAZYFLIE,), steps=60, resume=True, **changes):
    "A folder that holds a run, and a call that it is not for"
    def call(folder):
        sac.train(small(), [CRAZYFLIE], 60, output_dir=folder)
        sac.train(small(**changes), list(fleet), steps, output_dir=folder, resume=resume)
    return call


def case(name, call, message, error=ValueError): return pytest.param(call, error, message, id=name)


@pytest.mark.parametrize("call, error, message", [
    case("native-with-odd-sizes", train(**{"sac.engine": "native", "sac.critic_hidden_dim": 40}),
         "sac.engine is 'native'; that needs a CPU, hidden layers of a multiple of 32",
         RuntimeError),
    case("empty-fleet", train([]), "the fleet is empty; give at least one drone"),
    case("steps-within-warm-up", train(steps=50),
         r"steps is 50; it must be above sac.learning_starts \(50\)"),
    case("negative-steps", train(steps=-5), "steps is -5; it must be"),
    case("steps-not-whole", train(steps=1e5), "steps is 100000.0; it must be a whole number"),
    case("repeated-ids", train([CRAZYFLIE] * 2, ids=[4, 4]),
         r"every drone needs an id of its own: 2 expected, got \[4, 4\]"),
    case("too-many-ids", train(ids=[1, 2]),
         r"every drone needs an id of its own: 1 expected, got \[1, 2\]"),
    case("negative-id", train(ids=[-1]), "id is -1; it must be a whole number, 0 or above"),
    case("not-a-drone", train(["crazyflie"]),
         r"drones\[0\] is of type str; it must be a Drone"),
    case("unknown-setting", train(**{"sac.gama": 0.9}),
         "section 'sac' has no 'gama'; the nearest is 'gamma'", ConfigError),
    case("actor-batch-too-large", train(**{"sac.actor_batch_size": 64}),
         "actor_batch_size is 64; it must not be above sac.critic_batch_size"),
    case("nan-reward", add(reward=np.array([np.nan])),
         "the reward of environment 0 at step 0 is nan; it must be finite; nothing was stored"),
    case("infinite-observation", add(next_obs=np.full((1, 26), np.inf)),
         "the next_obs of environment 0 at step 0 is inf"),
    case("observation-of-wrong-size", add(obs=np.zeros((1, 22))),
         r"obs has shape \(1, 22\); it must be \(1, 26\)"),
    case("replay-buffer-full", add(times=2), "all 1 rows are taken"),
    case("batch-of-wrong-size", update_with_narrow_batch,
         "observations of 22 values, the actors take 26"),
    case("resume-with-other-settings", resume(**{"sac.gamma": 0.9}),
         "the stored run has sac.gamma = 0.99 instead of 0.9; resume with"),
    case("resume-with-other-seed", resume(**{"training.seed": 5}),
         "the stored run has other seed: 3 instead of 5"),
    case("resume-with-other-drone", resume([sample_drone(1)]), "the stored run has other drones"),
    case("resume-with-fewer-steps", resume(steps=55),
         "the stored run is at step 60, beyond the 55 steps asked for"),
    case("folder-of-another-run", resume(resume=False), "holds a run already"),
])
def test_bad_input_is_one_sentence(tmp_path, call, error, message):
    with pytest.raises(error, match=message) as e: call(tmp_path)
    assert "\n" not in str(e.value)


def test_nothing_is_lost_when_a_resume_is_refused(tmp_path):
    sac.train(small(), [CRAZYFLIE], 60, output_dir=tmp_path)
    content = lambda: {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    before = content()
    with pytest.raises(ValueError):
        sac.train(small(**{"sac.tau": 0.1}), [CRAZYFLIE], 60, output_dir=tmp_path)
    assert content() == before


# --- learning ---

@pytest.mark.slow
def test_fifty_thousand_steps_rise_well_above_the_untrained_baseline():
    """How good a teacher is after 50,000 steps is the seed's luck: the return rises steeply from
    30,000 on, and seeds 0 to 3 reached 90, 328, 567 and 286 on one processor. On another one,
    where sums are rounded otherwise, a seed is another run: seed 0 reached 448 there. So this
    asks for flights many times as long, which all seeds had, and not for a return"""
    settings = load_config("default", **{"training.device": "cpu", "training.seed": 0,
                                         "training.eval_frequency": 10_000,
                                         "data_collection.num_episodes_eval": 50})
    _, curve = sac.train(settings, [CRAZYFLIE], 50_000)
    untrained = curve.iloc[0]
    assert untrained["return"] < 0
    assert curve["return"].max() > untrained["return"] + 50
    assert curve["length"].max() > 5 * untrained["length"]
