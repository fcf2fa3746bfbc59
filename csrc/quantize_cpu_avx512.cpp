// Encode and decode for AVX-512. Comparisons give masks, and a mask is a bit plane's word.
#include "quantize_cpu_x86.h"

#if LQRAY_X86

#include "quantize_cpu_avx512.h"
#include "quantize_cpu_bodies.h"

namespace lqray::cpu {

namespace {

// Codes of 16 coordinates. Few levels: counted, then looked up in a register; many: searched in memory.
LQRAY_AVX512 inline __m512i codes16(__m512 r, __m512i word, const Levels& levels, __m512 below16, __m512 gap16) {
  const __m512i one = _mm512_set1_epi32(1);
  __m512i cell = _mm512_setzero_si512();
  __m512 below, gap;
  if (levels.count <= 16) {
    for (int level = 0; level < levels.count - 2; ++level) {
      const __mmask16 above = _mm512_cmp_ps_mask(r, _mm512_set1_ps(levels.inner[level]), _CMP_GE_OQ);
      cell = _mm512_mask_add_epi32(cell, above, cell, one);
    }
    below = _mm512_permutexvar_ps(cell, below16);
    gap = _mm512_permutexvar_ps(cell, gap16);
  } else {
    for (int step = 1 << (levels.bits - 1); step > 0; step >>= 1) {
      const __m512i probe = _mm512_add_epi32(cell, _mm512_set1_epi32(step - 1));
      const __mmask16 above = _mm512_cmp_ps_mask(r, _mm512_i32gather_ps(probe, levels.inner, 4), _CMP_GE_OQ);
      cell = _mm512_mask_add_epi32(cell, above, cell, _mm512_set1_epi32(step));
    }
    below = _mm512_i32gather_ps(cell, levels.below, 4);
    gap = _mm512_i32gather_ps(cell, levels.gap, 4);
  }
  const __m512 u = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(word, 8)), _mm512_set1_ps(kUnit));
  const __mmask16 up = _mm512_cmp_ps_mask(_mm512_mul_ps(u, gap), _mm512_sub_ps(r, below), _CMP_LT_OQ);
  return _mm512_mask_add_epi32(cell, up, cell, one);
}

template <typename Reader>
LQRAY_AVX512 void encode_tiles(Reader x, int64_t n, const uint8_t* norms, const Levels& levels, int64_t bucket_size,
                               uint64_t seed, uint64_t offset, uint8_t* words, int64_t begin, int64_t end) {
  const int bits = levels.bits;
  const __m512 below16 = _mm512_loadu_ps(levels.below), gap16 = _mm512_loadu_ps(levels.gap);
  alignas(64) float r[kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * kTile;
    normalize_tile(x, n, norms, bucket_size, start, r);
    const uint64_t call = static_cast<uint64_t>(tile) * kGroup;
    const Philox16 left = philox16(call, offset, seed), right = philox16(call + 16, offset, seed);
    const int groups = groups_in_tile(n, start);
    for (int j = 0; j < groups; ++j) {
      __m512i first = left.w[j >> 1], second = right.w[j >> 1];
      if (j & 1) {
        first = _mm512_rol_epi32(first, 16);
        second = _mm512_rol_epi32(second, 16);
      }
      const float* at = r + j * kGroup;
      const __m512i low = codes16(_mm512_load_ps(at), first, levels, below16, gap16);
      const __m512i high = codes16(_mm512_load_ps(at + 16), second, levels, below16, gap16);
      uint8_t* group = words + 4 * ((start / kGroup + j) * bits);
      store_planes(low, high, bits, group);
    }
  }
}

// Levels of 16 coordinates.
LQRAY_AVX512 inline __m512 values16(const uint8_t* group, int half, const Levels& levels, __m512 value16) {
  const __m512i code = codes_of_half(group, half, levels.bits);
  return levels.bits <= 4 ? _mm512_permutexvar_ps(code, value16) : _mm512_i32gather_ps(code, levels.value, 4);
}

}  // namespace

void encode_avx512(Input x, const uint8_t* norms, const Levels& levels, int64_t bucket_size, uint64_t seed,
                   uint64_t offset, uint8_t* words, int64_t begin, int64_t end) {
  with_reader(x, [&](auto reader) {
    encode_tiles(reader, x.n, norms, levels, bucket_size, seed, offset, words, begin, end);
  });
}

LQRAY_AVX512 void decode_sum_avx512(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes,
                                    const Levels& levels, int64_t n, int64_t bucket_size, float scale, const float* add,
                                    bool single, float* out, int64_t begin, int64_t end) {
  const __m512 value16 = _mm512_loadu_ps(levels.value), factor = _mm512_set1_ps(scale);
  int64_t bucket = begin * kGroup / bucket_size;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t start = group * kGroup;
    while ((bucket + 1) * bucket_size <= start) ++bucket;
    float* to = out + start;
    if (start + kGroup > n || (bucket + 1) * bucket_size < start + kGroup) {  // several buckets in a group, or the end
      if (single)
        decode_group<false>(Codes{payloads, payloads + norm_bytes}, levels, n, bucket_size, group, to);
      else
        decode_sum_body(payloads, count, stride, norm_bytes, levels, n, bucket_size, scale, add, out, group,
                        group + 1);
      continue;
    }
    const int64_t word = 4 * group * levels.bits;
    if (single) {
      const __m512 norm = _mm512_set1_ps(load<float>(payloads, bucket));
      const uint8_t* codes = payloads + norm_bytes + word;
      _mm512_storeu_ps(to, _mm512_mul_ps(norm, values16(codes, 0, levels, value16)));
      _mm512_storeu_ps(to + 16, _mm512_mul_ps(norm, values16(codes, 1, levels, value16)));
      continue;
    }
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (int64_t row = 0; row < count; ++row) {
      const uint8_t* bytes = payloads + row * stride;
      const __m512 norm = _mm512_set1_ps(load<float>(bytes, bucket));
      const uint8_t* codes = bytes + norm_bytes + word;
      low = _mm512_add_ps(low, _mm512_mul_ps(norm, values16(codes, 0, levels, value16)));
      high = _mm512_add_ps(high, _mm512_mul_ps(norm, values16(codes, 1, levels, value16)));
    }
    low = _mm512_mul_ps(low, factor);
    high = _mm512_mul_ps(high, factor);
    if (add) {
      low = _mm512_add_ps(_mm512_loadu_ps(add + start), low);
      high = _mm512_add_ps(_mm512_loadu_ps(add + start + 16), high);
    }
    _mm512_storeu_ps(to, low);
    _mm512_storeu_ps(to + 16, high);
  }
}

}  // namespace lqray::cpu

#endif  // LQRAY_X86
