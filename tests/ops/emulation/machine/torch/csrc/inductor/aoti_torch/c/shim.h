// torch's, with a stream, which torch declares only where it is built for CUDA: the machine's.
#pragma once
#include_next <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "machine.h"

inline AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = emulated::current_stream();
  return AOTI_TORCH_SUCCESS;
}
