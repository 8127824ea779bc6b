// Compiled once per instruction set, with PYINFER_ISA_NAME set to its name and PYINFER_ISA_HEADER to its vocabulary.
// Exports one function and defines all else with internal linkage: a weak symbol from here could be chosen by the linker for the
// whole program and kill it on an older CPU. tools/check_symbols.py holds that.
#include "kernels/kernels.h"

#include PYINFER_ISA_HEADER
#include "kernels/attend.inl.h"
#include "kernels/matmul.inl.h"
#include "kernels/rows.inl.h"
#include "kernels/weights.inl.h"
#if defined(PYINFER_MATRIX_UNIT)
#include "kernels/matrix.inl.h"
#endif

namespace pyinfer {
namespace {

// Float formats multiply float activations only.
template <class Format>
constexpr Matmul matmul_int8_entry() {
  if constexpr (is_float_format<Format>) {
    return nullptr;
  } else {
    return matmul_int8<Format>;
  }
}

#define PYINFER_STRING(x) #x
#define PYINFER_NAME(x) PYINFER_STRING(x)
#define PYINFER_FORMAT(name, type) matmul_int8_entry<type>(),
constexpr Kernels kTable = {
    PYINFER_NAME(PYINFER_ISA_NAME),
    kPanelRows,
    kPanelsAtOnce,
    kDepth,
    kFastPairs ? kKvI16 : kKvF16,  // where i_add_pairs multiplies more at a time than f_fma
    {
        nullptr,
#include "formats/formats.inc"
    },
#undef PYINFER_FORMAT
#define PYINFER_FORMAT(name, type) matmul_f32<type>,
    {
        nullptr,
#include "formats/formats.inc"
    },
#undef PYINFER_FORMAT
#define PYINFER_FORMAT(name, type) matmul_tile_entry<type>(),
    {
        nullptr,
#include "formats/formats.inc"
    },
#undef PYINFER_FORMAT
    pack_int8,
    int8_remainder,
    rms_norm,
    swiglu,
    geglu,
    soft_cap,
    rope,
    {store_kv_f16, store_kv_q8, store_kv_i16},
    {attend<KvF16>, attend<KvQ8>, attend<KvI16>},
};

}  // namespace
}  // namespace pyinfer

#define PYINFER_JOIN(a, b) a##b
#define PYINFER_SYMBOL(name) PYINFER_JOIN(pyinfer_kernels_, name)
extern "C" const pyinfer::Kernels* PYINFER_SYMBOL(PYINFER_ISA_NAME)() { return &pyinfer::kTable; }
