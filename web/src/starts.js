// Where flights begin: initial states as l2f draws them, for the kernels
import { describe } from './drones.js';
import { STARTS } from './fleet.js';
import { LANES, STATE } from './kernels.js';

export function starts(drones, random) { // -> (D, 21, 16)
  const out = new Float32Array(drones.length * STATE * LANES);
  drones.forEach((drone, d) => {
    for (let l = 0; l < LANES; l++) start(drone, random).forEach((x, i) => { out[(d * STATE + i) * LANES + l] = x; });
  });
  return out;
}

function start(drone, random) { // position, orientation, velocity, angular velocity, rotors, action
  const free = random.uniform() >= STARTS.guidance ? 1 : 0, cube = (size) => [0, 0, 0].map(() => free * size * (2 * random.uniform() - 1));
  const axis = [0, 0, 0].map(() => random.normal()), size = Math.hypot(...axis), half = free * STARTS.angle / 2 * random.uniform();
  const rotor = [0, 0, 0, 0].map(() => drone.low + random.uniform() * (drone.high - drone.low) / 2);
  return [...cube(STARTS.position * describe(drone).arm), Math.cos(half), ...axis.map((x) => x / size * Math.sin(half)), ...cube(STARTS.velocity), ...cube(STARTS.rate),
          ...rotor, ...rotor.map((w) => 2 * (w - drone.low) / (drone.high - drone.low) - 1)];
}
