// From the bytes of sterna/quant to tiles of 16 rows. Our own formats are tiles already; GGUF blocks are rearranged:
//
//   Q4_0, per group of 32          float16 scales [16], low codes as in q4
//   Q8_0, per group of 32          float16 scales [16], codes as in q8
//   Q4_K, per super-block of 256   float16 d [16], dmin [16], uint8 scales [8][16], minima [8][16], low codes as in q4
//   Q6_K, per super-block of 256   float16 d [16], int8 scales [16][16], low codes and high codes as in q6
//
// Only the 6-bit scales of Q4_K grow, to whole bytes: 148 bytes for 144.
#include <vector>

#include "ops/ops.h"
#include "thread_pool.h"

namespace sterna {
namespace {

constexpr int kGroup = 32, kSuper = 256;

struct Layout {
  int block;         // columns of one block of a source row
  int source_bytes;  // of such a block
  int tile_bytes;    // of 16 such blocks in a tile
  int head_bytes;    // of a whole tile, before its blocks
};

Layout layout_of(Format format) {
  switch (format) {
    case Format::kQ4: return {32, 18, 288, 64};
    case Format::kQ4G64: return {64, 34, 544, 64};
    case Format::kQ6: return {32, 26, 416, 64};
    case Format::kQ8: return {32, 33, 528, 64};
    case Format::kQ4_0: return {kGroup, 18, 288, 0};
    case Format::kQ8_0: return {kGroup, 34, 544, 0};
    case Format::kQ4K: return {kSuper, 144, 2368, 0};
    case Format::kQ6K: return {kSuper, 210, 3360, 0};
    default: throw std::invalid_argument("not a quantised format");
  }
}

bool is_tiled(Format format) { return layout_of(format).head_bytes > 0; }

int64_t tile_bytes(Format format, int columns) {
  const Layout layout = layout_of(format);
  require(columns > 0 && columns % layout.block == 0, "the input dimension is " + std::to_string(columns) +
                                                          ", allowed are multiples of " + std::to_string(layout.block));
  return layout.head_bytes + static_cast<int64_t>(columns / layout.block) * layout.tile_bytes;
}

int64_t source_bytes(Format format, int rows, int columns) {
  if (is_tiled(format)) return divide_up(rows, kPanelRows) * tile_bytes(format, columns);
  const Layout layout = layout_of(format);
  return static_cast<int64_t>(rows) * (columns / layout.block) * layout.source_bytes;
}

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

void put_q4_0(const uint8_t* block, int row, uint8_t* target) {
  std::memcpy(target + 2 * row, block, 2);
  uint8_t codes[kGroup];
  for (int k = 0; k < 16; ++k) {
    codes[k] = block[2 + k] & 15;
    codes[k + 16] = block[2 + k] >> 4;
  }
  put_nibbles(codes, row, target + 32);
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

void put_block(Format format, const uint8_t* block, int row, uint8_t* target) {
  switch (format) {
    case Format::kQ4_0: return put_q4_0(block, row, target);
    case Format::kQ8_0: return put_q8_0(block, row, target);
    case Format::kQ4K: return put_q4_k(block, row, target);
    default: return put_q6_k(block, row, target);
  }
}

// A matrix of any number of rows to tiles at `target`; rows beyond the end are zero.
void pack_tile(const uint8_t* source, int rows, int columns, int tile, Format format, char* target) {
  const Layout layout = layout_of(format);
  const int64_t bytes = tile_bytes(format, columns);
  if (is_tiled(format)) {
    std::memcpy(target, source + tile * bytes, static_cast<std::size_t>(bytes));
    return;
  }
  std::memset(target, 0, static_cast<std::size_t>(bytes));
  const int blocks = columns / layout.block;
  for (int r = 0; r < kPanelRows && tile * kPanelRows + r < rows; ++r) {
    const uint8_t* row = source + (static_cast<int64_t>(tile) * kPanelRows + r) * blocks * layout.source_bytes;
    for (int b = 0; b < blocks; ++b) {
      put_block(format, row + b * layout.source_bytes, r, reinterpret_cast<uint8_t*>(target) + b * layout.tile_bytes);
    }
  }
}

}  // namespace

std::unique_ptr<Matrix> Ops::pack_quantized(const uint8_t* source, int64_t bytes, int rows, int columns,
                                            Format format) const {
  auto matrix = std::make_unique<Matrix>();
  matrix->rows = rows;
  matrix->columns = columns;
  matrix->format = format;
  matrix->stride = tile_bytes(format, columns);
  require_equal(bytes, source_bytes(format, rows, columns), "bytes of a quantised matrix");
  matrix->data = Buffer<char>(static_cast<std::size_t>(matrix->panels() * matrix->stride));
  parallel_for(matrix->panels(), static_cast<int64_t>(rows) * columns, [&](int p) {
    pack_tile(source, rows, columns, p, format, matrix->data.data() + p * matrix->stride);
  });
  return matrix;
}

std::unique_ptr<Experts> Ops::pack_quantized_experts(const uint8_t* gate_up, int64_t gate_up_bytes, Format format,
                                                     const uint8_t* down, int64_t down_bytes, Format down_format,
                                                     int count, int hidden, int width) const {
  require(width > 0 && width % kPanelRows == 0, "moe_intermediate_size is " + std::to_string(width) +
                                                    ", allowed for quantised experts are multiples of 16");
  auto experts = std::make_unique<Experts>();
  experts->count = count;
  experts->hidden = hidden;
  experts->width = width;
  experts->format = format;
  experts->down_format = down_format;
  experts->up_stride = tile_bytes(format, hidden);
  experts->down_stride = tile_bytes(down_format, width);
  const int up_tiles = 2 * width / kPanelRows, down_tiles = divide_up(hidden, kPanelRows);
  experts->up_size = up_tiles * experts->up_stride;
  experts->down_size = down_tiles * experts->down_stride;
  const int64_t up_source = source_bytes(format, 2 * width, hidden), down_source = source_bytes(down_format, hidden, width);
  require_equal(gate_up_bytes, count * up_source, "bytes of gate_up_proj");
  require_equal(down_bytes, count * down_source, "bytes of down_proj");
  experts->gate_up = Buffer<char>(static_cast<std::size_t>(count * experts->up_size));
  experts->down = Buffer<char>(static_cast<std::size_t>(count * experts->down_size));
  parallel_for(count, static_cast<int64_t>(count) * hidden * width, [&](int e) {
    for (int p = 0; p < up_tiles; ++p) {
      pack_tile(gate_up + e * up_source, 2 * width, hidden, p, format,
                experts->gate_up.data() + e * experts->up_size + p * experts->up_stride);
    }
    for (int p = 0; p < down_tiles; ++p) {
      pack_tile(down + e * down_source, hidden, width, p, down_format,
                experts->down.data() + e * experts->down_size + p * experts->down_stride);
    }
  });
  return experts;
}

}  // namespace sterna
