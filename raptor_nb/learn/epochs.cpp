// Epochs (nbs/learn/epochs.ipynb): teachers on the rows of their flights, the student on its lanes, rows into sequences. One row is a flight and a step.
#include "native.cpp"

extern "C" {

// ---------------------------------------------------------------- teachers
struct TeachTask {
    int32_t flights, steps, width, obs, hidden;        // of a drone; steps of a flight; values in a row: 22 seen, 4 rotor speeds, position and velocity of the target
    const float *w1, *b1, *w2, *b2, *w3, *b3;          // (D, ...)
    const float *rows, *force;                         // (D, flights, steps, width); (D, flights, 3) share of the weight
    const int32_t* length;                             // (D, flights) steps that count
    float* action;                                     // (D, flights, steps, 4), written where they count and in between
};
static void teach_of(const TeachTask& t, int drone) { // sixteen rows side by side, also of several flights
    const int O = t.obs, H = t.hidden, n = t.flights * t.steps;
    const Actor actor{t.w1 + (size_t)drone * O * H, t.b1 + (size_t)drone * H, t.w2 + (size_t)drone * H * H, t.b2 + (size_t)drone * H, t.w3 + (size_t)drone * H * 4, t.b3 + (size_t)drone * 4, O, H};
    const float *rows = t.rows + (size_t)drone * n * t.width, *force = t.force + (size_t)drone * t.flights * 3;
    const int32_t* length = t.length + (size_t)drone * t.flights;
    float* action = t.action + (size_t)drone * n * 4;
    V seen[MAX_OBS], h1[MAX_HIDDEN], h2[MAX_HIDDEN], chosen[4];
    for (int first = 0; first < n; first += LANES) {
        const int m = n - first < LANES ? n - first : LANES, a = first / t.steps, b = (first + m - 1) / t.steps;
        if (first - a * t.steps >= length[a] && (a == b || (b == a + 1 && length[b] == 0))) continue;
        for (int l = 0; l < LANES; l++) {
            const int row = first + (l < m ? l : m - 1); const float *x = rows + (size_t)row * t.width, *f = force + row / t.steps * 3;
            for (int i = 0; i < (O < 26 ? O : 26); i++) seen[i][l] = x[i];
            for (int i = 26; i < O; i++) seen[i][l] = f[i - 26];
            for (int i = 0; i < 3; i++) { seen[i][l] -= x[26 + i]; seen[12 + i][l] -= x[29 + i]; } // as seen from the target
        }
        act(actor, seen, h1, h2, chosen);
        for (int l = 0; l < m; l++) for (int i = 0; i < 4; i++) action[(size_t)(first + l) * 4 + i] = chosen[i][l];
    }
}
void teach(const TeachTask* t, int32_t first, int32_t last) { for (int i = first; i < last; i++) teach_of(*t, i); }

// ---------------------------------------------------------------- the student
struct PilotTask {
    int32_t lanes, step, steps, width, hidden;
    const float *in_w, *in_b, *wi, *bi, *wh, *bh, *out_w, *out_b, *h0;
    const float *seen, *speeds;                        // (lanes, 22), (lanes, 4)
    float *memory, *action, *rows;                     // (blocks, hidden, 16); (lanes, 4); (lanes, steps, width): the row of this step is written
};
static void pilot_of(const PilotTask& t, int block) { // one step of the student
    const int H = t.hidden, first = block * LANES, m = t.lanes - first < LANES ? t.lanes - first : LANES;
    const Student student{t.in_w, t.in_b, t.wi, t.bi, t.wh, t.bh, t.out_w, t.out_b, t.h0, H};
    V seen[SEEN], before[64], tape[6 * 64], chosen[4]; const Memory memory = memory_at(tape, H);
    for (int l = 0; l < LANES; l++) { const float* x = t.seen + (size_t)(first + (l < m ? l : m - 1)) * SEEN; for (int i = 0; i < SEEN; i++) seen[i][l] = x[i]; }
    float* kept = t.memory + (size_t)block * H * LANES;
    for (int i = 0; i < H; i++) before[i] = t.step ? load(kept + i * LANES) : all(t.h0[i]);
    think(student, seen, before, memory, chosen);
    for (int i = 0; i < H; i++) store(kept + i * LANES, memory.h[i]);
    for (int l = 0; l < m; l++) {
        float* row = t.rows + ((size_t)(first + l) * t.steps + t.step) * t.width;
        for (int i = 0; i < 4; i++) t.action[(size_t)(first + l) * 4 + i] = chosen[i][l];
        std::memcpy(row, t.seen + (size_t)(first + l) * SEEN, SEEN * sizeof(float));
        std::memcpy(row + SEEN, t.speeds + (size_t)(first + l) * 4, 4 * sizeof(float));
    }
}
void pilot(const PilotTask* t, int32_t first, int32_t last) { for (int i = first; i < last; i++) pilot_of(*t, i); }

// ---------------------------------------------------------------- sequences
struct ChainTask {
    int32_t steps, width, flight_steps;
    const float *rows, *label, *shift;                 // (flights, flight_steps, width | 4); (flights, 3) m, taken from the position
    const int32_t* where; const uint8_t* begins;       // (sequences, steps) rows, whether a flight begins
    float *observation, *action, *reset;               // (sequences / 16, steps, 22 | 4 | 1, 16)
};
static void chain_of(const ChainTask& t, int block) { // rows of many flights into sequences side by side
    for (int k = 0; k < t.steps; k++) {
        const size_t at = (size_t)block * t.steps + k; float *o = t.observation + at * SEEN * LANES, *a = t.action + at * 4 * LANES, *r = t.reset + at * LANES;
        for (int l = 0; l < LANES; l++) {
            const size_t from = ((size_t)block * LANES + l) * t.steps + k, row = t.where[from];
            const float *x = t.rows + row * t.width, *y = t.label + row * 4, *shift = t.shift + row / t.flight_steps * 3;
            for (int i = 0; i < SEEN; i++) o[i * LANES + l] = i < 3 ? x[i] - shift[i] : x[i];
            for (int i = 0; i < 4; i++) a[i * LANES + l] = y[i];
            r[l] = t.begins[from];
        }
    }
}
void chain(const ChainTask* t, int32_t first, int32_t last) { for (int i = first; i < last; i++) chain_of(*t, i); }

}
