"""Soft actor-critic: Stable-Baselines3 compared with ours on this machine, one process at a time

    pip install 'raptor-nb[bench]'
    python benchmarks/sac.py [--steps 200000] [--drone 7] [--only sb3,alone] [--out FILE]

The same drone, networks, batch and flights. Rows, each a process of its own:
    sb3           Stable-Baselines3 on one core, its update ratio (the actor learns at every step)
    alone         ours on one core, published ratio (the actor learns at every second step)
    sb3's ratio   ours on one core, actor at every step
    torch         ours wholly in torch on one core, published ratio, a twentieth of the steps
    stack         ours, four teachers (--ids) on two cores, published ratio; its steps are
                  teacher-steps

Writes JSON and, beside it, a CSV of the same rows; rows that are there already are kept unless
--again. Seconds are wall time from the first update on, evaluations left out (100 flights every
tenth of the steps, by the same function for all); how busy the machine was is noted.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROWS = {"sb3": 1, "alone": 1, "sb3's ratio": 1, "torch": 1, "stack": 2}  # name -> cores


class Stopwatch:
    "Seconds since `start`, without those within `pause`"
    def __init__(self): self.begun, self.out = None, 0.

    def start(self): self.begun, self.out = time.perf_counter(), 0.

    def pause(self, function):
        def paused(*args, **kwargs):
            began = time.perf_counter()
            try: return function(*args, **kwargs)
            finally: self.out += time.perf_counter() - began
        return paused

    def seconds(self): return time.perf_counter() - self.begun - self.out


def evaluate(teachers, drones, settings): # -> list of dicts
    "The flights by which all are compared"
    from raptor_nb.learn import sac
    flights, seed = settings.data_collection.num_episodes_eval, settings.training.seed
    rows, _ = sac.fly_teachers(teachers, drones, flights, seed)
    columns = ["teacher", "return", "survival", "steady_error", "length"]
    return rows[columns].to_dict("records")


def ours(settings, ids, steps):
    "The row of a training by `learn.sac`"
    from raptor_nb.drones import sample_fleet
    from raptor_nb.learn import sac
    watch, warmup, curve = Stopwatch(), settings.sac.learning_starts, []
    drones = settings.domain_randomization
    fleet = sample_fleet(ids, drones, drones.seed)
    log_evaluation = watch.pause(sac.log_evaluation)

    def timed(states, *rest):
        new = log_evaluation(states, *rest)
        if states[0].step == warmup: watch.start()
        return new

    def log(step, rows):
        seconds = watch.seconds() if step > warmup else 0.
        curve.append(dict(step=step, seconds=seconds, **rows[["return", "survival"]].mean()))

    sac.log_evaluation = timed
    best, _ = sac.train(settings, fleet, steps, log=log, ids=ids)
    rate = (steps - warmup) * len(ids) / curve[-1]["seconds"]
    return dict(teacher_steps_per_second=rate, curve=curve, best=evaluate(best, fleet, settings))


def sb3_model(settings, drone, steps, seed):
    "Stable-Baselines3's SAC with our networks and hyperparameters"
    from stable_baselines3 import SAC

    from raptor_nb.environment import QuadrotorEnv
    sac = settings.sac
    widths = dict(pi=[sac.actor_hidden_dim] * 2, qf=[sac.critic_hidden_dim] * 2)
    return SAC("MlpPolicy", QuadrotorEnv(drone, privileged=True), seed=seed, device="cpu",
               learning_rate=sac.learning_rate, learning_starts=sac.learning_starts,
               buffer_size=steps, batch_size=sac.critic_batch_size, tau=sac.tau,
               gamma=sac.gamma, train_freq=1, gradient_steps=1,
               ent_coef=f"auto_{sac.temperature}", target_entropy=sac.target_entropy,
               policy_kwargs=dict(net_arch=widths), verbose=0)


def sb3_teachers(model, sac, drone_id):
    "Its actor as one of ours: the mean, squashed"
    import torch

    from raptor_nb.policy import Teachers
    made = Teachers(1, 26, sac.actor_hidden_dim, 4, "relu", [drone_id])
    layers = *model.actor.latent_pi[::2], model.actor.mu
    with torch.no_grad():
        for i, layer in enumerate(layers, 1):
            getattr(made, f"w{i}").copy_(layer.weight.T[None])
            getattr(made, f"b{i}").copy_(layer.bias[None, None])
    return made


def sb3(settings, drone_id, steps, seed):
    "The row of a training by Stable-Baselines3"
    from stable_baselines3.common.callbacks import BaseCallback

    from raptor_nb.core.parallel import l2f_single_threaded
    from raptor_nb.drones import sample_drone
    watch, sac, curve = Stopwatch(), settings.sac, []
    every, warmup = settings.training.eval_frequency, sac.learning_starts
    drone = sample_drone(drone_id)
    model = sb3_model(settings, drone, steps, seed)
    evaluate_now = lambda: evaluate(sb3_teachers(model, sac, drone_id), [drone], settings)

    class Watch(BaseCallback):
        def _on_step(self):
            step = self.num_timesteps
            if step == warmup: watch.start()
            if step % every == 0 and step > warmup:
                seconds = watch.seconds()
                (row,) = watch.pause(evaluate_now)()
                numbers = {k: row[k] for k in ("return", "survival")}
                curve.append(dict(step=step, seconds=seconds, **numbers))
            return True

    with l2f_single_threaded(): model.learn(steps, callback=Watch())
    rate = (steps - warmup) / watch.seconds()
    return dict(teacher_steps_per_second=rate, curve=curve, best=evaluate_now())


def settings_of(name, args, every):
    "The settings of a row"
    from raptor_nb.settings import load_config
    sac = dict(learning_starts=args.warmup, policy_delay=1 if name in ("sb3", "sb3's ratio") else 2,
               engine="torch" if name == "torch" else "native")
    training = dict(device="cpu", seed=args.seed, eval_frequency=every)
    if args.warmup % every and name != "sb3": training["eval_frequency"] = args.warmup
    return load_config("default", training=training, sac=sac,
                       data_collection=dict(num_episodes_eval=args.flights))


def measure(name, args):
    "A row, in this process"
    import torch
    cores = sorted(os.sched_getaffinity(0))[:ROWS[name]]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    steps = args.steps
    if name == "torch": steps = max(args.warmup + 1000, args.steps // 20)
    settings = settings_of(name, args, max(1000, args.steps // 10))
    load, busy, began = os.getloadavg()[0], time.process_time(), time.perf_counter()
    if name == "sb3": out = sb3(settings, args.drone, steps, args.seed)
    else:
        ids = [int(i) for i in args.ids.split(",")] if name == "stack" else [args.drone]
        out = ours(settings, ids, steps)
    return dict(name=name, cores=len(cores), steps=steps,
                ms_per_teacher_step=1000 / out["teacher_steps_per_second"], **out,
                wall_seconds=time.perf_counter() - began,
                cpu_seconds=time.process_time() - busy, load_before=load)


def write(path, rows):
    import pandas as pd

    from raptor_nb.core.records import save_json, save_table
    save_json(path, rows)
    mean = lambda row, metric: sum(b[metric] for b in row["best"]) / len(row["best"])
    flat = [{k: v for k, v in row.items() if k not in ("curve", "best")} |
            {metric: mean(row, metric) for metric in ("return", "survival")} for row in rows]
    save_table(path.with_suffix(".csv"), pd.DataFrame(flat))


def in_a_process(name): # -> row
    "Measure a row in a process of its own"
    env = os.environ | {"OMP_NUM_THREADS": str(ROWS[name])}
    command = [sys.executable, __file__, *sys.argv[1:], "--row", name]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    line = next((l for l in done.stdout.splitlines() if l.startswith("RESULT ")), None)
    if done.returncode or not line: sys.exit(f"{name}: ended with code {done.returncode}")
    return json.loads(line[7:])


def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=200_000)
    p.add_argument("--warmup", type=int, default=10_000, help="random steps before updates")
    p.add_argument("--drone", type=int, default=7, help="of the published distribution")
    p.add_argument("--ids", default="7,100,500,900", help="of the stack")
    p.add_argument("--flights", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", default="", help="names of rows, with commas")
    p.add_argument("--again", action="store_true", help="measure what is there already once more")
    p.add_argument("--out", type=Path, default=Path("runs/benchmarks/sac.json"))
    p.add_argument("--row", help=argparse.SUPPRESS)
    return p.parse_args()


def main(args):
    wanted = [w.strip() for w in args.only.split(",")] if args.only else list(ROWS)
    unknown = [w for w in wanted if w not in ROWS]
    if unknown: sys.exit(f"there is no row {unknown[0]!r}; known: {', '.join(ROWS)}")
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    there = {r["name"] for r in rows if r["steps"] >= args.steps / 20}
    for name in wanted:
        if name in there and not args.again:
            print(f"{name}: is there already", flush=True)
            continue
        row = in_a_process(name)
        rows = [r for r in rows if r["name"] != name] + [row]
        write(args.out, rows)
        print(f"{name:12s} {row['teacher_steps_per_second']:7.0f} teacher-steps/s, "
              f"{row['ms_per_teacher_step']:.3f} ms, {row['cores']} core(s); "
              f"return {[round(b['return']) for b in row['best']]}", flush=True)


if __name__ == "__main__":
    args = arguments()
    if args.row: print("RESULT " + json.dumps(measure(args.row, args), default=float))
    else: main(args)
