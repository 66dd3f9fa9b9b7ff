"""What is lost on drones that are hard to begin with, and would somebody who knows more lose it too? -> specialists.json

python benchmarks/real_specialists.py [--drones 48] [--updates 8000] [--output reports/real]

For each condition of `sim.real` in which students miss a threshold of survival, on held-out drones, from the same starts in l2f, four
flights a drone: teachers by gradients (profile full), each of which knows its drone, sees the whole state and has flown nothing else,
on the first drones; and on all drones a student of the class, which is `real32` trained further on 2000 drones of this condition alone:
it knows what kind of drone it flies, but not which. Beside them the students and the published policy. It also says when the flights
that are lost end."""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from raptor_nb.core.records import save_json
from raptor_nb.drones import sample_split, with_conditions
from raptor_nb.learn import apg, direct
from raptor_nb.policy import RaptorPolicy
from raptor_nb.settings import load_config
from raptor_nb.sim.conditions import apply_condition
from raptor_nb.sim.real import able, real_conditions
from raptor_nb.sim.rollout import evaluate

HARD = "one rotor 30", "centre of gravity 25", "thrust-to-weight 8 to 12"
CALM = {  # nothing but the condition: the class of drones is all there is to know
    "real_drones.plain_share": 1., "flight_randomization.velocity_jumps": 0., "flight_randomization.delay_share": 0.,
    "flight_randomization.max_observation_noise": .001, "direct.long_horizon": 0}


def rows(flown, condition, drones):
    out = []
    for name, own in flown.groupby("policy", sort=False):
        lost = own.terminated.astype(bool)
        out.append(dict(
            condition=condition, drones=drones, policy=name, flights=len(own), survival=1 - lost.mean(),
            steady_error_mean=own.steady_error.mean(), steady_error_median=own.steady_error.median(),
            lost_after_seconds=(np.sort(own.steps[lost]) / 100).tolist()))
    return out


def student_of_the_class(condition, updates): # of the condition's drones -> RaptorPolicy
    settings = load_config("full32", **CALM)
    of = settings.domain_randomization
    drones = able(sample_split("extra_train", 2200, of, of.seed), condition)
    drones = apply_condition(drones, {"drone": condition["drone"]})
    train, judge = drones[:-64], [with_conditions(d, velocity_limit=False) for d in drones[-64:]]
    how = replace(settings.direct, num_updates=updates, learning_rate=.005)
    return direct.train(settings, how, RaptorPolicy.pretrained("real32"), train, judge)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--drones", type=int, default=48)
    p.add_argument("--updates", type=int, default=8000)
    p.add_argument("--output", default="reports/real")
    args = p.parse_args()
    settings, table = load_config("full"), []
    of, grid = settings.domain_randomization, real_conditions(settings)
    held, seed = sample_split("test", 256, of, of.seed), settings.evaluation.seed
    known = {n: RaptorPolicy.pretrained(n) for n in ("real64", "real32", "real")} | {"published": RaptorPolicy.published()}
    for name in (n for n in grid if n.startswith(HARD)):
        drones = able(held, grid[name])
        few = drones[:args.drones]
        changed = apply_condition(few, {"drone": grid[name]["drone"]})
        those = {"specialists": apg.train(settings.apg, changed, settings.training.seed)} | known
        one = {"student of the class": student_of_the_class(grid[name], args.updates)} | known
        for policies, flown in ((those, few), (one, drones)):
            table += rows(evaluate(policies, flown, grid[name], seed, flights=4), name, len(flown))
            for row in table[-len(policies):]: print(row, flush=True)
        save_json(Path(args.output) / "specialists.json", table)


if __name__ == "__main__": main()
