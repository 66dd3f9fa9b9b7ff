"""How fast is the vector environment, compared with calling l2f directly in the same run?

    python benchmarks/environment.py [--lanes 1024] [--steps 500] [--rounds 5]

Prints one JSON object. `raw` is what a loop needs at least: step, reward, terminated, observe and
reset of the flights that ended. Both fly the same fleet with the same random actions around hover;
rounds alternate, and the median of each is compared.
"""
import argparse
import json
import statistics
import time

import l2f
import numpy as np

from raptor_nb.drones import sample_fleet
from raptor_nb.environment import QuadrotorVectorEnv


def raw_loop(fleet, seed=0):
    "A function that flies `steps` steps with l2f alone"
    n = len(fleet)
    v, device = l2f.vector_selector[n], l2f.Device()
    env, parameters, rng = v.VectorEnvironment(), v.VectorParameters(), v.VectorRng()
    now, next_state = v.VectorState(), v.VectorState()
    v.initialize_environment(device, env)
    v.initialize_rng(device, rng, seed)
    v.initial_parameters(device, env, parameters)
    for drone, p in zip(fleet, parameters.parameters):
        l2f.parameters_from_json(device, env.environments[0], drone.to_l2f(), p)
    v.sample_initial_state(device, env, parameters, now, rng)
    reward, observation = np.zeros(n, np.float32), np.zeros((n, 82), np.float32)
    terminated, age = np.zeros(n, bool), np.zeros(n, int)

    def fly(actions):
        for a in actions:
            v.step(device, env, parameters, now, a, next_state, rng)
            v.reward(device, env, parameters, now, a, next_state, reward, rng)
            v.terminated(device, env, parameters, next_state, terminated, rng)
            now.assign(next_state)
            age[:] += 1
            ended = terminated | (age >= 500)
            if ended.any():
                v.sample_initial_state_if_truncated(device, env, parameters, now, ended, rng)
                age[ended] = 0
            v.observe(device, env, parameters, now, observation, rng)
    return fly


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    for name, default in dict(lanes=1024, steps=500, rounds=5).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    options = parser.parse_args()
    fleet = sample_fleet(options.lanes, seed=0)
    hover = np.float32([[d.hover_action] for d in fleet])
    random = np.random.default_rng(0)
    def around_hover():
        noise = random.normal(size=(options.lanes, 4)).astype(np.float32)
        return np.clip(hover + .1 * noise, -1, 1)
    actions = [around_hover() for _ in range(options.steps)]
    raw = raw_loop(fleet)
    loops, seconds = {'raw': raw}, {}
    variants = dict(next_step={}, same_step=dict(autoreset='SameStep'),
                    privileged=dict(privileged=True))
    for name, settings in variants.items():
        env = QuadrotorVectorEnv(fleet, **settings)
        env.reset(seed=0)
        loops[name] = lambda actions, env=env: [env.step(a) for a in actions]
    for loop in loops.values(): loop(actions[:50])
    for _ in range(options.rounds):
        for name, loop in loops.items():
            begin = time.perf_counter()
            loop(actions)
            seconds.setdefault(name, []).append(time.perf_counter() - begin)
    rate = {k: options.lanes * options.steps / statistics.median(t) for k, t in seconds.items()}
    share = {k: round(r / rate['raw'], 3) for k, r in rate.items() if k != 'raw'}
    print(json.dumps({'lanes': options.lanes, 'share_of_raw': share,
                      'steps_per_s': {k: round(r) for k, r in rate.items()}}))


if __name__ == '__main__': main()
