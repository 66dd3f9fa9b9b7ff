/* The policy in Betaflight: receiver, gyro and attitude in, four motors out.

   Receiver, 1000 to 2000 us, 1500 is zero (counted from 1; the first four are the sticks):
     6          switch: above 1700 the policy flies, if the drone is armed (switch 5)
     7, 8, 9    position minus the target's, RANGE_POSITION m at 500 us, world, z up
     10, 11, 12 velocity minus the target's, RANGE_VELOCITY m/s at 500 us
     13         yaw in that world, pi at 500 us, anticlockwise
   Gyro and attitude are the firmware's own, without its yaw. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "platform.h"

#include "common/axis.h"
#include "common/maths.h"
#include "fc/rc_controls.h"
#include "fc/runtime_config.h"
#include "flight/failsafe.h"
#include "flight/imu.h"
#include "rx/rx.h"
#include "sensors/gyro.h"

#include "raptor_loop.h"
#include "raptor_betaflight.h"
#include "raptor_log.h"

#define RANGE_POSITION 0.6f
#define RANGE_VELOCITY 2.0f
#define SWITCH 1700.0f

static raptor_loop loop;
static raptor_stack stack;
static raptor_target origin; /* the receiver's position is relative to the target already */
static bool flying = false;

static float channel(int number, float range)
{
    const float value = (rcData[number - 1] - 1500.0f) / 500.0f * range;
    return constrainf(value, -range, range);
}

/* The firmware's attitude, turned about the vertical to the receiver's yaw */
static void heading(float out[4])
{
    quaternion_t q;
    getQuaternion(&q);
    const float own = atan2f(2.0f * (q.w * q.z + q.x * q.y),
                             1.0f - 2.0f * (q.y * q.y + q.z * q.z));
    const float half = 0.5f * (channel(13, M_PIf) - own), c = cosf(half), s = sinf(half);
    out[0] = c * q.w - s * q.z;
    out[1] = c * q.x - s * q.y;
    out[2] = c * q.y + s * q.x;
    out[3] = c * q.z + s * q.w;
}

/* Of the firmware's clock, which starts again at 0 after 71 minutes */
static uint64_t nanoseconds(uint32_t now)
{
    static uint64_t time;
    static uint32_t last;
    time += (uint32_t)(now - last) * 1000ull;
    last = now;
    return time;
}

static void begin(void)
{
    const float zero[3] = {0.0f, 0.0f, 0.0f};
    stack = raptor_betaflight();
    raptor_loop_init(&loop);
    raptor_loop_reset(&loop, &stack);
    raptor_target_set(&origin, 0, zero, zero, 0.0f);
}

void raptorMix(uint32_t now, float *motors, float low, float high)
{
    const uint64_t ns = nanoseconds(now);
    const bool wanted = ARMING_FLAG(ARMED) && rcData[5] > SWITCH && !failsafeIsActive();
    if (wanted && !flying) begin();
    if (!wanted && flying) raptorLogFlush();
    flying = wanted;
    if (!flying) return;
    float position[3], velocity[3], rates[3], q[4], action[4], share[4];
    for (int i = 0; i < 3; i++) {
        position[i] = channel(7 + i, RANGE_POSITION);
        velocity[i] = channel(10 + i, RANGE_VELOCITY);
        rates[i] = DEGREES_TO_RADIANS(gyro.gyroADCf[i]);
    }
    heading(q);
    raptor_seen seen;
    raptor_see(&stack, &origin, position, q, velocity, rates, &seen);
    const int said = raptor_loop_step(&loop, stack.calls, ns, &seen, loop.output, action);
    raptor_motors(&stack, action, share);
    for (int i = 0; i < 4; i++) motors[i] = low + share[i] * (high - low);
    raptorLog(now, said, &seen, action);
}
