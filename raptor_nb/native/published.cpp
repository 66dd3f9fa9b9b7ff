// The published distillation (nbs/learn/published.ipynb): labels of the teachers, steps of the student,
// rows into sequences. One row is one step of one flight.
#include "nn.h"
#include "physics.h"

extern "C" {

int32_t lanes() { return LANES; }

struct LabelTask {
    // of a drone; of a flight; values in a row: 22 observed, 4 rotor speeds, the target's position and
    // velocity
    int32_t flights, steps, width, obs, hidden;
    const float *w1, *b1, *w2, *b2, *w3, *b3;    // (D, ...)
    const float *rows, *force;  // (D, flights, steps, width); (D, flights, 3) share of the weight
    const int32_t* length;                       // (D, flights) steps that count
    float* action;              // (D, flights, steps, 4), written where they count and in between
};

struct StudentStepTask {
    int32_t flights, step, width, hidden;  // of an observation, the student takes the first 22
    const float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;
    const float* observation;  // (flights, width)
    float *memory, *action;    // hidden state (blocks, hidden, 16); (flights, 4)
};

struct GatherTask {
    int32_t steps, width, flight_steps;
    const float *rows, *label;            // (flights, flight_steps, width | 4)
    const float* offset;                  // (flights, 3) m, taken from the position
    const int32_t* index;                 // (sequences, steps) rows
    const uint8_t* begins;                // (sequences, steps) whether a flight begins
    float *observation, *action, *reset;  // (sequences / 16, steps, 22 | 4 | 1, 16)
};

int32_t size_of_LabelTask() { return sizeof(LabelTask); }
int32_t size_of_StudentStepTask() { return sizeof(StudentStepTask); }
int32_t size_of_GatherTask() { return sizeof(GatherTask); }

}  // extern "C"

namespace {

// ------------------------------------ teachers: sixteen rows at a time, also of several flights
void label_of(const LabelTask& t, int drone) {
    const int O = t.obs, n = t.flights * t.steps;
    const Actor actor = actor_of({t.w1, t.b1, t.w2, t.b2, t.w3, t.b3, O, t.hidden}, drone);
    const float* rows = t.rows + (size_t)drone * n * t.width;
    const float* force = t.force + (size_t)drone * t.flights * 3;
    const int32_t* length = t.length + (size_t)drone * t.flights;
    float* action = t.action + (size_t)drone * n * 4;
    V obs[MAX_OBS], h1[MAX_HIDDEN], h2[MAX_HIDDEN], wanted[4];
    for (int first = 0; first < n; first += LANES) {
        const int m = n - first < LANES ? n - first : LANES;
        const int a = first / t.steps, b = (first + m - 1) / t.steps;  // flights of first and last row
        const bool second_empty = a == b || (b == a + 1 && length[b] == 0);
        if (first - a * t.steps >= length[a] && second_empty) continue;
        for (int l = 0; l < LANES; l++) {
            const int row = first + (l < m ? l : m - 1);
            const float *x = rows + (size_t)row * t.width, *f = force + row / t.steps * 3;
            for (int i = 0; i < (O < 26 ? O : 26); i++) obs[i][l] = x[i];
            for (int i = 26; i < O; i++) obs[i][l] = f[i - 26];
            for (int i = 0; i < 3; i++) {  // relative to the target, which ends the row
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
void student_step_of(const StudentStepTask& t, int block) {
    const int H = t.hidden, first = block * LANES;
    const int m = t.flights - first < LANES ? t.flights - first : LANES;
    const Student student{t.in_w, t.in_b, t.wi, t.bi, t.wh, t.bh, t.out_w, t.out_b, t.h0, H};
    V obs[STUDENT_OBS], before[MAX_STUDENT], tape[GRU_STEP * MAX_STUDENT], action[4];
    const GruStep gru = gru_step_at(tape, H);
    for (int l = 0; l < LANES; l++) {
        const float* x = t.observation + (size_t)(first + (l < m ? l : m - 1)) * t.width;
        for (int i = 0; i < STUDENT_OBS; i++) obs[i][l] = x[i];
    }
    float* hidden = t.memory + (size_t)block * H * LANES;
    for (int i = 0; i < H; i++) before[i] = t.step ? load(hidden + i * LANES) : all(t.h0[i]);
    student_forward(student, obs, before, gru, action);
    for (int i = 0; i < H; i++) store(hidden + i * LANES, gru.h[i]);
    for (int l = 0; l < m; l++)
        for (int i = 0; i < 4; i++) t.action[(size_t)(first + l) * 4 + i] = action[i][l];
}

// ---------------------------------------------- rows of many flights into sequences, flights last
void gather_of(const GatherTask& t, int block) {
    for (int k = 0; k < t.steps; k++) {
        const size_t at = (size_t)block * t.steps + k;
        float* observation = t.observation + at * STUDENT_OBS * LANES;
        float* action = t.action + at * 4 * LANES;
        for (int l = 0; l < LANES; l++) {
            const size_t from = ((size_t)block * LANES + l) * t.steps + k, row = t.index[from];
            const float *x = t.rows + row * t.width, *y = t.label + row * 4;
            const float* offset = t.offset + row / t.flight_steps * 3;
            for (int i = 0; i < STUDENT_OBS; i++)
                observation[i * LANES + l] = i < 3 ? x[i] - offset[i] : x[i];
            for (int i = 0; i < 4; i++) action[i * LANES + l] = y[i];
            t.reset[at * LANES + l] = t.begins[from];
        }
    }
}

}  // namespace

extern "C" {

void label(const LabelTask* t, int32_t first, int32_t last) {
    for (int drone = first; drone < last; drone++) label_of(*t, drone);
}
void student_step(const StudentStepTask* t, int32_t first, int32_t last) {
    for (int block = first; block < last; block++) student_step_of(*t, block);
}
void gather(const GatherTask* t, int32_t first, int32_t last) {
    for (int block = first; block < last; block++) gather_of(*t, block);
}

}
