"Figures draw what they are given on the axis they are given"
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from raptor_nb.evaluation import figures
from raptor_nb.evaluation.statistics import summary
from raptor_nb.policy import RaptorPolicy, untrained_policy
from raptor_nb.settings import load_config
from raptor_nb.sim.conditions import conditions, held_out_fleet
from raptor_nb.sim.rollout import evaluate

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
CLEAN = conditions(load_config())["clean"]


@pytest.fixture(scope="module")
def drones(): return held_out_fleet(load_config(), 12)


@pytest.fixture(scope="module")
def flown(drones):
    policies = {"published": RaptorPolicy.published(), "untrained": untrained_policy()}
    return evaluate(policies, drones, CLEAN, seed=3)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_figures_return_their_axis(flown, drones):
    table = summary(flown).assign(fleet="held-out", condition="clean")
    _, tracks = evaluate(RaptorPolicy.published(), drones, CLEAN, steps=30, record=True)
    fig, axes = plt.subplots(1, 6)
    space = fig.add_subplot(projection="3d")
    drawn = [figures.plot_bars(table, "return", axes[0], 450),
             figures.plot_map(flown[flown.policy == "published"], axes[1]),
             figures.plot_survival(flown, axes[2], .9),
             figures.plot_steady_error(flown, axes[3], .02),
             figures.plot_curves(table, "noise", "return", axes[4]),
             figures.plot_distance(tracks, axes[5]), figures.plot_flights(tracks, space)]
    assert drawn == [*axes, space]
    assert all(ax.get_xlabel() or ax.get_xticklabels() for ax in drawn)
    published = matplotlib.colors.to_rgba(figures.COLOURS["published"])
    assert axes[0].patches[0].get_facecolor() == published


def test_steady_errors_without_survivors(flown):
    _, ax = plt.subplots()
    lost = flown[flown.policy == "untrained"].assign(steady_error=np.nan)
    assert figures.plot_steady_error(lost, ax) is ax


def test_rows_where_the_student_is_not_better_are_marked(flown):
    table = summary(flown.replace("untrained", "student")).assign(fleet="held-out")
    axes = figures.plot_rows(table.assign(condition="clean"))
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["clean"]
    assert figures.not_better(table.assign(condition="clean"), ("held-out", "clean"), "return")
    assert not figures.not_better(table.assign(condition="clean"), ("held-out", "hot"), "return")


def test_distance_is_from_a_moving_target():
    tracks = dict(position=np.ones((1, 3, 3)), target=np.ones((1, 3, 3)))
    assert (figures.distance_to_target(tracks) == 0).all()


def test_tilts_share_bins_of_fifteen_degrees(flown):
    _, ax = plt.subplots()
    figures.plot_lost_by_tilt(flown, np.linspace(0, 89, 12), ax)
    assert ax.get_lines()[0].get_xdata()[-1] == 90
