// Encode and decode for AVX2. Tables of up to 32 entries are looked up in registers of 8; codes of a group of 32 meet
// in the bytes of one register, whose highest bits are a bit plane's word.
#include "quantize_cpu_x86.h"

#if LQRAY_X86

#include "quantize_cpu_avx2.h"

namespace lqray::cpu {

namespace {

template <int tables, typename Reader>
LQRAY_AVX2 void encode_tiles(Reader x, int64_t n, const uint8_t* norms, const Levels& levels, int64_t bucket_size,
                             uint64_t seed, uint64_t offset, uint8_t* words, int64_t begin, int64_t end) {
  // (w >> 8) of the word rotated by 16: its bytes 3, 0, 1 and a zero.
  const __m256i turned = _mm256_setr_epi8(3, 0, 1, -1, 7, 4, 5, -1, 11, 8, 9, -1, 15, 12, 13, -1, 3, 0, 1, -1, 7, 4, 5,
                                          -1, 11, 8, 9, -1, 15, 12, 13, -1);
  alignas(32) float r[kTile];
  alignas(32) uint32_t random[4][kGroup];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t start = tile * kTile;
    normalize_tile(x, n, norms, bucket_size, start, r);
    philox_calls(static_cast<uint64_t>(tile), offset, seed, random);
    const int groups = groups_in_tile(n, start);
    for (int j = 0; j < groups; ++j) {
      __m256 at[kEights];
      __m256i code[kEights];
      for (int eight = 0; eight < kEights; ++eight) at[eight] = _mm256_load_ps(r + j * kGroup + 8 * eight);
      cells_of<tables>(at, levels, code);
      for (int eight = 0; eight < kEights; ++eight) {
        const __m256i word = _mm256_load_si256(reinterpret_cast<const __m256i*>(random[j >> 1] + 8 * eight));
        const __m256i top = (j & 1) ? _mm256_shuffle_epi8(word, turned) : _mm256_srli_epi32(word, 8);
        const __m256 u = _mm256_mul_ps(_mm256_cvtepi32_ps(top), _mm256_set1_ps(kUnit));
        const __m256 step = _mm256_mul_ps(u, look_up<tables>(levels.gap, code[eight]));
        const __m256 rest = _mm256_sub_ps(at[eight], look_up<tables>(levels.below, code[eight]));
        code[eight] = _mm256_sub_epi32(code[eight], _mm256_castps_si256(_mm256_cmp_ps(step, rest, _CMP_LT_OQ)));
      }
      store_planes(code, levels.bits, words + 4 * ((start / kGroup + j) * levels.bits));
    }
  }
}

// norm * level of a group's coordinates.
template <int tables>
LQRAY_AVX2 inline void values_of(const uint8_t* group, const Levels& levels, float norm, __m256 (&value)[kEights]) {
  const __m256i code = codes_of(group, levels.bits);
  const __m128i half[2] = {_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1)};
  for (int eight = 0; eight < kEights; ++eight) {
    const __m128i bytes = (eight & 1) ? _mm_unpackhi_epi64(half[eight >> 1], half[eight >> 1]) : half[eight >> 1];
    const __m256 level = look_up<tables>(levels.value, _mm256_cvtepu8_epi32(bytes));
    value[eight] = _mm256_mul_ps(_mm256_set1_ps(norm), level);
  }
}

template <int tables>
LQRAY_AVX2 void decode_groups(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes,
                              const Levels& levels, int64_t n, int64_t bucket_size, float scale, const float* add,
                              bool single, float* out, int64_t begin, int64_t end) {
  const __m256 factor = _mm256_set1_ps(scale);
  int64_t bucket = begin * kGroup / bucket_size;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t start = group * kGroup, word = 4 * group * levels.bits;
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
    __m256 value[kEights], sum[kEights] = {};
    if (single) {
      values_of<tables>(payloads + norm_bytes + word, levels, load<float>(payloads, bucket), value);
      for (int eight = 0; eight < kEights; ++eight) _mm256_storeu_ps(to + 8 * eight, value[eight]);
      continue;
    }
    for (int64_t row = 0; row < count; ++row) {
      const uint8_t* bytes = payloads + row * stride;
      values_of<tables>(bytes + norm_bytes + word, levels, load<float>(bytes, bucket), value);
      for (int eight = 0; eight < kEights; ++eight) sum[eight] = _mm256_add_ps(sum[eight], value[eight]);
    }
    for (int eight = 0; eight < kEights; ++eight) {
      const __m256 scaled = _mm256_mul_ps(sum[eight], factor);
      const __m256 moved = add ? _mm256_add_ps(_mm256_loadu_ps(add + start + 8 * eight), scaled) : scaled;
      _mm256_storeu_ps(to + 8 * eight, moved);
    }
  }
}

}  // namespace

void encode_avx2(Input x, const uint8_t* norms, const Levels& levels, int64_t bucket_size, uint64_t seed,
                 uint64_t offset, uint8_t* words, int64_t begin, int64_t end) {
  with_reader(x, [&](auto reader) {
    with_tables(levels.count - 1, [&](auto tables) {
      encode_tiles<tables.value>(reader, x.n, norms, levels, bucket_size, seed, offset, words, begin, end);
    });
  });
}

void decode_sum_avx2(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes, const Levels& levels,
                     int64_t n, int64_t bucket_size, float scale, const float* add, bool single, float* out,
                     int64_t begin, int64_t end) {
  with_tables(1 << levels.bits, [&](auto tables) {
    decode_groups<tables.value>(payloads, count, stride, norm_bytes, levels, n, bucket_size, scale, add, single, out,
                                begin, end);
  });
}

LQRAY_AVX2 void pack_avx2(const uint8_t* codes, int64_t groups, int bits, uint8_t* words) {
  for (int64_t group = 0; group < groups; ++group) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + group * kGroup));
    store_planes(bytes, bits, words + 4 * group * bits);
  }
}

LQRAY_AVX2 void unpack_avx2(const uint8_t* words, int64_t groups, int bits, uint8_t* codes) {
  for (int64_t group = 0; group < groups; ++group) {
    const __m256i bytes = codes_of(words + 4 * group * bits, bits);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + group * kGroup), bytes);
  }
}

}  // namespace lqray::cpu

#endif  // LQRAY_X86
