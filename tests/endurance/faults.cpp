// SPDX-License-Identifier: Apache-2.0
// Calls on files below a folder that fail, or kill their process, at chosen moments; and threads
// and processes, wherever they are, that do not start.
//
// A library for LD_PRELOAD; faults.py builds it and says what the specification holds. It comes
// from the variable ENDURANCE_FAULTS when the program starts, or later from endurance_faults_arm().
// Nothing is done for files elsewhere, nor before a specification is there.
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>

namespace {

enum Call : unsigned {
  kOpen = 1,
  kWrite = 2,
  kRename = 4,
  kSync = 8,
  kRemove = 16,
  kMake = 32,
  kClose = 64,
  kLock = 128,
  kLook = 256,
  kRead = 512,
  kAsk = 1024,
  kThread = 2048,
  kProcess = 4096,
};

enum class Mode { kCount, kOnce, kEvery, kFrom, kKill };

struct Specification {
  char root[PATH_MAX] = "";
  size_t length = 0;
  unsigned calls = 0;
  Mode mode = Mode::kCount;
  long at = 0;
  int error = EIO;
};

Specification specification;
std::atomic<bool> armed{false};
std::atomic<long> count{0};

// The true function behind an interposed one.
template <typename Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

bool below_root(const char* path) {
  return strncmp(path, specification.root, specification.length) == 0 &&
         (path[specification.length] == '/' || path[specification.length] == '\0');
}

// Where a link of /proc leads, read without any interposed call. False where it cannot be told.
bool read_link(const char* link, char* target) {
  const long size = syscall(SYS_readlinkat, AT_FDCWD, link, target, PATH_MAX - 1);
  if (size < 0)
    return false;
  target[size] = '\0';
  return true;
}

bool descriptor_below_root(int descriptor) {
  char link[64];
  char path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  return read_link(link, path) && below_root(path);
}

bool path_below_root(int directory, const char* path) {
  if (path == nullptr)
    return false;
  if (path[0] == '/')
    return below_root(path);
  char link[64];
  char base[PATH_MAX];
  if (directory == AT_FDCWD) {
    snprintf(link, sizeof link, "/proc/self/cwd");
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
  }
  if (!read_link(link, base))
    return false;
  char whole[2 * PATH_MAX];
  snprintf(whole, sizeof whole, "%s/%s", base, path);
  return below_root(whole);
}

// Whether this call, one of `call` on a file below the root, is to fail; errno is set then.
bool fails(Call call) {
  if ((specification.calls & call) == 0)
    return false;
  const long number = count.fetch_add(1) + 1;
  switch (specification.mode) {
    case Mode::kCount:
      return false;
    case Mode::kOnce:
      if (number != specification.at)
        return false;
      break;
    case Mode::kEvery:
      if (number % specification.at != 0)
        return false;
      break;
    case Mode::kFrom:
      if (number < specification.at)
        return false;
      break;
    case Mode::kKill:
      if (number == specification.at)
        syscall(SYS_kill, getpid(), SIGKILL);
      return false;
  }
  errno = specification.error;
  return true;
}

bool path_fails(Call call, int directory, const char* path) {
  return armed && path_below_root(directory, path) && fails(call);
}

bool descriptor_fails(Call call, int descriptor) {
  return armed && descriptor_below_root(descriptor) && fails(call);
}

bool changes(int flags) {
  return (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0;
}

}  // namespace

extern "C" {

// "calls mode at error root", as in "3 kill 17 5 /tmp/study"; an empty text disarms.
// Returns whether the text was understood.
int endurance_faults_arm(const char* text) {
  armed = false;
  count = 0;
  if (text[0] == '\0')
    return 1;
  Specification made;
  char mode[16];
  int read = 0;
  if (sscanf(text, "%u %15s %ld %d %n", &made.calls, mode, &made.at, &made.error, &read) != 4)
    return 0;
  const char* const names[] = {"count", "once", "every", "from", "kill"};
  int index = 0;
  while (index < 5 && strcmp(mode, names[index]) != 0)
    ++index;
  if (index == 5 || text[read] != '/' || strlen(text + read) >= PATH_MAX)
    return 0;
  made.mode = static_cast<Mode>(index);
  if (made.mode != Mode::kCount && made.at < 1)
    return 0;
  strcpy(made.root, text + read);
  made.length = strlen(made.root);
  specification = made;
  armed = true;
  return 1;
}

// Calls so far.
long endurance_faults_count() {
  return count;
}

__attribute__((constructor)) void endurance_faults_start() {
  const char* text = getenv("ENDURANCE_FAULTS");
  if (text != nullptr && endurance_faults_arm(text) == 0) {
    fprintf(stderr, "ENDURANCE_FAULTS: cannot read '%s'\n", text);
    _exit(70);
  }
}

#define OPEN(name)                                                           \
  int name(const char* path, int flags, ...) {                               \
    mode_t mode = 0;                                                         \
    if (flags & (O_CREAT | O_TMPFILE)) {                                     \
      va_list more;                                                          \
      va_start(more, flags);                                                 \
      mode = va_arg(more, mode_t);                                           \
      va_end(more);                                                          \
    }                                                                        \
    if (path_fails(changes(flags) ? kOpen : kLook, AT_FDCWD, path))          \
      return -1;                                                             \
    static const auto next = real<int (*)(const char*, int, mode_t)>(#name); \
    return next(path, flags, mode);                                          \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                              \
  int name(int directory, const char* path, int flags, ...) {                     \
    mode_t mode = 0;                                                              \
    if (flags & (O_CREAT | O_TMPFILE)) {                                          \
      va_list more;                                                               \
      va_start(more, flags);                                                      \
      mode = va_arg(more, mode_t);                                                \
      va_end(more);                                                               \
    }                                                                             \
    if (path_fails(changes(flags) ? kOpen : kLook, directory, path))              \
      return -1;                                                                  \
    static const auto next = real<int (*)(int, const char*, int, mode_t)>(#name); \
    return next(directory, path, flags, mode);                                    \
  }
OPENAT(openat)
OPENAT(openat64)

#define OPEN_STREAM(name)                                                      \
  FILE* name(const char* path, const char* mode) {                             \
    if (path_fails(strpbrk(mode, "wa+") ? kOpen : kLook, AT_FDCWD, path))      \
      return nullptr;                                                          \
    static const auto next = real<FILE* (*)(const char*, const char*)>(#name); \
    return next(path, mode);                                                   \
  }
OPEN_STREAM(fopen)
OPEN_STREAM(fopen64)

ssize_t write(int descriptor, const void* data, size_t size) {
  if (descriptor_fails(kWrite, descriptor))
    return -1;
  static const auto next = real<ssize_t (*)(int, const void*, size_t)>("write");
  return next(descriptor, data, size);
}

ssize_t writev(int descriptor, const iovec* parts, int number) {
  if (descriptor_fails(kWrite, descriptor))
    return -1;
  static const auto next = real<ssize_t (*)(int, const iovec*, int)>("writev");
  return next(descriptor, parts, number);
}

#define WRITE_AT(name, offset)                                                           \
  ssize_t name(int descriptor, const void* data, size_t size, offset at) {               \
    if (descriptor_fails(kWrite, descriptor))                                            \
      return -1;                                                                         \
    static const auto next = real<ssize_t (*)(int, const void*, size_t, offset)>(#name); \
    return next(descriptor, data, size, at);                                             \
  }
WRITE_AT(pwrite, off_t)
WRITE_AT(pwrite64, off64_t)

ssize_t read(int descriptor, void* data, size_t size) {
  if (descriptor_fails(kRead, descriptor))
    return -1;
  static const auto next = real<ssize_t (*)(int, void*, size_t)>("read");
  return next(descriptor, data, size);
}

#define READ_AT(name, offset)                                                      \
  ssize_t name(int descriptor, void* data, size_t size, offset at) {               \
    if (descriptor_fails(kRead, descriptor))                                       \
      return -1;                                                                   \
    static const auto next = real<ssize_t (*)(int, void*, size_t, offset)>(#name); \
    return next(descriptor, data, size, at);                                       \
  }
READ_AT(pread, off_t)
READ_AT(pread64, off64_t)

#define ASK(name, type)                                        \
  int name(int descriptor, type* about) {                      \
    if (descriptor_fails(kAsk, descriptor))                    \
      return -1;                                               \
    static const auto next = real<int (*)(int, type*)>(#name); \
    return next(descriptor, about);                            \
  }
ASK(fstat, struct stat)
ASK(fstat64, struct stat64)

#define ASK_PATH(name, type)                                           \
  int name(const char* path, type* about) {                            \
    if (path_fails(kAsk, AT_FDCWD, path))                              \
      return -1;                                                       \
    static const auto next = real<int (*)(const char*, type*)>(#name); \
    return next(path, about);                                          \
  }
ASK_PATH(stat, struct stat)
ASK_PATH(stat64, struct stat64)
ASK_PATH(lstat, struct stat)
ASK_PATH(lstat64, struct stat64)

#define TRUNCATE(name, offset)                                  \
  int name(int descriptor, offset size) {                       \
    if (descriptor_fails(kWrite, descriptor))                   \
      return -1;                                                \
    static const auto next = real<int (*)(int, offset)>(#name); \
    return next(descriptor, size);                              \
  }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int rename(const char* from, const char* to) {
  if (path_fails(kRename, AT_FDCWD, from))
    return -1;
  static const auto next = real<int (*)(const char*, const char*)>("rename");
  return next(from, to);
}

int renameat(int from_directory, const char* from, int to_directory, const char* to) {
  if (path_fails(kRename, from_directory, from))
    return -1;
  static const auto next = real<int (*)(int, const char*, int, const char*)>("renameat");
  return next(from_directory, from, to_directory, to);
}

int fsync(int descriptor) {
  if (descriptor_fails(kSync, descriptor))
    return -1;
  static const auto next = real<int (*)(int)>("fsync");
  return next(descriptor);
}

int fdatasync(int descriptor) {
  if (descriptor_fails(kSync, descriptor))
    return -1;
  static const auto next = real<int (*)(int)>("fdatasync");
  return next(descriptor);
}

int unlink(const char* path) {
  if (path_fails(kRemove, AT_FDCWD, path))
    return -1;
  static const auto next = real<int (*)(const char*)>("unlink");
  return next(path);
}

int unlinkat(int directory, const char* path, int flags) {
  if (path_fails(kRemove, directory, path))
    return -1;
  static const auto next = real<int (*)(int, const char*, int)>("unlinkat");
  return next(directory, path, flags);
}

int rmdir(const char* path) {
  if (path_fails(kRemove, AT_FDCWD, path))
    return -1;
  static const auto next = real<int (*)(const char*)>("rmdir");
  return next(path);
}

int mkdir(const char* path, mode_t mode) {
  if (path_fails(kMake, AT_FDCWD, path))
    return -1;
  static const auto next = real<int (*)(const char*, mode_t)>("mkdir");
  return next(path, mode);
}

int mkdirat(int directory, const char* path, mode_t mode) {
  if (path_fails(kMake, directory, path))
    return -1;
  static const auto next = real<int (*)(int, const char*, mode_t)>("mkdirat");
  return next(directory, path, mode);
}

// As on network file systems, which say late that what was written did not fit. The descriptor is
// gone all the same.
int close(int descriptor) {
  static const auto next = real<int (*)(int)>("close");
  if (descriptor_fails(kClose, descriptor)) {
    const int error = errno;
    next(descriptor);
    errno = error;
    return -1;
  }
  return next(descriptor);
}

int flock(int descriptor, int operation) {
  if ((operation & LOCK_UN) == 0 && descriptor_fails(kLock, descriptor))
    return -1;
  static const auto next = real<int (*)(int, int)>("flock");
  return next(descriptor, operation);
}

#define CONTROL(name)                                                           \
  int name(int descriptor, int command, ...) {                                  \
    va_list more;                                                               \
    va_start(more, command);                                                    \
    void* argument = va_arg(more, void*);                                       \
    va_end(more);                                                               \
    if ((command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || \
         command == F_OFD_SETLKW) &&                                            \
        descriptor_fails(kLock, descriptor))                                    \
      return -1;                                                                \
    static const auto next = real<int (*)(int, int, ...)>(#name);               \
    return next(descriptor, command, argument);                                 \
  }
CONTROL(fcntl)
CONTROL(fcntl64)

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*function)(void*),
                   void* argument) {
  if (armed && fails(kThread))
    return specification.error;
  static const auto next =
      real<int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*)>("pthread_create");
  return next(thread, attributes, function, argument);
}

pid_t fork() {
  if (armed && fails(kProcess))
    return -1;
  static const auto next = real<pid_t (*)()>("fork");
  return next();
}

// A function in between cannot return from vfork() twice. What may be done in the child of vfork()
// may be done in that of fork().
pid_t vfork() {
  return fork();
}

}  // extern "C"
