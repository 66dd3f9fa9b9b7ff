// The student that is distilled (nbs/learn/engines.ipynb, where the same is written in torch): flights that teachers
// label, and gradients of imitation. direct.cpp has the gradients of its own flights.
// In memory flights come last: (..., values, flights); sixteen flights are a block.
#include "nn.h"
#include "physics.h"
#include "random.h"

extern "C" {

int32_t lanes() { return LANES; }

// ---------------------------------------------------------------- what Python fills in
struct StudentRollout {
    int32_t envs, steps, obs, hidden, student_hidden, resets, knots, rectified;
    const float *drones, *w1, *b1, *w2, *b2, *w3, *b3;                  // (D, ...)
    const float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;  // the student's
    const float *state, *reset_states;  // (D, 21, E); (D, resets, 21, E)
    const float* force;                 // (D, knots, 3, E) N, at evenly spaced times
    const float *sigma, *delay, *jump, *by_teacher;  // (D, E) m; steps 0, 1, 2; probability a step; share
    const float* noise;                              // (22) scale of each value's noise by sigma
    const uint64_t* seeds;                           // (D, E / 16)
    float *observation, *label, *reset;              // (D, E / 16, T, 22 | 4 | 1, 16)
};

struct ImitationGradients {
    int32_t steps, hidden;
    const float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;
    const float *observation, *label, *reset;  // (blocks, T, 22 | 4 | 1, 16)
    const int64_t* rows;                       // which blocks
    float *gradients, *loss;                   // (rows, parameters) sums; (rows) sums of squares
};

int32_t size_of_StudentRollout() { return sizeof(StudentRollout); }
int32_t size_of_ImitationGradients() { return sizeof(ImitationGradients); }

}  // extern "C"

namespace {

template <class T> Student student_of(const T& t, int hidden) {
    return {t.in_w, t.in_b, t.wi, t.bi, t.wh, t.bh, t.out_w, t.out_b, t.h0, hidden};
}

// ---------------------------------------------------------------- flights, labelled by the teachers
// the next of the starts at hand for the flights of `jump`; one that only jumps keeps its rotors and last action
State next_start(const StudentRollout& t, int drone, int e, I jump, I began, const State& n, I& next) {
    State out{};
    for (int l = 0; l < LANES; l++) {
        if (!jump[l]) continue;
        const float* from = t.reset_states + ((size_t)drone * t.resets + next[l]) * STATE * t.envs + e + l;
        for (int i = 0; i < STATE; i++) values(out)[i][l] = from[(size_t)i * t.envs];
        if (!began[l])
            for (int i = 0; i < 4; i++) {
                out.rotor[i][l] = n.rotor[i][l];
                out.action[i][l] = n.action[i][l];
            }
        next[l] = (next[l] + 1) % t.resets;
    }
    return out;
}

void rollout_of(const StudentRollout& t, int drone, int block) {
    const int E = t.envs, T = t.steps, H = t.student_hidden, e = block * LANES;
    const size_t at = (size_t)drone * (E / LANES) + block, flight = (size_t)drone * E + e;
    const Drone& d = ((const Drone*)t.drones)[drone];
    const Actor teacher = actor_of({t.w1, t.b1, t.w2, t.b2, t.w3, t.b3, t.obs, t.hidden, t.rectified != 0}, drone);
    const Student student = student_of(t, H);
    float* observation = t.observation + at * T * STUDENT_OBS * LANES;
    float* label = t.label + at * T * 4 * LANES;
    float* reset = t.reset + at * T * LANES;
    const float* forces = t.force + (size_t)drone * t.knots * 3 * E + e;
    const V jumps = load(t.jump + flight), taught = load(t.by_teacher + flight);
    Sensors sensors{{}, load(t.delay + flight), load(t.sigma + flight), t.noise};
    scratch.reserve((GRU_STEP + 1) * H, 2);
    const GruStep gru = gru_step_at(scratch.take(GRU_STEP * H), H);
    V* hidden = scratch.take(H);
    Random random(t.seeds[at]);
    State s = load_state(t.state + (size_t)drone * STATE * E + e, E);
    V obs[MAX_OBS], h1[MAX_HIDDEN], h2[MAX_HIDDEN], wanted[4], action[4], reported[STUDENT_OBS], force[3];
    I began = true_everywhere(), next{};
    Step m;
    for (int k = 0; k < T; k++) {
        force_at(forces, t.knots, E, k, T, force);
        for (int i = 0; i < H; i++) hidden[i] = began ? all(t.h0[i]) : hidden[i];
        observe(d, s, force, t.obs, obs);
        actor_forward(teacher, obs, h1, h2, wanted);
        sensors.read(obs, began, random, reported);
        for (int i = SENSED; i < STUDENT_OBS; i++) reported[i] = obs[i];
        student_forward(student, reported, hidden, gru, action);
        for (int i = 0; i < H; i++) hidden[i] = gru.h[i];
        for (int i = 0; i < STUDENT_OBS; i++) store(observation + ((size_t)k * STUDENT_OBS + i) * LANES, reported[i]);
        for (int i = 0; i < 4; i++) {
            store(label + ((size_t)k * 4 + i) * LANES, wanted[i]);
            action[i] = taught > 0 ? wanted[i] : clamp(action[i], -2.f, 2.f);
        }
        store(reset + (size_t)k * LANES, began ? all(1.f) : V{});
        State n = step_forward(d, s, action, acceleration_of(d, force), m);
        began = terminated(d, n);
        I jump = began | (random.uniform() < jumps);  // a flight that jumps continues elsewhere with its hidden state
        const I lost = ~is_finite(n.p.x);
        jump |= lost;
        began |= lost;
        s = select(jump, next_start(t, drone, e, jump, began, n, next), n);
    }
}

// ---------------------------------------------------------------- loss and gradients on recorded sequences
void imitation_of(const ImitationGradients& t, int row) {
    const int T = t.steps, H = t.hidden;
    const Student student = student_of(t, H);
    const size_t block = t.rows[row];
    const float* observation = t.observation + block * T * STUDENT_OBS * LANES;
    const float* label = t.label + block * T * 4 * LANES;
    const float* reset = t.reset + block * T * LANES;
    const size_t kept = GRU_STEP * H + H + 4;  // of a step: GRU, hidden state before, gradient by the action
    scratch.reserve(T * kept + TOGETHER * STUDENT_OBS + StudentGradients::scratch_size(H), 2 + StudentGradients::ARRAYS);
    V *tape = scratch.take(T * kept), *recent = scratch.take(TOGETHER * STUDENT_OBS);
    StudentGradients g(H, t.gradients + row * Student::count(H), scratch);
    const auto began_at = [&](int k) { return k == 0 ? true_everywhere() : load(reset + (size_t)k * LANES) > .5f; };
    const auto load_obs = [&](int k) {
        V* obs = recent + k % TOGETHER * STUDENT_OBS;
        for (int i = 0; i < STUDENT_OBS; i++) obs[i] = load(observation + ((size_t)k * STUDENT_OBS + i) * LANES);
        return obs;
    };
    V total{};
    const V* last = nullptr;  // hidden state after the step before
    for (int k = 0; k < T; k++) {
        const GruStep m = gru_step_at(tape + k * kept, H);
        V *before = tape + k * kept + GRU_STEP * H, *dout = before + H;
        const I began = began_at(k);
        for (int i = 0; i < H; i++) before[i] = last ? (began ? all(student.h0[i]) : last[i]) : all(student.h0[i]);
        student_forward(student, load_obs(k), before, m, dout);
        for (int i = 0; i < 4; i++) {
            dout[i] -= load(label + ((size_t)k * 4 + i) * LANES);
            total += dout[i] * dout[i];
            dout[i] *= 2.f;
        }
        last = m.h;
    }
    for (int k = T - 1; k >= 0; k--) {
        const GruStep m = gru_step_at(tape + k * kept, H);
        const V *before = tape + k * kept + GRU_STEP * H, *dout = before + H;
        g.backward(student, m, before, load_obs(k), dout);
        g.flight_began(began_at(k));
    }
    g.finish();
    t.loss[row] = sum(total);
}

}  // namespace

// ---------------------------------------------------------------- parts first ... last - 1, on one thread
extern "C" {

void student_rollout(const StudentRollout* t, int32_t first, int32_t last) {
    const int blocks = t->envs / LANES;
    for (int i = first; i < last; i++) rollout_of(*t, i / blocks, i % blocks);
}
void imitation_gradients(const ImitationGradients* t, int32_t first, int32_t last) {
    for (int row = first; row < last; row++) imitation_of(*t, row);
}

}
