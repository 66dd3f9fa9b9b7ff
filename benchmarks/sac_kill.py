"""Can a training of teachers be killed at any moment?

    python benchmarks/sac_kill.py [--steps 3000] [--kills 3] [--out FILE]

It is killed (SIGKILL) at random moments, started again each time, and compared with one that was
left alone. Two teachers with the published networks; a checkpoint every tenth of the steps. The
moments are random shares of the time that the first, undisturbed training took after its first
checkpoint, so most of them fall between two checkpoints. At the end the last and the best teachers
must be equal to the last bit.
"""
import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def settings_of(steps):
    from raptor_nb.settings import load_config
    training = dict(device="cpu", seed=0, eval_frequency=max(1, steps // 6),
                    checkpoint_frequency=max(1, steps // 10))
    return load_config("default", training=training, data_collection=dict(num_episodes_eval=10),
                       sac=dict(learning_starts=steps // 10, trajectories=0.5))


def train(steps, folder):
    "In this process; prints the step of each evaluation"
    from raptor_nb.drones import sample_drone, with_conditions
    from raptor_nb.learn import sac
    fleet = [sample_drone(7), with_conditions(sample_drone(8), observation_noise=0.01)]
    said = lambda step, rows: print(step, flush=True)
    sac.train(settings_of(steps), fleet, steps, folder, ids=[7, 8], log=said)


def equal(a, b): # folders
    "Whether their teachers are the same to the last bit"
    import torch

    from raptor_nb.policy import Teachers
    def same(name):
        pairs = zip(*(Teachers.load(folder / name).parameters() for folder in (a, b)))
        return all(torch.equal(x, y) for x, y in pairs)
    return same("last.safetensors") and same("teachers.safetensors")


def start(steps, folder): # -> process
    command = [sys.executable, __file__, "--steps", str(steps), "--folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def checkpoints(folder): return sorted((folder / "checkpoints").glob("*.safetensors"))


def wait_for_new(process, folder, known):
    "Until there is another checkpoint than the known ones, or the process has ended"
    while process.poll() is None and checkpoints(folder) == known: time.sleep(0.02)


def undisturbed(steps, folder): # -> seconds behind its first checkpoint
    process = start(steps, folder)
    wait_for_new(process, folder, [])
    began = time.monotonic()
    if process.wait(): sys.exit("the undisturbed training ended with an error")
    return time.monotonic() - began


def killed(steps, folder, count, random, took): # -> list of kills
    "Train with kills, to the end"
    kills = []
    while True:
        process, begun = start(steps, folder), time.monotonic()
        if len(kills) == count: break
        wait_for_new(process, folder, checkpoints(folder)) # it has resumed and gone further
        time.sleep(random.random() * took / (count + 1))
        if process.poll() is not None: break # it came to its end before it was killed
        process.send_signal(signal.SIGKILL)
        process.wait()
        names = [path.name for path in checkpoints(folder)]
        newest = names[-1] if names else None
        kills.append(dict(seconds=time.monotonic() - begun, checkpoint=newest))
    process.wait()
    return kills


def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--kills", type=int, default=3)
    p.add_argument("--seed", type=int, default=0, help="of the moments")
    p.add_argument("--out", type=Path, default=Path("runs/benchmarks/sac_kill.json"))
    p.add_argument("--folder", help=argparse.SUPPRESS)
    return p.parse_args()


def main(args):
    from raptor_nb.core.records import save_json
    with tempfile.TemporaryDirectory() as base:
        whole, again = Path(base) / "whole", Path(base) / "killed"
        took = undisturbed(args.steps, whole)
        kills = killed(args.steps, again, args.kills, random.Random(args.seed), took)
        report = dict(steps=args.steps, kills=kills, equal=equal(whole, again),
                      seconds_undisturbed=took)
    save_json(args.out, report)
    print(f"killed {len(kills)} times, behind {[k['checkpoint'] for k in kills]}; "
          f"teachers {'equal' if report['equal'] else 'DIFFERENT'} at the end")
    sys.exit(not report["equal"])


if __name__ == "__main__":
    args = arguments()
    if args.folder: train(args.steps, Path(args.folder))
    else: main(args)
