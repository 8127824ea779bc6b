// One thread at a time, and a thread that comes again from within its own turn is told apart: it would wait for itself.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

namespace pyinfer {

class Turns {
 public:
  // Whether this thread has its turn now.
  bool is_mine() const { return whose_.load() == std::this_thread::get_id(); }

  // Waits for the turn, and has it until it goes. Not to be made by a thread whose turn it is.
  class Turn {
   public:
    explicit Turn(Turns& turns) : turns_(turns), lock_(turns.mutex_) {
      turns_.whose_.store(std::this_thread::get_id());
    }
    ~Turn() { turns_.whose_.store(std::thread::id()); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    Turns& turns_;
    const std::lock_guard<std::mutex> lock_;  // given back after the destructor's body
  };

 private:
  std::mutex mutex_;
  std::atomic<std::thread::id> whose_{};
};

}  // namespace pyinfer
