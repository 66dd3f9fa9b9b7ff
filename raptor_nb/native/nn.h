// Layers and networks: forward above, backward below. Weights are (inputs, outputs); an activation is one V a unit,
// which holds the values of sixteen flights. Gradients: `d` in front of a name, as in `dout`; what a function adds to
// says so.
#pragma once
#include "simd.h"

namespace {

// ---------------------------------------------------------------- dense layer
// How many sums stay in registers: outputs and inputs of a tile, rows and registers of a tile of a weight's gradient,
// the same of several steps at once, and rows of the student's first layer. They divide 16 and 22.
// WebAssembly's registers hold four numbers, and a browser has sixteen of them, so that a V takes four.
#ifdef __wasm__
constexpr int OUT_TILE = 2, IN_TILE = 2, ROW_TILE = 2, COLUMN_TILE = 1;
constexpr int STEPS_ROWS = 2, STEPS_COLUMNS = 1, OBS_ROWS = 2;
#elif !defined(__AVX512F__)  // sixteen registers that hold eight numbers, or 32 that hold four: a V takes two, or four
constexpr int OUT_TILE = 4, IN_TILE = 4, ROW_TILE = 2, COLUMN_TILE = 2;
constexpr int STEPS_ROWS = 4, STEPS_COLUMNS = 1, OBS_ROWS = 2;
#else
constexpr int OUT_TILE = 16, IN_TILE = 16, ROW_TILE = 4, COLUMN_TILE = 4;
constexpr int STEPS_ROWS = 8, STEPS_COLUMNS = 3, OBS_ROWS = 11;
#endif
// sums (B) += inp (inputs) w; rows of w are `outputs` apart
template <int B> inline void dense_add(const float* w, int inputs, int outputs, const V* inp, V* sums) {
    for (int k = 0; k < inputs; k++) {
        const V x = inp[k];
        const float* row = w + k * outputs;
        unrolled<B>([&](int j) { sums[j] += row[j] * x; });
    }
}
template <int B>
inline void dense_tile(const float* w, const float* bias, int inputs, int outputs, const V* inp, V* out) {
    V sums[B];
    unrolled<B>([&](int j) { sums[j] = bias ? all(bias[j]) : V{}; });
    dense_add<B>(w, inputs, outputs, inp, sums);
    unrolled<B>([&](int j) { out[j] = sums[j]; });
}
// out (outputs) = bias + inp (inputs) w; outputs is a multiple of 4
inline void dense_forward(const float* w, const float* bias, int inputs, int outputs, const V* inp, V* out) {
    int j = 0;
    const auto tiles = [&](auto size) {
        constexpr int B = size;
        for (; j + B <= outputs; j += B) dense_tile<B>(w + j, bias ? bias + j : nullptr, inputs, outputs, inp, out + j);
    };
    tiles(std::integral_constant<int, OUT_TILE>{});
    if (OUT_TILE > 4) tiles(std::integral_constant<int, 4>{});
}

// dinp (B) += dout (count) w^T for B rows of w, which are `outputs` apart
template <int B>
[[gnu::always_inline]] inline void dense_backward_tile(const float* w, int outputs, int count, const V* dout, V* dinp) {
    V sums[B];
    unrolled<B>([&](int k) { sums[k] = dinp[k]; });
    for (int j = 0; j < count; j++) {
        const V d = dout[j];
        unrolled<B>([&](int k) { sums[k] += w[k * outputs + j] * d; });
    }
    unrolled<B>([&](int k) { dinp[k] = sums[k]; });
}
// dinp (inputs) = dout (outputs) w^T
inline void dense_backward(const float* w, int inputs, int outputs, const V* dout, V* dinp) {
    for (int k = 0; k < inputs; k++) dinp[k] = V{};
    int k = 0;
    for (; k + IN_TILE <= inputs; k += IN_TILE)
        dense_backward_tile<IN_TILE>(w + k * outputs, outputs, outputs, dout, dinp + k);
    for (; k + 2 <= inputs; k += 2) dense_backward_tile<2>(w + k * outputs, outputs, outputs, dout, dinp + k);
    for (; k < inputs; k++) dense_backward_tile<1>(w + k * outputs, outputs, outputs, dout, dinp + k);
}

// dweight[k..k+B][C registers] += inp^T dout; doutT: dout transposed, 16 rows (one a flight) a register
template <int B, int C> inline void dense_dweight_tile(const V* inp, const V* doutT, float* dweight, int outputs) {
    V sums[B][C];
    for (int k = 0; k < B; k++)
        for (int c = 0; c < C; c++) sums[k][c] = load(dweight + k * outputs + c * LANES);
    for (int l = 0; l < LANES; l++)
        for (int k = 0; k < B; k++) {
            const float x = inp[k][l];
            for (int c = 0; c < C; c++) sums[k][c] += x * doutT[c * LANES + l];
        }
    for (int k = 0; k < B; k++)
        for (int c = 0; c < C; c++) store(dweight + k * outputs + c * LANES, sums[k][c]);
}
template <int C>
inline void dense_dweight_columns(const V* inp, const V* doutT, int inputs, int outputs, float* dweight) {
    int k = 0;
    for (; k + ROW_TILE <= inputs; k += ROW_TILE)
        dense_dweight_tile<ROW_TILE, C>(inp + k, doutT, dweight + k * outputs, outputs);
    for (; k < inputs; k++) dense_dweight_tile<1, C>(inp + k, doutT, dweight + k * outputs, outputs);
}
// dweight (inputs, outputs) += inp^T dout, summed over the flights; outputs is a multiple of 16
inline void dense_dweight(const V* inp, const V* doutT, int inputs, int outputs, float* dweight) {
    int c = 0;
    for (; COLUMN_TILE >= 4 && c + 4 * LANES <= outputs; c += 4 * LANES)
        dense_dweight_columns<4>(inp, doutT + c, inputs, outputs, dweight + c);
    for (; COLUMN_TILE >= 2 && c + 2 * LANES <= outputs; c += 2 * LANES)
        dense_dweight_columns<2>(inp, doutT + c, inputs, outputs, dweight + c);
    for (; c + LANES <= outputs; c += LANES)
        dense_dweight_columns<1>(inp, doutT + c, inputs, outputs, dweight + c);
}
inline void transpose_all(const V* in, int count, V* out) {  // count: a multiple of 16
    for (int i = 0; i < count; i += LANES) transpose(in + i, out + i);
}

// The same of several steps at once, whose inputs are inp[0 ... steps - 1] and whose doutT are `apart` from each other,
// for B rows and C times 16 columns, which begin at from[c] in doutT and at to[c] in dweight
template <int B, int C>
inline void dense_dweight_steps(int steps, const V* const* inp, int row, const V* doutT, size_t apart, const int* from,
                                float* dweight, const int* to, int outputs) {
    V sums[B * C];
    dweight += row * outputs;
    unrolled<B * C>([&](int i) { sums[i] = load(dweight + i / C * outputs + to[i % C]); });
    for (int s = 0; s < steps; s++) {
        const V* const d = doutT + s * apart;
        const float* x = (const float*)(inp[s] + row);
        for (int l = 0; l < LANES; l++, x++) {
            V dl[C];
            unrolled<C>([&](int c) { dl[c] = d[from[c] + l]; });
            unrolled<B>([&](int k) {
                const float xk = x[k * LANES];
                unrolled<C>([&](int c) { sums[k * C + c] += xk * dl[c]; });
            });
        }
    }
    unrolled<B * C>([&](int i) { store(dweight + i / C * outputs + to[i % C], sums[i]); });
}
// dbias (16) += doutT, summed over steps and flights
inline void dense_dbias_steps(int steps, const V* doutT, size_t apart, float* dbias) {
    V sums[4] = {};
    for (int s = 0; s < steps; s++, doutT += apart)
        unrolled<LANES>([&](int l) { sums[l % 4] += doutT[l]; });
    store(dbias, load(dbias) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

// ---------------------------------------------------------------- teacher: two hidden layers, tanh at the end
constexpr int MAX_OBS = 32, MAX_HIDDEN = 256;
struct Actor {
    const float *w1, *b1, *w2, *b2, *w3, *b3;
    int obs, hidden;
    bool rectified = false;  // hidden layers: ReLU instead of tanh
};
// of a stack (D, ...) of actors the one of this drone
inline Actor actor_of(Actor stack, int drone) {
    const size_t D = drone, O = stack.obs, H = stack.hidden;
    return {stack.w1 + D * O * H, stack.b1 + D * H, stack.w2 + D * H * H, stack.b2 + D * H,
            stack.w3 + D * H * 4, stack.b3 + D * 4, stack.obs, stack.hidden, stack.rectified};
}
inline void actor_forward(const Actor& a, const V* obs, V* h1, V* h2, V* action) {
    dense_forward(a.w1, a.b1, a.obs, a.hidden, obs, h1);
    for (int i = 0; i < a.hidden; i++) h1[i] = a.rectified ? relu(h1[i]) : tanh(h1[i]);
    dense_forward(a.w2, a.b2, a.hidden, a.hidden, h1, h2);
    for (int i = 0; i < a.hidden; i++) h2[i] = a.rectified ? relu(h2[i]) : tanh(h2[i]);
    dense_forward(a.w3, a.b3, a.hidden, 4, h2, action);
    for (int i = 0; i < 4; i++) action[i] = tanh(action[i]);
}

// Gradients of a tanh actor, summed over steps. Matrices are summed where they belong, vectors a flight in `V`s.
struct ActorGradients {
    int O, H;
    float *dw1, *dw2;            // (obs, hidden), (hidden, hidden): added to
    V *dw3, *db1, *db2, *db3;    // (hidden, 4), (hidden), (hidden), (4): added to
    V *d1T, *d2T;                // (hidden) each, of one step
    static size_t scratch_size(int hidden) { return (size_t)8 * hidden + 4; }
    static constexpr int ARRAYS = 6;

    ActorGradients(int obs, int hidden, float* dw1, float* dw2, Scratch& from) : O(obs), H(hidden), dw1(dw1), dw2(dw2) {
        std::memset(dw1, 0, sizeof(float) * O * H);
        std::memset(dw2, 0, sizeof(float) * H * H);
        dw3 = from.zeros(4 * H);
        db1 = from.zeros(H);
        db2 = from.zeros(H);
        db3 = from.zeros(4);
        d1T = from.take(H);
        d2T = from.take(H);
    }
    // daction (4) -> dobs (obs)
    void backward(const Actor& a, const V* obs, const V* h1, const V* h2, const V* action, const V* daction, V* dobs) {
        V d3[4], d2[MAX_HIDDEN], d1[MAX_HIDDEN];
        for (int i = 0; i < 4; i++) {
            d3[i] = daction[i] * (1.f - action[i] * action[i]);
            db3[i] += d3[i];
        }
        dense_backward(a.w3, H, 4, d3, d2);
        for (int i = 0; i < H; i++) {
            for (int j = 0; j < 4; j++) dw3[4 * i + j] += h2[i] * d3[j];
            d2[i] *= 1.f - h2[i] * h2[i];
            db2[i] += d2[i];
        }
        dense_backward(a.w2, H, H, d2, d1);
        for (int i = 0; i < H; i++) {
            d1[i] *= 1.f - h1[i] * h1[i];
            db1[i] += d1[i];
        }
        dense_backward(a.w1, O, H, d1, dobs);
        transpose_all(d1, H, d1T);
        transpose_all(d2, H, d2T);
        dense_dweight(obs, d1T, O, H, dw1);
        dense_dweight(h1, d2T, H, H, dw2);
    }
};

// ---------------------------------------------------------------- student: dense + ReLU, GRU, dense
constexpr int STUDENT_OBS = 22, MAX_STUDENT = 64;
struct Student {  // gates in the order r, z, n, as torch has them
    const float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;
    int hidden;
    static size_t count(int H) {  // parameters, with h0
        return (size_t)STUDENT_OBS * H + H + 2 * ((size_t)H * 3 * H + 3 * H) + 4 * H + 4 + H;
    }
};
// (hidden) each: after the first layer, gates, hidden part of n, new state
struct GruStep { V *y, *r, *z, *n, *hn, *h; };
constexpr int GRU_STEP = 6;
inline GruStep gru_step_at(V* base, int H) {
    return {base, base + H, base + 2 * H, base + 3 * H, base + 4 * H, base + 5 * H};
}
// out (OUT_TILE) = bias_y + y wi + bias_h + h wh for so many columns of the gates
[[gnu::always_inline]] inline void gates_tile(const Student& s, int column, const V* y, const V* h, V* out) {
    const int H = s.hidden, G = 3 * H;
    V sums[OUT_TILE];
    unrolled<OUT_TILE>([&](int j) { sums[j] = all(s.bi[column + j] + s.bh[column + j]); });
    dense_add<OUT_TILE>(s.wi + column, H, G, y, sums);
    dense_add<OUT_TILE>(s.wh + column, H, G, h, sums);
    unrolled<OUT_TILE>([&](int j) { out[j] = sums[j]; });
}
// h' = n + z (h - n), n = tanh(i_n + r h_n): torch's convention
inline void student_forward(const Student& s, const V* obs, const V* before, const GruStep& m, V* action) {
    const int H = s.hidden, G = 3 * H;
    dense_forward(s.in_w, s.in_b, STUDENT_OBS, H, obs, m.y);
    for (int i = 0; i < H; i++) m.y[i] = relu(m.y[i]);
    for (int j = 0; j < H; j += OUT_TILE) {
        gates_tile(s, j, m.y, before, m.r + j);
        gates_tile(s, H + j, m.y, before, m.z + j);
        dense_tile<OUT_TILE>(s.wi + 2 * H + j, s.bi + 2 * H + j, H, G, m.y, m.n + j);
        dense_tile<OUT_TILE>(s.wh + 2 * H + j, s.bh + 2 * H + j, H, G, before, m.hn + j);
    }
    for (int i = 0; i < H; i++) {
        m.r[i] = sigmoid(m.r[i]);
        m.z[i] = sigmoid(m.z[i]);
        m.n[i] = tanh(m.n[i] + m.r[i] * m.hn[i]);
        m.h[i] = m.n[i] + m.z[i] * (before[i] - m.n[i]);
    }
    dense_forward(s.out_w, s.out_b, H, 4, m.h, action);
}

// Gradients of the student, gathered over a sequence from its last step to its first
constexpr int TOGETHER = 4;  // steps whose gradients are added to those of the weights at once
struct StudentGradients {
    int H, G;
    float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;  // results, one after the other
    V *dout_w, *dout_b, *dh0;                                     // sums a flight
    V *dr, *dz, *dn, *dhn;                                        // of one step: gates; hn is hidden part of n
    V *dy, *dbefore;                                              // of one step: before the first ReLU; before the GRU
    V* dhidden;                                                   // (hidden) by the hidden state, from step to step
    int waiting = 0;                                              // steps that are not yet in the weights' gradients:
    const V *obs[TOGETHER], *y[TOGETHER], *before[TOGETHER], *h[TOGETHER];
    V (*daction)[4];                                              // (TOGETHER)
    V* transposed;                                                // (TOGETHER, 5, hidden) dr, dz, dn, dhn, dy
    static size_t scratch_size(int H) { return (size_t)(12 + 5 * TOGETHER) * H + 4 + 4 * TOGETHER; }
    static constexpr int ARRAYS = 9;

    StudentGradients(int hidden, float* out, Scratch& from) : H(hidden), G(3 * hidden) {
        std::memset(out, 0, Student::count(H) * sizeof(float));
        in_w = out;
        in_b = in_w + STUDENT_OBS * H;
        wi = in_b + H;
        bi = wi + H * G;
        wh = bi + G;
        bh = wh + H * G;
        out_w = bh + G;
        out_b = out_w + 4 * H;
        h0 = out_b + 4;
        for (V** p : {&dh0, &dhidden}) *p = from.zeros(H);
        dout_w = from.zeros(4 * H);
        dout_b = from.zeros(4);
        for (V** p : {&dy, &dbefore}) *p = from.take(H);
        dr = from.take(4 * H);
        dz = dr + H;
        dn = dz + H;
        dhn = dn + H;
        daction = (V(*)[4])from.take(4 * TOGETHER);
        transposed = from.take((size_t)5 * H * TOGETHER);
    }
    // daction (4) of this step; afterwards `dy` and `dhidden` are those of this step. obs, before and what m points at
    // stay as they are for TOGETHER steps or until `finish`
    void backward(const Student& s, const GruStep& m, const V* before, const V* obs, const V* daction) {
        dense_backward(s.out_w, H, 4, daction, dbefore);
        for (int i = 0; i < H; i++) gates_backward(m, before, i);
        for (int i = 0; i < H; i += IN_TILE) {
            V *const dh = dhidden + i, *const d = dy + i;
            dense_backward_tile<IN_TILE>(s.wh + i * G, G, 2 * H, dr, dh);
            dense_backward_tile<IN_TILE>(s.wh + i * G + 2 * H, G, H, dhn, dh);
            unrolled<IN_TILE>([&](int k) { d[k] = V{}; });
            dense_backward_tile<IN_TILE>(s.wi + i * G, G, G, dr, d);
        }
        for (int i = 0; i < H; i++) dy[i] = m.y[i] > 0 ? dy[i] : V{};
        this->obs[waiting] = obs;
        y[waiting] = m.y;
        this->before[waiting] = before;
        h[waiting] = m.h;
        for (int i = 0; i < 4; i++) this->daction[waiting][i] = daction[i];
        V* const to = transposed + (size_t)5 * H * waiting;
        transpose_all(dr, 4 * H, to);
        transpose_all(dy, H, to + 4 * H);
        if (++waiting == TOGETHER) gather();
    }
    void dobs(const Student& s, V* out) const {  // (22), of the step whose `dy` is here
        for (int i = 0; i < STUDENT_OBS; i++) out[i] = V{};
        for (int i = 0; i < STUDENT_OBS; i += OBS_ROWS) dense_backward_tile<OBS_ROWS>(s.in_w + i * H, H, H, dy, out + i);
    }
    void gates_backward(const GruStep& m, const V* before, int i) {
        const V d = dhidden[i] + dbefore[i], r = m.r[i], z = m.z[i], n = m.n[i];
        const V stays = d * z;
        dn[i] = (d - stays) * (1.f - n * n);
        dz[i] = stays * (before[i] - n) * (1.f - z);
        dhn[i] = dn[i] * r;
        dr[i] = dhn[i] * m.hn[i] * (1.f - r);
        dhidden[i] = stays;
    }
    void gather() {
        const size_t apart = (size_t)5 * H;
        for (int j = 0; j < H; j += LANES) {
            const int columns[3] = {j, H + j, 2 * H + j}, of_h[3] = {j, H + j, 3 * H + j}, of_y[1] = {4 * H + j};
            for (int k = 0; k < H; k += STEPS_ROWS)
                for (int c = 0; c < 3; c += STEPS_COLUMNS) {
                    const auto gates = dense_dweight_steps<STEPS_ROWS, STEPS_COLUMNS>;
                    gates(waiting, y, k, transposed, apart, columns + c, wi, columns + c, G);
                    gates(waiting, before, k, transposed, apart, of_h + c, wh, columns + c, G);
                }
            for (int k = 0; k < STUDENT_OBS; k += OBS_ROWS)
                dense_dweight_steps<OBS_ROWS, 1>(waiting, obs, k, transposed, apart, of_y, in_w, columns, H);
            dense_dbias_steps(waiting, transposed + of_y[0], apart, in_b + j);
            for (int i = 0; i < 3; i++) dense_dbias_steps(waiting, transposed + columns[i], apart, bi + columns[i]);
            dense_dbias_steps(waiting, transposed + of_h[2], apart, bh + columns[2]);
        }
        for (int k = 0; k < H; k += 4) {
            V sums[16];
            unrolled<16>([&](int i) { sums[i] = dout_w[4 * k + i]; });
            for (int s = 0; s < waiting; s++)
                unrolled<16>([&](int i) { sums[i] += h[s][k + i / 4] * daction[s][i % 4]; });
            unrolled<16>([&](int i) { dout_w[4 * k + i] = sums[i]; });
        }
        for (int s = 0; s < waiting; s++)
            for (int i = 0; i < 4; i++) dout_b[i] += daction[s][i];
        waiting = 0;
    }
    void flight_began(I began) {  // what the first step of a flight asks of its hidden state is asked of h0
        if (!any(began)) return;
        for (int i = 0; i < H; i++) {
            dh0[i] += began ? dhidden[i] : V{};
            dhidden[i] = began ? V{} : dhidden[i];
        }
    }
    void flight_ended(I ended) {  // the hidden state after the last step of a flight goes nowhere
        if (!any(ended)) return;
        for (int i = 0; i < H; i++) dhidden[i] = ended ? V{} : dhidden[i];
    }
    void finish() {
        gather();
        for (int i = 0; i < H; i++) h0[i] = sum(dh0[i]);
        for (int i = 0; i < 2 * H; i++) bh[i] = bi[i];
        for (int i = 0; i < 4 * H; i++) out_w[i] = sum(dout_w[i]);
        for (int i = 0; i < 4; i++) out_b[i] = sum(dout_b[i]);
    }
};

}  // namespace
