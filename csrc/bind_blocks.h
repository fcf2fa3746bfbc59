// What the CPU and the CUDA binding of rotated blocks ask of shapes and dtypes.
#pragma once

#include "bind.h"
#include "blocks.h"

namespace lqray::bind {

template <typename T>
T* numbers_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
const T* const_numbers_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

inline void check_kind(const char* op, const char* name, const Tensor& tensor, ScalarType dtype, int64_t size,
                       const Tensor& beside) {
  check_device(op, name, tensor, beside);
  STD_TORCH_CHECK(tensor.scalar_type() == dtype && tensor.numel() == size, op, ": ", name,
                  " is of another dtype than it must be, or not of ", size, " elements");
}

// Of `rows` rows of the blocks that n coordinates make: a number, a width and a first plane for each; the centroids.
inline void check_rows_of_blocks(const char* op, const Tensor& numbers, const Tensor& widths, const Tensor& begins,
                                 const Tensor& centroids, int64_t rows, int64_t n, int64_t block_size,
                                 const Tensor& beside) {
  check_coordinates(op, n);
  STD_TORCH_CHECK(block_size >= kLeastBlock && block_size <= kMostBlock && (block_size & (block_size - 1)) == 0, op,
                  ": block_size is ", block_size, "; allowed: a power of two from 32 to 8192");
  const int64_t blocks = rows * ceil_divide(n, block_size);
  check_kind(op, "factors", numbers, ScalarType::Float, blocks, beside);
  check_kind(op, "widths", widths, ScalarType::Byte, blocks, beside);
  check_kind(op, "begins", begins, ScalarType::Long, blocks, beside);
  check_kind(op, "centroids", centroids, ScalarType::Float, kCentroids, beside);
}

inline void check_number_of_planes(int64_t planes) {
  STD_TORCH_CHECK(planes >= 0 && planes <= kMaxCoordinates, "eden_encode: planes is ", planes, "; allowed: 0 to 2**48");
}

inline void check_tables(const char* op, const Tensor& edges, const Tensor& dithers, const Tensor& beside) {
  check_kind(op, "edges", edges, ScalarType::Int, kNormSteps - 1, beside);
  check_kind(op, "dithers", dithers, ScalarType::Float, kDithers, beside);
}

inline void check_scales(const char* op, const Tensor& scales, const Tensor& beside) {
  check_kind(op, "scales", scales, ScalarType::Float, kDithers * kNormSteps, beside);
}

// Rows of norm codes.
inline void check_rows(const char* op, const Tensor& codes) {
  STD_TORCH_CHECK(codes.dim() == 2, op, ": codes has ", codes.dim(), " dimensions; allowed: 2");
  check_kind(op, "codes", codes, ScalarType::Byte, codes.size(0) * codes.size(1), codes);
}

// What each row of norm codes comes with.
inline void check_of_rows(const char* op, const Tensor& largest, const Tensor& seeds, int64_t rows,
                          const Tensor& beside) {
  check_kind(op, "largest", largest, ScalarType::Int, rows, beside);
  check_kind(op, "seeds", seeds, ScalarType::Long, rows, beside);
}

// Returns how many steps there are.
inline int64_t checked_order(const char* op, const Tensor& order, int64_t planes, int64_t blocks, const Tensor& beside) {
  STD_TORCH_CHECK(order.dim() == 2, op, ": order has ", order.dim(), " dimensions; allowed: 2");
  const int64_t count = order.size(1);
  check_kind(op, "order", order, ScalarType::Long, 2 * count, beside);
  STD_TORCH_CHECK(count <= kMostSteps, op, ": order has ", count, " steps; allowed: at most ", kMostSteps);
  STD_TORCH_CHECK(planes >= blocks, op, ": planes is ", planes, "; allowed: at least one for each of ", blocks, " blocks");
  return count;
}

}  // namespace lqray::bind
