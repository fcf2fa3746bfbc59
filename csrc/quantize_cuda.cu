// The CUDA kernels' launchers. Which kernel serves which tensor is decided here, on the host: one for each number of
// bits and norm, so that none of their loops asks.
#include <algorithm>
#include <type_traits>

#include "codes.cuh"
#include "hadamard_kernels.cuh"
#include "launch.cuh"
#include "norms.cuh"
#include "quantize_cuda.h"
#include "rotated.cuh"

namespace lqray::cuda {

namespace {

template <int kValue>
using Constant = std::integral_constant<int, kValue>;

template <typename F>
int with_reader(Input x, F&& launch) {
  switch (x.dtype) {
    case Dtype::f16:
      return launch(Float16{static_cast<const uint16_t*>(x.data)});
    case Dtype::bf16:
      return launch(Bfloat16{static_cast<const uint16_t*>(x.data)});
    default:
      return launch(Float32{static_cast<const float*>(x.data)});
  }
}

template <typename F>
int with_bits(int bits, F&& launch) {
  switch (bits) {
    case 1:
      return launch(Constant<1>());
    case 2:
      return launch(Constant<2>());
    case 3:
      return launch(Constant<3>());
    case 4:
      return launch(Constant<4>());
    case 5:
      return launch(Constant<5>());
    case 6:
      return launch(Constant<6>());
    case 7:
      return launch(Constant<7>());
    default:
      return launch(Constant<8>());
  }
}

template <typename F>
int with_norm(Norm norm, F&& launch) {
  if (norm == Norm::l2) return launch(std::integral_constant<Norm, Norm::l2>());
  return launch(std::integral_constant<Norm, Norm::linf>());
}

template <typename F>
int with_parts(int parts, F&& launch) {
  if (parts == 2) return launch(Constant<2>());
  if (parts == 4) return launch(Constant<4>());
  return launch(Constant<8>());
}

// Coordinates from `first` on.
Input rest_of(Input x, int64_t first) {
  const int64_t size = x.dtype == Dtype::f32 ? 4 : 2;
  return Input{static_cast<const uint8_t*>(x.data) + first * size, x.dtype, x.n - first};
}

// Codes of x, whose first tile is `first_tile` of the tensor.
int encode_from(Input x, int64_t first_tile, const float* norms, DeviceLevels levels, int64_t bucket_size,
                Random random, uint32_t* words, void* stream) {
  const int64_t tiles = ceil_divide(x.n, kTile);
  if (tiles == 0) return 0;
  const Divisor divisor(bucket_size);
  return with_reader(x, [&](auto reader) {
    return with_bits(levels.bits, [&](auto bits) {
      encode_tiles<bits.value><<<blocks_for(ceil_divide(tiles, kWarps)), kThreads, 0, stream_of(stream)>>>(
          reader, x.n, norms, levels, divisor, random, static_cast<uint64_t>(first_tile), words);
      return launched();
    });
  });
}

// How many warps hold a bucket in their registers; 0: not even one is filled.
int warps_for(int64_t bucket_size) { return static_cast<int>(bucket_size / kSumChunk); }

// Of how many coordinates a whole number is encoded without being read twice: a bucket, or a chunk of several.
int64_t fused_unit(int64_t bucket_size) {
  const bool fits = bucket_size >= 64 && bucket_size <= kMostWarps * kSumChunk;
  if (!fits || (bucket_size & (bucket_size - 1))) return int64_t{1} << 62;
  return std::max<int64_t>(bucket_size, kSumChunk);
}

// Whether buckets, powers of two, are rotated and encoded at once.
bool rotated_at_once(int64_t bucket_size) { return bucket_size >= 64 && bucket_size <= kSpan; }

float root_of_size(int64_t block_size) { return static_cast<float>(1.0 / sqrt(static_cast<double>(block_size))); }

// Chunks of all buckets, the last of which may have fewer; 0 where a bucket is no longer than a chunk.
int64_t chunks_of(int64_t n, int64_t bucket_size) {
  if (bucket_size <= kSumChunk || n == 0) return 0;
  const int64_t before = ceil_divide(n, bucket_size) - 1;
  return before * ceil_divide(bucket_size, kSumChunk) + ceil_divide(n - before * bucket_size, kSumChunk);
}

int long_norms(Input x, int64_t bucket_size, Norm norm, void* scratch, float* norms, cudaStream_t on) {
  const int64_t buckets = ceil_divide(x.n, bucket_size), count = chunks_of(x.n, bucket_size);
  const int64_t of_bucket = std::min(count, ceil_divide(bucket_size, kSumChunk));
  float* sums = static_cast<float*>(scratch);
  const Chunks chunks{Divisor(of_bucket), count, sums, reinterpret_cast<uint32_t*>(sums + count)};
  const unsigned blocks = blocks_for(ceil_divide(count, kWarps));
  const int threads = 32 * static_cast<int>(std::min<int64_t>(kWarps, ceil_divide(of_bucket, kSumChunk)));
  return with_reader(x, [&](auto reader) {
    return with_norm(norm, [&](auto of) {
      const auto pass = [&](auto again) {
        sums_of_chunks<of.value, again.value><<<blocks, kThreads, 0, on>>>(reader, x.n, bucket_size, chunks, norms);
        if (const int error = launched()) return error;
        norms_of_chunks<of.value, again.value><<<blocks_for(buckets), threads, 0, on>>>(chunks, buckets, norms);
        return launched();
      };
      const int error = pass(std::false_type());
      if constexpr (of.value == Norm::l2) return error ? error : pass(std::true_type());
      return error;
    });
  });
}

int short_norms(Input x, int64_t bucket_size, Norm norm, float* norms, cudaStream_t on) {
  const int64_t buckets = ceil_divide(x.n, bucket_size);
  return with_reader(x, [&](auto reader) {
    return with_norm(norm, [&](auto of) {
      norms_of_short_buckets<of.value><<<blocks_for(ceil_divide(buckets, kWarps)), kThreads, 0, on>>>(
          reader, x.n, bucket_size, buckets, norms);
      return launched();
    });
  });
}

}  // namespace

int64_t scratch_bytes(int64_t n, int64_t bucket_size) { return 8 * chunks_of(n, bucket_size); }

int64_t scratch_bytes_fused(int64_t n, int64_t bucket_size) {
  return scratch_bytes(n % fused_unit(bucket_size), bucket_size);
}

int bucket_norms(Input x, int64_t bucket_size, NormOf norm, void* scratch, float* norms, void* stream) {
  const int64_t buckets = ceil_divide(x.n, bucket_size);
  if (buckets == 0) return 0;
  const cudaStream_t on = stream_of(stream);
  const int error = bucket_size > kSumChunk ? long_norms(x, bucket_size, norm.kind, scratch, norms, on)
                                            : short_norms(x, bucket_size, norm.kind, norms, on);
  if (error || norm.of_short == 1.0f) return error;
  scale_norm<<<1, 1, 0, on>>>(norms + buckets - 1, norm.of_short);
  return launched();
}

int bucket_statistics(Input x, int64_t bucket_size, NormOf norm, double* norms, double* means, double* sigmas,
                      void* stream) {
  const int64_t buckets = ceil_divide(x.n, bucket_size);
  if (buckets == 0) return 0;
  return with_reader(x, [&](auto reader) {
    statistics_of_buckets<<<blocks_for(buckets), kThreads, 0, stream_of(stream)>>>(reader, x.n, bucket_size, norm,
                                                                                  buckets, norms, means, sigmas);
    return launched();
  });
}

int encode(Input x, const float* norms, DeviceLevels levels, int64_t bucket_size, uint64_t seed, uint64_t offset,
           uint32_t* words, void* stream) {
  return encode_from(x, 0, norms, levels, bucket_size, Random{round_keys(seed), offset}, words, stream);
}

int encode_fused(Input x, DeviceLevels levels, int64_t bucket_size, NormOf norm, uint64_t seed, uint64_t offset,
                 void* scratch, float* norms, uint32_t* words, void* stream) {
  const Random random{round_keys(seed), offset};
  const int64_t whole = x.n / fused_unit(bucket_size) * (fused_unit(bucket_size) / bucket_size);
  if (whole) {
    const cudaStream_t on = stream_of(stream);
    const int warps = warps_for(bucket_size), threads = 32 * std::max(warps, kWarps);
    const int64_t chunks = whole * bucket_size / kSumChunk;
    const unsigned blocks = blocks_for(ceil_divide(chunks, threads / 32));
    const int error = with_reader(x, [&](auto reader) {
      return with_bits(levels.bits, [&](auto bits) {
        return with_norm(norm.kind, [&](auto of) {
          if (warps)
            encode_buckets<bits.value, of.value><<<blocks, threads, 0, on>>>(reader, whole, warps, levels, random, norms,
                                                                          words);
          else
            encode_short_buckets<bits.value, of.value><<<blocks, kThreads, 0, on>>>(
                reader, chunks, shift_of(bucket_size / 32), levels, random, norms, words);
          return launched();
        });
      });
    });
    if (error) return error;
  }
  const Input rest = rest_of(x, whole * bucket_size);
  if (const int error = bucket_norms(rest, bucket_size, norm, scratch, norms + whole, stream)) return error;
  const int64_t first_tile = whole * bucket_size / kTile;
  return encode_from(rest, first_tile, norms + whole, levels, bucket_size, random,
                     words + first_tile * (kTile / kGroup) * levels.bits, stream);
}

int decode(const uint8_t* rows, int64_t count, int64_t stride, int64_t norm_bytes, DeviceLevels levels, int64_t n,
           int64_t bucket_size, float scale, bool plain, const float* add, float* out, void* stream) {
  const int64_t tiles = ceil_divide(n, kTile);
  if (tiles == 0) return 0;
  const Rows all{rows, count, stride, norm_bytes};
  const Divisor divisor(bucket_size);
  const unsigned blocks = blocks_for(ceil_divide(tiles, kWarps));
  const cudaStream_t on = stream_of(stream);
  return with_bits(levels.bits, [&](auto bits) {
    if (plain)
      decode_tiles<bits.value, true><<<blocks, kThreads, 0, on>>>(all, levels, n, divisor, scale, add, out);
    else
      decode_tiles<bits.value, false><<<blocks, kThreads, 0, on>>>(all, levels, n, divisor, scale, add, out);
    return launched();
  });
}

int hadamard(Input x, int64_t n, int64_t block_size, uint64_t seed, uint64_t offset, bool inverse, float* out,
             void* stream) {
  if (n == 0) return 0;
  const Random random{round_keys(seed), offset};
  const int chunk = static_cast<int>(std::min<int64_t>(block_size, kSpan));
  const bool whole = chunk == block_size;
  const float scale = root_of_size(block_size);
  hadamard_spans<<<blocks_for(ceil_divide(n, kSpan)), kThreads, 0, stream_of(stream)>>>(x, n, chunk, whole, scale,
                                                                                      random, inverse, out);
  if (const int error = launched()) return error;
  // Three doublings a stage; of blocks of 2^14 and 2^15 coordinates, and of the rest of longer ones, fewer.
  for (int64_t unit = kSpan; unit < block_size;) {
    const int64_t parts = std::min<int64_t>(8, block_size / unit);
    const bool last = unit * parts == block_size;
    const unsigned blocks = blocks_for(n / parts / kSignTile);
    const int error = with_parts(static_cast<int>(parts), [&](auto count) {
      hadamard_stage<count.value><<<blocks, kThreads, 0, stream_of(stream)>>>(out, n, shift_of(unit), last, scale,
                                                                            random, inverse);
      return launched();
    });
    if (error) return error;
    unit *= parts;
  }
  return 0;
}

int64_t scratch_bytes_rotated(int64_t n, int64_t bucket_size) {
  return rotated_at_once(bucket_size) ? 0 : 4 * n + scratch_bytes_fused(n, bucket_size);
}

int encode_rotated(Input x, int64_t n, DeviceLevels levels, int64_t bucket_size, NormOf norm, uint64_t seed,
                   uint64_t offset, uint64_t rotation, void* scratch, float* norms, uint32_t* words, void* stream) {
  if (n == 0) return 0;
  if (!rotated_at_once(bucket_size)) {
    float* rotated = static_cast<float*>(scratch);
    if (const int error = hadamard(x, n, bucket_size, rotation, offset, false, rotated, stream)) return error;
    return encode_fused(Input{rotated, Dtype::f32, n}, levels, bucket_size, norm, seed, offset, rotated + n, norms,
                        words, stream);
  }
  const Random signs{round_keys(rotation), offset}, random{round_keys(seed), offset};
  const unsigned blocks = blocks_for(ceil_divide(n, kSpan));
  const int shift = shift_of(bucket_size);
  const float root = root_of_size(bucket_size);
  const cudaStream_t on = stream_of(stream);
  return with_bits(levels.bits, [&](auto bits) {
    return with_norm(norm.kind, [&](auto of) {
      if (bucket_size >= kSumChunk)
        encode_rotated<bits.value, of.value, true><<<blocks, kThreads, 0, on>>>(x, n, shift, root, signs, levels,
                                                                              random, norms, words);
      else
        encode_rotated<bits.value, of.value, false><<<blocks, kThreads, 0, on>>>(x, n, shift, root, signs, levels,
                                                                               random, norms, words);
      return launched();
    });
  });
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace lqray::cuda
