// The operations of the model (contracts: sterna/ops) over one kernel variant.
#pragma once

#include "ops/types.h"

namespace sterna {

// Largest number of experts per token.
constexpr int kMaxTopK = 64;

// One product of several that read the same rows: y [T, w.rows] = x [T, K] w^T.
struct Projection {
  const Matrix* weight;
  float* output;
};

// The bytes of a quantised tensor; `type` is more than the kernels' format where several share one kind of tile.
struct QuantizedSource {
  const char* type;
  const uint8_t* data;
  int64_t bytes;
};

// A format that `Ops::pack_quantized` takes, and the bytes of a block of so many columns of one row in its tiles.
struct QuantizedType {
  std::string name;
  int block, tile_bytes;
};
std::vector<QuantizedType> quantized_types();

class Ops {
 public:
  explicit Ops(const Kernels& kernels) : kernels_(kernels) {}
  const char* variant() const { return kernels_.name; }

  // Elements of `source` are row-major in storage type.
  std::unique_ptr<Matrix> pack_linear(const void* source, int rows, int columns, Format format) const;
  std::unique_ptr<Experts> pack_experts(const void* gate_up, const void* down, int count, int hidden, int width,
                                        Format format) const;

  // `source` in the byte layout of sterna/quant (docs/dev/quant-formats.md); GGUF blocks are rearranged, no number changes.
  // With `borrow` tiles of our own layout are used where they lie: the caller keeps them alive.
  std::unique_ptr<Matrix> pack_quantized(const QuantizedSource& source, int rows, int columns, bool borrow) const;
  std::unique_ptr<Experts> pack_quantized_experts(const QuantizedSource& gate_up, const QuantizedSource& down, int count,
                                                  int hidden, int width, bool borrow) const;

  // Limits of this machine with the current number of threads: bytes per second of reading `bytes` of memory once, and
  // multiply-adds of 8-bit integers per second (0 where the variant has no instruction for them).
  double read_bandwidth(int64_t bytes) const;
  double integer_peak() const;

  std::unique_ptr<Tensor> embedding(const int32_t* ids, int count, const Matrix& table) const;
  std::unique_ptr<Tensor> take_rows(const Tensor& x, const int32_t* rows, int count) const;
  std::unique_ptr<Tensor> concat(const Tensor& a, const Tensor& b) const;
  void set_rows(Tensor& x, const int32_t* rows, int count, const float* values, int width) const;
  void add(Tensor& x, const Tensor& y) const;
  std::unique_ptr<Tensor> rms_norm(const Tensor& x, const Tensor& weight, float eps) const;
  std::unique_ptr<Tensor> linear(const Tensor& x, const Matrix& weight) const;

  struct MoeWeights {
    const Matrix& gate;
    const Experts& experts;
    const Matrix &shared_gate_proj, &shared_up_proj, &shared_down_proj, &shared_expert_gate;
  };
  std::unique_ptr<Tensor> sparse_moe(const Tensor& u, const MoeWeights& weights, int top_k) const;

  struct DeltaNetWeights {
    const Matrix &in_proj_qkv, &in_proj_z, &in_proj_b, &in_proj_a;
    const Tensor &conv1d, &A_log, &dt_bias, &norm;
    const Matrix& out_proj;
    bool tiled_value_heads = false;
  };
  std::unique_ptr<Tensor> gated_delta_net(const Tensor& u, const DeltaNetWeights& weights, DeltaNetState& state,
                                          const Context& context, int key_heads, float eps) const;

  struct AttentionWeights {
    const Matrix &q_proj, &k_proj, &v_proj, &o_proj;
    const Tensor &q_norm, &k_norm;
  };
  std::unique_ptr<Tensor> gqa_attention(const Tensor& u, const AttentionWeights& weights, KvCache& cache,
                                        const Context& context, int heads, float eps) const;

  std::unique_ptr<Tensor> layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps) const;
  // activation(x w^T + bias)
  std::unique_ptr<Tensor> affine(const Tensor& x, const Matrix& w, const Tensor& bias, Activation activation) const;
  // qkv [frames * P, 3 * heads * 2 * half], cos and sin [P, half]; every row sees the rows of its frame.
  std::unique_ptr<Tensor> vision_attention(const Tensor& qkv, const Tensor& cos, const Tensor& sin, int heads) const;

 private:
  void project(const float* x, int rows, int depth, const std::vector<Projection>& projections) const;

  Buffer<char> quantize(const float* x, int rows, int depth) const;

  const Kernels& kernels_;
};

}  // namespace sterna
