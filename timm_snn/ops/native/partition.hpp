// The call of a function of this library, and how threads share the neurons of a step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

// Field by field as in backends/cpp.py
struct Call {
    int64_t T, rows, C, S, x_stride, grad_stride;
    double tau, v_threshold, v_rest, alpha, eps;
    int32_t hard_reset, decay_input, detach_reset, surrogate, threads;
};

namespace {

constexpr int64_t ITEM_SIZE = 4096;  // neurons that a thread takes at a time, about
constexpr int64_t MAX_ITEMS = 128;   // in channels_last, where each has sums of its own for all channels

// n neurons from m on in the memory of a step: those of channel c or, in channels_last, of channel c and the following
struct Span {
    int64_t m, n, c;
};

// Items of work that cover the neurons of a step. They do not depend on the number of threads, so that sums do not.
struct Partition {
    const Call& call;
    const bool channels_last;
    const int64_t size;  // neurons of a step
    int64_t each;        // neurons of an item, a multiple of n
    int64_t pieces;      // items of a row's channel, unless in channels_last

    Partition(const Call& call, int64_t n)
        : call(call), channels_last(call.S == 1 && call.C > 1), size(call.rows * call.C * call.S), each(ITEM_SIZE) {
        if (channels_last) each = std::max({ITEM_SIZE, 8 * call.C, (size + MAX_ITEMS - 1) / MAX_ITEMS});
        each = (each + n - 1) / n * n;
        pieces = (call.S + each - 1) / each;
    }
    int64_t items() const { return channels_last ? (size + each - 1) / each : call.rows * call.C * pieces; }
    int64_t channel(int64_t item) const { return item / pieces % call.C; }  // not in channels_last

    // f(span) for every span of n neurons of the item; the last may have fewer
    template <typename F>
    void for_each_span(int64_t item, int64_t n, F f) const {
        if (channels_last) {
            int64_t begin = item * each, end = std::min(begin + each, size), c = begin % call.C;
            for (int64_t m = begin; m < end; m += n, c = (c + n) % call.C) f(Span{m, std::min(n, end - m), c});
        } else {
            int64_t line = item / pieces, begin = item % pieces * each, end = std::min(begin + each, call.S);
            for (int64_t s = begin; s < end; s += n) f(Span{line * call.S + s, std::min(n, end - s), line % call.C});
        }
    }
};

template <typename A>
A sum(const std::vector<A>& numbers) {
    double total = 0;
    for (A x : numbers) total += x;
    return total;
}

}  // namespace
