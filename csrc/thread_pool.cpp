#include "thread_pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace sterna {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Longer than the gap between two operations of a decode step, much shorter than a scheduler's time slice.
constexpr auto kSpinTime = std::chrono::microseconds(100);
constexpr uint64_t kEpoch = uint64_t{1} << 32;

// `ticket_` holds the job's number (high half) and the items not yet taken (low half). A worker that takes an item by
// compare-and-swap knows that the job fields it read before belong to it: they change only when all items are done.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int count, ItemFunction function, void* context) {
    function_.store(function, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    pending_.store(count, std::memory_order_relaxed);
    const uint64_t epoch = (ticket_.load(std::memory_order_relaxed) / kEpoch + 1) * kEpoch;
    ticket_.store(epoch + static_cast<uint64_t>(count));
    if (sleepers_.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      wake_.notify_all();
    }
    take_items();
    for (int spins = 0; pending_.load(std::memory_order_acquire) > 0; ++spins) {
      relax();
      if (spins % 1024 == 1023) std::this_thread::yield();
    }
  }

 private:
  bool take_items() {
    bool worked = false;
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (ticket % kEpoch != 0) {
      const ItemFunction function = function_.load(std::memory_order_relaxed);
      void* context = context_.load(std::memory_order_relaxed);
      if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      function(context, static_cast<int>(ticket % kEpoch) - 1);
      pending_.fetch_sub(1, std::memory_order_acq_rel);
      worked = true;
      ticket = ticket_.load(std::memory_order_acquire);
    }
    return worked;
  }

  bool idle() const { return ticket_.load() % kEpoch == 0 && !stop_.load(); }

  void work() {
    auto since = std::chrono::steady_clock::now();
    while (!stop_.load(std::memory_order_relaxed)) {
      if (take_items()) since = std::chrono::steady_clock::now();
      for (int i = 0; i < 64 && idle(); ++i) relax();
      if (!idle() || std::chrono::steady_clock::now() - since < kSpinTime) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [this] { return !idle(); });
      sleepers_.fetch_sub(1);
      since = std::chrono::steady_clock::now();
    }
  }

  std::atomic<uint64_t> ticket_{0};
  std::atomic<int> pending_{0};
  std::atomic<ItemFunction> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// Held by the thread whose job runs. Never destroyed: workers may outlive static destruction.
struct Shared {
  std::mutex busy;
  Pool* pool = nullptr;
};
Shared* shared = new Shared;
std::atomic<int> wanted_threads{1};

// A fork copies only the calling thread: the child starts with fresh locks and no pool.
void forget_pool_in_child() { shared = new Shared; }

const int fork_handler = pthread_atfork(nullptr, nullptr, forget_pool_in_child);

}  // namespace

int num_threads() { return wanted_threads.load(std::memory_order_relaxed); }

void set_num_threads(int threads) { wanted_threads.store(threads); }

void run_items(int count, ItemFunction function, void* context) {
  std::unique_lock<std::mutex> lock(shared->busy, std::try_to_lock);
  if (!lock.owns_lock()) {
    for (int i = 0; i < count; ++i) function(context, i);
    return;
  }
  Pool*& pool = shared->pool;
  if (pool != nullptr && pool->threads() != num_threads()) {
    delete pool;
    pool = nullptr;
  }
  if (pool == nullptr) pool = new Pool(num_threads());
  pool->run(count, function, context);
}

}  // namespace sterna
