// l2f's physics, observation and cost: forward above, backward below. nbs/sim/physics.ipynb and, for the cost,
// nbs/learn/cost.ipynb have the same in torch. SI units, FLU frames, quaternions w, x, y, z.
// A gradient has the type of what it is a gradient by.
#pragma once
#include "simd.h"

namespace {

// ---------------------------------------------------------------- vectors and quaternions
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
inline V3 vector_part(V4 q) { return {q.x, q.y, q.z}; }

template <class F> inline V3 matvec(const F* m, V3 v) {  // m: (3, 3)
    return {m[0] * v.x + m[1] * v.y + m[2] * v.z,
            m[3] * v.x + m[4] * v.y + m[5] * v.z,
            m[6] * v.x + m[7] * v.y + m[8] * v.z};
}
template <class F> inline V3 matvec_transposed(const F* m, V3 v) {
    return {m[0] * v.x + m[3] * v.y + m[6] * v.z,
            m[1] * v.x + m[4] * v.y + m[7] * v.z,
            m[2] * v.x + m[5] * v.y + m[8] * v.z};
}
template <class F> inline V3 matvec34(const F* m, const V* t) {  // m: (3, 4)
    return {m[0] * t[0] + m[1] * t[1] + m[2] * t[2] + m[3] * t[3],
            m[4] * t[0] + m[5] * t[1] + m[6] * t[2] + m[7] * t[3],
            m[8] * t[0] + m[9] * t[1] + m[10] * t[2] + m[11] * t[3]};
}
inline V3 rotate(V4 q, V3 v) {
    V3 u = vector_part(q);
    V3 t = 2.f * cross(u, v);
    return v + q.w * t + cross(u, t);
}
inline V4 quaternion_derivative(V4 q, V3 omega) {  // half the product of q and (0, omega)
    V a = .5f * omega.x, b = .5f * omega.y, c = .5f * omega.z;
    return {-(q.x * a + q.y * b + q.z * c),
            q.w * a + q.y * c - q.z * b,
            q.w * b + q.z * a - q.x * c,
            q.w * c + q.x * b - q.y * a};
}
inline void rotation_matrix(V4 q, V* r) {  // (3, 3), row-major
    r[0] = 1.f - 2.f * (q.y * q.y + q.z * q.z);
    r[1] = 2.f * (q.x * q.y - q.w * q.z);
    r[2] = 2.f * (q.x * q.z + q.w * q.y);
    r[3] = 2.f * (q.x * q.y + q.w * q.z);
    r[4] = 1.f - 2.f * (q.x * q.x + q.z * q.z);
    r[5] = 2.f * (q.y * q.z - q.w * q.x);
    r[6] = 2.f * (q.x * q.z - q.w * q.y);
    r[7] = 2.f * (q.y * q.z + q.w * q.x);
    r[8] = 1.f - 2.f * (q.x * q.x + q.y * q.y);
}
inline V4 rotation_matrix_backward(V4 q, const V* dr) {
    const V* g = dr;
    return {2.f * (-q.z * g[1] + q.y * g[2] + q.z * g[3] - q.x * g[5] - q.y * g[6] + q.x * g[7]),
            2.f * (q.y * (g[1] + g[3]) + q.z * (g[2] + g[6]) - 2.f * q.x * (g[4] + g[8]) - q.w * g[5] + q.w * g[7]),
            2.f * (-2.f * q.y * (g[0] + g[8]) + q.x * (g[1] + g[3]) + q.w * g[2] + q.z * (g[5] + g[7]) - q.w * g[6]),
            2.f * (-2.f * q.z * (g[0] + g[4]) - q.w * g[1] + q.x * (g[2] + g[6]) + q.w * g[3] + q.y * (g[5] + g[7]))};
}

// ---------------------------------------------------------------- drone and state
template <class F> struct DroneOf {  // a row of `native.table`, in this order
    F force_map[12], torque_map[12];  // (3, 4): thrust of the rotors -> force, torque, body frame
    F curve[12];                      // (4, 3): thrust of a rotor = c0 + c1 w + c2 w^2
    F rising[4], falling[4];          // s
    F mass, gravity[3];               // kg, m/s^2
    F inertia[9], inertia_inv[9];
    F rotor_min, rotor_max, dt;       // s
    F limits[3];                      // of position (m), velocity (m/s), angular velocity (rad/s)
};
using Drone = DroneOf<float>;   // one, of sixteen flights
using Drones = DroneOf<V>;      // sixteen, each with a flight
constexpr int DRONE = 72;
static_assert(sizeof(Drone) == DRONE * sizeof(float), "a drone is 72 numbers");
template <class F> inline F weight(const DroneOf<F>& d) {  // N
    const F* g = d.gravity;
    return sqrt(g[0] * g[0] + g[1] * g[1] + g[2] * g[2]) * d.mass;
}

constexpr int STATE = 21;
struct State {
    V3 p;        // m
    V4 q;
    V3 v;        // m/s, world
    V3 omega;    // rad/s, body
    V rotor[4];  // speeds
    V action[4]; // the previous one
};
static_assert(sizeof(State) == STATE * sizeof(V), "a state is 21 vectors");
inline V* values(State& s) { return (V*)&s; }
inline const V* values(const State& s) { return (const V*)&s; }
inline State load_state(const float* p, int stride) {
    State s;
    for (int i = 0; i < STATE; i++) values(s)[i] = load(p + i * stride);
    return s;
}
inline void store_state(float* p, int stride, const State& s) {
    for (int i = 0; i < STATE; i++) store(p + i * stride, values(s)[i]);
}
inline State select(I mask, const State& a, const State& b) {  // mask ? a : b
    State s;
    for (int i = 0; i < STATE; i++) values(s)[i] = mask ? values(a)[i] : values(b)[i];
    return s;
}
template <class F> inline I terminated(const DroneOf<F>& d, const State& s) {
    const V *p = &s.p.x, *v = &s.v.x, *omega = &s.omega.x;
    I out{};
    for (int i = 0; i < 3; i++)
        out |= (abs(p[i]) > d.limits[0]) | (abs(v[i]) > d.limits[1]) | (abs(omega[i]) > d.limits[2]);
    return out;
}

// ---------------------------------------------------------------- rotors
// Runge-Kutta 4 of a first-order lag, in closed form: speed = setpoint - factor * (setpoint - w), where the first
// stage has factor 1
struct Rotors {
    V speed[3][4], factor[3][4];  // (stage 1 ... 3, rotor)
    V end_factor[4];              // after the step
    V inside[4];                  // 1 where the speed after the step is not clamped
};
template <class F> inline void rotors_forward(const DroneOf<F>& d, const State& s, const V* action, Rotors& r, V* end) {
    const F span = d.rotor_max - d.rotor_min;
    for (int i = 0; i < 4; i++) {
        V setpoint = d.rotor_min + span * (.5f * (clamp(action[i], -1.f, 1.f) + 1.f));
        V w = s.rotor[i];
        V h = d.dt / (setpoint >= w ? all(d.rising[i]) : all(d.falling[i]));
        V half = .5f * h;
        V third = 1.f - half + half * half;
        V gap = setpoint - w;
        r.factor[0][i] = 1.f - half;
        r.factor[1][i] = third;
        r.factor[2][i] = 1.f - h * third;
        r.end_factor[i] = 1.f - h * (1.f / 6) * (1.f + 2.f * r.factor[0][i] + 2.f * r.factor[1][i] + r.factor[2][i]);
        V after = setpoint - r.end_factor[i] * gap;
        r.inside[i] = ((after >= d.rotor_min) & (after <= d.rotor_max)) ? all(1.f) : V{};
        end[i] = clamp(after, d.rotor_min, d.rotor_max);
        for (int k = 0; k < 3; k++) r.speed[k][i] = setpoint - r.factor[k][i] * gap;
    }
}
template <class F> inline void thrust_of(const DroneOf<F>& d, const V* speed, V* thrust) {  // (4) each
    for (int i = 0; i < 4; i++)
        thrust[i] = d.curve[3 * i] + speed[i] * (d.curve[3 * i + 1] + speed[i] * d.curve[3 * i + 2]);
}
// dspeed by the end of the step and dthrust of each stage, through `drotor` (before the step) and `dsetpoint`
inline void rotors_end_backward(const Rotors& r, const V* dend, V* drotor, V* dsetpoint) {
    for (int i = 0; i < 4; i++) {
        V e = dend[i] * r.inside[i];
        drotor[i] = r.end_factor[i] * e;
        dsetpoint[i] = e - drotor[i];
    }
}
// speed (4) of the stage, its factor (4) or, of the first stage, nullptr
template <class F>
inline void rotors_stage_backward(const DroneOf<F>& d, const V* speed, const V* factor, const V* dthrust, V* drotor,
                                  V* dsetpoint) {
    for (int i = 0; i < 4; i++) {  // adds
        V dx = dthrust[i] * (d.curve[3 * i + 1] + 2.f * speed[i] * d.curve[3 * i + 2]);
        V share = factor ? factor[i] * dx : dx;
        drotor[i] += share;
        dsetpoint[i] += dx - share;
    }
}

// ---------------------------------------------------------------- rigid body
struct Attitude { V4 q; V3 omega; };  // what the rates depend on
struct Body { V4 q; V3 v, omega; };   // their rates, by the names of what changes
// acceleration: m/s^2, gravity and disturbance force
template <class F> inline Body rates(const DroneOf<F>& d, const Attitude& s, const V* thrust, V3 acceleration) {
    V3 torque = matvec34(d.torque_map, thrust) - cross(s.omega, matvec(d.inertia, s.omega));
    return {quaternion_derivative(s.q, s.omega),
            (1.f / d.mass) * rotate(s.q, matvec34(d.force_map, thrust)) + acceleration,
            matvec(d.inertia_inv, torque)};
}
template <class F>
inline Attitude rates_backward(const DroneOf<F>& d, const Attitude& s, const V* thrust, const Body& drate, V* dthrust) {
    const V4 &q = s.q, &g = drate.q;
    V a = .5f * s.omega.x, b = .5f * s.omega.y, c = .5f * s.omega.z;
    V4 dq = {a * g.x + b * g.y + c * g.z,
             -a * g.w - c * g.y + b * g.z,
             -b * g.w + c * g.x - a * g.z,
             -c * g.w - b * g.x + a * g.y};
    V3 domega = .5f * V3{-q.x * g.w + q.w * g.x + q.z * g.y - q.y * g.z,
                         -q.y * g.w - q.z * g.x + q.w * g.y + q.x * g.z,
                         -q.z * g.w + q.y * g.x - q.x * g.y + q.w * g.z};
    // v' = rotate(q, f) / m
    V3 u = vector_part(q), f = matvec34(d.force_map, thrust), t = 2.f * cross(u, f);
    V3 dv = (1.f / d.mass) * drate.v;
    V3 dt = q.w * dv + cross(dv, u);
    V3 du = cross(t, dv) + 2.f * cross(f, dt);
    V3 df = dv + 2.f * cross(dt, u);
    dq = dq + V4{dot(dv, t), du.x, du.y, du.z};
    // omega' = J^-1 (torque - omega x J omega)
    V3 dtorque = matvec_transposed(d.inertia_inv, drate.omega);
    V3 momentum = matvec(d.inertia, s.omega), minus = -1.f * dtorque;
    domega = domega + cross(momentum, minus) + matvec_transposed(d.inertia, cross(minus, s.omega));
    const F *force = d.force_map, *torque = d.torque_map;
    for (int i = 0; i < 4; i++)
        dthrust[i] = force[i] * df.x + force[4 + i] * df.y + force[8 + i] * df.z
                   + torque[i] * dtorque.x + torque[4 + i] * dtorque.y + torque[8 + i] * dtorque.z;
    return {dq, domega};
}

// ---------------------------------------------------------------- one step: Runge-Kutta 4
struct Step {  // what the way back needs of a step
    Rotors rotors;
    Attitude at[3];  // of stages 1 ... 3
    V4 unit;         // after the step: raw * norm
    V norm;
};
constexpr int STEP = sizeof(Step) / sizeof(V);
template <class F> inline V3 acceleration_of(const DroneOf<F>& d, const V* force) {  // force: (3) N
    const F m = 1.f / d.mass, *g = d.gravity;
    return {force[0] * m + g[0], force[1] * m + g[1], force[2] * m + g[2]};
}
template <class F>
inline State step_forward(const DroneOf<F>& d, const State& s, const V* action, V3 acceleration, Step& m) {
    State n;
    rotors_forward(d, s, action, m.rotors, n.rotor);
    const F h = d.dt, w = h / 6, ahead[3] = {.5f * h, .5f * h, h};
    V thrust[4];
    thrust_of(d, s.rotor, thrust);
    Body k = rates(d, {s.q, s.omega}, thrust, acceleration), sum = k;
    V3 moved{};  // to be multiplied by w
    for (int i = 0; i < 3; i++) {
        const float times = i < 2 ? 2.f : 1.f;
        m.at[i] = {s.q + ahead[i] * k.q, s.omega + ahead[i] * k.omega};
        moved = moved + (times * ahead[i]) * k.v;
        thrust_of(d, m.rotors.speed[i], thrust);
        k = rates(d, m.at[i], thrust, acceleration);
        sum = {sum.q + times * k.q, sum.v + times * k.v, sum.omega + times * k.omega};
    }
    n.p = s.p + h * s.v + w * moved;
    V4 raw = s.q + w * sum.q;
    n.v = s.v + w * sum.v;
    n.omega = s.omega + w * sum.omega;
    m.norm = 1.f / sqrt(dot(raw, raw));
    n.q = m.unit = m.norm * raw;
    for (int i = 0; i < 4; i++) n.action[i] = action[i];
    return n;
}
// s: before the step; dnext -> gradient by it, its action excluded; adds to daction
template <class F>
inline State step_backward(const DroneOf<F>& d, const State& s, const V* action, const Step& m, const State& dnext,
                           V* daction) {
    const F h = d.dt, w[4] = {h / 6, h / 3, h / 3, h / 6};
    const F into[4] = {.5f * h, .5f * h, h, F{}};  // k[i] enters stage i + 1 with into[i]
    V4 draw = m.norm * (dnext.q + (-dot(dnext.q, m.unit)) * m.unit);
    State out;
    out.p = dnext.p;
    out.q = draw;
    out.v = dnext.v + h * dnext.p;
    out.omega = dnext.omega;
    V dsetpoint[4], drotor[4], thrust[4], dthrust[4];
    rotors_end_backward(m.rotors, dnext.rotor, drotor, dsetpoint);
    Attitude later{};
    for (int k = 3; k >= 0; k--) {
        // the velocity of stage k + 1 moves the position by w[k + 1] of it
        V3 dv = k < 3 ? w[k] * dnext.v + (into[k] * w[k + 1]) * dnext.p : w[k] * dnext.v;
        Body drate{w[k] * draw + into[k] * later.q, dv, w[k] * dnext.omega + into[k] * later.omega};
        const Attitude at = k ? m.at[k - 1] : Attitude{s.q, s.omega};
        const V* speed = k ? m.rotors.speed[k - 1] : s.rotor;
        thrust_of(d, speed, thrust);
        later = rates_backward(d, at, thrust, drate, dthrust);
        out.q = out.q + later.q;
        out.omega = out.omega + later.omega;
        rotors_stage_backward(d, speed, k ? m.rotors.factor[k - 1] : nullptr, dthrust, drotor, dsetpoint);
    }
    const F half_span = .5f * (d.rotor_max - d.rotor_min);
    for (int i = 0; i < 4; i++) {
        out.rotor[i] = drotor[i];
        daction[i] += abs(action[i]) <= 1.f ? half_span * dsetpoint[i] : V{};
        out.action[i] = V{};
    }
    return out;
}

// ---------------------------------------------------------------- observation
// 22 values as the student's: position 3, rotation matrix 9, velocity 3, angular velocity 3, previous action 4;
// 26 with rotor speeds as a share of their range, 29 with the disturbance force as a share of the weight as well
constexpr int SENSED = 18;  // the first 18 come from sensors, which are late and noisy
template <class F> inline void observe(const DroneOf<F>& d, const State& s, const V* force, int obs, V* out) {
    std::memcpy(out, &s.p, 3 * sizeof(V));
    rotation_matrix(s.q, out + 3);
    std::memcpy(out + 12, &s.v, 6 * sizeof(V));
    std::memcpy(out + 18, s.action, 4 * sizeof(V));
    const F per_range = 1.f / (d.rotor_max - d.rotor_min), per_weight = 1.f / weight(d);
    if (obs > 22)
        for (int i = 0; i < 4; i++) out[22 + i] = (s.rotor[i] - d.rotor_min) * per_range;
    if (obs > 26)
        for (int i = 0; i < 3; i++) out[26 + i] = force[i] * per_weight;
}
template <class F> inline void observe_backward(const DroneOf<F>& d, const State& s, const V* dobs, int obs, State& ds) {  // adds to ds
    const V* g = dobs;
    ds.p = ds.p + V3{g[0], g[1], g[2]};
    ds.q = ds.q + rotation_matrix_backward(s.q, g + 3);
    ds.v = ds.v + V3{g[12], g[13], g[14]};
    ds.omega = ds.omega + V3{g[15], g[16], g[17]};
    for (int i = 0; i < 4; i++) {
        ds.action[i] += g[18 + i];
        if (obs > 22) ds.rotor[i] += g[22 + i] * (1.f / (d.rotor_max - d.rotor_min));
    }
}

// ---------------------------------------------------------------- cost of a step
// Judged at the state after it (nbs/learn/cost.ipynb). The order is that of `CostWeights`. A new term has its weight
// here, its value in cost_forward and its gradient in cost_backward.
struct Cost {
    float huber_delta, precision, damping, barrier, position_barrier, velocity_barrier, rate_barrier, excess;
};
constexpr float PRECISION_RANGE = .05f;       // m: where half of `precision` counts
constexpr float ORIENTATION_WEIGHT = .1f;     // a rad; l2f's reward has the same
constexpr float ORIENTATION_ROUNDING = 4e-4f; // .02^2: rounds the kink at no angle
constexpr float CHANGE_ROUNDING = 1e-4f;      // .01^2: rounds the kink at no change of the action
constexpr float POSITION_BARRIER = 4.f;       // times the others: it has but a quarter of the limit to grow in

template <class F> inline V beyond(V x, F limit, float share) { return relu(abs(x) * (1.f / limit) - share); }
template <class F, class S> inline V beyond_squared_backward(V x, F limit, S share, float scale) {
    V e = relu(abs(x) * (1.f / limit) - share) * (2.f * scale / limit);
    return x < 0 ? -e : e;
}
inline V action_change(const State& s, const V* previous) {  // rounded norm
    V squares{};
    for (int i = 0; i < 4; i++) squares += square(s.action[i] - previous[i]);
    return sqrt(squares + CHANGE_ROUNDING);
}
// pace: m/s, where the velocity's barrier begins
template <class F>
inline V cost_forward(const DroneOf<F>& d, const Cost& c, const State& s, const V* previous, V pace) {
    V angle = 2.f * acos(1.f - sqrt(s.q.z * s.q.z + ORIENTATION_ROUNDING));
    V change = action_change(s, previous);
    V barriers{};
    const V *p = &s.p.x, *v = &s.v.x, *omega = &s.omega.x;
    for (int i = 0; i < 3; i++)
        barriers += POSITION_BARRIER * square(beyond(p[i], d.limits[0], c.position_barrier))
               + square(relu(abs(v[i]) - pace))
               + square(beyond(omega[i], c.rate_barrier, 1.f));
    V away = sqrt(dot(s.p, s.p) + c.huber_delta * c.huber_delta);
    return away + c.precision * away / (away + PRECISION_RANGE) + ORIENTATION_WEIGHT * angle + change
         + c.damping * dot(s.omega, s.omega) + c.barrier * barriers;
}
template <class F>
inline void cost_backward(const DroneOf<F>& d, const Cost& c, const State& s, const V* previous, V pace, State& ds,
                          V* dprevious) {  // adds to ds
    V away = sqrt(dot(s.p, s.p) + c.huber_delta * c.huber_delta);
    ds.p = ds.p + ((1.f + c.precision * PRECISION_RANGE / square(away + PRECISION_RANGE)) / away) * s.p;
    V u = sqrt(s.q.z * s.q.z + ORIENTATION_ROUNDING);
    ds.q.z += 2.f * ORIENTATION_WEIGHT * s.q.z / (u * sqrt(u * (2.f - u)));
    V per_change = 1.f / action_change(s, previous);
    for (int i = 0; i < 4; i++) {
        V g = per_change * (s.action[i] - previous[i]);
        ds.action[i] += g;
        dprevious[i] = -g;
    }
    ds.omega = ds.omega + (2.f * c.damping) * s.omega;
    const V *p = &s.p.x, *v = &s.v.x, *omega = &s.omega.x;
    V *dp = &ds.p.x, *dv = &ds.v.x, *domega = &ds.omega.x;
    for (int i = 0; i < 3; i++) {
        dp[i] += beyond_squared_backward(p[i], d.limits[0], c.position_barrier, POSITION_BARRIER * c.barrier);
        dv[i] += beyond_squared_backward(v[i], 1.f, pace, c.barrier);
        domega[i] += beyond_squared_backward(omega[i], c.rate_barrier, 1.f, c.barrier);
    }
}

}  // namespace
