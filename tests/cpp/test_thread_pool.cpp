// The thread pool: every item once, whatever the numbers; many short jobs; sleep and wake-up; forks.
#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "base/error.h"
#include "base/thread_pool.h"
#include "check.h"
#include "random.h"

using namespace pyinfer;

namespace {

struct Coverage {
  std::unique_ptr<std::atomic<int>[]> visits;
  std::atomic<int> bad_runs{0};
  explicit Coverage(std::size_t n) : visits(std::make_unique<std::atomic<int>[]>(n)) {}
};

// How many items were not visited exactly once, plus runs that were too long, empty or of a thread that does not exist.
int misses(ThreadPool& pool, std::size_t n_items, std::size_t grain) {
  Coverage seen(n_items);
  pool.run(n_items, grain, [&](std::size_t begin, std::size_t end, int thread) {
    const bool alone = pool.n_threads() == 1 || n_items <= grain;
    if (begin >= end || end > n_items || (!alone && end - begin > grain) || thread < 0 || thread >= pool.n_threads())
      ++seen.bad_runs;
    for (std::size_t i = begin; i < end && i < n_items; ++i) ++seen.visits[i];
  });
  int missed = seen.bad_runs;
  for (std::size_t i = 0; i < n_items; ++i) missed += seen.visits[i] != 1;
  return missed;
}

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

}  // namespace

TEST(thread_pool, covers_every_item_once) {
  for (const int n_threads : {1, 2, 3, 5, 8}) {
    ThreadPool pool(n_threads);
    CHECK_EQUAL(pool.n_threads(), n_threads);
    for (const std::size_t n_items : {0, 1, 2, 3, 7, 8, 16, 63, 100, 1001})
      for (const std::size_t grain : {1, 2, 3, 7, 16, 100, 5000}) CHECK_EQUAL(misses(pool, n_items, grain), 0);
  }
}

TEST(thread_pool, many_short_jobs) {
  Random random(1);
  for (const int n_threads : {2, 3}) {
    ThreadPool pool(n_threads);
    long expected = 0;
    std::atomic<long> found{0};
    for (int job = 0; job < 5000; ++job) {
      const std::size_t n = random.below(40);
      expected += static_cast<long>(n);
      pool.run(n, 1, [&](std::size_t begin, std::size_t end, int) { found += static_cast<long>(end - begin); });
      CHECK_EQUAL(found.load(), expected);  // all done when run returns
    }
  }
}

TEST(thread_pool, wakes_from_sleep) {
  ThreadPool pool(3);
  for (int i = 0; i < 20; ++i) {
    sleep_ms(i % 4 == 0 ? 20 : 1);
    CHECK_EQUAL(misses(pool, 50, 1), 0);
  }
}

// A thread that is done takes over what a slow one has not begun.
TEST(thread_pool, fast_threads_help_slow_ones) {
  ThreadPool pool(2);
  std::atomic<int> by_first{0};
  pool.run(20, 1, [&](std::size_t, std::size_t, int thread) {
    if (thread == 0) ++by_first;
    if (thread == 1) sleep_ms(30);
  });
  CHECK(by_first > 10);
}

TEST(thread_pool, comes_and_goes) {
  for (int i = 0; i < 30; ++i) {
    ThreadPool pool(1 + i % 5);
    if (i % 3 != 0) CHECK_EQUAL(misses(pool, 10, 1), 0);
    if (i % 7 == 0) sleep_ms(2);
  }
  ThreadPool unused(4);
  CHECK(unused.alive_here());
}

TEST(thread_pool, numbers_of_threads_have_limits) {
  for (const int n : {0, -1, ThreadPool::kMaxThreads + 1, -2147483647})
    CHECK_ERROR(ThreadPool(n), request, "expected 1 to 256, found " + std::to_string(n));
}

#if !defined(_WIN32)
// The child of a fork knows that its threads are gone, and gets rid of the pool without waiting for them.
TEST(thread_pool, a_fork_is_told_apart_and_does_not_hang) {
  for (const bool asleep : {false, true}) {
    auto pool = std::make_unique<ThreadPool>(3);
    CHECK_EQUAL(misses(*pool, 10, 1), 0);
    if (asleep) sleep_ms(50);
    const pid_t child = ::fork();
    if (child == 0) {
      ::alarm(5);
      const bool alive = pool->alive_here();
      pool.reset();
      ::_exit(alive ? 1 : 0);
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(pool->alive_here());
    CHECK_EQUAL(misses(*pool, 10, 1), 0);
  }
}
#endif
