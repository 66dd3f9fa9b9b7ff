"""What chooses among students for real drones, on drones that no report is about -> students.json, frontier.png

python benchmarks/real_students.py [NAME=FILE ...] [--output runs/real] [--drones 512] [--published]

Students that come with the package (`real64`, `real32`, `real` and their former selves), others by name and file, all on the same selection drones and
starts in l2f. A row a student:

    hidden                           size of the hidden state
    return, survival                 clean; and `noise_return` with noise of .03
    filter                           m, steady error behind a velocity filter of 50 ms
    filter_20_s                      m, of the last 5 s of 20, on 64 drones
    offset                           survival, centre of gravity 25 % of the arm off on weak drones, three flights each
    eight_5_5, eight_3_5, jumps      m, RMSE in figure eights and behind a target that jumps
    command_gain                     median on 64 hovering drones of the largest eigenvalue (real part) of the commands' derivative by the
                                     previous commands; a loop that calls the policy often between two moves of the memory shows it its own
                                     commands, and beyond 1 they run away
    circling_RATE, lost_RATE         drones that still circle (further away than 10 cm), or are lost, 16 s after they began 10 m away, as
                                     PX4 shows errors, with a loop of 100 to 400 Hz; and with Betaflight's limits at 2 kHz

The figure has `filter` over `eight_5_5`: what a late velocity costs in tracking, with how large a hidden state. `--draw FILE` draws it again
from a students.json, without any flights."""
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from raptor_nb.core.records import load_json, save_json
from raptor_nb.evaluation import figures
from raptor_nb.evaluation.scores import ASKED, fly_real
from raptor_nb.learn.student import validation_drones
from raptor_nb.policy import RaptorPolicy, load_policy
from raptor_nb.settings import load_config
from raptor_nb.sim.conditions import conditions
from raptor_nb.sim.loops import LOOPS, Loop
from raptor_nb.sim.real import loop_conditions, real_conditions, real_flights
from raptor_nb.sim.rollout import evaluate

SHIPPED = "real64", "real32", "real", "real32-v1", "real-v1"
RATES = 100, 200, 250, 400
BESIDE = {"full32-64": (-6, -2), "full64-44": (6, -8), "full32-44": (-4, 4), "real32": (-5, -2), "real32-v1": (-6, -4)}  # names that would lie on others: where to, in points
FILTER, EIGHT = "velocity filtered by 50 ms", "figure eight in 5.5 s"
OFFSET = "centre of gravity 25 % of the arm off, thrust-to-weight 1.7 to 2.2"


def grid(settings):  # -> {name: condition}
    real, plain = real_conditions(settings), conditions(settings)
    far = loop_conditions(settings)["px4, from 10 m away"]
    seen = LOOPS["px4"]
    loops = {rate: Loop(rate, seen.position, seen.velocity, first=0.) for rate in RATES} | {"betaflight": LOOPS["betaflight"]}
    filtered = real[FILTER]
    out = dict(clean=real["clean"], noise=plain["noise 0.03"], filter=filtered, offset=real[OFFSET])
    out |= dict(eight_5_5=real[EIGHT], eight_3_5=real["figure eight in 3.5 s"], jumps=plain["target steps"])
    out |= {f"10 m, {rate}": far | dict(loop=loop) for rate, loop in loops.items()}
    return out | dict(long=filtered | dict(seconds=20., steady=5.))


def row(flown, name):  # -> dict
    own = {n: g for n, g in flown[flown.policy == name].groupby("condition")}
    kept = {n: g[~g.terminated.astype(bool)] for n, g in own.items()}
    out = dict(policy=name, drones=len(own["clean"])) | {"return": own["clean"]["return"].mean()}
    out |= dict(survival=len(kept["clean"]) / len(own["clean"]), noise_return=own["noise"]["return"].mean())
    out |= dict(filter=kept["filter"].steady_error.mean(), filter_20_s=kept["long"].steady_error.mean())
    out |= dict(offset=len(kept["offset"]) / len(own["offset"]), offset_error=kept["offset"].steady_error.mean())
    out |= {n: kept[n].rmse.mean() for n in ("eight_5_5", "eight_3_5", "jumps")}
    for n in (n for n in own if n.startswith("10 m")):
        rate = n.split()[-1]
        out |= {f"circling_{rate}": int((kept[n].steady_error > .1).sum()), f"lost_{rate}": len(own[n]) - len(kept[n])}
    return out


def command_gain(policy, drones, condition, step=300):
    flown, tracks = evaluate(policy, drones, condition, record=True)
    kept = ~torch.tensor(flown.terminated.to_numpy(bool))
    seen = torch.tensor(tracks["observation"])[kept]
    with torch.no_grad(): hidden = policy(seen[:, :step])[1]
    now = seen[:, step]
    commands = lambda previous: policy(torch.cat([now[:, :18], previous], 1)[:, None], hidden)[0].sum((0, 1))
    slopes = torch.autograd.functional.jacobian(commands, now[:, 18:])  # (4, drones, 4)
    return torch.linalg.eigvals(slopes.permute(1, 0, 2)).real.max(1).values.median().item()


def draw(table, path):  # rows of students.json
    fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    colours = {size: f"C{i}" for i, size in enumerate(sorted({r["hidden"] for r in table}))}
    for r in table:
        x, y = 100 * r["eight_5_5"], 1000 * r["filter"]
        published = r["policy"] == "published"
        ax.loglog(x, y, "s" if published else "o", color="grey" if published else colours[r["hidden"]], markersize=6)
        to = BESIDE.get(r["policy"], (6, 3))
        ax.annotate(r["policy"], (x, y), xytext=to, textcoords="offset points", fontsize=8, ha="right" if to[0] < 0 else "left")
    for size, c in colours.items(): ax.plot([], [], "o", color=c, label=f"{size} units")
    asked = dict(color="grey", linewidth=.8, linestyle=":")
    ax.axhline(1000 * ASKED[FILTER]["steady_error"], **asked)
    ax.axvline(100 * ASKED[EIGHT]["rmse"], **asked, label="asked for")
    for axis in (ax.xaxis, ax.yaxis): figures.log_ticks(axis)
    ax.set(xlabel="RMSE in a figure eight of 5.5 s, cm", ylabel="steady error, velocity filtered by 50 ms, mm")
    ax.margins(x=.15)
    ax.legend(frameon=False)
    figures.save_figure(fig, path)
    plt.close(fig)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("students", nargs="*", metavar="NAME=FILE", help="others than those of the package; of those, NAME alone")
    p.add_argument("--drones", type=int, default=512)
    p.add_argument("--output", default="runs/real")
    p.add_argument("--published", action="store_true", help="the published policy too")
    p.add_argument("--draw", metavar="FILE", help="a students.json: the figure alone")
    args = p.parse_args()
    figure = Path(args.output) / "frontier.png"
    if args.draw: return draw(load_json(args.draw), figure)
    settings = load_config("full")
    given = [text.partition("=") for text in args.students or SHIPPED]
    policies = {name: load_policy(file) if file else RaptorPolicy.pretrained(name) for name, _, file in given}
    if args.published: policies["published"] = RaptorPolicy.published()
    drones = validation_drones(settings, "selection", args.drones)
    flights = []
    for f in real_flights(grid(settings), drones):
        times = 3 if f.condition == "offset" else 1
        few = f.drones[:64] if f.condition == "long" else f.drones
        flights.append(f._replace(drones=[d for d in few for _ in range(times)]))
    flown = fly_real(flights, policies, settings.evaluation.seed)
    gain = lambda policy: command_gain(policy, drones[:64], conditions(settings)["clean"])
    table = [row(flown, name) | dict(hidden=policy.hidden_dim, command_gain=gain(policy)) for name, policy in policies.items()]
    save_json(Path(args.output) / "students.json", table)
    draw(table, figure)
    for line in table: print(line)


if __name__ == "__main__": main()
