// Flights in closed loop on a CPU: physics, actors and their gradients, sixteen flights side by side in one vector register.
// What it computes is told in nbs/learn/flight.ipynb, apg.ipynb and 04_distill.ipynb, where the same is written in torch; the
// tests compare the two. Vector extensions of GCC and clang, no library. In memory flights are contiguous: (..., values, flights).
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

// ---------------------------------------------------------------- sixteen numbers at a time
constexpr int LANES = 16;
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));

inline V all(float x) { return x - V{}; }
inline V load(const float* p) { V x; std::memcpy(&x, p, sizeof x); return x; }
inline void store(float* p, V x) { std::memcpy(p, &x, sizeof x); }
inline V sqrt(V x) { V y; for (int i = 0; i < LANES; i++) y[i] = __builtin_sqrtf(x[i]); return y; }
inline V abs(V x) { return x < 0 ? -x : x; }
inline V max(V x, float y) { return x > y ? x : all(y); }
inline V min(V x, float y) { return x < y ? x : all(y); }
inline V relu(V x) { return max(x, 0.f); }
inline V square(V x) { return x * x; }
inline float sum(V x) { float s = 0; for (int i = 0; i < LANES; i++) s += x[i]; return s; }

// tanh as a ratio of polynomials, exact to the last two bits; beyond +-7.9 it is +-1 in float32
inline V tanh(V x) {
    x = min(max(x, -7.90531110763549805f), 7.90531110763549805f);
    V s = x * x;
    V p = x * (4.89352455891786e-03f + s * (6.37261928875436e-04f + s * (1.48572235717979e-05f + s * (5.12229709037114e-08f +
          s * (-8.60467152213735e-11f + s * (2.00018790482477e-13f + s * -2.76076847742355e-16f))))));
    V q = 4.89352518554385e-03f + s * (2.26843463243900e-03f + s * (1.18534705686654e-04f + s * 1.19825839466702e-06f));
    return p / q;
}
inline V sigmoid(V x) { return .5f + .5f * tanh(.5f * x); }

// rows become columns: values x flights -> flights x values
#ifndef __has_builtin
#define __has_builtin(x) 0
#endif
template <int S, int... L> inline void swap_pair(V& a, V& b, std::integer_sequence<int, L...>) {
    const V x = a, y = b;
#if __has_builtin(__builtin_shufflevector)
    a = __builtin_shufflevector(x, y, (L & S ? LANES + (L ^ S) : L)...); b = __builtin_shufflevector(x, y, (L & S ? LANES + L : L ^ S)...);
#else // g++ before 12
    for (int l = 0; l < LANES; l++) { a[l] = l & S ? y[l ^ S] : x[l]; b[l] = l & S ? y[l] : x[l ^ S]; }
#endif
}
template <int S> inline void swap_blocks(V* v) {
    for (int i = 0; i < LANES; i++) if (!(i & S)) swap_pair<S>(v[i], v[i + S], std::make_integer_sequence<int, LANES>{});
}
inline void transpose(const V* in, V* out) {
    for (int i = 0; i < LANES; i++) out[i] = in[i];
    swap_blocks<8>(out); swap_blocks<4>(out); swap_blocks<2>(out); swap_blocks<1>(out);
}

// ---------------------------------------------------------------- layers; weights are (inputs, outputs)
template <int B> inline void dense_some(const float* w, const float* bias, int inputs, int outputs, const V* x, V* y) {
    V sums[B];
    for (int j = 0; j < B; j++) sums[j] = bias ? all(bias[j]) : V{};
    for (int k = 0; k < inputs; k++) {
        V xk = x[k]; const float* row = w + k * outputs;
        for (int j = 0; j < B; j++) sums[j] += row[j] * xk;
    }
    for (int j = 0; j < B; j++) y[j] = sums[j];
}
inline void dense(const float* w, const float* bias, int inputs, int outputs, const V* x, V* y) { // y = bias + x w
    int j = 0;
    for (; j + 16 <= outputs; j += 16) dense_some<16>(w + j, bias ? bias + j : nullptr, inputs, outputs, x, y + j);
    for (; j + 4 <= outputs; j += 4) dense_some<4>(w + j, bias ? bias + j : nullptr, inputs, outputs, x, y + j);
}
template <int B> inline void dense_back_some(const float* w, int outputs, const V* d, V* by_x) {
    V sums[B] = {};
    for (int j = 0; j < outputs; j++) { V dj = d[j]; for (int k = 0; k < B; k++) sums[k] += w[k * outputs + j] * dj; }
    for (int k = 0; k < B; k++) by_x[k] = sums[k];
}
inline void dense_back(const float* w, int inputs, int outputs, const V* d, V* by_x) { // by_x = d w^T
    int k = 0;
    for (; k + 8 <= inputs; k += 8) dense_back_some<8>(w + k * outputs, outputs, d, by_x + k);
    for (; k < inputs; k++) dense_back_some<1>(w + k * outputs, outputs, d, by_x + k);
}
// by_w += x^T d, summed over flights; outputs is a multiple of 16, dt holds d transposed, (outputs / 16) x 16 rows
template <int B, int C> inline void outer_some(const V* x, const V* dt, float* by_w, int outputs) {
    V sums[B][C];
    for (int k = 0; k < B; k++) for (int c = 0; c < C; c++) sums[k][c] = load(by_w + k * outputs + c * LANES);
    for (int l = 0; l < LANES; l++)
        for (int k = 0; k < B; k++) { float xl = x[k][l]; for (int c = 0; c < C; c++) sums[k][c] += xl * dt[c * LANES + l]; }
    for (int k = 0; k < B; k++) for (int c = 0; c < C; c++) store(by_w + k * outputs + c * LANES, sums[k][c]);
}
inline void outer(const V* x, const V* dt, int inputs, int outputs, float* by_w) {
    for (int c = 0; c < outputs;) {
        int wide = outputs - c >= 4 * LANES ? 4 : outputs - c >= 2 * LANES ? 2 : 1, k = 0;
        const V* d = dt + c;
        for (; k + 4 <= inputs; k += 4)
            wide == 4 ? outer_some<4, 4>(x + k, d, by_w + k * outputs + c, outputs) : wide == 2 ? outer_some<4, 2>(x + k, d, by_w + k * outputs + c, outputs) : outer_some<4, 1>(x + k, d, by_w + k * outputs + c, outputs);
        for (; k < inputs; k++)
            wide == 4 ? outer_some<1, 4>(x + k, d, by_w + k * outputs + c, outputs) : wide == 2 ? outer_some<1, 2>(x + k, d, by_w + k * outputs + c, outputs) : outer_some<1, 1>(x + k, d, by_w + k * outputs + c, outputs);
        c += wide * LANES;
    }
}

// ---------------------------------------------------------------- vectors in space
struct V3 { V x, y, z; };
struct V4 { V w, x, y, z; };
inline V3 operator+(V3 a, V3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline V3 operator-(V3 a, V3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline V3 operator*(V s, V3 a) { return {s * a.x, s * a.y, s * a.z}; }
inline V3 operator*(float s, V3 a) { return {s * a.x, s * a.y, s * a.z}; }
inline V4 operator+(V4 a, V4 b) { return {a.w + b.w, a.x + b.x, a.y + b.y, a.z + b.z}; }
inline V4 operator*(float s, V4 a) { return {s * a.w, s * a.x, s * a.y, s * a.z}; }
inline V4 operator*(V s, V4 a) { return {s * a.w, s * a.x, s * a.y, s * a.z}; }
inline V dot(V3 a, V3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline V dot(V4 a, V4 b) { return a.w * b.w + a.x * b.x + a.y * b.y + a.z * b.z; }
inline V3 cross(V3 a, V3 b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
inline V3 axis(V4 q) { return {q.x, q.y, q.z}; }
inline V3 mul(const float* m, V3 v) { return {m[0] * v.x + m[1] * v.y + m[2] * v.z, m[3] * v.x + m[4] * v.y + m[5] * v.z, m[6] * v.x + m[7] * v.y + m[8] * v.z}; }
inline V3 mul_transposed(const float* m, V3 v) { return {m[0] * v.x + m[3] * v.y + m[6] * v.z, m[1] * v.x + m[4] * v.y + m[7] * v.z, m[2] * v.x + m[5] * v.y + m[8] * v.z}; }
inline V3 mul34(const float* m, const V* t) {
    return {m[0] * t[0] + m[1] * t[1] + m[2] * t[2] + m[3] * t[3], m[4] * t[0] + m[5] * t[1] + m[6] * t[2] + m[7] * t[3], m[8] * t[0] + m[9] * t[1] + m[10] * t[2] + m[11] * t[3]};
}
inline V3 rotate(V4 q, V3 v) { V3 u = axis(q), t = 2.f * cross(u, v); return v + q.w * t + cross(u, t); }
inline V4 spin(V4 q, V3 omega) { // half the product of q and (0, omega)
    V a = .5f * omega.x, b = .5f * omega.y, c = .5f * omega.z;
    return {-(q.x * a + q.y * b + q.z * c), q.w * a + q.y * c - q.z * b, q.w * b + q.z * a - q.x * c, q.w * c + q.x * b - q.y * a};
}

// ---------------------------------------------------------------- one drone and one step of its flights
struct Drone { // the order of `native.DRONE`
    float force_map[12], torque_map[12], curve[12], rising[4], falling[4], mass, gravity[3], inertia[9], inertia_inv[9], rotor_min, rotor_max, dt, limits[3];
};
struct Cost { float near, precision, damping, wall, position_wall, velocity_wall, rate_wall; };

constexpr int MOVING = 21; // position 3, orientation 4, velocity 3, angular velocity 3, rotor speeds 4, action 4
struct State { V3 p; V4 q; V3 v, omega; V rotor[4], action[4]; };
static_assert(sizeof(State) == MOVING * sizeof(V), "a state is 21 vectors");
inline State load_state(const float* p, int stride) { State s; for (int i = 0; i < MOVING; i++) ((V*)&s)[i] = load(p + i * stride); return s; }
inline void store_state(float* p, int stride, const State& s) { for (int i = 0; i < MOVING; i++) store(p + i * stride, ((const V*)&s)[i]); }
inline State choose(I mask, const State& a, const State& b) { State s; for (int i = 0; i < MOVING; i++) ((V*)&s)[i] = mask ? ((const V*)&a)[i] : ((const V*)&b)[i]; return s; }

struct Rotors { // four stages of thrust, and what the way back needs
    V speed[4][4], factor[4][4], thrust[4][4], end[4], end_factor[4], free[4];
};
inline void rotors(const Drone& d, const State& s, const V* action, Rotors& r) {
    float span = d.rotor_max - d.rotor_min;
    for (int i = 0; i < 4; i++) {
        V setpoint = d.rotor_min + span * (.5f * (min(max(action[i], -1.f), 1.f) + 1.f)), w = s.rotor[i];
        V h = d.dt / (setpoint >= w ? all(d.rising[i]) : all(d.falling[i])), half = .5f * h, third = 1.f - half + half * half;
        V gap = setpoint - w;
        r.factor[0][i] = all(1.f); r.factor[1][i] = 1.f - half; r.factor[2][i] = third; r.factor[3][i] = 1.f - h * third;
        r.end_factor[i] = 1.f - h * (1.f / 6) * (1.f + 2.f * r.factor[1][i] + 2.f * r.factor[2][i] + r.factor[3][i]);
        V end = setpoint - r.end_factor[i] * gap;
        r.free[i] = ((end >= d.rotor_min) & (end <= d.rotor_max)) ? all(1.f) : V{};
        r.end[i] = min(max(end, d.rotor_min), d.rotor_max);
        for (int k = 0; k < 4; k++) {
            V x = r.speed[k][i] = setpoint - r.factor[k][i] * gap;
            r.thrust[k][i] = d.curve[3 * i] + x * (d.curve[3 * i + 1] + x * d.curve[3 * i + 2]);
        }
    }
}

struct Rates { V4 q; V3 v, omega; };
struct Moving { V4 q; V3 v, omega; };
inline Moving ahead(const Moving& s, float h, const Rates& k) { return {s.q + h * k.q, s.v + h * k.v, s.omega + h * k.omega}; }
inline Rates rates(const Drone& d, const Moving& s, const V* thrust, V3 push) {
    V3 torque = mul34(d.torque_map, thrust) - cross(s.omega, mul(d.inertia, s.omega));
    return {spin(s.q, s.omega), (1.f / d.mass) * rotate(s.q, mul34(d.force_map, thrust)) + push, mul(d.inertia_inv, torque)};
}
// gradients of (a, rates): by the moving part and by the four thrusts
inline Moving rates_back(const Drone& d, const Moving& s, const V* thrust, const Rates& a, V* by_thrust) {
    V qa = .5f * s.omega.x, qb = .5f * s.omega.y, qc = .5f * s.omega.z; const V4 &q = s.q, &g = a.q;
    V4 by_q = {qa * g.x + qb * g.y + qc * g.z, -qa * g.w - qc * g.y + qb * g.z, -qb * g.w + qc * g.x - qa * g.z, -qc * g.w - qb * g.x + qa * g.y};
    V3 by_omega = .5f * V3{-q.x * g.w + q.w * g.x + q.z * g.y - q.y * g.z, -q.y * g.w - q.z * g.x + q.w * g.y + q.x * g.z, -q.z * g.w + q.y * g.x - q.x * g.y + q.w * g.z};
    V3 u = axis(q), f = mul34(d.force_map, thrust), t = 2.f * cross(u, f), b = (1.f / d.mass) * a.v;
    V3 by_t = q.w * b + cross(b, u), by_u = cross(t, b) + 2.f * cross(f, by_t), by_f = b + 2.f * cross(by_t, u);
    by_q = by_q + V4{dot(b, t), by_u.x, by_u.y, by_u.z};
    V3 by_torque = mul_transposed(d.inertia_inv, a.omega), spun = mul(d.inertia, s.omega), back = -1.f * by_torque;
    by_omega = by_omega + cross(spun, back) + mul_transposed(d.inertia, cross(back, s.omega));
    for (int i = 0; i < 4; i++)
        by_thrust[i] = d.force_map[i] * by_f.x + d.force_map[4 + i] * by_f.y + d.force_map[8 + i] * by_f.z +
                       d.torque_map[i] * by_torque.x + d.torque_map[4 + i] * by_torque.y + d.torque_map[8 + i] * by_torque.z;
    return {by_q, V3{}, by_omega}; // the rates do not depend on the velocity; the position's do: see step_back
}

struct Step { Rotors rotors; Moving at[4]; V4 raw; V norm; }; // what the way back needs of a step
inline V3 pushed(const Drone& d, const V* force) { return {force[0] * (1.f / d.mass) + d.gravity[0], force[1] * (1.f / d.mass) + d.gravity[1], force[2] * (1.f / d.mass) + d.gravity[2]}; }
inline State step(const Drone& d, const State& s, const V* action, V3 push, Step& m) {
    rotors(d, s, action, m.rotors);
    const float h = d.dt, ahead_by[4] = {0.f, .5f * h, .5f * h, h};
    Rates k[4]; Moving start{s.q, s.v, s.omega};
    for (int i = 0; i < 4; i++) {
        m.at[i] = i ? ahead(start, ahead_by[i], k[i - 1]) : start;
        k[i] = rates(d, m.at[i], m.rotors.thrust[i], push);
    }
    State n; float w = h / 6;
    n.p = s.p + w * (m.at[0].v + 2.f * (m.at[1].v + m.at[2].v) + m.at[3].v);
    m.raw = s.q + w * (k[0].q + 2.f * (k[1].q + k[2].q) + k[3].q);
    n.v = s.v + w * (k[0].v + 2.f * (k[1].v + k[2].v) + k[3].v);
    n.omega = s.omega + w * (k[0].omega + 2.f * (k[1].omega + k[2].omega) + k[3].omega);
    m.norm = 1.f / sqrt(dot(m.raw, m.raw));
    n.q = m.norm * m.raw;
    for (int i = 0; i < 4; i++) { n.rotor[i] = m.rotors.end[i]; n.action[i] = action[i]; }
    return n;
}
// b: gradients by the state after the step -> by the state before it (its action excluded); adds to by_action
inline State step_back(const Drone& d, const V* action, const Step& m, const State& b, V* by_action) {
    const float h = d.dt, w[4] = {h / 6, h / 3, h / 3, h / 6}, into[4] = {.5f * h, .5f * h, h, 0.f}; // k[i] enters stage i + 1 with into[i]
    V4 unit = m.norm * m.raw, by_raw = m.norm * (b.q + (-dot(b.q, unit)) * unit);
    State out; out.p = b.p; out.q = by_raw; out.v = b.v; out.omega = b.omega;
    V by_set[4], by_rotor[4];
    for (int i = 0; i < 4; i++) {
        V e = b.rotor[i] * m.rotors.free[i];
        by_rotor[i] = m.rotors.end_factor[i] * e; by_set[i] = e - by_rotor[i];
    }
    Moving later{};
    for (int k = 3; k >= 0; k--) {
        Rates a{w[k] * by_raw + into[k] * later.q, w[k] * b.v + into[k] * later.v, w[k] * b.omega + into[k] * later.omega};
        V by_thrust[4];
        later = rates_back(d, m.at[k], m.rotors.thrust[k], a, by_thrust);
        later.v = later.v + w[k] * b.p;
        out.q = out.q + later.q; out.v = out.v + later.v; out.omega = out.omega + later.omega;
        for (int i = 0; i < 4; i++) {
            V x = m.rotors.speed[k][i], by_x = by_thrust[i] * (d.curve[3 * i + 1] + 2.f * x * d.curve[3 * i + 2]);
            V share = m.rotors.factor[k][i] * by_x;
            by_rotor[i] += share; by_set[i] += by_x - share;
        }
    }
    float half_span = .5f * (d.rotor_max - d.rotor_min);
    for (int i = 0; i < 4; i++) {
        out.rotor[i] = by_rotor[i];
        by_action[i] += (abs(action[i]) <= 1.f ? half_span * by_set[i] : V{});
        out.action[i] = V{};
    }
    return out;
}

inline I ended(const Drone& d, const State& s) {
    const V* p = &s.p.x; const V* v = &s.v.x; const V* o = &s.omega.x;
    I out{};
    for (int i = 0; i < 3; i++) out |= (abs(p[i]) > d.limits[0]) | (abs(v[i]) > d.limits[1]) | (abs(o[i]) > d.limits[2]);
    return out;
}

// ---------------------------------------------------------------- what is seen: 22 as the student, 26 with rotor speeds, 29 with the force as well
inline void rotation(V4 q, V* r) {
    r[0] = 1.f - 2.f * (q.y * q.y + q.z * q.z); r[1] = 2.f * (q.x * q.y - q.w * q.z); r[2] = 2.f * (q.x * q.z + q.w * q.y);
    r[3] = 2.f * (q.x * q.y + q.w * q.z); r[4] = 1.f - 2.f * (q.x * q.x + q.z * q.z); r[5] = 2.f * (q.y * q.z - q.w * q.x);
    r[6] = 2.f * (q.x * q.z - q.w * q.y); r[7] = 2.f * (q.y * q.z + q.w * q.x); r[8] = 1.f - 2.f * (q.x * q.x + q.y * q.y);
}
inline V4 rotation_back(V4 q, const V* g) {
    return {2.f * (-q.z * g[1] + q.y * g[2] + q.z * g[3] - q.x * g[5] - q.y * g[6] + q.x * g[7]),
            2.f * (q.y * (g[1] + g[3]) + q.z * (g[2] + g[6]) - 2.f * q.x * (g[4] + g[8]) - q.w * g[5] + q.w * g[7]),
            2.f * (-2.f * q.y * (g[0] + g[8]) + q.x * (g[1] + g[3]) + q.w * g[2] + q.z * (g[5] + g[7]) - q.w * g[6]),
            2.f * (-2.f * q.z * (g[0] + g[4]) - q.w * g[1] + q.x * (g[2] + g[6]) + q.w * g[3] + q.y * (g[5] + g[7]))};
}
inline void see(const Drone& d, const State& s, const V* force, int obs, V* out) {
    std::memcpy(out, &s.p, 3 * sizeof(V)); rotation(s.q, out + 3); std::memcpy(out + 12, &s.v, 6 * sizeof(V)); std::memcpy(out + 18, s.action, 4 * sizeof(V));
    if (obs > 22) for (int i = 0; i < 4; i++) out[22 + i] = (s.rotor[i] - d.rotor_min) * (1.f / (d.rotor_max - d.rotor_min));
    if (obs > 26) for (int i = 0; i < 3; i++) out[26 + i] = force[i] * (1.f / (9.81f * d.mass));
}
inline void see_back(const Drone& d, const State& s, const V* g, int obs, State& by) { // adds
    by.p = by.p + V3{g[0], g[1], g[2]}; by.q = by.q + rotation_back(s.q, g + 3);
    by.v = by.v + V3{g[12], g[13], g[14]}; by.omega = by.omega + V3{g[15], g[16], g[17]};
    for (int i = 0; i < 4; i++) { by.action[i] += g[18 + i]; if (obs > 22) by.rotor[i] += g[22 + i] * (1.f / (d.rotor_max - d.rotor_min)); }
}

// ---------------------------------------------------------------- what a step costs, judged at the state after it (apg.cost)
inline V beyond(V x, float limit, float share) { return relu(abs(x) * (1.f / limit) - share); }
inline V beyond_back(V x, float limit, float share, float scale) { V e = beyond(x, limit, share) * (2.f * scale / limit); return x < 0 ? -e : e; }
inline V cost(const Drone& d, const Cost& c, const State& s, const V* before) {
    V u = sqrt(s.q.z * s.q.z + 4e-4f), tilt; for (int i = 0; i < LANES; i++) tilt[i] = 2.f * std::acos(1.f - u[i]);
    V jerk{}; for (int i = 0; i < 4; i++) jerk += square(s.action[i] - before[i]);
    V wall{}; const V *p = &s.p.x, *v = &s.v.x, *o = &s.omega.x;
    for (int i = 0; i < 3; i++) wall += 4.f * square(beyond(p[i], d.limits[0], c.position_wall)) + square(beyond(v[i], 1.f, c.velocity_wall)) + square(beyond(o[i], c.rate_wall, 1.f));
    V away = sqrt(dot(s.p, s.p) + c.near * c.near);
    return away + c.precision * away / (away + .05f) + .1f * tilt + sqrt(jerk + 1e-4f) + c.damping * dot(s.omega, s.omega) + c.wall * wall;
}
inline void cost_back(const Drone& d, const Cost& c, const State& s, const V* before, State& by, V* by_before) { // adds to by
    V away = sqrt(dot(s.p, s.p) + c.near * c.near);
    by.p = by.p + ((1.f + c.precision * .05f / square(away + .05f)) / away) * s.p;
    V u = sqrt(s.q.z * s.q.z + 4e-4f); by.q.z += .2f * s.q.z / (u * sqrt(u * (2.f - u)));
    V jerk{}; for (int i = 0; i < 4; i++) jerk += square(s.action[i] - before[i]);
    jerk = 1.f / sqrt(jerk + 1e-4f);
    for (int i = 0; i < 4; i++) { V g = jerk * (s.action[i] - before[i]); by.action[i] += g; by_before[i] = -g; }
    by.omega = by.omega + (2.f * c.damping) * s.omega;
    const V *p = &s.p.x, *v = &s.v.x, *o = &s.omega.x; V *bp = &by.p.x, *bv = &by.v.x, *bo = &by.omega.x;
    for (int i = 0; i < 3; i++) {
        bp[i] += beyond_back(p[i], d.limits[0], c.position_wall, 4.f * c.wall); bv[i] += beyond_back(v[i], 1.f, c.velocity_wall, c.wall); bo[i] += beyond_back(o[i], c.rate_wall, 1.f, c.wall);
    }
}

// ---------------------------------------------------------------- memory that a thread keeps
struct Scratch {
    std::vector<char> bytes; size_t used = 0;
    void reserve(size_t n) { if (bytes.size() < n + 64) bytes.resize(n + 64); used = 0; }
    V* take(size_t n) { size_t at = ((size_t)bytes.data() + used + 63) / 64 * 64 - (size_t)bytes.data(); used = at + n * sizeof(V); return (V*)(bytes.data() + at); }
};
thread_local Scratch scratch;

constexpr int MAX_OBS = 32, MAX_HIDDEN = 256;
struct Actor { const float *w1, *b1, *w2, *b2, *w3, *b3; int obs, hidden; bool rectified = false; }; // hidden layers: tanh, or ReLU
inline void act(const Actor& a, const V* seen, V* h1, V* h2, V* action) {
    dense(a.w1, a.b1, a.obs, a.hidden, seen, h1); for (int i = 0; i < a.hidden; i++) h1[i] = a.rectified ? relu(h1[i]) : tanh(h1[i]);
    dense(a.w2, a.b2, a.hidden, a.hidden, h1, h2); for (int i = 0; i < a.hidden; i++) h2[i] = a.rectified ? relu(h2[i]) : tanh(h2[i]);
    dense(a.w3, a.b3, a.hidden, 4, h2, action); for (int i = 0; i < 4; i++) action[i] = tanh(action[i]);
}

// ---------------------------------------------------------------- the student: dense + ReLU, GRU, dense
constexpr int SEEN = 22;
struct Student { const float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0; int hidden; }; // all (inputs, outputs); gates r, z, n
struct Memory { V *y, *r, *z, *n, *hn, *h; }; // of one step: after the first layer, gates, hidden part of n, hidden state after the step
inline void think(const Student& s, const V* seen, const V* before, const Memory& m, V* action) {
    const int H = s.hidden; V gi[3 * 64], gh[3 * 64];
    dense(s.in_w, s.in_b, SEEN, H, seen, m.y); for (int i = 0; i < H; i++) m.y[i] = relu(m.y[i]);
    dense(s.wi, s.bi, H, 3 * H, m.y, gi); dense(s.wh, s.bh, H, 3 * H, before, gh);
    for (int i = 0; i < H; i++) {
        m.r[i] = sigmoid(gi[i] + gh[i]); m.z[i] = sigmoid(gi[H + i] + gh[H + i]); m.hn[i] = gh[2 * H + i];
        m.n[i] = tanh(gi[2 * H + i] + m.r[i] * m.hn[i]); m.h[i] = m.n[i] + m.z[i] * (before[i] - m.n[i]);
    }
    dense(s.out_w, s.out_b, H, 4, m.h, action);
}
inline Memory memory_at(V* base, int H) { return {base, base + H, base + 2 * H, base + 3 * H, base + 4 * H, base + 5 * H}; }

// ---------------------------------------------------------------- random numbers: xoshiro128+, a stream a flight; Box-Muller
struct Random {
    U s[4];
    static uint64_t mix(uint64_t& x) { uint64_t z = (x += 0x9e3779b97f4a7c15ull); z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull; z = (z ^ (z >> 27)) * 0x94d049bb133111ebull; return z ^ (z >> 31); }
    explicit Random(uint64_t seed) { for (int i = 0; i < 4; i++) for (int l = 0; l < LANES; l++) s[i][l] = (uint32_t)(mix(seed) >> 32); }
    U bits() {
        U out = s[0] + s[3], t = s[1] << 9;
        s[2] ^= s[0]; s[3] ^= s[1]; s[1] ^= s[2]; s[0] ^= s[3]; s[2] ^= t; s[3] = (s[3] << 11) | (s[3] >> 21);
        return out;
    }
    V uniform() { U b = (bits() >> 9) | 0x3f800000u; V x; std::memcpy(&x, &b, sizeof x); return x - 1.f; } // [0, 1)
    void normal(V& a, V& b) {
        V u = 1.f - uniform(), t = uniform() - .5f; // u in (0, 1], t in [-.5, .5)
        U e; std::memcpy(&e, &u, sizeof e);
        U mantissa = (e & 0x007fffffu) | 0x3f800000u; V m; std::memcpy(&m, &mantissa, sizeof m);
        V power; for (int i = 0; i < LANES; i++) power[i] = (float)((int)(e[i] >> 23) - 127);
        V f = (m - 1.f) / (m + 1.f), f2 = f * f, log = .69314718f * power + 2.f * f * (1.f + f2 * (1.f / 3 + f2 * (.2f + f2 * (1.f / 7 + f2 * (1.f / 9)))));
        V radius = sqrt(max(-2.f * log, 0.f)), x = 6.2831853f * t, fold = abs(x) > 1.57079633f ? (x > 0 ? 3.14159265f - x : -3.14159265f - x) : x;
        a = radius * sine(fold); b = radius * sine(1.57079633f - abs(x));
    }
    static V sine(V x) { V s = x * x; return x * (1.f + s * (-1.f / 6 + s * (1.f / 120 + s * (-1.f / 5040 + s * (1.f / 362880))))); }
};

} // namespace

extern "C" {

// ---------------------------------------------------------------- a segment of flight of many teachers, and the gradients of its cost
struct SegmentTask {
    int32_t envs, steps, obs, hidden;
    Cost cost;
    const float *drones, *w1, *b1, *w2, *b2, *w3, *b3; // (D, ...)
    const float *force, *fresh;                        // (D, 3, E) N; (D, 21, E)
    float *moving;                                     // (D, 21, E), moved on
    float *g_w1, *g_b1, *g_w2, *g_b2, *g_w3, *g_b3;    // (D, ...) gradients of the mean cost a step
    float *costs;                                      // (D,) mean cost a step
};

static void segment_of(const SegmentTask& t, int drone) {
    const int E = t.envs, T = t.steps, O = t.obs, H = t.hidden;
    const Drone& d = ((const Drone*)t.drones)[drone];
    const Actor actor{t.w1 + (size_t)drone * O * H, t.b1 + (size_t)drone * H, t.w2 + (size_t)drone * H * H, t.b2 + (size_t)drone * H, t.w3 + (size_t)drone * H * 4, t.b3 + (size_t)drone * 4, O, H};
    float *gw1 = t.g_w1 + (size_t)drone * O * H, *gw2 = t.g_w2 + (size_t)drone * H * H, *gw3 = t.g_w3 + (size_t)drone * H * 4;
    const size_t keep = MOVING + O + 2 * H + 4 + 1; // state, sight, two layers, action, end
    scratch.reserve(((size_t)T * keep + MOVING + 6 * H + 4 * H + 8 + O) * sizeof(V) + 4096);
    V *tape = scratch.take(T * keep), *acc3 = scratch.take(4 * H), *accb1 = scratch.take(H), *accb2 = scratch.take(H), *accb3 = scratch.take(4);
    V *d1t = scratch.take(H), *d2t = scratch.take(H);
    std::memset(gw1, 0, sizeof(float) * O * H); std::memset(gw2, 0, sizeof(float) * H * H);
    for (int i = 0; i < 4 * H; i++) acc3[i] = V{};
    for (int i = 0; i < H; i++) accb1[i] = accb2[i] = V{};
    for (int i = 0; i < 4; i++) accb3[i] = V{};
    V total{};
    for (int e = 0; e < E; e += LANES) {
        float* moving = t.moving + (size_t)drone * MOVING * E + e;
        State s = load_state(moving, E), fresh = load_state(t.fresh + (size_t)drone * MOVING * E + e, E);
        V force[3]; for (int i = 0; i < 3; i++) force[i] = load(t.force + ((size_t)drone * 3 + i) * E + e);
        V3 push = pushed(d, force);
        Step m;
        for (int k = 0; k < T; k++) {
            V *row = tape + k * keep, *seen = row + MOVING, *h1 = seen + O, *h2 = h1 + H, *action = h2 + H;
            std::memcpy(row, &s, sizeof s);
            see(d, s, force, O, seen); act(actor, seen, h1, h2, action);
            State n = step(d, s, action, push, m);
            total += cost(d, t.cost, n, s.action);
            I over = ended(d, n);
            std::memcpy(row + keep - 1, &over, sizeof over);
            s = choose(over, fresh, n);
        }
        store_state(moving, E, s);
        State by{}; V by_sight[MAX_OBS] = {}, by_before[4], d3[4], d2[MAX_HIDDEN], d1[MAX_HIDDEN];
        for (int k = T - 1; k >= 0; k--) {
            V *row = tape + k * keep, *seen = row + MOVING, *h1 = seen + O, *h2 = h1 + H, *action = h2 + H;
            State before; std::memcpy(&before, row, sizeof before); I over; std::memcpy(&over, row + keep - 1, sizeof over);
            State n = step(d, before, action, push, m); // recomputed: cheaper than keeping its stages
            see_back(d, n, by_sight, O, by);
            by = choose(over, State{}, by);             // nothing flows back through the start of another flight
            cost_back(d, t.cost, n, before.action, by, by_before);
            V by_action[4]; for (int i = 0; i < 4; i++) by_action[i] = by.action[i];
            by = step_back(d, action, m, by, by_action);
            for (int i = 0; i < 4; i++) by.action[i] = by_before[i];
            for (int i = 0; i < 4; i++) { d3[i] = by_action[i] * (1.f - action[i] * action[i]); accb3[i] += d3[i]; }
            dense_back(actor.w3, H, 4, d3, d2);
            for (int i = 0; i < H; i++) { for (int j = 0; j < 4; j++) acc3[4 * i + j] += h2[i] * d3[j]; d2[i] *= 1.f - h2[i] * h2[i]; accb2[i] += d2[i]; }
            dense_back(actor.w2, H, H, d2, d1);
            for (int i = 0; i < H; i++) { d1[i] *= 1.f - h1[i] * h1[i]; accb1[i] += d1[i]; }
            dense_back(actor.w1, O, H, d1, by_sight);
            for (int i = 0; i < H; i += LANES) { transpose(d1 + i, d1t + i); transpose(d2 + i, d2t + i); }
            outer(seen, d1t, O, H, gw1); outer(h1, d2t, H, H, gw2);
        }
    }
    const float n = 1.f / ((float)T * E);
    for (int i = 0; i < O * H; i++) gw1[i] *= n;
    for (int i = 0; i < H * H; i++) gw2[i] *= n;
    for (int i = 0; i < 4 * H; i++) gw3[i] = n * sum(acc3[i]);
    for (int i = 0; i < H; i++) { t.g_b1[(size_t)drone * H + i] = n * sum(accb1[i]); t.g_b2[(size_t)drone * H + i] = n * sum(accb2[i]); }
    for (int i = 0; i < 4; i++) t.g_b3[(size_t)drone * 4 + i] = n * sum(accb3[i]);
    t.costs[drone] = n * sum(total);
}
void segment(const SegmentTask* t, int32_t first, int32_t last) { for (int i = first; i < last; i++) segment_of(*t, i); }

// ---------------------------------------------------------------- flights of the student, labelled by the teachers
struct FlightTask {
    int32_t envs, steps, obs, hidden, student_hidden, starts, winds, rectified;
    const float *drones, *w1, *b1, *w2, *b2, *w3, *b3;            // (D, ...)
    const float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0; // the student's
    const float *moving, *fresh, *wind;                           // (D, 21, E); (D, starts, 21, E); (D, winds, 3, E) N, at evenly spaced times
    const float *sigma, *delay, *push, *by_teacher;               // (D, E) noise; steps 0, 1, 2; probability a step; share
    const uint64_t* seeds;                                        // (D, E / 16)
    float *observation, *label, *reset;                           // (D, E / 16, T, 22 | 4 | 1, 16)
};

static void flight_of(const FlightTask& t, int drone, int block) {
    const int E = t.envs, T = t.steps, H = t.student_hidden, blocks = E / LANES, e = block * LANES;
    const Drone& d = ((const Drone*)t.drones)[drone];
    const Actor actor{t.w1 + (size_t)drone * t.obs * t.hidden, t.b1 + (size_t)drone * t.hidden, t.w2 + (size_t)drone * t.hidden * t.hidden, t.b2 + (size_t)drone * t.hidden, t.w3 + (size_t)drone * t.hidden * 4, t.b3 + (size_t)drone * 4, t.obs, t.hidden, t.rectified != 0};
    const Student student{t.in_w, t.in_b, t.wi, t.bi, t.wh, t.bh, t.out_w, t.out_b, t.h0, H};
    const size_t at = (size_t)drone * blocks + block;
    float *observation = t.observation + at * T * SEEN * LANES, *label = t.label + at * T * 4 * LANES, *reset = t.reset + at * T * LANES;
    scratch.reserve((6 * H + H) * sizeof(V) + 4096);
    V *tape = scratch.take(6 * H), *hidden = scratch.take(H); const Memory m = memory_at(tape, H);
    const V sigma = load(t.sigma + (size_t)drone * E + e), delay = load(t.delay + (size_t)drone * E + e), push = load(t.push + (size_t)drone * E + e), taught = load(t.by_teacher + (size_t)drone * E + e);
    Random random(t.seeds[at]);
    State s = load_state(t.moving + (size_t)drone * MOVING * E + e, E);
    V seen[MAX_OBS], h1[MAX_HIDDEN], h2[MAX_HIDDEN], wanted[4], chosen[4], noisy[SEEN], past[2][18], force[3];
    I anew = V{} == V{}; I next{};  // every flight begins
    Step kept;
    for (int k = 0; k < T; k++) {
        const float when = t.winds > 1 ? (float)k * (t.winds - 1) / T : 0.f; const int knot = (int)when; const float share = when - knot;
        for (int i = 0; i < 3; i++) {
            const float* w = t.wind + (((size_t)drone * t.winds + knot) * 3 + i) * E + e;
            force[i] = t.winds > 1 ? (1.f - share) * load(w) + share * load(w + 3 * E) : load(w);
        }
        for (int i = 0; i < H; i++) hidden[i] = anew ? all(t.h0[i]) : hidden[i];
        see(d, s, force, t.obs, seen);
        act(actor, seen, h1, h2, wanted);
        for (int i = 0; i < 18; i++) { past[0][i] = anew ? seen[i] : past[0][i]; past[1][i] = anew ? seen[i] : past[1][i]; }
        for (int i = 0; i < 18; i++) noisy[i] = delay < .5f ? seen[i] : delay < 1.5f ? past[0][i] : past[1][i];
        for (int i = 0; i < 18; i++) { past[1][i] = past[0][i]; past[0][i] = seen[i]; }
        for (int i = 0; i < 18; i += 2) {
            V a, b; random.normal(a, b);
            noisy[i] += (i < 12 ? 1.f : i < 15 ? 2.f : 5.f) * sigma * a; noisy[i + 1] += (i + 1 < 12 ? 1.f : i + 1 < 15 ? 2.f : 5.f) * sigma * b;
        }
        for (int i = 18; i < SEEN; i++) noisy[i] = seen[i];
        think(student, noisy, hidden, m, chosen);
        for (int i = 0; i < H; i++) hidden[i] = m.h[i];
        for (int i = 0; i < SEEN; i++) store(observation + ((size_t)k * SEEN + i) * LANES, noisy[i]);
        for (int i = 0; i < 4; i++) { store(label + ((size_t)k * 4 + i) * LANES, wanted[i]); chosen[i] = taught > 0 ? wanted[i] : min(max(chosen[i], -2.f), 2.f); }
        store(reset + (size_t)k * LANES, anew ? all(1.f) : V{});
        State n = step(d, s, chosen, pushed(d, force), kept);
        anew = ended(d, n);
        I jump = anew | (random.uniform() < push), finite = n.p.x * 0.f == 0.f; // a flight that is pushed goes on from elsewhere, its memory kept
        jump |= ~finite; anew |= ~finite;
        State other;
        for (int l = 0; l < LANES; l++) if (jump[l]) {
            const float* from = t.fresh + ((size_t)drone * t.starts + next[l]) * MOVING * E + e + l;
            for (int i = 0; i < MOVING; i++) ((V*)&other)[i][l] = from[(size_t)i * E];
            if (!anew[l]) for (int i = 0; i < 4; i++) { other.rotor[i][l] = n.rotor[i][l]; other.action[i][l] = n.action[i][l]; }
            next[l] = (next[l] + 1) % t.starts;
        }
        s = choose(jump, other, n);
    }
}
void flights(const FlightTask* t, int32_t first, int32_t last) { int blocks = t->envs / LANES; for (int i = first; i < last; i++) flight_of(*t, i / blocks, i % blocks); }

// ---------------------------------------------------------------- loss and gradients of the student on recorded sequences
// Gradients by the student's weights are gathered over a sequence, step by step from its end.
struct StudentGradients {
    int H, G; float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;
    V *acc_in_b, *acc_bi, *acc_bh, *acc_out, *acc_out_b, *acc_h0, *di, *dh, *dit, *dht, *dy, *dyt, *by_before, *by_hidden;
    static size_t count(int H) { return (size_t)SEEN * H + H + 2 * ((size_t)H * 3 * H + 3 * H) + 4 * H + 4 + H; }
    static size_t scratch_size(int H) { return (size_t)32 * H + 64; }
    StudentGradients(int hidden, float* g, Scratch& from) : H(hidden), G(3 * hidden) {
        std::memset(g, 0, count(H) * sizeof(float));
        in_w = g; in_b = in_w + SEEN * H; wi = in_b + H; bi = wi + H * G; wh = bi + G; bh = wh + H * G; out_w = bh + G; out_b = out_w + 4 * H; h0 = out_b + 4;
        for (V** p : {&acc_in_b, &acc_h0, &dy, &dyt, &by_before, &by_hidden}) *p = from.take(H);
        for (V** p : {&acc_bi, &acc_bh, &di, &dh, &dit, &dht}) *p = from.take(G);
        acc_out = from.take(4 * H); acc_out_b = from.take(4);
        for (V* p : {acc_in_b, acc_h0, by_hidden}) for (int i = 0; i < H; i++) p[i] = V{};
        for (V* p : {acc_bi, acc_bh}) for (int i = 0; i < G; i++) p[i] = V{};
        for (int i = 0; i < 4 * H; i++) acc_out[i] = V{};
        for (int i = 0; i < 4; i++) acc_out_b[i] = V{};
    }
    // d: gradients by the action; afterwards dy: by the first layer before its ReLU, by_hidden: by the hidden state before the step
    void back(const Student& s, const Memory& m, const V* before, const V* seen, const V* d) {
        for (int i = 0; i < 4; i++) acc_out_b[i] += d[i];
        dense_back(s.out_w, H, 4, d, by_before);
        for (int i = 0; i < H; i++) {
            for (int j = 0; j < 4; j++) acc_out[4 * i + j] += m.h[i] * d[j];
            V b = by_hidden[i] + by_before[i], r = m.r[i], z = m.z[i], n = m.n[i];
            V by_n = b * (1.f - z) * (1.f - n * n), by_z = b * (before[i] - n) * z * (1.f - z), by_r = by_n * m.hn[i] * r * (1.f - r);
            di[i] = dh[i] = by_r; di[H + i] = dh[H + i] = by_z; di[2 * H + i] = by_n; dh[2 * H + i] = by_n * r;
            by_hidden[i] = b * z;
        }
        for (int i = 0; i < G; i++) { acc_bi[i] += di[i]; acc_bh[i] += dh[i]; }
        for (int i = 0; i < G; i += LANES) { transpose(di + i, dit + i); transpose(dh + i, dht + i); }
        dense_back(s.wh, H, G, dh, by_before); dense_back(s.wi, H, G, di, dy);
        for (int i = 0; i < H; i++) { by_hidden[i] += by_before[i]; dy[i] = m.y[i] > 0 ? dy[i] : V{}; acc_in_b[i] += dy[i]; }
        for (int i = 0; i < H; i += LANES) transpose(dy + i, dyt + i);
        outer(m.y, dit, H, G, wi); outer(before, dht, H, G, wh); outer(seen, dyt, SEEN, H, in_w);
    }
    void begin(I anew) { for (int i = 0; i < H; i++) { acc_h0[i] += anew ? by_hidden[i] : V{}; by_hidden[i] = anew ? V{} : by_hidden[i]; } }
    void finish() {
        for (int i = 0; i < H; i++) { in_b[i] = sum(acc_in_b[i]); h0[i] = sum(acc_h0[i]); }
        for (int i = 0; i < G; i++) { bi[i] = sum(acc_bi[i]); bh[i] = sum(acc_bh[i]); }
        for (int i = 0; i < 4 * H; i++) out_w[i] = sum(acc_out[i]);
        for (int i = 0; i < 4; i++) out_b[i] = sum(acc_out_b[i]);
    }
};

struct SequenceTask {
    int32_t steps, hidden;
    const float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;
    const float *observation, *label, *reset; // (blocks, T, 22 | 4 | 1, 16)
    const int64_t* rows;                      // which blocks
    float *gradients, *loss;                  // (rows, parameters) in the order of the weights above, sums; (rows,) sums of squares
};

static void sequence_of(const SequenceTask& t, int row) {
    const int T = t.steps, H = t.hidden;
    const Student s{t.in_w, t.in_b, t.wi, t.bi, t.wh, t.bh, t.out_w, t.out_b, t.h0, H};
    const size_t block = t.rows[row];
    const float *observation = t.observation + block * T * SEEN * LANES, *label = t.label + block * T * 4 * LANES, *reset = t.reset + block * T * LANES;
    const size_t keep = 6 * H + H + 4; // memory, hidden state before, error
    scratch.reserve((T * keep + SEEN + StudentGradients::scratch_size(H)) * sizeof(V) + 65536);
    V *tape = scratch.take(T * keep), *seen = scratch.take(SEEN);
    StudentGradients g(H, t.gradients + row * StudentGradients::count(H), scratch);
    V total{};
    for (int k = 0; k < T; k++) {
        V *row_of = tape + k * keep, *before = row_of + 6 * H, *error = before + H; const Memory m = memory_at(row_of, H);
        const V* was = k ? tape + (k - 1) * keep + 5 * H : nullptr; I anew = load(reset + (size_t)k * LANES) > .5f;
        for (int i = 0; i < H; i++) before[i] = was ? (anew ? all(s.h0[i]) : was[i]) : all(s.h0[i]);
        for (int i = 0; i < SEEN; i++) seen[i] = load(observation + ((size_t)k * SEEN + i) * LANES);
        think(s, seen, before, m, error);
        for (int i = 0; i < 4; i++) { error[i] -= load(label + ((size_t)k * 4 + i) * LANES); total += error[i] * error[i]; error[i] *= 2.f; }
    }
    for (int k = T - 1; k >= 0; k--) {
        V *row_of = tape + k * keep, *before = row_of + 6 * H; const Memory m = memory_at(row_of, H);
        I anew = load(reset + (size_t)k * LANES) > .5f; if (k == 0) anew = V{} == V{};
        for (int i = 0; i < SEEN; i++) seen[i] = load(observation + ((size_t)k * SEEN + i) * LANES);
        g.back(s, m, before, seen, before + H);
        g.begin(anew);
    }
    g.finish();
    t.loss[row] = sum(total);
}
void sequences(const SequenceTask* t, int32_t first, int32_t last) { for (int i = first; i < last; i++) sequence_of(*t, i); }

// ---------------------------------------------------------------- a segment of the student's flight, and the gradients of its cost through physics and memory
struct PolishTask {
    int32_t envs, steps, hidden, winds;
    Cost cost; float excess;                                           // excess: cost of commanding more than the rotors have
    const float *drones, *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;
    const float *fresh, *wind, *sigma, *delay, *reset;                 // (D, 21, E); (D, winds, 3, E) N; (D, E) three times; reset: a flight begins with the segment
    const uint64_t* seeds;                                             // (D, E / 16)
    float *moving, *memory, *past;                                     // (D, 21, E), (D, hidden, E), (D, 36, E): moved on
    float *gradients, *costs, *ends;                                   // (D * E / 16, parameters) sums; (D * E / 16,) sums; flights that ended
};

static void polish_of(const PolishTask& t, int drone, int block) {
    const int E = t.envs, T = t.steps, H = t.hidden, e = block * LANES;
    const Drone& d = ((const Drone*)t.drones)[drone];
    const Student s{t.in_w, t.in_b, t.wi, t.bi, t.wh, t.bh, t.out_w, t.out_b, t.h0, H};
    const size_t at = (size_t)drone * (E / LANES) + block, lane = (size_t)drone * E + e;
    const size_t keep = MOVING + 6 * H + H + SEEN + 4 + 3 + 2; // state, memory, hidden before, seen, action, force, began, ended
    scratch.reserve((T * keep + StudentGradients::scratch_size(H)) * sizeof(V) + 65536);
    V* tape = scratch.take(T * keep);
    StudentGradients g(H, t.gradients + at * StudentGradients::count(H), scratch);
    float *moving = t.moving + (size_t)drone * MOVING * E + e, *memory = t.memory + (size_t)drone * H * E + e, *older = t.past + (size_t)drone * 36 * E + e;
    State now = load_state(moving, E), fresh = load_state(t.fresh + (size_t)drone * MOVING * E + e, E);
    const V sigma = load(t.sigma + lane), delay = load(t.delay + lane);
    V hidden[64], past[2][18], total{}, ends{}; Step m;
    for (int i = 0; i < H; i++) hidden[i] = load(memory + (size_t)i * E);
    for (int i = 0; i < 18; i++) { past[0][i] = load(older + (size_t)i * E); past[1][i] = load(older + (size_t)(18 + i) * E); }
    Random random(t.seeds[at]);
    I anew = load(t.reset + lane) > .5f;
    for (int k = 0; k < T; k++) {
        V *row = tape + k * keep, *before = row + MOVING + 6 * H, *seen = before + H, *action = seen + SEEN, *force = action + 4; const Memory mem = memory_at(row + MOVING, H);
        const float when = t.winds > 1 ? (float)k * (t.winds - 1) / T : 0.f; const int knot = (int)when; const float share = when - knot;
        for (int i = 0; i < 3; i++) { const float* w = t.wind + (((size_t)drone * t.winds + knot) * 3 + i) * E + e; force[i] = t.winds > 1 ? (1.f - share) * load(w) + share * load(w + 3 * E) : load(w); }
        std::memcpy(row, &now, sizeof now); std::memcpy(row + keep - 2, &anew, sizeof anew);
        for (int i = 0; i < H; i++) before[i] = anew ? all(s.h0[i]) : hidden[i];
        see(d, now, force, SEEN, seen);
        for (int i = 0; i < 18; i++) {
            V x = seen[i]; past[0][i] = anew ? x : past[0][i]; past[1][i] = anew ? x : past[1][i];
            seen[i] = delay < .5f ? x : delay < 1.5f ? past[0][i] : past[1][i]; past[1][i] = past[0][i]; past[0][i] = x;
        }
        for (int i = 0; i < 18; i += 2) {
            V a, b; random.normal(a, b);
            seen[i] += (i < 12 ? 1.f : i < 15 ? 2.f : 5.f) * sigma * a; seen[i + 1] += (i + 1 < 12 ? 1.f : i + 1 < 15 ? 2.f : 5.f) * sigma * b;
        }
        think(s, seen, before, mem, action);
        for (int i = 0; i < H; i++) hidden[i] = mem.h[i];
        State n = step(d, now, action, pushed(d, force), m);
        V price = cost(d, t.cost, n, now.action);
        for (int i = 0; i < 4; i++) price += t.excess * square(relu(abs(action[i]) - 1.f));
        total += price;
        anew = ended(d, n); anew |= ~(price * 0.f == 0.f);
        std::memcpy(row + keep - 1, &anew, sizeof anew);
        for (int i = 0; i < LANES; i++) ends[i] += anew[i] ? 1.f : 0.f;
        now = choose(anew, fresh, n);
    }
    store_state(moving, E, now);
    for (int i = 0; i < H; i++) store(memory + (size_t)i * E, anew ? all(s.h0[i]) : hidden[i]);
    for (int i = 0; i < 18; i++) { // a flight that ended with the last step begins with the next segment
        V p[MAX_OBS]; if (i == 0) { see(d, now, tape, SEEN, p); for (int j = 0; j < 18; j++) { past[0][j] = anew ? p[j] : past[0][j]; past[1][j] = anew ? p[j] : past[1][j]; } }
        store(older + (size_t)i * E, past[0][i]); store(older + (size_t)(18 + i) * E, past[1][i]);
    }
    State by{}; V by_seen[2][18] = {}, by_before[4]; // by_seen: what observations one and two steps later ask of the state they saw
    for (int k = T - 1; k >= 0; k--) {
        V *row = tape + k * keep, *before = row + MOVING + 6 * H, *seen = before + H, *action = seen + SEEN, *force = action + 4; const Memory mem = memory_at(row + MOVING, H);
        State was; std::memcpy(&was, row, sizeof was); I began, over; std::memcpy(&began, row + keep - 2, sizeof began); std::memcpy(&over, row + keep - 1, sizeof over);
        State n = step(d, was, action, pushed(d, force), m);
        by = choose(over, State{}, by);
        cost_back(d, t.cost, n, was.action, by, by_before);
        V by_action[4];
        for (int i = 0; i < 4; i++) { V x = t.excess * 2.f * relu(abs(action[i]) - 1.f); by_action[i] = by.action[i] + (action[i] < 0 ? -x : x); }
        by = step_back(d, action, m, by, by_action);
        for (int i = 0; i < 4; i++) by.action[i] = by_before[i];
        for (int i = 0; i < H; i++) g.by_hidden[i] = over ? V{} : g.by_hidden[i]; // the memory of an ended flight goes nowhere
        g.back(s, mem, before, seen, by_action);
        g.begin(began);
        V sight[MAX_OBS], late[MAX_OBS] = {};
        dense_back(s.in_w, SEEN, H, g.dy, sight);
        for (int i = 0; i < 18; i++) { // what this step saw is of now, or of one or two steps ago
            V x = sight[i]; I at_once = (delay < .5f) | began, by_one = ~at_once & (delay < 1.5f), by_two = ~at_once & (delay > 1.5f);
            V older_first = by_seen[0][i], older_second = by_seen[1][i];
            late[i] = (at_once ? x : V{}) + older_first;
            by_seen[0][i] = (by_one ? x : V{}) + older_second; by_seen[1][i] = by_two ? x : V{};
            // at the first step of a flight nothing older exists: what is asked of it falls on this state
            if (k == 0) continue;
        }
        for (int i = 0; i < 18; i++) { late[i] += began ? by_seen[0][i] + by_seen[1][i] : V{}; by_seen[0][i] = began ? V{} : by_seen[0][i]; by_seen[1][i] = began ? V{} : by_seen[1][i]; }
        for (int i = 18; i < SEEN; i++) late[i] = sight[i];
        see_back(d, was, late, SEEN, by);
    }
    g.finish();
    t.costs[at] = sum(total); t.ends[at] = sum(ends);
}
void polish(const PolishTask* t, int32_t first, int32_t last) { int blocks = t->envs / LANES; for (int i = first; i < last; i++) polish_of(*t, i / blocks, i % blocks); }

int32_t lanes() { return LANES; }
}
