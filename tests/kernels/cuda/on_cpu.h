// Enough of CUDA to run a source of kernels/ on a CPU, one warp after the other, with a check of every access.
//
// Exact for kernels whose threads communicate in warp intrinsics and atomic additions only: no __syncthreads, no shared
// memory.

#pragma once

#include <cstddef>
#include <cstdint>

#include "observation.h"
#include "warps.h"

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

// Threads of this process may launch at once.
static thread_local dim3 gridDim, blockDim, blockIdx, threadIdx;
static thread_local Observation* observation;
static thread_local const Extent* recent[kSum + 1][2];  // by use: most accesses are in one of these

template <typename T>
static bool is_allowed(const T* pointer, Use use) {
    const uint64_t begin = reinterpret_cast<uint64_t>(pointer), end = begin + sizeof(T);
    if (begin % sizeof(T) != 0) ++observation->misaligned;
    for (const Extent* extent : recent[use]) {
        if (extent->begin <= begin && end <= extent->end) return true;
    }
    for (uint64_t i = 0; i < observation->num_extents; ++i) {
        const Extent* extent = observation->extents + i;
        if ((extent->uses & use) && extent->begin <= begin && end <= extent->end) {
            recent[use][1] = recent[use][0];
            recent[use][0] = extent;
            return true;
        }
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

static uint64_t atomicAdd(unsigned long long* pointer, unsigned long long value) {
    ++observation->additions;
    if (!is_allowed(pointer, kSum)) return 0;
    const unsigned long long before = *pointer;
    *pointer = before + value;
    return before;
}

template <typename Arguments>
static void run_on_cpu(void (*kernel)(Arguments), const Arguments& arguments, unsigned ctas, unsigned threads,
                       Observation& observed) {
    struct Launch {
        void (*kernel)(Arguments);
        const Arguments& arguments;
    } const launch = {kernel, arguments};
    observation = &observed;
    static const Extent nothing = {1, 0, 0};
    for (auto& extents : recent) extents[0] = extents[1] = &nothing;
    gridDim.x = ctas;
    blockDim.x = threads;
    const std::unique_ptr<Warp> own(new Warp);  // not cleared: most of the stacks is never touched
    warp = own.get();
    for (Lane& lane : warp->lanes) lane.is_started = false;
    warp->num_meetings = 0;
    warp->launch = &launch;
    warp->call = [](const void* at) {
        const Launch& launch = *static_cast<const Launch*>(at);
        launch.kernel(launch.arguments);
    };
    for (blockIdx.x = 0; blockIdx.x < ctas; ++blockIdx.x) {
        for (unsigned first = 0; first < threads; first += kWarpSize) {
            warp->num_lanes = threads - first < kWarpSize ? threads - first : kWarpSize;
            observed.divergent += run_warp([first](unsigned lane) { threadIdx.x = first + lane; });
        }
    }
}
