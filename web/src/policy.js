// The policy: dense 22 -> 16 with ReLU, a gated recurrent unit of 16, dense 16 -> 4 (real64: 64); and what its memory gives away.
// Weights bear the names that raptor_nb.policy.RaptorPolicy gives them.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

function layer(weights, biases) { // rows of numbers -> a function of a vector
  const w = Float64Array.from(weights.flat()), b = Float64Array.from(biases), n = weights[0].length;
  return (x) => {
    const out = new Array(b.length);
    for (let i = 0, at = 0; i < b.length; i++) {
      let sum = b[i];
      for (let k = 0; k < n; k++, at++) sum += w[at] * x[k];
      out[i] = sum;
    }
    return out;
  };
}

export function makePolicy(weights) {
  const dense = (name) => layer(weights[`${name}.linear.weight`], weights[`${name}.linear.bias`]);
  const gates = (name) => layer(weights[`gru.gru.weight_${name}_l0`], weights[`gru.gru.bias_${name}_l0`]);
  const [first, given, kept, last] = [dense('input_layer'), gates('ih'), gates('hh'), dense('output_layer')];
  const start = weights['gru.initial_hidden_state'], size = start.length;
  return {
    size: Object.values(weights).flat(2).length,
    initial: () => [...start],
    // Observation (22) and hidden state -> action (4) and the next hidden state
    act(observation, hidden) {
      const i = given(first(observation).map((a) => Math.max(a, 0))), g = kept(hidden);
      const next = hidden.map((h, k) => {
        const r = sigmoid(i[k] + g[k]), z = sigmoid(i[size + k] + g[size + k]);
        const n = Math.tanh(i[2 * size + k] + r * g[2 * size + k]);
        return z * h + (1 - z) * n;
      });
      return [last(next), next];
    },
  };
}

// What a linear probe (raptor_nb.understand.Ridge) reads from a hidden state
export function readProbe(probe, hidden) {
  if (!probe) return NaN; // a policy for which none was fitted
  return hidden.reduce((sum, h, i) => sum + probe.weights[i] * Math.min(Math.max((h - probe.centre[i]) / probe.spread[i], -4), 4), probe.weights[hidden.length]);
}
