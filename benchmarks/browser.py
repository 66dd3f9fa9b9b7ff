"""How does the page that flies train? Chromium without a window: seconds to a return above the
published policy's, with one and two workers; difference from the native engine; updates a second

python benchmarks/browser.py [--updates 2000] [--seed 1] [--out runs/browser]
The drones on the page stand still meanwhile: without a GPU their pictures would take the
processor that is measured.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import browser as chromium  # noqa: E402
import fly  # noqa: E402
import wasm  # noqa: E402

from raptor_nb.core.parallel import single_threaded  # noqa: E402
from raptor_nb.core.records import atomic  # noqa: E402
from raptor_nb.drones import sample_fleet  # noqa: E402
from raptor_nb.learn.direct_native import unpack  # noqa: E402
from raptor_nb.policy import RaptorPolicy  # noqa: E402

COMPARED = 20   # updates


def train(driver, **how):
    "Press the button, wait -> what the page knows at the end"
    driver.get(fly.PAGE.as_uri())
    driver.execute_script("raptor.app.paused = true; raptor.panel.begin(arguments[0])", how)
    while driver.execute_script("return raptor.panel.running"): time.sleep(.5)
    ended = driver.execute_script(
        "const { points, bars, ended } = raptor.panel;"
        "return { points: points.map(({ weights, ...p }) => p), bars,"
        "         ended: ended && { ...ended, weights: Array.from(ended.weights) },"
        "         says: document.getElementById('training-says').textContent }")
    if not ended["ended"]: raise SystemExit(f"the page did not train: {ended['says']}")
    return ended


def policy_of(weights):
    "RaptorPolicy of a row of numbers of the kernels"
    import torch
    policy = RaptorPolicy()
    policy.load_state_dict(unpack(torch.tensor(weights, dtype=torch.float32), 16))
    return policy


def timed(driver, workers, updates, seed):
    "A whole training -> numbers, weights"
    began = time.perf_counter()
    run = train(driver, workers=workers, updates=updates, seed=seed)
    wall, end, bar = time.perf_counter() - began, run["ended"], run["bars"]["published"]
    better = next((p for p in run["points"] if p["return"] > bar), None)
    last = {k: run["points"][-1][k] for k in ("return", "survival", "error")}
    print(f"{workers} worker(s): {end['update'] / end['seconds']:.1f} updates/s, {run['says']}")
    numbers = dict(
        workers=workers, updates=end["update"], seconds=end["seconds"], wall_seconds=wall,
        updates_per_second=end["update"] / end["seconds"], published=run["bars"], trained=last,
        seconds_to_better=better and better["seconds"], curve=[
            {k: p[k] for k in ("seconds", "update", "return", "survival", "error")}
            for p in run["points"]])
    return numbers, end["weights"]


def compared(driver, seed):
    "The first updates beside the native engine's, and beside that without fused multiply-add"
    run = train(driver, workers=2, updates=COMPARED, seed=seed, log=True)
    ours = np.array([u["weights"] for u in run["ended"]["log"]])
    settings = wasm.settings_of(driver, seed) | dict(updates=COMPARED)
    native, _ = wasm.native_training(settings, COMPARED)
    unfused, _ = wasm.native_training(settings, COMPARED, flags=wasm.UNFUSED)
    gap, of_native = wasm.differences(ours, native), wasm.differences(unfused, native)
    return dict(updates=COMPARED, difference=gap.tolist(), largest=float(gap.max()),
                native_without_fma=of_native.tolist(),
                equal_to_native_without_fma=bool((ours == unfused).all()))


def native_speed(driver, seed, updates=200):
    "Updates a second of the native engine on one core"
    settings = wasm.settings_of(driver, seed) | dict(updates=updates)
    with single_threaded():
        wasm.native_training(settings, 5, workers=1)
        began = time.perf_counter()
        wasm.native_training(settings, updates, workers=1)
    return updates / (time.perf_counter() - began)


def in_l2f(weights):
    "Return and survival of a flight on each of the page's drones, as the package judges"
    from raptor_nb.sim.rollout import evaluate
    policies = dict(browser=policy_of(weights), published=RaptorPolicy.published())
    drones = sample_fleet(fly.SAMPLED, seed=fly.SEED)
    still = dict(velocity_limit=False, force=0., observation_noise=0.)
    flights = evaluate(policies, drones, still, flights=16)
    flights = flights.assign(survival=~flights.terminated)
    table = flights.groupby("policy")[["return", "survival", "steady_error"]].mean()
    return table.to_dict("index")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=fly.UPDATES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="runs/browser")
    given = parser.parse_args()
    if why := chromium.missing(): raise SystemExit(why)
    driver, load = chromium.open_browser(), os.getloadavg()
    try:
        found = dict(compared=compared(driver, given.seed))
        print(f"largest difference from native in {COMPARED} updates:", found["compared"]["largest"])
        found["native_updates_per_second"] = native_speed(driver, given.seed)
        print("native, one core:", found["native_updates_per_second"], "updates/s")
        for n in (1, 2):
            found[f"workers_{n}"], weights = timed(driver, n, given.updates, given.seed)
        found["messages"] = [m for m in driver.get_log("browser")]
        version = driver.capabilities["browserVersion"]
    finally: driver.quit()
    found["l2f"] = in_l2f(weights)
    found |= dict(seed=given.seed, drones=fly.SAMPLED, flights_a_drone=16, chromium=version,
                  kernels=wasm.about(), load_before=load, load_after=os.getloadavg())
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / "browser.json") as temporary:
        Path(temporary).write_text(json.dumps(found, indent=1))
    policy_of(weights).save(out / "student.safetensors")
    print(found["l2f"], "console:", found["messages"], "->", out / "browser.json")


if __name__ == "__main__": main()
