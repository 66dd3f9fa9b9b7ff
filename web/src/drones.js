// Drones from drone files, and the same with other mass, thrust, size and rotors
import { cross, dot, length, prepare, thrust } from './physics.js';

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

// Thrust of each rotor at level hover, N: weight without torque. null where some direction is without control
export function hoverThrusts(d) {
  const arm = Math.max(...d.rotor_positions.map(length), 1e-12), most = Math.max(...d.rotor_torque_constants), weight = d.mass * length(d.gravity);
  const up = d.gravity.map((g) => -g / length(d.gravity)), columns = d.rotor_positions.map((p, i) => {
    const f = d.rotor_thrust_directions[i], lever = cross(p, f), k = d.rotor_torque_constants[i] / most;
    return [...lever.map((x, j) => x / arm + k * d.rotor_torque_directions[i][j]), dot(f, up)];
  });
  return solve([0, 1, 2, 3].map((row) => columns.map((c) => c[row])), [0, 0, 0, weight]);
}

function solve(matrix, right) { // by elimination, with the largest pivots
  const m = matrix.map((row, i) => [...row, right[i]]), n = m.length;
  for (let k = 0; k < n; k++) {
    const best = m.slice(k).reduce((at, row, i) => (Math.abs(row[k]) > Math.abs(m[at][k]) ? k + i : at), k);
    [m[k], m[best]] = [m[best], m[k]];
    if (!(Math.abs(m[k][k]) > 1e-6)) return null;
    for (let i = 0; i < n; i++) if (i !== k) { const by = m[i][k] / m[k][k]; m[i] = m[i].map((x, j) => x - by * m[k][j]); }
  }
  return m.map((row, i) => row[n] / row[i]);
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
