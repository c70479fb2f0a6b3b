// One pool for the process. A job is a function of an item number; who computes an item never changes its result.
#pragma once

#include <cstdint>
#include <type_traits>

namespace sterna {

using ItemFunction = void (*)(void* context, int item);

// Threads that share a job, the calling one included.
int num_threads();
// Takes effect with the next job; threads is at least 1.
void set_num_threads(int threads);

// Runs items 0 … count - 1. While another thread's job is running, the caller does all its items itself.
void run_items(int count, ItemFunction function, void* context);

// Operations below which waking another thread costs more than it brings.
constexpr int64_t kSerialOperations = 30000;

// f(item) for every item; serial when the whole job, `operations` multiply-adds or so, is small.
template <class F>
void parallel_for(int count, int64_t operations, F&& f) {
  if (count <= 1 || operations < kSerialOperations || num_threads() == 1) {
    for (int i = 0; i < count; ++i) f(i);
    return;
  }
  run_items(count, [](void* context, int item) { (*static_cast<std::remove_reference_t<F>*>(context))(item); }, &f);
}

}  // namespace sterna
