"The programs in docs/ are run: what a reader copies works"
import json
import re
import shutil
import subprocess
import sys
import types
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import raptor_nb
from raptor_nb.drones import real_drones, sample_fleet, sample_split, with_conditions
from raptor_nb.sim.l2f import Simulator
from raptor_nb.sim.rollout import evaluate
from raptor_nb.policy import RaptorPolicy
from raptor_nb.targets.artefact import MOTORS, flight_observations
from raptor_nb.targets.c import compile_c
from raptor_nb.targets.harness import LoopPolicy, NodePolicy, at_rate, c_program
from raptor_nb.targets.harness import guide_program
from raptor_nb.targets.registry import export, open_artefact, verify

DOCS = Path(raptor_nb.__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guides")
    export(RaptorPolicy.published(), folder)
    return folder


@pytest.fixture(scope="module")
def published(): return RaptorPolicy.published()


def module(page, name): # a Python program of a guide, imported
    made = types.ModuleType(name)
    exec(compile(guide_program(page, name), name, "exec"), vars(made))
    return made


def test_a_guide_that_is_not_there_is_a_sentence():
    sentence = "there is no program 'x.py' in '.*server.md'"
    with pytest.raises(FileNotFoundError, match=sentence): guide_program("server", "x.py")


def test_links_lead_somewhere():
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (DOCS / link).exists(), f"{page.name}: {link}"


# --- server

@pytest.fixture
def server(files, tmp_path):
    (tmp_path / "server.py").write_text(guide_program("server", "server.py"))
    command = [sys.executable, tmp_path / "server.py", files / "student.onnx", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    port = int(re.search(r"on port (\d+)", process.stdout.readline())[1])

    def post(path, data, raw=False):
        data = data if raw else json.dumps(data).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, kind)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as e: return e.code, json.load(e)
    yield post
    process.terminate()
    process.wait()


def test_server_flies(server, published):
    def step(flight, observation):
        code, answer = server("/step", {"flight": flight, "observation": observation.tolist()})
        assert code == 200
        return answer["action"]
    seen = flight_observations(published, 2, 60)
    published.reset()
    for o in seen:
        want = published.evaluate_step(o)
        for i, name in enumerate("ab"): assert np.abs(step(name, o[i]) - want[i]).max() < 1e-5
    assert server("/reset", {"flight": "a"}) == (200, {})
    published.reset()
    want = published.evaluate_step(seen[0])[0]
    assert np.abs(step("a", seen[0, 0]) - want).max() < 1e-5


def test_server_answers_mistakes(server):
    step = lambda *seen: server("/step", {"flight": "a", "observation": seen})
    assert step(1, 2) == (400, {"error": "ValueError: observation must be 22 finite numbers"})
    assert step(*[float("nan")] * 22)[0] == 400
    assert server("/step", {"flight": "a"})[0] == 400
    assert server("/step", b"no json", raw=True)[0] == 400
    assert server("/fly", {})[0] == 404


def test_replay(files, published):
    seen = flight_observations(published, 4, 100)
    actions = module("server", "replay.py").replay(str(files / "student.sequence.onnx"), seen)
    published.reset()
    assert np.abs(actions - np.stack([published.evaluate_step(o) for o in seen])).max() < 1e-5


# --- phone

def test_kotlin_names_what_the_file_has(files):
    "Names, order of dimensions and sizes; ONNX and TFLite share them"
    kotlin = guide_program("android", "RaptorPolicy.kt")
    sizes = {k: int(v) for k, v in re.findall(r"const val (\w+) = (\d+)", kotlin)}
    flyer = open_artefact(files / "student.onnx")
    assert sizes == {"OBSERVATIONS": flyer.obs_dim, "HIDDEN": flyer.hidden_dim,
                     "ACTIONS": flyer.action_dim, "RATE_HZ": int(flyer.metadata["rate_hz"])}
    names = {"observation", "hidden_in", "action", "hidden_out"}
    assert set(re.findall(r'"(\w+)" to', kotlin)) == names and '"serving_default"' in kotlin
    initial = json.loads(flyer.metadata["initial_hidden_state"])
    assert initial == [0] * 16, "the guide says that flights begin with zeros"


def test_kotlin_names_what_the_shipped_file_has():
    litert = pytest.importorskip("ai_edge_litert.interpreter",
                                 reason="ai-edge-litert is not installed: make tflite")
    shipped = Path(raptor_nb.__file__).parent / "weights/student.tflite"
    if not shipped.exists(): pytest.skip("no student.tflite is shipped: make export-report")
    run = litert.Interpreter(model_path=str(shipped))
    signature, = run.get_signature_list().items()
    assert signature == ("serving_default", {"inputs": ["hidden_in", "observation"],
                                             "outputs": ["action", "hidden_out"]})
    shapes = sorted(d["shape"].tolist() for d in run.get_input_details())
    assert shapes == [[1, 1, 16], [1, 22]]


STUBS = {"org/tensorflow/lite/Interpreter.kt": """package org.tensorflow.lite
class Interpreter(model: java.nio.ByteBuffer, options: Options) : java.io.Closeable {
    class Options { fun setNumThreads(n: Int): Options = this }
    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, key: String) {
        val seen = (inputs["observation"] as Array<*>)[0] as FloatArray
        val memory = ((inputs["hidden_in"] as Array<*>)[0] as Array<*>)[0] as FloatArray
        val next = ((outputs["hidden_out"] as Array<*>)[0] as Array<*>)[0] as FloatArray
        val action = (outputs["action"] as Array<*>)[0] as FloatArray
        for (i in next.indices) next[i] = memory[i] + seen[0]
        for (i in action.indices) action[i] = next[0] * 10 + i
    }
    override fun close() {}
}
""", "android/content/Context.kt": """package android.content
class Context { val assets = Assets() }
class Assets { fun openFd(name: String): Descriptor = throw java.io.FileNotFoundException(name) }
class Descriptor : java.io.Closeable {
    val fileDescriptor = java.io.FileDescriptor(); val startOffset = 0L; val declaredLength = 0L
    override fun close() {}
}
""", "Main.kt": """import com.example.raptor.RaptorPolicy
fun main() {
    val policy = RaptorPolicy(java.nio.ByteBuffer.allocate(1))
    val seen = FloatArray(22).also { it[0] = 1f }
    println(policy.step(seen).toList()); println(policy.step(seen).toList())
    policy.reset()
    println(policy.step(seen).toList())
    try { policy.step(FloatArray(3)) } catch (e: IllegalArgumentException) { println(e.message) }
}
"""}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("kotlinc"), reason="kotlinc is not installed")
def test_kotlin_compiles_and_keeps_its_memory(tmp_path):
    "Against an interpreter that adds up: the memory goes round, and reset forgets"
    program = {"RaptorPolicy.kt": guide_program("android", "RaptorPolicy.kt")}
    for name, text in (STUBS | program).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    run = lambda *words: subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    done = run("kotlinc", *STUBS, "RaptorPolicy.kt", "-include-runtime", "-d", "p.jar")
    assert done.returncode == 0, done.stderr
    first, second = "[10.0, 11.0, 12.0, 13.0]", "[20.0, 21.0, 22.0, 23.0]"
    said = run("java", "-cp", "p.jar", "MainKt").stdout.splitlines()
    assert said == [first, second, first, "observation has 3 values; it must have 22"]


# --- microcontroller

def by_hand(policy, seen, start): # (T, 18), (4,) -> what the loop must command
    """The loop in Python: the hidden state moves at calls 0, 4, 8 ..., the previous action is the
    mean of the commands since"""
    hidden, previous, commands, since = None, start, [], []
    for t, s in enumerate(seen):
        policy.set_hidden_state(hidden)
        command = policy.evaluate_step(np.float32([[*s, *previous]]))[0].clip(-1, 1)
        if t % 4 == 0: hidden, since = policy.get_hidden_state(), []
        since.append(command)
        previous = np.mean(since, 0)
        commands.append(command)
    return np.array(commands)


def test_the_loop_moves_its_memory_every_fourth_call(files, published):
    seen = flight_observations(published, 3, 80)
    loop = LoopPolicy(files / "student.h")
    got = np.stack([loop.evaluate_step(o) for o in seen])
    for i in range(3):
        want = by_hand(published, seen[:, i, :18], seen[0, i, 18:])
        assert np.abs(got[:, i] - want).max() < 1e-5
    published.reset()
    every = np.stack([published.evaluate_step(o) for o in seen])
    assert np.abs(got[1:] - every[1:]).max() > .01


def test_the_loop_flies_at_400_hz(files):
    clean = [with_conditions(d, force=0, velocity_limit=False) for d in sample_split("lessons", 8)]
    drones = [at_rate(d, 400) for d in clean]
    assert drones[0].integration.dt == .0025
    flights = evaluate({"loop": LoopPolicy(files / "student.h")}, drones, steps=1200)
    assert flights.terminated.mean() <= 1 / 8 and flights.steady_error.median() < .05


FAKE_BOARD = """
#include <stdio.h>
#include <math.h>
static int ticks, broken;
static float last[4];
void wait_for_tick(void) { ticks++; }
void read_state(float seen[18]) {
    int i;
    for (i = 0; i < 18; i++) seen[i] = i == 3 || i == 7 || i == 11 ? 1.0f : 0.0f;
    if (ticks > 100 && broken) seen[2] = NAN;
}
void write_motors(const float command[RAPTOR_ACTIONS]) {
    int i;
    for (i = 0; i < 4; i++) last[i] = command[i];
}
int flying(void) {
    if (ticks == 200 || (broken && ticks == 125)) printf("%d %.9g\\n", ticks, (double)last[0]);
    return ticks < 200;
}
"""


def test_the_program_runs_and_gives_up_on_a_broken_sensor(files, tmp_path):
    parts = [guide_program("microcontroller", name) for name in ("control_loop.h", "main.c")]
    text = c_program(files / "student.h", *parts, FAKE_BOARD)
    good = compile_c(text, tmp_path / "good", "-O2")
    done = subprocess.run([good], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("200 ")
    assert -1 <= float(done.stdout.split()[1]) <= 1
    text = text.replace("static int ticks, broken;", "static int ticks, broken = 1;")
    broken = compile_c(text, tmp_path / "broken", "-O2")
    assert subprocess.run([broken], capture_output=True).returncode == 2


# --- flight stacks

@pytest.fixture(scope="module")
def frames(): return module("flight_stacks", "frames.py")


def quaternion(R): # of a rotation matrix, w >= 0
    w = np.sqrt(max(0, 1 + np.trace(R))) / 2
    axis = R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]
    return np.r_[w, np.array(axis) / (4 * w)]


def to_px4(seen, F): # 22 values as l2f shows them -> what PX4 would publish
    R = seen[3:12].reshape(3, 3)
    position, velocity, rates = (F @ seen[i:i + 3] for i in (0, 12, 15))
    return dict(position=position, q=quaternion(F @ R @ F), velocity=velocity, rates=rates)


def to_crazyflie(seen, F):
    w, x, y, z = quaternion(seen[3:12].reshape(3, 3))
    gyro = np.degrees(seen[15:18])
    return dict(position=seen[:3], q=[x, y, z, w], velocity=seen[12:15], gyro=gyro)


@pytest.fixture
def simulator():
    "One real drone that flies calmly and is never reset"
    drone = next(iter(real_drones().values()))
    drone = with_conditions(drone, force=0, terminate=False, guidance=1.)
    simulator = Simulator([drone], seed=0)
    simulator.reset()
    return simulator


def fly(simulator, policy, steps, convert): # convert: 22 values of l2f -> what the policy is given
    "Positions over time"
    policy.reset()
    track = []
    for _ in range(steps):
        given = convert(simulator.observe()[0].astype(float))
        simulator.step(policy.evaluate_step(np.float32([given])))
        track.append(simulator.state()["position"][0].copy())
    return np.array(track)


@pytest.mark.parametrize("stack", ["px4", "crazyflie"])
def test_flown_through_a_stacks_frames(frames, published, simulator, stack):
    "l2f's values in the stack's terms and back through the guide: the flight ends on the target"
    there, back = {"px4": (to_px4, frames.from_px4),
                   "crazyflie": (to_crazyflie, frames.from_crazyflie)}[stack]
    target, still = np.array([.3, -.2, .1]), np.zeros(3)

    def convert(seen):
        given = back(**there(seen, frames.FLIP), previous=seen[18:], target=target,
                     target_velocity=still)
        assert np.abs(given - np.r_[seen[:3] - target, seen[3:]]).max() < 1e-6
        return given
    error = np.linalg.norm(fly(simulator, published, 500, convert) - target, axis=1)
    assert error[0] > .35
    assert error[-100:].mean() < .12, "what the published policy's own steady error allows"


def test_yaw_is_held_where_it_is_asked_for(frames, published, simulator):
    def convert(seen):
        return frames.observe(seen[:3], seen[3:12].reshape(3, 3), seen[12:15], seen[15:18],
                              seen[18:], yaw=.6)
    track = fly(simulator, published, 600, convert)
    R = simulator.observe()[0][3:12].reshape(3, 3)
    assert abs(np.arctan2(R[1, 0], R[0, 0]) - .6) < .05
    assert np.linalg.norm(track[-1]) < .1


@pytest.mark.parametrize("order, places", [
    ("PX4", "front-right, back-left, front-left, back-right"),
    ("CRAZYFLIE", "front-right, back-right, back-left, front-left"),
    ("BETAFLIGHT", "back-right, front-right, back-left, front-left")])
def test_motor_orders_are_what_the_page_says(frames, order, places):
    places = places.split(", ")
    assert [MOTORS[i] for i in getattr(frames, order)] == places
    text = guide_program("flight_stacks", "frames.py") + (DOCS / "flight_stacks.md").read_text()
    assert all(re.search(rf"M?{i} {place}", text) for i, place in enumerate(places, 1))


def test_motors_are_where_and_turn_as_the_page_says():
    """Of every drone that is trained on: places from the rotor positions, turning from the
    reaction torques; a propeller that turns counter-clockwise twists the body clockwise"""
    for d in [*sample_fleet(8), *real_drones().values()]:
        x, y = np.sign(np.array(d.dynamics.rotor_positions))[:, :2].T
        assert x.tolist() == [1, -1, -1, 1] and y.tolist() == [-1, -1, 1, 1]
        assert [t[2] for t in d.dynamics.rotor_torque_directions] == [-1, 1, -1, 1]


def test_the_hand_test_is_right(frames):
    "Roll to the right, nose down, turn left: which of the 22 values rise"
    page, still = (DOCS / "flight_stacks.md").read_text(), np.zeros(3)
    words = "roll to the right", "push the nose down", "turn to the left"
    for axis, did in zip(np.eye(3), words):
        R = frames.matrix(np.r_[np.cos(.1), np.sin(.1) * axis])
        values = frames.observe(still, R, still, .2 * axis, np.zeros(4))
        row = re.search(rf"\| {did} \| value (\d+) positive while it moves; "
                        r"value (\d+) positive \|", page)
        assert row and all(values[int(i)] > .1 for i in row.groups())
    R = frames.matrix(np.r_[np.cos(.1), np.sin(.1), 0, 0])
    assert (R @ [0, -1, 0])[2] < 0, "positive about x: the right side goes down"


# --- JavaScript

@pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed")
def test_javascript_equals_the_policy(files, published):
    flyer = NodePolicy(files / "student.json")
    try:
        assert flyer.self_test < 1e-5
        table = verify(flyer, published, steps=200, batches=(3,), name="JavaScript")
        assert table.difference.max() < 1e-5
    finally: flyer.close()
