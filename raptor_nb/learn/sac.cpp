// Soft actor-critic (nbs/learn/sac.ipynb, where the same is written in torch) on a CPU: one update of one teacher after the other, gradients by hand.
// A matrix (rows, columns) lies in panels of 32 columns: (columns / 32, rows, 32), weights and activations alike, so that every product streams through
// memory; the 32 inputs of a first layer are observation, action and zeros. A weight's gradient is complete in registers and goes straight into Adam.
#include "native.cpp"

namespace {

constexpr int P = 32, R = 8; // columns of a panel; rows of a product in registers

// ---------------------------------------------------------------- functions of sixteen numbers
inline V exp(V x) { // 2^n e^r with |r| < ln 2 / 2, e^r by its series to the last bit or two
    x = min(max(x, -87.f), 88.f);
    I n = __builtin_convertvector(x * 1.44269504088896341f + (x < 0 ? all(-.5f) : all(.5f)), I);
    V f = __builtin_convertvector(n, V), r = (x - f * .693359375f) + f * 2.12194440e-4f;
    V p = 1.f + r * (1.f + r * (.5f + r * (1.6666665459e-1f + r * (4.1665795894e-2f + r * (8.3334519073e-3f + r * 1.3981999507e-3f)))));
    I bits = (n + 127) << 23; V scale; std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}
inline V log1p(V y) { // 0 <= y <= 1: of 1 + y = 2^n m with m within sqrt(1/2) ... sqrt(2)
    V m = 1.f + y; I big = m > 1.41421356f;
    m = big ? .5f * m : m;
    V x = m - 1.f, z = x * x;
    V p = 3.3333331174e-1f + x * (-2.4999993993e-1f + x * (2.0000714765e-1f + x * (-1.6668057665e-1f + x * (1.4249322787e-1f + x * (-1.2420140846e-1f + x * (1.1676998740e-1f + x * (-1.1514610310e-1f + x * 7.0376836292e-2f)))))));
    return x - .5f * z + x * z * p + (big ? all(.69314718056f) : V{});
}

// ---------------------------------------------------------------- products
// s[r][.] += sum over k of x[r, k] w[k][.], x[r, k] at x[r * RS + k * KS], w a panel
template <int N, int RS, int KS> inline void add_products(V (*s)[2], const float* x, const float* w, int n) {
    for (int k = 0; k < n; k++) {
        const V w0 = load(w + k * P), w1 = load(w + k * P + LANES);
        for (int r = 0; r < N; r++) { const V a = all(x[r * RS + k * KS]); s[r][0] += a * w0; s[r][1] += a * w1; }
    }
}
template <int N> inline void add_rows(V (*s)[2], const float* x, size_t panel, const float* w, int inputs) { // x: its rows in panels
    for (int k = 0; k < inputs; k += P) add_products<N, P, 1>(s, x + k / P * panel, w + k * P, inputs - k < P ? inputs - k : P);
}
enum class End { linear, relu, mask };
// y = end(x w + b) for `rows` rows, a multiple of R; mask: y = x w where `kept` is positive (of row `which[r]`)
template <End E> inline void layer(const float* x, int rows, int inputs, const float* w, const float* b, int outputs, float* y, const float* kept = nullptr, const int* which = nullptr, int kept_rows = 0) {
    const size_t panel = (size_t)rows * P;
    for (int o = 0; o < outputs; o += P, w += (size_t)inputs * P, y += panel)
        for (int r0 = 0; r0 < rows; r0 += R) {
            V s[R][2];
            for (int r = 0; r < R; r++) for (int c = 0; c < 2; c++) s[r][c] = E == End::mask ? V{} : load(b + o + c * LANES);
            add_rows<R>(s, x + r0 * P, panel, w, inputs);
            for (int r = 0; r < R; r++) for (int c = 0; c < 2; c++) {
                if (E == End::relu) s[r][c] = relu(s[r][c]);
                if (E == End::mask) { const int row = which ? which[r0 + r] : r0 + r; s[r][c] = load(kept + (size_t)o * kept_rows + row * P + c * LANES) > 0 ? s[r][c] : V{}; }
                store(y + (r0 + r) * P + c * LANES, s[r][c]);
            }
        }
}
inline void turn(const float* w, int inputs, int outputs, float* turned) { // panels of the transposed matrix
    for (int o = 0; o < outputs; o += LANES) for (int i = 0; i < inputs; i += LANES) {
        V a[LANES], b[LANES];
        for (int l = 0; l < LANES; l++) a[l] = load(w + ((size_t)(o / P) * inputs + i + l) * P + o % P);
        transpose(a, b);
        for (int l = 0; l < LANES; l++) store(turned + ((size_t)(i / P) * outputs + o + l) * P + i % P, b[l]);
    }
}

// ---------------------------------------------------------------- Adam
struct Adam { float *p, *m, *v, *target; float rate, root, tau; }; // rate / (1 - .9^t), 1 / sqrt(1 - .999^t); target may be null
inline Adam at(const Adam& a, size_t i) { return {a.p + i, a.m + i, a.v + i, a.target ? a.target + i : nullptr, a.rate, a.root, a.tau}; }
inline void descend(const Adam& a, size_t i, V g) {
    V m = load(a.m + i), v = load(a.v + i), p = load(a.p + i);
    m += .1f * (g - m); v = .999f * v + .001f * g * g;
    p -= a.rate * m / (sqrt(v) * a.root + 1e-8f);
    store(a.m + i, m); store(a.v + i, v); store(a.p + i, p);
    if (a.target) { V t = load(a.target + i); store(a.target + i, t + a.tau * (p - t)); }
}
inline void fetch(const Adam& a, size_t i, int n) {
    for (int k = 0; k < n; k += LANES) { __builtin_prefetch(a.p + i + k, 1); __builtin_prefetch(a.m + i + k, 1); __builtin_prefetch(a.v + i + k, 1); if (a.target) __builtin_prefetch(a.target + i + k, 1); }
}
// weights and biases of a layer, down the gradient x^T d
inline void descend_layer(const float* x, const float* d, int rows, int inputs, int outputs, const Adam& w, const Adam& b) {
    const size_t panel = (size_t)rows * P;
    for (int o = 0; o < outputs; o += P, d += panel) {
        V sum[2] = {};
        for (int r = 0; r < rows; r++) for (int c = 0; c < 2; c++) sum[c] += load(d + r * P + c * LANES);
        for (int c = 0; c < 2; c++) descend(b, o + c * LANES, sum[c]);
        for (int i = 0; i < inputs; i += R) {
            const size_t here = ((size_t)o / P * inputs + i) * P;
            fetch(w, here, R * P);
            V s[R][2] = {};
            add_products<R, 1, P>(s, x + i / P * panel + i % P, d, rows);
            for (int r = 0; r < R; r++) for (int c = 0; c < 2; c++) descend(w, here + r * P + c * LANES, s[r][c]);
        }
    }
}

// ---------------------------------------------------------------- networks
// where the parts of a network lie: critics end in one column of weights and a bias, actors in a panel
struct Parts { size_t b1, w2, b2, w3, b3, size; };
inline Parts parts(int hidden, bool actor) {
    Parts p; const size_t H = hidden;
    p.b1 = H * P; p.w2 = p.b1 + H; p.b2 = p.w2 + H * H; p.w3 = p.b2 + H; p.b3 = p.w3 + (actor ? H * P : H); p.size = p.b3 + (actor ? P : LANES);
    return p;
}
struct Critic { // of a batch
    int rows, H; float *h1, *h2;
    void run(const float* w, const Parts& p, const float* x, float* q) const {
        layer<End::relu>(x, rows, P, w, w + p.b1, H, h1);
        layer<End::relu>(h1, rows, H, w + p.w2, w + p.b2, H, h2);
        for (int r = 0; r < rows; r++) {
            V s{};
            for (int o = 0; o < H; o += LANES) s += load(h2 + (size_t)(o / P) * rows * P + r * P + o % P) * load(w + p.w3 + o);
            q[r] = sum(s) + w[p.b3];
        }
    }
    // d[r] = dq[r] w3 where the second layer is positive, of the rows `which`
    void second(const float* w3, const float* dq, const int* which, int n, float* d) const {
        for (int o = 0; o < H; o += LANES) {
            const V weight = load(w3 + o);
            for (int r = 0; r < n; r++) {
                const int row = which ? which[r] : r;
                store(d + (size_t)(o / P) * n * P + r * P + o % P, load(h2 + (size_t)(o / P) * rows * P + row * P + o % P) > 0 ? dq[r] * weight : V{});
            }
        }
    }
};
struct Policy { // of a batch: 8 of the 32 columns of `out` are means and logarithms of deviations
    int rows, H; float *h1, *h2, *out;
    void run(const float* w, const Parts& p, const float* x) const {
        layer<End::relu>(x, rows, P, w, w + p.b1, H, h1);
        layer<End::relu>(h1, rows, H, w + p.w2, w + p.b2, H, h2);
        layer<End::linear>(h2, rows, H, w + p.w3, w + p.b3, P, out);
    }
};
constexpr int ACTIONS = 4;
// squashed samples of rows r ... r + 15: actions, their logarithmic probability, and deviations
inline V squashed(const float* out, const float* noise, int n, V* action, V* deviation, V* normal) {
    V log_prob{};
    for (int j = 0; j < ACTIONS; j++) {
        V mean{}, log_std{}; normal[j] = V{};
        for (int l = 0; l < n; l++) { mean[l] = out[l * P + j]; log_std[l] = out[l * P + ACTIONS + j]; normal[j][l] = noise[l * ACTIONS + j]; }
        log_std = min(max(log_std, -20.f), 2.f);
        deviation[j] = exp(log_std);
        V x = mean + deviation[j] * normal[j], y = -2.f * x, soft = max(y, 0.f) + log1p(exp(-abs(y)));
        action[j] = tanh(x);
        log_prob += -.5f * normal[j] * normal[j] - log_std - .918938533204673f - 2.f * (.693147180559945f - x - soft);
    }
    return log_prob;
}

} // namespace

extern "C" {

struct SacTask {
    int32_t batch, actor_batch, obs, actor_hidden, critic_hidden, width, capacity, with_actor, size; // size: rows in use
    float gamma, tau, target_entropy, critic_rate, critic_root, actor_rate, actor_root, temperature_rate;
    const float* rows;                                 // (K, capacity, width): observation, action, reward, following, terminated
    const double* share;                               // (K, batch) 0..1: which rows to learn from
    const float *following, *policy;                   // (K, batch, 4) standard normal
    float *critic, *critic_m, *critic_v, *target;      // (K, 2, size)
    float *actor, *actor_m, *actor_v;                  // (K, size)
    float *temperature;                                // (K, 3) its logarithm and Adam's moments
    double *sums;                                      // (K, 5) critic loss, value; actor loss, entropy, temperature
    const float *observation, *explore; float *action; // (K, obs), (K, 4), (K, 4): of `act`
};

static void update_of(const SacTask& t, int k) {
    const int B = t.batch, H = t.critic_hidden, A = t.actor_hidden, O = t.obs;
    const Parts pc = parts(H, false), pa = parts(A, true);
    const size_t square = (size_t)(H > A ? H : A) * (H > A ? H : A); // of the largest matrix, which a hidden layer of 32 makes the last one's too
    scratch.reserve(sizeof(float) * ((size_t)B * (3 * P + 6 * H + 4 * A + 8) + square + 4096));
    auto take = [](size_t n) { return (float*)scratch.take((n + LANES - 1) / LANES); };
    float *x = take((size_t)B * P), *z = take((size_t)B * P), *both[2][2], *d2 = take((size_t)B * H), *d1 = take((size_t)B * H), *turned = take(square);
    for (auto& c : both) for (auto& h : c) h = take((size_t)B * H);
    float *a1 = take((size_t)B * A), *a2 = take((size_t)B * A), *e1 = take((size_t)B * A), *e2 = take((size_t)B * A), *out = take((size_t)B * P);
    float *q[2] = {take(B), take(B)}, *y = take(B), *log_prob = take(B), *reward = take(B), *goes_on = take(B);
    const float* rows = t.rows + (size_t)k * t.capacity * t.width;
    const double* share = t.share + (size_t)k * B;
    double* sums = t.sums + 5 * k;
    V action[ACTIONS], deviation[ACTIONS], normal[ACTIONS];

    // the batch
    const auto row_of = [&](int r) { return rows + (int64_t)(share[r] * t.size) * t.width; };
    for (int r = 0; r < B; r++) for (int i = 0; i < t.width; i += LANES) __builtin_prefetch(row_of(r) + i);
    std::memset(x, 0, sizeof(float) * B * P); std::memset(z, 0, sizeof(float) * B * P);
    for (int r = 0; r < B; r++) {
        const float* row = row_of(r);
        std::memcpy(x + r * P, row, (O + ACTIONS) * sizeof(float));
        std::memcpy(z + r * P, row + O + ACTIONS + 1, O * sizeof(float));
        reward[r] = row[O + ACTIONS]; goes_on[r] = 1.f - row[t.width - 1];
    }
    // critics
    float* actor = t.actor + (size_t)k * pa.size; float* temperature = t.temperature + 3 * k;
    const float alpha = std::exp(temperature[0]);
    const Policy policy{B, A, a1, a2, out};
    policy.run(actor, pa, z);
    for (int r = 0; r < B; r += LANES) {
        const int n = B - r < LANES ? B - r : LANES;
        V lp = squashed(out + r * P, t.following + ((size_t)k * B + r) * ACTIONS, n, action, deviation, normal);
        for (int l = 0; l < n; l++) { log_prob[r + l] = lp[l]; for (int j = 0; j < ACTIONS; j++) z[(r + l) * P + O + j] = action[j][l]; }
    }
    for (int c = 0; c < 2; c++) Critic{B, H, both[c][0], both[c][1]}.run(t.target + (2 * (size_t)k + c) * pc.size, pc, z, q[c]);
    for (int r = 0; r < B; r++) y[r] = reward[r] + t.gamma * goes_on[r] * ((q[0][r] < q[1][r] ? q[0][r] : q[1][r]) - alpha * log_prob[r]);
    for (int c = 0; c < 2; c++) {
        const size_t here = (2 * (size_t)k + c) * pc.size; float* w = t.critic + here;
        const Adam adam{w, t.critic_m + here, t.critic_v + here, t.target + here, t.critic_rate, t.critic_root, t.tau};
        const Critic critic{B, H, both[0][0], both[0][1]};
        critic.run(w, pc, x, q[0]);
        float *dq = q[1]; double loss = 0, value = 0; float by_b3 = 0;
        for (int r = 0; r < B; r++) { const float e = q[0][r] - y[r]; loss += (double)e * e; value += q[0][r]; dq[r] = 2.f / B * e; by_b3 += dq[r]; }
        sums[0] += loss / B; sums[1] += value / (2 * B);
        critic.second(w + pc.w3, dq, nullptr, B, d2);
        turn(w + pc.w2, H, H, turned);
        layer<End::mask>(d2, B, H, turned, nullptr, H, d1, critic.h1, nullptr, B);
        descend_layer(x, d1, B, P, H, adam, at(adam, pc.b1));
        descend_layer(critic.h1, d2, B, H, H, at(adam, pc.w2), at(adam, pc.b2));
        for (int o = 0; o < H; o += LANES) {
            V s{};
            for (int r = 0; r < B; r++) s += dq[r] * load(critic.h2 + (size_t)(o / P) * B * P + r * P + o % P);
            descend(adam, pc.w3 + o, s);
        }
        V last{}; last[0] = by_b3; descend(adam, pc.b3, last);
    }
    if (!t.with_actor) return;

    // actor: the first rows of the batch
    const int N = t.actor_batch;
    const Policy now{N, A, a1, a2, out};
    std::memset(z, 0, sizeof(float) * N * P);
    for (int r = 0; r < N; r++) std::memcpy(z + r * P, x + r * P, O * sizeof(float));
    now.run(actor, pa, z);
    double total = 0;
    for (int r = 0; r < N; r += LANES) {
        const int n = N - r < LANES ? N - r : LANES;
        V lp = squashed(out + r * P, t.policy + ((size_t)k * B + r) * ACTIONS, n, action, deviation, normal);
        for (int l = 0; l < n; l++) { log_prob[r + l] = lp[l]; total += lp[l]; for (int j = 0; j < ACTIONS; j++) x[(r + l) * P + O + j] = action[j][l]; }
    }
    for (int c = 0; c < 2; c++) Critic{N, H, both[c][0], both[c][1]}.run(t.critic + (2 * (size_t)k + c) * pc.size, pc, x, q[c]);
    double loss = 0;
    float by_action[N][ACTIONS];
    for (int r = 0; r < N; r++) loss += alpha * log_prob[r] - (q[0][r] < q[1][r] ? q[0][r] : q[1][r]);
    for (int c = 0; c < 2; c++) { // each critic where it is the lower one
        int which[N + R], n = 0;
        for (int r = 0; r < N; r++) if ((q[0][r] < q[1][r]) == (c == 0)) which[n++] = r;
        const int count = n; while (n % R) which[n++] = 0;
        const float* w = t.critic + (2 * (size_t)k + c) * pc.size;
        for (int r = 0; r < n; r++) y[r] = -1.f / N;
        const Critic critic{N, H, both[c][0], both[c][1]};
        critic.second(w + pc.w3, y, which, n, d2);
        turn(w + pc.w2, H, H, turned);
        layer<End::mask>(d2, n, H, turned, nullptr, H, d1, critic.h1, which, N);
        for (int r = 0; r < count; r++) {
            V s[ACTIONS] = {};
            for (int i = 0; i < H; i += LANES) { const V d = load(d1 + (size_t)(i / P) * n * P + r * P + i % P); for (int j = 0; j < ACTIONS; j++) s[j] += d * load(w + ((size_t)(i / P) * P + O + j) * P + i % P); }
            for (int j = 0; j < ACTIONS; j++) by_action[which[r]][j] = sum(s[j]);
        }
    }
    float* by_out = d2; std::memset(by_out, 0, sizeof(float) * N * P);
    for (int r = 0; r < N; r += LANES) {
        const int n = N - r < LANES ? N - r : LANES;
        squashed(out + r * P, t.policy + ((size_t)k * B + r) * ACTIONS, n, action, deviation, normal);
        for (int j = 0; j < ACTIONS; j++) for (int l = 0; l < n; l++) {
            const float a = action[j][l], by_x = alpha * 2.f / N * a + by_action[r + l][j] * (1.f - a * a), raw = out[(r + l) * P + ACTIONS + j];
            by_out[(r + l) * P + j] = by_x;
            by_out[(r + l) * P + ACTIONS + j] = raw >= -20.f && raw <= 2.f ? by_x * deviation[j][l] * normal[j][l] - alpha / N : 0.f;
        }
    }
    const size_t here = (size_t)k * pa.size;
    const Adam adam{actor, t.actor_m + here, t.actor_v + here, nullptr, t.actor_rate, t.actor_root, 0.f};
    turn(actor + pa.w3, A, P, turned);
    layer<End::mask>(by_out, N, P, turned, nullptr, A, e2, a2, nullptr, N);
    turn(actor + pa.w2, A, A, turned);
    layer<End::mask>(e2, N, A, turned, nullptr, A, e1, a1, nullptr, N);
    descend_layer(z, e1, N, P, A, adam, at(adam, pa.b1));
    descend_layer(a1, e2, N, A, A, at(adam, pa.w2), at(adam, pa.b2));
    descend_layer(a2, by_out, N, A, P, at(adam, pa.w3), at(adam, pa.b3));
    // temperature
    const float g = -(float)(total / N + t.target_entropy);
    temperature[1] += .1f * (g - temperature[1]); temperature[2] = .999f * temperature[2] + .001f * g * g;
    temperature[0] -= t.temperature_rate * temperature[1] / (std::sqrt(temperature[2]) * t.actor_root + 1e-8f);
    sums[2] += loss / N; sums[3] -= total / N; sums[4] += alpha;
}
void sac_update(const SacTask* t, int32_t first, int32_t last) { for (int k = first; k < last; k++) update_of(*t, k); }

// what each teacher does, one observation each
void sac_act(const SacTask* t, int32_t first, int32_t last) {
    const int A = t->actor_hidden; const Parts pa = parts(A, true);
    scratch.reserve(sizeof(float) * (R * (2 * P + 2 * A) + 256));
    float *x = (float*)scratch.take(P * R / LANES), *h1 = (float*)scratch.take(A * R / LANES), *h2 = (float*)scratch.take(A * R / LANES), *out = (float*)scratch.take(P * R / LANES);
    V action[ACTIONS], deviation[ACTIONS], normal[ACTIONS];
    for (int k = first; k < last; k++) {
        std::memset(x, 0, sizeof(float) * P * R); std::memcpy(x, t->observation + (size_t)k * t->obs, t->obs * sizeof(float));
        Policy{R, A, h1, h2, out}.run(t->actor + (size_t)k * pa.size, pa, x);
        squashed(out, t->explore + (size_t)k * ACTIONS, 1, action, deviation, normal);
        for (int j = 0; j < ACTIONS; j++) t->action[(size_t)k * ACTIONS + j] = action[j][0];
    }
}

}
