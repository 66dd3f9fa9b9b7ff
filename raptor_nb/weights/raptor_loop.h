/* The loop of a flight stack around student.h, made by raptor_nb. C99, no library.
   Frames: FLU (x forward, y left, z up), quaternions w, x, y, z from body to world;
   m, m/s, rad/s; motors front-right, back-right, back-left, front-left. */
#ifndef RAPTOR_LOOP_H
#define RAPTOR_LOOP_H

#ifndef RAPTOR_POLICY_H
#include "student.h"
#endif
#if RAPTOR_OBSERVATIONS != 22 || RAPTOR_ACTIONS != 4
#error "raptor_loop.h is for policies of 22 observations and 4 actions"
#endif
#define RAPTOR_STEP_NS 10000000u /* of the policy: 10 ms */

/* What raptor_loop_step gives, added up */
enum { RAPTOR_MOVED = 1, RAPTOR_REFUSED = 2, RAPTOR_BACKWARDS = 4, RAPTOR_LATE = 8 };

typedef struct {             /* what the policy sees, relative to the target */
    float position[3];
    float orientation[4];
    float velocity[3];
    float rates[3];
} raptor_seen;

typedef struct {             /* how a flight stack flies */
    uint32_t calls;          /* a native step every so many; 0: by the clock alone */
    float max_position;      /* m, on each axis; 0: no limit */
    float max_velocity;      /* m/s, on each axis; 0: no limit */
    float first_action;      /* previous action after a reset */
    int keeps_action;        /* 1: after a reset it is the last command instead */
    unsigned char motors[4]; /* whose action each of its motors gets */
} raptor_stack;

static inline raptor_stack raptor_stack_of(uint32_t calls, float position, float velocity, float first) {
    raptor_stack stack;
    int i;
    stack.calls = calls;
    stack.max_position = position;
    stack.max_velocity = velocity;
    stack.first_action = first;
    stack.keeps_action = 0;
    for (i = 0; i < 4; i++) stack.motors[i] = (unsigned char)i;
    return stack;
}

/* hertz: IMU_GYRO_RATEMAX. Motors: front-right, back-left, front-left, back-right */
static inline raptor_stack raptor_px4(uint32_t hertz) {
    raptor_stack stack = raptor_stack_of(hertz / 100u, 0.5f, 1.0f, 0.0f);
    stack.motors[1] = 2;
    stack.motors[2] = 3;
    stack.motors[3] = 1;
    return stack;
}

/* Called at 1 kHz. Motors as the policy has them */
static inline raptor_stack raptor_crazyflie(void) {
    raptor_stack stack = raptor_stack_of(10u, 0.5f, 2.0f, 0.0f);
    stack.keeps_action = 1;
    return stack;
}

/* By the clock. Motors: back-right, front-right, back-left, front-left */
static inline raptor_stack raptor_betaflight(void) {
    raptor_stack stack = raptor_stack_of(0u, 0.6f, 2.0f, -1.0f);
    stack.motors[0] = 1;
    stack.motors[1] = 0;
    return stack;
}

static inline float raptor_clip(float x, float most) {
    if (x > most) return most;
    return x < -most ? -most : x;
}

/* Actions in the policy's order -> 0 ... 1 in the stack's */
static inline void raptor_motors(const raptor_stack *stack, const float action[4], float motors[4]) {
    int i;
    for (i = 0; i < 4; i++)
        motors[i] = 0.5f * raptor_clip(action[stack->motors[i]], 1.0f) + 0.5f;
}

/* FRD <-> FLU, NED <-> NWU; out may be in */
static inline void raptor_flip(const float in[3], float out[3]) {
    out[0] = in[0];
    out[1] = -in[1];
    out[2] = -in[2];
}

/* FRD to NED <-> FLU to NWU */
static inline void raptor_flip_quaternion(const float in[4], float out[4]) {
    out[0] = in[0];
    raptor_flip(in + 1, out + 1);
}

static inline int raptor_believable_all(const float *x, int n) {
    int i;
    for (i = 0; i < n; i++) if (!raptor_believable(x[i])) return 0;
    return 1;
}

/* Cosine and sine of x: turn[0], turn[1] */
static inline void raptor_turn(float x, float turn[2]) {
    int32_t k = (int32_t)(x * 0.636619772f + (x < 0.0f ? -0.5f : 0.5f));
    float r = (x - (float)k * 1.5703125f) - (float)k * 4.83826792e-4f, s = r * r;
    float c = 1.0f + s * (-0.5f + s * (0.0416666667f + s * (-0.00138888889f
        + s * 2.48015873e-5f)));
    r *= 1.0f + s * (-0.166666667f + s * (0.00833333333f + s * (-1.98412698e-4f
        + s * 2.75573192e-6f)));
    turn[0] = k & 1 ? r : c;
    turn[1] = k & 1 ? c : r;
    if ((k + 1) & 2) turn[0] = -turn[0];
    if (k & 2) turn[1] = -turn[1];
}

/* 1 / sqrt(x), x > 0: a guess from the bits, and Newton's method */
static inline float raptor_inverse_root(float x) {
    union { float value; uint32_t bits; } y;
    int i;
    y.value = x;
    y.bits = 0x5f375a86u - (y.bits >> 1);
    for (i = 0; i < 3; i++) y.value *= 1.5f - 0.5f * x * y.value * y.value;
    return y.value;
}

typedef struct {
    float position[3];       /* m, world */
    float velocity[3];       /* m/s, world */
    float half[2];           /* cosine and sine of half the yaw */
    uint64_t at_ns;          /* when it was set */
    int holds;               /* 1: it is where the drone was */
} raptor_target;

/* Stay where we are, with this heading */
static inline void raptor_target_hold(raptor_target *target, const float position[3], const float orientation[4]) {
    float w = orientation[0], z = orientation[3], n = w * w + z * z, scale;
    int i;
    for (i = 0; i < 3; i++) target->velocity[i] = 0.0f;
    target->holds = 1;
    if (raptor_believable_all(position, 3))
        for (i = 0; i < 3; i++) target->position[i] = position[i];
    target->half[0] = 1.0f;
    target->half[1] = 0.0f;
    if (!raptor_believable(n) || n < 1e-6f) return; /* on its back: no heading */
    scale = raptor_inverse_root(n);
    target->half[0] = w * scale;
    target->half[1] = z * scale;
}

/* A setpoint. yaw: rad, positive to the left.
   Returns 0; or 1 if a number is not believable, and then nothing changes */
static inline int raptor_target_set(raptor_target *target, uint64_t ns, const float position[3], const float velocity[3], float yaw) {
    int i;
    if (!raptor_believable_all(position, 3) || !raptor_believable_all(velocity, 3)
        || !raptor_believable(yaw) || yaw > 1000.0f || yaw < -1000.0f) return 1;
    for (i = 0; i < 3; i++) target->position[i] = position[i];
    for (i = 0; i < 3; i++) target->velocity[i] = velocity[i];
    raptor_turn(0.5f * yaw, target->half);
    target->at_ns = ns;
    target->holds = 0;
    return 0;
}

/* At every call: after timeout_ns (200 ms) without a setpoint, hold. Returns whether it holds */
static inline int raptor_target_check(raptor_target *target, uint64_t ns, uint64_t timeout_ns, const float position[3], const float orientation[4]) {
    if (target->holds) return 1;
    if (ns < target->at_ns) target->at_ns = ns; /* the clock went backwards */
    if (ns - target->at_ns <= timeout_ns) return 0;
    raptor_target_hold(target, position, orientation);
    return 1;
}

typedef struct {
    float number[2];         /* s, times the target's velocity; s^2, its acceleration */
    float rate;              /* 1/s, by which both follow the error; 0: fixed */
    float square[2];         /* mean squares of velocity and acceleration */
    float seconds;           /* that these are of */
} raptor_lead;

static inline void raptor_lead_init(raptor_lead *lead, float time, float acceleration, float rate) {
    lead->number[0] = time;
    lead->number[1] = acceleration;
    lead->rate = rate;
    lead->square[0] = lead->square[1] = lead->seconds = 0.0f;
}

/* position: of the drone, m. dt: s since the last call */
static inline void raptor_lead_learn(raptor_lead *lead, const raptor_target *target, const float acceleration[3], const float position[3], float dt) {
    const float low[2] = {-0.15f, -0.05f}, high[2] = {0.15f, 0.12f};
    int i, k;
    lead->seconds += lead->seconds < 10.0f ? dt : 0.0f;
    for (k = 0; k < 2; k++) {
        const float *along = k ? acceleration : target->velocity;
        float now = 0.0f, slope = 0.0f, most, found;
        for (i = 0; i < 3; i++) {
            now += along[i] * along[i];
            slope += along[i] * raptor_clip(position[i] - target->position[i], 0.5f);
        }
        lead->square[k] += (now - lead->square[k]) * dt / lead->seconds;
        most = lead->square[k] > now ? lead->square[k] : now;
        if (most < 0.01f) most = 0.01f;
        found = lead->number[k] - lead->rate * dt * slope / most;
        lead->number[k] = found < low[k] ? low[k] : found > high[k] ? high[k] : found;
    }
}

/* The target as raptor_see is to see it. Returns 0; or 1 if a number
   is not believable or dt is not within 0 to 0.1 s: then it is the target itself */
static inline int raptor_lead_target(raptor_lead *lead, const raptor_target *target, const float acceleration[3], const float jerk[3], const float position[3], float dt, raptor_target *shown) {
    int i;
    *shown = *target;
    if (target->holds) return 0;
    if (!raptor_believable_all(acceleration, 3) || !raptor_believable_all(jerk, 3)
        || !raptor_believable_all(position, 3) || !(dt >= 0.0f && dt <= 0.1f)) return 1;
    if (lead->rate > 0.0f && dt > 0.0f)
        raptor_lead_learn(lead, target, acceleration, position, dt);
    for (i = 0; i < 3; i++) {
        const float a = acceleration[i], v = target->velocity[i];
        shown->position[i] += lead->number[0] * v + lead->number[1] * a;
        shown->velocity[i] += lead->number[0] * a + lead->number[1] * jerk[i];
    }
    return 0;
}

/* Pose and target -> what the policy sees. Returns 0; or 1 if a number is not
   believable, and then raptor_loop_step refuses what is seen */
static inline int raptor_see(const raptor_stack *stack, const raptor_target *target, const float position[3], const float orientation[4], const float velocity[3], const float rates[3], raptor_seen *seen) {
    float c = target->half[0], s = target->half[1], most;
    const float *q = orientation;
    float cosine = c * c - s * s, sine = 2.0f * c * s, p[3], v[3];
    int i;
    for (i = 0; i < 4; i++) seen->orientation[i] = 0.0f;
    for (i = 0; i < 3; i++)
        seen->position[i] = seen->velocity[i] = seen->rates[i] = 0.0f;
    if (!raptor_believable_all(position, 3) || !raptor_believable_all(velocity, 3)
        || !raptor_believable_all(rates, 3) || !raptor_believable_all(q, 4)) return 1;
    for (i = 0; i < 3; i++) p[i] = position[i] - target->position[i];
    for (i = 0; i < 3; i++) v[i] = velocity[i] - target->velocity[i];
    seen->position[0] = cosine * p[0] + sine * p[1];
    seen->position[1] = cosine * p[1] - sine * p[0];
    seen->position[2] = p[2];
    seen->velocity[0] = cosine * v[0] + sine * v[1];
    seen->velocity[1] = cosine * v[1] - sine * v[0];
    seen->velocity[2] = v[2];
    most = stack->max_position;
    if (most > 0.0f)
        for (i = 0; i < 3; i++)
            seen->position[i] = raptor_clip(seen->position[i], most);
    most = stack->max_velocity;
    if (most > 0.0f)
        for (i = 0; i < 3; i++)
            seen->velocity[i] = raptor_clip(seen->velocity[i], most);
    seen->orientation[0] = c * q[0] + s * q[3];
    seen->orientation[1] = c * q[1] + s * q[2];
    seen->orientation[2] = c * q[2] - s * q[1];
    seen->orientation[3] = c * q[3] - s * q[0];
    for (i = 0; i < 3; i++) seen->rates[i] = rates[i];
    return 0;
}

/* Returns 1 if the orientation is no rotation */
static inline int raptor_observe(const raptor_seen *seen, const float previous[4], float o[RAPTOR_OBSERVATIONS]) {
    float w = seen->orientation[0], x = seen->orientation[1];
    float y = seen->orientation[2], z = seen->orientation[3];
    float n = w * w + x * x + y * y + z * z;
    int i;
    if (!raptor_believable(n) || n < 0.9f || n > 1.1f) return 1;
    for (i = 0; i < 3; i++) {
        o[i] = seen->position[i];
        o[12 + i] = seen->velocity[i];
        o[15 + i] = seen->rates[i];
    }
    o[3] = 1.0f - 2.0f * y * y - 2.0f * z * z;
    o[4] = 2.0f * x * y - 2.0f * w * z;
    o[5] = 2.0f * x * z + 2.0f * w * y;
    o[6] = 2.0f * x * y + 2.0f * w * z;
    o[7] = 1.0f - 2.0f * x * x - 2.0f * z * z;
    o[8] = 2.0f * y * z - 2.0f * w * x;
    o[9] = 2.0f * x * z - 2.0f * w * y;
    o[10] = 2.0f * y * z + 2.0f * w * x;
    o[11] = 1.0f - 2.0f * x * x - 2.0f * y * y;
    for (i = 0; i < 4; i++) o[18 + i] = previous[i];
    return 0;
}

typedef struct {
    raptor_state memory;     /* the hidden state */
    float output[4];         /* the last command, -1 ... 1 */
    float mean[4];           /* of the commands since the memory moved */
    uint32_t since;          /* how many these are */
    uint32_t calls;          /* since the reset, without those that were refused */
    uint64_t last_ns;        /* the last call */
    uint64_t moved_ns;       /* the last native step */
    int runs;                /* 0 until the first call after a reset */
} raptor_loop;

/* At the start of a flight */
static inline void raptor_loop_reset(raptor_loop *loop, const raptor_stack *stack) {
    int i;
    raptor_reset(&loop->memory);
    if (!stack->keeps_action)
        for (i = 0; i < 4; i++) loop->output[i] = stack->first_action;
    for (i = 0; i < 4; i++) loop->mean[i] = 0.0f;
    loop->since = loop->calls = 0;
    loop->last_ns = loop->moved_ns = 0;
    loop->runs = 0;
}

/* Once, before the first reset */
static inline void raptor_loop_init(raptor_loop *loop) {
    raptor_stack stack = raptor_stack_of(1u, 0.0f, 0.0f, 0.0f);
    raptor_loop_reset(loop, &stack);
}

static inline int raptor_loop_clock(raptor_loop *loop, uint64_t ns) {
    int said = 0;
    if (!loop->runs) loop->last_ns = loop->moved_ns = ns;
    loop->runs = 1;
    if (ns < loop->last_ns) {
        loop->moved_ns += ns - loop->last_ns;
        said = RAPTOR_BACKWARDS;
    } else if (ns - loop->last_ns > 2u * RAPTOR_STEP_NS) said = RAPTOR_LATE;
    loop->last_ns = ns;
    return said;
}

/* One call. calls: of the stack. previous: what was commanded last; loop->output unless the stack changed it.
   Returns what happened, added up. Refused: the action is the last one */
static inline int raptor_loop_step(raptor_loop *loop, uint32_t calls, uint64_t ns, const raptor_seen *seen, const float previous[4], float action[4]) {
    raptor_state memory = loop->memory;
    float o[RAPTOR_OBSERVATIONS], out[4], n = (float)loop->since;
    int said = raptor_loop_clock(loop, ns), i;
    int bad = !raptor_believable_all(previous, 4);
    if (!bad) {
        for (i = 0; i < 4; i++) {
            float sum = loop->since ? loop->mean[i] * n + previous[i] : previous[i];
            loop->mean[i] = loop->since ? sum / (n + 1.0f) : sum;
        }
        loop->since++;
    }
    if (bad || raptor_observe(seen, loop->mean, o) || raptor_step(&memory, o, out)) {
        for (i = 0; i < 4; i++) action[i] = loop->output[i];
        return said | RAPTOR_REFUSED;
    }
    if (!loop->calls || ns - loop->moved_ns >= RAPTOR_STEP_NS
        || (calls && loop->calls % calls == 0)) {
        loop->memory = memory;
        loop->moved_ns = ns;
        loop->since = 0;
        said |= RAPTOR_MOVED;
    }
    loop->calls++;
    for (i = 0; i < 4; i++) action[i] = loop->output[i] = raptor_clip(out[i], 1.0f);
    return said;
}

#if defined(RAPTOR_L2F_DEFINE) && !defined(RAPTOR_L2F)
#define RAPTOR_L2F
#endif
#if defined(RAPTOR_L2F) && !defined(RL_TOOLS_INFERENCE_APPLICATIONS_L2F_C_INTERFACE_H)
#define RL_TOOLS_INFERENCE_APPLICATIONS_L2F_C_INTERFACE_H
#define RL_TOOLS_INFERENCE_EXECUTOR_C_INTERFACE_H
#define RL_TOOLS_INTERFACE_APPLICATIONS_L2F_ACTION_DIM 4
#include <stdbool.h>
#ifdef __cplusplus
extern "C" {
#endif
typedef uint64_t RLtoolsInferenceTimestamp;
typedef struct { bool OK:1; float MAGNITUDE; } RLtoolsInferenceExecutorJitterStatus;
typedef struct { bool OK:1; float MAGNITUDE; } RLtoolsInferenceExecutorBiasStatus;
typedef enum {
    RL_TOOLS_INFERENCE_EXECUTOR_STATUS_SOURCE_OBSERVATION,
    RL_TOOLS_INFERENCE_EXECUTOR_STATUS_SOURCE_CONTROL
} RLtoolsInferenceExecutorStatusSource;
typedef enum {
    RL_TOOLS_INFERENCE_EXECUTOR_STATUS_STEP_TYPE_INTERMEDIATE,
    RL_TOOLS_INFERENCE_EXECUTOR_STATUS_STEP_TYPE_NATIVE
} RLtoolsInferenceExecutorStatusStepType;
typedef struct {
    bool reset:1;
    bool time_diff:1;
    bool force_sync:1;
} RLtoolsInferenceExecutorControlReasons;
typedef struct {
    bool OK:1;
    bool TIMESTAMP_INVALID:1;
    bool LAST_CONTROL_TIMESTAMP_GREATER_THAN_LAST_OBSERVATION_TIMESTAMP:1;
    RLtoolsInferenceExecutorStatusSource source:1;
    RLtoolsInferenceExecutorStatusStepType step_type:1;
    RLtoolsInferenceExecutorControlReasons control_reasons_intermediate;
    RLtoolsInferenceExecutorControlReasons control_reasons_native;
    RLtoolsInferenceExecutorJitterStatus timing_jitter;
    RLtoolsInferenceExecutorBiasStatus timing_bias;
} RLtoolsInferenceExecutorStatus;
typedef struct {
    float position[3], orientation[4], linear_velocity[3], angular_velocity[3];
    float previous_action[4];
} RLtoolsInferenceApplicationsL2FObservation;
typedef struct { float action[4]; } RLtoolsInferenceApplicationsL2FAction;
void rl_tools_inference_executor_status_message(
    RLtoolsInferenceExecutorStatus status, char *target, int target_size);
void rl_tools_inference_applications_l2f_init(void);
void rl_tools_inference_applications_l2f_reset(void);
float rl_tools_inference_applications_l2f_test(
    RLtoolsInferenceApplicationsL2FAction *action);
RLtoolsInferenceExecutorStatus rl_tools_inference_applications_l2f_control(
    uint64_t nanoseconds, RLtoolsInferenceApplicationsL2FObservation *observation,
    RLtoolsInferenceApplicationsL2FAction *action);
const char *rl_tools_inference_applications_l2f_checkpoint_name(void);
#ifdef __cplusplus
}
#endif
#endif

#ifdef RAPTOR_L2F_DEFINE
#ifndef RAPTOR_INTERVAL_NS
#define RAPTOR_INTERVAL_NS 1000000
#endif
#ifndef RAPTOR_CALLS
#define RAPTOR_CALLS 10
#endif
#ifndef RAPTOR_NAME
#define RAPTOR_NAME "raptor_nb"
#endif

typedef struct {
    uint32_t interval[100]; /* ns */
    uint32_t next, full, off;
    uint64_t sum;
} raptor_timing;

static inline int raptor_off(uint32_t ns, float expected) {
    return (float)ns > expected * 1.2f || (float)ns < expected * 0.8f;
}

static inline void raptor_timing_add(raptor_timing *t, uint64_t ns, float expected) {
    uint32_t now = ns > 0xffffffffu ? 0xffffffffu : (uint32_t)ns;
    if (t->full) {
        t->sum -= t->interval[t->next];
        t->off -= (uint32_t)raptor_off(t->interval[t->next], expected);
    }
    t->interval[t->next] = now;
    t->sum += now;
    t->off += (uint32_t)raptor_off(now, expected);
    t->next++;
    if (t->next < 100u) return;
    t->next = 0;
    t->full = 1;
}

static inline void raptor_timing_status(const raptor_timing *t, float expected, RLtoolsInferenceExecutorStatus *status) {
    float bias = t->full ? (float)t->sum / 100.0f / expected : 0.0f;
    uint32_t i = 0;
    status->timing_bias.MAGNITUDE = bias;
    status->timing_bias.OK = !t->full || (bias <= 1.2f && bias >= 0.8f);
    status->timing_jitter.MAGNITUDE = 0.0f;
    status->timing_jitter.OK = !t->full || !t->off;
    if (status->timing_jitter.OK) return;
    while (!raptor_off(t->interval[i], expected)) i++;
    status->timing_jitter.MAGNITUDE = (float)t->interval[i] / expected;
}

static raptor_loop raptor_l2f_loop;
static raptor_timing raptor_l2f_timing[2]; /* in-between, native */

void rl_tools_inference_applications_l2f_reset(void) {
    raptor_stack stack = raptor_stack_of(RAPTOR_CALLS, 0.0f, 0.0f, 0.0f);
    int i;
    stack.keeps_action = 1;
    raptor_loop_reset(&raptor_l2f_loop, &stack);
    for (i = 0; i < 2; i++) {
        raptor_timing *t = &raptor_l2f_timing[i];
        t->next = t->full = t->off = 0;
        t->sum = 0;
    }
}

void rl_tools_inference_applications_l2f_init(void) {
    raptor_loop_init(&raptor_l2f_loop);
    rl_tools_inference_applications_l2f_reset();
}

const char *rl_tools_inference_applications_l2f_checkpoint_name(void) {
    return RAPTOR_NAME;
}

static inline void raptor_l2f_reasons(RLtoolsInferenceExecutorStatus *status, int said, uint32_t calls, int first, uint64_t since_moved) {
    int native = (said & RAPTOR_MOVED) != 0;
    status->source = RL_TOOLS_INFERENCE_EXECUTOR_STATUS_SOURCE_CONTROL;
    status->step_type = native ? RL_TOOLS_INFERENCE_EXECUTOR_STATUS_STEP_TYPE_NATIVE
        : RL_TOOLS_INFERENCE_EXECUTOR_STATUS_STEP_TYPE_INTERMEDIATE;
    status->control_reasons_intermediate.force_sync = 1;
    status->control_reasons_intermediate.reset = first;
    status->control_reasons_native.reset = first;
    status->control_reasons_native.time_diff = native && since_moved >= RAPTOR_STEP_NS;
    status->control_reasons_native.force_sync =
        native && RAPTOR_CALLS > 0 && calls % (RAPTOR_CALLS ? RAPTOR_CALLS : 1) == 0;
}

RLtoolsInferenceExecutorStatus rl_tools_inference_applications_l2f_control(
    uint64_t nanoseconds, RLtoolsInferenceApplicationsL2FObservation *observation,
    RLtoolsInferenceApplicationsL2FAction *action) {
    static RLtoolsInferenceExecutorStatus nothing;
    RLtoolsInferenceExecutorStatus status = nothing;
    raptor_loop *loop = &raptor_l2f_loop;
    uint64_t since_last = nanoseconds - loop->last_ns;
    uint64_t since_moved = nanoseconds - loop->moved_ns;
    uint32_t calls = loop->calls;
    raptor_seen seen;
    int said, i, first = !loop->runs, native;
    for (i = 0; i < 3; i++) {
        seen.position[i] = observation->position[i];
        seen.velocity[i] = observation->linear_velocity[i];
        seen.rates[i] = observation->angular_velocity[i];
    }
    for (i = 0; i < 4; i++) seen.orientation[i] = observation->orientation[i];
    said = raptor_loop_step(loop, RAPTOR_CALLS, nanoseconds, &seen,
                            observation->previous_action, action->action);
    status.OK = !(said & (RAPTOR_REFUSED | RAPTOR_BACKWARDS));
    status.TIMESTAMP_INVALID = (said & RAPTOR_BACKWARDS) != 0;
    if (said & RAPTOR_REFUSED) return status;
    raptor_l2f_reasons(&status, said, calls, first, since_moved);
    native = (said & RAPTOR_MOVED) != 0;
    if (!first && !(said & RAPTOR_BACKWARDS)) {
        raptor_timing_add(&raptor_l2f_timing[0], since_last, RAPTOR_INTERVAL_NS);
        if (native)
            raptor_timing_add(&raptor_l2f_timing[1], since_moved, RAPTOR_STEP_NS);
    }
    raptor_timing_status(&raptor_l2f_timing[native],
                         native ? RAPTOR_STEP_NS : RAPTOR_INTERVAL_NS, &status);
    if (!status.timing_jitter.OK || !status.timing_bias.OK) status.OK = 0;
    return status;
}

float rl_tools_inference_applications_l2f_test(
    RLtoolsInferenceApplicationsL2FAction *action) {
    raptor_state state;
    float observation[RAPTOR_OBSERVATIONS];
    uint32_t seed = 1u;
    int i;
    raptor_reset(&state);
    for (i = 0; i < RAPTOR_OBSERVATIONS; i++) {
        seed = seed * 1664525u + 1013904223u;
        observation[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
    }
    if (raptor_step(&state, observation, action->action)) return 1e9f;
    return raptor_self_test();
}

static void raptor_say(char *target, int size, const char *what) {
    int at = 0;
    while (at < size - 1 && target[at]) at++;
    while (at < size - 1 && *what) target[at++] = *what++;
    if (size > 0) target[at] = 0;
}

static void raptor_say_number(char *target, int size, float x) { /* as 12.345 */
    char text[16];
    int at = 15, digits = 0;
    uint32_t n = 4000000000u;
    if (x < 4e6f) n = (uint32_t)(x * 1000.0f + 0.5f);
    text[at] = 0;
    while (digits < 4 || n) {
        text[--at] = (char)('0' + n % 10u);
        n /= 10u;
        if (++digits == 3) text[--at] = '.';
    }
    raptor_say(target, size, text + at);
}

void rl_tools_inference_executor_status_message(
    RLtoolsInferenceExecutorStatus status, char *target, int target_size) {
    int controlled = status.source
        == RL_TOOLS_INFERENCE_EXECUTOR_STATUS_SOURCE_CONTROL;
    int native = status.step_type
        == RL_TOOLS_INFERENCE_EXECUTOR_STATUS_STEP_TYPE_NATIVE;
    if (target_size > 0) target[0] = 0;
    raptor_say(target, target_size, status.OK ? "OK" : "PROBLEM");
    if (controlled) raptor_say(target, target_size, " CONTROL");
    if (controlled)
        raptor_say(target, target_size, native ? " NATIVE" : " INTERMEDIATE");
    if (status.OK) return;
    if (status.TIMESTAMP_INVALID) raptor_say(target, target_size, " TIMESTAMP_INVALID");
    else if (!controlled) raptor_say(target, target_size, " REFUSED");
    if (!controlled) return;
    if (!status.timing_jitter.OK) {
        raptor_say(target, target_size, " TIMING_ISSUE JITTER ");
        raptor_say_number(target, target_size, status.timing_jitter.MAGNITUDE);
    }
    if (!status.timing_bias.OK) {
        raptor_say(target, target_size, " TIMING_ISSUE BIAS ");
        raptor_say_number(target, target_size, status.timing_bias.MAGNITUDE);
    }
}
#endif

#endif
