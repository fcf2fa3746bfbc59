// CPU kernels: which of them this machine runs. The body of each is plain C++, compiled for every machine. Encode and
// decode, which decide the speed, are written for AVX2 and AVX-512 as well; the bodies of the others are compiled for
// AVX2, too. All give the same bytes.
#include "quantize_cpu.h"

#include <cstdlib>

#include "quantize_cpu_bodies.h"
#include "quantize_cpu_x86.h"

namespace lqray::cpu {

namespace {

Isa detect() {
  Isa best = Isa::portable;
#if LQRAY_X86
  if (__builtin_cpu_supports("avx2")) best = Isa::avx2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    best = Isa::avx512;
#endif
  const char* wanted = std::getenv("LQRAY_CPU_ISA");
  if (wanted && !std::strcmp(wanted, "portable")) return Isa::portable;
  if (wanted && !std::strcmp(wanted, "avx2")) return std::min(best, Isa::avx2);
  return best;
}

}  // namespace

Isa isa() {
  static const Isa found = detect();
  return found;
}

namespace {

// Each body once for every machine and once for AVX2 (which AVX-512 machines have too).
#if LQRAY_X86
#define LQRAY_VARIANTS(name, parameters, call)                     \
  void name##_portable parameters { call; }                        \
  LQRAY_AVX2 void name##_avx2 parameters { call; }
#define LQRAY_CALL(name, arguments) (isa() == Isa::portable ? name##_portable arguments : name##_avx2 arguments)
#else
#define LQRAY_VARIANTS(name, parameters, call) \
  void name##_portable parameters { call; }
#define LQRAY_CALL(name, arguments) name##_portable arguments
#endif

LQRAY_VARIANTS(norms, (Input x, int64_t bucket_size, NormOf norm, uint8_t* out, int64_t begin, int64_t end),
               with_reader(x, [&](auto reader) __attribute__((always_inline)) {
                 norms_body(reader, x.n, bucket_size, norm, out, begin, end);
               }))
LQRAY_VARIANTS(statistics,
               (Input x, int64_t bucket_size, NormOf norm, double* norms, double* means, double* sigmas, int64_t begin,
                int64_t end),
               with_reader(x, [&](auto reader) __attribute__((always_inline)) {
                 statistics_body(reader, x.n, bucket_size, norm, norms, means, sigmas, begin, end);
               }))
LQRAY_VARIANTS(signs,
               (Input x, int64_t n, uint64_t seed, uint64_t offset, float* out, int64_t begin, int64_t end),
               with_reader(x, [&](auto reader) __attribute__((always_inline)) {
                 signs_body(reader, x.n, n, seed, offset, out, begin, end);
               }))
LQRAY_VARIANTS(hadamard, (float* x, int64_t block_size, int64_t begin, int64_t end),
               hadamard_body(x, block_size, begin, end))

}  // namespace

Levels make_levels(const float* levels, int count, int bits) {
  Levels tables;
  tables.count = count;
  tables.bits = bits;
  for (int i = 0; i < kMaxLevels; ++i) {
    tables.inner[i] = i < count - 2 ? levels[i + 1] : std::numeric_limits<float>::quiet_NaN();
    const int cell = std::min(i, count - 2);
    tables.below[i] = levels[cell];
    tables.gap[i] = levels[cell + 1] - levels[cell];
    tables.value[i] = levels[std::min(i, count - 1)];
  }
  return tables;
}

void bucket_norms(Input x, int64_t bucket_size, NormOf norm, uint8_t* norms, int64_t begin, int64_t end) {
  LQRAY_CALL(norms, (x, bucket_size, norm, norms, begin, end));
}

void bucket_statistics(Input x, int64_t bucket_size, NormOf norm, double* norms, double* means, double* sigmas,
                       int64_t begin, int64_t end) {
  LQRAY_CALL(statistics, (x, bucket_size, norm, norms, means, sigmas, begin, end));
}

void encode(Input x, const uint8_t* norms, const Levels& levels, int64_t bucket_size, uint64_t seed, uint64_t offset,
            uint8_t* words, int64_t begin, int64_t end) {
#if LQRAY_X86
  if (isa() != Isa::portable)
    return (isa() == Isa::avx512 ? encode_avx512 : encode_avx2)(x, norms, levels, bucket_size, seed, offset, words,
                                                                begin, end);
#endif
  with_reader(x, [&](auto reader) {
    encode_body(reader, x.n, norms, levels, bucket_size, seed, offset, words, begin, end);
  });
}

void decode(Codes payload, const Levels& levels, int64_t n, int64_t bucket_size, float* out, int64_t begin,
            int64_t end) {
#if LQRAY_X86
  if (isa() != Isa::portable)
    return (isa() == Isa::avx512 ? decode_sum_avx512 : decode_sum_avx2)(payload.norms, 1, 0,
                                                                        payload.words - payload.norms, levels, n,
                                                                        bucket_size, 1.0f, nullptr, true, out, begin,
                                                                        end);
#endif
  decode_body(payload, levels, n, bucket_size, out, begin, end);
}

void decode_sum(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes, const Levels& levels,
                int64_t n, int64_t bucket_size, float scale, const float* add, float* out, int64_t begin, int64_t end) {
#if LQRAY_X86
  if (isa() != Isa::portable)
    return (isa() == Isa::avx512 ? decode_sum_avx512 : decode_sum_avx2)(payloads, count, stride, norm_bytes, levels, n,
                                                                        bucket_size, scale, add, false, out, begin,
                                                                        end);
#endif
  decode_sum_body(payloads, count, stride, norm_bytes, levels, n, bucket_size, scale, add, out, begin, end);
}

void apply_signs(Input x, int64_t n, uint64_t seed, uint64_t offset, float* out, int64_t begin, int64_t end) {
  LQRAY_CALL(signs, (x, n, seed, offset, out, begin, end));
}

void hadamard_blocks(float* x, int64_t block_size, int64_t begin, int64_t end) {
  LQRAY_CALL(hadamard, (x, block_size, begin, end));
}

void pack(const uint8_t* codes, int64_t n, int bits, uint8_t* words) {
  const int64_t whole = n / kGroup, rest = n % kGroup;
  const auto groups = [bits](const uint8_t* from, int64_t count, uint8_t* to) {
#if LQRAY_X86
    if (isa() != Isa::portable) return pack_avx2(from, count, bits, to);
#endif
    pack_body(from, count, bits, to);
  };
  groups(codes, whole, words);
  if (!rest) return;
  uint8_t tail[kGroup] = {};
  std::memcpy(tail, codes + whole * kGroup, static_cast<size_t>(rest));
  groups(tail, 1, words + 4 * whole * bits);
}

void unpack(const uint8_t* words, int64_t n, int bits, uint8_t* codes) {
  const int64_t whole = n / kGroup, rest = n % kGroup;
  const auto groups = [bits](const uint8_t* from, int64_t count, uint8_t* to) {
#if LQRAY_X86
    if (isa() != Isa::portable) return unpack_avx2(from, count, bits, to);
#endif
    unpack_body(from, count, bits, to);
  };
  groups(words, whole, codes);
  if (!rest) return;
  uint8_t tail[kGroup];
  groups(words + 4 * whole * bits, 1, tail);
  std::memcpy(codes + whole * kGroup, tail, static_cast<size_t>(rest));
}

const char* instruction_set() {
  switch (isa()) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace lqray::cpu
