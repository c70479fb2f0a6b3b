// AVX2 with AVX-VNNI: client processors without AVX-512.
#define STERNA_VARIANT avx2_vnni_variant
#define STERNA_PART_BYTES 32
#define STERNA_ACCUMULATORS 6
#define STERNA_BLOCK_ROWS 6

#include "kernels/variant.h"

namespace sterna {

const Kernels& avx2_vnni_kernels() {
  static constexpr Kernels kTable = avx2_vnni_variant::make_kernels("avx2_vnni");
  return kTable;
}

}  // namespace sterna
