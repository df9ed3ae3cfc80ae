// Declarations of the simulated card's driver: statuses of CUDA, ranges of memory, files between processes.
//
// Names that begin with cu are the CUDA driver's own. Names that begin with card_ are for tests and for the layer
// under torch; a real driver has none of them.

#pragma once

#define _GNU_SOURCE

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  ALREADY_MAPPED = 208,
  INVALID_SOURCE = 300,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  HOST_MEMORY_ALREADY_REGISTERED = 712,
  HOST_MEMORY_NOT_REGISTERED = 713,
  MISALIGNED_ADDRESS = 716,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
};

enum { PAGE_BYTES = 4096, MAX_DEVICES = 8 };

// context.c: the devices, and what is current on a thread.

int usable(void);      // the status of every call: that of the error that ended the context, if there was one
void die(int status);  // every later call fails with this status

// ranges.c: the memory that kernels and copies may touch. Ranges never overlap.

typedef enum { OWNED, PIECEWISE, IMPORTED, PINNED, REGISTERED } Kind;
typedef struct {
  uint64_t start, size;
  Kind kind;
  int file;         // of memory that processes share, else -1
  uint64_t number;  // of that file
  int owner;        // the process that made it
} Range;

void ranges_lock_to_use(void);     // nothing is unmapped until the unlock
void ranges_lock_to_change(void);  // waits for all users of memory
void ranges_unlock(void);
Range *ranges_begin(void);
Range *ranges_end(void);
Range *range_holding(uint64_t address);
Range *range_of_file(int owner, uint64_t number);
void range_add(Range range);
void range_remove(Range *range);

// files.c: memory that processes share. A file is named by its kind, its owner's process id and a number.

enum { MEMORY_FILE = 'm', EVENT_FILE = 'e' };

int file_create(char kind, uint64_t size, uint64_t *number);            // a descriptor, or -1
int file_open(char kind, int owner, uint64_t number);                   // -1 if the owner has ended or freed it
void *file_map(int file, uint64_t size, uint64_t not_at);               // never at the owner's address
void file_close(int file, char kind, int owner, uint64_t number);       // the last process deletes the file
uint64_t files_used_bytes(void);                                        // memory of living processes

// streams.c

int is_stream(uintptr_t stream);

// Handles between processes.

typedef struct {
  uint64_t start, size, owner, number, kind, unused[2], is_handle;
} Handle;
_Static_assert(sizeof(Handle) == 64, "as CUDA's");
enum { IS_HANDLE = 0x6b76646570 };

extern int num_open;     // open memory and events of other processes
extern int num_exports;  // exported handles of memory
