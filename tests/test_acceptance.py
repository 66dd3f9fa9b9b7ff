"Checks: what is required, whether it is met, and how that is said"
import json

import numpy as np
import pandas as pd
import pytest

from raptor_nb.evaluation.acceptance import acceptance_table, check, check_line
from raptor_nb.evaluation.acceptance import compare_to_baseline, report_sentence
from raptor_nb.evaluation.statistics import summary
from raptor_nb.settings import load_config

FELL = (100., True, np.nan) # return, terminated, steady error


def kept(value, error): return value, False, error


def table_of(policies, fleet="held-out", condition="clean"):
    "Summary of made-up flights, one for each drone: {policy: [(return, terminated, error)]}"
    columns, parts = ["return", "terminated", "steady_error"], []
    for policy, flown in policies.items():
        table = pd.DataFrame(flown, columns=columns)
        parts.append(table.assign(policy=policy, drone=table.index.astype(str)))
    return summary(pd.concat(parts)).assign(fleet=fleet, condition=condition)


@pytest.mark.parametrize("value, threshold, higher, met", [
    (1., .9, True, True), (.9, .9, True, True), (.8, .9, True, False), (.8, .9, False, True),
    (np.nan, .9, False, False), (1., None, True, None)])
def test_a_check_is_met_or_not(value, threshold, higher, met):
    assert check("x", value, "m", threshold, higher_is_better=higher)["met"] is met


def test_checks_hold_no_nan_and_keep_whole_numbers():
    row = check("x", np.float64("nan"), "m", published=1.)
    assert row["value"] is None and json.dumps(row) and row["published"] == 1.
    assert json.dumps(check("drones", 8)["value"]) == "8" and "note" not in row


def test_a_check_in_a_line():
    row = check("wall time", 20., "min", 15, higher_is_better=False, note="slow")
    assert check_line(row) == "NOT MET  wall time: 20 (required 15, published none) slow"


def test_rows_of_policies_without_comparison():
    policies = dict(student=[kept(600., .01), FELL], published=[kept(500., .02), kept(500., .02)],
                    untrained=[FELL, FELL])
    table = table_of(policies)
    rows = {r["name"]: r for r in acceptance_table(table, load_config())}
    keys = ["name", "value", "unit", "published", "required", "met"]
    assert all(list(r) == keys for r in rows.values())
    survival = rows["survival of student, 2 held-out drones, clean"]
    assert survival["required"] == .9 and survival["value"] == .5 and survival["met"] is False
    assert rows["return of untrained, 2 held-out drones, clean"]["met"] is None
    assert rows["steady error of untrained, 2 held-out drones, clean"]["value"] is None
    json.dumps(list(rows.values()), allow_nan=False)


@pytest.mark.parametrize("metric, value, published, gain, better, word", [
    ("return", 610., 600., (10., 5., 15.), True, "better: +10 (+5 to +15)"),
    ("return", 590., 600., (-10., -25., 5.), False,
     "NOT better: -10 (-25 to +5), within the noise"),
    ("survival", 1., 1., (0., 0., 0.), True, "equal: all survive"),
    ("survival", .9, .9, (0., -.1, .1), False, "equal: +0"),
    ("steady_error", .01, .02, (-.01, -.02, -.005), True, "better: -0.01"),
    ("steady_error", .03, .02, None, False, "NOT better: +0.01, other flights"),
    ("rmse", np.nan, .02, None, False, "no flight survived"),
    ("rmse", .3, np.nan, None, True, "no flight of the published")])
def test_better_or_not(metric, value, published, gain, better, word):
    got, note = compare_to_baseline(metric, value, published, gain)
    assert got is better and note.startswith(word)


def student_rows(student, published, seeds=None, **thresholds):
    "Checks of the student, by the first words of their names"
    table = table_of(dict(student=student, published=published) | (seeds or {}))
    asked = dict(better_than_published=True, max_steady_error=.007) | thresholds
    settings = load_config(acceptance=asked)
    rows = [r for r in acceptance_table(table, settings, list(seeds or ()))
            if "of student" in r["name"]]
    end = lambda r: " both" if "both" in r["name"] else ""
    return {r["name"].split(" of student")[0] + end(r): r for r in rows}


def test_a_student_is_compared_with_the_published_policy():
    seeds = {"seed-1": [kept(600., .004)] * 3, "seed-2": [kept(640., .008)] * 3}
    student = [kept(650., .005), kept(650., .006), kept(650., .016)]
    published = [kept(600., .01), kept(600., .01), FELL]
    rows = student_rows(student, published, seeds, min_return=635, min_survival=.99)
    for name, met, required in (("return", True, 635), ("survival", True, .99),
                                ("steady error", False, .007)):
        assert rows[name]["met"] is met and rows[name]["required"] == required
    assert rows["steady error"]["value"] == pytest.approx(.009)
    both = rows["steady error both"]
    assert both["met"] is True and both["value"] == pytest.approx(.0055)
    assert both["published"] == pytest.approx(.01)
    assert rows["return"]["seeds"] == {"seed-1": 600., "seed-2": 640.}
    assert "2 seeds: 620 ± 28" in rows["return"]["note"]
    json.dumps(list(rows.values()), allow_nan=False)


def test_better_than_required_is_not_enough():
    rows = student_rows([kept(650., .005)] * 3, [kept(651., .002)] * 3, min_return=100)
    assert rows["return"]["met"] is False and rows["return"]["note"].startswith("NOT better: -1")
    assert rows["survival"]["met"] is True


def test_better_than_published_is_not_enough():
    rows = student_rows([kept(500., .005)] * 3, [kept(400., .01)] * 3, min_return=635)
    assert rows["return"]["met"] is False


def test_thresholds_of_teachers():
    policies = {p: [kept(600., .01)] * 3 for p in ("teachers", "student", "published")}
    rows = acceptance_table(table_of(policies, "training", "2 m/s limit"), load_config("full"))
    teachers = [(r["required"], r["met"]) for r in rows if "of teachers" in r["name"]]
    assert teachers == [(648.6, False), (.995, True), (None, None)]
    assert all(r["met"] is None for r in rows if "of student" in r["name"])


def row(metric, value, published, fleet="7 held-out drones, clean"):
    return check(f"{metric} of student, {fleet}", value, published=published)


FIRST = ("The student survives 99.8 % of flights on 7 drones that it was not trained on, "
         "with a return of 641 of 750 and ")
ROWS = [row("return", 1., 1., "7 held-out drones, noise 0.01"), row("return", 641.4, 587.5),
        row("survival", .998, .93), row("steady error", .00677, .0236),
        row("return", 2., 2., "7 training drones, clean")]


@pytest.mark.parametrize("rows, sentence", [
    (ROWS, FIRST + "a steady error of 0.7 cm; the published policy 93.0 %, 588 and 2.4 cm."),
    (ROWS[:3],
     FIRST + "no steady error; the published policy 93.0 %, 588 and no steady error."),
    ([r | dict(published=None) for r in ROWS], FIRST + "a steady error of 0.7 cm."),
    (ROWS[:1], "")], ids=["all", "no-steady-error", "alone", "not-flown"])
def test_the_sentence_of_the_report(rows, sentence): assert report_sentence(rows) == sentence
