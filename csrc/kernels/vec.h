// Sixteen float lanes on every instruction set, so that a kernel's order of operations is the same in every variant.
//
// Each variant's translation unit defines, before including this file:
//   STERNA_VARIANT     namespace of the variant; nothing here may leak into another one
//   STERNA_PART_BYTES  size of the vectors that the 16 lanes are made of (16, 32 or 64)
//   STERNA_ACCUMULATORS, STERNA_BLOCK_ROWS  register blocking of matmul.h
// Only C headers and <utility> may be included below: an inline function of the standard library compiled here with
// wider instructions could be chosen by the linker for the whole program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define STERNA_INLINE static inline __attribute__((always_inline))
#define STERNA_LAMBDA __attribute__((always_inline))

namespace sterna::STERNA_VARIANT {

constexpr int kLanes = 16;
constexpr int kParts = 64 / STERNA_PART_BYTES;
constexpr int kPartLanes = kLanes / kParts;

using FloatPart = float __attribute__((vector_size(STERNA_PART_BYTES)));
using IntPart = int32_t __attribute__((vector_size(STERNA_PART_BYTES)));
using UintPart = uint32_t __attribute__((vector_size(STERNA_PART_BYTES)));

struct Vec {
  FloatPart part[kParts];
};

using PartIndices = std::make_index_sequence<kParts>;

template <std::size_t I, class F, class... A>
STERNA_INLINE FloatPart one_part(F f, const A&... a) {
  return f(a.part[I]...);
}

template <class F, std::size_t... I, class... A>
STERNA_INLINE Vec map_parts(std::index_sequence<I...>, F f, const A&... a) {
  return Vec{{one_part<I>(f, a...)...}};
}

// f applied to corresponding parts of the arguments.
template <class F, class... A>
STERNA_INLINE Vec map(F f, const A&... a) {
  return map_parts(PartIndices{}, f, a...);
}

template <class F, std::size_t... I>
STERNA_INLINE Vec generate_parts(std::index_sequence<I...>, F f) {
  return Vec{{f(static_cast<int>(I))...}};
}

// f(index of the part) for every part.
template <class F>
STERNA_INLINE Vec generate(F f) {
  return generate_parts(PartIndices{}, f);
}

template <class To, class From>
STERNA_INLINE To bits(const From& value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}

template <class T>
STERNA_INLINE T load_part(const void* source) {
  T result;
  __builtin_memcpy(&result, source, sizeof(T));
  return result;
}

STERNA_INLINE FloatPart part_of(float x) { return x - FloatPart{}; }

STERNA_INLINE Vec broadcast(float x) {
  return generate([x](int) STERNA_LAMBDA { return part_of(x); });
}

STERNA_INLINE Vec load(const float* p) {
  return generate([p](int i) STERNA_LAMBDA { return load_part<FloatPart>(p + i * kPartLanes); });
}

template <std::size_t... I>
STERNA_INLINE void store_parts(std::index_sequence<I...>, float* p, const Vec& v) {
  (__builtin_memcpy(p + I * kPartLanes, &v.part[I], sizeof(FloatPart)), ...);
}

STERNA_INLINE void store(float* p, const Vec& v) { store_parts(PartIndices{}, p, v); }

// Tails are rare: kept out of line, they do not swell every kernel.
static __attribute__((noinline)) Vec load_tail(const float* p, int n) {
  float buffer[kLanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}

static __attribute__((noinline)) void store_tail(float* p, const Vec& v, int n) {
  float buffer[kLanes];
  store(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

// The first n lanes from memory, zero in the others.
STERNA_INLINE Vec load_n(const float* p, int n) { return n >= kLanes ? load(p) : load_tail(p, n); }

STERNA_INLINE void store_n(float* p, const Vec& v, int n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_tail(p, v, n);
  }
}

STERNA_INLINE Vec operator+(const Vec& a, const Vec& b) {
  return map([](FloatPart x, FloatPart y) STERNA_LAMBDA { return x + y; }, a, b);
}
STERNA_INLINE Vec operator-(const Vec& a, const Vec& b) {
  return map([](FloatPart x, FloatPart y) STERNA_LAMBDA { return x - y; }, a, b);
}
STERNA_INLINE Vec operator*(const Vec& a, const Vec& b) {
  return map([](FloatPart x, FloatPart y) STERNA_LAMBDA { return x * y; }, a, b);
}
STERNA_INLINE Vec operator/(const Vec& a, const Vec& b) {
  return map([](FloatPart x, FloatPart y) STERNA_LAMBDA { return x / y; }, a, b);
}

STERNA_INLINE FloatPart fma_part(FloatPart a, FloatPart b, FloatPart c) {
#if defined(__AVX512F__) && STERNA_PART_BYTES == 64
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__) && STERNA_PART_BYTES == 32
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__) && STERNA_PART_BYTES == 16
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// a * b + c; rounded once where the instruction set has it, twice in the generic variant of x86-64.
STERNA_INLINE Vec fma(const Vec& a, const Vec& b, const Vec& c) {
  return map([](FloatPart x, FloatPart y, FloatPart z) STERNA_LAMBDA { return fma_part(x, y, z); }, a, b, c);
}

STERNA_INLINE FloatPart fnma_part(FloatPart a, FloatPart b, FloatPart c) {
#if defined(__AVX512F__) && STERNA_PART_BYTES == 64
  return _mm512_fnmadd_ps(a, b, c);
#elif defined(__FMA__) && STERNA_PART_BYTES == 32
  return _mm256_fnmadd_ps(a, b, c);
#elif defined(__aarch64__) && STERNA_PART_BYTES == 16
  return vfmsq_f32(c, a, b);
#else
  return c - a * b;
#endif
}

// c - a * b, rounded like `fma`.
STERNA_INLINE Vec fnma(const Vec& a, const Vec& b, const Vec& c) {
  return map([](FloatPart x, FloatPart y, FloatPart z) STERNA_LAMBDA { return fnma_part(x, y, z); }, a, b, c);
}

STERNA_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Where a is not a number, max and min return a: a NaN in the data must reach the output.
STERNA_INLINE Vec max(const Vec& a, const Vec& b) {
  return map([](FloatPart x, FloatPart y) STERNA_LAMBDA { return x < y ? y : x; }, a, b);
}
STERNA_INLINE Vec min(const Vec& a, const Vec& b) {
  return map([](FloatPart x, FloatPart y) STERNA_LAMBDA { return x > y ? y : x; }, a, b);
}
STERNA_INLINE Vec abs(const Vec& a) {
  return map([](FloatPart x) STERNA_LAMBDA { return bits<FloatPart>(bits<UintPart>(x) & 0x7fffffffu); }, a);
}

static __attribute__((noinline)) Vec replace_tail(const Vec& v, int n, float other) {
  float buffer[kLanes];
  store(buffer, v);
  for (int i = n < 0 ? 0 : n; i < kLanes; ++i) buffer[i] = other;
  return load(buffer);
}

// The first n lanes of v, `other` in the rest.
STERNA_INLINE Vec keep_n(const Vec& v, int n, float other) { return n >= kLanes ? v : replace_tail(v, n, other); }

// Fixed trees, the same in every variant.
STERNA_INLINE float sum_lanes(const Vec& v) {
  float x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) x[i] = x[i] + x[i + half];
  }
  return x[0];
}

STERNA_INLINE float max_lanes(const Vec& v) {
  float x[kLanes];
  store(x, v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) x[i] = x[i] < x[i + half] ? x[i + half] : x[i];
  }
  return x[0];
}

STERNA_INLINE float lane0(const Vec& v) { return v.part[0][0]; }

// Even and odd elements of 16 pairs of bfloat16: the low and the high halves of 32-bit words.
STERNA_INLINE Vec load_bf16_even(const uint16_t* p) {
  return generate([p](int i) STERNA_LAMBDA {
    return bits<FloatPart>(load_part<UintPart>(p + i * 2 * kPartLanes) << 16);
  });
}
STERNA_INLINE Vec load_bf16_odd(const uint16_t* p) {
  return generate([p](int i) STERNA_LAMBDA {
    return bits<FloatPart>(load_part<UintPart>(p + i * 2 * kPartLanes) & 0xffff0000u);
  });
}

STERNA_INLINE float float_from_bf16(uint16_t x) { return bits<float>(static_cast<uint32_t>(x) << 16); }

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
STERNA_INLINE uint16_t bf16_from_float(float x) {
  uint32_t u = bits<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// 2^112 moves the exponent of a half, shifted into a float's fields, to its place; denormals come out right too.
STERNA_INLINE float float_from_f16(uint16_t h) {
  uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  float value = bits<float>(magnitude) * 5192296858534827628530496329220096.0f;
  if ((h & 0x7c00u) == 0x7c00u) value = bits<float>(magnitude | 0x7f800000u);
  return bits<float>(bits<uint32_t>(value) | (static_cast<uint32_t>(h & 0x8000u) << 16));
}

STERNA_INLINE Vec load_f16(const uint16_t* p) {
#if defined(__AVX512F__) && STERNA_PART_BYTES == 64
  return Vec{{_mm512_cvtph_ps(load_part<__m256i>(p))}};
#elif defined(__F16C__) && STERNA_PART_BYTES == 32
  return generate([p](int i) STERNA_LAMBDA {
    return static_cast<FloatPart>(_mm256_cvtph_ps(load_part<__m128i>(p + i * kPartLanes)));
  });
#else
  float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = float_from_f16(p[i]);
  return load(buffer);
#endif
}

}  // namespace sterna::STERNA_VARIANT
