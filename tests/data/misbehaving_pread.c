/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded by test_loader_faults.py: a pread, or an fstat, that misbehaves on files named *.npy. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int is_feature_file(int fd) {
  char link[64];
  char name[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, name, sizeof name - 1);
  return n > 4 && memcmp(name + n - 4, ".npy", 4) == 0;
}

static ssize_t misbehave(ssize_t (*real)(int, void *, size_t, off_t), int fd, void *out, size_t n,
                         off_t offset) {
  static _Atomic unsigned calls;
  const char *mode = getenv("MISBEHAVING_PREAD");
  if (mode == NULL || !is_feature_file(fd)) return real(fd, out, n, offset);
  const unsigned call = calls++;
  if (strcmp(mode, "eio") == 0 && call >= 5) {
    errno = EIO;
    return -1;
  }
  if (strcmp(mode, "short") == 0) {
    if (call % 3 == 0) {
      errno = EINTR;
      return -1;
    }
    n = n > 7 ? n / 3 : n;
  }
  if (strcmp(mode, "slow") == 0) usleep(20000);
  return real(fd, out, n, offset);
}

ssize_t pread(int fd, void *out, size_t n, off_t offset) {
  static ssize_t (*real)(int, void *, size_t, off_t);
  if (real == NULL) real = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
  return misbehave(real, fd, out, n, offset);
}

ssize_t pread64(int fd, void *out, size_t n, off_t offset) {
  static ssize_t (*real)(int, void *, size_t, off_t);
  if (real == NULL) real = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
  return misbehave(real, fd, out, n, offset);
}

static int unasked(int fd) {
  const char *mode = getenv("MISBEHAVING_PREAD");
  if (mode == NULL || strcmp(mode, "unasked") != 0 || !is_feature_file(fd)) return 0;
  errno = EIO;
  return 1;
}

int fstat(int fd, struct stat *about) {
  static int (*real)(int, struct stat *);
  if (real == NULL) real = (int (*)(int, struct stat *))dlsym(RTLD_NEXT, "fstat");
  return unasked(fd) ? -1 : real(fd, about);
}

/* What fstat is called before glibc 2.33. */
int __fxstat(int version, int fd, struct stat *about) {
  static int (*real)(int, int, struct stat *);
  if (real == NULL) real = (int (*)(int, int, struct stat *))dlsym(RTLD_NEXT, "__fxstat");
  return unasked(fd) ? -1 : real(version, fd, about);
}
