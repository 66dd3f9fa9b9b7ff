"The kernels: what they compute, on any number of threads, and what they cannot take"
import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernels import DRONES, PARAMS, actors, close, disturbances, needs_compiler
from kernels import numbers, own_flights, student_of, teacher_flights

from raptor_nb.settings import load_config
from raptor_nb.core.parallel import single_threaded
from raptor_nb.drones import sample_fleet, scale_drone, with_conditions
from raptor_nb.learn import apg, direct, engines
from raptor_nb.learn.cost import CostWeights
from raptor_nb.sim import native, physics
from raptor_nb.sim.physics import flatten_state, sample_state


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    "Nothing is compiled or loaded yet; afterwards everything is as it was"
    def clear():
        for f in (native.library, native.available): f.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clear()
    yield tmp_path / "raptor_nb/native"
    clear()


def instead(monkeypatch, tmp_path, name, text):
    "Another source for a library"
    file = tmp_path / f"{name}.cpp"
    file.write_text(text)
    monkeypatch.setattr(native, "source", lambda _: file)
    return file


# ---- what a drone is to C++
def table_of(drones): return native.table(physics.batch_params(drones))


def test_a_row_holds_a_drone_in_the_order_of_the_structure():
    drone = sample_fleet(1)[0]
    d, (row,) = drone.dynamics, table_of([drone])
    assert row.shape == (72,)
    curves = sum(map(list, d.rotor_thrust_coefficients), [])
    assert row[24:36].tolist() == pytest.approx(curves, rel=1e-6)
    assert row[44].item() == pytest.approx(d.mass, rel=1e-6)
    assert row[45:48].tolist() == pytest.approx(list(d.gravity), rel=1e-6)
    assert row[-3].item() == pytest.approx(drone.mdp.termination.position_threshold)


def test_a_table_is_its_rows():
    drones = sample_fleet(5)
    drones[2] = scale_drone(drones[2], arm_length=2 * drones[2].arm_length)
    together = table_of(drones)
    for i, d in enumerate(drones): assert torch.equal(together[i:i + 1], table_of([d]))


def test_gravity_is_that_of_the_drone():
    "Not a constant in torch, nor in C++"
    moon = [d.model_copy(update=dict(dynamics=d.dynamics.model_copy(
        update=dict(gravity=(0., 0., -1.62))))) for d in sample_fleet(3)]
    params = physics.batch_params(moon)
    assert torch.allclose(physics.weight(params), 1.62 * params.mass)
    state = torch.zeros(3, 1, 21)
    force = physics.weight(params)[..., None].expand(3, 1, 3)
    shares = physics.observe_privileged(state, force, params)[..., 26:]
    assert torch.allclose(shares, torch.ones(3, 1, 3))


# ---- imitation
@needs_compiler
def test_some_blocks_of_many():
    student, g = student_of(), torch.Generator().manual_seed(3)
    blocks = [torch.randn(5, 9, k, 16, generator=g) for k in (22, 4, 1)]
    blocks[2] = (blocks[2] > 1).float()
    loss, grads = native.imitation_gradients(student, *blocks, [4, 1, 1])
    one = lambda i: native.imitation_gradients(student, *(x[i:i + 1].contiguous() for x in blocks))
    apart = [one(i) for i in (4, 1, 1)]
    assert loss == pytest.approx(sum(l for l, _ in apart) / 3, rel=1e-6)
    for k in grads: assert torch.allclose(grads[k], sum(g[k] for _, g in apart) / 3, atol=1e-7)


# ---- roll-outs
def fly(steps=40, student=None, teachers=None, **changes):
    return native.student_rollout(student or student_of(), teachers or actors(), PARAMS,
                                  *disturbances(**changes), steps)


@needs_compiler
def test_noise_has_the_size_that_is_said_and_no_memory():
    sigma = torch.tensor([0., .01, .04]).view(3, 1).expand(3, 32)
    at_target = PARAMS._replace(init=(1.,) + PARAMS.init[1:])
    still = flatten_state(sample_state(at_target, 64, torch.Generator().manual_seed(0)))
    still = still.unflatten(1, (2, 32))
    quiet = dict(environments=32, start=still[:, 0], reset_states=still[:, 1:],
                 by_teacher=torch.ones(3, 32, dtype=torch.bool), delay=torch.zeros(3, 32))
    noisy, clean = (fly(sigma=x, **quiet)[0].view(3, 2, 40, 22, 16) for x in (sigma, 0 * sigma))
    noise = noisy - clean
    assert noise[0].abs().max() == 0 and noise[..., 18:, :].abs().max() == 0
    for drone, s in ((1, .01), (2, .04)):
        values = noise[drone].permute(2, 0, 1, 3).flatten(1)
        scale = values.std(1)[:18] / s / physics.NOISE[:18]
        assert scale.tolist() == pytest.approx([1.] * 18, abs=.08)
        assert values.mean(1).abs().max() < .1 * 5 * s
        pairs = noise[drone, :, 1:, :18].flatten(), noise[drone, :, :-1, :18].flatten()
        assert torch.corrcoef(torch.stack(pairs))[0, 1].abs() < .05


@needs_compiler
def test_a_flight_that_is_lost_begins_again():
    lost = disturbances(delay=torch.zeros(3, 16))
    lost.start[1, 4, 7] = torch.nan
    out = native.student_rollout(student_of(), actors(), PARAMS, *lost, 20)
    observation, label, reset = (x.view(3, 20, -1, 16) for x in out)
    assert reset[1, 1, 0, 4] == 1
    assert torch.isfinite(observation[:, 1:]).all() and torch.isfinite(label[:, 1:]).all()
    assert torch.allclose(observation[1, 1, :3, 4], lost.reset_states[1, 0, 4, :3])


# ---- threads
@needs_compiler
def test_threads_do_not_change_results():
    before, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(numbers())
    finally: torch.set_num_threads(before)
    for other in results[1:]: assert all(map(torch.equal, results[0], other))


def test_a_task_is_done_in_parts_by_several_threads():
    class Library:
        ranges = []
        def run(self, task, first, last): self.ranges.append((first, last))
    def ranges_of(**how):
        Library.ranges.clear()
        native.run_task(Library().run, native.ImitationGradients(), 20, **how)
        return sorted(Library.ranges)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with single_threaded(): assert ranges_of() == [(i, min(i + 3, 20)) for i in range(0, 20, 3)]
        with single_threaded(1), single_threaded(): assert ranges_of() == [(0, 20)]
        assert ranges_of(workers=1) == [(0, 20)]
    finally: torch.set_num_threads(before)


# ---- what they cannot take
def blocks(n=1, label=4): return [torch.zeros(n, 5, k, 16) for k in (22, label, 1)]


def in_double_precision():
    observation, label, reset = blocks()
    native.imitation_gradients(student_of(), observation, label.double(), reset)


ENVIRONMENTS = ("there are 24 environments a drone; the native engine flies 16 side by side, "
                "so it must be a multiple of 16")
HIDDEN = "the actors have 24 hidden units; the native engine takes multiples of 16 up to 256"
SHAPES = [
    pytest.param(lambda: native.teacher_segment(*teacher_flights(24)), ENVIRONMENTS,
                 id="teachers-flights"),
    pytest.param(lambda: fly(environments=8),
                 "there are 8 environments a drone; .* multiple of 16", id="flights"),
    pytest.param(lambda: native.teacher_segment(*teacher_flights(hidden=24)), HIDDEN,
                 id="teachers-hidden"),
    pytest.param(lambda: fly(teachers=actors(hidden=20)), "the actors have 20 hidden units",
                 id="labels-hidden"),
    pytest.param(lambda: fly(teachers=actors(hidden=272)), "the actors have 272 hidden units",
                 id="labels-hidden-large"),
    pytest.param(
        lambda: fly(teachers=actors(obs_dim=25)),
        r"the actors see 25 values; the native engine knows 22, 26 \(with rotor speeds\) and 29",
        id="labels-sight"),
    pytest.param(
        lambda: fly(student=student_of(24)),
        "the student takes 22 values, remembers 24 and commands 4; the native engine takes 22, "
        "multiples of 16 up to 64, and 4", id="student-hidden"),
    pytest.param(
        lambda: fly(sigma=torch.zeros(2, 16)),
        r"sigma has shape \(2, 16\); it must be \(3, 16\)", id="another-shape"),
    pytest.param(
        lambda: fly(teachers=actors().select([0, 1])),
        r"teachers has shape \(2,\); it must be \(3,\)", id="fewer-teachers"),
    pytest.param(
        lambda: native.imitation_gradients(
            student_of(), blocks(2)[0], torch.zeros(2, 4, 4, 16), blocks(2)[2]),
        r"label has shape \(2, 4, 4, 16\); it must be \(2, 5, 4, 16\)", id="shorter-labels"),
    pytest.param(
        lambda: native.imitation_gradients(student_of(), *blocks(2), rows=[2]),
        "rows go from 2 to 2; there are 2 blocks", id="block-missing"),
    pytest.param(
        lambda: native.imitation_gradients(student_of(), *(x[..., 0] for x in blocks(16))),
        r"observation has shape \(16, 5, 22\); it must be \(16, 5, 22, 16\)",
        id="flights-not-last"),
    pytest.param(in_double_precision, "label must be contiguous, on the CPU and float32",
                 id="double-precision"),
]


@needs_compiler
@pytest.mark.parametrize("make, message", SHAPES)
def test_bad_input(make, message):
    with pytest.raises(native.NativeError, match=message): make()


# ---- where they cannot be built
def test_missing_compiler(elsewhere, monkeypatch):
    monkeypatch.setattr(native, "compiler", lambda: None)
    message = (r"the native engine needs a C\+\+ compiler: install clang or g\+\+, "
               "or choose apg.engine: compiled")
    with pytest.raises(native.NativeError, match=message): native.library("apg")
    auto = load_config("default").apg
    assert auto.engine == "auto" and not native.available()
    assert engines.choose(auto.engine, environments=16).name == "torch"


def test_a_named_compiler_is_the_one(monkeypatch, tmp_path):
    own = tmp_path / "own-c++"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert native.compiler() == str(own)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert native.compiler() is None


@pytest.mark.parametrize("features, first", [
    ("flags : sse avx2 avx512f avx512bw\n", "g++"), ("flags : sse avx2 fma\n", "clang++"),
    ("Features : fp asimd\n", "clang++")])
def test_without_registers_of_sixteen_numbers_clang_is_preferred(monkeypatch, features, first):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native, "_cpu", lambda: features)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert native.compiler() == f"/bin/{first}"
    only = "g++" if first == "clang++" else "clang++"
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{only}" if name == only else None)
    assert native.compiler() == f"/bin/{only}", "the other one, where it is the only one"


def own_gradients(): # of three drones' flights, costs
    s = load_config("default", direct=dict(flights=48, horizon=30), apg=dict(engine="native"))
    run = direct.begin_training(s, s.direct, student_of(32), DRONES)
    gradients, costs, _ = run.gradients()
    return [*gradients.values(), costs]


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86 alone")
def test_narrower_registers_compute_the_same(monkeypatch, tmp_path):
    "nn.h keeps other tiles in registers where there is no AVX-512"
    def all_of_it():
        _, grads, costs = native.teacher_segment(*teacher_flights(32))
        recorded = fly(steps=40)
        loss, imitation = native.imitation_gradients(student_of(), *recorded)
        return [*grads.values(), costs, torch.tensor(loss), *imitation.values(), *own_gradients()]
    wanted = all_of_it()
    narrow = tmp_path / "c++"
    narrow.write_text(f'#!/bin/sh\nexec {native.compiler()} "$@" -mno-avx512f\n')
    narrow.chmod(0o755)
    monkeypatch.setenv("CXX", str(narrow))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    try: found = all_of_it()
    finally: native.library.cache_clear()
    assert {f.name.split("-")[0] for f in tmp_path.rglob("*.so")} == {"apg", "student", "direct"}
    for ours, theirs in zip(found, wanted): close(ours, theirs)


@needs_compiler
def test_source_that_cannot_be_compiled_is_a_sentence(elsewhere, monkeypatch, tmp_path):
    instead(monkeypatch, tmp_path, "apg", "int lanes() { return sixteen; }\n")
    message = r"could not compile .*apg\.cpp: .*(sixteen|apg\.cpp)"
    with pytest.raises(native.NativeError, match=message): native.library("apg")
    assert not native.available()
    assert not [*elsewhere.glob("*.so"), *elsewhere.glob("*tmp*")], "nothing is left behind"


@needs_compiler
def test_a_library_of_another_width_is_refused(elsewhere, monkeypatch, tmp_path):
    instead(monkeypatch, tmp_path, "apg", 'extern "C" int lanes() { return 8; }\n')
    message = "was compiled for 8 flights side by side, not 16"
    for ask in (lambda: native.library("apg"), native.available):
        with pytest.raises(native.NativeError, match=message): ask()


@needs_compiler
def test_it_is_compiled_once(elsewhere, monkeypatch, tmp_path):
    file = instead(monkeypatch, tmp_path, "sac", 'extern "C" int lanes() { return 16; }\n')
    first = native.build("sac")
    made = first.stat().st_mtime_ns
    assert native.build("sac") == first and first.stat().st_mtime_ns == made
    file.write_text('extern "C" int lanes() { return 8 + 8; }\n')
    second = native.build("sac")
    assert second != first, "another source, another library"
    (tmp_path / "nn.h").write_text("// a header\n")
    assert native.build("sac") not in (first, second), "another header, another library"


@needs_compiler
def test_a_structure_whose_fields_differ_is_refused(elsewhere, monkeypatch, tmp_path):
    instead(monkeypatch, tmp_path, "sac",
            'extern "C" int lanes() { return 16; }\n'
            'extern "C" int size_of_SacTask() { return 8; }\n')
    from raptor_nb.learn import sac_native  # noqa: F401
    message = "SacTask has 8 bytes in .*sac.cpp and .* in Python"
    with pytest.raises(native.NativeError, match=message): native.library("sac")


PHYSICS = native.source("apg").with_name("physics.h").read_text("utf-8")


@pytest.mark.parametrize("ours, theirs", [
    pytest.param("damping, barrier,", "barrier, damping,", id="swapped"),
    pytest.param("float huber_delta, precision,", "float huber_delta,", id="forgotten-in-C++"),
    pytest.param("excess;", "excess, jerk;", id="forgotten-in-Python"),
    pytest.param("damping, barrier,", "damping, wall,", id="another-name")])
def test_weights_of_the_cost_are_the_same_in_both_languages(monkeypatch, ours, theirs):
    "Who changes one of them is told, also by `engine: auto`"
    assert native.float_fields(PHYSICS, "Cost") == CostWeights._fields
    changed = native.float_fields(PHYSICS.replace(ours, theirs), "Cost")
    monkeypatch.setattr(native, "COST", changed)
    monkeypatch.setattr(native, "available", lambda: True)
    engine = engines.choose("auto", environments=16)
    message = (f"struct Cost in physics.h has the fields {', '.join(changed)} and "
               "learn.cost.CostWeights has huber_delta, .*: give both the same names in the "
               "same order, or choose apg.engine: torch")
    with pytest.raises(native.NativeError, match=message):
        engine.teacher_segment(*teacher_flights(hidden=16, steps=1))


@pytest.mark.parametrize("text, message", [
    ("struct Cost { float a; double b; };", "fields such as 'float a, b;' alone, not 'double b;'"),
    ("struct Price { float a; };", "there is no struct Cost in the C")])
def test_fields_that_cannot_be_read(text, message):
    with pytest.raises(native.NativeError, match=message): native.float_fields(text, "Cost")


def test_structures_have_their_fields_in_the_order_of_the_source():
    "Sizes alone would not tell two addresses that are swapped"
    from raptor_nb.learn import direct_native, published, sac_native  # noqa: F401
    assert native._structures.keys() == {"apg", "student", "direct", "published", "sac"}
    for library, kinds in native._structures.items():
        text = re.sub("//.*", "", native.source(library).read_text("utf-8"))
        for kind in kinds:
            body = re.search(rf"struct {kind.__name__} {{(.*?)}};", text, re.S)[1]
            names = re.findall(r"(\w+)\s*[,;]", body)
            assert names == [name for name, _ in kind._fields_], kind


@needs_compiler
def test_a_structure_that_differs_is_not_a_missing_compiler(elsewhere, monkeypatch):
    "`engine: auto` does not turn to torch because of a mistake in the code"
    more = {"_fields_": [("more", ctypes.c_float)]}
    other = type("TeacherSegment", (native.TeacherSegment,), more)
    monkeypatch.setitem(native._structures, "apg", [other])
    message = "TeacherSegment has .* bytes in .*apg.cpp and .* in Python: their fields differ"
    with pytest.raises(native.NativeError, match=message): engines.choose("auto", environments=16)


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_gcc_gives_the_same_numbers_without_a_warning(elsewhere, monkeypatch):
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    wanted, unturned = numbers(), own_flights(4)
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setattr(native, "FLAGS", [*native.FLAGS, *warnings])
    native.library.cache_clear()
    got = numbers()
    assert list(elsewhere.glob("student-*.so")) and len(got) == len(wanted)
    for a, b in zip(own_flights(4), unturned): close(a, b, 1e-4)
    for of in got, wanted: of.pop(-2) # the optimiser: bases of equal eigenvalues turn freely
    for a, b in zip(got, wanted): close(a, b, 1e-2)


SANITIZED = """
import torch
from raptor_nb.sim import native
import kernels, test_direct, test_engines
native.FLAGS += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
                 "-Wno-psabi"]
torch.set_num_threads(2)
assert all(torch.isfinite(x).all() for x in kernels.numbers())
test_engines.test_flights_are_those_of_torch(29, 64, "tanh", 16, 61, 64)
test_direct.test_both_engines_find_the_same_gradients(64, 1, {})
print("clean")
"""


def sanitizers(): # their libraries; without a compiler's own they are bare names
    def path(name):
        asked = ["g++", f"-print-file-name={name}.so"]
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return [path(name) for name in ("libasan", "libubsan")]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++") or sys.platform != "linux", reason="no g++")
def test_no_byte_is_touched_that_is_not_ours(tmp_path):
    libraries = sanitizers()
    if not all(map(os.path.isabs, libraries)): pytest.skip("g++ comes without its sanitizers")
    here = Path(__file__)
    env = os.environ | dict(
        CXX="g++", XDG_CACHE_HOME=str(tmp_path), LD_PRELOAD=" ".join(libraries),
        ASAN_OPTIONS="detect_leaks=0", PYTHONPATH=f"{here.parents[1]}:{here.parent}")
    done = subprocess.run([sys.executable, "-c", SANITIZED], capture_output=True, text=True,
                          env=env, cwd=here.parents[1])
    assert done.stdout.strip() == "clean", done.stderr[-3000:]
