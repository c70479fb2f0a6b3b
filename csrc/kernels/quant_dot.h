// Exact integer dot products of one group: 16 rows by 4 * kSteps columns of codes against int8 activations in -127…127.
//
// No form saturates. maddubs adds two products of an unsigned and a signed byte into 16 bits with saturation at 32,767:
//   codes of 4 bits  eight steps together reach 8 * 2 * 15 * 127 = 30,480
//   codes of 5 bits  four steps together reach 4 * 2 * 31 * 127 = 31,496
//   codes of 6 bits  two steps together reach 2 * 2 * 63 * 127 = 32,004
//   signed bytes     |w| * sign(a, w) reaches 2 * 128 * 127 = 32,512 in one step (|-128| is 128 as an unsigned byte)
// VNNI adds four products into 32 bits without saturation; signed codes become unsigned by adding 128, and 128 times the
// sum of the activations is taken off as a zero point (`kSignedOffset`).
#pragma once

#include "kernels/vec.h"

namespace sterna::STERNA_VARIANT {

enum class Codes { kFourBits, kFiveBits, kSixBits, kSigned };

struct IntVec {
  IntPart part[kParts];
};

#if (defined(__AVX512VNNI__) && STERNA_PART_BYTES == 64) || (defined(__AVXVNNI__) && STERNA_PART_BYTES == 32)
#define STERNA_DPBUSD 1
#else
#define STERNA_DPBUSD 0
#endif

// What unpacking adds to a signed code, modulo 256.
constexpr int kSignedOffset = STERNA_DPBUSD ? 128 : 0;

STERNA_INLINE int32_t load_four(const int8_t* a) {
  int32_t word;
  __builtin_memcpy(&word, a, sizeof(word));
  return word;
}

#if STERNA_DPBUSD

// Adds the products of four unsigned by four signed bytes to each lane.
STERNA_INLINE IntPart dot_registers(IntPart sum, IntPart w, IntPart a) {
#if STERNA_PART_BYTES == 64
  return bits<IntPart>(_mm512_dpbusd_epi32(bits<__m512i>(sum), bits<__m512i>(w), bits<__m512i>(a)));
#else
  return bits<IntPart>(_mm256_dpbusd_avx_epi32(bits<__m256i>(sum), bits<__m256i>(w), bits<__m256i>(a)));
#endif
}

STERNA_INLINE IntPart dot_four(IntPart sum, const uint8_t* w, int32_t a) {
  return dot_registers(sum, load_part<IntPart>(w), a - IntPart{});
}

template <Codes C, int kSteps, int R>
STERNA_INLINE void dot(const uint8_t* w, const int8_t* const (&a)[R], int at, IntVec (&sum)[R]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r] = IntVec{};
#pragma GCC unroll 8
  for (int j = 0; j < kSteps; ++j) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int32_t four = load_four(a[r] + at + 4 * j);
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        sum[r].part[p] = dot_four(sum[r].part[p], w + 64 * j + STERNA_PART_BYTES * p, four);
      }
    }
  }
}

#elif STERNA_PART_BYTES == 32 || STERNA_PART_BYTES == 64

#if STERNA_PART_BYTES == 64
using Bytes = __m512i;
STERNA_INLINE Bytes all_four(int32_t a) { return _mm512_set1_epi32(a); }
STERNA_INLINE Bytes pairs(Bytes w, Bytes a) { return _mm512_maddubs_epi16(w, a); }
STERNA_INLINE Bytes pairs_signed(Bytes w, Bytes a) {
  const Bytes negated = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
  return _mm512_maddubs_epi16(_mm512_abs_epi8(w), negated);
}
STERNA_INLINE Bytes add_pairs(Bytes x, Bytes y) { return _mm512_add_epi16(x, y); }
STERNA_INLINE IntPart widen(Bytes x) { return bits<IntPart>(_mm512_madd_epi16(x, _mm512_set1_epi16(1))); }
#else
using Bytes = __m256i;
STERNA_INLINE Bytes all_four(int32_t a) { return _mm256_set1_epi32(a); }
STERNA_INLINE Bytes pairs(Bytes w, Bytes a) { return _mm256_maddubs_epi16(w, a); }
STERNA_INLINE Bytes pairs_signed(Bytes w, Bytes a) {
  return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}
STERNA_INLINE Bytes add_pairs(Bytes x, Bytes y) { return _mm256_add_epi16(x, y); }
STERNA_INLINE IntPart widen(Bytes x) { return bits<IntPart>(_mm256_madd_epi16(x, _mm256_set1_epi16(1))); }
#endif

// Compilers turn a long sum of integers into a tree, and hold all its leaves in memory: here they must take it as it comes.
STERNA_INLINE void stay_in_register(Bytes& x) { asm("" : "+v"(x)); }

// Steps whose 16-bit sums may be added before they are widened.
constexpr int steps_together(Codes codes) {
  switch (codes) {
    case Codes::kFourBits: return 8;
    case Codes::kFiveBits: return 4;
    case Codes::kSixBits: return 2;
    default: return 1;
  }
}

template <Codes C, int kSteps, int R>
STERNA_INLINE void dot(const uint8_t* w, const int8_t* const (&a)[R], int at, IntVec (&sum)[R]) {
  constexpr int kTogether = steps_together(C) < kSteps ? steps_together(C) : kSteps;
#pragma GCC unroll 8
  for (int first = 0; first < kSteps; first += kTogether) {
    Bytes narrow[R][kParts];
#pragma GCC unroll 8
    for (int j = first; j < first + kTogether; ++j) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Bytes four = all_four(load_four(a[r] + at + 4 * j));
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
          const Bytes codes = load_part<Bytes>(w + 64 * j + STERNA_PART_BYTES * p);
          const Bytes product = C == Codes::kSigned ? pairs_signed(codes, four) : pairs(codes, four);
          narrow[r][p] = j == first ? product : add_pairs(narrow[r][p], product);
          stay_in_register(narrow[r][p]);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p) {
        sum[r].part[p] = first == 0 ? widen(narrow[r][p]) : sum[r].part[p] + widen(narrow[r][p]);
      }
    }
  }
}

#else

template <Codes C, int kSteps, int R>
STERNA_INLINE void dot(const uint8_t* w, const int8_t* const (&a)[R], int at, IntVec (&sum)[R]) {
  for (int r = 0; r < R; ++r) {
    int32_t lanes[kLanes] = {};
    for (int j = 0; j < kSteps; ++j) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
          const uint8_t code = w[64 * j + 4 * lane + i];
          const int32_t value = C == Codes::kSigned ? static_cast<int8_t>(code) : code;
          lanes[lane] += value * a[r][at + 4 * j + i];
        }
      }
    }
    __builtin_memcpy(&sum[r], lanes, sizeof(lanes));
  }
}

#endif

STERNA_INLINE Vec to_float(const IntVec& v) {
  return generate([&v](int p) STERNA_LAMBDA { return __builtin_convertvector(v.part[p], FloatPart); });
}

}  // namespace sterna::STERNA_VARIANT
