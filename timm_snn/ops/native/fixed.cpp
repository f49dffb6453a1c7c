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
    int8_t* weights;    // [blocks][fours][size][4], or [KH][KW][all] if depthwise; zeros where there are none
    int64_t* absolute;  // sum of the absolute weights of each output
    int32_t* total;     // sum of the weights
    uint64_t* hash;

    Packed(const Unit& u, void* memory) : blocks(u) {
        weights = (int8_t*)memory;  // first, since a vector that lies in two lines of the cache is read twice
        absolute = (int64_t*)(weights + weight_bytes(u)), total = (int32_t*)(absolute + blocks.all());
        hash = (uint64_t*)(total + blocks.all());
    }

    int64_t block_bytes(const Unit& u) const { return u.fours() * blocks.size * 4; }
    int64_t weight_bytes(const Unit& u) const {
        return blocks.all() * (u.is_depthwise() ? u.KH * u.KW : 4 * u.fours());
    }
    int64_t bytes(const Unit& u) const { return weight_bytes(u) + 12 * blocks.all() + 8; }

    // Reads the weight, unless it is the one that was read last
    void update(const Unit& u, const int8_t* weight) {
        uint64_t now = fingerprint((const char*)weight, u.O * u.numbers(), u.threads);
        static std::mutex alone;  // threads that share a model come here at once
        std::lock_guard<std::mutex> lock(alone);
        if (*hash == now) return;
        std::memset(weights, 0, bytes(u) - 8);
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

// n of a vector's numbers, from or to memory
template <typename L, typename T>
INLINE void save(typename L::vec x, T* to, int64_t n = L::LANES) {
    typedef T narrow __attribute__((vector_size(L::LANES * sizeof(T))));
    narrow numbers = __builtin_convertvector(x, narrow);
    std::memcpy(to, &numbers, n == L::LANES ? sizeof numbers : n * sizeof(T));
}
template <typename L>
INLINE typename L::vec load(const int32_t* from, int64_t n = L::LANES) {
    typename L::vec numbers{};
    std::memcpy(&numbers, from, n == L::LANES ? sizeof numbers : n * sizeof(int32_t));
    return numbers;
}

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

// Adds what is listed to all sums of a block, [sum][R vectors], which are zero where this is the first of it
template <typename L, int R>
void sum_block(const Lists<L>& lists, int64_t sums, bool is_first, const int8_t* weights, int32_t* to) {
    for (int64_t sum = 0; sum < sums; sum++, to += R * L::LANES) {
        typename L::vec now[R] = {};
        if (!is_first)
            for (int r = 0; r < R; r++) now[r] = load<L>(to + r * L::LANES);
        add_fours<L, R>(lists.of(sum), weights, now);
        for (int r = 0; r < R; r++) save<L>(now[r], to + r * L::LANES);
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

// The current of a sum: its scale and bias. FITS: whether none leaves 32 bits before it is clamped
template <typename L, bool FITS>
struct Scale {
    typename L::vec multiplier, bias;
    int64_t half;
    int shift;

    INLINE typename L::vec of(typename L::vec sums) const {
        if (FITS) return clamped<L>(L::scale(sums, multiplier, half, shift) + bias);
        for (int i = 0; i < L::LANES; i++) {
            int64_t current = ((int64_t(sums[i]) * multiplier[i] + half) >> shift) + bias[i];
            sums[i] = std::min<int64_t>(std::max<int64_t>(current, -LIMIT), LIMIT);
        }
        return sums;
    }
};

// The neuron of `fixed_lif` in fixed.py. USUAL: whether it has the settings of the published models
template <typename L, bool USUAL>
struct Neuron {
    typedef typename L::vec vec;
    const int leak_shift;
    const bool leaks, hard_reset, decay_input;
    const vec rest, threshold;

    Neuron(const Unit& u, vec threshold)
        : leak_shift(std::max<int64_t>(u.leak_shift, 0)), leaks(u.leak_shift >= 0), hard_reset(u.hard_reset),
          decay_input(u.decay_input), rest(vec{} + int32_t(u.v_reset)), threshold(threshold) {}

    static bool is_usual(const Unit& u) {
        return u.leak_shift >= 0 && u.hard_reset && u.v_reset == 0 && u.decay_input;
    }

    // Whether it fires, as 0 or 1, and the membrane after
    INLINE vec step(vec current, vec& v) const {
        if (USUAL) {  // h lies between v and the current
            vec h = v + ((current - v) >> leak_shift), fires = h >= threshold;
            v = fires ? vec{} : h;
            return fires & 1;
        }
        vec h = !leaks        ? v + current
                : decay_input ? v + ((current - (v - rest)) >> leak_shift)
                              : v - ((v - rest) >> leak_shift) + current;
        h = clamped<L>(h);
        vec fires = h >= threshold;
        v = fires ? (hard_reset ? rest : h - threshold) : h;
        return fires & 1;
    }
};

// The largest sums of the window of an output. To scale sums keeps their order.
template <typename L>
INLINE typename L::vec largest(const Window& window, int64_t width, const int32_t* sums, int64_t size) {
    typename L::vec most = load<L>(sums + window.first * size);
    for (int64_t r = 0; r < window.rows; r++)
        for (int64_t c = 0; c < window.columns; c++) {
            auto each = load<L>(sums + (window.first + r * width + c) * size);
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

// f of std::true_type or of std::false_type, for code without a choice in it; of the latter if nobody ASKS
template <bool ASKS, typename F>
INLINE void either(bool which, F f) {
    if constexpr (ASKS)
        which ? f(std::true_type()) : f(std::false_type());
    else
        f(std::false_type());
}

template <typename L, int KIND>
class Run {
    typedef typename L::vec vec;
    const Unit& u;
    const Tensors& tensors;
    const Packed<L> packed;
    const Blocks<L>& blocks;
    const std::vector<int32_t> multiplier, bias, threshold;
    bool fits = true;

    struct Workplace {
        Tile tile;
        Lists<L> lists;
        std::vector<int32_t> sums, v;  // [sum][size], [output][all]
    };

    // The sums of steps t0 to t1 of a group of outputs, [block][sum][size]
    void sum(Workplace& at, int64_t t0, int64_t t1, int64_t group) {
        int64_t sums = (t1 - t0) * at.tile.places.size(), size = sums * blocks.size;
        at.sums.resize(blocks.count * size);
        if (u.is_depthwise()) {
            auto run = [&](auto* x) {
                for (int64_t block = 0; block < blocks.count; block++)
                    sum_depthwise<L>(u, at.tile, x, t0, t1, block * blocks.size, blocks.size, packed.weights,
                                     blocks.all(), &at.sums[block * size]);
            };
            if (u.x_type == INT16) return run((const int16_t*)tensors.x);
            if (u.x_type == INT8) return run((const int8_t*)tensors.x);
            return run((const uint8_t*)tensors.x);
        }
        auto run = blocks.registers == 1   ? sum_block<L, 1>
                   : blocks.registers == 2 ? sum_block<L, 2>
                   : blocks.registers == 3 ? sum_block<L, 3>
                                           : sum_block<L, 4>;
        int64_t chunk = std::max<int64_t>(CHUNK_BYTES / (4 * blocks.size), 1);
        for (int byte = 0; byte < (u.x_type == INT16 ? 2 : 1); byte++)
            for (int64_t first = 0; first < u.fours(); first += chunk) {
                int64_t end = std::min(first + chunk, u.fours());
                at.lists.fill(u, at.tile, tensors.x, t0, t1, group * u.group_inputs(), first, end, byte == 0);
                for (int64_t block = 0; block < blocks.count; block++) {
                    const int8_t* weights = packed.weights + (group * blocks.count + block) * packed.block_bytes(u);
                    run(at.lists, sums, byte == 0 && first == 0, weights + first * blocks.size * 4, &at.sums[block * size]);
                }
                if (u.x_type != UINT8 && byte == 0 && end == u.fours()) take_zeros(at, sums, group);
            }
    }

    // Takes away the 128 that was added to signed bytes, and makes them the first ones of 16 bits if they are
    void take_zeros(Workplace& at, int64_t sums, int64_t group) {
        int32_t factor = u.x_type == INT16 ? 256 : 1, *to = at.sums.data();
        for (int64_t block = 0; block < blocks.count; block++) {
            const int32_t* total = packed.total + (group * blocks.count + block) * blocks.size;
            for (int64_t sum = 0; sum < sums; sum++, to += blocks.size)
                for (int64_t i = 0; i < blocks.size; i++) to[i] = (to[i] - 128 * total[i]) * factor;
        }
    }

    // What the unit gives for steps t0 to t1, of which the sums are there; one step's if that is all of x
    void finish(Workplace& at, int64_t t0, int64_t t1, int64_t group, int64_t block) {
        int64_t of_group = u.O / blocks.groups, first = block * blocks.size;
        const int32_t* sums = &at.sums[block * (u.x_step ? t1 - t0 : 1) * at.tile.places.size() * blocks.size];
        for (int64_t lane = 0; lane < blocks.size && first + lane < of_group; lane += L::LANES) {
            int64_t n = std::min<int64_t>(of_group - first - lane, L::LANES);
            int64_t place = group * blocks.count * blocks.size + first + lane, o = group * of_group + first + lane;
            either<KIND != SUMS>(u.pool, [&](auto pool) {
                either<KIND != SUMS>(fits, [&](auto fits) {
                    either<KIND == SPIKES>(Neuron<L, true>::is_usual(u), [&](auto usual) {
                        either<true>(n == L::LANES, [&](auto full) {
                            finish_lanes<pool.value, fits.value, usual.value, full.value>(  //
                                at, sums + lane, t0, t1, place, o, n);
                        });
                    });
                });
            });
        }
    }

    // The n outputs of a vector from o on. All it needs is in variables of its own, which no pointer may change.
    template <bool POOL, bool FITS, bool USUAL, bool FULL>
    void finish_lanes(Workplace& at, const int32_t* all_sums, int64_t t0, int64_t t1, int64_t place, int64_t o,
                      int64_t n) {
        typedef typename std::conditional<KIND == SPIKES, uint8_t, int32_t>::type Y;
        const Scale<L, FITS> scale{load<L>(&multiplier[place]), load<L>(&bias[place]), int64_t(1) << (u.shift - 1),
                                   int(u.shift)};
        const Neuron<L, USUAL> neuron(u, load<L>(&threshold[place]));
        const bool repeats = u.x_step == 0;
        const int64_t outputs = at.tile.outputs.size(), size = blocks.size, width = at.tile.width, all = blocks.all();
        const int64_t sums_step = at.tile.places.size() * size, y_step = u.outputs() * u.O;
        for (int64_t i = 0; i < outputs; i++) {
            const int32_t* sums = all_sums;
            Y* to = (Y*)tensors.y + t0 * y_step + at.tile.outputs[i] * u.O + o;
            int32_t* membrane = KIND == SPIKES ? &at.v[i * all + place] : nullptr;
            vec v = KIND == SPIKES ? load<L>(membrane) : vec{}, current{};
            for (int64_t t = t0; t < t1; t++, sums += sums_step, to += y_step) {
                if (t == t0 || !repeats) {
                    current = POOL ? largest<L>(at.tile.windows[i], width, sums, size) : load<L>(sums + i * size);
                    if (KIND != SUMS) current = scale.of(current);
                }
                save<L>(KIND == SPIKES ? neuron.step(current, v) : current, to, FULL ? L::LANES : n);
            }
            if (KIND == SPIKES) save<L>(v, membrane);
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
                    for (int64_t group = 0; group < blocks.groups; group++) {
                        sum(at, t0, t_end, group);
                        for (int64_t block = 0; block < blocks.count; block++) finish(at, t0, t1, group, block);
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
        const Neuron<L, false> neuron(u, load<L>(&thresholds[m % channels]));
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
