// How numbers are stored, and how they are widened to be computed with and rounded to be stored again.
#pragma once

#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

template <typename To, typename From>
inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float value(float x) { return x; }
inline double value(double x) { return x; }
inline float value(bf16 x) { return bits_of<float>(uint32_t(x.bits) << 16); }
inline float value(fp16 x) {
    uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
    float scaled = bits_of<float>(magnitude) * 0x1p112f;  // another bias of the exponent, subnormal numbers included
    uint32_t number = bits_of<uint32_t>(scaled), special = magnitude | 0x7f800000;  // infinity and NaN
    return bits_of<float>((magnitude >= 0x0f800000 ? special : number) | sign);
}

// Rounds to nearest, ties to even; NaN stays NaN
inline void store(float& to, float x) { to = x; }
inline void store(double& to, double x) { to = x; }
inline void store(bf16& to, float x) {
    uint32_t bits = bits_of<uint32_t>(x);
    to.bits = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fc0;
}
inline void store(fp16& to, float x) {
    uint32_t bits = bits_of<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // adding 1/2 leaves a multiple of 2^-24, the step of subnormal numbers, in the last bits
    uint32_t subnormal = bits_of<uint32_t>(bits_of<float>(magnitude) + 0.5f) - 0x3f000000;
    uint32_t rounded = magnitude < 0x38800000 ? subnormal : normal;
    rounded = magnitude >= 0x477ff000 ? 0x7c00 : rounded;
    to.bits = sign | (magnitude > 0x7f800000 ? 0x7e00 : rounded);
}
