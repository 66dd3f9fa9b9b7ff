"The page trains: the package's kernels in WebAssembly, its fleet, its judge and its files, and what one sees of it"
import functools, json, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest
import torch

from raptor_nb.drones import check_distribution, parse_drone, sample_fleet
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
weights = lambda policy: {k: v.tolist() for k, v in policy.state_dict().items()}


def trained(module=wasm.KERNELS, **wish):
    "What tests/training.mjs prints"
    if not NODE: pytest.skip("node is not installed; the same is tested in Chromium")
    command = [NODE, str(ROOT / "tests/training.mjs"), str(module), str(fly.PAGE), json.dumps(wish)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def learned(out): return np.array([update["weights"] for update in out["log"]])


@functools.cache
def few(): return trained(updates=12)


# ---- kernels ------------------------------------------------------------------------------------
def test_the_kernels_come_from_these_sources():
    assert wasm.about()["sources"] == wasm.sources_hash(), "raptor_nb/native or web/kernels.cpp was edited: run `make bundle`"


def test_kernels_compiled_again_are_the_same(tmp_path):
    if wasm.compiler() is None or not any(Path("/usr").glob("**/wasm32-wasi/libc++.a")): pytest.skip(f"needs {wasm.NEEDS}")
    again = wasm.build(tmp_path / "train.wasm")
    if wasm.about(again) == wasm.about(): assert again.read_bytes() == wasm.KERNELS.read_bytes()
    ours, theirs = learned(trained(updates=3, flights=32)), learned(trained(again, updates=3, flights=32))
    assert wasm.differences(ours, theirs).max() < 1e-5


@needs_compiler
def test_first_updates_are_those_of_the_native_engine():
    out = few()
    theirs, costs = wasm.native_training(out["settings"], 12)
    gap = wasm.differences(learned(out), theirs)
    interval = out["settings"]["optimiser"]["interval"]
    assert gap[:interval - 1].max() < 3e-5 and gap.max() < .02, gap   # a new basis amplifies rounding
    np.testing.assert_allclose([u["cost"] for u in out["log"]], costs, rtol=.02)
    assert np.linalg.norm(theirs[-1] - theirs[0]) > .02 * np.linalg.norm(theirs[0])   # it has learned something by then


def test_who_flies_a_block_changes_nothing():
    np.testing.assert_array_equal(learned(few())[:4], learned(trained(updates=4, split=3)))


def test_another_seed_is_another_training():
    assert wasm.differences(learned(few())[:1], learned(trained(updates=1, seed=4))).max() > .1


def test_returns_are_those_of_the_package():
    out, n = trained(updates=0, judge=6), 16
    page, policy = data(), RaptorPolicy.published()
    quick = dict(termination=dict(linear_velocity_threshold=1e6))
    fleet = physics.batch_params([parse_drone(d | dict(mdp=quick)) for d in page["sampled"][:6]])
    start = torch.tensor(out["starts"]).view(6, 21, n).mT
    state = physics.unflatten_state(start, torch.zeros(6, n, 3))._replace(last_action=torch.zeros(6, n, 4))
    total, alive, hidden = torch.zeros(6, n), torch.ones(6, n, dtype=torch.bool), None
    with torch.no_grad():
        for _ in range(500):
            action, hidden = policy(physics.observe(state).reshape(-1, 1, 22), hidden)
            before, action = state, action.view(6, n, 4)
            state = physics.step(before, action, fleet)
            total += torch.where(alive, physics.reward(before, action, state, fleet), 0)
            alive &= ~physics.terminated(state, fleet)
    flights = np.array(out["flights"])
    np.testing.assert_array_equal(flights[1] > 0, alive.flatten().numpy())
    np.testing.assert_allclose(flights[0], total.flatten().numpy(), atol=.3)
    assert out["judged"]["published"]["survival"] == pytest.approx(alive.float().mean().item())


# ---- fleet --------------------------------------------------------------------------------------
SAMPLE = """import { prepare } from 'SRC/physics.js';\nimport { sampleDrone, trainingFleet } from 'SRC/fleet.js';\nimport { stream } from 'SRC/world.js';
const random = stream(7), template = prepare(given.template), drones = Array.from({ length: given.n }, () => sampleDrone(template, given.distribution, random));"""


def asked(n): return dict(n=n, template=data()["drones"]["crazyflie"]["dynamics"], distribution=data()["trained_on"], training=data()["training"])


def test_the_fleet_is_sampled_as_in_the_package(tmp_path):
    "Every drone passes all checks, and all eight quantities follow the published distribution"
    code = SAMPLE + "console.log(JSON.stringify(drones.map((d) => d.dynamics)));"
    drones = [parse_drone(dict(name=str(i), dynamics=d)) for i, d in enumerate(node(code, asked(2000), tmp_path))]
    found = check_distribution(drones)
    assert found.ok.drop("force_share").all(), found


def test_rows_and_odds_are_those_of_the_package(tmp_path):
    code = SAMPLE + "const fleet = trainingFleet(drones, given.training); console.log(JSON.stringify([drones.map((d) => d.dynamics), ...Object.values(fleet).map((x) => Array.from(x))]));"
    made, table, starts, odds = node(code, asked(20), tmp_path)
    drones = [parse_drone(dict(name=str(i), dynamics=d)) for i, d in enumerate(made)]
    params = physics.batch_params(drones)
    params = params._replace(limits=(params.limits[0], data()["training"]["max_velocity"], params.limits[2]))
    np.testing.assert_allclose(np.reshape(table, (20, 72)), native.table(params).numpy(), rtol=1e-6, atol=1e-12)
    share = data()["training"]["hard_drone_share"]
    np.testing.assert_allclose(odds, np.cumsum(sampling_probabilities(drones, share)), atol=1e-6)
    for d, start in zip(drones, np.reshape(starts, (20, 7))):
        limit, init = d.dynamics.action_limit, d.mdp.init
        np.testing.assert_allclose(start[[0, 1, 3, 4, 5, 6]], [init.guidance, init.max_position, init.max_linear_velocity, init.max_angular_velocity, limit.min, (limit.min + limit.max) / 2], rtol=1e-6)


BAD = {"hover": (dict(thrust_to_weight=[.9, 3]), "thrust to weight begins at 0.9; it must be at least 1.05, or drones cannot hover"),
       "order": (dict(mass=[2, 1]), "mass goes from 2 to 1: the lowest must not exceed the highest"),
       "lag": (dict(rotor_time_constant_rising=[.001, .1]), "rotor time constant rising begins at 0.001; it must be at least 0.004"),
       "NaN": (dict(mass=[None, 1]), "mass must be two numbers, the lowest and the highest")}


@pytest.mark.parametrize("case", BAD)
def test_a_fleet_without_sense_is_refused(case, tmp_path):
    change, sentence = BAD[case]
    code = "import { checkDistribution } from 'SRC/fleet.js';\nlet said = null; try { checkDistribution(given); } catch (error) { said = error.message; } console.log(JSON.stringify(said));"
    assert node(code, data()["trained_on"] | change, tmp_path) == sentence
    assert node(code, data()["trained_on"], tmp_path) is None


# ---- files --------------------------------------------------------------------------------------
WRITE = """import { writeFileSync } from 'node:fs';\nimport { FORMATS } from 'SRC/files.js';
let said = null; try { for (const { write, ending } of Object.values(FORMATS)) writeFileSync('student' + ending, write(given.weights, given.files)); } catch (error) { said = error.message; } console.log(JSON.stringify(said));"""


def unlike_any():
    policy = RaptorPolicy.pretrained()
    policy.gru.initial_hidden_state.data = torch.linspace(-.123456789, .3, 16)
    return policy


def test_files_are_read_by_the_package(tmp_path):
    from raptor_nb.targets.json import JsonPolicy
    from raptor_nb.targets.onnx import OnnxPolicy
    policy = unlike_any()
    assert node(WRITE, dict(weights=weights(policy), files=data()["files"]), tmp_path) is None
    read = RaptorPolicy.from_hdf5(tmp_path / "student.h5")   # it replays the example as well
    for a, b in zip(read.state_dict().values(), policy.state_dict().values()): assert torch.equal(a, b)
    seen, first = np.random.default_rng(0).normal(size=(40, 3, 22)).astype(np.float32), None
    for flyer in (policy, JsonPolicy(tmp_path / "student.json"), OnnxPolicy(tmp_path / "student.onnx")):
        flyer.reset(3)
        actions = np.stack([flyer.evaluate_step(x) for x in seen])
        first = actions if first is None else first
        np.testing.assert_allclose(actions, first, atol=1e-5)
    held = json.loads((tmp_path / "student.json").read_text())
    policy.reset(1)
    replayed = [policy.evaluate_step(np.float32([x]))[0] for x in held["example"]["observation"]]
    np.testing.assert_allclose(held["example"]["action"], replayed, atol=1e-5)


def test_foundation_policy_reads_the_hdf5(tmp_path):
    foundation = pytest.importorskip("foundation_policy", reason="needs the extra raptor-nb[sim]")
    policy = RaptorPolicy.published()
    node(WRITE, dict(weights=weights(policy), files=data()["files"]), tmp_path)
    theirs, ours = foundation.load(str(tmp_path / "student.h5")), foundation.Raptor()
    seen = np.random.default_rng(0).normal(size=(30, 2, 22)).astype(np.float32)
    theirs.reset(), ours.reset()
    for x in seen: np.testing.assert_allclose(theirs.evaluate_step(x), ours.evaluate_step(x), atol=1e-6)


def test_weights_that_are_not_finite_make_no_file(tmp_path):
    broken = weights(RaptorPolicy.published())
    broken["output_layer.linear.bias"][2] = None
    assert node(WRITE, dict(weights=broken, files=data()["files"]), tmp_path) == "output_layer.linear.bias holds numbers that are not finite; train it again"
    assert not list(tmp_path.glob("student.*"))


# ---- in a browser -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if why := chromium.missing(): pytest.skip(why)
    driver = chromium.open_browser()
    driver.downloads = tmp_path_factory.mktemp("downloads")
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", dict(behavior="allow", downloadPath=str(driver.downloads)))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    "The page from the disk, paused: the processor is for training. Afterwards nobody complained on the console"
    browser.get(fly.PAGE.as_uri())
    browser.get_log("browser")
    browser.execute_script("raptor.app.paused = true")
    yield browser
    assert not chromium.complaints(browser)


def until(page, condition, seconds=100):
    "Wait for an expression of the page"
    end = time.monotonic() + seconds
    while not page.execute_script(f"return Boolean({condition})"):
        assert time.monotonic() < end, page.execute_script("return document.getElementById('training-says').textContent")
        time.sleep(.1)


def says(page): return page.find_element("id", "training-says").text


def run(page, **how):
    page.execute_script("raptor.panel.begin({ log: true, ...arguments[0] })", how)
    until(page, "raptor.panel.ended")
    return np.array([u["weights"] for u in page.execute_script("return raptor.panel.ended.log")])


@needs_compiler
def test_it_trains_in_the_browser_as_the_native_engine_does(page):
    "Two workers and one give the same weights to the bit, those of the native engine but for rounding"
    one, two = run(page, updates=3, workers=1, seed=5), run(page, updates=3, workers=2, seed=5)
    np.testing.assert_array_equal(one, two)
    settings = json.loads(page.execute_script("return JSON.stringify(raptor.panel.settings(5), (_, v) => (ArrayBuffer.isView(v) ? Array.from(v) : v))"))
    assert wasm.differences(one, wasm.native_training(settings | dict(updates=3), 3)[0]).max() < 1e-4


def test_the_drones_fly_by_the_weights_of_the_moment(page):
    weights = run(page, updates=2, workers=1)[-1]
    flown = page.execute_script("return [raptor.world.flights.length, raptor.world.flights[0].policy.name, raptor.panel.weights['gru.initial_hidden_state'], raptor.panel.weights['output_layer.linear.bias']]")
    assert flown[:2] == [8, "trained"]
    np.testing.assert_allclose(flown[3] + flown[2], weights[-20:], rtol=1e-6)
    before = page.execute_script("return raptor.world.flights[0].state.position")
    page.execute_script("raptor.advance(.5)")
    assert before != page.execute_script("return raptor.world.flights[0].state.position")
    assert "Trained 2 of 2" in says(page) and "not yet the published policy's" in says(page)
    assert page.execute_script("return raptor.panel.points.length") >= 2 and page.find_element("id", "return").is_displayed()
    page.execute_script("document.querySelector('[data-policy=both]').click()")
    assert page.execute_script("return raptor.app.policies") == ["trained", "published"]


def test_it_is_stopped_and_handed_out(page):
    page.find_element("id", "train").click()
    until(page, "raptor.panel.latest && raptor.panel.latest.update > 0")
    page.find_element("id", "train").click()
    until(page, "raptor.panel.ended")
    assert page.find_element("id", "train").text == "Train again" and page.execute_script("return raptor.panel.ended.update") < 1000
    for old in page.downloads.glob("*"): old.unlink()
    for kind in ("json", "onnx", "h5"): page.find_element("css selector", f"[data-file={kind}]").click(); time.sleep(.3)
    end = time.monotonic() + 30
    while len(list(page.downloads.glob("student.*[n5x]"))) < 3 and time.monotonic() < end: time.sleep(.1)
    policy = RaptorPolicy.from_hdf5(page.downloads / "student.h5")
    for name, w in page.execute_script("return raptor.panel.weights").items(): np.testing.assert_allclose(policy.state_dict()[name], w, rtol=1e-6)


def test_the_sliders_are_the_fleet(page):
    set_to = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'));"
    for name, at in (("mass-low", .5), ("mass-high", .6), ("thrustToWeight-low", .3), ("thrustToWeight-high", .3), ("noise", 1), ("wind", 0)): page.execute_script(set_to, f"fleet-{name}", at)
    made = page.execute_script("const s = raptor.panel.settings(1); return [s.draws, Array.from(s.fleet.table)]")
    mass, table = np.reshape(made[1], (-1, 72))[:, 44], np.reshape(made[1], (-1, 72))
    assert .3 < mass.min() < mass.max() < .65 and made[0]["noise"] == pytest.approx(.1) and made[0]["force"] == made[0]["gust"] == 0
    full = table[:, 24:27] @ [1, 1, 1] * 4 / mass / 9.81
    np.testing.assert_allclose(full, full.mean(), rtol=1e-5)
    page.execute_script(set_to, "fleet-mass-high", .1)
    page.find_element("id", "train").click()
    assert says(page).startswith("Not trained: mass goes from ") and page.find_element("id", "train").text == "Train from random weights"


def test_a_worker_that_fails_is_said(page):
    page.execute_script("document.getElementById('kernels').textContent = btoa('no kernels')")
    page.find_element("id", "train").click()
    until(page, "!raptor.panel.running")
    assert says(page).startswith("The training stopped: ") and page.find_element("id", "train").text == "Train again"


def test_the_panel_on_a_phone(page):
    chromium.resize(page, 390, 844, phone=True)
    try:
        page.execute_script("document.querySelector('#training details').open = true")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    finally: page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
