"""What a few more inputs give a student that follows a moving target -> more_inputs.json

python benchmarks/more_inputs.py [--updates 150] [--seeds 3] [--output runs/more_inputs]

In the frame of a moving target, whose acceleration is a, a drone without drag feels the force -m a besides its own. So a student
that is told a is one that is told a part of the force: the gust of a training flight becomes the motion of its target, the steady
force stays unknown. Students of equal updates of direct training (torch, one thread) have 22 inputs as ever, 3 more (the acceleration
of now, share of the weight) or 6 more (and that in a quarter of a second). They follow figure eights and hover, on held-out drones,
in the torch physics; what a lead gives students of 22 inputs is in evaluation.lead. With --teachers N the same for a teacher by gradients
for each of N held-out drones (profile full), who sees the force or not, and for the policies of the package."""
import argparse
import math
import time
from pathlib import Path

import torch

from raptor_nb.core.records import load_json, save_json
from raptor_nb.drones import sample_split
from raptor_nb.learn import apg
from raptor_nb.learn.direct import Flights, TorchTraining
from raptor_nb.learn.engines import env_step
from raptor_nb.learn.student import extra_drones
from raptor_nb.policy import RaptorPolicy, Teachers
from raptor_nb.settings import load_config
from raptor_nb.sim import physics
from raptor_nb.sim.physics import flatten_state, memory_layout

AHEAD = .25 # s
KINDS = {"22 inputs": 0, "25: acceleration of now": 1, "28: and in a quarter of a second": 2} # how many moments are seen
EIGHTS = 5.5, 3.5 # s a loop


class Moving(Flights):
    "Flights whose gust is the acceleration of the target, seen at so many moments"
    moments = 0

    def acceleration(self, seconds): # of the segment -> (F, 1, 3) share of weight
        turn = self.frequency * (self.age + seconds)[..., None] + self.phase
        return self.gust * torch.sin(2 * math.pi * turn)

    def begin_segment(self):
        self.steps = 0
        return super().begin_segment()

    def show(self, *sensed):
        inputs, velocity, past = super().show(*sensed)
        more = [self.acceleration(.01 * self.steps + AHEAD * k) for k in range(self.moments)]
        self.steps += 1
        return torch.cat([inputs, *more], -1), velocity, past


def with_inputs(student, moments): # -> RaptorPolicy that does not use its further inputs yet
    out, weights = RaptorPolicy(22 + 3 * moments), dict(student.state_dict())
    first = weights["input_layer.linear.weight"]
    weights["input_layer.linear.weight"] = torch.cat([first, first.new_zeros(len(first), 3 * moments)], 1)
    out.load_state_dict(weights)
    return out


def train(settings, moments, drones):
    how = settings.direct
    torch.manual_seed(settings.training.seed)
    run = TorchTraining(settings, how, with_inputs(RaptorPolicy.pretrained(), moments), drones)
    run.flights.__class__, run.flights.moments = Moving, moments
    rates = [how.learning_rate * (1 - i / how.num_updates) for i in range(how.num_updates)]
    began = time.process_time()
    run.advance(rates)
    return run.student(), time.process_time() - began


def eight(period, t, gravity=9.81): # -> (3,) acceleration of the target, share of the weight
    w = 2 * math.pi / period
    return torch.tensor([-w * w * math.sin(w * t), -.5 * 4 * w * w * math.sin(2 * w * t), 0.]) / gravity


@torch.no_grad()
def follow(student, moments, drones, period=None, seconds=2., seed=0):
    "RMSE in m over a loop, or over two seconds of hover; survival"
    params = physics.batch_params(drones)
    own = isinstance(student, Teachers)
    params = params._replace(init=(1., *params.init[1:]), limits=(params.limits[0], 1e6, params.limits[2]))
    start = physics.sample_state(params, 4, torch.Generator().manual_seed(seed))
    state, hidden, squares, alive = flatten_state(start), None, 0., torch.ones(params.size, 4, dtype=torch.bool)
    reset_state, zero = state, torch.zeros_like(start.force)
    weight = physics.weight(params)
    first, steps = 200, 200 + round(100 * (period or seconds))
    at = lambda t: -eight(period, t) if period else torch.zeros(3)
    observation = physics.observe_privileged(state, zero, params, 22)
    for k in range(steps):
        force = zero + at(.01 * k) * weight[..., None]
        more = [at(.01 * k + AHEAD * j).expand(*alive.shape, 3) for j in range(moments)]
        if own: action = student(physics.observe_privileged(state, force, params, student.obs_dim))
        else: action, hidden = student(torch.cat([observation, *more], -1).flatten(0, 1)[:, None], hidden)
        state, observation, _, ended = env_step(state, memory_layout(action.view(*alive.shape, 4)), force, reset_state, params, None, 22)
        alive = alive & ~ended
        if k >= first: squares = squares + state[..., :3].square().sum(-1)
    rmse = (squares / (steps - first)).sqrt()[alive]
    worst = rmse.max().item() if len(rmse) else math.nan
    return dict(median=rmse.median().item(), worst=worst, survival=alive.float().mean().item())


def fly_all(policy, moments, held): # -> {flight: numbers}
    return dict(hover=follow(policy, moments, held)) | {f"{t:g} s": follow(policy, moments, held, t) for t in EIGHTS}


def write(out, row):
    file = out / "more_inputs.json"
    save_json(file, (load_json(file) if file.exists() else []) + [row])
    print(row, flush=True)


def teachers(out, n):
    settings = load_config("full")
    of = settings.domain_randomization
    held = sample_split("test", n, of, of.seed)
    for sees in (True, False):
        made = apg.train(load_config(settings, **{"apg.force_input": sees}).apg, held, settings.training.seed)
        write(out, dict(kind=f"teachers of their drones, {'with' if sees else 'without'} the force", drones=n) | fly_all(made, 0, held))
    for name in ("v1", "real", "real32"):
        write(out, dict(kind=f"student {name}", drones=n) | fly_all(RaptorPolicy.pretrained(name), 0, held))
    write(out, dict(kind="published", drones=n) | fly_all(RaptorPolicy.published(), 0, held))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--updates", type=int, default=150)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--flights", type=int, default=64, help="at once")
    p.add_argument("--learning-rate", type=float, default=.003)
    p.add_argument("--kinds", type=int, nargs="+", default=[0, 1, 2], help="moments seen; what others measured is kept")
    p.add_argument("--teachers", type=int, default=0, help="of so many held-out drones, instead of students")
    p.add_argument("--gust", type=float, default=.5, help="std of the acceleration of targets, share of the weight")
    p.add_argument("--output", default="runs/more_inputs")
    args = p.parse_args()
    torch.set_num_threads(1)
    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    if args.teachers: return teachers(out, args.teachers)
    chosen = [k for k, n in KINDS.items() if n in args.kinds]
    for seed in range(args.seeds):
        settings = load_config("default", **{
            "training.seed": seed, "direct.num_updates": args.updates, "direct.flights": args.flights, "direct.learning_rate": args.learning_rate,
            "flight_randomization.max_gust_std": args.gust, "apg.engine": "torch"})
        of = settings.domain_randomization
        drones = sample_split("train", settings.direct.num_drones, of, of.seed) + extra_drones(settings, settings.direct)
        held = sample_split("test", 64, of, of.seed)
        for kind in chosen:
            student, took = train(settings, KINDS[kind], drones)
            about = dict(seed=seed, kind=kind, updates=args.updates, flights=args.flights, core_seconds=took)
            write(out, about | fly_all(student, KINDS[kind], held))


if __name__ == "__main__": main()
