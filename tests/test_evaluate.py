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
from raptor_nb.evaluate import (COLOURS, METRICS, EvaluationError, check_apart, compare, conditions, fly, held_out_fleet, load_policy, load_specialists, load_teachers,
                                nearest, owners, summary, take, untrained_policy, verdict)
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
        from raptor_nb.export import OnnxPolicy, export_onnx
        export_onnx(published, tmp_path / "p.onnx")
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
