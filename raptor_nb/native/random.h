// Random numbers and disturbances of a flight: force, late sensors, noise.
#pragma once
#include "physics.h"

namespace {

// ---------------------------------------------------------------- xoshiro128+ (Blackman and Vigna), a stream a flight
struct Random {
    U s[4];
    static uint64_t split_mix(uint64_t& x) {
        uint64_t z = (x += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    explicit Random(uint64_t seed) {
        for (int i = 0; i < 4; i++)
            for (int l = 0; l < LANES; l++) s[i][l] = (uint32_t)(split_mix(seed) >> 32);
    }
    U bits() {
        U out = s[0] + s[3], t = s[1] << 9;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = (s[3] << 11) | (s[3] >> 21);
        return out;
    }
    V uniform() {  // [0, 1)
        U b = (bits() >> 9) | 0x3f800000u;
        V x;
        std::memcpy(&x, &b, sizeof x);
        return x - 1.f;
    }
    // two standard normal numbers by Box and Muller
    void normal(V& a, V& b) {
        V u = 1.f - uniform();    // (0, 1]
        V t = uniform() - .5f;    // [-.5, .5)
        V radius = sqrt(max(-2.f * log(u), 0.f));
        V x = 6.2831853f * t;
        V fold = abs(x) > 1.57079633f ? (x > 0 ? 3.14159265f - x : -3.14159265f - x) : x;
        a = radius * sine(fold);
        b = radius * sine(1.57079633f - abs(x));
    }
    static V log(V u) {  // of 2^power m, m in [1, 2): 2 artanh((m - 1) / (m + 1)) by its series
        U e;
        std::memcpy(&e, &u, sizeof e);
        U mantissa = (e & 0x007fffffu) | 0x3f800000u;
        V m;
        std::memcpy(&m, &mantissa, sizeof m);
        const V power = __builtin_convertvector((I)(e >> 23) - 127, V);
        V f = (m - 1.f) / (m + 1.f);
        V f2 = f * f;
        return .69314718f * power + 2.f * f * (1.f + f2 * (1.f / 3 + f2 * (.2f + f2 * (1.f / 7 + f2 * (1.f / 9)))));
    }
    static V sine(V x) {  // |x| <= pi / 2, by its series
        V s = x * x;
        return x * (1.f + s * (-1.f / 6 + s * (1.f / 120 + s * (-1.f / 5040 + s * (1.f / 362880)))));
    }
};

// ---------------------------------------------------------------- a force at evenly spaced times, linear between
// knots: (count, 3, stride) N, already at the right flights; step k of T
inline void force_at(const float* knots, int count, int stride, int k, int T, V* force) {
    const float when = count > 1 ? (float)k * (count - 1) / T : 0.f;
    const int knot = (int)when;
    const float share = when - knot;
    for (int i = 0; i < 3; i++) {
        const float* f = knots + ((size_t)knot * 3 + i) * stride;
        force[i] = count > 1 ? (1.f - share) * load(f) + share * load(f + 3 * stride) : load(f);
    }
}

// ---------------------------------------------------------------- sensors that are 0, 1 or 2 steps late, and noisy
struct Sensors {
    V past[2][SENSED];  // one and two steps ago
    V delay;            // steps
    V sigma;            // m: noise of the position
    const float* noise; // (18) scale of each value's noise by sigma

    void begin(I began, const V* obs) {  // at the first step of a flight nothing older exists
        if (!any(began)) return;
        for (int i = 0; i < SENSED; i++)
            for (auto& older : past) older[i] = began ? obs[i] : older[i];
    }
    // obs: what is there now; out: what is reported
    void read(const V* obs, I began, Random& random, V* out) {
        begin(began, obs);
        for (int i = 0; i < SENSED; i++) {
            const V now = obs[i];
            out[i] = delay < .5f ? now : delay < 1.5f ? past[0][i] : past[1][i];
            past[1][i] = past[0][i];
            past[0][i] = now;
        }
        for (int i = 0; i < SENSED; i += 2) {
            V a, b;
            random.normal(a, b);
            out[i] += noise[i] * sigma * a;
            out[i + 1] += noise[i + 1] * sigma * b;
        }
    }
};

// The way back: what a report asks of the state that it shows, which is one of now or of one or two steps earlier
struct SensorsBackward {
    V asked[2][SENSED] = {};  // of the states one and two steps earlier
    // dreport (18) of this step -> dobs (18) of the state of this step
    void step(V delay, I began, const V* dreport, V* dobs) {
        const I now = (delay < .5f) | began, by_one = ~now & (delay < 1.5f), by_two = ~now & (delay > 1.5f);
        for (int i = 0; i < SENSED; i++) {
            const V x = dreport[i], first = asked[0][i], second = asked[1][i];
            dobs[i] = (now ? x : V{}) + first;
            asked[0][i] = (by_one ? x : V{}) + second;
            asked[1][i] = by_two ? x : V{};
        }
        if (!any(began)) return;
        for (int i = 0; i < SENSED; i++) {  // what would be asked of states before the first falls on this one
            dobs[i] += began ? asked[0][i] + asked[1][i] : V{};
            asked[0][i] = began ? V{} : asked[0][i];
            asked[1][i] = began ? V{} : asked[1][i];
        }
    }
};

}  // namespace
