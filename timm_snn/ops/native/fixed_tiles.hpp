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

// Pixels of the output, and the places of the convolution that they need: the same, or the windows that are pooled
struct Tile {
    std::vector<Place> places;
    std::vector<int64_t> outputs;          // as numbers of N * out_rows * out_columns
    std::vector<Place> pooled;             // the same as places of the output, if they are pooled
    int64_t first_row = 0, first_column = 0, width = 0;  // of the rectangle of places, if they are pooled
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
        tile.places.clear(), tile.outputs.clear(), tile.pooled.clear();
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
        for (int64_t r = r0; r < r1; r++)
            for (int64_t c = c0; c < c1; c++) {
                tile.outputs.push_back((n * rows + r) * columns + c);
                tile.pooled.push_back({n, r, c});
            }
        tile.first_row = std::max<int64_t>(2 * r0 - 1, 0), tile.first_column = std::max<int64_t>(2 * c0 - 1, 0);
        int64_t end_row = std::min(2 * r1, u.rows()), end_column = std::min(2 * c1, u.columns());
        tile.width = end_column - tile.first_column;
        for (int64_t r = tile.first_row; r < end_row; r++)
            for (int64_t c = tile.first_column; c < end_column; c++) tile.places.push_back({n, r, c});
    }
};

// Groups of four bytes that are not all zero, and which they are
struct Fours {
    const uint32_t *index, *values;
    int64_t count;  // even
};

// What the sums of a tile see, listed by sum in chunks of groups. Signed bytes are listed with 128 added. Numbers of 16
// bits are listed twice: the first bytes of all that a sum sees, then the last ones.
template <typename L>
class Lists {
    std::vector<uint32_t> index, values;
    std::vector<int64_t> start;  // of each list, and the end of the last
    std::vector<uint8_t> patch;
    int64_t chunk_fours = 0, count = 0, chunk = 0;

    // Ends a list, with a group of zeros if it is odd
    INLINE void close() {
        index[count] = values[count] = 0;
        count += (count - start.back()) & 1;
        start.push_back(count), chunk++;
    }

    INLINE void begin() { chunk = 0; }

    INLINE void end() {
        while (chunk < chunks) close();
    }

    // Lists groups of the bytes at `from`, the first of which is the group `first` of its sum
    INLINE void add(const uint8_t* from, int64_t groups, int64_t first) {
        while (groups > 0) {
            while (first >= (chunk + 1) * chunk_fours) close();
            int64_t n = std::min(groups, (chunk + 1) * chunk_fours - first);
            count += L::find(from, n, first - chunk * chunk_fours, &index[count], &values[count]);
            from += 4 * n, groups -= n, first += n;
        }
    }

    // From the map as it is: rows of the kernel, or its places if there are groups. Channels are a multiple of four.
    INLINE void add_map(const Unit& u, const uint8_t* x, int64_t row, int64_t column) {
        int64_t size = u.group_inputs(), left = std::max<int64_t>(-column, 0), right = std::min(u.KW, u.W - column);
        int64_t places = u.groups == 1 ? right - left : 1;
        begin();
        for (int64_t kh = std::max<int64_t>(-row, 0); kh < std::min(u.KH, u.H - row); kh++)
            for (int64_t kw = left; kw < right; kw += places)
                add(x + ((row + kh) * u.W + column + kw) * u.C, places * size / 4, (kh * u.KW + kw) * size / 4);
        end();
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
        begin();
        add(patch.data(), u.fours(), 0);
        end();
    }

public:
    int64_t chunks = 0;  // of each sum, once or twice

    Fours of(int64_t list) const {
        return {&index[start[list]], &values[start[list]], start[list + 1] - start[list]};
    }

    // Of steps t0 to t1 at the places of a tile, channels from `channel` on, in chunks of so many groups
    void fill(const Unit& u, const Tile& tile, const void* x, int64_t t0, int64_t t1, int64_t channel, int64_t size) {
        int64_t sums = (t1 - t0) * tile.places.size(), bytes = u.x_type == INT16 ? 2 : 1;
        chunk_fours = size, chunks = across(u.fours(), size);
        // room for groups that are listed twice, for the ends of lists, and for the vectors that are written
        size_t room = sums * bytes * (2 * u.fours() + chunks) + 32;
        if (index.size() < room) index.resize(room), values.resize(room);
        start.assign(1, 0), count = 0;
        for (int64_t t = t0; t < t1; t++)
            for (const Place& at : tile.places) {
                int64_t row = at.row * u.SH - u.PH, column = at.column * u.SW - u.PW;
                int64_t offset = t * u.x_step + at.n * u.H * u.W * u.C + channel;
                if (u.x_type == INT16) {
                    add_copy<int16_t, true>(u, (const int16_t*)x + offset, row, column);
                    add_copy<int16_t, false>(u, (const int16_t*)x + offset, row, column);
                } else if (u.x_type == INT8) {
                    add_copy<int8_t, true>(u, (const int8_t*)x + offset, row, column);
                } else if (u.group_inputs() % 4) {
                    add_copy<uint8_t, true>(u, (const uint8_t*)x + offset, row, column);
                } else {
                    add_map(u, (const uint8_t*)x + offset, row, column);
                }
            }
    }
};

}  // namespace
