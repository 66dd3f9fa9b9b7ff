// Soft actor-critic (nbs/learn/sac.ipynb, where the same is written in torch): one update of one
// teacher after the other, gradients by hand. A matrix (rows, columns) lies in panels of 32 columns:
// (columns / 32, rows, 32), weights and activations alike, so that every product streams through
// memory; the 32 inputs of a first layer are observation, action and zeros. A weight's gradient is
// complete in registers and goes straight into Adam.
#include "nn.h"

namespace {

constexpr int P = 32;  // columns of a panel
#ifdef __AVX512F__
constexpr int R = 8;   // rows of a product in registers
#else
constexpr int R = 2;
#endif
constexpr int ACTIONS = 4;
constexpr float LOG_STD_MIN = -20.f, LOG_STD_MAX = 2.f;

inline size_t panel_at(int column, size_t rows) {
    return (size_t)(column / P) * rows * P + column % P;
}

// ---------------------------------------------------------------- products
// s[r][.] += sum over k of x[r, k] w[k][.], x[r, k] at x[r * RS + k * KS], w a panel
template <int N, int RS, int KS>
inline void add_products(V (*s)[2], const float* x, const float* w, int n) {
    for (int k = 0; k < n; k++) {
        const V w0 = load(w + k * P), w1 = load(w + k * P + LANES);
        for (int r = 0; r < N; r++) {
            const V a = all(x[r * RS + k * KS]);
            s[r][0] += a * w0;
            s[r][1] += a * w1;
        }
    }
}
template <int N>
inline void add_rows(V (*s)[2], const float* x, size_t panel, const float* w, int inputs) {
    for (int k = 0; k < inputs; k += P)
        add_products<N, P, 1>(s, x + k / P * panel, w + k * P, inputs - k < P ? inputs - k : P);
}
enum class End { linear, relu, mask };
// what `mask` looks at: row `which[r]`, or r
struct Kept { const float* values; int rows; const int* which; };

// y (rows, outputs) = end(x (rows, inputs) w + b); mask: y = x w where `kept` is positive.
// rows: a multiple of R
template <End E>
inline void layer(const float* x, int rows, int inputs, const float* w, const float* b, int outputs,
                  float* y, Kept kept = {}) {
    const size_t panel = (size_t)rows * P;
    for (int o = 0; o < outputs; o += P, w += (size_t)inputs * P, y += panel)
        for (int r0 = 0; r0 < rows; r0 += R) {
            V s[R][2];
            for (int r = 0; r < R; r++)
                for (int c = 0; c < 2; c++) s[r][c] = E == End::mask ? V{} : load(b + o + c * LANES);
            add_rows<R>(s, x + r0 * P, panel, w, inputs);
            for (int r = 0; r < R; r++)
                for (int c = 0; c < 2; c++) {
                    if (E == End::relu) s[r][c] = relu(s[r][c]);
                    if (E == End::mask) {
                        const int row = kept.which ? kept.which[r0 + r] : r0 + r;
                        const V was = load(kept.values + (size_t)o * kept.rows + row * P + c * LANES);
                        s[r][c] = was > 0 ? s[r][c] : V{};
                    }
                    store(y + (r0 + r) * P + c * LANES, s[r][c]);
                }
        }
}
// panels of the transposed matrix
inline void transpose_panels(const float* w, int inputs, int outputs, float* out) {
    for (int o = 0; o < outputs; o += LANES)
        for (int i = 0; i < inputs; i += LANES) {
            V a[LANES], b[LANES];
            for (int l = 0; l < LANES; l++)
                a[l] = load(w + panel_at(o, inputs) + (size_t)(i + l) * P);
            transpose(a, b);
            for (int l = 0; l < LANES; l++)
                store(out + panel_at(i, outputs) + (size_t)(o + l) * P, b[l]);
        }
}

// ---------------------------------------------------------------- Adam (Kingma and Ba), betas .9 and .999
struct Adam {
    float *p, *m, *v, *target;  // target: follows p slowly; may be null
    float rate, root, tau;      // rate / (1 - .9^t), 1 / sqrt(1 - .999^t), of the target
    Adam at(size_t i) const {
        return {p + i, m + i, v + i, target ? target + i : nullptr, rate, root, tau};
    }
};
inline void adam_step(const Adam& a, size_t i, V g) {
    V m = load(a.m + i), v = load(a.v + i), p = load(a.p + i);
    m += .1f * (g - m);
    v = .999f * v + .001f * g * g;
    p -= a.rate * m / (sqrt(v) * a.root + 1e-8f);
    store(a.m + i, m);
    store(a.v + i, v);
    store(a.p + i, p);
    if (a.target) {
        V t = load(a.target + i);
        store(a.target + i, t + a.tau * (p - t));
    }
}
inline void prefetch(const Adam& a, size_t i, int n) {
    for (int k = 0; k < n; k += LANES) {
        __builtin_prefetch(a.p + i + k, 1);
        __builtin_prefetch(a.m + i + k, 1);
        __builtin_prefetch(a.v + i + k, 1);
        if (a.target) __builtin_prefetch(a.target + i + k, 1);
    }
}
// weights and biases of a layer, down the gradient x^T d
inline void adam_layer(const float* x, const float* d, int rows, int inputs, int outputs,
                       const Adam& w, const Adam& b) {
    const size_t panel = (size_t)rows * P;
    for (int o = 0; o < outputs; o += P, d += panel) {
        V sums[2] = {};
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < 2; c++) sums[c] += load(d + r * P + c * LANES);
        for (int c = 0; c < 2; c++) adam_step(b, o + c * LANES, sums[c]);
        for (int i = 0; i < inputs; i += R) {
            const size_t here = ((size_t)o / P * inputs + i) * P;
            prefetch(w, here, R * P);
            V s[R][2] = {};
            add_products<R, 1, P>(s, x + i / P * panel + i % P, d, rows);
            for (int r = 0; r < R; r++)
                for (int c = 0; c < 2; c++) adam_step(w, here + r * P + c * LANES, s[r][c]);
        }
    }
}

// ---------------------------------------------------------------- networks
// where the parts of a network lie: critics end in one column of weights and a bias,
// actors in a panel
struct Parts { size_t b1, w2, b2, w3, b3, size; };
inline Parts parts(int hidden, bool actor) {
    Parts p;
    const size_t H = hidden;
    p.b1 = H * P;
    p.w2 = p.b1 + H;
    p.b2 = p.w2 + H * H;
    p.w3 = p.b2 + H;
    p.b3 = p.w3 + (actor ? H * P : H);
    p.size = p.b3 + (actor ? P : LANES);
    return p;
}
struct Critic {  // of a batch
    int rows, H;
    float *h1, *h2;  // (rows, hidden)
    void forward(const float* w, const Parts& p, const float* x, float* q) const {
        layer<End::relu>(x, rows, P, w, w + p.b1, H, h1);
        layer<End::relu>(h1, rows, H, w + p.w2, w + p.b2, H, h2);
        for (int r = 0; r < rows; r++) {
            V s{};
            for (int o = 0; o < H; o += LANES)
                s += load(h2 + panel_at(o, rows) + r * P) * load(w + p.w3 + o);
            q[r] = sum(s) + w[p.b3];
        }
    }
    // dh2[r] = dq[r] w3 where the second layer is positive, of the rows `which`
    void last_backward(const float* w3, const float* dq, const int* which, int n, float* dh2) const {
        for (int o = 0; o < H; o += LANES) {
            const V weight = load(w3 + o);
            for (int r = 0; r < n; r++) {
                const int row = which ? which[r] : r;
                const V was = load(h2 + panel_at(o, rows) + row * P);
                store(dh2 + panel_at(o, n) + r * P, was > 0 ? dq[r] * weight : V{});
            }
        }
    }
};
struct Policy {  // of a batch: 8 of the 32 columns of `out` are means and logarithms of deviations
    int rows, H;
    float *h1, *h2, *out;
    void forward(const float* w, const Parts& p, const float* x) const {
        layer<End::relu>(x, rows, P, w, w + p.b1, H, h1);
        layer<End::relu>(h1, rows, H, w + p.w2, w + p.b2, H, h2);
        layer<End::linear>(h2, rows, H, w + p.w3, w + p.b3, P, out);
    }
};

// squashed samples of at most sixteen rows: tanh of a normal variable, and the logarithm of its
// probability density
struct Sample { V action[ACTIONS], deviation[ACTIONS], normal[ACTIONS], log_prob; };
inline Sample squashed(const float* out, const float* noise, int n) {
    Sample s;
    s.log_prob = V{};
    for (int j = 0; j < ACTIONS; j++) {
        V mean{}, log_std{};
        s.normal[j] = V{};
        for (int l = 0; l < n; l++) {
            mean[l] = out[l * P + j];
            log_std[l] = out[l * P + ACTIONS + j];
            s.normal[j][l] = noise[l * ACTIONS + j];
        }
        log_std = clamp(log_std, LOG_STD_MIN, LOG_STD_MAX);
        s.deviation[j] = exp(log_std);
        V x = mean + s.deviation[j] * s.normal[j];
        V y = -2.f * x;
        V softplus = max(y, 0.f) + log1p(exp(-abs(y)));
        s.action[j] = tanh(x);
        s.log_prob += -.5f * s.normal[j] * s.normal[j] - log_std - .918938533204673f
                    - 2.f * (.693147180559945f - x - softplus);
    }
    return s;
}

}  // namespace

extern "C" {

int32_t lanes() { return LANES; }

// what Python fills in; K teachers
struct SacTask {
    int32_t batch, actor_batch, obs_dim, actor_hidden, critic_hidden;
    int32_t width, capacity;   // of the replay buffer
    int32_t with_actor, size;  // of this update: whether actors take part; rows in use
    float gamma, tau, target_entropy;
    float critic_rate, critic_root, actor_rate, actor_root, temperature_rate;  // as `Adam`
    const float* rows;    // (K, capacity, width): obs, action, reward, next obs, terminated
    const double* share;  // (K, batch) 0..1: which rows to learn from
    const float *next_noise, *policy_noise;        // (K, batch, 4) standard normal
    float *critic, *critic_m, *critic_v, *target;  // (K, 2, size)
    float *actor, *actor_m, *actor_v;              // (K, size)
    float* temperature;                            // (K, 3) its logarithm and Adam's moments
    double* sums;        // (K, 5) critic loss, value; actor loss, entropy, temperature
    const float* obs;          // (K, obs_dim), of `sac_act`
    const float* exploration;  // (K, 4) standard normal
    float* action;             // (K, 4)
};

int32_t size_of_SacTask() { return sizeof(SacTask); }

}  // extern "C"

namespace {

inline float* take_floats(size_t n) { return (float*)scratch.take((n + LANES - 1) / LANES); }
inline float lower(float a, float b) { return a < b ? a : b; }

struct Update {  // of one teacher
    const SacTask& t;
    const int k;                  // which teacher
    const int B, N;               // rows of the batch for the critics, for the actor
    const int H, A, O;            // hidden units of critics, of actors; observed values
    const Parts pc, pa;           // of critics, of actors
    float *x, *next_x;            // (B, 32): obs and action; next obs and action
    float* critic_h[2][2];        // (B, H): of each critic both hidden layers
    float *dh1, *dh2;             // (B, H): gradients of them
    float *a1, *a2, *da1, *da2;   // (B, A): hidden layers of the actor, their gradients
    float* out;                   // (B, 32): means and logarithms of deviations
    float* transposed;            // a matrix of weights
    float *q[2], *y;              // (B): values of both critics, Bellman target
    float *log_prob, *reward, *alive;
    double* sums;
    float alpha;

    explicit Update(const SacTask& t, int k)
        : t(t), k(k), B(t.batch), N(t.actor_batch), H(t.critic_hidden), A(t.actor_hidden),
          O(t.obs_dim), pc(parts(H, false)), pa(parts(A, true)), sums(t.sums + 5 * k),
          alpha(std::exp(temperature()[0])) {
        const size_t widest = H > A ? H : A;  // with 32 the actor's last matrix is as large
        const size_t floats = (size_t)B * (3 * P + 6 * H + 4 * A + 6) + widest * widest;
        scratch.reserve(floats / LANES, 21);
        x = take_floats((size_t)B * P);
        next_x = take_floats((size_t)B * P);
        for (auto& critic : critic_h)
            for (auto& h : critic) h = take_floats((size_t)B * H);
        for (float** p : {&dh1, &dh2}) *p = take_floats((size_t)B * H);
        for (float** p : {&a1, &a2, &da1, &da2}) *p = take_floats((size_t)B * A);
        out = take_floats((size_t)B * P);
        transposed = take_floats(widest * widest);
        for (float** p : {&q[0], &q[1], &y, &log_prob, &reward, &alive}) *p = take_floats(B);
    }
    float* actor() const { return t.actor + (size_t)k * pa.size; }
    float* temperature() const { return t.temperature + 3 * k; }
    size_t critic_at(int c) const { return (2 * (size_t)k + c) * pc.size; }
    Critic critic(int c, int rows) const { return {rows, H, critic_h[c][0], critic_h[c][1]}; }

    void load_batch() {
        const float* rows = t.rows + (size_t)k * t.capacity * t.width;
        const double* share = t.share + (size_t)k * B;
        const auto row_of = [&](int r) { return rows + (int64_t)(share[r] * t.size) * t.width; };
        for (int r = 0; r < B; r++)
            for (int i = 0; i < t.width; i += LANES) __builtin_prefetch(row_of(r) + i);
        std::memset(x, 0, sizeof(float) * B * P);
        std::memset(next_x, 0, sizeof(float) * B * P);
        for (int r = 0; r < B; r++) {
            const float* row = row_of(r);
            std::memcpy(x + r * P, row, (O + ACTIONS) * sizeof(float));
            std::memcpy(next_x + r * P, row + O + ACTIONS + 1, O * sizeof(float));
            reward[r] = row[O + ACTIONS];
            alive[r] = 1.f - row[t.width - 1];
        }
    }
    // actions of the policy in `rows` (their observations are there), and log_prob; returns the sum
    // of the latter
    double sample(int n, const float* from, const float* noise, float* rows) {
        Policy{n, A, a1, a2, out}.forward(actor(), pa, from);
        double total = 0;
        for (int r = 0; r < n; r += LANES) {
            const int m = n - r < LANES ? n - r : LANES;
            const Sample s = squashed(out + r * P, noise + ((size_t)k * B + r) * ACTIONS, m);
            for (int l = 0; l < m; l++) {
                log_prob[r + l] = s.log_prob[l];
                total += s.log_prob[l];
                for (int j = 0; j < ACTIONS; j++) rows[(r + l) * P + O + j] = s.action[j][l];
            }
        }
        return total;
    }

    // ------------------------------------------------------------ critics
    void targets() {
        sample(B, next_x, t.next_noise, next_x);
        for (int c = 0; c < 2; c++) critic(c, B).forward(t.target + critic_at(c), pc, next_x, q[c]);
        for (int r = 0; r < B; r++)
            y[r] = reward[r] + t.gamma * alive[r] * (lower(q[0][r], q[1][r]) - alpha * log_prob[r]);
    }
    void critic_update(int c) {
        const size_t here = critic_at(c);
        float* w = t.critic + here;
        const Adam adam{w, t.critic_m + here, t.critic_v + here, t.target + here,
                        t.critic_rate, t.critic_root, t.tau};
        const Critic net = critic(0, B);
        net.forward(w, pc, x, q[0]);
        float *dq = q[1], db3 = 0;
        double loss = 0, value = 0;
        for (int r = 0; r < B; r++) {
            const float e = q[0][r] - y[r];
            loss += (double)e * e;
            value += q[0][r];
            dq[r] = 2.f / B * e;
            db3 += dq[r];
        }
        sums[0] += loss / B;
        sums[1] += value / (2 * B);
        net.last_backward(w + pc.w3, dq, nullptr, B, dh2);
        transpose_panels(w + pc.w2, H, H, transposed);
        layer<End::mask>(dh2, B, H, transposed, nullptr, H, dh1, {net.h1, B, nullptr});
        adam_layer(x, dh1, B, P, H, adam, adam.at(pc.b1));
        adam_layer(net.h1, dh2, B, H, H, adam.at(pc.w2), adam.at(pc.b2));
        for (int o = 0; o < H; o += LANES) {
            V s{};
            for (int r = 0; r < B; r++) s += dq[r] * load(net.h2 + panel_at(o, B) + r * P);
            adam_step(adam, pc.w3 + o, s);
        }
        V last{};
        last[0] = db3;
        adam_step(adam, pc.b3, last);
    }

    // ------------------------------------------------------------ actor: the first rows of the batch
    // daction (N, 4) of minus the lower value, by the critic where it is the lower one
    void value_backward(int c, float (*daction)[ACTIONS], int* which) {
        int n = 0;
        for (int r = 0; r < N; r++)
            if ((q[0][r] < q[1][r]) == (c == 0)) which[n++] = r;
        const int count = n;
        while (n % R) which[n++] = 0;
        const float* w = t.critic + critic_at(c);
        for (int r = 0; r < n; r++) y[r] = -1.f / N;
        const Critic net = critic(c, N);
        net.last_backward(w + pc.w3, y, which, n, dh2);
        transpose_panels(w + pc.w2, H, H, transposed);
        layer<End::mask>(dh2, n, H, transposed, nullptr, H, dh1, {net.h1, N, which});
        for (int r = 0; r < count; r++) {
            V s[ACTIONS] = {};
            for (int i = 0; i < H; i += LANES) {
                const V d = load(dh1 + panel_at(i, n) + r * P);
                for (int j = 0; j < ACTIONS; j++) s[j] += d * load(w + panel_at(i, P) + (O + j) * P);
            }
            for (int j = 0; j < ACTIONS; j++) daction[which[r]][j] = sum(s[j]);
        }
    }
    // dout (N, 32) of the means and logarithms of deviations
    void sample_backward(const float (*daction)[ACTIONS], float* dout) {
        std::memset(dout, 0, sizeof(float) * N * P);
        for (int r = 0; r < N; r += LANES) {
            const int n = N - r < LANES ? N - r : LANES;
            const Sample s = squashed(out + r * P, t.policy_noise + ((size_t)k * B + r) * ACTIONS, n);
            for (int j = 0; j < ACTIONS; j++)
                for (int l = 0; l < n; l++) {
                    const float a = s.action[j][l], raw = out[(r + l) * P + ACTIONS + j];
                    const float dx = alpha * 2.f / N * a + daction[r + l][j] * (1.f - a * a);
                    const bool inside = raw >= LOG_STD_MIN && raw <= LOG_STD_MAX;
                    dout[(r + l) * P + j] = dx;
                    const float dlog_std = dx * s.deviation[j][l] * s.normal[j][l] - alpha / N;
                    dout[(r + l) * P + ACTIONS + j] = inside ? dlog_std : 0.f;
                }
        }
    }
    void actor_update() {
        std::memset(next_x, 0, sizeof(float) * N * P);
        for (int r = 0; r < N; r++) std::memcpy(next_x + r * P, x + r * P, O * sizeof(float));
        const double total = sample(N, next_x, t.policy_noise, x);
        for (int c = 0; c < 2; c++) critic(c, N).forward(t.critic + critic_at(c), pc, x, q[c]);
        double loss = 0;
        for (int r = 0; r < N; r++) loss += alpha * log_prob[r] - lower(q[0][r], q[1][r]);
        float daction[N][ACTIONS];
        int which[N + R];
        for (int c = 0; c < 2; c++) value_backward(c, daction, which);
        float* dout = dh2;
        sample_backward(daction, dout);

        const size_t here = (size_t)k * pa.size;
        float* w = actor();
        const Adam adam{w, t.actor_m + here, t.actor_v + here, nullptr,
                        t.actor_rate, t.actor_root, 0.f};
        transpose_panels(w + pa.w3, A, P, transposed);
        layer<End::mask>(dout, N, P, transposed, nullptr, A, da2, {a2, N, nullptr});
        transpose_panels(w + pa.w2, A, A, transposed);
        layer<End::mask>(da2, N, A, transposed, nullptr, A, da1, {a1, N, nullptr});
        adam_layer(next_x, da1, N, P, A, adam, adam.at(pa.b1));
        adam_layer(a1, da2, N, A, A, adam.at(pa.w2), adam.at(pa.b2));
        adam_layer(a2, dout, N, A, P, adam.at(pa.w3), adam.at(pa.b3));
        temperature_update((float)(total / N + t.target_entropy));
        sums[2] += loss / N;
        sums[3] -= total / N;
        sums[4] += alpha;
    }
    void temperature_update(float excess) {  // of the logarithmic probability over the target
        float* s = temperature();
        const float g = -excess;
        s[1] += .1f * (g - s[1]);
        s[2] = .999f * s[2] + .001f * g * g;
        s[0] -= t.temperature_rate * s[1] / (std::sqrt(s[2]) * t.actor_root + 1e-8f);
    }
};

void act_of(const SacTask& t, int k, float* x, const Policy& policy) {
    std::memset(x, 0, sizeof(float) * P * R);
    std::memcpy(x, t.obs + (size_t)k * t.obs_dim, t.obs_dim * sizeof(float));
    const Parts pa = parts(t.actor_hidden, true);
    policy.forward(t.actor + (size_t)k * pa.size, pa, x);
    const Sample s = squashed(policy.out, t.exploration + (size_t)k * ACTIONS, 1);
    for (int j = 0; j < ACTIONS; j++) t.action[(size_t)k * ACTIONS + j] = s.action[j][0];
}

}  // namespace

extern "C" {

void sac_update(const SacTask* t, int32_t first, int32_t last) {
    for (int k = first; k < last; k++) {
        Update update(*t, k);
        update.load_batch();
        update.targets();
        for (int c = 0; c < 2; c++) update.critic_update(c);
        if (t->with_actor) update.actor_update();
    }
}

// what each teacher does, one observation each
void sac_act(const SacTask* t, int32_t first, int32_t last) {
    const int A = t->actor_hidden;
    scratch.reserve((size_t)R * (2 * P + 2 * A) / LANES, 4);
    float* x = take_floats(P * R);
    float* h1 = take_floats(A * R);
    float* h2 = take_floats(A * R);
    float* out = take_floats(P * R);
    const Policy policy{R, A, h1, h2, out};
    for (int k = first; k < last; k++) act_of(*t, k, x, policy);
}

}
