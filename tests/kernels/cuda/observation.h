// What a launch on a CPU may use, and what it did; for C and for C++.

#pragma once

#include <stdint.h>

// What memory may be used for: any of these.
enum Use { kTable = 1, kSource = 2, kTarget = 4 };

typedef struct {
    uint64_t begin, end, uses;
} Extent;

typedef struct {
    const Extent* extents;
    uint64_t num_extents;
    uint64_t misaligned;
    uint64_t stray;       // accesses outside of all extents of their use, not carried out
    uint64_t loads[17];   // of sources, by width in bytes
    uint64_t stores[17];  // of targets
} Observation;
