"core.records: nothing is lost by a kill, a restart or a full disk; what cannot be read is refused in a sentence"
import csv
import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from raptor_nb.core.config import load_config
from raptor_nb.core.records import (Checkpoints, Live, Metrics, RecordError, WriteError, atomic, choose_device, file_hash, finished, get_logger,
                                    load_info, load_json, load_state, load_table, load_tensors, manifest_path, run_lock, save_json, save_state,
                                    save_table, save_tensors, write_manifest)

WEIGHTS = {'w': torch.arange(6.).reshape(2, 3), 'b': torch.ones(2)}


def python(code, *args, **kwargs):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}, **kwargs)


# ---- files that cannot be used

def corrupt(kind, folder):
    "A file of tensors that is wrong in the way named"
    path = folder/'weights.safetensors'
    save_tensors(path, WEIGHTS)
    whole = path.read_bytes()
    if kind == 'truncated': path.write_bytes(whole[:-4])
    if kind == 'header-only': path.write_bytes(whole[:40])
    if kind == 'three-bytes': path.write_bytes(whole[:3])
    if kind == 'empty': path.write_bytes(b'')
    if kind == 'longer': path.write_bytes(whole + b'0000')
    if kind == 'zip': torch.save(WEIGHTS, path)
    if kind == 'pickle': path.write_bytes(pickle.dumps([1, 2, 3]*10))
    if kind == 'hdf5': path.write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(100))
    if kind == 'json': path.write_text('{"w": [1, 2, 3, 4, 5, 6, 7, 8, 9]}')
    if kind == 'text': path.write_text('weights of the student, second try')
    if kind == 'nan': save_tensors(path, WEIGHTS | {'b': torch.tensor([1., float('nan')])})
    if kind == 'infinite': save_tensors(path, WEIGHTS | {'b': torch.tensor([-float('inf'), float('inf')])})
    if kind == 'shape': save_tensors(path, WEIGHTS | {'w': torch.ones(3, 2)})
    if kind == 'missing-name': save_tensors(path, {'b': torch.ones(2)})
    if kind == 'extra-name': save_tensors(path, WEIGHTS | {'c': torch.ones(1)})
    if kind == 'absent': path.unlink()
    if kind == 'folder': path.unlink(), path.mkdir()
    return path


@pytest.mark.parametrize('kind, error, sentence', [
    pytest.param('truncated', RecordError, r"weights.safetensors' is truncated or damaged; write it again", id='weights-truncated'),
    pytest.param('header-only', RecordError, r"is truncated or damaged", id='weights-cut-in-header'),
    pytest.param('three-bytes', RecordError, r"is truncated or damaged", id='weights-three-bytes'),
    pytest.param('longer', RecordError, r"is truncated or damaged", id='weights-with-a-tail'),
    pytest.param('empty', RecordError, r"is empty; it must be a safetensors file", id='weights-empty'),
    pytest.param('pickle', RecordError, r"is a pickle \(it is not read\); it must be", id='weights-raw-pickle'),
    pytest.param('zip', RecordError, r"is a zip archive, as torch.save writes \(pickled, so it is not read\)", id='weights-pickled'),
    pytest.param('hdf5', RecordError, r"is an HDF5 file; it must be a safetensors file", id='weights-hdf5'),
    pytest.param('json', RecordError, r"is JSON text; it must be a safetensors file", id='weights-json'),
    pytest.param('text', RecordError, r"weights.safetensors' is not a safetensors file", id='weights-text'),
    pytest.param('nan', RecordError, r"'b' holds 1 values that are not finite", id='weights-nan'),
    pytest.param('infinite', RecordError, r"'b' holds 2 values that are not finite", id='weights-infinite'),
    pytest.param('shape', RecordError, r"'w' has shape \(3, 2\); it must be \(2, 3\)", id='weights-wrong-shape'),
    pytest.param('missing-name', RecordError, r"has no 'w' \(shape \(2, 3\)\); it holds b", id='weights-name-missing'),
    pytest.param('extra-name', RecordError, r"holds 'c', which does not belong; expected: w, b", id='weights-name-too-many'),
    pytest.param('absent', FileNotFoundError, r"^no file '.*weights.safetensors'$", id='weights-absent'),
    pytest.param('folder', FileNotFoundError, r"it is a folder", id='weights-are-a-folder'),
])
def test_bad_tensors(tmp_path, kind, error, sentence):
    with pytest.raises(error, match=sentence): load_tensors(corrupt(kind, tmp_path), like=WEIGHTS)


def test_truncated_at_any_length_is_truncated(tmp_path):
    "A header's length can begin with any byte, that of a pickle or of other formats too"
    for names in (1, 8, 9, 10, 30):
        path = save_tensors(tmp_path/'w.safetensors', {f'{i:02d}': torch.ones(1) for i in range(names)})
        whole = path.read_bytes()
        for cut in (1, 7, 8, 9, 40, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.raises(RecordError, match='is truncated or damaged'): load_tensors(path)


def test_nan_can_be_asked_for(tmp_path):
    tensors, _ = load_tensors(corrupt('nan', tmp_path), finite=False)
    assert torch.isnan(tensors['b']).tolist() == [False, True]


@pytest.mark.parametrize('load, name, content, error, sentence', [
    pytest.param(load_json, 'x.json', b'{"a": [1, 2', RecordError, r"x.json' is not valid JSON \(line 1\).*it may be truncated", id='json-truncated'),
    pytest.param(load_json, 'x.json', b'\xff\xfe\x00\x01', RecordError, r"x.json' is not a text file", id='json-binary'),
    pytest.param(load_json, 'x.json', None, FileNotFoundError, r"no file '.*x.json'", id='json-absent'),
    pytest.param(load_table, 'x.parquet', b'PAR1xxxx', RecordError, r"x.parquet' is not a parquet table", id='parquet-truncated'),
    pytest.param(load_table, 'x.csv', b'', RecordError, r"x.csv' is not a csv table: no columns", id='csv-empty'),
    pytest.param(load_table, 'x.csv', None, FileNotFoundError, r"no table '.*x.csv'", id='table-absent'),
    pytest.param(Metrics, 'metrics.csv', b'step,loss\n0,many\n', RecordError, r"metrics.csv' holds text where numbers", id='metrics-with-words'),
    pytest.param(Metrics, 'metrics.csv', b'a,b\n0,1\n', RecordError, r"metrics.csv' has no column 'step'", id='metrics-of-something-else'),
    pytest.param(load_state, 'x.safetensors', 'tensors', RecordError, r"holds tensors but no checkpoint", id='checkpoint-is-plain-weights'),
])
def test_bad_content(tmp_path, load, name, content, error, sentence):
    path = tmp_path/name
    if content == 'tensors': save_tensors(path, WEIGHTS)
    elif content is not None: path.write_bytes(content)
    with pytest.raises(error, match=sentence): load(tmp_path if load is Metrics else path)


@pytest.mark.parametrize('write, sentence', [
    pytest.param(lambda d: save_json(d/'x.json', {'f': print}), r'cannot write a builtin_function_or_method as JSON', id='json-of-a-function'),
    pytest.param(lambda d: save_tensors(d/'x.safetensors', {'w': [1., 2.]}), r"cannot store 'w' .*it is a list; it must be a tensor", id='weights-of-a-list'),
    pytest.param(lambda d: save_state(d/'x.safetensors', {'a': [1, {'net': torch.nn.ReLU()}]}), r"cannot store state\['a'\]\[1\]\['net'\]: a ReLU", id='checkpoint-of-a-module'),
    pytest.param(lambda d: save_state(d/'x.safetensors', {'a': np.array(['x'])}), r"cannot store state\['a'\]: an array of <U1", id='checkpoint-of-words'),
    pytest.param(lambda d: save_table(d/'x.xlsx', pd.DataFrame()), r"the suffix is '.xlsx'; it must be .csv or .parquet", id='table-suffix'),
    pytest.param(lambda d: Checkpoints(d, keep=0), r'keep is 0; at least 1', id='keep-nothing'),
])
def test_bad_value(tmp_path, write, sentence):
    with pytest.raises(RecordError, match=sentence): write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('write', [
    pytest.param(lambda p: save_json(p/'x.json', 1), id='output-json-under-a-file'),
    pytest.param(lambda p: save_tensors(p/'x.safetensors', WEIGHTS), id='output-weights-under-a-file'),
    pytest.param(lambda p: Checkpoints(p/'run').save(1, {}), id='output-checkpoint-under-a-file'),
    pytest.param(lambda p: Metrics(p), id='output-metrics-under-a-file'),
    pytest.param(lambda p: get_logger('under_a_file', p), id='output-log-under-a-file'),
    pytest.param(lambda p: run_lock(p/'run').__enter__(), id='output-folder-is-a-file'),
])
def test_unwritable_output(tmp_path, write):
    (tmp_path/'file').write_text('mine')
    with pytest.raises(WriteError, match=r"^cannot write .*file.*: (not a directory|file exists); "): write(tmp_path/'file')
    assert (tmp_path/'file').read_text() == 'mine'


def test_a_device_is_not_replaced():
    with pytest.raises(WriteError, match="cannot write '/dev/full': it is there already and not a file"): save_json('/dev/full', 1)


@pytest.mark.parametrize('name, write', [
    pytest.param('w.safetensors', 'records.save_tensors(path, {"w": records.torch.ones(100_000)})', id='disk-full-weights'),
    pytest.param('w.json', 'records.save_json(path, list(range(100_000)))', id='disk-full-json'),
    pytest.param('w.parquet', 'records.save_table(path, records.pd.DataFrame({"a": records.np.random.rand(100_000)}))', id='disk-full-parquet'),
])
def test_full_disk_keeps_the_old_file(tmp_path, name, write):
    "A process that may not write more than 10 kB a file stands for a full disk"
    path = tmp_path/name
    path.write_text('old')
    code = f'''
import resource, signal, sys
from raptor_nb.core import records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
path = sys.argv[1]
try: {write}
except records.WriteError as e: print(e)
'''
    out, err = python(code, path).communicate(timeout=60)
    assert f"cannot write '{path}': file too large; nothing was overwritten" in out, out + err
    assert path.read_text() == 'old' and [p.name for p in tmp_path.iterdir()] == [name]


def test_no_space_left_is_said(tmp_path):
    with pytest.raises(WriteError, match="no space left on device; nothing was overwritten"):
        with atomic(tmp_path/'x') as tmp:
            tmp.unlink(), tmp.symlink_to('/dev/full')
            tmp.write_text('much')
    assert list(tmp_path.iterdir()) == []


# ---- whole or absent

def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = save_json(tmp_path/'x.json', 'old')
    process = python('''
import sys, time
from raptor_nb.core.records import atomic
with atomic(sys.argv[1]) as tmp, tmp.open('w') as f:
    f.write('half'); f.flush(); print('writing', flush=True); time.sleep(60)
''', path)
    assert process.stdout.readline() == 'writing\n'
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert load_json(path) == 'old' and len(list(tmp_path.iterdir())) == 2
    with run_lock(tmp_path): pass  # whoever owns the folder next sweeps it
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.lock', 'x.json']


def test_an_error_in_the_middle_leaves_the_old_file_and_is_passed_on(tmp_path):
    path = save_json(tmp_path/'x.json', 'old')
    with pytest.raises(ZeroDivisionError):
        with atomic(path) as tmp: tmp.write_text('new'), 1/0
    with pytest.raises(FileNotFoundError, match='elsewhere'):
        with atomic(path): open(tmp_path/'elsewhere')
    assert load_json(path) == 'old' and [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_tensors_round_trip(tmp_path):
    base = torch.arange(12.).reshape(3, 4)
    tensors = {'shared': base, 'view': base[:, 1], 'transposed': base.T, 'again': base, 'empty': torch.zeros(0, 3), 'scalar': torch.tensor(3),
               'half': torch.ones(2, dtype=torch.bfloat16), 'grad': torch.ones(2, requires_grad=True)}
    back, meta = load_tensors(save_tensors(tmp_path/'a'/'b.safetensors', tensors, {'ids': '1,2', 'n': 3}))
    assert meta == {'ids': '1,2', 'n': '3'} and set(back) == set(tensors)
    for name, t in tensors.items(): assert torch.equal(back[name], t) and back[name].dtype == t.dtype, name


def test_json_and_tables_round_trip(tmp_path):
    value = {'a': 1/3, 'b': [True, None, 'ü'], 'settings': load_config('quick').to_dict()}
    assert load_json(save_json(tmp_path/'x.json', value)) == value
    assert load_json(save_json(tmp_path/'y.json', {'s': load_config('quick'), 'n': np.inf, 't': torch.ones(2)}))['n'] is None
    table = pd.DataFrame({'drone': [3, 4], 'return': [650.1, 1/3], 'name': ['a', 'b']})
    for suffix in ('csv', 'parquet'): pd.testing.assert_frame_equal(load_table(save_table(tmp_path/f't.{suffix}', table)), table)


# ---- manifests

@pytest.fixture
def artefact(tmp_path):
    inputs = [save_json(tmp_path/'drones.json', [1]), tmp_path/'teachers']
    save_json(inputs[1]/'0000.json', 0)
    path = save_json(tmp_path/'student.json', 'weights')
    write_manifest(path, settings=load_config('quick').sac, seed=3, inputs=inputs, seconds=1.5, metrics={'return': np.float32(640), 'x': float('nan')})
    return path, dict(settings=load_config('quick').sac, inputs=inputs)


def test_manifest_says_how_it_came_about(artefact):
    path, made = artefact
    m = load_json(manifest_path(path))
    assert (m['seed'], m['seconds'], m['metrics'], m['settings']['gamma']) == (3, 1.5, {'return': 640., 'x': None}, .99)
    assert m['sha256'] == file_hash(path) and [i['name'] for i in m['inputs']] == ['drones.json', 'teachers']
    assert m['versions']['torch'] == torch.__version__ or m['versions']['torch'].split('+')[0] == torch.__version__.split('+')[0]
    assert finished(path, **made)


@pytest.mark.parametrize('change', ['settings', 'input', 'input-folder', 'input-order', 'fewer-inputs', 'input-gone', 'artefact', 'artefact-gone', 'manifest-gone', 'manifest-truncated'])
def test_not_finished_after_a_change(artefact, change):
    path, made = artefact
    drones, teachers = made['inputs']
    if change == 'settings': made['settings'] = load_config('quick', **{'sac.gamma': .5}).sac
    if change == 'input': save_json(drones, [2])
    if change == 'input-folder': save_json(teachers/'0001.json', 1)
    if change == 'input-order': made['inputs'] = [teachers, drones]
    if change == 'fewer-inputs': made['inputs'] = [drones]
    if change == 'input-gone': drones.unlink()
    if change == 'artefact': save_json(path, 'other')
    if change == 'artefact-gone': path.unlink()
    if change == 'manifest-gone': manifest_path(path).unlink()
    if change == 'manifest-truncated': manifest_path(path).write_text(manifest_path(path).read_text()[:50])
    assert not finished(path, **made)


def test_missing_input_is_an_error_when_a_manifest_is_written(artefact):
    path, made = artefact
    with pytest.raises(FileNotFoundError, match='nope.json.*run the stage that makes it first'): write_manifest(path, settings={}, inputs=['nope.json'])
    assert finished(path, **made)


# ---- checkpoints

def same(a, b):
    "Equal in value and in type, tensors and arrays too"
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (np.ndarray, np.generic)): return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))
    if isinstance(a, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def test_state_round_trip_is_exact(tmp_path):
    state = {'float': 1/3, 'big': 2**100, 'nan': float('nan'), 'inf': -float('inf'), 'none': None, 'true': True, 'text': '$dict ü', 'empty': {}, 'list': [[], ()],
             3: 'integer key', (1, 'a'): 'tuple key', '$tensor': 'a name that looks reserved', 'nested': {'t': (torch.ones(2), [torch.zeros(0, dtype=torch.int64)])},
             'array': np.arange(6, dtype=np.uint32).reshape(2, 3), 'scalar': np.float32(.1), 'zero_d': np.array(3), 'python': random.getstate(),
             'numpy': np.random.default_rng(1).bit_generator.state, 'legacy': np.random.get_state(), 'torch': torch.get_rng_state(), 'mask': torch.tensor([True, False])}
    assert same(load_state(save_state(tmp_path/'s.safetensors', state)), state)


def train(steps, directory, resume):
    "A noisy little training that saves all it needs after every step"
    torch.manual_seed(0)
    rng, net, saved = np.random.default_rng(0), torch.nn.Linear(4, 4), Checkpoints(directory, keep=2)
    adam, start = torch.optim.Adam(net.parameters(), 1e-2), 0
    if resume:
        s = saved.load()
        net.load_state_dict(s['net']), adam.load_state_dict(s['adam']), torch.set_rng_state(s['torch'])
        rng.bit_generator.state, start = s['numpy'], s['step']
    for step in range(start, steps):
        loss = (net(torch.randn(8, 4))**2).mean() + float(rng.normal())*net.weight.sum()
        adam.zero_grad(), loss.backward(), adam.step()
        saved.save(step + 1, dict(step=step + 1, net=net.state_dict(), adam=adam.state_dict(), torch=torch.get_rng_state(), numpy=rng.bit_generator.state), -loss.item())
    return net.weight


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = train(12, tmp_path/'whole', resume=False)
    train(5, tmp_path/'parts', resume=False)
    assert torch.equal(train(12, tmp_path/'parts', resume=True), whole)


def steps(directory): return [i['step'] for i in Checkpoints(directory).infos().values()]


def test_newest_and_best_survive_restarts(tmp_path):
    for step, metric in enumerate([1., 9., 3., None, float('nan'), 5.]):
        Checkpoints(tmp_path, keep=2).save(step, {'step': step}, metric)  # a new object every time: a restart
    c = Checkpoints(tmp_path, keep=2)
    assert steps(tmp_path) == [1, 4, 5]
    assert (load_info(c.best()), c.load(c.latest())) == ({'step': 1, 'metric': 9.}, {'step': 5})
    Checkpoints(tmp_path, keep=2).save(6, {}, 10.)
    assert steps(tmp_path) == [5, 6]  # the old best made room for the new
    assert Checkpoints(tmp_path/'other').latest() is None and Checkpoints(tmp_path/'other').best() is None
    with pytest.raises(FileNotFoundError, match='no checkpoint in'): Checkpoints(tmp_path/'other').load()


def test_going_back_to_an_earlier_step_counts_as_newest(tmp_path):
    c = Checkpoints(tmp_path, keep=2)
    for step in (100, 200, 300, 150): c.save(step, {'step': step})
    assert c.load() == {'step': 150} and steps(tmp_path) == [300, 150]


@pytest.mark.parametrize('damage', [
    pytest.param(lambda b: b[:-1], id='checkpoint-truncated'), pytest.param(lambda b: b[:5], id='checkpoint-nearly-nothing'),
    pytest.param(lambda b: b'', id='checkpoint-empty'), pytest.param(lambda b: b'PK\x03\x04' + b, id='checkpoint-is-a-zip'),
    pytest.param(lambda b: b'\x00'*len(b), id='checkpoint-zeroed')])
def test_a_damaged_newest_falls_back(tmp_path, damage):
    c = Checkpoints(tmp_path, keep=3)
    for step in range(3): c.save(step, {'step': step, 'w': torch.ones(50)}, float(step))
    newest = c.latest()
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match='checkpoint skipped: .*step-000000000002.safetensors'): assert c.load()['step'] == 1
    assert c.best() == c.paths()[1]
    c.save(2, {'step': 2})  # written again: the damaged one does not take a good one's place
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert c.load()['step'] == 2 and steps(tmp_path) == [0, 1, 2]
    assert newest not in c.paths()


def test_a_checkpoint_that_cannot_be_stored_leaves_the_others(tmp_path):
    c = Checkpoints(tmp_path)
    c.save(1, {'step': 1})
    with pytest.raises(RecordError): c.save(2, {'f': print})
    assert c.load() == {'step': 1}


# ---- metrics

def test_metrics_share_rows_and_gain_columns(tmp_path):
    with Metrics(tmp_path, tensorboard=False) as m:
        m.log(0, loss=1/3)
        m.log(10, loss=2), m.log(10, ret=600.5), m.log(10, loss=.1)
        m.log(20, loss=.05)
    expected = pd.DataFrame({'step': [0, 10, 20], 'loss': [1/3, .1, .05], 'ret': [np.nan, 600.5, np.nan]})
    pd.testing.assert_frame_equal(m.frame(), expected)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'metrics.csv', float_precision='round_trip'), expected)


def test_metrics_are_in_the_file_at_once(tmp_path):
    m = Metrics(tmp_path, tensorboard=False)
    m.log(1, a=2.), m.log(2, a=3.)
    assert list(csv.reader((tmp_path/'metrics.csv').open())) == [['step', 'a'], ['1', '2.0'], ['2', '3.0']]
    m.log(2, a=4.5)
    assert (tmp_path/'metrics.csv').read_text().split() == ['step,a', '1,2.0', '2,4.5']


def test_metrics_resume(tmp_path):
    with Metrics(tmp_path, tensorboard=False) as m:
        for s in range(0, 60, 10): m.log(s, loss=s)
    with Metrics(tmp_path, tensorboard=False, resume_at=25) as m:
        assert m.frame().step.tolist() == [0, 10, 20]
        m.log(35, loss=-1)
    with Metrics(tmp_path, tensorboard=False) as m: m.log(20, loss=-2)  # an earlier step is written again
    with Metrics(tmp_path, tensorboard=False) as m: assert m.frame().values.tolist() == [[0, 0], [10, 10], [20, -2]]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    (tmp_path/'metrics.csv').write_text('step,loss\n1,0.5\n2,0.2')
    with Metrics(tmp_path, tensorboard=False) as m: m.log(3, loss=.1)
    assert m.frame().values.tolist() == [[1, .5], [3, .1]]


def test_tensorboard_sees_the_same_without_loading_tensorflow(tmp_path):
    code = '''
import sys
from raptor_nb.core.records import Metrics
for resume in (None, 2):
    with Metrics(sys.argv[1], resume_at=resume) as m:
        for step in range(3 if resume else 0, 6): m.log(step, loss=step + (100 if resume else 0))
assert 'tensorflow' not in sys.modules
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1] + '/tensorboard').Reload().Scalars('loss')
print([(e.step, e.value) for e in events])
'''
    out, err = python(code, tmp_path).communicate(timeout=60)
    assert out.strip() == str([(0, 0.), (1, 1.), (2, 2.), (3, 103.), (4, 104.), (5, 105.)]), err
    assert load_table(tmp_path/'metrics.csv').loss.tolist() == [0, 1, 2, 103, 104, 105]


def test_without_tensorboard_metrics_still_reach_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with Metrics(tmp_path) as m:
        with pytest.warns(UserWarning, match='TensorBoard is not installed'): m.log(0, a=1)
        m.log(1, a=2)
    assert load_table(tmp_path/'metrics.csv').a.tolist() == [1, 2]


# ---- logs, progress

def test_no_duplicated_handlers(tmp_path, capsys):
    for _ in range(3): log = get_logger('many', tmp_path)
    get_logger('many')
    log.info('once')
    assert capsys.readouterr().out == 'once\n'
    line, = (tmp_path/'many.log').read_text().splitlines()
    assert line.endswith('INFO once')
    get_logger('many', tmp_path/'second').warning('moved')  # another run: another file
    assert len((tmp_path/'many.log').read_text().splitlines()) == 1 and 'WARNING moved' in (tmp_path/'second'/'many.log').read_text()
    assert len(log.handlers) == 2 and not log.propagate
    get_logger('other').info('x')
    assert len(logging.getLogger('raptor_nb.other').handlers) == 1


def test_live_in_a_terminal_is_sparse(capsys):
    drawn = []
    with Live(terminal=1000) as live:
        for i in range(5): live.update(lambda i=i: drawn.append(i) or f'update {i}')
        assert drawn == [0]  # only when due
        live.update('now', force=True)
        live.update('last')
    assert capsys.readouterr().out == 'update 0\nnow\nlast\n'


def test_live_in_a_notebook_leaves_one_output(tmp_path):
    import nbformat
    import papermill
    source = '''
import matplotlib.pyplot as plt
from raptor_nb.core.records import Live
with Live(interval=0) as live:
    for i in range(5): live.update(f'update {i}')
with Live(interval=0) as live:
    for i in range(3):
        figure, axis = plt.subplots(figsize=(1, 1)); axis.plot([0, i]); live.update(figure)
'''
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata={'kernelspec': {'name': 'python3', 'language': 'python', 'display_name': 'python3'}})
    nbformat.write(nb, tmp_path/'in.ipynb')
    papermill.execute_notebook(str(tmp_path/'in.ipynb'), str(tmp_path/'out.ipynb'), progress_bar=False)
    outputs = json.loads((tmp_path/'out.ipynb').read_text())['cells'][0]['outputs']
    shown = [o for o in outputs if o['output_type'] == 'display_data']
    assert len(outputs) == len(shown) == 2
    assert ''.join(shown[0]['data']['text/plain']) == 'update 4' and 'image/png' in shown[1]['data']


# ---- one writer, one device

HOLD = '''
import sys, time
from raptor_nb.core.records import run_lock
with run_lock(sys.argv[1]): print('held', flush=True); time.sleep(60)
'''


def test_a_second_process_is_told_and_death_frees(tmp_path):
    first = python(HOLD, tmp_path)
    try:
        assert first.stdout.readline() == 'held\n'
        with pytest.raises(WriteError, match=rf"is being written by process {first.pid} on .*; wait for it, end it, or choose another output folder"):
            with run_lock(tmp_path): pass
    finally:
        first.kill()
        first.communicate(timeout=20)
    with run_lock(tmp_path) as folder: assert folder == tmp_path


def test_the_lock_is_freed_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with run_lock(tmp_path/'run'): 1/0
    with run_lock(tmp_path/'run'): pass


@pytest.mark.parametrize('name, sentence', [
    pytest.param('gpu', r"device 'gpu': there is no such device; choose 'auto', 'cpu'", id='device-unknown'),
    pytest.param('meta', r"device 'meta': there is no such device", id='device-unusable'),
    pytest.param('', r"device '': there is no such device", id='device-empty'),
    pytest.param('cuda:99', r"device 'cuda:99': this machine has \d+ CUDA devices", id='device-absent'),
])
def test_bad_device(name, sentence):
    with pytest.raises(RecordError, match=sentence): choose_device(name)


def test_devices():
    assert choose_device('cpu') == torch.device('cpu')
    assert choose_device('auto').type == ('cuda' if torch.cuda.is_available() else 'cpu')
