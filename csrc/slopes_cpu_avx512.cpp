// Kernels of slopes.h for AVX-512.
#include "slopes_cpu.h"

#if LQRAY_X86

#include "noise_cpu_avx512.h"

namespace lqray::cpu {

namespace {

struct Tables {
  __m512 below, gap, curve;
};

// Codes of 16 coordinates.
LQRAY_AVX512 inline __m512i sloped_codes(__m512 value, __m512i word, const Slopes& slopes, const Tables& tables) {
  const Levels& levels = slopes.levels;
  const __m512i one = _mm512_set1_epi32(1);
  const __m512 unit = _mm512_set1_ps(1.0f);
  const __m512 r = _mm512_min_ps(unit, value);  // NaN stays
  __m512i cell = _mm512_setzero_si512();
  __m512 below, gap, curve;
  if (levels.count <= 16) {
    for (int level = 0; level < levels.count - 2; ++level) {
      const __mmask16 above = _mm512_cmp_ps_mask(r, _mm512_set1_ps(levels.inner[level]), _CMP_GE_OQ);
      cell = _mm512_mask_add_epi32(cell, above, cell, one);
    }
    below = _mm512_permutexvar_ps(cell, tables.below);
    gap = _mm512_permutexvar_ps(cell, tables.gap);
    curve = _mm512_permutexvar_ps(cell, tables.curve);
  } else {
    for (int step = 1 << (levels.bits - 1); step > 0; step >>= 1) {
      const __m512i probe = _mm512_add_epi32(cell, _mm512_set1_epi32(step - 1));
      const __mmask16 above = _mm512_cmp_ps_mask(r, _mm512_i32gather_ps(probe, levels.inner, 4), _CMP_GE_OQ);
      cell = _mm512_mask_add_epi32(cell, above, cell, _mm512_set1_epi32(step));
    }
    below = _mm512_i32gather_ps(cell, levels.below, 4);
    gap = _mm512_i32gather_ps(cell, levels.gap, 4);
    curve = _mm512_i32gather_ps(cell, slopes.curve, 4);
  }
  const __m512 u = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(word, 8)), _mm512_set1_ps(kUnit));
  const __m512 slack = _mm512_mul_ps(curve, _mm512_sub_ps(unit, u));
  const __m512 step = _mm512_mul_ps(u, _mm512_add_ps(gap, slack));
  const __mmask16 up = _mm512_cmp_ps_mask(step, _mm512_sub_ps(r, below), _CMP_LT_OQ);
  return _mm512_mask_add_epi32(cell, up, cell, one);
}

template <typename Reader>
LQRAY_AVX512 void encode_tiles(Reader x, int64_t n, const uint8_t* norms, const Slopes& slopes, int64_t bucket_size,
                               const Noise& noise, uint8_t* words, int64_t begin, int64_t end) {
  const int bits = slopes.levels.bits;
  const Tables tables{_mm512_loadu_ps(slopes.levels.below), _mm512_loadu_ps(slopes.levels.gap),
                      _mm512_loadu_ps(slopes.curve)};
  alignas(64) float r[kTile];
  alignas(64) uint32_t random[kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * kTile;
    normalize_tile(x, n, norms, bucket_size, start, r);
    noise_of_tile_avx512(static_cast<uint64_t>(tile), noise, random);
    const int groups = groups_in_tile(n, start);
    for (int j = 0; j < groups; ++j) {
      const int at = j * kGroup;
      const __m512i low = sloped_codes(_mm512_load_ps(r + at), _mm512_load_si512(random + at), slopes, tables);
      const __m512i high =
          sloped_codes(_mm512_load_ps(r + at + 16), _mm512_load_si512(random + at + 16), slopes, tables);
      store_planes(low, high, bits, words + 4 * ((start / kGroup + j) * bits));
    }
  }
}

// norm * (level + slope (u - 1/2)) of 16 coordinates.
LQRAY_AVX512 inline __m512 sloped_values(__m512i code, __m512i word, const Slopes& slopes, __m512 norm, __m512 value16,
                                         __m512 tilt16) {
  const bool few = slopes.levels.bits <= 4;
  const __m512 level = few ? _mm512_permutexvar_ps(code, value16) : _mm512_i32gather_ps(code, slopes.levels.value, 4);
  const __m512 tilt = few ? _mm512_permutexvar_ps(code, tilt16) : _mm512_i32gather_ps(code, slopes.tilt, 4);
  const __m512i top = _mm512_sub_epi32(_mm512_srli_epi32(word, 8), _mm512_set1_epi32(1 << 23));
  return _mm512_mul_ps(norm, _mm512_add_ps(level, _mm512_mul_ps(tilt, _mm512_cvtepi32_ps(top))));
}

}  // namespace

void encode_sloped_avx512(Input x, const uint8_t* norms, const Slopes& slopes, int64_t bucket_size, const Noise& noise,
                          uint8_t* words, int64_t begin, int64_t end) {
  with_reader(x, [&](auto reader) {
    encode_tiles(reader, x.n, norms, slopes, bucket_size, noise, words, begin, end);
  });
}

LQRAY_AVX512 void decode_sloped_avx512(const SlopedRows& rows, const Slopes& slopes, int64_t n, int64_t bucket_size,
                                       uint64_t seed, uint64_t offset, float scale, float* out, int64_t begin,
                                       int64_t end) {
  const int bits = slopes.levels.bits;
  const __m512 value16 = _mm512_loadu_ps(slopes.levels.value), tilt16 = _mm512_loadu_ps(slopes.tilt);
  const __m512 factor = _mm512_set1_ps(scale);
  alignas(64) uint32_t random[kTile];
  int64_t bucket = begin * kTile / bucket_size;
  for (int64_t tile = begin; tile < end; ++tile) {
    words_of_tile_avx512(static_cast<uint64_t>(tile), offset, seed, random);
    const int groups = groups_in_tile(n, tile * kTile);
    for (int j = 0; j < groups; ++j) {
      const int64_t group = tile * (kTile / kGroup) + j, start = group * kGroup;
      const uint32_t* word = random + j * kGroup;
      while ((bucket + 1) * bucket_size <= start) ++bucket;
      if (start + kGroup > n || (bucket + 1) * bucket_size < start + kGroup) {  // several buckets, or the end
        decode_sloped_group(rows, slopes, n, bucket_size, word, scale, out, group);
        continue;
      }
      const __m512i first = _mm512_load_si512(word), second = _mm512_load_si512(word + 16);
      __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
      for (int64_t row = 0; row < rows.count; ++row) {
        const uint8_t* bytes = rows.payloads + row * rows.stride;
        const __m512 norm = _mm512_set1_ps(load<float>(bytes, bucket));
        const __m512i phase = _mm512_set1_epi32(rows.phases[row]);
        const uint8_t* codes = bytes + rows.norm_bytes + 4 * group * bits;
        low = _mm512_add_ps(low, sloped_values(codes_of_half(codes, 0, bits), _mm512_add_epi32(first, phase), slopes,
                                               norm, value16, tilt16));
        high = _mm512_add_ps(high, sloped_values(codes_of_half(codes, 1, bits), _mm512_add_epi32(second, phase),
                                                 slopes, norm, value16, tilt16));
      }
      _mm512_storeu_ps(out + start, _mm512_mul_ps(low, factor));
      _mm512_storeu_ps(out + start + 16, _mm512_mul_ps(high, factor));
    }
  }
}

}  // namespace lqray::cpu

#endif  // LQRAY_X86
