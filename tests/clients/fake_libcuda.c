// A CUDA driver without a device: as much as an engine asks to share memory and events, over what the test tells it.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400 };
enum { RANGE_START_ADDR = 11, HANDLE_BYTES = 64, MOST = 16, DEVICES = 2 };

typedef struct { uint64_t start, size; int is_mapped_piecewise; } Allocation;

static Allocation allocations[MOST];
static int num_allocations, num_exports, fails_with;
static int is_interprocess[MOST];
static int retained[DEVICES];
static _Thread_local int current = -1;

// What the test does.

void fake_reset(void) { num_allocations = num_exports = fails_with = 0; }

void fake_allocate(uint64_t start, uint64_t size, int is_mapped_piecewise) {
  allocations[num_allocations++] = (Allocation){start, size, is_mapped_piecewise};
}

void fake_event(int number, int interprocess) { is_interprocess[number] = interprocess; }

// Every call fails from now on.
void fake_fail(int status) { fails_with = status; }

int fake_num_exports(void) { return num_exports; }

// Contexts that are in use or still current.
int fake_left_over(void) { return retained[0] + retained[1] + (current >= 0); }

// The driver.

static int usable(void) { return fails_with ? fails_with : current < 0 ? INVALID_CONTEXT : SUCCESS; }

static const Allocation *holding(uint64_t address) {
  for (int i = 0; i < num_allocations; i++)
    if (address - allocations[i].start < allocations[i].size) return &allocations[i];
  return NULL;
}

int cuGetErrorName(int status, const char **name) {
  *name = status == INVALID_VALUE    ? "CUDA_ERROR_INVALID_VALUE"
          : status == INVALID_HANDLE ? "CUDA_ERROR_INVALID_HANDLE"
                                     : NULL;
  return *name ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGet(int *device, int ordinal) {
  if (ordinal < 0 || ordinal >= DEVICES) return INVALID_DEVICE;
  *device = ordinal;
  return SUCCESS;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  memset(uuid, 0xa0 + device, 16);
  return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  retained[device]++;
  *context = &retained[device];
  return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  retained[device]--;
  return SUCCESS;
}

int cuCtxPushCurrent_v2(void *context) {
  current = (int)((int *)context - retained);
  return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context) {
  *context = &retained[current];
  current = -1;
  return SUCCESS;
}

int cuPointerGetAttribute(void *value, int attribute, uint64_t address) {
  if (usable()) return usable();
  const Allocation *found = holding(address);
  if (!found || attribute != RANGE_START_ADDR) return INVALID_VALUE;
  *(uint64_t *)value = found->start;
  return SUCCESS;
}

// The handle tells where the allocation begins, how large it is, and how many handles there were before.
int cuIpcGetMemHandle(void *handle, uint64_t address) {
  if (usable()) return usable();
  const Allocation *found = holding(address);
  if (!found || found->start != address || found->is_mapped_piecewise) return INVALID_VALUE;
  const uint64_t words[HANDLE_BYTES / 8] = {found->start, found->size, (uint64_t)num_exports++, 0, 0, 0, 0, ~0ull};
  memcpy(handle, words, HANDLE_BYTES);
  return SUCCESS;
}

int cuIpcGetEventHandle(void *handle, uintptr_t event) {
  if (usable()) return usable();
  if (!is_interprocess[event]) return INVALID_HANDLE;
  memset(handle, (int)event, HANDLE_BYTES);
  return SUCCESS;
}
