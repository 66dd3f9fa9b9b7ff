"""The page that flies and the site, as a browser shows them: pictures and reports/site/verdict.json

Needs `make docs` before, Chromium and its driver (Debian: chromium, chromium-driver). Chromium
draws in software here, on the processor.
"""
import json, os, sys, time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
os.chdir(ROOT)
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]
import browser as chromium  # noqa: E402
import test_fly as flying   # noqa: E402

SITE, OUT = ROOT / "_docs", ROOT / "reports/site"
WIDE, PHONE = (1280, 800), (390, 844)
PAGES = {"front": "nbs/index.html", "stage": "nbs/03_pretrain.html", "api": "docs/api.html",
         "report": "reports/real/README.html"}


def picture(driver, name, width, height, phone=False):
    chromium.resize(driver, width, height, phone)
    time.sleep(2)
    driver.save_screenshot(str(OUT / f"{name}.png"))


def wait(driver, script, what):
    for _ in range(300):
        if driver.execute_script(f"return {script}"): return
        time.sleep(.2)
    raise SystemExit(f"waited a minute for {what}")


def site_pictures(driver):
    for name, page in PAGES.items():
        driver.get((SITE / page).as_uri())
        wait(driver, "document.readyState === 'complete'", page)
        picture(driver, f"{name}_wide", *WIDE)
        picture(driver, f"{name}_phone", *PHONE, True)


def fly_pictures(driver):
    "The flying page after a poke, side by side; eight drones in wind, dark; on a phone"
    def show(name, size, *, dark=False, phone=False, drone="own", **sliders):
        chromium.resize(driver, *size, phone); chromium.scheme(driver, dark)
        driver.get((SITE / "fly.html").as_uri())
        driver.execute_script("raptor.app.paused = true; raptor.world.seed(1)")
        flying.choose(driver, drone, "both", **sliders)
        flying.advance(driver, 4)
        driver.execute_script("raptor.world.poke()")
        flying.advance(driver, .45)
        picture(driver, name, *size, phone)
    show("fly", WIDE)
    show("fly_eight_dark", WIDE, dark=True, drone="eight", wind=.1)
    show("fly_phone", PHONE, phone=True)


CLOCKS = "return [raptor.world.time, performance.now() / 1000, raptor.app.frames]"
THOUSAND_STEPS = """const t = performance.now();
for (let i = 0; i < 1000; i++) raptor.world.step();
return (performance.now() - t) / 1000"""


def pace(driver, seconds=8):
    "Simulated over wall time and pictures a second, eight drones a policy; simulation alone"
    chromium.resize(driver, *WIDE)
    driver.get((SITE / "fly.html").as_uri())
    out = {}
    for name, policy in (("eight drones", "student"), ("sixteen drones", "both")):
        flying.choose(driver, "eight", policy)
        driver.execute_script("raptor.app.paused = false")
        time.sleep(1)
        first = np.array(driver.execute_script(CLOCKS))
        time.sleep(seconds)
        flown, wall, frames = (np.array(driver.execute_script(CLOCKS)) - first).tolist()
        alone = driver.execute_script(THOUSAND_STEPS)
        out[name] = dict(simulated_over_wall=round(flown / wall, 3),
                         pictures_per_second=round(frames / wall, 1),
                         simulation_alone_over_wall=round(10 / alone, 1))
    return out


def flights(driver):
    "Distance from the target before and after a poke, m"
    rows = []
    for drone, sliders in flying.DRONES.items():
        for policy in flying.POLICIES:
            driver.get((SITE / "fly.html").as_uri())
            driver.execute_script("raptor.app.paused = true; raptor.world.seed(1)")
            flying.choose(driver, "own", policy, **sliders)
            flying.advance(driver, 8)
            before = flying.distance(driver)
            driver.execute_script("raptor.world.poke()")
            flying.advance(driver, 8)
            after = flying.distance(driver)
            rows.append(dict(drone=drone, policy=policy, holds=round(before, 4),
                             after_a_poke=round(after, 4), lost=flying.lost(driver)))
    return rows


def parity(driver):
    "Largest differences over 500 recorded steps, JavaScript in this browser against the package"
    driver.get((SITE / "fly.html").as_uri())
    driver.execute_script("raptor.app.paused = true")
    replay = flying.REPLAY + "return replay(arguments[0], raptor);"
    def replayed(drone, policy):
        recorded = flying.recorded(flying.FLIGHTS[drone](), flying.POLICIES[policy]())
        return driver.execute_script(replay, recorded)
    return {f"{drone}, {policy}": replayed(drone, policy)
            for drone in flying.FLIGHTS for policy in flying.POLICIES}


def main():
    if why := chromium.missing(): raise SystemExit(why)
    if not (SITE / "fly.html").is_file():
        raise SystemExit("_docs/fly.html is missing; run `make docs` first")
    OUT.mkdir(parents=True, exist_ok=True)
    driver = chromium.open_browser(*WIDE)
    try:
        measured = dict(parity=parity(driver), flights=flights(driver), pace=pace(driver),
                        page_bytes=(SITE / "fly.html").stat().st_size)
        complained = chromium.complaints(driver)
        fly_pictures(driver)
        site_pictures(driver)
        complained += [c for c in chromium.complaints(driver) if "fly.html" in c]
        measured["console"] = complained
    finally: driver.quit()
    worst = {k: max(p[k] for p in measured["parity"].values()) for k in ("position", "action")}
    def holds(row):
        return row["holds"] < .05 and row["after_a_poke"] < .05 and not row["lost"]
    measured["pass"] = {
        "position of the physics within 1e-3 m over 500 steps": worst["position"] < 1e-3,
        "actions within 1e-5": worst["action"] < 1e-5,
        "every drone and policy holds its target within 5 cm, also after a poke":
            all(map(holds, measured["flights"])),
        "eight drones at the pace of the clock":
            measured["pace"]["eight drones"]["simulated_over_wall"] > .98,
        "nothing on the console": not measured["console"]}
    file = OUT / "verdict.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(kept | measured, indent=1) + "\n")
    print(json.dumps(measured["pass"] | {"worst": worst, "pace": measured["pace"]}, indent=1))


if __name__ == "__main__": main()
