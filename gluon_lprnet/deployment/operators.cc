/* Operators for the modules of a deployed network, by MXNet's extension interface (mx.library): inference, float32.
 *
 * Between them a feature map of C channels is an array (N, ceil(C / 16), H, W, 16), whose channels beyond C are 0.
 * Matrices have the shape (ceil(rows / 16), 16 * ceil(columns / 16), 16), depthwise weights (ceil(C / 16), 9, 16) and
 * biases (ceil(C / 16), 16). Convolutions are 3x3 with zero padding of 1 and a stride of 1 or 2.
 *
 *   lprnet_convolution  relu(W x + b) of a plain x; the columns of W are (row, channel, column) of the kernel
 *   lprnet_separable    relu(P relu(D x + b) + c), or with the attribute eps the LPR module:
 *                       relu(P2 q / sqrt(||q||^2 + eps) + d), q = P1 d, d = D x + b
 *   lprnet_pool         the mean over height and width, in the plain layout
 *   lprnet_block, lprnet_unblock   from and to the plain layout
 */
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "mxnet/lib_api.h"

namespace {

using namespace mxnet::ext;
typedef std::unordered_map<std::string, std::string> Attributes;

constexpr int BLOCK = 16;
typedef float Vector __attribute__((vector_size(BLOCK * sizeof(float)), aligned(sizeof(float)), may_alias));

/* Output blocks and pixels whose sums stay in registers. */
#if defined(__AVX512F__)
constexpr int BLOCKS = 2, PIXELS = 12;
#elif defined(__AVX__)
constexpr int BLOCKS = 1, PIXELS = 6;
#else
constexpr int BLOCKS = 1, PIXELS = 2;
#endif

/* Floats of a strip of rows between the two steps of a module: a quarter of a usual second-level cache. */
constexpr int STRIP = 64 * 1024;

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }
/* NaN stays NaN. */
inline Vector relu(Vector value) { return value < 0 ? Vector{} : value; }

/* M blocks of outputs at N pixels, from `count` groups of INNER neighboring inputs: the groups are `pitch` apart, the
 * pixels STEP. `put` takes block, pixel and sums. */
template <int M, int N, int INNER, int STEP, typename Put>
inline void tile(const float* x, int count, size_t pitch, const float* weight, Put put) {
  Vector sums[M][N] = {};
  const size_t matrix = (size_t)(count * INNER + BLOCK - 1) / BLOCK * BLOCK * BLOCK;
  for (int group = 0; group < count; ++group, x += pitch) {
#pragma GCC unroll 4
    for (int k = 0; k < INNER; ++k, weight += BLOCK) {
      Vector row[M];
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) row[i] = load(weight + i * matrix);
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) {
        const float value = x[j * STEP + k];
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) sums[i][j] += value * row[i];
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) put(i, j, sums[i][j]);
}

/* All pixels from `first` on, N at a time, then N / 2, and so on. */
template <int M, int N, int INNER, int STEP, typename Put>
struct Pixels {
  static void run(int first, int pixels, const float* x, int count, size_t pitch, const float* weight, const Put& put) {
    for (; first + N <= pixels; first += N)
      tile<M, N, INNER, STEP>(x + (size_t)first * STEP, count, pitch, weight,
                              [&](int i, int j, Vector sum) { put(i, first + j, sum); });
    Pixels<M, N / 2, INNER, STEP, Put>::run(first, pixels, x, count, pitch, weight, put);
  }
};

template <int M, int INNER, int STEP, typename Put>
struct Pixels<M, 0, INNER, STEP, Put> {
  static void run(int, int, const float*, int, size_t, const float*, const Put&) {}
};

template <int M, int INNER, int STEP, typename Put>
void blocks(int first, const float* x, int pixels, int count, size_t pitch, const float* weight, const Put& put) {
  auto shifted = [&](int i, int j, Vector sum) { put(first + i, j, sum); };
  const size_t matrix = (size_t)(count * INNER + BLOCK - 1) / BLOCK * BLOCK * BLOCK;
  Pixels<M, PIXELS, INNER, STEP, decltype(shifted)>::run(0, pixels, x, count, pitch, weight + first * matrix, shifted);
}

/* `outputs` blocks of outputs at `pixels` pixels. */
template <int INNER, int STEP, typename Put>
void multiply(const float* x, int pixels, int count, size_t pitch, const float* weight, int outputs, const Put& put) {
  int first = 0;
  for (; first + BLOCKS <= outputs; first += BLOCKS)
    blocks<BLOCKS, INNER, STEP>(first, x, pixels, count, pitch, weight, put);
  for (; first < outputs; ++first) blocks<1, INNER, STEP>(first, x, pixels, count, pitch, weight, put);
}

float* scratch(size_t size) {
  static thread_local std::vector<float> buffer;
  if (buffer.size() < size) buffer.resize(size);
  return buffer.data();
}

struct Shape {
  int images, blocks, height, width;
  size_t plane() const { return (size_t)height * width * BLOCK; }
};

/* Calls `work(image, first row, end row)` for all rows of the output, a strip at a time, in parallel: strips that fit
 * in cache, and enough of them for the threads. */
template <typename Work>
void for_strips(const Shape& out, int floats_a_row, const Work& work) {
  const int threads = omp_get_max_threads();
  const int share = (out.height * out.images + threads - 1) / threads;
  const int rows = std::max(1, std::min({out.height, STRIP / floats_a_row, share}));
  const int strips = (out.height + rows - 1) / rows;
#pragma omp parallel for schedule(dynamic) if (threads > 1 && out.images * strips > 1)
  for (int index = 0; index < out.images * strips; ++index) {
    const int strip = index % strips;
    work(index / strips, out.height * strip / strips, out.height * (strip + 1) / strips);
  }
}

/* Rows [first, end) of the depthwise 3x3 convolution of one block, its zero padding included. */
void depthwise(const float* x, const Shape& in, int stride, const float* weight, const float* bias, bool rectify,
               int first, int end, int width, float* to) {
  Vector w[9];
  for (int k = 0; k < 9; ++k) w[k] = load(weight + k * BLOCK);
  const Vector b = load(bias);
  for (int row = first; row < end; ++row) {
    const int y = row * stride - 1;
    const int k0 = y < 0, k1 = std::min(3, in.height - y);
    const float* const from = x + (ptrdiff_t)y * in.width * BLOCK;
    const size_t pitch = (size_t)in.width * BLOCK;
    auto border = [&](int column) {
      Vector sum = b;
      const int left = column * stride - 1;
      for (int ky = k0; ky < k1; ++ky)
        for (int kx = std::max(0, -left); kx < std::min(3, in.width - left); ++kx)
          sum += w[3 * ky + kx] * load(from + ky * pitch + (left + kx) * BLOCK);
      store(to + column * BLOCK, rectify ? relu(sum) : sum);
    };
    int column = 0;
    border(column++);
    if (k0 == 0 && k1 == 3) {
      for (; column * stride + 1 < in.width; ++column) {
        const float* at = from + (column * stride - 1) * BLOCK;
        Vector sum = b;
        for (int ky = 0; ky < 3; ++ky)
          for (int kx = 0; kx < 3; ++kx) sum += w[3 * ky + kx] * load(at + ky * pitch + kx * BLOCK);
        store(to + column * BLOCK, rectify ? relu(sum) : sum);
      }
    }
    for (; column < width; ++column) border(column);
    to += (size_t)width * BLOCK;
  }
}

Shape shape_of(const MXTensor& tensor) {
  return {(int)tensor.shape[0], (int)tensor.shape[1], (int)tensor.shape[2], (int)tensor.shape[3]};
}

typedef int Lanes __attribute__((vector_size(BLOCK * sizeof(int))));

inline float total(Vector value) {
  value += __builtin_shuffle(value, Lanes{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  value += __builtin_shuffle(value, Lanes{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  value += __builtin_shuffle(value, Lanes{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
  return value[0] + value[1];
}

/* q / sqrt(||q||^2 + eps) at each pixel. */
void normalize(float* q, int blocks, int pixels, float eps) {
  for (int p = 0; p < pixels; ++p) {
    Vector squares = {};
    for (int i = 0; i < blocks; ++i) {
      const Vector value = load(q + ((size_t)i * pixels + p) * BLOCK);
      squares += value * value;
    }
    const float inverse = 1 / std::sqrt(total(squares) + eps);
    for (int i = 0; i < blocks; ++i) {
      float* at = q + ((size_t)i * pixels + p) * BLOCK;
      store(at, load(at) * inverse);
    }
  }
}

MXReturnValue separable(const Attributes& attributes, std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs,
                        const OpResource&) {
  const Shape in = shape_of((*inputs)[0]), out = shape_of((*outputs)[0]);
  const float* const x = (*inputs)[0].data<float>();
  const float* const weight = (*inputs)[1].data<float>();
  const float* const bias = (*inputs)[2].data<float>();
  const float* const matrix = (*inputs)[3].data<float>();
  const float* const last = (*inputs)[4].data<float>();
  float* const y = (*outputs)[0].data<float>();
  const int stride = std::stoi(attributes.at("stride"));
  const bool lpr = attributes.count("eps");
  const float eps = lpr ? std::stof(attributes.at("eps")) : 0;
  const int rank = lpr ? (*inputs)[3].shape[0] : 0;
  for_strips(out, in.blocks * BLOCK * out.width, [&](int image, int first, int end) {
    const int pixels = (end - first) * out.width;
    const size_t pitch = (size_t)pixels * BLOCK;
    float* const d = scratch((in.blocks + rank) * pitch);
    float* const q = d + in.blocks * pitch;
    for (int i = 0; i < in.blocks; ++i)
      depthwise(x + (image * in.blocks + i) * in.plane(), in, stride, weight + i * 9 * BLOCK, bias + i * BLOCK, !lpr,
                first, end, out.width, d + i * pitch);
    float* const to = y + image * out.blocks * out.plane() + (size_t)first * out.width * BLOCK;
    if (lpr) {
      multiply<BLOCK, BLOCK>(d, pixels, in.blocks, pitch, matrix, rank, [&](int i, int p, Vector sum) {
        store(q + i * pitch + p * BLOCK, sum);
      });
      normalize(q, rank, pixels, eps);
      multiply<BLOCK, BLOCK>(q, pixels, rank, pitch, last, out.blocks, [&](int i, int p, Vector sum) {
        store(to + i * out.plane() + p * BLOCK, relu(sum + load(d + i * pitch + p * BLOCK)));
      });
    } else {
      multiply<BLOCK, BLOCK>(d, pixels, in.blocks, pitch, matrix, out.blocks, [&](int i, int p, Vector sum) {
        store(to + i * out.plane() + p * BLOCK, relu(sum + load(last + i * BLOCK)));
      });
    }
  });
  return MX_SUCCESS;
}

MXReturnValue convolution(const Attributes& attributes, std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs,
                          const OpResource&) {
  const auto& in = (*inputs)[0].shape;
  const int channels = in[1], height = in[2], width = in[3], stride = std::stoi(attributes.at("stride"));
  const Shape out = shape_of((*outputs)[0]);
  const float* const x = (*inputs)[0].data<float>();
  const float* const weight = (*inputs)[1].data<float>();
  const float* const bias = (*inputs)[2].data<float>();
  float* const y = (*outputs)[0].data<float>();
  const int pitch = width + 2;
  for_strips(out, channels * stride * pitch, [&](int image, int first, int end) {
    /* The strip's rows of the input with a zero at either end, the channels of a row one after the other. */
    const int rows = (end - first - 1) * stride + 3;
    float* const padded = scratch((size_t)rows * channels * pitch);
    for (int row = 0; row < rows; ++row)
      for (int c = 0; c < channels; ++c) {
        float* const to = padded + (size_t)(row * channels + c) * pitch;
        const int from = first * stride - 1 + row;
        std::memset(to, 0, pitch * sizeof(float));
        if (from >= 0 && from < height)
          std::memcpy(to + 1, x + ((size_t)(image * channels + c) * height + from) * width, width * sizeof(float));
      }
    for (int row = first; row < end; ++row) {
      const float* const from = padded + (size_t)(row - first) * stride * channels * pitch;
      float* const to = y + image * out.blocks * out.plane() + (size_t)row * out.width * BLOCK;
      auto put = [&](int i, int p, Vector sum) {
        store(to + i * out.plane() + p * BLOCK, relu(sum + load(bias + i * BLOCK)));
      };
      if (stride == 1) multiply<3, 1>(from, out.width, 3 * channels, pitch, weight, out.blocks, put);
      else multiply<3, 2>(from, out.width, 3 * channels, pitch, weight, out.blocks, put);
    }
  });
  return MX_SUCCESS;
}

MXReturnValue pool(const Attributes&, std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs,
                   const OpResource&) {
  const Shape in = shape_of((*inputs)[0]);
  const int channels = (*outputs)[0].shape[1], pixels = in.height * in.width;
  const float* x = (*inputs)[0].data<float>();
  float* const y = (*outputs)[0].data<float>();
  for (int index = 0; index < in.images * in.blocks; ++index, x += in.plane()) {
    Vector sum = {};
    for (int p = 0; p < pixels; ++p) sum += load(x + (size_t)p * BLOCK);
    sum /= (float)pixels;
    const int first = index % in.blocks * BLOCK;
    std::memcpy(y + index / in.blocks * channels + first, &sum, std::min(BLOCK, channels - first) * sizeof(float));
  }
  return MX_SUCCESS;
}

/* From (N, C, H, W). */
MXReturnValue block(const Attributes&, std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs,
                    const OpResource&) {
  const Shape out = shape_of((*outputs)[0]);
  const int channels = (*inputs)[0].shape[1], pixels = out.height * out.width;
  const float* const x = (*inputs)[0].data<float>();
  float* const y = (*outputs)[0].data<float>();
  for (int index = 0; index < out.images * out.blocks; ++index) {
    const int image = index / out.blocks, first = index % out.blocks * BLOCK;
    const float* const from = x + ((size_t)image * channels + first) * pixels;
    float* const to = y + index * out.plane();
    for (int p = 0; p < pixels; ++p)
      for (int lane = 0; lane < BLOCK; ++lane)
        to[(size_t)p * BLOCK + lane] = first + lane < channels ? from[(size_t)lane * pixels + p] : 0;
  }
  return MX_SUCCESS;
}

/* To (N, C, H, W). */
MXReturnValue unblock(const Attributes&, std::vector<MXTensor>* inputs, std::vector<MXTensor>* outputs,
                      const OpResource&) {
  const Shape in = shape_of((*inputs)[0]);
  const int channels = (*outputs)[0].shape[1], pixels = in.height * in.width;
  const float* const x = (*inputs)[0].data<float>();
  float* const y = (*outputs)[0].data<float>();
  for (int image = 0; image < in.images; ++image)
    for (int c = 0; c < channels; ++c) {
      const float* const from = x + ((size_t)image * in.blocks + c / BLOCK) * in.plane() + c % BLOCK;
      float* const to = y + ((size_t)image * channels + c) * pixels;
      for (int p = 0; p < pixels; ++p) to[p] = from[(size_t)p * BLOCK];
    }
  return MX_SUCCESS;
}

template <int INPUTS>
MXReturnValue arity(const Attributes&, int* inputs, int* outputs) {
  *inputs = INPUTS;
  *outputs = 1;
  return MX_SUCCESS;
}

MXReturnValue types(const Attributes&, std::vector<int>* inputs, std::vector<int>* outputs) {
  for (int& type : *inputs) {
    if (type != kFloat32 && type != kUNSET && type != -1) {
      MX_ERROR_MSG << "The operators of a deployed network take float32.";
      return MX_FAIL;
    }
    type = kFloat32;
  }
  (*outputs)[0] = kFloat32;
  return MX_SUCCESS;
}

/* MXNet makes no symbol of an operator without a gradient. */
MXReturnValue no_gradient(const Attributes&, std::vector<MXTensor>*, std::vector<MXTensor>*, const OpResource&) {
  MX_ERROR_MSG << "The operators of a deployed network are for inference: they have no gradient.";
  return MX_FAIL;
}

typedef std::vector<std::vector<unsigned> > Shapes;

unsigned blocks_of(unsigned channels) { return (channels + BLOCK - 1) / BLOCK; }

/* The shape after a 3x3 convolution. */
MXReturnValue convolved(const Attributes& attributes, const Shapes& inputs, size_t dimensions, unsigned blocks,
                        Shapes* outputs) {
  const std::vector<unsigned>& x = inputs[0];
  if (x.size() != dimensions) {
    MX_ERROR_MSG << "An operator of a deployed network takes an array of " << dimensions << " dimensions, not of "
                 << x.size() << ".";
    return MX_FAIL;
  }
  const unsigned stride = std::stoi(attributes.at("stride"));
  (*outputs)[0] = {x[0], blocks, (x[2] + stride - 1) / stride, (x[3] + stride - 1) / stride, BLOCK};
  return MX_SUCCESS;
}

MXReturnValue convolution_shapes(const Attributes& attributes, Shapes* inputs, Shapes* outputs) {
  return convolved(attributes, *inputs, 4, (*inputs)[1][0], outputs);
}

MXReturnValue separable_shapes(const Attributes& attributes, Shapes* inputs, Shapes* outputs) {
  return convolved(attributes, *inputs, 5, (*inputs)[attributes.count("eps") ? 4 : 3][0], outputs);
}

MXReturnValue block_shapes(const Attributes&, Shapes* inputs, Shapes* outputs) {
  const std::vector<unsigned>& x = (*inputs)[0];
  (*outputs)[0] = {x[0], blocks_of(x[1]), x[2], x[3], BLOCK};
  return MX_SUCCESS;
}

MXReturnValue pool_shapes(const Attributes& attributes, Shapes* inputs, Shapes* outputs) {
  (*outputs)[0] = {(*inputs)[0][0], (unsigned)std::stoi(attributes.at("channels")), 1, 1};
  return MX_SUCCESS;
}

MXReturnValue unblock_shapes(const Attributes& attributes, Shapes* inputs, Shapes* outputs) {
  const std::vector<unsigned>& x = (*inputs)[0];
  (*outputs)[0] = {x[0], (unsigned)std::stoi(attributes.at("channels")), x[2], x[3]};
  return MX_SUCCESS;
}

}  // namespace

#define REGISTER(name, function, inputs, shapes) \
  REGISTER_OP(name).setForward(function, "cpu").setBackward(no_gradient, "cpu").setParseAttrs(arity<inputs>) \
      .setInferType(types).setInferShape(shapes)

REGISTER(lprnet_block, block, 1, block_shapes);
REGISTER(lprnet_convolution, convolution, 3, convolution_shapes);
REGISTER(lprnet_pool, pool, 1, pool_shapes);
REGISTER(lprnet_separable, separable, 5, separable_shapes);
REGISTER(lprnet_unblock, unblock, 1, unblock_shapes);

MXReturnValue initialize(int) { return MX_SUCCESS; }
