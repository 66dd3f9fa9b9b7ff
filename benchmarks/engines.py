"""Environment steps a second of the engines of `learn.apg` and `learn.native`: teachers with gradients, the student with labels and gradients; and where the time of an update of each stage goes. `python benchmarks/engines.py [threads]`"""
import cProfile
import pstats
import sys
import time

import torch

from raptor_nb import distill
from raptor_nb.core.config import load_config
from raptor_nb.drones import sample_fleet
from raptor_nb.learn import apg, flight, native, polish
from raptor_nb.policy import RaptorPolicy


def best(function, tries=7):
    "Seconds of the quickest try; the first, which compiles and fills caches, does not count"
    function()
    def once():
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    return min(once() for _ in range(tries))


def teachers(drones=64):
    settings = load_config('full').apg
    run = apg.Run(settings, sample_fleet(drones))
    steps = drones * settings.environments * settings.segment
    for name, engine, tries in (('plain', apg.plain, 1), ('compiled', apg.compiled(), 3), ('native', native, 9)):
        with native.small_operations() if engine is native else torch.no_grad(): yield f'teachers, {name}', steps / best(lambda: apg.improve(run, engine), tries)


def student(drones=8):
    settings = load_config('full')
    fleet_drones = sample_fleet(drones)
    made, fleet = apg.Run(settings.apg, fleet_drones).teachers(), flight.fleet_of(fleet_drones)
    happens = distill.weather(fleet, settings, torch.Generator().manual_seed(0))
    steps = happens.sigma.numel() * settings.distillation.sequence_length
    for name, engine, tries in (('plain', apg.plain, 1), ('native', native, 9)):
        yield f'student, distillation, {name}', steps / best(lambda: distill.imitate(RaptorPolicy(), made, fleet, happens, settings, engine), tries)


def flights(drones=32):
    settings = load_config('full')
    run = polish.Polish(settings, RaptorPolicy(), sample_fleet(drones), torch.ones(drones))
    steps = drones * settings.distillation.online.environments * settings.distillation.polish.segment
    with native.small_operations(): yield 'student, polishing, native', steps / best(lambda: polish.improve(run, native), 9)


def shares(function, parts, times=60):
    "Milliseconds a call, and the share of it spent in some functions, given as {label: (end of the file's name, function)}"
    function()
    with cProfile.Profile() as profile:
        start = time.perf_counter()
        for _ in range(times): function()
        spent = time.perf_counter() - start
    took = {label: sum(row[3] for (file, _, name), row in pstats.Stats(profile).stats.items() if file.endswith(at) and name == called) / spent for label, (at, called) in parts.items()}
    return 1e3 * spent / times, took | {'the rest': 1 - sum(took.values())}


def updates():
    "An update of each stage as `make foundation` makes it"
    settings = load_config('full')
    fleet_drones = sample_fleet(settings.apg.group)
    teaching = apg.Run(settings.apg, fleet_drones)
    made = teaching.teachers()
    distilling = distill.Run(settings, made, fleet_drones, fleet_drones[:2])
    polishing = polish.Polish(settings, RaptorPolicy(), fleet_drones, torch.ones(len(fleet_drones)))
    descent = {'optimiser': ('polish.py', 'descend')}
    with native.small_operations():
        yield 'teachers', *shares(lambda: apg.improve(teaching, native), {'flights and gradients': ('native.py', 'segment'), 'fresh starts': ('apg.py', 'starts'), 'optimiser': ('adam.py', 'adam')})
        yield 'distillation', *shares(lambda: distill.learn(distilling, native), {'flights and labels': ('native.py', 'flights'), 'gradients': ('native.py', 'block_gradients'), 'weather': ('distill.py', 'weather')} | descent)
        yield 'polishing', *shares(lambda: polish.improve(polishing, native), {'flights and gradients': ('native.py', 'student_segment'), 'fresh starts and weather': ('polish.py', 'renew')} | descent)


if __name__ == '__main__':
    if len(sys.argv) > 1: torch.set_num_threads(int(sys.argv[1]))
    print(f'{torch.get_num_threads()} threads')
    for rows in (teachers(), student(), flights()):
        for name, rate in rows: print(f'{name:32s} {rate / 1e6:6.2f} million steps/s', flush=True)
    for stage, milliseconds, took in updates(): print(f'an update of {stage}: {milliseconds:.1f} ms; ' + ', '.join(f'{part} {share:.0%}' for part, share in took.items()), flush=True)
