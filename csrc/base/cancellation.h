// What a destructor must hold off: a thread that the system cancels unwinds where it waits, and unwinding out of a destructor ends the process.
#pragma once

namespace pyinfer {

// While it lives, pthread_cancel() of this thread waits. Nothing where there is no such call.
class NoCancellation {
 public:
  NoCancellation();
  ~NoCancellation();
  NoCancellation(const NoCancellation&) = delete;
  NoCancellation& operator=(const NoCancellation&) = delete;

 private:
  int before_ = 0;
};

}  // namespace pyinfer
