// The module sterna._native: handles, shape checks at the border, and the GIL released around every operation.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "cpu_features.h"
#include "ops/ops.h"
#include "thread_pool.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace sterna {
namespace {

using Int32Array = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;
using FloatArray = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using AnyArray = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Unlocked = nb::call_guard<nb::gil_scoped_release>;

Format format_of(const AnyArray& array) {
  if (array.dtype() == nb::dtype<float>()) return Format::kFloat32;
  if (array.dtype() == nb::dtype<uint16_t>()) return Format::kBfloat16;
  const nb::dlpack::dtype half{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
  require(array.dtype() == half, "weights are of another type, allowed are float32, float16 and uint16 (bfloat16 bits)");
  return Format::kFloat16;
}

int dimension(const AnyArray& array, std::size_t axis) { return static_cast<int>(array.shape(axis)); }

std::vector<int32_t> ints(const Int32Array& array) { return {array.data(), array.data() + array.size()}; }

// A numpy array that owns `count` values at `data`.
template <class T>
nb::object owned_array(T* data, const std::vector<std::size_t>& shape) {
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner));
}

std::unique_ptr<Tensor> tensor_from(const FloatArray& array) {
  require(array.ndim() == 1 || array.ndim() == 2,
          "a tensor has " + std::to_string(array.ndim()) + " axes, allowed are 1 and 2");
  const bool vector = array.ndim() == 1;
  auto tensor = std::make_unique<Tensor>(vector ? 1 : static_cast<int>(array.shape(0)),
                                         static_cast<int>(array.shape(vector ? 0 : 1)));
  tensor->vector = vector;
  std::memcpy(tensor->data.data(), array.data(), array.nbytes());
  return tensor;
}

nb::object tensor_to_numpy(const Tensor& tensor) {
  float* copy = new float[tensor.data.size()];
  std::memcpy(copy, tensor.data.data(), tensor.data.size() * sizeof(float));
  const auto rows = static_cast<std::size_t>(tensor.rows), columns = static_cast<std::size_t>(tensor.columns);
  return tensor.vector ? owned_array(copy, {columns}) : owned_array(copy, {rows, columns});
}

std::unique_ptr<Matrix> pack_linear(const Ops& ops, const AnyArray& weight) {
  require(weight.ndim() == 2, "a matrix has " + std::to_string(weight.ndim()) + " axes, expected are 2");
  const Format format = format_of(weight);
  nb::gil_scoped_release unlocked;
  return ops.pack_linear(weight.data(), dimension(weight, 0), dimension(weight, 1), format);
}

std::unique_ptr<Experts> pack_experts(const Ops& ops, const AnyArray& gate_up, const AnyArray& down) {
  require(gate_up.ndim() == 3 && down.ndim() == 3, "expert weights must have 3 axes");
  const Format format = format_of(gate_up);
  require(format == format_of(down), "gate_up_proj and down_proj are of different types");
  const int count = dimension(gate_up, 0), hidden = dimension(gate_up, 2), width = dimension(down, 2);
  require_equal(dimension(gate_up, 1), 2 * width, "rows of gate_up_proj");
  require_equal(dimension(down, 0), count, "experts of down_proj");
  require_equal(dimension(down, 1), hidden, "rows of down_proj");
  nb::gil_scoped_release unlocked;
  return ops.pack_experts(gate_up.data(), down.data(), count, hidden, width, format);
}

using ByteArray = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

QuantizedSource source_of(const std::string& type, const ByteArray& data) {
  return {type.c_str(), data.data(), static_cast<int64_t>(data.size())};
}

std::unique_ptr<Matrix> pack_quantized(const Ops& ops, const ByteArray& data, const std::string& format, int rows,
                                       int columns, bool borrow) {
  std::unique_ptr<Matrix> matrix;
  {
    nb::gil_scoped_release unlocked;
    matrix = ops.pack_quantized(source_of(format, data), rows, columns, borrow);
  }
  if (borrow) matrix->owner = std::make_shared<ByteArray>(data);
  return matrix;
}

std::unique_ptr<Experts> pack_quantized_experts(const Ops& ops, const ByteArray& gate_up, const ByteArray& down,
                                                const std::string& format, const std::string& down_format, int count,
                                                int hidden, int width, bool borrow) {
  std::unique_ptr<Experts> experts;
  {
    nb::gil_scoped_release unlocked;
    experts = ops.pack_quantized_experts(source_of(format, gate_up), source_of(down_format, down), count, hidden, width,
                                         borrow);
  }
  if (borrow) experts->owner = std::make_shared<std::pair<ByteArray, ByteArray>>(gate_up, down);
  return experts;
}

std::vector<std::tuple<std::string, int, int>> list_quantized_types() {
  std::vector<std::tuple<std::string, int, int>> list;
  for (const QuantizedType& type : quantized_types()) list.emplace_back(type.name, type.block, type.tile_bytes);
  return list;
}

std::unique_ptr<Context> make_context(const Int32Array& cu_seqlens, const Int32Array& context_lens,
                                      const Int32Array& block_tables, const Int32Array& slot_mapping,
                                      const Int32Array& state_slots, const Int32Array& snapshot_at,
                                      const FloatArray& cos, const FloatArray& sin) {
  auto context = std::make_unique<Context>();
  context->cu_seqlens = ints(cu_seqlens);
  context->context_lens = ints(context_lens);
  context->block_tables = ints(block_tables);
  context->slot_mapping = ints(slot_mapping);
  context->state_slots = ints(state_slots);
  context->snapshot_at = ints(snapshot_at);
  require(block_tables.ndim() == 2 && block_tables.shape(0) == context_lens.shape(0),
          "block_tables must have one row per sequence");
  require(snapshot_at.ndim() == 2 && snapshot_at.shape(1) == 2, "snapshot_at must have the shape [S, 2]");
  require(cos.ndim() == 2 && sin.ndim() == 2 && cos.shape(1) == sin.shape(1), "cos and sin must have the same shape");
  require_equal(static_cast<int64_t>(cos.shape(0)), context->tokens(), "rows of cos");
  require_equal(static_cast<int64_t>(sin.shape(0)), context->tokens(), "rows of sin");
  context->max_blocks = static_cast<int>(block_tables.shape(1));
  context->half_rotary = static_cast<int>(cos.shape(1));
  context->cos.assign(cos.data(), cos.data() + cos.size());
  context->sin.assign(sin.data(), sin.data() + sin.size());
  context->check();
  return context;
}

nb::tuple read_state(DeltaNetState& state, int slot) {
  require_range(slot, 0, state.slots, "state slot");
  const int K = state.key_dim, V = state.value_dim;
  float* recurrent = new float[static_cast<std::size_t>(state.value_heads) * V * K];
  float* conv = new float[static_cast<std::size_t>(state.conv_size())];
  for (int h = 0; h < state.value_heads; ++h) {
    const float* source = state.recurrent_slot(slot) + static_cast<int64_t>(h) * K * state.state_columns;
    for (int v = 0; v < V; ++v) {
      for (int k = 0; k < K; ++k) recurrent[(static_cast<int64_t>(h) * V + v) * K + k] = source[k * state.state_columns + v];
    }
  }
  for (int c = 0; c < state.channels; ++c) {
    for (int j = 0; j < state.taps; ++j) conv[c * state.taps + j] = state.conv_slot(slot)[j * state.channels + c];
  }
  const auto size = [](int n) { return static_cast<std::size_t>(n); };
  return nb::make_tuple(owned_array(recurrent, {size(state.value_heads), size(V), size(K)}),
                        owned_array(conv, {size(state.channels), size(state.taps)}));
}

void write_state(DeltaNetState& state, int slot, const FloatArray& recurrent, const FloatArray& conv) {
  require_range(slot, 0, state.slots, "state slot");
  const int K = state.key_dim, V = state.value_dim;
  require_equal(static_cast<int64_t>(recurrent.size()), static_cast<int64_t>(state.value_heads) * V * K,
                "values of the recurrent state");
  require_equal(static_cast<int64_t>(conv.size()), state.conv_size(), "values of the convolution state");
  for (int h = 0; h < state.value_heads; ++h) {
    float* target = state.recurrent_slot(slot) + static_cast<int64_t>(h) * K * state.state_columns;
    for (int v = 0; v < V; ++v) {
      for (int k = 0; k < K; ++k) {
        target[k * state.state_columns + v] = recurrent.data()[(static_cast<int64_t>(h) * V + v) * K + k];
      }
    }
  }
  for (int c = 0; c < state.channels; ++c) {
    for (int j = 0; j < state.taps; ++j) state.conv_slot(slot)[j * state.channels + c] = conv.data()[c * state.taps + j];
  }
}

void copy_state(DeltaNetState& state, int source, int target) {
  require_range(source, -1, state.slots, "source slot");
  require_range(target, 0, state.slots, "target slot");
  if (source == target) return;
  const std::size_t recurrent = state.recurrent_size() * sizeof(float), conv = state.conv_size() * sizeof(float);
  if (source < 0) {
    std::memset(state.recurrent_slot(target), 0, recurrent);
    std::memset(state.conv_slot(target), 0, conv);
    return;
  }
  std::memcpy(state.recurrent_slot(target), state.recurrent_slot(source), recurrent);
  std::memcpy(state.conv_slot(target), state.conv_slot(source), conv);
}

// f(element of the cache, element of [2, block_size, Hkv, head_dim]) for all elements of a block.
template <class T, class F>
void each_kv_element(KvCache& cache, int block, F&& f) {
  require_range(block, 0, cache.blocks, "block");
  const KvLayout& layout = cache.layout;
  T* base = reinterpret_cast<T*>(cache.data.data()) + block * layout.block_stride;
  const bool pairs = layout.format == Format::kBfloat16;
  auto in_panel = [pairs](int k, int lane) {
    return pairs ? static_cast<int64_t>(k / 2) * 2 * kPanelRows + 2 * lane + k % 2
                 : static_cast<int64_t>(k) * kPanelRows + lane;
  };
  int64_t at = 0;
  for (int which = 0; which < 2; ++which) {
    for (int offset = 0; offset < layout.block_size; ++offset) {
      for (int h = 0; h < layout.kv_heads; ++h) {
        T* head = base + which * layout.value_offset + h * layout.head_stride;
        for (int d = 0; d < layout.head_dim; ++d, ++at) {
          f(which == 0 ? head[offset / kPanelRows * layout.key_tile_stride + in_panel(d, offset % kPanelRows)]
                       : head[d / kPanelRows * layout.value_panel_stride + in_panel(offset, d % kPanelRows)],
            at);
        }
      }
    }
  }
}

template <class T>
nb::object read_kv_as(KvCache& cache, int block) {
  const KvLayout& layout = cache.layout;
  const std::vector<std::size_t> shape{2, static_cast<std::size_t>(layout.block_size),
                                       static_cast<std::size_t>(layout.kv_heads),
                                       static_cast<std::size_t>(layout.head_dim)};
  require_range(block, 0, cache.blocks, "block");
  T* out = new T[2 * shape[1] * shape[2] * shape[3]];
  each_kv_element<T>(cache, block, [out](const T& element, int64_t at) { out[at] = element; });
  return owned_array(out, shape);
}

nb::object read_kv(KvCache& cache, int block) {
  return cache.layout.format == Format::kFloat32 ? read_kv_as<float>(cache, block) : read_kv_as<uint16_t>(cache, block);
}

template <class T>
void write_kv_as(KvCache& cache, int block, const void* data) {
  const T* source = static_cast<const T*>(data);
  each_kv_element<T>(cache, block, [source](T& element, int64_t at) { element = source[at]; });
}

void write_kv(KvCache& cache, int block, const AnyArray& data) {
  const KvLayout& layout = cache.layout;
  require(format_of(data) == layout.format, "the block's data is not of the cache's storage type");
  require_equal(static_cast<int64_t>(data.size()),
                int64_t{2} * layout.block_size * layout.kv_heads * layout.head_dim, "values of a block");
  if (layout.format == Format::kFloat32) {
    write_kv_as<float>(cache, block, data.data());
  } else {
    write_kv_as<uint16_t>(cache, block, data.data());
  }
}

void copy_kv(KvCache& cache, int source, int target) {
  require_range(source, 0, cache.blocks, "source block");
  require_range(target, 0, cache.blocks, "target block");
  if (source == target) return;
  std::memcpy(cache.data.data() + target * cache.block_bytes(), cache.data.data() + source * cache.block_bytes(),
              static_cast<std::size_t>(cache.block_bytes()));
}

std::unique_ptr<KvCache> make_kv_cache(int blocks, int block_size, int kv_heads, int head_dim, bool float32) {
  require(block_size > 0 && block_size % kPanelRows == 0,
          "block_size is " + std::to_string(block_size) + ", allowed are multiples of 16");
  require(blocks > 0 && kv_heads > 0 && head_dim > 0, "a KV cache needs at least one block, head and dimension");
  return std::make_unique<KvCache>(blocks, block_size, kv_heads, head_dim,
                                   float32 ? Format::kFloat32 : Format::kBfloat16);
}

std::unique_ptr<DeltaNetState> make_state(int slots, int value_heads, int key_dim, int value_dim, int channels,
                                          int kernel) {
  require(slots > 0 && value_heads > 0 && key_dim > 0 && value_dim > 0 && kernel > 1,
          "a state needs at least one slot, head and dimension and a kernel of 2 or more");
  return std::make_unique<DeltaNetState>(slots, value_heads, key_dim, value_dim, channels, kernel);
}

std::unique_ptr<Ops> make_ops(const std::string& name) {
  for (const Variant& variant : variants()) {
    if (variant.name != name) continue;
    require(variant.reason.empty(), "the kernel variant " + name + " cannot run: " + variant.reason);
    return std::make_unique<Ops>(*variant.kernels);
  }
  throw std::invalid_argument("there is no kernel variant " + name);
}

std::vector<std::tuple<std::string, std::string, bool>> list_variants() {
  std::vector<std::tuple<std::string, std::string, bool>> list;
  for (const Variant& variant : variants()) list.emplace_back(variant.name, variant.reason, variant.test_only);
  return list;
}

std::unique_ptr<Tensor> sparse_moe(const Ops& ops, const Tensor& u, const Matrix& gate, const Experts& experts,
                                   const Matrix& shared_gate_proj, const Matrix& shared_up_proj,
                                   const Matrix& shared_down_proj, const Matrix& shared_expert_gate, int top_k) {
  return ops.sparse_moe(u, {gate, experts, shared_gate_proj, shared_up_proj, shared_down_proj, shared_expert_gate},
                        top_k);
}

std::unique_ptr<Tensor> gated_delta_net(const Ops& ops, const Tensor& u, const Matrix& in_proj_qkv,
                                        const Matrix& in_proj_z, const Matrix& in_proj_b, const Matrix& in_proj_a,
                                        const Tensor& conv1d, const Tensor& A_log, const Tensor& dt_bias,
                                        const Tensor& norm, const Matrix& out_proj, bool tiled_value_heads,
                                        DeltaNetState& state, const Context& context, int key_heads, float eps) {
  return ops.gated_delta_net(
      u, {in_proj_qkv, in_proj_z, in_proj_b, in_proj_a, conv1d, A_log, dt_bias, norm, out_proj, tiled_value_heads},
      state, context, key_heads, eps);
}

std::unique_ptr<Tensor> gqa_attention(const Ops& ops, const Tensor& u, const Matrix& q_proj, const Matrix& k_proj,
                                      const Matrix& v_proj, const Matrix& o_proj, const Tensor& q_norm,
                                      const Tensor& k_norm, KvCache& cache, const Context& context, int heads,
                                      float eps) {
  return ops.gqa_attention(u, {q_proj, k_proj, v_proj, o_proj, q_norm, k_norm}, cache, context, heads, eps);
}

std::unique_ptr<Tensor> affine(const Ops& ops, const Tensor& x, const Matrix& w, const Tensor& bias,
                               const std::string& name) {
  for (const auto& [known, activation] : {std::pair{"none", Activation::kNone},
                                          {"gelu_tanh", Activation::kGeluTanh}, {"gelu", Activation::kGeluErf}}) {
    if (name == known) return ops.affine(x, w, bias, activation);
  }
  throw std::invalid_argument("there is no activation " + name);
}

void bind_handles(nb::module_& m) {
  nb::class_<Tensor>(m, "Tensor", "float32 [rows, columns], or a vector")
      .def("numpy", &tensor_to_numpy)
      .def_prop_ro("shape", [](const Tensor& t) {
        return t.vector ? nb::object(nb::make_tuple(t.columns)) : nb::object(nb::make_tuple(t.rows, t.columns));
      });
  nb::class_<Matrix>(m, "Matrix", "A packed weight [N, K]")
      .def_prop_ro("shape", [](const Matrix& w) { return nb::make_tuple(w.rows, w.columns); })
      .def_prop_ro("nbytes", &Matrix::bytes);
  nb::class_<Experts>(m, "Experts", "Packed routed experts of one layer").def_prop_ro("nbytes", &Experts::bytes);
  nb::class_<DeltaNetState>(m, "DeltaNetState", "State slots of one DeltaNet layer")
      .def(nb::new_(&make_state), nb::kw_only(), "slots"_a, "value_heads"_a, "key_dim"_a, "value_dim"_a, "channels"_a,
           "kernel"_a)
      .def("read", &read_state, "slot"_a)
      .def("write", &write_state, "slot"_a, "recurrent"_a, "conv"_a)
      .def("copy", &copy_state, "source"_a, "target"_a);
  nb::class_<KvCache>(m, "KvCache", "KV blocks of one attention layer")
      .def(nb::new_(&make_kv_cache), nb::kw_only(), "blocks"_a, "block_size"_a, "kv_heads"_a, "head_dim"_a,
           "float32"_a)
      .def("read", &read_kv, "block"_a)
      .def("write", &write_kv, "block"_a, "data"_a)
      .def("copy", &copy_kv, "source"_a, "target"_a);
  nb::class_<Context>(m, "Context", "One pass, see StepContext")
      .def(nb::new_(&make_context), "cu_seqlens"_a, "context_lens"_a, "block_tables"_a, "slot_mapping"_a,
           "state_slots"_a, "snapshot_at"_a, "cos"_a, "sin"_a);
}

void bind_ops(nb::module_& m) {
  nb::class_<Ops>(m, "Ops", "The operations over one kernel variant")
      .def(nb::new_(&make_ops), "variant"_a)
      .def_prop_ro("variant", &Ops::variant)
      .def("pack_linear", &pack_linear, "weight"_a)
      .def("pack_experts", &pack_experts, "gate_up_proj"_a, "down_proj"_a)
      .def("pack_quantized", &pack_quantized, "data"_a, nb::kw_only(), "format"_a, "rows"_a, "columns"_a, "borrow"_a)
      .def("pack_quantized_experts", &pack_quantized_experts, "gate_up_proj"_a, "down_proj"_a, nb::kw_only(),
           "format"_a, "down_format"_a, "count"_a, "hidden"_a, "width"_a, "borrow"_a)
      .def("read_bandwidth", &Ops::read_bandwidth, Unlocked(), "nbytes"_a)
      .def("integer_peak", &Ops::integer_peak, Unlocked())
      .def("embedding",
           [](const Ops& ops, const Int32Array& ids, const Matrix& table) {
             return ops.embedding(ids.data(), static_cast<int>(ids.size()), table);
           }, Unlocked(), "token_ids"_a, "weight"_a)
      .def("take_rows",
           [](const Ops& ops, const Tensor& x, const Int32Array& rows) {
             return ops.take_rows(x, rows.data(), static_cast<int>(rows.size()));
           }, Unlocked(), "x"_a, "rows"_a)
      .def("set_rows",
           [](const Ops& ops, Tensor& x, const Int32Array& rows, const FloatArray& values) {
             require(values.ndim() == 2 && values.shape(0) == rows.size(), "values must have one row per index");
             ops.set_rows(x, rows.data(), static_cast<int>(rows.size()), values.data(),
                          static_cast<int>(values.shape(1)));
           }, Unlocked(), "x"_a, "rows"_a, "values"_a)
      .def("concat", &Ops::concat, Unlocked(), "a"_a, "b"_a)
      .def("add", &Ops::add, Unlocked(), "x"_a, "y"_a)
      .def("rms_norm", &Ops::rms_norm, Unlocked(), "x"_a, "weight"_a, "eps"_a)
      .def("linear", &Ops::linear, Unlocked(), "x"_a, "weight"_a)
      .def("sparse_moe", &sparse_moe, Unlocked())
      .def("gated_delta_net", &gated_delta_net, Unlocked())
      .def("gqa_attention", &gqa_attention, Unlocked())
      .def("layer_norm", &Ops::layer_norm, Unlocked(), "x"_a, "weight"_a, "bias"_a, "eps"_a)
      .def("affine", &affine, Unlocked(), "x"_a, "weight"_a, "bias"_a, "activation"_a)
      .def("vision_attention", &Ops::vision_attention, Unlocked(), "qkv"_a, "cos"_a, "sin"_a, "heads"_a);
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);
  m.doc() = "Kernels of the native backend; see sterna.backends.native for the public side";
  bind_handles(m);
  bind_ops(m);
  m.def("tensor", &tensor_from, "array"_a, "A copy of a float32 array of one or two axes");
  m.def("variants", &list_variants, "(name, reason why it cannot run or '', whether it is for tests only), slowest first");
  m.def("quantized_types", &list_quantized_types, "(name, columns of a block, bytes of such a block in tiles)");
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", [](int threads) {
    require(threads >= 1 && threads <= 1024, "threads are " + std::to_string(threads) + ", allowed is 1 to 1024");
    set_num_threads(threads);
  }, "threads"_a);
  m.def("set_fill_nan", &set_fill_nan, "on"_a, "Fill new buffers with NaN, so that unwritten outputs show (tests)");
}

}  // namespace sterna
