// The ranges of memory that kernels and copies of this process may touch.

#include "card.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST = 1 << 14 };

static Range ranges[MOST];
static int num_ranges;
// A thread that unmaps memory precedes launches that begin later; otherwise it might never get the lock.
static pthread_rwlock_t lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

void ranges_lock_to_use(void) { pthread_rwlock_rdlock(&lock); }

void ranges_lock_to_change(void) { pthread_rwlock_wrlock(&lock); }

void ranges_unlock(void) { pthread_rwlock_unlock(&lock); }

Range *ranges_begin(void) { return ranges; }

Range *ranges_end(void) { return ranges + num_ranges; }

Range *range_holding(uint64_t address) {
  for (Range *range = ranges; range < ranges_end(); range++)
    if (address - range->start < range->size) return range;
  return NULL;
}

Range *range_of_file(int owner, uint64_t number) {
  for (Range *range = ranges; range < ranges_end(); range++)
    if (range->file >= 0 && range->owner == owner && range->number == number) return range;
  return NULL;
}

void range_add(Range range) {
  if (num_ranges == MOST) {
    fprintf(stderr, "the simulated card can't keep more than %d ranges of memory\n", MOST);
    abort();
  }
  ranges[num_ranges++] = range;
}

void range_remove(Range *range) { *range = ranges[--num_ranges]; }
