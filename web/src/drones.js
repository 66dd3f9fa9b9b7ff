// Drones from drone files, and the same with other mass, thrust, size and rotors
import { length, prepare, thrust } from './physics.js';

export const scaled = (x, by) => Array.isArray(x) ? x.map((y) => scaled(y, by)) : x * by;

export function describe(drone) { // what decides how it flies
  const d = drone.dynamics, weight = d.mass * length(d.gravity);
  const full = [0, 1, 2, 3].reduce((sum, i) => sum + thrust(drone, i, drone.high) * d.rotor_thrust_directions[i][2], 0);
  return { mass: d.mass, thrustToWeight: full / weight, arm: Math.max(...d.rotor_positions.map(length)), lag: d.rotor_time_constants_rising[0],
           falling: d.rotor_time_constants_falling[0], torqueToInertia: Math.abs(d.rotor_positions[0][0]) * Math.SQRT2 * full / 4 / d.J[0][0], weight };
}

// Rotor speed, 0..1 of the range, at which the thrust carries the weight
export function hoverThrottle(d) {
  const [c0, c1, c2] = [0, 1, 2].map((k) => d.rotor_thrust_coefficients.reduce((sum, c, i) => sum + c[k] * d.rotor_thrust_directions[i][2], 0));
  const lack = d.mass * length(d.gravity) - c0;
  const speed = 2 * lack / (c1 + Math.sqrt(Math.max(c1 * c1 + 4 * c2 * lack, 0)));
  return (speed - d.action_limit.min) / (d.action_limit.max - d.action_limit.min);
}

// A drone like `base` with other values: thrust follows mass, inertia goes with mass times arm squared,
// and the reaction torque of the rotors with their distance. What is not given stays as it is.
export function like(base, wanted = {}) {
  const was = describe(base), now = { ...was, ...wanted }, d = base.dynamics;
  const mass = now.mass / was.mass, size = now.arm / was.arm, lag = now.lag / was.lag;
  const changed = {
    ...d, mass: now.mass,
    rotor_positions: scaled(d.rotor_positions, size),
    rotor_torque_constants: scaled(d.rotor_torque_constants, size),
    rotor_thrust_coefficients: scaled(d.rotor_thrust_coefficients, mass * now.thrustToWeight / was.thrustToWeight),
    rotor_time_constants_rising: scaled(d.rotor_time_constants_rising, lag),
    rotor_time_constants_falling: scaled(d.rotor_time_constants_falling, lag),
    J: scaled(d.J, mass * size * size), J_inv: scaled(d.J_inv, 1 / (mass * size * size)),
  };
  return prepare({ ...changed, hovering_throttle_relative: hoverThrottle(changed) });
}
