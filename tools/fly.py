"""The page on which drones fly, one file: web/fly.html

It is web/page.html with its program and the policies and drones of this package.
`make bundle` makes the programs web/fly.js and web/train.js from web/src (npm), web/train.wasm
from raptor_nb/native (clang), and then the page,
`make page` the page with new probes,
`make fly` opens it.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

import wasm
from raptor_nb.core.records import atomic
from raptor_nb.drones import DISTRIBUTIONS, real_drones, sample_fleet, with_conditions
from raptor_nb.policy import RaptorPolicy
from raptor_nb.learn.direct import jump_probability, student_cost
from raptor_nb.settings import load_config
from raptor_nb.sim.conditions import ACTUATORS, SENSORS, WORLD
from raptor_nb.sim.lead import LEADS
from raptor_nb.sim.loops import LOOPS
from raptor_nb.sim.real import drone_traits, sensor_traits, wind_traits
from raptor_nb.sim.traits import OffCentre, UnequalRotors, WeakRotor
from raptor_nb.evaluation.probing import r_squared, record_hidden_states, ridge

WEB = Path(__file__).resolve().parents[1] / "web"
TEMPLATE, PROGRAM, PAGE = WEB / "page.html", WEB / "fly.js", WEB / "fly.html"
WORKER = WEB / "train.js"   # what trains beside the page, with wasm.KERNELS
LABELS = {"student": "student", "real": "real", "real64": "real64", "published": "published"}
SEED = 2026    # of the drones on the page, on which nobody trained
SAMPLED = 64   # drones on the page
PROBED = 384   # further drones, from which the probe learns
TRAITS = (*SENSORS, *ACTUATORS, *WORLD, "loop")
DRONE_TRAITS = {WeakRotor: "weak_rotor", UnequalRotors: "unequal_rotors",
                OffCentre: "off_centre"}
UPDATES = 2000   # of the page's training
SOAP = dict(beta1=.9, beta2=.99, beta_covariance=.95, interval=5)   # as learn.soap has it
LAST_DIGITS = 1e-6   # relative difference of numbers that another processor may give


def rounded(values, digits=9):
    "Numbers as short as float32 needs them"
    if isinstance(values, dict): return {k: rounded(v, digits) for k, v in values.items()}
    if isinstance(values, (list, tuple)): return [rounded(v, digits) for v in values]
    return float(f"{values:.{digits}g}") if isinstance(values, float) else values


def fit_probe(policy, drones):
    "Thrust-to-weight from the hidden state between 0.5 and 5 s, calm and disturbed"
    inputs, truth, learn = [], [], []
    for i, (force, noise) in enumerate(((0., 0.), (.1, .01))):
        conditions = dict(force=force, observation_noise=noise, velocity_limit=False,
                          max_position=.3, position_threshold=3.)
        flown = [with_conditions(d, **conditions) for d in drones]
        recording = record_hidden_states(policy, flown, np.arange(50, 501, 50), seed=7 + i)
        keep, looks = recording.alive, len(recording.steps)
        thrust_to_weight = np.array([d.thrust_to_weight for d in drones])
        inputs.append(np.concatenate(recording.hidden[keep]))
        truth.append(np.repeat(thrust_to_weight[keep], looks)[:, None])
        learn.append(np.repeat((np.arange(len(drones)) % 3 > 0)[keep], looks))
    inputs, truth, learn = map(np.concatenate, (inputs, truth, learn))
    read = ridge(inputs[learn], truth[learn])
    numbers = dict(centre=read.centre, spread=read.spread, weights=read.weights[:, 0])
    r2 = float(r_squared(truth[~learn], read(inputs[~learn]))[0])
    return {k: v.tolist() for k, v in numbers.items()} | dict(r2=r2)


def policies():
    real = {name: RaptorPolicy.pretrained(name) for name in ("real", "real64")}
    return {"student": RaptorPolicy.pretrained(), **real, "published": RaptorPolicy.published()}


def page_traits(condition):
    "Keywords of a condition as the page has them; None where it has not one of them"
    drone = condition.get("drone", ())
    drone = drone if isinstance(drone, tuple) else (drone,)
    if any(type(d) not in DRONE_TRAITS for d in drone): return None
    out = {DRONE_TRAITS[type(d)]: d.share for d in drone}
    out |= {k: v for k, v in condition.items() if k in TRAITS}
    return out | (dict(drag=1.) if "wind" in condition else {})


def conditions():
    "Those of the report on real drones that the page flies: {name: {trait: value}}"
    known = drone_traits() | sensor_traits() | wind_traits()
    known |= {f"flown by {name}": dict(loop=name) for name, loop in LOOPS.items()
              if abs(loop.move - .01) < 1e-9} # the page moves by 10 ms
    found = {name: page_traits(how) for name, how in known.items()}
    return {name: traits for name, traits in found.items() if traits is not None}


def training():
    "What the page trains by: the settings of `direct`"
    settings = load_config()
    how, flown = settings.direct, settings.flight_randomization
    draws = dict(noise=flown.max_observation_noise, delay_share=flown.delay_share,
                 force=flown.max_force_std, gust=flown.max_gust_std,
                 jumps=jump_probability(settings, how), tilt_share=flown.tilt_share,
                 tilt=flown.max_tilt, resets=how.reset_probability,
                 **vars(settings.real_drones))
    optimiser = SOAP | dict(rate=how.learning_rate, max_grad_norm=how.max_grad_norm,
                            weight_decay=how.weight_decay,
                            max_block_norm=how.max_block_norm,
                            learn_h0=int(how.learn_initial_state))
    return dict(updates=UPDATES, steps=how.horizon, flights=how.flights, draws=draws,
                optimiser=optimiser, max_velocity=how.max_velocity,
                hard_drone_share=how.hard_drone_share,
                cost=student_cost(settings, how)._asdict())


def page_data(probe=None):
    "The policies with their probes, real drones, sampled ones, conditions, what was trained on"
    fleet = sample_fleet(SAMPLED + PROBED, seed=SEED)
    weights = lambda policy: {k: v.numpy().tolist() for k, v in policy.state_dict().items()}
    about = lambda name, policy: dict(label=LABELS[name], weights=weights(policy),
                                      lead=[LEADS[name].time, LEADS[name].acceleration],
                                      probe=(probe or fit_probe)(policy, fleet[SAMPLED:]))
    numbers = (tuple, float)
    ranges = {k: v for k, v in vars(DISTRIBUTIONS["published"]).items() if isinstance(v, numbers)}
    return rounded(dict(
        policies={name: about(name, policy) for name, policy in policies().items()},
        drones={name: dict(dynamics=d.to_dict()["dynamics"]) for name, d in real_drones().items()},
        template="crazyflie", conditions=conditions(),
        sampled=[dict(name=d.name, dynamics=d.to_dict()["dynamics"]) for d in fleet[:SAMPLED]],
        trained_on=ranges, training=training(), files=wasm.templates()))


def page(data, program):
    "One HTML file"
    data = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    text = TEMPLATE.read_text(encoding="utf-8").replace("/*data*/", data)
    text = text.replace("/*kernels*/", wasm.encoded(wasm.KERNELS.read_bytes()))
    text = text.replace("/*worker*/", WORKER.read_text(encoding="utf-8"))
    return text.replace("/*program*/", program)


def data_of(text):
    "What `page` was given"
    script = r'<script id="data" type="application/json">(.*?)</script>'
    return json.loads(re.search(script, text)[1])


def program():
    "Raises SystemExit where the program is not there"
    wasm.about()
    if PROGRAM.is_file() and WORKER.is_file(): return PROGRAM.read_text(encoding="utf-8")
    raise SystemExit(f"{PROGRAM.relative_to(WEB.parent)} is missing: "
                     "`make bundle` makes it where npm is at hand")


def differing(a, b, name="data"):
    "Names of the values in which two nested structures differ by more than the last digits"
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys(): return [name]
        return [found for k in a for found in differing(a[k], b[k], f"{name}.{k}")]
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b): return [name]
        pairs = enumerate(zip(a, b))
        return [found for i, (x, y) in pairs for found in differing(x, y, f"{name}[{i}]")]
    if isinstance(a, float) or isinstance(b, float):
        return [] if abs(a - b) <= LAST_DIGITS * max(abs(a), abs(b), 1e-9) else [name]
    return [] if a == b else [name]


def changed(data):
    "Values that are not today's; the probes, which are fitted by flights, are taken as they are"
    today = page_data(probe=lambda *_: None)
    for name in today["policies"].keys() & data["policies"].keys():
        today["policies"][name]["probe"] = data["policies"][name]["probe"]
    return differing(data, today)


def outdated(text):
    "Parts of a page that are not today's"
    data = data_of(text)
    frame = [] if text == page(data, program()) else ["web/page.html or web/fly.js"]
    return frame + changed(data)


def write_page(path, refit=False):
    "Today's page; probes are kept while policies are today's. Raises SystemExit without a program"
    data = data_of(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() and not refit else None
    text = page(page_data() if data is None or changed(data) else data, program())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary: Path(temporary).write_text(text, encoding="utf-8")
    return path


def sources_hash():
    "Of everything that the program is made from"
    files = [WEB / "package.json", *sorted((WEB / "src").glob("*.js"))]
    parts = (p.name.encode() + b"\0" + p.read_bytes() for p in files)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def bundle(out=PROGRAM, worker=WORKER):
    "web/src -> web/fly.js and web/train.js, with the licence of three.js and the hash of the sources in front"
    if not shutil.which("npm"):
        raise SystemExit("the program of the page is bundled by npm, which is not here: "
                         "install Node.js 20 or later")
    if not (WEB / "node_modules/esbuild").is_dir():
        install = ["npm", "install", "--no-audit", "--no-fund"]
        done = subprocess.run(install, cwd=WEB, capture_output=True, text=True)
        last = (done.stderr.strip().splitlines() or ["it did not say why"])[-1]
        if done.returncode: raise SystemExit(f"npm could not install three and esbuild: {last}")
    licence = (WEB / "node_modules/three/LICENSE").read_text().strip()
    head = f"/* made by `make bundle`; sources sha256 {sources_hash()}\n"
    esbuild("build", out, f"{head}\nContains three.js:\n{licence}\n*/\n")
    esbuild("worker", worker, f"{head}*/\n")


def esbuild(script, out, head):
    "Bundle by a script of web/package.json. Raises SystemExit"
    raw = Path(out).with_suffix(".tmp.js")
    build = ["npm", "run", "-s", script, "--", f"--outfile={raw}"]
    done = subprocess.run(build, cwd=WEB, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f"esbuild did not bundle the page:\n{done.stderr}")
    Path(out).write_text(head + raw.read_text(encoding="utf-8"), encoding="utf-8")
    raw.unlink()


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--bundle", action="store_true", help="first make web/fly.js from web/src")
    given = parser.parse_args()
    os.chdir(WEB.parent)
    if given.bundle:
        bundle()
        if wasm.stale(): wasm.build()
    write_page(PAGE, refit=not given.bundle)
    print(f"the page is {PAGE.relative_to(WEB.parent)}: open it in a browser")


if __name__ == "__main__": main()
