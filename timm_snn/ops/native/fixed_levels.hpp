// Arithmetic of whole numbers by instruction set: four products of bytes at a time, and the scale of a sum.
//
// A level is what all of it is compiled for. Each gives the same numbers; which ones there are is known when a library
// is built, for the machine that runs it, and which one runs is an argument of every call.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "vectors.hpp"

namespace {

// Whole numbers of a current, see LIMIT in fixed.py
constexpr int32_t LIMIT = 1 << 29;
// Added before a logical shift, which then is an arithmetic one but for what this leaves behind
constexpr int64_t OFFSET = int64_t(1) << 62;

// In C++ alone
struct Plain {
    static constexpr int LANES = 8;              // sums in a vector
    static constexpr bool HALVES_BYTES = false;  // whether a byte above 128 is too much for `dot`
    typedef int32_t vec __attribute__((vector_size(32)));
    typedef uint32_t four;  // bytes that are multiplied with the weights of each sum

    INLINE static four repeat(uint32_t bytes) { return bytes; }

    // sums[i] + bytes[0] * weights[i][0] + ... + bytes[3] * weights[i][3]
    INLINE static vec dot(vec sums, four bytes, const int8_t* weights) {
        for (int i = 0; i < LANES; i++)
            for (int j = 0; j < 4; j++) sums[i] += int32_t(bytes >> 8 * j & 255) * weights[4 * i + j];
        return sums;
    }

    // The last 32 bits of (sums * multiplier + half) >> shift, for products below 2^61
    INLINE static vec scale(vec sums, vec multiplier, int64_t half, int shift) {
        vec scaled;
        for (int i = 0; i < LANES; i++) scaled[i] = int32_t((int64_t(sums[i]) * multiplier[i] + half) >> shift);
        return scaled;
    }

    // The groups of four bytes that are not all zero, listed from index[0] and values[0] on, with room for all groups
    // and 16 more; returns how many there are.
    static int64_t find(const uint8_t* from, int64_t groups, uint32_t first, uint32_t* index, uint32_t* values) {
        int64_t count = 0;
        for (int64_t i = 0; i < groups; i++) {
            uint32_t four;
            std::memcpy(&four, from + 4 * i, 4);
            index[count] = first + i, values[count] = four, count += four != 0;
        }
        return count;
    }
};

#ifdef __AVX2__
struct Avx2 {
    static constexpr int LANES = 8;
    static constexpr bool HALVES_BYTES = true;
    typedef int32_t vec __attribute__((vector_size(32)));
    typedef __m256i four;

    INLINE static four repeat(uint32_t bytes) { return _mm256_set1_epi32(bytes); }

    // Bytes are at most 128, so that two products, 2 * 128 * 127 or 2 * 128 * -128 at most, are summed in 16 bits.
    INLINE static vec dot(vec sums, four bytes, const int8_t* weights) {
        __m256i pairs = _mm256_maddubs_epi16(bytes, _mm256_loadu_si256((const __m256i*)weights));
        return sums + (vec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }

    INLINE static vec scale(vec sums, vec multiplier, int64_t half, int shift) {
        __m256i s = (__m256i)sums, m = (__m256i)multiplier, add = _mm256_set1_epi64x(half + OFFSET);
        __m128i by = _mm_cvtsi32_si128(shift);
        __m256i even = _mm256_mul_epi32(s, m), odd = _mm256_mul_epi32(_mm256_srli_epi64(s, 32), _mm256_srli_epi64(m, 32));
        even = _mm256_srl_epi64(_mm256_add_epi64(even, add), by), odd = _mm256_srl_epi64(_mm256_add_epi64(odd, add), by);
        return (vec)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa) - int32_t(OFFSET >> shift);
    }

    // A group with a byte above 128 is listed twice: the last seven bits of its bytes, and their first bits.
    static int64_t find(const uint8_t* from, int64_t groups, uint32_t first, uint32_t* index, uint32_t* values) {
        int64_t count = 0;
        for (int64_t i = 0; i < groups; i++) {
            uint32_t four;
            std::memcpy(&four, from + 4 * i, 4);
            if (uint32_t high = four & 0x80808080) {
                index[count] = first + i, values[count++] = high;
                four ^= high;
            }
            index[count] = first + i, values[count] = four, count += four != 0;
        }
        return count;
    }
};
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define HAS_VNNI
struct Vnni {
    static constexpr int LANES = 16;
    static constexpr bool HALVES_BYTES = false;
    typedef int32_t vec __attribute__((vector_size(64)));
    typedef __m512i four;

    INLINE static four repeat(uint32_t bytes) { return _mm512_set1_epi32(bytes); }

    INLINE static vec dot(vec sums, four bytes, const int8_t* weights) {
        return (vec)_mm512_dpbusd_epi32((__m512i)sums, bytes, _mm512_loadu_si512(weights));
    }

    INLINE static vec scale(vec sums, vec multiplier, int64_t half, int shift) {
        __m512i s = (__m512i)sums, m = (__m512i)multiplier, add = _mm512_set1_epi64(half);
        __m128i by = _mm_cvtsi32_si128(shift);
        __m512i even = _mm512_mul_epi32(s, m), odd = _mm512_mul_epi32(_mm512_srli_epi64(s, 32), _mm512_srli_epi64(m, 32));
        even = _mm512_sra_epi64(_mm512_add_epi64(even, add), by), odd = _mm512_sra_epi64(_mm512_add_epi64(odd, add), by);
        return (vec)_mm512_mask_shuffle_epi32(even, 0xaaaa, odd, _MM_PERM_CCAA);
    }

    static int64_t find(const uint8_t* from, int64_t groups, uint32_t first, uint32_t* index, uint32_t* values) {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        int64_t count = 0;
        for (int64_t i = 0; i < groups; i += 16) {
            __mmask16 inside = groups - i < 16 ? (1u << (groups - i)) - 1 : 0xffff;
            __m512i fours = _mm512_maskz_loadu_epi32(inside, from + 4 * i);
            __mmask16 found = _mm512_test_epi32_mask(fours, fours);
            __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(first + i));
            _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(found, at));
            _mm512_storeu_si512(values + count, _mm512_maskz_compress_epi32(found, fours));
            count += __builtin_popcount(found);
        }
        return count;
    }
};
#endif

}  // namespace
