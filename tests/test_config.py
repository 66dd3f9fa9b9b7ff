"core.config: what is refused and how it is said; what inheritance and overrides come to"
import dataclasses
import json

import numpy as np
import pytest
import yaml

from raptor_nb.core.config import ConfigError, check_injected, check_parameters
from raptor_nb.core.config import config_names, find_config, parse_ids, read_layers
from raptor_nb.learn.direct import Direct, fine_tuning
from raptor_nb.settings import flat
from raptor_nb.settings import RENAMED, Settings, load_config

PRE_TRAINING = """\
# Pre-Training Configuration

inherit: default.yaml

# SAC Algorithm
sac:
  actor_batch_size: 128
  critic_batch_size: 128
  gamma: 0.99
  tau: 0.005
  target_entropy: -2.0
  learning_rate: 0.0003
  actor_hidden_dim: 64
  critic_hidden_dim: 256
  learning_starts: 10000

# Training
training:
  num_teachers: 1000
  steps_per_teacher: 1000000
  eval_frequency: 10000
  checkpoint_frequency: 100000
  
# Domain Randomization
domain_randomization:
  thrust_to_weight: [1.5, 5.0]
  torque_to_inertia: [40, 1200]
  mass: [0.02, 5.0]
  rotor_time_constant_rising: [0.03, 0.30]
  rotor_time_constant_falling: [0.07, 0.30]
  rotor_torque_constant: [0.005, 0.05]
  disturbance_force: [0, 0.3]
"""

WIDE = dict(rotor_time_constant_rising=[.03, .3], rotor_time_constant_falling=[.07, .3])


def write(folder, name, text):
    path = folder/name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize('overrides, sentence', [
    pytest.param({'sac.gama': .9}, r"section 'sac' has no 'gama'; the nearest is 'gamma'",
                 id='setting-unknown'),
    pytest.param({'trainig.seed': 1}, r"the top level has no 'trainig'; the nearest is 'training'",
                 id='section-unknown'),
    pytest.param({'gamma': .9}, r"the top level has no 'gamma'; did you mean 'sac.gamma'\?",
                 id='setting-outside-its-section'),
    pytest.param({'flight_randomization.max_force': .1},
                 r"section 'flight_randomization' has no 'max_force'; the nearest is "
                 r"'max_force_std'", id='nested-setting-unknown'),
    pytest.param({'sac.gamma': 1.5}, r"sac.gamma is 1.5; it must be at most 1$",
                 id='gamma-above-one'),
    pytest.param({'sac.gamma': -.1}, r"sac.gamma is -0.1; it must be at least 0$",
                 id='gamma-negative'),
    pytest.param({'sac.learning_rate': '0.001'},
                 r"sac.learning_rate is '0.001'; it must be a number", id='string-for-number'),
    pytest.param({'sac.learning_rate': 0}, r"sac.learning_rate is 0.*; it must be greater than 0",
                 id='learning-rate-zero'),
    pytest.param({'sac.tau': float('nan')}, r"sac.tau is nan; it must be a finite number",
                 id='number-is-nan'),
    pytest.param({'apg.max_grad_norm': float('inf')},
                 r"apg.max_grad_norm is inf; it must be a finite number", id='number-is-infinite'),
    pytest.param({'apg.horizon': -128}, r"apg.horizon is -128; it must be at least 1",
                 id='count-negative'),
    pytest.param({'training.num_teachers': 0}, r"training.num_teachers is 0; it must be at least 1",
                 id='no-teachers'),
    pytest.param({'training.seed': 1.5}, r"training.seed is 1.5; it must be a whole number",
                 id='fraction-for-count'),
    pytest.param({'training.seed': True}, r"training.seed is True; it must be a whole number",
                 id='boolean-for-number'),
    pytest.param({'data_collection.shuffle': 1},
                 r"data_collection.shuffle is 1; it must be true or false",
                 id='number-for-boolean'),
    pytest.param({'training.algorithm': 'ppo'},
                 r"training.algorithm is 'ppo'; it must be 'sac' or 'apg'", id='algorithm-unknown'),
    pytest.param({'apg.engine': 'maybe'}, r"apg.engine is 'maybe'; it must be",
                 id='engine-unknown'),
    pytest.param({'domain_randomization.distribution': 'wide'},
                 r"distribution is 'wide'; it must be 'published', 'wide_rotor_lag' or 'custom'",
                 id='distribution-unknown'),
    pytest.param({'domain_randomization.mass': [5, .02]},
                 r"mass is \[5, 0.02\]; it must be a range \[low, high\] with low <= high",
                 id='range-reversed'),
    pytest.param({'domain_randomization.mass': [1]},
                 r"mass is \[1\]; it must be two numbers \[low, high\]", id='range-of-one-number'),
    pytest.param({'domain_randomization.mass': [-1, 3]},
                 r"mass is \[-1, 3\]; it must be a range of numbers that are not negative",
                 id='range-negative'),
    pytest.param({'domain_randomization.mass': [1, 'x']}, r"mass is 'x'; it must be a number",
                 id='range-with-string'),
    pytest.param({'sac': 3}, r"'sac' is 3; it must be a mapping", id='section-is-a-number'),
    pytest.param({'sac.gamma.x': 3}, r"sac.gamma is \{'x': 3\}; it must be a number",
                 id='key-too-deep'),
    pytest.param({'training.num_teachers': '${nope}'},
                 r"training.num_teachers: Interpolation key 'nope' not found",
                 id='reference-to-nothing'),
])
def test_bad_override(overrides, sentence):
    with pytest.raises(ConfigError, match=r'^override: .*' + sentence):
        load_config('default', **overrides)


@pytest.mark.parametrize('text, sentence', [
    pytest.param('', r"bad.yaml: the file is empty; it must hold at least one section",
                 id='file-empty'),
    pytest.param('# only words\n', r"bad.yaml: the file is empty", id='file-of-comments'),
    pytest.param('- sac\n- apg\n', r"bad.yaml: holds a list; it must be a mapping",
                 id='file-is-a-list'),
    pytest.param('3', r"bad.yaml: cannot be read as settings", id='file-is-a-number'),
    pytest.param('hello', r"bad.yaml: the top level has no 'hello'", id='file-is-a-word'),
    pytest.param('sac: {gamma: .9\ntraining: 3', r"bad.yaml \(line 2\): not valid YAML",
                 id='yaml-broken'),
    pytest.param('sac:\n  gamma: .9\n  gamma: .8\n',
                 r"bad.yaml \(line 3\): not valid YAML: found duplicate key gamma", id='key-twice'),
    pytest.param('sac:\n\tgamma: .9\n', r"bad.yaml \(line 2\): not valid YAML",
                 id='yaml-with-tabs'),
    pytest.param(b'\x89HDF\r\n\x1a\n\xff\xfe\x00', r"bad.yaml: not a text file",
                 id='file-is-binary'),
    pytest.param('!!python/object/apply:os.system ["true"]',
                 r"bad.yaml.*not valid YAML: could not determine a constructor",
                 id='yaml-runs-code'),
    pytest.param('sac: {gamma: 2}', r"bad.yaml: sac.gamma is 2.*; it must be at most 1",
                 id='value-names-its-file'),
    pytest.param('sac: {gama: .9}', r"bad.yaml: section 'sac' has no 'gama'",
                 id='name-names-its-file'),
    pytest.param('sac: {gamma: }', r"bad.yaml: sac.gamma is None; it must be a number",
                 id='value-missing'),
    pytest.param('1: 2', r"bad.yaml: the top level has no '1'", id='key-is-a-number'),
    pytest.param('inherit: nope.yaml',
                 r"bad.yaml: 'inherit': settings file '.*nope.yaml' does not exist; packaged "
                 r"ones are default, full", id='inherit-missing-file'),
    pytest.param('inherit: [default.yaml, quick.yaml]',
                 r"bad.yaml: 'inherit' is \['default.yaml', 'quick.yaml'\]; it must be the name "
                 r"of one", id='inherit-list'),
    pytest.param('inherit: bad.yaml', r"'inherit' goes in a circle: bad.yaml -> bad.yaml",
                 id='inherit-itself'),
])
def test_bad_file(tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence): load_config(write(tmp_path, 'bad.yaml', text))


@pytest.mark.parametrize('name, sentence', [
    pytest.param('quik',
                 r"settings file 'quik' does not exist; packaged ones are default, full, full32, "
                 r"full32_more, full64, full_more, pre_training, quick", id='name-unknown'),
    pytest.param('some/where.yaml', r"settings file 'some/where.yaml' does not exist",
                 id='path-unknown'),
    pytest.param('/tmp', r"settings file '/tmp' is a folder", id='path-is-a-folder'),
])
def test_bad_name(name, sentence):
    with pytest.raises(ConfigError, match=sentence): load_config(name)


def test_cycle_over_three_files(tmp_path):
    for a, b in ('ab', 'bc', 'ca'): write(tmp_path, f'{a}.yaml', f'inherit: {b}.yaml\n')
    with pytest.raises(ConfigError, match='in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml'):
        load_config(tmp_path/'a.yaml')


def test_mistake_is_blamed_on_the_file_that_made_it(tmp_path):
    write(tmp_path, 'old.yaml', 'sac: {gamma: 7}\n')
    new = write(tmp_path, 'new.yaml', 'inherit: old.yaml\nsac: {tau: 0.1}\n')
    with pytest.raises(ConfigError, match=r'old.yaml: sac.gamma is 7'): load_config(new)
    assert load_config(new, **{'sac.gamma': .5}).sac.gamma == .5  # mended from above


def test_packaged_files():
    assert config_names() == ['default', 'full', 'full32', 'full32_more', 'full64', 'full_more',
                              'pre_training', 'quick']
    assert load_config('default') == load_config('default.yaml') == load_config() == Settings()
    quick, full = load_config('quick'), load_config('full')
    assert (quick.training.num_teachers, quick.distillation.num_teachers) == (64, 64)
    assert (full.training.num_teachers, full.training.algorithm) == (1000, 'apg')
    assert load_config('post_training') == load_config()  # the name of a file that held the defaults


def test_old_text_loads_from_a_folder_of_its_own(tmp_path):
    s = load_config(write(tmp_path, 'mine.yaml', PRE_TRAINING))
    assert s == load_config('pre_training')
    assert (s.sac.target_entropy, s.training.steps_per_teacher, s.domain_randomization.rotor_time_constant_rising) == (-2, 1_000_000, (.03, .3))
    assert s.domain_randomization.distribution == 'wide_rotor_lag'


def test_inheritance_is_deep_and_in_order(tmp_path):
    sub = tmp_path/'sub'
    sub.mkdir()
    write(tmp_path, 'base.yaml', 'sac: {gamma: 0.5, tau: 0.1}\ndistillation: {dagger: {max_grad_norm: 2.0, drones: 3}}\n')
    write(tmp_path, 'middle.yaml', 'inherit: base.yaml\nsac: {gamma: 0.6}\nevaluation: {observation_noise: [0.2]}\n')
    s = load_config(write(sub, 'top.yaml', 'inherit: ../middle.yaml\nsac: {tau: 0.2}\ndistillation: {dagger: {max_grad_norm: 3}}\ntraining:\n'))
    assert (s.sac.gamma, s.sac.tau, s.sac.learning_rate) == (.6, .2, 3e-4)
    dagger = s.distillation.dagger
    assert (dagger.max_grad_norm, dagger.drones, dagger.num_envs) == (3., 3, 16)
    assert s.evaluation.observation_noise == (.2,)  # lists are replaced, not joined
    assert [p.name for p, _ in read_layers((sub/'top.yaml').resolve())] == ['base.yaml', 'middle.yaml', 'top.yaml']


def test_a_file_beside_wins_over_a_packaged_one(tmp_path):
    write(tmp_path, 'quick.yaml', 'pipeline: {drones: mine}\n')
    assert load_config(write(tmp_path, 'a.yaml', 'inherit: quick.yaml\n')).pipeline.drones == 'mine'
    assert load_config(write(tmp_path, 'b.yaml', 'inherit: quick\n')).pipeline.drones == ''  # a bare word is packaged


def test_overrides():
    s = load_config('quick', **{'sac.gamma': .9, 'sac': {'tau': .5}, 'distillation.dagger': {'max_grad_norm': 2}, 'training.seed': None, 'training.device': 'cpu'})
    assert (s.sac.gamma, s.sac.tau, s.distillation.dagger.max_grad_norm, s.training.seed, s.training.device) == (.9, .5, 2., 42, 'cpu')
    assert load_config('default', **{'training.num_teachers': np.int64(3), 'sac.tau': np.float32(.5)}).distillation.num_teachers == 3
    assert load_config(s, **{'training.seed': 1}) == dataclasses.replace(s, training=dataclasses.replace(s.training, seed=1))
    assert s.sac.gamma == .9  # the first is as it was


def test_references_follow_overrides():
    s = load_config('default', **{'training.num_teachers': 5})
    assert s.distillation.num_teachers == 5
    assert load_config(s, **{'distillation.num_teachers': 3}).training.num_teachers == 5


@pytest.mark.parametrize('name, overrides, distribution, falling', [
    ('default', {}, 'published', .03), ('default', {'distribution': 'wide_rotor_lag'}, 'wide_rotor_lag', .07), ('pre_training', {'distribution': 'published'}, 'published', .03),
    ('default', {'mass': [1, 2]}, 'custom', .03), ('default', {'distribution': 'wide_rotor_lag', 'mass': [1, 2]}, 'custom', .07),
    ('pre_training', {'distribution': 'published', 'mass': [1, 2]}, 'custom', .03), ('default', WIDE, 'wide_rotor_lag', .07)])
def test_distribution_and_ranges_agree(name, overrides, distribution, falling):
    d = load_config(name, domain_randomization=overrides).domain_randomization
    assert (d.distribution, d.rotor_time_constant_falling[0]) == (distribution, falling)


@pytest.mark.parametrize('given, sentence', [
    pytest.param({'domain_randomization.distribution': 'plan'},
                 "override: domain_randomization.distribution 'plan' is 'wide_rotor_lag' today",
                 id='old-value'),
    pytest.param({'distillation.method': 'epochs'},
                 "distillation.method 'epochs' is 'published' today", id='old-method'),
    pytest.param({'apg': {'wall': 3.}}, "override: 'apg.wall' is called 'apg.barrier_weight' today",
                 id='old-key'),
    pytest.param({'distillation': {'online': {'updates': 3}}},
                 "'distillation.online.updates' is called 'distillation.dagger.num_updates' today",
                 id='old-section'),
    pytest.param({'distillation.online.force': .1},
                 "is called 'flight_randomization.max_force_std' today", id='moved-setting'),
    pytest.param({'evaluation.tilt': 90},
                 "override: 'evaluation.tilt' is called 'evaluation.max_tilt' today",
                 id='old-unit'),
    pytest.param({'environment.dt': .01},
                 "override: 'environment.dt' is no setting any more; remove it",
                 id='removed-setting'),
])
def test_old_settings_are_read_with_a_sentence(given, sentence):
    with pytest.warns(FutureWarning, match=sentence): load_config('default', **given)


def test_fine_tuning_is_direct_training_but_for_three_numbers():
    settings = load_config('full', **{'direct.horizon': 64, 'distillation.fine_tuning.flights': 32})
    how, own = fine_tuning(settings), settings.distillation.fine_tuning
    assert (how.horizon, how.flights, how.num_updates) == (64, 32, own.num_updates)
    assert how.precision_weight == settings.direct.precision_weight != Direct().precision_weight


def test_fine_tuning_was_called_direct_and_had_every_setting_of_it():
    with pytest.warns(FutureWarning, match="'distillation.dagger.validation_drones' is called "
                                           "'validation.num_drones' today"):
        old = load_config('default', **{
            'distillation.direct.updates': 7, 'distillation.polish.more_drones': 3,
            'distillation.fine_tuning.horizon': 64,
            'distillation.dagger.validation_drones': 5, 'distillation.online.choice_drones': 6})
    assert old.distillation.fine_tuning.num_updates == 7
    assert (old.validation.num_drones, old.validation.selection_drones) == (5, 6)
    assert old.direct == load_config('default').direct, "what fine-tuning had of its own is gone"


@pytest.mark.parametrize('name, road', [
    ('default', 'direct'), ('quick', 'both'), ('full', 'direct')])
def test_every_profile_has_its_road(name, road):
    settings = load_config(name)
    assert settings.pipeline.road == road and settings.direct.num_updates >= 2000
    assert (settings.distillation.fine_tuning.num_updates > 0) == (name != 'default')


def test_old_values_are_converted():
    with pytest.warns(FutureWarning):
        old = load_config('default', **{'evaluation.tilt': 90, 'apg.engine': 'plain',
                                        'distillation.online.updates': 7})
    assert old.evaluation.max_tilt == np.pi / 2 and old.apg.engine == 'torch'
    assert old.distillation.dagger.num_updates == 7


def test_every_old_key_leads_to_a_setting():
    known = dict(flat(Settings().to_dict()))
    for new in RENAMED.values():
        key = new[0] if isinstance(new, tuple) else new
        assert key is None or key in known or any(k.startswith(f'{key}.') for k in known)


def test_settings_are_frozen_checked_and_round_trip(tmp_path):
    s = load_config('quick', **{'domain_randomization.mass': [1, 2]})
    with pytest.raises(dataclasses.FrozenInstanceError): s.training.seed = 3
    with pytest.raises(ValueError): dataclasses.replace(s.sac, gamma=2.)
    assert load_config(json.loads(json.dumps(s.to_dict()))) == s
    assert load_config(write(tmp_path, 's.yaml', s.to_yaml())) == s
    assert list(yaml.safe_load(s.to_yaml('sac'))) == ['sac']
    assert hash(s) == hash(load_config(s))


@pytest.mark.parametrize('ids, n, expected', [
    ('all', 3, [0, 1, 2]), ('0-2,5', 6, [0, 1, 2, 5]), (7, 8, [7]), ('7', 8, [7]), ([2, 1], 3, [2, 1]), (' 1 - 2 , 0', 3, [1, 2, 0]),
    ('1,1-2', 3, [1, 2]), (range(2), 2, [0, 1]), (np.int64(1), 2, [1]), (['0-1', 3], 4, [0, 1, 3])])
def test_ids(ids, n, expected): assert parse_ids(ids, n) == expected


@pytest.mark.parametrize('ids, sentence', [
    pytest.param(10, r'there is no teacher 10; with 10 teachers ids go from 0 to 9',
                 id='id-too-large'),
    pytest.param('5-12', r"teacher ids '5-12': there is no teacher 12", id='id-range-too-far'),
    pytest.param(-1, r"cannot read -1; write 'all', 7", id='id-negative'),
    pytest.param('5-2', r"'5-2' runs backwards; write '2-5'", id='id-range-backwards'),
    pytest.param('', r"cannot read ''", id='id-empty'),
    pytest.param([], r'none is named', id='id-none'),
    pytest.param('seven', r"cannot read 'seven'", id='id-word'),
    pytest.param(1.5, r'cannot read 1.5', id='id-fraction'),
    pytest.param(True, r'cannot read True', id='id-boolean'),
    pytest.param(None, r'cannot read None', id='id-missing'),
    pytest.param('1,,2', r"cannot read ''", id='id-double-comma'),
])
def test_bad_ids(ids, sentence):
    with pytest.raises(ConfigError, match=sentence): parse_ids(ids, 10)


def notebook(folder, source, tags=('parameters',)):
    cell = dict(cell_type='code', source=source, metadata={'tags': list(tags)}, outputs=[], execution_count=None, id='a')
    kernel = {'kernelspec': {'name': 'python3', 'language': 'python', 'display_name': 'python3'}}
    return write(folder, 'stage.ipynb', json.dumps(dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5)))


def test_parameters_that_are_declared_pass(tmp_path):
    stage = notebook(tmp_path, 'teacher_id = 0 # one\nalgorithm = "sac"\ndevice: str = None')
    given = {'teacher_id': 7, 'device': 'cpu'}
    assert check_parameters(stage, given) == given and check_parameters(str(stage), {}) == {}


@pytest.mark.parametrize('source, tags, given, sentence', [
    pytest.param('teacher_id = 0\nsteps = 1', ['parameters'], {'teacher_idx': 1},
                 r"stage.ipynb has no parameter 'teacher_idx'; the nearest is 'teacher_id'",
                 id='parameter-mistyped'),
    pytest.param('teacher_id = 0\nsteps = 1', ['parameters'], {'xyz': 1},
                 r"has no parameter 'xyz'; known: teacher_id, steps", id='parameter-unknown'),
    pytest.param('teacher_id = 0', [], {'teacher_id': 1},
                 r"has no parameter 'teacher_id'; known: none", id='notebook-declares-none'),
])
def test_bad_parameter(tmp_path, source, tags, given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_parameters(notebook(tmp_path, source, tags), given)


@pytest.mark.parametrize('text, sentence', [
    pytest.param(None, r"notebook '.*x.ipynb' does not exist", id='notebook-missing'),
    pytest.param('{"cells": [', r"x.ipynb' is not a Jupyter notebook", id='notebook-truncated'),
    pytest.param('[1]', r"x.ipynb' is not a Jupyter notebook", id='notebook-is-other-json'),
])
def test_bad_notebook(tmp_path, text, sentence):
    if text is not None: write(tmp_path, 'x.ipynb', text)
    with pytest.raises(ConfigError, match=sentence): check_parameters(tmp_path/'x.ipynb', {'a': 1})


@pytest.mark.parametrize("given, message", [
    pytest.param("# Parameters\nteacherid = 7",
                 "no parameter 'teacherid'; the nearest is 'teacher_id'", id="injected-mistyped"),
    pytest.param("# Parameters\nsteps = 5\nunheard_of = 1",
                 "no parameter 'unheard_of'; known: teacher_id, steps", id="injected-unknown"),
])
def test_bad_injected_parameter(given, message):
    cells = ["", "import os", "teacher_id = 0 # which one\nsteps = 1000", given]
    with pytest.raises(ConfigError, match=message): check_injected(cells)
    check_injected(cells[:3] + ["# Parameters\nteacher_id = 7\nsteps = 5", "unheard_of = 1"])
