#include <atomic>
#include <chrono>

#include "ops/ops.h"
#include "thread_pool.h"

namespace sterna {
namespace {

template <class F>
double seconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double Ops::read_bandwidth(int64_t bytes) const {
  constexpr int64_t kPiece = int64_t{1} << 20;
  const int pieces = static_cast<int>(bytes / kPiece);
  require(pieces > 0, "a bandwidth is measured over 1 MiB or more");
  Buffer<char> data(static_cast<std::size_t>(pieces * kPiece));
  std::memset(data.data(), 1, data.size());
  std::atomic<uint32_t> sum{0};
  const double time = seconds([&] {
    parallel_for(pieces, bytes, [&](int piece) { sum ^= kernels_.read_all(data.data() + piece * kPiece, kPiece); });
  });
  return static_cast<double>(pieces * kPiece) / time;
}

double Ops::integer_peak() const {
  constexpr int64_t kRounds = 200000;
  const int items = 8 * num_threads();
  std::atomic<int64_t> products{0};
  const double time = seconds([&] {
    parallel_for(items, items * kRounds, [&](int) { products += kernels_.integer_products(kRounds); });
  });
  return static_cast<double>(products) / time;
}

}  // namespace sterna
