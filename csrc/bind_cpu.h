// What the bindings of CPU operators share: threads, and pointers into tensors.
#pragma once

#include <torch/csrc/stable/device.h>

#include <algorithm>
#include <tuple>

#include "bind.h"
#include "quantize_cpu.h"

namespace lqray::bind {

constexpr int64_t kGrain = 1 << 15;  // coordinates that are worth a thread

// Share [0, units) of `size` coordinates each among torch's threads.
template <typename F>
void share(int64_t units, int64_t size, const F& work) {
  if (units > 0) torch::stable::parallel_for(0, units, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)), work);
}

inline cpu::Input input_of(const char* op, const Tensor& x) {
  return cpu::Input{x.const_data_ptr(), dtype_of(op, x), x.numel()};
}

inline uint8_t* bytes_of(const Tensor& x) { return static_cast<uint8_t*>(x.mutable_data_ptr()); }
inline const uint8_t* const_bytes_of(const Tensor& x) { return static_cast<const uint8_t*>(x.const_data_ptr()); }

}  // namespace lqray::bind
