// Warps on a CPU: 32 threads that meet in warp intrinsics. Each thread is a fibre with a stack of its own.
//
// A warp meets when each of its threads calls the same intrinsic. Whatever else a warp does there is undefined on a
// device, and is counted here as `divergent`: a thread that has ended, another intrinsic, a mask that is not the whole
// warp, or fewer threads than a warp has.

#pragma once

#undef _FORTIFY_SOURCE  // its longjmp refuses to change stacks
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <memory>
#include <ucontext.h>

constexpr unsigned kWarpSize = 32;

enum Meeting { kNone, kAny, kAll, kShuffle, kShuffleDown };

struct Lane {
    ucontext_t start;
    jmp_buf at;
    bool is_started, is_done;
    Meeting meeting;        // where it waits
    uint64_t words[2];      // what it brought to the last two meetings
    alignas(16) char stack[1 << 16];
};

struct Warp {
    Lane lanes[kWarpSize];
    unsigned num_lanes, running;
    unsigned num_meetings;
    jmp_buf scheduler;
    void (*call)(const void*);
    const void* launch;
};

static thread_local Warp* warp;

__attribute__((noinline)) static void leave_lane() {
    if (!_setjmp(warp->lanes[warp->running].at)) _longjmp(warp->scheduler, 1);
}

static void run_lane() {
    for (;;) {
        warp->call(warp->launch);
        warp->lanes[warp->running].is_done = true;
        leave_lane();
    }
}

// Runs a lane until it waits for the others, or ends.
__attribute__((noinline)) static void enter_lane() {
    if (_setjmp(warp->scheduler)) return;
    Lane& lane = warp->lanes[warp->running];
    if (lane.is_started) _longjmp(lane.at, 1);
    lane.is_started = true;
    getcontext(&lane.start);
    lane.start.uc_stack.ss_sp = lane.stack;
    lane.start.uc_stack.ss_size = sizeof lane.stack;
    makecontext(&lane.start, run_lane, 0);
    setcontext(&lane.start);
}

// Waits for the warp's other threads; returns which of two words each of them brought.
static unsigned meet(Meeting meeting, unsigned mask, uint64_t word) {
    Lane& lane = warp->lanes[warp->running];
    const unsigned which = warp->num_meetings % 2;  // a thread may be at the next meeting before others leave this one
    lane.words[which] = word;
    lane.meeting = mask == 0xFFFFFFFF ? meeting : kNone;
    leave_lane();
    return which;
}

// Runs the lanes of a warp to their ends. `select` prepares the variables of a lane. Returns whether the warp diverged.
template <typename Select>
static bool run_warp(Select select) {
    bool is_divergent = false, is_running = true;
    for (unsigned i = 0; i < warp->num_lanes; ++i) warp->lanes[i].is_done = false;
    while (is_running) {
        is_running = false;
        for (unsigned i = 0; i < warp->num_lanes; ++i) {
            if (warp->lanes[i].is_done) continue;
            warp->running = i;
            select(i);
            enter_lane();
        }
        ++warp->num_meetings;
        for (unsigned i = 0; i < warp->num_lanes; ++i) {
            const Lane &lane = warp->lanes[i], &first = warp->lanes[0];
            is_running |= !lane.is_done;
            is_divergent |= lane.is_done != first.is_done
                || (!lane.is_done && (lane.meeting == kNone || lane.meeting != first.meeting))
                || (!lane.is_done && warp->num_lanes != kWarpSize);
        }
    }
    return is_divergent;
}

static bool __any_sync(unsigned mask, int predicate) {
    const unsigned which = meet(kAny, mask, predicate != 0);
    for (unsigned i = 0; i < warp->num_lanes; ++i) {
        if (warp->lanes[i].words[which]) return true;
    }
    return false;
}

static bool __all_sync(unsigned mask, int predicate) {
    const unsigned which = meet(kAll, mask, predicate != 0);
    for (unsigned i = 0; i < warp->num_lanes; ++i) {
        if (!warp->lanes[i].words[which]) return false;
    }
    return true;
}

template <typename T>
static T __shfl_sync(unsigned mask, T value, unsigned lane) {
    return static_cast<T>(warp->lanes[lane % kWarpSize].words[meet(kShuffle, mask, value)]);
}

template <typename T>
static T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
    const unsigned which = meet(kShuffleDown, mask, value), from = warp->running + distance;
    return from < warp->num_lanes ? static_cast<T>(warp->lanes[from].words[which]) : value;
}
