// Kernels, compiled for this CPU, and their launches, which check every access.

#include "card.h"
#include "observation.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_THREADS = 1024 };

typedef void Kernel(const void *arguments, unsigned ctas, unsigned threads, Observation *observed);

int cuModuleLoad(void **module, const char *path) {
  if (usable()) return usable();
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  return *module ? SUCCESS : INVALID_SOURCE;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  char exported[256];
  snprintf(exported, sizeof exported, "run_%s", name);
  *function = dlsym(module, exported);
  return *function ? SUCCESS : NOT_FOUND;
}

// Returns all ranges for all uses; the caller frees them.
static Extent *all_extents(uint64_t *num_extents) {
  *num_extents = (uint64_t)(ranges_end() - ranges_begin());
  Extent *extents = malloc((*num_extents + 1) * sizeof *extents);
  for (uint64_t i = 0; i < *num_extents; i++) {
    const Range *range = ranges_begin() + i;
    extents[i] = (Extent){range->start, range->start + range->size, kTable | kSource | kTarget | kSum};
  }
  return extents;
}

// A kernel's wrong access is not returned here: as on a device, later calls fail.
int cuLaunchKernel(void *function, unsigned ctas, unsigned grid_y, unsigned grid_z, unsigned threads, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, uintptr_t stream, void **arguments, void **extra) {
  if (usable()) return usable();
  if (!is_stream(stream)) return INVALID_HANDLE;
  if (!ctas || !threads || threads > MOST_THREADS) return INVALID_VALUE;
  if (grid_y * grid_z * block_y * block_z != 1 || shared_bytes || extra) return NOT_SUPPORTED;
  ranges_lock_to_use();
  Observation seen = {0};
  Extent *extents = all_extents(&seen.num_extents);
  seen.extents = extents;
  ((Kernel *)function)(arguments[0], ctas, threads, &seen);
  free(extents);
  ranges_unlock();
  if (seen.divergent) {
    fprintf(stderr, "simulated card: %llu warps diverged where they had to meet\n",
            (unsigned long long)seen.divergent);
    die(LAUNCH_FAILED);
  }
  if (seen.stray || seen.misaligned) {
    fprintf(stderr, "simulated card: of a kernel's accesses %llu were outside of all memory, %llu misaligned\n",
            (unsigned long long)seen.stray, (unsigned long long)seen.misaligned);
    die(seen.stray ? ILLEGAL_ADDRESS : MISALIGNED_ADDRESS);
  }
  return SUCCESS;
}
