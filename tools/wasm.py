"""The kernels for the page that flies, web/train.wasm, and the files that it hands out

The kernels are web/kernels.cpp, that is raptor_nb/native, compiled by clang to WebAssembly with
four numbers a register. A file that the page hands out is one of this package's exporters with
other weights in it: the page knows where they stand.
"""
import base64
import ctypes
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

from raptor_nb.core.records import atomic
from raptor_nb.learn.direct_native import DirectStep, DirectTraining, FlightDraws, SoapSettings
from raptor_nb.policy import LAYOUT, RaptorPolicy
from raptor_nb.sim import native
from raptor_nb.sim.physics import NOISE
from raptor_nb.targets.artefact import gates, trial_inputs
from raptor_nb.targets.json import policy_json

ROOT = Path(__file__).resolve().parents[1]
SOURCE, KERNELS = ROOT / "web/kernels.cpp", ROOT / "web/train.wasm"
EXPORTS = ("malloc", "student_parameters", "pool_size", "optimiser_size", "direct_segment",
           "size_of_DirectTraining", "direct_step", "size_of_DirectStep", "score", "size_of_Scoring")
FLAGS = ("--target=wasm32-wasi -std=c++17 -O3 -msimd128 -ffp-contract=fast -fno-math-errno "
         "-fno-trapping-math -fno-exceptions -fno-rtti -mexec-model=reactor "
         "-Xclang -fno-c++-static-destructors -Wl,--strip-all "
         # small functions: a browser finds registers for these sooner (by a fifth of an update)
         "-mllvm -inline-threshold=50 -mllvm -inlinehint-threshold=50").split()
SECTION = b"made from"   # a section of the file, which browsers pass over
NEEDS = ("clang++ with lld, wasi-libc and a libc++ for WebAssembly "
         "(Debian: lld wasi-libc libc++-dev-wasm32 libclang-rt-dev-wasm32)")


def sources(file=SOURCE):
    "A C++ file and everything of this package that it includes"
    found = [file]
    for name in re.findall(r'^#include "(.+)"', file.read_text(encoding="utf-8"), re.M):
        found += sources((file.parent / name).resolve())
    return sorted(set(found))


def sources_hash():
    "Of everything that the kernels are made from"
    parts = (p.name.encode() + b"\0" + p.read_bytes() for p in sources())
    return hashlib.sha256(b"\0".join([*parts, " ".join((*FLAGS, *EXPORTS)).encode()])).hexdigest()


def compiler():
    "What clang++ says that it is, or None"
    if not shutil.which("clang++"): return None
    done = subprocess.run(["clang++", "--version"], capture_output=True, text=True)
    return done.stdout.splitlines()[0]


def can_build():
    "Whether the compiler and its libraries are here"
    library = next(Path("/usr/lib").glob("**/wasm32-wasi/libc++.a"), None)
    return compiler() is not None and shutil.which("wasm-ld") is not None and library is not None


def leb128(n):
    "A number as WebAssembly writes it"
    out = bytearray()
    while True:
        n, low = n >> 7, n & 127
        out.append(low | (128 if n else 0))
        if not n: return bytes(out)


def described(wasm, about):
    "A module with one more section, which says what it was made from"
    text = json.dumps(about, sort_keys=True).encode()
    inside = leb128(len(SECTION)) + SECTION + text
    return wasm + b"\0" + leb128(len(inside)) + inside


def about(path=KERNELS):
    "What a module says that it was made from: sources, compiler. Raises SystemExit"
    wasm = Path(path).read_bytes() if Path(path).is_file() else b""
    at = wasm.rfind(SECTION)
    if at < 0: raise SystemExit(f"{path} is missing, or was not made by `make bundle`")
    return json.loads(wasm[at + len(SECTION):])


def stale():
    "Whether the kept module is missing or was made from other sources"
    try: return about()["sources"] != sources_hash()
    except SystemExit: return True


def build(out=KERNELS):
    "Compile. Raises SystemExit with the compiler's first line"
    if compiler() is None: raise SystemExit(f"the kernels of the page are compiled by {NEEDS}")
    exports = [f"-Wl,--export={name}" for name in EXPORTS]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.wasm"
        command = ["clang++", *FLAGS, *exports, "-o", str(raw), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise SystemExit(f"the kernels of the page were not compiled; this needs {NEEDS}: "
                             f"{said}")
        made = described(raw.read_bytes(), dict(sources=sources_hash(), compiler=compiler()))
    with atomic(out) as temporary: Path(temporary).write_bytes(made)
    return Path(out)


def encoded(data): return base64.b64encode(data).decode()


# ---- files that the page hands out -------------------------------------------------------------
def stand_in():
    "A policy of which no two weights are alike, so that each is found in a file"
    policy, random = RaptorPolicy(), np.random.default_rng(0)
    new = {k: torch.from_numpy(random.uniform(.1, .2, tuple(v.shape)).astype(np.float32))
           for k, v in policy.state_dict().items()}
    policy.load_state_dict(new)
    return policy


def place(data, array, name):
    "Where an array stands in a file, which has it once. Raises ValueError"
    raw = np.ascontiguousarray(array, "<f4").tobytes()
    at = data.find(raw)
    if at < 0 or data.find(raw, at + 1) >= 0:
        raise ValueError(f"{name} does not stand in the file exactly once")
    return dict(name=name, at=at, length=array.size)


def onnx_template():
    "A model of one step, and where its weights stand"
    from onnx import helper
    from raptor_nb.targets.onnx import onnx_model
    policy = stand_in()
    model = onnx_model(policy)
    known = {p.key: p.value for p in model.metadata_props}
    known.pop("commit"), known.pop("versions")
    slot = known["initial_hidden_state"] = known["initial_hidden_state"].ljust(420)
    helper.set_model_props(model, known | dict(source="trained in a browser"))
    data = model.SerializeToString()
    g = gates(policy)
    slots = [place(data, v, k) for k, v in g.items() if k != "h_0"]
    text = dict(at=data.index(slot.encode()), length=len(slot))
    return dict(bytes=encoded(data), slots=slots, initial=text)


def hdf5_template(steps=20): # few: what a lively hidden state makes of rounding grows with them
    "The layout of rl_tools with an example of a flight, and where its numbers stand"
    policy = stand_in()
    flight = trial_inputs("flight", steps, 1, policy=RaptorPolicy.pretrained())
    with tempfile.TemporaryDirectory() as folder:
        path = policy.to_hdf5(Path(folder) / "policy.h5", flight,
                              checkpoint_name="trained in a browser")
        with h5py.File(path) as f:
            at = {name: f[f"actor/layers/{where}/parameters"] for where, (name, _) in LAYOUT.items()}
            at |= {k: f[f"example/{k}"] for k in ("input", "output")}
            slots = [dict(name=k, at=v.id.get_offset(), length=v.size) for k, v in at.items()]
        data = path.read_bytes()
    return dict(bytes=encoded(data), slots=slots)


def json_template():
    "All but the weights and the example"
    whole = policy_json(stand_in())
    first = [{k: v for k, v in layer.items() if isinstance(v, (str, dict)) or k == "gates"}
             for layer in whole["layers"]]
    return whole | dict(layers=first, example=None, provenance=dict(source="trained in a browser"))


def templates(): return dict(json=json_template(), onnx=onnx_template(), h5=hdf5_template())


# ---- the same training in the native engine ----------------------------------------------------
UNFUSED = ["-ffp-contract=off"] # without multiplications and additions rounded once


def compiled(flags=None): # further flags -> ctypes library
    "The native engine, perhaps compiled otherwise"
    if flags is None: return ctypes.CDLL(str(native.build("direct")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "direct.so"
        source = str(native.source("direct"))
        command = [native.compiler(), *native.FLAGS, *flags, "-o", str(path), source]
        subprocess.run(command, check=True, capture_output=True)
        return ctypes.CDLL(str(path))


def settings_of(driver, # of a browser with the page
                seed,
               ): # -> what its panel would train by, with lists for arrays
    listed = "(_, v) => (ArrayBuffer.isView(v) ? Array.from(v) : v)"
    said = f"return JSON.stringify(raptor.panel.settings(arguments[0]), {listed})"
    return json.loads(driver.execute_script(said, seed))


def native_training(settings, # as the page's panel gives them, with lists for arrays
                    updates,  # how many of them
                    flags=None, # of the compiler, further ones
                    workers=None, # threads; None: as many as there are
                   ):         # -> weights after each (updates, P), costs (updates,)
    "What the native engine makes of a training of the page"
    lib, s = compiled(flags), settings
    how, H, B = s["optimiser"], s["hidden"], s["flights"] // native.LANES
    P = lib.student_parameters(H)
    arrays = {k: torch.tensor(v) for k, v in s["fleet"].items()} | dict(
        noise=NOISE, parameters=torch.tensor(s["weights"]), gradients=torch.zeros(B, P),
        pool=torch.zeros(B, lib.pool_size(H), native.LANES), costs=torch.zeros(B),
        ends=torch.zeros(B), norms=torch.zeros(B))
    work = native.task(
        DirectTraining, flights=s["flights"], steps=s["steps"], hidden=H, seed=s["seed"],
        drones=len(s["fleet"]["cumulative"]), update=0, draws=FlightDraws(**s["draws"]),
        cost=native.Cost(**s["cost"]), max_block_norm=how["max_block_norm"], **arrays)
    memory, shared = torch.zeros(lib.optimiser_size(H)), ("gradients", "parameters")
    soap = {k: how[k] for k in ("beta1", "beta2", "beta_covariance", "interval")}
    step = native.task(
        DirectStep, blocks=B, hidden=H, update=0, learn_h0=how["learn_h0"],
        how=SoapSettings(**soap), max_grad_norm=how["max_grad_norm"],
        weight_decay=how["weight_decay"], optimiser=memory,
        **{k: arrays[k] for k in shared})
    kept, costs = [], []
    for i in range(updates):
        work.update, step.update = i, i + 1
        native.run_task(lib.direct_segment, work, B, workers)
        step.how.learning_rate = how["rate"] * (1 - i / s["updates"])
        lib.direct_step(ctypes.byref(step))
        kept.append(arrays["parameters"].numpy().copy())
        costs.append(arrays["costs"][torch.isfinite(arrays["costs"])].mean().item())
    return np.array(kept), np.array(costs)


def differences(ours, theirs):
    "(updates, P) each -> size of the difference after each update, as a share of the size"
    norm = lambda x: np.linalg.norm(np.asarray(x, float), axis=1)
    return norm(np.asarray(ours, float) - theirs) / norm(theirs)
