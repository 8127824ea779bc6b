#include "nn/residual.h"

namespace pyinfer {

void add_normed_branch(Workspace& w, const float* weight, float eps, size_t n, size_t cols) {
  w.pool.run(n, 8, [&](size_t begin, size_t end, int) {
    for (size_t row = begin; row < end; ++row) {
      float* branch = w.branch + row * w.x_stride;
      float* x = w.x + row * w.x_stride;
      w.kernels.rms_norm(branch, weight, eps, cols, branch);
      for (size_t i = 0; i < cols; ++i) x[i] += branch[i];
    }
  });
}

}  // namespace pyinfer
