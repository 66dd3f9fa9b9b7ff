// What the page that flies trains with: the kernels of the package, compiled to WebAssembly by tools/wasm.py, and
// what a policy is worth.
#include "../raptor_nb/native/direct.cpp"

extern "C" {

struct Scoring {  // sixteen flights of each drone in still air
    int32_t steps, hidden;
    const float* drones;           // (D, 72)
    const float* parameters;       // (P) of the student
    const float* start;            // (D, 21, 16)
    float *total, *alive, *error;  // (D, 16): return, 1 or 0, mean distance in the second half in m
};
int32_t size_of_Scoring() { return sizeof(Scoring); }

}

namespace {

constexpr float REWARD = 1.5f, LOST = -100.f;  // of a step; of the step that ends a flight (raptor_nb.drones.Reward)

void score_of(const Scoring& t, int drone) {
    const int H = t.hidden;
    const Drone& d = ((const Drone*)t.drones)[drone];
    const Student student = student_at(t.parameters, H);
    scratch.reserve((GRU_STEP + 1) * H, 2);
    const GruStep gru = gru_step_at(scratch.take(GRU_STEP * H), H);
    V* hidden = scratch.take(H);
    for (int i = 0; i < H; i++) hidden[i] = all(student.h0[i]);
    State s = load_state(t.start + (size_t)drone * STATE * LANES, LANES);
    const V still[3] = {};
    V obs[STUDENT_OBS], action[4], last[4] = {}, total{}, error{}, alive = all(1.f), angle;
    Step m;
    for (int k = 0; k < t.steps; k++) {
        observe(d, s, still, STUDENT_OBS, obs);
        student_forward(student, obs, hidden, gru, action);
        V change{}, turned = abs(s.q.z);
        for (int i = 0; i < H; i++) hidden[i] = gru.h[i];
        for (int i = 0; i < 4; i++) {
            change += square(action[i] - last[i]);
            last[i] = action[i];
        }
        for (int l = 0; l < LANES; l++) angle[l] = 2.f * std::acos(1.f - turned[l]);
        const V gain = REWARD - sqrt(dot(s.p, s.p)) - ORIENTATION_WEIGHT * angle - sqrt(change);
        s = step_forward(d, s, action, acceleration_of(d, still), m);
        const I ended = terminated(d, s) | ~is_finite(gain);
        total += alive > 0 ? (ended ? all(LOST) : gain) : V{};
        alive = ended ? V{} : alive;
        if (2 * (k + 1) > t.steps) error += sqrt(dot(s.p, s.p));
    }
    store(t.total + (size_t)drone * LANES, total);
    store(t.alive + (size_t)drone * LANES, alive);
    store(t.error + (size_t)drone * LANES, error / (float)(t.steps - t.steps / 2));
}

}  // namespace

extern "C" void score(const Scoring* t, int32_t first, int32_t last) {
    for (int drone = first; drone < last; drone++) score_of(*t, drone);
}
