"""What an update of direct training does with a core

    python benchmarks/direct.py [--out FILE] [--tries 60]

Milliseconds of 512 flights' gradients (128 steps forward and backward) and of an update, which is
that and the optimiser's step, on one core and on two: by the clock, and of all processors together;
floating-point operations; share of the peak, which a loop of multiply-adds measures beside it. The
quickest of the tries counts, because other work only adds to it. Writes JSON.
"""
import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from raptor_nb.core.parallel import core_count, single_threaded
from raptor_nb.drones import sample_fleet
from raptor_nb.learn import direct
from raptor_nb.policy import RaptorPolicy
from raptor_nb.settings import load_config
from raptor_nb.sim import native

PEAK = """
#include "simd.h"
extern "C" float multiply_add(int n) {  // n times 12 independent chains of 16 numbers
    V sums[12], x = all(.999f), y = all(.001f);
    unrolled<12>([&](int i) { sums[i] = all(1.f + i); });
    for (int k = 0; k < n; k++) unrolled<12>([&](int i) { sums[i] = sums[i] * x + y; });
    V total{};
    unrolled<12>([&](int i) { total += sums[i]; });
    return sum(total);
}
"""
# operations of a flight's step forward and backward beside the dense layers, counted by hand in the
# sources, not exactly: of the gates for each hidden unit, of physics with cost and observation, of
# sensors with their noise
GATES, PHYSICS, SENSORS = 96, 2740, 560


def peak_function():
    "`multiply_add` of PEAK, compiled as the kernels are"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "peak.cpp", Path(folder) / "peak.so"
        source.write_text(PEAK)
        headers = native.source("direct").parent
        command = [native.compiler(), *native._flags(), f"-I{headers}", str(source),
                   "-o", str(library)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library)).multiply_add


def operations(hidden=16):
    "Floating-point operations of a flight's step: {part: number}; a multiply-add is two"
    dense = 22 * hidden + 2 * 3 * hidden * hidden + 4 * hidden
    return dict(dense=2 * 3 * dense, gates=GATES * hidden, physics=PHYSICS, sensors=SENSORS)


def measure(tries):
    settings = load_config("full")
    how = load_config(settings, **{"direct.flights": 512}).direct
    fleet = direct.fleet_params(sample_fleet(64), how)
    run = direct.NativeTraining(settings, how, RaptorPolicy(), fleet, torch.ones(64),
                                direct.student_cost(settings, how),
                                direct.jump_probability(settings, how))
    fused, seconds, work = peak_function(), {}, {}
    def quickest(name, function):
        start, processor = time.perf_counter(), time.process_time()
        function()
        took, busy = time.perf_counter() - start, time.process_time() - processor
        seconds[name] = min(took, seconds.get(name, took))
        work[name] = min(busy, work.get(name, busy))
    cores = min(2, core_count())
    for _ in range(tries):  # interleaved, so that all meet the same machine
        with single_threaded():
            quickest("peak", lambda: fused(20_000))
            quickest("gradients, 1 core", run.gradients)
            quickest("update, 1 core", lambda: run.advance([1e-3]))
        threads = torch.get_num_threads()
        torch.set_num_threads(cores)
        quickest(f"gradients, {cores} cores", run.gradients)
        quickest(f"update, {cores} cores", lambda: run.advance([1e-3]))
        torch.set_num_threads(threads)
    del seconds["peak"]
    peak = 20_000 * 12 * 2 * native.LANES / work["peak"] / 1e9
    parts = operations()
    count = sum(parts.values()) * how.flights * how.horizon
    one = work["gradients, 1 core"]  # of the processor, which other work does not lengthen
    dense = parts["dense"] / sum(parts.values())
    return dict(
        flights=how.flights, steps=how.horizon, operations_a_step=parts,
        milliseconds={k: round(1e3 * s, 3) for k, s in seconds.items()},
        processor_milliseconds={k: round(1e3 * work[k], 3) for k in seconds},
        updates_a_second={k: round(1 / s, 1) for k, s in seconds.items() if "update" in k},
        cores=cores, scaling=round(
            seconds["gradients, 1 core"] / seconds[f"gradients, {cores} cores"], 2),
        gflops=round(count / one / 1e9, 1), peak_gflops=round(peak, 1),
        share_of_peak=round(count / one / 1e9 / peak, 3),
        share_of_peak_dense=round(dense * count / one / 1e9 / peak, 3))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tries", type=int, default=60)
    args = parser.parse_args()
    text = json.dumps(measure(args.tries), indent=1)
    print(text)
    if args.out: args.out.write_text(text + "\n")
