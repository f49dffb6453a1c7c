// 64 bits that stand for a piece of memory, by which a change of frozen weights is seen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// One to one in both, so that a change of one word always shows
inline uint64_t mixed(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15;
    return hash ^ hash >> 32;
}

// 64 bits that tell this memory from any other, with one chance in 2^64 to be wrong
inline uint64_t fingerprint(const char* memory, int64_t size, int threads) {
    constexpr int64_t PIECE = 1 << 16, LANES = 8;  // lanes, since a word waits for the hash of the one before
    std::vector<uint64_t> hashes((size + PIECE - 1) / PIECE);
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < int64_t(hashes.size()); i++) {
        const char *from = memory + i * PIECE, *end = std::min(from + PIECE, memory + size);
        uint64_t lanes[LANES] = {};
        for (; end - from >= int64_t(sizeof lanes); from += sizeof lanes) {
            uint64_t words[LANES];
            std::memcpy(words, from, sizeof words);
            for (int lane = 0; lane < LANES; lane++) lanes[lane] = mixed(lanes[lane], words[lane]);
        }
        for (; from < end; from++) lanes[0] = mixed(lanes[0], (unsigned char)*from);
        for (uint64_t lane : lanes) hashes[i] = mixed(hashes[i], lane);
    }
    uint64_t all = size;
    for (uint64_t hash : hashes) all = mixed(all, hash);
    return all;
}

}  // namespace
