// How a quadrotor flies, step for step as raptor_nb.sim.physics and l2f have it: rotor lag, Newton-Euler,
// Runge-Kutta 4 over 10 ms. SI units; world x forward, y left, z up; quaternions w, x, y, z;
// motors front-right, back-right, back-left, front-left.

export const DT = 0.01;

export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
export const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const times = (matrix, v) => matrix.map((row) => dot(row, v));
export const length = (v) => Math.hypot(...v);
export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// The numbers that a step needs, from the `dynamics` of a drone's file
export function prepare(dynamics) {
  const rotors = [0, 1, 2, 3];
  const directions = dynamics.rotor_thrust_directions;
  const twists = rotors.map((i) => {
    const lever = cross(dynamics.rotor_positions[i], directions[i]);
    return lever.map((x, k) => x + dynamics.rotor_torque_constants[i] * dynamics.rotor_torque_directions[i][k]);
  });
  return {
    dynamics,
    forceMap: [0, 1, 2].map((k) => rotors.map((i) => directions[i][k])), // 3 x 4
    torqueMap: [0, 1, 2].map((k) => rotors.map((i) => twists[i][k])),    // 3 x 4
    curve: dynamics.rotor_thrust_coefficients,
    rising: dynamics.rotor_time_constants_rising,
    falling: dynamics.rotor_time_constants_falling,
    mass: dynamics.mass, gravity: dynamics.gravity, J: dynamics.J, Jinv: dynamics.J_inv,
    low: dynamics.action_limit.min, high: dynamics.action_limit.max,
  };
}

export const thrust = (drone, i, speed) => drone.curve[i][0] + speed * (drone.curve[i][1] + speed * drone.curve[i][2]); // N

// Rotate a vector by a quaternion, body frame -> world frame
export function rotate(q, v) {
  const u = [q[1], q[2], q[3]];
  const t = cross(u, v).map((x) => 2 * x);
  const s = cross(u, t);
  return v.map((x, i) => x + q[0] * t[i] + s[i]);
}

// At rest, level, with the rotors at the speed of hover and the action that keeps it
export function atRest(drone, position = [0, 0, 0]) {
  const throttle = drone.dynamics.hovering_throttle_relative;
  const action = Array(4).fill(2 * throttle - 1);
  return { position: [...position], orientation: [1, 0, 0, 0], velocity: [0, 0, 0], omega: [0, 0, 0],
           rotor: Array(4).fill(drone.low + throttle * (drone.high - drone.low)), action };
}

// The rate of change of velocity and angular velocity
function accelerations(drone, q, omega, thrusts, push, twist) {
  const force = rotate(q, times(drone.forceMap, thrusts));
  const gyro = cross(omega, times(drone.J, omega));
  const torque = times(drone.torqueMap, thrusts).map((x, i) => x - gyro[i]);
  return [force.map((x, i) => x / drone.mass + push[i]), times(drone.Jinv, torque).map((x, i) => x + twist[i])];
}

// Half the product of a quaternion and (0, omega)
function spin(q, omega) {
  const [w, x, y, z] = q, [a, b, c] = omega.map((o) => o / 2);
  return [-(x * a + y * b + z * c), w * a + y * c - z * b, w * b + z * a - x * c, w * c + x * b - y * a];
}

// A first-order lag under Runge-Kutta 4: the speeds at its four stages, and the speed after dt
function rotorStages(speed, setpoint, h) {
  const gap = setpoint - speed, half = h / 2;
  const first = 1 - half, second = 1 - half + half * half, third = 1 - h * second;
  return [[speed, setpoint - first * gap, setpoint - second * gap, setpoint - third * gap],
          setpoint - (1 - h / 6 * (1 + 2 * first + 2 * second + third)) * gap];
}

// One step of 10 ms. `force` in N, world frame; `torque` in N m, body frame
export function step(state, action, drone, force = [0, 0, 0], torque = [0, 0, 0], dt = DT) {
  const stages = [[], [], [], []], rotor = [];
  for (let i = 0; i < 4; i++) {
    const setpoint = drone.low + (drone.high - drone.low) * (clamp(action[i], -1, 1) + 1) / 2;
    const lag = setpoint >= state.rotor[i] ? drone.rising[i] : drone.falling[i];
    const [speeds, end] = rotorStages(state.rotor[i], setpoint, dt / lag);
    speeds.forEach((speed, k) => stages[k].push(thrust(drone, i, speed)));
    rotor.push(clamp(end, drone.low, drone.high));
  }
  const push = force.map((f, i) => f / drone.mass + drone.gravity[i]), twist = times(drone.Jinv, torque);
  const start = [state.position, state.orientation, state.velocity, state.omega], rates = [];
  for (const [k, h] of [0, dt / 2, dt / 2, dt].entries()) {
    const [, q, v, omega] = k ? start.map((x, i) => x.map((a, j) => a + h * rates[k - 1][i][j])) : start;
    rates.push([v, spin(q, omega), ...accelerations(drone, q, omega, stages[k], push, twist)]);
  }
  const [position, q, velocity, omega] = start.map((x, i) => x.map((a, j) =>
    a + dt / 6 * (rates[0][i][j] + 2 * (rates[1][i][j] + rates[2][i][j]) + rates[3][i][j])));
  const norm = length(q);
  return { position, orientation: q.map((x) => x / norm), velocity, omega, rotor, action: [...action] };
}

// Position, rotation matrix, velocity, angular velocity, previous action: the 22 values that a policy sees
export function observe(state) {
  const [w, x, y, z] = state.orientation;
  return [...state.position,
          1 - 2 * y * y - 2 * z * z, 2 * x * y - 2 * w * z, 2 * x * z + 2 * w * y,
          2 * x * y + 2 * w * z, 1 - 2 * x * x - 2 * z * z, 2 * y * z - 2 * w * x,
          2 * x * z - 2 * w * y, 2 * y * z + 2 * w * x, 1 - 2 * x * x - 2 * y * y,
          ...state.velocity, ...state.omega, ...state.action];
}
