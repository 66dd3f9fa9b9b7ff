"How far a file may differ: honest files of any policy pass, wrong ones of any policy do not"
import numpy as np
import pytest
import torch

from raptor_nb.policy import PolicyError, RaptorPolicy, read_hdf5
from raptor_nb.targets.artefact import Artefact, ExportError, gates, trial_inputs
from raptor_nb.targets.c import CPolicy
from raptor_nb.targets.onnx import OnnxPolicy
from raptor_nb.targets.registry import TARGETS, verify
from raptor_nb.targets.tolerance import changed_copies, comparable, example, fly_copies

pytest.importorskip("onnx", reason="needs the extra raptor-nb[export]")
pytest.importorskip("onnxruntime", reason="needs the extra raptor-nb[export]")
FILES = "h5", "onnx", "sequence", "json", "c", "px4"


def fed_back(factor):
    "The student with what its hidden state feeds back to itself enlarged: rounding grows faster"
    policy = RaptorPolicy.pretrained().cpu_copy()
    with torch.no_grad(): policy.gru.gru.weight_hh_l0 *= factor
    return policy


def random_policy(scale, factor):
    torch.manual_seed(1)
    policy = RaptorPolicy()
    with torch.no_grad():
        for w in policy.parameters(): w.normal_(std=scale)
        policy.gru.gru.weight_hh_l0 *= factor
    return policy


POLICIES = {"shipped": RaptorPolicy.pretrained, "published": RaptorPolicy.published,
            "lively": lambda: fed_back(1.3), "chaotic": lambda: fed_back(2.),
            "random": lambda: random_policy(.3, 3), "large": lambda: random_policy(1., 1)}


@pytest.fixture(scope="module")
def policies(): return {name: make() for name, make in POLICIES.items()}


def written(policy, target, folder):
    path = folder / f"p{TARGETS[target].ending}"
    TARGETS[target].write(policy, path, None, "auto")
    return path


@pytest.mark.parametrize("name", POLICIES)
def test_honest_files_are_accepted(policies, tmp_path, name):
    for target in FILES:
        table = verify(written(policies[name], target, tmp_path), policies[name], batches=(1, 8))
        assert (table.difference <= table.allowed).all()
        assert np.isfinite(table.single_step).all()
    if name in ("shipped", "published"): assert (table.compared == 500).all()
    if name == "chaotic": assert table.compared.min() < 100


def test_a_lively_policy_is_beyond_any_fixed_tolerance(policies):
    "And no tolerance is: an honest file of it differs by more than a wrong one of the shipped student"
    wrong = policies["shipped"].cpu_copy()
    with torch.no_grad(): wrong.gru.gru.weight_hh_l0[20, 3] *= 1 + 1e-3
    gap = lambda policy, other: np.abs(policy.replay(given) - other).max()
    given = trial_inputs("flight", 500, 64, policy=policies["lively"])
    honest = gap(policies["lively"], fly_copies(policies["lively"], given, 2**-20)[0].values)
    given = trial_inputs("flight", 500, 64, policy=policies["shipped"])
    assert honest > 10 * gap(policies["shipped"], wrong.replay(given)) > 1e-4


def swap(w): w[:] = torch.cat([w[16:32], w[:16], w[32:]])
def transpose(w): w[32:] = w[32:].T.clone()
def halve(w): w[:] = w.half().float()
def one_weight(w): w.view(-1)[w.abs().argmax()] *= 1 + 1e-3
def add(w): w[3] += .01


DAMAGES = {"one-weight": (one_weight, "gru.gru.weight_hh_l0"),
           "one-weight-of-the-input": (one_weight, "input_layer.linear.weight"),
           "one-weight-of-the-output": (one_weight, "output_layer.linear.weight"),
           "swapped-gates": (swap, "gru.gru.weight_ih_l0"),
           "transposed": (transpose, "gru.gru.weight_hh_l0"),
           "bias": (add, "gru.gru.bias_ih_l0"), "output-bias": (add, "output_layer.linear.bias"),
           "initial-hidden-state": (add, "gru.initial_hidden_state"),
           "float16": (halve, "gru.gru.weight_hh_l0")}


@pytest.mark.parametrize("name", ["shipped", "published", "lively", "chaotic"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_files_are_refused(policies, tmp_path, name, damage):
    change, where = DAMAGES[damage]
    wrong = policies[name].cpu_copy()
    with torch.no_grad(): change(wrong.state_dict()[where])
    for target in FILES:
        path = written(wrong, target, tmp_path)
        with pytest.raises(ExportError, match="is not this policy: on "):
            verify(path, policies[name], batches=(4,))
        if target == "onnx":
            with pytest.raises(ExportError, match="is not this policy: on "):
                verify(path, policies[name], steps=50, batches=(1,))


class Keeps(OnnxPolicy):
    "Does not forget at the start of a flight"
    def reset(self, batch_size=None):
        if batch_size is not None or self._hidden is None: super().reset(batch_size)


class Forgets(OnnxPolicy):
    "Begins a flight with every step"
    def evaluate_step(self, observation):
        action = super().evaluate_step(observation)
        if len(observation) < 100: self.reset()
        return action


@pytest.mark.parametrize("name", ["shipped", "lively", "chaotic"])
@pytest.mark.parametrize("kind", [Keeps, Forgets])
def test_a_hidden_state_that_is_not_kept_or_not_reset_is_found(policies, tmp_path, name, kind):
    flyer = kind(written(policies[name], "onnx", tmp_path))
    flyer.evaluate_step(trial_inputs("random", 1, 4)[0])
    with pytest.raises(ExportError, match="actions differ by .* at step [01], "):
        verify(flyer, policies[name], batches=(4,))


class Plain:
    "Flies and says nothing of its hidden state"
    def __init__(self, policy): self.policy = policy
    def reset(self): self.policy.reset()
    def evaluate_step(self, observation): return self.policy.evaluate_step(observation)


def test_what_hides_its_hidden_state_is_compared_as_far_as_flights_can_be(policies):
    ours = policies["shipped"]
    assert verify(Plain(ours.cpu_copy()), ours, batches=(4,)).single_step.isna().all()
    sentence = r"Plain cannot be compared with this policy on 500 steps \(flight inputs, batch " \
               r"of 4\): from step \d+ on rounding alone decides the actions"
    chaotic = policies["chaotic"]
    with pytest.raises(ExportError, match=sentence):
        verify(Plain(chaotic.cpu_copy()), chaotic, batches=(4,))
    assert len(verify(Plain(chaotic.cpu_copy()), chaotic, steps=12, batches=(4,))) == 4


def test_the_first_copy_is_the_policy_and_the_others_are_off_by_the_unit(policies):
    g = gates(policies["shipped"])
    copies = changed_copies(g, 1e-3)
    for name, w in g.items():
        exact, changed = copies[name][0].reshape(w.shape), copies[name][1:].reshape(8, *w.shape)
        assert np.array_equal(exact, w)
        assert np.allclose(np.abs(changed - w), 1e-3 * np.abs(w), rtol=1e-9)
    signs = np.sign(copies["W_in"][1:] - copies["W_in"][0])
    assert abs(signs.mean()) < .1 and len({s.tobytes() for s in signs}) == 8


def test_what_is_allowed_is_in_proportion_to_the_unit_and_never_falls(policies):
    given = trial_inputs("random", 100, 3)
    fine, coarse = (fly_copies(policies["shipped"], given, u)[0] for u in (1e-7, 1e-6))
    assert np.allclose(coarse.allowed, 10 * fine.allowed, rtol=.01)
    assert (np.diff(fine.allowed) >= 0).all() and comparable(fine).all()


@pytest.mark.parametrize("name", POLICIES)
def test_foundation_policy_accepts_the_example(policies, tmp_path, name):
    foundation = pytest.importorskip("foundation_policy", reason="needs raptor-nb[sim]")
    path = written(policies[name], "h5", tmp_path)
    given, action = read_hdf5(path)[1]
    theirs = foundation.load(path)          # its own check: 1e-6 on average
    assert np.abs(theirs.evaluate(given) - action).mean() < 5e-7


def test_the_example_ends_before_readers_disagree(policies):
    lengths = [len(example(policies[name], 200, 2)[0]) for name in ("shipped", "lively", "chaotic")]
    assert lengths[0] == 200 and lengths == sorted(lengths, reverse=True) and lengths[2] >= 1


@pytest.mark.parametrize("name", ["shipped", "lively", "chaotic"])
def test_the_self_test_of_the_header_has_the_tolerance_of_its_policy(policies, tmp_path, name):
    flyer = CPolicy(written(policies[name], "c", tmp_path))
    assert flyer.self_test() < flyer.tolerance / 3 and flyer.tolerance <= 1e-4
    assert (len(flyer.numbers["test_steps"]) == 9) == (name == "shipped")
    text = (tmp_path / "p.h").read_text()
    one = gates(policies[name])["U_n"][0, 0]
    bent = text.replace(f"{one:.9g}f", f"{one + .01:.9g}f")
    assert bent != text
    (tmp_path / "p.h").write_text(bent)
    flyer = CPolicy(tmp_path / "p.h")
    assert flyer.self_test() > flyer.tolerance


def test_files_show_their_hidden_state(policies, tmp_path):
    "As RaptorPolicy does: a flight can be left and taken up again"
    ours, given = policies["shipped"], trial_inputs("random", 20, 3)
    for target in FILES:
        flyer = TARGETS[target].open(written(ours, target, tmp_path))
        flyer.reset()
        for o in given[:10]: flyer.evaluate_step(o)
        kept = np.asarray(flyer.get_hidden_state())
        want = flyer.evaluate_step(given[10])
        for o in given[11:]: flyer.evaluate_step(o)
        flyer.set_hidden_state(kept)
        assert np.array_equal(flyer.evaluate_step(given[10]), want) and kept.shape == (1, 3, 16)
        flyer.set_hidden_state(None)
        first = flyer.evaluate_step(given[0])
        flyer.reset()
        assert np.array_equal(flyer.evaluate_step(given[0]), first)
        flyer.set_hidden_state(kept)
        with pytest.raises(PolicyError, match="holds 2 drones"): flyer.evaluate_step(given[0, :2])


def test_int8_is_as_coarse_as_its_steps():
    from raptor_nb.targets.tflite import UNITS
    assert UNITS["float32"] == Artefact.unit < UNITS["float16"] < UNITS["int8"]
