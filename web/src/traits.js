// What real drones have, with the numbers and in the order of raptor_nb.sim.traits and raptor_nb.sim.loops.
// A trait is 0 where a drone has not got it. Shares, rad, rad/s, s and m/s.
import { clamp, length, prepare, thrust } from './physics.js';
import { hoverThrottle, hoverThrusts } from './drones.js';

export const NONE = {
  weak_rotor: 0, unequal_rotors: 0,          // shares of the thrust; as much slower
  off_centre: 0,                             // of the arm
  motor_curve: 0, quantised: 0,              // exponent of thrust over command; bits
  sag: 0, payload: 0,                        // shares of the thrust and of the mass
  drag: 0, wind: 0,                          // 1 is the drag below; m/s
  gyro_bias: 0, mounting: 0,                 // rad/s, rad
  velocity_filter: 0, velocity_delay: 0,     // s
  repeated: 0,                               // share of the observations
  loop: '',                                  // of LOOPS
};
export const DRAG = { linear: 0.3, quadratic: 0.02 }; // 1/s and 1/m, times the mass
export const ABLE = 0.9;                              // share of its full thrust that a rotor may need in hover
// Calls a second; largest errors shown on each axis, m and m/s; previous action at the first call; whether commands are limited
export const LOOPS = {
  '': { rate: 100, position: Infinity, velocity: Infinity, first: null, clamp: false }, // as in training
  px4: { rate: 400, position: 0.5, velocity: 1, first: 0, clamp: true },
  crazyflie: { rate: 1000, position: 0.5, velocity: 2, first: 0, clamp: true },
  betaflight: { rate: 2000, position: 0.6, velocity: 2, first: -1, clamp: true },
};

// What is random about the traits of a drone: which rotor, and directions
export function chances({ uniform, normal }) {
  const unit = (n) => { const x = Array.from({ length: n }, normal), size = length(x); return x.map((a) => a / size); };
  const four = () => Array.from({ length: 4 }, () => 2 * uniform() - 1);
  return { rotor: Math.floor(4 * uniform()), thrust: four(), lag: four(), off: 2 * Math.PI * uniform(), bias: unit(3), askew: unit(2) };
}

// ---- the drone ----------------------------------------------------------------------------------------------------
export function withTraits(drone, t, chance) { // -> the drone that flies; itself without traits
  if (!(t.weak_rotor || t.unequal_rotors || t.off_centre || t.payload)) return drone;
  const d = drone.dynamics, arm = Math.max(...d.rotor_positions.map(length));
  const weak = (i) => (i === chance.rotor ? t.weak_rotor : 0), off = [Math.cos(chance.off), Math.sin(chance.off), 0].map((x) => t.off_centre * arm * x);
  const strength = (i) => (1 - weak(i)) * (1 + t.unequal_rotors * chance.thrust[i]), slower = (x, i) => x * (1 + weak(i)) * (1 + t.unequal_rotors * chance.lag[i]);
  const made = {
    ...d, mass: d.mass * (1 + t.payload),
    rotor_positions: d.rotor_positions.map((p) => p.map((x, k) => x - off[k])),
    rotor_thrust_coefficients: d.rotor_thrust_coefficients.map((c, i) => c.map((x) => x * strength(i))),
    rotor_time_constants_rising: d.rotor_time_constants_rising.map(slower),
    rotor_time_constants_falling: d.rotor_time_constants_falling.map(slower),
  };
  return prepare({ ...made, hovering_throttle_relative: clamp(hoverThrottle(made), 0, 1) });
}

const dragOver = (speed) => (DRAG.linear + DRAG.quadratic * speed) * speed; // m/s^2
export const dragShare = (speed) => dragOver(speed) / 9.81;                 // of the weight

// Share of its full thrust that the busiest rotor needs in hover, everything considered; `drone` as `withTraits` made it
export function rotorLoad(drone, t) {
  const most = Math.max(...hoverThrusts(drone.dynamics).map((need, i) => need / thrust(drone, i, drone.high)));
  return most * Math.hypot(1, t.drag * dragShare(t.wind)) / (1 - t.sag);
}

// ---- commands -----------------------------------------------------------------------------------------------------
const speedOf = (drone, u) => drone.low + (drone.high - drone.low) * (u + 1) / 2;

function commandFor(drone, i, newtons) { // the command, -1..1, that gives this thrust
  const [c0, c1, c2] = drone.curve[i], gap = c0 - newtons, bottom = c1 + Math.sqrt(Math.max(c1 * c1 - 4 * c2 * gap, 0));
  const speed = bottom ? -2 * gap / bottom : 0;
  return clamp(2 * (speed - drone.low) / (drone.high - drone.low) - 1, -1, 1);
}

export function motors(action, drone, t) { // what the rotors of the physics are told
  if (!(t.quantised || t.motor_curve || t.sag)) return action;
  const steps = 2 ** t.quantised - 1;
  return action.map((a, i) => {
    let u = clamp(a, -1, 1);
    if (t.quantised) u = 2 * Math.round(steps * (u + 1) / 2) / steps - 1;
    if (t.motor_curve) {
      const [least, most] = [-1, 1].map((x) => thrust(drone, i, speedOf(drone, x)));
      u = commandFor(drone, i, least + (most - least) * ((u + 1) / 2) ** t.motor_curve);
    }
    return t.sag ? commandFor(drone, i, (1 - t.sag) * thrust(drone, i, speedOf(drone, u))) : u;
  });
}

// ---- air ----------------------------------------------------------------------------------------------------------
export function dragForce(mass, velocity, air, t) { // N; velocity of drone and air, m/s
  if (!t.drag) return [0, 0, 0];
  const through = air.map((x, i) => x - velocity[i]), speed = length(through);
  return through.map((x) => t.drag * mass * (DRAG.linear + DRAG.quadratic * speed) * x);
}

// ---- sensors ------------------------------------------------------------------------------------------------------
function turn(angle, [x, y]) { // about a horizontal axis
  const c = Math.cos(angle), s = Math.sin(angle), r = 1 - c;
  return [[c + r * x * x, r * x * y, s * y], [r * x * y, c + r * y * y, -s * x], [-s * y, s * x, c]];
}
const through = (row, m) => [0, 1, 2].map((j) => row[0] * m[0][j] + row[1] * m[1][j] + row[2] * m[2][j]);

export class Sensors { // changes what is seen (22 values), before the target is taken off
  constructor() { Object.assign(this, { slow: null, past: [], last: null }); }

  show(seen, t, chance, random, dt) {
    const put = (at, values) => values.forEach((x, i) => { seen[at + i] = x; });
    if (t.gyro_bias) for (let i = 0; i < 3; i++) seen[15 + i] += t.gyro_bias * chance.bias[i];
    if (t.mounting) {
      const m = turn(t.mounting, chance.askew);
      for (const at of [3, 6, 9, 15]) put(at, through(seen.slice(at, at + 3), m));
    }
    const now = seen.slice(12, 15), keeps = t.velocity_filter ? Math.exp(-dt / t.velocity_filter) : 0;
    this.slow = this.slow ? now.map((x, i) => x + keeps * (this.slow[i] - x)) : now;
    this.past.push(this.slow);
    const late = Math.round(t.velocity_delay / dt);
    put(12, this.past[Math.max(this.past.length - 1 - late, 0)]);
    while (this.past.length > late + 1) this.past.shift();
    if (t.repeated && random.uniform() < t.repeated && this.last) put(0, this.last);
    this.last = seen.slice(0, 18);
  }
}

// ---- loops --------------------------------------------------------------------------------------------------------
export class Commands { // the mean of the commands since the hidden state moved: the previous action of a loop
  constructor(loop) { Object.assign(this, { loop, count: 0, total: null }); }

  previous(shown) {
    if (this.count) return this.total.map((x) => x / this.count);
    return this.loop.first === null ? shown : Array(4).fill(this.loop.first);
  }

  give(action, moved) {
    const command = this.loop.clamp ? action.map((a) => clamp(a, -1, 1)) : action;
    this.total = moved ? command : this.total.map((x, i) => x + command[i]);
    this.count = moved ? 1 : this.count + 1;
    return command;
  }
}

// What a policy sees of errors that are too large: within `reach` (m) as a ball, or on each axis as a flight stack clips them
export function clipErrors(seen, loop, reach) {
  if (loop.position === Infinity) {
    const share = Math.min(1, reach / Math.max(Math.hypot(seen[0], seen[1], seen[2]), 1e-9));
    for (let i = 0; i < 3; i++) seen[i] *= share;
    return;
  }
  for (let i = 0; i < 3; i++) {
    seen[i] = clamp(seen[i], -loop.position, loop.position);
    seen[12 + i] = clamp(seen[12 + i], -loop.velocity, loop.velocity);
  }
}
