"""The page trains: kernels in WebAssembly, its fleet, its judge, its files, and
what one sees of it"""
import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from raptor_nb.drones import check_distribution, parse_drone
from raptor_nb.learn.student import sampling_probabilities
from raptor_nb.policy import RaptorPolicy
from raptor_nb.sim import native, physics

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import browser as chromium  # noqa: E402
import fly  # noqa: E402
import wasm  # noqa: E402
from test_fly import NODE, data, node  # noqa: E402

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler")
listed = lambda policy: {k: v.tolist() for k, v in policy.state_dict().items()}


def trained(module=wasm.KERNELS, **wish):
    "What tests/training.mjs prints"
    if not NODE: pytest.skip("node is not installed; the same is tested in Chromium")
    script = ROOT / "tests/training.mjs"
    command = [NODE, *map(str, (script, module, fly.PAGE)), json.dumps(wish)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def learned(out): return np.array([update["weights"] for update in out["log"]])


@functools.cache
def few(): return trained(updates=12)


# ---- kernels ----------------------------------------------------------------------
def test_the_kernels_come_from_these_sources():
    why = "raptor_nb/native or web/kernels.cpp was edited: run `make bundle`"
    assert wasm.about()["sources"] == wasm.sources_hash(), why


def test_kernels_compiled_again_are_the_same(tmp_path):
    if not wasm.can_build(): pytest.skip(f"needs {wasm.NEEDS}")
    again = wasm.build(tmp_path / "train.wasm")
    if wasm.about(again) == wasm.about():
        assert again.read_bytes() == wasm.KERNELS.read_bytes()
    ours = learned(trained(updates=3, flights=32))
    theirs = learned(trained(again, updates=3, flights=32))
    assert wasm.differences(ours, theirs).max() < 1e-5


@needs_compiler
def test_updates_are_those_of_the_native_engine():
    """To the bit, if that does without fused multiply-add, which WebAssembly has not;
    with it but for rounding, until a new basis of the optimiser amplifies that"""
    out, norm = few(), np.linalg.norm
    theirs, costs = wasm.native_training(out["settings"], 12, wasm.UNFUSED)
    np.testing.assert_array_equal(learned(out), theirs)
    np.testing.assert_allclose([u["cost"] for u in out["log"]], costs, rtol=1e-5)
    assert norm(theirs[-1] - theirs[0]) > .02 * norm(theirs[0]) # it moves
    before = out["settings"]["optimiser"]["interval"] - 1
    fused, _ = wasm.native_training(out["settings"], before)
    assert wasm.differences(learned(out)[:before], fused).max() < 2e-5


def test_who_flies_a_block_changes_nothing():
    alone, shared = learned(few())[:4], learned(trained(updates=4, split=3))
    np.testing.assert_array_equal(alone, shared)


def test_another_seed_is_another_training():
    ours, theirs = learned(few())[:1], learned(trained(updates=1, seed=4))
    assert wasm.differences(ours, theirs).max() > .1


def flown_in_torch(policy, fleet, start): # (D, E, 21) -> returns, alive: (D, E) each
    D, E, _ = start.shape
    state = physics.unflatten_state(start, torch.zeros(D, E, 3))
    state = state._replace(last_action=torch.zeros(D, E, 4))
    total, alive, hidden = torch.zeros(D, E), torch.ones(D, E, dtype=torch.bool), None
    with torch.no_grad():
        for _ in range(500):
            before, seen = state, physics.observe(state).reshape(-1, 1, 22)
            action, hidden = policy(seen, hidden)
            action = action.view(D, E, 4)
            state = physics.step(before, action, fleet)
            gain = physics.reward(before, action, state, fleet)
            total += torch.where(alive, gain, 0)
            alive &= ~physics.terminated(state, fleet)
    return total, alive


def test_returns_are_those_of_the_package():
    out = trained(updates=0, judge=6)
    quick = dict(mdp=dict(termination=dict(linear_velocity_threshold=1e6)))
    fleet = physics.batch_params([parse_drone(d | quick) for d in data()["sampled"][:6]])
    start = torch.tensor(out["starts"]).view(6, 21, 16).mT
    total, alive = flown_in_torch(RaptorPolicy.published(), fleet, start)
    ours = np.array(out["flights"])
    np.testing.assert_array_equal(ours[1] > 0, alive.flatten().numpy())
    np.testing.assert_allclose(ours[0], total.flatten().numpy(), atol=.3)
    survival = alive.float().mean().item()
    assert out["judged"]["published"]["survival"] == pytest.approx(survival)


# ---- fleet ------------------------------------------------------------------------
SAMPLE = """
import { prepare } from 'SRC/physics.js';
import { sampleDrone, trainingFleet } from 'SRC/fleet.js';
import { stream } from 'SRC/world.js';
const random = stream(7), template = prepare(given.template);
const one = () => sampleDrone(template, given.distribution, random);
const drones = Array.from({ length: given.n }, one);
const fleet = trainingFleet(drones, given.training);
const listed = Object.values(fleet).map((x) => Array.from(x));
console.log(JSON.stringify([drones.map((d) => d.dynamics), ...listed]));
"""


def sampled(n, tmp_path): # -> Drones, rows, starts, cumulative probabilities
    d = data()
    given = dict(n=n, template=d["drones"]["crazyflie"]["dynamics"],
                 distribution=d["trained_on"], training=d["training"])
    made, *rest = node(SAMPLE, given, tmp_path)
    drones = [parse_drone(dict(name=str(i), dynamics=x)) for i, x in enumerate(made)]
    return drones, *rest


def test_the_fleet_is_sampled_as_in_the_package(tmp_path):
    "All drones pass all checks, and their quantities follow the published distribution"
    found = check_distribution(sampled(2000, tmp_path)[0])
    assert found.ok.drop("force_share").all(), found # training draws forces by itself


def test_rows_starts_and_odds_are_those_of_the_package(tmp_path):
    from raptor_nb.learn.direct_native import start_table
    drones, table, starts, odds = sampled(20, tmp_path)
    fastest, share = (data()["training"][k] for k in ("max_velocity", "hard_drone_share"))
    params = physics.batch_params(drones)
    limits = params.limits[0], fastest, params.limits[2]
    table, wanted = np.reshape(table, (20, 72)), native.table(params._replace(limits=limits))
    np.testing.assert_allclose(table, wanted.numpy(), rtol=1e-6, atol=1e-12)
    wanted = start_table(params).numpy()
    starts = np.reshape(starts, (20, 7))
    assert (starts[:, 2] > 0).all() and (wanted[:, 2] > 0).all() # an angle, or none
    starts[:, 2] = wanted[:, 2]
    np.testing.assert_allclose(starts, wanted, rtol=1e-6)
    wanted = np.cumsum(sampling_probabilities(drones, share))
    np.testing.assert_allclose(odds, wanted, atol=1e-6)


BAD = {
    "hover": (dict(thrust_to_weight=[.9, 3]), "thrust to weight begins at 0.9; it must be "
              "at least 1.05, or drones cannot hover"),
    "order": (dict(mass=[2, 1]), "mass goes from 2 to 1: the lowest must not exceed the "
              "highest"),
    "lag": (dict(rotor_time_constant_rising=[.001, .1]), "rotor time constant rising "
            "begins at 0.001; it must be at least 0.004"),
    "NaN": (dict(mass=[None, 1]), "mass must be two numbers, the lowest and the highest")}
CHECK = """
import { checkDistribution } from 'SRC/fleet.js';
let said = null;
try { checkDistribution(given); } catch (error) { said = error.message; }
console.log(JSON.stringify(said));
"""


@pytest.mark.parametrize("case", BAD)
def test_a_fleet_without_sense_is_refused(case, tmp_path):
    change, sentence = BAD[case]
    assert node(CHECK, data()["trained_on"] | change, tmp_path) == sentence
    assert node(CHECK, data()["trained_on"], tmp_path) is None


# ---- files ------------------------------------------------------------------------
WRITE = """
import { writeFileSync } from 'node:fs';
import { FORMATS } from 'SRC/files.js';
let said = null;
try {
  for (const { write, ending } of Object.values(FORMATS))
    writeFileSync('student' + ending, write(given.weights, given.files));
} catch (error) { said = error.message; }
console.log(JSON.stringify(said));
"""


def written(weights, tmp_path): # -> what it said
    return node(WRITE, dict(weights=weights, files=data()["files"]), tmp_path)


def flown(policy, seen):
    policy.reset(seen.shape[1])
    return np.stack([policy.evaluate_step(x) for x in seen])


def test_files_are_read_by_the_package(tmp_path):
    from raptor_nb.targets.json import JsonPolicy
    from raptor_nb.targets.onnx import OnnxPolicy
    policy = RaptorPolicy.pretrained()
    policy.gru.initial_hidden_state.data = torch.linspace(-.123456789, .3, 16)
    assert written(listed(policy), tmp_path) is None
    read = RaptorPolicy.from_hdf5(tmp_path / "student.h5") # replays the example as well
    for k, v in policy.state_dict().items(): assert torch.equal(read.state_dict()[k], v)
    seen = np.random.default_rng(0).normal(size=(40, 3, 22)).astype(np.float32)
    for kind, ending in ((JsonPolicy, "json"), (OnnxPolicy, "onnx")):
        theirs = flown(kind(tmp_path / f"student.{ending}"), seen)
        np.testing.assert_allclose(theirs, flown(policy, seen), atol=1e-5)
    example = json.loads((tmp_path / "student.json").read_text())["example"]
    seen = np.float32(example["observation"])[:, None]
    np.testing.assert_allclose(example["action"], flown(policy, seen)[:, 0], atol=1e-5)


def test_foundation_policy_reads_the_hdf5(tmp_path):
    why = "needs the extra raptor-nb[sim]"
    foundation = pytest.importorskip("foundation_policy", reason=why)
    written(listed(RaptorPolicy.published()), tmp_path)
    theirs, ours = foundation.load(str(tmp_path / "student.h5")), foundation.Raptor()
    theirs.reset(), ours.reset()
    for x in np.random.default_rng(0).normal(size=(30, 2, 22)).astype(np.float32):
        np.testing.assert_allclose(theirs.evaluate_step(x), ours.evaluate_step(x), atol=1e-6)


def test_weights_that_are_not_finite_make_no_file(tmp_path):
    broken = listed(RaptorPolicy.published())
    broken["output_layer.linear.bias"][2] = None
    sentence = "output_layer.linear.bias holds numbers that are not finite; train it again"
    assert written(broken, tmp_path) == sentence
    assert not list(tmp_path.glob("student.*"))


# ---- in a browser -----------------------------------------------------------------
@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if why := chromium.missing(): pytest.skip(why)
    driver = chromium.open_browser()
    driver.downloads = tmp_path_factory.mktemp("downloads")
    chromium.download_to(driver, driver.downloads)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    """The page from the disk, its drones paused: the processor is for training.
    Afterwards nobody complained on the console"""
    browser.get(fly.PAGE.as_uri())
    browser.get_log("browser")
    browser.execute_script("raptor.app.paused = true")
    yield browser
    assert not chromium.complaints(browser)


def js(page, expression, *given): return page.execute_script(f"return {expression}", *given)
def says(page): return page.find_element("id", "training-says").text
def button(page): return page.find_element("id", "train")


def until(page, condition, seconds=100):
    "Wait for an expression of the page"
    end = time.monotonic() + seconds
    while not js(page, f"Boolean({condition})"):
        assert time.monotonic() < end, says(page)
        time.sleep(.1)


def run(page, **how): # -> weights after each update
    page.execute_script("raptor.panel.begin({ log: true, ...arguments[0] })", how)
    until(page, "raptor.panel.ended")
    return np.array([u["weights"] for u in js(page, "raptor.panel.ended.log")])


@needs_compiler
def test_it_trains_in_the_browser_as_the_native_engine_does(page):
    "Two workers, one, and native without fused multiply-add give the same to the bit"
    one, two = (run(page, updates=3, workers=n, seed=5) for n in (1, 2))
    np.testing.assert_array_equal(one, two)
    settings = wasm.settings_of(page, seed=5) | dict(updates=3)
    theirs, _ = wasm.native_training(settings, 3, wasm.UNFUSED)
    np.testing.assert_array_equal(one, theirs)


def test_the_drones_fly_by_the_weights_of_the_moment(page):
    last = run(page, updates=2, workers=1)[-1]
    flights, name = js(page, "[raptor.world.flights.length, raptor.world.flights[0].policy.name]")
    assert (flights, name) == (8, "trained")
    own = js(page, "raptor.panel.weights")
    own = own["output_layer.linear.bias"] + own["gru.initial_hidden_state"]
    np.testing.assert_allclose(own, last[-20:], rtol=1e-6)
    place = "raptor.world.flights[0].state.position"
    before = js(page, place)
    page.execute_script("raptor.advance(.5)")
    assert before != js(page, place)
    assert says(page).startswith("Trained 2 of 2")
    assert "not yet the published policy's" in says(page)
    assert js(page, "raptor.panel.points.length") >= 2
    assert page.find_element("id", "return").is_displayed()
    page.execute_script("document.querySelector('[data-policy=both]').click()")
    assert js(page, "raptor.app.policies") == ["trained", "published"]


def test_it_is_stopped_and_handed_out(page):
    button(page).click()
    until(page, "raptor.panel.latest && raptor.panel.latest.update > 0")
    button(page).click()
    until(page, "raptor.panel.ended")
    assert button(page).text == "Train again"
    assert js(page, "raptor.panel.ended.update") < data()["training"]["updates"]
    for kind in ("json", "onnx", "h5"):
        page.find_element("css selector", f"[data-file={kind}]").click()
        end = time.monotonic() + 30
        while not (page.downloads / f"student.{kind}").exists():
            assert time.monotonic() < end, f"student.{kind} did not come"
            time.sleep(.1)
    policy = RaptorPolicy.from_hdf5(page.downloads / "student.h5")
    for name, w in js(page, "raptor.panel.weights").items():
        np.testing.assert_allclose(policy.state_dict()[name], w, rtol=1e-6)


def slide(page, name, at):
    page.execute_script(
        "const s = document.getElementById('fleet-' + arguments[0]);"
        "s.value = arguments[1]; s.dispatchEvent(new Event('input'));", name, at)


def test_the_sliders_are_the_fleet(page):
    wanted = {"mass-low": .5, "mass-high": .6, "thrustToWeight-low": .3,
              "thrustToWeight-high": .3, "noise": 1, "wind": 0}
    for name, at in wanted.items(): slide(page, name, at)
    made = wasm.settings_of(page, seed=1)
    table, draws = np.reshape(made["fleet"]["table"], (-1, 72)), made["draws"]
    mass = table[:, 44]
    assert .3 < mass.min() < mass.max() < .65
    assert draws["noise"] == pytest.approx(.1) and draws["force"] == draws["gust"] == 0
    full = table[:, 24:27] @ [1, 1, 1] * 4 / mass / 9.81
    np.testing.assert_allclose(full, full.mean(), rtol=1e-5)
    slide(page, "mass-high", .1)
    button(page).click()
    assert says(page).startswith("Not trained: mass goes from ")
    assert button(page).text == "Train from random weights"


def test_a_worker_that_fails_is_said(page):
    page.execute_script("document.getElementById('kernels').textContent = btoa('none')")
    button(page).click()
    until(page, "!raptor.panel.running")
    assert says(page).startswith("The training stopped: ")
    assert button(page).text == "Train again"


def test_the_panel_on_a_phone(page):
    chromium.resize(page, 390, 844, phone=True)
    try:
        page.execute_script("document.querySelector('#training details').open = true")
        assert js(page, "document.documentElement.scrollWidth") <= 390
    finally: page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
