// Threads that share out the items of one job at a time. Knows nothing of what an item is.
//
// A job is started and finished by its caller, who works as thread 0. Between jobs the others spin for a short while, since
// the next job of a forward pass follows within microseconds, then sleep. Items are handed out in runs: each thread
// first takes from its own fixed share, so that it meets the same weights, or rows, every time and finds them in its own cache; a
// thread that is done helps the others. The caller waits only for threads that have entered the job: one that the system has not
// scheduled meanwhile misses it, and holds nobody up.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/cpu.h"

namespace pyinfer {

class ThreadPool {
 public:
  explicit ThreadPool(int n_threads);  // 1 … kMaxThreads
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  static constexpr int kMaxThreads = kMostThreads;

  int n_threads() const { return n_threads_; }

  // Calls work(begin, end, thread) until the items 0 … n_items-1 are covered, in runs of at most `grain` items;
  // returns when all are done. `work` must not throw. Not to be called by two threads at once, nor from within a job.
  template <class Work>
  void run(size_t n_items, size_t grain, const Work& work) {
    if (n_items == 0) return;
    if (n_threads_ == 1 || n_items <= grain) {
      work(size_t{0}, n_items, 0);
      return;
    }
    const Job job{
        [](const void* w, size_t begin, size_t end, int thread) { (*static_cast<const Work*>(w))(begin, end, thread); },
        &work, n_items, grain};
    run_job(job);
  }

  // Whether the threads exist in this process: they do not in the child of a fork.
  bool alive_here() const;

 private:
  struct Job {
    void (*call)(const void*, size_t, size_t, int);
    const void* work;
    size_t n_items;
    size_t grain;
  };
  // The threads besides the caller's, and where they sleep between steps.
  struct Helpers {
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> threads;
  };
  struct alignas(128) Share {
    std::atomic<size_t> next{0};
    size_t end = 0;
  };

  void run_job(const Job& job);
  void work_on(const Job& job, int thread);
  void thread_main(int thread);
  bool wait_for_job(uint32_t seen);
  bool enter(uint32_t& seen);
  void stop();

  // The state of the current job in one word: its number, whether threads may still enter, and how many helpers are in it.
  static constexpr uint64_t kOpen = uint64_t{1} << 31;
  static constexpr uint64_t kHelpers = kOpen - 1;
  static uint32_t number_of(uint64_t state) { return static_cast<uint32_t>(state >> 32); }

  int n_threads_;
  int process_;
  int spins_;
  Job job_{};
  std::unique_ptr<Share[]> shares_;
  alignas(128) std::atomic<uint64_t> state_{0};
  alignas(128) std::atomic<int> n_sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::unique_ptr<Helpers> helpers_;
};

}  // namespace pyinfer
