"The native engine computes what torch computes, and one function chooses between them"
import pytest
import torch
from kernels import DRONES, PARAMS, actors, close, disturbances, needs_compiler
from kernels import student_of, teacher_flights

from raptor_nb.learn import apg, dagger, direct, engines
from raptor_nb.learn.engines import NativeEngine, Rollout, TorchEngine, imitation_loss
from raptor_nb.policy import Teachers
from raptor_nb.sim import native
from raptor_nb.settings import load_config

TORCH, NATIVE = TorchEngine(), NativeEngine()


# ---- teachers
def both_segments(*args):
    "The native answer, and torch's with its states on the way"
    tape = TORCH.fly_teachers(*args)
    return NATIVE.teacher_segment(*args), TORCH.teacher_segment(*args), tape


@needs_compiler
@pytest.mark.parametrize("obs_dim, hidden, environments", [
    (22, 16, 16), (22, 64, 32), (26, 64, 16), (26, 16, 32), (29, 16, 16), (29, 64, 32),
    (29, 128, 16)])
def test_a_teachers_segment_is_that_of_torch(obs_dim, hidden, environments):
    args = teacher_flights(environments, hidden, obs_dim)
    ours, theirs, tape = both_segments(*args)
    for drone, env in ((0, 3), (2, environments - 1)):
        begun = [torch.equal(s[drone, env], args[3][drone, env]) for s in tape.states[1:]]
        assert any(begun), "a flight ends within the segment"
    close(ours[0], theirs[0])
    close(ours[2], theirs[2], 1e-4)
    for k, g in theirs[1].items(): close(ours[1][k], g)


@needs_compiler
@pytest.mark.parametrize("changes", [
    pytest.param(dict(huber_delta=.2, precision_weight=.7), id="precision"),
    pytest.param(dict(barrier_weight=0., damping_weight=0.), id="no-barrier"),
    pytest.param(dict(position_barrier=.2, velocity_barrier=.3, rate_barrier=1.,
                      barrier_weight=5., damping_weight=.01),
                 id="barrier-everywhere")])
def test_every_term_of_the_cost_has_its_gradient(changes):
    ours, theirs, _ = both_segments(*teacher_flights(**changes))
    close(ours[2], theirs[2], 1e-4)
    for k, g in theirs[1].items(): close(ours[1][k], g)


@needs_compiler
def test_teachers_get_over_a_lost_flight():
    run = apg.APGState(load_config("default", apg=dict(horizon=20)).apg, DRONES, seed=0)
    run.state = run.state.clone()
    run.state[1, 2] = torch.nan
    apg.update_teachers(run, NATIVE)
    assert torch.isfinite(run.state).all()
    assert all(torch.isfinite(p).all() for p in run.actors.parameters())



# ---- imitation
@needs_compiler
@pytest.mark.parametrize("steps", [1, 7, 60])
@pytest.mark.parametrize("hidden, sequences", [(16, 16), (16, 48), (32, 16), (64, 32), (4, 16), (24, 16)])
def test_gradients_of_imitation_are_those_of_autograd(hidden, sequences, steps):
    student, g = student_of(hidden), torch.Generator().manual_seed(3)
    with torch.no_grad(): student.gru.initial_hidden_state.normal_(generator=g)
    student.gru.initial_hidden_state.requires_grad_(True)
    observation = torch.randn(sequences, steps, 22, generator=g)
    label = torch.randn(sequences, steps, 4, generator=g)
    reset = torch.rand(sequences, steps, generator=g) < .15
    reset[:, 0] = True
    rollout = Rollout(observation, label, reset)
    loss, grads = NATIVE.imitation_gradients(student, rollout)
    by_torch, others = TORCH.imitation_gradients(student, rollout)
    wanted = imitation_loss(student, *rollout)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5) and by_torch == wanted.item()
    for name, p in student.named_parameters():
        close(grads[name], p.grad, 1e-4)
        assert torch.equal(others[name], p.grad)


@pytest.mark.parametrize("learned", [True, False])
def test_every_parameter_has_a_gradient_in_torch(learned):
    student, g = student_of(), torch.Generator().manual_seed(0)
    student.gru.initial_hidden_state.requires_grad_(learned)
    rollout = Rollout(torch.randn(16, 5, 22, generator=g), torch.zeros(16, 5, 4),
                      torch.zeros(16, 5, dtype=torch.bool))
    loss, grads = TORCH.imitation_gradients(student, rollout)
    assert loss > 0 and set(grads) == {n for n, _ in student.named_parameters()}
    assert bool(grads["gru.initial_hidden_state"].any()) == learned


# ---- roll-outs of the student
@needs_compiler
@pytest.mark.parametrize("obs_dim, hidden, activation, environments, knots, student_hidden", [
    pytest.param(22, 16, "tanh", 16, 1, 16, id="constant-force"),
    pytest.param(26, 64, "relu", 16, 5, 16, id="relu-teachers"),
    pytest.param(29, 32, "tanh", 32, 5, 32, id="two-blocks"),
    pytest.param(29, 64, "tanh", 16, 61, 64, id="more-knots-than-steps")])
def test_flights_are_those_of_torch(obs_dim, hidden, activation, environments, knots,
                                    student_hidden):
    teachers, flights = actors(obs_dim, hidden, activation), disturbances(environments, knots)
    args = student_of(student_hidden), teachers, PARAMS, flights, 60
    ours, theirs = NATIVE.student_rollout(*args), TORCH.student_rollout(*args)
    assert set(flights.delay.flatten().tolist()) == {0., 1., 2.}
    assert (theirs.reset.sum(1) > 1).any(), "flights that end"
    assert torch.equal(ours.reset.bool(), native.blocks(theirs.reset).bool())
    assert (ours.observation - native.blocks(theirs.observation)).abs().max() < 2e-3
    assert (ours.label - native.blocks(theirs.label)).abs().max() < 2e-3


@needs_compiler
def test_reset_states_are_taken_one_after_the_other():
    "A jump at every step, and more jumps than there are states"
    flights = disturbances(resets=3, jump=torch.ones(3, 16), delay=torch.zeros(3, 16))
    args = student_of(), actors(), PARAMS, flights, 10
    ours, theirs = NATIVE.student_rollout(*args), TORCH.student_rollout(*args)
    seen = ours.observation.view(3, 10, 22, 16)
    for t in range(1, 10):
        wanted = flights.reset_states[:, (t - 1) % 3, :, :3]
        assert torch.equal(seen[:, t, :3].mT, wanted)
    assert torch.allclose(ours.observation, native.blocks(theirs.observation), atol=1e-4)
    assert torch.equal(ours.reset.bool(), native.blocks(theirs.reset).bool())


# ---- which one
def test_the_torch_engine_is_wholly_torch(monkeypatch):
    "It computes everything where no kernel can be called"
    def refuse(*args): raise AssertionError("a kernel was asked for")
    for name in ("library", "available"): monkeypatch.setattr(native, name, refuse)
    engine = engines.choose("torch", environments=16, actor=32, student=16)
    args = student_of(), actors(), PARAMS, disturbances(), 5
    engine.imitation_gradients(args[0], engine.student_rollout(*args))
    s = load_config("default", apg=dict(engine="torch"), direct=dict(flights=16, horizon=5))
    direct.begin_training(s, s.direct, args[0], DRONES).advance([.01])
    engine.teacher_segment(*teacher_flights(steps=5))


@pytest.mark.parametrize("changes, name", [
    ({}, "native"), (dict(num_envs=24), "torch"), (dict(hidden_dim=40), "torch"),
    (dict(hidden_dim=512), "torch"), (dict(engine="torch"), "torch"),
    (dict(engine="compiled"), "compiled")])
def test_what_is_chosen_for_teachers(monkeypatch, changes, name):
    monkeypatch.setattr(native, "available", lambda: True)
    settings = load_config("default", apg=dict(num_updates=1) | changes).apg
    assert apg.choose_engine(settings, 1).name == name


def test_large_fleets_are_worth_compiling(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    assert engines.choose("auto", engines.LARGE).name == "torch"
    assert engines.choose("auto", engines.LARGE + 1).name == "compiled"
    assert engines.choose("auto", engines.LARGE + 1, "cuda").name == "compiled"


@pytest.mark.parametrize("changes, hidden", [
    pytest.param({"distillation.dagger.num_envs": 8}, 16, id="environments"),
    pytest.param({"student.hidden_dim": 80}, 16, id="large-student"),
    pytest.param({}, 24, id="teachers")])
def test_where_native_cannot_torch_does(monkeypatch, changes, hidden):
    monkeypatch.setattr(native, "available", lambda: True)
    small = {"distillation.dagger.num_updates": 1, "distillation.dagger.drones": 1}
    settings = load_config("default", **small | changes)
    insists = load_config(settings, **{"apg.engine": "native"})
    teachers = Teachers(2, 29, hidden)
    assert dagger.choose_engine(settings, teachers).name == "torch"
    assert dagger.choose_engine(insists, teachers).name == "native", "it will say why not"


def test_a_direct_training_asks_for_the_student_alone(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: True)
    odd = load_config("default", **{"apg.hidden_dim": 24, "apg.num_envs": 5})
    for hidden, wanted in ((16, True), (24, True), (80, False)):
        assert direct.uses_native(odd, student_of(hidden)) == wanted
    assert not direct.uses_native(odd, student_of(), "cuda")


def test_who_insists_on_native_on_a_gpu_is_told():
    settings = load_config("default", apg=dict(engine="native")).apg
    message = "the native engine runs on a CPU, not on cuda; choose apg.engine: compiled"
    with pytest.raises(native.NativeError, match=message): apg.choose_engine(settings, 1, "cuda")
