// Which numbers of a row are not zero, found eight at a time.
#pragma once

#include <cstdint>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "float_formats.hpp"

namespace {

#ifdef __AVX2__
// For each mask of 8 lanes, the lanes that are set, in order
const struct SetLanes {
    uint8_t lanes[256][8] = {};
    SetLanes() {
        for (int mask = 0; mask < 256; mask++)
            for (int lane = 0, count = 0; lane < 8; lane++)
                if (mask >> lane & 1) lanes[mask][count++] = lane;
    }
} SET_LANES;
#endif

// Positions and values of what is not zero, in order. Vectors are written whole, so there is room for 8 more.
template <typename A>
struct NonzeroList {
    std::vector<uint16_t> index;
    std::vector<A> values;
    int64_t size = 0;
    bool ones = true;  // every value is 1

    void reserve(int64_t count) {
        if (int64_t(index.size()) < count + 8) index.resize(count + 8), values.resize(count + 8);
    }
    void clear() { size = 0, ones = true; }

    template <typename X>
    void append(const X* x, int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; c++) {  // without a branch, which would be mispredicted
            A v = value(x[c]);
            index[size] = c;
            values[size] = v;
            size += v != 0;
            ones &= v == 0 || v == 1;
        }
    }
#ifdef __AVX2__
    void append(const float* x, int64_t begin, int64_t end) {
        int64_t c = begin;
        for (; c + 8 <= end; c += 8) append8(_mm256_loadu_ps(x + c), c);
        append<float>(x, c, end);
    }
    void append(const bf16* x, int64_t begin, int64_t end) {
        int64_t c = begin;
        for (; c + 8 <= end; c += 8) {
            __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(x + c)));
            append8(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)), c);
        }
        append<bf16>(x, c, end);
    }
    void append8(__m256 x, int64_t c) {
        unsigned nonzero = _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ));
        unsigned other = _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_set1_ps(1), _CMP_NEQ_UQ));
        __m128i lanes = _mm_loadl_epi64((const __m128i*)SET_LANES.lanes[nonzero]);
        __m128i channels = _mm_add_epi16(_mm_cvtepu8_epi16(lanes), _mm_set1_epi16(c));
        _mm_storeu_si128((__m128i*)&index[size], channels);
        _mm256_storeu_ps(&values[size], _mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(lanes)));
        size += __builtin_popcount(nonzero);
        ones &= !(nonzero & other);
    }
#endif
};

// Which of up to 8 numbers are not zero, as bits. `ones` becomes false if one of these is not 1.
template <typename X>
inline unsigned nonzeros(const X* x, int64_t n, bool& ones) {
    unsigned bits = 0;
    for (int64_t i = 0; i < n; i++) {
        auto v = value(x[i]);
        bits |= unsigned(v != 0) << i;
        ones &= v == 0 || v == 1;
    }
    return bits;
}
#ifdef __AVX2__
inline unsigned nonzeros8(__m256 x, bool& ones) {
    unsigned bits = _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ));
    ones &= !(bits & _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_set1_ps(1), _CMP_NEQ_UQ)));
    return bits;
}
inline unsigned nonzeros(const float* x, int64_t n, bool& ones) {
    return n == 8 ? nonzeros8(_mm256_loadu_ps(x), ones) : nonzeros<float>(x, n, ones);
}
inline unsigned nonzeros(const bf16* x, int64_t n, bool& ones) {
    if (n < 8) return nonzeros<bf16>(x, n, ones);
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x));
    return nonzeros8(_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)), ones);
}
#endif

// Write first + i for every set bit i of a byte, with room for 8; returns the end of what is written
inline uint16_t* write_positions(unsigned bits, int64_t first, uint16_t* to) {
#ifdef __AVX2__
    __m128i lanes = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)SET_LANES.lanes[bits]));
    _mm_storeu_si128((__m128i*)to, _mm_add_epi16(lanes, _mm_set1_epi16(first)));
    return to + __builtin_popcount(bits);
#else
    for (; bits; bits &= bits - 1) *to++ = first + __builtin_ctz(bits);
    return to;
#endif
}

}  // namespace
