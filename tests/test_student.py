"What distillation and fine-tuning share: drones, disturbances, and the best student so far"
import math
import random
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from raptor_nb.drones import SPLITS, sample_fleet, with_conditions
from raptor_nb.learn import student
from raptor_nb.policy import RaptorPolicy
from raptor_nb.sim import physics
from raptor_nb.settings import load_config

PARAMS = physics.batch_params(sample_fleet(3))


def drawn(**how):
    changes = {f"flight_randomization.{k}": v for k, v in how.items()}
    settings = load_config("default", **changes).flight_randomization
    return student.sample_disturbances(PARAMS, 2000, settings, torch.Generator().manual_seed(0))


def force_share(**how): # (D, 51, E, 3) of weight
    found, t = drawn(**how), torch.linspace(0, 5, 51).view(1, -1, 1, 1)
    parts = [found[k] for k in ("steady", "gust", "frequency", "phase")]
    return student.disturbance_force(*parts, t, PARAMS) / physics.weight(PARAMS)[..., None, None]


def root_mean_square(x): return x.square().mean().sqrt().item()


# ---- disturbances
def test_late_flights_are_as_many_as_was_said():
    delay = drawn(delay_share=.3)["delay"]
    counts = [(delay == k).float().mean().item() for k in (0, 1, 2)]
    assert counts == pytest.approx([.7, .15, .15], abs=.03)


def test_noise_is_of_every_size_up_to_what_was_said():
    sigma = drawn(max_observation_noise=.5)["sigma"]
    assert root_mean_square(sigma) == pytest.approx(.5 / 5**.5, rel=.1), "0.5 u^2, u uniform"
    assert (sigma < .125).float().mean().item() == pytest.approx(.5, abs=.05)


def test_a_steady_force_is_of_every_strength_up_to_what_was_said():
    share = force_share(max_force_std=.3, max_gust_std=0.)
    assert share.shape == (3, 51, 2000, 3) and torch.equal(share[:, 0], share[:, -1])
    assert root_mean_square(share) == pytest.approx(.3 / 3**.5, rel=.05)


def test_gusts_come_and_go_with_a_tenth_to_one_hertz():
    share = force_share(max_force_std=0., max_gust_std=.3)
    crossings = (share[:, 1:].sign() != share[:, :-1].sign()).sum(1)
    assert root_mean_square(share) == pytest.approx(.3 / 6**.5, rel=.05)
    assert crossings.min() <= 1 and 8 <= crossings.max() <= 11, "over 5 s"


# ---- drones
def test_drones_that_are_hard_to_turn_are_drawn_more_often():
    def drone(torque_to_inertia, lag):
        lags = dict(rotor_time_constants_rising=[.05 * lag] * 4,
                    rotor_time_constants_falling=[.1 * lag] * 4)
        dynamics = SimpleNamespace(**lags)
        return SimpleNamespace(torque_to_inertia=torque_to_inertia, dynamics=dynamics)
    drones = [drone(100., 1), drone(400., 2), drone(400., 1)]
    often = lambda share: student.sampling_probabilities(drones, share).tolist()
    assert often(1.) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert often(0.) == pytest.approx([1 / 3] * 3)
    assert often(.5) == pytest.approx([(x / 7 + 1 / 3) / 2 for x in (4, 2, 1)])


def test_weak_drones_can_be_favoured_as_well():
    fleet = sample_fleet(50)
    turn, both, lift = (student.sampling_probabilities(fleet, 1., weak) for weak in (0., .5, 1.))
    assert both.tolist() == pytest.approx(((turn + lift) / 2).tolist())
    d = [x.dynamics for x in fleet]
    lags = [sum(x.rotor_time_constants_rising + x.rotor_time_constants_falling) for x in d]
    wanted = [lag / (x.thrust_to_weight - 1) for lag, x in zip(lags, fleet)]
    assert lift.tolist() == pytest.approx([w / sum(wanted) for w in wanted])
    assert student.sampling_probabilities(fleet, 0., 1.).tolist() == pytest.approx([1 / 50] * 50)


def test_the_hardest_of_a_fleet_is_drawn_most_often():
    fleet = sample_fleet(50)
    often = student.sampling_probabilities(fleet, .5)
    hardest = fleet[often.argmax()].torque_to_inertia
    assert often.sum().item() == pytest.approx(1) and hardest < 150
    assert sum(d.torque_to_inertia < hardest for d in fleet) < 3


def test_extra_drones_are_nobodys_and_some_are_out_of_distribution():
    settings = load_config("default", direct=dict(extra_train_drones=20, ood_train_drones=20))
    drones = student.extra_drones(settings, settings.direct)
    within, beyond = drones[:20], drones[20:]
    ids = [int(d.name) for d in drones]
    assert len(set(ids)) == 40 and not set(ids) & set(SPLITS["train"])
    assert all(1.5 <= d.thrust_to_weight <= 5 for d in within)
    assert sum(d.thrust_to_weight > 5 for d in beyond) >= 5
    assert max(d.thrust_to_weight for d in beyond) <= 12
    again = student.extra_drones(settings, settings.direct)
    assert [d.to_dict() for d in drones] == [d.to_dict() for d in again]


def test_drones_of_any_build_are_as_strong_as_the_others_but_built_otherwise():
    settings = load_config("default", direct=dict(
        extra_train_drones=0, ood_train_drones=40, ood_thrust_to_weight=20., ood_any_build=True))
    rebuilt = student.extra_drones(settings, settings.direct)
    assert len({d.name for d in rebuilt}) == 40
    idle = [d.dynamics.rotor_thrust_coefficients[0][0] for d in rebuilt]
    assert min(idle) < 0 < max(idle)
    for d in rebuilt:
        full = sum(d.dynamics.rotor_thrust_coefficients[0])
        weight = d.mass * 9.81
        assert 4 * full / weight == pytest.approx(d.thrust_to_weight, rel=1e-4)
        share = d.dynamics.rotor_thrust_coefficients[0][0] / full
        assert -.08 <= share <= min(.04, .4 / d.thrust_to_weight) + 1e-9


def test_rebuilt_keeps_thrust_and_changes_inertia_braking_and_curve():
    drone = sample_fleet(1)[0]
    for seed in range(20):
        new = student.rebuilt(drone, 4., random.Random(seed))
        assert new.thrust_to_weight == pytest.approx(drone.thrust_to_weight, rel=1e-4)
        agile = new.torque_to_inertia / drone.torque_to_inertia
        assert 1 / 4.001 < agile < 1.001
        old, now = drone.dynamics, new.dynamics
        assert now.rotor_time_constants_rising == pytest.approx(old.rotor_time_constants_rising)
        between = sorted((old.rotor_time_constants_rising[0], old.rotor_time_constants_falling[0]))
        assert between[0] * .999 <= now.rotor_time_constants_falling[0] <= between[1] * 1.001


@pytest.mark.parametrize("split", ["validation", "selection", "ood_selection"])
def test_who_chooses_trains_nobody_and_has_no_speed_limit(split):
    drones = student.validation_drones(load_config("default"), split, 5)
    assert {int(d.name) for d in drones} <= set(SPLITS[split])
    assert not any(d.mdp.termination.linear_velocity_threshold < 100 for d in drones)
    most = max(d.thrust_to_weight for d in drones)
    assert (most > 5) == (split == "ood_selection")


# ---- the best
def test_score_is_what_l2f_says():
    from raptor_nb.sim.rollout import evaluate
    drones = [with_conditions(d, force=0., velocity_limit=False) for d in sample_fleet(64)]
    published = RaptorPolicy.published()
    ours = student.score(published, physics.batch_params(drones), load_config("default"))
    theirs = evaluate(published, drones, flights=8)
    assert ours["return"] == pytest.approx(theirs["return"].mean(), abs=15)
    assert ours["survival"] == pytest.approx(1 - theirs["terminated"].mean(), abs=0.04)
    assert 0 < ours["steady_error"] < .05 and math.isfinite(ours["steady_error"])


def test_the_best_so_far_is_kept(monkeypatch):
    found = iter([3., 5., 4.])
    score = lambda *args: {"return": next(found), "survival": 1., "steady_error": 0.}
    monkeypatch.setattr(student, "score", score)
    best = student.BestStudent(PARAMS, load_config("default"))
    policies = [RaptorPolicy() for _ in range(3)]
    seen = [best.validate(p)["validation_return"] for p in policies]
    assert seen == [3., 5., 4.] and best.value == 5.
    kept, second = best.policy().state_dict(), policies[1].state_dict()
    assert all(torch.equal(kept[k], second[k]) for k in kept)


def test_steady_error_decides_where_returns_are_equal():
    one = dict(steady_error=.03) | {"return": 600.}
    other, lost = one | dict(steady_error=.01), one | dict(steady_error=math.nan)
    of = lambda *scores: student.selection_score(dict(enumerate(scores)))
    assert of(one) == 570. and of(other) == 590. and of(one, other) == 580.
    assert of(lost) == -400., "where nobody survives it is 1 m"
    table = student.selection_score({"fleet": pd.DataFrame([one, other, lost])})
    assert table.tolist() == [570., 590., -400.]
