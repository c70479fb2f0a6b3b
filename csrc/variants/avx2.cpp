// AVX2 with FMA and F16C.
#define STERNA_VARIANT avx2_variant
#define STERNA_PART_BYTES 32
#define STERNA_ACCUMULATORS 6
#define STERNA_BLOCK_ROWS 6

#include "kernels/variant.h"

namespace sterna {

const Kernels& avx2_kernels() {
  static constexpr Kernels kTable = avx2_variant::make_kernels("avx2");
  return kTable;
}

}  // namespace sterna
