/* Arithmetic of the operator library: strips of feature maps in blocks of channels, float32.
 *
 * A feature map of C channels is an array (ceil(C / BLOCK), height, width, BLOCK), whose channels beyond C are 0. Part
 * of one is a View: the blocks are `pitch` floats apart, and the pixels of a block follow one another.
 */
#ifndef LPRNET_KERNELS_H_
#define LPRNET_KERNELS_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

namespace lprnet {

/* One vector register; blocks and pixels of outputs whose sums stay in registers. */
#if defined(__AVX512F__)
constexpr int BLOCK = 16, PIXELS = 12;
#elif defined(__AVX__)
constexpr int BLOCK = 8, PIXELS = 6;
#else
constexpr int BLOCK = 4, PIXELS = 4;
#endif
constexpr int BLOCKS = 2;

typedef float Vector __attribute__((vector_size(BLOCK * sizeof(float))));
/* In memory: of any alignment, and of floats. */
typedef float Stored __attribute__((vector_size(BLOCK * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int Lanes __attribute__((vector_size(BLOCK * sizeof(int))));

inline Vector load(const float* from) { return *reinterpret_cast<const Stored*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Stored*>(to) = value; }
inline int blocks_of(int channels) { return (channels + BLOCK - 1) / BLOCK; }

struct View {
  float* data;
  size_t pitch;
  float* at(int block, int pixel) const { return data + block * pitch + (size_t)pixel * BLOCK; }
};

/* What an activation leaves of a value; NaN stays NaN. */
struct Range {
  Vector low, high;
  Range(float lowest, float highest) : low(Vector{} + lowest), high(Vector{} + highest) {}
  Vector operator()(Vector value) const {
    value = value < low ? low : value;
    return value > high ? high : value;
  }
  float operator()(float value) const { return value < low[0] ? low[0] : value > high[0] ? high[0] : value; }
};

/* A matrix as blocks of rows, each column by column, and its bias. */
struct Matrix {
  const float *weight, *bias;
  size_t panel;
};

/* Where the outputs go, and what is added before the activation (data may be null). */
struct Result {
  View to, addend;
  const Range& range;
};

/* `number` tiles, one after the other, of M blocks of outputs at N pixels, from `count` groups of INNER neighboring
 * inputs: the groups are `pitch` apart, the pixels STEP. */
template <int M, int N, int INNER, int STEP>
void tiles(const float* x, int count, size_t pitch, const Matrix& matrix, int block, int pixel, int number,
           const Result& result) {
  const float* const panel = matrix.weight + block * matrix.panel;
  const float* const bias = matrix.bias + block * BLOCK;
  const size_t next = matrix.panel, to_pitch = result.to.pitch, addend_pitch = result.addend.pitch;
  const Range range = result.range;
  float* to = result.to.at(block, pixel);
  const float* addend = result.addend.data ? result.addend.at(block, pixel) : nullptr;
  x += (size_t)pixel * STEP;
  for (int index = 0; index < number; ++index, x += N * STEP, to += N * BLOCK) {
    Vector sums[M][N];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 32
      for (int j = 0; j < N; ++j) sums[i][j] = load(bias + i * BLOCK);
    const float* weight = panel;
    const float* from = x;
    for (int group = 0; group < count; ++group, from += pitch) {
#pragma GCC unroll 4
      for (int k = 0; k < INNER; ++k, weight += BLOCK) {
        Vector row[M];
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) row[i] = load(weight + i * next);
        /* Where pixels share inputs: do not keep those for the next k, in registers that the sums need. */
        if (STEP < INNER) asm volatile("" : "+r"(from));
#pragma GCC unroll 32
        for (int j = 0; j < N; ++j) {
          const float value = from[j * STEP + k];
#pragma GCC unroll 4
          for (int i = 0; i < M; ++i) sums[i][j] += value * row[i];
        }
      }
    }
    if (addend) {
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 32
        for (int j = 0; j < N; ++j) sums[i][j] += load(addend + i * addend_pitch + j * BLOCK);
      addend += N * BLOCK;
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 32
      for (int j = 0; j < N; ++j) store(to + i * to_pitch + j * BLOCK, range(sums[i][j]));
  }
}

/* Tiles of `size` pixels, from 1 to N. */
template <int M, int N, int INNER, int STEP>
inline void tiles_of(int size, const float* x, int count, size_t pitch, const Matrix& matrix, int block, int pixel,
                     int number, const Result& result) {
  if constexpr (N > 0) {
    if (size == N) tiles<M, N, INNER, STEP>(x, count, pitch, matrix, block, pixel, number, result);
    else tiles_of<M, N - 1, INNER, STEP>(size, x, count, pitch, matrix, block, pixel, number, result);
  }
}

/* All pixels, in tiles as even as possible: a tile of few pixels waits for its own sums. */
template <int M, int N, int INNER, int STEP>
void all_tiles(const float* x, int pixels, int count, size_t pitch, const Matrix& matrix, int block,
               const Result& result) {
  const int number = (pixels + N - 1) / N, size = pixels / number, larger = pixels % number;
  tiles_of<M, N, INNER, STEP>(size + 1, x, count, pitch, matrix, block, 0, larger, result);
  tiles_of<M, N, INNER, STEP>(size, x, count, pitch, matrix, block, larger * (size + 1), number - larger, result);
}

/* `outputs` blocks of outputs at `pixels` pixels. */
template <int INNER, int STEP>
void multiply(const float* x, int pixels, int count, size_t pitch, const Matrix& matrix, int outputs,
              const Result& result) {
  int block = 0;
  for (; block + BLOCKS <= outputs; block += BLOCKS)
    all_tiles<BLOCKS, PIXELS, INNER, STEP>(x, pixels, count, pitch, matrix, block, result);
  for (; block < outputs; ++block)
    all_tiles<1, BLOCKS * PIXELS, INNER, STEP>(x, pixels, count, pitch, matrix, block, result);
}

inline void pointwise(const View& x, int inputs, int pixels, const Matrix& matrix, int outputs, const Result& result) {
  multiply<BLOCK, BLOCK>(x.data, pixels, inputs, x.pitch, matrix, outputs, result);
}

/* One row of a 3x3 convolution with stride 1 or 2 from rows of channels that have a zero at either end, `pitch` floats
 * each; the columns of the matrix are (row, channel, column) of the kernel. */
inline void dense_row(const float* rows, size_t pitch, int channels, int stride, int width, const Matrix& matrix,
                      int outputs, const Result& result) {
  if (stride == 1) multiply<3, 1>(rows, width, 3 * channels, pitch, matrix, outputs, result);
  else multiply<3, 2>(rows, width, 3 * channels, pitch, matrix, outputs, result);
}

/* The 3x3 depthwise convolution of COLUMNS neighboring pixels, of the kernel's rows and columns from Y0 to Y1 and X0 to
 * X1: those within the image. `from` is where the kernel's first row and column would be. */
template <int STRIDE, int COLUMNS, int Y0, int Y1, int X0, int X1>
inline void taps(const float* from, size_t pitch, const Vector* w, const Range& range, float* to) {
  Vector sums[COLUMNS];
#pragma GCC unroll 4
  for (int j = 0; j < COLUMNS; ++j) sums[j] = w[9];
#pragma GCC unroll 3
  for (int y = Y0; y < Y1; ++y)
#pragma GCC unroll 16
    for (int x = X0; x < (COLUMNS - 1) * STRIDE + X1; ++x) {
      const Vector value = load(from + y * pitch + x * BLOCK);
#pragma GCC unroll 4
      for (int j = 0; j < COLUMNS; ++j)
        if (x - j * STRIDE >= X0 && x - j * STRIDE < X1) sums[j] += w[3 * y + x - j * STRIDE] * value;
    }
#pragma GCC unroll 4
  for (int j = 0; j < COLUMNS; ++j) store(to + j * BLOCK, range(sums[j]));
}

template <int STRIDE, int Y0, int Y1>
void depthwise_row(const float* from, size_t pitch, int before, int width, int out_width, const float* weight,
                   const Range& range, float* to) {
  constexpr int COLUMNS = STRIDE == 1 ? 4 : 2;
  /* Copies, which the outputs cannot overwrite, stay in registers. */
  Vector w[10];
#pragma GCC unroll 10
  for (int k = 0; k < 10; ++k) w[k] = load(weight + k * BLOCK);
  const Range within = range;
  auto at = [&](int column) { return from + (ptrdiff_t)(column * STRIDE - before) * BLOCK; };
  /* The kernel is within the image for the columns from `first` to `end`. */
  const int first = before, end = std::max(first, std::min(out_width, (width - 3 + before) / STRIDE + 1));
  int column = 0;
  if (before) {
    if (width == 1) taps<STRIDE, 1, Y0, Y1, 1, 2>(at(0), pitch, w, within, to);
    else taps<STRIDE, 1, Y0, Y1, 1, 3>(at(0), pitch, w, within, to);
    ++column;
  }
  for (; column + COLUMNS <= end; column += COLUMNS)
    taps<STRIDE, COLUMNS, Y0, Y1, 0, 3>(at(column), pitch, w, within, to + column * BLOCK);
  for (; column < end; ++column) taps<STRIDE, 1, Y0, Y1, 0, 3>(at(column), pitch, w, within, to + column * BLOCK);
  for (; column < out_width; ++column) taps<STRIDE, 1, Y0, Y1, 0, 2>(at(column), pitch, w, within, to + column * BLOCK);
}

/* Rows [first, end) of the depthwise 3x3 convolution of one block; weights tap by tap, then the bias. The image has
 * `before` rows and columns of zeros, 0 or 1, before it, and up to one behind it. */
template <int STRIDE>
void depthwise(const float* x, int height, int width, int before, const float* weight, const Range& range, int first,
               int end, int out_width, float* to) {
  const size_t pitch = (size_t)width * BLOCK;
  for (int row = first; row < end; ++row, to += (size_t)out_width * BLOCK) {
    const int y = row * STRIDE - before;
    const float* const from = x + (ptrdiff_t)y * width * BLOCK;
    auto row_of = y < 0 ? height == 1 ? depthwise_row<STRIDE, 1, 2> : depthwise_row<STRIDE, 1, 3>
        : y + 3 <= height ? depthwise_row<STRIDE, 0, 3> : depthwise_row<STRIDE, 0, 2>;
    row_of(from, pitch, before, width, out_width, weight, range, to);
  }
}

inline float total(Vector value) {
  float sum = 0;
  for (int lane = 0; lane < BLOCK; ++lane) sum += value[lane];
  return sum;
}

/* x / sqrt(||x||^2 + eps) at each pixel; in place if `to` is x. */
inline void normalize(const View& x, int blocks, int pixels, float eps, const View& to) {
  for (int pixel = 0; pixel < pixels; ++pixel) {
    Vector squares = {};
    for (int i = 0; i < blocks; ++i) {
      const Vector value = load(x.at(i, pixel));
      squares += value * value;
    }
    const float inverse = 1 / std::sqrt(total(squares) + eps);
    for (int i = 0; i < blocks; ++i) store(to.at(i, pixel), load(x.at(i, pixel)) * inverse);
  }
}

inline void add(const View& x, const View& y, int blocks, int pixels, const Result& result) {
  for (int i = 0; i < blocks; ++i)
    for (int pixel = 0; pixel < pixels; ++pixel) {
      Vector sum = load(x.at(i, pixel));
      if (y.data) sum += load(y.at(i, pixel));
      store(result.to.at(i, pixel), result.range(sum));
    }
}

/* Channel 2 i is channel i of x, channel 2 i + 1 is channel i of y. */
inline void interleave(const View& x, const View& y, int outputs, int pixels, const View& to) {
  Lanes halves[2];
  for (int lane = 0; lane < BLOCK; ++lane)
    for (int half = 0; half < 2; ++half) halves[half][lane] = lane / 2 + lane % 2 * BLOCK + half * BLOCK / 2;
  for (int i = 0; i < outputs; ++i)
    for (int pixel = 0; pixel < pixels; ++pixel)
      store(to.at(i, pixel), __builtin_shuffle(load(x.at(i / 2, pixel)), load(y.at(i / 2, pixel)), halves[i % 2]));
}

/* Rows [first, end) of the largest of 3x3 with a stride of 2 and a padding of 1, of one block. */
inline void largest(const float* x, int height, int width, int first, int end, int out_width, float* to) {
  for (int row = first; row < end; ++row)
    for (int column = 0; column < out_width; ++column, to += BLOCK) {
      Vector best = Vector{} - INFINITY;
      for (int y = std::max(0, 2 * row - 1); y < std::min(height, 2 * row + 2); ++y)
        for (int z = std::max(0, 2 * column - 1); z < std::min(width, 2 * column + 2); ++z) {
          const Vector value = load(x + ((size_t)y * width + z) * BLOCK);
          best = value <= best ? best : value;
        }
      store(to, best);
    }
}

/* The mean over the pixels of one block. */
inline Vector mean(const float* x, int pixels) {
  Vector sums[4] = {};
  for (int pixel = 0; pixel < pixels; ++pixel) sums[pixel % 4] += load(x + (size_t)pixel * BLOCK);
  return (sums[0] + sums[1] + (sums[2] + sums[3])) / (float)pixels;
}

/* ROWS dot products of neighboring rows of a matrix with x. */
template <int ROWS>
inline void dots(const float* x, int size, const float* weight, const float* bias, const Range& range, float* to) {
  Vector sums[ROWS] = {};
  int k = 0;
  for (; k + BLOCK <= size; k += BLOCK) {
    const Vector value = load(x + k);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) sums[i] += value * load(weight + (size_t)i * size + k);
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    float sum = total(sums[i]);
    for (int rest = k; rest < size; ++rest) sum += x[rest] * weight[(size_t)i * size + rest];
    to[i] = range(sum + (bias ? bias[i] : 0));
  }
}

/* From (channels, pixels): the pixels [first, end) of one block, whose first channel is the first of `from`. */
inline void to_blocks(const float* from, int channels, size_t pixels, size_t first, size_t end, float* to) {
  for (size_t pixel = first; pixel < end; ++pixel)
    for (int lane = 0; lane < BLOCK; ++lane)
      to[pixel * BLOCK + lane] = lane < channels ? from[lane * pixels + pixel] : 0;
}

/* To (channels, pixels): all pixels of one block. */
inline void from_blocks(const float* from, int channels, size_t pixels, float* to) {
  for (int lane = 0; lane < std::min(channels, BLOCK); ++lane)
    for (size_t pixel = 0; pixel < pixels; ++pixel) to[lane * pixels + pixel] = from[pixel * BLOCK + lane];
}

}  // namespace lprnet

#endif  // LPRNET_KERNELS_H_
