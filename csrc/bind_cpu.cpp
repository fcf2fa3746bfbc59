// The operators of lqray for CPU tensors, through torch's stable ABI: checks, memory, threads; the work is quantize_cpu's.
#include <tuple>

#include "bind_cpu.h"

namespace lqray::bind {

namespace {

Tensor bucket_norms(const Tensor& x, int64_t bucket_size, std::string norm) {
  check_input("bucket_norms", x, bucket_size);
  const Tensor flat = dense(x);
  const cpu::Input input = input_of("bucket_norms", flat);
  const NormOf kind = norm_of("bucket_norms", norm, input.n, bucket_size);
  const int64_t buckets = ceil_divide(input.n, bucket_size);
  Tensor norms = empty(x, {buckets}, ScalarType::Float);
  share(buckets, bucket_size, [&](int64_t begin, int64_t end) {
    cpu::bucket_norms(input, bucket_size, kind, bytes_of(norms), begin, end);
  });
  return norms;
}

std::tuple<Tensor, Tensor, Tensor> bucket_statistics(const Tensor& x, int64_t bucket_size, std::string norm) {
  check_input("bucket_statistics", x, bucket_size);
  const Tensor flat = dense(x);
  const cpu::Input input = input_of("bucket_statistics", flat);
  const NormOf kind = norm_of("bucket_statistics", norm, input.n, bucket_size);
  const int64_t buckets = ceil_divide(input.n, bucket_size);
  Tensor norms = empty(x, {buckets}, ScalarType::Double), means = empty(x, {buckets}, ScalarType::Double);
  Tensor sigmas = empty(x, {buckets}, ScalarType::Double);
  share(buckets, bucket_size, [&](int64_t begin, int64_t end) {
    cpu::bucket_statistics(input, bucket_size, kind, static_cast<double*>(norms.mutable_data_ptr()),
                           static_cast<double*>(means.mutable_data_ptr()),
                           static_cast<double*>(sigmas.mutable_data_ptr()), begin, end);
  });
  return {norms, means, sigmas};
}

Tensor encode(const Tensor& x, const Tensor& norms, const Tensor& levels, int64_t bits, int64_t bucket_size,
              int64_t seed, int64_t offset) {
  check_input("encode", x, bucket_size);
  check_levels("encode", levels, x, bits);
  check_norms("encode", norms, x, bucket_size);
  const Tensor flat = dense(x), flat_norms = dense(norms);
  const cpu::Input input = input_of("encode", flat);
  const Levels tables = tables_of("encode", levels, bits);
  Tensor codes = empty(x, {code_bytes(input.n, bits)}, ScalarType::Byte);
  share(ceil_divide(input.n, kTile), kTile, [&](int64_t begin, int64_t end) {
    cpu::encode(input, const_bytes_of(flat_norms), tables, bucket_size, static_cast<uint64_t>(seed),
                static_cast<uint64_t>(offset), bytes_of(codes), begin, end);
  });
  return codes;
}

Tensor encode_fused(const Tensor& x, const Tensor& levels, int64_t bits, int64_t bucket_size, std::string norm,
                    int64_t seed, int64_t offset) {
  check_input("encode_fused", x, bucket_size);
  check_levels("encode_fused", levels, x, bits);
  const Tensor flat = dense(x);
  const cpu::Input input = input_of("encode_fused", flat);
  const NormOf kind = norm_of("encode_fused", norm, input.n, bucket_size);
  const Levels tables = tables_of("encode_fused", levels, bits);
  const int64_t head = norm_bytes(input.n, bucket_size);
  Tensor payload = empty(x, {head + code_bytes(input.n, bits)}, ScalarType::Byte);
  uint8_t *norms = bytes_of(payload), *words = norms + head;
  share_buckets(
      input.n, bucket_size,
      [&](int64_t begin, int64_t end) { cpu::bucket_norms(input, bucket_size, kind, norms, begin, end); },
      [&](int64_t begin, int64_t end) {
        cpu::encode(input, norms, tables, bucket_size, static_cast<uint64_t>(seed), static_cast<uint64_t>(offset),
                    words, begin, end);
      });
  return payload;
}

Tensor decode(const Tensor& payload, const Tensor& levels, int64_t n, int64_t bits, int64_t bucket_size) {
  check_payload("decode", payload, 1, n, bits, bucket_size);
  check_levels("decode", levels, payload, bits);
  const Tensor flat = dense(payload);
  const Levels tables = tables_of("decode", levels, bits);
  Tensor out = empty(payload, {n}, ScalarType::Float);
  const uint8_t* norms = const_bytes_of(flat);
  const cpu::Codes codes{norms, norms + norm_bytes(n, bucket_size)};
  float* to = static_cast<float*>(out.mutable_data_ptr());
  share(ceil_divide(n, kGroup), kGroup, [&](int64_t begin, int64_t end) {
    cpu::decode(codes, tables, n, bucket_size, to, begin, end);
  });
  return out;
}

Tensor decode_sum(const Tensor& payloads, const Tensor& levels, int64_t n, int64_t bits, int64_t bucket_size,
                  double scale, std::optional<Tensor> add) {
  check_payload("decode_sum", payloads, 2, n, bits, bucket_size);
  check_levels("decode_sum", levels, payloads, bits);
  const float factor = checked_scale(scale);
  const std::optional<Tensor> base = checked_add(add, payloads, n);
  const float* from = base ? static_cast<const float*>(base->const_data_ptr()) : nullptr;
  // Rows may be parts of longer payloads: only their own bytes must be next to each other.
  const Tensor rows = payloads.numel() == 0 || payloads.stride(1) == 1 ? payloads : dense(payloads);
  const Levels tables = tables_of("decode_sum", levels, bits);
  Tensor out = empty(payloads, {n}, ScalarType::Float);
  const uint8_t* bytes = const_bytes_of(rows);
  const int64_t count = rows.size(0), stride = count > 1 ? rows.stride(0) : 0;
  float* to = static_cast<float*>(out.mutable_data_ptr());
  share(ceil_divide(n, kGroup), kGroup * std::max<int64_t>(1, count), [&](int64_t begin, int64_t end) {
    cpu::decode_sum(bytes, count, stride, norm_bytes(n, bucket_size), tables, n, bucket_size,
                    factor, from, to, begin, end);
  });
  return out;
}

void turn_blocks(int64_t n, int64_t block_size, float* values) {
  share(n / block_size, block_size,
        [&](int64_t begin, int64_t end) { cpu::hadamard_blocks(values, block_size, begin, end); });
}

void sign(cpu::Input x, int64_t n, int64_t seed, int64_t offset, float* out) {
  share(ceil_divide(n, kSignTile), kSignTile, [&](int64_t begin, int64_t end) {
    cpu::apply_signs(x, n, static_cast<uint64_t>(seed), static_cast<uint64_t>(offset), out, begin, end);
  });
}

Tensor hadamard(const Tensor& x, int64_t block_size, int64_t seed, int64_t offset, bool inverse) {
  check_blocks(x, block_size);
  const Tensor flat = dense(x);
  const int64_t n = flat.numel();
  Tensor out = empty(x, {n}, ScalarType::Float);
  const float* from = static_cast<const float*>(flat.const_data_ptr());
  float* to = static_cast<float*>(out.mutable_data_ptr());
  if (inverse) {
    share(n / block_size, block_size, [&](int64_t begin, int64_t end) {
      std::copy(from + begin * block_size, from + end * block_size, to + begin * block_size);
    });
    turn_blocks(n, block_size, to);
    sign(cpu::Input{to, Dtype::f32, n}, n, seed, offset, to);
  } else {
    sign(cpu::Input{from, Dtype::f32, n}, n, seed, offset, to);
    turn_blocks(n, block_size, to);
  }
  return out;
}

Tensor encode_rotated(const Tensor& x, const Tensor& levels, int64_t bits, int64_t bucket_size, std::string norm,
                      int64_t seed, int64_t offset, int64_t rotation) {
  check_rotated(x, bucket_size);
  check_levels("encode_rotated", levels, x, bits);
  norm_of("encode_rotated", norm, x.numel(), bucket_size);
  const Tensor flat = dense(x);
  const int64_t n = padded(x.numel(), bucket_size);
  Tensor rotated = empty(x, {n}, ScalarType::Float);
  float* to = static_cast<float*>(rotated.mutable_data_ptr());
  sign(input_of("encode_rotated", flat), n, rotation, offset, to);
  turn_blocks(n, bucket_size, to);
  return encode_fused(rotated, levels, bits, bucket_size, norm, seed, offset);
}

}  // namespace

}  // namespace lqray::bind

STABLE_TORCH_LIBRARY_IMPL(lqray, CPU, m) {
  m.impl("bucket_norms", TORCH_BOX(&lqray::bind::bucket_norms));
  m.impl("bucket_statistics", TORCH_BOX(&lqray::bind::bucket_statistics));
  m.impl("encode", TORCH_BOX(&lqray::bind::encode));
  m.impl("encode_fused", TORCH_BOX(&lqray::bind::encode_fused));
  m.impl("decode", TORCH_BOX(&lqray::bind::decode));
  m.impl("decode_sum", TORCH_BOX(&lqray::bind::decode_sum));
  m.impl("hadamard", TORCH_BOX(&lqray::bind::hadamard));
  m.impl("encode_rotated", TORCH_BOX(&lqray::bind::encode_rotated));
}

extern "C" __attribute__((visibility("default"))) const char* lqray_cpu_instruction_set() {
  return lqray::cpu::instruction_set();
}
