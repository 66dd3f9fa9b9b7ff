// A trained policy as files that the package reads: JSON, ONNX and HDF5. The last two are files of the package's own
// exporters (tools/wasm.py) with other weights in their places.
import { makePolicy } from './policy.js';

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const shortest = (x) => { // the fewest digits that give the same float32 again
  for (let digits = 6; digits < 10; digits++) { const short = Number(x.toPrecision(digits)); if (Math.fround(short) === Math.fround(x)) return short; }
  return x;
};
const rounded = (x) => (Array.isArray(x) ? x.map(rounded) : shortest(x));
const transposed = (m) => m[0].map((_, j) => m.map((r) => r[j]));

function checked(weights) {
  for (const [name, values] of Object.entries(weights)) if (!values.flat().every(Number.isFinite)) throw new RangeError(`${name} holds numbers that are not finite; train it again`);
  return weights;
}

function fill(template, values) { // a copy of the file with `values` by name, as float32
  const bytes = bytesOf(template.bytes), view = new DataView(bytes.buffer);
  for (const { name, at, length } of template.slots) {
    const flat = values[name].flat(2);
    if (flat.length !== length) throw new RangeError(`${name} has ${flat.length} numbers; the file has room for ${length}`);
    flat.forEach((x, i) => view.setFloat32(at + 4 * i, x, true));
  }
  return bytes;
}

function replay(weights, observations) { // one flight
  const policy = makePolicy(weights);
  let hidden = policy.initial();
  return observations.map((seen) => { const [action, next] = policy.act(seen, hidden); hidden = next; return action; });
}

function example(template) { // the observations that stand in the HDF5 file
  const { at, length } = template.slots.find((slot) => slot.name === 'input'), view = new DataView(bytesOf(template.bytes).buffer);
  return Array.from({ length: length / 22 }, (_, t) => Array.from({ length: 22 }, (_, i) => view.getFloat32(at + 4 * (22 * t + i), true)));
}

export function json(weights, files) {
  const w = Object.fromEntries(Object.entries(checked(weights)).map(([name, x]) => [name, rounded(x)])), [first, gru, last] = files.json.layers, seen = example(files.h5);
  const layers = [
    { ...first, weights: w['input_layer.linear.weight'], biases: w['input_layer.linear.bias'] },
    { ...gru, weights_input: w['gru.gru.weight_ih_l0'], weights_hidden: w['gru.gru.weight_hh_l0'], biases_input: w['gru.gru.bias_ih_l0'], biases_hidden: w['gru.gru.bias_hh_l0'], initial_hidden_state: w['gru.initial_hidden_state'] },
    { ...last, weights: w['output_layer.linear.weight'], biases: w['output_layer.linear.bias'] },
  ];
  return new TextEncoder().encode(JSON.stringify({ ...files.json, layers, example: { observation: rounded(seen), action: rounded(replay(weights, seen)) } }));
}

export function hdf5(weights, files) {
  const seen = example(files.h5);
  return fill(files.h5, { ...checked(weights), input: seen, output: replay(weights, seen) });
}

// One matrix a gate, to multiply with from the right; biases of r and z are added, as raptor_nb.targets.artefact.gates has it
export function onnx(weights, files) {
  const w = checked(weights), H = w['gru.initial_hidden_state'].length, part = (name, i) => w[`gru.gru.${name}_l0`].slice(i * H, (i + 1) * H);
  const out = { W_in: transposed(w['input_layer.linear.weight']), b_in: w['input_layer.linear.bias'], W_out: transposed(w['output_layer.linear.weight']), b_out: w['output_layer.linear.bias'], b_n: part('bias_ih', 2), c_n: part('bias_hh', 2) };
  for (const [i, gate] of ['r', 'z', 'n'].entries()) {
    out[`W_${gate}`] = transposed(part('weight_ih', i));
    out[`U_${gate}`] = transposed(part('weight_hh', i));
    if (i < 2) out[`b_${gate}`] = part('bias_ih', i).map((x, k) => x + part('bias_hh', i)[k]);
  }
  const bytes = fill(files.onnx, out), { at, length } = files.onnx.initial, text = JSON.stringify(rounded(w['gru.initial_hidden_state']));
  if (text.length > length) throw new RangeError(`the initial hidden state takes ${text.length} characters; the file has room for ${length}`);
  bytes.set(new TextEncoder().encode(text.padEnd(length)), at);
  return bytes;
}

export const FORMATS = { json: { write: json, type: 'application/json', ending: '.json' }, onnx: { write: onnx, type: 'application/octet-stream', ending: '.onnx' }, h5: { write: hdf5, type: 'application/x-hdf5', ending: '.h5' } };

export function download(format, weights, files, name = 'student') {
  const { write, type, ending } = FORMATS[format], url = URL.createObjectURL(new Blob([write(weights, files)], { type }));
  const link = Object.assign(document.createElement('a'), { href: url, download: name + ending });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
