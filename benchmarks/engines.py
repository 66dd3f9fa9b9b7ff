"""What the engines of `learn.engines` do in a second, and where an update's time goes.
`python benchmarks/engines.py [threads]`"""
import cProfile
import pstats
import sys
import time

import torch

from raptor_nb.core.parallel import single_threaded
from raptor_nb.drones import sample_fleet
from raptor_nb.learn import apg, dagger, direct
from raptor_nb.learn.engines import CompiledEngine, NativeEngine, TorchEngine
from raptor_nb.policy import RaptorPolicy
from raptor_nb.settings import load_config
from raptor_nb.sim import physics

SETTINGS = load_config('full')


def best(function, tries=7):
    "Seconds of the quickest try; the first, which compiles and fills caches, does not count"
    function()
    def once():
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    return min(once() for _ in range(tries))


def speeds(what, steps, function, engines):
    "Yields (name, steps a second) of a function of an engine"
    for engine, tries in engines:
        with engine.threads():
            yield f'{what}, {engine.name}', steps / best(lambda: function(engine), tries)


def teachers(drones=64):
    "With gradients"
    settings = SETTINGS.apg
    run = apg.APGState(settings, sample_fleet(drones))
    steps = drones * settings.num_envs * settings.horizon
    engines = (TorchEngine(), 1), (CompiledEngine(), 3), (NativeEngine(), 9)
    return speeds('teachers', steps, lambda e: apg.update_teachers(run, e), engines)


def distillation(drones=8):
    "With labels and gradients"
    fleet, s = sample_fleet(drones), SETTINGS.distillation
    made, params = apg.APGState(SETTINGS.apg, fleet).teachers(), physics.batch_params(fleet)
    flights = dagger.sample_flights(params, SETTINGS, torch.Generator().manual_seed(0))
    steps = flights.sigma.numel() * s.sequence_length
    student = RaptorPolicy()
    def update(engine):
        dagger.imitate(student, made, params, flights, s.sequence_length, engine)
    return speeds('student, distillation', steps, update, ((TorchEngine(), 1), (NativeEngine(), 9)))


def own_flights(engine, drones=64): # 'torch' or 'native'
    settings = load_config(SETTINGS, **{'apg.engine': engine})
    how = settings.direct
    run = direct.begin_training(settings, how, RaptorPolicy(), sample_fleet(drones))
    return run, how.flights * how.horizon


def direct_training():
    "With gradients and the optimiser's step"
    for engine, tries in ((TorchEngine(), 1), (NativeEngine(), 9)):
        run, steps = own_flights(engine.name)
        update = lambda _: run.advance([.001])
        yield from speeds('student, direct', steps, update, ((engine, tries),))


def shares(function, parts, times=60):
    "Milliseconds a call, and the shares of {label: (end of the file's name, function)} in it"
    function()
    with cProfile.Profile() as profile:
        start = time.perf_counter()
        for _ in range(times): function()
        spent = time.perf_counter() - start
    rows = pstats.Stats(profile).stats.items()
    def share(end, called):
        found = (row[3] for (file, _, name), row in rows if file.endswith(end) and name == called)
        return sum(found) / spent
    took = {label: share(*part) for label, part in parts.items()}
    return 1e3 * spent / times, took | {'the rest': 1 - sum(took.values())}


def updates():
    "An update of teachers and of distillation; a direct one is wholly in C++"
    fleet, engine = sample_fleet(SETTINGS.apg.group), NativeEngine()
    teaching = apg.APGState(SETTINGS.apg, fleet)
    distilling = dagger.DAggerState(SETTINGS, teaching.teachers(), fleet, fleet[:2])
    yield 'teachers', *shares(lambda: apg.update_teachers(teaching, engine), {
        'flights and gradients': ('native.py', 'teacher_segment'),
        'starts': ('apg.py', 'begin_again'), 'optimiser': ('adam.py', 'adam')})
    yield 'distillation', *shares(lambda: dagger.update_by_dagger(distilling, engine), {
        'flights and labels': ('native.py', 'student_rollout'),
        'gradients': ('native.py', 'imitation_gradients'),
        'disturbances': ('dagger.py', 'sample_flights'),
        'optimiser': ('dagger.py', 'optimizer_step')})


if __name__ == '__main__':
    if len(sys.argv) > 1: torch.set_num_threads(int(sys.argv[1]))
    print(f'{torch.get_num_threads()} threads')
    for rows in (teachers(), distillation(), direct_training()):
        for name, rate in rows: print(f'{name:32s} {rate / 1e6:6.2f} million steps/s', flush=True)
    with single_threaded():
        for stage, milliseconds, took in updates():
            parts = ', '.join(f'{part} {share:.0%}' for part, share in took.items())
            print(f'an update of {stage}: {milliseconds:.1f} ms; {parts}', flush=True)
