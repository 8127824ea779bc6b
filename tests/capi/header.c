/* The header alone, before all others, as strict C11. */
#include "pyinfer.h"

_Static_assert(sizeof(pyi_status) == 4, "a status is 32 bits");
