// The package's C++ kernels, compiled to WebAssembly: memory, structures, and a policy as one row of numbers
import { DT } from './physics.js';
import { row } from './fleet.js';

export const LANES = 16, OBS = 22, STATE = 21; // flights side by side; what a policy sees; numbers of a state

// name, rows, columns in the order of the kernels, which keep matrices as (inputs, outputs); the package's name
const PARTS = (H) => [
  ['in_w', OBS, H, 'input_layer.linear.weight'], ['in_b', 1, H, 'input_layer.linear.bias'],
  ['wi', H, 3 * H, 'gru.gru.weight_ih_l0'], ['bi', 1, 3 * H, 'gru.gru.bias_ih_l0'],
  ['wh', H, 3 * H, 'gru.gru.weight_hh_l0'], ['bh', 1, 3 * H, 'gru.gru.bias_hh_l0'],
  ['out_w', H, 4, 'output_layer.linear.weight'], ['out_b', 1, 4, 'output_layer.linear.bias'], ['h0', 1, H, 'gru.initial_hidden_state'],
];
export const parameters = (H) => PARTS(H).reduce((sum, [, rows, columns]) => sum + rows * columns, 0);

// Weights by name, rows of outputs as in raptor_nb.policy -> one row of numbers, and back
export function pack(weights) {
  const H = weights['gru.initial_hidden_state'].length, out = new Float32Array(parameters(H));
  let at = 0;
  for (const [, rows, columns, name] of PARTS(H)) for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[at++] = rows > 1 ? weights[name][j][i] : weights[name][j];
  return out;
}

export function unpack(flat, H) {
  const out = {};
  let at = 0;
  for (const [, rows, columns, name] of PARTS(H)) {
    out[name] = rows > 1 ? Array.from({ length: columns }, (_, j) => Array.from({ length: rows }, (_, i) => flat[at + i * columns + j])) : Array.from(flat.subarray(at, at + columns));
    at += rows * columns;
  }
  return out;
}

// As torch draws the weights of a network that has learned nothing
export function randomPolicy(H, random) {
  const out = new Float32Array(parameters(H));
  let at = 0;
  for (const [name, rows, columns] of PARTS(H)) {
    const bound = name === 'h0' ? 0 : 1 / Math.sqrt(name.startsWith('in') ? OBS : H);
    for (let i = 0; i < rows * columns; i++) out[at++] = bound * (2 * random.uniform() - 1);
  }
  return out;
}

const SIZES = { int32: 4, float32: 4, uint64: 8, address: 4 };

export class Kernels {
  constructor(module) { // WebAssembly.Module
    this.exports = new WebAssembly.Instance(module, {}).exports;
    this.exports._initialize();
  }

  get view() { return new DataView(this.exports.memory.buffer); } // memory may grow, and a view of it is void then

  take(bytes) {
    const at = this.exports.malloc(bytes + 63);
    if (!at) throw new RangeError(`no memory for ${bytes} more bytes`);
    return at + 63 - (at + 63) % 64;
  }

  floats(from) { // numbers, or how many zeros -> { at, length }
    const values = typeof from === 'number' ? new Float32Array(from) : Float32Array.from(from), array = { at: this.take(values.byteLength), length: values.length };
    this.of(array).set(values);
    return array;
  }

  of(array) { return new Float32Array(this.exports.memory.buffer, array.at, array.length); }

  // A structure as C++ has it: fields as 'type name name; type name', in its order
  structure(name, fields, values) {
    const layout = fields.split(';').flatMap((part) => { const [type, ...names] = part.trim().split(/\s+/); return names.map((n) => [n, type]); });
    let size = 0;
    const places = layout.map(([field, type]) => { size = Math.ceil(size / SIZES[type]) * SIZES[type] + SIZES[type]; return [field, type, size - SIZES[type]]; });
    const widest = Math.max(...layout.map(([, type]) => SIZES[type])), whole = Math.ceil(size / widest) * widest, real = this.exports[`size_of_${name}`]();
    if (whole !== real) throw new TypeError(`${name} has ${real} bytes in C++ and ${whole} here: their fields differ`);
    const made = { base: this.take(whole), places: {} };
    for (const [field, type, offset] of places) {
      if (values[field] === undefined) throw new TypeError(`${name} has a field ${field}, which was not given`);
      made.places[field] = { type, at: made.base + offset };
      this.write(made, field, values[field]);
    }
    return made;
  }

  write({ places }, field, value) {
    const { type, at } = places[field], view = this.view;
    if (type === 'address') view.setUint32(at, value.at, true);
    else if (type === 'float32') view.setFloat32(at, value, true);
    else if (type === 'uint64') view.setBigUint64(at, BigInt(value), true);
    else view.setInt32(at, value, true);
  }
}

// What policies are worth: sixteen flights of each drone in still air, always the same ones
export class Judge {
  constructor(kernels, drones, starts, { steps = 500, hidden = 16 } = {}) { // drones of `prepare`; starts (D, 21, 16)
    const k = this.kernels = kernels, n = LANES * drones.length;
    this.drones = drones.length;
    this.flat = k.floats(parameters(hidden));
    this.out = { total: k.floats(n), alive: k.floats(n), error: k.floats(n) };
    this.task = k.structure('Scoring', 'int32 steps hidden; address drones parameters start total alive error',
      { steps, hidden, drones: k.floats(drones.flatMap((d) => row(d, DT, Infinity))), parameters: this.flat, start: k.floats(starts), ...this.out });
  }

  score(flat) { // -> mean return, share of flights that lasted, median distance of those in their second half
    this.kernels.of(this.flat).set(flat);
    this.kernels.exports.score(this.task.base, 0, this.drones);
    const [total, alive, error] = ['total', 'alive', 'error'].map((name) => this.kernels.of(this.out[name]));
    const lasted = [...error].filter((_, i) => alive[i] > 0).sort((a, b) => a - b);
    return { return: total.reduce((a, b) => a + b, 0) / total.length, survival: lasted.length / total.length, error: lasted.length ? lasted[lasted.length >> 1] : null };
  }
}
