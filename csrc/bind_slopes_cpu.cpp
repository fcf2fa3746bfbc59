// The operators of lqray/ops/slopes.py for CPU tensors: checks, memory, threads; the work is slopes.h's.
#include <cstring>
#include <vector>

#include "bind_cpu.h"
#include "slopes.h"

namespace lqray::bind {

namespace {

Slopes slopes_of(const char* op, const Tensor& levels, const Tensor& slopes, const Tensor& beside, int64_t bits) {
  check_levels(op, levels, beside, bits);
  STD_TORCH_CHECK(slopes.dim() == 1 && slopes.scalar_type() == ScalarType::Float && slopes.numel() == levels.numel(),
                  op, ": slopes must be float32 of ", levels.numel(), " elements, one for each level");
  check_device(op, "slopes", slopes, beside);
  const Tensor flat = checked_levels(op, levels), flat_slopes = dense(slopes);
  const float *level = floats_of(flat), *slope = floats_of(flat_slopes);
  const int count = static_cast<int>(flat.numel());
  bool fit = true;
  for (int i = 0; i < count; ++i) fit = fit && slope[i] >= 0.0f && std::isfinite(slope[i]);
  for (int i = 1; i < count; ++i)
    fit = fit && std::fabs((slope[i - 1] - slope[i]) * 0.5f) <= level[i] - level[i - 1];
  STD_TORCH_CHECK(fit, op, ": slopes must be at least 0, and of neighbours differ by no more than twice their gap");
  return cpu::make_slopes(level, slope, count, static_cast<int>(bits));
}

// given: norms in place of the buckets' own.
Tensor encode_noisy(const char* op, const Tensor& x, const Slopes& tables, int64_t bucket_size, NormOf norm,
                    const Noise& noise, const Tensor* given = nullptr) {
  const Tensor flat = dense(x);
  const cpu::Input input = input_of(op, flat);
  const int64_t head = norm_bytes(input.n, bucket_size);
  Tensor payload = empty(x, {head + code_bytes(input.n, tables.levels.bits)}, ScalarType::Byte);
  uint8_t *norms = bytes_of(payload), *words = norms + head;
  share_buckets(
      input.n, bucket_size,
      [&](int64_t begin, int64_t end) {
        if (given)
          std::memcpy(norms + 4 * begin, floats_of(*given) + begin, static_cast<size_t>(4 * (end - begin)));
        else
          cpu::bucket_norms(input, bucket_size, norm, norms, begin, end);
      },
      [&](int64_t begin, int64_t end) {
        cpu::encode_sloped(input, norms, tables, bucket_size, noise, words, begin, end);
      });
  return payload;
}

Tensor slopes_encode(const Tensor& x, const Tensor& levels, const Tensor& slopes, int64_t bits, int64_t bucket_size,
                     int64_t seed, int64_t offset, int64_t phase) {
  check_input("slopes_encode", x, bucket_size);
  STD_TORCH_CHECK(phase >= 0 && phase >> 32 == 0, "slopes_encode: phase is ", phase,
                  "; allowed: an unsigned 32-bit integer");
  const Slopes tables = slopes_of("slopes_encode", levels, slopes, x, bits);
  const Noise noise{static_cast<uint64_t>(seed), static_cast<uint64_t>(offset), static_cast<uint32_t>(phase), 0, 0, 0};
  return encode_noisy("slopes_encode", x, tables, bucket_size, NormOf{Norm::linf, 1.0f}, noise);
}

Tensor correlated_encode(const Tensor& x, const Tensor& levels, int64_t bits, int64_t bucket_size, std::string norm,
                         int64_t seed, int64_t offset, int64_t shared_seed, int64_t worker, int64_t workers,
                         std::optional<Tensor> norms) {
  const char* op = "correlated_encode";
  check_input(op, x, bucket_size);
  check_levels(op, levels, x, bits);
  STD_TORCH_CHECK(workers >= 2 && workers <= kMaxWorkers && worker >= 0 && worker < workers, op, ": worker ", worker,
                  " of ", workers, "; allowed: 2 to ", kMaxWorkers, " workers, counted from 0");
  const Tensor flat = checked_levels(op, levels);
  const std::vector<float> flatness(static_cast<size_t>(flat.numel()), 0.0f);
  const Slopes tables =
      cpu::make_slopes(floats_of(flat), flatness.data(), static_cast<int>(flat.numel()), static_cast<int>(bits));
  const Noise noise{static_cast<uint64_t>(seed),        static_cast<uint64_t>(offset), 0,
                    static_cast<uint64_t>(shared_seed), static_cast<uint32_t>(worker), static_cast<uint32_t>(workers)};
  const NormOf kind = norm_of(op, norm, x.numel(), bucket_size);
  if (!norms) return encode_noisy(op, x, tables, bucket_size, kind, noise);
  check_norms(op, *norms, x, bucket_size);
  const Tensor given = dense(*norms);
  return encode_noisy(op, x, tables, bucket_size, kind, noise, &given);
}

Tensor slopes_decode_sum(const Tensor& payloads, const Tensor& phases, const Tensor& levels, const Tensor& slopes,
                         int64_t n, int64_t bits, int64_t bucket_size, int64_t seed, int64_t offset, double scale) {
  const char* op = "slopes_decode_sum";
  check_payload(op, payloads, 2, n, bits, bucket_size);
  const Slopes tables = slopes_of(op, levels, slopes, payloads, bits);
  STD_TORCH_CHECK(phases.dim() == 1 && phases.scalar_type() == ScalarType::Int && phases.numel() == payloads.size(0),
                  op, ": phases must be int32 of ", payloads.size(0), " elements, one for each payload");
  check_device(op, "phases", phases, payloads);
  const float factor = checked_scale(scale);
  const Tensor rows = payloads.numel() == 0 || payloads.stride(1) == 1 ? payloads : dense(payloads);
  const Tensor flat_phases = dense(phases);
  Tensor out = empty(payloads, {n}, ScalarType::Float);
  const int64_t count = rows.size(0);
  const cpu::SlopedRows from{const_bytes_of(rows), static_cast<const int32_t*>(flat_phases.const_data_ptr()), count,
                             count > 1 ? rows.stride(0) : 0, norm_bytes(n, bucket_size)};
  float* to = static_cast<float*>(out.mutable_data_ptr());
  share(ceil_divide(n, kTile), kTile * count, [&](int64_t begin, int64_t end) {
    cpu::decode_sloped(from, tables, n, bucket_size, static_cast<uint64_t>(seed), static_cast<uint64_t>(offset), factor,
                       to, begin, end);
  });
  return out;
}

}  // namespace

}  // namespace lqray::bind

STABLE_TORCH_LIBRARY_IMPL(lqray, CPU, m) {
  m.impl("slopes_encode", TORCH_BOX(&lqray::bind::slopes_encode));
  m.impl("slopes_decode_sum", TORCH_BOX(&lqray::bind::slopes_decode_sum));
  m.impl("correlated_encode", TORCH_BOX(&lqray::bind::correlated_encode));
}
