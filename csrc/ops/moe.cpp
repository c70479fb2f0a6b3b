#include <algorithm>
#include <numeric>

#include "ops/ops.h"
#include "thread_pool.h"

namespace sterna {
namespace {

// The chosen experts of all rows, grouped by expert; pairs of one expert keep the order of the rows.
struct Routing {
  std::vector<int32_t> expert;    // [T * k] in top-k order
  std::vector<float> weight;      // [T * k]
  std::vector<int32_t> order;     // pairs t * k + j sorted by expert
  std::vector<int32_t> offset;    // [E + 1] into order
};

// The k largest logits, largest first, ties to the lower id.
void top_k(const float* logits, int count, int k, int32_t* experts) {
  int chosen = 0;
  for (int e = 0; e < count; ++e) {
    int at = chosen;
    while (at > 0 && logits[experts[at - 1]] < logits[e]) --at;
    if (at == k) continue;
    if (chosen < k) ++chosen;
    for (int i = chosen - 1; i > at; --i) experts[i] = experts[i - 1];
    experts[at] = e;
  }
}

void group_by_expert(Routing& routing, int experts) {
  routing.offset.assign(experts + 1, 0);
  for (const int32_t e : routing.expert) ++routing.offset[e + 1];
  std::partial_sum(routing.offset.begin(), routing.offset.end(), routing.offset.begin());
  std::vector<int32_t> next(routing.offset.begin(), routing.offset.end() - 1);
  routing.order.resize(routing.expert.size());
  for (std::size_t pair = 0; pair < routing.expert.size(); ++pair) {
    routing.order[next[routing.expert[pair]]++] = static_cast<int32_t>(pair);
  }
}

constexpr int kRowsPerItem = 48;

// Rows [first, first + count) of one expert's group, and some of its panels; expert -1 is the shared one.
struct Item {
  int expert, first, count, panel, panels;
};

std::vector<Item> split(const Routing& routing, int tokens, int experts, int routed_panels, int shared_panels) {
  std::vector<Item> items;
  const int few = tokens <= 8;
  auto append = [&](int expert, int begin, int end, int panels) {
    const int per_item = few ? 8 : 32;
    for (int panel = 0; panel < panels; panel += per_item) {
      for (int first = begin; first < end; first += kRowsPerItem) {
        items.push_back({expert, first, std::min(kRowsPerItem, end - first), panel, std::min(per_item, panels - panel)});
      }
    }
  };
  append(-1, 0, tokens, shared_panels);
  for (int e = 0; e < experts; ++e) append(e, routing.offset[e], routing.offset[e + 1], routed_panels);
  return items;
}

Panels from_panel(const Panels& w, int panel) {
  const int64_t bytes = panel * w.stride * element_bytes(w.format);
  return {static_cast<const char*>(w.data) + bytes, w.stride, w.format};
}

void check_shapes(const Tensor& u, const Ops::MoeWeights& w, int k) {
  require_equal(w.gate.columns, u.columns, "columns of the router weight");
  require_equal(w.gate.rows, w.experts.count, "rows of the router weight");
  require_equal(w.experts.hidden, u.columns, "hidden size of the experts");
  require_equal(w.shared_gate_proj.columns, u.columns, "columns of shared gate_proj");
  require_equal(w.shared_up_proj.columns, u.columns, "columns of shared up_proj");
  require_equal(w.shared_up_proj.rows, w.shared_gate_proj.rows, "rows of shared up_proj");
  require_equal(w.shared_down_proj.columns, w.shared_gate_proj.rows, "columns of shared down_proj");
  require_equal(w.shared_down_proj.rows, u.columns, "rows of shared down_proj");
  require_equal(w.shared_expert_gate.rows, 1, "rows of shared_expert_gate");
  require_range(k, 1, std::min(w.experts.count, kMaxTopK) + 1, "experts per token");
}

}  // namespace

std::unique_ptr<Tensor> Ops::sparse_moe(const Tensor& u, const MoeWeights& w, int k) const {
  check_shapes(u, w, k);
  const int tokens = u.rows, hidden = u.columns, experts = w.experts.count;
  const int width = w.experts.width, shared_width = w.shared_gate_proj.rows;
  Tensor logits(tokens, experts), shared_gate(tokens, 1);
  project(u.data.data(), tokens, hidden, {{&w.gate, logits.data.data()}, {&w.shared_expert_gate, shared_gate.data.data()}});

  Routing routing;
  routing.expert.resize(static_cast<std::size_t>(tokens) * k);
  routing.weight.resize(routing.expert.size());
  for (int t = 0; t < tokens; ++t) {
    int32_t* chosen = routing.expert.data() + static_cast<std::size_t>(t) * k;
    top_k(logits.row(t), experts, k, chosen);
    float best[kMaxTopK];
    for (int j = 0; j < k; ++j) best[j] = logits.row(t)[chosen[j]];
    kernels_.router_weights(best, k, routing.weight.data() + static_cast<std::size_t>(t) * k);
  }
  group_by_expert(routing, experts);

  const int pairs = tokens * k;
  Tensor h(pairs, width), shared_h(tokens, shared_width), y(pairs, hidden), shared_y(tokens, hidden);
  const int64_t operations = static_cast<int64_t>(hidden) * (static_cast<int64_t>(pairs) * width +
                                                             static_cast<int64_t>(tokens) * shared_width);
  // Routed and shared experts read the same rows; each token is quantised once, each hidden row of a pair once.
  const auto codes_of = [&](bool needed, const Tensor& x) {
    return needed ? quantize(x.data.data(), x.rows, x.columns) : Buffer<char>();
  };
  require(is_quantized(w.shared_gate_proj.format) == is_quantized(w.shared_up_proj.format),
          "shared gate_proj and up_proj must both be quantised or both not");
  const Buffer<char> u_codes = codes_of(
      is_quantized(w.experts.format) || is_quantized(w.shared_gate_proj.format), u);
  const std::vector<Item> up_items = split(routing, tokens, experts, divide_up(width, kPanelRows),
                                           w.shared_gate_proj.panels());
  parallel_for(static_cast<int>(up_items.size()), 2 * operations, [&](int index) {
    const Item& item = up_items[index];
    const bool shared = item.expert < 0;
    const float* inputs[kRowsPerItem];
    const char* codes[kRowsPerItem];
    float* outputs[kRowsPerItem];
    for (int r = 0; r < item.count; ++r) {
      const int pair = shared ? item.first + r : routing.order[item.first + r];
      const int token = shared ? pair : pair / k;
      inputs[r] = u.row(token);
      codes[r] = u_codes.data() + token * quantized_row_bytes(hidden);
      outputs[r] = (shared ? shared_h.row(pair) : h.row(pair)) + item.panel * kPanelRows;
    }
    const Panels gate = shared ? w.shared_gate_proj.view() : w.experts.gate_view(item.expert);
    const Panels up = shared ? w.shared_up_proj.view() : w.experts.up_view(item.expert);
    kernels_.swiglu({from_panel(gate, item.panel), item.panels, (shared ? shared_width : width) - item.panel * kPanelRows,
                     hidden, inputs, outputs, item.count, false, codes},
                    from_panel(up, item.panel));
  });

  const Buffer<char> h_codes = codes_of(is_quantized(w.experts.down_format), h);
  const Buffer<char> shared_codes = codes_of(is_quantized(w.shared_down_proj.format), shared_h);
  const std::vector<Item> down_items = split(routing, tokens, experts, divide_up(hidden, kPanelRows),
                                             w.shared_down_proj.panels());
  parallel_for(static_cast<int>(down_items.size()), operations, [&](int index) {
    const Item& item = down_items[index];
    const bool shared = item.expert < 0;
    const float* inputs[kRowsPerItem];
    const char* codes[kRowsPerItem];
    float* outputs[kRowsPerItem];
    for (int r = 0; r < item.count; ++r) {
      const int pair = shared ? item.first + r : routing.order[item.first + r];
      inputs[r] = shared ? shared_h.row(pair) : h.row(pair);
      codes[r] = shared ? shared_codes.data() + pair * quantized_row_bytes(shared_width)
                        : h_codes.data() + pair * quantized_row_bytes(width);
      outputs[r] = (shared ? shared_y.row(pair) : y.row(pair)) + item.panel * kPanelRows;
    }
    const Panels down = shared ? w.shared_down_proj.view() : w.experts.down_view(item.expert);
    kernels_.matmul({from_panel(down, item.panel), item.panels, hidden - item.panel * kPanelRows,
                     shared ? shared_width : width, inputs, outputs, item.count, false, codes});
  });

  auto out = std::make_unique<Tensor>(tokens, hidden);
  constexpr int kCombineRows = 16;
  parallel_for(divide_up(tokens, kCombineRows), static_cast<int64_t>(tokens) * hidden * (k + 1), [&](int item) {
    const int last = std::min(tokens, (item + 1) * kCombineRows);
    for (int t = item * kCombineRows; t < last; ++t) {
      const float* parts[kMaxTopK];
      for (int j = 0; j < k; ++j) parts[j] = y.row(t * k + j);
      kernels_.combine(parts, routing.weight.data() + static_cast<std::size_t>(t) * k, k, shared_y.row(t),
                       shared_gate.row(t)[0], hidden, out->row(t));
    }
  });
  return out;
}

}  // namespace sterna
