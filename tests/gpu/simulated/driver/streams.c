// Streams, which do their work at the call, and events, which processes can share.

#include "card.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { DISABLE_TIMING = 2, INTERPROCESS = 4, MOST = 1 << 20, FIRST_HANDLE = 0x1000 };

// An event has happened when the device has reached the record that was issued last.
typedef struct {
  atomic_uint issued, reached;
} Progress;

typedef struct {
  int is_live, flags, file, owner;
  uint64_t number;
  Progress *progress;
  struct timespec reached_at;
} Event;

static Event events[MOST];
static int is_live_stream[MOST];
static int num_events, num_streams;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// Returns whether a handle is valid. No handle is used twice, so a destroyed one is noticed: all later calls fail. A real
// driver would read freed memory, with any result.
static int is_good(uintptr_t handle, int num_made, int is_live) {
  if (handle - FIRST_HANDLE >= (uintptr_t)num_made) return 0;
  if (!is_live) die(INVALID_HANDLE);
  return is_live;
}

// Streams. The first three handles are the default ones.

int is_stream(uintptr_t stream) {
  return stream < 3 || is_good(stream, num_streams, is_live_stream[(stream - FIRST_HANDLE) % MOST]);
}

int cuStreamCreateWithPriority(uintptr_t *stream, unsigned flags, int priority) {
  (void)flags, (void)priority;
  if (usable()) return usable();
  pthread_mutex_lock(&lock);
  int status = num_streams < MOST ? SUCCESS : OUT_OF_MEMORY;
  if (!status) {
    is_live_stream[num_streams] = 1;
    *stream = FIRST_HANDLE + (uintptr_t)num_streams++;
  }
  pthread_mutex_unlock(&lock);
  return status;
}

int cuStreamDestroy_v2(uintptr_t stream) {
  if (usable()) return usable();
  if (stream < FIRST_HANDLE || !is_stream(stream)) return INVALID_HANDLE;
  is_live_stream[stream - FIRST_HANDLE] = 0;
  return SUCCESS;
}

int cuStreamSynchronize(uintptr_t stream) { return usable() ? usable() : is_stream(stream) ? SUCCESS : INVALID_HANDLE; }

int cuStreamQuery(uintptr_t stream) { return cuStreamSynchronize(stream); }

int cuCtxSynchronize(void) { return usable(); }

// Events.

static Event *event_of(uintptr_t handle) {
  Event *event = &events[(handle - FIRST_HANDLE) % MOST];
  return is_good(handle, num_events, event->is_live) ? event : NULL;
}

static int has_happened(const Event *event) { return event->progress->reached == event->progress->issued; }

static int add_event(uintptr_t *handle, Event event) {
  pthread_mutex_lock(&lock);
  int status = num_events < MOST ? SUCCESS : OUT_OF_MEMORY;
  if (!status) {
    events[num_events] = event;
    *handle = FIRST_HANDLE + (uintptr_t)num_events++;
  }
  pthread_mutex_unlock(&lock);
  return status;
}

int cuEventCreate(uintptr_t *handle, unsigned flags) {
  if (usable()) return usable();
  if ((flags & INTERPROCESS) && !(flags & DISABLE_TIMING)) return INVALID_VALUE;
  Event event = {.is_live = 1, .flags = (int)flags, .file = -1, .owner = getpid()};
  if (flags & INTERPROCESS) {
    event.file = file_create(EVENT_FILE, PAGE_BYTES, &event.number);
    event.progress = event.file < 0 ? NULL : file_map(event.file, PAGE_BYTES, 0);
  } else {
    event.progress = calloc(1, sizeof *event.progress);
  }
  return event.progress ? add_event(handle, event) : OUT_OF_MEMORY;
}

int cuEventDestroy_v2(uintptr_t handle) {
  if (usable()) return usable();
  Event *event = event_of(handle);
  if (!event) return INVALID_HANDLE;
  event->is_live = 0;
  if (event->file < 0) {
    free(event->progress);
    return SUCCESS;
  }
  munmap(event->progress, PAGE_BYTES);
  file_close(event->file, EVENT_FILE, event->owner, event->number);
  num_open -= event->owner != getpid();
  return SUCCESS;
}

// Records an event behind other work of a stream. Returns the record's number, 0 if there is no such event.
unsigned card_event_issue(uintptr_t handle) {
  Event *event = event_of(handle);
  return event ? ++event->progress->issued : 0;
}

// Notes that the stream has reached a record.
void card_event_reach(uintptr_t handle, unsigned record) {
  Event *event = event_of(handle);
  if (!event) return;
  clock_gettime(CLOCK_MONOTONIC, &event->reached_at);
  event->progress->reached = record;
}

int cuEventRecord(uintptr_t handle, uintptr_t stream) {
  if (usable()) return usable();
  if (!event_of(handle) || !is_stream(stream)) return INVALID_HANDLE;
  card_event_reach(handle, card_event_issue(handle));
  return SUCCESS;
}

int cuEventQuery(uintptr_t handle) {
  if (usable()) return usable();
  const Event *event = event_of(handle);
  return !event ? INVALID_HANDLE : has_happened(event) ? SUCCESS : NOT_READY;
}

int cuEventSynchronize(uintptr_t handle) {
  int status;
  while ((status = cuEventQuery(handle)) == NOT_READY) nanosleep(&(struct timespec){0, 100000}, NULL);
  return status;
}

// If another process is killed, a stream that waits for it never goes on. So the depot must never make a stream wait.
int cuStreamWaitEvent(uintptr_t stream, uintptr_t handle, unsigned flags) {
  if (usable()) return usable();
  const Event *event = event_of(handle);
  if (!event || !is_stream(stream) || flags) return INVALID_HANDLE;
  return has_happened(event) ? SUCCESS : NOT_SUPPORTED;
}

int cuEventElapsedTime(float *milliseconds, uintptr_t first_handle, uintptr_t second_handle) {
  if (usable()) return usable();
  const Event *first = event_of(first_handle), *second = event_of(second_handle);
  if (!first || !second || ((first->flags | second->flags) & DISABLE_TIMING)) return INVALID_HANDLE;
  if (!first->progress->issued || !second->progress->issued) return INVALID_HANDLE;
  if (!has_happened(first) || !has_happened(second)) return NOT_READY;
  const struct timespec *from = &first->reached_at, *to = &second->reached_at;
  *milliseconds = (float)((double)(to->tv_sec - from->tv_sec) * 1e3 + (double)(to->tv_nsec - from->tv_nsec) / 1e6);
  return SUCCESS;
}

int cuIpcGetEventHandle(Handle *handle, uintptr_t event_handle) {
  if (usable()) return usable();
  const Event *event = event_of(event_handle);
  if (!event || event->file < 0) return INVALID_HANDLE;
  *handle = (Handle){0, 0, (uint64_t)event->owner, event->number, EVENT_FILE, {0}, IS_HANDLE};
  return SUCCESS;
}

int cuIpcOpenEventHandle(uintptr_t *event_handle, Handle handle) {
  if (usable()) return usable();
  if (handle.is_handle != IS_HANDLE || handle.kind != EVENT_FILE) return INVALID_HANDLE;
  if (handle.owner == (uint64_t)getpid()) return INVALID_CONTEXT;
  Event event = {.is_live = 1, .flags = DISABLE_TIMING | INTERPROCESS, .owner = (int)handle.owner};
  event.number = handle.number;
  event.file = file_open(EVENT_FILE, event.owner, event.number);
  event.progress = event.file < 0 ? NULL : file_map(event.file, PAGE_BYTES, 0);
  if (!event.progress) return INVALID_HANDLE;
  num_open++;
  return add_event(event_handle, event);
}
