"The native engine computes what torch computes, on any number of threads, and says what it cannot take"
import os, shutil, subprocess, sys
from pathlib import Path

import pytest
import torch

from raptor_nb import distill
from raptor_nb.core.config import load_config
from raptor_nb.drones import sample_fleet, vary
from raptor_nb.learn import apg, flight, native, polish
from raptor_nb.policy import RaptorPolicy, Teachers

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
DRONES = sample_fleet(3)
FLEET = flight.fleet_of(DRONES)
SEES = {22: dict(privileged=False), 26: dict(force_input=False), 29: {}}


def close(ours, theirs, share=2e-3):
    "Within a share of the size of all that is compared"
    assert torch.isfinite(ours).all() and (ours - theirs).norm() <= share * theirs.norm() + 1e-7, ((ours - theirs).norm() / theirs.norm()).item()


def leaving(moving, which, outwards=1.): # flights that end with the next step or so
    "At the edge of the position's limit, at speed"
    moving = moving.clone()
    for drone, env in which:
        limit = FLEET.limits[0]
        moving[drone, env, 1] = (limit[drone, 0] if isinstance(limit, torch.Tensor) else limit) - .005
        moving[drone, env, 8] = outwards
    return moving


def student_of(hidden=16, seed=0):
    torch.manual_seed(seed)
    return RaptorPolicy(hidden_dim=hidden)


def actors(obs_dim=29, hidden=32, activation="tanh", seed=0):
    "Hover, more or less"
    torch.manual_seed(seed)
    teachers = Teachers(len(DRONES), obs_dim, hidden, activation=activation).requires_grad_(False)
    teachers.w3 *= .2
    teachers.b3.copy_(torch.tensor([[[d.hover_action] * 4] for d in DRONES]).clamp(-.9, .9).atanh())
    return teachers


def teaching(environments=16, hidden=64, obs_dim=29, segment=30): # arguments of apg.fly and native.segment
    s = load_config("default", apg=dict(segment=segment, environments=environments, hidden_dim=hidden, **SEES[obs_dim])).apg
    run = apg.Run(s, DRONES, seed=1)
    torch.manual_seed(0)
    w = {k: v + .05 * torch.randn_like(v) for k, v in run.folded().items()}
    fresh, _ = run.starts()
    return w, leaving(run.moving, [(0, 3), (2, environments - 1)]), run.force, fresh, run.fleet, s


def happening(environments=16, winds=5, starts=3, seed=0, **changes): # distill.Weather without noise
    g = torch.Generator().manual_seed(seed)
    D, E = len(DRONES), environments
    states = apg.bundle(flight.sample_state(FLEET, (starts + 1) * E, g)).unflatten(1, (starts + 1, E))
    wind = .15 * 9.81 * FLEET.mass[..., None, None] * torch.randn(D, winds, E, 3, generator=g)
    late, taught = torch.randint(3, (D, E), generator=g).float(), torch.rand(D, E, generator=g) < .3
    out = distill.Weather(leaving(states[:, 0], [(1, 0), (1, 5)]), states[:, 1:], wind, torch.zeros(D, E), late, torch.zeros(D, E), taught, 7)
    return out._replace(**changes)


def flown(hidden=16, environments=16, winds=5, seed=0): # what a student's segment begins with
    g = torch.Generator().manual_seed(seed)
    D, E = len(DRONES), environments
    draw = lambda *k: torch.randn(D, E, *k, generator=g)
    moving, fresh = apg.bundle(flight.sample_state(FLEET, 2 * E, g)).split(E, 1)
    wind = .15 * 9.81 * FLEET.mass[..., None, None] * torch.randn(D, winds, E, 3, generator=g)
    moving = leaving(moving, [(0, 3), (0, 4), (2, E - 1)])
    return [moving, .3 * draw(hidden), .2 * draw(36), fresh, wind, torch.zeros(D, E), torch.randint(3, (D, E), generator=g).float(), torch.rand(D, E, generator=g) < .2]


def numbers():
    "All four functions on something, noise, pushes and endings included"
    moved, grads, costs = native.segment(*teaching(32))
    happens = happening(32, sigma=torch.full((3, 32), .02), push=torch.full((3, 32), .1))
    recorded = native.flights(student_of(), actors(), FLEET, *happens, 40)
    loss, by_weights = native.block_gradients(student_of(), *recorded)
    after, by_flight, price, ends = native.student_segment(student_of(), FLEET, *flown(environments=32), 5, load_config("default").apg, 30)
    return [moved, *grads.values(), costs, *recorded, torch.tensor(loss), *by_weights.values(), *after, *by_flight.values(), price, torch.tensor(ends)]


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    "Nothing is compiled or loaded yet; afterwards everything is as it was"
    clear = lambda: [f.cache_clear() for f in (native.library, native.available)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clear()
    yield tmp_path / "raptor_nb/native"
    clear()


@needs_compiler
@pytest.mark.parametrize("obs_dim, hidden, environments", [(22, 16, 16), (22, 64, 32), (26, 64, 16), (26, 16, 32), (29, 16, 16), (29, 64, 32), (29, 128, 16)])
def test_a_teachers_segment_is_that_of_torch(obs_dim, hidden, environments):
    args = teaching(environments, hidden, obs_dim)
    moved, g, costs = native.segment(*args)
    there = apg.fly(*args)
    fresh = args[3]
    for drone, env in ((0, 3), (2, environments - 1)): assert any(torch.equal(m[drone, env], fresh[drone, env]) for m in there.moving[1:]), "a flight ends within the segment"
    back = apg.gradients(args[0], there, *args[2:])
    close(moved, there.moving[-1]); close(costs, there.costs, 1e-4)
    for k in g: close(g[k], back[k])


@needs_compiler
@pytest.mark.parametrize("changes", [dict(near=.2, precision=.7), dict(wall=0., damping=0.), dict(position_wall=.2, velocity_wall=.3, rate_wall=1., wall=5., damping=.01)], ids=["precision", "no-walls", "walls-everywhere"])
def test_every_part_of_the_cost_has_its_gradient(changes):
    *args, s = teaching()
    s = load_config("default", apg=dict(segment=30, **changes)).apg
    _, g, costs = native.segment(*args, s)
    there = apg.fly(*args, s)
    back = apg.gradients(args[0], there, *args[2:], s)
    close(costs, there.costs, 1e-4)
    for k in g: close(g[k], back[k])


@needs_compiler
@pytest.mark.parametrize("steps", [1, 7, 60])
@pytest.mark.parametrize("hidden, sequences", [(16, 16), (16, 48), (32, 16), (64, 32)])
def test_gradients_of_imitation_are_those_of_autograd(hidden, sequences, steps):
    student, g = student_of(hidden), torch.Generator().manual_seed(3)
    with torch.no_grad(): student.gru.initial_hidden_state.normal_(generator=g)
    student.gru.initial_hidden_state.requires_grad_(True)
    observation, label = torch.randn(sequences, steps, 22, generator=g), torch.randn(sequences, steps, 4, generator=g)
    reset = torch.rand(sequences, steps, generator=g) < .15
    reset[:, 0] = True
    loss, grads = native.sequence_gradients(student, observation, label, reset)
    wanted = native.imitation_loss(student, observation, label, reset)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for name, p in student.named_parameters(): close(grads[name], p.grad, 1e-4)


@needs_compiler
def test_some_blocks_of_many():
    student, g = student_of(), torch.Generator().manual_seed(3)
    observation, label, reset = (torch.randn(5, 9, k, 16, generator=g) for k in (22, 4, 1))
    reset = (reset > 1).float()
    loss, grads = native.block_gradients(student, observation, label, reset, [4, 1, 1])
    apart = [native.block_gradients(student, *(x[i:i + 1].contiguous() for x in (observation, label, reset))) for i in (4, 1, 1)]
    assert loss == pytest.approx(sum(l for l, _ in apart) / 3, rel=1e-6)
    for k in grads: assert torch.allclose(grads[k], sum(g[k] for _, g in apart) / 3, atol=1e-7)


@needs_compiler
@pytest.mark.parametrize("obs_dim, hidden, activation, environments, winds, student_hidden", [
    (22, 16, "tanh", 16, 1, 16), (26, 64, "relu", 16, 5, 16), (29, 32, "tanh", 32, 5, 32), (29, 64, "tanh", 16, 61, 64)])
def test_flights_are_those_of_torch(obs_dim, hidden, activation, environments, winds, student_hidden):
    student, teachers, happens = student_of(student_hidden), actors(obs_dim, hidden, activation), happening(environments, winds)
    settings = load_config("default", distillation=dict(sequence_length=60, online=dict(environments=environments)))
    ours, theirs = native.flights(student, teachers, FLEET, *happens, 60), distill.rollout(student, teachers, FLEET, happens, settings)
    assert set(happens.delay.flatten().tolist()) == {0., 1., 2.} and (theirs.reset.sum(1) > 1).any(), "all delays, and flights that end"
    assert torch.equal(ours[2].bool(), native.blocks(theirs.reset).bool())
    assert (ours[0] - native.blocks(theirs.observation)).abs().max() < 2e-3 and (ours[1] - native.blocks(theirs.label)).abs().max() < 2e-3


@needs_compiler
def test_starts_are_taken_one_after_the_other():
    "A push at every step, and more pushes than there are starts"
    happens = happening(starts=3, push=torch.ones(3, 16), delay=torch.zeros(3, 16))
    settings = load_config("default", distillation=dict(sequence_length=10))
    ours, theirs = native.flights(student_of(), actors(), FLEET, *happens, 10), distill.rollout(student_of(), actors(), FLEET, happens, settings)
    seen = ours[0].view(3, 10, 22, 16)
    for t in range(1, 10): assert torch.equal(seen[:, t, :3].mT, happens.fresh[:, (t - 1) % 3, :, :3])
    assert torch.allclose(ours[0], native.blocks(theirs.observation), atol=1e-4) and torch.equal(ours[2].bool(), native.blocks(theirs.reset).bool())


@needs_compiler
def test_noise_has_the_size_that_is_said_and_no_memory():
    sigma = torch.tensor([0., .01, .04]).view(3, 1).expand(3, 32)
    still = apg.bundle(flight.sample_state(FLEET._replace(init=(1.,) + FLEET.init[1:]), 64, torch.Generator().manual_seed(0))).unflatten(1, (2, 32))
    quiet = happening(32, moving=still[:, 0], fresh=still[:, 1:], by_teacher=torch.ones(3, 32, dtype=torch.bool), delay=torch.zeros(3, 32))
    noisy, clean = (native.flights(student_of(), actors(), FLEET, *quiet._replace(sigma=x), 40)[0].view(3, 2, 40, 22, 16) for x in (sigma, 0 * sigma))
    noise = noisy - clean
    assert noise[0].abs().max() == 0 and noise[..., 18:, :].abs().max() == 0
    for drone, s in ((1, .01), (2, .04)):
        spread = noise[drone].permute(2, 0, 1, 3).flatten(1)
        assert (spread.std(1)[:18] / s / native.NOISE[:18]).tolist() == pytest.approx([1.] * 18, abs=.08) and spread.mean(1).abs().max() < .1 * 5 * s
        later, before = noise[drone, :, 1:, :18].flatten(), noise[drone, :, :-1, :18].flatten()
        assert torch.corrcoef(torch.stack([later, before]))[0, 1].abs() < .05


@needs_compiler
@pytest.mark.parametrize("hidden, winds, steps", [(16, 1, 30), (16, 5, 30), (32, 14, 20), (64, 2, 1)])
def test_a_students_segment_is_that_of_autograd(hidden, winds, steps):
    student, s, begun = student_of(hidden), load_config("default").apg, flown(hidden, winds=winds)
    student.gru.initial_hidden_state.requires_grad_(True)
    with torch.no_grad(): student.gru.initial_hidden_state.normal_(std=.3)
    ours, theirs = (f(student, FLEET, *begun, 5, s, steps, 2.) for f in (native.student_segment, polish._by_autograd))
    assert ours[3] == pytest.approx(theirs[3]) and ours[3] > 0, "some flights end within the segment"
    for a, b in zip(ours[0], theirs[0]): close(a, b)
    close(ours[2], theirs[2], 1e-4)
    for k, v in theirs[1].items(): close(ours[1][k], v, 5e-3)


@needs_compiler
def test_each_block_has_a_gradient_of_its_own():
    student, s, begun = student_of(), load_config("default").apg, flown(environments=32)
    _, grads, costs, _ = native.student_segment(student, FLEET, *begun, 5, s, 20)
    first = [x[..., :16, :].contiguous() if x.ndim > 2 else x[:, :16] for x in begun]
    _, alone, price, _ = native.student_segment(student, FLEET, *first, 5, s, 20)
    assert costs.shape == (6,) and torch.allclose(costs[::2], price, atol=1e-6)
    for k in grads: assert torch.allclose(grads[k][::2], alone[k], rtol=1e-5, atol=1e-7)


@needs_compiler
def test_threads_do_not_change_results():
    before, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(numbers())
    finally: torch.set_num_threads(before)
    for other in results[1:]: assert all(map(torch.equal, results[0], other))


def test_small_operations_leave_the_threads_to_the_native_engine():
    before = torch.get_num_threads()
    class Library:
        ranges = []
        def run(self, task, first, last): self.ranges.append((first, last))
    task = native.ImitationGradients()
    try:
        torch.set_num_threads(2)
        with native.small_operations():
            assert torch.get_num_threads() == 1
            native.spread(Library().run, task, 20)
        assert torch.get_num_threads() == 2 and sorted(Library.ranges) == [(i, min(i + 3, 20)) for i in range(0, 20, 3)]
        Library.ranges.clear()
        with native.small_operations(1), native.small_operations(): native.spread(Library().run, task, 20)
        assert torch.get_num_threads() == 2 and Library.ranges == [(0, 20)]
        Library.ranges.clear()
        native.spread(Library().run, task, 20, workers=1)
        assert Library.ranges == [(0, 20)]
    finally: torch.set_num_threads(before)


@needs_compiler
def test_a_flight_that_is_lost_begins_anew():
    nan = happening(delay=torch.zeros(3, 16))
    nan.moving[1, 4, 7] = torch.nan
    observation, label, reset = (x.view(3, 20, -1, 16) for x in native.flights(student_of(), actors(), FLEET, *nan, 20))
    assert reset[1, 1, 0, 4] == 1 and torch.isfinite(observation[:, 1:]).all() and torch.isfinite(label[:, 1:]).all()
    assert torch.allclose(observation[1, 1, :3, 4], nan.fresh[1, 0, 4, :3])


@needs_compiler
def test_a_lost_flight_of_the_student_costs_its_block_alone():
    student, s, begun = student_of(), load_config("default").apg, flown()
    good = native.student_segment(student, FLEET, *begun, 5, s, 20)
    begun[0][1, 4, 3:7] = torch.nan
    moved, grads, costs, _ = native.student_segment(student, FLEET, *begun, 5, s, 20)
    assert all(torch.isfinite(x).all() for x in moved) and torch.isnan(costs[1])
    for k in grads: assert torch.equal(grads[k][[0, 2]], good[1][k][[0, 2]])
    mean, norm = polish.mean_gradient(grads, 1.)
    assert not torch.isfinite(norm[1]) and all(torch.isfinite(x).all() for x in mean.values())


@needs_compiler
def test_teachers_get_over_a_lost_flight():
    run = apg.Run(load_config("default", apg=dict(segment=20)).apg, DRONES, seed=0)
    run.moving = run.moving.clone(); run.moving[1, 2] = torch.nan
    apg.improve(run, native)
    assert torch.isfinite(run.moving).all() and all(torch.isfinite(p).all() for p in run.actors.parameters())


# ---- what it cannot take, and where it cannot be built
def fly_with(teachers=None, student=None, **changes): native.flights(student or student_of(), teachers or actors(), FLEET, *happening(**changes), 5)


def float64():
    seen, label, reset = (torch.zeros(1, 5, k, 16) for k in (22, 4, 1))
    native.block_gradients(student_of(), seen, label.double(), reset)


@needs_compiler
@pytest.mark.parametrize("make, message", [
    pytest.param(lambda: native.segment(*teaching(24)), "there are 24 environments a drone; the native engine flies 16 side by side, so it must be a multiple of 16", id="teachers-flights"),
    pytest.param(lambda: fly_with(environments=8), "there are 8 environments a drone; .* multiple of 16", id="flights"),
    pytest.param(lambda: native.student_segment(student_of(), FLEET, *flown(environments=17), 0, load_config("default").apg, 5), "there are 17 environments", id="segment-flights"),
    pytest.param(lambda: native.segment(*teaching(hidden=24)), "the actors have 24 hidden units; the native engine takes multiples of 16 up to 256", id="teachers-hidden"),
    pytest.param(lambda: fly_with(actors(hidden=20)), "the actors have 20 hidden units", id="labels-hidden"),
    pytest.param(lambda: fly_with(actors(hidden=272)), "the actors have 272 hidden units", id="labels-hidden-large"),
    pytest.param(lambda: fly_with(actors(obs_dim=25)), r"the actors see 25 values; the native engine knows 22, 26 \(with rotor speeds\) and 29", id="labels-sight"),
    pytest.param(lambda: fly_with(student=student_of(24)), "the student takes 22 values, remembers 24 and commands 4; the native engine takes 22, multiples of 16 up to 64, and 4", id="student-hidden"),
    pytest.param(lambda: fly_with(sigma=torch.zeros(2, 16)), r"sigma has shape \(2, 16\); it must be \(3, 16\)", id="another-shape"),
    pytest.param(lambda: fly_with(actors().select([0, 1])), r"teachers has shape \(2,\); it must be \(3,\)", id="fewer-teachers"),
    pytest.param(lambda: native.block_gradients(student_of(), torch.zeros(2, 5, 22, 16), torch.zeros(2, 4, 4, 16), torch.zeros(2, 5, 1, 16)), r"label has shape \(2, 4, 4, 16\); it must be \(2, 5, 4, 16\)", id="shorter-labels"),
    pytest.param(lambda: native.block_gradients(student_of(), *(torch.zeros(2, 5, k, 16) for k in (22, 4, 1)), rows=[2]), "rows go from 2 to 2; there are 2 blocks", id="block-missing"),
    pytest.param(lambda: native.block_gradients(student_of(), *(torch.zeros(16, 5, k) for k in (22, 4, 1))), r"observation has shape \(16, 5, 22\); it must be \(16, 5, 22, 16\)", id="flights-not-last"),
    pytest.param(float64, "label must be contiguous, on the CPU and float32", id="double-precision"),
    pytest.param(lambda: apg.choose_engine(load_config("default", apg=dict(engine="native")).apg, 1, "cuda"), "the native engine runs on a CPU, not on cuda; choose apg.engine: compiled", id="native-on-a-gpu"),
])
def test_bad_input(make, message):
    with pytest.raises(native.NativeError, match=message): make()


def test_missing_compiler(elsewhere, monkeypatch):
    monkeypatch.setattr(native, "compiler", lambda: None)
    with pytest.raises(native.NativeError, match="the native engine needs a C\\+\\+ compiler: install clang or g\\+\\+, or choose apg.engine: compiled"): native.library("apg")
    auto = load_config("default").apg
    assert auto.engine == "auto" and not native.available() and apg.choose_engine(auto, 1) is apg.plain
    student, g = student_of(), torch.Generator().manual_seed(0)
    loss, grads = native.sequence_gradients(student, torch.randn(16, 5, 22, generator=g), torch.zeros(16, 5, 4), torch.zeros(16, 5, dtype=torch.bool))
    assert loss > 0 and set(grads) == {n for n, _ in student.named_parameters()}


def test_a_named_compiler_is_the_one(monkeypatch, tmp_path):
    own = tmp_path / "own-c++"
    own.write_text("#!/bin/sh\n"); own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert native.compiler() == str(own)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native.compiler() is None


@needs_compiler
def test_source_that_cannot_be_compiled_is_a_sentence(elsewhere, monkeypatch, tmp_path):
    broken = tmp_path / "apg.cpp"
    broken.write_text("int lanes() { return sixteen; }\n")
    monkeypatch.setattr(native, "source", lambda name: broken)
    with pytest.raises(native.NativeError, match=r"could not compile .*apg\.cpp: .*(sixteen|apg\.cpp)"): native.library("apg")
    assert not native.available() and not list(elsewhere.glob("*.so")) and not list(elsewhere.glob("*tmp*")), "nothing is left behind"


@needs_compiler
def test_a_library_of_another_width_is_refused(elsewhere, monkeypatch, tmp_path):
    other = tmp_path / "apg.cpp"
    other.write_text('extern "C" int lanes() { return 8; }\n')
    monkeypatch.setattr(native, "source", lambda name: other)
    with pytest.raises(native.NativeError, match="was compiled for 8 flights side by side, not 16"): native.library("apg")
    assert not native.available()


@needs_compiler
def test_it_is_compiled_once(elsewhere, monkeypatch, tmp_path):
    text = tmp_path / "sac.cpp"
    text.write_text('extern "C" int lanes() { return 16; }\n')
    monkeypatch.setattr(native, "source", lambda name: text)
    first = native.build("sac")
    made = first.stat().st_mtime_ns
    assert native.build("sac") == first and first.stat().st_mtime_ns == made
    text.write_text('extern "C" int lanes() { return 8 + 8; }\n')
    second = native.build("sac")
    assert second != first, "another source, another library"
    (tmp_path / "nn.h").write_text("// a header\n")
    assert native.build("sac") not in (first, second), "another header, another library"


@needs_compiler
def test_a_structure_whose_fields_differ_is_refused(elsewhere, monkeypatch, tmp_path):
    file = tmp_path / "sac.cpp"
    file.write_text('extern "C" int lanes() { return 16; }\nextern "C" int size_of_SacTask() { return 8; }\n')
    monkeypatch.setattr(native, "source", lambda name: file)
    from raptor_nb.learn import sac_native  # noqa: F401
    with pytest.raises(native.NativeError, match="SacTask has 8 bytes in .*sac.cpp and .* in Python"): native.library("sac")


@pytest.mark.parametrize("changes, native_too", [({}, True), (dict(environments=24), False), (dict(hidden_dim=40), False), (dict(engine="plain"), False)])
def test_what_auto_chooses(monkeypatch, changes, native_too):
    monkeypatch.setattr(native, "available", lambda: True)
    assert (apg.choose_engine(load_config("default", apg=changes).apg, 1) is native) == native_too


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_gcc_gives_the_same_numbers_without_a_warning(elsewhere, monkeypatch):
    wanted = numbers()
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr(native, "FLAGS", [*native.FLAGS, "-Wall", "-Wextra", "-Werror", "-Wno-psabi"])
    native.library.cache_clear()
    got = numbers()
    assert list(elsewhere.glob("student-*.so")) and len(got) == len(wanted)
    for a, b in zip(got, wanted): close(a, b, 1e-2)


SANITIZED = """
import torch
from raptor_nb.learn import native
import test_native
native.FLAGS += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-psabi"]
torch.set_num_threads(2)
assert all(torch.isfinite(x).all() for x in test_native.numbers())
test_native.test_flights_are_those_of_torch(29, 64, "tanh", 16, 61, 64)
test_native.test_a_students_segment_is_that_of_autograd(64, 2, 1)
print("clean")
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") or sys.platform != "linux", reason="no g++")
def test_no_byte_is_touched_that_is_not_ours(tmp_path):
    libraries = [subprocess.run(["g++", f"-print-file-name={n}.so"], capture_output=True, text=True).stdout.strip() for n in ("libasan", "libubsan")]
    if not all(os.path.isabs(l) for l in libraries): pytest.skip("g++ comes without its sanitizers")
    env = os.environ | dict(CXX="g++", XDG_CACHE_HOME=str(tmp_path), LD_PRELOAD=" ".join(libraries), ASAN_OPTIONS="detect_leaks=0", PYTHONPATH=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", SANITIZED], capture_output=True, text=True, env=env, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "clean", done.stderr[-3000:]
