"The page on which drones fly: its physics and policies are the package's, its program is what the sources give, and in a browser it does what it says"
import functools, http.server, json, os, shutil, subprocess, sys, threading, time
from pathlib import Path

import numpy as np
import pytest
import torch

from raptor_nb.drones import parse_drone, real_drones, sample_fleet
from raptor_nb.sim import physics
from raptor_nb.sim.lead import LEADS
from raptor_nb.policy import RaptorPolicy

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import browser as chromium  # noqa: E402
import fly  # noqa: E402

NODE = shutil.which("node")
POLICIES = {"student": RaptorPolicy.pretrained, "real": functools.partial(RaptorPolicy.pretrained, "real"),
            "real64": functools.partial(RaptorPolicy.pretrained, "real64"), "published": RaptorPolicy.published}
dynamics = lambda drone: drone.to_dict()["dynamics"]
listed = lambda tensor: tensor.double().numpy().tolist()


def data(): return fly.data_of(fly.PAGE.read_text(encoding="utf-8"))


def recorded(drone, policy, steps=500, noise=.01, force=.05):
    "A flight in the torch physics (float64) with noise and wind: what was seen, done and reached"
    fleet, generator = physics.batch_params([drone], dtype=torch.float64), torch.Generator().manual_seed(3)
    state = physics.sample_state(fleet, 1, generator)
    state = state._replace(force=torch.full_like(state.force, force * drone.weight), torque=1e-3 * state.torque + 1e-4 * drone.weight * drone.arm_length)
    first = {k: listed(v[0, 0]) for k, v in state._asdict().items()}
    seen, done, reached, hidden = [], [], [], None
    with torch.no_grad():
        for _ in range(steps):
            observation = physics.observe(state) + noise * torch.randn(1, 1, 22, generator=generator, dtype=torch.float64)
            action, hidden = policy(observation[0].float(), hidden)
            state = physics.step(state, action.double()[None], fleet)
            seen.append(listed(observation[0, 0].float()))
            done.append(listed(action[0]))
            reached.append([listed(x[0, 0]) for x in state[:5]])
    return dict(dynamics=dynamics(drone), first=first, seen=seen, done=done, reached=reached, weights={k: listed(v) for k, v in policy.state_dict().items()})


def node(code, given, tmp_path):
    "Run a module of JavaScript that sees `given` and the page's sources; what it prints as JSON"
    if not NODE: pytest.skip("node is not installed; the same is tested in Chromium")
    (tmp_path / "given.json").write_text(json.dumps(given))
    (tmp_path / "run.mjs").write_text(f"import {{ readFileSync }} from 'node:fs';\nconst given = JSON.parse(readFileSync('given.json'));\n" + code.replace("SRC", (ROOT / "web/src").as_posix()))
    done = subprocess.run([NODE, "run.mjs"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


REPLAY = """
function replay(given, { prepare, step, makePolicy }) {
  const drone = prepare(given.dynamics), policy = makePolicy(given.weights), f = given.first;
  let state = { position: f.position, orientation: f.orientation, velocity: f.linear_velocity, omega: f.angular_velocity, rotor: f.rotor_speed, action: f.action };
  let hidden = policy.initial(), worst = { position: 0, orientation: 0, velocity: 0, omega: 0, rotor: 0, action: 0 };
  const compare = (name, a, b, by = 1) => a.forEach((x, i) => { const far = Math.abs(x - b[i]) / by; if (!(far <= worst[name])) worst[name] = far; });
  given.done.forEach((done, t) => {
    const [action, next] = policy.act(given.seen[t], hidden);
    hidden = next;
    compare('action', action, done);
    state = step(state, done, drone, f.force, f.torque);
    const [position, orientation, velocity, omega, rotor] = given.reached[t];
    compare('position', state.position, position); compare('orientation', state.orientation, orientation);
    compare('velocity', state.velocity, velocity); compare('omega', state.omega, omega); compare('rotor', state.rotor, rotor, drone.high - drone.low);
  });
  return worst;
}
"""
FLIGHTS = {"crazyflie": lambda: real_drones()["crazyflie"], "arpl": lambda: real_drones()["arpl"], "mrs": lambda: real_drones()["mrs"], "sampled": lambda: sample_fleet([3], seed=fly.SEED)[0]}


def close(worst):
    assert worst["position"] < 1e-3 and worst["action"] < 1e-5, worst
    assert worst["orientation"] < 1e-6 and worst["velocity"] < 1e-6 and worst["omega"] < 1e-5 and worst["rotor"] < 1e-9, worst


@pytest.mark.parametrize("drone", FLIGHTS)
@pytest.mark.parametrize("policy", POLICIES)
def test_500_steps_are_those_of_the_package(drone, policy, tmp_path):
    code = "import * as physics from 'SRC/physics.js';\nimport * as policy from 'SRC/policy.js';" + REPLAY + "console.log(JSON.stringify(replay(given, { ...physics, ...policy })));"
    close(node(code, recorded(FLIGHTS[drone](), POLICIES[policy]()), tmp_path))


def test_observation_and_probe_are_those_of_the_package(tmp_path):
    from raptor_nb.evaluation.probing import Ridge
    fleet = physics.batch_params(list(real_drones().values()), dtype=torch.float64)
    state = physics.sample_state(fleet, 1, torch.Generator().manual_seed(0))
    names = dict(position="position", orientation="orientation", velocity="linear_velocity", omega="angular_velocity", action="action")
    probe, hidden = data()["policies"]["student"]["probe"], np.random.default_rng(0).normal(size=(50, 16)) * 2
    given = dict(states=[{k: listed(getattr(state, v)[i, 0]) for k, v in names.items()} for i in range(7)], probe=probe, hidden=hidden.tolist())
    said = node("import { observe } from 'SRC/physics.js';\nimport { readProbe } from 'SRC/policy.js';\nconsole.log(JSON.stringify([given.states.map(observe), given.hidden.map((h) => readProbe(given.probe, h))]));", given, tmp_path)
    np.testing.assert_allclose(said[0], physics.observe(state)[:, 0].numpy(), atol=1e-12)
    np.testing.assert_allclose(said[1], Ridge(*(np.array(probe[k]) for k in ("centre", "spread"))  , np.array(probe["weights"])[:, None])(hidden)[:, 0], atol=1e-9)


def test_changed_drones_are_drones(tmp_path):
    "What the sliders make passes every check of the package and has the values that the sliders say"
    given = dict(bases=[dynamics(d) for d in real_drones().values()], wanted=[dict(mass=.03, arm=.04, thrustToWeight=1.4, lag=.03), dict(mass=4., arm=.3, thrustToWeight=4.5, lag=.1), dict(mass=.5), {}])
    code = """import { prepare } from 'SRC/physics.js';\nimport { like, describe } from 'SRC/drones.js';
    console.log(JSON.stringify(given.bases.map((b) => given.wanted.map((w) => { const d = like(prepare(b), w); return [d.dynamics, describe(d)]; }))));"""
    for base, made in zip(real_drones().values(), node(code, given, tmp_path)):
        for wanted, (values, about) in zip(given["wanted"], made):
            drone = parse_drone(dict(name="changed", dynamics=values))
            measures = dict(mass=drone.dynamics.mass, arm=drone.arm_length, thrustToWeight=drone.thrust_to_weight, lag=drone.dynamics.rotor_time_constants_rising[0], torqueToInertia=drone.torque_to_inertia)
            for name, value in measures.items(): assert about[name] == pytest.approx(value, rel=1e-6) and (name not in wanted or value == pytest.approx(wanted[name], rel=1e-6))
        np.testing.assert_allclose(made[3][0]["rotor_thrust_coefficients"], base.dynamics.rotor_thrust_coefficients, rtol=1e-12)


def test_the_figure_eight_is_that_of_the_report(tmp_path):
    from raptor_nb.sim.conditions import FigureEight
    target = FigureEight()(None)
    at = [2. + .1 * i for i in range(50)] # once it has grown to its size
    said = node("import { figureEight } from 'SRC/world.js';\nconsole.log(JSON.stringify(given.map(figureEight)));", at, tmp_path)
    steps = [round(t / .01) for t in at]
    np.testing.assert_allclose([s[0] for s in said], target.position[steps], atol=1e-6)
    np.testing.assert_allclose([s[1] for s in said], target.velocity[steps], atol=1e-6)


def test_page_data_is_the_package():
    d = data()
    for name, policy in POLICIES.items():
        for k, v in policy().state_dict().items(): np.testing.assert_allclose(d["policies"][name]["weights"][k], v.numpy(), rtol=1e-7, atol=1e-12)
        assert .5 < d["policies"][name]["probe"]["r2"] <= 1
        assert d["policies"][name]["lead"] == [LEADS[name].time, LEADS[name].acceleration]
    assert list(d["policies"]) == list(POLICIES)
    assert list(d["drones"]) == list(real_drones()) and len(d["sampled"]) == fly.SAMPLED
    assert parse_drone(dict(name="x") | d["sampled"][5]).thrust_to_weight == pytest.approx(sample_fleet([5], seed=fly.SEED)[0].thrust_to_weight, rel=1e-6)


def test_the_program_comes_from_these_sources():
    head = fly.PROGRAM.read_text(encoding="utf-8")[:3000]
    assert f"sources sha256 {fly.sources_hash()}" in head, "web/src was edited: run `make bundle`"
    assert "MIT" in head and "three.js authors" in head and "Permission is hereby granted" in head


def test_the_program_is_bundled_again_to_the_byte(tmp_path):
    if not (ROOT / "web/node_modules/esbuild").is_dir(): pytest.skip("three.js and esbuild are not installed in web/ (make bundle installs them); the hash of the sources is compared all the same")
    fly.bundle(tmp_path / "fly.js")
    assert (tmp_path / "fly.js").read_bytes() == fly.PROGRAM.read_bytes()


def test_the_page_that_is_kept_is_of_today():
    assert not fly.outdated(fly.PAGE.read_text(encoding="utf-8")), "run `make page`"


def test_an_older_page_is_noticed_and_not_handed_out(tmp_path, monkeypatch):
    text, today = fly.PAGE.read_text(encoding="utf-8"), data()
    assert fly.outdated(text.replace("<h1>", "<h1>Old: ")) == ["web/page.html or web/fly.js"]
    older = json.loads(json.dumps(today))
    older["policies"]["student"]["weights"]["gru.gru.weight_hh_l0"][0][0] += 1e-3
    older["drones"].pop("crazyflie")
    older["sampled"][3]["dynamics"]["mass"] *= 1 + 1e-3
    older = fly.page(older, fly.program())
    found = fly.outdated(older)
    assert len(found) == 3 and found[1:] == ["data.drones", "data.sampled[3].dynamics.mass"] and found[0] == "data.policies.student.weights.gru.gru.weight_hh_l0[0][0]"
    (tmp_path / "fly.html").write_text(older, encoding="utf-8")
    monkeypatch.setattr(fly, "PAGE", tmp_path / "fly.html")
    monkeypatch.setattr(fly, "page_data", lambda probe=None: today)
    assert fly.write_page(tmp_path / "new.html").read_text(encoding="utf-8") == text


def test_the_same_policies_keep_their_probe(tmp_path, monkeypatch):
    "On another processor its last digits would differ, and a page made again would be another file"
    monkeypatch.setattr(fly, "fit_probe", lambda *_: pytest.fail("flown again"))
    monkeypatch.setattr(fly, "TEMPLATE", tmp_path / "page.html")
    fly.TEMPLATE.write_text((fly.WEB / "page.html").read_text(encoding="utf-8").replace("<h1>", "<h1>New: "), encoding="utf-8")
    assert fly.data_of(fly.write_page(tmp_path / "fly.html").read_text(encoding="utf-8")) == data()


def test_last_digits_of_another_processor_make_no_older_page():
    nearly = json.loads(json.dumps(data()), parse_float=lambda x: float(x) * (1 + 1e-7))
    assert not fly.outdated(fly.page(nearly, fly.program()))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_probe_that_is_kept_reads_as_one_fitted_today(policy):
    from raptor_nb.evaluation.probing import Ridge
    flyer, fleet = POLICIES[policy](), sample_fleet(fly.SAMPLED + fly.PROBED, seed=fly.SEED)
    read = lambda p: Ridge(*(np.array(p[k]) for k in ("centre", "spread")), np.array(p["weights"])[:, None])
    kept, fitted = data()["policies"][policy]["probe"], fly.fit_probe(flyer, fleet[fly.SAMPLED:])
    hidden = read(fitted).centre + read(fitted).spread * np.random.default_rng(0).normal(size=(200, len(kept["centre"])))
    assert kept["r2"] == pytest.approx(fitted["r2"], abs=.01)
    assert np.abs(read(kept)(hidden) - read(fitted)(hidden)).max() < .03


def test_nothing_is_set_up_to_open_the_page(tmp_path):
    "`make fly` in a copy without .venv: it names the page, and hands it to the opener where there is a screen"
    (tmp_path / "web").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    opener = tmp_path / "bin/xdg-open"
    opener.parent.mkdir()
    opener.write_text('#!/bin/sh\necho "opened $1"\n')
    opener.chmod(0o755)
    bare = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")} | dict(PATH=f"{opener.parent}:{os.environ['PATH']}")
    made = lambda **screen: subprocess.run(["make", "-s", "fly"], cwd=tmp_path, capture_output=True, text=True, env=bare | screen, check=True).stdout
    assert f"{tmp_path}/web/fly.html" in made() and "opened" not in made()
    if sys.platform == "linux": assert made(DISPLAY=":0").startswith("opened web/fly.html\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Makefile", "bin", "web"]


def test_missing_program_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(fly, "PROGRAM", ROOT / "web/no.js")
    with pytest.raises(SystemExit, match=r"^web/no.js is missing: `make bundle` makes it where npm is at hand$"): fly.write_page(tmp_path / "fly.html")


def test_missing_npm_is_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="which is not here: install Node.js 20 or later$"): fly.bundle()


# ---- in a browser -------------------------------------------------------------------------------------------------
DRONES = {"default": {}, "30 g": dict(mass=.03, arm=.04), "4 kg": dict(mass=4., arm=.25)}


@pytest.fixture(scope="module")
def browser():
    if why := chromium.missing(): pytest.skip(why)
    driver = chromium.open_browser()
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    "The page, fresh from the disk and paused; afterwards nobody complained on the console"
    browser.get(fly.PAGE.as_uri())
    browser.get_log("browser")
    browser.execute_script("raptor.app.paused = true; raptor.world.seed(1)")
    yield browser
    assert not chromium.complaints(browser)


def choose(page, drone="own", policy="student", **sliders):
    page.execute_script("raptor.choose(arguments[0]); document.querySelector(`[data-policy=${arguments[1]}]`).click();", drone, policy)
    lows = dict(mass=(.02, 5, True), thrustToWeight=(1.3, 5, False), arm=(.03, .5, True), lag=(.015, .12, False), noise=(0, .05, False), wind=(0, .3, False))
    for name, value in sliders.items():
        low, high, log = lows[name]
        at = np.log(value / low) / np.log(high / low) if log else (value - low) / (high - low)
        page.execute_script("const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'));", name, at)
    page.execute_script("raptor.world.restart()")


def advance(page, seconds): page.execute_script("raptor.advance(arguments[0])", seconds)
def distance(page): return max(page.execute_script("return raptor.world.flights.map((f) => f.distance.slice(-100).reduce((a, b) => a + b) / 100)"))
def lost(page): return page.execute_script("return raptor.world.flights.reduce((sum, f) => sum + f.lost, 0)")
def target(page): return page.execute_script("return raptor.world.target")


def press(page, *keys):
    from selenium.webdriver.common.action_chains import ActionChains
    page.find_element("id", "scene").click()
    page.execute_script("raptor.world.restart()")
    for key in keys: ActionChains(page).send_keys(key).perform()


def test_loads_from_a_server_without_a_word_on_the_console(browser):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    handler = functools.partial(Quiet, directory=str(fly.WEB))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.get(f"http://127.0.0.1:{server.server_port}/fly.html")
        for _ in range(300):
            time.sleep(.2)
            flown, pictures = browser.execute_script("return [raptor.world.time, raptor.app.frames]")
            if pictures > 5: break
        server.shutdown()
    assert flown > .05 and pictures > 5 and browser.execute_script("return raptor.picture !== null")
    assert not browser.get_log("browser")


def test_500_steps_in_the_browser(page):
    given = recorded(FLIGHTS["sampled"](), RaptorPolicy.pretrained())
    close(page.execute_script(REPLAY + "return replay(arguments[0], raptor);", given))


def test_there_is_a_picture(page):
    "The drone in its colour, the target in green"
    colours = page.execute_script("""const p = raptor.picture; p.draw(0); const gl = p.renderer.getContext(), w = gl.drawingBufferWidth, h = gl.drawingBufferHeight, pixels = new Uint8Array(4 * w * h);
        gl.readPixels(0, 0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, pixels); let blue = 0, green = 0;
        for (let i = 0; i < pixels.length; i += 4) { const [r, g, b] = pixels.slice(i, i + 3); if (b > 1.5 * r && b > g + 30) blue++; if (g > 1.3 * r && g > 1.3 * b && g > 60) green++; } return [blue, green];""")
    assert colours[0] > 200 and colours[1] > 40, colours


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("drone", DRONES)
def test_reaches_its_target_holds_it_and_survives_a_poke(page, drone, policy):
    choose(page, "own", policy, **DRONES[drone])
    advance(page, 8)
    assert distance(page) < .05
    page.find_element("id", "poke").click()
    advance(page, .3)
    assert page.execute_script("return raptor.world.flights[0].error") > .05
    advance(page, 8)
    assert distance(page) < .05 and lost(page) == 0


def test_the_seven_real_drones_fly(page):
    for name in real_drones():
        choose(page, name)
        advance(page, 12)
        assert distance(page) < .05 and lost(page) == 0, name


def test_eight_random_drones_side_by_side(page):
    choose(page, "eight", "both")
    assert page.execute_script("return raptor.world.flights.length") == 16
    advance(page, 10)
    ours = page.execute_script("return raptor.world.flights.slice(0, 8).map((f) => f.distance.slice(-100).reduce((a, b) => a + b) / 100)")
    assert np.median(ours) < .05
    first = page.execute_script("return raptor.world.flights[0].name")
    page.find_element("id", "another").click()
    assert page.execute_script("return raptor.world.flights[0].name") != first


def test_the_memory_notices_a_load(page):
    "What it believes is near the truth, and follows when the drone gets heavier in the air"
    believed = lambda: page.execute_script("return [raptor.world.flights[0].believed, raptor.world.flights[0].about.thrustToWeight]")
    choose(page, "own", thrustToWeight=3.5)
    advance(page, 5)
    light, truth = believed()
    assert abs(light - truth) < .7
    page.execute_script("const s = document.getElementById('thrustToWeight'); s.value = 0.15; s.dispatchEvent(new Event('input'));")
    advance(page, 4)
    heavy, truth = believed()
    assert truth < 2 and heavy < light - 1 and abs(heavy - truth) < .7 and lost(page) == 0


def test_noise_and_wind_disturb(page):
    choose(page)
    advance(page, 8)
    calm = distance(page)
    choose(page, noise=.05, wind=.2)
    advance(page, 8)
    assert distance(page) > 3 * calm and lost(page) == 0


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_the_target_is_dragged_and_the_drone_follows(page, kind):
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    choose(page)
    advance(page, 4)
    x, y, left, top = page.execute_script("const p = raptor.picture, b = p.canvas.getBoundingClientRect(); return [...p.place(raptor.world.flights[0].home), b.left, b.top]")
    way = [(round(left + x) + dx, round(top + y) + dy) for dx, dy in ((0, 0), (40, -30), (90, -60))]
    if kind == "mouse":
        builder = ActionBuilder(page)
        builder.pointer_action.move_to_location(*way[0]).pointer_down()
        for place in way[1:]: builder.pointer_action.move_to_location(*place)
        builder.pointer_action.pointer_up()
        builder.perform()
    else:
        touch = lambda what, *points: page.execute_cdp_cmd("Input.dispatchTouchEvent", dict(type=what, touchPoints=[dict(x=u, y=v) for u, v in points]))
        touch("touchStart", way[0])
        for place in way[1:]: touch("touchMove", place)
        touch("touchEnd")
    there = target(page)
    assert np.linalg.norm(there) > .1 and there[2] > .03, there
    advance(page, 8)
    assert distance(page) < .05


def test_a_tap_pokes_the_drone(page):
    from selenium.webdriver.common.action_chains import ActionChains
    choose(page)
    advance(page, 1.5)
    page.execute_script("raptor.aim([0.4, 0.3, 0.3]); raptor.picture.draw(0)")
    before = page.execute_script("return raptor.world.flights[0].state.velocity")
    x, y, width, height = page.execute_script("const p = raptor.picture, f = raptor.world.flights[0]; return [...p.place(f.state.position.map((c, i) => c + f.home[i])), p.width, p.height]")
    ActionChains(page).move_to_element_with_offset(page.find_element("id", "scene"), round(x - width / 2), round(y - height / 2)).click().perform()
    after = page.execute_script("return raptor.world.flights[0].state.velocity")
    assert np.linalg.norm(np.subtract(after, before)) == pytest.approx(1., abs=1e-6)


def test_keys(page):
    from selenium.webdriver.common.keys import Keys
    choose(page)
    press(page, Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.PAGE_UP)
    np.testing.assert_allclose(target(page), [.2, .1, .1], atol=1e-9)
    press(page, "f")
    advance(page, 10)
    assert page.find_element("id", "eight").get_attribute("aria-pressed") == "true" and distance(page) < .2
    press(page, "3")
    assert page.execute_script("return raptor.app.choice") == list(real_drones())[2]
    press(page, "8")
    assert page.execute_script("return raptor.world.flights.length") == 8
    press(page, "0", "c", "c", "c", "c")
    assert page.execute_script("return raptor.app.policies") == ["student", "published"]
    press(page, "p", "s")
    assert page.execute_script("return [raptor.app.paused, raptor.app.speed]") == [False, .25]


def test_light_and_dark_and_the_width_of_a_phone(page):
    back = lambda: page.execute_script("return getComputedStyle(document.body).backgroundColor + raptor.picture.scene.background.getHexString()")
    first = back()
    page.find_element("id", "theme").click()
    assert back() != first
    page.find_element("id", "theme").click()
    chromium.resize(page, 390, 844, phone=True)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        canvas, panel = (page.execute_script("const b = document.querySelector(arguments[0]).getBoundingClientRect(); return [b.left, b.top, b.width, b.height]", s) for s in ("#scene", "aside"))
        assert canvas[2] >= 385 and canvas[3] > 300 and panel[1] >= canvas[1] + canvas[3] - 1
        small = page.execute_script("return [...document.querySelectorAll('aside button')].filter((b) => b.offsetParent && b.getBoundingClientRect().height < 40).map((b) => b.id)")
        assert not small
    finally: page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
