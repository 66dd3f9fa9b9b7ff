"""Soft actor-critic: Stable-Baselines3 beside ours, the same drone, networks, batch and flights, one process after the other on this machine.

    pip install 'raptor-nb[bench]'
    python benchmarks/sac.py [--steps 200000] [--drone 7] [--only sb3,alone] [--out runs/sac/report/benchmark.json]

Rows, each a process of its own:
    sb3           Stable-Baselines3 on one core, its update ratio (the actor learns at every step)
    alone         ours on one core, published ratio (the actor learns at every second step)
    sb3's ratio   ours on one core, actor at every step
    torch         ours in plain torch on one core, published ratio, a twentieth of the steps
    stack         ours, four teachers (--ids) on two cores, published ratio; its steps are teacher-steps

Writes JSON and, beside it, a CSV of the same rows; rows that are there already are kept unless --again. Seconds are wall time from the first
update on, evaluations left out (100 flights every tenth of the steps, by the same function for all); how busy the machine was is noted.
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


def judge(teachers, drones, settings): # -> list of dicts: the flights by which all are compared
    from raptor_nb.learn import sac
    rows, _ = sac.evaluate(teachers, drones, settings.data_collection.num_episodes_eval, settings.training.seed)
    return rows[["teacher", "return", "survival", "steady_error", "length"]].to_dict("records")


def ours(settings, ids, steps):
    from raptor_nb.drones import sample_fleet
    from raptor_nb.learn import sac
    watch, warmup, curve = Stopwatch(), settings.sac.n_warmup_steps, []
    fleet = sample_fleet(ids, settings.domain_randomization, settings.domain_randomization.seed)
    record = sac.record
    def timed(runs, *rest):
        new = watch.pause(record)(runs, *rest)
        if runs[0].step == warmup: watch.start()
        return new
    sac.record = timed
    def log(step, rows): curve.append(dict(step=step, seconds=watch.seconds() if step > warmup else 0., **{"return": rows["return"].mean(), "survival": rows["survival"].mean()}))
    best, _ = sac.train(settings, fleet, steps, log=log, ids=ids)
    return dict(teacher_steps_per_second=(steps - warmup) * len(ids) / curve[-1]["seconds"], curve=curve, best=judge(best, fleet, settings))


def sb3(settings, drone_id, steps, seed):
    import torch
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback

    from raptor_nb.drones import sample_drone
    from raptor_nb.environment import QuadrotorEnv, keep_to_one_thread
    from raptor_nb.policy import Teachers
    watch, sac, drone, every = Stopwatch(), settings.sac, sample_drone(drone_id), settings.training.eval_frequency
    env = QuadrotorEnv(drone, privileged=True)
    model = SAC("MlpPolicy", env, learning_rate=sac.learning_rate, buffer_size=steps, learning_starts=sac.n_warmup_steps, batch_size=sac.critic_batch_size, tau=sac.tau, gamma=sac.gamma, train_freq=1, gradient_steps=1,
                ent_coef=f"auto_{sac.temperature}", target_entropy=sac.target_entropy, policy_kwargs=dict(net_arch=dict(pi=[sac.actor_hidden_dim] * 2, qf=[sac.critic_hidden_dim] * 2)), seed=seed, device="cpu", verbose=0)

    def teachers(): # its actor as one of ours: the mean, squashed
        with torch.no_grad():
            made = Teachers(1, 26, sac.actor_hidden_dim, 4, "relu", [drone_id])
            for i, layer in enumerate((*model.actor.latent_pi[::2], model.actor.mu), 1):
                getattr(made, f"w{i}").copy_(layer.weight.T[None]); getattr(made, f"b{i}").copy_(layer.bias[None, None])
        return made

    class Watch(BaseCallback):
        curve = []
        def _on_step(self):
            if self.num_timesteps == sac.n_warmup_steps: watch.start()
            if self.num_timesteps % every == 0 and self.num_timesteps > sac.n_warmup_steps: self.look()
            return True
        def look(self):
            seconds = watch.seconds()
            (row,) = watch.pause(judge)(teachers(), [drone], settings)
            self.curve.append(dict(step=self.num_timesteps, seconds=seconds, **{k: row[k] for k in ("return", "survival")}))

    with keep_to_one_thread(): model.learn(steps, callback=Watch())
    seconds = watch.seconds()
    return dict(teacher_steps_per_second=(steps - sac.n_warmup_steps) / seconds, curve=Watch.curve, best=judge(teachers(), [drone], settings))


def one(name, args):
    "A row, in this process"
    import torch
    cores = sorted(os.sched_getaffinity(0))[:ROWS[name]]
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    from raptor_nb.core.config import load_config
    steps = max(args.warmup + 1000, args.steps // 20) if name == "torch" else args.steps
    every = max(1000, args.steps // 10)
    settings = load_config("default", **{"training.device": "cpu", "training.seed": args.seed, "training.eval_frequency": every, "sac.n_warmup_steps": args.warmup, "data_collection.num_episodes_eval": args.flights,
                                         "sac.actor_update_interval": 1 if name in ("sb3", "sb3's ratio") else 2, "sac.engine": "plain" if name == "torch" else "native"})
    if args.warmup % every and name != "sb3": settings = load_config(settings, **{"training.eval_frequency": args.warmup})
    load, busy = os.getloadavg()[0], time.process_time()
    began = time.perf_counter()
    out = sb3(settings, args.drone, steps, args.seed) if name == "sb3" else ours(settings, [int(i) for i in args.ids.split(",")] if name == "stack" else [args.drone], steps)
    rate = out["teacher_steps_per_second"]
    return dict(name=name, cores=len(cores), steps=steps, ms_per_teacher_step=1000 / rate, **out, wall_seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - busy, load_before=load)


def write(path, rows):
    import pandas as pd
    from raptor_nb.core.records import save_json, save_table
    save_json(path, rows)
    flat = [{k: v for k, v in row.items() if k not in ("curve", "best")} | {"return": sum(b["return"] for b in row["best"]) / len(row["best"]), "survival": sum(b["survival"] for b in row["best"]) / len(row["best"])} for row in rows]
    save_table(path.with_suffix(".csv"), pd.DataFrame(flat))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=200_000)
    p.add_argument("--warmup", type=int, default=10_000, help="random steps before the first update")
    p.add_argument("--drone", type=int, default=7, help="of the published distribution")
    p.add_argument("--ids", default="7,100,500,900", help="of the stack")
    p.add_argument("--flights", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", default="", help="names of rows, with commas")
    p.add_argument("--again", action="store_true", help="measure what is there already once more")
    p.add_argument("--out", type=Path, default=Path("runs/benchmarks/sac.json"))
    p.add_argument("--row", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.row:
        print("RESULT " + json.dumps(one(args.row, args), default=float))
        sys.exit()
    wanted = [w.strip() for w in args.only.split(",")] if args.only else list(ROWS)
    unknown = [w for w in wanted if w not in ROWS]
    if unknown: sys.exit(f"there is no row {unknown[0]!r}; known: {', '.join(ROWS)}")
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    for name in wanted:
        if not args.again and any(r["name"] == name and r["steps"] >= args.steps / 20 for r in rows): print(f"{name}: is there already", flush=True); continue
        env = os.environ | {"OMP_NUM_THREADS": str(ROWS[name])}
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--row", name], env=env, stdout=subprocess.PIPE, text=True)
        line = next((l for l in done.stdout.splitlines() if l.startswith("RESULT ")), None)
        if done.returncode or not line: sys.exit(f"{name}: ended with code {done.returncode}")
        row = json.loads(line[7:])
        rows = [r for r in rows if r["name"] != name] + [row]
        write(args.out, rows)
        print(f"{name:12s} {row['teacher_steps_per_second']:7.0f} teacher-steps/s, {row['ms_per_teacher_step']:.3f} ms, {row['cores']} core(s); return {[round(b['return']) for b in row['best']]}", flush=True)
