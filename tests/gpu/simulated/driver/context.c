// The devices, the contexts that are current on threads, and the error that ends them all.

#include "card.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_PUSHED = 8 };
enum { ATTRIBUTE_MULTIPROCESSORS = 16, ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76, ATTRIBUTE_HOST_POINTERS = 91 };

int num_open, num_exports;
static int retained[MAX_DEVICES];
static atomic_int is_initialized, died_with;
static _Thread_local int pushed[MOST_PUSHED];
static _Thread_local int num_pushed;

static const uint64_t TOTAL_BYTES = 16ull << 30;

static int num_devices(void) {
  const char *number = getenv("SIMULATED_CARD_DEVICES");
  return number ? atoi(number) : 1;
}

int usable(void) { return died_with ? died_with : num_pushed ? SUCCESS : INVALID_CONTEXT; }

void die(int status) { died_with = status; }

// Makes every later call fail with a status; 0 makes them succeed again.
void card_fail(int status) { died_with = status; }

// Counts of open handles, and of retained and current contexts.
int card_left_over(void) {
  int sum = num_open + num_pushed;
  for (int device = 0; device < MAX_DEVICES; device++) sum += retained[device];
  return sum;
}

int card_num_exports(void) { return num_exports; }

int cuInit(unsigned flags) {
  if (!getenv("SIMULATED_CARD")) return NO_DEVICE;
  is_initialized = 1;
  return flags ? INVALID_VALUE : SUCCESS;
}

int cuDriverGetVersion(int *version) {
  *version = 13000;
  return SUCCESS;
}

int cuGetErrorName(int status, const char **name) {
  static const struct { int status; const char *name; } names[] = {
      {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
      {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
      {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
      {ALREADY_MAPPED, "CUDA_ERROR_ALREADY_MAPPED"},
      {INVALID_SOURCE, "CUDA_ERROR_INVALID_SOURCE"},
      {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
      {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
      {NOT_READY, "CUDA_ERROR_NOT_READY"},
      {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {HOST_MEMORY_ALREADY_REGISTERED, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"},
      {HOST_MEMORY_NOT_REGISTERED, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"},
      {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS"},
      {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
      {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
  };
  *name = NULL;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (names[i].status == status) *name = names[i].name;
  return *name ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGetCount(int *count) {
  *count = num_devices();
  return is_initialized ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
  if (!is_initialized) return NOT_INITIALIZED;
  if (ordinal < 0 || ordinal >= num_devices()) return INVALID_DEVICE;
  *device = ordinal;
  return SUCCESS;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
  memset(uuid, 0xa0 + device, 16);
  return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (device < 0 || device >= num_devices()) return INVALID_DEVICE;
  switch (attribute) {
    case ATTRIBUTE_MULTIPROCESSORS: *value = 2; return SUCCESS;
    case ATTRIBUTE_MAJOR: *value = 9; return SUCCESS;
    case ATTRIBUTE_MINOR: *value = 0; return SUCCESS;
    case ATTRIBUTE_HOST_POINTERS: *value = 1; return SUCCESS;
    default: return NOT_SUPPORTED;
  }
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  if (device < 0 || device >= num_devices()) return INVALID_DEVICE;
  retained[device]++;
  *context = &retained[device];
  return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  if (!retained[device]) return INVALID_CONTEXT;
  retained[device]--;
  return SUCCESS;
}

int cuCtxPushCurrent_v2(void *context) {
  if (num_pushed == MOST_PUSHED) return OUT_OF_MEMORY;
  pushed[num_pushed++] = (int)((int *)context - retained);
  return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context) {
  if (!num_pushed) return INVALID_CONTEXT;
  *context = &retained[pushed[--num_pushed]];
  return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
  num_pushed -= num_pushed > 0;
  return context ? cuCtxPushCurrent_v2(context) : SUCCESS;
}

int cuCtxGetDevice(int *device) {
  if (!num_pushed) return INVALID_CONTEXT;
  *device = pushed[num_pushed - 1];
  return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
  if (usable()) return usable();
  *total_bytes = TOTAL_BYTES;
  *free_bytes = TOTAL_BYTES - files_used_bytes();
  return SUCCESS;
}
