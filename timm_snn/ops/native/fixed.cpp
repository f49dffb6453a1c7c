// Units of whole numbers on a CPU: convolution, scale, pooling and neuron in one pass. Built by build.py, called by
// fixed_native.py; the numbers are those of fixed.py, to the bit.
//
// A tile of pixels goes through all of a unit: what its sums see that is not zero is listed in groups of four bytes,
// four products at a time are summed for many outputs, and neurons fire on the sums while these are in the near caches.
// No map of sums is ever written but where it is asked for. The membranes of a tile stay in memory of its own.
//
//   x         [T, N, H, W, C], uint8, int8 or int16; the channels of a pixel are together
//   y         [T, N, OH, OW, O], spikes uint8, or sums or currents int32
//   v, v_last [N, OH, OW, O], int32
//
// fixed_levels.hpp has the arithmetic by instruction set, fixed_tiles.hpp the tiles and their lists.

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "fingerprint.hpp"
#include "fixed_tiles.hpp"

namespace {

enum { PLAIN, AVX2, VNNI };         // levels, and
enum { SUMS, CURRENTS, SPIKES };    // what a unit gives, in the order of fixed_native.py

constexpr int MOST_REGISTERS = 4;   // with sums of one place

// The outputs of a group, in blocks of registers
template <typename L>
struct Blocks {
    int64_t registers, size, count, groups;  // registers and sums of a block, blocks of a group, groups

    explicit Blocks(const Unit& u) : groups(u.is_depthwise() ? 1 : u.groups) {
        int64_t vectors = across(u.O / groups, L::LANES);
        count = across(vectors, MOST_REGISTERS), registers = across(vectors, count), size = registers * L::LANES;
    }

    int64_t all() const { return groups * count * size; }
    // Where a channel of the output is, among `all`
    int64_t place(const Unit& u, int64_t o) const {
        int64_t of_group = u.O / groups;
        return o / of_group * count * size + o % of_group;
    }
};

// A weight as the passes read it, and what is to be known of it
template <typename L>
struct Packed {
    const Blocks<L> blocks;
    uint64_t* hash;
    int64_t* absolute;  // sum of the absolute weights of each output
    int32_t* total;     // sum of the weights
    int8_t* weights;    // [blocks][fours][size][4], or [KH][KW][all] if depthwise; zeros where there are none

    Packed(const Unit& u, void* memory) : blocks(u) {
        hash = (uint64_t*)memory, absolute = (int64_t*)(hash + 1);
        total = (int32_t*)(absolute + blocks.all()), weights = (int8_t*)(total + blocks.all());
    }

    int64_t block_bytes(const Unit& u) const { return u.fours() * blocks.size * 4; }

    int64_t bytes(const Unit& u) const {
        return 8 + 12 * blocks.all() + (u.is_depthwise() ? u.KH * u.KW * blocks.all() : blocks.all() * 4 * u.fours());
    }

    // Reads the weight, unless it is the one that was read last
    void update(const Unit& u, const int8_t* weight) {
        uint64_t now = fingerprint((const char*)weight, u.O * u.numbers(), u.threads);
        static std::mutex alone;  // threads that share a model come here at once
        std::lock_guard<std::mutex> lock(alone);
        if (*hash == now) return;
        std::memset(absolute, 0, bytes(u) - 8);
        for (int64_t o = 0; o < u.O; o++) {
            int64_t place = blocks.place(u, o), number = 0;
            int8_t* to = weights + place / blocks.size * block_bytes(u) + place % blocks.size * 4;
            for (int64_t kh = 0; kh < u.KH; kh++)
                for (int64_t kw = 0; kw < u.KW; kw++)
                    for (int64_t c = 0; c < u.group_inputs(); c++, number++) {
                        int8_t w = weight[o * u.strides[0] + c * u.strides[1] + kh * u.strides[2] + kw * u.strides[3]];
                        absolute[place] += std::abs(int(w)), total[place] += w;
                        if (u.is_depthwise())
                            weights[number * blocks.all() + o] = w;
                        else
                            to[number / 4 * blocks.size * 4 + number % 4] = w;
                    }
        }
        *hash = now;
    }
};

// Adds four products at a time to the sums of R vectors. Two groups go to sums of their own, since an addition waits
// for the one before.
template <typename L, int R>
INLINE void add_fours(const Fours& seen, const int8_t* weights, typename L::vec* sums) {
    typename L::vec others[R] = {};
    for (int64_t j = 0; j < seen.count; j += 2) {
        auto first = L::repeat(seen.values[j]), second = L::repeat(seen.values[j + 1]);
        const int8_t* of_first = weights + int64_t(seen.index[j]) * R * L::LANES * 4;
        const int8_t* of_second = weights + int64_t(seen.index[j + 1]) * R * L::LANES * 4;
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            sums[r] = L::dot(sums[r], first, of_first + r * L::LANES * 4);
            others[r] = L::dot(others[r], second, of_second + r * L::LANES * 4);
        }
    }
    for (int r = 0; r < R; r++) sums[r] += others[r];
}

// All sums of a block, [sum][R vectors]
template <typename L, int R>
void sum_block(const Unit& u, const Lists<L>& lists, int64_t sums, int64_t chunk_fours, const int8_t* weights,
               const int32_t* total, int32_t* to) {
    typedef typename L::vec vec;
    typedef vec anywhere __attribute__((aligned(4), may_alias));
    constexpr int64_t SIZE = R * L::LANES;
    int64_t chunks = lists.chunks, bytes = u.x_type == INT16 ? 2 : 1;
    for (int64_t i = 0; i < bytes * chunks; i++)
        for (int64_t sum = 0; sum < sums; sum++) {
            vec now[R] = {};
            if (i)
                for (int r = 0; r < R; r++) now[r] = *(anywhere*)(to + sum * SIZE + r * L::LANES);
            add_fours<L, R>(lists.of(sum * bytes * chunks + i), weights + i % chunks * chunk_fours * SIZE * 4, now);
            bool corrects = u.x_type != UINT8 && i == chunks - 1;  // takes away the 128 that was added to signed bytes
            for (int r = 0; r < R; r++) {
                if (corrects) now[r] = (now[r] - *(anywhere*)(total + r * L::LANES) * 128) << (bytes == 2 ? 8 : 0);
                *(anywhere*)(to + sum * SIZE + r * L::LANES) = now[r];
            }
        }
}

// The same of a depthwise convolution, whose sums are those of channels from `channel` on
template <typename L, typename X>
void sum_depthwise(const Unit& u, const Tile& tile, const X* x, int64_t t0, int64_t t1, int64_t channel, int64_t size,
                   const int8_t* weights, int64_t all, int32_t* to) {
    int64_t n = std::min(size, u.C - channel);
    for (int64_t t = t0; t < t1; t++)
        for (const Place& at : tile.places) {
            std::fill_n(to, size, 0);
            for (int64_t kh = 0; kh < u.KH; kh++)
                for (int64_t kw = 0; kw < u.KW; kw++) {
                    int64_t row = at.row * u.SH - u.PH + kh, column = at.column * u.SW - u.PW + kw;
                    if (row < 0 || row >= u.H || column < 0 || column >= u.W) continue;
                    const X* from = x + t * u.x_step + ((at.n * u.H + row) * u.W + column) * u.C + channel;
                    const int8_t* w = weights + (kh * u.KW + kw) * all + channel;
                    for (int64_t i = 0; i < n; i++) to[i] += int32_t(from[i]) * w[i];
                }
            to += size;
        }
}

// One number per output, in the places of the blocks
template <typename L>
std::vector<int32_t> placed(const Unit& u, const Blocks<L>& blocks, const int32_t* numbers) {
    std::vector<int32_t> all(blocks.all());
    if (numbers)
        for (int64_t o = 0; o < u.O; o++) all[blocks.place(u, o)] = numbers[o];
    return all;
}

template <typename L>
INLINE typename L::vec clamped(typename L::vec x) {
    typedef typename L::vec vec;
    x = x > vec{} + LIMIT ? vec{} + LIMIT : x;
    return x < vec{} - LIMIT ? vec{} - LIMIT : x;
}

// The current of a sum: its scale and bias
template <typename L>
struct Scale {
    typedef typename L::vec vec;
    const bool fits;  // whether no current leaves 32 bits before it is clamped
    const int shift;
    const int64_t half;
    vec multiplier, bias;

    INLINE vec of(vec sums) const {
        if (fits) return clamped<L>(L::scale(sums, multiplier, half, shift) + bias);
        for (int i = 0; i < L::LANES; i++) {
            int64_t current = ((int64_t(sums[i]) * multiplier[i] + half) >> shift) + bias[i];
            sums[i] = std::min<int64_t>(std::max<int64_t>(current, -LIMIT), LIMIT);
        }
        return sums;
    }
};

// The neuron of `fixed_lif` in fixed.py
template <typename L>
struct Neuron {
    typedef typename L::vec vec;
    const int leak_shift;
    const bool leaks, hard_reset, decay_input;
    const vec rest;
    vec threshold;

    explicit Neuron(const Unit& u)
        : leak_shift(std::max<int64_t>(u.leak_shift, 0)), leaks(u.leak_shift >= 0), hard_reset(u.hard_reset),
          decay_input(u.decay_input), rest(vec{} + int32_t(u.v_reset)) {}

    // Whether it fires, as 0 or 1, and the membrane after
    INLINE vec step(vec current, vec& v) const {
        vec h = !leaks        ? v + current
                : decay_input ? v + ((current - (v - rest)) >> leak_shift)
                              : v - ((v - rest) >> leak_shift) + current;
        h = clamped<L>(h);
        vec fires = h >= threshold;
        v = fires ? (hard_reset ? rest : h - threshold) : h;
        return fires & 1;
    }
};

// n of a vector's numbers, from or to memory
template <typename L, typename T>
INLINE void save(typename L::vec x, T* to, int64_t n) {
    typedef T narrow __attribute__((vector_size(L::LANES * sizeof(T))));
    narrow numbers = __builtin_convertvector(x, narrow);
    std::memcpy(to, &numbers, n == L::LANES ? sizeof numbers : n * sizeof(T));
}
template <typename L>
INLINE typename L::vec load(const int32_t* from, int64_t n) {
    typename L::vec numbers{};
    std::memcpy(&numbers, from, n == L::LANES ? sizeof numbers : n * sizeof(int32_t));
    return numbers;
}

// The sums of an output: those of its place, or the largest of its window. To scale them keeps their order.
template <typename L>
INLINE typename L::vec pooled(const Unit& u, const Tile& tile, const int32_t* sums, int64_t size, int64_t output) {
    if (!u.pool) return load<L>(sums + output * size, L::LANES);
    const Place& at = tile.pooled[output];
    typename L::vec most = typename L::vec{} + INT32_MIN;
    for (int64_t r = std::max<int64_t>(2 * at.row - 1, 0); r < std::min(2 * at.row + 2, u.rows()); r++)
        for (int64_t c = std::max<int64_t>(2 * at.column - 1, 0); c < std::min(2 * at.column + 2, u.columns()); c++) {
            int64_t place = (r - tile.first_row) * tile.width + c - tile.first_column;
            auto each = load<L>(sums + place * size, L::LANES);
            most = each > most ? each : most;
        }
    return most;
}

struct Tensors {
    const void* x;
    const int8_t* weight;
    void* packed;
    const int32_t *multiplier, *bias, *threshold, *v;
    void* y;
    int32_t* v_last;
};

template <typename L, int KIND>
class Run {
    typedef typename L::vec vec;
    const Unit& u;
    const Tensors& tensors;
    const Packed<L> packed;
    const Blocks<L>& blocks;
    const std::vector<int32_t> multiplier, bias, threshold;
    int64_t chunk_fours;
    bool fits = true;

    struct Workplace {
        Tile tile;
        Lists<L> lists;
        std::vector<int32_t> sums, v;  // [sum][size], [output][all]
    };

    void sum(Workplace& at, int64_t t0, int64_t t1, int64_t block) {
        int64_t sums = (t1 - t0) * at.tile.places.size();
        at.sums.resize(sums * blocks.size);
        if (u.is_depthwise()) {
            auto run = [&](auto* x) {
                sum_depthwise<L>(u, at.tile, x, t0, t1, block * blocks.size, blocks.size, packed.weights, blocks.all(),
                                 at.sums.data());
            };
            if (u.x_type == INT16) return run((const int16_t*)tensors.x);
            if (u.x_type == INT8) return run((const int8_t*)tensors.x);
            return run((const uint8_t*)tensors.x);
        }
        auto run = blocks.registers == 1   ? sum_block<L, 1>
                   : blocks.registers == 2 ? sum_block<L, 2>
                   : blocks.registers == 3 ? sum_block<L, 3>
                                           : sum_block<L, 4>;
        run(u, at.lists, sums, chunk_fours, packed.weights + block * packed.block_bytes(u),
            packed.total + block * blocks.size, at.sums.data());
    }

    // What the unit gives for steps t0 to t1, of which the sums are there; one step's if that is all of x
    void finish(Workplace& at, int64_t t0, int64_t t1, int64_t block) {
        int64_t group = block / blocks.count, of_group = u.O / blocks.groups, outputs = at.tile.outputs.size();
        int64_t first = block % blocks.count * blocks.size;
        Scale<L> scale{fits, int(u.shift), int64_t(1) << (u.shift - 1), {}, {}};
        Neuron<L> neuron(u);
        for (int64_t lane = 0; lane < blocks.size && first + lane < of_group; lane += L::LANES) {
            int64_t place = block * blocks.size + lane, n = std::min<int64_t>(of_group - first - lane, L::LANES);
            int64_t o = group * of_group + first + lane;
            scale.multiplier = load<L>(&multiplier[place], L::LANES), scale.bias = load<L>(&bias[place], L::LANES);
            neuron.threshold = load<L>(&threshold[place], L::LANES);
            for (int64_t i = 0; i < outputs; i++) {
                int32_t* membrane = KIND == SPIKES ? &at.v[i * blocks.all() + place] : nullptr;
                vec v = KIND == SPIKES ? load<L>(membrane, L::LANES) : vec{}, current{};
                for (int64_t t = t0; t < t1; t++) {
                    if (t == t0 || u.x_step) {
                        const int32_t* sums = &at.sums[(t - t0) * at.tile.places.size() * blocks.size + lane];
                        current = pooled<L>(u, at.tile, sums, blocks.size, i);
                        if (KIND != SUMS) current = scale.of(current);
                    }
                    int64_t to = (t * u.outputs() + at.tile.outputs[i]) * u.O + o;
                    if (KIND == SPIKES)
                        save<L>(neuron.step(current, v), (uint8_t*)tensors.y + to, n);
                    else
                        save<L>(current, (int32_t*)tensors.y + to, n);
                }
                if (KIND == SPIKES) save<L>(v, membrane, L::LANES);
            }
        }
    }

    // Between the tensors of membranes and those of a tile
    void copy_membranes(Workplace& at, const int32_t* from, int32_t* to) {
        int64_t outputs = at.tile.outputs.size(), of_group = u.O / blocks.groups;
        if (from == nullptr && to == nullptr) at.v.assign(outputs * blocks.all(), u.v_reset);
        else at.v.resize(outputs * blocks.all());
        for (int64_t i = 0; i < outputs && (from || to); i++)
            for (int64_t g = 0; g < blocks.groups; g++) {
                int32_t* mine = &at.v[i * blocks.all() + g * blocks.count * blocks.size];
                int64_t theirs = at.tile.outputs[i] * u.O + g * of_group;
                if (from) std::copy_n(from + theirs, of_group, mine);
                else std::copy_n(mine, of_group, to + theirs);
            }
    }

public:
    Run(const Unit& u, const Tensors& tensors)
        : u(u), tensors(tensors), packed(u, tensors.packed), blocks(packed.blocks),
          multiplier(placed(u, blocks, tensors.multiplier)), bias(placed(u, blocks, tensors.bias)),
          threshold(placed(u, blocks, tensors.threshold)) {}

    void operator()() {
        Packed<L>(packed).update(u, tensors.weight);
        chunk_fours = std::max<int64_t>(CHUNK_BYTES / (4 * blocks.size), 1);
        for (int64_t i = 0; i < blocks.all(); i++) {
            __int128 most = (__int128(packed.absolute[i]) * u.largest() * multiplier[i] >> u.shift) + 1;
            fits = fits && most + std::abs(int64_t(bias[i])) < INT32_MAX;
        }
        Tiling tiling(u);
#pragma omp parallel num_threads(u.threads)
        {
            static thread_local Workplace at;
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < tiling.count(); i++) {
                tiling.fill(i, at.tile);
                if (KIND == SPIKES) copy_membranes(at, tensors.v, nullptr);
                int64_t steps = u.x_step ? std::max<int64_t>(TILE_SUMS / at.tile.places.size(), 1) : u.T;
                for (int64_t t0 = 0; t0 < u.T; t0 += steps) {
                    int64_t t1 = std::min(t0 + steps, u.T), t_end = u.x_step ? t1 : t0 + 1;
                    for (int64_t block = 0; block < blocks.groups * blocks.count; block++) {
                        if (block % blocks.count == 0 && !u.is_depthwise())
                            at.lists.fill(u, at.tile, tensors.x, t0, t_end, block / blocks.count * u.group_inputs(),
                                          chunk_fours);
                        sum(at, t0, t_end, block);
                        finish(at, t0, t1, block);
                    }
                }
                if (KIND == SPIKES && tensors.v_last) copy_membranes(at, nullptr, tensors.v_last);
            }
        }
    }
};

template <typename L>
void run(const Unit& u, const Tensors& tensors, int kind) {
    if (kind == SUMS) Run<L, SUMS>(u, tensors)();
    if (kind == CURRENTS) Run<L, CURRENTS>(u, tensors)();
    if (kind == SPIKES) Run<L, SPIKES>(u, tensors)();
}

// Neurons alone: x [T][size] int32, one threshold, or one for each of `channels` that are together
template <typename L>
void fire(const Unit& u, const int32_t* x, const int32_t* threshold, int64_t channels, const int32_t* v,
          uint8_t* spikes, int32_t* v_last, int64_t size) {
    typedef typename L::vec vec;
    std::vector<int32_t> thresholds(channels + L::LANES);  // repeated, so that a vector is loaded from any channel
    for (int64_t i = 0; i < int64_t(thresholds.size()); i++) thresholds[i] = threshold[i % channels];
#pragma omp parallel for num_threads(u.threads) schedule(static)
    for (int64_t m = 0; m < size; m += L::LANES) {
        int64_t n = std::min<int64_t>(size - m, L::LANES);
        Neuron<L> neuron(u);
        neuron.threshold = load<L>(&thresholds[m % channels], L::LANES);
        vec now = v ? load<L>(v + m, n) : neuron.rest;
        for (int64_t t = 0; t < u.T; t++)
            save<L>(neuron.step(clamped<L>(load<L>(x + t * u.x_step + m, n)), now), spikes + t * size + m, n);
        if (v_last) save<L>(now, v_last + m, n);
    }
}

template <typename F>
void at_level(int level, F f) {
#ifdef HAS_VNNI
    if (level == VNNI) return f(Vnni());
#endif
#ifdef __AVX2__
    if (level == AVX2) return f(Avx2());
#endif
    f(Plain());
}

}  // namespace

// The best level that this was built for
extern "C" int best_level() {
#if defined(HAS_VNNI)
    return VNNI;
#elif defined(__AVX2__)
    return AVX2;
#else
    return PLAIN;
#endif
}

extern "C" int64_t packed_bytes(const Unit* u, int level) {
    int64_t bytes = 0;
    at_level(level, [&](auto l) { bytes = Packed<decltype(l)>(*u, nullptr).bytes(*u); });
    return bytes;
}

extern "C" void run(const Unit* u, const Tensors* tensors, int kind, int level) {
    at_level(level, [&](auto l) { run<decltype(l)>(*u, *tensors, kind); });
}

extern "C" void fire(const Unit* u, const int32_t* x, const int32_t* threshold, int64_t channels, const int32_t* v,
                     uint8_t* spikes, int32_t* v_last, int64_t size, int level) {
    at_level(level, [&](auto l) { fire<decltype(l)>(*u, x, threshold, channels, v, spikes, v_last, size); });
}
