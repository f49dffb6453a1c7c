// Convolutions on a CPU that skip what is zero. Built by build.py, called by sparse_conv.py, which says what for.
//
// The nonzeros of x are listed once per tile of pixels. Both passes then do the same: they add the rows of a matrix
// that a list names, B numbers each, to B sums that stay in registers. The rows are weights in the forward pass and
// gradients in the backward pass. The work is ordered so that the near caches hold the matrix while a tile uses it.
//
//   x       [N, H, W, C], of type X; the channels of a pixel are together
//   y, gy   [N, OH, OW, O], of type X; stride 1, zeros around the map
//   packed  the weight as [blocks of B output channels][KH][KW][C][B], with zeros beyond O, of type A, as the sums
//
// nonzeros.hpp finds what is not zero, sparse_tiles.hpp lists it for a tile, and the passes are here.

#include <algorithm>
#include <cstring>
#include <vector>

#include "fingerprint.hpp"
#include "sparse_tiles.hpp"
#include "vectors.hpp"

namespace {

constexpr int REGISTER = 32;  // bytes
// Numbers that are summed together, as in sparse_conv.py: few, so that the rows of a slice fit into the nearest cache
constexpr int B = 32;

// B sums in vector registers
template <typename A>
struct RegisterSums {
    typedef A vec __attribute__((vector_size(REGISTER), aligned(alignof(A)), may_alias));
    static constexpr int LANES = REGISTER / sizeof(A), SIZE = B / LANES;
    vec sums[SIZE];

    INLINE void load(const A* from) {
        for (int i = 0; i < SIZE; i++) sums[i] = *(const vec*)(from + i * LANES);
    }
    INLINE void save(A* to) const {
        for (int i = 0; i < SIZE; i++) *(vec*)(to + i * LANES) = sums[i];
    }
    template <bool ONES>
    INLINE void add(const A* matrix, const Rows<A>& rows, int64_t j) {
        const A* row = matrix + int64_t(rows.list[j]) * B;
#pragma GCC unroll 16
        for (int i = 0; i < SIZE; i++) {
            vec numbers = *(const vec*)(row + i * LANES);
            sums[i] += ONES ? numbers : rows.values[j] * numbers;
        }
    }
};

// Adds rows of the matrix to two sums of B numbers: two at a time, since an addition waits for the one before it
template <bool ONES, typename A>
void add_rows(const A* matrix, const Rows<A>& first, A* to_first, const Rows<A>& second, A* to_second) {
    RegisterSums<A> a, b;
    a.load(to_first), b.load(to_second);
    int64_t both = std::min(first.count, second.count), j = 0;
    for (; j < both; j++) a.template add<ONES>(matrix, first, j), b.template add<ONES>(matrix, second, j);
    for (int64_t i = j; i < first.count; i++) a.template add<ONES>(matrix, first, i);
    for (int64_t i = j; i < second.count; i++) b.template add<ONES>(matrix, second, i);
    a.save(to_first), b.save(to_second);
}

template <typename A>
void add_rows(const A* matrix, const Rows<A>& first, A* to_first, const Rows<A>& second, A* to_second) {
    (first.values ? add_rows<false, A> : add_rows<true, A>)(matrix, first, to_first, second, to_second);
}

// Output channels o to o + B of a tile
template <typename X, typename A>
void forward_tile(const Shape& s, const Tile& t, const PixelLists<A>& seen, int64_t o, const A* weight, const A* bias,
                  X* y) {
    static thread_local std::vector<A> sums;  // [pixel][B]
    A nowhere[B] = {};
    const Rows<A> nothing{};
    sums.resize(t.rows() * t.columns() * B);
    for (int64_t i = 0; i < t.rows() * t.columns(); i++) std::copy_n(bias + o, B, &sums[i * B]);
    for (int64_t chunk = 0; chunk < seen.chunks; chunk++)
        for (int64_t kh = 0; kh < s.KH; kh++)
            for (int64_t kw = 0; kw < s.KW; kw++) {
                const A* slice = weight + ((o / B * s.KH + kh) * s.KW + kw) * s.C * B;
                int64_t dy = kh - s.PH, dx = kw - s.PW;
                for (int64_t r = std::max(t.r0, -dy); r < std::min(t.r1, s.H - dy); r++) {
                    int64_t begin = std::max(t.c0, -dx), end = std::min(t.c1, s.W - dx);
                    int64_t pixel = (r + dy - seen.y0) * seen.width + begin + dx - seen.x0;
                    A* to = &sums[((r - t.r0) * t.columns() + begin - t.c0) * B];
                    for (int64_t c = begin; c < end; c += 2, pixel += 2, to += 2 * B) {
                        bool has_next = c + 1 < end;
                        add_rows(slice, seen.rows(pixel, chunk), to, has_next ? seen.rows(pixel + 1, chunk) : nothing,
                                    has_next ? to + B : nowhere);
                    }
                }
            }
    for (int64_t r = t.r0; r < t.r1; r++)
        for (int64_t c = t.c0; c < t.c1; c++) {
            X* to = y + ((t.n * s.OH() + r) * s.OW() + c) * s.O + o;
            const A* from = &sums[((r - t.r0) * t.columns() + c - t.c0) * B];
            for (int64_t i = 0; i < std::min<int64_t>(B, s.O - o); i++) store(to[i], from[i]);
        }
}

template <typename X, typename A>
void forward(const Shape& s, const void* x, const void* packed, const void* bias, void* y, int threads) {
    std::vector<Tile> tiles = tiles_of(s);
    std::vector<PixelLists<A>> seen(tiles.size());
    int64_t count = tiles.size(), blocks = (s.O + B - 1) / B;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++) seen[i].fill(s, tiles[i], (const X*)x);
        // block by block, so that the weights of a block stay in the second-level cache for all tiles
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < blocks * count; i++)
            forward_tile<X, A>(s, tiles[i % count], seen[i % count], i / count * B, (const A*)packed, (const A*)bias,
                                  (X*)y);
    }
}

// The gradient of the weight. One thread sums a number, tile by tile, so that the number of threads changes nothing.
template <typename X, typename A>
void weight_gradient(const Shape& s, const void* x, const void* gy, void* gweight, int threads) {
    std::vector<Tile> tiles = tiles_of(s);
    std::vector<ChannelLists<A>> columns(tiles.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < int64_t(tiles.size()); i++) columns[i].fill(s, tiles[i], (const X*)x);

    int64_t blocks = (s.O + B - 1) / B, size = CHUNK_CHANNELS;
    while (size > 8 && blocks * s.KH * ((s.C + size - 1) / size) < 2 * threads) size /= 2;
    int64_t chunks = (s.C + size - 1) / size;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < blocks * s.KH * chunks; task++) {
        int64_t block = task / (s.KH * chunks), kh = task / chunks % s.KH;
        int64_t c0 = task % chunks * size, c1 = std::min(c0 + size, s.C);
        int64_t outputs = std::min<int64_t>(B, s.O - block * B);
        static thread_local std::vector<A> rows;  // gradients of a tile, [rows + 1][width][B]
        static thread_local std::vector<A> sums;  // [KW][c1 - c0][B]
        sums.assign(s.KW * (c1 - c0) * B, 0);
        A nowhere[B] = {};
        const Rows<A> nothing{};
        for (size_t i = 0; i < tiles.size(); i++) {
            const Tile& t = tiles[i];
            const ChannelLists<A>& seen = columns[i];
            rows.assign((t.rows() + 1) * seen.width * B, 0);
            for (int64_t r = t.r0; r < t.r1; r++)
                for (int64_t c = t.c0; c < t.c1; c++) {
                    const X* from = (const X*)gy + ((t.n * s.OH() + r) * s.OW() + c) * s.O + block * B;
                    A* row = &rows[((r - t.r0) * seen.width + c - t.c0 + s.KW - 1) * B];
                    for (int64_t j = 0; j < outputs; j++) row[j] = value(from[j]);
                }
            for (int64_t kw = 0; kw < s.KW; kw++)
                for (int64_t c = c0; c < c1; c += 2) {
                    const A* matrix = rows.data() + (s.KW - 1 - kw - kh * seen.width) * B;
                    A* to = &sums[(kw * (c1 - c0) + c - c0) * B];
                    bool has_next = c + 1 < c1;
                    add_rows(matrix, seen.of(c, kh, t.rows()), to, has_next ? seen.of(c + 1, kh, t.rows()) : nothing,
                                has_next ? to + B : nowhere);
                }
        }
        for (int64_t kw = 0; kw < s.KW; kw++)
            for (int64_t j = 0; j < outputs; j++) {
                A* to = (A*)gweight + (block * B + j) * s.strides[0] + kh * s.strides[2] + kw * s.strides[3];
                for (int64_t c = c0; c < c1; c++) to[c * s.strides[1]] = sums[(kw * (c1 - c0) + c - c0) * B + j];
            }
    }
}

// The weight as the forward pass reads it. Returns whether all of it is finite.
template <typename X, typename A>
bool pack(const Shape& s, const void* weight, void* packed, int threads) {
    constexpr int64_t COLUMNS = 16;  // transposed at a time: as many as a line of the cache holds
    int64_t blocks = (s.O + B - 1) / B, taps = s.KH * s.KW;
    bool finite = true;
#pragma omp parallel for num_threads(threads) reduction(&& : finite)
    for (int64_t i = 0; i < blocks * taps; i++) {
        int64_t o = i / taps * B, tap = i % taps;
        const X* from = (const X*)weight + o * s.strides[0] + tap / s.KW * s.strides[2] + tap % s.KW * s.strides[3];
        A* to = (A*)packed + i * s.C * B;
        A zeros = 0;  // infinity and NaN times 0 are NaN
        for (int64_t c0 = 0; c0 < s.C; c0 += COLUMNS)
            for (int64_t j = 0; j < B; j++)
                for (int64_t c = c0; c < std::min(c0 + COLUMNS, s.C); c++) {
                    A number = o + j < s.O ? value(from[j * s.strides[0] + c * s.strides[1]]) : A(0);
                    to[c * B + j] = number, zeros += number * 0;
                }
        finite = finite && zeros == 0;
    }
    return finite;
}

}  // namespace

extern "C" void fingerprint(const void* memory, int64_t size, uint64_t* to, int threads) {
    *to = fingerprint((const char*)memory, size, threads);
}

#define EXPORT(NAME, X, A)                                                                                     \
    extern "C" void forward_##NAME(const Shape* s, const void* x, const void* packed, const void* bias, void* y, \
                                   int threads) {                                                              \
        forward<X, A>(*s, x, packed, bias, y, threads);                                                        \
    }                                                                                                          \
    extern "C" void weight_gradient_##NAME(const Shape* s, const void* x, const void* gy, void* gweight,       \
                                           int threads) {                                                      \
        weight_gradient<X, A>(*s, x, gy, gweight, threads);                                                    \
    }                                                                                                          \
    extern "C" int pack_##NAME(const Shape* s, const void* weight, void* packed, int threads) {                \
        return pack<X, A>(*s, weight, packed, threads);                                                        \
    }

EXPORT(float32, float, float)
EXPORT(bfloat16, bf16, float)
EXPORT(float64, double, double)
