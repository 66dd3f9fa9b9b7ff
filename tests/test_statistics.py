"Averages over flights: exact where they can be, with intervals that cover the mean"
import numpy as np
import pandas as pd
import pytest

from raptor_nb.drones import load_drone
from raptor_nb.evaluation.statistics import bootstrap, is_better, policy_name, resample
from raptor_nb.evaluation.statistics import sort_policies, summary, wilson
from raptor_nb.policy import EvaluationError, RaptorPolicy
from raptor_nb.sim.rollout import evaluate


def flights(policy, extra=0., drones="xyz"):
    "Three drones, the second of which is lost"
    returns, lost, errors = (100., 300., 500.), (False, True, False), (.02, np.nan, .04)
    return pd.DataFrame({"policy": policy, "drone": list(drones), "terminated": lost,
                         "return": np.add(returns, extra), "steady_error": errors})


def test_summary_of_known_numbers():
    both = pd.concat([flights("a", extra=10.), flights("b")])
    table = summary(both, baseline="b").set_index("policy")
    a, b = table.loc["a"], table.loc["b"]
    assert a["return"] == 310 and b["return"] == 300
    assert a[["return_gain", "return_gain_low", "return_gain_high"]].tolist() == [10, 10, 10]
    assert a["survival"] == pytest.approx(2 / 3) and a["steady_error"] == pytest.approx(.03)
    assert 100 <= b["return_low"] < 300 < b["return_high"] <= 500


def test_policies_must_have_flown_the_same_drones():
    other = pd.concat([flights("a"), flights("b", drones="xyw")])
    with pytest.raises(EvaluationError, match="policy 'b' was not flown on the same drones as 'a'"):
        summary(other)


def test_one_drone_is_resampled_flight_by_flight():
    pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
    policies, drones = {"published": RaptorPolicy.published()}, [load_drone("crazyflie")]
    row = summary(evaluate(policies, drones, dict(force=0.), flights=8)).iloc[0]
    assert row.drones == 1 and row.flights == 8
    assert row.return_low < row["return"] < row.return_high


def test_intervals_cover_the_mean():
    "Of 2000 samples of 100 normal values, about 95 % have an interval that holds the true mean"
    random, draws = np.random.default_rng(0), resample(100, seed=1)
    samples = [random.normal(5, 2, 100) for _ in range(2000)]
    bounds = np.array([bootstrap(s, draws) for s in samples])
    assert .93 <= ((bounds[:, 1] <= 5) & (5 <= bounds[:, 2])).mean() <= .965


@pytest.mark.parametrize("share, low, high", [(.1, .0552, .1744), (0., 0., .037), (1., .963, 1.)])
def test_wilson_of_a_hundred(share, low, high):
    assert wilson(share, 100) == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize("metric, value, baseline, better", [
    ("return", 610., 600., True), ("return", 600., 600., False), ("steady_error", .01, .02, True),
    ("survival", 1., 1., True), ("survival", .9, .9, False),
    ("rmse", np.nan, .02, False), ("rmse", .3, np.nan, True)])
def test_what_is_better(metric, value, baseline, better):
    assert is_better(metric, value, baseline) is better


def test_policies_are_sorted():
    table = pd.DataFrame(dict(policy=["mine", "untrained", "student", "published"]))
    assert sort_policies(table).policy.tolist() == ["student", "published", "untrained", "mine"]


@pytest.mark.parametrize("source, name", [
    ("a/seed-3.safetensors", "seed-3"), ("runs/a/student.onnx", "a student"),
    ("mine:still", "still")])
def test_policies_have_names_of_their_own(source, name): assert policy_name(source) == name
