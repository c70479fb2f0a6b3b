// AVX-512 F, BW, DQ and VL.
#define STERNA_VARIANT avx512_variant
#define STERNA_PART_BYTES 64
#define STERNA_ACCUMULATORS 24
#define STERNA_BLOCK_ROWS 6

#include "kernels/variant.h"

namespace sterna {

const Kernels& avx512_kernels() {
  static constexpr Kernels kTable = avx512_variant::make_kernels("avx512");
  return kTable;
}

}  // namespace sterna
