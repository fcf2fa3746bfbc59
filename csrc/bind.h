// What the CPU and the CUDA binding share: memory, and checks that a caller of torch.ops.lqray cannot go around.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "rounding.h"

#ifndef LQRAY_SOURCES
#define LQRAY_SOURCES "unknown"  // lqray/kernels/build.py says it
#endif

namespace lqray::bind {

// What the library was built from, read from its file before it is loaded: lqray/kernels/libraries.py.
[[gnu::used]] static const char kSources[] = "lqray sources " LQRAY_SOURCES;

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

// Of n coordinates in buckets; lqray/ops/reference.py.
inline NormOf norm_of(const char* op, const std::string& norm, int64_t n, int64_t bucket_size) {
  STD_TORCH_CHECK(norm == "l2" || norm == "linf" || norm == "rms", op, ": norm is '", norm,
                  "'; allowed: 'l2', 'linf', 'rms'");
  const int64_t left = n % bucket_size;
  if (norm != "rms" || left <= 1) return NormOf{norm == "linf" ? Norm::linf : Norm::l2, 1.0f};
  const double longer = static_cast<double>(bucket_size) / static_cast<double>(left);
  return NormOf{Norm::l2, static_cast<float>(std::sqrt(longer))};
}

inline void check_coordinates(const char* op, int64_t n) {
  STD_TORCH_CHECK(n >= 0 && n <= kMaxCoordinates, op, ": n is ", n, "; allowed: 0 to 2**48 coordinates");
}

inline void check_bits(const char* op, int64_t bits) {
  STD_TORCH_CHECK(bits >= 1 && bits <= 8, op, ": bits is ", bits, "; allowed: 1 to 8");
}

inline void check_bucket_size(const char* op, int64_t bucket_size) {
  STD_TORCH_CHECK(bucket_size >= 1 && bucket_size <= kMaxBucket, op, ": bucket_size is ", bucket_size,
                  "; allowed: at least 1 and at most 2**30");
}

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "another device, ") + std::to_string(tensor.get_device_index());
}

// Of the same kind and index: a kernel on cuda:0 does not read what lies on cuda:1.
inline void check_device(const char* op, const char* name, const Tensor& tensor, const Tensor& beside) {
  const bool same = beside.is_cpu() ? tensor.is_cpu() : tensor.device() == beside.device();
  STD_TORCH_CHECK(same, op, ": ", name, " is on ", device_name(tensor), "; allowed: ", device_name(beside),
                  ", where the data are");
}

inline void check_input(const char* op, const Tensor& x, int64_t bucket_size) {
  STD_TORCH_CHECK(x.dim() == 1, op, ": x has ", x.dim(), " dimensions; allowed: 1");
  dtype_of(op, x);
  check_coordinates(op, x.numel());
  check_bucket_size(op, bucket_size);
}

inline void check_levels(const char* op, const Tensor& levels, const Tensor& beside, int64_t bits) {
  check_bits(op, bits);
  STD_TORCH_CHECK(levels.dim() == 1 && levels.scalar_type() == ScalarType::Float && levels.numel() >= 2 &&
                      levels.numel() <= (1 << bits),
                  op, ": levels must be float32 of 2 to ", 1 << bits, " elements");
  check_device(op, "levels", levels, beside);
}

inline void check_payload(const char* op, const Tensor& payload, int64_t dimensions, int64_t n, int64_t bits,
                          int64_t bucket_size) {
  check_coordinates(op, n);
  check_bits(op, bits);
  check_bucket_size(op, bucket_size);
  const int64_t size = norm_bytes(n, bucket_size) + code_bytes(n, bits);
  STD_TORCH_CHECK(payload.scalar_type() == ScalarType::Byte && payload.dim() == dimensions &&
                      payload.size(dimensions - 1) == size,
                  op, ": the payload must be uint8 of ", size, " bytes, which is what n=", n, ", bits=", bits,
                  ", bucket_size=", bucket_size, " make");
  STD_TORCH_CHECK(dimensions == 1 || payload.size(0) >= 1, op, ": the payload has no row; allowed: at least one");
}

inline void check_norms(const char* op, const Tensor& norms, const Tensor& x, int64_t bucket_size) {
  const int64_t buckets = ceil_divide(x.numel(), bucket_size);
  STD_TORCH_CHECK(norms.dim() == 1 && norms.scalar_type() == ScalarType::Float && norms.numel() == buckets,
                  op, ": norms must be float32 of ", buckets, " elements, one norm for each bucket");
  check_device(op, "norms", norms, x);
}

inline void check_blocks(const Tensor& x, int64_t block_size) {
  STD_TORCH_CHECK(x.dim() == 1 && x.scalar_type() == ScalarType::Float, "hadamard: x must be float32 of 1 dimension");
  check_coordinates("hadamard", x.numel());
  STD_TORCH_CHECK(block_size >= 1 && block_size <= kMaxBucket && (block_size & (block_size - 1)) == 0 &&
                      x.numel() % block_size == 0,
                  "hadamard: block_size is ", block_size, " for ", x.numel(),
                  " coordinates; allowed: a power of two that divides their number, at most 2**30");
}

// What encode_rotated is given: x as of check_input, and buckets as of a Hadamard transform.
inline void check_rotated(const Tensor& x, int64_t bucket_size) {
  check_input("encode_rotated", x, bucket_size);
  STD_TORCH_CHECK((bucket_size & (bucket_size - 1)) == 0, "encode_rotated: bucket_size is ", bucket_size,
                  "; allowed: a power of two");
}

inline int64_t padded(int64_t n, int64_t bucket_size) { return ceil_divide(n, bucket_size) * bucket_size; }

// The factor of a decoded sum.
inline float checked_scale(double scale) {
  STD_TORCH_CHECK(std::fabs(scale) <= std::numeric_limits<float>::max(), "decode_sum: scale is ", scale,
                  "; allowed: a finite float32");
  return static_cast<float>(scale);
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, ScalarType dtype) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(size.begin(), size.size()), dtype);
}

inline Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// What a decoded sum is added to, if anything, contiguous.
inline std::optional<Tensor> checked_add(const std::optional<Tensor>& add, const Tensor& payloads, int64_t n) {
  if (!add) return std::nullopt;
  STD_TORCH_CHECK(add->dim() == 1 && add->numel() == n && add->scalar_type() == ScalarType::Float,
                  "decode_sum: add must be float32 of ", n, " elements");
  check_device("decode_sum", "add", *add, payloads);
  return dense(*add);
}

}  // namespace lqray::bind
