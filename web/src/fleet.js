// The training fleet: drones as raptor_nb.drones samples them, and as the kernels read them
import { DT, length, prepare } from './physics.js';
import { describe, hoverThrottle, scaled } from './drones.js';

const between = (random, [low, high]) => low + random.uniform() * (high - low);

// What is random about a drone; `d` is a Distribution of the package
export function sampleParameters(d, random) {
  const out = { thrust_to_weight: between(random, d.thrust_to_weight), mass: between(random, d.mass.map(Math.cbrt)) ** 3, torque_to_inertia: between(random, d.torque_to_inertia) };
  const f = d.size_deviation * (random.normal() - 1);
  out.size_factor = f < 0 ? 1 / (1 - f) : 1 + f;
  out.rotor_torque_constant = between(random, d.rotor_torque_constant);
  const share = between(random, [0, d.disturbance_force * (out.thrust_to_weight - 1)]);
  out.force_std = share * out.thrust_to_weight * out.mass / 3;
  out.rising = between(random, d.rotor_time_constant_rising);
  out.falling = between(random, d.rotor_time_constant_falling);
  return out;
}

// The template with mass, inertia, size, thrust and rotors of the sampled numbers -> `dynamics` of a drone's file
export function scaledDynamics(template, n) {
  const d = template.dynamics, was = describe(template);
  const scale = Math.cbrt(n.mass / d.mass) * n.size_factor, thrust = n.thrust_to_weight / was.thrustToWeight * n.mass / d.mass;
  const nominal = Math.abs(d.rotor_positions[0][0]) * Math.SQRT2 * n.thrust_to_weight * n.mass * length(d.gravity) / 4 / d.J[0][0];
  const inertia = scale / (n.torque_to_inertia / nominal), four = (x) => Array(4).fill(x);
  const made = {
    ...d, mass: n.mass, J: scaled(d.J, inertia), J_inv: scaled(d.J_inv, 1 / inertia),
    rotor_positions: scaled(d.rotor_positions, scale), rotor_thrust_coefficients: scaled(d.rotor_thrust_coefficients, thrust),
    rotor_torque_constants: four(n.rotor_torque_constant), rotor_time_constants_rising: four(n.rising), rotor_time_constants_falling: four(n.falling),
  };
  return { ...made, hovering_throttle_relative: hoverThrottle(made) };
}

export const sampleDrone = (template, distribution, random) => prepare(scaledDynamics(template, sampleParameters(distribution, random)));

// Where flights of a drone begin and what ends them, as the package's defaults have it
export const STARTS = { guidance: 0.1, position: 10, angle: 1, velocity: 1, rate: 1 }; // position: in arm lengths; angle: rad
export const LIMITS = { position: 20, velocity: 2, rate: 35 };                                   // the same; m/s; rad/s

// A row of `Drone` in physics.h: 72 numbers
export function row(drone, dt, maxVelocity = LIMITS.velocity) {
  return [drone.forceMap, drone.torqueMap, drone.curve, drone.rising, drone.falling, drone.mass, drone.gravity, drone.J, drone.Jinv,
          drone.low, drone.high, dt, LIMITS.position * describe(drone).arm, maxVelocity, LIMITS.rate].flat(2);
}

// A fleet as `DirectTraining` in direct.cpp reads it: rows, where flights begin, and the cumulative probabilities of being
// drawn, which favour those that are hard to turn (raptor_nb.learn.student.sampling_probabilities)
export function trainingFleet(drones, { max_velocity: fastest, hard_drone_share: share }) {
  const abouts = drones.map(describe), hard = abouts.map((a) => (4 * a.lag + 4 * a.falling) / a.torqueToInertia), all = hard.reduce((a, b) => a + b, 0);
  let sum = 0;
  const cumulative = hard.map((h) => { sum += share * h / all + (1 - share) / drones.length; return sum; });
  const starts = drones.flatMap((d, i) => [STARTS.guidance, STARTS.position * abouts[i].arm, STARTS.angle, STARTS.velocity, STARTS.rate, d.low, (d.low + d.high) / 2]);
  return { table: Float32Array.from(drones.flatMap((d) => row(d, DT, fastest))), starts: Float32Array.from(starts), cumulative: Float32Array.from(cumulative) };
}

// Settings without sense are refused in a sentence, before anything is computed
export function checkDistribution(d) {
  const lowest = { mass: 1e-3, thrust_to_weight: 1.05, torque_to_inertia: 1, rotor_torque_constant: 1e-4, rotor_time_constant_rising: 0.004, rotor_time_constant_falling: 0.004 };
  for (const [name, least] of Object.entries(lowest)) {
    const [low, high] = d[name] ?? [], word = name.replaceAll('_', ' ');
    if (!(Number.isFinite(low) && Number.isFinite(high))) throw new RangeError(`${word} must be two numbers, the lowest and the highest`);
    if (low > high) throw new RangeError(`${word} goes from ${low} to ${high}: the lowest must not exceed the highest`);
    if (low < least) throw new RangeError(`${word} begins at ${low}; it must be at least ${least}${name === 'thrust_to_weight' ? ', or drones cannot hover' : ''}`);
  }
}
