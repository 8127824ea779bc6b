#include "base/cancellation.h"

#if !defined(_WIN32) && !defined(__ANDROID__)
#include <pthread.h>
#endif

namespace pyinfer {

#if defined(_WIN32) || defined(__ANDROID__)
NoCancellation::NoCancellation() { static_cast<void>(before_); }
NoCancellation::~NoCancellation() = default;
#else
NoCancellation::NoCancellation() { ::pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
NoCancellation::~NoCancellation() { ::pthread_setcancelstate(before_, nullptr); }
#endif

}  // namespace pyinfer
