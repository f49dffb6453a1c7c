// Runs a CUDA kernel whose threads do not talk to each other as a loop on the CPU.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define __global__
#define __device__

static struct { unsigned x; } threadIdx, blockIdx, blockDim;

using std::exp;
using std::isinf;

inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

template <typename T> T unpack(uint64_t slot) {
    static_assert(sizeof(T) == 8, "CuPy passes Python's ints and floats in 8 bytes");
    T value;
    std::memcpy(&value, &slot, 8);
    return value;
}

template <typename... Args, size_t... I>
void run(void (*kernel)(Args...), unsigned grid, unsigned block, const uint64_t* slots, std::index_sequence<I...>) {
    blockDim.x = block;
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) kernel(unpack<Args>(slots[I])...);
}

template <typename... Args>
bool launch(void (*kernel)(Args...), unsigned grid, unsigned block, const uint64_t* slots, unsigned num_slots) {
    if (num_slots != sizeof...(Args)) return false;
    run(kernel, grid, block, slots, std::index_sequence_for<Args...>());
    return true;
}
