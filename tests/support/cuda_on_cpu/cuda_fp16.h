// IEEE half precision for the CPU, under CUDA's names.
#pragma once
#include <cmath>
#include <cstdint>

struct __half {
    uint16_t bits;
};

inline float __half2float(__half x) {
    const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    const float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                       : exponent     ? std::ldexp(float(mantissa + 1024), exponent - 25)
                                      : std::ldexp(float(mantissa), -24);
    return x.bits >> 15 ? -size : size;
}

inline __half __float2half_rn(float x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    const float size = std::fabs(x);
    if (std::isnan(x)) return {0x7e00};
    if (size >= 65520) return {uint16_t(sign | 0x7c00)};
    const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
    return {uint16_t(sign | ((exponent + 14) * 1024 + int(std::nearbyint(std::ldexp(size, 10 - exponent)))))};
}
