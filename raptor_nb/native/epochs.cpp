// The published post-training (nbs/learn/epochs.ipynb): teachers on the rows of their flights, the student on its
// environments, rows into sequences. One row is one step of one flight.
#include "nn.h"
#include "physics.h"

extern "C" {

int32_t lanes() { return LANES; }

struct TeachTask {
    // of a drone; of a flight; values in a row: 22 observed, 4 rotor speeds, position and velocity of the target
    int32_t flights, steps, width, obs, hidden;
    const float *w1, *b1, *w2, *b2, *w3, *b3;    // (D, ...)
    const float *rows, *force;                   // (D, flights, steps, width); (D, flights, 3) share of the weight
    const int32_t* length;                       // (D, flights) steps that count
    float* action;                               // (D, flights, steps, 4), written where they count and in between
};

struct PilotTask {
    int32_t lanes, step, steps, width, hidden;
    const float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;
    const float *seen, *speeds;      // (lanes, 22), (lanes, 4)
    float *memory, *action, *rows;   // (blocks, hidden, 16); (lanes, 4); (lanes, steps, width): this step's is written
};

struct ChainTask {
    int32_t steps, width, flight_steps;
    const float *rows, *label, *shift;    // (flights, flight_steps, width | 4); (flights, 3) m, taken from the position
    const int32_t* where;                 // (sequences, steps) rows
    const uint8_t* begins;                // (sequences, steps) whether a flight begins
    float *observation, *action, *reset;  // (sequences / 16, steps, 22 | 4 | 1, 16)
};

int32_t size_of_TeachTask() { return sizeof(TeachTask); }
int32_t size_of_PilotTask() { return sizeof(PilotTask); }
int32_t size_of_ChainTask() { return sizeof(ChainTask); }

}  // extern "C"

namespace {

// ---------------------------------------------------------------- teachers: sixteen rows at a time, also of several flights
void teach_of(const TeachTask& t, int drone) {
    const int O = t.obs, n = t.flights * t.steps;
    const Actor actor = actor_of({t.w1, t.b1, t.w2, t.b2, t.w3, t.b3, O, t.hidden}, drone);
    const float* rows = t.rows + (size_t)drone * n * t.width;
    const float* force = t.force + (size_t)drone * t.flights * 3;
    const int32_t* length = t.length + (size_t)drone * t.flights;
    float* action = t.action + (size_t)drone * n * 4;
    V obs[MAX_OBS], h1[MAX_HIDDEN], h2[MAX_HIDDEN], wanted[4];
    for (int first = 0; first < n; first += LANES) {
        const int m = n - first < LANES ? n - first : LANES;
        const int a = first / t.steps, b = (first + m - 1) / t.steps;  // flights of the first and the last row
        const bool second_empty = a == b || (b == a + 1 && length[b] == 0);
        if (first - a * t.steps >= length[a] && second_empty) continue;
        for (int l = 0; l < LANES; l++) {
            const int row = first + (l < m ? l : m - 1);
            const float *x = rows + (size_t)row * t.width, *f = force + row / t.steps * 3;
            for (int i = 0; i < (O < 26 ? O : 26); i++) obs[i][l] = x[i];
            for (int i = 26; i < O; i++) obs[i][l] = f[i - 26];
            for (int i = 0; i < 3; i++) {  // relative to the target: its position and velocity end the row
                obs[i][l] -= x[26 + i];
                obs[12 + i][l] -= x[29 + i];
            }
        }
        actor_forward(actor, obs, h1, h2, wanted);
        for (int l = 0; l < m; l++)
            for (int i = 0; i < 4; i++) action[(size_t)(first + l) * 4 + i] = wanted[i][l];
    }
}

// ---------------------------------------------------------------- one step of the student
void pilot_of(const PilotTask& t, int block) {
    const int H = t.hidden, first = block * LANES, m = t.lanes - first < LANES ? t.lanes - first : LANES;
    const Student student{t.in_w, t.in_b, t.wi, t.bi, t.wh, t.bh, t.out_w, t.out_b, t.h0, H};
    V obs[STUDENT_OBS], before[MAX_STUDENT], tape[GRU_STEP * MAX_STUDENT], action[4];
    const GruStep gru = gru_step_at(tape, H);
    for (int l = 0; l < LANES; l++) {
        const float* x = t.seen + (size_t)(first + (l < m ? l : m - 1)) * STUDENT_OBS;
        for (int i = 0; i < STUDENT_OBS; i++) obs[i][l] = x[i];
    }
    float* hidden = t.memory + (size_t)block * H * LANES;
    for (int i = 0; i < H; i++) before[i] = t.step ? load(hidden + i * LANES) : all(t.h0[i]);
    student_forward(student, obs, before, gru, action);
    for (int i = 0; i < H; i++) store(hidden + i * LANES, gru.h[i]);
    for (int l = 0; l < m; l++) {
        float* row = t.rows + ((size_t)(first + l) * t.steps + t.step) * t.width;
        for (int i = 0; i < 4; i++) t.action[(size_t)(first + l) * 4 + i] = action[i][l];
        std::memcpy(row, t.seen + (size_t)(first + l) * STUDENT_OBS, STUDENT_OBS * sizeof(float));
        std::memcpy(row + STUDENT_OBS, t.speeds + (size_t)(first + l) * 4, 4 * sizeof(float));
    }
}

// ---------------------------------------------------------------- rows of many flights into sequences, flights last
void chain_of(const ChainTask& t, int block) {
    for (int k = 0; k < t.steps; k++) {
        const size_t at = (size_t)block * t.steps + k;
        float* observation = t.observation + at * STUDENT_OBS * LANES;
        float* action = t.action + at * 4 * LANES;
        for (int l = 0; l < LANES; l++) {
            const size_t from = ((size_t)block * LANES + l) * t.steps + k, row = t.where[from];
            const float *x = t.rows + row * t.width, *y = t.label + row * 4, *shift = t.shift + row / t.flight_steps * 3;
            for (int i = 0; i < STUDENT_OBS; i++) observation[i * LANES + l] = i < 3 ? x[i] - shift[i] : x[i];
            for (int i = 0; i < 4; i++) action[i * LANES + l] = y[i];
            t.reset[at * LANES + l] = t.begins[from];
        }
    }
}

}  // namespace

extern "C" {

void teach(const TeachTask* t, int32_t first, int32_t last) {
    for (int drone = first; drone < last; drone++) teach_of(*t, drone);
}
void pilot(const PilotTask* t, int32_t first, int32_t last) {
    for (int block = first; block < last; block++) pilot_of(*t, block);
}
void chain(const ChainTask* t, int32_t first, int32_t last) {
    for (int block = first; block < last; block++) chain_of(*t, block);
}

}
