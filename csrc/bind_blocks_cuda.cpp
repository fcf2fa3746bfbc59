// The operators of rotated blocks for CUDA tensors, through torch's stable ABI; the work is eden_cuda's and
// allocation_cuda's. Nothing here waits for the device: what widths and planes lie outside of, which only it knows, is
// the kernels' to leave alone.
#include <tuple>

#include "bind_blocks.h"
#include "bind_cuda.h"
#include "blocks_cuda.h"

namespace lqray::bind {

namespace {

cuda::BlockRows rows_of(const Tensor& numbers, const Tensor& widths, const Tensor& begins, int64_t blocks,
                        int64_t planes) {
  return cuda::BlockRows{const_numbers_of<float>(numbers), const_numbers_of<uint8_t>(widths),
                         const_numbers_of<int64_t>(begins), blocks, planes};
}

std::tuple<Tensor, Tensor> eden_encode_cuda(const Tensor& x, const Tensor& factors, const Tensor& widths,
                                            const Tensor& begins, const Tensor& centroids, int64_t planes,
                                            int64_t block_size, int64_t seed, int64_t offset) {
  const char* op = "eden_encode";
  check_input(op, x, block_size);
  check_number_of_planes(planes);
  check_rows_of_blocks(op, factors, widths, begins, centroids, 1, x.numel(), block_size, x);
  const DeviceGuard guard(x.get_device_index());
  const Tensor flat = dense(x), numbers = dense(factors), wide = dense(widths), first = dense(begins);
  const Tensor table = dense(centroids);
  const int64_t blocks = factors.numel();
  Tensor codes = empty(x, {planes * (block_size / 8)}, ScalarType::Byte), dots = empty(x, {blocks}, ScalarType::Float);
  check_launch(op, cuda::eden_encode(input_of(op, flat), rows_of(numbers, wide, first, blocks, planes),
                                     const_numbers_of<float>(table), block_size, static_cast<uint64_t>(seed),
                                     static_cast<uint64_t>(offset), numbers_of<uint32_t>(codes),
                                     numbers_of<float>(dots), stream_of(x)));
  return {codes, dots};
}

// Rows of codes as whole words where words may lie: rows may be parts of longer payloads, whose lengths are whole words;
// what is not so is copied.
Tensor rows_of_words(const Tensor& codes) {
  const int64_t bytes = codes.size(1);
  if (codes.size(0) == 1 && codes.stride(1) == 1) return aligned(codes);
  const bool words = reinterpret_cast<uintptr_t>(codes.const_data_ptr()) % 4 == 0 && codes.stride(0) % 4 == 0;
  if (codes.numel() == 0 || (codes.stride(1) == 1 && words)) return codes;
  const int64_t beyond[] = {0, (4 - bytes % 4) % 4};
  return aligned(beyond[1] ? torch::stable::pad(codes, torch::headeronly::IntHeaderOnlyArrayRef(beyond, 2)) : dense(codes));
}

Tensor eden_decode_sum_cuda(const Tensor& codes, const Tensor& scales, const Tensor& widths, const Tensor& begins,
                            const Tensor& centroids, int64_t n, int64_t block_size, const Tensor& seeds, int64_t offset,
                            double scale) {
  const char* op = "eden_decode_sum";
  STD_TORCH_CHECK(codes.dim() == 2 && codes.scalar_type() == ScalarType::Byte, op,
                  ": codes must be uint8 of 2 dimensions");
  const int64_t count = codes.size(0);
  check_rows_of_blocks(op, scales, widths, begins, centroids, count, n, block_size, codes);
  check_kind(op, "seeds", seeds, ScalarType::Long, count, codes);
  const float factor = checked_scale(scale);
  const DeviceGuard guard(codes.get_device_index());
  const Tensor rows = rows_of_words(codes), numbers = dense(scales), wide = dense(widths), first = dense(begins);
  const Tensor table = dense(centroids), keys = dense(seeds);
  Tensor out = empty(codes, {n}, ScalarType::Float);
  check_launch(op, cuda::eden_decode_sum(
                       const_numbers_of<uint32_t>(rows), count, count > 1 ? rows.stride(0) / 4 : 0,
                       rows_of(numbers, wide, first, ceil_divide(n, block_size), codes.size(1) / (block_size / 8)),
                       const_numbers_of<float>(table), n, block_size, const_numbers_of<int64_t>(keys),
                       static_cast<uint64_t>(offset), factor, numbers_of<float>(out), stream_of(codes)));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> block_norm_codes_cuda(const Tensor& norms, const Tensor& edges, const Tensor& dithers,
                                                         const Tensor& scales, int64_t seed, int64_t offset) {
  const char* op = "block_norm_codes";
  const int64_t blocks = norms.numel();
  check_kind(op, "norms", norms, ScalarType::Float, blocks, norms);
  check_tables(op, edges, dithers, norms);
  check_scales(op, scales, norms);
  const DeviceGuard guard(norms.get_device_index());
  const Tensor flat = dense(norms), e = dense(edges), d = dense(dithers), s = dense(scales);
  const NormTables tables{const_numbers_of<int32_t>(e), const_numbers_of<float>(d), const_numbers_of<float>(s)};
  Tensor largest = empty(norms, {1}, ScalarType::Int), scratch = empty(norms, {1}, ScalarType::Int);
  Tensor codes = empty(norms, {blocks}, ScalarType::Byte), meant = empty(norms, {blocks}, ScalarType::Float);
  check_launch(op, cuda::block_norm_codes(const_numbers_of<float>(flat), blocks, tables, static_cast<uint64_t>(seed),
                                          static_cast<uint64_t>(offset), numbers_of<int32_t>(scratch),
                                          numbers_of<int32_t>(largest), numbers_of<uint8_t>(codes),
                                          numbers_of<float>(meant), stream_of(norms)));
  return {largest, codes, meant};
}

Tensor block_norms_cuda(const Tensor& codes, const Tensor& largest, const Tensor& scales, const Tensor& seeds,
                        int64_t offset) {
  const char* op = "block_norms";
  check_rows(op, codes);
  const int64_t rows = codes.size(0), blocks = codes.size(1);
  check_of_rows(op, largest, seeds, rows, codes);
  check_scales(op, scales, codes);
  const DeviceGuard guard(codes.get_device_index());
  const Tensor bytes = dense(codes), most = dense(largest), s = dense(scales), keys = dense(seeds);
  Tensor out = empty(codes, {rows, blocks}, ScalarType::Float);
  check_launch(op, cuda::block_norms(const_numbers_of<uint8_t>(bytes), rows, blocks, const_numbers_of<int32_t>(most),
                                     const_numbers_of<float>(s), const_numbers_of<int64_t>(keys),
                                     static_cast<uint64_t>(offset), numbers_of<float>(out), stream_of(codes)));
  return out;
}

std::tuple<Tensor, Tensor> block_widths_cuda(const Tensor& codes, const Tensor& order, int64_t planes) {
  const char* op = "block_widths";
  check_rows(op, codes);
  const int64_t rows = codes.size(0), blocks = codes.size(1);
  const int64_t count = checked_order(op, order, planes, blocks, codes);
  const DeviceGuard guard(codes.get_device_index());
  const Tensor bytes = dense(codes), steps = dense(order);
  Tensor widths = empty(codes, {rows, blocks}, ScalarType::Byte), begins = empty(codes, {rows, blocks}, ScalarType::Long);
  Tensor scratch = empty(codes, {cuda::scratch_bytes_widths(rows, blocks)}, ScalarType::Byte);
  check_launch(op, cuda::block_widths(const_numbers_of<uint8_t>(bytes), rows, blocks, const_numbers_of<int64_t>(steps),
                                      count, planes, scratch.mutable_data_ptr(), numbers_of<uint8_t>(widths),
                                      numbers_of<int64_t>(begins), stream_of(codes)));
  return {widths, begins};
}

}  // namespace

}  // namespace lqray::bind

STABLE_TORCH_LIBRARY_IMPL(lqray, CUDA, m) {
  m.impl("eden_encode", TORCH_BOX(&lqray::bind::eden_encode_cuda));
  m.impl("eden_decode_sum", TORCH_BOX(&lqray::bind::eden_decode_sum_cuda));
  m.impl("block_norm_codes", TORCH_BOX(&lqray::bind::block_norm_codes_cuda));
  m.impl("block_norms", TORCH_BOX(&lqray::bind::block_norms_cuda));
  m.impl("block_widths", TORCH_BOX(&lqray::bind::block_widths_cuda));
}
