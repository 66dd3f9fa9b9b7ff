"""What is lost on drones that are hard to begin with, and would somebody who knows more lose it too? -> specialists.json

python benchmarks/real_specialists.py [--drones 48] [--updates 8000] [--output reports/real] [--only WORDS]

For each condition of `sim.real` in which students miss a threshold of survival, on held-out drones, from the same starts in l2f, four
flights a drone: teachers by gradients (profile full), each of which knows its drone, sees the whole state and has flown nothing else,
on the first drones; and on all drones students of the class, which are `real32` and `real64` trained further on 2000 drones of this
condition alone: they know what kind of drone they fly, but not which. Beside them the students and the published policy. It also says
when the flights that are lost end. Rows that the output has already are kept, and what they are about is not trained again."""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from raptor_nb.core.records import load_json, save_json
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
    "flight_randomization.max_observation_noise": .001, "direct.long_horizon": 0, "direct.other_rate_share": 0.}


def rows(flown, condition, drones):
    out = []
    for name, own in flown.groupby("policy", sort=False):
        lost = own.terminated.astype(bool)
        out.append(dict(
            condition=condition, drones=drones, policy=name, flights=len(own), survival=1 - lost.mean(),
            steady_error_mean=own.steady_error.mean(), steady_error_median=own.steady_error.median(),
            lost_after_seconds=(np.sort(own.steps[lost]) / 100).tolist()))
    return out


def student_of_the_class(profile, begun, condition, updates): # of the condition's drones -> RaptorPolicy
    settings = load_config(profile, **CALM)
    of = settings.domain_randomization
    drones = able(sample_split("extra_train", 2200, of, of.seed), condition)
    drones = apply_condition(drones, {"drone": condition["drone"]})
    train, judge = drones[:-64], [with_conditions(d, velocity_limit=False) for d in drones[-64:]]
    how = replace(settings.direct, num_updates=updates, learning_rate=.005)
    return direct.train(settings, how, RaptorPolicy.pretrained(begun), train, judge)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--drones", type=int, default=48)
    p.add_argument("--updates", type=int, default=8000)
    p.add_argument("--output", default="reports/real")
    p.add_argument("--only", default="", metavar="WORDS", help="of the conditions' names; without it all three")
    args = p.parse_args()
    settings, file = load_config("full"), Path(args.output) / "specialists.json"
    table = load_json(file) if file.exists() else []
    of, grid = settings.domain_randomization, real_conditions(settings)
    held, seed = sample_split("test", 256, of, of.seed), settings.evaluation.seed
    known = {n: lambda n=n: RaptorPolicy.pretrained(n) for n in ("real64", "real32", "real")} | {"published": RaptorPolicy.published}
    for name in (n for n in grid if n.startswith(HARD) and args.only in n):
        drones = able(held, grid[name])
        few = drones[:args.drones]
        changed = apply_condition(few, {"drone": grid[name]["drone"]})
        of_class = lambda profile, begun: lambda: student_of_the_class(profile, begun, grid[name], args.updates)
        those = {"specialists": lambda: apg.train(settings.apg, changed, settings.training.seed)} | known
        classes = {"student of the class": of_class("full32", "real32"), "student of the class, 64 units": of_class("full64", "real64")}
        for policies, flown in ((those, few), (classes | known, drones)):
            own = [r for r in table if (r["condition"], r["drones"]) == (name, len(flown))]
            missing = {n: make() for n, make in policies.items() if n not in {r["policy"] for r in own}}
            if not missing: continue
            new = rows(evaluate(missing, flown, grid[name], seed, flights=4), name, len(flown))
            for row in new: print(row, flush=True)
            order = list(policies)
            table = [r for r in table if r not in own] + sorted(own + new, key=lambda r: order.index(r["policy"]))
            save_json(file, table)


if __name__ == "__main__": main()
