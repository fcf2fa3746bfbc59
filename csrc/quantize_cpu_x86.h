// Kernels written for one instruction set, of x86-64 alone; arguments as in quantize_cpu.h. Call them only where the
// machine has it. Internal to quantize_cpu*.cpp.
#pragma once

#include "quantize_cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define LQRAY_X86 1
#define LQRAY_AVX2 __attribute__((target("avx2")))
#define LQRAY_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define LQRAY_X86 0
#endif

namespace lqray::cpu {

enum class Isa { portable, avx2, avx512 };

// What this machine runs, or what LQRAY_CPU_ISA asks for and it has.
Isa isa();

}  // namespace lqray::cpu

#if LQRAY_X86

namespace lqray::cpu {

void encode_avx2(Input x, const uint8_t* norms, const Levels& levels, int64_t bucket_size, uint64_t seed,
                 uint64_t offset, uint8_t* words, int64_t begin, int64_t end);
void encode_avx512(Input x, const uint8_t* norms, const Levels& levels, int64_t bucket_size, uint64_t seed,
                   uint64_t offset, uint8_t* words, int64_t begin, int64_t end);

// single: of one payload, whose values are neither scaled nor added to anything.
void decode_sum_avx2(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes, const Levels& levels,
                     int64_t n, int64_t bucket_size, float scale, const float* add, bool single, float* out,
                     int64_t begin, int64_t end);
void decode_sum_avx512(const uint8_t* payloads, int64_t count, int64_t stride, int64_t norm_bytes, const Levels& levels,
                       int64_t n, int64_t bucket_size, float scale, const float* add, bool single, float* out,
                       int64_t begin, int64_t end);

// Whole groups of 32.
void pack_avx2(const uint8_t* codes, int64_t groups, int bits, uint8_t* words);
void unpack_avx2(const uint8_t* words, int64_t groups, int bits, uint8_t* codes);

}  // namespace lqray::cpu

#endif
