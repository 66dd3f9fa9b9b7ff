"A target shown with a lead: what is shown, what is found in flight, the same in C and on the page"
import ctypes

import numpy as np
import pytest

from raptor_nb.drones import load_drone, sample_split
from raptor_nb.evaluation.lead import fit_lead, lead_study, response, summarise_lead
from raptor_nb.policy import EvaluationError, RaptorPolicy
from raptor_nb.sim.conditions import FigureEight, TargetSteps
from raptor_nb.sim.lead import HIGH, LEADS, Lead, Leading, find_lead
from raptor_nb.sim.rollout import evaluate
from raptor_nb.targets.c import c_header, pointer, shared_library
from raptor_nb.targets.loop import loop_header

ALONG = dict(force=0., observation_noise=0., velocity_limit=False, guidance=1.)


def lanes(path, n=1): # the path of every lane
    wide = lambda x: np.repeat(x[:, None], n, 1)
    return path._replace(position=wide(path.position), velocity=wide(path.velocity))


@pytest.fixture(scope="module")
def drones(): return [load_drone("x500"), *sample_split("lessons", 2)]


@pytest.mark.parametrize("make, sentence", [
    pytest.param(lambda: Lead(time=2), "time of a lead is 2", id="long"),
    pytest.param(lambda: Lead(acceleration=float("nan")), "acceleration of a lead", id="nan"),
    pytest.param(lambda: Lead(rate=-1.), "rate of a lead is -1.0", id="backwards"),
    pytest.param(lambda: Lead(rate=True), "rate of a lead is True", id="bool"),
    pytest.param(lambda: find_lead("reel"), "there is no lead 'reel'", id="name"),
    pytest.param(lambda: find_lead("real, fast"), "there is no lead 'real, fast'", id="how"),
])
def test_no_such_lead(make, sentence):
    with pytest.raises(EvaluationError, match=sentence): make()


def test_a_lead_is_for_a_target(drones):
    with pytest.raises(EvaluationError, match="give a target too"):
        evaluate(RaptorPolicy.pretrained(), drones[:1], dict(lead="real"))


def test_a_lead_of_nothing_changes_nothing(drones):
    how = ALONG | dict(target=FigureEight(2., lead=.5))
    flown = [evaluate(RaptorPolicy.pretrained(), drones, how | more)
             for more in ({}, dict(lead=Lead()))]
    assert np.abs(flown[0].rmse - flown[1].rmse).max() < 1e-5


def test_a_target_that_jumps_is_shown_as_it_is():
    path = lanes(TargetSteps()(load_drone("x500"), np.random.default_rng(0)))
    leading = Leading(Lead(.1, .1), path)
    for step in (0, 99, 100, 101, 500):
        position, velocity = leading.shown(step)
        assert (position == path.position[step]).all() and (velocity == 0).all()


def test_a_lane_that_is_lost_learns_nothing_and_no_number_runs_away():
    path = lanes(FigureEight(3.)(None), 2)
    leading = Leading(Lead(rate=5.), path)
    for step in range(400):
        wrong = np.zeros((2, 3))
        wrong[1] = -9 * path.velocity[step, 1]
        leading.learn(step, wrong)
    assert (leading.numbers[0] == 0).all() and leading.numbers[1, 0] == HIGH[0]


@pytest.mark.parametrize("kind", ["fixed", "adaptive"])
def test_it_halves_the_error_of_the_published_policy(drones, kind):
    found = lead_study({"published": RaptorPolicy.published()}, {"some": drones}, (5.5,),
                       ("none", kind))
    none, led = summarise_lead(found)["median"]
    assert led < none / 2


def test_the_published_policy_enlarges_and_the_lead_says_by_how_much():
    """Along a small sine the gain is about 1 / (1 - c w^2), with c of LEADS"""
    drone, policy = [load_drone("x500")], RaptorPolicy.published()
    found = response("published", policy, drone, {5.5: (.3, .15)})
    want = 1 / (1 - LEADS["published"].acceleration * found.rate ** 2)
    assert found.rate.round(2).tolist() == [1.14, 2.28]
    assert np.abs(found.gain - want).max() < .1 and (found.lag > .02).all()


def test_fitted_numbers_are_near_those_that_are_kept():
    found = fit_lead(RaptorPolicy.published(), [load_drone("x500")], (5.5,))
    assert abs(found.acceleration - LEADS["published"].acceleration) < .02


# --- the same in C

CORE = """
static raptor_lead lead;
static raptor_target target, shown;
void start(float time, float acceleration, float rate) {
    raptor_lead_init(&lead, time, acceleration, rate);
}
void hold(const float *p, const float *q) { raptor_target_hold(&target, p, q); }
int set(const float *p, const float *v) { return raptor_target_set(&target, 0, p, v, 0.5f); }
int show(const float *a, const float *j, const float *here, float dt, float *out) {
    int i, bad = raptor_lead_target(&lead, &target, a, j, here, dt, &shown);
    for (i = 0; i < 3; i++) out[i] = shown.position[i];
    for (i = 0; i < 3; i++) out[3 + i] = shown.velocity[i];
    for (i = 0; i < 2; i++) out[6 + i] = lead.number[i];
    for (i = 0; i < 2; i++) out[8 + i] = shown.half[i] - target.half[i];
    return bad;
}
"""


@pytest.fixture(scope="module")
def core():
    return shared_library(c_header(RaptorPolicy.pretrained()) + loop_header() + CORE)


def show(core, acceleration, jerk, here, dt=.01): # -> refused, ten numbers
    given = [np.float32(x) for x in (acceleration, jerk, here)]
    out = np.empty(10, np.float32)
    return core.show(*map(pointer, given), ctypes.c_float(dt), pointer(out)), out


def begin(core, lead):
    core.start(*map(ctypes.c_float, (lead.time, lead.acceleration, lead.rate)))


@pytest.mark.parametrize("lead", [Lead(.03, .02), Lead(-.02, .03, .3)], ids=["fixed", "adaptive"])
def test_c_shows_what_python_shows(core, lead):
    path = lanes(FigureEight(3., loops=5.)(None))
    leading, worst = Leading(lead, path), 0
    begin(core, lead)
    for step in range(len(path.position) - 1):
        place, speed = path.position[step, 0], path.velocity[step, 0]
        acceleration, jerk = leading.acceleration[step, 0], leading.jerk[step, 0]
        here = place + .05 * speed - .03 * acceleration + [.1, 0, .7]
        assert core.set(pointer(np.float32(place)), pointer(np.float32(speed))) == 0
        refused, out = show(core, acceleration, jerk, here)
        leading.learn(step, (here - place)[None])
        want = np.concatenate([*map(np.ravel, leading.shown(step)), leading.numbers[0]])
        assert not refused and (out[8:] == 0).all()
        worst = max(worst, np.abs(out[:8] - want).max())
    assert worst < 2e-4
    if lead.rate: assert np.abs(leading.numbers[0] - [lead.time, lead.acceleration]).min() > .01


def test_c_leaves_alone_what_holds_or_cannot_be_true(core):
    begin(core, Lead(.1, .1, 1.))
    here, one = np.zeros(3, np.float32), np.float32([1, 2, 3])
    core.hold(pointer(one), pointer(np.float32([1, 0, 0, 0])))
    refused, out = show(core, one, one, here)
    assert not refused and (out[:6] == [1, 2, 3, 0, 0, 0]).all()
    assert core.set(pointer(one), pointer(one)) == 0
    for a, j, p, dt in ((np.nan * one, one, here, .01), (one, np.inf * one, here, .01),
                        (one, one, 1e7 * one, .01), (one, one, here, -.01),
                        (one, one, here, np.nan), (one, one, here, 1.)):
        refused, out = show(core, a, j, p, dt)
        assert refused and (out[:6] == [1, 2, 3, 1, 2, 3]).all()
        assert np.abs(out[6:8] - .1).max() < 1e-7


# --- the same on the page

ON_THE_PAGE = """
import { figureEight, World, Flight } from 'SRC/world.js';
import { Lead, motion } from 'SRC/lead.js';
const lead = new Lead(given.begin);
console.log(JSON.stringify(given.errors.map((here, step) => {
  const t = 3.2 + .01 * step, [target, speed] = figureEight(t);
  const [acceleration, jerk] = motion(figureEight, t);
  lead.learn(speed, acceleration, here);
  const [position, velocity] = lead.shown(target, speed, acceleration, jerk);
  return [...position, ...velocity, ...lead.numbers];
})));
"""


def test_the_page_shows_what_python_shows(tmp_path):
    from test_fly import node
    path = FigureEight(5.5, loops=3.)(None)
    path = lanes(path._replace(position=path.position[300:1500], velocity=path.velocity[300:1500]))
    start = LEADS["published"]
    leading, errors = Leading(Lead(start.time, start.acceleration, .3), path), []
    want = []
    for step in range(20, 1100):
        errors.append(.08 * path.velocity[step, 0] - .05 * leading.acceleration[step, 0])
        leading.learn(step, errors[-1][None])
        want.append(np.concatenate([*map(np.ravel, leading.shown(step)), leading.numbers[0]]))
    given = dict(begin=[start.time, start.acceleration], errors=[e.tolist() for e in errors])
    said = node(ON_THE_PAGE, given, tmp_path)
    np.testing.assert_allclose(said, want, atol=1e-4)
    assert abs(want[-1][6] - start.time) > .05
