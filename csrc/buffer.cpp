#include "buffer.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

namespace sterna {
namespace {

constexpr std::size_t kSmallest = 256;
constexpr std::size_t kLargestKept = std::size_t{1} << 26;
constexpr std::size_t kMostKept = std::size_t{1} << 28;
constexpr std::size_t kHugePage = std::size_t{1} << 21;
constexpr int kClasses = 27;

std::atomic<bool> filling{false};

struct Shelf {
  std::mutex mutex;
  std::vector<void*> free[kClasses];
  std::size_t kept = 0;
};

// Never destroyed: tensors may be freed by the interpreter after static destructors have run.
Shelf& shelf() {
  static Shelf* instance = new Shelf;
  return *instance;
}

std::size_t rounded(std::size_t bytes) {
  if (bytes > kLargestKept) return (bytes + kHugePage - 1) / kHugePage * kHugePage;
  std::size_t size = kSmallest;
  while (size < bytes) size *= 2;
  return size;
}

int class_of(std::size_t size) { return __builtin_ctzll(size); }

void* allocate(std::size_t size) {
  const std::size_t alignment = size >= kHugePage ? kHugePage : 64;
  void* memory = std::aligned_alloc(alignment, size);
  if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  // Advice only: fewer misses of the address cache where the system has pages to spare.
  if (size >= kHugePage) madvise(memory, size, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace

void set_fill_nan(bool on) { filling.store(on); }

bool fill_nan() { return filling.load(std::memory_order_relaxed); }

void* take_memory(std::size_t bytes) {
  const std::size_t size = rounded(bytes);
  void* memory = nullptr;
  if (size <= kLargestKept) {
    Shelf& s = shelf();
    std::lock_guard<std::mutex> lock(s.mutex);
    std::vector<void*>& list = s.free[class_of(size)];
    if (!list.empty()) {
      memory = list.back();
      list.pop_back();
      s.kept -= size;
    }
  }
  if (memory == nullptr) memory = allocate(size);
  // All bits set is a NaN as float32 and as bfloat16.
  if (fill_nan()) std::memset(memory, 0xff, size);
  return memory;
}

void return_memory(void* memory, std::size_t bytes) {
  const std::size_t size = rounded(bytes);
  if (size <= kLargestKept) {
    Shelf& s = shelf();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (s.kept + size <= kMostKept) {
      s.free[class_of(size)].push_back(memory);
      s.kept += size;
      return;
    }
  }
  std::free(memory);
}

}  // namespace sterna
