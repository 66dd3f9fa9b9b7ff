"An archive for PX4, read by rl_tools' own code: headers that the Python package `rltools` brings"
import importlib.util
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raptor_nb.sim.native import compiler

SOURCE = Path(__file__).with_suffix(".cpp")

# SHA-256 of the tensors of the published archive (136,192 bytes, SHA-256 5327c83d...)
PUBLISHED = {
    "0/weights": "8b8017adbe0dae79e64bfe6827bd7d91fa28e5020c4b4d4f870836556ba50607",
    "0/biases": "8d1319fb353b94b267280409472b4d277bbcd9a3d6cb2d72a5025cdc2829915f",
    "1/weights_input": "b0853ea0b7dd5bddf67b2e13824f0010240841fbebe1af942b9de2b13ebda611",
    "1/biases_input": "f72996828841f661afad1dc32671ad8bfccb36f58f7cb8e7cd0577fa7626b132",
    "1/weights_hidden": "1bdc614f347cd790fb2aab0afe5c6c43cb616deb8f429a1179a937265f452f2a",
    "1/biases_hidden": "94fa5c7bb8a438076475297be66471747a26c5655bf2b0a2f5af45e5b447b017",
    "1/initial_hidden_state":
        "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b",
    "2/weights": "5d971f65f4123209bb510eff2a73e0e61b08ae7759af682f1cd87b7e53535910",
    "2/biases": "b3ce95007eb64fe845c0a69f13592e5ddd59ac57c45ed17df22821c9ccf8c33e",
}
# of its 22 entries for the actor, names and contents, in the order of their names
PUBLISHED_ACTOR = "30e7653c486c4ddfe16658f42c1edba4c470bae52cb870bfaa85f050b3c55bb1"
PUBLISHED_NAME = "logs/2025-04-19_16-16-17"


class Reading(NamedTuple):
    "What the C++ program prints"
    steps: int        # of the example
    layers: float     # mean difference of PX4's self-test, by the layers
    executor: float   # the same by the executor, actions clipped to -1..1
    whole: float      # mean difference of the whole example, by the layers


def headers():
    "Folder to include; None where the package is missing"
    spec = importlib.util.find_spec("rltools")
    return Path(spec.origin).parent / "external/rl_tools/include" if spec else None


def missing():
    "What is not installed, in a sentence; empty: nothing"
    if compiler() is None: return "no C++ compiler"
    return "" if headers() else "rltools is not installed: pip install rltools==2.2.1"


def build(folder):
    "The program, compiled"
    command = [compiler(), "-std=c++17", "-O0", "-w", "-I", headers(), SOURCE, "-o",
               folder / "px4_reader"]
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "px4_reader"


def read(program, path):
    "-> Reading; None where rl_tools refuses the file"
    done = subprocess.run([str(program), str(path)], capture_output=True, text=True)
    if done.returncode: return None
    steps, *differences = done.stdout.split()
    return Reading(int(steps), *map(float, differences))


def fly(program, path, seen): # (T, 13) -> (T, 4) actions
    """rl_tools' l2f loop at 400 Hz around the policy of the archive: position, orientation w x y z,
    velocity and angular velocity of each call"""
    inputs, actions = (program.with_name(name) for name in ("inputs", "actions"))
    inputs.write_bytes(np.ascontiguousarray(seen, np.float32).tobytes())
    command = [str(p) for p in (program, path, inputs, actions)]
    subprocess.run(command, check=True, capture_output=True)
    return np.frombuffer(actions.read_bytes(), np.float32).reshape(-1, 4)
