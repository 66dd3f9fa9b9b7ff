"Flights that are reported: right, paired, and the same however they are flown"
import numpy as np
import pytest
import torch

from raptor_nb.drones import sample_fleet, with_conditions
from raptor_nb.evaluation.statistics import summary
from raptor_nb.policy import EvaluationError, RaptorPolicy, Teachers, untrained_policy
from raptor_nb.settings import load_config
from raptor_nb.sim.conditions import apply_condition, conditions, held_out_fleet
from raptor_nb.sim.l2f import Simulator, flight_seed
from raptor_nb.sim.physics import TorchSimulator
from raptor_nb.sim.rollout import FlightStatistics, HiddenStates, Observer, Tracks
from raptor_nb.sim.rollout import evaluate, rollout

pytest.importorskip("l2f", reason="needs the extra raptor-nb[sim]")
SETTINGS = load_config()
COLUMNS = ["drone", "policy", "flight", "return", "steps", "terminated", "steady_error",
           "oscillation", "mass", "thrust_to_weight", "torque_to_inertia"]


@pytest.fixture(scope="module")
def published(): return RaptorPolicy.published()


@pytest.fixture(scope="module")
def fleet(): return held_out_fleet(SETTINGS, 256)


@pytest.fixture(scope="module")
def clean(fleet): return apply_condition(fleet[:12], conditions(SETTINGS)["clean"])


def fall(observation): return -np.ones((len(observation), 4), np.float32)


# ------------------------------------------------------------------ numbers

# published figures: 512 other drones of the distribution; the 95 % interval of a mean over
# 256 is about +-24 in return and +-3 % in survival
@pytest.mark.parametrize("condition, mean_return, survival, steady_error", [
    ("clean", 594.5, .945, .021), ("noise 0.01", 514.5, .945, None),
    ("noise 0.03", 350.0, .947, None), ("force 0.1", 546.0, .926, .115)])
def test_published_policy_has_its_published_figures(published, fleet, condition, mean_return,
                                                    survival, steady_error):
    f = evaluate(published, fleet, conditions(SETTINGS)[condition])
    assert abs(f["return"].mean() - mean_return) < 24
    assert abs((~f.terminated).mean() - survival) < .03
    if steady_error: assert abs(f.steady_error.mean() - steady_error) < .15 * steady_error


def test_against_a_plain_loop(published, clean):
    "One drone after the other, with nothing clever"
    table = evaluate(published, clean, seed=3)
    for i, d in enumerate(clean):
        simulator, total, drift = Simulator(d), 0., []
        simulator.seed(flight_seed(np.array([3]), np.array([i])).tolist())
        simulator.reset()
        published.reset()
        for step in range(1, 501):
            reward, terminated = simulator.step(published.evaluate_step(simulator.observe()))
            total += float(reward[0])
            drift.append(np.linalg.norm(simulator.position()))
            if terminated[0]: break
        row = table.loc[i]
        assert (row.steps, row.terminated) == (step, bool(terminated[0]))
        assert row["return"] == pytest.approx(total, abs=.5)
        if terminated[0]: assert np.isnan(row.steady_error)
        else: assert row.steady_error == pytest.approx(np.mean(drift[250:]), abs=1e-4)


def test_columns_and_units(published, clean):
    flown = evaluate({"published": published, "untrained": untrained_policy()}, clean, seed=3)
    assert list(flown.columns) == COLUMNS
    first = flown[flown.policy == "published"]
    assert list(first.drone) == [d.name for d in clean]
    for k in ("mass", "thrust_to_weight"):
        assert np.allclose(first[k], [getattr(d, k) for d in clean])
    assert (flown.steps[~flown.terminated] == 500).all()
    assert (flown.steps[flown.terminated] < 500).all()
    assert flown.steady_error.isna().equals(flown.terminated)


def test_nothing_counts_after_termination():
    "A drone that falls gets at most 1.5 a step until it is gone, and one penalty"
    f, tracks = evaluate(fall, sample_fleet(20), record=True)
    assert f.terminated.all()
    assert (f["return"] < 1.5 * f.steps - 100).all() and (f["return"] > -3 * f.steps - 110).all()
    for position, n in zip(tracks["position"], f.steps):
        assert np.isfinite(position[:n]).all() and np.isnan(position[n:]).all()
    assert np.allclose(np.nansum(tracks["reward"][..., 0], 1), f["return"], atol=1e-3)


# ------------------------------------------------------------------ pairs

def test_flights_are_paired(published, clean):
    def starts(policy, seed):
        return evaluate(policy, clean, seed=seed, steps=20, record=True)[1]["position"][:, 0]
    first = starts(published, 5)
    assert np.array_equal(first, starts(untrained_policy(), 5))
    assert np.array_equal(first, starts(fall, 5))
    assert not np.array_equal(first, starts(published, 6))


def test_noise_and_force_are_paired(published, clean):
    hard = [with_conditions(d, observation_noise=.02, force=.2) for d in clean]
    fly = lambda policy: evaluate(policy, hard, steps=3, record=True)[1]
    noise = lambda tracks: tracks["observation"][:, 1, :3] - tracks["position"][:, 1]
    a, b, other = fly(published), fly(published), fly(untrained_policy())
    assert np.array_equal(a["observation"], b["observation"])
    assert np.allclose(noise(a), noise(other), atol=1e-6), "the same noise, whoever flies"


def test_flights_do_not_depend_on_company(published, clean):
    alone = evaluate(published, clean, seed=3)
    together = evaluate({"first": untrained_policy(), "published": published}, clean, seed=3)
    mine = together[together.policy == "published"]
    assert mine["return"].tolist() == alone["return"].tolist()
    four = evaluate(published, clean[:4], seed=3)
    assert np.allclose(four["return"], alone["return"][:4], atol=.5)


def test_the_first_of_two_flights_is_the_only_one_of_one(published, clean):
    alone = evaluate(published, clean, seed=3)
    twice = evaluate(published, clean, seed=3, flights=2)
    first, second = (twice[twice.flight == k]["return"] for k in (0, 1))
    assert np.allclose(first, alone["return"], atol=.5)
    assert not np.allclose(second, alone["return"], atol=.5)
    assert list(twice.drone[:2]) == [clean[0].name] * 2


# ------------------------------------------------------------------ who flies

def test_foundation_policy_and_onnx_fly_the_same(published, clean, tmp_path):
    theirs = pytest.importorskip("foundation_policy", reason="needs the extra raptor-nb[sim]")
    policies = {"published": published, "theirs": theirs.Raptor(),
                "function": published.cpu_copy().evaluate_step}
    try:
        from raptor_nb.targets.onnx import OnnxPolicy
        from raptor_nb.targets.registry import export_file
        export_file(published, "onnx", tmp_path / "p.onnx")
        policies["onnx"] = OnnxPolicy(tmp_path / "p.onnx")
    except ModuleNotFoundError: pass
    table = summary(evaluate(policies, clean)).set_index("policy")
    assert table.return_gain.abs().max() < .5 and table.survival_gain.abs().max() == 0


@pytest.mark.parametrize("dim", [22, 26, 29])
def test_teachers_observe_what_they_were_trained_on(clean, dim):
    _, tracks = evaluate(Teachers(12, obs_dim=dim), clean, steps=5, record=True)
    assert tracks["observation"].shape == (12, 5, dim)


def test_each_teacher_flies_its_own_drone(clean):
    "Teachers whose output is a constant: each lane moves as with that constant alone"
    teachers, constants = Teachers(12), torch.linspace(-.5, .5, 12)
    with torch.no_grad():
        for w in teachers.parameters(): w.zero_()
        teachers.b3 += constants[:, None, None]
    _, tracks = evaluate(teachers, clean, flights=2, steps=3, record=True)
    expected = np.tanh(constants.numpy()).repeat(2)[:, None]
    assert np.allclose(tracks["action"][:, 0], expected, atol=1e-6)


# ------------------------------------------------------------------ observers

class Order(Observer):
    "Which moments it was told of"
    def __init__(self): self.told = []
    def begin(self, flight): self.told.append("begin")
    def before_step(self, flight): self.told.append((flight.step, "before"))
    def after_step(self, flight): self.told.append((flight.step, "after"))
    def end(self, flight): self.told.append("end")


def test_observers_are_told_in_order(clean):
    order = Order()
    rollout(fall, Simulator(clean), 2, [order])
    steps = [(0, "before"), (0, "after"), (1, "before"), (1, "after")]
    assert order.told == ["begin", *steps, "end"]


def test_a_roll_out_ends_with_its_last_flight_or_not(clean):
    "With `early_stop=False` every step is flown, as recording of hidden states needs it"
    short, whole = Order(), Order()
    assert not rollout(fall, Simulator(clean), 300, [short]).any()
    rollout(fall, Simulator(clean), 300, [whole], early_stop=False)
    assert len(short.told) < 500 < len(whole.told) == 602


def test_what_comes_after_the_end_is_recorded_on_demand(clean):
    usual, all_of_it = Tracks("position"), Tracks("position", after_end=True)
    rollout(fall, Simulator(clean), 300, [usual, all_of_it], early_stop=False)
    flown, whole = usual.arrays["position"], all_of_it.arrays["position"]
    assert np.isnan(flown[:, -1]).all() and np.isfinite(whole).all()
    kept = np.isfinite(flown)
    assert np.array_equal(flown[kept], whole[kept])


def test_hidden_states_are_those_of_a_plain_loop(published, clean):
    states, simulator = HiddenStates([2, 5]), Simulator(clean, seed=2)
    rollout(published, Simulator(clean, seed=2), 5, [states])
    published.reset()
    for t in range(5):
        simulator.step(published.evaluate_step(simulator.observe()))
        if t + 1 not in (2, 5): continue
        expected = published.get_hidden_state()[0].numpy()
        assert np.array_equal(states.hidden[:, (t + 1) // 5], expected)


def test_a_flight_may_begin_with_a_hidden_state(published, clean):
    "Two steps, then three more from the same state and hidden state: as five in a row"
    whole, rest, simulator = Tracks("action"), Tracks("action"), Simulator(clean, seed=2)
    rollout(published, Simulator(clean, seed=2), 5, [whole])
    rollout(published, simulator, 2)
    rollout(published, simulator, 3, [rest], hidden=published.get_hidden_state())
    assert np.array_equal(whole.arrays["action"][:, 2:], rest.arrays["action"])


def test_torch_and_l2f_agree_on_what_is_counted(published, clean):
    "The same loop and the same observers in two simulators: means over drones are alike"
    means = []
    for simulator in (Simulator(clean, seed=1), TorchSimulator(clean, seed=1)):
        statistics = FlightStatistics()
        rollout(published, simulator, observers=[statistics])
        means.append(statistics.total[statistics.alive].mean())
    assert abs(means[0] - means[1]) < 60


# ------------------------------------------------------------------ bad input

def nan(observation): return np.full((len(observation), 4), np.nan)


BAD = {
    "evaluate-number-of-teachers":
        (lambda c: evaluate(Teachers(3), c),
         "policy 'policy' cannot fly: there are 3 teachers for 12 drones"),
    "evaluate-observed-values":
        (lambda c: evaluate(Teachers(12, obs_dim=25), c),
         "the policy observes 25 values; it must be 22, 26"),
    "evaluate-not-a-policy": (lambda c: evaluate("student", c), "cannot fly a str"),
    "evaluate-nan-action":
        (lambda c: evaluate(nan, c), "cannot fly: action of drone 0, motor 0 is nan"),
    "evaluate-action-shape":
        (lambda c: evaluate(lambda obs: obs, c), r"cannot fly: action has shape \(12, 22\)"),
    "evaluate-no-steps":
        (lambda c: evaluate(untrained_policy(), c, steps=0),
         "steps is 0; it must be a whole number, 1 or more"),
    "evaluate-flights":
        (lambda c: evaluate(untrained_policy(), c, flights=1.5), "flights is 1.5"),
    "evaluate-seed": (lambda c: evaluate(untrained_policy(), c, seed=-3), "seed is -3"),
    "evaluate-no-drones": (lambda c: evaluate(untrained_policy(), []), "there are no drones"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input(clean, call, message):
    with pytest.raises(ValueError, match=message) as caught: call(clean)
    assert "\n" not in str(caught.value)


def test_threads_and_random_state_are_left_alone(clean):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    untrained_policy()
    with pytest.raises(EvaluationError): evaluate(lambda obs: obs, clean)
    assert torch.get_num_threads() == threads and torch.equal(state, torch.get_rng_state())
