// SPDX-License-Identifier: Apache-2.0
// Files as the reader's threads use them: reads that are whole or fail, and a bounded number of
// open descriptors. Part of the reader; nothing else includes it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "reader/reader.h"

namespace tal_fast::reader {

// An error on its way from a worker to the ticket.
struct Failure {
  ReadError error;
};

[[noreturn]] inline void fail(ReadFault fault, int64_t offset, const std::string& reason,
                              int64_t value = 0) {
  Failure failure;
  failure.error.fault = fault;
  failure.error.offset = offset;
  failure.error.reason = reason;
  failure.error.value = value;
  throw failure;
}

inline std::string system_text(int number) {
  return std::generic_category().message(number);
}

inline int64_t extent_bytes(const Extent& e) {
  return e.rows * e.columns * item_size(e.dtype);
}

// Tells a file from another one that took its name.
struct Identity {
  dev_t device = 0;
  ino_t node = 0;
  bool operator==(const Identity&) const = default;
};

// A descriptor that closes itself when the last reader of it is done.
class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Reads exactly n bytes. Signals (EINTR) and short reads are continued.
  void read(void* out, int64_t n, int64_t offset) const {
    char* to = static_cast<char*>(out);
    while (n > 0) {
      const ssize_t got = ::pread(descriptor_, to, static_cast<size_t>(n), offset);
      if (got > 0) {
        to += got;
        offset += got;
        n -= got;
      } else if (got == 0) {
        const int64_t there = size();
        fail(ReadFault::kTruncated, offset, "the file ends here", there < 0 ? offset : there);
      } else if (errno != EINTR) {
        fail(ReadFault::kRead, offset, system_text(errno));
      }
    }
  }

  // Asks the system to read ahead; returns at once, whatever comes of it.
  void expect(int64_t offset, int64_t n) const {
    static_cast<void>(::posix_fadvise(descriptor_, offset, n, POSIX_FADV_WILLNEED));
  }

  // Bytes of the file, -1 when it cannot be asked.
  int64_t size(Identity* identity = nullptr) const {
    struct stat info{};
    if (::fstat(descriptor_, &info) != 0) {
      return -1;
    }
    if (identity != nullptr) {
      *identity = {info.st_dev, info.st_ino};
    }
    return static_cast<int64_t>(info.st_size);
  }

 private:
  int descriptor_;
};

// The most recently used files. A file that is evicted while a thread reads it stays open until
// that thread lets go of it. A file that comes back under its name as another one is refused: rows
// of two files must not end up in one pass over the data.
class FileCache {
 public:
  explicit FileCache(size_t capacity) : capacity_(capacity) {}

  std::shared_ptr<const File> get(const Extent& extent) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = by_path_.find(extent.path);
      if (found != by_path_.end()) {
        order_.splice(order_.begin(), order_, found->second);
        return found->second->second;
      }
    }
    // Opened without the lock: a slow file system must not stop the other threads. Two threads may
    // open the same file at once; the second to arrive is used and dropped.
    int descriptor = -1;
    do {
      descriptor = ::open(extent.path.c_str(), O_RDONLY | O_CLOEXEC);
    } while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) {
      fail(ReadFault::kOpen, extent.offset, system_text(errno));
    }
    auto file = std::make_shared<const File>(descriptor);
    Identity identity;
    const int64_t size = file->size(&identity);
    if (size < 0) {
      fail(ReadFault::kRead, extent.offset, system_text(errno));
    }
    if (size < extent.offset + extent_bytes(extent)) {
      fail(ReadFault::kTruncated, extent.offset, "the file is shorter than when it was indexed",
           size);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [seen, first] = seen_.try_emplace(extent.path, identity);
    if (!first && seen->second != identity) {
      fail(ReadFault::kReplaced, extent.offset, "another file has taken its name");
    }
    if (by_path_.find(extent.path) == by_path_.end()) {
      order_.emplace_front(extent.path, file);
      by_path_[extent.path] = order_.begin();
      if (order_.size() > capacity_) {
        by_path_.erase(order_.back().first);
        order_.pop_back();
      }
    }
    return file;
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    by_path_.clear();
    order_.clear();
  }

  int size() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int>(order_.size());
  }

 private:
  using Entry = std::pair<std::string, std::shared_ptr<const File>>;
  mutable std::mutex mutex_;
  size_t capacity_;
  std::list<Entry> order_;  // most recent first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_path_;
  std::unordered_map<std::string, Identity> seen_;  // every file that was opened so far
};

}  // namespace tal_fast::reader
