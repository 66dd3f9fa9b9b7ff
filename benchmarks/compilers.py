"""How long do the native kernels take by each compiler of this machine?

python benchmarks/compilers.py [--repeats 3] [c++ ...]

An update of direct training (128 flights, 128 steps; 16 and 32 units) and a step of soft actor-critic (one teacher, its update included), in ms
of processor time on one thread: the least of some repeats, compilers in turn, each in a process of its own."""
import argparse
import os
import shutil
import subprocess
import sys
import time


def least(seconds, function):  # -> ms of processor time of a call, the least within so many seconds
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.process_time()
        function()
        best = min(best, time.process_time() - began)
    return 1000 * best


def update(hidden):  # ms
    from raptor_nb.drones import sample_split
    from raptor_nb.learn import direct
    from raptor_nb.policy import RaptorPolicy
    from raptor_nb.settings import load_config
    settings = load_config("default", apg=dict(engine="native"))
    run = direct.begin_training(settings, settings.direct, RaptorPolicy(hidden_dim=hidden), sample_split("train", 64))
    run.advance([.001] * 5)
    return least(4, lambda: run.advance([.001]))


def sac_step():  # ms
    from raptor_nb.drones import sample_fleet
    from raptor_nb.learn import sac
    from raptor_nb.settings import load_config
    settings = load_config("default", training=dict(device="cpu"), sac=dict(engine="native", learning_starts=200))
    state = sac.init_state(settings, sample_fleet([7]), [7], 20_000)
    sac.train_steps(state, 300)
    return least(4, lambda: sac.train_steps(state, state.step + 20)) / 20


def measure():
    import torch
    torch.set_num_threads(1)
    print(f"direct, 16 units {update(16):.2f}; 32 units {update(32):.2f}; soft actor-critic {sac_step():.2f}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("compilers", nargs="*", default=[c for c in ("g++", "clang++") if shutil.which(c)])
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.measure: return measure()
    for _ in range(args.repeats):
        for cxx in args.compilers:
            print(cxx, end=": ", flush=True)
            subprocess.run([sys.executable, __file__, "--measure"], env=os.environ | dict(CXX=cxx, OMP_NUM_THREADS="1"), check=True)


if __name__ == "__main__": main()
