#include "base/thread_pool.h"

#include <algorithm>
#include <string>

#include "base/cancellation.h"
#include "base/error.h"
#include "base/process.h"

namespace pyinfer {
namespace {

// Roughly 50 µs at a few nanoseconds a pause: longer than the gap between two jobs of a step, far shorter than a time slice.
constexpr int kSpins = 8000;
// With more threads than processors a spinning thread keeps the one it waits for from running.
constexpr int kSpinsCrowded = 50;

}  // namespace

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads), process_(process_id()), spins_(kSpins) {
  if (n_threads < 1 || n_threads > kMaxThreads) {
    throw Error(ErrorKind::request,
                "threads: expected 1 to " + std::to_string(kMaxThreads) + ", found " + std::to_string(n_threads));
  }
  if (n_threads > available_processors()) spins_ = kSpinsCrowded;
  shares_ = std::make_unique<Share[]>(static_cast<size_t>(n_threads));
  helpers_ = std::make_unique<Helpers>();
  try {
    for (int thread = 1; thread < n_threads; ++thread)
      helpers_->threads.emplace_back(&ThreadPool::thread_main, this, thread);
  } catch (const std::exception& error) {
    stop();
    throw Error(ErrorKind::memory, "cannot start " + std::to_string(n_threads) + " threads: " + error.what());
  }
}

ThreadPool::~ThreadPool() {
  const NoCancellation whole;
  if (alive_here()) {
    stop();
  } else {
    static_cast<void>(helpers_.release());  // the system would look for threads that do not exist here, and abort
  }
}

bool ThreadPool::alive_here() const { return process_ == process_id(); }

void ThreadPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(helpers_->mutex);
    stopping_ = true;
    helpers_->wake.notify_all();
  }
  for (auto& thread : helpers_->threads) thread.join();
  helpers_->threads.clear();
}

void ThreadPool::run_job(const Job& job) {
  const size_t n = static_cast<size_t>(n_threads_);
  const size_t runs = (job.n_items + job.grain - 1) / job.grain;
  for (size_t t = 0; t < n; ++t) {
    shares_[t].next.store(std::min(runs * t / n * job.grain, job.n_items), std::memory_order_relaxed);
    shares_[t].end = std::min(runs * (t + 1) / n * job.grain, job.n_items);
  }
  job_ = job;
  const uint64_t number = number_of(state_.load(std::memory_order_relaxed)) + uint32_t{1};
  state_.store(number << 32 | kOpen, std::memory_order_seq_cst);
  if (n_sleeping_.load(std::memory_order_seq_cst) > 0) {
    const std::lock_guard<std::mutex> lock(helpers_->mutex);
    helpers_->wake.notify_all();
  }
  work_on(job, 0);
  uint64_t state = state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spin = 0; (state & kHelpers) != 0; ++spin) {
    if (spin < spins_) {
      cpu_pause();
    } else {
      std::this_thread::yield();
    }
    state = state_.load(std::memory_order_acquire);
  }
}

void ThreadPool::work_on(const Job& job, int thread) {
  for (int i = 0; i < n_threads_; ++i) {
    const int owner = (thread + i) % n_threads_;
    Share& share = shares_[static_cast<size_t>(owner)];
    for (;;) {
      if (share.next.load(std::memory_order_relaxed) >= share.end) break;
      const size_t begin = share.next.fetch_add(job.grain, std::memory_order_relaxed);
      if (begin >= share.end) break;
      job.call(job.work, begin, std::min(begin + job.grain, share.end), thread);
    }
  }
}

void ThreadPool::thread_main(int thread) {
  cpu_prefer_fast_cores();
  uint32_t seen = 0;
  while (wait_for_job(seen)) {
    if (!enter(seen)) continue;
    work_on(job_, thread);
    state_.fetch_sub(1, std::memory_order_release);
  }
}

// Joins the current job unless it is closed already; `seen` becomes its number.
bool ThreadPool::enter(uint32_t& seen) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while ((state & kOpen) != 0) {
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) break;
  }
  seen = number_of(state);
  return (state & kOpen) != 0;
}

// Returns once a job after `seen` has started, or false when the pool stops.
bool ThreadPool::wait_for_job(uint32_t seen) {
  for (int spin = 0; spin < spins_; ++spin) {
    if (number_of(state_.load(std::memory_order_acquire)) != seen) return true;
    if (stopping_.load(std::memory_order_relaxed)) return false;
    cpu_pause();
  }
  std::unique_lock<std::mutex> lock(helpers_->mutex);
  n_sleeping_.fetch_add(1, std::memory_order_seq_cst);
  helpers_->wake.wait(lock,
                      [&] { return stopping_.load() || number_of(state_.load(std::memory_order_seq_cst)) != seen; });
  n_sleeping_.fetch_sub(1, std::memory_order_relaxed);
  return !stopping_.load();
}

}  // namespace pyinfer
