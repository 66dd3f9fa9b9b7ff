"""What makes the published recipe come out as it does? Short trainings by epochs, one thing changed in each.

    python benchmarks/published_recipe.py --out reports/published_recipe/ablation.csv
    python benchmarks/published_recipe.py --teachers runs/full --only "as published" "as before"

The first so many teachers of a run (`teachers.safetensors` and `drones.json`), or, where none is named, teachers made here by gradients, with more flights each and smaller batches than in the whole recipe, so that an epoch has about as
many batches as the published one (155) at a quarter of the steps. A row a training: return, share of flights that ended and loss are the mean over its last five epochs, in the flights that it was trained in; `return_published` is of the last student in flights as published. Rows of the same name,
teachers and seed are replaced. A training takes about two minutes of one core.
"""
import argparse
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import torch

REST, WIDE, FREE = dict(trajectories=0.), dict(max_position=0.), dict(velocity_limit=False)
VARIANTS = {  # name -> what it changes, settings of data_collection, further changes
    "as published": ("nothing", {}, {}),
    "wide starts": ("starts within ten times the rotors' distance", WIDE, {}),
    "no end at 2 m/s": ("flights do not end at 2 m/s", FREE, {}),
    "target rests": ("the target never moves", REST, {}),
    "torch's Adam": ("no floor under the mean square of the gradient", {}, dict(floor=0.)),
    "not centred": ("teachers' steady offsets are not subtracted", {}, dict(centre=False)),
    "as before": ("wide starts, no end at 2 m/s, the target rests, torch's Adam", WIDE | FREE | REST, dict(floor=0.)),
}


def train(args, name, stack, fleet):
    "One training -> its row"
    from raptor_nb.core.config import load_config
    from raptor_nb.learn.epochs import Run, epoch, judge, one_thread
    change, data, further = VARIANTS[name]
    own = dict(num_episodes=args.flights, num_episodes_eval=30)
    settings = load_config("post_training", data_collection=own | data, training=dict(device="cpu", seed=args.seed),
                           distillation=dict(n_epochs=args.epochs, batch_size=args.batch))
    run, rows = Run(settings, stack, fleet, workers=args.workers), []
    if "floor" in further: run.optimiser.floor = further["floor"] or 1e-16
    if not further.get("centre", True): run.offsets = torch.zeros(stack.n, 3)
    with closing(run.crew), one_thread():
        for e in range(args.epochs):
            rows.append(epoch(run))
            if e % 10 == 9: print(name, e, {k: round(rows[-1][k], 4) for k in ("return", "ended", "loss")}, flush=True)
    other = Run(load_config(settings, data_collection=own), stack, fleet, workers=args.workers)
    with closing(other.crew), one_thread(): other.crew.collect(run.student, args.seed, args.epochs)
    last = lambda key: float(np.mean([r[key] for r in rows[-5:]]))
    return dict(name=name, change=change, teachers=args.name or f"{stack.obs_dim} values", teacher_return=float(np.mean([r["return"] for r in rows[:10]])), epochs=args.epochs, drones=stack.n, seed=args.seed,
                **{k: last(k) for k in ("return", "ended", "loss")}, return_published=judge(other, False)["return"])


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--teachers", type=Path, help="folder with teachers.safetensors and drones.json; none: teachers are made, in about a minute")
    p.add_argument("--name", default="", help="of these teachers, in the table")
    p.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    for flag, default in (("--drones", 125), ("--flights", 20), ("--batch", 16), ("--epochs", 60), ("--seed", 42), ("--workers", 1)): p.add_argument(flag, type=int, default=default)
    p.add_argument("--out", type=Path, default=Path("runs/benchmarks/published_recipe.csv"))
    args = p.parse_args()

    from raptor_nb.core.config import load_config
    from raptor_nb.core.records import load_table, save_table
    from raptor_nb.distill import match
    from raptor_nb.drones import load_fleet, sample_fleet
    from raptor_nb.learn import apg
    from raptor_nb.policy import Teachers
    if args.teachers:
        stack = Teachers.load(args.teachers / "teachers.safetensors")
        stack = stack.select(stack.ids[:args.drones])
        fleet = match(stack, load_fleet(args.teachers / "drones.json"))
    else:
        fleet = sample_fleet(args.drones)
        stack = apg.train(load_config("default", apg=dict(updates=300)).apg, fleet, args.seed)
    for name in args.only:
        row = train(args, name, stack, fleet)
        known = load_table(args.out) if args.out.exists() else pd.DataFrame(columns=list(row))
        same = (known.name == row["name"]) & (known.teachers == row["teachers"]) & (known.seed == row["seed"]) & (known.drones == row["drones"]) if len(known) else []
        save_table(args.out, pd.concat([known[~same] if len(known) else known, pd.DataFrame([row])], ignore_index=True).round(4))
        print(row, flush=True)
