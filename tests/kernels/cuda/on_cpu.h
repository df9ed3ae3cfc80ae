// Enough of CUDA to run a source of kernels/ on a CPU, one thread after the other, with every access looked at.
//
// Exact for kernels whose threads do not talk to each other: no __syncthreads, no warp intrinsics, no shared memory.

#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

static dim3 gridDim, blockDim, blockIdx, threadIdx;

// Memory that a launch may use.
enum Use : uint64_t { kTable, kSource, kTarget };
struct Extent {
    uint64_t begin, end, use;
};

// What a launch may use, and what it did.
struct Observation {
    const Extent* extents;
    uint64_t num_extents;
    uint64_t misaligned;
    uint64_t stray;       // accesses outside of all extents of their use, not carried out
    uint64_t loads[17];   // of sources, by width in bytes
    uint64_t stores[17];  // of targets
};

static Observation* observation;

template <typename T>
static bool is_allowed(const T* pointer, Use use) {
    const uint64_t address = reinterpret_cast<uint64_t>(pointer);
    if (address % sizeof(T) != 0) ++observation->misaligned;
    for (uint64_t i = 0; i < observation->num_extents; ++i) {
        const Extent& extent = observation->extents[i];
        if (extent.use == use && extent.begin <= address && address + sizeof(T) <= extent.end) return true;
    }
    ++observation->stray;
    return false;
}

template <typename T>
static T __ldg(const T* pointer) {
    return is_allowed(pointer, kTable) ? *pointer : T{};
}

template <typename T>
static T __ldcs(const T* pointer) {
    ++observation->loads[sizeof(T)];
    T value{};
    if (is_allowed(pointer, kSource)) __builtin_memcpy(&value, pointer, sizeof(T));
    return value;
}

template <typename T>
static void __stcs(T* pointer, T value) {
    ++observation->stores[sizeof(T)];
    if (is_allowed(pointer, kTarget)) __builtin_memcpy(pointer, &value, sizeof(T));
}

template <typename Arguments>
static void run_on_cpu(void (*kernel)(Arguments), const Arguments& arguments, unsigned ctas, unsigned threads,
                       Observation& observed) {
    observation = &observed;
    gridDim.x = ctas;
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < ctas; ++blockIdx.x) {
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(arguments);
    }
}
