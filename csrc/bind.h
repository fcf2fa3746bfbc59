// What the CPU and the CUDA binding share: memory, and checks that a caller of torch.ops.lqray cannot go around.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>

#include "rounding.h"

namespace lqray::bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t norm_bytes(int64_t n, int64_t bucket_size) { return 4 * ceil_divide(n, bucket_size); }
inline int64_t code_bytes(int64_t n, int64_t bits) { return 4 * bits * ceil_divide(n, kGroup); }

inline Dtype dtype_of(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    default:
      STD_TORCH_CHECK(false, op, ": x must be float32, float16 or bfloat16");
      return Dtype::f32;
  }
}

inline Norm norm_of(const char* op, const std::string& norm) {
  STD_TORCH_CHECK(norm == "l2" || norm == "linf", op, ": norm is '", norm, "'; allowed: 'l2', 'linf'");
  return norm == "l2" ? Norm::l2 : Norm::linf;
}

inline void check_input(const char* op, const Tensor& x, int64_t bucket_size) {
  STD_TORCH_CHECK(x.dim() == 1, op, ": x has ", x.dim(), " dimensions; allowed: 1");
  STD_TORCH_CHECK(bucket_size >= 1, op, ": bucket_size is ", bucket_size, "; allowed: at least 1");
}

inline void check_levels(const char* op, const Tensor& levels, const Tensor& beside, int64_t bits) {
  STD_TORCH_CHECK(bits >= 1 && bits <= 8, op, ": bits is ", bits, "; allowed: 1 to 8");
  STD_TORCH_CHECK(levels.dim() == 1 && levels.scalar_type() == ScalarType::Float && levels.numel() >= 2 &&
                      levels.numel() <= (1 << bits),
                  op, ": levels must be float32 of 2 to ", 1 << bits, " elements");
  STD_TORCH_CHECK(levels.is_cpu() == beside.is_cpu(), op, ": levels must be on the device of the data");
}

inline void check_payload(const char* op, const Tensor& payload, int64_t dimensions, int64_t n, int64_t bits,
                          int64_t bucket_size) {
  STD_TORCH_CHECK(n >= 0 && bucket_size >= 1 && bits >= 1 && bits <= 8, op, ": n, bits or bucket_size out of range");
  const int64_t size = norm_bytes(n, bucket_size) + code_bytes(n, bits);
  STD_TORCH_CHECK(payload.scalar_type() == ScalarType::Byte && payload.dim() == dimensions &&
                      payload.size(dimensions - 1) == size,
                  op, ": the payload must be uint8 of ", size, " bytes, which is what n=", n, ", bits=", bits,
                  ", bucket_size=", bucket_size, " make");
}

inline void check_norms(const Tensor& norms, const Tensor& x, int64_t bucket_size) {
  const int64_t buckets = ceil_divide(x.numel(), bucket_size);
  STD_TORCH_CHECK(norms.is_cpu() == x.is_cpu() && norms.dim() == 1 && norms.scalar_type() == ScalarType::Float &&
                      norms.numel() == buckets,
                  "encode: norms must be float32 of ", buckets, " elements, on the device of x");
}

inline void check_blocks(const Tensor& x, int64_t block_size) {
  check_input("hadamard", x, block_size);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && (block_size & (block_size - 1)) == 0 &&
                      x.numel() % block_size == 0,
                  "hadamard: x must be float32 and block_size a power of two that divides its length");
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, ScalarType dtype) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(size.begin(), size.size()), dtype);
}

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// What a decoded sum is added to, if anything, contiguous.
inline std::optional<Tensor> checked_add(const std::optional<Tensor>& add, const Tensor& payloads, int64_t n) {
  if (!add) return std::nullopt;
  STD_TORCH_CHECK(add->is_cpu() == payloads.is_cpu() && add->dim() == 1 && add->numel() == n &&
                      add->scalar_type() == ScalarType::Float,
                  "decode_sum: add must be float32 of ", n, " elements, on the device of the payloads");
  return dense(*add);
}

}  // namespace lqray::bind
