// For tests only: the register blocking of AVX-512 on the baseline, so that any machine can check it.
#define STERNA_VARIANT wide_variant
#define STERNA_PART_BYTES 16
#define STERNA_ACCUMULATORS 24
#define STERNA_BLOCK_ROWS 6

#include "kernels/variant.h"

namespace sterna {

const Kernels& wide_kernels() {
  static constexpr Kernels kTable = wide_variant::make_kernels("wide");
  return kTable;
}

}  // namespace sterna
