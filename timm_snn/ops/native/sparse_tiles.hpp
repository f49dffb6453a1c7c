// Tiles of a convolution's output, and the nonzeros of x that each of them sees, by pixel or by channel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "nonzeros.hpp"

// Number by number as in sparse_conv.py
struct Shape {
    int64_t N, H, W, C, O, KH, KW, PH, PW;
    int64_t strides[4];  // of the weight or its gradient, [O, C, KH, KW]
    int64_t OH() const { return H + 2 * PH - KH + 1; }
    int64_t OW() const { return W + 2 * PW - KW + 1; }
};

namespace {

// The fastest of eight pairs over the layers of msvit_10_384, on two cores with caches of 32 KB and 512 KB:
constexpr int TILE_PIXELS = 256;     // pixels of a tile
constexpr int CHUNK_CHANNELS = 192;  // channels of a slice of weights

// Rows r0 to r1 and columns c0 to c1 of the output of sample n
struct Tile {
    int64_t n, r0, r1, c0, c1;
    int64_t rows() const { return r1 - r0; }
    int64_t columns() const { return c1 - c0; }
};

std::vector<Tile> tiles_of(const Shape& s) {
    int64_t columns = std::min<int64_t>(s.OW(), TILE_PIXELS), rows = std::max<int64_t>(TILE_PIXELS / columns, 1);
    std::vector<Tile> tiles;
    for (int64_t n = 0; n < s.N; n++)
        for (int64_t r = 0; r < s.OH(); r += rows)
            for (int64_t c = 0; c < s.OW(); c += columns)
                tiles.push_back({n, r, std::min(r + rows, s.OH()), c, std::min(c + columns, s.OW())});
    return tiles;
}

// Rows that a list names, times values unless there are none, which means that all are 1
template <typename A>
struct Rows {
    const uint16_t* list;
    const A* values;
    int64_t count;
};

// The nonzeros of x that a tile sees, listed by pixel in chunks of channels, for the forward pass
template <typename A>
struct PixelLists {
    std::vector<uint16_t> index;  // channels
    std::vector<A> values;        // empty if all are 1
    std::vector<int32_t> start;   // of each list, [pixel][chunk], and the end of the last
    int64_t y0, x0, width;        // the first row and column of x that the tile sees, and how many columns
    int64_t chunks;

    Rows<A> rows(int64_t pixel, int64_t chunk) const {
        const int32_t* at = &start[pixel * chunks + chunk];
        return {&index[at[0]], values.empty() ? nullptr : &values[at[0]], at[1] - at[0]};
    }

    template <typename X>
    void fill(const Shape& s, const Tile& t, const X* x) {
        static thread_local NonzeroList<A> list;
        y0 = std::max<int64_t>(t.r0 - s.PH, 0), x0 = std::max<int64_t>(t.c0 - s.PW, 0);
        int64_t height = std::max<int64_t>(std::min(t.r1 - s.PH + s.KH - 1, s.H) - y0, 0);
        width = std::max<int64_t>(std::min(t.c1 - s.PW + s.KW - 1, s.W) - x0, 0);
        chunks = (s.C + CHUNK_CHANNELS - 1) / CHUNK_CHANNELS;
        list.clear(), list.reserve(height * width * s.C), start.resize(height * width * chunks + 1);
        int32_t* at = start.data();
        for (int64_t iy = y0; iy < y0 + height; iy++)
            for (int64_t ix = x0; ix < x0 + width; ix++)
                for (int64_t c = 0; c < s.C; c += CHUNK_CHANNELS, at++) {
                    *at = list.size;
                    list.append(x + ((t.n * s.H + iy) * s.W + ix) * s.C, c, std::min(c + CHUNK_CHANNELS, s.C));
                }
        *at = list.size;
        index.assign(list.index.begin(), list.index.begin() + list.size);
        if (!list.ones) values.assign(list.values.begin(), list.values.begin() + list.size);
    }
};

// The nonzeros of x that a tile sees, listed by channel, for the gradient of the weight. A list has positions in the
// padded map of the tile, row by row. A row of the map is as wide as one of gradients with KW - 1 zeros before it, so
// that a tap of the kernel is a fixed distance.
template <typename A>
struct ChannelLists {
    std::vector<uint16_t> index;
    std::vector<A> values;       // empty if all are 1
    std::vector<int64_t> start;  // of each row of a channel, [C][rows + 1], with the end of its last
    int64_t rows, width;

    // Of a channel, in `count` rows from `first` on
    Rows<A> of(int64_t channel, int64_t first, int64_t count) const {
        const int64_t* at = &start[channel * (rows + 1) + first];
        return {&index[at[0]], values.empty() ? nullptr : &values[at[0]], at[count] - at[0]};
    }

    template <typename X>
    void fill(const Shape& s, const Tile& t, const X* x) {
        static thread_local std::vector<uint8_t> bits;  // of 8 channels at a position, [groups][rows][pitch]
        static thread_local std::vector<uint16_t> list;
        static thread_local std::vector<const X*> pixels;  // by position
        rows = t.rows() + s.KH - 1, width = t.columns() + s.KW - 1;
        int64_t groups = (s.C + 7) / 8, pitch = (width + 7) / 8 * 8;
        bits.assign(groups * rows * pitch, 0), list.resize(rows * pitch * s.C + 8), pixels.resize(rows * width);
        bool ones = true;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < width; c++) {
                int64_t iy = t.r0 - s.PH + r, ix = t.c0 - s.PW + c;
                if (iy < 0 || iy >= s.H || ix < 0 || ix >= s.W) continue;
                const X* pixel = pixels[r * width + c] = x + ((t.n * s.H + iy) * s.W + ix) * s.C;
                for (int64_t g = 0; g < groups; g++)
                    bits[(g * rows + r) * pitch + c] = nonzeros(pixel + g * 8, std::min<int64_t>(8, s.C - g * 8), ones);
            }
        start.resize(s.C * (rows + 1));
        uint16_t* to = list.data();
        for (int64_t channel = 0; channel < s.C; channel++) {
            for (int64_t r = 0; r < rows; r++) {
                start[channel * (rows + 1) + r] = to - list.data();
                const uint8_t* row = &bits[(channel / 8 * rows + r) * pitch];
                for (int64_t c = 0; c < width; c += 8) {
                    uint64_t eight;
                    std::memcpy(&eight, row + c, 8);
                    eight = eight >> channel % 8 & 0x0101010101010101;  // a bit per byte; the product gathers them
                    to = write_positions(eight * 0x0102040810204080 >> 56, r * width + c, to);
                }
            }
            start[channel * (rows + 1) + rows] = to - list.data();
        }
        index.assign(list.data(), to);
        if (ones) return;
        values.resize(index.size());
        for (int64_t channel = 0; channel < s.C; channel++)
            for (int64_t j = start[channel * (rows + 1)]; j < start[channel * (rows + 1) + rows]; j++)
                values[j] = value(pixels[index[j]][channel]);
    }
};

}  // namespace
