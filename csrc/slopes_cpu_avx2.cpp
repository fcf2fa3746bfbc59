// Kernels of slopes.h for AVX2.
#include "slopes_cpu.h"

#if LQRAY_X86

#include "noise_cpu_avx2.h"

namespace lqray::cpu {

namespace {

template <int tables, typename Reader>
LQRAY_AVX2 void encode_tiles(Reader x, int64_t n, const uint8_t* norms, const Slopes& slopes, int64_t bucket_size,
                             const Noise& noise, uint8_t* words, int64_t begin, int64_t end) {
  const Levels& levels = slopes.levels;
  const __m256 unit = _mm256_set1_ps(1.0f);
  alignas(32) float r[kTile];
  alignas(32) uint32_t random[kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * kTile;
    normalize_tile(x, n, norms, bucket_size, start, r);
    noise_of_tile_avx2(static_cast<uint64_t>(tile), noise, random);
    const int groups = groups_in_tile(n, start);
    for (int j = 0; j < groups; ++j) {
      __m256 at[kEights];
      __m256i code[kEights];
      for (int eight = 0; eight < kEights; ++eight)
        at[eight] = _mm256_min_ps(unit, _mm256_load_ps(r + j * kGroup + 8 * eight));  // NaN stays
      cells_of<tables>(at, levels, code);
      for (int eight = 0; eight < kEights; ++eight) {
        const __m256i top = _mm256_srli_epi32(read8(random + j * kGroup + 8 * eight), 8);
        const __m256 u = _mm256_mul_ps(_mm256_cvtepi32_ps(top), _mm256_set1_ps(kUnit));
        const __m256 slack = _mm256_mul_ps(look_up<tables>(slopes.curve, code[eight]), _mm256_sub_ps(unit, u));
        const __m256 step = _mm256_mul_ps(u, _mm256_add_ps(look_up<tables>(levels.gap, code[eight]), slack));
        const __m256 rest = _mm256_sub_ps(at[eight], look_up<tables>(levels.below, code[eight]));
        code[eight] = _mm256_sub_epi32(code[eight], _mm256_castps_si256(_mm256_cmp_ps(step, rest, _CMP_LT_OQ)));
      }
      store_planes(code, levels.bits, words + 4 * ((start / kGroup + j) * levels.bits));
    }
  }
}

template <int tables>
LQRAY_AVX2 void decode_tiles(const SlopedRows& rows, const Slopes& slopes, int64_t n, int64_t bucket_size,
                             uint64_t seed, uint64_t offset, float scale, float* out, int64_t begin, int64_t end) {
  const int bits = slopes.levels.bits;
  alignas(32) uint32_t random[kTile];
  int64_t bucket = begin * kTile / bucket_size;
  for (int64_t tile = begin; tile < end; ++tile) {
    words_of_tile_avx2(static_cast<uint64_t>(tile), offset, seed, random);
    const int groups = groups_in_tile(n, tile * kTile);
    for (int j = 0; j < groups; ++j) {
      const int64_t group = tile * (kTile / kGroup) + j, start = group * kGroup;
      const uint32_t* word = random + j * kGroup;
      while ((bucket + 1) * bucket_size <= start) ++bucket;
      if (start + kGroup > n || (bucket + 1) * bucket_size < start + kGroup) {  // several buckets, or the end
        decode_sloped_group(rows, slopes, n, bucket_size, word, scale, out, group);
        continue;
      }
      __m256 sum[kEights] = {};
      for (int64_t row = 0; row < rows.count; ++row) {
        const uint8_t* bytes = rows.payloads + row * rows.stride;
        const __m256 norm = _mm256_set1_ps(load<float>(bytes, bucket));
        const __m256i phase = _mm256_set1_epi32(rows.phases[row]);
        const __m256i codes = codes_of(bytes + rows.norm_bytes + 4 * group * bits, bits);
        const __m128i half[2] = {_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1)};
        for (int eight = 0; eight < kEights; ++eight) {
          const __m128i part = (eight & 1) ? _mm_unpackhi_epi64(half[eight >> 1], half[eight >> 1]) : half[eight >> 1];
          const __m256i code = _mm256_cvtepu8_epi32(part);
          const __m256i top = _mm256_srli_epi32(_mm256_add_epi32(read8(word + 8 * eight), phase), 8);
          const __m256 from_half = _mm256_cvtepi32_ps(_mm256_sub_epi32(top, _mm256_set1_epi32(1 << 23)));
          const __m256 added = _mm256_mul_ps(look_up<tables>(slopes.tilt, code), from_half);
          const __m256 value = _mm256_add_ps(look_up<tables>(slopes.levels.value, code), added);
          sum[eight] = _mm256_add_ps(sum[eight], _mm256_mul_ps(norm, value));
        }
      }
      for (int eight = 0; eight < kEights; ++eight)
        _mm256_storeu_ps(out + start + 8 * eight, _mm256_mul_ps(sum[eight], _mm256_set1_ps(scale)));
    }
  }
}

}  // namespace

void encode_sloped_avx2(Input x, const uint8_t* norms, const Slopes& slopes, int64_t bucket_size, const Noise& noise,
                        uint8_t* words, int64_t begin, int64_t end) {
  with_reader(x, [&](auto reader) {
    with_tables(slopes.levels.count - 1, [&](auto tables) {
      encode_tiles<tables.value>(reader, x.n, norms, slopes, bucket_size, noise, words, begin, end);
    });
  });
}

void decode_sloped_avx2(const SlopedRows& rows, const Slopes& slopes, int64_t n, int64_t bucket_size, uint64_t seed,
                        uint64_t offset, float scale, float* out, int64_t begin, int64_t end) {
  with_tables(1 << slopes.levels.bits, [&](auto tables) {
    decode_tiles<tables.value>(rows, slopes, n, bucket_size, seed, offset, scale, out, begin, end);
  });
}

}  // namespace lqray::cpu

#endif  // LQRAY_X86
