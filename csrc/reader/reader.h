// SPDX-License-Identifier: Apache-2.0
// Threads that copy windows of feature rows from files into memory of the caller.
//
// Python owns memory and order, this file owns bytes and threads. It parses nothing: an extent says
// where the numbers of a video lie, and whoever made it checked it against the file. Files can
// still change or fail while they are read; that is reported to the caller of wait(), never thrown
// on a worker, and never leaves a waiter asleep.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tal_fast::reader {

enum class DType : int32_t { kFloat16 = 0, kFloat32 = 1, kFloat64 = 2, kBFloat16 = 3 };
enum class Layout : int32_t { kTC = 0, kCT = 1 };

int64_t item_size(DType dtype);

// The features of one video in a file, or some of its channels.
struct Extent {
  std::string path;
  int64_t offset = 0;   // byte of the first element
  int64_t rows = 0;     // T
  int64_t columns = 0;  // C
  DType dtype = DType::kFloat32;
  Layout layout = Layout::kTC;  // kTC: [T, C] in the file, kCT: [C, T]
};

// One window to read, and where it goes. A video whose channels lie in several extents takes one
// job for each of them, into the same slot at different columns.
struct WindowJob {
  int64_t extent = 0;  // index into the reader's extents
  int64_t start = 0;   // rows [start, stop) of it, or of it resampled
  int64_t stop = 0;
  void* features = nullptr;  // element (row 0, first channel of the extent) of the slot. The slot
                             // is written whole: rows after the window become zero
  uint8_t* mask = nullptr;   // [slot_rows], 1 = padding; may be null
  int64_t slot_rows = 0;
  DType dtype = DType::kFloat32;  // of the slot: float16, float32 or bfloat16
  Layout layout = Layout::kTC;    // of the slot
  int64_t pitch = 0;              // elements from a row (kTC) or channel (kCT) of the slot to the
                                  // next; 0: the extent's columns, or slot_rows
  // 0: the rows as they are. Else the extent is resampled to this many rows, of which start and
  // stop speak: row v takes the linear interpolation at max(0, (v + 1/2) * T / resampled - 1/2),
  // held after the last row, as torch's `interpolate(mode="linear", align_corners=False)` does.
  int64_t resampled = 0;
};

enum class ReadFault : int32_t {
  kNone = 0,
  kOpen,        // the file cannot be opened
  kTruncated,   // the file ends before the extent does
  kRead,        // pread failed
  kNotFinite,   // NaN or infinity in the file
  kInternal,    // anything else, for example no memory for the scratch buffer
  kOutOfRange,  // finite in the file, infinite in the slot's type
  kReplaced,    // reopened, and it is another file than the one that was read before
};

struct ReadError {
  ReadFault fault = ReadFault::kNone;
  int64_t job = -1;     // position in the submitted list
  int64_t extent = -1;  // index into the reader's extents
  int64_t offset = -1;  // byte in the file
  int64_t row = -1;     // kNotFinite, kOutOfRange: row of the video
  int64_t column = -1;  // and channel of the extent
  int64_t value = 0;    // kTruncated: size of the file found
  double number = 0;    // kOutOfRange: what stands in the file
  std::string reason;   // text of the system
};

class Reader {
 public:
  // threads >= 1; max_open_files >= 1 bounds the descriptors kept open (one more per thread may be
  // open for an instant). Throws std::invalid_argument for arguments out of range.
  Reader(std::vector<Extent> extents, int threads, int max_open_files, bool check_finite);
  ~Reader();  // close()
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Queues the windows of one batch and returns its ticket. The memory must stay valid until
  // wait_for() returned true, cancel() or close() returned. Windows are read in the order of
  // submission. Throws std::invalid_argument for a window outside its extent, a slot that is too
  // short or of a type that slots do not have, std::runtime_error after close().
  int64_t submit(const std::vector<WindowJob>& jobs);

  // Waits at most that long; true when every window of the ticket was read or failed (the ticket is
  // forgotten then). *error tells of the failed window with the lowest position, so that the same
  // data gives the same error with any number of threads. Throws std::invalid_argument for an
  // unknown ticket, std::runtime_error when the reader was closed meanwhile.
  bool wait_for(int64_t ticket, int64_t milliseconds, ReadError* error);

  // Drops what is queued of a ticket and waits for the windows being read. Unknown: does nothing.
  void cancel(int64_t ticket);

  // Drops what is queued, joins every thread, closes every file. May be called again. In a forked
  // child, where the threads do not exist, it only forgets them.
  void close();

  int open_files() const;
  const Extent& extent(int64_t index) const;

 private:
  struct State;
  State& state() const;  // throws std::runtime_error in a forked child
  std::unique_ptr<State> state_;
};

}  // namespace tal_fast::reader
