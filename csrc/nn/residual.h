// What a block adds to the residual stream, where the family norms it first.
#pragma once

#include <cstddef>

#include "nn/workspace.h"

namespace pyinfer {

// x += rms_norm(branch), for n rows of `cols` values of the workspace.
void add_normed_branch(Workspace& workspace, const float* weight, float eps, size_t n, size_t cols);

}  // namespace pyinfer
