// From the bytes of sterna/quant to tiles of 16 rows. Our own formats are tiles already; GGUF blocks are rearranged:
//
//   Q4_0, per group of 32            float16 scales [16], low codes as in q4
//   Q8_0, per group of 32            float16 scales [16], codes as in q8
//   MXFP4, per group of 32           uint8 exponents [16], low codes as in q4
//   Q4_K, per super-block of 256     float16 d [16], dmin [16], uint8 scales [8][16], minima [8][16], low codes as in q4
//   Q5_K, per super-block of 256     the same, then fifth bits uint8 [8][16][4]: bit j of byte [g, r, i] is column 32g + 4j + i
//   Q6_K, per super-block of 256     float16 d [16], int8 scales [16][16], low codes and high codes as in q6
//   IQ4_XS, per super-block of 256   float16 d [16], int8 scales [8][16], low codes as in q4
//
// Q3_K becomes Q6_K: scales of 16 columns and signed codes, both within its range. No number changes.
#include <string_view>
#include <vector>

#include "ops/ops.h"
#include "thread_pool.h"

namespace sterna {
namespace {

constexpr int kGroup = 32, kSuper = 256;

// Codes of one row's group of 32 into their places among 16 rows.
void put_nibbles(const uint8_t* codes, int row, uint8_t* target) {
  for (int k = 0; k < 16; ++k) {
    target[64 * (k / 4) + 4 * row + k % 4] = static_cast<uint8_t>((codes[k] & 15) | (codes[k + 16] & 15) << 4);
  }
}

void put_high_bits(const uint8_t* codes, int row, uint8_t* target) {
  for (int k = 0; k < kGroup; ++k) {
    target[64 * (k / 16) + 4 * row + k % 4] |= static_cast<uint8_t>((codes[k] >> 4) << (2 * (k % 16 / 4)));
  }
}

// 16 bytes whose low halves are columns 0…15 and whose high halves are 16…31.
void put_halves(const uint8_t* packed, int row, uint8_t* target) {
  for (int k = 0; k < 16; ++k) target[64 * (k / 4) + 4 * row + k % 4] = packed[k];
}

void put_q4_0(const uint8_t* block, int row, uint8_t* target) {
  std::memcpy(target + 2 * row, block, 2);
  put_halves(block + 2, row, target + 32);
}

void put_q8_0(const uint8_t* block, int row, uint8_t* target) {
  std::memcpy(target + 2 * row, block, 2);
  for (int k = 0; k < kGroup; ++k) target[32 + 64 * (k / 4) + 4 * row + k % 4] = block[2 + k];
}

void put_q4_k(const uint8_t* block, int row, uint8_t* target) {
  std::memcpy(target + 2 * row, block, 2);
  std::memcpy(target + 32 + 2 * row, block + 2, 2);
  const uint8_t* packed = block + 4;
  for (int g = 0; g < 8; ++g) {
    const bool late = g >= 4;
    const int scale = late ? (packed[g + 4] & 15) | (packed[g - 4] >> 6) << 4 : packed[g] & 63;
    const int minimum = late ? packed[g + 4] >> 4 | (packed[g] >> 6) << 4 : packed[g + 4] & 63;
    target[64 + 16 * g + row] = static_cast<uint8_t>(scale);
    target[192 + 16 * g + row] = static_cast<uint8_t>(minimum);
    uint8_t codes[kGroup];
    const uint8_t* run = block + 16 + 32 * (g / 2);
    for (int k = 0; k < kGroup; ++k) codes[k] = g % 2 == 0 ? run[k] & 15 : run[k] >> 4;
    put_nibbles(codes, row, target + 320 + 256 * g);
  }
}

void put_q6_k(const uint8_t* block, int row, uint8_t* target) {
  std::memcpy(target + 2 * row, block + 208, 2);
  for (int g = 0; g < 16; ++g) target[32 + 16 * g + row] = block[192 + g];
  for (int g = 0; g < 8; ++g) {
    uint8_t codes[kGroup];
    for (int k = 0; k < kGroup; ++k) {
      const int half = g / 4, at = g % 4 * kGroup + k;
      const uint8_t low = block[64 * half + at % 64], high = block[128 + 32 * half + at % 32];
      codes[k] = static_cast<uint8_t>((at < 64 ? low & 15 : low >> 4) | (high >> (2 * (at / 32)) & 3) << 4);
    }
    put_nibbles(codes, row, target + 288 + 256 * g);
    put_high_bits(codes, row, target + 2336 + 128 * g);
  }
}

void put_q5_k(const uint8_t* block, int row, uint8_t* target) {
  uint8_t without_high[144];
  std::memcpy(without_high, block, 16);
  std::memcpy(without_high + 16, block + 48, 128);
  put_q4_k(without_high, row, target);
  for (int g = 0; g < 8; ++g) {
    for (int k = 0; k < kGroup; ++k) {
      const int bit = block[16 + k] >> g & 1;
      target[2368 + 64 * g + 4 * row + k % 4] |= static_cast<uint8_t>(bit << (k / 4));
    }
  }
}

void put_q3_k(const uint8_t* block, int row, uint8_t* target) {
  std::memcpy(target + 2 * row, block + 108, 2);
  const uint8_t* packed = block + 96;
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? packed[g] & 15 : packed[g - 8] >> 4;
    const int high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
    target[32 + 16 * g + row] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  for (int g = 0; g < 8; ++g) {
    uint8_t codes[kGroup];
    for (int k = 0; k < kGroup; ++k) {
      const int low = block[32 + 32 * (g / 4) + k] >> (2 * (g % 4)) & 3;
      const int kept = block[k] >> g & 1;
      codes[k] = static_cast<uint8_t>(32 + low - 4 * (1 - kept));
    }
    put_nibbles(codes, row, target + 288 + 256 * g);
    put_high_bits(codes, row, target + 2336 + 128 * g);
  }
}

void put_iq4_xs(const uint8_t* block, int row, uint8_t* target) {
  std::memcpy(target + 2 * row, block, 2);
  for (int g = 0; g < 8; ++g) {
    const int low = g % 2 == 0 ? block[4 + g / 2] & 15 : block[4 + g / 2] >> 4;
    const int high = block[2 + g / 4] >> (2 * (g % 4)) & 3;
    target[32 + 16 * g + row] = static_cast<uint8_t>((low | high << 4) - 32);
    put_halves(block + 8 + 16 * g, row, target + 160 + 256 * g);
  }
}

void put_mxfp4(const uint8_t* block, int row, uint8_t* target) {
  target[row] = block[0];
  put_halves(block + 1, row, target + 16);
}

using PutBlock = void (*)(const uint8_t* block, int row, uint8_t* target);

struct Type {
  std::string_view name;
  Format format;
  int block;         // columns of one block of a source row
  int source_bytes;  // of such a block
  int tile_bytes;    // of 16 such blocks in a tile
  int head_bytes;    // of a whole tile, before its blocks
  PutBlock put;      // null where the source is in tiles
};

constexpr Type kTypes[] = {
    {"q4", Format::kQ4, 32, 18, 288, 64, nullptr},
    {"q4_g64", Format::kQ4G64, 64, 34, 544, 64, nullptr},
    {"q6", Format::kQ6, 32, 26, 416, 64, nullptr},
    {"q8", Format::kQ8, 32, 33, 528, 64, nullptr},
    {"Q4_0", Format::kQ4_0, kGroup, 18, 288, 0, put_q4_0},
    {"Q8_0", Format::kQ8_0, kGroup, 34, 544, 0, put_q8_0},
    {"MXFP4", Format::kMxfp4, kGroup, 17, 272, 0, put_mxfp4},
    {"Q3_K", Format::kQ6K, kSuper, 110, 3360, 0, put_q3_k},
    {"Q4_K", Format::kQ4K, kSuper, 144, 2368, 0, put_q4_k},
    {"Q5_K", Format::kQ5K, kSuper, 176, 2880, 0, put_q5_k},
    {"Q6_K", Format::kQ6K, kSuper, 210, 3360, 0, put_q6_k},
    {"IQ4_XS", Format::kIq4Xs, kSuper, 136, 2208, 0, put_iq4_xs},
};

const Type& type_of(const char* name) {
  for (const Type& type : kTypes) {
    if (type.name == name) return type;
  }
  throw std::invalid_argument(std::string("there are no kernels for the format ") + name);
}

int64_t tile_bytes(const Type& type, int columns) {
  require(columns > 0 && columns % type.block == 0, "the input dimension is " + std::to_string(columns) +
                                                        ", allowed are multiples of " + std::to_string(type.block));
  return type.head_bytes + static_cast<int64_t>(columns / type.block) * type.tile_bytes;
}

int64_t source_bytes(const Type& type, int rows, int columns) {
  if (type.put == nullptr) return divide_up(rows, kPanelRows) * tile_bytes(type, columns);
  return static_cast<int64_t>(rows) * (columns / type.block) * type.source_bytes;
}

// One tile of a matrix of any number of rows; rows beyond the end are zero.
void pack_tile(const uint8_t* source, int rows, int columns, int tile, const Type& type, char* target) {
  const int64_t bytes = tile_bytes(type, columns);
  if (type.put == nullptr) {
    std::memcpy(target, source + tile * bytes, static_cast<std::size_t>(bytes));
    return;
  }
  std::memset(target, 0, static_cast<std::size_t>(bytes));
  const int blocks = columns / type.block;
  for (int r = 0; r < kPanelRows && tile * kPanelRows + r < rows; ++r) {
    const uint8_t* row = source + (static_cast<int64_t>(tile) * kPanelRows + r) * blocks * type.source_bytes;
    for (int b = 0; b < blocks; ++b) {
      type.put(row + b * type.source_bytes, r, reinterpret_cast<uint8_t*>(target) + b * type.tile_bytes);
    }
  }
}

// `count` matrices [rows, columns], one after another.
Buffer<char> pack_matrices(const QuantizedSource& source, int count, int rows, int columns, bool borrow) {
  const Type& type = type_of(source.type);
  const int64_t size = source_bytes(type, rows, columns), stride = tile_bytes(type, columns);
  const int tiles = divide_up(rows, kPanelRows);
  require_equal(source.bytes, count * size, "bytes of a quantised tensor");
  if (borrow && type.put == nullptr) {
    return Buffer<char>::borrowed(reinterpret_cast<const char*>(source.data), static_cast<std::size_t>(source.bytes));
  }
  Buffer<char> packed(static_cast<std::size_t>(count * tiles * stride));
  parallel_for(count * tiles, static_cast<int64_t>(count) * rows * columns, [&](int item) {
    pack_tile(source.data + item / tiles * size, rows, columns, item % tiles, type, packed.data() + item * stride);
  });
  return packed;
}

}  // namespace

std::vector<QuantizedType> quantized_types() {
  std::vector<QuantizedType> list;
  for (const Type& type : kTypes) list.push_back({std::string(type.name), type.block, type.tile_bytes / kPanelRows});
  return list;
}

std::unique_ptr<Matrix> Ops::pack_quantized(const QuantizedSource& source, int rows, int columns, bool borrow) const {
  const Type& type = type_of(source.type);
  auto matrix = std::make_unique<Matrix>();
  matrix->rows = rows;
  matrix->columns = columns;
  matrix->format = type.format;
  matrix->stride = tile_bytes(type, columns);
  matrix->data = pack_matrices(source, 1, rows, columns, borrow);
  return matrix;
}

std::unique_ptr<Experts> Ops::pack_quantized_experts(const QuantizedSource& gate_up, const QuantizedSource& down,
                                                     int count, int hidden, int width, bool borrow) const {
  require(width > 0 && width % kPanelRows == 0, "moe_intermediate_size is " + std::to_string(width) +
                                                    ", allowed for quantised experts are multiples of 16");
  const Type &up_type = type_of(gate_up.type), &down_type = type_of(down.type);
  auto experts = std::make_unique<Experts>();
  experts->count = count;
  experts->hidden = hidden;
  experts->width = width;
  experts->format = up_type.format;
  experts->down_format = down_type.format;
  experts->up_stride = tile_bytes(up_type, hidden);
  experts->down_stride = tile_bytes(down_type, width);
  experts->up_size = 2 * width / kPanelRows * experts->up_stride;
  experts->down_size = divide_up(hidden, kPanelRows) * experts->down_stride;
  experts->gate_up = pack_matrices(gate_up, count, 2 * width, hidden, borrow);
  experts->down = pack_matrices(down, count, hidden, width, borrow);
  return experts;
}

}  // namespace sterna
