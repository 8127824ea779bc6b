// What to do around a fork of this process, so that a lock is not held in the child by a thread that does not exist there.
#pragma once

namespace pyinfer {

// `before` runs in the parent before every fork, `after` in parent and child. For the rest of the process; nothing where there is no fork.
void around_forks(void (*before)(), void (*after)());

}  // namespace pyinfer
