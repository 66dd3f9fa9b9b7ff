// One training in one memory: the flights of every block, the weights of the moment, and the step of the optimiser
import { LANES, OBS, parameters } from './kernels.js';

const NOISE = [...Array(12).fill(1), 2, 2, 2, 5, 5, 5, 0, 0, 0, 0]; // position and rotation, velocity, angular velocity; by sigma
const FIELDS = `int32 flights steps hidden drones update; uint64 seed;
  float32 noise delay_share force gust jumps tilt_share tilt resets new_drones;
  float32 huber_delta precision damping barrier position_barrier velocity_barrier rate_barrier excess;
  float32 max_block_norm; address table starts cumulative noise_scale parameters pool gradients costs ends norms`;

export class Learner {
  constructor(kernels, settings) {
    const { hidden, steps, blocks, fleet } = settings, k = this.kernels = kernels, n = parameters(hidden), drones = fleet.cumulative.length;
    if (k.exports.student_parameters(hidden) !== n) throw new TypeError(`a policy has ${k.exports.student_parameters(hidden)} numbers in C++ and ${n} here`);
    Object.assign(this, { settings, hidden, blocks, parameters: n, updates: 0, flown: blocks * LANES * steps });
    this.arrays = {
      table: k.floats(fleet.table), starts: k.floats(fleet.starts), cumulative: k.floats(fleet.cumulative), noise_scale: k.floats(NOISE), parameters: k.floats(settings.weights),
      pool: k.floats(blocks * LANES * k.exports.pool_size(hidden)), gradients: k.floats(blocks * n), costs: k.floats(blocks), ends: k.floats(blocks), norms: k.floats(blocks),
    };
    this.task = k.structure('DirectTraining', FIELDS, { ...settings, ...settings.draws, ...settings.cost, flights: blocks * LANES, drones, update: 0, ...this.arrays });
    this.m = new Float64Array(n); this.v = new Float64Array(n);
  }

  of(name) { return this.kernels.of(this.arrays[name]); }

  segment(first, last) { this.kernels.exports.direct_segment(this.task.base, first, last); }

  // What blocks first ... last - 1 came to, to be sent, and to be taken by whoever takes the step
  results(first, last) {
    const sizes = { gradients: this.parameters, costs: 1, ends: 1, norms: 1 };
    return Object.fromEntries(Object.entries(sizes).map(([name, n]) => [name, this.of(name).slice(first * n, last * n)]));
  }

  take([first, last], results) {
    for (const [name, values] of Object.entries(results)) this.of(name).set(values, first * values.length / (last - first));
  }

  state() { return { update: this.updates, parameters: this.weights() }; }

  load({ update, parameters: weights }) {
    this.updates = update;
    this.kernels.view.setInt32(this.task.places.update.at, update, true);
    this.of('parameters').set(weights);
  }

  weights() { return this.of('parameters').slice(); }

  step() {
    const g = this.of('gradients'), n = this.parameters, mean = new Float64Array(n), w = this.of('parameters');
    for (let b = 0; b < this.blocks; b++) for (let i = 0; i < n; i++) mean[i] += g[b * n + i] / this.blocks;
    const norm = Math.hypot(...mean), clip = Math.min(1, .3 / norm), t = this.updates + 1, p = this.updates / this.settings.updates, lr = 1e-5 + (this.settings.rate - 1e-5) * .5 * (1 + Math.cos(Math.PI * p));
    for (let i = 0; i < n - this.hidden; i++) { const x = clip * mean[i]; this.m[i] = .9 * this.m[i] + .1 * x; this.v[i] = .999 * this.v[i] + .001 * x * x; w[i] -= lr * (this.m[i] / (1 - .9 ** t)) / (Math.sqrt(this.v[i] / (1 - .999 ** t)) + 1e-8); }
    this.updates += 1;
    this.kernels.view.setInt32(this.task.places.update.at, this.updates, true);
    const costs = this.of('costs').filter(Number.isFinite);
    return { cost: costs.reduce((a, b) => a + b, 0) / costs.length, ended: this.of('ends').reduce((a, b) => a + b, 0) / this.blocks };
  }
}
