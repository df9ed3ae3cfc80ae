// Memory of the device, memory of the host that the device can reach, and copies.

#include "card.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MEMORY_TYPE = 2, RANGE_START_ADDR = 11, RANGE_SIZE = 12, LAZY_ENABLE_PEER_ACCESS = 1 };
enum { TYPE_HOST = 1, TYPE_DEVICE = 2 };

static int is_on_device(const Range *range) { return range->kind <= IMPORTED; }

static int allocate(uint64_t *address, uint64_t size, Kind kind) {
  if (usable()) return usable();
  if (!size) return INVALID_VALUE;
  size_t free_bytes, total_bytes;
  int cuMemGetInfo_v2(size_t *, size_t *);
  cuMemGetInfo_v2(&free_bytes, &total_bytes);
  if (size > free_bytes) return OUT_OF_MEMORY;
  uint64_t number;
  int file = file_create(MEMORY_FILE, size, &number);
  void *mapped = file < 0 ? NULL : file_map(file, size, 0);
  if (!mapped) return OUT_OF_MEMORY;
  *address = (uint64_t)mapped;
  ranges_lock_to_change();
  range_add((Range){*address, size, kind, file, number, getpid()});
  ranges_unlock();
  return SUCCESS;
}

// Ends the range that begins at an address and is of one of two kinds.
static int end_range(uint64_t address, Kind kind, Kind or_kind, int status_if_absent) {
  if (usable()) return usable();
  ranges_lock_to_change();
  Range *found = range_holding(address);
  if (!found || found->start != address || (found->kind != kind && found->kind != or_kind)) {
    ranges_unlock();
    return status_if_absent;
  }
  Range range = *found;
  range_remove(found);
  if (range.kind != REGISTERED) munmap((void *)range.start, range.size);
  ranges_unlock();
  if (range.file >= 0) file_close(range.file, MEMORY_FILE, range.owner, range.number);
  return SUCCESS;
}

int cuMemAlloc_v2(uint64_t *address, size_t size) { return allocate(address, size, OWNED); }

int cuMemFree_v2(uint64_t address) { return end_range(address, OWNED, PIECEWISE, INVALID_VALUE); }

// Makes memory as torch makes expandable segments: no other process can open it.
int card_allocate_piecewise(uint64_t *address, size_t size) { return allocate(address, size, PIECEWISE); }

int cuMemHostAlloc(void **address, size_t size, unsigned flags) {
  (void)flags;
  if (usable()) return usable();
  void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return OUT_OF_MEMORY;
  *address = mapped;
  ranges_lock_to_change();
  range_add((Range){(uint64_t)mapped, size, PINNED, -1, 0, 0});
  ranges_unlock();
  return SUCCESS;
}

int cuMemFreeHost(void *address) { return end_range((uint64_t)address, PINNED, PINNED, INVALID_VALUE); }

static uint64_t first_page(uint64_t address) { return address / PAGE_BYTES; }

// Pages are pinned, so two registrations can't share one.
int cuMemHostRegister_v2(void *address, size_t size, unsigned flags) {
  (void)flags;
  if (usable()) return usable();
  uint64_t first = first_page((uint64_t)address), last = first_page((uint64_t)address + size - 1);
  if (!size) return INVALID_VALUE;
  if (madvise((void *)(first * PAGE_BYTES), (last + 1 - first) * PAGE_BYTES, MADV_POPULATE_WRITE) && errno != EINVAL)
    return INVALID_VALUE;
  ranges_lock_to_change();
  int status = SUCCESS;
  for (Range *range = ranges_begin(); range < ranges_end(); range++)
    if (first <= first_page(range->start + range->size - 1) && first_page(range->start) <= last)
      status = is_on_device(range) ? INVALID_VALUE : HOST_MEMORY_ALREADY_REGISTERED;
  if (!status) range_add((Range){(uint64_t)address, size, REGISTERED, -1, 0, 0});
  ranges_unlock();
  return status;
}

int cuMemHostUnregister(void *address) {
  return end_range((uint64_t)address, REGISTERED, REGISTERED, HOST_MEMORY_NOT_REGISTERED);
}

int cuPointerGetAttribute(void *value, int attribute, uint64_t address) {
  if (usable()) return usable();
  ranges_lock_to_use();
  const Range *found = range_holding(address);
  int status = found ? SUCCESS : INVALID_VALUE;
  if (found && attribute == RANGE_START_ADDR)
    *(uint64_t *)value = found->start;
  else if (found && attribute == RANGE_SIZE)
    *(uint64_t *)value = found->size;
  else if (found && attribute == MEMORY_TYPE)
    *(unsigned *)value = is_on_device(found) ? TYPE_DEVICE : TYPE_HOST;
  else
    status = INVALID_VALUE;
  ranges_unlock();
  return status;
}

int cuMemGetAddressRange_v2(uint64_t *start, size_t *size, uint64_t address) {
  int status = cuPointerGetAttribute(start, RANGE_START_ADDR, address);
  return status ? status : cuPointerGetAttribute(size, RANGE_SIZE, address);
}

// Copies only within one range, or within no range if the copy may use pageable memory.
static int may_copy(uint64_t address, size_t size, int is_pageable_allowed) {
  for (const Range *range = ranges_begin(); range < ranges_end(); range++)
    if (address < range->start + range->size && range->start < address + size)
      return range->start <= address && address + size <= range->start + range->size;
  return is_pageable_allowed;
}

static int copy(uint64_t target, uint64_t source, size_t size, int is_pageable_allowed) {
  if (usable()) return usable();
  ranges_lock_to_use();
  int is_right = may_copy(target, size, is_pageable_allowed) && may_copy(source, size, is_pageable_allowed);
  if (is_right) memcpy((void *)target, (void *)source, size);
  ranges_unlock();
  return is_right ? SUCCESS : INVALID_VALUE;
}

int cuMemcpy(uint64_t target, uint64_t source, size_t size) { return copy(target, source, size, 1); }

// A real device takes pageable memory here, and makes the caller wait. The depot must never rely on that.
int cuMemcpyAsync(uint64_t target, uint64_t source, size_t size, uintptr_t stream) {
  return is_stream(stream) ? copy(target, source, size, 0) : INVALID_HANDLE;
}

int cuMemsetD8Async(uint64_t address, unsigned char value, size_t size, uintptr_t stream) {
  if (usable()) return usable();
  if (!is_stream(stream)) return INVALID_HANDLE;
  ranges_lock_to_use();
  int is_right = may_copy(address, size, 0);
  if (is_right) memset((void *)address, value, size);
  ranges_unlock();
  return is_right ? SUCCESS : INVALID_VALUE;
}

int cuIpcGetMemHandle(Handle *handle, uint64_t address) {
  if (usable()) return usable();
  ranges_lock_to_use();
  const Range *found = range_holding(address);
  int is_right = found && found->start == address && found->kind == OWNED;
  if (is_right)
    *handle = (Handle){found->start, found->size, (uint64_t)found->owner, found->number, MEMORY_FILE, {0}, IS_HANDLE};
  num_exports += is_right;
  ranges_unlock();
  return is_right ? SUCCESS : INVALID_VALUE;
}

// Maps the memory at another address than its owner's; a process must not open it twice.
int cuIpcOpenMemHandle_v2(uint64_t *address, Handle handle, unsigned flags) {
  if (usable()) return usable();
  if (handle.is_handle != IS_HANDLE || handle.kind != MEMORY_FILE || flags != LAZY_ENABLE_PEER_ACCESS)
    return INVALID_VALUE;
  if (handle.owner == (uint64_t)getpid()) return INVALID_CONTEXT;
  ranges_lock_to_change();
  int status = range_of_file((int)handle.owner, handle.number) ? ALREADY_MAPPED : INVALID_VALUE;
  int file = status == ALREADY_MAPPED ? -1 : file_open(MEMORY_FILE, (int)handle.owner, handle.number);
  void *mapped = file < 0 ? NULL : file_map(file, handle.size, handle.start);
  if (mapped) {
    *address = (uint64_t)mapped;
    range_add((Range){*address, handle.size, IMPORTED, file, handle.number, (int)handle.owner});
    num_open++;
    status = SUCCESS;
  }
  ranges_unlock();
  return status;
}

int cuIpcCloseMemHandle(uint64_t address) {
  int status = end_range(address, IMPORTED, IMPORTED, INVALID_VALUE);
  num_open -= status == SUCCESS;
  return status;
}
