// One training in one memory: the flights of every block, the weights of the moment, and the step of the optimiser
import { LANES, OBS, parameters } from './kernels.js';

const NOISE = [...Array(12).fill(1), 2, 2, 2, 5, 5, 5, 0, 0, 0, 0]; // position and rotation, velocity, angular velocity; by sigma
const FIELDS = `int32 flights steps hidden drones update; uint64 seed;
  float32 noise delay_share force gust jumps tilt_share tilt resets plain_share uneven_share weakest spread offset_share max_offset curve_share load_share max_load max_sag drag_share max_drag filter_share max_filter away_share max_away clip_share;
  float32 huber_delta precision damping barrier position_barrier velocity_barrier rate_barrier excess;
  float32 max_block_norm; address table starts cumulative noise_scale parameters pool gradients costs ends norms`;

const STEP = `int32 blocks hidden update learn_h0; float32 learning_rate beta1 beta2 beta_covariance; int32 interval; float32 max_grad_norm weight_decay;
  address gradients parameters memory`;

export class Learner {
  constructor(kernels, settings) {
    const { hidden, steps, fleet } = settings, blocks = settings.flights / LANES, k = this.kernels = kernels, n = parameters(hidden), drones = fleet.cumulative.length;
    if (k.exports.student_parameters(hidden) !== n) throw new TypeError(`a policy has ${k.exports.student_parameters(hidden)} numbers in C++ and ${n} here`);
    Object.assign(this, { settings, hidden, blocks, parameters: n, updates: 0, flown: blocks * LANES * steps });
    this.arrays = {
      table: k.floats(fleet.table), starts: k.floats(fleet.starts), cumulative: k.floats(fleet.cumulative), noise_scale: k.floats(NOISE), parameters: k.floats(settings.weights),
      pool: k.floats(blocks * LANES * k.exports.pool_size(hidden)), gradients: k.floats(blocks * n), costs: k.floats(blocks), ends: k.floats(blocks), norms: k.floats(blocks),
    };
    this.task = k.structure('DirectTraining', FIELDS, { ...settings, ...settings.draws, ...settings.cost, max_block_norm: settings.optimiser.max_block_norm, drones, update: 0, ...this.arrays });
    this.stepping = k.structure('DirectStep', STEP, { ...settings.optimiser, hidden, blocks, update: 0, learning_rate: 0, parameters: this.arrays.parameters, gradients: this.arrays.gradients, memory: k.floats(k.exports.optimiser_size(hidden)) });
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
    this.kernels.write(this.task, 'update', update);
    this.of('parameters').set(weights);
  }

  weights() { return this.of('parameters').slice(); }

  step() {
    const set = (field, value) => this.kernels.write(this.stepping, field, value);
    set('update', this.updates + 1);
    set('learning_rate', this.settings.optimiser.rate * (1 - this.updates / this.settings.updates));
    this.kernels.exports.direct_step(this.stepping.base);
    this.kernels.write(this.task, 'update', ++this.updates);
    const mean = (name) => { const finite = this.of(name).filter(Number.isFinite); return finite.reduce((a, b) => a + b, 0) / finite.length; };
    return { cost: mean('costs'), ended: mean('ends'), lost: this.blocks - this.of('norms').filter(Number.isFinite).length }; // lost: blocks whose gradient is not finite
  }
}
