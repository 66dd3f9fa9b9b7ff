"Policy: the published network number by number, memory and resets, files in and out, stacks of teachers"
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from raptor_nb.policy import Dense, GRU, PolicyError, RaptorPolicy, Teachers
from raptor_nb.policy import published_checkpoint, read_hdf5

foundation_policy = pytest.importorskip('foundation_policy', reason='the published policy is what ours is compared with')


@pytest.fixture(scope='module')
def published(): return RaptorPolicy.published()


@pytest.fixture(scope='module')
def example(): return read_hdf5(published_checkpoint())[1]


# ---- the published network

def test_published_checkpoint_within_one_millionth(published, example):
    assert example[0].shape == (500, 2, 22) and example[1].shape == (500, 2, 4)
    assert published.largest_difference(*example) <= 1e-6


def test_double_precision_agrees_too(published, example):
    policy = RaptorPolicy().double()
    policy.load_state_dict(published.state_dict())
    with torch.no_grad():
        ours = policy(torch.from_numpy(example[0]).double().transpose(0, 1))[0].transpose(0, 1).numpy()
    assert np.abs(ours - example[1]).max() <= 1e-6


def test_written_file_passes_the_loader_of_foundation_policy(published, example, tmp_path):
    theirs = foundation_policy.load(published.to_hdf5(tmp_path / 'policy.h5')) # asserts its example by itself
    theirs.reset()
    assert np.abs(theirs.evaluate(example[0]) - example[1]).max() <= 1e-6
    random = RaptorPolicy()
    random.gru.initial_hidden_state.data.normal_()
    theirs, x = foundation_policy.load(random.to_hdf5(tmp_path / 'random.h5')), np.random.default_rng(1).normal(size=(50, 3, 22)).astype(np.float32)
    assert random.largest_difference(x, theirs.evaluate(x)) <= 1e-6


def test_written_file_has_every_group_and_attribute(published, example, tmp_path):
    def tree(path):
        out = {}
        with h5py.File(path) as f:
            f.visititems(lambda name, o: out.update({name: (dict(o.attrs), None if isinstance(o, h5py.Group) else (o.shape, str(o.dtype)))}))
            return out, {n: f[n][()] for n, (_, data) in out.items() if data and n.startswith('actor')}
    name = h5py.File(published_checkpoint())['actor'].attrs['checkpoint_name']
    ours, theirs = tree(published.to_hdf5(tmp_path / 'policy.h5', example[0], checkpoint_name=name)), tree(published_checkpoint())
    assert ours[0] == theirs[0]
    assert all(np.array_equal(ours[1][n], theirs[1][n]) for n in theirs[1])


def test_stands_in_for_foundation_policy(published):
    theirs, rng = foundation_policy.Raptor(), np.random.default_rng(0)
    for batch in (1, 7):
        theirs.reset(), published.reset()
        for _ in range(100):
            x = rng.normal(size=(batch, 22)).astype(np.float32)
            ours = published.evaluate_step(x)
            assert isinstance(ours, np.ndarray)
            assert ours.dtype == np.float32
            assert ours.shape == (batch, 4)
            assert np.abs(ours - theirs.evaluate_step(x)).max() <= 2e-6


def test_2084_parameters():
    policy = RaptorPolicy()
    sizes = {n: p.numel() for n, p in policy.named_parameters()}
    assert sum(sizes.values()) == 2084 and sizes['gru.initial_hidden_state'] == 16
    assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == 2068
    assert {'input_layer.linear.weight', 'gru.gru.weight_ih_l0', 'output_layer.linear.bias'} < set(sizes)


def test_gru_by_hand():
    "One value, all weights 1, biases 0: r = z = s(x + h), n = tanh(x + r h), h' = z h + (1 - z) n"
    gru = GRU(1, 1)
    for name, p in gru.gru.named_parameters(): p.data.fill_(float('weight' in name))
    x, h = .5, .25
    r = z = 1 / (1 + np.exp(-(x + h)))
    want = z * h + (1 - z) * np.tanh(x + r * h)
    for reset in (None, torch.zeros(1, 1, dtype=torch.bool)):
        assert gru(torch.full((1, 1, 1), x), torch.full((1, 1, 1), h), reset)[0].item() == pytest.approx(want, abs=1e-6)
    gru.initial_hidden_state.data.fill_(h)
    assert gru(torch.full((1, 1, 1), x), torch.full((1, 1, 1), 9.), torch.ones(1, 1, dtype=torch.bool))[0].item() == pytest.approx(want, abs=1e-6)


# ---- memory

def test_a_sequence_is_its_steps(published):
    x = torch.randn(5, 40, 22)
    with torch.no_grad():
        whole, final = published(x)
        hidden, steps = None, []
        for t in range(40):
            action, hidden = published(x[:, t], hidden)
            steps.append(action)
    assert (whole - torch.stack(steps, 1)).abs().max() < 2e-6
    assert (final - hidden).abs().max() < 2e-6


@pytest.mark.parametrize('rate', [.002, .05, 1.])
def test_a_reset_is_a_new_flight(rate):
    torch.manual_seed(3)
    policy = RaptorPolicy().double()
    policy.gru.initial_hidden_state.data.normal_()
    x, reset, hidden = torch.randn(6, 80, 22).double(), torch.rand(6, 80) < rate, torch.randn(1, 6, 16).double()
    actions, final = policy(x, hidden, reset)
    for b in range(6):
        cuts = sorted({0, 80, *reset[b].nonzero().flatten().tolist()})
        for a, z in zip(cuts, cuts[1:]):
            piece, last = policy(x[b:b + 1, a:z], None if reset[b, a] else hidden[:, b:b + 1].contiguous())
            assert (actions[b, a:z] - piece[0]).abs().max() < 1e-12
        assert (final[:, b] - last[:, 0]).abs().max() < 1e-12


def test_gradients_stop_at_a_reset_and_agree_with_the_kernel():
    torch.manual_seed(0)
    policy, x = RaptorPolicy().double(), torch.randn(3, 30, 22, dtype=torch.float64, requires_grad=True)
    reset = torch.zeros(3, 30, dtype=torch.bool)
    reset[:, 10] = True
    looped, = torch.autograd.grad(policy(x, reset=reset)[0][:, 10:].square().sum(), x)
    kernel, = torch.autograd.grad(policy(x[:, 10:])[0].square().sum(), x)
    assert (looped[:, :10] == 0).all()
    assert (looped - kernel).abs().max() < 1e-12
    assert looped[:, 10:].abs().min(0).values.max() > 0


def test_hidden_state_can_be_taken_out_and_put_back(published):
    x = np.random.default_rng(0).normal(size=(30, 4, 22)).astype(np.float32)
    published.reset()
    assert published.get_hidden_state() is None
    for o in x[:20]: published.evaluate_step(o)
    kept = published.get_hidden_state()
    first = [published.evaluate_step(o) for o in x[20:]]
    published.set_hidden_state(kept)
    assert np.array_equal(first, [published.evaluate_step(o) for o in x[20:]])
    published.set_hidden_state(kept.numpy())
    assert np.array_equal(first[0], published.evaluate_step(x[20]))
    published.reset()
    assert not np.allclose(first[0], published.evaluate_step(x[20]))
    published.reset(batch_size=4)
    assert published.get_hidden_state().shape == (1, 4, 16)


def test_tensors_come_back_as_tensors_of_their_own_precision_or_ours(published):
    x = torch.randn(3, 22)
    published.reset()
    action = published.evaluate_step(x)
    assert isinstance(action, torch.Tensor) and not action.requires_grad
    published.reset()
    assert np.allclose(published.evaluate_step(x.double().numpy()), action.numpy(), atol=1e-6)
    published.reset()
    assert np.allclose(published.evaluate_step(x.numpy().astype('>f4')), action.numpy(), atol=1e-6)
    readonly = x.numpy().copy()
    readonly.flags.writeable = False
    published.reset()
    assert np.allclose(published.evaluate_step(readonly), action.numpy(), atol=1e-6)


# ---- bad input

nan = np.zeros((2, 22), np.float32)
nan[1, 3] = np.nan
BAD_OBSERVATIONS = [
    pytest.param(nan, r"observation holds nan at \(1, 3\); all values must be finite",
                 id='nan-observation'),
    pytest.param(np.full((1, 22), np.inf, np.float32), r"observation holds inf at \(0, 0\)",
                 id='infinite-observation'),
    pytest.param(np.full((1, 22), 1e300), r"observation holds 1e\+300 at \(0, 0\)",
                 id='observation-beyond-float32'),
    pytest.param(np.zeros(22, np.float32),
                 r"observation has shape \(22,\); it must be \(batch, 22\)",
                 id='observation-without-batch'),
    pytest.param(np.zeros((1, 26), np.float32),
                 r"observation has shape \(1, 26\); it must be \(batch, 22\)",
                 id='observation-of-26'),
    pytest.param(np.zeros((0, 22), np.float32), r"observation has shape \(0, 22\)",
                 id='empty-observation'),
    pytest.param(np.zeros((1, 22), int), r"observation has dtype int64; it must be floating point",
                 id='observation-of-integers'),
    pytest.param(torch.zeros(1, 22, dtype=torch.bool),
                 r"observation has dtype torch\.bool; it must be floating point",
                 id='observation-of-booleans'),
    pytest.param(np.full((1, 22), 'x'), r"observation has dtype <U1; it must be floating point",
                 id='observation-of-texts'),
    pytest.param([[0.] * 22], r"observation is a list; it must be a numpy array or a torch tensor",
                 id='observation-as-list'),
]


@pytest.mark.parametrize('observation, message', BAD_OBSERVATIONS)
def test_bad_observation_is_refused_and_the_flight_goes_on(published, observation, message):
    x = np.ones((2, 22), np.float32)
    published.reset(), published.evaluate_step(x)
    before = published.get_hidden_state()
    with pytest.raises(PolicyError, match=message): published.evaluate_step(observation)
    assert torch.equal(before, published.get_hidden_state())


@pytest.mark.parametrize('call, message', [
    pytest.param(lambda p: (p.reset(), p.evaluate_step(np.zeros((2, 22))), p.evaluate_step(np.zeros((3, 22)))),
                 r"observation holds 3 drones but the hidden state 2; call reset\(\)",
                 id='another-number-of-drones'),
    pytest.param(lambda p: p.set_hidden_state(torch.zeros(1, 2, 17)),
                 r"hidden state has shape \(1, 2, 17\); it must be \(1, batch, 16\)",
                 id='hidden-state-shape'),
    pytest.param(lambda p: p(torch.zeros(2, 5, 21)),
                 r"observation has shape \(2, 5, 21\); it must be \(batch, 22\) or \(batch, "
                 r"time, 22\)", id='sequence-shape'),
    pytest.param(lambda p: p(torch.zeros(2, 5, 22), torch.zeros(1, 3, 16)),
                 r"hidden state has shape \(1, 3, 16\); for a batch of 2 it must be \(1, 2, 16\)",
                 id='hidden-of-another-batch'),
    pytest.param(lambda p: p(torch.zeros(2, 5, 22), reset=torch.zeros(2, 4, dtype=torch.bool)),
                 r"reset has shape \(2, 4\).*it must be \(2, 5\) of torch\.bool", id='reset-shape'),
    pytest.param(lambda p: p(torch.zeros(2, 5, 22), reset=torch.zeros(2, 5)),
                 r"reset has shape \(2, 5\) and dtype torch\.float32", id='reset-dtype'),
    pytest.param(lambda p: Dense(2, 2, 'gelu'),
                 r"activation is 'gelu'; it must be one of identity, relu, tanh",
                 id='unknown-activation'),
    pytest.param(lambda p: RaptorPolicy(obs_dim=0), r"obs_dim is 0; it must be a whole number",
                 id='zero-obs-dim'),
])
def test_bad_call(published, call, message):
    with pytest.raises(PolicyError, match=message): call(published)


def with_weights(path, change, kind='raptor_nb policy'):
    tensors = {k: v.clone() for k, v in RaptorPolicy().state_dict().items()}
    change(tensors)
    save_file(tensors, path, {'kind': kind, 'obs_dim': '22', 'hidden_dim': '16', 'action_dim': '4'})


BAD_WEIGHTS = [
    pytest.param(lambda p: p.write_bytes(b''), r"is empty", id='empty-weights'),
    pytest.param(lambda p: (RaptorPolicy().save(p), p.write_bytes(p.read_bytes()[:3000])),
                 r"truncated", id='truncated-weights'),
    pytest.param(lambda p: shutil.copy(published_checkpoint(), p),
                 r"is an HDF5 file; it must be a safetensors file", id='hdf5-as-safetensors'),
    pytest.param(lambda p: torch.save({'a': torch.zeros(2)}, p), r"it must be a safetensors file",
                 id='pickle-as-safetensors'),
    pytest.param(lambda p: with_weights(p, lambda t: t['output_layer.linear.weight'].fill_(float('nan'))),
                 r"output_layer\.linear\.weight' holds 64 values that are not finite",
                 id='nan-weights'),
    pytest.param(lambda p: with_weights(p, lambda t: t.update({'input_layer.linear.weight': torch.zeros(16, 26)})),
                 r"weight input_layer\.linear\.weight has shape \(16, 26\); it must be \(16, 22\)",
                 id='wrong-weight-shape'),
    pytest.param(lambda p: with_weights(p, lambda t: t.pop('gru.initial_hidden_state')),
                 r"weight gru\.initial_hidden_state is missing", id='missing-weight'),
    pytest.param(lambda p: with_weights(p, lambda t: t.update(extra=torch.zeros(1))),
                 r"weight extra is unknown", id='unknown-weight'),
    pytest.param(lambda p: Teachers(2).save(p),
                 r"holds 'raptor_nb teachers'; it must hold 'raptor_nb policy'",
                 id='teachers-as-policy'),
    pytest.param(lambda p: save_file({'a': torch.zeros(1)}, p), r"holds 'tensors without a kind'",
                 id='foreign-safetensors'),
]


@pytest.mark.parametrize('write, message', BAD_WEIGHTS)
def test_bad_weight_file(tmp_path, write, message):
    path = tmp_path / 'student.safetensors'
    write(path)
    before = path.read_bytes()
    with pytest.raises(PolicyError, match=message) as caught: RaptorPolicy.load(path)
    assert '\n' not in str(caught.value) and path.read_bytes() == before


def edited(path, edit):
    shutil.copy(published_checkpoint(), path)
    with h5py.File(path, 'a') as f: edit(f)


def replace(f, name, values):
    del f[name]
    f[name] = values


BAD_HDF5 = [
    pytest.param(lambda p: p.write_bytes(b'no'),
                 r"is not a readable HDF5 file; it may be truncated or of another type",
                 id='text-as-hdf5'),
    pytest.param(lambda p: p.write_bytes(Path(published_checkpoint()).read_bytes()[:4000]),
                 r"is not a readable HDF5 file", id='truncated-hdf5'),
    pytest.param(lambda p: edited(p, lambda f: f.__delitem__('actor')),
                 r"actor/layers/0, 1 and 2 are missing", id='hdf5-without-actor'),
    pytest.param(lambda p: edited(p, lambda f: f.__delitem__('actor/layers/1/weights_hidden/parameters')),
                 r"actor/layers/1/weights_hidden/parameters is missing", id='hdf5-without-weight'),
    pytest.param(lambda p: edited(p, lambda f: f['actor/layers/0'].attrs.update(activation_function='TANH')),
                 r"layer 0 is .*it must be .*RELU", id='hdf5-activation'),
    pytest.param(lambda p: edited(p, lambda f: replace(f, 'actor/layers/1/weights_input/parameters', np.zeros((48, 15), 'f4'))),
                 r"weight gru\.gru\.weight_ih_l0 has shape \(48, 15\); it must be \(48, 16\)",
                 id='hdf5-wrong-shape'),
    pytest.param(lambda p: edited(p, lambda f: f['actor/layers/2/weights/parameters'].write_direct(np.full((4, 16), np.nan, 'f4'))),
                 r"actor/layers/2/weights/parameters holds NaN", id='hdf5-nan'),
    pytest.param(lambda p: edited(p, lambda f: f['actor/layers/2/biases/parameters'].write_direct(np.ones((1, 4), 'f4'))),
                 r"weights do not reproduce its example; the file is damaged", id='hdf5-altered'),
]


@pytest.mark.parametrize('write, message', BAD_HDF5)
def test_bad_checkpoint(tmp_path, write, message):
    path = tmp_path / 'checkpoint.h5'
    write(path)
    with pytest.raises(PolicyError, match=message) as caught: RaptorPolicy.from_hdf5(path)
    assert '\n' not in str(caught.value)


def test_missing_files(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nosuch.safetensors"):
        RaptorPolicy.load(tmp_path / 'nosuch.safetensors')
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*nosuch.h5"):
        RaptorPolicy.from_hdf5(tmp_path / 'nosuch.h5')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"the published policy is not installed; pip install foundation-policy==1\.0\.2"):
        RaptorPolicy.published()


def test_pretrained_says_when_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr('raptor_nb.policy.resources.files', lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no trained student"):
        RaptorPolicy.pretrained()
    (tmp_path / 'weights').mkdir()
    RaptorPolicy().save(tmp_path / 'weights' / 'student.safetensors')
    assert RaptorPolicy.pretrained().obs_dim == 22


def test_older_students_are_loaded_by_name():
    named, today = (p.state_dict() for p in (RaptorPolicy.pretrained("student"), RaptorPolicy.pretrained()))
    assert all(torch.equal(v, today[k]) for k, v in named.items())
    for name in ("v1", "real", "real-v1", "real32", "real32-v1", "real64"):
        assert RaptorPolicy.pretrained(name).obs_dim == 22
    with pytest.raises(PolicyError, match="no pretrained student 'v9'; choose one of student, v1, real"):
        RaptorPolicy.pretrained("v9")


def test_a_failed_write_keeps_the_old_file(published, tmp_path):
    path = tmp_path / 'policy.h5'
    published.to_hdf5(path)
    before = path.read_bytes()
    with pytest.raises(PolicyError, match=r"observation has shape"):
        published.to_hdf5(path, example=np.zeros((5, 2, 21)))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['policy.h5']


def test_round_trip_of_another_size(tmp_path):
    policy = RaptorPolicy(22, 32, 4)
    policy.gru.initial_hidden_state.data.normal_()
    for again in (RaptorPolicy.load(policy.save(tmp_path / 'a.safetensors')), RaptorPolicy.from_hdf5(policy.to_hdf5(tmp_path / 'a.h5'))):
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in policy.state_dict().items())


# ---- teachers

@pytest.mark.parametrize('activation', ['tanh', 'relu'])
def test_a_stack_is_its_networks(activation):
    torch.manual_seed(0)
    teachers, x = Teachers(5, activation=activation).double(), torch.randn(5, 7, 26).double()
    out = teachers(x)
    act = getattr(torch, activation)
    for d in range(5):
        h = act(x[d] @ teachers.w1[d] + teachers.b1[d])
        h = act(h @ teachers.w2[d] + teachers.b2[d])
        assert (out[d] - torch.tanh(h @ teachers.w3[d] + teachers.b3[d])).abs().max() < 1e-12
    assert sum(p.numel() for p in teachers.parameters()) == 5 * (26 * 64 + 64 + 64 * 64 + 64 + 64 * 4 + 4)
    assert out.abs().max() <= 1


def test_teachers_are_initialised_as_linear_layers():
    teachers = Teachers(200)
    assert teachers.w1.std().item() == pytest.approx(26 ** -.5 / 3 ** .5, rel=.02)
    assert teachers.w2.abs().max() <= 64 ** -.5


def test_select_concat_and_files(tmp_path):
    teachers, x = Teachers(6, ids=[3, 9, 4, 100, 7, 0], activation='relu'), torch.randn(6, 2, 26)
    some = teachers.select([100, 3])
    assert some.ids == (100, 3) and torch.allclose(some(x[[3, 0]]), teachers(x)[[3, 0]], atol=1e-6)
    assert some.w1.data_ptr() != teachers.w1.data_ptr()
    path = teachers.save(tmp_path / 'teachers.safetensors')
    again = Teachers.load(path)
    assert again.ids == teachers.ids
    assert again.activation == 'relu'
    assert torch.equal(again(x), teachers(x))
    assert Teachers.load(path, ids=[7]).ids == (7,)
    whole = Teachers.concat([teachers.select([0, 7]), some])
    assert whole.ids == (0, 7, 100, 3) and torch.equal(whole.b3[3], teachers.b3[0])
    assert all(p.requires_grad and p.is_leaf for t in (again, some, whole) for p in t.parameters())
    state = torch.get_rng_state()
    teachers.select([3]), Teachers.load(path)
    assert torch.equal(state, torch.get_rng_state())


def test_a_stack_is_indexed_by_place():
    teachers, x = Teachers(4, ids=[3, 9, 4, 7]), torch.randn(4, 2, 26)
    assert (teachers[1:3].ids, teachers[[3, 0]].ids) == ((9, 4), (7, 3))
    twice = teachers[[2, 2]]
    assert twice.ids == (0, 1) and torch.allclose(twice(x[[2, 2]]), teachers(x)[[2, 2]])
    with pytest.raises(IndexError): teachers[[4]]


@pytest.mark.parametrize('call, message', [
    pytest.param(lambda: Teachers(3).select([5]),
                 r"there is no teacher for drone 5; this stack holds 3 drones: 0, 1, 2",
                 id='teacher-id-out-of-range'),
    pytest.param(lambda: Teachers(20).select([-1]),
                 r"there is no teacher for drone -1; this stack holds drones 0 to 19",
                 id='negative-teacher-id'),
    pytest.param(lambda: Teachers(3, ids=[1, 1, 2]), r"2 different ids were given for 3 teachers",
                 id='duplicate-teacher-ids'),
    pytest.param(lambda: Teachers(3, activation='gelu'),
                 r"activation is 'gelu'; it must be 'tanh' or 'relu'", id='teacher-activation'),
    pytest.param(lambda: Teachers(3)(torch.zeros(2, 1, 26)),
                 r"observation has shape \(2, 1, 26\); it must be \(3, flights, 26\)",
                 id='teacher-observation-shape'),
    pytest.param(lambda: Teachers.concat([Teachers(2), Teachers(2, hidden_dim=32, ids=[5, 6])]),
                 r"differ in shape or activation", id='teachers-of-different-shape'),
    pytest.param(lambda: Teachers.concat([Teachers(2), Teachers(2)]),
                 r"2 different ids were given for 4 teachers", id='teachers-that-share-a-drone'),
])
def test_bad_teachers(call, message):
    with pytest.raises(PolicyError, match=message): call()


@pytest.mark.parametrize('metadata, change, message', [
    pytest.param({'activation': 'tanh'}, {}, r"its metadata does not say ids and activation",
                 id='teachers-without-ids'),
    pytest.param({'ids': '[0, 1', 'activation': 'tanh'}, {},
                 r"its metadata does not say ids and activation", id='teachers-broken-ids'),
    pytest.param({'ids': '["a", 1]', 'activation': 'tanh'}, {},
                 r"its metadata does not say ids and activation", id='teachers-text-ids'),
    pytest.param({'ids': '[0, 1, 2]', 'activation': 'tanh'}, {},
                 r"3 different ids were given for 2 teachers", id='teachers-other-ids'),
    pytest.param({'ids': '[0, 1]', 'activation': 'tanh'}, {'w2': torch.zeros(2, 64, 32)},
                 r"weight w2 has shape \(2, 64, 32\); it must be \(2, 64, 64\)",
                 id='teachers-wrong-shape'),
    pytest.param({'ids': '[0, 1]', 'activation': 'tanh'}, {'w1': torch.zeros(26, 64)},
                 r"three dimensions are missing", id='teachers-not-stacked'),
])
def test_bad_teacher_file(tmp_path, metadata, change, message):
    path = tmp_path / 'teachers.safetensors'
    save_file(Teachers(2).state_dict() | change, path, {'kind': 'raptor_nb teachers'} | metadata)
    with pytest.raises(PolicyError, match=message) as caught: Teachers.load(path)
    assert 'teachers.safetensors' in str(caught.value)
