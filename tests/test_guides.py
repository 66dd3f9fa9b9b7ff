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
from raptor_nb.drones import real_drones, sample_fleet, vary
from raptor_nb.environment import Simulator
from raptor_nb.evaluate import compare
from raptor_nb.export import export, open_artefact, verify
from raptor_nb.policy import RaptorPolicy
from raptor_nb.proof import LOOP, LoopPolicy, NodePolicy, at_rate, guide, program
from raptor_nb.targets.artefact import flown
from raptor_nb.targets.c import CPolicy, compile_c

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
    exec(compile(guide(page, name), name, "exec"), vars(made))
    return made


def test_a_guide_that_is_not_there_is_a_sentence():
    with pytest.raises(FileNotFoundError, match="there is no program 'x.py' in '.*server.md'"): guide("server", "x.py")


def test_links_lead_somewhere():
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()): assert (DOCS / link).exists(), f"{page.name}: {link}"


# --- server

@pytest.fixture
def server(files, tmp_path):
    (tmp_path / "server.py").write_text(guide("server", "server.py"))
    process = subprocess.Popen([sys.executable, tmp_path / "server.py", files / "student.onnx", "0"], stdout=subprocess.PIPE, text=True)
    port = int(re.search(r"on port (\d+)", process.stdout.readline())[1])
    def post(path, data, raw=False):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data if raw else json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer: return answer.status, json.load(answer)
        except urllib.error.HTTPError as e: return e.code, json.load(e)
    yield post
    process.terminate()
    process.wait()


def test_server_flies(server, published):
    seen = flown(published, 2, 60)
    published.reset()
    for o in seen:
        want = published.evaluate_step(o)
        for i, name in enumerate("ab"):
            code, answer = server("/step", {"flight": name, "observation": o[i].tolist()})
            assert code == 200 and np.abs(answer["action"] - want[i]).max() < 1e-5
    assert server("/reset", {"flight": "a"}) == (200, {})
    published.reset()
    assert np.abs(server("/step", {"flight": "a", "observation": seen[0, 0].tolist()})[1]["action"] - published.evaluate_step(seen[0])[0]).max() < 1e-5


def test_server_answers_mistakes(server):
    assert server("/step", {"flight": "a", "observation": [1, 2]}) == (400, {"error": "ValueError: observation must be 22 finite numbers"})
    assert server("/step", {"flight": "a"})[0] == 400 and server("/step", b"no json", raw=True)[0] == 400 and server("/fly", {})[0] == 404
    assert server("/step", {"flight": "a", "observation": [float("nan")] * 22})[0] == 400


def test_replay(files, published):
    seen = flown(published, 4, 100)
    actions = module("server", "replay.py").replay(str(files / "student.sequence.onnx"), seen)
    published.reset()
    assert np.abs(actions - np.stack([published.evaluate_step(o) for o in seen])).max() < 1e-5


# --- phone

def test_kotlin_names_what_the_file_has(files):
    "Names, order of dimensions and sizes; ONNX and TFLite share them"
    kotlin = guide("android", "RaptorPolicy.kt")
    sizes = {k: int(v) for k, v in re.findall(r"const val (\w+) = (\d+)", kotlin)}
    flyer = open_artefact(files / "student.onnx")
    assert sizes == {"OBSERVATIONS": flyer.obs_dim, "HIDDEN": flyer.hidden_dim, "ACTIONS": flyer.action_dim, "RATE_HZ": int(flyer.metadata["rate_hz"])}
    assert set(re.findall(r'"(\w+)" to', kotlin)) == {"observation", "hidden_in", "action", "hidden_out"} and '"serving_default"' in kotlin
    assert json.loads(flyer.metadata["initial_hidden_state"]) == [0] * 16, "the guide says that flights begin with zeros"
    shipped = Path(raptor_nb.__file__).parent / "weights/student.tflite"
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed, so the TFLite file's own signature was not read: make tflite")
    if not shipped.exists(): pytest.skip("no student.tflite is shipped: make export-report")
    run = litert.Interpreter(model_path=str(shipped))
    assert run.get_signature_list() == {"serving_default": {"inputs": ["hidden_in", "observation"], "outputs": ["action", "hidden_out"]}}
    assert sorted(d["shape"].tolist() for d in run.get_input_details()) == [[1, 1, sizes["HIDDEN"]], [1, sizes["OBSERVATIONS"]]]


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
    for name, text in (STUBS | {"RaptorPolicy.kt": guide("android", "RaptorPolicy.kt")}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(["kotlinc", *STUBS, "RaptorPolicy.kt", "-include-runtime", "-d", "p.jar"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = subprocess.run(["java", "-cp", "p.jar", "MainKt"], cwd=tmp_path, capture_output=True, text=True).stdout.splitlines()
    assert said == ["[10.0, 11.0, 12.0, 13.0]", "[20.0, 21.0, 22.0, 23.0]", "[10.0, 11.0, 12.0, 13.0]", "observation has 3 values; it must have 22"]


# --- microcontroller

def by_hand(policy, seen, start): # (T, 18), (4,) -> what the loop must command
    "The loop in Python: memory moves at calls 0, 4, 8 ..., the previous action is the mean of the commands since"
    memory, commands, since, previous = None, [], [], start
    for t, s in enumerate(seen):
        policy.set_hidden_state(memory)
        command = policy.evaluate_step(np.float32([[*s, *previous]]))[0].clip(-1, 1)
        if t % 4 == 0: memory, since = policy.get_hidden_state(), []
        since.append(command)
        previous = np.mean(since, 0)
        commands.append(command)
    return np.array(commands)


def test_the_loop_moves_its_memory_every_fourth_call(files, published):
    seen = flown(published, 3, 80)
    loop = LoopPolicy(files / "student.h")
    got = np.stack([loop.evaluate_step(o) for o in seen])
    for i in range(3): assert np.abs(got[:, i] - by_hand(published, seen[:, i, :18], seen[0, i, 18:])).max() < 1e-5
    published.reset()
    assert np.abs(got[1:] - np.stack([published.evaluate_step(o) for o in seen])[1:]).max() > .01


def test_the_loop_flies_at_400_hz(files):
    drones = [at_rate(vary(d, force=0, velocity_limit=False), 400) for d in sample_fleet(range(2_000_000, 2_000_008))]
    assert drones[0].integration.dt == .0025
    flights = compare({"loop": LoopPolicy(files / "student.h")}, drones, steps=1200)
    assert flights.terminated.mean() <= 1 / 8 and flights.steady_error.median() < .05


FAKE_BOARD = """
#include <stdio.h>
#include <math.h>
static int ticks, broken;
static float last[4];
void wait_for_tick(void) { ticks++; }
void read_state(float seen[18]) { int i; for (i = 0; i < 18; i++) seen[i] = i == 3 || i == 7 || i == 11 ? 1.0f : 0.0f; if (ticks > 100 && broken) seen[2] = NAN; }
void write_motors(const float command[RAPTOR_ACTIONS]) { int i; for (i = 0; i < 4; i++) last[i] = command[i]; }
int flying(void) { if (ticks == 200 || (broken && ticks == 125)) printf("%d %.9g\\n", ticks, (double)last[0]); return ticks < 200; }
"""


def test_the_program_runs_and_gives_up_on_a_broken_sensor(files, tmp_path):
    text = program(files / "student.h", guide("microcontroller", "control_loop.h"), guide("microcontroller", "main.c"), FAKE_BOARD)
    compile_c(text, tmp_path / "good", "-O2")
    done = subprocess.run([tmp_path / "good"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("200 ") and -1 <= float(done.stdout.split()[1]) <= 1
    compile_c(text.replace("static int ticks, broken;", "static int ticks, broken = 1;"), tmp_path / "broken", "-O2")
    assert subprocess.run([tmp_path / "broken"], capture_output=True).returncode == 2


# --- flight stacks

@pytest.fixture(scope="module")
def frames(): return module("flight_stacks", "frames.py")


def quaternion(R): # of a rotation matrix, w >= 0
    w = np.sqrt(max(0, 1 + np.trace(R))) / 2
    return np.array([w, (R[2, 1] - R[1, 2]) / (4 * w), (R[0, 2] - R[2, 0]) / (4 * w), (R[1, 0] - R[0, 1]) / (4 * w)])


def to_px4(seen, F): # 22 values as l2f shows them -> what PX4 would publish
    R = seen[3:12].reshape(3, 3)
    return dict(position=F @ seen[:3], q=quaternion(F @ R @ F), velocity=F @ seen[12:15], rates=F @ seen[15:18])


def to_crazyflie(seen, F):
    w, x, y, z = quaternion(seen[3:12].reshape(3, 3))
    return dict(position=seen[:3], q=[x, y, z, w], velocity=seen[12:15], gyro=np.degrees(seen[15:18]))


@pytest.mark.parametrize("stack", ["px4", "crazyflie"])
def test_flown_through_a_stacks_frames(frames, published, stack):
    "What l2f shows goes into the stack's terms and back through the guide: the flight ends on the target"
    there, back = {"px4": (to_px4, frames.from_px4), "crazyflie": (to_crazyflie, frames.from_crazyflie)}[stack]
    target, velocity = np.array([.3, -.2, .1]), np.zeros(3)
    simulator, error = Simulator([vary(d, force=0, terminate=False, guidance=1.) for d in list(real_drones().values())[:1]], seed=0), []
    simulator.reset(); published.reset()
    for _ in range(500):
        seen = simulator.observe()[0].astype(float)
        given = back(**there(seen, frames.FLIP), previous=seen[18:], target=target, target_velocity=velocity)
        plain = np.r_[seen[:3] - target, seen[3:]]
        assert np.abs(given - plain).max() < 1e-6
        simulator.step(published.evaluate_step(np.float32([given])))
        error.append(np.linalg.norm(simulator.state()["position"][0] - target))
    assert error[0] > .35 and np.mean(error[-100:]) < .12, "what the published policy's own steady error allows"


def test_yaw_is_held_where_it_is_asked_for(frames, published):
    yaw = .6
    simulator = Simulator([vary(d, force=0, terminate=False, guidance=1.) for d in list(real_drones().values())[:1]], seed=0)
    simulator.reset(); published.reset()
    for _ in range(600):
        seen = simulator.observe()[0].astype(float)
        simulator.step(published.evaluate_step(np.float32([frames.observe(seen[:3], seen[3:12].reshape(3, 3), seen[12:15], seen[15:18], seen[18:], yaw=yaw)])))
    R = simulator.observe()[0][3:12].reshape(3, 3)
    assert abs(np.arctan2(R[1, 0], R[0, 0]) - yaw) < .05 and np.linalg.norm(simulator.state()["position"][0]) < .1


@pytest.mark.parametrize("order, places", [("PX4", "front-right, back-left, front-left, back-right"), ("CRAZYFLIE", "front-right, back-right, back-left, front-left"), ("BETAFLIGHT", "back-right, front-right, back-left, front-left")])
def test_motor_orders_are_what_the_page_says(frames, order, places):
    from raptor_nb.targets.artefact import MOTORS
    assert [MOTORS[i] for i in getattr(frames, order)] == places.split(", ")
    text = guide("flight_stacks", "frames.py") + (DOCS / "flight_stacks.md").read_text()
    assert all(re.search(rf"M?{i} {place}", text) for i, place in enumerate(places.split(", "), 1))


def test_motors_are_where_and_turn_as_the_page_says():
    "Of every drone that is trained on: places from the rotor positions, turning from the reaction torques"
    for d in [*sample_fleet(8), *real_drones().values()]:
        x, y = np.sign(np.array(d.dynamics.rotor_positions))[:, :2].T
        assert x.tolist() == [1, -1, -1, 1] and y.tolist() == [-1, -1, 1, 1]
        assert [t[2] for t in d.dynamics.rotor_torque_directions] == [-1, 1, -1, 1], "a propeller that turns counter-clockwise twists the body clockwise"


def test_the_hand_test_is_right(frames):
    "Roll to the right, nose down, turn left: which of the 22 values rise"
    turned = lambda axis: frames.observe(np.zeros(3), frames.matrix(np.r_[np.cos(.1), np.sin(.1) * np.eye(3)[axis]]), np.zeros(3), .2 * np.eye(3)[axis], np.zeros(4))
    page = (DOCS / "flight_stacks.md").read_text()
    for axis, did in enumerate(("roll to the right", "push the nose down", "turn to the left")):
        row = re.search(rf"\| {did} \| value (\d+) positive while it moves; value (\d+) positive \|", page)
        assert row and all(turned(axis)[int(i)] > .1 for i in row.groups())
    R = frames.matrix(np.r_[np.cos(.1), np.sin(.1), 0, 0])
    assert (R @ [0, -1, 0])[2] < 0, "positive about x: the right side goes down"


# --- JavaScript

@pytest.mark.skipif(not shutil.which("node"), reason="Node is not installed")
def test_javascript_equals_the_policy(files, published):
    flyer = NodePolicy(files / "student.json")
    try:
        assert flyer.self_test < 1e-5
        assert verify(flyer, published, steps=200, batches=(3,), name="JavaScript").difference.max() < 1e-5
    finally: flyer.close()
