// What the bindings of CPU operators share: threads, pointers, tables.
#pragma once

#include <torch/csrc/stable/device.h>

#include <algorithm>
#include <tuple>

#include "bind.h"
#include "quantize_cpu.h"

namespace lqray::bind {

constexpr int64_t kGrain = 1 << 15;  // coordinates that are worth a thread

// Share [0, units) of `size` coordinates each among torch's threads.
template <typename F>
void share(int64_t units, int64_t size, const F& work) {
  if (units > 0) torch::stable::parallel_for(0, units, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)), work);
}

inline cpu::Input input_of(const char* op, const Tensor& x) {
  return cpu::Input{x.const_data_ptr(), dtype_of(op, x), x.numel()};
}

inline uint8_t* bytes_of(const Tensor& x) { return static_cast<uint8_t*>(x.mutable_data_ptr()); }
inline const uint8_t* const_bytes_of(const Tensor& x) { return static_cast<const uint8_t*>(x.const_data_ptr()); }

// The numbers of `levels`, which increase.
inline Tensor checked_levels(const char* op, const Tensor& levels) {
  const Tensor flat = dense(levels);
  const float* value = static_cast<const float*>(flat.const_data_ptr());
  const int64_t count = flat.numel();
  bool increase = std::isfinite(value[0]) && std::isfinite(value[count - 1]);
  for (int64_t i = 1; i < count; ++i) increase = increase && value[i - 1] < value[i];
  STD_TORCH_CHECK(increase, op, ": levels must be finite and increase strictly");
  return flat;
}

inline const float* floats_of(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

inline Levels tables_of(const char* op, const Tensor& levels, int64_t bits) {
  const Tensor flat = checked_levels(op, levels);
  return cpu::make_levels(floats_of(flat), static_cast<int>(flat.numel()), static_cast<int>(bits));
}

// Norms of whole buckets and codes of their tiles. norms(begin, end): of buckets; encode(begin, end): of tiles.
template <typename N, typename E>
void share_buckets(int64_t n, int64_t bucket_size, const N& norms, const E& encode) {
  const int64_t buckets = ceil_divide(n, bucket_size), tiles = ceil_divide(n, kTile);
  if (bucket_size % kTile == 0) {  // tiles do not cross buckets: a bucket is still in the cache when it is encoded
    const int64_t width = bucket_size / kTile;
    share(buckets, bucket_size, [&](int64_t begin, int64_t end) {
      for (int64_t bucket = begin; bucket < end; ++bucket) {
        norms(bucket, bucket + 1);
        encode(bucket * width, std::min(tiles, (bucket + 1) * width));
      }
    });
  } else {
    share(buckets, bucket_size, norms);
    share(tiles, kTile, encode);
  }
}

}  // namespace lqray::bind
