// Tiles of a convolution of whole numbers: the places where it is summed, and what it sees there that is not zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fixed_levels.hpp"

namespace {

enum { UINT8, INT8, INT16 };  // in the order of fixed_native.py

// Number by number as in fixed_native.py
struct Unit {
    int64_t T, N, H, W, C, O, KH, KW, SH, SW, PH, PW, groups;
    int64_t strides[4];  // of the weight, [O, C / groups, KH, KW]
    int64_t x_step;      // numbers between two steps of x; 0 if there is one for all
    int64_t x_type, pool, shift;
    int64_t leak_shift, hard_reset, v_reset, decay_input;  // of the neuron; leak_shift -1 for none
    int64_t threads;

    int64_t rows() const { return (H + 2 * PH - KH) / SH + 1; }  // of the convolution
    int64_t columns() const { return (W + 2 * PW - KW) / SW + 1; }
    int64_t out_rows() const { return pool ? (rows() + 1) / 2 : rows(); }
    int64_t out_columns() const { return pool ? (columns() + 1) / 2 : columns(); }
    int64_t outputs() const { return N * out_rows() * out_columns(); }  // pixels of a step
    bool is_depthwise() const { return groups > 1 && groups == C && groups == O; }
    int64_t group_inputs() const { return C / groups; }
    int64_t numbers() const { return KH * KW * group_inputs(); }  // that a sum sees
    int64_t fours() const { return (numbers() + 3) / 4; }
    int64_t largest() const { return x_type == UINT8 ? 255 : x_type == INT8 ? 128 : 32768; }
};

// The fastest over the layers of msvit_10_384 and msvit_4_96, on two cores with AVX-512 and caches of 32 KB and 1 MB
constexpr int64_t TILE_PIXELS = 32;           // of the output
constexpr int64_t POOLED_SIDE = 8;            // of a square of the output, where that is pooled
constexpr int64_t TILE_SUMS = 256;            // places times steps at a time
constexpr int64_t CHUNK_BYTES = 24 * 1024;    // of the weights that a tile uses before it goes on to others

inline int64_t across(int64_t size, int64_t part) { return (size + part - 1) / part; }

struct Place {
    int64_t n, row, column;  // of the convolution
};

// Places of a tile that are pooled for an output: the first one, and how many rows and columns
struct Window {
    int64_t first, rows, columns;
};

// Pixels of the output, and the places of the convolution that they need: the same, or a rectangle of what is pooled
struct Tile {
    std::vector<Place> places;
    std::vector<int64_t> outputs;  // as numbers of N * out_rows * out_columns
    std::vector<Window> windows;   // of each output, if they are pooled
    int64_t width = 0;             // of the rectangle
};

// How the output is divided into tiles, so that each thread gets some
class Tiling {
    const Unit& u;
    int64_t pixels = 1, height = POOLED_SIDE, width = POOLED_SIDE, tall = 1, wide = 1;

public:
    explicit Tiling(const Unit& u) : u(u) {
        if (!u.pool) {
            pixels = std::max<int64_t>(std::min(TILE_PIXELS, u.outputs() / (2 * u.threads)), 1);
            return;
        }
        while (height > 1 && u.N * across(u.out_rows(), height) * across(u.out_columns(), width) < 2 * u.threads)
            height /= 2;
        tall = across(u.out_rows(), height), wide = across(u.out_columns(), width);
    }

    int64_t count() const { return u.pool ? u.N * tall * wide : across(u.outputs(), pixels); }

    void fill(int64_t i, Tile& tile) const {
        tile.places.clear(), tile.outputs.clear(), tile.windows.clear();
        int64_t rows = u.out_rows(), columns = u.out_columns();
        if (!u.pool) {
            for (int64_t at = i * pixels; at < std::min((i + 1) * pixels, u.outputs()); at++) {
                tile.outputs.push_back(at);
                tile.places.push_back({at / columns / rows, at / columns % rows, at % columns});
            }
            return;
        }
        int64_t n = i / (tall * wide), r0 = i / wide % tall * height, c0 = i % wide * width;
        int64_t r1 = std::min(r0 + height, rows), c1 = std::min(c0 + width, columns);
        int64_t first_row = std::max<int64_t>(2 * r0 - 1, 0), end_row = std::min(2 * r1, u.rows());
        int64_t first_column = std::max<int64_t>(2 * c0 - 1, 0), end_column = std::min(2 * c1, u.columns());
        tile.width = end_column - first_column;
        for (int64_t r = first_row; r < end_row; r++)
            for (int64_t c = first_column; c < end_column; c++) tile.places.push_back({n, r, c});
        for (int64_t r = r0; r < r1; r++)
            for (int64_t c = c0; c < c1; c++) {
                int64_t top = std::max(2 * r - 1, first_row), left = std::max(2 * c - 1, first_column);
                int64_t below = std::min(2 * r + 2, end_row), right = std::min(2 * c + 2, end_column);
                tile.outputs.push_back((n * rows + r) * columns + c);
                tile.windows.push_back(
                    {(top - first_row) * tile.width + left - first_column, below - top, right - left});
            }
    }
};

// Groups of four bytes that are not all zero, and which they are
struct Fours {
    const uint32_t *index, *values;
    int64_t count;  // even
};

// What the sums of a tile see, listed by sum, of a chunk of all groups. Signed bytes are listed with 128 added.
template <typename L>
class Lists {
    std::vector<uint32_t> index, values;
    std::vector<int64_t> start;  // of each list, and the end of the last
    std::vector<uint8_t> patch;
    int64_t first = 0, end = 0, count = 0;  // the chunk, and how many groups are listed

    // Lists groups of the bytes at `from`, the first of which is the group `at` of its sum
    INLINE void add(const uint8_t* from, int64_t groups, int64_t at) {
        int64_t skipped = std::max<int64_t>(first - at, 0), n = std::min(groups, end - at) - skipped;
        if (n > 0) count += L::find(from + 4 * skipped, n, at + skipped - first, &index[count], &values[count]);
    }

    // Ends the list of a sum, with a group of zeros if it is odd
    INLINE void close() {
        index[count] = values[count] = 0;
        count += (count - start.back()) & 1;
        start.push_back(count);
    }

    // From the map as it is: rows of the kernel, or its places if there are groups. Channels are a multiple of four.
    INLINE void add_map(const Unit& u, const uint8_t* x, int64_t row, int64_t column) {
        int64_t size = u.group_inputs(), left = std::max<int64_t>(-column, 0), right = std::min(u.KW, u.W - column);
        int64_t places = u.groups == 1 ? right - left : 1;
        for (int64_t kh = std::max<int64_t>(-row, 0); kh < std::min(u.KH, u.H - row); kh++)
            for (int64_t kw = left; kw < right; kw += places)
                add(x + ((row + kh) * u.W + column + kw) * u.C, places * size / 4, (kh * u.KW + kw) * size / 4);
    }

    // From a copy, the first bytes of numbers or the last ones
    template <typename X, bool FIRST>
    void add_copy(const Unit& u, const X* x, int64_t row, int64_t column) {
        constexpr bool SIGNED = FIRST && std::is_signed<X>::value;
        constexpr int BITS = FIRST ? 8 * sizeof(X) - 8 : 0, ZERO = SIGNED ? 128 : 0;
        int64_t size = u.group_inputs();
        patch.assign(4 * u.fours(), ZERO);
        for (int64_t kh = std::max<int64_t>(-row, 0); kh < std::min(u.KH, u.H - row); kh++)
            for (int64_t kw = std::max<int64_t>(-column, 0); kw < std::min(u.KW, u.W - column); kw++) {
                const X* from = x + ((row + kh) * u.W + column + kw) * u.C;
                uint8_t* to = &patch[(kh * u.KW + kw) * size];
                for (int64_t i = 0; i < size; i++) to[i] = uint8_t(from[i] >> BITS) ^ ZERO;
            }
        add(patch.data(), u.fours(), 0);
    }

public:
    Fours of(int64_t sum) const { return {&index[start[sum]], &values[start[sum]], start[sum + 1] - start[sum]}; }

    // Of steps t0 to t1 at the places of a tile: groups `first` to `end` of channels from `channel` on; of numbers of 16
    // bits the first bytes or the last ones
    void fill(const Unit& u, const Tile& tile, const void* x, int64_t t0, int64_t t1, int64_t channel, int64_t first,
              int64_t end, bool first_bytes) {
        this->first = first, this->end = end;
        // room for groups that are listed twice, for the ends of lists, and for the vectors that are written
        size_t room = (t1 - t0) * tile.places.size() * (2 * (end - first) + 1) + 32;
        if (index.size() < room) index.resize(room), values.resize(room);
        start.assign(1, 0), count = 0;
        for (int64_t t = t0; t < t1; t++)
            for (const Place& at : tile.places) {
                int64_t row = at.row * u.SH - u.PH, column = at.column * u.SW - u.PW;
                int64_t offset = t * u.x_step + at.n * u.H * u.W * u.C + channel;
                if (u.x_type == INT16 && first_bytes)
                    add_copy<int16_t, true>(u, (const int16_t*)x + offset, row, column);
                else if (u.x_type == INT16)
                    add_copy<int16_t, false>(u, (const int16_t*)x + offset, row, column);
                else if (u.x_type == INT8)
                    add_copy<int8_t, true>(u, (const int8_t*)x + offset, row, column);
                else if (u.group_inputs() % 4)
                    add_copy<uint8_t, true>(u, (const uint8_t*)x + offset, row, column);
                else
                    add_map(u, (const uint8_t*)x + offset, row, column);
                close();
            }
    }
};

}  // namespace
