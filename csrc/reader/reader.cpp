// SPDX-License-Identifier: Apache-2.0
#include "reader/reader.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

#include "reader/file_cache.h"
#include "reader/window.h"

namespace tal_fast::reader {
namespace {

// A window that came slower than this came from storage, and the next one is asked for in time.
// From the page cache it comes ten times as fast, and asking would only cost (measured: 5 to 10
// us).
constexpr double kStorageBytesPerSecond = 1.5e9;

struct Ticket {
  std::vector<WindowJob> jobs;
  size_t next = 0;    // first job that no thread took
  size_t active = 0;  // jobs that a thread has
  ReadError error;    // of the failed job with the lowest position

  bool done() const { return next == jobs.size() && active == 0; }
};

// Throws std::invalid_argument for a job that cannot be done; fills in its pitch.
void check_job(size_t position, const Extent& e, WindowJob& job) {
  constexpr int64_t kLimit = int64_t{1} << 59;
  const int64_t rows = job.resampled > 0 ? job.resampled : e.rows;
  if (job.start < 0 || job.stop <= job.start || job.stop > rows ||
      job.stop - job.start > job.slot_rows || job.resampled < 0 || job.features == nullptr) {
    throw std::invalid_argument("reader: window " + std::to_string(position) + ": rows [" +
                                std::to_string(job.start) + ", " + std::to_string(job.stop) +
                                ") of " + e.path + " (" + std::to_string(rows) +
                                " rows) do not fit a slot of " + std::to_string(job.slot_rows));
  }
  if (job.dtype != DType::kFloat16 && job.dtype != DType::kFloat32 &&
      job.dtype != DType::kBFloat16) {
    throw std::invalid_argument(
        "reader: expected slots of float16, float32 or bfloat16, got dtype " +
        std::to_string(static_cast<int32_t>(job.dtype)));
  }
  const bool rows_first = job.layout == Layout::kTC;
  const int64_t least = rows_first ? e.columns : job.slot_rows;
  const int64_t lines = rows_first ? job.slot_rows : e.columns;
  if (job.pitch == 0) {
    job.pitch = least;
  }
  if (job.pitch < least || lines > kLimit / job.pitch) {
    throw std::invalid_argument("reader: window " + std::to_string(position) +
                                ": expected a pitch of at least " + std::to_string(least) +
                                ", got " + std::to_string(job.pitch));
  }
}

}  // namespace

int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kFloat32:
      return 4;
    case DType::kFloat64:
      return 8;
  }
  throw std::invalid_argument("reader: unknown dtype");
}

struct Reader::State {
  State(std::vector<Extent> e, int max_open_files, bool check)
      : extents(std::move(e)),
        check_finite(check),
        owner(::getpid()),
        files(static_cast<size_t>(max_open_files)) {}

  void work();
  void read(const WindowJob& job, Scratch& scratch);
  const WindowJob* next_job() const;  // the one to be taken next, or null; under the mutex
  void expect(const WindowJob& job);  // has the system read it ahead

  const std::vector<Extent> extents;
  const bool check_finite;
  const pid_t owner;
  FileCache files;
  std::atomic<bool> from_storage{false};  // whether the last window was not in the page cache

  std::mutex mutex;  // guards all below
  std::condition_variable work_ready;
  std::condition_variable ticket_changed;
  std::map<int64_t, Ticket> tickets;
  std::deque<int64_t> queue;  // tickets with jobs that no thread took
  int64_t next_ticket = 1;
  bool closed = false;
  std::vector<std::thread> threads;
};

void Reader::State::read(const WindowJob& job, Scratch& scratch) {
  const Extent& e = extents[static_cast<size_t>(job.extent)];
  const std::shared_ptr<const File> file = files.get(e);
  const auto began = std::chrono::steady_clock::now();
  read_window(*file, e, job, check_finite, scratch);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - began;
  const auto bytes = static_cast<double>((job.stop - job.start) * e.columns * item_size(e.dtype));
  from_storage.store(bytes < kStorageBytesPerSecond * spent.count(), std::memory_order_relaxed);
}

const WindowJob* Reader::State::next_job() const {
  if (queue.empty()) {
    return nullptr;
  }
  const Ticket& ticket = tickets.at(queue.front());
  return &ticket.jobs[ticket.next];
}

void Reader::State::expect(const WindowJob& job) {
  const Extent& e = extents[static_cast<size_t>(job.extent)];
  if (e.layout != Layout::kTC || job.resampled > 0) {
    return;  // not one run of bytes
  }
  try {
    const int64_t row = e.columns * item_size(e.dtype);
    files.get(e)->expect(e.offset + job.start * row, (job.stop - job.start) * row);
  } catch (const Failure&) {
    // It will be met again, and told, when the window is read.
  }
}

void Reader::State::work() {
  Scratch scratch;
  std::unique_lock<std::mutex> lock(mutex);
  while (true) {
    work_ready.wait(lock, [this] { return closed || !queue.empty(); });
    if (closed) {
      return;
    }
    const int64_t id = queue.front();
    Ticket& ticket = tickets.at(id);  // stays where it is: nobody forgets a ticket with active jobs
    const size_t position = ticket.next++;
    ++ticket.active;
    if (ticket.next == ticket.jobs.size()) {
      queue.pop_front();
    }
    const WindowJob job = ticket.jobs[position];
    const bool look_ahead = from_storage.load(std::memory_order_relaxed);
    const WindowJob* const next = look_ahead ? next_job() : nullptr;
    const std::optional<WindowJob> ahead =
        next == nullptr ? std::nullopt : std::optional<WindowJob>(*next);
    lock.unlock();
    ReadError error;
    try {
      if (look_ahead) {
        expect(job);
      }
      if (ahead.has_value()) {
        expect(*ahead);
      }
      read(job, scratch);
    } catch (Failure& failure) {
      error = std::move(failure.error);
    } catch (const std::exception& other) {
      error.fault = ReadFault::kInternal;
      error.reason = other.what();
    } catch (...) {
      error.fault = ReadFault::kInternal;
      error.reason = "unknown error";
    }
    lock.lock();
    if (error.fault != ReadFault::kNone && (ticket.error.fault == ReadFault::kNone ||
                                            static_cast<int64_t>(position) < ticket.error.job)) {
      error.job = static_cast<int64_t>(position);
      error.extent = job.extent;
      ticket.error = std::move(error);
    }
    --ticket.active;
    if (ticket.done()) {
      ticket_changed.notify_all();
    }
  }
}

Reader::Reader(std::vector<Extent> extents, int threads, int max_open_files, bool check_finite) {
  if (threads < 1 || max_open_files < 1) {
    throw std::invalid_argument("reader: expected threads >= 1 and max_open_files >= 1, got " +
                                std::to_string(threads) + " and " + std::to_string(max_open_files));
  }
  for (const Extent& e : extents) {
    // The products below must not overflow; no file is that large.
    constexpr int64_t kLimit = int64_t{1} << 59;
    if (e.offset < 0 || e.rows < 1 || e.columns < 1 || e.offset > kLimit ||
        e.rows > kLimit / e.columns / item_size(e.dtype)) {
      throw std::invalid_argument("reader: extent of " + e.path +
                                  ": expected offset >= 0, rows >= 1, columns >= 1, got " +
                                  std::to_string(e.offset) + ", " + std::to_string(e.rows) + ", " +
                                  std::to_string(e.columns));
    }
  }
  state_ = std::make_unique<State>(std::move(extents), max_open_files, check_finite);
  try {
    for (int i = 0; i < threads; ++i) {
      state_->threads.emplace_back([state = state_.get()] { state->work(); });
    }
  } catch (...) {
    close();
    throw;
  }
}

Reader::~Reader() {
  close();
}

Reader::State& Reader::state() const {
  // The threads of a reader do not exist in a forked child, and its mutex may be locked for ever.
  if (state_ == nullptr || state_->owner != ::getpid()) {
    throw std::runtime_error("reader: it belongs to the process before fork; make a new one");
  }
  return *state_;
}

int64_t Reader::submit(const std::vector<WindowJob>& jobs) {
  std::vector<WindowJob> checked = jobs;
  for (size_t i = 0; i < checked.size(); ++i) {
    check_job(i, extent(checked[i].extent), checked[i]);
  }
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (s.closed) {
    throw std::runtime_error("reader: it is closed");
  }
  const int64_t id = s.next_ticket++;
  Ticket& ticket = s.tickets[id];
  ticket.jobs = std::move(checked);
  if (!ticket.jobs.empty()) {
    s.queue.push_back(id);
    s.work_ready.notify_all();
  }
  return id;
}

bool Reader::wait_for(int64_t ticket, int64_t milliseconds, ReadError* error) {
  State& s = state();
  std::unique_lock<std::mutex> lock(s.mutex);
  const auto ready = [&] {
    const auto found = s.tickets.find(ticket);
    return s.closed || found == s.tickets.end() || found->second.done();
  };
  // wait_until of the system clock is what ThreadSanitizer understands everywhere; a clock that
  // jumps only makes one slice of waiting longer or shorter.
  const auto deadline = std::chrono::system_clock::now() + std::chrono::milliseconds(milliseconds);
  if (!s.ticket_changed.wait_until(lock, deadline, ready)) {
    return false;
  }
  if (s.closed) {
    throw std::runtime_error("reader: it was closed while a batch was awaited");
  }
  const auto found = s.tickets.find(ticket);
  if (found == s.tickets.end()) {
    throw std::invalid_argument("reader: no ticket " + std::to_string(ticket));
  }
  *error = std::move(found->second.error);
  s.tickets.erase(found);
  return true;
}

void Reader::cancel(int64_t ticket) {
  State& s = state();
  std::unique_lock<std::mutex> lock(s.mutex);
  const auto found = s.tickets.find(ticket);
  if (found == s.tickets.end()) {
    return;
  }
  s.queue.erase(std::remove(s.queue.begin(), s.queue.end(), ticket), s.queue.end());
  found->second.jobs.resize(found->second.next);
  s.ticket_changed.wait(lock, [&] { return s.closed || found->second.active == 0; });
  if (!s.closed) {
    s.tickets.erase(ticket);
    s.ticket_changed.notify_all();
  }
}

void Reader::close() {
  if (state_ == nullptr) {
    return;
  }
  State& s = *state_;
  if (s.owner != ::getpid()) {
    // After fork() the threads exist in the parent only and the mutex may be locked for ever.
    // Leaking the state is the one safe thing to do; it is shared with the parent copy-on-write.
    static_cast<void>(state_.release());
    return;
  }
  std::vector<std::thread> threads;
  {
    const std::lock_guard<std::mutex> lock(s.mutex);
    s.closed = true;
    s.queue.clear();
    threads.swap(s.threads);
    s.work_ready.notify_all();
    s.ticket_changed.notify_all();
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  s.files.clear();
}

int Reader::open_files() const {
  return state().files.size();
}

const Extent& Reader::extent(int64_t index) const {
  const auto& extents = state().extents;
  if (index < 0 || index >= static_cast<int64_t>(extents.size())) {
    throw std::invalid_argument("reader: no extent " + std::to_string(index) + " among " +
                                std::to_string(extents.size()));
  }
  return extents[static_cast<size_t>(index)];
}

}  // namespace tal_fast::reader
