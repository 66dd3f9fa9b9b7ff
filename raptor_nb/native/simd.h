// Sixteen float32 numbers in a register, one a flight: the vector extensions of GCC and clang, no library.
// A function of one number is written once and computes sixteen flights side by side.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

constexpr int LANES = 16;
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));  // a mask: -1 where true, 0 where false
typedef uint32_t U __attribute__((vector_size(4 * LANES)));

inline V all(float x) { return x - V{}; }
inline V all(V x) { return x; }
inline V load(const float* p) { V x; std::memcpy(&x, p, sizeof x); return x; }
inline void store(float* p, V x) { std::memcpy(p, &x, sizeof x); }
inline V abs(V x) { return x < 0 ? -x : x; }
inline V max(V x, float y) { return x > y ? x : all(y); }
inline V min(V x, float y) { return x < y ? x : all(y); }
inline V max(V x, V y) { return x > y ? x : y; }
inline V min(V x, V y) { return x < y ? x : y; }
inline V clamp(V x, float low, float high) { return min(max(x, low), high); }
inline V clamp(V x, V low, V high) { return min(max(x, low), high); }
inline V relu(V x) { return max(x, 0.f); }
inline V square(V x) { return x * x; }
inline I true_everywhere() { return V{} == V{}; }
inline bool any(I mask) {
    int64_t parts[LANES / 2], out = 0;
    std::memcpy(parts, &mask, sizeof mask);
    for (int64_t part : parts) out |= part;
    return out != 0;
}
inline I is_finite(V x) { return x * 0.f == 0.f; }

// f(0), f(1), ... f(N - 1), without a loop: arrays that only such code uses stay in registers
template <class F, int... J> inline void unrolled(F f, std::integer_sequence<int, J...>) { (f(J), ...); }
template <int N, class F> inline void unrolled(F f) { unrolled(f, std::make_integer_sequence<int, N>{}); }

inline V sqrt(V x) {
    V y;
    for (int l = 0; l < LANES; l++) y[l] = __builtin_sqrtf(x[l]);
    return y;
}
inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline float sum(V x) {
    float total = 0;
    for (int l = 0; l < LANES; l++) total += x[l];
    return total;
}

// ---------------------------------------------------------------- elementary functions
// tanh as a ratio of polynomials, exact to the last two bits; beyond +-7.9 it is +-1 in float32.
// Coefficients: Eigen, ptanh (MPL-2.0).
inline V tanh(V x) {
    x = clamp(x, -7.90531110763549805f, 7.90531110763549805f);
    V s = x * x;
    V p = x * (4.89352455891786e-03f + s * (6.37261928875436e-04f + s * (1.48572235717979e-05f
        + s * (5.12229709037114e-08f + s * (-8.60467152213735e-11f + s * (2.00018790482477e-13f
        + s * -2.76076847742355e-16f))))));
    V q = 4.89352518554385e-03f + s * (2.26843463243900e-03f + s * (1.18534705686654e-04f
        + s * 1.19825839466702e-06f));
    return p / q;
}
inline V sigmoid(V x) { return .5f + .5f * tanh(.5f * x); }

// 2^n e^r with |r| < ln 2 / 2; e^r by its series to the last bit or two. Coefficients: Cephes, expf.
inline V exp(V x) {
    x = clamp(x, -87.f, 88.f);
    I n = __builtin_convertvector(x * 1.44269504088896341f + (x < 0 ? all(-.5f) : all(.5f)), I);
    V f = __builtin_convertvector(n, V);
    V r = (x - f * .693359375f) + f * 2.12194440e-4f;
    V p = 1.f + r * (1.f + r * (.5f + r * (1.6666665459e-1f + r * (4.1665795894e-2f
        + r * (8.3334519073e-3f + r * 1.3981999507e-3f)))));
    I bits = (n + 127) << 23;
    V scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// ln(1 + y) for 0 <= y <= 1: of 1 + y = 2^n m with m within sqrt(1/2) ... sqrt(2). Coefficients: Cephes, logf.
inline V log1p(V y) {
    V m = 1.f + y;
    I big = m > 1.41421356f;
    m = big ? .5f * m : m;
    V x = m - 1.f;
    V z = x * x;
    V p = 3.3333331174e-1f + x * (-2.4999993993e-1f + x * (2.0000714765e-1f + x * (-1.6668057665e-1f
        + x * (1.4249322787e-1f + x * (-1.2420140846e-1f + x * (1.1676998740e-1f
        + x * (-1.1514610310e-1f + x * 7.0376836292e-2f)))))));
    return x - .5f * z + x * z * p + (big ? all(.69314718056f) : V{});
}

// For -.01 <= x <= 1, to 4e-7. Coefficients: Abramowitz and Stegun, 4.4.46.
inline V acos(V x) {
    V p = 1.5707963050f + x * (-.2145988016f + x * (.0889789874f + x * (-.0501743046f + x * (.0308918810f
        + x * (-.0170881256f + x * (.0066700901f + x * -.0012624911f))))));
    return p * sqrt(max(1.f - x, 0.f));
}

// ---------------------------------------------------------------- 16 x 16 transpose
#ifndef __has_builtin
#define __has_builtin(x) 0
#endif
template <int S, int... L> inline void swap_pair(V& a, V& b, std::integer_sequence<int, L...>) {
    const V x = a, y = b;
#if __has_builtin(__builtin_shufflevector)
    a = __builtin_shufflevector(x, y, (L & S ? LANES + (L ^ S) : L)...);
    b = __builtin_shufflevector(x, y, (L & S ? LANES + L : L ^ S)...);
#else  // g++ before 12
    for (int l = 0; l < LANES; l++) {
        a[l] = l & S ? y[l ^ S] : x[l];
        b[l] = l & S ? y[l] : x[l ^ S];
    }
#endif
}
template <int S> inline void swap_blocks(V* v) {
    for (int i = 0; i < LANES; i++)
        if (!(i & S)) swap_pair<S>(v[i], v[i + S], std::make_integer_sequence<int, LANES>{});
}
inline void transpose(const V* in, V* out) {  // in: 16 values of 16 flights; out: 16 flights of 16 values
    for (int i = 0; i < LANES; i++) out[i] = in[i];
    swap_blocks<8>(out);
    swap_blocks<4>(out);
    swap_blocks<2>(out);
    swap_blocks<1>(out);
}

// ---------------------------------------------------------------- working memory of a thread
constexpr size_t CACHE_LINE = 64;  // bytes, what every array begins at
struct Scratch {
    std::vector<char> bytes;
    size_t used = 0;
    void reserve(size_t vectors, size_t arrays) {  // altogether, before the first `take`
        const size_t n = vectors * sizeof(V) + (arrays + 1) * CACHE_LINE;
        if (bytes.size() < n) bytes.resize(n);
        used = 0;
    }
    V* take(size_t vectors) {
        const size_t base = (size_t)bytes.data();
        const size_t at = (base + used + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE - base;
        used = at + vectors * sizeof(V);
        return (V*)(bytes.data() + at);
    }
    V* zeros(size_t vectors) {
        V* out = take(vectors);
        for (size_t i = 0; i < vectors; i++) out[i] = V{};
        return out;
    }
};
thread_local Scratch scratch;

}  // namespace
