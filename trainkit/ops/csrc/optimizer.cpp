// LAMB on a CPU, and its way to the kernels on CUDA.
#include "optimizer.h"

#include <tuple>

#include "common/tensor.h"

namespace {

using tk::LambPiece;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

constexpr int64_t kColumns = 8;  // of `hyper`: 1 - b1, b1, 1 - b2, b2, scale, offset, decay, lr

struct Pieces {
  std::vector<LambPiece> all;
  int64_t num_chunks = 0;
  int count() const { return int(all.size()); }
};

float* floats(const Tensor& x, const LambPiece& piece, const char* name) {
  tk::check_contiguous(x, name);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "trainkit: LAMB's kernels take float32 ", name);
  STD_TORCH_CHECK(x.numel() == piece.numel, "trainkit: ", name, " have other sizes than the weights");
  return tk::mutable_data<float>(x);
}

// Without gradients, and with neither bits nor copies where those are tensors without elements.
Pieces pieces_of(const Tensors& weights, const Tensors& ms, const Tensors& vs, const Tensors& bits,
                 const Tensor& hyper) {
  const int64_t num = int64_t(weights.size());
  STD_TORCH_CHECK(int64_t(ms.size()) == num && int64_t(vs.size()) == num && int64_t(bits.size()) == num,
                  "trainkit: LAMB's lists have other lengths than the weights");
  STD_TORCH_CHECK(hyper.scalar_type() == ScalarType::Double && hyper.is_contiguous() && hyper.is_cpu() &&
                      hyper.numel() == num * kColumns,
                  "trainkit: hyper must be float64 [", num, ", 8] on the CPU");
  Pieces pieces;
  pieces.all.resize(num);
  const double* row = tk::data<double>(hyper);
  for (int64_t i = 0; i < num; ++i, row += kColumns) {
    LambPiece& piece = pieces.all[i];
    piece = LambPiece{};
    piece.numel = weights[i].numel();
    piece.weight = floats(weights[i], piece, "weights");
    piece.m = floats(ms[i], piece, "exp_avg");
    piece.v = floats(vs[i], piece, "exp_avg_sq");
    if (bits[i].numel() > 0) {
      tk::check_contiguous(bits[i], "bits");
      STD_TORCH_CHECK(bits[i].scalar_type() == ScalarType::Byte && bits[i].numel() == (piece.numel + 7) / 8,
                      "trainkit: bits must be uint8, one for 8 weights");
      piece.bits = tk::data<uint8_t>(bits[i]);
    }
    piece.first_chunk = pieces.num_chunks;
    pieces.num_chunks += (piece.numel + tk::kLambChunk - 1) / tk::kLambChunk;
    piece.take1 = float(row[0]), piece.keep1 = float(row[1]), piece.take2 = float(row[2]), piece.keep2 = float(row[3]);
    piece.scale = float(row[4]), piece.offset = float(row[5]), piece.decay = float(row[6]), piece.lr = float(row[7]);
  }
  return pieces;
}

Pieces with_gradients(Pieces pieces, const Tensors& gradients) {
  STD_TORCH_CHECK(gradients.size() == pieces.all.size(), "trainkit: there are not as many gradients as weights");
  for (size_t i = 0; i < gradients.size(); ++i) {
    pieces.all[i].gradient = floats(gradients[i], pieces.all[i], "gradients");
  }
  return pieces;
}

Pieces with_copies(Pieces pieces, const Tensors& copies) {
  STD_TORCH_CHECK(copies.size() == pieces.all.size(), "trainkit: there are not as many copies as weights");
  for (size_t i = 0; i < copies.size(); ++i) {
    if (copies[i].numel() == 0) continue;
    tk::check_contiguous(copies[i], "copies");
    STD_TORCH_CHECK(copies[i].scalar_type() == ScalarType::BFloat16 && copies[i].numel() == pieces.all[i].numel,
                    "trainkit: copies must be bfloat16, of the weights' sizes");
    pieces.all[i].copy = tk::mutable_data<tk::bfloat16>(copies[i]);
  }
  return pieces;
}

Tensor squares_of(const Pieces& pieces, const Tensor& like) {
  return tk::unset(like, {int64_t(pieces.count()), 2}, ScalarType::Double);
}

// -- CPU --------------------------------------------------------------------------------------------------------------

// f(piece, first element, one after the last) of each chunk.
template <class F>
void over_chunks(const Pieces& pieces, const F& f) {
  tk::parallel_for(pieces.num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const LambPiece& piece = pieces.all[tk::find_piece(pieces.all.data(), pieces.count(), chunk)];
      const int64_t first = (chunk - piece.first_chunk) * tk::kLambChunk;
      f(piece, chunk, first, std::min(first + tk::kLambChunk, piece.numel));
    }
  });
}

template <bool kMasked>
std::pair<float, float> take_gradients(const LambPiece piece, float factor, int64_t begin, int64_t end) {
  float weight_square = 0.0f, update_square = 0.0f;
#pragma omp simd reduction(+ : weight_square, update_square)
  for (int64_t i = begin; i < end; ++i) {
    const float g = piece.gradient[i] * factor;
    const float m = piece.keep1 * piece.m[i] + piece.take1 * g;
    const float v = piece.keep2 * piece.v[i] + piece.take2 * (g * g);
    piece.m[i] = m;
    piece.v[i] = v;
    const float weight = piece.weight[i];
    const float update = tk::lamb_update(piece, weight, m, v);
    const bool kept = !kMasked || ((piece.bits[i >> 3] >> (i & 7)) & 1);
    weight_square += kept ? weight * weight : 0.0f;
    update_square += kept ? update * update : 0.0f;
  }
  return {weight_square, update_square};
}

template <bool kMasked>
void apply_update(const LambPiece piece, float rate, int64_t begin, int64_t end) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const float weight = piece.weight[i];
    const float moved = weight - rate * tk::lamb_update(piece, weight, piece.m[i], piece.v[i]);
    const bool kept = !kMasked || ((piece.bits[i >> 3] >> (i & 7)) & 1);
    piece.weight[i] = kept ? moved : 0.0f;
  }
}

Tensor lamb_moments_cpu(Tensors weights, Tensors gradients, Tensors ms, Tensors vs, Tensors bits, Tensor hyper,
                        std::optional<Tensor> factor) {
  STD_TORCH_CHECK(!weights.empty(), "trainkit: LAMB was given no weights");
  const Pieces pieces = with_gradients(pieces_of(weights, ms, vs, bits, hyper), gradients);
  const float shrink = factor ? *tk::data<float>(*factor) : 1.0f;
  std::vector<std::pair<float, float>> partial(pieces.num_chunks);
  over_chunks(pieces, [&](const LambPiece& piece, int64_t chunk, int64_t begin, int64_t end) {
    partial[chunk] = piece.bits ? take_gradients<true>(piece, shrink, begin, end)
                                : take_gradients<false>(piece, shrink, begin, end);
  });
  Tensor squares = squares_of(pieces, weights[0]);
  double* at = tk::mutable_data<double>(squares);
  for (int i = 0; i < pieces.count(); ++i, at += 2) {
    const int64_t end = i + 1 < pieces.count() ? pieces.all[i + 1].first_chunk : pieces.num_chunks;
    at[0] = at[1] = 0.0;
    for (int64_t chunk = pieces.all[i].first_chunk; chunk < end; ++chunk) {
      at[0] += partial[chunk].first;
      at[1] += partial[chunk].second;
    }
  }
  return squares;
}

void lamb_apply_cpu(Tensors weights, Tensors ms, Tensors vs, Tensors bits, Tensors copies, Tensor hyper,
                    Tensor squares) {
  const Pieces pieces = with_copies(pieces_of(weights, ms, vs, bits, hyper), copies);
  const double* square = tk::data<double>(squares);
  over_chunks(pieces, [&](const LambPiece& piece, int64_t, int64_t begin, int64_t end) {
    const double* own = square + 2 * (&piece - pieces.all.data());
    const float rate = piece.lr * tk::lamb_ratio(piece.decay, own[0], own[1]);
    piece.bits ? apply_update<true>(piece, rate, begin, end) : apply_update<false>(piece, rate, begin, end);
    if (!piece.copy) return;
    for (int64_t i = begin; i < end; ++i) piece.copy[i] = tk::narrow<tk::bfloat16>(piece.weight[i]);
  });
}

// -- CUDA -------------------------------------------------------------------------------------------------------------

#if defined(TRAINKIT_CUDA)

Tensor bytes_for(const Pieces& pieces, const Tensor& like) {
  return tk::unset(like, {int64_t(sizeof(LambPiece)) * pieces.count()}, ScalarType::Byte);
}

Tensor lamb_moments_cuda(Tensors weights, Tensors gradients, Tensors ms, Tensors vs, Tensors bits, Tensor hyper,
                         std::optional<Tensor> factor) {
  STD_TORCH_CHECK(!weights.empty(), "trainkit: LAMB was given no weights");
  const Tensor& first = weights[0];
  const Pieces pieces = with_gradients(pieces_of(weights, ms, vs, bits, hyper), gradients);
  const tk::OnDevice on(first);
  Tensor squares = squares_of(pieces, first);
  Tensor partial = tk::unset(first, {pieces.num_chunks, 2});
  Tensor table = bytes_for(pieces, first);
  tk::check_launch(
      trainkit_lamb_moments_cuda(pieces.all.data(), tk::mutable_data<LambPiece>(table), pieces.count(),
                                 pieces.num_chunks, factor ? tk::data<float>(*factor) : nullptr,
                                 tk::mutable_data<float>(partial), tk::mutable_data<double>(squares), on.stream()),
      "lamb_moments_");
  return squares;
}

void lamb_apply_cuda(Tensors weights, Tensors ms, Tensors vs, Tensors bits, Tensors copies, Tensor hyper,
                     Tensor squares) {
  if (weights.empty()) return;
  const Pieces pieces = with_copies(pieces_of(weights, ms, vs, bits, hyper), copies);
  const tk::OnDevice on(weights[0]);
  Tensor table = bytes_for(pieces, weights[0]);
  tk::check_launch(
      trainkit_lamb_apply_cuda(pieces.all.data(), tk::mutable_data<LambPiece>(table), pieces.count(),
                               pieces.num_chunks, tk::data<double>(squares), on.stream()),
      "lamb_apply_");
}

STABLE_TORCH_LIBRARY_IMPL(trainkit, CUDA, m) {
  m.impl("lamb_moments_", TORCH_BOX(&lamb_moments_cuda));
  m.impl("lamb_apply_", TORCH_BOX(&lamb_apply_cuda));
}

#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def(
      "lamb_moments_(Tensor[] weights, Tensor[] gradients, Tensor(a!)[] exp_avg, Tensor(b!)[] exp_avg_sq, "
      "Tensor[] bits, Tensor hyper, Tensor? factor) -> Tensor");
  m.def(
      "lamb_apply_(Tensor(a!)[] weights, Tensor[] exp_avg, Tensor[] exp_avg_sq, Tensor[] bits, "
      "Tensor(b!)[] copies, Tensor hyper, Tensor squares) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) {
  m.impl("lamb_moments_", TORCH_BOX(&lamb_moments_cpu));
  m.impl("lamb_apply_", TORCH_BOX(&lamb_apply_cpu));
}
