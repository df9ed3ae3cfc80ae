// The memory of a launch on a CPU, and a record of its accesses; for C and C++.

#pragma once

#include <stdint.h>

// Uses of memory, as flags.
enum Use { kTable = 1, kSource = 2, kTarget = 4, kSum = 8 };

typedef struct {
    uint64_t begin, end, uses;
} Extent;

typedef struct {
    const Extent* extents;
    uint64_t num_extents;
    uint64_t misaligned;
    uint64_t stray;       // accesses outside all extents of their use, which are skipped
    uint64_t divergent;   // warps whose threads did not meet where they had to
    uint64_t additions;   // to sums
    uint64_t loads[17];   // of sources, by width in bytes
    uint64_t stores[17];  // of targets
} Observation;
