// What one kernel variant provides: leaf functions over plain pointers. They never allocate, start threads or throw;
// the ops (csrc/ops) check shapes, own the buffers and split the work. Every output element is computed by one fixed
// sequence of operations, whatever range of rows, columns or units a call covers.
#pragma once

#include <cstdint>

namespace sterna {

// Storage types of weights and, the first two, of the KV cache. From kQ4 on: quantised tiles of 16 rows, see quant_tiles.h.
enum class Format : int {
  kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2, kQ4 = 3, kQ4G64 = 4, kQ6 = 5, kQ8 = 6, kQ4_0 = 7, kQ8_0 = 8, kQ4K = 9,
  kQ5K = 10, kQ6K = 11, kIq4Xs = 12, kMxfp4 = 13
};

constexpr bool is_quantized(Format format) { return format >= Format::kQ4; }
// Bytes of the elements that strides count; a quantised tile counts its bytes.
constexpr int element_bytes(Format format) {
  return format == Format::kFloat32 ? 4 : is_quantized(format) ? 1 : 2;
}
// Bytes of a row of quantised activations: int8 codes, then four floats per group of 32 columns.
constexpr int64_t quantized_row_bytes(int64_t depth) { return depth + depth / 32 * 16; }

// What follows the bias of a linear layer of the vision tower.
enum class Activation : int { kNone = 0, kGeluTanh = 1, kGeluErf = 2 };

constexpr int kPanelRows = 16;
// Positions whose softmax is taken together: the first level of the attention's two-level order.
constexpr int kAttentionChunk = 256;
// Value columns of one state that a DeltaNet unit carries.
constexpr int kDeltaColumns = 64;

// A matrix [16 * panels, depth] in panels of 16 rows. Within a panel the 16 rows' elements of one column are adjacent;
// bfloat16 keeps two columns together as 16 pairs (depth rounded up to even), so that a shift and a mask unpack them.
struct Panels {
  const void* data;
  int64_t stride;  // elements from one panel to the next
  Format format;
};

// y[r][c] = sum over k of w[c][k] * x[r][k], k ascending, for the rows of `panels` panels; columns from `columns` on are
// padding and not written. With `accumulate` the sum starts from y instead of 0.
struct MatmulArgs {
  Panels w;
  int panels;
  int columns;
  int depth;
  const float* const* x;
  float* const* y;
  int rows;
  bool accumulate;
  // In place of x where the weights are quantised: rows made by `quantize_row`; `accumulate` must be false.
  const char* const* quantized = nullptr;
};

// One DeltaNet layer's data of one pass. C = 2 * H * K + HV * V channels.
struct DeltaNetArgs {
  int key_heads, value_heads, key_dim, value_dim, kernel;
  bool tiled_value_heads;     // value head n uses key head n % key_heads, else n / (value_heads / key_heads)
  int channels;
  int state_columns;          // value_dim rounded up to whole vectors
  const float* conv_weight;   // [kernel, C]
  const float* A_log;         // [HV]
  const float* dt_bias;       // [HV]
  const float* norm;          // [V]
  float eps;
  const float* qkv;           // [T, C] projections
  const float* z;             // [T, HV * V]
  const float* b;             // [T, HV]
  const float* a;             // [T, HV]
  float* mixed;               // [T, C] after convolution, SiLU and L2 norms; q scaled by K^-1/2
  float* decay;               // [T, HV] exp(g)
  float* beta;                // [T, HV]
  float* out;                 // [T, HV * V]
};

// One attention layer's cache. Blocks hold, per KV head, keys as panels of 16 positions [tile][head_dim] and values as
// panels of 16 dimensions [panel][block_size], both in the layout of `Panels`.
struct KvLayout {
  Format format;
  int block_size;
  int kv_heads;
  int head_dim;
  int64_t head_stride;   // elements from one head to the next, within keys and within values
  int64_t block_stride;  // elements from one block to the next
  int64_t value_offset;  // elements from a block's keys to its values
  int64_t key_tile_stride, value_panel_stride;
};

// Queries that share one KV head and one sequence, ascending in position.
struct AttentionArgs {
  KvLayout layout;
  const void* cache;
  const int32_t* block_table;
  int kv_head;
  int queries;
  const float* const* q;      // scaled by head_dim^-1/2
  const int32_t* last;        // last visible position of each query
};

// Softmax over the visible positions of one chunk: maximum, sum of exponentials and weighted sum of values per query.
// Queries that see nothing of the chunk are left alone. `scores`: room for queries * kAttentionChunk floats.
struct AttentionPartial {
  float* max;            // [queries]
  float* sum;            // [queries]
  float* const* acc;     // [queries] rows of head_dim
};

// Preparation of queries and keys of one head: RMS norm (1 + weight), rotation of the first rotary_dim, scaling.
struct HeadPrepareArgs {
  int head_dim, rotary_dim;
  const float* weight;
  float eps;
  float scale;
};

struct Kernels {
  const char* name;
  int block_rows;  // rows of x that a matmul keeps in registers

  // See roofline.h.
  uint32_t (*read_all)(const void* data, int64_t bytes);
  int64_t (*integer_products)(int64_t rounds);

  void (*matmul)(const MatmulArgs&);
  // h[r][i] = silu(gate_i . x[r]) * (up_i . x[r]); args.w are the panels of the gate.
  void (*swiglu)(const MatmulArgs& args, const Panels& up);
  // One row of activations, depth a multiple of 32: to int8 with a scale per group of 32, into quantized_row_bytes(depth).
  void (*quantize_row)(const float* x, int depth, char* row);
  void (*rms_norm)(const float* x, const float* weight, float eps, int rows, int width, float* y);
  void (*add)(float* x, const float* y, int64_t count);
  // out[i] = sum over j ascending of weights[j] * parts[j][i], then + shared_weight * shared[i].
  void (*combine)(const float* const* parts, const float* weights, int count, const float* shared, float shared_gate,
                  int width, float* out);
  // Softmax over the chosen logits: `count` (largest logit first) -> weights that sum to 1; gate -> sigmoid(gate).
  void (*router_weights)(const float* logits, int count, float* weights);
  float (*sigmoid)(float);
  void (*gate_output)(float* out, const float* gate, int width);
  void (*unpack_row)(const Panels& w, int depth, int row, float* out);

  void (*head_prepare)(const HeadPrepareArgs&, const float* x, const float* cos, const float* sin, float* y);
  // Stores one row's key and value (head_dim floats per head) at a block and an offset within it.
  void (*kv_store)(const KvLayout&, void* cache, int block, int offset, int kv_head, const float* k, const float* v);
  void (*attention_chunk)(const AttentionArgs&, int chunk, const AttentionPartial&, float* scores);
  // Adds a chunk's partial result to a running one, in ascending order of chunks; first: the running one is empty.
  void (*attention_merge)(float* max, float* sum, float* acc, float chunk_max, float chunk_sum, const float* chunk_acc,
                          int head_dim, bool first);
  void (*attention_finish)(const float* acc, float sum, int head_dim, float* out);

  // Row t of `mixed`, `decay` and `beta`; previous[j] is the raw row of tap j, the last one being row t itself.
  void (*delta_prepare)(const DeltaNetArgs&, int row, const float* const* previous);
  // Rows [begin, end) of one value head, columns [column, column + kDeltaColumns) of its state [K, state_columns].
  void (*delta_recurrence)(const DeltaNetArgs&, int head, int column, int begin, int end, float* state);
  // Gated RMS norm of one row, in place in `out`.
  void (*delta_norm)(const DeltaNetArgs&, int row);

  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int rows, int width, float* y);
  // One row, in place: activation(x + bias).
  void (*bias_activation)(float* x, const float* bias, int width, Activation activation);
  // exp(score - largest) of the first n scores in place, zero in the lanes after them; n is at most kAttentionChunk.
  void (*softmax_chunk)(float* scores, int n, float* max, float* sum);
  void (*rotate_head)(const float* x, const float* cos, const float* sin, int half, float scale, float* y);
};

const Kernels& generic_kernels();
#if defined(STERNA_HAVE_WIDE)
const Kernels& wide_kernels();
#endif
#if defined(STERNA_HAVE_AVX2)
const Kernels& avx2_kernels();
#endif
#if defined(STERNA_HAVE_AVX2_VNNI)
const Kernels& avx2_vnni_kernels();
#endif
#if defined(STERNA_HAVE_AVX512)
const Kernels& avx512_kernels();
#endif
#if defined(STERNA_HAVE_AVX512_VNNI)
const Kernels& avx512_vnni_kernels();
#endif

}  // namespace sterna
