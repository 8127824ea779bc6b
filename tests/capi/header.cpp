// The header alone, before all others, as C++.
#include "pyinfer.h"

static_assert(sizeof(pyi_status) == 4, "a status is 32 bits");
