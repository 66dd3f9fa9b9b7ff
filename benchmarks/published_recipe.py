"""What makes the published recipe come out as it does? Short trainings, one thing changed in each.

    python benchmarks/published_recipe.py --out reports/published_recipe/ablation.csv
    python benchmarks/published_recipe.py --teachers runs/full --only "as published" "as before"

The teachers are the first of a run (`teachers.safetensors` and `drones.json`) or, where none is
named, made here by gradients. They have more flights each and smaller batches than in the whole
recipe, so that an epoch has about as many batches as the published one (155) at a quarter of the
steps.

A row a training: return, share of flights that ended and loss are the mean over its last five
epochs, in the flights that it was trained in; `return_published` is of the last student in flights
as published. Rows of the same name, teachers, seed and number of drones are replaced. A training
takes about two minutes of one core.
"""
import argparse
from contextlib import closing
from pathlib import Path

import pandas as pd
import torch

from raptor_nb.core.parallel import single_threaded
from raptor_nb.core.records import load_table, save_table
from raptor_nb.drones import load_fleet, sample_fleet
from raptor_nb.learn import apg
from raptor_nb.learn.dagger import match
from raptor_nb.learn.published import PublishedTraining, evaluate_as_published
from raptor_nb.policy import Teachers
from raptor_nb.settings import load_config

REST, WIDE, FREE = dict(trajectories=0.0), dict(max_position=0.0), dict(velocity_limit=False)
VARIANTS = {  # name -> what it changes, settings of data_collection, further changes
    "as published": ("nothing", {}, {}),
    "wide starts": ("starts within ten times the rotors' distance", WIDE, {}),
    "no end at 2 m/s": ("flights do not end at 2 m/s", FREE, {}),
    "target rests": ("the target never moves", REST, {}),
    "torch's Adam": ("no floor under the mean square of the gradient", {}, dict(floor=1e-16)),
    "not centred": ("teachers' steady offsets are not subtracted", {}, dict(centre=False)),
    "as before": ("wide starts, no end at 2 m/s, the target rests, torch's Adam",
                  WIDE | FREE | REST, dict(floor=1e-16)),
}


def train(args, name, teachers, drones):
    "One training -> its row"
    change, data, further = VARIANTS[name]
    flights = dict(num_episodes=args.flights, num_episodes_eval=30)
    as_published = load_config("default", data_collection=flights,
                               training=dict(device="cpu", seed=args.seed),
                               distillation=dict(n_epochs=args.epochs, batch_size=args.batch))
    settings = load_config(as_published, data_collection=data)
    run = PublishedTraining(settings, teachers, drones, workers=args.workers)
    run.optimiser.floor = further.get("floor", run.optimiser.floor)
    if not further.get("centre", True): run.offsets = torch.zeros(teachers.n, 3)
    curve = pd.DataFrame(epochs_of(run, name, args.epochs))
    judged = evaluate_as_published(as_published, {name: run.student}, teachers, drones,
                                   args.epochs, args.workers)
    return dict(name=name, change=change, teachers=args.name or f"{teachers.obs_dim} values",
                teacher_return=curve["return"][:10].mean(), epochs=args.epochs, drones=teachers.n,
                seed=args.seed, **curve[["return", "ended", "loss"]][-5:].mean(),
                return_published=judged["return"][0])


def epochs_of(run, name, epochs):
    "Train -> the numbers of each epoch"
    with closing(run.collector), single_threaded():
        for epoch in range(epochs):
            numbers = run.run_epoch()
            if epoch % 10 == 9:
                print(name, epoch, {k: round(numbers[k], 4) for k in ("return", "ended", "loss")})
            yield numbers


def teachers_of(args):
    "-> Teachers and their drones"
    if not args.teachers:
        settings = load_config("default", apg=dict(num_updates=300))
        drones = sample_fleet(args.drones)
        return apg.train(settings.apg, drones, args.seed), drones
    teachers = Teachers.load(args.teachers / "teachers.safetensors")
    teachers = teachers.select(teachers.ids[:args.drones])
    return teachers, match(teachers, load_fleet(args.teachers / "drones.json"))


def replace_row(path, row):
    "Write a row into a table, in place of the one of the same training"
    known = load_table(path) if path.exists() else pd.DataFrame(columns=list(row))
    key = ["name", "teachers", "seed", "drones"]
    other = (known[key] != pd.Series(row)[key]).any(axis=1)
    save_table(path, pd.concat([known[other], pd.DataFrame([row])], ignore_index=True).round(4))


def parse():
    "The command line"
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--teachers", type=Path,
                   help="folder with teachers.safetensors and drones.json; "
                        "none: they are made, in about a minute")
    p.add_argument("--name", default="", help="of these teachers, in the table")
    p.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    sizes = dict(drones=125, flights=20, batch=16, epochs=60, seed=42, workers=1)
    for name, default in sizes.items(): p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--out", type=Path, default=Path("runs/benchmarks/published_recipe.csv"))
    return p.parse_args()


if __name__ == "__main__":
    args = parse()
    teachers, drones = teachers_of(args)
    for name in args.only:
        row = train(args, name, teachers, drones)
        replace_row(args.out, row)
        print(row, flush=True)
