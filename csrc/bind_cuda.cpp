// The operators of lqray for CUDA tensors, through torch's stable ABI: checks, memory, device and stream; the work is
// quantize_cuda's. Nothing here waits for the device, so that CUDA graphs may capture it.
#include <tuple>

#include "bind_cuda.h"

#ifndef LQRAY_CUDA_ARCHITECTURES
#define LQRAY_CUDA_ARCHITECTURES ""  // lqray/kernels/build.py names them
#endif

namespace lqray::bind {

namespace {

cuda::DeviceLevels levels_of(const Tensor& levels, int64_t bits) {
  return cuda::DeviceLevels{static_cast<const float*>(levels.const_data_ptr()), static_cast<int>(levels.numel()),
                            static_cast<int>(bits)};
}

Tensor bucket_norms_cuda(const Tensor& x, int64_t bucket_size, std::string norm) {
  check_input("bucket_norms", x, bucket_size);
  const DeviceGuard guard(x.get_device_index());
  const Tensor flat = dense(x);
  Tensor norms = empty(x, {ceil_divide(x.numel(), bucket_size)}, ScalarType::Float);
  Tensor scratch = empty(x, {cuda::scratch_bytes(x.numel(), bucket_size)}, ScalarType::Byte);
  check_launch("bucket_norms",
               cuda::bucket_norms(input_of("bucket_norms", flat), bucket_size, norm_of("bucket_norms", norm, x.numel(), bucket_size),
                                  scratch.mutable_data_ptr(), static_cast<float*>(norms.mutable_data_ptr()), stream_of(x)));
  return norms;
}

std::tuple<Tensor, Tensor, Tensor> bucket_statistics_cuda(const Tensor& x, int64_t bucket_size, std::string norm) {
  check_input("bucket_statistics", x, bucket_size);
  const DeviceGuard guard(x.get_device_index());
  const Tensor flat = dense(x);
  const int64_t buckets = ceil_divide(x.numel(), bucket_size);
  Tensor norms = empty(x, {buckets}, ScalarType::Double), means = empty(x, {buckets}, ScalarType::Double);
  Tensor sigmas = empty(x, {buckets}, ScalarType::Double);
  check_launch("bucket_statistics",
               cuda::bucket_statistics(input_of("bucket_statistics", flat), bucket_size,
                                       norm_of("bucket_statistics", norm, x.numel(), bucket_size),
                                       static_cast<double*>(norms.mutable_data_ptr()),
                                       static_cast<double*>(means.mutable_data_ptr()),
                                       static_cast<double*>(sigmas.mutable_data_ptr()), stream_of(x)));
  return {norms, means, sigmas};
}

Tensor encode_cuda(const Tensor& x, const Tensor& norms, const Tensor& levels, int64_t bits, int64_t bucket_size,
                   int64_t seed, int64_t offset) {
  check_input("encode", x, bucket_size);
  check_levels("encode", levels, x, bits);
  const int64_t n = x.numel();
  check_norms("encode", norms, x, bucket_size);
  const DeviceGuard guard(x.get_device_index());
  const Tensor flat = dense(x), flat_norms = dense(norms), flat_levels = dense(levels);
  Tensor codes = empty(x, {code_bytes(n, bits)}, ScalarType::Byte);
  check_launch("encode", cuda::encode(input_of("encode", flat), static_cast<const float*>(flat_norms.const_data_ptr()),
                                      levels_of(flat_levels, bits), bucket_size, static_cast<uint64_t>(seed),
                                      static_cast<uint64_t>(offset), static_cast<uint32_t*>(codes.mutable_data_ptr()),
                                      stream_of(x)));
  return codes;
}

Tensor encode_fused_cuda(const Tensor& x, const Tensor& levels, int64_t bits, int64_t bucket_size, std::string norm,
                         int64_t seed, int64_t offset) {
  check_input("encode_fused", x, bucket_size);
  check_levels("encode_fused", levels, x, bits);
  const DeviceGuard guard(x.get_device_index());
  const Tensor flat = dense(x), flat_levels = dense(levels);
  const int64_t n = x.numel(), head = norm_bytes(n, bucket_size);
  Tensor payload = empty(x, {head + code_bytes(n, bits)}, ScalarType::Byte);
  Tensor scratch = empty(x, {cuda::scratch_bytes_fused(n, bucket_size)}, ScalarType::Byte);
  uint8_t* bytes = static_cast<uint8_t*>(payload.mutable_data_ptr());
  check_launch("encode_fused",
               cuda::encode_fused(input_of("encode_fused", flat), levels_of(flat_levels, bits), bucket_size,
                                  norm_of("encode_fused", norm, x.numel(), bucket_size), static_cast<uint64_t>(seed),
                                  static_cast<uint64_t>(offset), scratch.mutable_data_ptr(),
                                  reinterpret_cast<float*>(bytes),
                                  reinterpret_cast<uint32_t*>(bytes + head), stream_of(x)));
  return payload;
}

Tensor decode_cuda(const Tensor& payload, const Tensor& levels, int64_t n, int64_t bits, int64_t bucket_size) {
  check_payload("decode", payload, 1, n, bits, bucket_size);
  check_levels("decode", levels, payload, bits);
  const DeviceGuard guard(payload.get_device_index());
  const Tensor flat = aligned(dense(payload)), flat_levels = dense(levels);
  Tensor out = empty(payload, {n}, ScalarType::Float);
  check_launch("decode", cuda::decode(static_cast<const uint8_t*>(flat.const_data_ptr()), 1, 0,
                                      norm_bytes(n, bucket_size), levels_of(flat_levels, bits), n, bucket_size, 1.0f,
                                      true, nullptr, static_cast<float*>(out.mutable_data_ptr()),
                                      stream_of(payload)));
  return out;
}

Tensor decode_sum_cuda(const Tensor& payloads, const Tensor& levels, int64_t n, int64_t bits, int64_t bucket_size,
                       double scale, std::optional<Tensor> add) {
  check_payload("decode_sum", payloads, 2, n, bits, bucket_size);
  check_levels("decode_sum", levels, payloads, bits);
  const float factor = checked_scale(scale);
  const std::optional<Tensor> base = checked_add(add, payloads, n);
  const float* from = base ? static_cast<const float*>(base->const_data_ptr()) : nullptr;
  const DeviceGuard guard(payloads.get_device_index());
  // Rows may be parts of longer payloads, whose lengths are whole words; what is not so is copied first.
  const bool in_place = payloads.numel() == 0 || (payloads.stride(1) == 1 && payloads.stride(0) % 4 == 0);
  const Tensor rows = aligned(in_place ? payloads : dense(payloads)), flat_levels = dense(levels);
  Tensor out = empty(payloads, {n}, ScalarType::Float);
  check_launch("decode_sum",
               cuda::decode(static_cast<const uint8_t*>(rows.const_data_ptr()), rows.size(0), rows.stride(0),
                            norm_bytes(n, bucket_size), levels_of(flat_levels, bits), n, bucket_size,
                            factor, false, from, static_cast<float*>(out.mutable_data_ptr()),
                            stream_of(payloads)));
  return out;
}

Tensor hadamard_cuda(const Tensor& x, int64_t block_size, int64_t seed, int64_t offset, bool inverse) {
  check_blocks(x, block_size);
  const DeviceGuard guard(x.get_device_index());
  const Tensor flat = dense(x);
  Tensor out = empty(x, {x.numel()}, ScalarType::Float);
  check_launch("hadamard", cuda::hadamard(input_of("hadamard", flat), x.numel(), block_size, static_cast<uint64_t>(seed),
                                          static_cast<uint64_t>(offset), inverse,
                                          static_cast<float*>(out.mutable_data_ptr()), stream_of(x)));
  return out;
}

Tensor encode_rotated_cuda(const Tensor& x, const Tensor& levels, int64_t bits, int64_t bucket_size, std::string norm,
                           int64_t seed, int64_t offset, int64_t rotation) {
  check_rotated(x, bucket_size);
  check_levels("encode_rotated", levels, x, bits);
  const DeviceGuard guard(x.get_device_index());
  const Tensor flat = dense(x), flat_levels = dense(levels);
  const int64_t n = padded(x.numel(), bucket_size), head = norm_bytes(n, bucket_size);
  Tensor payload = empty(x, {head + code_bytes(n, bits)}, ScalarType::Byte);
  Tensor scratch = empty(x, {cuda::scratch_bytes_rotated(n, bucket_size)}, ScalarType::Byte);
  uint8_t* bytes = static_cast<uint8_t*>(payload.mutable_data_ptr());
  check_launch("encode_rotated",
               cuda::encode_rotated(input_of("encode_rotated", flat), n, levels_of(flat_levels, bits), bucket_size,
                                    norm_of("encode_rotated", norm, n, bucket_size), static_cast<uint64_t>(seed),
                                    static_cast<uint64_t>(offset), static_cast<uint64_t>(rotation),
                                    scratch.mutable_data_ptr(), reinterpret_cast<float*>(bytes),
                                    reinterpret_cast<uint32_t*>(bytes + head), stream_of(x)));
  return payload;
}

}  // namespace

}  // namespace lqray::bind

STABLE_TORCH_LIBRARY_IMPL(lqray, CUDA, m) {
  m.impl("bucket_norms", TORCH_BOX(&lqray::bind::bucket_norms_cuda));
  m.impl("bucket_statistics", TORCH_BOX(&lqray::bind::bucket_statistics_cuda));
  m.impl("encode", TORCH_BOX(&lqray::bind::encode_cuda));
  m.impl("encode_fused", TORCH_BOX(&lqray::bind::encode_fused_cuda));
  m.impl("decode", TORCH_BOX(&lqray::bind::decode_cuda));
  m.impl("decode_sum", TORCH_BOX(&lqray::bind::decode_sum_cuda));
  m.impl("hadamard", TORCH_BOX(&lqray::bind::hadamard_cuda));
  m.impl("encode_rotated", TORCH_BOX(&lqray::bind::encode_rotated_cuda));
}

// What the kernels were compiled for, of nvcc's names: "sm_80" (machine code), "compute_90" (PTX), with spaces between.
extern "C" __attribute__((visibility("default"))) const char* lqray_cuda_architectures() {
  return LQRAY_CUDA_ARCHITECTURES;
}
