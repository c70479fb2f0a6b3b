// AVX-512 with VNNI.
#define STERNA_VARIANT avx512_vnni_variant
#define STERNA_PART_BYTES 64
#define STERNA_ACCUMULATORS 24
#define STERNA_BLOCK_ROWS 6

#include "kernels/variant.h"

namespace sterna {

const Kernels& avx512_vnni_kernels() {
  static constexpr Kernels kTable = avx512_vnni_variant::make_kernels("avx512_vnni");
  return kTable;
}

}  // namespace sterna
