// A CUDA driver without a device: as much as it takes to share memory and events, over what the test tells it.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400 };
enum { RANGE_START_ADDR = 11, RANGE_SIZE = 12, LAZY_ENABLE_PEER_ACCESS = 1 };
enum { HANDLE_BYTES = 64, MOST = 16, DEVICES = 2 };

typedef struct { uint64_t start, size; int is_mapped_piecewise; } Allocation;
typedef struct { uint64_t words[HANDLE_BYTES / 8]; } Handle;

static Allocation allocations[MOST];
static int num_allocations, num_exports, num_open, fails_with, is_initialized;
static int is_interprocess[MOST];
static int retained[DEVICES];
static _Thread_local int current = -1;

// What the test does.

void fake_reset(void) { num_allocations = num_exports = fails_with = is_initialized = 0; }

void fake_allocate(uint64_t start, uint64_t size, int is_mapped_piecewise) {
  allocations[num_allocations++] = (Allocation){start, size, is_mapped_piecewise};
}

void fake_event(int number, int interprocess) { is_interprocess[number] = interprocess; }

// Every call fails from now on.
void fake_fail(int status) { fails_with = status; }

int fake_num_exports(void) { return num_exports; }

// What is open, and contexts that are in use or still current.
int fake_left_over(void) { return num_open + retained[0] + retained[1] + (current >= 0); }

// Makes a device the thread's, as the runtime does; none if it is negative.
void fake_use(int device) { current = device; }

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

int cuInit(unsigned flags) {
  is_initialized = 1;
  return flags ? INVALID_VALUE : SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
  if (!is_initialized) return NOT_INITIALIZED;
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
  if (!found || (attribute != RANGE_START_ADDR && attribute != RANGE_SIZE)) return INVALID_VALUE;
  *(uint64_t *)value = attribute == RANGE_SIZE ? found->size : found->start;
  return SUCCESS;
}

// The handle tells where the allocation begins, how large it is, and how many handles there were before.
int cuIpcGetMemHandle(Handle *handle, uint64_t address) {
  if (usable()) return usable();
  const Allocation *found = holding(address);
  if (!found || found->start != address || found->is_mapped_piecewise) return INVALID_VALUE;
  *handle = (Handle){{found->start, found->size, (uint64_t)num_exports++, 0, 0, 0, 0, ~0ull}};
  return SUCCESS;
}

int cuIpcGetEventHandle(Handle *handle, uintptr_t event) {
  if (usable()) return usable();
  if (!is_interprocess[event]) return INVALID_HANDLE;
  *handle = (Handle){{event, 0, 0, 0, 0, 0, 0, ~0ull}};
  return SUCCESS;
}

// An importer finds the memory where the exporter has it.
int cuIpcOpenMemHandle_v2(uint64_t *address, Handle handle, unsigned flags) {
  if (usable()) return usable();
  if (handle.words[7] != ~0ull || flags != LAZY_ENABLE_PEER_ACCESS) return INVALID_VALUE;
  *address = handle.words[0];
  num_open++;
  return SUCCESS;
}

int cuIpcCloseMemHandle(uint64_t address) {
  if (usable()) return usable();
  const Allocation *found = holding(address);
  if (!found || found->start != address) return INVALID_VALUE;
  num_open--;
  return SUCCESS;
}

int cuIpcOpenEventHandle(uintptr_t *event, Handle handle) {
  if (usable()) return usable();
  if (handle.words[7] != ~0ull) return INVALID_HANDLE;
  *event = handle.words[0];
  num_open++;
  return SUCCESS;
}

int cuEventDestroy_v2(uintptr_t event) {
  if (!is_interprocess[event]) return INVALID_HANDLE;
  num_open--;
  return SUCCESS;
}
