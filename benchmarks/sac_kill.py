"""Is a training of teachers unkillable? It is killed (SIGKILL) at random moments, started again each time, and compared with one that was left alone.

    python benchmarks/sac_kill.py [--steps 3000] [--kills 3] [--out runs/benchmarks/sac_kill.json]

Two teachers with the published networks; a checkpoint every tenth of the steps. The moments are random shares of the time that the first, undisturbed
training took after its first checkpoint, so most of them fall between two checkpoints. At the end the last and the best teachers must be equal to the last bit.
"""
import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def settings_of(args):
    from raptor_nb.core.config import load_config
    return load_config("default", **{"training.device": "cpu", "training.seed": 0, "training.eval_frequency": max(1, args.steps // 6), "training.checkpoint_frequency": max(1, args.steps // 10),
                                     "sac.n_warmup_steps": args.steps // 10, "sac.trajectories": 0.5, "data_collection.num_episodes_eval": 10})


def train(args, folder): # in this process; says each evaluation
    from raptor_nb.drones import sample_drone, vary
    from raptor_nb.learn import sac
    fleet = [sample_drone(7), vary(sample_drone(8), observation_noise=0.01)]
    sac.train(settings_of(args), fleet, args.steps, folder, ids=[7, 8], log=lambda step, rows: print(step, flush=True))


def equal(a, b): # folders -> whether their teachers are the same to the last bit
    import torch
    from raptor_nb.policy import Teachers
    pairs = [(Teachers.load(a / name), Teachers.load(b / name)) for name in ("last.safetensors", "teachers.safetensors")]
    return all(torch.equal(x, y) for one, other in pairs for x, y in zip(one.parameters(), other.parameters()))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--kills", type=int, default=3)
    p.add_argument("--seed", type=int, default=0, help="of the moments")
    p.add_argument("--out", type=Path, default=Path("runs/benchmarks/sac_kill.json"))
    p.add_argument("--folder", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.folder:
        train(args, Path(args.folder))
        sys.exit()
    from raptor_nb.core.records import save_json
    moments, report = random.Random(args.seed), dict(steps=args.steps, kills=[])
    with tempfile.TemporaryDirectory() as base:
        folders = [Path(base) / name for name in ("whole", "killed")]
        start = lambda folder: subprocess.Popen([sys.executable, __file__, "--steps", str(args.steps), "--folder", str(folder)], stdout=subprocess.PIPE, text=True)
        marks = lambda folder: sorted((folder / "checkpoints").glob("*.safetensors"))

        def until_first(process, folder): # -> seconds; the process has written a checkpoint or has ended
            while process.poll() is None and not marks(folder): time.sleep(0.02)

        process = start(folders[0])
        until_first(process, folders[0])
        began = time.monotonic()
        if process.wait(): sys.exit("the undisturbed training ended with an error")
        took = time.monotonic() - began
        while len(report["kills"]) < args.kills:
            process = start(folders[1])
            begun, known = time.monotonic(), marks(folders[1])
            while process.poll() is None and marks(folders[1]) == known: time.sleep(0.02) # it is past its start and has gone on
            time.sleep(moments.random() * took / (args.kills + 1))
            if process.poll() is not None: break # it came to its end before it was killed
            process.send_signal(signal.SIGKILL); process.wait()
            report["kills"].append(dict(seconds=time.monotonic() - begun, checkpoint=marks(folders[1])[-1].name if marks(folders[1]) else None))
        if process.poll() is None or len(report["kills"]) == args.kills: process = start(folders[1])
        process.wait()
        report |= dict(equal=equal(*folders), seconds_undisturbed=took)
    save_json(args.out, report)
    print(f"killed {len(report['kills'])} times, behind {[k['checkpoint'] for k in report['kills']]}; teachers {'equal' if report['equal'] else 'DIFFERENT'} at the end")
    sys.exit(not report["equal"])
