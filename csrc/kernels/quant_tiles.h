// Quantised tiles of 16 rows (docs/dev/quant-formats.md): from one group of 32 columns to bytes and float factors.
//
// A traits class per format says how a group's integer sums become floats:
//   kPlain    scale * I
//   kZero     scale * (I - zero * A)                         zero in steps of the code, exact
//   kMinimum  scale * I - minimum * A
//   kTwoHalves  scale * (low * I0 + high * I1)               two groups of 16 with integer factors; exact below 2^24
// I is the dot product of codes and activations, A the sum of the activations.
#pragma once

#include "kernels/kernels.h"
#include "kernels/quant_dot.h"

namespace sterna::STERNA_VARIANT {

enum class Form { kPlain, kZero, kMinimum, kTwoHalves };

constexpr int kTileGroup = 32;
constexpr int kGroupBytes = kTileGroup * kPanelRows;

struct Factors {
  Vec scale, second, third;
};

// Bytes to 32-bit lanes. The compiler's own conversion of so short a vector goes through scalar registers.
STERNA_INLINE UintPart widen_bytes(const uint8_t* p) {
#if defined(__AVX512F__) && STERNA_PART_BYTES == 64
  return bits<UintPart>(_mm512_cvtepu8_epi32(load_part<__m128i>(p)));
#elif defined(__AVX2__) && STERNA_PART_BYTES == 32
  return bits<UintPart>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  using Narrow = uint8_t __attribute__((vector_size(kPartLanes)));
  return __builtin_convertvector(load_part<Narrow>(p), UintPart);
#endif
}

STERNA_INLINE Vec load_bytes(const uint8_t* p) {
  return generate([p](int i) STERNA_LAMBDA {
    return __builtin_convertvector(bits<IntPart>(widen_bytes(p + i * kPartLanes)), FloatPart);
  });
}

STERNA_INLINE Vec load_signed_bytes(const uint8_t* p) {
  return generate([p](int i) STERNA_LAMBDA {
    const IntPart raised = bits<IntPart>(widen_bytes(p + i * kPartLanes) << 24) >> 24;
    return __builtin_convertvector(raised, FloatPart);
  });
}

// S(c) = (16 + (c & 15)) * 2^((c >> 4) - 19): the code is exponent and leading mantissa bits of a float32.
STERNA_INLINE Vec load_scale_codes(const uint8_t* p) {
  return generate([p](int i) STERNA_LAMBDA {
    return bits<FloatPart>((widen_bytes(p + i * kPartLanes) << 19) + (112u << 23));
  });
}

STERNA_INLINE Vec load_halves(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }

// Words of `count` bytes through f, in whole vectors.
template <class F>
STERNA_INLINE void map_words(const uint8_t* from, uint8_t* to, int count, F f) {
  for (int i = 0; i < count; i += STERNA_PART_BYTES) {
    const UintPart word = f(load_part<UintPart>(from + i), i);
    __builtin_memcpy(to + i, &word, sizeof(word));
  }
}

// 256 bytes whose halves are columns 0…15 and 16…31.
STERNA_INLINE void unpack_nibbles(const uint8_t* packed, uint8_t* codes) {
  map_words(packed, codes, 256, [](UintPart w, int) STERNA_LAMBDA { return w & 0x0f0f0f0fu; });
  map_words(packed, codes + 256, 256, [](UintPart w, int) STERNA_LAMBDA { return (w >> 4) & 0x0f0f0f0fu; });
}

// Adds bits 4 and 5 from 128 bytes: byte [h, r, i] holds two bits each of columns 16h + 4b + i, b = 0…3.
STERNA_INLINE void add_high_bits(const uint8_t* high, uint8_t* codes) {
  for (int h = 0; h < 2; ++h) {
    for (int b = 0; b < 4; ++b) {
      uint8_t* target = codes + 256 * h + 64 * b;
      const uint8_t* source = high + 64 * h;
      map_words(target, target, 64, [source, b](UintPart w, int i) STERNA_LAMBDA {
        return w | (((load_part<UintPart>(source + i) >> (2 * b)) & 0x03030303u) << 4);
      });
    }
  }
}

// Adds bit 4 from 64 bytes: bit j of byte [r, i] belongs to column 4j + i.
STERNA_INLINE void add_fifth_bits(const uint8_t* high, uint8_t* codes) {
  for (int j = 0; j < 8; ++j) {
    map_words(codes + 64 * j, codes + 64 * j, 64, [high, j](UintPart w, int i) STERNA_LAMBDA {
      return w | (((load_part<UintPart>(high + i) >> j) & 0x01010101u) << 4);
    });
  }
}

// Codes of 4 bits that name one of 16 signed levels.
struct alignas(16) Levels {
  int8_t value[16];
};

STERNA_INLINE UintPart look_up(const Levels& levels, UintPart nibbles) {
#if defined(__AVX512BW__) && STERNA_PART_BYTES == 64
  const __m512i table = _mm512_broadcast_i32x4(load_part<__m128i>(levels.value));
  return bits<UintPart>(_mm512_shuffle_epi8(table, bits<__m512i>(nibbles)));
#elif defined(__AVX2__) && STERNA_PART_BYTES == 32
  const __m256i table = _mm256_broadcastsi128_si256(load_part<__m128i>(levels.value));
  return bits<UintPart>(_mm256_shuffle_epi8(table, bits<__m256i>(nibbles)));
#else
  uint8_t bytes[STERNA_PART_BYTES];
  __builtin_memcpy(bytes, &nibbles, sizeof(bytes));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(levels.value[byte]);
  return load_part<UintPart>(bytes);
#endif
}

STERNA_INLINE void unpack_levels(const uint8_t* packed, const Levels& levels, uint8_t* codes) {
  constexpr uint32_t kFlip = kSignedOffset ? 0x80808080u : 0u;
  map_words(packed, codes, 256, [&levels](UintPart w, int) STERNA_LAMBDA {
    return look_up(levels, w & 0x0f0f0f0fu) ^ kFlip;
  });
  map_words(packed, codes + 256, 256, [&levels](UintPart w, int) STERNA_LAMBDA {
    return look_up(levels, (w >> 4) & 0x0f0f0f0fu) ^ kFlip;
  });
}

STERNA_INLINE void copy_signed(const uint8_t* from, uint8_t* codes) {
  constexpr uint32_t kFlip = kSignedOffset ? 0x80808080u : 0u;
  map_words(from, codes, kGroupBytes, [](UintPart w, int) STERNA_LAMBDA { return w ^ kFlip; });
}

template <int kGroup>
struct Q4Tile {
  static constexpr Form kForm = Form::kZero;
  static constexpr Codes kCodes = Codes::kFourBits;
  static constexpr bool kRowScale = true;
  STERNA_INLINE void unpack(const uint8_t* tile, int depth, int g, uint8_t* codes, Factors& factors) {
    const int groups = depth / kGroup, own = g * kTileGroup / kGroup;
    const uint8_t* scales = tile + 64;
    const uint8_t* zeros = scales + groups * kPanelRows;
    const uint8_t* packed = zeros + groups * kPanelRows;
    if constexpr (kGroup == 32) {
      unpack_nibbles(packed + 256 * own, codes);
    } else {
      // In groups of 64 the low halves are the first 32 columns, the high ones the rest.
      const int shift = g % 2 * 4;
      map_words(packed + 512 * own, codes, 512,
                [shift](UintPart w, int) STERNA_LAMBDA { return (w >> shift) & 0x0f0f0f0fu; });
    }
    factors.scale = load_scale_codes(scales + kPanelRows * own);
    factors.second = load_bytes(zeros + kPanelRows * own) * broadcast(1.0f / 16.0f);
  }
};

struct Q6Tile {
  static constexpr Form kForm = Form::kZero;
  static constexpr Codes kCodes = Codes::kSixBits;
  static constexpr bool kRowScale = true;
  STERNA_INLINE void unpack(const uint8_t* tile, int depth, int g, uint8_t* codes, Factors& factors) {
    const int groups = depth / kTileGroup;
    const uint8_t* scales = tile + 64;
    const uint8_t* zeros = scales + groups * kPanelRows;
    const uint8_t* low = zeros + groups * kPanelRows;
    unpack_nibbles(low + 256 * g, codes);
    add_high_bits(low + 256 * groups + 128 * g, codes);
    factors.scale = load_scale_codes(scales + kPanelRows * g);
    factors.second = load_bytes(zeros + kPanelRows * g) * broadcast(0.25f);
  }
};

struct Q8Tile {
  static constexpr Form kForm = kSignedOffset ? Form::kZero : Form::kPlain;
  static constexpr Codes kCodes = Codes::kSigned;
  static constexpr bool kRowScale = true;
  STERNA_INLINE void unpack(const uint8_t* tile, int depth, int g, uint8_t* codes, Factors& factors) {
    const uint8_t* scales = tile + 64;
    copy_signed(scales + depth / kTileGroup * kPanelRows + kGroupBytes * g, codes);
    factors.scale = load_scale_codes(scales + kPanelRows * g);
    factors.second = broadcast(static_cast<float>(kSignedOffset));
  }
};

// The tiles of GGUF formats are made at load, every number kept: see csrc/ops/quant_pack.cpp.
struct Q4_0Tile {
  static constexpr Form kForm = Form::kZero;
  static constexpr Codes kCodes = Codes::kFourBits;
  static constexpr bool kRowScale = false;
  STERNA_INLINE void unpack(const uint8_t* tile, int, int g, uint8_t* codes, Factors& factors) {
    const uint8_t* group = tile + 288 * g;
    unpack_nibbles(group + 32, codes);
    factors.scale = load_halves(group);
    factors.second = broadcast(8.0f);
  }
};

struct Q8_0Tile {
  static constexpr Form kForm = kSignedOffset ? Form::kZero : Form::kPlain;
  static constexpr Codes kCodes = Codes::kSigned;
  static constexpr bool kRowScale = false;
  STERNA_INLINE void unpack(const uint8_t* tile, int, int g, uint8_t* codes, Factors& factors) {
    const uint8_t* group = tile + 544 * g;
    copy_signed(group + 32, codes);
    factors.scale = load_halves(group);
    factors.second = broadcast(static_cast<float>(kSignedOffset));
  }
};

struct Q4KTile {
  static constexpr Form kForm = Form::kMinimum;
  static constexpr Codes kCodes = Codes::kFourBits;
  static constexpr bool kRowScale = false;
  STERNA_INLINE void unpack(const uint8_t* tile, int, int g, uint8_t* codes, Factors& factors) {
    const uint8_t* block = tile + 2368 * (g / 8);
    const int inner = g % 8;
    unpack_nibbles(block + 320 + 256 * inner, codes);
    factors.scale = load_halves(block) * load_bytes(block + 64 + 16 * inner);
    factors.second = load_halves(block + 32) * load_bytes(block + 192 + 16 * inner);
  }
};

struct Q5KTile {
  static constexpr Form kForm = Form::kMinimum;
  static constexpr Codes kCodes = Codes::kFiveBits;
  static constexpr bool kRowScale = false;
  STERNA_INLINE void unpack(const uint8_t* tile, int, int g, uint8_t* codes, Factors& factors) {
    const uint8_t* block = tile + 2880 * (g / 8);
    const int inner = g % 8;
    unpack_nibbles(block + 320 + 256 * inner, codes);
    add_fifth_bits(block + 2368 + 64 * inner, codes);
    factors.scale = load_halves(block) * load_bytes(block + 64 + 16 * inner);
    factors.second = load_halves(block + 32) * load_bytes(block + 192 + 16 * inner);
  }
};

struct Q6KTile {
  static constexpr Form kForm = Form::kTwoHalves;
  static constexpr Codes kCodes = Codes::kSixBits;
  static constexpr bool kRowScale = false;
  STERNA_INLINE void unpack(const uint8_t* tile, int, int g, uint8_t* codes, Factors& factors) {
    const uint8_t* block = tile + 3360 * (g / 8);
    const int inner = g % 8;
    unpack_nibbles(block + 288 + 256 * inner, codes);
    add_high_bits(block + 2336 + 128 * inner, codes);
    factors.scale = load_halves(block);
    factors.second = load_signed_bytes(block + 32 + 32 * inner);
    factors.third = load_signed_bytes(block + 48 + 32 * inner);
  }
};

struct Iq4XsTile {
  static constexpr Form kForm = kSignedOffset ? Form::kZero : Form::kPlain;
  static constexpr Codes kCodes = Codes::kSigned;
  static constexpr bool kRowScale = false;
  STERNA_INLINE void unpack(const uint8_t* tile, int, int g, uint8_t* codes, Factors& factors) {
    static constexpr Levels kLevels{{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}};
    const uint8_t* block = tile + 2208 * (g / 8);
    const int inner = g % 8;
    unpack_levels(block + 160 + 256 * inner, kLevels, codes);
    factors.scale = load_halves(block) * load_signed_bytes(block + 32 + 16 * inner);
    factors.second = broadcast(static_cast<float>(kSignedOffset));
  }
};

struct Mxfp4Tile {
  static constexpr Form kForm = kSignedOffset ? Form::kZero : Form::kPlain;
  static constexpr Codes kCodes = Codes::kSigned;
  static constexpr bool kRowScale = false;
  STERNA_INLINE void unpack(const uint8_t* tile, int, int g, uint8_t* codes, Factors& factors) {
    // Twice the values of e2m1, with half the scale: 2^(e - 128).
    static constexpr Levels kLevels{{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}};
    const uint8_t* group = tile + 272 * g;
    unpack_levels(group + 16, kLevels, codes);
    factors.scale = generate([group](int i) STERNA_LAMBDA {
      const UintPart e = widen_bytes(group + i * kPartLanes);
      // Exponents below the smallest normal number: 2^-128 and 2^-127.
      return bits<FloatPart>(e < 2u ? (e + 1u) << 21 : (e - 1u) << 23);
    });
    factors.second = broadcast(static_cast<float>(kSignedOffset));
  }
};

}  // namespace sterna::STERNA_VARIANT
