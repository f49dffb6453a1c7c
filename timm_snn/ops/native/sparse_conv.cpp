// Convolutions that look at what is not zero, on a CPU. Built by build.py, called by sparse_conv.py, which says what for.
//
// Nonzeros are compressed to lists once per tile of pixels. Then both passes do the same: add the rows of a matrix that
// a list names, B numbers each, into B sums that stay in registers. All is ordered so that the matrix is small enough
// for the near caches while a whole tile uses it: rows of weights in the forward pass, of gradients in the other.
//
//   x       [N, H, W, C], of type X; a pixel's channels are together
//   y, gy   [N, OH, OW, O], of type X; stride 1, zeros around the map
//   packed  the weight as [blocks of B output channels][KH][KW][C][B], of type A, in which sums are taken; zeros beyond O

#include <algorithm>
#include <vector>

#include "float_formats.hpp"

#ifdef __AVX2__
#include <immintrin.h>
#endif

struct Shape {  // of sparse_conv.py, number by number
    int64_t N, H, W, C, O, KH, KW, PH, PW, strides[4];  // those of the weight or its gradient, [O, C, KH, KW]
    int64_t OH() const { return H + 2 * PH - KH + 1; }
    int64_t OW() const { return W + 2 * PW - KW + 1; }
};

namespace {

constexpr int REGISTER = 32;  // bytes
// The fastest of eight pairs over the layers of msvit_10_384, on two cores with caches of 32 KB and 512 KB
constexpr int PIXELS = 256;  // of a tile
constexpr int CHUNK = 192;   // channels of a slice of weights

// B sums in vector registers
template <typename A, int B>
struct Sums {
    typedef A vec __attribute__((vector_size(REGISTER), aligned(alignof(A)), may_alias));
    static constexpr int LANES = REGISTER / sizeof(A), SIZE = B / LANES;
    vec sums[SIZE];

    void load(const A* from) {
        for (int i = 0; i < SIZE; i++) sums[i] = *(const vec*)(from + i * LANES);
    }
    void save(A* to) const {
        for (int i = 0; i < SIZE; i++) *(vec*)(to + i * LANES) = sums[i];
    }
    // rows[list[j]] for all j, times values[j] unless all are 1
    template <typename Index>
    void add(const A* rows, const Index* list, const A* values, int64_t count) {
        if (values == nullptr) {
            for (int64_t j = 0; j < count; j++) {
                const A* row = rows + int64_t(list[j]) * B;
#pragma GCC unroll 16
                for (int i = 0; i < SIZE; i++) sums[i] += *(const vec*)(row + i * LANES);
            }
        } else {
            for (int64_t j = 0; j < count; j++) {
                const A* row = rows + int64_t(list[j]) * B;
#pragma GCC unroll 16
                for (int i = 0; i < SIZE; i++) sums[i] += values[j] * *(const vec*)(row + i * LANES);
            }
        }
    }
};

#ifdef __AVX2__
const struct Table {  // the lanes of a mask that are set, first
    uint8_t lanes[256][8] = {};
    Table() {
        for (int mask = 0; mask < 256; mask++)
            for (int lane = 0, count = 0; lane < 8; lane++)
                if (mask >> lane & 1) lanes[mask][count++] = lane;
    }
} TABLE;
#endif

// Positions and values of what is not zero, in order. Room for 8 more than there are.
template <typename A>
struct List {
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
        __m128i lanes = _mm_loadl_epi64((const __m128i*)TABLE.lanes[nonzero]);
        __m128i channels = _mm_add_epi16(_mm_cvtepu8_epi16(lanes), _mm_set1_epi16(c));
        _mm_storeu_si128((__m128i*)&index[size], channels);
        _mm256_storeu_ps(&values[size], _mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(lanes)));
        size += __builtin_popcount(nonzero);
        ones &= !(nonzero & other);
    }
#endif
};

// Rows r0 to r1 and columns c0 to c1 of the output of one sample
struct Tile {
    int64_t n, r0, r1, c0, c1;
    int64_t rows() const { return r1 - r0; }
    int64_t columns() const { return c1 - c0; }
};

std::vector<Tile> tiles_of(const Shape& s) {
    int64_t columns = std::min<int64_t>(s.OW(), PIXELS), rows = std::max<int64_t>(PIXELS / columns, 1);
    std::vector<Tile> tiles;
    for (int64_t n = 0; n < s.N; n++)
        for (int64_t r = 0; r < s.OH(); r += rows)
            for (int64_t c = 0; c < s.OW(); c += columns)
                tiles.push_back({n, r, std::min(r + rows, s.OH()), c, std::min(c + columns, s.OW())});
    return tiles;
}

// What a tile sees of x, by pixel: rows and columns from y0 and x0, and where each chunk of a pixel's channels starts.
template <typename A>
struct Pixels {
    std::vector<uint16_t> index;
    std::vector<A> values;       // empty if all are 1
    std::vector<int32_t> start;  // [pixel][chunk], and the end
    int64_t y0, x0, width, chunks;

    template <typename X>
    void fill(const Shape& s, const Tile& t, const X* x) {
        static thread_local List<A> list;
        y0 = std::max<int64_t>(t.r0 - s.PH, 0), x0 = std::max<int64_t>(t.c0 - s.PW, 0);
        int64_t height = std::max<int64_t>(std::min(t.r1 - s.PH + s.KH - 1, s.H) - y0, 0);
        width = std::max<int64_t>(std::min(t.c1 - s.PW + s.KW - 1, s.W) - x0, 0);
        chunks = (s.C + CHUNK - 1) / CHUNK;
        list.clear(), list.reserve(height * width * s.C), start.resize(height * width * chunks + 1);
        int32_t* at = start.data();
        for (int64_t iy = y0; iy < y0 + height; iy++)
            for (int64_t ix = x0; ix < x0 + width; ix++)
                for (int64_t c = 0; c < s.C; c += CHUNK, at++) {
                    *at = list.size;
                    list.append(x + ((t.n * s.H + iy) * s.W + ix) * s.C, c, std::min(c + CHUNK, s.C));
                }
        *at = list.size;
        index.assign(list.index.begin(), list.index.begin() + list.size);
        if (!list.ones) values.assign(list.values.begin(), list.values.begin() + list.size);
    }
};

// Outputs o to o + B of a tile
template <typename X, typename A, int B>
void forward_tile(const Shape& s, const Tile& t, const Pixels<A>& seen, int64_t o, const A* weight, const A* bias, X* y) {
    static thread_local std::vector<A> sums;  // [pixel][B]
    sums.resize(t.rows() * t.columns() * B);
    for (int64_t i = 0; i < t.rows() * t.columns(); i++) std::copy_n(bias + o, B, &sums[i * B]);
    for (int64_t chunk = 0; chunk < seen.chunks; chunk++)
        for (int64_t kh = 0; kh < s.KH; kh++)
            for (int64_t kw = 0; kw < s.KW; kw++) {
                const A* slice = weight + ((o / B * s.KH + kh) * s.KW + kw) * s.C * B;
                int64_t dy = kh - s.PH, dx = kw - s.PW;
                for (int64_t r = std::max(t.r0, -dy); r < std::min(t.r1, s.H - dy); r++)
                    for (int64_t c = std::max(t.c0, -dx); c < std::min(t.c1, s.W - dx); c++) {
                        int64_t pixel = (r + dy - seen.y0) * seen.width + c + dx - seen.x0;
                        const int32_t* start = &seen.start[pixel * seen.chunks + chunk];
                        int64_t begin = start[0], count = start[1] - begin;
                        if (count == 0) continue;
                        A* to = &sums[((r - t.r0) * t.columns() + c - t.c0) * B];
                        Sums<A, B> sum;
                        sum.load(to);
                        sum.add(slice, &seen.index[begin], seen.values.empty() ? nullptr : &seen.values[begin], count);
                        sum.save(to);
                    }
            }
    for (int64_t r = t.r0; r < t.r1; r++)
        for (int64_t c = t.c0; c < t.c1; c++) {
            X* to = y + ((t.n * s.OH() + r) * s.OW() + c) * s.O + o;
            const A* from = &sums[((r - t.r0) * t.columns() + c - t.c0) * B];
            for (int64_t i = 0; i < std::min<int64_t>(B, s.O - o); i++) store(to[i], from[i]);
        }
}

template <typename X, typename A, int B>
void forward(const Shape& s, const void* x, const void* packed, const void* bias, void* y, int threads) {
    std::vector<Tile> tiles = tiles_of(s);
    std::vector<Pixels<A>> seen(tiles.size());
    int64_t count = tiles.size(), blocks = (s.O + B - 1) / B;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++) seen[i].fill(s, tiles[i], (const X*)x);
        // block by block, whose weights then stay in the second-level cache for all tiles
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < blocks * count; i++)
            forward_tile<X, A, B>(s, tiles[i % count], seen[i % count], i / count * B, (const A*)packed, (const A*)bias,
                                  (X*)y);
    }
}

// Which of up to 8 numbers are not zero, as bits, and whether those are all 1
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

// Write the positions of the set bits of a byte, first + 0 to 7, with room for 8; returns the end
inline uint16_t* write_positions(unsigned bits, int64_t first, uint16_t* to) {
#ifdef __AVX2__
    __m128i lanes = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i*)TABLE.lanes[bits]));
    _mm_storeu_si128((__m128i*)to, _mm_add_epi16(lanes, _mm_set1_epi16(first)));
    return to + __builtin_popcount(bits);
#else
    for (; bits; bits &= bits - 1) *to++ = first + __builtin_ctz(bits);
    return to;
#endif
}

// What a tile sees of x, by channel: positions in its padded map, row by row, and where each row of a channel starts.
// A row of the map is as wide as a row of gradients with KW - 1 zeros before it, so that a tap is a fixed distance.
template <typename A>
struct Columns {
    std::vector<uint16_t> index;
    std::vector<A> values;       // empty if all are 1
    std::vector<int64_t> start;  // [C][rows + 1]
    int64_t rows, width;

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
                    eight = eight >> channel % 8 & 0x0101010101010101;  // a bit per byte, which the product brings together
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

// The gradient of the weight. Every number is summed tile by tile by one thread: the same on any number.
template <typename X, typename A, int B>
void weight_gradient(const Shape& s, const void* x, const void* gy, void* gweight, int threads) {
    std::vector<Tile> tiles = tiles_of(s);
    std::vector<Columns<A>> columns(tiles.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < int64_t(tiles.size()); i++) columns[i].fill(s, tiles[i], (const X*)x);

    int64_t blocks = (s.O + B - 1) / B, size = CHUNK;
    while (size > 8 && blocks * s.KH * ((s.C + size - 1) / size) < 2 * threads) size /= 2;
    int64_t chunks = (s.C + size - 1) / size;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < blocks * s.KH * chunks; task++) {
        int64_t block = task / (s.KH * chunks), kh = task / chunks % s.KH;
        int64_t c0 = task % chunks * size, c1 = std::min(c0 + size, s.C), outputs = std::min<int64_t>(B, s.O - block * B);
        static thread_local std::vector<A> rows;  // gradients of a tile, [rows + 1][width][B]
        static thread_local std::vector<A> sums;  // [KW][c1 - c0][B]
        sums.assign(s.KW * (c1 - c0) * B, 0);
        for (size_t i = 0; i < tiles.size(); i++) {
            const Tile& t = tiles[i];
            const Columns<A>& seen = columns[i];
            rows.assign((t.rows() + 1) * seen.width * B, 0);
            for (int64_t r = t.r0; r < t.r1; r++)
                for (int64_t c = t.c0; c < t.c1; c++) {
                    const X* from = (const X*)gy + ((t.n * s.OH() + r) * s.OW() + c) * s.O + block * B;
                    A* row = &rows[((r - t.r0) * seen.width + c - t.c0 + s.KW - 1) * B];
                    for (int64_t j = 0; j < outputs; j++) row[j] = value(from[j]);
                }
            for (int64_t kw = 0; kw < s.KW; kw++)
                for (int64_t c = c0; c < c1; c++) {
                    const int64_t* start = &seen.start[c * (seen.rows + 1) + kh];
                    int64_t begin = start[0], count = start[t.rows()] - begin;
                    if (count == 0) continue;
                    A* to = &sums[(kw * (c1 - c0) + c - c0) * B];
                    Sums<A, B> sum;
                    sum.load(to);
                    sum.add(rows.data() + (s.KW - 1 - kw - kh * seen.width) * B, &seen.index[begin],
                            seen.values.empty() ? nullptr : &seen.values[begin], count);
                    sum.save(to);
                }
        }
        for (int64_t kw = 0; kw < s.KW; kw++)
            for (int64_t j = 0; j < outputs; j++) {
                A* to = (A*)gweight + (block * B + j) * s.strides[0] + kh * s.strides[2] + kw * s.strides[3];
                for (int64_t c = c0; c < c1; c++) to[c * s.strides[1]] = sums[(kw * (c1 - c0) + c - c0) * B + j];
            }
    }
}

// A weight as the forward pass reads it
template <typename X, typename A, int B>
void pack(const Shape& s, const void* weight, void* packed, int threads) {
    constexpr int64_t COLUMNS = 16;  // of a matrix that is transposed, at a time: a line of the cache
    int64_t blocks = (s.O + B - 1) / B, taps = s.KH * s.KW;
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < blocks * taps; i++) {
        int64_t o = i / taps * B, tap = i % taps;
        const X* from = (const X*)weight + o * s.strides[0] + tap / s.KW * s.strides[2] + tap % s.KW * s.strides[3];
        A* to = (A*)packed + i * s.C * B;
        for (int64_t c0 = 0; c0 < s.C; c0 += COLUMNS)
            for (int64_t j = 0; j < B; j++)
                for (int64_t c = c0; c < std::min(c0 + COLUMNS, s.C); c++)
                    to[c * B + j] = o + j < s.O ? value(from[j * s.strides[0] + c * s.strides[1]]) : A(0);
    }
}

}  // namespace

#define EXPORT(NAME, X, A, B)                                                                                       \
    extern "C" void forward_##NAME##_##B(const Shape* s, const void* x, const void* packed, const void* bias,       \
                                         void* y, int threads) {                                                    \
        forward<X, A, B>(*s, x, packed, bias, y, threads);                                                          \
    }                                                                                                               \
    extern "C" void weight_gradient_##NAME##_##B(const Shape* s, const void* x, const void* gy, void* gweight,      \
                                                 int threads) {                                                     \
        weight_gradient<X, A, B>(*s, x, gy, gweight, threads);                                                      \
    }                                                                                                               \
    extern "C" void pack_##NAME##_##B(const Shape* s, const void* weight, void* packed, int threads) {              \
        pack<X, A, B>(*s, weight, packed, threads);                                                                 \
    }
#define EXPORT_BOTH(NAME, X, A) EXPORT(NAME, X, A, 32) EXPORT(NAME, X, A, 64)

EXPORT_BOTH(float32, float, float)
EXPORT_BOTH(bfloat16, bf16, float)
EXPORT_BOTH(float64, double, double)
