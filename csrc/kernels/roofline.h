// The two limits that a machine's products are measured against: reading memory, and multiply-adds of 8-bit integers
// whose operands never leave the registers.
#pragma once

#include "kernels/quant_dot.h"

namespace sterna::STERNA_VARIANT {

// Every byte is read once; the result keeps the compiler from leaving it out.
static uint32_t read_all(const void* data, int64_t bytes) {
  constexpr int kStreams = 8;
  constexpr int64_t kStep = kStreams * STERNA_PART_BYTES;
  const char* p = static_cast<const char*>(data);
  UintPart sums[kStreams] = {};
  for (int64_t at = 0; at + kStep <= bytes; at += kStep) {
#pragma GCC unroll 8
    for (int i = 0; i < kStreams; ++i) sums[i] = sums[i] ^ load_part<UintPart>(p + at + i * STERNA_PART_BYTES);
  }
  uint32_t result = 0;
  for (const UintPart& sum : sums) {
    for (int lane = 0; lane < kPartLanes; ++lane) result ^= sum[lane];
  }
  return result;
}

#if STERNA_DPBUSD || STERNA_PART_BYTES > 16

constexpr int kPeakChains = 12;

// Returns the multiply-adds that were done; 0 where a variant has no instruction for them.
static int64_t integer_products(int64_t rounds) {
#if STERNA_DPBUSD
  IntPart sums[kPeakChains] = {};
  alignas(64) uint8_t codes[64];
  for (int i = 0; i < 64; ++i) codes[i] = static_cast<uint8_t>(i);
  auto weights = load_part<IntPart>(codes);
#else
  Bytes sums[kPeakChains] = {};
  Bytes weights = all_four(0x03020100), activations = all_four(0x01020304);
#endif
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kPeakChains; ++i) {
      // The operands might have changed, as far as the compiler knows: no product may be taken from the one before.
#if STERNA_DPBUSD
      asm volatile("" : "+v"(weights));
      sums[i] = dot_registers(sums[i], weights, weights);
#else
      asm volatile("" : "+v"(weights), "+v"(activations));
      sums[i] = add_pairs(sums[i], pairs(weights, activations));
      stay_in_register(sums[i]);
#endif
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kPeakChains; ++i) asm volatile("" : : "v"(sums[i]));
  return rounds * kPeakChains * STERNA_PART_BYTES;
}

#else

static int64_t integer_products(int64_t) { return 0; }

#endif

}  // namespace sterna::STERNA_VARIANT
