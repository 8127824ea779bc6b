#include "base/fork.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace pyinfer {

#if defined(_WIN32)
void around_forks(void (*)(), void (*)()) {}
#else
void around_forks(void (*before)(), void (*after)()) { ::pthread_atfork(before, after, after); }
#endif

}  // namespace pyinfer
