// A student's own flights over a fleet of drones, improved by their gradient through physics, sensors and hidden state
// (nbs/learn/direct.ipynb, where the same is written in torch). Sixteen flights, each of a drone of its own, are a block.
// What a block draws depends on seed, update and block alone, not on who computes it.
#ifndef __wasm__
#include <atomic>
#include <thread>
#endif
#include "nn.h"
#include "physics.h"
#include "random.h"
#include "soap.h"

extern "C" {

int32_t lanes() { return LANES; }

struct FlightDraws {  // what happens to flights, and how they begin
    float noise;             // m, the largest
    float delay_share;       // of flights whose sensors are late, half of them by one step, half by two
    float force, gust;       // largest standard deviations, share of the weight
    float jumps;             // probability, a segment
    float tilt_share, tilt;  // of starts, factor on their tilt
    float resets;            // probability of a new flight, a segment
    float plain_share;                    // of flights without any of what follows
    float uneven_share, weakest, spread;  // flights with unequal rotors: one may lose up to so much of its thrust, all a little
    float offset_share, max_offset;       // flights whose centre of gravity is off, up to so much of the arm, an axis
    float curve_share;                    // flights whose thrust is more or less linear in the command
    float load_share, max_load, max_sag;  // flights with payload (share of the mass) and sagging battery (share of the thrust)
    float drag_share, max_drag;           // flights with linear drag, 1/s
    float filter_share, max_filter;       // flights whose velocity is seen through a first-order filter, s
    float away_share, max_away;           // flights that begin further away, m
    float clip_share;                     // those of them whose errors are clipped as flight stacks do
};

struct DirectTraining {
    int32_t flights, steps, hidden, drones, update;
    uint64_t seed;
    FlightDraws draws;
    Cost cost;
    float max_block_norm;
    const float *table, *starts;  // (drones, 72), (drones, 7): guidance, position, angle, velocity, rate, rotor speeds
    const float* cumulative;      // (drones): cumulative probabilities of being drawn
    const float* noise;           // (22) scale of each value's noise
    const float* parameters;      // (P) of the student
    float* pool;                  // (blocks, pool_size, 16): flights in progress, moved on
    float *gradients, *costs, *ends, *norms;  // (blocks, P) clipped means; (blocks) means a step, of a step, norms
};

struct DirectStep {  // an update of the parameters
    int32_t blocks, hidden, update, learn_h0;  // update: 1, 2, ...; whether the initial hidden state is learned
    SoapSettings how;
    float max_grad_norm, weight_decay;
    const float* gradients;         // (blocks, P)
    float *parameters, *optimiser;  // (P); (optimiser_size): zeros before the first update
};

int32_t size_of_DirectStep() { return sizeof(DirectStep); }
int32_t size_of_DirectTraining() { return sizeof(DirectTraining); }
int32_t student_parameters(int32_t hidden) { return Student::count(hidden); }

}  // extern "C"

namespace {

Student student_at(const float* p, int H) {  // in the order of StudentGradients
    const int G = 3 * H;
    Student s{};
    s.hidden = H;
    s.in_w = p;
    s.in_b = s.in_w + STUDENT_OBS * H;
    s.wi = s.in_b + H;
    s.bi = s.wi + H * G;
    s.wh = s.bi + G;
    s.bh = s.wh + H * G;
    s.out_w = s.bh + G;
    s.out_b = s.out_w + 4 * H;
    s.h0 = s.out_b + 4;
    return s;
}

// ---------------------------------------------------------------- flights in progress
struct Disturbance { V steady[3], gust[3], phase[3], frequency, age, sigma, delay; };  // shares of the weight; Hz; s; m
// what a real drone has: factors on thrust and lag of each rotor; offset of the centre of gravity in m; share of the thrust
// that is linear in the command; factors on mass and all thrusts; drag in 1/s; share of the new velocity in what is seen;
// limits of the errors shown, m and m/s; how much further from the target, m
struct Traits { V thrust[4], lag[4], offset[3], linear, load, power, drag, follows, clip[2], away; };
struct Pool {  // a block; row: of the table; flying: 0 before the first flight
    V row, flying;
    State state;
    Disturbance disturbance;
    V past[2][SENSED];
    Traits traits;
    V seen[3];     // velocity behind the filter
    V hidden[];  // (hidden)
};
constexpr int POOL = sizeof(Pool) / sizeof(V);

Drones gather(const float* table, V row) {
    Drones d;
    V* to = (V*)&d;
    for (int l = 0; l < LANES; l++) {
        const float* from = table + (size_t)row[l] * DRONE;
        for (int i = 0; i < DRONE; i++) to[i][l] = from[i];
    }
    return d;
}
template <class T> T choose(I mask, const T& a, const T& b) {  // mask ? a : b, for structures of V
    T out;
    for (size_t i = 0; i < sizeof(T) / sizeof(V); i++) ((V*)&out)[i] = mask ? ((const V*)&a)[i] : ((const V*)&b)[i];
    return out;
}

// ---------------------------------------------------------------- drones as they really are
V arm_of(const Drones& d) {  // m, mean
    V sum{};
    for (int i = 0; i < 4; i++) sum += sqrt(square(d.torque_map[i]) + square(d.torque_map[4 + i]));
    return .25f * sum;
}
V thrust_to_weight(const Drones& d) {
    const V top[4] = {d.rotor_max, d.rotor_max, d.rotor_max, d.rotor_max};
    V thrust[4], sum{};
    thrust_of(d, top, thrust);
    for (int i = 0; i < 4; i++) sum += thrust[i] * d.force_map[8 + i];
    return sum / weight(d);
}
Drones with_traits(Drones d, const Traits& x) {
    const V span = d.rotor_max - d.rotor_min;
    for (int i = 0; i < 4; i++) {
        V* c = d.curve + 3 * i;
        const V low = c[0] + d.rotor_min * (c[1] + d.rotor_min * c[2]);
        const V slope = (c[0] + d.rotor_max * (c[1] + d.rotor_max * c[2]) - low) / span;
        const V curved = 1.f - x.linear, factor = x.thrust[i] * x.power;
        c[0] = factor * (curved * c[0] + x.linear * (low - slope * d.rotor_min));
        c[1] = factor * (curved * c[1] + x.linear * slope);
        c[2] = factor * curved * c[2];
        d.rising[i] *= x.lag[i];
        d.falling[i] *= x.lag[i];
        const V *o = x.offset, f[3] = {d.force_map[i], d.force_map[4 + i], d.force_map[8 + i]};
        d.torque_map[i] -= o[1] * f[2] - o[2] * f[1];
        d.torque_map[4 + i] -= o[2] * f[0] - o[0] * f[2];
        d.torque_map[8 + i] -= o[0] * f[1] - o[1] * f[0];
    }
    d.mass *= x.load;
    d.limits[0] = d.limits[0] + x.away;
    return d;
}
struct Start { V guidance, position, angle, velocity, rate, low, high; };
Start gather_start(const float* starts, V row) {
    Start s;
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 7; i++) ((V*)&s)[i][l] = starts[(size_t)row[l] * 7 + i];
    return s;
}
V draw_rows(const DirectTraining& t, Random& random) {
    const V u = random.uniform();
    V row;
    for (int l = 0; l < LANES; l++) {
        int low = 0, high = t.drones - 1;
        while (low < high) {
            const int middle = (low + high) / 2;
            if (u[l] < t.cumulative[middle]) high = middle;
            else low = middle + 1;
        }
        row[l] = (float)low;
    }
    return row;
}

// as l2f draws them (sim.physics.sample_state), some with more tilt
State draw_state(const Drones& d, const Start& s, const Traits& traits, const FlightDraws& how, Random& random) {
    State n;
    const V free = random.uniform() >= s.guidance ? all(1.f) : V{};  // 0: at rest at the target
    V a[4];
    random.normal(a[0], a[1]);
    random.normal(a[2], a[3]);
    V3 axis{a[0], a[1], a[2]};
    V half = .5f * random.uniform() * free;
    half = s.angle > 0 ? half : V{};
    half = random.uniform() < how.tilt_share ? how.tilt * half : half;
    const V sine = Random::sine(half);
    axis = (sine / sqrt(max(dot(axis, axis), 1e-12f))) * axis;
    n.q = {sqrt(max(1.f - sine * sine, 0.f)), axis.x, axis.y, axis.z};
    const auto cube = [&](V size) {
        const V scale = size * free;
        const V x = random.uniform(), y = random.uniform(), z = random.uniform();
        return V3{scale * (2.f * x - 1.f), scale * (2.f * y - 1.f), scale * (2.f * z - 1.f)};
    };
    n.p = cube(s.position + traits.away);
    n.v = cube(s.velocity);
    n.omega = cube(s.rate);
    for (int i = 0; i < 4; i++) {
        n.rotor[i] = s.low + random.uniform() * (s.high - s.low);
        n.action[i] = 2.f * (n.rotor[i] - d.rotor_min) / (d.rotor_max - d.rotor_min) - 1.f;
    }
    return n;
}
Disturbance draw_disturbance(const FlightDraws& how, Random& random) {
    Disturbance x{};
    const V steady = how.force * random.uniform(), gust = how.gust * random.uniform();
    V a[6];
    for (int i = 0; i < 6; i += 2) random.normal(a[i], a[i + 1]);
    for (int i = 0; i < 3; i++) {
        x.steady[i] = steady * a[i];
        x.gust[i] = gust * a[3 + i];
        x.phase[i] = random.uniform();
    }
    x.frequency = .1f * exp(2.30258509f * random.uniform());
    x.sigma = how.noise * square(random.uniform());
    const V late = random.uniform();
    x.delay = (late < how.delay_share ? all(1.f) : V{}) + (late < .5f * how.delay_share ? all(1.f) : V{});
    return x;
}
constexpr float MARGIN = 1.2f;       // thrust of the weakest rotor over what hovering asks of it, at least
constexpr float FREE = 1e6f;          // m, m/s: no limit
constexpr float PACE = 1.25f;        // the velocity's barrier over the largest velocity that is shown
constexpr float LOAD_CHANGES = .1f;  // share of segments with another payload and another battery
V weakest_of(const V thrust[4]) { return min(min(thrust[0], thrust[1]), min(thrust[2], thrust[3])); }
void draw_load(const Drones& d, const FlightDraws& how, Random& random, Traits& x) {
    const I loaded = random.uniform() < how.load_share;
    const V load = 1.f + how.max_load * random.uniform(), power = 1.f - how.max_sag * random.uniform();
    const V spare = thrust_to_weight(d) * weakest_of(x.thrust) * (1.f / MARGIN);
    x.power = loaded ? max(power, 1.f / max(spare, all(1.f))) : all(1.f);
    x.load = loaded ? max(min(load, spare * x.power), all(1.f)) : all(1.f);
}
Traits no_traits() {
    Traits x{};
    for (int i = 0; i < 4; i++) x.thrust[i] = x.lag[i] = all(1.f);
    x.load = x.power = x.follows = all(1.f);
    x.clip[0] = x.clip[1] = all(FREE);
    return x;
}
Traits draw_traits(const Drones& d, const FlightDraws& how, Random& random) {
    Traits x{};
    const I uneven = random.uniform() < how.uneven_share, off = random.uniform() < how.offset_share;
    const I which = __builtin_convertvector(4.f * random.uniform(), I);
    const V tw = thrust_to_weight(d);
    for (int i = 0; i < 4; i++) {
        const V loss = how.spread * random.uniform() + (which == i ? how.weakest * random.uniform() : V{});
        x.thrust[i] = uneven ? max(1.f - loss, min(MARGIN / tw, all(1.f))) : all(1.f);
        x.lag[i] = uneven ? exp(.4f * (random.uniform() - .5f)) : all(1.f);
    }
    const V bent = 1.3f * random.uniform() - .3f;
    x.linear = random.uniform() < how.curve_share ? bent : V{};
    draw_load(d, how, random, x);
    const V arm = arm_of(d), weakest = weakest_of(x.thrust);
    V asked{};
    for (int i = 0; i < 3; i++) {
        const V share = how.max_offset * (2.f * random.uniform() - 1.f);
        x.offset[i] = off ? share * arm : V{};
        if (i < 2) asked += off ? 1.41421356f * abs(share) : V{};
    }
    const V spare = max(tw * weakest * x.power / (MARGIN * x.load) - 1.f, V{});
    const V kept = asked > spare ? spare / max(asked, all(1e-6f)) : all(1.f);
    for (int i = 0; i < 2; i++) x.offset[i] *= kept;
    const V drag = how.max_drag * random.uniform();
    x.drag = random.uniform() < how.drag_share ? drag : V{};
    const V late = how.max_filter * random.uniform();
    x.follows = random.uniform() < how.filter_share ? 1.f - exp(-d.dt / max(late, all(1e-4f))) : all(1.f);
    const V away = how.max_away * random.uniform();
    x.away = random.uniform() < how.away_share ? away : V{};
    const I clips = (x.away > 0) & (random.uniform() < how.clip_share), wide = random.uniform() < .3f;
    x.clip[0] = clips ? (wide ? all(.6f) : all(.5f)) : all(FREE);
    x.clip[1] = clips ? (wide ? all(2.f) : all(1.f)) : all(FREE);
    return choose(random.uniform() < how.plain_share, no_traits(), x);
}

// Which flights begin, and how; -> where a flight that ends within the segment begins again
State begin_segment(const DirectTraining& t, Pool& f, Drones& d, I& begins, Random& random) {
    const FlightDraws& how = t.draws;
    I finite = true_everywhere();
    for (int i = 0; i < STATE; i++) finite &= is_finite(values(f.state)[i]);
    const V chance = random.uniform();
    begins = (chance < how.resets) | (f.flying == 0) | ~finite;
    const I jumps = (chance > 1.f - how.jumps) & ~begins;
    const V drawn = draw_rows(t, random);
    f.row = begins ? drawn : f.row;
    f.flying = all(1.f);
    d = gather(t.table, f.row);
    const I loads = (random.uniform() < (how.load_share > 0 ? LOAD_CHANGES : 0.f)) & ~begins;
    f.traits = choose(begins, draw_traits(d, how, random), f.traits);
    Traits loaded = f.traits;
    draw_load(d, how, random, loaded);
    f.traits = choose(loads, loaded, f.traits);
    d = with_traits(d, f.traits);
    const Start start = gather_start(t.starts, f.row);
    const State fresh = draw_state(d, start, f.traits, how, random), again = draw_state(d, start, f.traits, how, random);
    State jumped = fresh;
    for (int i = 0; i < 4; i++) {
        jumped.rotor[i] = f.state.rotor[i];
        jumped.action[i] = f.state.action[i];
    }
    f.state = choose(begins, fresh, choose(jumps, jumped, f.state));
    f.disturbance = choose(begins, draw_disturbance(how, random), f.disturbance);
    return again;
}
void force_at(const Disturbance& x, V newton, float later, V* force) {  // N, some s later; newton: the weight
    for (int i = 0; i < 3; i++) {
        V turn = x.frequency * (x.age + later) + x.phase[i];
        turn = turn - __builtin_convertvector(__builtin_convertvector(turn + .5f, I), V);  // within +-.5
        V fold = 6.2831853f * turn;
        fold = abs(fold) > 1.57079633f ? (fold > 0 ? 3.14159265f - fold : -3.14159265f - fold) : fold;
        force[i] = newton * (x.steady[i] + x.gust[i] * Random::sine(fold));
    }
}

// ---------------------------------------------------------------- a segment of flight and its gradient
struct Kept {  // one step of sixteen flights, for the way back
    State* state;              // before it
    Step* step;
    I* began;                  // flights that begin with this step
    V *obs, *action;           // what the student is told and says
    GruStep gru;
    V* before;                 // hidden state before it: only where flights begin, see `Flight::hidden_before`
    State* after;              // only where flights end, see `Flight::state_after`
    static size_t size(int H) { return STATE + STEP + 1 + STUDENT_OBS + 4 + GRU_STEP * H + H + STATE; }
    static Kept at(V* tape, int k, int H) {
        V* row = tape + k * size(H);
        V* obs = row + STATE + STEP + 1;
        V *action = obs + STUDENT_OBS, *gru = action + 4, *before = gru + GRU_STEP * H;
        return {(State*)row, (Step*)(row + STATE), (I*)obs - 1, obs, action,
                gru_step_at(gru, H), before, (State*)(before + H)};
    }
};
struct Flight {  // a block
    const DirectTraining& t;
    const Drones& d;
    const Student student;
    V* tape;  // (T, Kept::size)
    Sensors sensors;
    const Traits& traits;
    V* seen;  // (3) velocity behind the filter
    State s, reset_state;
    const V* hidden;  // (hidden) after the last step
    I began;
    V total, ends;  // cost; flights that ended

    // hidden state before step k: that after the step before, unless flights begin
    const V* hidden_before(int k, I began) {
        return any(began) || k == 0 ? at(k).before : at(k - 1).gru.h;
    }
    // state after step k: that before the next, unless flights end
    const State& state_after(int k, I ended) {
        return any(ended) || k == t.steps - 1 ? *at(k).after : *at(k + 1).state;
    }
    Kept at(int k) const { return Kept::at(tape, k, t.hidden); }

    // whoever comes from far away and cannot see how fast it flies has to fly slowly
    V pace() const {
        return traits.away > 0 ? min(PACE * traits.clip[1], t.cost.velocity_barrier) : all(t.cost.velocity_barrier);
    }
    V share() const { return 1.f / (1.f + traits.away); }  // far flights cost no more than near ones
    void step(int k, const Disturbance& disturbance, Random& random) {
        const Kept row = at(k);
        V force[3];
        force_at(disturbance, weight(d), k * .01f, force);
        *row.state = s;
        *row.began = began;
        if (any(began) || k == 0)
            for (int i = 0; i < t.hidden; i++) row.before[i] = began ? all(student.h0[i]) : hidden[i];
        V obs[STUDENT_OBS];
        observe(d, s, force, STUDENT_OBS, obs);
        for (int i = 0; i < 3; i++) {
            seen[i] = began ? obs[12 + i] : seen[i] + traits.follows * (obs[12 + i] - seen[i]);
            obs[12 + i] = seen[i];
            force[i] -= traits.drag * d.mass * (&s.v.x)[i];
        }
        sensors.read(obs, began, random, row.obs);
        for (int i = SENSED; i < STUDENT_OBS; i++) row.obs[i] = obs[i];
        for (int i = 0; i < 3; i++) {
            row.obs[i] = max(min(row.obs[i], traits.clip[0]), -traits.clip[0]);
            row.obs[12 + i] = max(min(row.obs[12 + i], traits.clip[1]), -traits.clip[1]);
        }
        student_forward(student, row.obs, hidden_before(k, began), row.gru, row.action);
        hidden = row.gru.h;
        const State n = step_forward(d, s, row.action, acceleration_of(d, force), *row.step);
        V cost = cost_forward(d, t.cost, n, s.action, pace());
        for (int i = 0; i < 4; i++) cost += t.cost.excess * square(relu(abs(row.action[i]) - 1.f));
        cost *= share();
        total += cost;
        began = terminated(d, n) | ~is_finite(cost);
        ends += began ? all(1.f) : V{};
        if (any(began) || k == t.steps - 1) *row.after = n;
        s = any(began) ? select(began, reset_state, n) : n;
    }
    void backward(StudentGradients& g) {
        State ds{};
        SensorsBackward late;
        I ended = began;
        V dprevious[4], dreport[STUDENT_OBS], dobs[STUDENT_OBS], dseen[3] = {};
        for (int k = t.steps - 1; k >= 0; k--) {
            const Kept row = at(k);
            const State &before = *row.state, &n = state_after(k, ended);
            const I started = *row.began;
            if (any(ended)) ds = select(ended, State{}, ds);
            State dcost{};
            cost_backward(d, t.cost, n, before.action, pace(), dcost, dprevious);
            const V part = share();
            for (int i = 0; i < STATE; i++) values(ds)[i] += part * values(dcost)[i];
            V daction[4];
            for (int i = 0; i < 4; i++) {
                dprevious[i] *= part;
                V x = part * t.cost.excess * 2.f * relu(abs(row.action[i]) - 1.f);
                daction[i] = ds.action[i] + (row.action[i] < 0 ? -x : x);
            }
            const V3 dacceleration = d.dt * ds.v + (.5f * d.dt * d.dt) * ds.p;
            ds = step_backward(d, before, row.action, *row.step, ds, daction);
            ds.v = ds.v - traits.drag * dacceleration;
            for (int i = 0; i < 4; i++) ds.action[i] = dprevious[i];
            g.flight_ended(ended);
            g.backward(student, row.gru, hidden_before(k, started), row.obs, daction);
            g.flight_began(started);
            g.dobs(student, dreport);
            for (int i = 0; i < 3; i++) {
                dreport[i] = abs(row.obs[i]) < traits.clip[0] ? dreport[i] : V{};
                dreport[12 + i] = abs(row.obs[12 + i]) < traits.clip[1] ? dreport[12 + i] : V{};
            }
            late.step(sensors.delay, started, dreport, dobs);
            for (int i = SENSED; i < STUDENT_OBS; i++) dobs[i] = dreport[i];
            for (int i = 0; i < 3; i++) {
                const V asked = dobs[12 + i] + dseen[i];
                dobs[12 + i] = started ? asked : traits.follows * asked;
                dseen[i] = started ? V{} : asked - dobs[12 + i];
            }
            observe_backward(d, before, dobs, STUDENT_OBS, ds);
            ended = started;
        }
    }
};

// the mean over flights and steps, its norm at most `largest`; nothing where it is not finite. -> norm
float clip(float* gradient, size_t count, float n, float largest) {
    double squares = 0;
    for (size_t i = 0; i < count; i++) {
        gradient[i] /= n;
        squares += (double)gradient[i] * gradient[i];
    }
    const float norm = (float)std::sqrt(squares);
    const bool finite = norm * 0.f == 0.f;
    const float share = finite ? std::min(1.f, largest / (norm + 1e-6f)) : 0.f;
    for (size_t i = 0; i < count; i++) gradient[i] = finite ? share * gradient[i] : 0.f;
    return norm;
}

void segment_of(const DirectTraining& t, int block) {
    const int H = t.hidden, T = t.steps;
    const size_t tape = T * Kept::size(H), P = Student::count(H), size = POOL + H;
    scratch.reserve(tape + size + StudentGradients::scratch_size(H), 2 + StudentGradients::ARRAYS);
    Pool& pool = *(Pool*)scratch.take(size);
    float* const place = t.pool + block * size * LANES;
    std::memcpy(&pool, place, size * sizeof(V));
    uint64_t mixed = t.seed + (uint64_t)t.update * 0x9e3779b97f4a7c15ull;
    Random random(Random::split_mix(mixed) ^ ((uint64_t)block * 0xd1342543de82ef95ull));
    Drones d;
    I begins;
    const State again = begin_segment(t, pool, d, begins, random);
    Flight f{t, d, student_at(t.parameters, H), scratch.take(tape),
             {{}, pool.disturbance.delay, pool.disturbance.sigma, t.noise}, pool.traits, pool.seen, pool.state, again, pool.hidden, begins, {}, {}};
    std::memcpy(f.sensors.past, pool.past, sizeof pool.past);
    float* gradient = t.gradients + block * P;
    StudentGradients g(H, gradient, scratch);
    for (int k = 0; k < T; k++) f.step(k, pool.disturbance, random);
    f.backward(g);
    g.finish();
    t.norms[block] = clip(gradient, P, (float)T * LANES, t.max_block_norm);
    t.costs[block] = sum(f.total) / ((float)T * LANES);
    t.ends[block] = sum(f.ends) / ((float)T * LANES);

    // a flight that ended with the last step begins with the next segment
    V obs[STUDENT_OBS];
    observe(d, f.s, nullptr, STUDENT_OBS, obs);
    f.sensors.begin(f.began, obs);
    for (int i = 0; i < 3; i++) pool.seen[i] = f.began ? obs[12 + i] : pool.seen[i];
    pool.state = f.s;
    pool.disturbance.age += T * .01f;
    for (int i = 0; i < H; i++) pool.hidden[i] = f.began ? all(f.student.h0[i]) : f.hidden[i];
    std::memcpy(pool.past, f.sensors.past, sizeof pool.past);
    std::memcpy(place, &pool, size * sizeof(V));
}

// ---------------------------------------------------------------- an update of the parameters
struct Layer { size_t weight, bias; int inputs, outputs; };  // where in the parameters, and of what shape
struct Layers {
    Layer of[4];
    size_t h0;
    explicit Layers(int H) {
        const int G = 3 * H, inputs[] = {STUDENT_OBS, H, H, H}, outputs[] = {H, G, G, 4};
        size_t at = 0;
        for (int i = 0; i < 4; i++) {
            of[i] = {at, at + (size_t)inputs[i] * outputs[i], inputs[i], outputs[i]};
            at = of[i].bias + outputs[i];
        }
        h0 = at;
    }
};
size_t optimiser_size_of(int H) {
    size_t n = 2 * (size_t)H;
    for (const Layer& l : Layers(H).of) n += SoapMatrix::size(l.inputs + 1, l.outputs);
    return n;
}
// mean of the blocks' gradients, its norm at most `max_grad_norm`
std::vector<float> mean_gradient(const DirectStep& t, size_t P) {
    std::vector<float> mean(P, 0.f);
    for (int b = 0; b < t.blocks; b++)
        for (size_t i = 0; i < P; i++) mean[i] += t.gradients[b * P + i];
    clip(mean.data(), P, (float)t.blocks, t.max_grad_norm);
    return mean;
}
void step_of(const DirectStep& t) {
    const int H = t.hidden;
    const std::vector<float> gradient = mean_gradient(t, Student::count(H));
    const Layers layers(H);
    const float kept = 1.f - t.how.learning_rate * t.weight_decay;
    std::vector<float> step((size_t)(std::max(H, STUDENT_OBS) + 1) * 3 * H);
    float *memory = t.optimiser, *p = t.parameters;
    for (const Layer& l : layers.of) {  // weight and bias lie one after the other: a matrix with one more row
        SoapMatrix::at(memory, l.inputs + 1, l.outputs).step(t.how, gradient.data() + l.weight, t.update, step.data());
        for (int i = 0; i < (l.inputs + 1) * l.outputs; i++) p[l.weight + i] = kept * p[l.weight + i] - step[i];
    }
    if (!t.learn_h0) return;
    float *mean = memory, *squares = memory + H;
    for (int i = 0; i < H; i++) {
        const float g = gradient[layers.h0 + i];
        mean[i] = t.how.beta1 * mean[i] + (1.f - t.how.beta1) * g;
        squares[i] = t.how.beta2 * squares[i] + (1.f - t.how.beta2) * g * g;
        step[i] = mean[i];
    }
    SoapMatrix::adam(t.how, step.data(), squares, H, t.update);
    for (int i = 0; i < H; i++) p[layers.h0 + i] -= step[i];
}

}  // namespace

extern "C" {

// what an update is told by: mean cost a step, flights that ended (a step), median norm of the blocks' gradients, and how
// many of those were not finite
void direct_numbers(const DirectTraining* t, float* out) {
    const int blocks = t->flights / LANES;
    std::vector<float> norms;
    float cost = 0, ended = 0;
    int costs = 0;
    for (int i = 0; i < blocks; i++) {
        ended += t->ends[i] / blocks;
        if (t->norms[i] * 0.f == 0.f) norms.push_back(t->norms[i]);
        if (t->costs[i] * 0.f != 0.f) continue;
        cost += t->costs[i];
        costs++;
    }
    std::sort(norms.begin(), norms.end());
    const float nothing = NAN;
    out[0] = costs ? cost / costs : nothing;
    out[1] = ended;
    out[2] = norms.empty() ? nothing : norms[(norms.size() - 1) / 2];
    out[3] = (float)(blocks - (int)norms.size());
}
int32_t optimiser_size(int32_t hidden) { return (int32_t)optimiser_size_of(hidden); }
void direct_step(const DirectStep* t) { step_of(*t); }
int32_t pool_size(int32_t hidden) { return POOL + hidden; }
void direct_segment(const DirectTraining* t, int32_t first, int32_t last) {  // blocks first ... last - 1
    for (int block = first; block < last; block++) segment_of(*t, block);
}

#ifndef __wasm__
// As many updates as there are rates, on several threads; numbers: (updates, 4), of `direct_numbers`. A block is computed
// by whoever is free, and the gradients are added in the order of the blocks: the result is the same on one thread.
void direct_updates(DirectTraining* t, DirectStep* s, const float* rates, int32_t updates, int32_t threads, float* numbers) {
    const int blocks = t->flights / LANES;
    std::atomic<int> next{blocks}, done{0}, round{0};
    const auto work = [&] {
        for (int block; (block = next.fetch_add(1)) < blocks; done.fetch_add(1)) segment_of(*t, block);
    };
    const auto help = [&] {
        for (int seen = 0;;) {
            for (int waits = 0; round.load() == seen; waits++)
                if (waits > 200) std::this_thread::yield();
            if ((seen = round.load()) < 0) return;
            work();
        }
    };
    std::vector<std::thread> helpers;
    for (int i = 1; i < threads; i++) helpers.emplace_back(help);
    for (int i = 0; i < updates; i++) {
        done = 0;
        next = 0;
        round.fetch_add(1);
        work();
        while (done.load() < blocks) std::this_thread::yield();
        direct_numbers(t, numbers + 4 * i);
        s->how.learning_rate = rates[i];
        step_of(*s);
        t->update++;
        s->update++;
    }
    round = -1;
    for (std::thread& helper : helpers) helper.join();
}
#endif

}
