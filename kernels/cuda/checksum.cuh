// kvsum64 of chunks, added up by the threads that copy them. kernels/checksum.py defines it.
//
// A thread adds up the parts of its vectors for as long as these are of one chunk. As soon as one thread of a warp comes
// to another chunk, the whole warp adds what it has to the sums in memory. So each CTA has whole warps, and all threads
// of a warp call a function with "warp" in its name together.

constexpr u64 kKeyOfWord1 = 0x9E3779B97F4A7C15;  // the key of word i is i times as much, modulo 2**64
constexpr u32 kWholeWarp = 0xFFFFFFFF;
constexpr u32 kWarpThreads = 32;

// What a thread has added up of the checksum of one chunk.
struct ChunkSum {
    u32 chunk;
    u64 part;
};

__device__ __forceinline__ u64 part_of_word(u32 low, u32 high, u64 key) {
    const u32 keyed_low = low + static_cast<u32>(key);
    const u32 keyed_high = high + static_cast<u32>(key >> 32);
    return static_cast<u64>(keyed_low) * keyed_high + (static_cast<u64>(high) << 32 | low);
}

// Returns what a vector adds to the checksum of the chunk in which it begins at an offset.
__device__ __forceinline__ u64 part_of(const uint2& vector, u64 chunk_offset) {
    return part_of_word(vector.x, vector.y, chunk_offset / sizeof(u64) * kKeyOfWord1);
}

__device__ __forceinline__ u64 part_of(const uint4& vector, u64 chunk_offset) {
    const u64 key = chunk_offset / sizeof(u64) * kKeyOfWord1;
    return part_of_word(vector.x, vector.y, key) + part_of_word(vector.z, vector.w, key + kKeyOfWord1);
}

__device__ __forceinline__ bool is_any_in_warp(bool value) {
    return __any_sync(kWholeWarp, value);
}

// Adds what the threads have to the sums in memory. If all have parts of one chunk, this is one addition.
__device__ __forceinline__ void add_warp_to_sums(u64* sums, const ChunkSum& sum) {
    if (__all_sync(kWholeWarp, sum.chunk == __shfl_sync(kWholeWarp, sum.chunk, 0))) {
        u64 part = sum.part;
        for (u32 distance = kWarpThreads / 2; distance > 0; distance /= 2) {
            part += __shfl_down_sync(kWholeWarp, part, distance);
        }
        if (threadIdx.x % kWarpThreads == 0) atomicAdd(sums + sum.chunk, part);
    } else if (sum.part != 0) {
        atomicAdd(sums + sum.chunk, sum.part);
    }
}

// Prepares a sum for a vector of a chunk: if any thread of the warp changes to another chunk, all start anew.
__device__ __forceinline__ void change_warp_to_chunk(u64* sums, ChunkSum& sum, u32 chunk) {
    if (is_any_in_warp(chunk != sum.chunk)) {
        add_warp_to_sums(sums, sum);
        sum = {chunk, 0};
    }
}
