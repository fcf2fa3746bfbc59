// Encode and decode for AVX2. Tables of up to 32 entries are looked up in registers of 8; codes of a group of 32 meet
// in the bytes of one register, whose highest bits are a bit plane's word.
#include "quantize_cpu_x86.h"

#if LQRAY_X86

#include <immintrin.h>

#include <type_traits>

#include "quantize_cpu_bodies.h"

namespace lqray::cpu {

namespace {

constexpr int kEights = kGroup / 8;

// Calls f with how many registers hold a table of so many entries: 1, 2 or 4 as a type, or 0: it stays in memory.
template <typename F>
void with_tables(int entries, F&& f) {
  if (entries <= 8) return f(std::integral_constant<int, 1>{});
  if (entries <= 16) return f(std::integral_constant<int, 2>{});
  if (entries <= 32) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, 0>{});
}

// table[i], i < 8 * tables.
template <int tables>
LQRAY_AVX2 inline __m256 look_up(const float* table, __m256i i) {
  if constexpr (tables == 0) {
    return _mm256_i32gather_ps(table, i, 4);
  } else if constexpr (tables == 1) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), i);
  } else {
    const __m256 low = look_up<tables / 2>(table, i), high = look_up<tables / 2>(table + 4 * tables, i);
    const __m256i top = _mm256_slli_epi32(i, tables == 2 ? 28 : 27);  // the bit that chooses, as a sign
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(top));
  }
}

// Four Philox calls, each word the lower half of a 64-bit lane: what is in the upper halves does not matter.
struct Philox4 {
  __m256i w[4];
};

LQRAY_AVX2 inline void turn(Philox4& call, __m256i k0, __m256i k1) {
  const __m256i p0 = _mm256_mul_epu32(call.w[0], _mm256_set1_epi64x(0xD2511F53));
  const __m256i p1 = _mm256_mul_epu32(call.w[2], _mm256_set1_epi64x(0xCD9E8D57));
  call.w[0] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), k0), call.w[1]);
  call.w[2] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), k1), call.w[3]);
  call.w[1] = p1;
  call.w[3] = p0;
}

// Word m of the tile's call for a lane is word[m][lane].
LQRAY_AVX2 inline void philox_calls(uint64_t tile, uint64_t offset, uint64_t seed, uint32_t (&word)[4][kGroup]) {
  const uint64_t first = tile * kGroup;
  const __m256i c1 = _mm256_set1_epi64x(static_cast<int64_t>(first >> 32));
  const __m256i c2 = _mm256_set1_epi64x(static_cast<int64_t>(offset));
  const __m256i c3 = _mm256_set1_epi64x(static_cast<int64_t>(offset >> 32));
  const __m256i step0 = _mm256_set1_epi32(static_cast<int>(0x9E3779B9u));
  const __m256i step1 = _mm256_set1_epi32(static_cast<int>(0xBB67AE85u));
  for (int eight = 0; eight < kEights; ++eight) {
    const __m256i start = _mm256_set1_epi64x(static_cast<int64_t>(first + 8 * eight));
    Philox4 even{{_mm256_add_epi64(start, _mm256_setr_epi64x(0, 2, 4, 6)), c1, c2, c3}};
    Philox4 odd{{_mm256_add_epi64(start, _mm256_setr_epi64x(1, 3, 5, 7)), c1, c2, c3}};
    __m256i k0 = _mm256_set1_epi32(static_cast<int>(seed)), k1 = _mm256_set1_epi32(static_cast<int>(seed >> 32));
    for (int round = 0; round < 10; ++round) {
      turn(even, k0, k1);
      turn(odd, k0, k1);
      k0 = _mm256_add_epi32(k0, step0);
      k1 = _mm256_add_epi32(k1, step1);
    }
    for (int m = 0; m < 4; ++m) {
      const __m256i both = _mm256_blend_epi32(even.w[m], _mm256_slli_epi64(odd.w[m], 32), 0xAA);
      _mm256_store_si256(reinterpret_cast<__m256i*>(word[m] + 8 * eight), both);
    }
  }
}

// The cells of a group's r. Few levels are counted, many searched.
template <int tables>
LQRAY_AVX2 inline void cells_of(const __m256 (&r)[kEights], const Levels& levels, __m256i (&cell)[kEights]) {
  for (int eight = 0; eight < kEights; ++eight) cell[eight] = _mm256_setzero_si256();
  if constexpr (tables > 0) {
    for (int level = 0; level < levels.count - 2; ++level) {
      const __m256 at = _mm256_broadcast_ss(levels.inner + level);
      for (int eight = 0; eight < kEights; ++eight) {
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(r[eight], at, _CMP_GE_OQ));
        cell[eight] = _mm256_sub_epi32(cell[eight], above);
      }
    }
  } else {
    for (int step = 1 << (levels.bits - 1); step > 0; step >>= 1)
      for (int eight = 0; eight < kEights; ++eight) {
        const __m256i probe = _mm256_add_epi32(cell[eight], _mm256_set1_epi32(step - 1));
        const __m256 at = _mm256_i32gather_ps(levels.inner, probe, 4);
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(r[eight], at, _CMP_GE_OQ));
        cell[eight] = _mm256_add_epi32(cell[eight], _mm256_and_si256(above, _mm256_set1_epi32(step)));
      }
  }
}

// A group's codes, one in each byte or each number, as the words of its bit planes.
LQRAY_AVX2 inline void store_planes(__m256i bytes, int bits, uint8_t* words) {
  bytes = _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(8 - bits));
  for (int plane = bits - 1; plane >= 0; --plane) {
    const uint32_t word = static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
    std::memcpy(words + 4 * plane, &word, 4);
    bytes = _mm256_add_epi8(bytes, bytes);
  }
}

LQRAY_AVX2 inline void store_planes(const __m256i (&code)[kEights], int bits, uint8_t* words) {
  const __m256i first = _mm256_packs_epi32(code[0], code[1]), second = _mm256_packs_epi32(code[2], code[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packs work in each half of a register
  store_planes(_mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order), bits, words);
}

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

// The codes of a group, as bytes.
LQRAY_AVX2 inline __m256i codes_of(const uint8_t* group, int bits) {
  const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i own = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));  // each byte's bit
  __m256i code = _mm256_setzero_si256(), value = _mm256_set1_epi8(1);
  for (int plane = 0; plane < bits; ++plane) {
    const __m256i word = _mm256_set1_epi32(static_cast<int>(load<uint32_t>(group, plane)));
    const __m256i set = _mm256_and_si256(_mm256_shuffle_epi8(word, spread), own);
    code = _mm256_or_si256(code, _mm256_and_si256(_mm256_cmpeq_epi8(set, own), value));
    value = _mm256_add_epi8(value, value);
  }
  return code;
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
