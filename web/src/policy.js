// The policy: dense 22 -> 16 with ReLU, a gated recurrent unit of 16, dense 16 -> 4; and what its memory gives away.
// Weights bear the names that raptor_nb.policy.RaptorPolicy gives them.

const dense = (w, b, x) => w.map((row, i) => row.reduce((sum, a, k) => sum + a * x[k], b[i]));
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

export function makePolicy(weights) {
  const named = (name) => weights[name];
  const size = named('gru.initial_hidden_state').length;
  return {
    initial: () => [...named('gru.initial_hidden_state')],
    // Observation (22) and hidden state (16) -> action (4) and the next hidden state
    act(observation, hidden) {
      const x = dense(named('input_layer.linear.weight'), named('input_layer.linear.bias'), observation).map((a) => Math.max(a, 0));
      const given = dense(named('gru.gru.weight_ih_l0'), named('gru.gru.bias_ih_l0'), x);
      const kept = dense(named('gru.gru.weight_hh_l0'), named('gru.gru.bias_hh_l0'), hidden);
      const next = hidden.map((h, i) => {
        const r = sigmoid(given[i] + kept[i]), z = sigmoid(given[size + i] + kept[size + i]);
        const n = Math.tanh(given[2 * size + i] + r * kept[2 * size + i]);
        return z * h + (1 - z) * n;
      });
      return [dense(named('output_layer.linear.weight'), named('output_layer.linear.bias'), next), next];
    },
  };
}

// What a linear probe (raptor_nb.understand.Ridge) reads from a hidden state
export function readProbe(probe, hidden) {
  return hidden.reduce((sum, h, i) => sum + probe.weights[i] * Math.min(Math.max((h - probe.centre[i]) / probe.spread[i], -4), 4), probe.weights[hidden.length]);
}
