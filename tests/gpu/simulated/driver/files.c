// Memory that processes share: files, and locks on them that say which processes use them.
//
// The owner locks the first byte of a file, and a process that opens it locks the second one. Linux releases a lock when
// its process ends, however it ends. So a handle is valid while the first byte is locked, and memory is in use while
// either byte is.

#include "card.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { OWNERS_BYTE = 0, OPENERS_BYTE = 1, ALIGNMENT = 2 << 20 };

static char *path_of(char path[4096], const char *prefix, char kind, int owner, uint64_t number) {
  snprintf(path, 4096, "%s/memory/%s%c-%d-%llu", getenv("SIMULATED_CARD"), prefix, kind, owner,
           (unsigned long long)number);
  return path;
}

static int lock_byte(int file, short type, int byte) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
  return fcntl(file, F_OFD_SETLK, &lock);
}

// Returns whether another descriptor has a lock on bytes; a length of 0 means all of them.
static int is_locked(int file, int byte, int length) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = length};
  return fcntl(file, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

int file_create(char kind, uint64_t size, uint64_t *number) {
  char unfinished[4096], path[4096];
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  static atomic_uint num_created;
  *number = (uint64_t)now.tv_sec * 1000000 + num_created++ % 1000000;
  path_of(unfinished, ".", kind, getpid(), *number);
  int file = open(unfinished, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) return -1;
  // The file gets its name after its lock, because other processes delete files without a lock.
  if (ftruncate(file, (off_t)size) || lock_byte(file, F_WRLCK, OWNERS_BYTE) ||
      rename(unfinished, path_of(path, "", kind, getpid(), *number))) {
    unlink(unfinished);
    close(file);
    return -1;
  }
  return file;
}

int file_open(char kind, int owner, uint64_t number) {
  char path[4096];
  int file = open(path_of(path, "", kind, owner, number), O_RDWR | O_CLOEXEC);
  if (file < 0) return -1;
  if (is_locked(file, OWNERS_BYTE, 1) && lock_byte(file, F_RDLCK, OPENERS_BYTE) == 0) return file;
  close(file);
  return -1;
}

// Addresses are multiples of 2 MiB, as a driver's are.
void *file_map(int file, uint64_t size, uint64_t not_at) {
  uint64_t whole = (size + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
  char *reserved = mmap(NULL, whole + 2 * ALIGNMENT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return NULL;
  uint64_t start = ((uint64_t)reserved + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (start == not_at) start += ALIGNMENT;
  char *end = reserved + whole + 2 * ALIGNMENT;
  if (start > (uint64_t)reserved) munmap(reserved, start - (uint64_t)reserved);
  munmap((char *)start + whole, (uint64_t)end - start - whole);
  void *mapped = mmap((void *)start, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
  return mapped == MAP_FAILED ? NULL : mapped;
}

static void delete_if_unused(const char *path, int file) {
  if (!is_locked(file, 0, 0)) unlink(path);
}

void file_close(int file, char kind, int owner, uint64_t number) {
  char path[4096];
  close(file);
  file = open(path_of(path, "", kind, owner, number), O_RDWR | O_CLOEXEC);
  if (file < 0) return;
  delete_if_unused(path, file);
  close(file);
}

uint64_t files_used_bytes(void) {
  char path[4096];
  uint64_t sum = 0;
  snprintf(path, sizeof path, "%s/memory", getenv("SIMULATED_CARD"));
  DIR *folder = opendir(path);
  if (!folder) return 0;
  for (struct dirent *entry; (entry = readdir(folder));) {
    if (entry->d_name[0] == '.') continue;
    int file = openat(dirfd(folder), entry->d_name, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (file < 0) continue;
    if (!is_locked(file, 0, 0))
      unlinkat(dirfd(folder), entry->d_name, 0);
    else if (entry->d_name[0] == MEMORY_FILE && fstat(file, &status) == 0)
      sum += (uint64_t)status.st_size;
    close(file);
  }
  closedir(folder);
  return sum;
}
