"The student: flights to learn from, its loss, its training"
import pytest
import torch

from raptor_nb import distill
from raptor_nb.core.config import load_config
from raptor_nb.core.records import Checkpoints
from raptor_nb.drones import sample_fleet, vary
from raptor_nb.learn import apg, flight
from raptor_nb.policy import RaptorPolicy, Teachers

SMALL = dict(sequence_length=40, online=dict(drones=1, environments=4, updates=12, rollout_drones=2, validation_interval=4, validation_drones=2))


@pytest.fixture(scope="module")
def setting():
    settings = load_config("default", distillation=SMALL, environment=dict(episode_steps=40), apg=dict(segment=20, updates=4, environments=8, engine="plain"), training=dict(seed=5))
    drones = sample_fleet(3)
    return settings, apg.train(settings.apg, drones), drones, sample_fleet(range(500_000, 500_002))


def flights(setting, student=None, **kwargs):
    settings, teachers, drones, _ = setting
    return distill.rollout(student or RaptorPolicy(), teachers, flight.fleet_of(drones), settings, torch.Generator().manual_seed(0), **kwargs)


def test_teachers_fly_their_lanes(setting):
    settings, teachers, drones, _ = setting
    calm = load_config(settings, distillation=dict(online=dict(observation_noise=0.)))
    out = flights((calm, teachers, drones, None), teacher_share=1.)
    kept = ~out.reset[:, 1:]
    assert torch.allclose(out.observation[:, 1:, 18:][kept], out.label[:, :-1][kept], atol=1e-6), "the next observation reports the action that was flown"


def test_the_student_flies_otherwise(setting):
    torch.manual_seed(0)
    student = RaptorPolicy()
    out = flights(setting, student, teacher_share=0.)
    with torch.no_grad(): action, _ = student(out.observation, None, out.reset)
    kept = ~out.reset[:, 1:]
    assert torch.allclose(out.observation[:, 1:, 18:][kept], action[:, :-1].clamp(-2, 2)[kept], atol=1e-5)


def test_noise_is_as_it_is_said(setting):
    settings, teachers, drones, _ = setting
    noisy = load_config(settings, distillation=dict(online=dict(observation_noise=0.5, environments=64)))
    still = [vary(d, guidance=1., force=0.) for d in drones]
    out = distill.rollout(RaptorPolicy(), teachers, flight.fleet_of(still), noisy, torch.Generator().manual_seed(0))
    first = out.observation[:, 0]
    sigma = 0.5 / 3 ** 0.5  # uniform from none to 0.5
    assert first[:, :3].std().item() == pytest.approx(sigma, rel=0.15)
    assert first[:, 12:15].std().item() == pytest.approx(2 * sigma, rel=0.15) and first[:, 15:18].std().item() == pytest.approx(5 * sigma, rel=0.15)


def test_resets_mark_flights(setting):
    out = flights(setting)
    assert out.reset[:, 0].all() and torch.equal(out.ended, out.reset.sum(1) - 1)


def test_training_lowers_the_loss_and_keeps_the_best(setting):
    settings, teachers, drones, validation = setting
    losses = []
    longer = load_config(settings, distillation=dict(online=dict(updates=90)))
    student = distill.train(longer, teachers, drones, validation, log=lambda u, n: losses.append(n))
    assert sum(n["loss"] for n in losses[-5:]) < 0.8 * sum(n["loss"] for n in losses[:5])
    best = max(n["validation_return"] for n in losses if "validation_return" in n)
    again = distill.score(student, flight.fleet_of(validation), longer, obs_dim=29)["return"]
    assert again == pytest.approx(best, rel=1e-5)


def test_distillation_goes_on_where_it_was_interrupted(setting, tmp_path):
    settings, teachers, drones, validation = setting
    whole = distill.train(settings, teachers, drones, validation)
    class Stop(Exception): pass
    def stop(update, numbers):
        if update >= 8: raise Stop
    with pytest.raises(Stop): distill.train(settings, teachers, drones, validation, log=stop, checkpoints=Checkpoints(tmp_path))
    resumed = distill.train(settings, teachers, drones, validation, checkpoints=Checkpoints(tmp_path))
    for x, y in zip(whole.state_dict().values(), resumed.state_dict().values()): assert torch.equal(x, y)


def test_score_is_what_l2f_says():
    from raptor_nb.evaluate import fly
    drones = [vary(d, force=0., velocity_limit=False) for d in sample_fleet(range(64))]
    settings = load_config("default", distillation=dict(online=dict(environments=8)), apg=dict(engine="plain"))
    ours = distill.score(RaptorPolicy.published(), flight.fleet_of(drones), settings, obs_dim=22)
    theirs = fly(RaptorPolicy.published(), drones, flights=8)
    assert ours["return"] == pytest.approx(theirs["return"].mean(), abs=12) and ours["survival"] == pytest.approx(1 - theirs["terminated"].mean(), abs=0.03)


@pytest.mark.parametrize("make, message", [
    pytest.param(lambda t, d: distill.match(t, d[:2]), "there is no drone 0002 for its teacher", id="drone-missing"),
    pytest.param(lambda t, d: distill.match(t.select([2]), [d[0]]), "there is no drone 0002 for its teacher", id="other-drone"),
])
def test_bad_input(setting, make, message):
    _, teachers, drones, _ = setting
    with pytest.raises(distill.DistillError, match=message): make(teachers, drones)


def test_teachers_find_their_drones_by_number(setting):
    _, teachers, drones, _ = setting
    assert [d.name for d in distill.match(teachers.select([2, 0]), drones)] == ["0002", "0000"]
