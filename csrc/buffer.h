// Aligned memory. Large freed pieces are kept and given out again: a pass asks for the same sizes in every layer, and
// fresh pages would cost more than the arithmetic.
#pragma once

#include <cstddef>
#include <utility>

namespace sterna {

void* take_memory(std::size_t bytes);
void return_memory(void* memory, std::size_t bytes);

// Fill every new buffer of activations with NaN, so that an element that is never written shows (tests).
void set_fill_nan(bool on);
bool fill_nan();

// Owns `count` elements of T, 64-byte aligned; contents undefined (NaN under set_fill_nan for floats).
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t count)
      : data_(static_cast<T*>(take_memory(count * sizeof(T)))), count_(count) {}
  // Memory of somebody else, who keeps it alive and unchanged; read only.
  static Buffer borrowed(const T* data, std::size_t count) {
    Buffer buffer;
    buffer.data_ = const_cast<T*>(data);
    buffer.count_ = count;
    buffer.owned_ = false;
    return buffer;
  }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)), owned_(other.owned_) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    std::swap(owned_, other.owned_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr && owned_) return_memory(data_, count_ * sizeof(T));
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  std::size_t count_ = 0;
  bool owned_ = true;
};

}  // namespace sterna
