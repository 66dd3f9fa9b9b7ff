"Learners on a device that is not the CPU: no tensor is left behind, and the numbers are the same"
import numpy as np
import pytest
import torch
from pretend_gpu import Generator, OnGPU, inner_of, pretend_gpu

from raptor_nb.core.records import Checkpoints
from raptor_nb.drones import sample_fleet
from raptor_nb.evaluation import devices
from raptor_nb.learn import apg, dagger, direct, sac
from raptor_nb.learn.captured import Captured
from raptor_nb.learn.student import init_student
from raptor_nb.settings import load_config
from raptor_nb.sim import l2f
from raptor_nb.sim.rollout import FlightStatistics, rollout

REAL = {f"real_drones.{k}_share": .5 for k in
        ("uneven", "offset", "curve", "load", "drag", "filter", "away", "clip")}
SETTINGS = load_config("default", **{
    "apg.engine": "torch", "apg.num_envs": 2, "apg.horizon": 2, "apg.num_updates": 2,
    "direct.num_updates": 2, "direct.flights": 16, "direct.horizon": 2,
    "direct.validation_interval": 1,
    "distillation.dagger.num_updates": 2, "distillation.dagger.drones": 2,
    "distillation.dagger.num_envs": 1,
    "distillation.dagger.validation_interval": 2, "distillation.sequence_length": 3,
    "environment.episode_steps": 3, "sac.engine": "torch", "sac.critic_batch_size": 4,
    "sac.actor_batch_size": 4,
    "sac.actor_hidden_dim": 8, "sac.critic_hidden_dim": 8, "sac.learning_starts": 2,
    "training.eval_frequency": 6, "training.checkpoint_frequency": 3,
    "data_collection.num_episodes_eval": 1} | REAL)
FLEET = sample_fleet(2)


@pytest.fixture(autouse=True)
def one_thread():
    "A slow tensor library is not made quicker by threads"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(a, b): # modules, to the last bit
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(inner_of(a[k]), inner_of(b[k])) for k in a)


# --- the pretended GPU refuses what a GPU refuses

def test_tensors_of_two_devices_do_not_mix():
    with pretend_gpu() as gpu:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device.type == "cuda" and gpu.made == 1
        with pytest.raises(RuntimeError, match="on one device"): there + here
        assert (there + torch.tensor(2.)).tolist() == [3, 3, 3] # a number may come along
        assert (there + here.to(there)).cpu().numpy().tolist() == [2, 2, 2]


def test_numpy_needs_the_cpu():
    with pretend_gpu(), pytest.raises(TypeError, match="cpu"): torch.ones(3, device="cuda").numpy()


def test_generators_have_a_device():
    with pretend_gpu():
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device="cuda")
        there = torch.rand(3, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    assert torch.equal(there.inner, torch.rand(3, generator=torch.Generator().manual_seed(1)))


# --- learners

def test_teachers_by_gradients(tmp_path):
    here = apg.train(SETTINGS.apg, FLEET)
    with pretend_gpu() as gpu:
        kept = Checkpoints(tmp_path)
        one = load_config(SETTINGS, **{"apg.checkpoint_interval": 1}).apg
        there = apg.train(one, FLEET, device="cuda", checkpoints=kept)
        resumed = apg.APGState(one, FLEET, device="cuda")
        resumed.load_state_dict(kept.load())
    assert gpu.made > 10 and isinstance(there.w1, OnGPU) and same(here, there)
    assert isinstance(resumed.state, OnGPU) and resumed.updates == 2


def test_direct_training(tmp_path):
    student, about = init_student(SETTINGS), (FLEET, FLEET[:1])
    here = direct.train(SETTINGS, SETTINGS.direct, student, *about)
    with pretend_gpu() as gpu:
        one = load_config(SETTINGS, **{"direct.log_interval": 1})
        there = direct.train(one, one.direct, student, *about, device="cuda",
                             checkpoints=Checkpoints(tmp_path))
        run = direct.TorchTraining(one, one.direct, student, *about[:1], "cuda")
        run.load_state_dict(Checkpoints(tmp_path).load()["run"])
    assert gpu.made > 10 and same(here, there)
    assert run.updates == 2 and isinstance(run.flights.state, OnGPU)


def test_distillation_leaves_the_teachers_where_they_are():
    teachers = apg.APGState(SETTINGS.apg, FLEET).teachers()
    here = dagger.train(SETTINGS, teachers, FLEET, FLEET[:1])
    with pretend_gpu() as gpu:
        there = dagger.train(SETTINGS, teachers, FLEET, FLEET[:1], device="cuda")
    assert gpu.made > 10 and same(here, there)
    assert not isinstance(teachers.w1, OnGPU)


def test_a_stack_of_sac_teachers(tmp_path, monkeypatch):
    here, curve = sac.train(SETTINGS, FLEET, 6)
    with pretend_gpu() as gpu:
        monkeypatch.setattr(sac, "choose_device", lambda name: torch.device("cuda:0"))
        there, same_curve = sac.train(SETTINGS, FLEET, 6, tmp_path)
        longer, _ = sac.train(SETTINGS, FLEET, 6, tmp_path) # resumed at its end
    assert gpu.made > 10 and same(here, there) and same(there, longer)
    assert np.allclose(curve["critic_loss"].iloc[-1], same_curve["critic_loss"].iloc[-1])


def test_who_lies_on_a_gpu_flies_in_l2f():
    teachers, flights = apg.APGState(SETTINGS.apg, FLEET).teachers(), []
    def fly(policy):
        counted = FlightStatistics()
        rollout(policy, l2f.Simulator(FLEET, seed=1), 3, [counted])
        flights.append(counted.columns()["return"].tolist())
    fly(teachers)
    with pretend_gpu(): fly(teachers[:].to("cuda").requires_grad_(False))
    assert flights[0] == flights[1]


# --- an update as a graph

class Tape(torch.utils._python_dispatch.TorchDispatchMode):
    "Remembers operations as a CUDA graph does, on the tensors that they were called with"
    def __init__(self):
        super().__init__()
        self.calls = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        assert name != "aten::_local_scalar_dense", "a graph cannot wait for a number"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out
    def replay(self):
        for func, args, kwargs, out in self.calls:
            new = func(*args, **kwargs)
            given = func._schema
            if given.is_mutable or any(r.alias_info for r in given.returns): continue
            for old, x in zip(*(torch.utils._pytree.tree_leaves(y) for y in (out, new))):
                if isinstance(x, torch.Tensor): old.copy_(x)


def record_tape(agent): # -> as `record_graph`, which does nothing while it records
    def record(function):
        optimised = [x for o in agent.optimisers.values() for s in o.state.values()
                     for x in s.values()]
        tensors = [*agent.actor, *agent.critic, *agent.target, agent.log_temperature, *optimised]
        before = [x.detach().clone() for x in tensors]
        with Tape() as tape: out = function()
        with torch.no_grad():
            for x, y in zip(tensors, before): x.copy_(y)
        def replay():
            with torch.no_grad(): tape.replay()
        return replay, out
    return record


def test_a_recorded_update_is_the_update():
    "Twelve updates, of both ways; each replay does exactly what Python would have done"
    how, ids = SETTINGS.sac, range(2)
    buffer = devices.filled_buffer(SETTINGS, 2, 26)
    noise = sac.noise_block(0, ids, 0, 12, how.critic_batch_size)
    plain, other = (sac.init_actor_critic(ids, how, 0, 26) for _ in range(2))
    recorded = sac.captured_update(other, how, record_tape(other))
    for share, *noises in zip(noise.share, noise.next_noise, noise.policy_noise):
        batch = buffer.sample((share * buffer.size).long())
        wanted, found = sac.update(plain, batch, *noises, how), recorded(batch, *noises)
        assert wanted.keys() == found.keys()
        for k in wanted: assert torch.equal(wanted[k], found[k]), k
    assert plain.updates == other.updates == 12
    for a, b in zip(plain.actor + plain.target, other.actor + other.target):
        assert torch.equal(a, b)


def test_what_was_given_first_is_not_changed():
    double, first = Captured(lambda x: 2 * x, warm_up=9), torch.ones(2)
    double("way", first)
    assert double("way", torch.zeros(2)).tolist() == [0, 0] and first.tolist() == [1, 1]


def test_graphs_need_a_gpu():
    agent = sac.init_actor_critic([0], SETTINGS.sac, 0, 26)
    with pytest.raises(ValueError, match="needs a CUDA device.*Choose 'auto' or 'torch'"):
        sac.captured_update(agent, SETTINGS.sac)


# --- the study's functions

def test_parity_finds_what_is_wrong(monkeypatch):
    table = devices.parity_table(SETTINGS, FLEET, "cpu").set_index("what").difference
    assert set(table.index) == set(devices.PARITY) and (table < devices.LARGEST).all()
    assert 0 < table["physics, half a second"] and 0 < table["teachers by gradients"]
    step = devices.physics.step
    def worse(state, action, params): # in float32
        after = step(state, action, params)
        wrong = .01 * (params.like.dtype == torch.float32)
        return after._replace(linear_velocity=after.linear_velocity + wrong)
    monkeypatch.setattr(devices.physics, "step", worse)
    assert devices.physics_parity(SETTINGS, FLEET, "cpu") > devices.LARGEST


def test_parity_moves_what_it_compares():
    with pretend_gpu():
        assert devices.sac_parity(SETTINGS, FLEET, "cuda") == 0
        assert devices.direct_parity(SETTINGS, FLEET, "cuda") == 0


@pytest.mark.parametrize("name", devices.LEARNERS)
def test_speed_of_a_learner(name):
    n = 16 if name == "direct training" else 2
    row = devices.speed_row(SETTINGS, name, "torch", n, "cpu", tries=1)
    assert row["steps_a_second"] > 0 and row["size"] == n and row["memory_mb"] is None
