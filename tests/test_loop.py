"raptor_loop.h: against rl_tools' executor, and where something is wrong"
import ctypes
import functools
import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import raptor_nb
from raptor_nb.policy import RaptorPolicy
from raptor_nb.sim.loops import LOOPS, Commands, clip_errors
from raptor_nb.targets.artefact import ExportError, flight_observations
from raptor_nb.targets.c import c_header, compile_c, pointer, shared_library
from raptor_nb.targets.executor import compare_loops, executor_headers, executor_library
from raptor_nb.targets.executor import loop_library, random_stream, run_stream
from raptor_nb.targets.harness import STACKS, StackPolicy, at_rate, loop_on_core, quaternions
from raptor_nb.targets.loop import LOOP_FILE, loop_header
from raptor_nb.targets.registry import export, export_file

with_executor = pytest.mark.skipif(
    not (importlib.util.find_spec("rltools") and shutil.which("g++")),
    reason="rltools or g++ is not installed")


@pytest.fixture(scope="module")
def policy(): return RaptorPolicy.pretrained()


@pytest.fixture(scope="module")
def student(policy): return c_header(policy)


@functools.cache
def ours(rate, calls): return loop_library(c_header(RaptorPolicy.pretrained()), rate, calls)


@functools.cache
def theirs(): return executor_library(RaptorPolicy.pretrained())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, policy):
    folder = tmp_path_factory.mktemp("loop")
    export_file(policy, "c", folder / "student.h")
    (folder / "loop.c").write_text('#include "raptor_loop.h"\nint main(void) { return 0; }\n')
    (folder / "l2f.c").write_text('#define RAPTOR_L2F_DEFINE\n#include "raptor_loop.h"\n')
    return folder


# --- the file

def test_it_is_written_next_to_the_policy_and_again_where_it_is_missing(policy, tmp_path):
    source = tmp_path / "source.safetensors"
    policy.save(source)
    make = lambda: export(policy, tmp_path / "out", "c", source).kept.tolist()
    loop = tmp_path / "out" / LOOP_FILE
    assert make() == [False] and loop.read_text() == loop_header()
    loop.write_text("old")
    assert make() == [True] and loop.read_text() == loop_header()
    assert not list((tmp_path / "out").glob(".*"))


def test_the_shipped_one_is_this_one():
    shipped = Path(raptor_nb.__file__).parent / "weights" / LOOP_FILE
    assert shipped.read_text() == loop_header()


STRICT = "-Wdouble-promotion -Wconversion -Wshadow -Wstrict-prototypes"
EVERYTHING = "-Weverything -Wno-unknown-warning-option -Wno-unsafe-buffer-usage " \
             "-Wno-declaration-after-statement -Wno-poison-system-directories -Wno-padded"


@pytest.mark.parametrize("name", ["loop.c", "l2f.c"])
@pytest.mark.parametrize("compiler, flags", [
    pytest.param("gcc", f"-std=c99 {STRICT}", id="c99"),
    pytest.param("gcc", "-std=c99 -ffreestanding -Os -DRAPTOR_CALLS=0", id="freestanding"),
    pytest.param("clang", f"-std=c99 {EVERYTHING}", id="clang"),
    pytest.param("g++", "-x c++ -std=c++11", id="c++"),
])
def test_it_compiles_without_a_warning(folder, name, compiler, flags):
    if not shutil.which(compiler): pytest.skip(f"{compiler} is not installed")
    command = f"{compiler} {flags} -Wall -Wextra -Wpedantic -Werror -c {name} -o x.o".split()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_other_policies_are_refused_at_compile_time(tmp_path):
    text = c_header(RaptorPolicy()).replace("RAPTOR_OBSERVATIONS 22", "RAPTOR_OBSERVATIONS 26")
    with pytest.raises(ExportError, match="policies of 22 observations and 4 actions"):
        compile_c(text + loop_header(), tmp_path / "x.o", "-c")


def test_it_flies_a_policy_of_another_size(tmp_path):
    torch.manual_seed(0)
    small = RaptorPolicy(hidden_dim=8)
    at, seen = random_stream(100, 50, jitter=0)
    actions, native, ok, _ = run_stream(loop_library(c_header(small), 100, 1), at, seen)
    assert native.all() and ok.all()
    assert np.abs(actions - by_hand(small, seen, native)).max() < 1e-5


def by_hand(policy, seen, native): # (T, 13), (T,) -> (T, 4)
    "The loop in Python, given the native calls"
    hidden, since, commands = None, [np.zeros(4, np.float32)], []
    for pose, moves in zip(seen, native):
        turned = rotation(pose[3:7]).ravel()
        mean = np.mean(since, 0)
        policy.set_hidden_state(hidden)
        given = np.concatenate([pose[:3], turned, pose[7:], mean])[None]
        commands.append(policy.evaluate_step(np.float32(given))[0].clip(-1, 1))
        if moves: hidden, since = policy.get_hidden_state(), []
        since.append(commands[-1])
    return np.array(commands)


def rotation(q): # w, x, y, z -> (3, 3)
    w, x, y, z = q
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                     [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                     [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])


# --- what it commands

@with_executor
def test_it_commands_what_the_executor_commands(policy):
    "Of rl_tools, compiled around the same weights; jittering and late calls"
    rows = compare_loops(policy, 600, (100, 400, 1000), seed=3)
    assert len(rows) == 6
    for row in rows:
        assert row["difference"] < 1e-5 and row["steps_differ"] == row["status_differs"] == 0
        assert row["timing"] < 1e-4
    assert {r["calls"] for r in rows} == {0, 1, 4, 10}


@with_executor
@pytest.mark.slow
def test_it_commands_what_the_executor_commands_for_long(policy):
    for row in compare_loops(policy, 10_000):
        assert row["difference"] < 1e-5 and row["steps_differ"] == row["status_differs"] == 0


@with_executor
def test_a_wrong_weight_would_be_seen(policy):
    other = policy.cpu_copy()
    with torch.no_grad(): other.output_layer.linear.bias += .01
    at, seen = random_stream(400, 50)
    bent = run_stream(executor_library(other), at, seen, 4)
    right = run_stream(ours(400, 4), at, seen)
    assert np.abs(bent[0] - right[0]).max() > 5e-3


@pytest.mark.parametrize("hertz, calls, native", [
    pytest.param(1000, 10, 10, id="crazyflie"), pytest.param(400, 4, 4, id="px4"),
    pytest.param(250, 2, 2, id="px4-250-counts-to-two"), pytest.param(2000, 0, 20, id="clock"),
    pytest.param(250, 0, 3, id="clock-250-every-third"), pytest.param(50, 0, 1, id="below-100")])
def test_native_steps(policy, hertz, calls, native):
    at, seen = random_stream(hertz, 61, jitter=0)
    actions, moved, ok, _ = run_stream(ours(hertz, calls), at, seen)
    assert ok.all() and np.flatnonzero(moved).tolist() == list(range(0, 61, native))
    assert np.abs(actions - by_hand(policy, seen, moved)).max() < 1e-5


def test_timing_is_told():
    "After 100 intervals: 10 ms for 1, one interval of 2.5 ms that took 4"
    library = ours(400, 4)
    _, seen = random_stream(400, 450)
    steady = 10 ** 9 + np.arange(450, dtype=np.uint64) * 2_500_000
    assert run_stream(library, steady, seen)[2].all()
    late = steady.copy()
    late[201:] += np.uint64(1_500_000)
    _, native, ok, timing = run_stream(library, late, seen)
    bad = np.flatnonzero(~ok)
    assert bad[0] == 201 and bad[-1] <= 301 and not native[bad].any()
    assert timing[201, 0] == pytest.approx(1.6) and abs(timing[201, 1] - 1.006) < 1e-3
    slow = 10 ** 9 + np.arange(450, dtype=np.uint64) * 12_500_000
    _, native, ok, timing = run_stream(library, slow, seen)
    assert native.all() and ok[:100].all() and not ok[101:].any()
    assert timing[-1, 1] == pytest.approx(1.25)


# --- what is wrong

@pytest.mark.parametrize("where, value", [
    *[pytest.param(i, v, id=f"{n}-{v}") for i, n in [(0, "position"), (4, "orientation"),
      (8, "velocity"), (12, "rates")] for v in (np.nan, np.inf)],
    pytest.param(2, 1.1e6, id="beyond-a-million"), pytest.param(slice(3, 7), 0., id="no-rotation")])
def test_a_reading_that_cannot_be_true_changes_nothing(where, value):
    library = ours(400, 4)
    at, seen = random_stream(400, 40, jitter=0)
    right = run_stream(library, at, seen)
    broken = seen.copy()
    broken[10, where] = value
    wrong = run_stream(library, at, broken)
    assert not wrong[2][10] and wrong[2].sum() == 39
    assert np.array_equal(wrong[0][10], wrong[0][9]), "the last command again"
    assert np.array_equal(wrong[0][:10], right[0][:10])
    assert np.isfinite(wrong[0]).all()
    assert np.flatnonzero(wrong[1])[:4].tolist() == [0, 4, 8, 12], "10 ms have passed at call 12"


def test_a_native_step_that_was_refused_is_made_by_the_next_call():
    at, seen = random_stream(400, 30, jitter=0)
    seen[8, 0] = np.nan
    assert np.flatnonzero(run_stream(ours(400, 4), at, seen)[1])[:4].tolist() == \
        [0, 4, 9, 13]


def test_a_first_reading_that_is_refused():
    at, seen = random_stream(400, 10, jitter=0)
    seen[:3, 0] = np.nan
    actions, native, ok, _ = run_stream(ours(400, 4), at, seen)
    assert (actions[:3] == 0).all() and np.flatnonzero(native).tolist() == [3, 7]


@pytest.mark.parametrize("back", [1, 10 ** 6, 900_000_000])
def test_a_clock_that_goes_backwards_is_told_and_flown_through(policy, back):
    at, seen = random_stream(400, 80, jitter=0)
    at[21:] -= np.uint64(2_500_000 + back)
    actions, native, ok, _ = run_stream(ours(400, 4), at, seen)
    assert np.flatnonzero(~ok).tolist() == [21]
    assert np.abs(actions - by_hand(policy, seen, native)).max() < 1e-5
    assert (np.diff(np.flatnonzero(native)) == 4).all(), "the count goes on"
    clock = run_stream(ours(400, 0), at, seen)[1]
    assert np.diff(np.flatnonzero(clock)).tolist() == [4] * 5 + [5] + [4] * 13, \
        "the call at which no time seems to pass is added"


@with_executor
def test_the_executor_stands_still_after_a_clock_that_goes_backwards():
    "Why ours does not do as it does"
    at, seen = random_stream(400, 80, jitter=0)
    at[21:] -= np.uint64(100_000_000)
    actions, native, ok, _ = run_stream(theirs(), at, seen, 4)
    assert not ok[21:].any() and not native[21:].any()
    assert (actions[21:] == actions[20]).all()


@with_executor
def test_the_executor_passes_on_what_is_not_finite():
    at, seen = random_stream(400, 80, jitter=0)
    seen[20, 0] = np.nan
    actions = run_stream(theirs(), at, seen, 4)[0]
    assert not np.isfinite(actions[20:]).any()


def test_a_clock_that_starts_again_at_zero(policy):
    "32 bits of microseconds, made to nanoseconds by the firmware"
    at, seen = random_stream(400, 60, jitter=0)
    at = at - at[0] + np.uint64(2 ** 64 - 50_000_000)
    with np.errstate(over="ignore"): at = at.astype(np.uint64)
    actions, native, ok, _ = run_stream(ours(400, 0), at, seen)
    assert (~ok).sum() == 1 and np.abs(actions - by_hand(policy, seen, native)).max() < 1e-5


CORE = """
static raptor_loop loop;
static raptor_target target;
static raptor_stack stack;
static int known;
void start(int which) {
    stack = which == 0 ? raptor_px4(400) : which == 1 ? raptor_crazyflie() : raptor_betaflight();
    if (!known++) raptor_loop_init(&loop);
    raptor_loop_reset(&loop, &stack);
}
void hold(const float *p, const float *q) { raptor_target_hold(&target, p, q); }
int set(uint64_t ns, const float *p, const float *v, float yaw) {
    return raptor_target_set(&target, ns, p, v, yaw);
}
int check(uint64_t ns, const float *p, const float *q) {
    return raptor_target_check(&target, ns, 200000000u, p, q);
}
void where(float *out) {
    int i;
    for (i = 0; i < 3; i++) out[i] = target.position[i];
    for (i = 0; i < 3; i++) out[3 + i] = target.velocity[i];
    for (i = 0; i < 2; i++) out[6 + i] = target.half[i];
}
int see(const float *pose, float *out) {
    raptor_seen seen;
    int i, bad = raptor_see(&stack, &target, pose, pose + 3, pose + 7, pose + 10, &seen);
    for (i = 0; i < 3; i++) out[i] = seen.position[i];
    for (i = 0; i < 4; i++) out[3 + i] = seen.orientation[i];
    for (i = 0; i < 3; i++) out[7 + i] = seen.velocity[i];
    for (i = 0; i < 3; i++) out[10 + i] = seen.rates[i];
    return bad;
}
int step(uint64_t ns, const float *pose, float *action) {
    raptor_seen seen;
    raptor_see(&stack, &target, pose, pose + 3, pose + 7, pose + 10, &seen);
    return raptor_loop_step(&loop, stack.calls, ns, &seen, loop.output, action);
}
void flip(const float *in, float *out) { raptor_flip_quaternion(in, out); }
"""


@pytest.fixture
def core(student):
    "A loop of its own for each test"
    library = shared_library(student + loop_header() + CORE)
    here, level = np.zeros(3, np.float32), np.float32([1, 0, 0, 0])
    library.hold(pointer(here), pointer(level))
    return library


def array(*values): return np.float32(values)
def ns(seconds): return ctypes.c_uint64(round(seconds * 1e9))


def call(core, seconds, pose): # -> what it said, action
    action = np.empty(4, np.float32)
    return core.step(ns(seconds), pointer(pose), pointer(action)), action


@pytest.mark.parametrize("which, first", [(0, 0.), (1, None), (2, -1.)],
                         ids=["px4", "crazyflie", "betaflight"])
def test_previous_action_after_a_reset(core, policy, which, first):
    "PX4 0, Betaflight -1; the Crazyflie goes on with its last command, at first 0"
    pose = array(.1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    core.start(which)
    _, last = call(core, 1, pose)
    core.start(which)
    _, action = call(core, 2, pose)
    previous = last if first is None else np.full(4, first)
    policy.reset()
    want = policy.evaluate_step(np.float32([[*pose[:3], *np.eye(3).ravel(), *pose[7:],
                                             *previous]]))[0].clip(-1, 1)
    assert np.abs(action - want).max() < 1e-5
    if first is None: assert np.abs(last - action).max() > 1e-3


@pytest.mark.parametrize("which, position, velocity", [(0, .5, 1), (1, .5, 2), (2, .6, 2)],
                         ids=["px4", "crazyflie", "betaflight"])
def test_errors_are_limited_on_each_axis(core, which, position, velocity):
    seen = np.empty(13, np.float32)
    core.start(which)
    pose = array(3, -3, .1, 1, 0, 0, 0, -9, 9, .2, 7, 8, 9)
    assert core.see(pointer(pose), pointer(seen)) == 0
    want = array(position, -position, .1, 1, 0, 0, 0, -velocity, velocity, .2, 7, 8, 9)
    assert np.abs(seen - want).max() < 1e-6


def test_what_is_seen_turns_with_the_heading(core):
    "Against rotation matrices: another yaw of the target is another world"
    core.start(1)
    random = np.random.default_rng(0)
    for yaw in (-3, -.7, .4, 2.5, 7):
        turn = rotation([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]).T
        p, v = random.uniform(-.2, .2, (2, 3))
        q = random.normal(size=4)
        q /= np.linalg.norm(q)
        pose, seen = array(*p, *q, *v, 1, 2, 3), np.empty(13, np.float32)
        here = array(.05, .1, -.1)
        assert core.set(ns(0), pointer(here), pointer(here), ctypes.c_float(yaw)) == 0
        core.see(pointer(pose), pointer(seen))
        assert np.abs(seen[:3] - turn @ (p - here)).max() < 1e-6
        assert np.abs(seen[7:10] - turn @ (v - here)).max() < 1e-6
        assert np.abs(rotation(seen[3:7]) - turn @ rotation(q)).max() < 1e-6


def test_frames_of_px4(core):
    flip, q = np.diag([1., -1, -1]), np.random.default_rng(0).normal(size=4)
    q, out = np.float32(q / np.linalg.norm(q)), np.empty(4, np.float32)
    core.flip(pointer(q), pointer(out))
    assert np.abs(rotation(out) - flip @ rotation(q) @ flip).max() < 1e-6


@pytest.mark.parametrize("position, velocity, yaw", [
    pytest.param([np.nan, 0, 0], [0, 0, 0], 0, id="position"),
    pytest.param([0, 0, 0], [0, np.inf, 0], 0, id="velocity"),
    pytest.param([0, 0, 0], [0, 0, 0], np.nan, id="yaw"),
    pytest.param([0, 0, 2e6], [0, 0, 0], 0, id="far"),
    pytest.param([0, 0, 0], [0, 0, 0], 2000, id="turns")])
def test_a_setpoint_that_is_not_finite_is_not_taken(core, position, velocity, yaw):
    before, after = np.empty(8, np.float32), np.empty(8, np.float32)
    good, bad = [array(1, 2, 3), array(4, 5, 6)], [array(*x) for x in (position, velocity)]
    assert core.set(ns(1), *map(pointer, good), ctypes.c_float(1)) == 0
    core.where(pointer(before))
    assert core.set(ns(1.1), *map(pointer, bad), ctypes.c_float(yaw)) == 1
    core.where(pointer(after))
    assert np.array_equal(before, after)
    here, q = array(7, 8, 9), array(np.cos(.2), 0, 0, np.sin(.2))
    assert core.check(ns(1.19), pointer(here), pointer(q)) == 0
    assert core.check(ns(1.21), pointer(here), pointer(q)) == 1, "200 ms after the last good one"
    core.where(pointer(after))
    assert np.abs(after - [7, 8, 9, 0, 0, 0, np.cos(.2), np.sin(.2)]).max() < 1e-6
    there = here + 1
    assert core.check(ns(1.3), pointer(there), pointer(q)) == 1
    core.where(pointer(before))
    assert np.array_equal(before, after), "it holds where it was then"


def test_a_setpoint_survives_a_clock_that_goes_backwards(core):
    here, q, target, still = array(7, 8, 9), array(1, 0, 0, 0), array(1, 2, 3), array(0, 0, 0)
    check = lambda t: core.check(ns(t), pointer(here), pointer(q))
    core.set(ns(5), pointer(target), pointer(still), ctypes.c_float(0))
    assert [check(t) for t in (1, 1.1, 1.3)] == [0, 0, 1]


def test_what_a_call_says(core):
    "1 moved, 2 refused, 4 backwards, 8 late"
    core.start(1)
    good = array(.1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    bad = array(np.nan, *good[1:])
    said = [call(core, t, p)[0] for t, p in [(1, good), (1.001, good), (1.002, bad), (1.001, good),
                                             (1.1, good), (1.001, bad)]]
    assert said == [1, 0, 2, 4, 1 + 8, 2 + 4]


# --- flights

def test_quaternions_are_those_of_the_matrices():
    q = np.random.default_rng(0).normal(size=(100, 4))
    q[:4] = np.eye(4)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    got = quaternions(np.stack([rotation(x) for x in q]))
    assert np.abs(np.abs((got * q).sum(1)) - 1).max() < 1e-12


@pytest.mark.parametrize("stack, hertz", [("px4", 400), ("px4", 250), ("crazyflie", 1000),
                                          ("betaflight", 2000)])
def test_flown_as_the_stacks_fly_it(folder, stack, hertz):
    from raptor_nb.drones import sample_split, with_conditions
    from raptor_nb.sim.rollout import evaluate
    clean = [with_conditions(d, force=0, velocity_limit=False) for d in sample_split("lessons", 4)]
    drones = [at_rate(d, hertz) for d in clean]
    (folder / "real").mkdir(exist_ok=True)
    export_file(RaptorPolicy.pretrained("real"), "c", folder / "real/student.h")
    flyer = StackPolicy(folder / "real/student.h", stack, hertz)
    flights = evaluate({stack: flyer}, drones, steps=3 * hertz)
    assert not flights.terminated.any() and flights.steady_error.median() < .05


@pytest.mark.parametrize("name, stack", [("px4", "px4"), ("px4 250 Hz", "px4"),
                                         ("crazyflie", "crazyflie"), ("betaflight", "betaflight")])
def test_it_is_the_loop_of_the_conditions(folder, policy, name, stack):
    "Call by call: `sim.loops`, by which policies are judged, and the C"
    loop = LOOPS[name]
    seen = flight_observations(policy, 3, 90) * np.float32(1)
    seen[..., :3] *= 9
    flyer, commands, hidden = StackPolicy(folder / "student.h", stack, int(loop.rate)), \
        Commands(loop), None
    for call, shown in enumerate(seen):
        given = clip_errors(shown, loop)
        given[:, 18:] = commands.previous(shown[:, 18:])
        policy.set_hidden_state(hidden)
        action, moved = policy.evaluate_step(given), call % loop.calls == 0
        if moved: hidden = policy.get_hidden_state()
        want = commands.give(action, moved)
        assert np.abs(flyer.evaluate_step(shown) - want).max() < 1e-5
    policy.reset()


def test_every_stack_has_a_name(): assert sorted(STACKS) == ["betaflight", "crazyflie", "px4"]


# --- the interface

@with_executor
def test_the_original_header_agrees_with_ours(folder, tmp_path):
    "The compiler compares the declarations, and the structures have the same bytes"
    text = "#include <rl_tools/inference/applications/l2f/c_interface.h>\n"
    for name, first in (("theirs", text), ("ours", "#define RAPTOR_L2F\n")):
        (tmp_path / f"{name}.c").write_text(
            f'{first}#define RAPTOR_L2F_DEFINE\n#include "raptor_loop.h"\n#include <stdio.h>\n'
            "int main(void) { RLtoolsInferenceExecutorStatus s = {0}; unsigned char *b; unsigned i;"
            "s.OK = 1; s.step_type = 1; s.timing_jitter.OK = 1; s.timing_bias.MAGNITUDE = 3.0f;"
            "b = (unsigned char *)&s;"
            "for (i = 0; i < sizeof s; i++) printf(\"%02x\", b[i]);"
            "printf(\" %u %u\", (unsigned)sizeof(RLtoolsInferenceApplicationsL2FObservation),"
            "(unsigned)sizeof(RLtoolsInferenceApplicationsL2FAction)); return 0; }\n")
        command = ["gcc", "-std=c99", f"-I{folder}", f"-I{executor_headers()}", f"{name}.c",
                   "-o", name]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    said = {n: subprocess.check_output(tmp_path / n, text=True) for n in ("theirs", "ours")}
    assert said["theirs"] == said["ours"] and said["ours"].endswith(" 68 16")


FIRMWARE = """
#define RAPTOR_L2F
#include "raptor_loop.h"
#include <stdio.h>
int main(void) {
    RLtoolsInferenceApplicationsL2FObservation o = {{0.1f, 0, 0}, {1, 0, 0, 0}, {0}, {0}, {0}};
    RLtoolsInferenceApplicationsL2FAction a;
    RLtoolsInferenceExecutorStatus s;
    char text[64];
    int t;
    rl_tools_inference_applications_l2f_init();
    printf("%s %d\\n", rl_tools_inference_applications_l2f_checkpoint_name(),
           rl_tools_inference_applications_l2f_test(&a) <= RAPTOR_TOLERANCE);
    for (t = 0; t < 3; t++) {
        if (t == 2) o.position[0] = 0.0f / 0.0f * o.position[0];
        s = rl_tools_inference_applications_l2f_control((uint64_t)(5 - t) * 1000000, &o, &a);
        rl_tools_inference_executor_status_message(s, text, sizeof text);
        puts(text);
    }
    s.source = RL_TOOLS_INFERENCE_EXECUTOR_STATUS_SOURCE_CONTROL;
    s.TIMESTAMP_INVALID = 0;
    s.timing_jitter.OK = 0;
    s.timing_jitter.MAGNITUDE = 12.3456f;
    rl_tools_inference_executor_status_message(s, text, sizeof text);
    puts(text);
    rl_tools_inference_executor_status_message(s, text, 8);
    puts(text);
    return 0;
}
"""


def test_firmware_links_it(folder, tmp_path):
    "Two files: one that calls, one that has the functions"
    (tmp_path / "firmware.c").write_text(FIRMWARE)
    command = ["gcc", "-std=c99", "-Wall", "-Werror", "-Wno-div-by-zero", f"-I{folder}",
               'firmware.c', str(folder / "l2f.c"), "-o", "firmware"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = subprocess.check_output(tmp_path / "firmware", text=True).splitlines()
    assert said[:4] == ["raptor_nb 1", "OK CONTROL NATIVE",
                        "PROBLEM CONTROL INTERMEDIATE TIMESTAMP_INVALID",
                        "PROBLEM TIMESTAMP_INVALID"]
    assert said[4].startswith("PROBLEM CONTROL INTERMEDIATE TIMING_ISSUE JITTER 12.346")
    assert said[5] == "PROBLEM"


def test_sanitisers_are_silent(student, tmp_path):
    at, seen = random_stream(400, 300)
    seen[7, 0] = np.nan
    times = ",".join(f"{t}ull" for t in at)
    text = student.replace("#include <stdint.h>", "#include <stdint.h>\n#include <math.h>") + \
        "#define RAPTOR_L2F_DEFINE\n" + loop_header() + f"""
static const float seen[300][13] = {{{_floats(seen)}}};
static const uint64_t at[300] = {{{times}}};
int main(void) {{
    RLtoolsInferenceApplicationsL2FObservation o = {{{{0}}, {{0}}, {{0}}, {{0}}, {{0}}}};
    RLtoolsInferenceApplicationsL2FAction a;
    int t, i, bad = 0;
    rl_tools_inference_applications_l2f_init();
    for (t = 0; t < 300; t++) {{
        for (i = 0; i < 3; i++) o.position[i] = seen[t][i];
        for (i = 0; i < 4; i++) o.orientation[i] = seen[t][3 + i];
        bad += !rl_tools_inference_applications_l2f_control(at[t], &o, &a).source;
    }}
    return bad != 1;
}}
"""
    flags = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all".split()
    program = compile_c(text, tmp_path / "clean", *flags)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _floats(rows):
    number = lambda x: "NAN" if np.isnan(x) else f"{x:.9e}f"
    return ",".join("{" + ",".join(map(number, row)) + "}" for row in rows)


ARM = [shutil.which("arm-none-eabi-gcc"), shutil.which("qemu-system-arm")]


@pytest.mark.skipif(not all(ARM), reason="gcc-arm-none-eabi or qemu-system-arm is not installed")
@pytest.mark.parametrize("name", ["Cortex-M4", "Cortex-M7"])
def test_on_a_microcontroller(folder, name):
    table = loop_on_core(folder / "student.h", name)
    more = table.instructions - table.instructions["policy"]
    assert 0 < more["loop"] < more["call"] < 1000 and 0 < more["interface"] < 1500
    assert table.added_flash["call"] < 2500 and table.ram.max() < 1200
