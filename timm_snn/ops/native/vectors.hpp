// Arithmetic on vectors of 32 bytes, and on packs of them. The compiler splits a vector where registers are smaller.
//
// This header and those that include it have internal linkage, so that libraries built from different versions of them
// can live in one process.
#pragma once

#include <cmath>
#include <type_traits>

#ifdef __FMA__
#include <immintrin.h>
#endif

#include "float_formats.hpp"

#define INLINE inline __attribute__((always_inline))

namespace {

template <typename A>
struct Vector {
    static constexpr int LANES = 32 / sizeof(A);
    typedef A type __attribute__((vector_size(32)));
    typedef A anywhere __attribute__((vector_size(32), aligned(alignof(A)), may_alias));  // in memory
};

typedef Vector<double>::type doubles;
typedef Vector<float>::type floats;
typedef int64_t longs __attribute__((vector_size(32)));
typedef int32_t ints __attribute__((vector_size(32)));

INLINE doubles minus_abs(doubles x) { return (doubles)((longs)x | INT64_MIN); }  // sets the bit of the sign
INLINE floats minus_abs(floats x) { return (floats)((ints)x | INT32_MIN); }
INLINE doubles multiply_add(doubles x, doubles y, doubles z) { return x * y + z; }
INLINE floats multiply_add(floats x, floats y, floats z) {
#ifdef __FMA__
    return _mm256_fmadd_ps(x, y, z);
#else
    return x * y + z;
#endif
}
INLINE doubles exp2(doubles x) {
    for (int i = 0; i < 4; i++) x[i] = std::exp2(x[i]);
    return x;
}
// 2^x for x <= 0: the nearest integer goes to the exponent, and a Taylor polynomial takes what is left, at most 1/2
INLINE floats exp2(floats x) {
    const floats least = floats{} - 126.f;
    x = least > x ? least : x;       // NaN stays
    floats shifted = x + 0x1.8p23f;  // rounds to an integer, which its last bits hold
    floats left = x - (shifted - 0x1.8p23f), p = floats{} + 1.54035304e-4f;
    // ln(2)^i / i!
    for (float ith : {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.f})
        p = multiply_add(p, left, floats{} + ith);
    return p * (floats)(((ints)shifted << 23) + 0x3f800000);
}

// A number for each of the neurons that are computed together. There are enough vectors to keep the processor busy
// while each waits for its last step, and to read memory in long pieces.
template <typename A>
struct Pack {
    typedef typename Vector<A>::type vec;
    typedef typename Vector<A>::anywhere anywhere;
    static constexpr int LANES = Vector<A>::LANES, SIZE = 8, N = SIZE * LANES;
    vec at[SIZE];

    INLINE static Pack of(A number) {
        Pack pack;
        for (int i = 0; i < SIZE; i++) pack.at[i] = vec{} + number;
        return pack;
    }
    // Whole vectors go in and out: what is written in smaller parts must reach the cache before it can be read.
    INLINE void load(const A* from) {
        for (int i = 0; i < SIZE; i++) at[i] = *(const anywhere*)(from + i * LANES);
    }
    INLINE void save(A* to) const {
        for (int i = 0; i < SIZE; i++) *(anywhere*)(to + i * LANES) = at[i];
    }
    template <typename X>
    INLINE void load(const X* from, int64_t n) {
        if (std::is_same<X, A>::value && n == N) return load((const A*)from);
        A numbers[N] = {};
        if (n == N)
            for (int i = 0; i < N; i++) numbers[i] = value(from[i]);
        else
            for (int64_t i = 0; i < n; i++) numbers[i] = value(from[i]);
        load(numbers);
    }
    template <typename X>
    INLINE void save(X* to, int64_t n) const {
        if (std::is_same<X, A>::value && n == N) return save((A*)to);
        A numbers[N];
        save(numbers);
        if (n == N)
            for (int i = 0; i < N; i++) store(to[i], numbers[i]);
        else
            for (int64_t i = 0; i < n; i++) store(to[i], numbers[i]);
    }
};

}  // namespace
