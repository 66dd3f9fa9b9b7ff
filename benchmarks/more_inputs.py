"""What a few more inputs give a student that follows a moving target -> more_inputs.json

python benchmarks/more_inputs.py [--updates 900] [--seeds 3] [--output runs/more_inputs]

In the frame of a moving target, whose acceleration is a, a drone without drag feels the force -m a besides its own. So a student
that is told a is one that is told a part of the force: the gust of a training flight becomes the motion of its target, the steady
force stays unknown. Students of equal updates of direct training (torch, one thread) have 22 inputs as ever, 3 more (the acceleration
of now, share of the weight) or 6 more (and that in a quarter of a second). They follow figure eights and hover, on held-out drones,
in the torch physics; what a lead gives students of 22 inputs is in evaluation.lead."""
import argparse
import math
import time
from pathlib import Path

import torch

from raptor_nb.core.records import save_json
from raptor_nb.drones import sample_split
from raptor_nb.learn import direct
from raptor_nb.learn.direct import Flights, TorchTraining, block_step, student_cost
from raptor_nb.learn.engines import env_step
from raptor_nb.learn.soap import INITIAL
from raptor_nb.learn.student import extra_drones
from raptor_nb.learn.traits import cost_share, slower, unpack_traits
from raptor_nb.policy import RaptorPolicy
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

    def fly(self, w, weights, step):
        "As `Flights.fly`, with more inputs"
        params, reset_state, ended = self.begin_segment()
        state, hidden, past, how = self.state, self.hidden, self.past, self.how
        velocity, traits = self.seen, unpack_traits(self.traits)
        weights, total, ends = slower(weights, traits), 0., 0.
        h0 = w[INITIAL].repeat_interleave(direct.BLOCK, 0)[:, None]
        for t in range(how.horizon):
            force = self.force_after(.01 * t, params)
            seen = physics.observe_privileged(state, force, params, 22)
            inputs, velocity, past = self.show(seen, velocity, past, traits, ended)
            more = [self.acceleration(.01 * t + AHEAD * k) for k in range(self.moments)]
            hidden = torch.where(ended[..., None], h0, hidden)
            action, hidden = block_step(w, torch.cat([inputs, *more], -1), hidden)
            state, observation, paid, ended = step(state, memory_layout(action), force, reset_state, params, weights, 22)
            excess = torch.relu(action.abs() - 1).square().sum(-1)
            total, ends = total + (paid + weights.excess * excess) * cost_share(traits), ends + ended.float()
        self._move_on(state, torch.where(ended[..., None], h0, hidden), past, velocity, observation, ended)
        return total.reshape(-1, direct.BLOCK).mean(1) / how.horizon, ends.mean().item() / how.horizon


def train(settings, moments, drones):
    how = settings.direct
    torch.manual_seed(settings.training.seed)
    run = TorchTraining(settings, how, RaptorPolicy(22 + 3 * moments), drones)
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
        inputs = torch.cat([observation, *more], -1).flatten(0, 1)[:, None]
        action, hidden = student(inputs, hidden)
        state, observation, _, ended = env_step(state, memory_layout(action.view(*alive.shape, 4)), force, reset_state, params, None, 22)
        alive = alive & ~ended
        if k >= first: squares = squares + state[..., :3].square().sum(-1)
    rmse = (squares / (steps - first)).sqrt()[alive]
    worst = rmse.max().item() if len(rmse) else math.nan
    return dict(median=rmse.median().item(), worst=worst, survival=alive.float().mean().item())


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--updates", type=int, default=900)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--flights", type=int, default=64, help="at once")
    p.add_argument("--gust", type=float, default=.5, help="std of the acceleration of targets, share of the weight")
    p.add_argument("--output", default="runs/more_inputs")
    args = p.parse_args()
    torch.set_num_threads(1)
    rows, out = [], Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for gust, kinds in ((args.gust, list(KINDS)), (.2, ["22 inputs"])):
            settings = load_config("default", **{
                "training.seed": seed, "direct.num_updates": args.updates, "direct.flights": args.flights, "flight_randomization.max_gust_std": gust,
                "apg.engine": "torch"})
            of = settings.domain_randomization
            drones = sample_split("train", settings.direct.num_drones, of, of.seed) + extra_drones(settings, settings.direct)
            held = sample_split("test", 64, of, of.seed)
            for kind in kinds:
                student, took = train(settings, KINDS[kind], drones)
                row = dict(seed=seed, kind=kind, gust=gust, updates=args.updates, core_seconds=took, hover=follow(student, KINDS[kind], held))
                row |= {f"{period:g} s": follow(student, KINDS[kind], held, period) for period in EIGHTS}
                rows.append(row)
                save_json(out / "more_inputs.json", rows)
                print(row, flush=True)


if __name__ == "__main__": main()
