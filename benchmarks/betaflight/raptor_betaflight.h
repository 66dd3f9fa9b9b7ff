/* What Betaflight's mixer calls: once each turn of its loop, after its own mixing. */
#ifndef RAPTOR_BETAFLIGHT_H
#define RAPTOR_BETAFLIGHT_H

#include <stdint.h>

/* Overwrites the four motors while the drone is armed and the switch is on.
   now: microseconds of the firmware's clock; low, high: a motor's range. */
void raptorMix(uint32_t now, float *motors, float low, float high);

#endif
