"C and TFLite: what is written, what is refused, and that it flies"
import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import raptor_nb
from raptor_nb.core.records import file_hash
from raptor_nb.drones import sample_split, with_conditions
from raptor_nb.sim.rollout import evaluate
from raptor_nb.targets.artefact import ExportError
from raptor_nb.policy import RaptorPolicy
from raptor_nb.targets.artefact import flight_observations, gates
from raptor_nb.targets.c import CPolicy, compile_c, pointer
from raptor_nb.targets.harness import cortex_m4, emulated, instructions, sanitised
from raptor_nb.targets.registry import TARGETS, export_file, verify
from raptor_nb.targets.tflite import PRECISIONS, TflitePolicy, calibration, choose_route
from raptor_nb.targets.tflite import gptq_round, int8_rounding, interpreter, matrix_inputs
from raptor_nb.targets.tflite import metadata_of, quantised_gates, round_float16
from raptor_nb.targets.tflite import tflite_model, with_metadata

WEIGHTS = Path(raptor_nb.__file__).parent / "weights"


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(1)
    policy = RaptorPolicy()
    with torch.no_grad():
        for w in policy.parameters(): w.normal_(std=.3)   # the initial hidden state as well
    return policy


@pytest.fixture(scope="module")
def header(tmp_path_factory, policy):
    path = tmp_path_factory.mktemp("c") / "student.h"
    export_file(policy, "c", path, source="student.safetensors */ int x; /*")
    return path


# --- C

STRICT = "-Wdouble-promotion -Wconversion -Wshadow -Wstrict-prototypes"
EVERYTHING = "-Weverything -Wno-unknown-warning-option -Wno-unsafe-buffer-usage " \
             "-Wno-declaration-after-statement -Wno-poison-system-directories"
MAIN = """#include "{header}"
int main(void) {{
    raptor_state s;
    raptor_reset(&s);
    return raptor_self_test() > RAPTOR_TOLERANCE;
}}
"""


@pytest.mark.parametrize("compiler, flags", [
    pytest.param("gcc", "-std=c99", id="c99"),
    pytest.param("gcc", f"-std=c11 {STRICT}", id="c11"),
    pytest.param("gcc", "-std=c99 -ffreestanding -Os", id="freestanding"),
    pytest.param("clang", f"-std=c99 {EVERYTHING}", id="clang"),
    pytest.param("g++", "-x c++ -std=c++11", id="c++"),
])
def test_the_header_compiles_without_a_warning(header, tmp_path, compiler, flags):
    if not shutil.which(compiler): pytest.skip(f"{compiler} is not installed")
    (tmp_path / "main.c").write_text(MAIN.format(header=header))
    command = f"{compiler} {flags} -Wall -Wextra -Wpedantic -Werror -c main.c -o main.o".split()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_header_is_self_contained_and_small(header):
    text, numbers = header.read_text(), CPolicy(header).numbers
    assert re.findall(r"#include.*", text) == ["#include <stdint.h>"]
    assert "malloc" not in text and "double" not in text
    size = sum(4 * a.size for k, a in numbers.items() if not k.startswith("test"))
    assert size == 4 * sum(w.size for w in gates(RaptorPolicy()).values()) < 9000
    assert "motor_order: front-right, back-right" in text and "rate_hz: 100" in text
    assert "* / int x" in text, "the source's name cannot end the comment"


def test_the_self_test_finds_a_wrong_weight(header, tmp_path):
    assert CPolicy(header).self_test() <= 1e-6
    text, bent = header.read_text(), tmp_path / "bent.h"
    first = re.search(r"raptor_U_n\[16\]\[16\] = \{\n    \{([-\d.e]+)f", text)
    other = first[0].replace(first[1], f"{float(first[1]) + .01:.9g}")
    bent.write_text(text.replace(first[0], other))
    assert CPolicy(bent).self_test() > 1e-4


def test_sanitisers_are_silent(header): assert sanitised(header) <= 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.1e6, -3e38])
@pytest.mark.parametrize("flags", [["-O2"], ["-O3", "-ffast-math"]], ids=["exact", "fast-math"])
def test_what_cannot_be_true_is_refused_and_changes_nothing(header, tmp_path, value, flags):
    step = "int step(raptor_state *s, const float *o, float *a) { return raptor_step(s, o, a); }\n"
    text = header.read_text() + step
    path = compile_c(text, tmp_path / "c.so", *flags, "-shared", "-fPIC")
    library = ctypes.CDLL(str(path))
    hidden, action = np.full(16, .5, np.float32), np.full(4, .25, np.float32)
    seen = np.zeros(22, np.float32)
    call = lambda: library.step(*map(pointer, (hidden, seen, action)))
    seen[7] = value
    assert call() == 1 and (hidden == .5).all() and (action == .25).all()
    seen[7] = 9e5
    assert call() == 0 and not (hidden == .5).all()
    assert np.isfinite(hidden).all() and np.isfinite(action).all()


def clean_drones(n):
    return [with_conditions(d, force=0, velocity_limit=False) for d in sample_split("lessons", n)]


def test_compiled_and_flown(tmp_path):
    export_file(RaptorPolicy.published(), "c", tmp_path / "p.h")
    policies = {"torch": RaptorPolicy.published(), "c": CPolicy(tmp_path / "p.h")}
    flights = evaluate(policies, clean_drones(16))
    means = flights.groupby("policy")["return"].mean()
    assert means["torch"] > 400 and abs(means["c"] / means["torch"] - 1) < 1e-3
    ended = {name: f.terminated.tolist() for name, f in flights.groupby("policy")}
    assert ended["c"] == ended["torch"]


def changed(header, folder, old, new):
    path = folder / "changed.h"
    text = header.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("old, new", [
    pytest.param("return 0;", 'return system("ls");', id="other-code"),
    pytest.param("#include <stdint.h>", '#include <stdint.h>\n#include "evil.h"', id="include"),
    pytest.param("/* A policy", "int evil(void);\n/* A policy", id="code-before-the-comment"),
    pytest.param("#define RAPTOR_HIDDEN 16", "#define RAPTOR_HIDDEN evil()", id="define"),
    pytest.param("\n#endif", "", id="truncated"),
])
def test_bad_header(header, tmp_path, old, new):
    sentence = "is not a header that this version of raptor_nb wrote, and other C is not run"
    with pytest.raises(ExportError, match=sentence): CPolicy(changed(header, tmp_path, old, new))


@pytest.mark.parametrize("old, new, message", [
    pytest.param("#define RAPTOR_HIDDEN 16", "#define RAPTOR_HIDDEN 32",
                 r"raptor_W_in is missing or not of shape \(32, 22\)", id="dimensions"),
    pytest.param("raptor_U_z[16][16] = {\n    {", "raptor_U_z[16][16] = {\n    {1.0f, ",
                 r"raptor_U_z is missing or not of shape \(16, 16\)", id="a-number-too-many"),
    pytest.param("raptor_b_out[4]", "raptor_b_end[4]", "raptor_b_out is missing", id="missing"),
])
def test_bad_header_numbers(header, tmp_path, old, new, message):
    path = changed(header, tmp_path, old, new)
    with pytest.raises(ExportError, match=f"does not fit together: {message}"): CPolicy(path)


def test_bad_header_binary(tmp_path):
    (tmp_path / "p.h").write_bytes(b"\xff\x00")
    with pytest.raises(ExportError, match="is not a header"): CPolicy(tmp_path / "p.h")


@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed")
def test_instructions_are_counted(header):
    n = instructions(header)
    assert 2000 < n < 20000 and n == instructions(header)


@pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"),
                    reason="gcc-arm-none-eabi is not installed")
def test_cortex_m4(header):
    size = cortex_m4(header)
    assert 8208 < size["flash"] < 12_000 and size["ram"] + size["stack"] < 1500
    if not shutil.which("qemu-system-arm"):
        pytest.skip("qemu-system-arm is not installed: compiled, but not run")
    difference, count = emulated(header)
    assert difference <= 1e-5 and 2000 < count < 20000


# --- TFLite without TensorFlow

@pytest.mark.parametrize("kind", [round_float16, int8_rounding], ids=["float16", "int8"])
def test_rounding_with_feedback(kind):
    "On the grid, and nearer to the sums than rounding each weight by itself"
    random = np.random.default_rng(0)
    mix = random.normal(size=(16, 16))
    X, W = random.normal(size=(2000, 16)) @ mix, random.normal(size=(16, 8))
    round = round_float16 if kind is round_float16 else int8_rounding(W)
    got = gptq_round(W, X, round)
    assert np.allclose(round(got), got, atol=1e-12)
    assert np.abs(X @ (got - W)).mean() < .8 * np.abs(X @ (round(W) - W)).mean()


def test_every_matrix_meets_its_own_inputs(policy):
    g, seen = gates(policy), flight_observations(policy, 8, 30)
    inputs, before = matrix_inputs(g, seen)
    with torch.no_grad():
        hidden, _ = policy.gru(policy.input_layer(torch.from_numpy(seen).transpose(0, 1)))
    hidden = hidden.transpose(0, 1).reshape(-1, 16).numpy()
    assert np.abs(inputs["W_out"] - hidden).max() < 1e-5
    assert np.abs(before[0] - g["h_0"]).max() < 1e-7
    assert np.abs(inputs["U_r"][8:] - hidden[:-8]).max() < 1e-5
    wide = {k: len(v) for k, v in g.items() if k[0] in "WU"}
    assert {k: v.shape[1] for k, v in inputs.items()} == wide


def test_quantised_weights(policy):
    g = gates(policy)
    same, sixteen, eight = (quantised_gates(policy, p) for p in ("float32", "float16", "int8"))
    for k, w in g.items():
        assert np.array_equal(same[k], w)
        assert k == "h_0" or np.array_equal(np.float16(sixteen[k]), sixteen[k])
        assert np.abs(eight[k] - w).max() <= 3 * np.abs(w).max() / 127


def test_calibration_is_not_what_files_are_verified_on(policy):
    pairs = list(calibration(policy, gates(policy), 50)())
    assert len(pairs) == 50
    assert [v.shape for v in pairs[0].values()] == [(1, 22), (1, 1, 16)]
    known = {o.tobytes() for o in flight_observations(policy).reshape(-1, 22)}
    assert not any(p["observation"][0].tobytes() in known for p in pairs)


def test_metadata_rides_at_the_end():
    model, about = b"TFL3" * 100, {"precision": "int8"}
    data = with_metadata(model, about)
    assert data.startswith(model) and metadata_of(data) == about
    assert with_metadata(model, about) == data


@pytest.mark.parametrize("act, message", [
    pytest.param(lambda p: tflite_model(p, "int4"),
                 "precision 'int4' is unknown; choose from float32, float16, int8", id="precision"),
    pytest.param(lambda p: choose_route("onnx2tf"), "route 'onnx2tf' to TFLite is unknown; "
                 "choose from auto, onnx-tf, module", id="route"),
    pytest.param(lambda p: interpreter("tpu"), "runtime 'tpu' is unknown; choose from auto, "
                 "litert, tensorflow", id="runtime"),
])
def test_bad_tflite_request(policy, act, message):
    with pytest.raises(ExportError, match=message): act(policy)


def test_unwritable_folder(policy):
    with pytest.raises(OSError, match="cannot write '/dev/null/p.tflite'"):
        export_file(policy, "tflite", Path("/dev/null/p.tflite"))


INSTALL = r"which is not installed: pip install 'raptor-nb\[tflite\]'"


@pytest.mark.parametrize("module, call, message", [
    pytest.param("tensorflow", tflite_model, f"export to TFLite needs tensorflow, {INSTALL}",
                 id="tensorflow"),
    pytest.param("ai_edge_litert", lambda p: interpreter("litert"),
                 f"running a TFLite file needs ai_edge_litert, {INSTALL}", id="ai-edge-litert"),
])
def test_missing_package_of_tflite(policy, monkeypatch, module, call, message):
    for name in (module, f"{module}.interpreter"):   # a part that is loaded would be found
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=message): call(policy)


# --- TFLite with it

LITERT, TENSORFLOW = (bool(importlib.util.find_spec(p)) for p in ("ai_edge_litert", "tensorflow"))
with_litert = pytest.mark.skipif(not LITERT, reason="ai-edge-litert is not installed: make tflite")
NEEDED = "tensorflow and ai-edge-litert are not installed: make tflite"
with_tensorflow = pytest.mark.skipif(not (LITERT and TENSORFLOW), reason=NEEDED)
RECIPES = {"onnx-tf": ("float32", "onnx-tf"), "module": ("float32", "module"),
           **{p: (p, "module") for p in PRECISIONS}}


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    "The published policy by both routes and in every precision"
    folder, published = tmp_path_factory.mktemp("tflite"), RaptorPolicy.published()
    for name, (precision, route) in RECIPES.items():
        if route == "onnx-tf" and choose_route("auto") != "onnx-tf": continue
        model = tflite_model(published, precision, route, "published")
        (folder / f"{name}.tflite").write_bytes(model)
    return folder


@with_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["litert", "tensorflow"])
@pytest.mark.parametrize("name", ["float32", "float16", "int8", "onnx-tf"])
def test_tflite_equals_the_policy(lite, name, runtime):
    path = lite / f"{name}.tflite"
    if not path.exists(): pytest.skip("onnx-tf is not installed")
    flyer = TflitePolicy(path, runtime)
    verify(flyer, RaptorPolicy.published())
    assert path.stat().st_size < 20_000
    assert flyer.metadata["source"] == "published" and flyer.metadata["rate_hz"] == "100"
    if name != "int8": return
    other = RaptorPolicy.pretrained()
    with pytest.raises(ExportError, match="is not this policy"): verify(flyer, other)


@with_tensorflow
@pytest.mark.slow
def test_both_routes_give_the_same_numbers_with_built_in_operators(lite):
    if not (lite / "onnx-tf.tflite").exists(): pytest.skip("onnx-tf is not installed")
    a, b = (TflitePolicy(lite / f"{r}.tflite") for r in ("onnx-tf", "module"))
    seen = flight_observations(RaptorPolicy.published(), 8)
    assert max(np.abs(a.evaluate_step(o) - b.evaluate_step(o)).max() for o in seen) < 1e-6
    built_in = "ADD FULLY_CONNECTED LOGISTIC MUL RESHAPE SUB TANH".split()
    assert a.operators() == b.operators() == built_in


@with_tensorflow
@pytest.mark.slow
def test_precisions_in_flight(lite):
    "int8 weights with int16 activations keep the return; int8 throughout is here to show why"
    flyers = {p: TflitePolicy(lite / f"{p}.tflite") for p in PRECISIONS}
    flights = evaluate({"torch": RaptorPolicy.published()} | flyers, clean_drones(32))
    share = flights.groupby("policy")["return"].mean()
    share /= share["torch"]
    assert abs(share["float32"] - 1) < 1e-3 and abs(share["float16"] - 1) < .01
    assert share["int8"] > .95 and share["int8 throughout"] < share["int8"]


@with_tensorflow
@pytest.mark.slow
def test_bad_tflite_files(lite, tmp_path):
    good, path = (lite / "float32.tflite").read_bytes(), tmp_path / "p.tflite"
    for data in (b"", b"TFL3" * 9, good[:5000]):
        path.write_bytes(data)
        with pytest.raises(ExportError, match="is not a readable TFLite file"): TflitePolicy(path)
    path.write_bytes(good[:good.index(b"PK\x03\x04")])
    silent = "and no policy.json; it must take observation"
    with pytest.raises(ExportError, match=silent): TflitePolicy(path)
    missing = tmp_path / "q.tflite"
    with pytest.raises(FileNotFoundError, match="there is no TFLite file"): TflitePolicy(missing)


# --- what is shipped

SHIPPED = sorted(p for t in TARGETS.values() if (p := WEIGHTS / t.file).is_file())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_shipped_files_are_the_shipped_student(path):
    student = WEIGHTS / "student.safetensors"
    if path.suffix == ".tflite":
        made_of = metadata_of(path.read_bytes())["source_sha256"]
        assert made_of == file_hash(student), "of another student: make export-report"
        if not LITERT: pytest.skip("ai-edge-litert is not installed: not run, but of this student")
    assert len(verify(path, RaptorPolicy.load(student), steps=200, batches=(1,)))
