// Kernels of slopes.h: which of them this machine runs.
#include "slopes_cpu.h"

namespace lqray::cpu {

Slopes make_slopes(const float* levels, const float* slopes, int count, int bits) {
  Slopes tables;
  tables.levels = make_levels(levels, count, bits);
  for (int i = 0; i < kMaxLevels; ++i) {
    const int cell = std::min(i, count - 2);
    tables.curve[i] = (slopes[cell] - slopes[cell + 1]) * 0.5f;
    tables.tilt[i] = slopes[std::min(i, count - 1)] * kUnit;
  }
  return tables;
}

void encode_sloped(Input x, const uint8_t* norms, const Slopes& slopes, int64_t bucket_size, const Noise& noise,
                   uint8_t* words, int64_t begin, int64_t end) {
#if LQRAY_X86
  if (isa() != Isa::portable)
    return (isa() == Isa::avx512 ? encode_sloped_avx512 : encode_sloped_avx2)(x, norms, slopes, bucket_size, noise,
                                                                              words, begin, end);
#endif
  with_reader(x, [&](auto reader) {
    encode_sloped_body(reader, x.n, norms, slopes, bucket_size, noise, words, begin, end);
  });
}

void decode_sloped(const SlopedRows& rows, const Slopes& slopes, int64_t n, int64_t bucket_size, uint64_t seed,
                   uint64_t offset, float scale, float* out, int64_t begin, int64_t end) {
#if LQRAY_X86
  if (isa() != Isa::portable)
    return (isa() == Isa::avx512 ? decode_sloped_avx512 : decode_sloped_avx2)(rows, slopes, n, bucket_size, seed,
                                                                              offset, scale, out, begin, end);
#endif
  decode_sloped_body(rows, slopes, n, bucket_size, seed, offset, scale, out, begin, end);
}

}  // namespace lqray::cpu
