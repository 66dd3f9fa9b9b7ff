"""What is lost on drones that are hard to begin with, and would somebody who knows the drone lose it too? -> specialists.json

python benchmarks/real_specialists.py [--drones 48] [--output reports/real]

For each condition of `sim.real` in which students miss a threshold of survival: a teacher by gradients for each of the first held-out
drones that can fly it (profile full), which sees the whole state and has flown only this drone, beside the students and the published
policy, from the same starts in l2f, four flights a drone. It also says when the flights that are lost end."""
import argparse
from pathlib import Path

import numpy as np

from raptor_nb.core.records import save_json
from raptor_nb.drones import sample_split
from raptor_nb.learn import apg
from raptor_nb.policy import RaptorPolicy
from raptor_nb.settings import load_config
from raptor_nb.sim.conditions import apply_condition
from raptor_nb.sim.real import able, real_conditions
from raptor_nb.sim.rollout import evaluate

HARD = "one rotor 30", "centre of gravity 25", "thrust-to-weight 8 to 12"


def rows(flown, condition, drones):
    out = []
    for name, own in flown.groupby("policy", sort=False):
        lost = own.terminated.astype(bool)
        out.append(dict(
            condition=condition, drones=drones, policy=name, flights=len(own), survival=1 - lost.mean(),
            steady_error_mean=own.steady_error.mean(), steady_error_median=own.steady_error.median(),
            lost_after_seconds=(np.sort(own.steps[lost]) / 100).tolist()))
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--drones", type=int, default=48)
    p.add_argument("--output", default="reports/real")
    args = p.parse_args()
    settings, table = load_config("full"), []
    of, grid = settings.domain_randomization, real_conditions(settings)
    held = sample_split("test", 256, of, of.seed)
    for name in (n for n in grid if n.startswith(HARD)):
        drones = able(held, grid[name])[:args.drones]
        changed = apply_condition(drones, {"drone": grid[name]["drone"]})
        policies = {"specialists": apg.train(settings.apg, changed, settings.training.seed)}
        policies |= {n: RaptorPolicy.pretrained(n) for n in ("real32", "real")} | {"published": RaptorPolicy.published()}
        table += rows(evaluate(policies, drones, grid[name], settings.evaluation.seed, flights=4), name, len(drones))
        for row in table[-len(policies):]: print(row, flush=True)
        save_json(Path(args.output) / "specialists.json", table)


if __name__ == "__main__": main()
