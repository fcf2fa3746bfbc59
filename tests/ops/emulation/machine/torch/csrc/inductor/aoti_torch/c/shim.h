// torch's, with a stream, which torch declares only where it is built for CUDA. The emulated one is of no use to anyone.
#pragma once
#include_next <torch/csrc/inductor/aoti_torch/c/shim.h>

inline AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
