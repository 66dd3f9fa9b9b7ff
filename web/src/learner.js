// One training in one memory: the flights of every block, the weights of the moment, and the step of the optimiser
import { DT } from './physics.js';
import { LANES, STATE, parameters } from './kernels.js';
import { stream } from './world.js';

const KNOTS = 14, SENSED = 18, NOISE = [1, 1, 1, ...Array(9).fill(1), 2, 2, 2, 5, 5, 5, 0, 0, 0, 0];

export class Learner {
  constructor(kernels, settings) {
    const k = this.kernels = kernels, { hidden, steps, blocks } = settings, n = parameters(hidden);
    Object.assign(this, { settings, hidden, steps: steps * blocks * LANES, blocks, n, updates: 0 });
    this.flat = k.floats(settings.weights);
    const a = this.arrays = { drones: k.floats(blocks * 72), reset_state: k.floats(blocks * STATE * LANES), force: k.floats(blocks * KNOTS * 3 * LANES), sigma: k.floats(blocks * LANES), delay: k.floats(blocks * LANES),
      reset_mask: k.floats(blocks * LANES), noise: k.floats(NOISE), seeds: k.floats(2 * blocks), state: k.floats(blocks * STATE * LANES), hidden_state: k.floats(blocks * hidden * LANES), past: k.floats(blocks * 36 * LANES),
      gradients: k.floats(blocks * n), costs: k.floats(blocks), ends: k.floats(blocks) };
    this.task = k.structure('StudentSegment', 'int32 envs steps hidden knots; float32 huber_delta precision damping barrier position_barrier velocity_barrier rate_barrier excess; address drones in_w in_b wi bi wh bh out_w out_b h0 reset_state force sigma delay reset_mask noise seeds state hidden_state past gradients costs ends',
      { envs: LANES, steps, hidden, knots: KNOTS, huber_delta: .005, precision: 1, damping: 0.001, barrier: 1, position_barrier: .5, velocity_barrier: 2.5, rate_barrier: 20, excess: 1, ...a, ...k.weights(this.flat, hidden) });
    this.m = new Float64Array(n); this.v = new Float64Array(n);
  }
  segment(first, last) {
    const { drones, starts } = this.settings, a = this.arrays, k = this.kernels, of = (name) => k.of(a[name]), D = drones.length / 72;
    for (let b = first; b < last; b++) {
      const r = stream(this.settings.seed * 7919 + this.updates * 4096 + b), d = Math.floor(r.uniform() * D), row = drones.subarray(72 * d, 72 * d + 72), reach = row[69] / 2, weight = 9.81 * row[44], low = row[66], high = row[67];
      of('drones').set(row, 72 * b);
      for (let i = 0; i < 2; i++) new Uint32Array(k.exports.memory.buffer, a.seeds.at)[2 * b + i] = r.uniform() * 2 ** 32;
      for (const name of ['state', 'reset_state']) for (let l = 0; l < LANES; l++) {
        const free = r.uniform() > .1 ? 1 : 0, cube = (s) => [0, 0, 0].map(() => free * s * (2 * r.uniform() - 1)), axis = [0, 0, 0].map(() => r.normal()), size = Math.hypot(...axis), h = free * r.uniform() / 2, rotor = [0, 0, 0, 0].map(() => low + r.uniform() * (high - low) / 2);
        [...cube(reach), Math.cos(h), ...axis.map((x) => x / size * Math.sin(h)), ...cube(1), ...cube(1), ...rotor, ...rotor.map((w) => 2 * (w - low) / (high - low) - 1)].forEach((x, i) => { of(name)[(b * STATE + i) * LANES + l] = x; });
      }
      for (let l = 0; l < LANES; l++) {
        of('sigma')[b * LANES + l] = .02 * r.uniform() ** 2; const late = r.uniform(); of('delay')[b * LANES + l] = (late < .15) + (late < .075); of('reset_mask')[b * LANES + l] = 1;
        const f = .15 * r.uniform() * weight; for (let i = 0; i < 3; i++) { const x = f * r.normal(); for (let w = 0; w < KNOTS; w++) of('force')[((b * KNOTS + w) * 3 + i) * LANES + l] = x; }
      }
    }
    k.exports.student_segment(this.task.base, first, last);
  }
  results(first, last) { const of = (name, n) => this.kernels.of(this.arrays[name]).slice(first * n, last * n); return { gradients: of('gradients', this.n), costs: of('costs', 1) }; }
  take([first], { gradients, costs }) { this.kernels.of(this.arrays.gradients).set(gradients, first * this.n); this.kernels.of(this.arrays.costs).set(costs, first); }
  state() { return { weights: this.weights(), updates: this.updates }; }
  load({ weights, updates }) { this.kernels.of(this.flat).set(weights); this.updates = updates; }
  weights() { return this.kernels.of(this.flat).slice(); }
  step() {
    const g = this.kernels.of(this.arrays.gradients), n = this.n, mean = new Float64Array(n), T = this.settings.steps * LANES, w = this.kernels.of(this.flat), costs = this.kernels.of(this.arrays.costs);
    for (let b = 0; b < this.blocks; b++) { let s = 0; for (let i = 0; i < n; i++) s += (g[b * n + i] / T) ** 2; s = Math.sqrt(s); if (!Number.isFinite(s)) continue; const c = Math.min(1, 3 / (s + 1e-6)) / this.blocks / T; for (let i = 0; i < n; i++) mean[i] += c * g[b * n + i]; }
    const norm = Math.hypot(...mean), clip = Math.min(1, .3 / norm), t = ++this.updates, p = t / this.settings.updates, lr = 1e-5 + (this.settings.rate - 1e-5) * .5 * (1 + Math.cos(Math.PI * p));
    for (let i = 0; i < n - this.hidden; i++) { const x = clip * mean[i]; this.m[i] = .9 * this.m[i] + .1 * x; this.v[i] = .999 * this.v[i] + .001 * x * x; w[i] -= lr * (this.m[i] / (1 - .9 ** t)) / (Math.sqrt(this.v[i] / (1 - .999 ** t)) + 1e-8); }
    return { cost: costs.reduce((a, b) => a + b) / this.blocks / T, norm };
  }
}
