// A drone file, such as raptor_identify writes: checked as raptor_nb.drones.parse_drone does, in one sentence
import { cross, dot, length, prepare, thrust } from './physics.js';
import { hoverThrottle, hoverThrusts } from './drones.js';

const ROTORS = ['front-right', 'back-right', 'back-left', 'front-left'];
const ASKED = { // what a drone must say: the shape of the numbers, the least and the most of each
  mass: [[], 1e-4, 1e5], rotor_positions: [[4, 3], -100, 100], rotor_thrust_directions: [[4, 3], -1e9, 1e9], rotor_torque_directions: [[4, 3], -1e9, 1e9],
  rotor_thrust_coefficients: [[4, 3], -1e9, 1e9], rotor_torque_constants: [[4], 1e-12, 100], rotor_time_constants_rising: [[4], 0.004, 100],
  rotor_time_constants_falling: [[4], 0.004, 100], J: [[3, 3], -1e9, 1e9],
};
const GIVEN = { gravity: [[3], -1e3, 1e3], J_inv: [[3, 3], -1e9, 1e9], hovering_throttle_relative: [[], -1e9, 1e9] }; // what it may say
const LARGEST = 1e6; // characters
const refuse = (sentence) => { throw new RangeError(sentence); };
const short = (x) => Number(x.toPrecision(4));

function checkNumbers(name, value, [shape, least, most]) {
  const wanted = shape.length ? `${shape.join(' times ')} numbers` : 'a number';
  const fits = (x, [n, ...rest]) => (n === undefined ? Number.isFinite(x) : Array.isArray(x) && x.length === n && x.every((y) => fits(y, rest)));
  if (!fits(value, shape)) refuse(`dynamics.${name} must be ${wanted}`);
  const wrong = [value].flat(2).find((x) => x < least || x > most);
  if (wrong !== undefined) refuse(`dynamics.${name} has ${wrong}; it must be from ${least} to ${most}`);
}

function parsed(text) {
  if (text.length > LARGEST) refuse(`it has ${text.length} characters; a drone takes a few thousand`);
  if (!text.trim()) refuse('it is empty; it must be a JSON object');
  try { return JSON.parse(text); } catch { return refuse('it is not valid JSON'); }
}

const plain = (x) => x !== null && typeof x === 'object' && !Array.isArray(x);

export function readDrone(text, file = 'drone.json') { // -> { name, dynamics }. Raises RangeError, a sentence
  const data = parsed(text);
  if (!plain(data) || !plain(data.dynamics)) refuse('it must be a JSON object with name and dynamics');
  const { name = file.replace(/\.json$/i, ''), dynamics: d } = data;
  if (typeof name !== 'string' || !/^[\p{L}\p{N}_][\p{L}\p{N}_ .+-]{0,99}$/u.test(name)) refuse('its name must be 1 to 100 letters, digits, spaces or . _ + -');
  for (const key of Object.keys(d)) if (!(key in ASKED || key in GIVEN || key === 'action_limit')) refuse(`dynamics has ${key}, which no drone has`);
  for (const [key, how] of Object.entries(ASKED)) { if (d[key] === undefined) refuse(`dynamics.${key} is missing`); checkNumbers(key, d[key], how); }
  for (const [key, how] of Object.entries(GIVEN)) if (d[key] !== undefined) checkNumbers(key, d[key], how);
  const { min = 0, max = 1 } = d.action_limit ?? {}, gravity = d.gravity ?? [0, 0, -9.81];
  if (!(min >= 0 && max >= 1e-3 && max - min > 1e-6 * max)) refuse('dynamics.action_limit must have a min of 0 or more and a larger max');
  if (!(gravity[2] < -1e-3) || gravity[0] || gravity[1]) refuse('dynamics.gravity must point down, usually [0, 0, -9.81] m/s²');
  const dynamics = { ...d, gravity, action_limit: { min, max } };
  checkBody(dynamics);
  dynamics.J_inv = inverse(d.J);
  dynamics.hovering_throttle_relative = hoverThrottle(dynamics);
  checkHover(dynamics);
  return { name, dynamics };
}

// ---- what makes a drone possible ----------------------------------------------------------------------------------
function checkBody(d) {
  for (const kind of ['thrust', 'torque']) d[`rotor_${kind}_directions`].forEach((v, i) => {
    if (!(Math.abs(length(v) - 1) <= 1e-4)) refuse(`the ${kind} direction of the ${ROTORS[i]} rotor has length ${short(length(v))}; it must be a unit vector`);
  });
  const most = Math.max(...d.J.flat().map(Math.abs)), gap = (i, j) => Math.abs(d.J[i][j] - d.J[j][i]) > 1e-6 * most;
  if (gap(0, 1) || gap(0, 2) || gap(1, 2)) refuse('the inertia J is not symmetric');
  if (!(semidefinite(d.J) && det(d.J) > 1e-12 * most ** 3)) refuse('the inertia J is singular or negative; all its principal values must be positive');
  const half = (d.J[0][0] + d.J[1][1] + d.J[2][2]) / 2; // where the mass is: its second moments must not be negative
  if (!semidefinite(d.J.map((row, i) => row.map((x, j) => (i === j ? half * (1 + 1e-6) : 0) - x)))) refuse('the inertia J breaks the triangle inequality; no body has such an inertia');
}

const det = ([a, b, c]) => dot(a, cross(b, c));
const minor = (m, i, j) => m[i][i] * m[j][j] - m[i][j] * m[j][i];
const semidefinite = (m) => [m[0][0], m[1][1], m[2][2], minor(m, 0, 1), minor(m, 0, 2), minor(m, 1, 2), det(m)].every((x) => x >= 0);
function inverse(m) {
  const [a, b, c] = m, columns = [cross(b, c), cross(c, a), cross(a, b)], by = det(m);
  return [0, 1, 2].map((i) => columns.map((v) => v[i] / by));
}

function checkHover(dynamics) {
  const drone = prepare(dynamics), { low, high } = drone, weight = dynamics.mass * length(dynamics.gravity);
  for (const [i, [, c1, c2]] of dynamics.rotor_thrust_coefficients.entries()) {
    const top = thrust(drone, i, high), slope = Math.min(c1 + 2 * c2 * low, c1 + 2 * c2 * high);
    if (!(top > 0)) refuse(`the ${ROTORS[i]} rotor gives ${short(top)} N at full throttle; it must push`);
    if (slope < -1e-9 * top / high) refuse(`the thrust of the ${ROTORS[i]} rotor falls as it turns faster; it must never fall`);
  }
  const lift = (w) => dynamics.rotor_thrust_directions.reduce((sum, v, i) => sum + v[2] * thrust(drone, i, w), 0);
  if (!(lift(high) > weight)) refuse(`it cannot hover: full throttle lifts ${short(lift(high))} N and it weighs ${short(weight)} N`);
  if (!(lift(low) < weight)) refuse(`it cannot hover: the lowest throttle already lifts ${short(lift(low))} N and it weighs ${short(weight)} N`);
  const need = hoverThrusts(dynamics);
  if (!need) refuse('it cannot hover: its rotors leave lift, roll, pitch or yaw without control');
  need.forEach((f, i) => {
    const [least, most] = [low, high].map((w) => thrust(drone, i, w));
    if (!(f >= least && f <= most)) refuse(`it cannot hover: the ${ROTORS[i]} rotor would have to push ${short(f)} N and can push ${short(least)} to ${short(most)} N`);
  });
}
