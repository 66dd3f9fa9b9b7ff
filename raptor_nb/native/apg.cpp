// Teachers by gradients through the physics (nbs/learn/engines.ipynb, where the same is written in torch): a segment of
// flight of many drones, and the gradients of its cost. In memory flights come last: (..., values, flights).
#include "nn.h"
#include "physics.h"

extern "C" {

int32_t lanes() { return LANES; }

struct TeacherSegment {
    int32_t envs, steps, obs, hidden;
    Cost cost;
    const float *drones, *w1, *b1, *w2, *b2, *w3, *b3;  // (D, ...)
    const float *force, *reset_state;                         // (D, 3, E) N; (D, 21, E)
    float* state;                                      // (D, 21, E), moved on
    float *dw1, *db1, *dw2, *db2, *dw3, *db3;     // (D, ...) gradients of the mean cost a step
    float* costs;                                       // (D,) mean cost a step
};

int32_t size_of_TeacherSegment() { return sizeof(TeacherSegment); }

}  // extern "C"

namespace {

// one step of sixteen flights, kept for the way back
struct Kept {
    V *state, *obs, *h1, *h2, *action, *ended;
    static size_t size(int O, int H) { return STATE + O + 2 * H + 4 + 1; }
    static Kept at(V* tape, int k, int O, int H) {
        V* row = tape + k * size(O, H);
        V* obs = row + STATE;
        return {row, obs, obs + O, obs + O + H, obs + O + 2 * H, obs + O + 2 * H + 4};
    }
};

struct Segment {
    const TeacherSegment& t;
    const Drone& d;
    const Actor actor;
    V* tape;                // (T, Kept::size)
    V force[3];
    V3 acceleration;
    Step m;

    void forward(State& s, const State& reset_state, V& total) {  // adds the costs
        for (int k = 0; k < t.steps; k++) {
            const Kept row = Kept::at(tape, k, t.obs, t.hidden);
            std::memcpy(row.state, &s, sizeof s);
            observe(d, s, force, t.obs, row.obs);
            actor_forward(actor, row.obs, row.h1, row.h2, row.action);
            State n = step_forward(d, s, row.action, acceleration, m);
            total += cost_forward(d, t.cost, n, s.action, all(t.cost.velocity_barrier));
            I ended = terminated(d, n);
            std::memcpy(row.ended, &ended, sizeof ended);
            s = select(ended, reset_state, n);
        }
    }
    void backward(ActorGradients& g) {
        State ds{};
        V dobs[MAX_OBS] = {}, dprevious[4];
        for (int k = t.steps - 1; k >= 0; k--) {
            const Kept row = Kept::at(tape, k, t.obs, t.hidden);
            State before;
            I ended;
            std::memcpy(&before, row.state, sizeof before);
            std::memcpy(&ended, row.ended, sizeof ended);
            // the step is computed again, which is cheaper than keeping its stages
            State n = step_forward(d, before, row.action, acceleration, m);
            observe_backward(d, n, dobs, t.obs, ds);
            ds = select(ended, State{}, ds);  // nothing flows back through the start of another flight
            cost_backward(d, t.cost, n, before.action, all(t.cost.velocity_barrier), ds, dprevious);
            V daction[4];
            for (int i = 0; i < 4; i++) daction[i] = ds.action[i];
            ds = step_backward(d, before, row.action, m, ds, daction);
            for (int i = 0; i < 4; i++) ds.action[i] = dprevious[i];
            g.backward(actor, row.obs, row.h1, row.h2, row.action, daction, dobs);
        }
    }
};

void segment_of(const TeacherSegment& t, int drone) {
    const int E = t.envs, T = t.steps, O = t.obs, H = t.hidden;
    const Drone& d = ((const Drone*)t.drones)[drone];
    float* dw1 = t.dw1 + (size_t)drone * O * H;
    float* dw2 = t.dw2 + (size_t)drone * H * H;
    const size_t tape = T * Kept::size(O, H);
    scratch.reserve(tape + ActorGradients::scratch_size(H), 1 + ActorGradients::ARRAYS);
    Segment segment{t, d, actor_of({t.w1, t.b1, t.w2, t.b2, t.w3, t.b3, O, H}, drone), scratch.take(tape), {}, {}, {}};
    ActorGradients g(O, H, dw1, dw2, scratch);
    V total{};
    for (int e = 0; e < E; e += LANES) {
        float* state = t.state + (size_t)drone * STATE * E + e;
        State s = load_state(state, E);
        State reset_state = load_state(t.reset_state + (size_t)drone * STATE * E + e, E);
        for (int i = 0; i < 3; i++) segment.force[i] = load(t.force + ((size_t)drone * 3 + i) * E + e);
        segment.acceleration = acceleration_of(d, segment.force);
        segment.forward(s, reset_state, total);
        store_state(state, E, s);
        segment.backward(g);
    }
    const float n = 1.f / ((float)T * E);
    for (int i = 0; i < O * H; i++) dw1[i] *= n;
    for (int i = 0; i < H * H; i++) dw2[i] *= n;
    for (int i = 0; i < 4 * H; i++) t.dw3[(size_t)drone * H * 4 + i] = n * sum(g.dw3[i]);
    for (int i = 0; i < H; i++) t.db1[(size_t)drone * H + i] = n * sum(g.db1[i]);
    for (int i = 0; i < H; i++) t.db2[(size_t)drone * H + i] = n * sum(g.db2[i]);
    for (int i = 0; i < 4; i++) t.db3[(size_t)drone * 4 + i] = n * sum(g.db3[i]);
    t.costs[drone] = n * sum(total);
}

}  // namespace

extern "C" void teacher_segment(const TeacherSegment* t, int32_t first, int32_t last) {
    for (int drone = first; drone < last; drone++) segment_of(*t, drone);
}
