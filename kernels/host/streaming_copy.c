// Strided copies at the speed of one large memcpy, whatever the size of a run, and the kvsum64 of the bytes they move.
//
// A libc copies a few KiB with ordinary stores, which read each destination line before they write it. It copies many
// MiB with streaming stores, several pages side by side, so that the prefetchers follow as many streams. This file does
// the latter for scattered runs: it copies segments of one run, or of several, side by side.
//
// On two threads of a Xeon with AVX-512, runs of 32 KiB: 22 to 23 GB/s; a loop of memcpy over the same runs 13.4; one
// large memcpy 22.8.
//
// kernels/checksum.py defines kvsum64. A copy sums lines while they are in registers, because foreign memory may change
// before it is read again. Incomplete lines are summed on the side of the chunk, which nothing else writes.
//
// One side of a copy is foreign memory. Its owner can take it away at any moment: it shrinks the object, or punches a
// hole that can't be filled again. To touch such a page raises SIGBUS. A copy that gets this signal returns.

#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>

#include "vectors.h"

enum { SEGMENT_BYTES = 4096, MAX_SEGMENTS = 8, SHORT_BYTES = 512 };

typedef struct {
    int64_t count, dst_stride_bytes, src_stride_bytes;
} Loop;

typedef struct {
    Segment segments[MAX_SEGMENTS];
    int count;
    int64_t size;  // of each
    SideBySide *side_by_side;
    Sum *sum_words;
    const char *chunk;  // its first byte, or NULL if nothing is summed
    int is_store;       // the destination is in the chunk, else the source
    uint64_t sum;
} Batch;

static void flush(Batch *batch) {
    batch->sum += batch->side_by_side(batch->segments, batch->count, batch->size);
    batch->count = 0;
}

static int64_t chunk_offset(const Batch *batch, const char *dst, const char *src) {
    return (batch->is_store ? dst : src) - batch->chunk;
}

static void add(Batch *batch, char *dst, const char *src, int64_t size) {
    if (batch->count == MAX_SEGMENTS || batch->size != size) flush(batch);
    uint64_t place = batch->chunk ? place_at(chunk_offset(batch, dst, src)) : 0;
    batch->segments[batch->count++] = (Segment){dst, src, place};
    // The processor's prefetchers do not see where the next short run is.
    for (int64_t at = 0; size <= SHORT_BYTES && at < size; at += LINE_BYTES) __builtin_prefetch(src + at);
    batch->size = size;
}

// Copies what is no complete line.
static void copy_rest(Batch *batch, char *dst, const char *src, int64_t size) {
    if (!size) return;
    memcpy(dst, src, size);
    if (batch->chunk)
        batch->sum += batch->sum_words(batch->is_store ? dst : src, size, place_at(chunk_offset(batch, dst, src)));
}

// Cuts a run into segments, and copies the incomplete lines at its ends.
static void add_run(Batch *batch, char *dst, const char *src, int64_t size) {
    int64_t head = -(intptr_t)dst & (LINE_BYTES - 1);
    if (size < head + LINE_BYTES) {
        copy_rest(batch, dst, src, size);
        return;
    }
    // The words of a chunk are not the words of these lines, or nothing sums them as they are copied.
    if (batch->chunk && (head % WORD_BYTES || !batch->side_by_side)) {
        for (int64_t at = 0; at < size; at += SEGMENT_BYTES)
            copy_rest(batch, dst + at, src + at, size - at < SEGMENT_BYTES ? size - at : SEGMENT_BYTES);
        return;
    }
    copy_rest(batch, dst, src, head);
    dst += head, src += head, size -= head;
    int64_t tail = size & (LINE_BYTES - 1);
    size -= tail;
    copy_rest(batch, dst + size, src + size, tail);
    for (int64_t at = 0; at < size; at += SEGMENT_BYTES)
        add(batch, dst + at, src + at, size - at < SEGMENT_BYTES ? size - at : SEGMENT_BYTES);
}

typedef struct {
    const Loop *listed, *end;  // the loop that goes over offsets, and the end of the loops
    const int64_t *dst_offsets, *src_offsets;
    int64_t run_bytes;
    Batch batch;
} Walk;

static void walk(Walk *all, const Loop *loop, char *dst, const char *src) {
    for (int64_t i = 0; i < loop->count; i++) {
        int is_listed = loop == all->listed;
        char *to = dst + (is_listed ? all->dst_offsets[i] : i * loop->dst_stride_bytes);
        const char *from = src + (is_listed ? all->src_offsets[i] : i * loop->src_stride_bytes);
        if (loop + 1 == all->end)
            add_run(&all->batch, to, from, all->run_bytes);
        else
            walk(all, loop + 1, to, from);
    }
}

typedef struct {
    uintptr_t start, end;  // the foreign memory
    sigjmp_buf leave;
} Guard;

// The guard of the copy that this thread makes. The model is initial-exec, because the first use of another model may
// call malloc, which a signal handler must not.
static __thread Guard *volatile guard __attribute__((tls_model("initial-exec")));

static struct sigaction others;  // the handler of SIGBUS before ours

// Leaves the thread's copy if the fault is in its foreign memory. Gives any other fault to the handler before ours, at
// most once: if the fault comes back, the process ends.
static void on_bus_error(int number, siginfo_t *info, void *context) {
    (void)context;
    const Guard *own = guard;
    uintptr_t address = (uintptr_t)info->si_addr;
    int is_fault = info->si_code > 0;  // else a process has sent the signal
    if (is_fault && own && own->start <= address && address < own->end) siglongjmp(guard->leave, 1);
    sigaction(SIGBUS, &others, NULL);
    others = (struct sigaction){.sa_handler = SIG_DFL};
    if (!is_fault) raise(number);
}

// Runs before each copy, because another part of the process may set a handler of its own later.
static void handle_bus_errors(void) {
    struct sigaction current;
    sigaction(SIGBUS, NULL, &current);
    if (current.sa_flags & SA_SIGINFO && current.sa_sigaction == on_bus_error) return;
    // SA_NODEFER: the signal stays unblocked in the handler, so a jump out of it need not restore a mask.
    struct sigaction ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, &current);
    if (current.sa_sigaction != on_bus_error) others = current;  // else another thread has just done it
}

// Copies runs of `run_bytes`, which do not overlap, in the order of `loops`, outermost first. Loop number `listed` goes
// over offsets in bytes instead of strides. Returns 0, or 1 if a page between `foreign` and `foreign_end` is gone; then
// the bytes of the destination are undefined.
//
// If `sum` is not NULL, the bytes' part of the checksum of the chunk at `chunk` is written there. Then run_bytes is a
// multiple of WORD_BYTES, and so is where each run begins in the chunk.
int kvdepot_copy(char *dst, const char *src, const Loop *loops, int num_loops, int listed, const int64_t *dst_offsets,
                 const int64_t *src_offsets, int64_t run_bytes, int level, uintptr_t foreign, uintptr_t foreign_end,
                 const char *chunk, uint64_t *sum) {
    uintptr_t source = (uintptr_t)src;
    Walk all = {
        .listed = loops + listed,
        .end = loops + num_loops,
        .dst_offsets = dst_offsets,
        .src_offsets = src_offsets,
        .run_bytes = run_bytes,
        .batch = {.side_by_side = (sum ? COPY_AND_SUM : COPY)[level],
                  .sum_words = SUM[level],
                  .chunk = sum ? chunk : NULL,
                  .is_store = foreign <= source && source < foreign_end},
    };
    Guard own = {.start = foreign, .end = foreign_end};
    handle_bus_errors();
    int is_gone = sigsetjmp(own.leave, 0);
    if (!is_gone) {
        guard = &own;
        walk(&all, loops, dst, src);
        if (all.batch.count) flush(&all.batch);
        if (sum) *sum = all.batch.sum;
    }
    guard = NULL;
    // Other threads see this thread's streaming stores before anything that it writes later.
    order_stores();
    return is_gone;
}

// Returns what `count` rows of `row_bytes` add to the checksum of a chunk, where the first one begins at `chunk_offset`,
// and the others at distances of `stride_bytes`. All of these are multiples of WORD_BYTES, except that the last row may
// end with the chunk.
uint64_t kvdepot_checksum(const char *rows, int64_t count, int64_t stride_bytes, int64_t row_bytes, int64_t chunk_offset,
                          int level) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += SUM[level](rows + i * stride_bytes, row_bytes, place_at(chunk_offset + i * stride_bytes));
    return sum;
}
