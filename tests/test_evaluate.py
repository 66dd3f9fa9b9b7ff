"Flights that are reported: right, paired, and the same however they are flown"
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from raptor_nb import evaluate as module
from raptor_nb.core.config import load_config
from raptor_nb.drones import load_drone, sample_fleet, save_fleet, vary
from raptor_nb.environment import Simulator, flight_seed, see
from raptor_nb.evaluate import (COLOURS, METRICS, Delay, EvaluationError, FigureEight, Target, TargetSteps, Tilted, against, check_apart, compare, conditions, failures, fly,
                                held_out_fleet, initial_states, judge, load_policy, load_specialists, load_teachers, moving_targets, nearest, owners, policy_name, summary, take, under,
                                untrained_policy, verdict)
from raptor_nb.policy import RaptorPolicy, Teachers

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
ROOT, SETTINGS = Path(__file__).resolve().parents[1], load_config()


@pytest.fixture(scope="module")
def published(): return RaptorPolicy.published()


@pytest.fixture(scope="module")
def fleet(): return held_out_fleet(SETTINGS, 256)


@pytest.fixture(scope="module")
def clean(fleet): return [vary(d, **conditions(SETTINGS)["clean"]) for d in fleet[:12]]


@pytest.fixture(scope="module")
def flown(published, clean): return compare({"published": published, "untrained": untrained_policy()}, clean, seed=3)


# published figures: 512 other drones of the distribution; the 95 % interval of a mean over 256 is about +-24 in return and +-3 % in survival
@pytest.mark.parametrize("condition, mean_return, survival, steady_error", [("clean", 594.5, .945, .021), ("noise 0.01", 514.5, .945, None), ("noise 0.03", 350.0, .947, None), ("force 0.1", 546.0, .926, .115)])
def test_published_policy_has_its_published_figures(published, fleet, condition, mean_return, survival, steady_error):
    f = fly(published, [vary(d, **conditions(SETTINGS)[condition]) for d in fleet])
    assert abs(f["return"].mean() - mean_return) < 24
    assert abs((~f.terminated).mean() - survival) < .03
    if steady_error: assert abs(f.steady_error.mean() - steady_error) < .15 * steady_error


def test_against_a_plain_loop(published, clean):
    "One drone after the other, with nothing clever"
    table = fly(published, clean, seed=3)
    for i, d in enumerate(clean):
        simulator, total, step, drift = Simulator(d), 0., 0, []
        simulator.seed(flight_seed(np.array([3]), np.array([i])).tolist())
        simulator.reset()
        published.reset()
        for step in range(1, 501):
            reward, terminated = simulator.step(published.evaluate_step(simulator.observe()))
            total += float(reward[0])
            drift.append(np.linalg.norm(simulator.state()["position"]))
            if terminated[0]: break
        row = table.loc[i]
        assert (row.steps, row.terminated) == (step, bool(terminated[0]))
        assert row["return"] == pytest.approx(total, abs=.5)
        assert np.isnan(row.steady_error) if terminated[0] else row.steady_error == pytest.approx(np.mean(drift[250:]), abs=1e-4)


def test_columns_and_units(flown, clean):
    assert list(flown.columns) == ["drone", "policy", "flight", "return", "steps", "terminated", "steady_error", "mass", "thrust_to_weight", "torque_to_inertia"]
    first = flown[flown.policy == "published"]
    assert list(first.drone) == [d.name for d in clean] and np.allclose(first.mass, [d.mass for d in clean]) and np.allclose(first.thrust_to_weight, [d.thrust_to_weight for d in clean])
    assert (flown.steps[~flown.terminated] == 500).all() and (flown.steps[flown.terminated] < 500).all()
    assert flown.steady_error.isna().equals(flown.terminated)


def test_nothing_counts_after_termination():
    "A drone that falls gets at most 1.5 a step until it is gone, and one penalty"
    f, tracks = fly(lambda o: -np.ones((len(o), 4), np.float32), sample_fleet(20), record=True)
    assert f.terminated.all() and (f["return"] < 1.5 * f.steps - 100).all() and (f["return"] > -3 * f.steps - 110).all()
    for i, n in enumerate(f.steps):
        assert np.isfinite(tracks["position"][i, :n]).all() and np.isnan(tracks["position"][i, n:]).all()
    assert np.allclose(np.nansum(tracks["reward"][..., 0], 1), f["return"], atol=1e-3)


def test_flights_are_paired(published, clean):
    starts = [fly(p, clean, steps=20, seed=5, record=True)[1]["position"][:, 0] for p in (published, untrained_policy(), lambda o: np.zeros((len(o), 4), np.float32))]
    assert np.array_equal(starts[0], starts[1]) and np.array_equal(starts[0], starts[2])
    assert not np.array_equal(starts[0], fly(published, clean, steps=20, seed=6, record=True)[1]["position"][:, 0])


def test_noise_and_force_are_paired(published, clean):
    hard = [vary(d, observation_noise=.02, force=.2) for d in clean]
    a, b = (fly(p, hard, steps=3, record=True)[1] for p in (published, published))
    assert np.array_equal(a["observation"], b["observation"])
    c = fly(untrained_policy(), hard, steps=3, record=True)[1]
    assert np.allclose(a["observation"][:, 1, :3] - a["position"][:, 1], c["observation"][:, 1, :3] - c["position"][:, 1], atol=1e-6), "the same noise, whoever flies"


def test_flights_do_not_depend_on_company(published, clean):
    alone = fly(published, clean, seed=3)
    beside = compare({"first": untrained_policy(), "published": published}, clean, seed=3)
    assert beside[beside.policy == "published"]["return"].tolist() == alone["return"].tolist()
    assert np.allclose(fly(published, clean[:4], seed=3)["return"], alone["return"][:4], atol=.5)
    twice = fly(published, clean, flights=2, seed=3)
    assert np.allclose(twice[twice.flight == 0]["return"], alone["return"], atol=.5)
    assert not np.allclose(twice[twice.flight == 1]["return"], alone["return"], atol=.5)
    assert list(twice.drone[:2]) == [clean[0].name] * 2


def test_foundation_policy_and_onnx_fly_the_same(published, clean, tmp_path):
    raptor = pytest.importorskip("foundation_policy", reason="needs the extra raptor-nb[sim]").Raptor()
    policies = {"published": published, "theirs": raptor, "function": published.cpu_copy().evaluate_step}
    try:
        from raptor_nb.export import OnnxPolicy, export_file
        export_file(published, "onnx", tmp_path / "p.onnx")
        policies["onnx"] = OnnxPolicy(tmp_path / "p.onnx")
    except ModuleNotFoundError: pass
    table = summary(compare(policies, clean)).set_index("policy")
    assert table.return_gain.abs().max() < .5 and table.survival_gain.abs().max() == 0


@pytest.mark.parametrize("dim", [22, 26, 29])
def test_teachers_see_what_they_were_trained_on(clean, dim):
    simulator = Simulator([vary(d, force=.1) for d in clean], seed=1)
    seen = see(simulator, dim)
    assert seen.shape == (12, dim) and seen.dtype == np.float32
    if dim > 22: assert ((seen[:, 22:26] >= 0) & (seen[:, 22:26] <= 1)).all()
    if dim > 26:
        assert np.allclose(seen[:, 26:], simulator.force() / np.array([[d.mass * 9.81] for d in clean]), rtol=1e-5)
        assert .05 < seen[:, 26:].std() < .2
    assert fly(Teachers(12, obs_dim=dim), clean, steps=5).steps.max() <= 5


def test_rotor_speeds_of_a_drone_that_counts_otherwise():
    "mrs counts rotor speeds 0..2000; a teacher sees their share"
    assert see(Simulator([load_drone("mrs")] * 4), 26)[:, 22:].max() <= 1


def test_each_teacher_flies_its_own_drone(clean):
    "Teachers whose output is a constant: each lane moves as with that constant alone"
    teachers = Teachers(12)
    with torch.no_grad():
        for w in teachers.parameters(): w.zero_()
        teachers.b3 += torch.linspace(-.5, .5, 12)[:, None, None]
    _, tracks = fly(teachers, clean, flights=2, steps=3, record=True)
    assert np.allclose(tracks["action"][:, 0], np.tanh(np.linspace(-.5, .5, 12)).repeat(2)[:, None], atol=1e-6)
    _, tracks = fly(take(teachers, [3] * 12), clean, steps=3, record=True)
    assert np.allclose(tracks["action"][:, 0], np.tanh(np.linspace(-.5, .5, 12)[3]), atol=1e-6)


def test_nearest_is_the_twin_and_uses_logs():
    fleet = sample_fleet(30)
    index, distance = nearest(fleet[10:20], fleet)
    assert index.tolist() == list(range(10, 20)) and distance.max() < 1e-9
    assert nearest(fleet[:2], fleet[5:6])[0].tolist() == [0, 0]


def test_owners():
    fleet = sample_fleet([4, 5, 6])
    assert owners(Teachers(2, ids=[6, 4]), fleet) == [2, 0]     # names are numbers
    assert owners(Teachers(2, ids=[0, 2]), fleet) == [0, 2]     # places
    assert owners(Teachers(1, ids=[1]), [load_drone("x500"), load_drone("crazyflie")]) == [1]


def test_summary_of_known_numbers():
    flights = pd.DataFrame([dict(policy=p, drone=d, **{"return": r + (10 if p == "a" else 0)}, terminated=t, steady_error=np.nan if t else e)
                            for p in "ab" for d, r, t, e in (("x", 100., False, .02), ("y", 300., True, 0.), ("z", 500., False, .04))])
    table = summary(flights, baseline="b").set_index("policy")
    assert table.loc["a", "return"] == 310 and table.loc["b", "return"] == 300
    assert table.loc["a", ["return_gain", "return_gain_low", "return_gain_high"]].tolist() == [10, 10, 10]
    assert table.loc["a", "survival"] == pytest.approx(2 / 3) and table.loc["a", "steady_error"] == pytest.approx(.03)
    assert 100 <= table.loc["b", "return_low"] < 300 < table.loc["b", "return_high"] <= 500


def test_intervals_cover_the_mean():
    "Of 2000 samples of 100 normal values, about 95 % have an interval that holds the true mean"
    random, counts = np.random.default_rng(0), np.random.default_rng(1).multinomial(100, np.full(100, .01), 1000).astype(float)
    bounds = np.array([module._bootstrap(random.normal(5, 2, 100), counts) for _ in range(2000)])
    assert .93 <= ((bounds[:, 1] <= 5) & (5 <= bounds[:, 2])).mean() <= .965


def test_verdict_rows(flown):
    table = summary(pd.concat([flown, flown[flown.policy == "published"].assign(policy="student")]).assign(fleet="held-out", condition="clean"))
    rows = {r["name"]: r for r in verdict(table, SETTINGS)}
    assert all(list(r) == ["name", "value", "unit", "published", "bar", "ok"] for r in rows.values())
    best = rows["survival of student, 12 held-out drones, clean"]
    assert best["bar"] == .9 and best["value"] == best["published"] and best["ok"] == (best["value"] >= .9)
    assert rows["return of untrained, 12 held-out drones, clean"]["ok"] is None
    assert rows["steady error of untrained, 12 held-out drones, clean"]["value"] is None
    harsh = {r["name"]: r for r in verdict(table, load_config(**{"evaluation.min_return": 749}))}
    assert harsh["return of student, 12 held-out drones, clean"]["ok"] is False
    json.dumps(list(rows.values()), allow_nan=False)


def test_a_late_observation_in_a_plain_loop(published, clean):
    "What the policy sees is what was seen k steps before, with its own last action"
    late, prompt = (fly(published, clean, steps=40, record=True, **how)[1] for how in (dict(delay=2), {}))
    assert np.array_equal(late["observation"][:, 0], prompt["observation"][:, 0])
    simulator, past = Simulator(clean[0]), []
    simulator.seed(flight_seed(np.array([7]), np.array([0])).tolist())
    simulator.reset()
    published.reset()
    for t in range(40):
        past.append(simulator.observe())
        shown = np.concatenate([past[max(0, t - 2)][:, :18], past[-1][:, 18:]], 1)
        assert np.allclose(shown[0], late["observation"][0, t], atol=1e-5)
        simulator.step(published.evaluate_step(shown))


def test_delay_is_harder_and_none_is_none(published, fleet):
    drones = under(fleet[:64], conditions(SETTINGS)["clean"])
    returns = [fly(published, drones, delay=k)["return"] for k in (0, 1, 2)]
    assert returns[0].tolist() == fly(published, drones)["return"].tolist()
    assert returns[0].mean() > returns[1].mean() + 100 > returns[2].mean() + 150


def test_teachers_are_delayed_too(clean):
    _, tracks = fly(Teachers(12, obs_dim=29), clean, steps=4, record=True, delay=1)
    seen = tracks["observation"]
    assert np.array_equal(seen[:, 1, :18], seen[:, 0, :18]) and not np.array_equal(seen[:, 2, :18], seen[:, 1, :18]) and not np.array_equal(seen[:, 1, 22:], seen[:, 0, 22:])


def test_tilted_starts_are_paired_and_keep_the_rest(published, clean):
    start = Tilted(60, 90)
    plain, a, b, few = (fly(p, d, steps=2, record=True, start=s)[1]["observation"][:, 0] for p, d, s in
                        ((published, clean, None), (published, clean, start), (untrained_policy(), clean, start), (published, clean[:3], start)))
    assert np.array_equal(a, b) and np.array_equal(a[:3], few)
    assert np.array_equal(a[:, :3], plain[:, :3]) and np.array_equal(a[:, 12:], plain[:, 12:])
    tilt = np.degrees(np.arccos(a[:, 11]))
    assert (tilt > 59.9).all() and (tilt < 90.1).all() and tilt.std() > 3


def still(drone, random):
    return Target(np.zeros((101, 3)), np.zeros((101, 3)), np.arange(101) > 0, np.arange(101) > 50)


def test_a_target_that_stands_still_is_no_target(published, clean):
    moving, plain = fly(published, clean, record=True, target=still), fly(published, clean, steps=100, record=True)
    assert np.allclose(moving[1]["position"], plain[1]["position"], atol=1e-6, equal_nan=True)
    assert moving[0].terminated.tolist() == plain[0].terminated.tolist() and np.allclose(moving[0].steady_error, plain[0].steady_error, equal_nan=True, atol=1e-6)
    assert moving[0]["return"].isna().all() and moving[0].rmse.isna().equals(moving[0].terminated)


def test_error_along_a_figure_eight(published, clean):
    target = FigureEight(5.)
    table, tracks = judge({"p": published}, clean, dict(guidance=1., target=target, record=True))
    position, goal, where = tracks["p"]["position"], tracks["p"]["target"], tracks["p"]["observation"]
    assert position.shape == goal.shape == (12, 700, 3)
    assert np.allclose(position[:, 0], goal[:, 0], atol=1e-6) and np.allclose(tracks["p"]["linear_velocity"][:, 0], target(clean[0]).velocity[0], atol=1e-6)
    assert np.allclose(where[..., :3], position - goal, atol=1e-5, equal_nan=True)
    error = np.sqrt((np.linalg.norm(position - goal, axis=2)[:, 201:] ** 2).mean(1))
    kept = ~table.terminated
    assert kept.sum() > 6 and np.allclose(table.rmse[kept], error[kept], rtol=.02) and table.steady_error.isna().all()


def test_who_does_not_follow_is_lost(clean):
    "The limit of position holds relative to the target, even where the drone stays"
    hover = lambda o: np.float32([[d.hover_action] * 4 for d in clean])
    table, tracks = judge({"p": hover}, clean, dict(guidance=1., velocity_limit=False, target=FigureEight(10., (5., 0.)), record=True))
    assert table.terminated.all()
    for i, d in enumerate(clean):
        n, error = table.steps[i], np.abs(tracks["p"]["position"][i] - tracks["p"]["target"][i]).max(1)
        assert (error[:n] <= d.mdp.termination.position_threshold).all() and error[n - 1] > .9 * d.mdp.termination.position_threshold


def test_target_steps(published, clean):
    target = TargetSteps(2, interval=1., first=.5)
    table, tracks = judge({"a": published, "b": untrained_policy()}, clean, dict(guidance=1., target=target, record=True))
    goal = tracks["a"]["target"]
    assert goal.shape == (12, 250, 3) and np.array_equal(goal, tracks["b"]["target"])
    jump = np.diff(goal, axis=1)
    assert np.flatnonzero(np.abs(jump).max((0, 2))).tolist() == [49, 149]
    box = np.array([d.mdp.init.max_position for d in clean])[:, None, None]
    assert (np.abs(jump) <= box + 1e-6).all() and (np.abs(jump / box).max((0, 1)) > .6).all()
    a = table[(table.policy == "a") & ~table.terminated].index
    error = np.linalg.norm(tracks["a"]["position"] - goal, axis=2)
    assert len(a) > 6 and np.allclose(table.steady_error[a], np.concatenate([error[a, 100:150], error[a, 200:250]], 1).mean(1), rtol=.03, atol=1e-3)


def test_figure_eights_can_be_flown():
    "Every drone of the distribution lifts 1.5 times its weight"
    assert max(c["target"].thrust for n, c in moving_targets(load_config("full")).items() if n.startswith("figure")) < 1.25


def test_failures_begin_as_they_were_flown(published, fleet):
    condition = conditions(load_config("full"))["tilted up to 90°"] | dict(flights=2)
    table, tracks = judge({"student": untrained_policy(), "published": published}, fleet[:20], condition | dict(record=True, steps=200))
    lost = failures(table, fleet[:20], condition)
    assert len(lost) == 40 and lost["published survives"].mean() > .6
    for place, column in enumerate("xyz"): assert np.allclose(lost[column], tracks["student"]["position"][:, 0, place], atol=1e-6)
    for place, column in enumerate(("vx", "vy", "vz")): assert np.allclose(lost[column], tracks["student"]["linear_velocity"][:, 0, place], atol=1e-6)
    assert np.allclose(lost.tilt, np.degrees(np.arccos(tracks["student"]["observation"][:, 0, 11])), atol=.1) and lost.tilt.max() > 75
    assert lost.rotor_speed.between(0, 1).all() and list(lost.drone[:3]) == [fleet[0].name] * 2 + [fleet[1].name]
    some = initial_states(fleet[:20], condition, [5, 31])
    assert np.allclose(some["position"], lost.loc[[5, 31], ["x", "y", "z"]], atol=1e-6)
    assert len(failures(table[~table.terminated | (table.policy == "published")], fleet[:20], condition)) == 0


def test_a_policy_by_name(tmp_path, monkeypatch, clean):
    (tmp_path / "mine.py").write_text("import numpy as np\ndef still(seen): return np.zeros((len(seen), 4), np.float32)\nnumber = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert fly(load_policy("mine:still"), clean, steps=3).steps.tolist() == [3] * 12
    with pytest.raises(EvaluationError, match="'mine:number' is a int; it must be a function"): load_policy("mine:number")


@pytest.mark.parametrize("source, name", [("a/seed-3.safetensors", "seed-3"), ("runs/a/student.onnx", "a student"), ("mine:still", "still")])
def test_policies_have_names_of_their_own(source, name): assert policy_name(source) == name


def test_full_conditions():
    names = list(conditions(load_config("full")))
    plain = ["clean", *(f"noise {s}" for s in (.005, .01, .03, .05)), "force 0.1", "delay 10 ms", "delay 20 ms"]
    limited = ["2 m/s limit", *(f"{n}, 2 m/s limit" for n in plain[1:])]
    assert names == [*plain, *limited, "tilted up to 90°", "figure eight in 10 s", "figure eight in 5.5 s", "figure eight in 3.5 s", "target steps"]


@pytest.mark.parametrize("metric, value, published, gain, better, word", [
    ("return", 610., 600., (10., 5., 15.), True, "better: +10 (+5 to +15)"), ("return", 590., 600., (-10., -25., 5.), False, "NOT better: -10 (-25 to +5), within the noise"),
    ("survival", 1., 1., (0., 0., 0.), True, "equal: all survive"), ("survival", .9, .9, (0., -.1, .1), False, "equal: +0"),
    ("steady_error", .01, .02, (-.01, -.02, -.005), True, "better: -0.01"), ("steady_error", .03, .02, None, False, "NOT better: +0.01, other flights"),
    ("rmse", np.nan, .02, None, False, "no flight survived"), ("rmse", .3, np.nan, None, True, "no flight of the published")])
def test_better_or_not(metric, value, published, gain, better, word):
    got, note = against(metric, value, published, gain)
    assert got is better and note.startswith(word)


def judged(student, published, seeds=(), **bars):
    "Verdict of made-up flights: lists of (return, terminated, steady error), a drone each"
    rows = [dict(policy=p, drone=str(i), **{"return": r}, terminated=t, steady_error=e) for p, flown in (("student", student), ("published", published), *seeds) for i, (r, t, e) in enumerate(flown)]
    table = summary(pd.DataFrame(rows)).assign(fleet="held-out", condition="clean")
    made = verdict(table, load_config(evaluation=dict(beat_published=True, max_steady_error=.007, **bars)), [p for p, _ in seeds])
    return {r["name"].split(" of student")[0] + (" both" if "both" in r["name"] else ""): r for r in made if "of student" in r["name"]}


def test_verdict_against_the_published_policy():
    fell, kept = (100., True, np.nan), lambda r, e: (r, False, e)
    seeds = [("seed-1", [kept(600., .004)] * 3), ("seed-2", [kept(640., .008)] * 3)]
    rows = judged([kept(650., .005), kept(650., .006), kept(650., .016)], [kept(600., .01), kept(600., .01), fell], seeds, min_return=635, min_survival=.99)
    assert rows["return"]["ok"] is True and rows["return"]["bar"] == 635 and rows["survival"]["ok"] is True and rows["survival"]["bar"] == .99
    assert rows["steady error"]["ok"] is False and rows["steady error"]["bar"] == .007 and rows["steady error"]["value"] == pytest.approx(.009)
    assert rows["steady error both"]["ok"] is True and rows["steady error both"]["value"] == pytest.approx(.0055) and rows["steady error both"]["published"] == pytest.approx(.01)
    assert rows["return"]["seeds"] == {"seed-1": 600., "seed-2": 640.} and "2 seeds: 620 ± 28" in rows["return"]["note"]
    worse = judged([kept(650., .005)] * 3, [kept(651., .002)] * 3, min_return=100)
    assert worse["return"]["ok"] is False and worse["return"]["note"].startswith("NOT better: -1") and worse["survival"]["ok"] is True
    assert judged([kept(500., .005)] * 3, [kept(400., .01)] * 3, min_return=635)["return"]["ok"] is False
    json.dumps(list(rows.values()), allow_nan=False)


def test_bars_of_teachers():
    flights = pd.DataFrame([dict(policy=p, drone=str(i), **{"return": 600.}, terminated=False, steady_error=.01) for p in ("teachers", "student", "published") for i in range(3)])
    rows = verdict(summary(flights).assign(fleet="training", condition="2 m/s limit"), load_config("full"))
    assert [(r["bar"], r["ok"]) for r in rows if "of teachers" in r["name"]] == [(648.6, False), (.995, True), (None, None)]
    assert all(r["ok"] is None for r in rows if "of student" in r["name"])


def test_one_drone_is_resampled_flight_by_flight(published):
    table = summary(judge({"published": published}, [load_drone("crazyflie")], dict(flights=8, force=0.)))
    assert table.drones[0] == 1 and table.flights[0] == 8 and table.return_low[0] < table["return"][0] < table.return_high[0]


def test_conditions_change_one_thing():
    c = conditions(SETTINGS)
    assert list(c) == ["clean", "noise 0.01", "noise 0.03", "force 0.1", "2 m/s limit"]
    assert all(sum(c[n][k] != c["clean"][k] for k in c["clean"]) == 1 for n in c if n != "clean")
    calm = vary(sample_fleet(1)[0], **c["clean"])
    assert calm.disturbances.random_force.std == 0 and calm.mdp.termination.linear_velocity_threshold > 1e5


def test_held_out_drones_are_stable_and_apart():
    assert [d.name for d in held_out_fleet(SETTINGS, 3)] == ["1000000", "1000001", "1000002"] == [d.name for d in held_out_fleet(SETTINGS, 9)[:3]]
    assert len(held_out_fleet(SETTINGS)) == 256
    check_apart(sample_fleet(64), held_out_fleet(SETTINGS, 64))
    wide = held_out_fleet(load_config(domain_randomization={"mass": [1., 1.1]}), 20)
    assert all(1 <= d.mass <= 1.1 for d in wide)


def test_figures_return_their_axis(flown, published, clean):
    table = summary(flown).assign(fleet="held-out", condition="clean")
    _, tracks = fly(published, clean, steps=30, record=True)
    fig, axes = plt.subplots(1, 6)
    space = fig.add_subplot(projection="3d")
    drawn = [module.plot_bars(table, "return", axes[0], 450), module.plot_map(flown[flown.policy == "published"], axes[1]), module.plot_survival(flown, axes[2], .9),
             module.plot_steady(flown, axes[3], .02), module.plot_curves(table, "noise", "return", axes[4]), module.plot_distance(tracks, axes[5]), module.plot_flights(tracks, space)]
    assert drawn == [*axes, space] and all(ax.get_xlabel() or ax.get_xticklabels() for ax in drawn)
    assert axes[0].patches[0].get_facecolor() == matplotlib.colors.to_rgba(COLOURS["published"])
    plt.close(fig)


def test_steady_figure_without_survivors(flown):
    fig, ax = plt.subplots()
    assert module.plot_steady(flown[flown.policy == "untrained"].assign(steady_error=np.nan), ax) is ax
    plt.close(fig)


def _file(folder, name, data):
    (folder / name).write_bytes(data)
    return folder / name


def _stack(folder, ids):
    return Teachers(len(ids), ids=ids).save(folder / "teachers.safetensors")


@pytest.mark.parametrize("act, error, message", [
    pytest.param(lambda d, c: load_policy(d / "student.safetensors"), FileNotFoundError, "there is no student '.*'; make it with: papermill nbs/04_distill.ipynb", id="evaluate-missing-student"),
    pytest.param(lambda d, c: load_policy(_file(d, "p.onnx", b"x")), EvaluationError, "is an ONNX file; fly it as raptor_nb.export.OnnxPolicy", id="evaluate-onnx-as-weights"),
    pytest.param(lambda d, c: load_policy("raptor_nb.policy:hover"), EvaluationError, "there is no policy 'raptor_nb.policy:hover'", id="evaluate-policy-name"),
    pytest.param(lambda d, c: load_policy("no_such_module:hover"), EvaluationError, "name it as module:function", id="evaluate-policy-module"),
    pytest.param(lambda d, c: fly(untrained_policy(), c, delay=-1), EvaluationError, "delay is -1; it must be a whole number of steps, 0 or more", id="evaluate-negative-delay"),
    pytest.param(lambda d, c: load_policy(_file(d, "p.safetensors", b"\0" * 30)), ValueError, "p.safetensors", id="evaluate-corrupt-student"),
    pytest.param(lambda d, c: load_teachers(d / "teachers.safetensors", d / "drones.json"), FileNotFoundError, "there are no teachers '.*'; make them with: papermill nbs/03_pretrain.ipynb", id="evaluate-missing-teachers"),
    pytest.param(lambda d, c: load_teachers(_stack(d, [0]), d / "drones.json"), FileNotFoundError, "there are no drones '.*drones.json'; make them with", id="evaluate-missing-drones"),
    pytest.param(lambda d, c: load_teachers(_stack(d, [0, 12]), save_fleet(c, d / "drones.json")), EvaluationError, "there is a teacher for drone 12, but no such drone among the 12", id="evaluate-teachers-of-another-fleet"),
    pytest.param(lambda d, c: load_specialists(_stack(d, [0, 1]), c), EvaluationError, "holds teachers for 2 of 12 held-out drones", id="evaluate-too-few-specialists"),
    pytest.param(lambda d, c: check_apart(c[5:6], c), EvaluationError, "held-out drone '1000005' is training drone '1000005'", id="evaluate-trained-on-test-drone"),
    pytest.param(lambda d, c: held_out_fleet(SETTINGS, -1), EvaluationError, "test_drones is -1", id="evaluate-negative-test-drones"),
    pytest.param(lambda d, c: fly(Teachers(3), c), EvaluationError, "policy 'policy' cannot fly: there are 3 teachers for 12 drones", id="evaluate-number-of-teachers"),
    pytest.param(lambda d, c: fly(Teachers(12, obs_dim=25), c), EvaluationError, "the policy observes 25 values; it must be 22, 26", id="evaluate-observed-values"),
    pytest.param(lambda d, c: fly("student", c), EvaluationError, "cannot fly a str", id="evaluate-not-a-policy"),
    pytest.param(lambda d, c: fly(lambda o: np.full((len(o), 4), np.nan), c), EvaluationError, "cannot fly: action of drone 0, motor 0 is nan", id="evaluate-nan-action"),
    pytest.param(lambda d, c: fly(lambda o: o, c), EvaluationError, r"cannot fly: action has shape \(12, 22\)", id="evaluate-action-shape"),
    pytest.param(lambda d, c: fly(untrained_policy(), c, steps=0), EvaluationError, "steps is 0; it must be a whole number, 1 or more", id="evaluate-no-steps"),
    pytest.param(lambda d, c: fly(untrained_policy(), c, flights=1.5), EvaluationError, "flights is 1.5", id="evaluate-flights"),
    pytest.param(lambda d, c: fly(untrained_policy(), c, seed=-3), ValueError, "seed is -3", id="evaluate-seed"),
    pytest.param(lambda d, c: fly(untrained_policy(), []), ValueError, "there are no drones", id="evaluate-no-drones"),
    pytest.param(lambda d, c: summary(pd.concat([fly(untrained_policy(), c[:2]).assign(policy="a"), fly(untrained_policy(), c[1:3]).assign(policy="b")])), EvaluationError,
                 "policy 'b' was not flown on the same drones as 'a'", id="evaluate-unpaired"),
])
def test_bad_input(tmp_path, clean, act, error, message):
    with pytest.raises(error, match=message) as caught: act(tmp_path, clean)
    assert "\n" not in str(caught.value)


def test_threads_and_random_state_are_left_alone(published, clean):
    before, state = torch.get_num_threads(), torch.get_rng_state()
    untrained_policy()
    with pytest.raises(EvaluationError): fly(lambda o: o, clean)
    assert torch.get_num_threads() == before and torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_export_and_evaluation_as_stages(tmp_path, published):
    "From another folder, twice: the second time everything is kept"
    pytest.importorskip("papermill", reason="needs the extra raptor-nb[lab]")
    run = tmp_path / "runs/here"
    published.save(run / "student.safetensors")
    save_fleet(sample_fleet(4), run / "drones.json")
    Teachers(4).save(run / "teachers.safetensors")
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONPATH": str(ROOT)}
    for turn in range(2):
        for stage, extra in (("05_export", ()), ("06_evaluate", ("-p", "test_drones", "6"))):
            done = subprocess.run([sys.executable, "-m", "papermill", ROOT / f"nbs/{stage}.ipynb", "out.ipynb", "-k", "python3", "-p", "output_dir", "runs/here", *extra],
                                  cwd=tmp_path, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
            printed = "".join("".join(o.get("text", "")) for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"] for o in c.get("outputs", ()))
            assert ("is finished already and was kept" in printed) == bool(turn)
    assert {p.name for p in run.iterdir()} >= {"student.onnx", "student.h5", "flights.parquet", "flights.parquet.manifest.json", "verdict.json", "figures"}
    assert {p.name for p in (run / "figures").iterdir()} == {"comparison.png", "conditions.png", "fleet_map.png", "flights.png", "noise_and_delay.png", "survival_and_steady_error.png"}
    rows = {r["name"]: r for r in json.loads((run / "verdict.json").read_text())}
    assert rows["return of teachers, 4 training drones, clean"]["value"] < 0 < rows["return of student, 4 training drones, clean"]["value"]
    assert rows["survival of student, 6 held-out drones, clean"]["bar"] == .9
    assert len(pd.read_parquet(run / "flights.parquet")) == 2 * 4 * 6 + 3 * 2 * 6 + 4 * 4


def test_the_sentence_of_the_report():
    from raptor_nb.evaluate import in_words
    row = lambda metric, value, published, fleet="7 held-out drones, clean": dict(name=f"{metric} of student, {fleet}", value=value, published=published)
    rows = [row("return", 1., 1., "7 held-out drones, noise 0.01"), row("return", 641.4, 587.5), row("survival", .998, .93), row("steady error", .00677, .0236), row("return", 2., 2., "7 training drones, clean")]
    first = "The student survives 99.8 % of flights on 7 drones that it was not trained on, with a return of 641 of 750 and "
    assert in_words(rows) == first + "a steady error of 0.7 cm; the published policy 93.0 %, 588 and 2.4 cm."
    assert in_words(rows[:3]) == first + "no steady error; the published policy 93.0 %, 588 and no steady error."
    assert in_words([r | dict(published=None) for r in rows]) == first + "a steady error of 0.7 cm."
    assert in_words(rows[:1]) == ""
