/* One system call that fails: preloaded (LD_PRELOAD) into a process that runs our commands.

   fault_arm(root, call, nth, error): of the calls of this kind whose file lies under `root`, the
   nth from now on fails with `error`, without being made; 0 for none. fault_count(call): how many
   there were since. Of stdio, fread and fwrite count
   as read and write; calls that the C library makes inside itself are not seen. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, READ, WRITE, FSYNC, RENAME, UNLINK, MKDIR, RMDIR, OPENDIR, READDIR, MMAP, TRUNCATE, KINDS };
static const char *names[KINDS] = {"open",  "read", "write",   "fsync",   "rename", "unlink", "mkdir",
                                   "rmdir", "opendir", "readdir", "mmap",  "truncate"};
static char root[4096];
static char failed[4096];
static int armed_kind = -1, armed_error;
static long armed_nth;
static atomic_long counts[KINDS];

static int kind_of(const char *call) {
  for (int kind = 0; kind < KINDS; kind++)
    if (!strcmp(names[kind], call)) return kind;
  return -1;
}

int fault_arm(const char *folder, const char *call, long nth, int error) {
  armed_kind = -1;
  failed[0] = 0;
  for (int kind = 0; kind < KINDS; kind++) counts[kind] = 0;
  snprintf(root, sizeof root, "%s", folder);
  armed_nth = nth, armed_error = error;
  armed_kind = kind_of(call);
  return armed_kind;
}

long fault_count(const char *call) { return counts[kind_of(call)]; }

const char *fault_failed(void) { return failed; } /* the file; "" if no call failed */

static int fails(int kind, const char *path) {
  size_t size = strlen(root);
  if (!size || strncmp(path, root, size) || (path[size] && path[size] != '/')) return 0;
  long number = ++counts[kind];
  if (kind != armed_kind || number != armed_nth) return 0;
  snprintf(failed, sizeof failed, "%s", path);
  errno = armed_error;
  return 1;
}

static int fd_fails(int kind, int fd) {
  char link[64], path[4096];
  if (!root[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return fails(kind, path);
}

static int at_fails(int kind, int fd, const char *path) {
  char link[64], whole[8192];
  if (!root[0]) return 0;
  if (path[0] == '/' || fd == AT_FDCWD) return fails(kind, path);
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, whole, 4096);
  if (size < 0) return 0;
  snprintf(whole + size, sizeof whole - size, "/%s", path);
  return fails(kind, whole);
}

#define NEXT(type, name) \
  static type (*next)();  \
  if (!next) next = (type(*)())dlsym(RTLD_NEXT, #name)

#define OPEN_LIKE(name)                                             \
  int name(const char *path, int flags, ...) {                      \
    NEXT(int, name);                                                \
    va_list rest;                                                   \
    va_start(rest, flags);                                          \
    int mode = va_arg(rest, int);                                   \
    va_end(rest);                                                   \
    return fails(OPEN, path) ? -1 : next(path, flags, mode);        \
  }
OPEN_LIKE(open)
OPEN_LIKE(open64)

#define OPENAT_LIKE(name)                                              \
  int name(int fd, const char *path, int flags, ...) {                 \
    NEXT(int, name);                                                   \
    va_list rest;                                                      \
    va_start(rest, flags);                                             \
    int mode = va_arg(rest, int);                                      \
    va_end(rest);                                                      \
    return at_fails(OPEN, fd, path) ? -1 : next(fd, path, flags, mode); \
  }
OPENAT_LIKE(openat)
OPENAT_LIKE(openat64)

#define FD(kind, type, name, parameters, ...) \
  type name parameters {                      \
    NEXT(type, name);                         \
    return fd_fails(kind, fd) ? -1 : next(__VA_ARGS__); \
  }
FD(READ, ssize_t, read, (int fd, void *buffer, size_t size), fd, buffer, size)
FD(READ, ssize_t, pread, (int fd, void *buffer, size_t size, off_t at), fd, buffer, size, at)
FD(READ, ssize_t, pread64, (int fd, void *buffer, size_t size, off64_t at), fd, buffer, size, at)
FD(READ, ssize_t, readv, (int fd, const struct iovec *parts, int count), fd, parts, count)
FD(READ, ssize_t, preadv, (int fd, const struct iovec *parts, int count, off_t at), fd, parts, count, at)
FD(READ, ssize_t, preadv64, (int fd, const struct iovec *parts, int count, off64_t at), fd, parts, count, at)
FD(WRITE, ssize_t, write, (int fd, const void *buffer, size_t size), fd, buffer, size)
FD(WRITE, ssize_t, pwrite, (int fd, const void *buffer, size_t size, off_t at), fd, buffer, size, at)
FD(WRITE, ssize_t, pwrite64, (int fd, const void *buffer, size_t size, off64_t at), fd, buffer, size, at)
FD(WRITE, ssize_t, writev, (int fd, const struct iovec *parts, int count), fd, parts, count)
FD(FSYNC, int, fsync, (int fd), fd)
FD(FSYNC, int, fdatasync, (int fd), fd)
FD(TRUNCATE, int, ftruncate, (int fd, off_t size), fd, size)
FD(TRUNCATE, int, ftruncate64, (int fd, off64_t size), fd, size)

size_t fwrite(const void *buffer, size_t size, size_t count, FILE *file) {
  NEXT(size_t, fwrite);
  return fd_fails(WRITE, fileno(file)) ? 0 : next(buffer, size, count, file);
}

size_t fread(void *buffer, size_t size, size_t count, FILE *file) {
  NEXT(size_t, fread);
  return fd_fails(READ, fileno(file)) ? 0 : next(buffer, size, count, file);
}

#define PATH(kind, name, parameters, ...)   \
  int name parameters {                     \
    NEXT(int, name);                        \
    return fails(kind, path) ? -1 : next(__VA_ARGS__); \
  }
PATH(RENAME, rename, (const char *path, const char *other), path, other)
PATH(UNLINK, unlink, (const char *path), path)
PATH(MKDIR, mkdir, (const char *path, mode_t mode), path, mode)
PATH(RMDIR, rmdir, (const char *path), path)

int unlinkat(int fd, const char *path, int flags) {
  NEXT(int, unlinkat);
  return at_fails(flags & AT_REMOVEDIR ? RMDIR : UNLINK, fd, path) ? -1 : next(fd, path, flags);
}

DIR *opendir(const char *path) {
  NEXT(DIR *, opendir);
  return fails(OPENDIR, path) ? NULL : next(path);
}

DIR *fdopendir(int fd) {
  NEXT(DIR *, fdopendir);
  return fd_fails(OPENDIR, fd) ? NULL : next(fd);
}

struct dirent *readdir(DIR *folder) {
  NEXT(struct dirent *, readdir);
  return fd_fails(READDIR, dirfd(folder)) ? NULL : next(folder);
}

struct dirent64 *readdir64(DIR *folder) {
  NEXT(struct dirent64 *, readdir64);
  return fd_fails(READDIR, dirfd(folder)) ? NULL : next(folder);
}

#define MMAP_LIKE(name, offset)                                                            \
  void *name(void *place, size_t size, int protection, int flags, int fd, offset at) {     \
    NEXT(void *, name);                                                                    \
    return fd >= 0 && fd_fails(MMAP, fd) ? MAP_FAILED : next(place, size, protection, flags, fd, at); \
  }
MMAP_LIKE(mmap, off_t)
MMAP_LIKE(mmap64, off64_t)
