"Drones: what is refused and how it is said, what survives a round trip, what is sampled"
import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from raptor_nb.drones import DISTRIBUTIONS, Distribution, Drone, DroneError, REAL
from raptor_nb.drones import SPLITS, check_distribution, drone_table, hover_speed
from raptor_nb.drones import load_drone, load_fleet, parse_drone, plot_fleet
from raptor_nb.drones import plot_quantity, plot_thrust, real_drones, recover_parameters
from raptor_nb.drones import registry, sample_drone, sample_fleet, sample_parameters
from raptor_nb.drones import sample_split, save_fleet, with_conditions
from raptor_nb.drones import write_drone_files

X500 = json.loads((registry() / 'x500.json').read_text())


def changed(path, value):
    "The x500 with one value replaced (or removed, for ...)"
    data = copy.deepcopy(X500)
    *way, last = path.split('.')
    place = data
    for key in way: place = place.setdefault(key, {})
    if value is ...: del place[last]
    else: place[last] = value
    return data


same = lambda row: [row] * 4
BAD_VALUES = [
    pytest.param('dynamics.mass', -.2, r"dynamics\.mass is -0\.2 kg; it must be a positive number$",
                 id='negative-mass'),
    pytest.param('dynamics.mass', 0, r"mass is 0 kg; it must be a positive number$",
                 id='zero-mass'),
    pytest.param('dynamics.mass', float('nan'), r"mass is nan; it must be a finite number",
                 id='nan-mass'),
    pytest.param('dynamics.mass', float('inf'), r"mass is inf; it must be a finite number",
                 id='infinite-mass'),
    pytest.param('dynamics.mass', 10 ** 400,
                 r"mass is a whole number of more than 100 digits; that is too large",
                 id='huge-whole-number'),
    pytest.param('dynamics.mass', 1e-9, r"mass is 1e-09 kg; it must be at least 0\.0001 kg$",
                 id='vanishing-mass'),
    pytest.param('dynamics.mass', '2.0', r"mass is '2\.0'; it must be a number, not a text",
                 id='text-for-number'),
    pytest.param('dynamics.mass', True, r"mass is true; it must be a number, not true or false",
                 id='boolean-for-number'),
    pytest.param('dynamics.mass', None, r"mass is null; it must be a number, not null",
                 id='null-for-number'),
    pytest.param('dynamics.mass', [2.], r"mass is \[2\.0\]; it must be a number, not a list",
                 id='list-for-number'),
    pytest.param('dynamics.mass', ..., r"dynamics\.mass is missing", id='missing-mass'),
    pytest.param('dynamics.rotor_thrust_coefficients', ...,
                 r"dynamics\.rotor_thrust_coefficients is missing", id='missing-thrust'),
    pytest.param('dynamics', ..., r"dynamics is missing", id='missing-dynamics'),
    pytest.param('dynamics', [1], r"dynamics is \[1\]; it must be a JSON object, not a list",
                 id='dynamics-not-an-object'),
    pytest.param('dynamics.masss', 2., r"unknown key dynamics\.masss; did you mean 'mass'\?",
                 id='mistyped-key'),
    pytest.param('mdp.reward.positions', 1.,
                 r"unknown key mdp\.reward\.positions; did you mean 'position'\?",
                 id='mistyped-reward'),
    pytest.param('metadata', {}, r"unknown key metadata; did you mean", id='unknown-group'),
    pytest.param('dynamics.J', [[.02, .001, 0], [0, .02, 0], [0, 0, .03]], r"J is not symmetric",
                 id='asymmetric-inertia'),
    pytest.param('dynamics.J', [[.02, 0, 0], [0, 0, 0], [0, 0, .02]], r"J is singular or negative",
                 id='singular-inertia'),
    pytest.param('dynamics.J', [[.02, 0, 0], [0, -.02, 0], [0, 0, .02]],
                 r"J is singular or negative \(principal values -0\.02", id='negative-inertia'),
    pytest.param('dynamics.J', [[.02, 0, 0], [0, .02, 0], [0, 0, .05]],
                 r"breaks the triangle inequality \(principal value 0\.05 exceeds 0\.02 \+ 0\.02",
                 id='triangle-inequality'),
    pytest.param('dynamics.J', [[.1705, 0, 0], [0, .021304, 0], [0, 0, .039396244]],
                 r"breaks the triangle inequality", id='x500-as-its-source-states-it'),
    pytest.param('dynamics.J_inv', [[50., 0, 0], [0, 46.93954187, 0], [0, 0, 25.38313043]],
                 r"J_inv contradicts J: \(J @ J_inv\)\[0\]\[0\] is 1\.085",
                 id='inverse-contradicts'),
    pytest.param('dynamics.J', [[.02, 0], [0, .02]],
                 r"dynamics\.J.* has the wrong number of entries; it must have 3",
                 id='inertia-2x2'),
    pytest.param('dynamics.mass', 8.,
                 r"cannot hover: full throttle lifts 63\.7 N and the drone weighs 78\.48 N",
                 id='too-heavy'),
    pytest.param('dynamics.rotor_thrust_coefficients', same([5., 0, 11.]),
                 r"cannot hover: the lowest throttle already lifts 20 N", id='too-strong-at-idle'),
    pytest.param('dynamics.rotor_thrust_coefficients', same([0, 40., -30.]),
                 r"front-right rotor falls within the action limits 0\.\.1 \(slope -20 N\)",
                 id='thrust-falls'),
    pytest.param('dynamics.rotor_thrust_coefficients', same([0, 10., -16.]),
                 r"gives -6 N at full throttle", id='thrust-negative'),
    pytest.param('dynamics.rotor_positions', [[.1, -.1, 0]] * 3,
                 r"rotor_positions has the wrong number of entries; it must have 4, one for each "
                 r"rotor", id='three-rotors'),
    pytest.param('dynamics.rotor_positions', [[.1, -.1, 0]] * 6,
                 r"rotor_positions has the wrong number of entries; it must have 4",
                 id='six-rotors'),
    pytest.param('dynamics.rotor_positions', [[.1, -.1, 0]] * 4,
                 r"cannot hover: these rotor positions and directions leave a direction without "
                 r"control", id='rotors-in-one-place'),
    pytest.param('dynamics.rotor_positions', [[.4, -.1, 0], [.1, -.1, 0], [.1, .1, 0], [.4, .1, 0]],
                 r"cannot hover: the \S+ rotor would have to push", id='rotors-ahead-of-mass'),
    pytest.param('dynamics.rotor_torque_constants', [0.] * 4,
                 r"rotor_torque_constants\[0\] is 0\.0; it must be a positive number", id='no-yaw'),
    pytest.param('dynamics.rotor_torque_constants', [.1] * 3,
                 r"rotor_torque_constants has the wrong number of entries; it must have 4",
                 id='three-torque-constants'),
    pytest.param('dynamics.rotor_time_constants_rising', [0.] * 4,
                 r"rising\[0\] is 0\.0 s; it must be a positive number", id='zero-time-constant'),
    pytest.param('dynamics.rotor_time_constants_falling', [-.1] * 4,
                 r"falling\[0\] is -0\.1 s; it must be a positive number",
                 id='negative-time-constant'),
    pytest.param('dynamics.rotor_time_constants_rising', [.001] * 4,
                 r"contains 0\.001 s; with steps of 0\.01 s it must be at least 0\.004 s",
                 id='rotor-faster-than-step'),
    pytest.param('dynamics.rotor_thrust_directions', same([0, 0, 2]),
                 r"thrust direction of the front-right rotor has length 2; it must be a unit "
                 r"vector", id='direction-not-unit'),
    pytest.param('dynamics.action_limit', {'min': 1, 'max': .5},
                 r"action_limit\.min is 1 and action_limit\.max 0\.5; the minimum must be below",
                 id='limits-reversed'),
    pytest.param('dynamics.gravity', [0, 0, 0], r"gravity is zero", id='no-gravity'),
    pytest.param('dynamics.gravity', [0, 0, 9.81], r"cannot hover: full throttle lifts -63\.7 N",
                 id='gravity-upwards'),
    pytest.param('dynamics.hovering_throttle_relative', .9,
                 r"hovering_throttle_relative is 0\.9 but this thrust curve hovers at 0\.55496",
                 id='stale-hover-throttle'),
    pytest.param('name', '../x500', r"name must be 1 to 100 letters", id='path-in-name'),
    pytest.param('name', '', r"name must be 1 to 100 letters", id='empty-name'),
    pytest.param('name', 5, r"name is 5; it must be a text, not a number", id='number-for-name'),
    pytest.param('mdp.init.guidance', 1.5, r"mdp\.init\.guidance is 1\.5; it must be at most 1",
                 id='probability-over-one'),
    pytest.param('mdp.init.min_rpm', .5,
                 r"mdp\.init\.min_rpm is 0\.5 and max_rpm 0; the minimum must not exceed",
                 id='rotor-speeds-reversed'),
    pytest.param('mdp.termination.enabled', 1,
                 r"enabled is 1; it must be true or false, not a number", id='number-for-boolean'),
    pytest.param('mdp.termination.position_threshold', 0,
                 r"position_threshold is 0 m; it must be a positive number", id='zero-threshold'),
    pytest.param('mdp.observation_noise.position', -1.,
                 r"observation_noise\.position is -1\.0; it must be at least 0",
                 id='negative-noise'),
    pytest.param('integration.dt', 0, r"integration\.dt is 0 s; it must be a positive number",
                 id='zero-step'),
    pytest.param('disturbances.random_force', {'std': 1e6},
                 r"random_force is 1e\+06 N; at most 1000 times the weight", id='hurricane'),
    pytest.param('trajectory', {'MIXTURE_N': 3}, r"unknown key trajectory",
                 id='foreign-trajectory'),
]


@pytest.mark.parametrize('path, value, message', BAD_VALUES)
def test_bad_drone_is_refused_in_one_sentence(path, value, message):
    data = changed(path, value)
    if path in ('dynamics.J', 'dynamics.rotor_thrust_coefficients', 'dynamics.rotor_positions', 'dynamics.mass', 'dynamics.gravity'):
        if path == 'dynamics.J': del data['dynamics']['J_inv']
        del data['dynamics']['hovering_throttle_relative']
    with pytest.raises(DroneError, match=message) as caught: parse_drone(data, 'fleet/x500.json')
    assert '\n' not in str(caught.value)
    assert '(fleet/x500.json)' in str(caught.value)
    assert len(str(caught.value)) < 300


TEXT = json.dumps(X500)
BAD_FILES = [
    pytest.param(b'', r"is empty; it must be a JSON object", id='empty-file'),
    pytest.param(b'  \n', r"is empty; it must be a JSON object", id='blank-file'),
    pytest.param(TEXT[:700].encode(), r"ends too early \(is the file truncated\?\) at line 1",
                 id='truncated-file'),
    pytest.param(b'mass: 2', r"is not valid JSON: Expecting value at line 1, column 1",
                 id='not-json'),
    pytest.param(b'[1, 2]', r"is a list; it must be a JSON object", id='json-list'),
    pytest.param(b'null', r"is null; it must be a JSON object", id='json-null'),
    pytest.param(TEXT.replace('"mass": 2', '"mass": 2, "mass": 3').encode(),
                 r"key mass appears twice", id='duplicate-key'),
    pytest.param(TEXT.replace('"mass": 2', '"mass": 1e400').encode(),
                 r"mass is inf; it must be a finite number", id='1e400'),
    pytest.param(TEXT.replace('"mass": 2', '"mass": NaN').encode(),
                 r"mass is nan; it must be a finite number", id='json-nan'),
    pytest.param(TEXT.replace('"mass": 2', '"mass": ' + '9' * 5000).encode(),
                 r"contains a number with too many digits", id='5000-digits'),
    pytest.param(b'[' * 100000, r"is nested too deeply to be a drone", id='nested-lists'),
    pytest.param(b'{"a":' * 100000, r"is nested too deeply to be a drone", id='nested-objects'),
    pytest.param(b'{"dynamics":' + b'[' * 900 + b']' * 900 + b'}',
                 r"dynamics is .*it must be a JSON object, not a list", id='nested-value'),
    pytest.param(b'\xff\xfe{\x00', r"is not UTF-8 text \(byte 0\)", id='not-utf8'),
    pytest.param(b'\x89HDF\r\n\x1a\n' + bytes(100), r"is not UTF-8 text", id='hdf5-file'),
    pytest.param(b' ' * 1_000_001, r"is 1000001 bytes long", id='enormous-file'),
]


@pytest.mark.parametrize('content, message', BAD_FILES)
def test_bad_drone_file_is_refused_in_one_sentence(tmp_path, content, message):
    path = tmp_path / 'bad.json'
    path.write_bytes(content)
    with pytest.raises(DroneError, match=message) as caught: load_drone(path)
    assert '\n' not in str(caught.value) and 'bad.json' in str(caught.value)
    assert path.read_bytes() == content


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no drone file .*nosuch\.json; give a JSON file or one of arpl, crazyflie"):
        load_drone(tmp_path / 'nosuch.json')
    with pytest.raises(IsADirectoryError, match="is a directory; load_drone needs one JSON file"):
        load_drone(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no drone"): load_fleet(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no fleet file"):
        load_fleet(tmp_path / 'drones.json')


def test_the_constructor_says_the_same_as_the_loader():
    with pytest.raises(DroneError, match=r"^drone 'x500': dynamics\.mass is -1 kg; it must be a positive number$"):
        Drone(**changed('dynamics.mass', -1))


def test_the_plans_crazyflie_lacks_what_cannot_be_derived():
    z, plan = [[0., 0., 1.]] * 4, {'name': 'Crazyflie', 'dynamics': {
        'rotor_positions': [[.028, -.028, 0.], [-.028, -.028, 0.], [-.028, .028, 0.], [.028, .028, 0.]], 'rotor_torque_constants': [.005] * 4,
        'rotor_torque_directions': [[0., 0., -1.], [0., 0., 1.], [0., 0., -1.], [0., 0., 1.]], 'mass': .027, 'gravity': [0., 0., -9.81],
        'J': [[1.65e-5, 0., 0.], [0., 1.65e-5, 0.], [0., 0., 2.92e-5]], 'rotor_time_constants_rising': [.05] * 4, 'rotor_time_constants_falling': [.07] * 4},
        'mdp': {'init': {'max_position': .5, 'max_angle': 1.57, 'max_linear_velocity': 1., 'max_angular_velocity': 1.}}}
    plan['dynamics']['rotor_thrust_directions'] = z
    with pytest.raises(DroneError, match=r"drone 'Crazyflie' \(crazyflie\.json\): dynamics\.rotor_thrust_coefficients is missing"):
        parse_drone(plan, 'crazyflie.json')
    plan['dynamics']['rotor_thrust_coefficients'] = same([.00352526, .01437313, .09223048])
    drone = parse_drone(plan) # now J_inv, hover throttle, action limits and thresholds follow
    assert drone.dynamics.J_inv[2][2] == pytest.approx(1 / 2.92e-5)
    assert drone.dynamics.action_limit.max == 1
    assert drone.mdp.init.max_position == .5
    assert drone.mdp.termination.position_threshold == pytest.approx(20 * .028 * 2 ** .5)


# ---- what a good drone is

EXPECTED = {'arpl': (.782, 3.9368, .28068), 'crazyflie': (.0306, 1.46748, .80612), 'flightmare': (.73, 12.125, .24623), 'fs': (3.35, 3.40142, .43667),
            'mrs': (1.7, 2.69172, .55807), 'soft': (.97, 3.3111, .42904), 'x500': (2., 3.24692, .55496)}


@pytest.mark.parametrize('name', REAL)
def test_real_drone(name):
    drone = real_drones()[name]
    assert (drone.mass, drone.thrust_to_weight, drone.hover_throttle) == pytest.approx(EXPECTED[name], rel=1e-4)
    d, limit = drone.dynamics, drone.dynamics.action_limit
    w = limit.min + drone.hover_throttle * (limit.max - limit.min)
    assert sum(c0 + c1 * w + c2 * w * w for c0, c1, c2 in d.rotor_thrust_coefficients) == pytest.approx(drone.weight, rel=1e-9)
    assert np.asarray(d.J) @ np.asarray(d.J_inv) == pytest.approx(np.eye(3), abs=1e-6)
    assert drone.hover_action == pytest.approx(2 * drone.hover_throttle - 1)


def test_published_defaults():
    drone = load_drone('custom')
    reward = drone.mdp.reward.model_dump()
    assert {k: v for k, v in reward.items() if v} == dict(scale=1., constant=1.5, termination_penalty=-100., position=1., orientation=.1, d_action=1.)
    assert drone.mdp.init.model_dump() == dict(guidance=.1, max_position=pytest.approx(10 * .08 * 2 ** .5), max_angle=pytest.approx(np.pi / 2), max_linear_velocity=1.,
                                               max_angular_velocity=1., relative_rpm=True, min_rpm=-1., max_rpm=0.)
    assert drone.mdp.termination.linear_velocity_threshold == 2
    assert drone.mdp.termination.angular_velocity_threshold == 35


def test_hover_speed_keeps_its_digits_for_tiny_curvature():
    assert hover_speed([0, 10., 1e-14], 5.) == pytest.approx(.5, rel=1e-12)
    assert hover_speed([-.53, 8.97, -.891], 1.918) == pytest.approx(.280769, abs=2e-4)
    assert np.isnan(hover_speed([0, 1., -1.], 5.))


def test_a_drone_is_frozen_and_hashable():
    drone = load_drone('x500')
    with pytest.raises(ValueError): drone.name = 'other'
    assert len({drone, load_drone('x500'), load_drone('fs')}) == 2


# ---- files

def test_every_digit_survives(tmp_path):
    fleet = sample_fleet(20) + list(real_drones().values()) + [with_conditions(load_drone('mrs'), observation_noise=.02, force=.1)]
    assert [parse_drone(d.to_json()) for d in fleet] == fleet
    assert load_fleet(save_fleet(fleet, tmp_path / 'drones.json')) == fleet
    assert not [p for p in tmp_path.iterdir() if p.name != 'drones.json']


def test_l2f_text_reads_back_as_the_same_drone():
    for drone in sample_fleet(5) + list(real_drones().values()):
        again = parse_drone(json.loads(drone.to_l2f()) | {'name': drone.name, 'note': drone.note})
        assert again == drone


def test_drone_files(tmp_path):
    paths = write_drone_files(tmp_path / 'dynamics', 12, 'wide_rotor_lag', 3)
    assert [p.name for p in paths] == [f'{i:04d}.json' for i in range(12)]
    assert load_fleet(tmp_path / 'dynamics') == sample_fleet(12, 'wide_rotor_lag', 3)
    (tmp_path / 'dynamics' / '0003.json').write_text('{"dynamics"')
    with pytest.raises(DroneError, match=r"0003\.json\): ends too early"):
        load_fleet(tmp_path / 'dynamics')


def test_a_bad_fleet_names_its_entry(tmp_path):
    path = tmp_path / 'drones.json'
    path.write_text(json.dumps([X500, changed('dynamics.mass', -1)]))
    with pytest.raises(DroneError, match=r"drone 'x500' \(.*drones\.json, entry 1\): dynamics\.mass is -1 kg"):
        load_fleet(path)
    path.write_text('[]')
    with pytest.raises(DroneError, match="must be a JSON list of at least one drone"):
        load_fleet(path)


# ---- the distribution

def test_the_old_name_of_a_distribution_is_understood():
    assert sample_drone(17, 'plan') == sample_drone(17, 'wide_rotor_lag')


def test_a_drone_does_not_depend_on_the_fleet():
    fleet = sample_fleet(30)
    assert fleet[17] == sample_drone(17) == sample_fleet([3, 17])[1]
    assert sample_drone(17, seed=1) != fleet[17]
    assert sample_drone(17, 'wide_rotor_lag').mass != fleet[17].mass
    assert sample_parameters('published', 17) == sample_parameters('published', 17)


def test_published_drone_is_what_was_drawn():
    for i in range(50):
        n, drone = sample_parameters('published', i), sample_drone(i)
        assert (drone.mass, drone.thrust_to_weight, drone.torque_to_inertia) == pytest.approx((n['mass'], n['thrust_to_weight'], n['torque_to_inertia']), rel=1e-9)
        template = load_drone('crazyflie')
        assert drone.arm_length / template.arm_length == pytest.approx(np.cbrt(n['mass'] / template.mass) * n['size_factor'], rel=1e-9)
        assert drone.mdp.init.max_position == pytest.approx(10 * drone.arm_length)
        assert drone.mdp.termination.position_threshold == pytest.approx(20 * drone.arm_length)
        ratio = np.asarray(drone.dynamics.J).diagonal() / np.asarray(template.dynamics.J).diagonal()
        assert ratio == pytest.approx(ratio[0], rel=1e-9)
        assert 0 <= drone.disturbances.random_force.std <= .1 * (n['thrust_to_weight'] - 1) * n['thrust_to_weight'] * n['mass']


@pytest.mark.parametrize('name', sorted(DISTRIBUTIONS))
def test_distribution_follows_its_definition(name):
    assert check_distribution(sample_fleet(600, name, seed=5), name).ok.all()


def test_the_check_notices_a_wrong_distribution():
    heavy = Distribution('heavy', 7, mass=(1., 5.))
    assert not check_distribution(sample_fleet(200, heavy), 'published').ok['mass']
    assert check_distribution(sample_fleet(200, heavy), heavy).ok['mass']


def test_no_two_splits_share_a_drone():
    splits = sorted(SPLITS.values(), key=lambda ids: ids[0])
    assert all(a[-1] < b[0] for a, b in zip(splits, splits[1:]))


def test_splits_are_those_of_the_published_reports():
    first = {name: SPLITS[name][0] for name in ('train', 'validation', 'selection', 'ood_selection', 'test')}
    assert first == dict(train=0, validation=500_000, selection=510_000, ood_selection=520_000, test=1_000_000)


def test_drones_of_a_split_are_those_of_its_ids():
    assert sample_split('test', 3, start=2) == sample_fleet(range(1_000_002, 1_000_005))
    assert sample_split('extra_train', 0) == []


@pytest.mark.parametrize('call, message', [
    pytest.param(lambda: sample_split('tets', 2), "there is no split 'tets'; choose one of train",
                 id='unknown-split'),
    pytest.param(lambda: sample_split('test', -2),
                 "number of test drones is -2; it must be a whole number", id='negative-split'),
    pytest.param(lambda: sample_split('selection', 9, start=9_995),
                 "'selection' has 10000 drones; 10004 were", id='split-too-small'),
    pytest.param(lambda: sample_drone(-1), "id is -1; it must be a whole number",
                 id='negative-drone-id'),
    pytest.param(lambda: sample_drone(1.5), "id is 1.5; it must be a whole number",
                 id='fractional-drone-id'),
    pytest.param(lambda: sample_drone(0, seed=-3), "seed is -3; it must be a whole number",
                 id='negative-seed'),
    pytest.param(lambda: sample_fleet(4, 'publshed'),
                 "there is no distribution 'publshed'; choose one of published, wide_rotor_lag",
                 id='unknown-distribution'),
    pytest.param(lambda: sample_fleet(-4), "n is -4; it must be a whole number",
                 id='negative-fleet-size'),
    pytest.param(lambda: with_conditions(load_drone('x500'), force='strong'),
                 "force is 'strong'; it must be a number", id='text-for-force'),
    pytest.param(lambda: with_conditions(load_drone('x500'), guidance=2),
                 r"mdp\.init\.guidance is 2; it must be at most 1", id='guidance-over-one'),
    pytest.param(lambda: with_conditions(load_drone('x500'), observation_noise=-.1),
                 r"observation_noise\.position is -0\.1; it must be at least 0",
                 id='negative-observation-noise'),
])
def test_bad_sampling_and_variation(call, message):
    with pytest.raises(DroneError, match=message): call()


def test_vary_changes_what_was_asked_and_nothing_else():
    drone = load_drone('x500')
    other = with_conditions(drone, observation_noise=.03, force=.1, velocity_limit=False, guidance=1., max_angle=.5)
    noise = other.mdp.observation_noise
    assert (noise.position, noise.orientation, noise.linear_velocity, noise.angular_velocity) == pytest.approx((.03, .03, .06, .15))
    assert other.disturbances.random_force.std == pytest.approx(.1 * 2 * 9.81)
    assert other.mdp.termination.linear_velocity_threshold == 1e6
    assert (other.mdp.init.guidance, other.mdp.init.max_angle) == (1, .5)
    assert other.dynamics == drone.dynamics
    assert other.mdp.reward == drone.mdp.reward
    assert with_conditions(drone) == drone
    assert with_conditions(other, velocity_limit=True).mdp.termination.linear_velocity_threshold == 2


def test_figures_return_their_axis():
    import matplotlib.pyplot as plt
    _, ax = plt.subplots()
    fleet = sample_fleet(20)
    assert plot_fleet(fleet, ax, names=True) is ax and ax.get_xlabel() == 'mass, kg'
    assert plot_thrust(fleet[:2], ax) is ax
    assert plot_quantity(recover_parameters(fleet).mass, 'mass', 'published', ax) is ax
    assert len(drone_table(fleet)) == 20
    plt.close('all')


# ---- l2f

@pytest.fixture(scope='module')
def flown():
    "A function that gives a drone to l2f and flies one step from a reset"
    l2f = pytest.importorskip('l2f')
    device, environment, rng = l2f.Device(), l2f.Environment(), l2f.Rng()
    l2f.initialize_environment(device, environment)
    l2f.initialize_rng(device, rng, 0)

    def fly(drone):
        parameters, state, after = l2f.Parameters(), l2f.State(), l2f.State()
        l2f.initial_parameters(device, environment, parameters)
        l2f.parameters_from_json(device, environment, drone.to_l2f(), parameters)
        l2f.sample_initial_state(device, environment, parameters, state, rng)
        l2f.step(device, environment, parameters, state, [1., -1., .3, 1.], after, rng)
        return json.loads(l2f.parameters_to_json(device, environment, parameters)), np.concatenate([after.position, after.orientation, after.linear_velocity, after.angular_velocity, after.rpm])
    return fly


def flat(value, path=''):
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f'{path}.{key}').items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f'{path}[{i}]').items()}
    return {path: value}


@pytest.mark.parametrize('drone', sample_fleet(10) + list(real_drones().values()), ids=lambda d: d.name)
def test_l2f_reads_every_number(flown, drone):
    seen, after = flown(drone)
    want, got = flat(json.loads(drone.to_l2f())), flat(seen)
    assert got.keys() == want.keys()
    for key, value in want.items(): # six decimals of a float32
        assert got[key] == (value if isinstance(value, bool) else pytest.approx(value, rel=1e-6, abs=6e-7)), key
    assert np.isfinite(after).all()


def test_l2f_accelerates_by_our_numbers(flown):
    "The inertia that l2f does not print: hover, one rotor up, and the roll rate must follow from thrust, arm and inertia"
    l2f = pytest.importorskip('l2f')
    for drone in sample_fleet(5):
        device, environment, rng, parameters, state, after = l2f.Device(), l2f.Environment(), l2f.Rng(), l2f.Parameters(), l2f.State(), l2f.State()
        l2f.initialize_environment(device, environment)
        l2f.initialize_rng(device, rng, 0)
        l2f.initial_parameters(device, environment, parameters)
        l2f.parameters_from_json(device, environment, drone.to_l2f(), parameters)
        l2f.initial_state(device, environment, parameters, state)
        u = drone.hover_throttle
        state.rpm = [u, u, u, 1.]
        l2f.step(device, environment, parameters, state, [2 * u - 1] * 3 + [1.], after, rng)
        d = drone.dynamics
        push = np.array([np.dot(d.rotor_thrust_coefficients[0], [1, w, w * w]) for w in (u, u, u, 1.)])
        torque = np.array([np.sum(push * np.asarray(d.rotor_positions)[:, 1]), -np.sum(push * np.asarray(d.rotor_positions)[:, 0])])
        assert np.asarray(after.angular_velocity)[:2] == pytest.approx(.01 * torque / np.asarray(d.J).diagonal()[:2], rel=2e-2)


# ---- no JSON whatever

numbers = st.one_of(st.floats(), st.integers(), st.sampled_from([0, -1, 1e-45, 1e-12, 1e-6, 1e6, 1e12, 1e38, 1e308, 10 ** 400, True]))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
anything = st.recursive(scalars, lambda part: st.lists(part, max_size=5) | st.dictionaries(st.text(max_size=8) | st.sampled_from(['dynamics', 'mass', 'J', 'mdp', 'name', 'self']), part, max_size=5), max_leaves=20)
BASES = [load_drone(n).to_dict() for n in ('x500', 'crazyflie', 'arpl', 'mrs', 'custom')]


@st.composite
def mutated(draw_):
    "A valid drone with up to three places replaced, scaled or removed"
    data = json.loads(json.dumps(draw_(st.sampled_from(BASES))))
    for derived in draw_(st.sets(st.sampled_from(['J_inv', 'hovering_throttle_relative']))):
        data['dynamics'].pop(derived)
    for _ in range(draw_(st.integers(1, 3))):
        place = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys: break
            key = draw_(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and draw_(st.integers(0, 9)):
                place = place[key]
                continue
            how = draw_(st.sampled_from(['replace', 'scale', 'scale', 'number', 'remove']))
            if how == 'scale' and isinstance(place[key], float):
                place[key] *= draw_(st.sampled_from([-1., 1e-6, 1e-3, .1, .5, 1.1, 2., 10., 1e3, 1e6]))
            elif how == 'number': place[key] = draw_(numbers)
            elif how == 'remove': del place[key]
            else: place[key] = draw_(anything)
            break
    return data


def check_text(text, flown):
    try: drone = parse_drone(text, 'any')
    except DroneError as error:
        assert '\n' not in str(error) and len(str(error)) < 500
        return False
    assert parse_drone(drone.to_json()) == drone
    assert np.isfinite(flown(drone)[1]).all(), drone
    return True


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(anything.map(json.dumps), st.text(), st.binary(max_size=50)))
def test_no_json_whatever_crashes_the_loader(flown, text): check_text(text, flown)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_a_mutated_drone_is_refused_or_flies(flown, data): check_text(json.dumps(data), flown)


def test_mutations_reach_both_ends(flown):
    "The property above would be empty if every mutation were refused"
    rng, accepted = np.random.default_rng(0), 0
    for _ in range(200):
        data = json.loads(json.dumps(BASES[rng.integers(5)]))
        data['dynamics'].pop('hovering_throttle_relative')
        data['dynamics'].pop('J_inv')
        data['dynamics']['mass'] *= 10 ** rng.uniform(-3, .5)
        data['dynamics']['J'] = (np.asarray(data['dynamics']['J']) * 10 ** rng.uniform(-3, 3)).tolist()
        accepted += check_text(json.dumps(data), flown)
    assert 50 < accepted < 200
