// Baseline of the architecture: SSE2 on x86-64, NEON on AArch64, whatever the compiler makes of it elsewhere.
#define STERNA_VARIANT generic_variant
#define STERNA_PART_BYTES 16
#if defined(__aarch64__)
#define STERNA_ACCUMULATORS 6
#define STERNA_BLOCK_ROWS 6
#else
#define STERNA_ACCUMULATORS 2
#define STERNA_BLOCK_ROWS 2
#endif

#include "kernels/variant.h"

namespace sterna {

const Kernels& generic_kernels() {
  static constexpr Kernels kTable = generic_variant::make_kernels("generic");
  return kTable;
}

}  // namespace sterna
