// What the bindings of CUDA kernels share: torch's device and stream, errors of launches, and memory.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "bind.h"
#include "quantize_cuda.h"

namespace lqray::bind {

using torch::stable::accelerator::DeviceGuard;

inline void* stream_of(const Tensor& x) {
  void* stream = nullptr;
  // torch's own macro for this check has another name in each of its releases.
  const int32_t error = aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream);
  STD_TORCH_CHECK(error == 0, "lqray: torch has no current CUDA stream for device ", x.get_device_index());
  return stream;
}

inline void check_launch(const char* op, int error) {
  STD_TORCH_CHECK(error == 0, op, ": CUDA launch failed: ", cuda::error_text(error));
}

inline cuda::Input input_of(const char* op, const Tensor& x) {
  return cuda::Input{x.const_data_ptr(), dtype_of(op, x), x.numel()};
}

// The kernels read float32 norms and uint32 words where they lie; a view that starts at an odd byte is copied first.
inline Tensor aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 4 ? torch::stable::clone(x) : x;
}

}  // namespace lqray::bind
